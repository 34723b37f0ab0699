//! Forward: outputs, memories kept for the way back, and the last memory.

use cubecl::prelude::*;

use super::SEGMENT;
use super::parts::{
    add, advance, decays, head_start, load, pick, share_over_keys, stage, stage_decays, store, sum_over_keys,
};
use super::plan::{ACROSS, Plan, SLICE, TILE};

/// One chunk of tokens of one slice of one head: cubes are `[slices, chunks, b h]`.
///
/// `q`, `k`: `[b, h, t, n]`, `v: [b, h, t, p]`, `extra: [b, h, t, width]`, the logarithms of decays, with `a` and `b`
/// beside them where there is rank one; `memory: [b, h, chunks, n, p]`; `out: [b, h, t, p]`. `beside` takes
/// the memories before every segment if they are to be kept, `[b, h, chunks, segments, n, p]`, then from `reads_at` on
/// what tokens read, `[b, h, t, p]`, and from `memory_at` on the last memory. Outputs are `gain` times what queries find, and `d v` more where it is `skipped`, with
/// `d: [1, h, 1, p]`.
#[cube(launch)]
pub(super) fn forward(
    q: &Tensor<f32>,
    k: &Tensor<f32>,
    v: &Tensor<f32>,
    extra: &Tensor<f32>,
    memory: &Tensor<f32>,
    d_skip: &Tensor<f32>,
    beside: &mut Tensor<f32>,
    out: &mut Tensor<f32>,
    gain: f32,
    chunk: usize,
    segments: usize,
    reads_at: usize,
    memory_at: usize,
    #[comptime] plan: Plan,
    #[comptime] keep: bool,
    #[comptime] skipped: bool,
) {
    let (n, p, rank_one) = comptime!((plan.n, plan.p, plan.rank_one));
    let (keys, units, share) = comptime!((plan.keys(), plan.units(), plan.share()));
    let (tokens, pad) = comptime!((plan.stage(), plan.decays()));
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

    let mut state = Array::<f32>::new(comptime!(TILE * TILE));
    let start = head_start(memory, head) + which * memory.stride(2);
    load(memory, &mut state, start, memory.stride(3), memory.stride(4), row, column, n, p);

    let mut q_staged = Shared::<[f32]>::new_slice(comptime!(tokens * keys));
    let mut k_staged = Shared::<[f32]>::new_slice(comptime!(tokens * keys));
    let mut v_staged = Shared::<[f32]>::new_slice(comptime!(tokens * SLICE));
    let mut d_staged = Shared::<[f32]>::new_slice(comptime!(tokens * pad));
    let mut a_staged = Shared::<[f32]>::new_slice(comptime!(if rank_one { tokens * keys } else { 1 }));
    let mut b_staged = Shared::<[f32]>::new_slice(comptime!(if rank_one { tokens * keys } else { 1 }));
    let mut reads = Shared::<[f32]>::new_slice(comptime!(if rank_one { SLICE } else { 1 }));
    let mut read_shares = Shared::<[f32]>::new_slice(comptime!(if rank_one { share } else { 1 }));
    let mut shares = Shared::<[f32]>::new_slice(comptime!(tokens * share));

    let mut d = Array::<f32>::new(TILE);
    let mut x = Array::<f32>::new(TILE);
    let mut y = Array::<f32>::new(TILE);
    let mut begin = first;
    while begin < last {
        if comptime!(keep) {
            let since = (begin - first) % SEGMENT;
            if since == 0 {
                let segment = (head * CUBE_COUNT_Y as usize + which) * segments + (begin - first) / SEGMENT;
                store(&state, beside, segment * comptime!(n * p), row, column, n, p);
            }
        }
        sync_cube();
        stage(q, &mut q_staged, head, begin, last, 0usize, n, tokens, keys, units);
        stage(k, &mut k_staged, head, begin, last, 0usize, n, tokens, keys, units);
        let values = min(SLICE, p - slice * SLICE);
        stage(v, &mut v_staged, head, begin, last, slice * SLICE, values, tokens, SLICE, units);
        stage_decays(extra, &mut d_staged, head, begin, last, plan.width, tokens, pad, units);
        if comptime!(rank_one) {
            stage(extra, &mut a_staged, head, begin, last, plan.width, n, tokens, keys, units);
            stage(extra, &mut b_staged, head, begin, last, comptime!(plan.width + n), n, tokens, keys, units);
        }
        sync_cube();
        for s in 0..tokens {
            let key = s * keys + row;
            decays(&d_staged, &mut d, s, row, pad);
            if comptime!(rank_one) {
                pick(&a_staged, &mut x, key);
                share_over_keys(&x, &state, &mut read_shares, 0usize, units);
                sync_cube();
                let mut at = unit;
                while at < SLICE {
                    let read = sum_over_keys(&read_shares, 0usize, at, units);
                    reads[at] = read;
                    if comptime!(keep) {
                        let value = slice * SLICE + at;
                        if begin + s < last && value < p {
                            beside[reads_at + (head * t + begin + s) * p + value] = read;
                        }
                    }
                    at += units;
                }
                sync_cube();
            }
            pick(&k_staged, &mut x, key);
            pick(&v_staged, &mut y, s * SLICE + inner);
            advance(&mut state, &d, &x, &y);
            if comptime!(rank_one) {
                pick(&b_staged, &mut x, key);
                pick(&reads, &mut y, inner);
                add(&mut state, &x, &y);
            }
            pick(&q_staged, &mut x, key);
            share_over_keys(&x, &state, &mut shares, s * share, units);
        }
        sync_cube();
        let mut at = unit;
        while at < comptime!(tokens * SLICE) {
            let token = begin + at / SLICE;
            let value = slice * SLICE + at % SLICE;
            if token < last && value < p {
                let mut found = gain * sum_over_keys(&shares, (at / SLICE) * share, at % SLICE, units);
                if comptime!(skipped) {
                    let own = head % q.shape(1);
                    found += d_skip[own * d_skip.stride(1) + value * d_skip.stride(3)] * v_staged[at];
                }
                out[(head * t + token) * p + value] = found;
            }
            at += units;
        }
        begin += tokens;
    }
    if last == t {
        store(&state, beside, memory_at + head * comptime!(n * p), row, column, n, p);
    }
}
