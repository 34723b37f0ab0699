//! One decay per channel. A block is halved again and again: a token of the later half meets a key of the earlier half
//! at the boundary between them, where both factors are at most 1, so the pairs across a boundary are one product.
//! What remains are tiles of a few tokens, in which a token's decay grows from key to key.

use std::ops::Range;

use super::decay::{Decay, Ledger, Side, SideBack, When};
use super::inputs::Sizes;
use crate::kernels::dense::{Matrix, Part, Real};
use crate::kernels::lanes::{add, add_products, multiply, multiply_by, set_scaled};
use crate::kernels::vector::{Vector, Work, add_scaled, dot, vectorised};
use crate::kernels::view::{Head, read};

/// Tokens of a tile.
const TILE: usize = 8;

/// Decays of a block and scratch memory.
pub(super) struct ChannelDecay<E> {
    /// `d_t: [m, n]`
    decays: Matrix<E>,
    /// `e^{G_t}` and `e^{G_m - G_t}`: `[m, n]`
    from_start: Matrix<E>,
    to_end: Matrix<E>,
    /// `e^{G_m}: [n]`
    total: Vec<E>,
    /// By size of the halves, smallest first
    levels: Vec<Level<E>>,
    late: Matrix<E>,
    d_late: Matrix<E>,
    d_early: Matrix<E>,
    cross: Matrix<E>,
    /// Room for the rows that a tile works on.
    rows: Vec<E>,
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

/// Keys of an earlier half with their decay to the boundary, `[half, n]`, and that transposed.
pub(super) struct Early<E> {
    rows: Matrix<E>,
    turned: Matrix<E>,
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

impl<E: Real> ChannelDecay<E> {
    /// Tokens of the block.
    fn tokens(&self) -> usize {
        self.decays.rows().count()
    }
}

impl<E: Vector> Decay<E> for ChannelDecay<E> {
    /// Of every level, of every pair.
    type Keys = Vec<Vec<Early<E>>>;

    fn new(sizes: Sizes) -> Self {
        let Sizes { n, block, .. } = sizes;
        let key = || Matrix::new(block, n);
        // The largest half; a later one is never longer.
        let half = sizes_of_halves(block).last().unwrap_or(1);
        Self {
            decays: key(),
            from_start: key(),
            to_end: key(),
            total: vec![E::default(); n],
            levels: sizes_of_halves(block).map(|half| Level { half, factors: key() }).collect(),
            late: Matrix::new(half, n),
            d_late: Matrix::new(half, n),
            d_early: Matrix::new(half, n),
            cross: Matrix::new(half, half),
            rows: vec![E::default(); (TILE + 3) * n],
        }
    }

    fn new_keys(sizes: Sizes) -> Self::Keys {
        let Sizes { n, block, .. } = sizes;
        let early = |half| Early { rows: Matrix::new(half, n), turned: Matrix::new(n, half) };
        sizes_of_halves(block).map(|half| halves(half, block).map(|_| early(half)).collect()).collect()
    }

    fn set(&mut self, log: Head<'_, E>, range: (usize, usize)) {
        let Self { decays, from_start, to_end, total, levels, .. } = self;
        let (m, n) = (range.1, total.len());
        read(decays, log, range, n);
        vectorised(Exponentials { rows: decays, total });
        from_start.resize(m, n);
        to_end.resize(m, n);
        vectorised(Chain { factors: from_start, decays, range: 0..m, end: false });
        vectorised(Chain { factors: to_end, decays, range: 0..m, end: true });
        for Level { half, factors } in levels {
            factors.resize(m, n);
            for Halves { first, middle, last } in halves(*half, m) {
                vectorised(Chain { factors, decays, range: first..middle, end: true });
                vectorised(Chain { factors, decays, range: middle..last, end: false });
            }
        }
    }

    fn keys(&self, y: &Matrix<E>, to: &mut Self::Keys) {
        let (m, n) = (self.tokens(), y.row(0).len());
        for (Level { half, factors }, to) in self.levels.iter().zip(to) {
            for (Halves { first, middle, .. }, to) in halves(*half, m).zip(to) {
                to.rows.resize(middle - first, n);
                vectorised(Scaled { x: y, factors, first, skip: 0, to: &mut to.rows });
                to.turned.set_transpose(&to.rows);
            }
        }
    }

