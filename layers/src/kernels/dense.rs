//! Products of small matrices, on plain slices. Every product adds up a register tile of a few rows and columns,
//! in a loop that the compiler turns into vector instructions. Loops are plain ones and small functions marked `inline`:
//! without link-time optimization (`lto = "off"`) closures and adapters of iterators stay calls, and take thrice as long.

use std::ops::{Add, AddAssign, Mul, MulAssign};

mod rows;
#[cfg(target_arch = "x86_64")]
mod turn;
#[cfg(target_arch = "x86_64")]
mod wide;

/// Rows of a register tile.
const TALL: usize = 4;

/// Widest register tile; rows are padded to a multiple of it, so that no tile hangs over an edge.
const WIDEST: usize = 16;

/// `f32` or `f64`.
pub(crate) trait Real:
    Copy + Default + Send + Sync + Add<Output = Self> + Mul<Output = Self> + AddAssign + MulAssign + 'static
{
    /// Rounds.
    fn of(x: f64) -> Self;

    /// Exactly.
    fn to_f64(self) -> f64;

    /// `self · b + c`, rounded once.
    fn fused(self, b: Self, c: Self) -> Self;

    /// See [`Matrix::set_product`].
    #[doc(hidden)]
    fn product(job: Job<'_, Self>);

    /// See [`Matrix::set_transpose`].
    #[doc(hidden)]
    fn turn(to: Rows<&mut [Self]>, from: Rows<&[Self]>) {
        turn_in_bands(to, from);
    }
}

macro_rules! real {
    ($real:ty, $widest:ident, $wide:literal, $narrow:literal, {$($more:item)*}) => {
        impl Real for $real {
            #[inline(always)]
            fn of(x: f64) -> Self {
                x as $real
            }

            #[inline(always)]
            fn to_f64(self) -> f64 {
                f64::from(self)
            }

            #[inline(always)]
            fn fused(self, b: Self, c: Self) -> Self {
                self.mul_add(b, c)
            }

            #[allow(unsafe_code, reason = "calling a function compiled for vectors that were found")]
            fn product(job: Job<'_, Self>) {
                #[cfg(target_arch = "x86_64")]
                {
                    #[target_feature(enable = "avx2,fma")]
                    fn wide(job: Job<'_, $real>) {
                        tiles::<$real, true, $wide>(job);
                    }
                    if is_x86_feature_detected!("avx512f") {
                        // SAFETY: the machine has it.
                        return unsafe { wide::$widest(job) };
                    }
                    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                        // SAFETY: the machine has both features.
                        return unsafe { wide(job) };
                    }
                }
                // Fused products are a library call where the target does not have them for sure.
                tiles::<$real, { cfg!(target_arch = "aarch64") }, $narrow>(job);
            }

            $($more)*
        }
    };
}

real!(f32, product_f32, 16, 8, {
    #[allow(unsafe_code, reason = "calling a function compiled for vectors that were found")]
    fn turn(to: Rows<&mut [f32]>, from: Rows<&[f32]>) {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the machine has it.
            return unsafe { turn::turn(to, from) };
        }
        turn_in_bands(to, from);
    }
});
real!(f64, product_f64, 8, 4, {});

/// A row-major matrix in scratch memory. What lies beyond its rows and columns means nothing.
#[derive(Clone, Debug)]
pub(crate) struct Matrix<E> {
    numbers: Vec<E>,
    rows: usize,
    columns: usize,
    stride: usize,
}

/// Which part of a product is needed, or known to be 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// All of it.
    Whole,
    /// Only the lower triangle of the result.
    Lower,
    /// The left factor is lower triangular; turned around, the upper triangle of it is what counts.
    LeftLower,
}

/// Some rows of a [`Matrix`], from a multiple of [`ALIGNED`] on. Products read and write whole register tiles: rows
/// after the last one up to a multiple of [`ALIGNED`] must be there, and are overwritten.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rows<N> {
    numbers: N,
    rows: usize,
    columns: usize,
    stride: usize,
}

/// Register tiles start at multiples of it, and have no more rows.
pub(crate) const ALIGNED: usize = 8;

/// `c = a b` or `c += a b`, with `aᵀ` for `a` where it is turned.
pub(crate) struct Job<'a, E> {
    c: Rows<&'a mut [E]>,
    a: Rows<&'a [E]>,
    turned: bool,
    b: Rows<&'a [E]>,
    part: Part,
    add: bool,
}

impl<E: Real> Rows<&mut [E]> {
    /// `self += a b`, for as many rows as `a` has.
    #[inline]
    pub(crate) fn add_product(self, a: &Matrix<E>, b: &Matrix<E>, part: Part) {
        debug_assert_eq!(self.rows, a.rows);
        E::product(Job { c: self, a: a.all(), turned: false, b: b.all(), part, add: true });
    }
}

