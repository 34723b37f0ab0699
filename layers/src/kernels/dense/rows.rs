//! What is done to matrices number by number, in the widest vectors there are.

use super::{Matrix, Real};
use crate::kernels::lanes::{add, add_products, dot_in_double, multiply_by, scale};
use crate::kernels::vector::{LANES, Work, vectorised};

/// Rows from `first` on times a factor each.
struct ScaleRows<'a, E>(&'a mut Matrix<E>, usize, &'a [E]);

impl<E: Real> Work for ScaleRows<'_, E> {
    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let Self(x, first, factors) = self;
        for i in first..x.rows.min(first + factors.len()) {
            scale(x.row_mut(i), factors[i - first]);
        }
    }
}

struct Scale<'a, E>(&'a mut Matrix<E>, E);

impl<E: Real> Work for Scale<'_, E> {
    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        for i in 0..self.0.rows {
            scale(self.0.row_mut(i), self.1);
        }
    }
}

/// Rows from `first` on times those of another matrix from its first on.
struct MultiplyRows<'a, E>(&'a mut Matrix<E>, usize, &'a Matrix<E>);

impl<E: Real> Work for MultiplyRows<'_, E> {
    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let Self(x, first, factors) = self;
        for i in first..x.rows.min(first + factors.rows) {
            multiply_by(x.row_mut(i), factors.row(i - first));
        }
    }
}

struct MultiplyLower<'a, E>(&'a mut Matrix<E>, &'a Matrix<E>, bool);

impl<E: Real> Work for MultiplyLower<'_, E> {
    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let Self(x, factors, diagonal) = self;
        for i in 0..x.rows {
            let seen = i + usize::from(diagonal);
            // The factors of the row before where the diagonal is not seen.
            if seen > 0 {
                // Whole blocks: what is ahead is cleared.
                let end = seen.next_multiple_of(LANES).min(x.columns);
                multiply_by(&mut x.row_mut(i)[..end], &factors.row(seen - 1)[..end]);
            }
            for ahead in &mut x.row_mut(i)[seen..] {
                *ahead = E::default();
            }
        }
    }
}

struct Add<'a, E>(&'a mut Matrix<E>, &'a Matrix<E>);

impl<E: Real> Work for Add<'_, E> {
    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let Self(x, y) = self;
        for i in 0..x.rows.min(y.rows) {
            add(x.row_mut(i), y.row(i));
        }
    }
}

struct AddRowDots<'a, E>(&'a Matrix<E>, &'a Matrix<E>, usize, &'a mut [E]);

impl<E: Real> Work for AddRowDots<'_, E> {
    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let Self(x, y, first, to) = self;
        for i in first..x.rows.min(y.rows) {
            to[i - first] += E::of(dot_in_double::<E, FUSED>(x.row(i), y.row(i)));
        }
    }
}

struct Dot<'a, E>(&'a Matrix<E>, &'a Matrix<E>, &'a mut f64);

impl<E: Real> Work for Dot<'_, E> {
    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let Self(x, y, to) = self;
        for i in 0..x.rows.min(y.rows) {
            *to += dot_in_double::<E, FUSED>(x.row(i), y.row(i));
        }
    }
}

struct AddProducts<'a, E>(&'a Matrix<E>, &'a Matrix<E>, usize, &'a mut [E]);

impl<E: Real> Work for AddProducts<'_, E> {
    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let Self(x, y, first, to) = self;
        for i in first..x.rows.min(y.rows) {
            let to = &mut to[(i - first) * x.columns..][..x.columns];
            add_products::<E, FUSED>(to, x.row(i), y.row(i));
        }
    }
}

impl<E: Real> Matrix<E> {
    /// Multiplies rows from `first` on by a factor each.
    pub(crate) fn scale_rows(&mut self, first: usize, factors: &[E]) {
        vectorised(ScaleRows(self, first, factors));
    }

    /// Multiplies everything.
    pub(crate) fn scale(&mut self, factor: E) {
        if factor.to_f64() != 1.0 {
            vectorised(Scale(self, factor));
        }
    }

    /// Multiplies rows from `first` on by those of `factors` from its first on, number by number.
    pub(crate) fn multiply_rows(&mut self, first: usize, factors: &Self) {
        vectorised(MultiplyRows(self, first, factors));
    }

    /// Multiplies the lower triangle by that of a square matrix and clears the rest. Without the `diagonal`, which is then
    /// cleared too, by factors of the row before.
    pub(crate) fn multiply_lower(&mut self, factors: &Self, diagonal: bool) {
        vectorised(MultiplyLower(self, factors, diagonal));
    }

    /// Clears what is above the diagonal, and that too unless the `diagonal` is kept.
    pub(crate) fn clear_upper(&mut self, diagonal: bool) {
        for (i, row) in self.rows_mut().enumerate() {
            row[i + usize::from(diagonal)..].fill(E::default());
        }
    }

    /// Adds a matrix of the same size.
    pub(crate) fn add(&mut self, other: &Self) {
        vectorised(Add(self, other));
    }

