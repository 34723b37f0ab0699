//! Solves with a unit lower triangular matrix `I - A`, in bands of rows so that most of it is products.

use crate::kernels::dense::{Matrix, Part, Real};
use crate::kernels::lanes::add;
use crate::kernels::vector::{Work, add_scaled, vectorised};

/// Rows of a band.
const BAND: usize = 8;

/// Scratch memory.
pub(super) struct Solver<E> {
    /// A part of the matrix outside the bands on its diagonal.
    off: Matrix<E>,
    /// Rows that are solved.
    solved: Matrix<E>,
    sums: Matrix<E>,
}

impl<E: Real> Solver<E> {
    /// For a matrix of up to `size` rows and `columns` right sides.
    pub(super) fn new(size: usize, columns: usize) -> Self {
        let band = BAND.min(size);
        Self {
            off: Matrix::new(size, size),
            solved: Matrix::new(size, columns),
            sums: Matrix::new(band, columns),
        }
    }

    /// `X ← (I - A)⁻¹ X` for a strictly lower triangular `A`.
    pub(super) fn solve(&mut self, a: &Matrix<E>, x: &mut Matrix<E>) {
        let (m, columns) = (a.row(0).len(), x.row(0).len());
        for first in (0..m).step_by(BAND) {
            let last = (first + BAND).min(m);
            if first > 0 {
                self.off.resize(last - first, first);
                for (i, row) in self.off.rows_mut().enumerate() {
                    row.copy_from_slice(&a.row(first + i)[..first]);
                }
                x.resize(first, columns);
                self.sums.set_product(&self.off, x, Part::Whole);
                x.resize(m, columns);
            }
            let sums = (first > 0).then_some(&self.sums);
            vectorised(Band { a, turned: false, x, rows: (first, last), sums });
        }
    }

    /// `X ← (I - A)⁻ᵀ X`
    pub(super) fn solve_turned(&mut self, a: &Matrix<E>, x: &mut Matrix<E>) {
        let (m, columns) = (a.row(0).len(), x.row(0).len());
        for band in (0..m.div_ceil(BAND)).rev() {
            let first = band * BAND;
            let last = (first + BAND).min(m);
            if last < m {
                self.off.resize(m - last, last - first);
                self.solved.resize(m - last, columns);
                for (i, row) in self.off.rows_mut().enumerate() {
                    row.copy_from_slice(&a.row(last + i)[first..last]);
                }
                for (i, row) in self.solved.rows_mut().enumerate() {
                    row.copy_from_slice(x.row(last + i));
                }
                self.sums.set_turned_product(&self.off, &self.solved, Part::Whole);
            }
            let sums = (last < m).then_some(&self.sums);
            vectorised(Band { a, turned: true, x, rows: (first, last), sums });
        }
    }
}

/// Adds what rows outside a band contribute to it, and substitutes inside.
struct Band<'a, E> {
    a: &'a Matrix<E>,
    turned: bool,
    x: &'a mut Matrix<E>,
    rows: (usize, usize),
    sums: Option<&'a Matrix<E>>,
}

impl<E: Real> Work for Band<'_, E> {
    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let Self { a, turned, x, rows: (first, last), sums } = self;
        let count = last - first;
        for step in 0..count {
            let i = if turned { last - 1 - step } else { first + step };
            if let Some(sums) = sums {
                add(x.row_mut(i), sums.row(i - first));
            }
            for before in 0..step {
                let s = if turned { last - 1 - before } else { first + before };
                let factor = if turned { a.row(s)[i] } else { a.row(i)[s] };
                let (row, other) = x.two_rows(i, s);
                add_scaled::<E, FUSED, 1>(row, [factor], [other]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Draw, error};

    /// Multiplied back, the right side is found again.
    #[test]
    fn it_solves_at_every_size() {
        for m in [1, 2, 7, 8, 9, 16, 33, 64] {
            for columns in [1, 5, 64] {
                let mut draw = Draw::new(m as u64);
                let mut fill = |matrix: &mut Matrix<f64>, count| {
                    let numbers = draw.numbers(count, -0.5, 0.5);
                    matrix.rows_mut().flatten().zip(numbers).for_each(|(x, y)| *x = y);
                };
                let [mut a, mut x] = [Matrix::new(m, m), Matrix::new(m, columns)];
                fill(&mut a, m * m);
                fill(&mut x, m * columns);
                // Undefined where a matrix is not strictly lower: not read.
                a.rows_mut().enumerate().for_each(|(i, row)| row[i..].fill(f64::NAN));
                let right: Vec<f64> = x.rows().flatten().copied().collect();
                for turned in [false, true] {
                    let mut found = x.clone();
                    let mut solver = Solver::new(m, columns);
                    if turned {
                        solver.solve_turned(&a, &mut found)
                    } else {
                        solver.solve(&a, &mut found)
                    }
                    let mut back = Vec::new();
                    for i in 0..m {
                        for j in 0..columns {
                            let before = |s: usize| if turned { a.row(s)[i] } else { a.row(i)[s] };
                            let others = if turned { i + 1..m } else { 0..i };
                            let sum: f64 = others.map(|s| before(s) * found.row(s)[j]).sum();
                            back.push(found.row(i)[j] - sum);
                        }
                    }
                    let off = error(&back, &right);
                    assert!(off < 1e-10, "{m}x{columns} turned {turned}: off by {off:e}");
                }
            }
        }
    }
}
