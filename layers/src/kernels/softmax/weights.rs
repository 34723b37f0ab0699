//! What turns scores into weights, on tiles whose rows are keys and whose columns are queries: everything runs along
//! rows, in vector instructions, without sums across a register.

use super::tiles::QUERIES;
use crate::kernels::dense::Matrix;
use crate::kernels::lanes::{part, put_part};
use crate::kernels::vector::{LANES, Vector, block_by_block, fused, vectors};

/// The score of a key that a query does not see.
const HIDDEN: f64 = -1e30;

/// No largest score counts as less, so that the weight of what is hidden is 0 also where nothing is seen.
pub(super) const FLOOR: f64 = -1e29;

/// Which columns of a tile are seen at a row: of the queries `first..first + columns` at key `key`, counted from the
/// same token.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    pub(super) causal: bool,
    pub(super) window: Option<usize>,
    /// Position of the tile's first query
    pub(super) query: usize,
    /// Position of the tile's first key
    pub(super) key: usize,
}

impl Seen {
    /// The first column that sees key `row` of the tile, and the one after the last.
    #[inline(always)]
    fn columns(self, row: usize, columns: usize) -> (usize, usize) {
        let key = self.key + row;
        let from = if self.causal { key.saturating_sub(self.query).min(columns) } else { 0 };
        let to = self.window.map_or(columns, |window| (key + window).saturating_sub(self.query).min(columns));
        (from, to.max(from))
    }

    /// Whether every query of the tile sees every key of it.
    fn all(self, rows: usize, columns: usize) -> bool {
        (!self.causal || self.key + rows <= self.query + 1)
            && self.window.is_none_or(|window| self.query + columns <= self.key + window)
    }
}

/// From products to scores, in units of `ln 2`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scores<'a, E> {
    pub(super) cap: Option<f64>,
    /// One number per key of the tile that its scores get.
    pub(super) keys: Option<&'a [E]>,
    /// One number per query of the tile that its scores get.
    pub(super) queries: Option<&'a [E]>,
    pub(super) seen: Seen,
}

/// Of every query so far: the largest score and the sum of powers of scores minus it.
pub(super) struct Running<'a, E> {
    pub(super) top: &'a mut [E],
    pub(super) sum: &'a mut [E],
    /// Factor on what was added up before this tile.
    pub(super) factor: &'a mut [E],
}

/// Sums of a tile's gradients of scores.
pub(super) struct Sums<'a, E> {
    /// Over keys, added to what is there
    pub(super) queries: &'a mut [E],
    /// Over queries
    pub(super) keys: &'a mut [E],
}

vectors! {
    /// Makes scores of the products in `tile`, then weights relative to the largest score so far of each query.
    pub(super) fn weigh = weigh_tile(tile: &mut Matrix<E>, scores: Scores<'_, E>, running: Running<'_, E>)
}

vectors! {
    /// Makes scores of the products in `tile`, then weights by each query's logarithm of the sum, which is known. Into
    /// `slopes` goes the softcap's derivative where there is a cap.
    pub(super) fn weigh_again = weigh_tile_again(
        tile: &mut Matrix<E>,
        slopes: Option<&mut Matrix<E>>,
        scores: Scores<'_, E>,
        log_sum: &[E],
    )
}

vectors! {
    /// From gradients of weights to gradients of products: `P (dP - mean) slope`, with each query's mean of `dP`. Into
    /// `sums` goes what comes before the slopes, the gradients of scores.
    pub(super) fn differentiate = differentiate_tile(
        d_weights: &mut Matrix<E>,
        weights: &Matrix<E>,
        slopes: Option<&Matrix<E>>,
        means: &[E],
        sums: Option<Sums<'_, E>>,
    )
}

