//! What the kernels have in common: rows in registers, tiles in shared memory, scores.

use cubecl::prelude::*;

use super::Form;

/// Four channels.
pub(super) type Four = Vector<f32, Const<4>>;

/// The score of a key that a query does not see.
pub(super) const HIDDEN: f32 = -1e30;

/// No largest score counts as less, so that the weight of what is hidden is 0 also where nothing is seen.
pub(super) const FLOOR: f32 = -1e29;

/// Channels `4 i..4 i + 4` of a row that starts at `start` and has `n`, times `scale`; what is behind the last is 0.
#[cube]
pub(super) fn four(from: &Tensor<f32>, start: usize, i: usize, scale: f32, #[comptime] n: usize) -> Four {
    let mut four = Four::new(f32::new(0.0));
    let stride = from.stride(3);
    #[unroll]
    for c in 0..4 {
        if comptime!(n.is_multiple_of(4)) || 4 * i + c < n {
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
            to[i] = four(from, start, i, scale, n);
        }
    }
}

/// Copies `count` rows into a tile, or zeros behind them: row `first` and those after it, or, `downwards`, those before.
#[cube]
pub(super) fn read_tile(
    from: &Tensor<f32>,
    start: usize,
    first: usize,
    count: usize,
    scale: f32,
    to: &mut Shared<[Four]>,
    #[comptime] n: usize,
    #[comptime] form: Form,
    #[comptime] downwards: bool,
) {
    let width = comptime!(n.div_ceil(4));
    for place in range_stepped(UNIT_POS_X as usize, comptime!(form.tile * width), form.rows) {
        let row = place / width;
        let mut some = Four::new(f32::new(0.0));
        if row < count {
            let mut at = first + row;
            if downwards {
                at = first - row;
            }
            some = four(from, start + at * from.stride(2), place % width, scale, n);
        }
        to[place] = some;
    }
}

/// Copies gates and offsets of `count` keys from `last` down, or zeros behind them.
#[cube]
#[allow(clippy::too_many_arguments, reason = "two tensors, where they start, and where they go")]
pub(super) fn read_shifts(
    forget: &Tensor<f32>,
    gate_start: usize,
    offsets: &Tensor<f32>,
    offset_start: usize,
    last: usize,
    count: usize,
    gates: &mut Shared<[f32]>,
    shifts: &mut Shared<[f32]>,
    #[comptime] form: Form,
) {
    let unit = UNIT_POS_X as usize;
    if comptime!(form.forgets || form.shifted) {
        if unit < form.tile {
            let mut shift = f32::new(0.0);
            let mut gate = f32::new(0.0);
            if unit < count {
                if comptime!(form.shifted) {
                    shift = offsets[offset_start + (last - unit) * offsets.stride(3)];
                }
                if comptime!(form.forgets) {
                    gate = forget[gate_start + (last - unit) * forget.stride(2)];
                }
            }
            shifts[unit] = shift;
            gates[unit] = gate;
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
