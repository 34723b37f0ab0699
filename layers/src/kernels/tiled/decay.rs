//! Decays inside a block of the kernel.

use crate::kernels::dense::{Matrix, Real};

/// Decays inside a block, `G_i = Σ_{s ≤ i} log a_s`. All are products of numbers that are at most 1, made in
/// `f64`: there is no difference of sums to cancel, and no quotient to overflow.
pub(super) struct Decay<E> {
    /// The logarithms it was made from: a constant decay makes it once.
    log: Vec<f64>,
    next: Vec<f64>,
    row: Vec<f64>,
    /// `e^{G_i - G_j}` for `j ≤ i`
    between: Matrix<E>,
    /// `e^{G_i}`
    pub(super) from_start: Vec<E>,
    /// `e^{G_m - G_i}`
    pub(super) to_end: Vec<E>,
    /// `e^{G_m}`
    pub(super) total: E,
}

impl<E: Real> Decay<E> {
    pub(super) fn new(block: usize) -> Self {
        let between = Matrix::new(block, block);
        let (log, next, row) = (Vec::new(), Vec::new(), Vec::new());
        Self { log, next, row, between, from_start: Vec::new(), to_end: Vec::new(), total: E::of(1.0) }
    }

    /// Makes them for a block of these logarithms.
    pub(super) fn set(&mut self, log: impl Iterator<Item = f64>) {
        self.next.clear();
        self.next.extend(log);
        if self.next == self.log {
            return;
        }
        std::mem::swap(&mut self.log, &mut self.next);
        let m = self.log.len();
        self.between.resize(m, m);
        self.row.clear();
        self.from_start.clear();
        let mut total = 1.0;
        for (out, log) in self.between.rows_mut().zip(&self.log) {
            let a = log.exp();
            total *= a;
            for x in &mut self.row {
                *x *= a;
            }
            self.row.push(1.0);
            for (out, &x) in out.iter_mut().zip(&self.row) {
                *out = E::of(x);
            }
            self.from_start.push(E::of(total));
        }
        self.to_end.clear();
        self.to_end.extend(self.row.iter().map(|&x| E::of(x)));
        self.total = E::of(total);
    }

    /// Multiplies the lower triangle of scores, and clears what would look ahead.
    #[inline]
    pub(super) fn apply(&self, scores: &mut Matrix<E>) {
        for (i, (row, factors)) in scores.rows_mut().zip(self.between.rows()).enumerate() {
            for (x, &factor) in row[..=i].iter_mut().zip(factors) {
                *x *= factor;
            }
            row[i + 1..].fill(E::default());
        }
    }
}
