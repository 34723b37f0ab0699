//! What the kernels have in common: rows in registers, tiles in shared memory, scores.

use cubecl::prelude::*;

/// Four channels.
pub(super) type Four = Vector<f32, Const<4>>;

/// The score of a key that a query does not see.
pub(super) const HIDDEN: f32 = -1e30;

/// Channels `4 i..4 i + 4` of a row that starts at `start` and has `n`, times `scale`; what is behind the last is 0.
#[cube]
pub(super) fn four(
    from: &Tensor<f32>,
    start: usize,
    i: usize,
    scale: f32,
    #[comptime] n: usize,
    #[comptime] fits: bool,
) -> Four {
    let mut four = Four::new(f32::new(0.0));
    let stride = from.stride(3);
    #[unroll]
    for c in 0..4 {
        if fits || 4 * i + c < n {
            four.insert(c, from[start + (4 * i + c) * stride] * scale);
        }
    }
    four
}

/// Copies a row into registers, or zeros where it is not `here`.
#[cube]
pub(super) fn read_row(
    from: &Tensor<f32>,
    start: usize,
    here: bool,
    scale: f32,
    to: &mut Array<Four>,
    #[comptime] n: usize,
) {
    #[unroll]
    for i in 0..n.div_ceil(4) {
        to[i] = Four::new(f32::new(0.0));
        if here {
            to[i] = four(from, start, i, scale, n, n.is_multiple_of(4));
        }
    }
}

/// Copies a row from registers to a contiguous tensor.
#[cube]
pub(super) fn write_row(
    from: &Array<Four>,
    to: &mut Tensor<f32>,
    start: usize,
    scale: f32,
    #[comptime] n: usize,
) {
    #[unroll]
    for c in 0..n {
        to[start + c] = from[comptime!(c / 4)].extract(comptime!(c % 4)) * scale;
    }
}

/// `Σ a b` of a row in registers and row `row` of a tile.
#[cube]
pub(super) fn product(a: &Array<Four>, tile: &Shared<[Four]>, row: usize, #[comptime] n: usize) -> f32 {
    let width = comptime!(n.div_ceil(4));
    let mut sums = Four::new(f32::new(0.0));
    #[unroll]
    for i in 0..width {
        sums += a[i] * tile[row * width + i];
    }
    lanes(sums)
}

/// Sum of four numbers.
#[cube]
pub(super) fn lanes(sums: Four) -> f32 {
    (sums.extract(0usize) + sums.extract(1usize)) + (sums.extract(2usize) + sums.extract(3usize))
}

/// Adds `factor` times row `row` of a tile to a row in registers.
#[cube]
pub(super) fn add(
    to: &mut Array<Four>,
    factor: f32,
    tile: &Shared<[Four]>,
    row: usize,
    #[comptime] n: usize,
) {
    let width = comptime!(n.div_ceil(4));
    let factor = Four::new(factor);
    #[unroll]
    for i in 0..width {
        to[i] += factor * tile[row * width + i];
    }
}

/// Sum of `log f` of the tokens `after + 1..=to`, whose column starts at `start`.
#[cube]
pub(super) fn faded(forget: &Tensor<f32>, start: usize, after: usize, to: usize) -> f32 {
    let mut sum = f32::new(0.0);
    for s in after + 1..to + 1 {
        sum += forget[start + s * forget.stride(2)];
    }
    sum
}

/// Whether a query whose own key is `own` sees `key`.
#[cube]
pub(super) fn sees(
    own: usize,
    key: usize,
    window: usize,
    #[comptime] causal: bool,
    #[comptime] windowed: bool,
) -> bool {
    (!causal || key <= own) && (!windowed || key + window > own)
}
