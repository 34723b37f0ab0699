//! A few rows times a matrix that is read once, from front to back: products that are bound by reading the matrix.

use std::borrow::Cow;
use std::ops::Range;

use super::lanes::add;
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
            return Self::laid_out(matrix.head(0), rows, 0..columns);
        }
        let numbers = Cow::Borrowed(&matrix.numbers[start..]);
        let whole = columns.is_multiple_of(PANEL);
        Self { numbers, rows, columns, stride: stride as usize, step: PANEL, whole }
    }

    /// Of the transpose of `matrix: [1, 1, columns, rows]`.
    pub(super) fn turned(matrix: View<'_, E>) -> Self {
        let [.., columns, rows] = matrix.dims;
        Self::laid_out(matrix.head(0).turned(), rows, 0..columns)
    }

    /// Of some columns, with contiguous panels.
    pub(super) fn laid_out(from: Head<'_, E>, rows: usize, columns: Range<usize>) -> Self {
        let (start, columns) = (columns.start, columns.len());
        let mut numbers = vec![E::default(); columns.div_ceil(PANEL) * rows * PANEL];
        for (index, panel) in numbers.chunks_exact_mut(rows * PANEL).enumerate() {
            let first = index * PANEL;
            let count = PANEL.min(columns - first);
            for (i, row) in panel.chunks_exact_mut(PANEL).enumerate() {
                from.copy(i, start + first, &mut row[..count]);
            }
        }
        let numbers = Cow::Owned(numbers);
        Self { numbers, rows, columns, stride: PANEL, step: rows * PANEL, whole: true }
    }
}

/// `out += left matrix`, row by row, both contiguous; `space` is for [`TALL`] rows side by side.
#[inline(always)]
pub(super) fn add_product<E: Vector, const FUSED: bool>(
    left: &[E],
    matrix: &Panels<'_, E>,
    out: &mut [E],
    space: &mut Vec<[E; TALL]>,
) {
    let Panels { rows: depth, columns, stride, .. } = *matrix;
    let count = left.len() / depth;
    let tall = if matrix.whole || columns >= PANEL { count / TALL } else { 0 };
    space.resize(tall * depth, [E::default(); TALL]);
    for (rows, side_by_side) in left.chunks_exact(TALL * depth).zip(space.chunks_exact_mut(depth)) {
        let (a, rest) = rows.split_at(depth);
        let (b, rest) = rest.split_at(depth);
        let (c, d) = rest.split_at(depth);
        for k in 0..depth {
            side_by_side[k] = [a[k], b[k], c[k], d[k]];
        }
    }
    for index in 0..columns.div_ceil(PANEL) {
        let first = index * PANEL;
        let to = (first + PANEL).min(columns);
        let tall = if matrix.whole || to - first == PANEL { tall } else { 0 };
        for (left, out) in space.chunks_exact(depth).zip(out.chunks_exact_mut(TALL * columns)).take(tall) {
            let panel = &matrix.numbers[index * matrix.step..];
            let both = if stride == PANEL {
                let (panel, _) = panel.as_chunks::<PANEL>();
                [half::<E, FUSED, false>(left, panel), half::<E, FUSED, true>(left, panel)]
            } else {
                [
                    tile::<E, FUSED, TALL, NARROW>(left, panel, stride),
                    tile::<E, FUSED, TALL, NARROW>(left, &panel[NARROW..], stride),
                ]
            };
            for (sums, at) in both.iter().zip((first..to).step_by(NARROW)) {
                for (i, sums) in sums.iter().enumerate() {
                    add(&mut out[i * columns + at..i * columns + to.min(at + NARROW)], sums);
                }
            }
        }
        for row in tall * TALL..count {
            let out = &mut out[row * columns..][first..to];
            add_row::<E, FUSED>(&left[row * depth..][..depth], matrix, index, out);
        }
    }
}

/// `out += left matrix` for one row.
#[inline(always)]
pub(super) fn add_one<E: Vector, const FUSED: bool>(left: &[E], matrix: &Panels<'_, E>, out: &mut [E]) {
    let mut first = 0;
    while first < out.len() {
        let to = out.len().min(first + PANEL);
        add_row::<E, FUSED>(left, matrix, first / PANEL, &mut out[first..to]);
        first = to;
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
    let (side_by_side, _) = left.as_chunks::<1>();
    if matrix.whole || out.len() == PANEL {
        let sums = tile::<E, FUSED, 1, PANEL>(side_by_side, panel, matrix.stride);
        return add(out, &sums[0]);
    }
    let mut first = 0;
    while out.len() - first >= 16 {
        let sums = tile::<E, FUSED, 1, 16>(side_by_side, &panel[first..], matrix.stride);
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

/// `Σ_k left[k] panel[k]` of some rows side by side.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "fixed bounds, so that the tile stays in registers")]
fn tile<E: Vector, const FUSED: bool, const R: usize, const W: usize>(
    left: &[[E; R]],
    panel: &[E],
    stride: usize,
) -> [[E; W]; R] {
    let mut sums = [[E::default(); W]; R];
    for k in 0..left.len() {
        let right: &[E; W] = panel[k * stride..].first_chunk().expect("panels have whole rows");
        for r in 0..R {
            for j in 0..W {
                sums[r][j] = fused::<E, FUSED>(left[k][r], right[j], sums[r][j]);
            }
        }
    }
    sums
}

/// The same for [`TALL`] rows and the first half of a panel's columns or the `LAST`, where no check can fail in the loop:
/// it would keep the sums in memory.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "fixed bounds, so that the tile stays in registers")]
fn half<E: Vector, const FUSED: bool, const LAST: bool>(
    left: &[[E; TALL]],
    panel: &[[E; PANEL]],
) -> [[E; NARROW]; TALL] {
    let mut sums = [[E::default(); NARROW]; TALL];
    let from = if LAST { PANEL - NARROW } else { 0 };
    let panel = &panel[..left.len()];
    for k in 0..left.len() {
        for r in 0..TALL {
            for j in 0..NARROW {
                sums[r][j] = fused::<E, FUSED>(left[k][r], panel[k][from + j], sums[r][j]);
            }
        }
    }
    sums
}