impl<E: Real> Matrix<E> {
    /// Room for this many rows and columns.
    pub(crate) fn new(rows: usize, columns: usize) -> Self {
        let stride = columns.next_multiple_of(WIDEST);
        let numbers = vec![E::default(); rows.next_multiple_of(WIDEST) * stride];
        Self { numbers, rows, columns, stride }
    }

    /// Another size, within the room it was made with; the numbers are then undefined.
    pub(crate) fn resize(&mut self, rows: usize, columns: usize) {
        assert!(columns <= self.stride && rows * self.stride <= self.numbers.len(), "no room");
        (self.rows, self.columns) = (rows, columns);
    }

    /// Numbers of a row.
    #[inline]
    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    /// A row's numbers.
    #[inline]
    pub(crate) fn row(&self, row: usize) -> &[E] {
        &self.numbers[row * self.stride..][..self.columns]
    }

    /// A row's numbers.
    #[inline]
    pub(crate) fn row_mut(&mut self, row: usize) -> &mut [E] {
        &mut self.numbers[row * self.stride..][..self.columns]
    }

    /// The rows of a matrix of whole registers.
    #[inline]
    pub(crate) fn blocks_mut(&mut self) -> &mut [[E; WIDEST]] {
        assert!(self.stride == WIDEST, "rows of another size");
        &mut self.numbers.as_chunks_mut().0[..self.rows]
    }

    /// A row to change and another one to read.
    #[inline]
    pub(crate) fn two_rows(&mut self, change: usize, read: usize) -> (&mut [E], &[E]) {
        let part = |row: usize| row * self.stride..row * self.stride + self.columns;
        let [change, read] =
            self.numbers.get_disjoint_mut([part(change), part(read)]).expect("two rows of the matrix");
        (change, read)
    }

    /// All rows.
    #[inline]
    pub(crate) fn rows(&self) -> impl Iterator<Item = &[E]> {
        self.numbers.chunks_exact(self.stride).take(self.rows).map(|row| &row[..self.columns])
    }

    /// All rows.
    #[inline]
    pub(crate) fn rows_mut(&mut self) -> impl Iterator<Item = &mut [E]> {
        let columns = self.columns;
        self.numbers.chunks_exact_mut(self.stride).take(self.rows).map(move |row| &mut row[..columns])
    }

    /// Copies a matrix of the same size and stride.
    #[inline]
    pub(crate) fn copy_from(&mut self, other: &Self) {
        self.resize(other.rows, other.columns);
        self.rows_mut().zip(other.rows()).for_each(|(row, other)| row.copy_from_slice(other));
    }

    /// Takes its numbers from `rows`, row after row.
    pub(crate) fn set_rows(&mut self, rows: &[E]) {
        let columns = self.columns;
        self.rows_mut().zip(rows.chunks_exact(columns)).for_each(|(row, from)| row.copy_from_slice(from));
    }

    /// Becomes the transpose of `other`.
    #[inline]
    pub(crate) fn set_transpose(&mut self, other: &Self) {
        self.resize(other.columns, other.rows);
        E::turn(self.all_mut(), other.all());
    }

    /// `count` rows from `first` on.
    #[inline]
    pub(crate) fn some(&self, first: usize, count: usize) -> Rows<&[E]> {
        assert!(first.is_multiple_of(ALIGNED) && first + count <= self.rows, "no such rows");
        let Self { columns, stride, .. } = *self;
        Rows { numbers: &self.numbers[first * stride..], rows: count, columns, stride }
    }

    /// `count` rows from `first` on.
    #[inline]
    pub(crate) fn some_mut(&mut self, first: usize, count: usize) -> Rows<&mut [E]> {
        assert!(first.is_multiple_of(ALIGNED) && first + count <= self.rows, "no such rows");
        let Self { columns, stride, .. } = *self;
        Rows { numbers: &mut self.numbers[first * stride..], rows: count, columns, stride }
    }

    fn all(&self) -> Rows<&[E]> {
        self.some(0, self.rows)
    }

    fn all_mut(&mut self) -> Rows<&mut [E]> {
        self.some_mut(0, self.rows)
    }

    /// `self = a b`
    #[inline]
    pub(crate) fn set_product(&mut self, a: &Self, b: &Self, part: Part) {
        self.set_product_of_rows(a.all(), b, part);
    }