/// Scores of a row's products; hidden ones are very negative. With a cap, `slopes` gets its derivative.
#[inline(always)]
fn score_row<E: Vector, const FUSED: bool>(
    row: &mut [E],
    slopes: Option<&mut [E]>,
    key: usize,
    scores: Scores<'_, E>,
    all: bool,
) {
    if let Some(cap) = scores.cap {
        let (cap, inverse, one) = (E::of(cap), E::of(1.0 / cap), E::of(1.0));
        if let Some(slopes) = slopes {
            let slopes = &mut slopes[..row.len()];
            for i in 0..row.len() {
                let bounded = (row[i] * inverse).bounded::<FUSED>();
                slopes[i] = one - bounded * bounded;
                row[i] = bounded * cap;
            }
        } else {
            for x in row.iter_mut() {
                *x = (*x * inverse).bounded::<FUSED>() * cap;
            }
        }
    }
    if let Some(keys) = scores.keys {
        let offset = keys[key];
        if offset < E::of(0.0) || offset > E::of(0.0) {
            for x in row.iter_mut() {
                *x += offset;
            }
        }
    }
    if let Some(queries) = scores.queries {
        let queries = &queries[..row.len()];
        for i in 0..row.len() {
            row[i] += queries[i];
        }
    }
    if !all {
        let (from, to) = scores.seen.columns(key, row.len());
        row[..from].fill(E::of(HIDDEN));
        row[to..].fill(E::of(HIDDEN));
    }
}

#[inline(always)]
fn weigh_tile<E: Vector, const FUSED: bool>(
    tile: &mut Matrix<E>,
    scores: Scores<'_, E>,
    running: Running<'_, E>,
) {
    let columns = tile.row(0).len();
    let all = scores.seen.all(tile.rows().count(), columns);
    let Running { top, sum, factor } = running;
    let (top, sum, factor) = (&mut top[..columns], &mut sum[..columns], &mut factor[..columns]);
    factor.copy_from_slice(top);
    for (key, row) in tile.rows_mut().enumerate() {
        score_row::<E, FUSED>(&mut row[..columns], None, key, scores, all);
    }
    // Some queries at a time: going along rows, a number would be stored just before it is needed.
    for first in (0..columns).step_by(LANES) {
        let mut most: [E; LANES] = part(top, first);
        for key in 0..tile.rows().count() {
            block_by_block();
            let scores: [E; LANES] = part(tile.row(key), first);
            for i in 0..LANES {
                most[i] = if scores[i] > most[i] { scores[i] } else { most[i] };
            }
        }
        put_part(&most, top, first);
    }
    // Of this tile alone: thousands of equal weights, one after another, would all be rounded to the same side.
    let mut found = [E::default(); QUERIES];
    let found = &mut found[..columns];
    for row in tile.rows_mut() {
        let row = &mut row[..columns];
        for i in 0..columns {
            row[i] = (row[i] - top[i]).power::<FUSED>();
            found[i] += row[i];
        }
    }
    for i in 0..columns {
        factor[i] = (factor[i] - top[i]).power::<FUSED>();
        sum[i] = fused::<E, FUSED>(sum[i], factor[i], found[i]);
    }
}

#[inline(always)]
fn weigh_tile_again<E: Vector, const FUSED: bool>(
    tile: &mut Matrix<E>,
    mut slopes: Option<&mut Matrix<E>>,
    scores: Scores<'_, E>,
    log_sum: &[E],
) {
    let columns = tile.row(0).len();
    let all = scores.seen.all(tile.rows().count(), columns);
    let log_sum = &log_sum[..columns];
    for (key, row) in tile.rows_mut().enumerate() {
        let row = &mut row[..columns];
        let slopes = slopes.as_deref_mut().map(|slopes| slopes.row_mut(key));
        score_row::<E, FUSED>(row, slopes, key, scores, all);
        for i in 0..columns {
            row[i] = (row[i] - log_sum[i]).power::<FUSED>();
        }
    }
}

#[inline(always)]
fn differentiate_tile<E: Vector, const FUSED: bool>(
    d_weights: &mut Matrix<E>,
    weights: &Matrix<E>,
    slopes: Option<&Matrix<E>>,
    means: &[E],
    mut sums: Option<Sums<'_, E>>,
) {
    let columns = weights.row(0).len();
    let means = &means[..columns];
    for (key, (row, weights)) in d_weights.rows_mut().zip(weights.rows()).enumerate() {
        let (row, weights) = (&mut row[..columns], &weights[..columns]);
        for i in 0..columns {
            row[i] = weights[i] * (row[i] - means[i]);
        }
        if let Some(Sums { queries, keys }) = &mut sums {
            let (queries, mut sum) = (&mut queries[..columns], E::default());
            for i in 0..columns {
                queries[i] += row[i];
                sum += row[i];
            }
            keys[key] = sum;
        }
        if let Some(slopes) = slopes {
            let slopes = &slopes.row(key)[..columns];
            for i in 0..columns {
                row[i] *= slopes[i];
            }
        }
    }
}
