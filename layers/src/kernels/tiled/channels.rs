//! One decay per channel. As long as those of a block are mild, a pair's decay is a quotient of two numbers, one per
//! token, and all pairs are one product ([`Whole`]); else a block is halved again and again ([`Halved`]).

use std::ops::Range;

use super::decay::{Decay, Ledger, Side, SideBack, When};
use super::halved::{self, Halved};
use super::inputs::Sizes;
use super::whole::{self, Whole};
use crate::kernels::dense::{Matrix, Real};
use crate::kernels::lanes::multiply;
use crate::kernels::vector::{Vector, Work, vectorised};
use crate::kernels::view::{Head, read};

/// Decays of a block.
pub(super) struct ChannelDecay<E> {
    given: Decays<E>,
    /// `e^{G_m - G_t}: [m, n]`
    to_end: Matrix<E>,
    /// `e^{G_m}: [n]`
    total: Vec<E>,
    /// `Σ |log d_t|: [n]`
    sizes: Vec<E>,
    whole: Whole<E>,
    halved: Halved<E>,
    mild: bool,
}

/// What both ways are made of, `[m, n]` each.
pub(super) struct Decays<E> {
    /// `d_t`
    pub(super) decays: Matrix<E>,
    /// `e^{G_t}`
    pub(super) from_start: Matrix<E>,
}

/// Keys with their decays, and that transposed.
pub(super) struct Early<E> {
    /// `[s, n]`
    pub(super) rows: Matrix<E>,
    pub(super) turned: Matrix<E>,
}

impl<E: Real> Early<E> {
    /// Of `tokens` keys.
    pub(super) fn new(tokens: usize, n: usize) -> Self {
        Self { rows: Matrix::new(tokens, n), turned: Matrix::new(n, tokens) }
    }

    /// `tokens` rows of `y` times those of `factors`, both from `first` on.
    pub(super) fn set(&mut self, y: &Matrix<E>, factors: &Matrix<E>, first: usize, tokens: usize) {
        self.rows.resize(tokens, y.columns());
        vectorised(Scaled { x: y, factors, first, skip: 0, to: &mut self.rows });
        self.turned.set_transpose(&self.rows);
    }
}

/// Keys for either way.
pub(super) struct Keys<E> {
    whole: Early<E>,
    halved: halved::Keys<E>,
}

impl<E: Vector> Decay<E> for ChannelDecay<E> {
    type Keys = Keys<E>;

    fn new(sizes: Sizes) -> Self {
        let Sizes { n, block, .. } = sizes;
        let key = || Matrix::new(block, n);
        Self {
            given: Decays { decays: key(), from_start: key() },
            to_end: key(),
            total: vec![E::default(); n],
            sizes: vec![E::default(); n],
            whole: Whole::new(sizes),
            halved: Halved::new(sizes),
            mild: false,
        }
    }

    fn new_keys(sizes: Sizes) -> Keys<E> {
        Keys { whole: Early::new(sizes.block, sizes.n), halved: halved::new_keys(sizes) }
    }

    fn set(&mut self, log: Head<'_, E>, range: (usize, usize)) {
        let Self { given: Decays { decays, from_start }, to_end, total, sizes, .. } = self;
        let (m, n) = (range.1, total.len());
        read(decays, log, range, n);
        vectorised(Exponentials { rows: decays, total, sizes });
        from_start.resize(m, n);
        to_end.resize(m, n);
        vectorised(Chain { factors: from_start, decays, range: 0..m, end: false });
        vectorised(Chain { factors: to_end, decays, range: 0..m, end: true });
        self.mild = sizes.iter().all(|size| size.to_f64() <= whole::MILD);
        if self.mild { self.whole.set(&self.given) } else { self.halved.set(&self.given) }
    }

    fn keys(&self, y: &Matrix<E>, to: &mut Keys<E>) {
        if self.mild { self.whole.keys(y, &mut to.whole) } else { self.halved.keys(y, &mut to.halved) }
    }

    fn scores<const N: usize>(&mut self, when: When, x: &Matrix<E>, sides: [Side<'_, E, Keys<E>>; N]) {
        let Self { given, whole, halved, .. } = self;
        if self.mild {
            whole.scores(given, when, x, sides.map(|side| side.with(|keys| &keys.whole)));
        } else {
            halved.scores(given, when, x, sides.map(|side| side.with(|keys| &keys.halved)));
        }
    }

    fn scores_back<const N: usize>(
        &mut self,
        when: When,
        x: &Matrix<E>,
        dx: &mut Matrix<E>,
        sides: [SideBack<'_, E, Keys<E>>; N],
        ledger: &mut Ledger<E>,
    ) {
        let Self { given, whole, halved, .. } = self;
        let pairs = &mut ledger.pairs;
        if self.mild {
            whole.back(given, when, (x, dx), sides.map(|side| side.with(|keys| &keys.whole)), pairs);
        } else {
            halved.back(given, when, (x, dx), sides.map(|side| side.with(|keys| &keys.halved)), pairs);
        }
    }

    fn since_start(&self, when: When, x: &mut Matrix<E>) {
        x.multiply_rows(when.first(), &self.given.from_start);
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
pub(super) struct Chain<'a, E> {
    pub(super) factors: &'a mut Matrix<E>,
    pub(super) decays: &'a Matrix<E>,
    pub(super) range: Range<usize>,
    pub(super) end: bool,
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
pub(super) struct Scaled<'a, E> {
    pub(super) x: &'a Matrix<E>,
    pub(super) factors: &'a Matrix<E>,
    pub(super) first: usize,
    pub(super) skip: usize,
    pub(super) to: &'a mut Matrix<E>,
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

/// `e` to all of them, and to the sums over rows; and those of what they are without their signs.
struct Exponentials<'a, E> {
    rows: &'a mut Matrix<E>,
    total: &'a mut [E],
    sizes: &'a mut [E],
}

impl<E: Vector> Work for Exponentials<'_, E> {
    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let Self { rows, total, sizes } = self;
        let n = total.len();
        let sizes = &mut sizes[..n];
        total.fill(E::default());
        sizes.fill(E::default());
        for i in 0..rows.rows().count() {
            let row = &mut rows.row_mut(i)[..n];
            for c in 0..n {
                total[c] += row[c];
                sizes[c] += if row[c] < E::default() { -row[c] } else { row[c] };
                row[c] = row[c].exponential::<FUSED>();
            }
        }
        for x in total {
            *x = x.exponential::<FUSED>();
        }
    }
}