    /// `self = a b`
    #[inline]
    pub(crate) fn set_product_of_rows(&mut self, a: Rows<&[E]>, b: &Self, part: Part) {
        self.resize(a.rows, b.columns);
        E::product(Job { c: self.all_mut(), a, turned: false, b: b.all(), part, add: false });
    }

    /// `self += a b`
    #[inline]
    pub(crate) fn add_product(&mut self, a: &Self, b: &Self, part: Part) {
        E::product(Job { c: self.all_mut(), a: a.all(), turned: false, b: b.all(), part, add: true });
    }

    /// `self = aᵀ b`
    #[inline]
    pub(crate) fn set_turned_product(&mut self, a: &Self, b: &Self, part: Part) {
        self.resize(a.columns, b.columns);
        E::product(Job { c: self.all_mut(), a: a.all(), turned: true, b: b.all(), part, add: false });
    }

    /// `self += aᵀ b`
    #[inline]
    pub(crate) fn add_turned_product(&mut self, a: &Self, b: &Self, part: Part) {
        self.add_turned_product_of_rows(a, b.all(), part);
    }

    /// `self += aᵀ b`
    #[inline]
    pub(crate) fn add_turned_product_of_rows(&mut self, a: &Self, b: Rows<&[E]>, part: Part) {
        E::product(Job { c: self.all_mut(), a: a.all(), turned: true, b, part, add: true });
    }
}

/// `to = fromᵀ`
fn turn_in_bands<E: Copy>(to: Rows<&mut [E]>, from: Rows<&[E]>) {
    // Bands of a few columns, so that what is written stays in the fastest memory.
    for first in (0..from.columns).step_by(WIDEST) {
        let last = (first + WIDEST).min(from.columns);
        for i in 0..from.rows {
            for (j, &x) in from.numbers[i * from.stride..][first..last].iter().enumerate() {
                to.numbers[(first + j) * to.stride + i] = x;
            }
        }
    }
}

#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "fixed bounds, so that the tile stays in registers")]
fn tiles<E: Real, const FUSED: bool, const WIDE: usize>(job: Job<'_, E>) {
    let Job { c, a, turned, b, part, add } = job;
    let depth = if turned { a.rows } else { a.columns };
    assert!(depth == b.rows && c.columns == b.columns, "sizes do not match");
    for column in (0..c.columns).step_by(WIDE) {
        for row in (0..c.rows).step_by(TALL) {
            if part == Part::Lower && column >= row + TALL {
                continue;
            }
            let (from, to) = match part {
                Part::Whole | Part::Lower => (0, depth),
                Part::LeftLower if turned => (row.min(depth), depth),
                Part::LeftLower => (0, (row + TALL).min(depth)),
            };
            let tile = if turned {
                turned_tile::<E, FUSED, WIDE>(a, b, row, column, from, to)
            } else {
                plain_tile::<E, FUSED, WIDE>(a, b, row, column, from, to)
            };
            for i in 0..TALL {
                let out: &mut [E; WIDE] = c.numbers[(row + i) * c.stride + column..]
                    .first_chunk_mut()
                    .expect("rows are padded to whole tiles");
                for j in 0..WIDE {
                    out[j] = if add { out[j] + tile[i][j] } else { tile[i][j] };
                }
            }
        }
    }
}

#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "fixed bounds, so that the tile stays in registers")]
fn plain_tile<E: Real, const FUSED: bool, const WIDE: usize>(
    a: Rows<&[E]>,
    b: Rows<&[E]>,
    row: usize,
    column: usize,
    from: usize,
    to: usize,
) -> [[E; WIDE]; TALL] {
    let mut tile = [[E::default(); WIDE]; TALL];
    let mut left: [&[E]; TALL] = [&[]; TALL];
    for i in 0..TALL {
        left[i] = &a.numbers[(row + i) * a.stride..][..to];
    }
    for k in from..to {
        let right: &[E; WIDE] =
            b.numbers[k * b.stride + column..].first_chunk().expect("rows are padded to whole tiles");
        for i in 0..TALL {
            let x = left[i][k];
            for j in 0..WIDE {
                tile[i][j] = if FUSED { x.fused(right[j], tile[i][j]) } else { x * right[j] + tile[i][j] };
            }
        }
    }
    tile
}

