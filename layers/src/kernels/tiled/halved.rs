//! Decays per channel of any strength. A block is halved again and again: a token of the later half meets a key of the
//! earlier half at the boundary between them, where both factors are at most 1, so the pairs across a boundary are one
//! product. What remains are tiles of a few tokens, in which a token's decay grows from key to key.

use super::channels::{Chain, Decays, Early, Scaled};
use super::decay::{Side, SideBack, When};
use super::inputs::Sizes;
use super::tile::{Sums, TILE, TileBack, TileScores};
use crate::kernels::dense::{Matrix, Part, Real};
use crate::kernels::lanes::{add, add_products};
use crate::kernels::vector::{Work, vectorised};

/// Decays between halves, and scratch memory.
pub(super) struct Halved<E> {
    /// By size of the halves, smallest first
    levels: Vec<Level<E>>,
    late: Matrix<E>,
    d_late: Matrix<E>,
    d_early: Matrix<E>,
    cross: Matrix<E>,
    /// `[n]`
    row: Vec<E>,
    sums: Sums<E>,
}

/// Of every level, of every pair, keys of the earlier half with their decay to the boundary.
pub(super) type Keys<E> = Vec<Vec<Early<E>>>;

pub(super) fn new_keys<E: Real>(sizes: Sizes) -> Keys<E> {
    let Sizes { n, block, .. } = sizes;
    sizes_of_halves(block).map(|half| halves(half, block).map(|_| Early::new(half, n)).collect()).collect()
}

/// All pairs of halves of one size.
struct Level<E> {
    half: usize,
    /// `[m, n]`: from the boundary to a token of a later half, from a token of an earlier half to the boundary.
    factors: Matrix<E>,
}

/// First token of the earlier half and of the later half, and the end.
#[derive(Clone, Copy)]
struct Halves {
    first: usize,
    middle: usize,
    last: usize,
}

/// The pairs of halves among `m` tokens, for every size of a half.
fn halves(half: usize, m: usize) -> impl Iterator<Item = Halves> {
    let pair = move |first: usize| Halves { first, middle: first + half, last: (first + 2 * half).min(m) };
    (0..m).step_by(2 * half).map(pair).filter(move |pair| pair.middle < m)
}

/// Sizes of halves in a block of `m` tokens.
fn sizes_of_halves(m: usize) -> impl Iterator<Item = usize> {
    std::iter::successors(Some(TILE), |half| Some(2 * half)).take_while(move |&half| half < m)
}

impl<E: Real> Halved<E> {
    pub(super) fn new(sizes: Sizes) -> Self {
        let Sizes { n, block, .. } = sizes;
        // The largest half; a later one is never longer.
        let half = sizes_of_halves(block).last().unwrap_or(1);
        Self {
            levels: sizes_of_halves(block)
                .map(|half| Level { half, factors: Matrix::new(block, n) })
                .collect(),
            late: Matrix::new(half, n),
            d_late: Matrix::new(half, n),
            d_early: Matrix::new(half, n),
            cross: Matrix::new(half, half),
            row: vec![E::default(); n],
            sums: Sums::new(),
        }
    }

    /// Makes them for a block of these decays.
    pub(super) fn set(&mut self, Decays { decays, .. }: &Decays<E>) {
        let m = decays.rows().count();
        for Level { half, factors } in &mut self.levels {
            factors.resize(m, decays.columns());
            for Halves { first, middle, last } in halves(*half, m) {
                vectorised(Chain { factors, decays, range: first..middle, end: true });
                vectorised(Chain { factors, decays, range: middle..last, end: false });
            }
        }
    }

    /// As [`Decay::keys`](super::decay::Decay::keys).
    pub(super) fn keys(&self, y: &Matrix<E>, to: &mut Keys<E>) {
        let m = y.rows().count();
        for (Level { half, factors }, to) in self.levels.iter().zip(to) {
            for (Halves { first, middle, .. }, to) in halves(*half, m).zip(to) {
                to.set(y, factors, first, middle - first);
            }
        }
    }