    /// `to_{i - first} += Σ x_i y_i` for rows `i` from `first` on; added up in `f64`.
    pub(crate) fn add_row_dots(&self, other: &Self, first: usize, to: &mut [E]) {
        vectorised(AddRowDots(self, other, first, to));
    }

    /// `Σ x y` of everything, added up in `f64`.
    pub(crate) fn dot(&self, other: &Self) -> f64 {
        let mut sum = 0.0;
        vectorised(Dot(self, other, &mut sum));
        sum
    }

    /// `to_{i - first} += x_i ∘ y_i` for rows `i` from `first` on, `to` as wide as they are.
    pub(crate) fn add_row_products(&self, other: &Self, first: usize, to: &mut [E]) {
        vectorised(AddProducts(self, other, first, to));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Draw;

    fn matrix(draw: &mut Draw, rows: usize, columns: usize) -> Matrix<f64> {
        let mut m = Matrix::new(rows, columns);
        m.rows_mut().flatten().zip(draw.numbers(rows * columns, -1.0, 1.0)).for_each(|(x, y)| *x = y);
        m
    }

    /// Rows shorter than a block, whole blocks, and blocks with a rest.
    #[test]
    fn numbers_are_those_of_plain_loops() {
        let mut draw = Draw::new(1);
        for (rows, columns) in [(1, 1), (5, 7), (16, 16), (9, 37), (40, 32)] {
            let (x, y) = (matrix(&mut draw, rows, columns), matrix(&mut draw, rows, columns));
            let same = |found: &Matrix<f64>, expected: &dyn Fn(usize, usize) -> f64| {
                for (i, row) in found.rows().enumerate() {
                    for (j, &found) in row.iter().enumerate() {
                        let off = (found - expected(i, j)).abs();
                        assert!(off < 1e-14, "{rows}x{columns} at {i},{j}: off by {off:e}");
                    }
                }
            };
            let done = |f: &dyn Fn(&mut Matrix<f64>)| {
                let mut changed = x.clone();
                f(&mut changed);
                changed
            };
            let (a, b) = (|i: usize, j: usize| x.row(i)[j], |i: usize, j: usize| y.row(i)[j]);
            let factors = draw.numbers(rows, -1.0, 1.0);
            same(&done(&|x| x.scale(0.3)), &|i, j| 0.3 * a(i, j));
            same(&done(&|x| x.add(&y)), &|i, j| a(i, j) + b(i, j));
            for first in [0, 1] {
                let scaled =
                    |i: usize, j: usize| if i < first { a(i, j) } else { factors[i - first] * a(i, j) };
                same(&done(&|x| x.scale_rows(first, &factors)), &scaled);
                let product =
                    |i: usize, j: usize| if i < first { a(i, j) } else { a(i, j) * b(i - first, j) };
                same(&done(&|x| x.multiply_rows(first, &y)), &product);

                let mut sums = vec![1.0; rows];
                x.add_row_dots(&y, first, &mut sums);
                let mut products = Matrix::new(rows, columns);
                let mut flat = vec![1.0; rows * columns];
                x.add_row_products(&y, first, &mut flat);
                products.set_rows(&flat);
                let product = |i: usize, j: usize| {
                    1.0 + if i + first < rows { a(i + first, j) * b(i + first, j) } else { 0.0 }
                };
                same(&products, &product);
                for (i, sum) in sums.iter().enumerate() {
                    let expected: f64 = 1.0 + (0..columns).map(|j| product(i, j) - 1.0).sum::<f64>();
                    assert!((sum - expected).abs() < 1e-13);
                }
            }
            let all: f64 = (0..rows)
                .flat_map(|i| (0..columns).map(move |j| (i, j)))
                .map(|(i, j)| a(i, j) * b(i, j))
                .sum();
            assert!((x.dot(&y) - all).abs() < 1e-12);
        }
    }

    /// Nothing of what is ahead is left, even where it is not a number.
    #[test]
    fn lower_triangles_keep_nothing_above() {
        let mut draw = Draw::new(2);
        for size in [1, 7, 16, 33] {
            let (mut x, factors) = (matrix(&mut draw, size, size), matrix(&mut draw, size, size));
            for diagonal in [true, false] {
                let seen = |i: usize, j: usize| j < i + usize::from(diagonal);
                for i in 0..size {
                    for j in 0..size {
                        if !seen(i, j) {
                            x.row_mut(i)[j] = f64::NAN;
                        }
                    }
                }
                let mut cleared = x.clone();
                cleared.clear_upper(diagonal);
                let mut found = x.clone();
                found.multiply_lower(&factors, diagonal);
                let row_of_factors = |i: usize| if diagonal { i } else { i - 1 };
                for i in 0..size {
                    for j in 0..size {
                        let expected =
                            if seen(i, j) { x.row(i)[j] * factors.row(row_of_factors(i))[j] } else { 0.0 };
                        assert_eq!(found.row(i)[j], expected);
                        assert_eq!(cleared.row(i)[j], if seen(i, j) { x.row(i)[j] } else { 0.0 });
                    }
                }
            }
        }
    }
}
