//! All chunks of a head.

#![allow(clippy::collapsible_if, reason = "the outer one is decided when a kernel is compiled")]

use cubecl::prelude::*;

use super::chunk::{matrix, of_head, of_loss, plan, standard, take, token};
use super::rule::{Rule, UNITS};
use crate::kernels::cube::tiled::head_start;

/// `q`, `k`, `v`: `[b, h, t, n]`, `gates: [b, h, t, g]`, `gain` and `bias`: `[h, n]`. `out` has matrices of every slot
/// from `weights_at` on and a head's scratch from `scratch_at` on; answers are before them, or `beside`, which otherwise
/// has the matrices of before if they are carried.
#[cube(launch)]
#[allow(clippy::too_many_arguments, reason = "a kernel's bindings")]
pub(super) fn descend_kernel(
    q: &Tensor<f32>,
    k: &Tensor<f32>,
    v: &Tensor<f32>,
    gates: &Tensor<f32>,
    gain: &Tensor<f32>,
    bias: &Tensor<f32>,
    beside: &mut Tensor<f32>,
    out: &mut Tensor<f32>,
    phase: usize,
    chunk: usize,
    weights_at: usize,
    scratch_at: usize,
    eps: f32,
    nu: f32,
    exponent: f32,
    clip: f32,
    #[comptime] rule: Rule,
) {
    let n = comptime!(rule.width);
    let depth = comptime!(rule.depth);
    let unit = UNIT_POS as usize;
    let head = CUBE_POS_X as usize;
    let heads = q.shape(0) * q.shape(1);
    let time = q.shape(2);
    let own = head % q.shape(1);
    let scratch = scratch_at + head * comptime!(rule.scratch());
    let made_at = scratch + comptime!(rule.slope(rule.depth - 1));
    let (q_start, k_start, v_start) = (head_start(q, head), head_start(k, head), head_start(v, head));
    let gates_start = head_start(gates, head);

    #[unroll]
    for slot in 0..comptime!(rule.slots()) {
        #[unroll]
        for l in 0..depth {
            if comptime!(slot >= rule.filled || rule.carried) {
                let to = matrix(weights_at, head, heads, slot, l, rule);
                let from = matrix(0usize, head, heads, slot, l, rule);
                for i in range_stepped(unit, comptime!(rule.size(l)), UNITS) {
                    let mut before = f32::new(0.0);
                    if comptime!(slot < rule.filled) {
                        before = beside[from + i];
                    }
                    out[to + i] = before;
                }
            }
        }
    }

    let mut begin = 0usize;
    while begin < time {
        let place = (phase + begin) % chunk;
        let size = min(chunk - place, time - begin);
        let gates_at = gates_start + begin * gates.stride(2);
        let mut ends = place + size == chunk;
        if comptime!(rule.ragged) {
            ends = ends && token(gates, gates_at, size - 1, comptime!(rule.valid())) > f32::new(0.5);
        }

        // What the first layer sees, and the plan.
        let (x, query) = (scratch + comptime!(rule.x(0)), scratch + comptime!(rule.query(0)));
        let seen = comptime!(rule.inputs(0));
        for at in range_stepped(unit, size * seen, UNITS) {
            let (t, i) = (at / seen, at % seen);
            let mut key = f32::new(1.0);
            let mut asked = f32::new(1.0);
            if i < n {
                key = token(k, k_start, begin + t, i);
                asked = token(q, q_start, begin + t, i);
            }
            out[x + at] = key;
            out[query + at] = asked;
        }
        plan(gates, out, scratch + comptime!(rule.plan()), gates_at, size, ends, rule);
        sync_storage();

        #[unroll]
        for i in 0..comptime!(rule.steps()) {
            let (step, l) = comptime!(rule.step(i));
            if comptime!(i == rule.depth) {
                // The loss: units take tokens.
                for t in range_stepped(unit, size, UNITS) {
                    let z = made_at + t * n;
                    let d = scratch + comptime!(rule.d(rule.depth - 1)) + t * n;
                    let mut delta = f32::new(0.0);
                    if comptime!(rule.thresholded()) {
                        delta = token(gates, gates_at, t, comptime!(rule.threshold()));
                    }
                    let mut rate = f32::new(1.0);
                    if comptime!(rule.norm) {
                        rate = standard(out, z, eps, n);
                    }
                    let mut squares = f32::new(0.0);
                    for i in 0..n {
                        let mut made = out[z + i];
                        if comptime!(rule.norm) {
                            let key = token(k, k_start, begin + t, i);
                            made = key + made * of_head(gain, own, i) + of_head(bias, own, i);
                        }
                        let r = made - token(v, v_start, begin + t, i);
                        squares += r * r;
                        out[d + i] = r;
                    }
                    let mut sum = f32::new(0.0);
                    let mut along = f32::new(0.0);
                    for i in 0..n {
                        let value = token(v, v_start, begin + t, i);
                        let mut u = of_loss(out[d + i], value, delta, squares, nu, exponent, clip, rule.loss);
                        if comptime!(rule.norm) {
                            u *= of_head(gain, own, i);
                            sum += u;
                            along += u * out[z + i];
                        }
                        out[d + i] = u;
                    }
                    if comptime!(rule.norm) {
                        let share = f32::new(comptime!(1.0 / rule.width as f32));
                        for i in 0..n {
                            out[d + i] = (out[d + i] - (sum + out[z + i] * along) * share) * rate;
                        }
                    }
                }
                sync_storage();
            }
            if comptime!(i == rule.steps() - rule.depth) {
                // Answers, before the matrices are written.
                for t in range_stepped(unit, size, UNITS) {
                    let z = made_at + t * n;
                    if comptime!(rule.norm && !rule.raw) {
                        standard(out, z, eps, n);
                    }
                    for i in 0..n {
                        let mut y = out[z + i];
                        if comptime!(rule.norm && !rule.raw) {
                            let query = token(q, q_start, begin + t, i);
                            y = query + y * of_head(gain, own, i) + of_head(bias, own, i);
                        }
                        let to = (head * time + begin + t) * n + i;
                        if comptime!(rule.apart) {
                            beside[to] = y;
                        } else {
                            out[to] = y;
                        }
                    }
                }
            }
            take(out, weights_at, scratch, head, heads, size, ends, step, l, rule);
            sync_storage();
        }
        begin += size;
    }
}
