//! All chunks of a head.

#![allow(clippy::collapsible_if, reason = "the outer one is decided when a kernel is compiled")]

use cubecl::prelude::*;

use super::chunk::{matrix, multiply, of_loss, plan, standard, store_made};
use super::rule::{ROWS, Rule, UNITS};
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
    let (n, tokens, wide) = comptime!((rule.width, rule.tokens, rule.wide()));
    let depth = comptime!(rule.depth);
    let rows = comptime!(ROWS.min(rule.tokens));
    let unit = UNIT_POS as usize;
    let head = CUBE_POS_X as usize;
    let heads = q.shape(0) * q.shape(1);
    let time = q.shape(2);
    let own = head % q.shape(1);
    let scratch = scratch_at + head * comptime!(rule.scratch());
    let plan_at = scratch + comptime!(rule.plan());
    let scores_at = scratch + comptime!(rule.scores());
    let made_at = scratch + comptime!(rule.slope(rule.depth - 1));
    let (q_start, k_start, v_start) = (head_start(q, head), head_start(k, head), head_start(v, head));
    let gates_start = head_start(gates, head);
    let mut sums = Array::<f32>::new(ROWS);
    let mut parts = Array::<f32>::new(ROWS);

    #[unroll]
    for slot in 0..comptime!(rule.slots()) {
        #[unroll]
        for l in 0..depth {
            let to = matrix(weights_at, head, heads, slot, l, rule);
            if comptime!(slot >= rule.filled) {
                for i in range_stepped(unit, comptime!(rule.size(l)), UNITS) {
                    out[to + i] = 0.0;
                }
            }
            if comptime!(slot < rule.filled && rule.carried) {
                let from = matrix(0usize, head, heads, slot, l, rule);
                for i in range_stepped(unit, comptime!(rule.size(l)), UNITS) {
                    out[to + i] = beside[from + i];
                }
            }
        }
    }

    let mut begin = 0usize;
    while begin < time {
        let place = (phase + begin) % chunk;
        let size = min(chunk - place, time - begin);
        let blocks = size.div_ceil(rows);
        let gates_at = gates_start + begin * gates.stride(2);
        let mut ends = place + size == chunk;
        if comptime!(rule.ragged) {
            let valid = comptime!(rule.valid()) * gates.stride(3);
            ends = ends && gates[gates_at + (size - 1) * gates.stride(2) + valid] > f32::new(0.5);
        }

        // What the first layer sees, and the plan.
        let (x, query) = (scratch + comptime!(rule.x(0)), scratch + comptime!(rule.query(0)));
        let seen = comptime!(rule.inputs(0));
        for at in range_stepped(unit, size * n, UNITS) {
            let (t, i) = (at / n, at % n);
            let to = t * seen + i;
            out[x + to] = k[k_start + (begin + t) * k.stride(2) + i * k.stride(3)];
            out[query + to] = q[q_start + (begin + t) * q.stride(2) + i * q.stride(3)];
            if comptime!(rule.offset) {
                if i == 0 {
                    out[x + t * seen + n] = 1.0;
                    out[query + t * seen + n] = 1.0;
                }
            }
        }
        plan(gates, out, plan_at, gates_at, size, ends, rule);
        sync_storage();

        // Up: what layers make of keys.
        #[unroll]
        for l in 0..depth {
            let (inputs, outputs) = comptime!((rule.inputs(l), rule.outputs(l)));
            let anchor = matrix(weights_at, head, heads, comptime!(rule.anchor()), l, rule);
            let x = scratch + comptime!(rule.x(l));
            let slopes = scratch + comptime!(rule.slope(l));
            let to = scratch + comptime!(if l + 1 == rule.depth { rule.slope(l) } else { rule.x(l + 1) });
            for task in range_stepped(unit, blocks * outputs, UNITS) {
                let (t, j) = (task / outputs * rows, task % outputs);
                let last = size - 1 - t;
                let row = x + t * inputs;
                multiply(
                    out,
                    &mut sums,
                    row,
                    inputs,
                    1usize,
                    last,
                    anchor + j,
                    outputs,
                    0usize,
                    inputs,
                    false,
                    rows,
                );
                #[unroll]
                for r in 0..rows {
                    if t + r < size {
                        store_made(out, sums[r], t + r, j, to, slopes, true, l, rule);
                    }
                }
            }
            sync_storage();
        }

        // The loss: units take tokens.
        for t in range_stepped(unit, size, UNITS) {
            let z = made_at + t * n;
            let d = scratch + comptime!(rule.d(rule.depth - 1)) + t * n;
            let key = scratch + comptime!(rule.x(0)) + t * comptime!(rule.inputs(0));
            let value = v_start + (begin + t) * v.stride(2);
            let mut delta = f32::new(0.0);
            if comptime!(rule.thresholded()) {
                delta = gates[gates_at + t * gates.stride(2) + comptime!(rule.threshold()) * gates.stride(3)];
            }
            let mut mean = f32::new(0.0);
            let mut rate = f32::new(1.0);
            if comptime!(rule.norm) {
                let (found, by) = standard(out, z, eps, n);
                mean = found;
                rate = by;
            }
            let mut squares = f32::new(0.0);
            for i in 0..n {
                let mut r = out[z + i] - v[value + i * v.stride(3)];
                if comptime!(rule.norm) {
                    r = out[key + i]
                        + (out[z + i] - mean) * rate * gain[own * gain.stride(0) + i * gain.stride(1)]
                        + bias[own * bias.stride(0) + i * bias.stride(1)]
                        - v[value + i * v.stride(3)];
                }
                squares += r * r;
                out[d + i] = r;
            }
            let mut sum = f32::new(0.0);
            let mut along = f32::new(0.0);
            for i in 0..n {
                let mut u = of_loss(
                    out[d + i],
                    v[value + i * v.stride(3)],
                    delta,
                    squares,
                    nu,
                    exponent,
                    clip,
                    rule.loss,
                );
                if comptime!(rule.norm) {
                    u *= gain[own * gain.stride(0) + i * gain.stride(1)];
                    sum += u;
                    along += u * (out[z + i] - mean) * rate;
                }
                out[d + i] = u;
            }
            if comptime!(rule.norm) {
                let share = f32::new(comptime!(1.0 / rule.width as f32));
                sum *= share;
                along *= share;
                for i in 0..n {
                    out[d + i] = (out[d + i] - sum - (out[z + i] - mean) * rate * along) * rate;
                }
            }
        }
        sync_storage();

        // Down: gradients of what layers make.
        #[unroll]
        for back in 1..depth {
            let l = comptime!(rule.depth - back);
            let (outputs, hidden) = comptime!((rule.outputs(l), rule.hidden));
            let anchor = matrix(weights_at, head, heads, comptime!(rule.anchor()), l, rule);
            let d = scratch + comptime!(rule.d(l));
            let (slopes, to) = (scratch + comptime!(rule.slope(l - 1)), scratch + comptime!(rule.d(l - 1)));
            for task in range_stepped(unit, blocks * hidden, UNITS) {
                let (t, i) = (task / hidden * rows, task % hidden);
                let last = size - 1 - t;
                let (row, from) = (d + t * outputs, anchor + i * outputs);
                multiply(
                    out, &mut sums, row, outputs, 1usize, last, from, 1usize, 0usize, outputs, false, rows,
                );
                #[unroll]
                for r in 0..rows {
                    if t + r < size {
                        let at = (t + r) * hidden + i;
                        out[to + at] = sums[r] * out[slopes + at];
                    }
                }
            }
            sync_storage();
        }

        // Answers.
        #[unroll]
        for l in 0..depth {
            let (inputs, outputs) = comptime!((rule.inputs(l), rule.outputs(l)));
            let (x, d) = (scratch + comptime!(rule.x(l)), scratch + comptime!(rule.d(l)));
            let query = scratch + comptime!(rule.query(l));
            for task in range_stepped(unit, blocks * size, UNITS) {
                let (t, i) = (task / size * rows, task % size);
                let last = size - 1 - t;
                let (row, from) = (query + t * inputs, x + i * inputs);
                multiply(
                    out, &mut sums, row, inputs, 1usize, last, from, 1usize, 0usize, inputs, false, rows,
                );
                #[unroll]
                for r in 0..rows {
                    if t + r < size {
                        // A token does not read what comes after it.
                        let seen = i <= t + r;
                        let mut score = f32::new(0.0);
                        if seen {
                            score = -(sums[r] * out[plan_at + (t + r) * wide + i]);
                        }
                        out[scores_at + (t + r) * tokens + i] = score;
                    }
                }
            }
            sync_storage();
            let to = scratch + comptime!(if l + 1 == rule.depth { rule.slope(l) } else { rule.query(l + 1) });
            for task in range_stepped(unit, blocks * outputs, UNITS) {
                let (t, j) = (task / outputs * rows, task % outputs);
                let last = size - 1 - t;
                let (scores, row) = (scores_at + t * tokens, query + t * inputs);
                multiply(
                    out,
                    &mut sums,
                    scores,
                    tokens,
                    1usize,
                    last,
                    d + j,
                    outputs,
                    0usize,
                    size,
                    false,
                    rows,
                );
                #[unroll]
                for s in 0..comptime!(rule.carriers()) {
                    let slot = comptime!(if s == 0 { 0 } else { rule.last() });
                    let from = matrix(weights_at, head, heads, slot, l, rule);
                    multiply(
                        out,
                        &mut parts,
                        row,
                        inputs,
                        1usize,
                        last,
                        from + j,
                        outputs,
                        0usize,
                        inputs,
                        false,
                        rows,
                    );
                    #[unroll]
                    for r in 0..rows {
                        sums[r] +=
                            parts[r] * out[plan_at + min(t + r, size - 1) * wide + comptime!(tokens + s)];
                    }
                }
                #[unroll]
                for r in 0..rows {
                    if t + r < size {
                        store_made(out, sums[r], t + r, j, to, 0usize, false, l, rule);
                    }
                }
            }
            sync_storage();
        }
        let answers = (head * time + begin) * n;
        for t in range_stepped(unit, size, UNITS) {
            let z = made_at + t * n;
            let from = q_start + (begin + t) * q.stride(2);
            let mut mean = f32::new(0.0);
            let mut rate = f32::new(1.0);
            if comptime!(rule.norm && !rule.raw) {
                let (found, by) = standard(out, z, eps, n);
                mean = found;
                rate = by;
            }
            for i in 0..n {
                let mut y = out[z + i];
                if comptime!(rule.norm && !rule.raw) {
                    y = q[from + i * q.stride(3)]
                        + (y - mean) * rate * gain[own * gain.stride(0) + i * gain.stride(1)]
                        + bias[own * bias.stride(0) + i * bias.stride(1)];
                }
                if comptime!(rule.apart) {
                    beside[answers + t * n + i] = y;
                } else {
                    out[answers + t * n + i] = y;
                }
            }
        }

        // Writes.
        #[unroll]
        for l in 0..depth {
            let (inputs, outputs) = comptime!((rule.inputs(l), rule.outputs(l)));
            let (x, d) = (scratch + comptime!(rule.x(l)), scratch + comptime!(rule.d(l)));
            let running = matrix(weights_at, head, heads, 0usize, l, rule);
            let anchor = matrix(weights_at, head, heads, comptime!(rule.anchor()), l, rule);
            let of_a = plan_at + comptime!(tokens * wide);
            let of_s = of_a + wide;
            let keep = out[of_a + tokens];
            for task in range_stepped(unit, comptime!(inputs.div_ceil(ROWS) * outputs), UNITS) {
                let (i, j) = (task / outputs * ROWS, task % outputs);
                let last = inputs - 1 - i;
                multiply(out, &mut sums, x + i, 1usize, inputs, last, d + j, outputs, of_a, size, true, ROWS);
                if comptime!(rule.momentum) {
                    multiply(
                        out,
                        &mut parts,
                        x + i,
                        1usize,
                        inputs,
                        last,
                        d + j,
                        outputs,
                        of_s,
                        size,
                        true,
                        ROWS,
                    );
                }
                #[unroll]
                for r in 0..ROWS {
                    if i + r < inputs {
                        let at = (i + r) * outputs + j;
                        let mut next = keep * out[running + at] - sums[r];
                        if comptime!(rule.momentum) {
                            let momentum = matrix(weights_at, head, heads, comptime!(rule.last()), l, rule);
                            let before = out[momentum + at];
                            next += out[of_a + comptime!(tokens + 1)] * before;
                            out[momentum + at] = out[of_s + comptime!(tokens + 1)] * before - parts[r];
                        }
                        out[running + at] = next;
                        if comptime!(!rule.batched) {
                            if ends {
                                out[anchor + at] = next;
                            }
                        }
                    }
                }
            }
        }
        sync_storage();
        begin += size;
    }
}
