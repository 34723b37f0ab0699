//! What is done to whole rows of numbers, for functions compiled for wide vectors. Every row is gone through in blocks that
//! are copied into registers and back: the compiler, which cannot know that two rows do not overlap, runs them number by
//! number otherwise.

use super::dense::Real;
use super::vector::{LANES, fused, together};

/// Blocks of a row that is as long as the one that is written, and the rest.
#[inline(always)]
fn blocks<E>(row: &[E], length: usize) -> (&[[E; LANES]], &[E]) {
    row[..length].as_chunks()
}

/// `to ← factor to`
#[inline(always)]
pub(super) fn scale<E: Real>(to: &mut [E], factor: E) {
    let (blocks, rest) = to.as_chunks_mut::<LANES>();
    for block in blocks {
        for x in block {
            *x *= factor;
        }
    }
    for to in rest {
        *to *= factor;
    }
}

/// `to ← factor x`
#[inline(always)]
pub(super) fn set_scaled<E: Real>(to: &mut [E], factor: E, x: &[E]) {
    let (x, x_rest) = blocks(x, to.len());
    let (to, to_rest) = to.as_chunks_mut::<LANES>();
    for k in 0..to.len() {
        to[k] = x[k];
        for x in &mut to[k] {
            *x *= factor;
        }
    }
    for (i, to) in to_rest.iter_mut().enumerate() {
        *to = factor * x_rest[i];
    }
}

/// `to ← x ∘ y`
#[inline(always)]
pub(super) fn multiply<E: Real>(to: &mut [E], x: &[E], y: &[E]) {
    let (x, x_rest) = blocks(x, to.len());
    let (y, y_rest) = blocks(y, to.len());
    let (to, to_rest) = to.as_chunks_mut::<LANES>();
    for k in 0..to.len() {
        let (mut found, y) = (x[k], y[k]);
        for i in 0..LANES {
            found[i] *= y[i];
        }
        to[k] = found;
    }
    for (i, to) in to_rest.iter_mut().enumerate() {
        *to = x_rest[i] * y_rest[i];
    }
}

/// `to ← to ∘ x`
#[inline(always)]
pub(super) fn multiply_by<E: Real>(to: &mut [E], x: &[E]) {
    let (x, x_rest) = blocks(x, to.len());
    let (to, to_rest) = to.as_chunks_mut::<LANES>();
    for k in 0..to.len() {
        let (mut found, x) = (to[k], x[k]);
        for i in 0..LANES {
            found[i] *= x[i];
        }
        to[k] = found;
    }
    for (i, to) in to_rest.iter_mut().enumerate() {
        *to *= x_rest[i];
    }
}

/// `to ← to + x`
#[inline(always)]
pub(super) fn add<E: Real>(to: &mut [E], x: &[E]) {
    let (x, x_rest) = blocks(x, to.len());
    let (to, to_rest) = to.as_chunks_mut::<LANES>();
    for k in 0..to.len() {
        let (mut found, x) = (to[k], x[k]);
        for i in 0..LANES {
            found[i] += x[i];
        }
        to[k] = found;
    }
    for (i, to) in to_rest.iter_mut().enumerate() {
        *to += x_rest[i];
    }
}

/// `to ← to + x ∘ y`
#[inline(always)]
pub(super) fn add_products<E: Real, const FUSED: bool>(to: &mut [E], x: &[E], y: &[E]) {
    let (x, x_rest) = blocks(x, to.len());
    let (y, y_rest) = blocks(y, to.len());
    let (to, to_rest) = to.as_chunks_mut::<LANES>();
    for k in 0..to.len() {
        let (mut found, x, y) = (to[k], x[k], y[k]);
        for i in 0..LANES {
            found[i] = fused::<E, FUSED>(x[i], y[i], found[i]);
        }
        to[k] = found;
    }
    for (i, to) in to_rest.iter_mut().enumerate() {
        *to = fused::<E, FUSED>(x_rest[i], y_rest[i], *to);
    }
}

/// `Σ x y`, added up in `f64`.
#[inline(always)]
pub(super) fn dot_in_double<E: Real, const FUSED: bool>(x: &[E], y: &[E]) -> f64 {
    let mut sums = [0.0; LANES];
    let ((x, x_rest), (y, y_rest)) = (blocks(x, x.len()), blocks(y, x.len()));
    for k in 0..x.len() {
        let (x, y) = (in_double(x[k]), in_double(y[k]));
        for i in 0..LANES {
            sums[i] = fused::<f64, FUSED>(x[i], y[i], sums[i]);
        }
    }
    let mut sum = together(sums);
    for (x, y) in x_rest.iter().zip(y_rest) {
        sum += x.to_f64() * y.to_f64();
    }
    sum
}

/// The same outside functions for wide vectors.
pub(super) fn dot<E: Real>(x: &[E], y: &[E]) -> f64 {
    dot_in_double::<E, false>(x, y)
}

#[inline(always)]
fn in_double<E: Real>(x: [E; LANES]) -> [f64; LANES] {
    let mut wide = [0.0; LANES];
    for i in 0..LANES {
        wide[i] = x[i].to_f64();
    }
    wide
}