    fn scores<const N: usize>(&mut self, when: When, x: &Matrix<E>, sides: [Side<'_, E, Self::Keys>; N]) {
        let m = self.tokens();
        let Self { decays, levels, late, cross, rows, .. } = self;
        let mut sides = sides;
        for side in &mut sides {
            side.scores.resize(m, m);
            for (i, row) in side.scores.rows_mut().enumerate() {
                row[i..].fill(E::default());
            }
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
            let last = (first + TILE).min(m);
            for Side { y, scores, .. } in &mut sides {
                vectorised(TileScores { when, decays, x, y, scores, tile: (first, last), row: rows });
            }
        }
    }

    fn scores_back<const N: usize>(
        &mut self,
        when: When,
        x: &Matrix<E>,
        dx: &mut Matrix<E>,
        mut sides: [SideBack<'_, E, Self::Keys>; N],
        ledger: &mut Ledger<E>,
    ) {
        let (m, n) = (self.tokens(), x.row(0).len());
        let Self { decays, levels, late, d_late, d_early, cross, rows, .. } = self;
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
                    let pairs = &mut ledger.pairs;
                    vectorised(EarlyBack { first, early, d_early, factors, dy, pairs, sum: &mut rows[..n] });
                }
                let pairs = &mut ledger.pairs;
                vectorised(LateBack { when, middle, late, d_late, factors, dx, pairs, sum: &mut rows[..n] });
            }
        }
        for first in (0..m).step_by(TILE) {
            let tile = (first, (first + TILE).min(m));
            let pairs = &mut ledger.pairs;
            vectorised(TileBack { when, decays, x, dx, sides: &mut sides, tile, pairs, rows });
        }
    }

    fn since_start(&self, when: When, x: &mut Matrix<E>) {
        x.multiply_rows(when.first(), &self.from_start);
    }

    fn to_end(&self, y: &mut Matrix<E>) {
        y.multiply_rows(0, &self.to_end);
    }

    fn total(&self, state: &mut Matrix<E>) {
        state.scale_rows(0, &self.total);
    }

    fn note_reads(&self, when: When, x: &Matrix<E>, dx: &Matrix<E>, ledger: &mut Ledger<E>) {
        x.add_row_products(dx, when.first(), &mut ledger.reads);
    }

    fn note_writes(&self, y: &Matrix<E>, dy: &Matrix<E>, ledger: &mut Ledger<E>) {
        y.add_row_products(dy, 0, &mut ledger.writes);
    }

    fn note_memory(&self, state: &Matrix<E>, d_state: &Matrix<E>, ledger: &mut Ledger<E>) {
        state.add_row_dots(d_state, 0, &mut ledger.memory);
        for (sum, &total) in ledger.memory.iter_mut().zip(&self.total) {
            *sum *= total;
        }
    }
}

/// `factors_t = Π_{first ≤ s ≤ t} d_s`, or `Π_{t < s < last} d_s` to the `end`.
struct Chain<'a, E> {
    factors: &'a mut Matrix<E>,
    decays: &'a Matrix<E>,
    range: Range<usize>,
    end: bool,
}

impl<E: Real> Work for Chain<'_, E> {
    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let Self { factors, decays, range: Range { start: first, end: last }, end } = self;
        if end {
            factors.row_mut(last - 1).fill(E::of(1.0));
        } else {
            factors.row_mut(first).copy_from_slice(decays.row(first));
        }
        for step in 1..last - first {
            // The row to find, the one it is found from, and the decay between.
            let (t, from, s) = if end {
                (last - 1 - step, last - step, last - step)
            } else {
                (first + step, first + step - 1, first + step)
            };
            let (row, known) = factors.two_rows(t, from);
            multiply(row, known, decays.row(s));
        }
    }
}

/// Rows of `x` times rows of `factors`, both from `first` on; the first `skip` of them as they are.
struct Scaled<'a, E> {
    x: &'a Matrix<E>,
    factors: &'a Matrix<E>,
    first: usize,
    skip: usize,
    to: &'a mut Matrix<E>,
}

impl<E: Real> Work for Scaled<'_, E> {
    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let Self { x, factors, first, skip, to } = self;
        for i in 0..to.rows().count() {
            let x = x.row(first + i);
            match i.checked_sub(skip) {
                Some(factor) => multiply(to.row_mut(i), x, factors.row(first + factor)),
                None => to.row_mut(i).copy_from_slice(x),
            }
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

/// `e` to all of them, and to the sums over rows.
struct Exponentials<'a, E> {
    rows: &'a mut Matrix<E>,
    total: &'a mut [E],
}

