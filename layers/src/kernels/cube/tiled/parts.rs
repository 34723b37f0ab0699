//! What all kernels of this folder do with a few tokens or a memory.

use cubecl::prelude::*;

use super::plan::{ACROSS, TILE};

/// Where a head starts in `x: [b, h, ..]`.
#[cube]
pub(crate) fn head_start(x: &Tensor<f32>, head: usize) -> usize {
    let heads = x.shape(1);
    (head / heads) * x.stride(0) + (head % heads) * x.stride(1)
}

/// Columns `from_column..` of tokens `first..` of a head into shared memory, `[tokens, pad]`; 0 beyond `last` and beyond
/// `width` columns.
#[cube]
pub(super) fn stage(
    from: &Tensor<f32>,
    to: &mut Shared<[f32]>,
    head: usize,
    first: usize,
    last: usize,
    column: usize,
    width: usize,
    #[comptime] tokens: usize,
    #[comptime] pad: usize,
    #[comptime] units: usize,
) {
    let start = head_start(from, head) + column * from.stride(3);
    let (by_token, by_column) = (from.stride(2), from.stride(3));
    let mut at = UNIT_POS as usize;
    while at < comptime!(tokens * pad) {
        let token = first + at / pad;
        let i = at % pad;
        let mut x = 0.0f32;
        if token < last && i < width {
            x = from[start + token * by_token + i * by_column];
        }
        to[at] = x;
        at += units;
    }
}

/// Decays instead of their logarithms, 1 beyond `last`.
#[cube]
pub(super) fn stage_decays(
    log: &Tensor<f32>,
    to: &mut Shared<[f32]>,
    head: usize,
    first: usize,
    last: usize,
    width: usize,
    #[comptime] tokens: usize,
    #[comptime] pad: usize,
    #[comptime] units: usize,
) {
    let start = head_start(log, head);
    let (by_token, by_column) = (log.stride(2), log.stride(3));
    let mut at = UNIT_POS as usize;
    while at < comptime!(tokens * pad) {
        let token = first + at / pad;
        let i = at % pad;
        let mut x = 1.0f32;
        if token < last && i < width {
            x = log[start + token * by_token + i * by_column].exp();
        }
        to[at] = x;
        at += units;
    }
}

/// The decays of a unit's keys at a token.
#[cube]
pub(super) fn decays(
    staged: &Shared<[f32]>,
    to: &mut Array<f32>,
    token: usize,
    row: usize,
    #[comptime] pad: usize,
) {
    #[unroll]
    for i in 0..TILE {
        if comptime!(pad == 1) {
            to[i] = staged[token];
        } else {
            to[i] = staged[token * pad + row + i];
        }
    }
}

/// A unit's few numbers of a row.
#[cube]
pub(super) fn pick(staged: &Shared<[f32]>, to: &mut Array<f32>, start: usize) {
    #[unroll]
    for i in 0..TILE {
        to[i] = staged[start + i];
    }
}

/// A unit's part of a memory `[n, p]` that starts somewhere in a buffer.
#[cube]
pub(super) fn load(
    from: &Tensor<f32>,
    state: &mut Array<f32>,
    start: usize,
    by_row: usize,
    by_column: usize,
    row: usize,
    column: usize,
    #[comptime] n: usize,
    #[comptime] p: usize,
) {
    #[unroll]
    for i in 0..TILE {
        #[unroll]
        for j in 0..TILE {
            let mut x = 0.0f32;
            if row + i < n && column + j < p {
                x = from[start + (row + i) * by_row + (column + j) * by_column];
            }
            state[i * TILE + j] = x;
        }
    }
}

/// A unit's part of a memory into a contiguous `[n, p]`.
#[cube]
pub(super) fn store(
    state: &Array<f32>,
    to: &mut Tensor<f32>,
    start: usize,
    row: usize,
    column: usize,
    #[comptime] n: usize,
    #[comptime] p: usize,
) {
    #[unroll]
    for i in 0..TILE {
        #[unroll]
        for j in 0..TILE {
            if row + i < n && column + j < p {
                to[start + (row + i) * p + column + j] = state[i * TILE + j];
            }
        }
    }
}

/// The unit's share of `xᵀ S`, of `SLICE` numbers: its sum over four keys. Units beside each other write and, in
/// [`sum_over_keys`], read different banks of memory.
#[cube]
pub(super) fn share_over_keys(
    x: &Array<f32>,
    state: &Array<f32>,
    to: &mut Shared<[f32]>,
    start: usize,
    #[comptime] units: usize,
) {
    #[unroll]
    for j in 0..TILE {
        let mut sum = 0.0f32;
        #[unroll]
        for i in 0..TILE {
            sum += x[i] * state[i * TILE + j];
        }
        to[start + j * comptime!(units + 4) + UNIT_POS as usize] = sum;
    }
}

/// The unit's share of `S x`, of as many numbers as there are keys: its sum over four values. For banks see
/// [`share_over_keys`].
#[cube]
pub(super) fn share_over_values(
    state: &Array<f32>,
    x: &Array<f32>,
    to: &mut Shared<[f32]>,
    start: usize,
    #[comptime] units: usize,
) {
    #[unroll]
    for i in 0..TILE {
        let mut sum = 0.0f32;
        #[unroll]
        for j in 0..TILE {
            sum += state[i * TILE + j] * x[j];
        }
        to[start + i * comptime!(units + 1) + UNIT_POS as usize] = sum;
    }
}

/// The sum over `rows` units of what [`share_over_keys`] shared.
#[cube]
pub(super) fn sum_over_keys(
    shares: &Shared<[f32]>,
    start: usize,
    column: usize,
    #[comptime] units: usize,
) -> f32 {
    let from = start + (column % TILE) * comptime!(units + 4) + column / TILE;
    let mut sum = 0.0f32;
    for i in 0..comptime!(units / ACROSS) {
        sum += shares[from + i * ACROSS];
    }
    sum
}

/// The sum over units beside each other of what [`share_over_values`] shared.
#[cube]
pub(super) fn sum_over_values(
    shares: &Shared<[f32]>,
    start: usize,
    key: usize,
    #[comptime] units: usize,
) -> f32 {
    let from = start + (key % TILE) * comptime!(units + 1) + (key / TILE) * ACROSS;
    let mut sum = 0.0f32;
    #[unroll]
    for j in 0..ACROSS {
        sum += shares[from + j];
    }
    sum
}

/// `state ← d ∘ state + x yᵀ`
#[cube]
pub(super) fn advance(state: &mut Array<f32>, d: &Array<f32>, x: &Array<f32>, y: &Array<f32>) {
    #[unroll]
    for i in 0..TILE {
        #[unroll]
        for j in 0..TILE {
            state[i * TILE + j] = d[i] * state[i * TILE + j] + x[i] * y[j];
        }
    }
}

/// `state ← state + x yᵀ`
#[cube]
pub(super) fn add(state: &mut Array<f32>, x: &Array<f32>, y: &Array<f32>) {
    #[unroll]
    for i in 0..TILE {
        #[unroll]
        for j in 0..TILE {
            state[i * TILE + j] += x[i] * y[j];
        }
    }
}