#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "fixed bounds, so that the tile stays in registers")]
fn turned_tile<E: Real, const FUSED: bool, const WIDE: usize>(
    a: Rows<&[E]>,
    b: Rows<&[E]>,
    row: usize,
    column: usize,
    from: usize,
    to: usize,
) -> [[E; WIDE]; TALL] {
    let mut tile = [[E::default(); WIDE]; TALL];
    for k in from..to {
        let left: &[E; TALL] =
            a.numbers[k * a.stride + row..].first_chunk().expect("rows are padded to whole tiles");
        let right: &[E; WIDE] =
            b.numbers[k * b.stride + column..].first_chunk().expect("rows are padded to whole tiles");
        for i in 0..TALL {
            for j in 0..WIDE {
                let sum = tile[i][j];
                tile[i][j] = if FUSED { left[i].fused(right[j], sum) } else { left[i] * right[j] + sum };
            }
        }
    }
    tile
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Draw;

    fn matrix<E: Real>(draw: &mut Draw, rows: usize, columns: usize) -> Matrix<E> {
        let mut m = Matrix::new(rows, columns);
        // What is outside must not be read.
        m.numbers.fill(E::of(f64::NAN));
        m.rows_mut().flatten().zip(draw.numbers(rows * columns, -1.0, 1.0)).for_each(|(x, y)| *x = E::of(y));
        m
    }

    fn entry<E: Real>(m: &Matrix<E>, turned: bool, i: usize, j: usize) -> f64 {
        let (i, j) = if turned { (j, i) } else { (i, j) };
        m.row(i)[j].to_f64()
    }

    fn every_product_is_the_sum_over_its_middle_axis<E: Real>(limit: f64) {
        let mut draw = Draw::new(3);
        for (m, n, k) in [(1, 1, 1), (4, 16, 8), (5, 17, 3), (64, 64, 64), (31, 65, 20), (17, 33, 40)] {
            for turned in [false, true] {
                for part in [Part::Whole, Part::Lower, Part::LeftLower] {
                    let k = if part == Part::LeftLower { m } else { k };
                    let mut a = if turned { matrix::<E>(&mut draw, k, m) } else { matrix(&mut draw, m, k) };
                    if part == Part::LeftLower {
                        a.rows_mut().enumerate().for_each(|(i, row)| row[i + 1..].fill(E::of(0.0)));
                    }
                    let b = matrix::<E>(&mut draw, k, n);
                    let start = matrix::<E>(&mut draw, m, n);
                    for add in [false, true] {
                        let mut c = start.clone();
                        match (turned, add) {
                            (false, false) => c.set_product(&a, &b, part),
                            (false, true) => c.add_product(&a, &b, part),
                            (true, false) => c.set_turned_product(&a, &b, part),
                            (true, true) => c.add_turned_product(&a, &b, part),
                        }
                        for i in 0..m {
                            for j in 0..if part == Part::Lower { n.min(i + 1) } else { n } {
                                let sum: f64 =
                                    (0..k).map(|s| entry(&a, turned, i, s) * entry(&b, false, s, j)).sum();
                                let expected = sum + if add { entry(&start, false, i, j) } else { 0.0 };
                                let off = (entry(&c, false, i, j) - expected).abs();
                                assert!(off <= limit, "{m}x{n}x{k} {turned} {part:?} {add}: off by {off:e}");
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn products_in_single_precision() {
        every_product_is_the_sum_over_its_middle_axis::<f32>(1e-5);
    }

    #[test]
    fn products_in_double_precision() {
        every_product_is_the_sum_over_its_middle_axis::<f64>(1e-13);
    }

    /// The tiles of machines without wide vectors.
    #[test]
    fn narrow_tiles_are_the_wide_ones() {
        let mut draw = Draw::new(4);
        let (a, b) = (matrix::<f32>(&mut draw, 20, 19), matrix::<f32>(&mut draw, 19, 37));
        let (mut wide, mut narrow) = (Matrix::new(20, 37), Matrix::new(20, 37));
        wide.set_product(&a, &b, Part::Whole);
        let job =
            Job { c: narrow.all_mut(), a: a.all(), turned: false, b: b.all(), part: Part::Whole, add: false };
        tiles::<f32, false, 8>(job);
        let gap = |(x, y): (&f32, &f32)| (x - y).abs();
        assert!(wide.rows().flatten().zip(narrow.rows().flatten()).map(gap).all(|gap| gap < 1e-5));
    }

    fn its_transpose_is_exact<E: Real + PartialEq + std::fmt::Debug>() {
        let mut draw = Draw::new(5);
        for (rows, columns) in [(1, 1), (16, 16), (33, 18), (7, 40), (64, 64)] {
            let a = matrix::<E>(&mut draw, rows, columns);
            let mut turned = Matrix::new(columns, rows);
            turned.set_transpose(&a);
            for i in 0..rows {
                for j in 0..columns {
                    assert_eq!(a.row(i)[j], turned.row(j)[i]);
                }
            }
        }
    }

    #[test]
    fn transposes_are_exact() {
        its_transpose_is_exact::<f32>();
        its_transpose_is_exact::<f64>();
    }
}
