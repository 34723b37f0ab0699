//! Backward: gradients of everything but the memory's own way through other chunks.

use cubecl::prelude::*;

use super::SEGMENT;
use super::parts::{
    add, advance, decays, head_start, load, pick, share_over_keys, share_over_values, stage, stage_decays,
    store, sum_over_keys, sum_over_values,
};
use super::plan::{ACROSS, Plan, SLICE, SUMS, TILE};

/// Sums what units shared of a gradient `[.., width]` of keys.
#[cube]
fn put_keys(
    shares: &Shared<[f32]>,
    start: usize,
    grads: &mut Tensor<f32>,
    at: usize,
    #[comptime] n: usize,
    #[comptime] units: usize,
) {
    if (UNIT_POS as usize) < n {
        grads[at + UNIT_POS as usize] = sum_over_values(shares, start, UNIT_POS as usize, units);
    }
}

/// One chunk of one slice of one head, as in the forward pass. `dy` and `after` are the gradients
/// of the outputs and of the last memory.
///
/// `grads` holds, per slice, the gradients of `q`, `k`, and `a`, `b` where there is rank one, each `[b, h, t, n]` and
/// `apart` numbers after the one before, and of the decays, `[b, h, t, width]`; from `values_at` on that of `v`, from `memory_at` on that of the memory, from
/// `after_at` on, where there are several chunks, that of the memories after each of them, which is read.
///
/// With `R` the gradient of the memory `S` after a token, from the last token to the first:
///
/// ```text
/// R ← R + q dyᵀ        dq = S dy        dk = R v        dv = Rᵀ k
/// du = Rᵀ b            db = R u         da = S' du      with S' the memory before
/// dlog d = d ∘ Σ_p R ∘ S'               R ← d ∘ R + a duᵀ
/// ```
#[cube(launch)]
pub(super) fn backward(
    q: &Tensor<f32>,
    k: &Tensor<f32>,
    v: &Tensor<f32>,
    extra: &Tensor<f32>,
    dy: &Tensor<f32>,
    after: &Tensor<f32>,
    kept: &Tensor<f32>,
    grads: &mut Tensor<f32>,
    chunk: usize,
    segments: usize,
    reads_at: usize,
    apart: usize,
    per_slice: usize,
    values_at: usize,
    memory_at: usize,
    after_at: usize,
    #[comptime] plan: Plan,
    #[comptime] decay: bool,
) {
    let (n, p, width, rank_one) = comptime!((plan.n, plan.p, plan.width, plan.rank_one));
    let (keys, units, part) = comptime!((plan.keys(), plan.units(), plan.share()));
    let (tokens, pad) = comptime!((plan.stage_back(), plan.decays()));
    let slice = CUBE_POS_X as usize;
    let which = CUBE_POS_Y as usize;
    let head = CUBE_POS_Z as usize;
    let unit = UNIT_POS as usize;
    let t = q.shape(2);
    let first = which * chunk;
    let last = min(first + chunk, t);
    let row = (unit / ACROSS) * TILE;
    let inner = (unit % ACROSS) * TILE;
    let column = slice * SLICE + inner;
    let values = min(SLICE, p - slice * SLICE);
    let place = head * CUBE_COUNT_Y as usize + which;

    let mut q_staged = Shared::<[f32]>::new_slice(comptime!(tokens * keys));
    let mut k_staged = Shared::<[f32]>::new_slice(comptime!(tokens * keys));
    let mut v_staged = Shared::<[f32]>::new_slice(comptime!(tokens * SLICE));
    let mut dy_staged = Shared::<[f32]>::new_slice(comptime!(tokens * SLICE));
    let mut d_staged = Shared::<[f32]>::new_slice(comptime!(tokens * pad));
    let mut a_staged = Shared::<[f32]>::new_slice(comptime!(if rank_one { tokens * keys } else { 1 }));
    let mut b_staged = Shared::<[f32]>::new_slice(comptime!(if rank_one { tokens * keys } else { 1 }));
    let mut u_staged = Shared::<[f32]>::new_slice(comptime!(if rank_one { tokens * SLICE } else { 1 }));
    let mut du = Shared::<[f32]>::new_slice(comptime!(if rank_one { SLICE } else { 1 }));
    let mut shares = Shared::<[f32]>::new_slice(comptime!(plan.parts() * part));

    let mut decay_sums =
        Shared::<[f32]>::new_slice(comptime!(if decay && width == 1 { tokens * SUMS } else { 1 }));
    let keys_of_all = comptime!(if rank_one { 4 } else { 2 });

    let mut state = Array::<f32>::new(comptime!(TILE * TILE));
    let mut before = Array::<f32>::new(comptime!(tokens * TILE * TILE));
    let mut gradient = Array::<f32>::new(comptime!(TILE * TILE));
    let mut d = Array::<f32>::new(TILE);
    let mut x = Array::<f32>::new(TILE);
    let mut y = Array::<f32>::new(TILE);
    if CUBE_COUNT_Y == 1 {
        let start = head_start(after, head);
        load(after, &mut gradient, start, after.stride(2), after.stride(3), row, column, n, p);
    } else {
        #[unroll]
        for i in 0..TILE {
            #[unroll]
            for j in 0..TILE {
                let mut x = 0.0f32;
                if row + i < n && column + j < p {
                    x = grads[after_at + place * comptime!(n * p) + (row + i) * p + column + j];
                }
                gradient[i * TILE + j] = x;
            }
        }
    }

    let count = (last - first).div_ceil(SEGMENT);
    for turn in 0..count {
        let segment = count - 1 - turn;
        let from = first + segment * SEGMENT;
        let end = min(from + SEGMENT, last);
        let stages = (end - from).div_ceil(tokens);
        for turn in 0..stages {
            let steps = stages - 1 - turn;
            let start = (place * segments + segment) * comptime!(n * p);
            load(kept, &mut state, start, p, 1usize, row, column, n, p);
            // Every stage up to this one, which is the last: its memories are noted on the way.
            for step in 0..steps + 1 {
                let begin = from + step * tokens;
                sync_cube();
                stage(k, &mut k_staged, head, begin, end, 0usize, n, tokens, keys, units);
                stage(v, &mut v_staged, head, begin, end, slice * SLICE, values, tokens, SLICE, units);
                stage_decays(extra, &mut d_staged, head, begin, end, width, tokens, pad, units);
                if comptime!(rank_one) {
                    stage(
                        extra,
                        &mut b_staged,
                        head,
                        begin,
                        end,
                        comptime!(width + n),
                        n,
                        tokens,
                        keys,
                        units,
                    );
                    let mut at = unit;
                    while at < comptime!(tokens * SLICE) {
                        let token = begin + at / SLICE;
                        let mut read = 0.0f32;
                        if token < end && at % SLICE < values {
                            read = kept[reads_at + (head * t + token) * p + slice * SLICE + at % SLICE];
                        }
                        u_staged[at] = read;
                        at += units;
                    }
                }
                if step == steps {
                    stage(q, &mut q_staged, head, begin, end, 0usize, n, tokens, keys, units);
                    stage(dy, &mut dy_staged, head, begin, end, slice * SLICE, values, tokens, SLICE, units);
                    if comptime!(rank_one) {
                        stage(extra, &mut a_staged, head, begin, end, width, n, tokens, keys, units);
                    }
                }
                sync_cube();
                #[unroll]
                for s in 0..tokens {
                    #[unroll]
                    for i in 0..comptime!(TILE * TILE) {
                        before[comptime!(s * TILE * TILE + i)] = state[i];
                    }
                    decays(&d_staged, &mut d, s, row, pad);
                    pick(&k_staged, &mut x, s * keys + row);
                    pick(&v_staged, &mut y, s * SLICE + inner);
                    advance(&mut state, &d, &x, &y);
                    if comptime!(rank_one) {
                        pick(&b_staged, &mut x, s * keys + row);
                        pick(&u_staged, &mut y, s * SLICE + inner);
                        add(&mut state, &x, &y);
                    }
                }
            }
            let begin = from + steps * tokens;
            #[unroll]
            for turn in 0..tokens {
                let s = comptime!(tokens - 1 - turn);
                let token = begin + s;
                let key = s * keys + row;
                let value = s * SLICE + inner;
                // `state` is the memory after the token.
                pick(&q_staged, &mut x, key);
                pick(&dy_staged, &mut y, value);
                add(&mut gradient, &x, &y);
                share_over_values(&state, &y, &mut shares, 0usize, units);
                pick(&k_staged, &mut x, key);
                pick(&v_staged, &mut y, value);
                share_over_values(&gradient, &y, &mut shares, part, units);
                share_over_keys(&x, &gradient, &mut shares, comptime!(2 * part), units);
                #[unroll]
                for i in 0..comptime!(TILE * TILE) {
                    state[i] = before[comptime!(s * TILE * TILE + i)];
                }
                decays(&d_staged, &mut d, s, row, pad);
                if comptime!(decay) {
                    let mut total = 0.0f32;
                    #[unroll]
                    for i in 0..TILE {
                        let mut sum = 0.0f32;
                        #[unroll]
                        for j in 0..TILE {
                            sum += gradient[i * TILE + j] * state[i * TILE + j];
                        }
                        sum *= d[i];
                        if comptime!(width == 1) {
                            total += sum;
                        } else {
                            shares[comptime!(3 * part) + i * comptime!(units + 1) + unit] = sum;
                        }
                    }
                    if comptime!(width == 1) {
                        shares[comptime!(3 * part) + unit] = total;
                    }
                }
                if comptime!(rank_one) {
                    pick(&u_staged, &mut y, value);
                    share_over_values(&gradient, &y, &mut shares, comptime!(4 * part), units);
                    pick(&b_staged, &mut x, key);
                    share_over_keys(&x, &gradient, &mut shares, comptime!(5 * part), units);
                    sync_cube();
                    let mut at = unit;
                    while at < SLICE {
                        du[at] = sum_over_keys(&shares, comptime!(5 * part), at, units);
                        at += units;
                    }
                    sync_cube();
                    pick(&du, &mut y, inner);
                    share_over_values(&state, &y, &mut shares, comptime!(5 * part), units);
                    pick(&a_staged, &mut x, key);
                    advance(&mut gradient, &d, &x, &y);
                } else {
                    #[unroll]
                    for i in 0..TILE {
                        #[unroll]
                        for j in 0..TILE {
                            gradient[i * TILE + j] *= d[i];
                        }
                    }
                }
                sync_cube();
                if token < end {
                    let at = slice * per_slice + (head * t + token) * n;
                    put_keys(&shares, 0usize, grads, at, n, units);
                    put_keys(&shares, part, grads, at + apart, n, units);
                    if comptime!(rank_one) {
                        put_keys(&shares, comptime!(5 * part), grads, at + 2 * apart, n, units);
                        put_keys(&shares, comptime!(4 * part), grads, at + 3 * apart, n, units);
                    }
                    if comptime!(decay) {
                        if comptime!(width == 1) {
                            // One number from all units, in two rounds.
                            let mut at = unit;
                            while at < SUMS {
                                let mut sum = 0.0f32;
                                let mut i = at;
                                while i < units {
                                    sum += shares[comptime!(3 * part) + i];
                                    i += SUMS;
                                }
                                decay_sums[s * SUMS + at] = sum;
                                at += units;
                            }
                        } else {
                            put_keys(&shares, comptime!(3 * part), grads, at + keys_of_all * apart, n, units);
                        }
                    }
                    let mut value = unit;
                    while value < values {
                        let sum = sum_over_keys(&shares, comptime!(2 * part), value, units);
                        grads[values_at + (head * t + token) * p + slice * SLICE + value] = sum;
                        value += units;
                    }
                }
                sync_cube();
            }
            if comptime!(decay && width == 1) {
                let mut at = unit;
                while at < tokens {
                    let mut sum = 0.0f32;
                    #[unroll]
                    for i in 0..SUMS {
                        sum += decay_sums[at * SUMS + i];
                    }
                    if begin + at < end {
                        grads[slice * per_slice + keys_of_all * apart + head * t + begin + at] = sum;
                    }
                    at += units;
                }
            }
        }
    }
    if which == 0 {
        store(&gradient, grads, memory_at + head * comptime!(n * p), row, column, n, p);
    }
}

/// Adds up what slices found, in the place of the first.
#[cube(launch)]
pub(super) fn gather(grads: &mut Tensor<f32>, per_slice: usize, count: usize, #[comptime] slices: usize) {
    let at = CUBE_POS * CUBE_DIM as usize + UNIT_POS as usize;
    if at < count {
        let mut sum = grads[at];
        for slice in 1..slices {
            sum += grads[slice * per_slice + at];
        }
        grads[at] = sum;
    }
}
