//! A few rows times a matrix that is read once, from front to back: products that are bound by reading the matrix.

use std::borrow::Cow;

use super::vector::{Vector, fused};
use super::view::{Head, View};

/// Columns of a [`Panels`]' panel; as many sums of one row fit the registers.
pub(super) const PANEL: usize = 64;

/// Rows that are multiplied together, so that what is read of the matrix serves all of them.
pub(super) const TALL: usize = 4;

/// Columns of a register tile of [`TALL`] rows.
const NARROW: usize = 32;

/// Products from which on a matrix is worth laying out anew.
const MANY: usize = 8;

/// A matrix `[rows, columns]` by panels of columns.
#[derive(Debug)]
pub(super) struct Panels<'a, E: Clone> {
    numbers: Cow<'a, [E]>,
    rows: usize,
    columns: usize,
    /// From row to row
    stride: usize,
    /// From panel to panel
    step: usize,
    /// Every panel has all its columns
    whole: bool,
}

impl<'a, E: Vector> Panels<'a, E> {
    /// Of `matrix: [1, 1, rows, columns]` for so many products: for a few where it lies, if its rows are contiguous;
    /// else with contiguous panels.
    pub(super) fn new(matrix: View<'a, E>, products: usize) -> Self {
        let View { dims: [.., rows, columns], strides: [.., stride, unit], start, .. } = matrix;
        if products >= MANY || unit != 1 || stride < columns as isize {
            return Self::laid_out(matrix.head(0), rows, columns);
        }
        let numbers = Cow::Borrowed(&matrix.numbers[start..]);
        let whole = columns.is_multiple_of(PANEL);
        Self { numbers, rows, columns, stride: stride as usize, step: PANEL, whole }
    }

    /// Of the transpose of `matrix: [1, 1, columns, rows]`.
    pub(super) fn turned(matrix: View<'_, E>) -> Self {
        let [.., columns, rows] = matrix.dims;
        Self::laid_out(matrix.head(0).turned(), rows, columns)
    }

    fn laid_out(from: Head<'_, E>, rows: usize, columns: usize) -> Self {
        let mut numbers = vec![E::default(); columns.div_ceil(PANEL) * rows * PANEL];
        for (index, panel) in numbers.chunks_exact_mut(rows * PANEL).enumerate() {
            let first = index * PANEL;
            let count = PANEL.min(columns - first);
            for (i, row) in panel.chunks_exact_mut(PANEL).enumerate() {
                from.copy(i, first, &mut row[..count]);
            }
        }
        let numbers = Cow::Owned(numbers);
        Self { numbers, rows, columns, stride: PANEL, step: rows * PANEL, whole: true }
    }
}

/// `out += left matrix`, row by row, both contiguous.
#[inline(always)]
pub(super) fn add_product<E: Vector, const FUSED: bool>(left: &[E], matrix: &Panels<'_, E>, out: &mut [E]) {
    let Panels { rows: depth, columns, stride, .. } = *matrix;
    let count = left.len() / depth;
    for index in 0..columns.div_ceil(PANEL) {
        let first = index * PANEL;
        let to = (first + PANEL).min(columns);
        let whole = matrix.whole || to - first == PANEL;
        let mut row = 0;
        while row < count {
            let next = if whole && row + TALL <= count { row + TALL } else { row + 1 };
            let left = &left[row * depth..next * depth];
            let out = &mut out[row * columns..next * columns];
            if next - row == TALL {
                let (a, rest) = left.split_at(depth);
                let (b, rest) = rest.split_at(depth);
                let (c, d) = rest.split_at(depth);
                for at in (first..to).step_by(NARROW) {
                    let panel = &matrix.numbers[index * matrix.step + at - first..];
                    let sums = tile::<E, FUSED, TALL, NARROW>([a, b, c, d], panel, stride);
                    for (i, sums) in sums.iter().enumerate() {
                        add(&mut out[i * columns + at..i * columns + to.min(at + NARROW)], sums);
                    }
                }
            } else {
                add_row::<E, FUSED>(left, matrix, index, &mut out[first..to]);
            }
            row = next;
        }
    }
}

/// `out += left panel` for panel `index`: one row and as many columns as there are.
#[inline(always)]
pub(super) fn add_row<E: Vector, const FUSED: bool>(
    left: &[E],
    matrix: &Panels<'_, E>,
    index: usize,
    out: &mut [E],
) {
    let panel = &matrix.numbers[index * matrix.step..];
    if matrix.whole || out.len() == PANEL {
        let sums = tile::<E, FUSED, 1, PANEL>([left], panel, matrix.stride);
        return add(out, &sums[0]);
    }
    let mut first = 0;
    while out.len() - first >= 16 {
        let sums = tile::<E, FUSED, 1, 16>([left], &panel[first..], matrix.stride);
        add(&mut out[first..first + 16], &sums[0]);
        first += 16;
    }
    let rest = &mut out[first..];
    for (k, &x) in left.iter().enumerate() {
        let row = &panel[k * matrix.stride + first..][..rest.len()];
        for (out, &y) in rest.iter_mut().zip(row) {
            *out = fused::<E, FUSED>(x, y, *out);
        }
    }
}

/// As many of `sums` as `to` has.
#[inline(always)]
pub(super) fn add<E: Vector>(to: &mut [E], sums: &[E]) {
    let sums = &sums[..to.len()];
    for (i, to) in to.iter_mut().enumerate() {
        *to += sums[i];
    }
}

/// `Σ_k left[k] panel[k]`
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "fixed bounds, so that the tile stays in registers")]
fn tile<E: Vector, const FUSED: bool, const R: usize, const W: usize>(
    left: [&[E]; R],
    panel: &[E],
    stride: usize,
) -> [[E; W]; R] {
    let mut sums = [[E::default(); W]; R];
    let depth = left[0].len();
    let mut left = left;
    for row in &mut left {
        *row = &row[..depth];
    }
    for k in 0..depth {
        let right: &[E; W] = panel[k * stride..].first_chunk().expect("panels have whole rows");
        for r in 0..R {
            let x = left[r][k];
            for j in 0..W {
                sums[r][j] = fused::<E, FUSED>(x, right[j], sums[r][j]);
            }
        }
    }
    sums
}
