//! What is done to whole rows of numbers, for functions compiled for wide vectors. Every row is gone through in blocks that
//! are copied into registers and back: the compiler, which cannot know that two rows do not overlap, runs them number by
//! number otherwise.

use super::dense::{Matrix, Real};
use super::vector::{LANES, block_by_block, fused, together};

/// Blocks of a row that is as long as the one that is written, and the rest.
#[inline(always)]
fn blocks<E>(row: &[E], length: usize) -> (&[[E; LANES]], &[E]) {
    row[..length].as_chunks()
}

/// Numbers of a row from `first` on, and 0 after its end.
#[inline(always)]
pub(super) fn part<E: Real, const N: usize>(row: &[E], first: usize) -> [E; N] {
    if let Some(whole) = row[first..].first_chunk() {
        return *whole;
    }
    let mut found = [E::default(); N];
    found[..row.len() - first].copy_from_slice(&row[first..]);
    found
}

/// Writes numbers of a row from `first` on, as many as it has.
#[inline(always)]
pub(super) fn put_part<E: Real, const N: usize>(block: &[E; N], row: &mut [E], first: usize) {
    let row = &mut row[first..];
    if let Some(whole) = row.first_chunk_mut() {
        *whole = *block;
    } else {
        row.copy_from_slice(&block[..row.len()]);
    }
}

/// Adds up every row of `sums: [r, LANES]`; `turned: [LANES, r]` is room for their transpose.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "fixed bounds, so that each block is in registers")]
pub(super) fn add_up<E: Real>(sums: &Matrix<E>, turned: &mut Matrix<E>, total: &mut [E]) {
    turned.set_transpose(sums);
    for first in (0..total.len()).step_by(LANES) {
        let mut sum = [E::default(); LANES];
        for lane in 0..LANES {
            let lane: [E; LANES] = part(turned.row(lane), first);
            for i in 0..LANES {
                sum[i] += lane[i];
            }
        }
        let total = &mut total[first..];
        let count = total.len().min(LANES);
        total[..count].copy_from_slice(&sum[..count]);
    }
}

/// `Σ x y`, of vectors in whole blocks.
#[inline(always)]
pub(super) fn dot_blocks<E: Real, const FUSED: bool>(x: &[[E; LANES]], y: &[[E; LANES]]) -> E {
    let mut sum = [E::default(); LANES];
    for (x, y) in x.iter().zip(y) {
        block_by_block();
        for l in 0..LANES {
            sum[l] = fused::<E, FUSED>(x[l], y[l], sum[l]);
        }
    }
    together(sum)
}

/// `to += factor x`, of vectors in whole blocks.
#[inline(always)]
pub(super) fn add_blocks<E: Real, const FUSED: bool>(to: &mut [[E; LANES]], factor: E, x: &[[E; LANES]]) {
    for (to, x) in to.iter_mut().zip(x) {
        block_by_block();
        for l in 0..LANES {
            to[l] = fused::<E, FUSED>(factor, x[l], to[l]);
        }
    }
}

/// `to ← factor to`
#[inline(always)]
pub(super) fn scale<E: Real>(to: &mut [E], factor: E) {
    let (blocks, rest) = to.as_chunks_mut::<LANES>();
    for block in blocks {
        block_by_block();
        for x in block {
            *x *= factor;
        }
    }
    for to in rest {
        *to *= factor;
    }
}

/// `to ← x ∘ y`
#[inline(always)]
pub(super) fn multiply<E: Real>(to: &mut [E], x: &[E], y: &[E]) {
    let (x, x_rest) = blocks(x, to.len());
    let (y, y_rest) = blocks(y, to.len());
    let (to, to_rest) = to.as_chunks_mut::<LANES>();
    for k in 0..to.len() {
        block_by_block();
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
        block_by_block();
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
        block_by_block();
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
        block_by_block();
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
        block_by_block();
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
