//! Chunks beside each other: what each adds to the memory, then one pass over them.

use cubecl::prelude::*;

use super::parts::{decays, head_start, pick, stage, stage_decays, store};
use super::plan::{ACROSS, Plan, SLICE, TILE};

/// What a chunk's keys and values make of an empty memory, `[b, h, chunks, n, p]` from `start` on in `to`, and the product
/// of its decays, `[b, h, chunks, width]` in `totals`. Cubes are `[slices, chunks, b h]`.
///
/// Backwards, a token's decay comes after what it adds, and tokens come from the last to the first.
#[cube(launch)]
pub(super) fn write(
    k: &Tensor<f32>,
    v: &Tensor<f32>,
    log: &Tensor<f32>,
    to: &mut Tensor<f32>,
    totals: &mut Tensor<f32>,
    chunk: usize,
    start: usize,
    #[comptime] plan: Plan,
    #[comptime] backwards: bool,
) {
    let (n, p, width) = comptime!((plan.n, plan.p, plan.width));
    let (keys, units) = comptime!((plan.keys(), plan.units()));
    let (tokens, pad) = comptime!((plan.stage(), plan.decays()));
    let slice = CUBE_POS_X as usize;
    let which = CUBE_POS_Y as usize;
    let head = CUBE_POS_Z as usize;
    let unit = UNIT_POS as usize;
    let first = which * chunk;
    let last = min(first + chunk, k.shape(2));
    let row = (unit / ACROSS) * TILE;
    let inner = (unit % ACROSS) * TILE;
    let place = head * CUBE_COUNT_Y as usize + which;

    let mut k_staged = Shared::<[f32]>::new_slice(comptime!(tokens * keys));
    let mut v_staged = Shared::<[f32]>::new_slice(comptime!(tokens * SLICE));
    let mut d_staged = Shared::<[f32]>::new_slice(comptime!(tokens * pad));
    let mut d = Array::<f32>::new(TILE);
    let mut x = Array::<f32>::new(TILE);
    let mut y = Array::<f32>::new(TILE);
    let mut state = Array::<f32>::new(comptime!(TILE * TILE));
    #[unroll]
    for i in 0..comptime!(TILE * TILE) {
        state[i] = 0.0f32;
    }
    let mut total = Array::<f32>::new(TILE);
    #[unroll]
    for i in 0..TILE {
        total[i] = 1.0f32;
    }
    let values = min(SLICE, p - slice * SLICE);
    let stages = (last - first).div_ceil(tokens);
    for step in 0..stages {
        let mut begin = first + step * tokens;
        if comptime!(backwards) {
            begin = first + (stages - 1 - step) * tokens;
        }
        sync_cube();
        stage(k, &mut k_staged, head, begin, last, 0usize, n, tokens, keys, units);
        stage(v, &mut v_staged, head, begin, last, slice * SLICE, values, tokens, SLICE, units);
        stage_decays(log, &mut d_staged, head, begin, last, width, tokens, pad, units);
        sync_cube();
        for step in 0..tokens {
            let mut s = step;
            if comptime!(backwards) {
                s = comptime!(tokens - 1) - step;
            }
            decays(&d_staged, &mut d, s, row, pad);
            pick(&k_staged, &mut x, s * keys + row);
            pick(&v_staged, &mut y, s * SLICE + inner);
            #[unroll]
            for i in 0..TILE {
                total[i] *= d[i];
                #[unroll]
                for j in 0..TILE {
                    let at = comptime!(i * TILE + j);
                    if comptime!(backwards) {
                        state[at] = d[i] * (state[at] + x[i] * y[j]);
                    } else {
                        state[at] = d[i] * state[at] + x[i] * y[j];
                    }
                }
            }
        }
    }
    store(&state, to, start + place * comptime!(n * p), row, slice * SLICE + inner, n, p);
    if slice == 0 && inner == 0 {
        #[unroll]
        for i in 0..comptime!(if width == 1 { 1 } else { TILE }) {
            if row + i < width {
                totals[place * width + row + i] = total[i];
            }
        }
    }
}

/// Turns what chunks add into the memory before each of them, or, backwards, what they add to the gradient into that of
/// the memory after each. `outside: [b, h, n, p]` is the memory before the first, or after the last.
#[cube(launch)]
pub(super) fn pass(
    outside: &Tensor<f32>,
    totals: &Tensor<f32>,
    to: &mut Tensor<f32>,
    chunks: usize,
    start: usize,
    #[comptime] plan: Plan,
    #[comptime] backwards: bool,
) {
    let (n, p, width) = comptime!((plan.n, plan.p, plan.width));
    let head = CUBE_POS_Y as usize;
    let at = CUBE_POS_X as usize * CUBE_DIM as usize + UNIT_POS as usize;
    if at < comptime!(n * p) {
        let (i, j) = (at / p, at % p);
        let from = head_start(outside, head) + i * outside.stride(2) + j * outside.stride(3);
        let mut x = outside[from];
        for step in 0..chunks {
            let mut place = head * chunks + step;
            if comptime!(backwards) {
                place = head * chunks + (chunks - 1 - step);
            }
            let here = start + place * comptime!(n * p) + at;
            let added = to[here];
            to[here] = x;
            x = totals[place * width + i % width] * x + added;
        }
    }
}

/// Decays, `a` and `b` of a token beside each other, `[b, h, t, width + 2 n]`.
#[cube(launch)]
pub(super) fn pack(
    log: &Tensor<f32>,
    a: &Tensor<f32>,
    b: &Tensor<f32>,
    to: &mut Tensor<f32>,
    count: usize,
    width: usize,
    n: usize,
) {
    let at = CUBE_POS * CUBE_DIM as usize + UNIT_POS as usize;
    if at < count {
        let columns = width + 2 * n;
        let (row, column) = (at / columns, at % columns);
        let t = a.shape(2);
        let (head, token) = (row / t, row % t);
        if column < width {
            to[at] = log[head_start(log, head) + token * log.stride(2) + column * log.stride(3)];
        } else if column < width + n {
            to[at] = a[head_start(a, head) + token * a.stride(2) + (column - width) * a.stride(3)];
        } else {
            to[at] = b[head_start(b, head) + token * b.stride(2) + (column - width - n) * b.stride(3)];
        }
    }
}
