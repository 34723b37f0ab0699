//! Which tokens of a block a row weighs alike, and what it weighs them by.

use std::ops::Range;

use super::block::BLOCK;
use crate::kernels::dense::Matrix;
use crate::kernels::lanes::{part, put_part};
use crate::kernels::vector::{LANES, Vector, vectors};
use crate::linear::bits;

/// Runs of tokens before row `i` of a block whose first token is `first` from where a whole one starts: the level of each, and
/// its rows.
pub(super) fn runs(first: usize, i: usize) -> impl Iterator<Item = (usize, Range<usize>)> {
    let at = first + i;
    (0..bits(at)).filter(move |bit| at >> bit & 1 == 1).filter_map(move |bit| {
        let from = (at >> (bit + 1)) << (bit + 1);
        let to = from + (1 << bit);
        (to > first).then(|| (bit + 1, from.max(first) - first..to - first))
    })
}

/// The weights `λ` of the tokens of a block, as rows see them: `[m, m]`, 0 where nothing is seen.
pub(super) fn spread<E: Vector>(scales: &Matrix<E>, first: usize, to: &mut Matrix<E>) {
    let levels = scales.columns();
    for (i, scales) in scales.rows().enumerate() {
        let row = to.row_mut(i);
        row.fill(E::default());
        row[i] = scales[0];
        for (level, run) in runs(first, i) {
            row[run].fill(scales[level.min(levels - 1)]);
        }
    }
}

/// Adds to the gradients of weights those of what they were spread to.
pub(super) fn gather<E: Vector>(from: &Matrix<E>, first: usize, to: &mut Matrix<E>) {
    let levels = to.columns();
    for (i, row) in from.rows().enumerate() {
        let to = to.row_mut(i);
        to[0] += row[i];
        for (level, run) in runs(first, i) {
            let sum: f64 = row[run].iter().map(|x| x.to_f64()).sum();
            to[level.min(levels - 1)] += E::of(sum);
        }
    }
}

vectors! {
    /// `a_i … a_{j+1}` of tokens `j ≤ i`, from the sums of logarithms up to each: `[m, m]`, 1 where `j > i`.
    pub(super) fn decays = decays_of_rows(sums: &[f64; BLOCK], to: &mut Matrix<E>)
}

#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "fixed bounds, so that each block is in registers")]
fn decays_of_rows<E: Vector, const FUSED: bool>(sums: &[f64; BLOCK], to: &mut Matrix<E>) {
    let columns = to.columns();
    for (i, row) in to.rows_mut().enumerate() {
        for first in (0..columns).step_by(LANES) {
            let earlier: [f64; LANES] = part(sums, first);
            let mut block = [E::default(); LANES];
            for l in 0..LANES {
                // The difference in `f64`: both sums may be long.
                block[l] = E::of((sums[i] - earlier[l]).min(0.0)).exponential::<FUSED>();
            }
            put_part(&block, row, first);
        }
    }
}

/// Gradients of products, and of what decays and weights multiply them by.
pub(super) struct Products<'a, E> {
    /// `S = Q Kᵀ`; becomes the scores `S ∘ D ∘ Λ`
    pub(super) scores: &'a mut Matrix<E>,
    /// Gradients of scores; become those of products
    pub(super) gradients: &'a mut Matrix<E>,
    /// `D`; becomes the gradients of what weights were spread to
    pub(super) decays: &'a mut Matrix<E>,
    /// `Λ`; becomes the gradients of the decays' logarithms
    pub(super) weights: &'a mut Matrix<E>,
}

vectors! {
    /// All the gradients; see [`Products`].
    pub(super) fn differentiate = differentiate_rows(products: Products<'_, E>)
}

#[inline(always)]
fn differentiate_rows<E: Vector, const FUSED: bool>(products: Products<'_, E>) {
    let Products { scores, gradients, decays, weights } = products;
    let rows = scores.rows_mut().zip(gradients.rows_mut()).zip(decays.rows_mut()).zip(weights.rows_mut());
    for (((scores, gradients), decays), weights) in rows {
        for first in (0..scores.len()).step_by(LANES) {
            let (mut s, mut g): ([E; LANES], [E; LANES]) = (part(scores, first), part(gradients, first));
            let (mut d, mut w): ([E; LANES], [E; LANES]) = (part(decays, first), part(weights, first));
            for l in 0..LANES {
                let (factor, seen) = (d[l] * w[l], g[l] * d[l]);
                (d[l], g[l]) = (seen * s[l], g[l] * factor);
                s[l] *= factor;
                w[l] *= d[l];
            }
            put_part(&s, scores, first);
            put_part(&g, gradients, first);
            put_part(&d, decays, first);
            put_part(&w, weights, first);
        }
    }
}