    /// As [`Decay::scores`](super::decay::Decay::scores).
    pub(super) fn scores<const N: usize>(
        &mut self,
        Decays { decays, .. }: &Decays<E>,
        when: When,
        x: &Matrix<E>,
        mut sides: [Side<'_, E, Keys<E>>; N],
    ) {
        let m = x.rows().count();
        let Self { levels, late, cross, sums, .. } = self;
        for side in &mut sides {
            side.scores.resize(m, m);
            side.scores.clear_upper(false);
        }
        for (level, Level { half, factors }) in levels.iter().enumerate() {
            for (index, pair) in halves(*half, m).enumerate() {
                let Halves { first, middle, .. } = pair;
                scale_late(when, x, factors, pair, late);
                for Side { keys, scores, .. } in &mut sides {
                    cross.set_product(late, &keys[level][index].turned, Part::Whole);
                    for (i, row) in cross.rows().enumerate() {
                        scores.row_mut(middle + i)[first..middle].copy_from_slice(row);
                    }
                }
            }
        }
        for first in (0..m).step_by(TILE) {
            let tile = (first, (first + TILE).min(m));
            for Side { y, scores, .. } in &mut sides {
                vectorised(TileScores { when, decays, x, y, scores, tile, sums });
            }
        }
    }

    /// As [`Decay::scores_back`](super::decay::Decay::scores_back).
    pub(super) fn back<const N: usize>(
        &mut self,
        Decays { decays, .. }: &Decays<E>,
        when: When,
        (x, dx): (&Matrix<E>, &mut Matrix<E>),
        mut sides: [SideBack<'_, E, Keys<E>>; N],
        pairs: &mut [E],
    ) {
        let (m, n) = (x.rows().count(), x.columns());
        let Self { levels, late, d_late, d_early, cross, row, .. } = self;
        for (level, Level { half, factors }) in levels.iter().enumerate() {
            for (index, pair) in halves(*half, m).enumerate() {
                let Halves { first, middle, last } = pair;
                scale_late(when, x, factors, pair, late);
                d_late.resize(last - middle, n);
                for (side, SideBack { keys, d_scores, dy, .. }) in sides.iter_mut().enumerate() {
                    cross.resize(last - middle, middle - first);
                    for (i, row) in cross.rows_mut().enumerate() {
                        row.copy_from_slice(&d_scores.row(middle + i)[first..middle]);
                    }
                    let early = &keys[level][index].rows;
                    match side {
                        0 => d_late.set_product(cross, early, Part::Whole),
                        _ => d_late.add_product(cross, early, Part::Whole),
                    }
                    d_early.set_turned_product(cross, late, Part::Whole);
                    vectorised(EarlyBack { first, early, d_early, factors, dy, pairs, sum: row });
                }
                vectorised(LateBack { when, middle, late, d_late, factors, dx, pairs, sum: row });
            }
        }
        for first in (0..m).step_by(TILE) {
            let tile = (first, (first + TILE).min(m));
            vectorised(TileBack { when, decays, x, dx, sides: &mut sides, tile, pairs });
        }
    }
}

/// The rows of a later half with their decay from the boundary.
fn scale_late<E: Real>(
    when: When,
    x: &Matrix<E>,
    factors: &Matrix<E>,
    Halves { middle, last, .. }: Halves,
    late: &mut Matrix<E>,
) {
    late.resize(last - middle, x.row(0).len());
    vectorised(Scaled { x, factors, first: middle, skip: when.first(), to: late });
}

/// The way back through the earlier half: `dy` grows, and what crosses a token's decay is everything before it.
struct EarlyBack<'a, E> {
    first: usize,
    early: &'a Matrix<E>,
    d_early: &'a Matrix<E>,
    factors: &'a Matrix<E>,
    dy: &'a mut Matrix<E>,
    pairs: &'a mut [E],
    sum: &'a mut [E],
}

impl<E: Real> Work for EarlyBack<'_, E> {
    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let Self { first, early, d_early, factors, dy, pairs, sum } = self;
        let n = sum.len();
        sum.fill(E::default());
        for i in 0..d_early.rows().count() {
            let t = first + i;
            let (d, factor, dy) = (&d_early.row(i)[..n], &factors.row(t)[..n], &mut dy.row_mut(t)[..n]);
            add_products::<E, FUSED>(dy, d, factor);
            if !pairs.is_empty() {
                add(&mut pairs[t * n..][..n], sum);
                add_products::<E, FUSED>(sum, early.row(i), d);
            }
        }
    }
}

/// The way back through the later half: `dx` grows, and what crosses a token's decay is everything from it on.
struct LateBack<'a, E> {
    when: When,
    middle: usize,
    late: &'a Matrix<E>,
    d_late: &'a Matrix<E>,
    factors: &'a Matrix<E>,
    dx: &'a mut Matrix<E>,
    pairs: &'a mut [E],
    sum: &'a mut [E],
}

impl<E: Real> Work for LateBack<'_, E> {
    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let Self { when, middle, late, d_late, factors, dx, pairs, sum } = self;
        let n = sum.len();
        let own = usize::from(when == When::After);
        sum.fill(E::default());
        for i in (0..late.rows().count()).rev() {
            let (d, dx) = (&d_late.row(i)[..n], &mut dx.row_mut(middle + i)[..n]);
            // The last decay on the way, if there is one: that of the token itself, or of the one before.
            let Some(last) = (middle + i + own).checked_sub(1).filter(|&last| last >= middle) else {
                add(dx, d);
                continue;
            };
            add_products::<E, FUSED>(dx, d, factors.row(last));
            if !pairs.is_empty() {
                add_products::<E, FUSED>(sum, late.row(i), d);
                add(&mut pairs[last * n..][..n], sum);
            }
        }
    }
}