impl<E: Vector> Work for Exponentials<'_, E> {
    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let Self { rows, total } = self;
        let n = total.len();
        total.fill(E::default());
        for i in 0..rows.rows().count() {
            let row = &mut rows.row_mut(i)[..n];
            for c in 0..n {
                total[c] += row[c];
                row[c] = row[c].exponential::<FUSED>();
            }
        }
        for x in total {
            *x = x.exponential::<FUSED>();
        }
    }
}

/// Scores inside a tile.
struct TileScores<'a, E> {
    when: When,
    decays: &'a Matrix<E>,
    x: &'a Matrix<E>,
    y: &'a Matrix<E>,
    scores: &'a mut Matrix<E>,
    tile: (usize, usize),
    /// Room for one row
    row: &'a mut [E],
}

impl<E: Real> Work for TileScores<'_, E> {
    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let Self { when, decays, x, y, scores, tile: (first, last), row } = self;
        let n = x.row(0).len();
        let row = &mut row[..n];
        for t in first..last {
            // The last token that is seen, without decay.
            let Some(top) = top(when, t, first) else { continue };
            row.copy_from_slice(x.row(t));
            for s in (first..=top).rev() {
                scores.row_mut(t)[s] = dot::<E, FUSED>(row, y.row(s));
                if s > first {
                    multiply_by(row, decays.row(s));
                }
            }
        }
    }
}

/// The last token of a tile from `first` on that `t` sees.
#[inline(always)]
fn top(when: When, t: usize, first: usize) -> Option<usize> {
    match when {
        When::After => Some(t),
        When::Before if t > first => Some(t - 1),
        When::Before => None,
    }
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

/// The way back through a tile. For row `t` with `w_s = x_t ∘ e^{G_t - G_s}` and, over the keys from the tile's first one
/// on, `z_s = D_ts y_s + d_s ∘ z_{s-1}`: `dx_t = z_t`, `dy_s = D_ts w_s`, and `w_s ∘ d_s ∘ z_{s-1}` crosses token `s`.
struct TileBack<'a, 'b, E, K, const N: usize> {
    when: When,
    decays: &'a Matrix<E>,
    x: &'a Matrix<E>,
    dx: &'a mut Matrix<E>,
    sides: &'a mut [SideBack<'b, E, K>; N],
    tile: (usize, usize),
    pairs: &'a mut [E],
    /// Room for a row, and one of every token
    rows: &'a mut [E],
}

impl<E: Real, K, const N: usize> Work for TileBack<'_, '_, E, K, N> {
    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let Self { when, decays, x, dx, sides, tile: (first, last), pairs, rows } = self;
        let n = x.row(0).len();
        let (w, z) = rows.split_at_mut(n);
        for t in first..last {
            let Some(top) = top(when, t, first) else { continue };
            for s in first..=top {
                let (before, z) = z[..(s + 1 - first) * n].split_at_mut((s - first) * n);
                let z = &mut z[..n];
                for (i, side) in sides.iter().enumerate() {
                    let (d, y) = (side.d_scores.row(t)[s], &side.y.row(s)[..n]);
                    match i {
                        0 => set_scaled(z, d, y),
                        _ => add_scaled::<E, FUSED, 1>(z, [d], [y]),
                    }
                }
                if s > first {
                    add_products::<E, FUSED>(z, decays.row(s), &before[(s - 1 - first) * n..][..n]);
                }
            }
            add(dx.row_mut(t), &z[(top - first) * n..][..n]);
            w.copy_from_slice(x.row(t));
            for s in (first..=top).rev() {
                for side in &mut *sides {
                    let (d, dy) = (side.d_scores.row(t)[s], &mut side.dy.row_mut(s)[..n]);
                    add_scaled::<E, FUSED, 1>(dy, [d], [&w[..n]]);
                }
                if s == first {
                    continue;
                }
                multiply_by(w, decays.row(s));
                if !pairs.is_empty() {
                    let (z, pairs) = (&z[(s - 1 - first) * n..][..n], &mut pairs[s * n..][..n]);
                    add_products::<E, FUSED>(pairs, w, z);
                }
            }
        }
    }
}
