//! A few queries, as in decoding: cubes share the keys of each. In a tile of keys a unit first takes a key, then a
//! channel of the values, so rows are read whole and only weights pass between units. Where there are more parts than
//! one, a second launch joins them.
//!
//! Floor: memory, the cache is read once per query and head, most of it from the device's own cache where heads share
//! keys. Gates after a part are summed anew by each of its cubes.

use cubecl::prelude::*;

use super::Form;
use super::tile::{FLOOR, Four, HIDDEN, four, lanes, sees};

pub(super) mod part {
    use super::*;

    /// Fills `y: [b, h, t, parts, p]` with sums over `size` keys each, and `stats: [b, h, t, parts, 2]` with largest
    /// scores and sums of weights; or, where one part is the `whole`, `y` with the outputs and `stats: [b, h, t]` with
    /// logarithms of sums.
    #[cube(launch)]
    #[allow(clippy::too_many_arguments, reason = "a kernel's bindings")]
    pub(in super::super) fn part_kernel(
        q: &Tensor<f32>,
        k: &Tensor<f32>,
        v: &Tensor<f32>,
        sink: &Tensor<f32>,
        forget: &Tensor<f32>,
        offsets: &Tensor<f32>,
        y: &mut Tensor<f32>,
        stats: &mut Tensor<f32>,
        scale: f32,
        cap: f32,
        cached: usize,
        window: usize,
        size: usize,
        #[comptime] form: Form,
        #[comptime] whole: bool,
    ) {
        let n = comptime!(form.n);
        let p = comptime!(form.p);
        let rows = comptime!(form.rows);
        let n4 = comptime!(n.div_ceil(4));
        let columns = comptime!(p.div_ceil(rows));
        let mut q_row = Shared::<[Four]>::new_slice(n4);
        let mut scores = Shared::<[f32]>::new_slice(rows);
        let mut weights = Shared::<[f32]>::new_slice(rows);
        let mut gates = Shared::<[f32]>::new_slice(rows);

        let unit = UNIT_POS_X as usize;
        let part = CUBE_POS_X as usize;
        let query = CUBE_POS_Y as usize;
        let head = CUBE_POS_Z as usize;
        let heads = q.shape(1);
        let time = q.shape(2);
        let total = k.shape(2);
        let b = head / heads;
        let h = head % heads;
        let kv = h / (heads / k.shape(1));
        let own = cached + query;
        let k_start = b * k.stride(0) + kv * k.stride(1);
        let v_start = b * v.stride(0) + kv * v.stride(1);
        let gate_start = b * forget.stride(0) + h * forget.stride(1);
        let q_start = b * q.stride(0) + h * q.stride(1) + query * q.stride(2);
        for i in range_stepped(unit, n4, rows) {
            q_row[i] = four(q, q_start, i, scale, n);
        }

        let mut end = total;
        if comptime!(form.causal) {
            end = min(own + 1, total);
        }
        let mut start = 0usize;
        if comptime!(form.windowed) {
            start = min(own + 1 - min(own + 1, window), end);
        }
        let from = min(start + part * size, end);
        let to = min(from + size, end);

        let mut top = f32::new(FLOOR);
        let mut sum = f32::new(0.0);
        if comptime!(form.sunk) {
            if part == 0 {
                top = sink[h * sink.stride(0)];
                sum = f32::new(1.0);
            }
        }
        let mut sums = Array::<f32>::new(columns);
        #[unroll]
        for i in 0..columns {
            sums[i] = f32::new(0.0);
        }

        // `Σ log f` from behind the last key up to the query, or, where the key is later, minus that between them.
        let mut carry = f32::new(0.0);
        if comptime!(form.forgets) {
            let last = max(to, 1) - 1;
            let mut gate = f32::new(0.0);
            for s in range_stepped(min(last, own) + 1 + unit, max(last, own) + 1, rows) {
                gate += forget[gate_start + s * forget.stride(2)];
            }
            gates[unit] = gate;
            sync_cube();
            for i in 0..rows {
                carry += gates[i];
            }
            carry = select(last > own, -carry, carry);
        }

        for index in 0..(to - from).div_ceil(rows) {
            let last = to - 1 - index * rows;
            let count = min(last + 1 - from, rows);
            sync_cube();
            let here = unit < count;
            let key = last - min(unit, last);
            if comptime!(form.forgets) {
                gates[unit] = f32::new(0.0);
                if here {
                    gates[unit] = forget[gate_start + key * forget.stride(2)];
                }
                sync_cube();
            }
            let mut score = f32::new(HIDDEN);
            if here {
                let mut products = Four::new(f32::new(0.0));
                #[unroll]
                for i in 0..n4 {
                    let start = k_start + key * k.stride(2);
                    let some = four(k, start, i, f32::new(1.0), n);
                    products += some * q_row[i];
                }
                let mut found = lanes(products);
                if comptime!(form.capped) {
                    found = f32::tanh(found / cap) * cap;
                }
                if comptime!(form.shifted) {
                    found += offsets[b * offsets.stride(0) + key * offsets.stride(3)];
                }
                if comptime!(form.forgets) {
                    let mut fade = carry;
                    for i in 0..unit {
                        fade += gates[i];
                    }
                    found += fade;
                }
                if sees(own, key, window, form.causal, form.windowed) {
                    score = found;
                }
            }
            scores[unit] = score;
            sync_cube();
            let before = top;
            for i in 0..rows {
                top = max(top, scores[i]);
                if comptime!(form.forgets) {
                    carry += gates[i];
                }
            }
            weights[unit] = f32::exp(score - top);
            sync_cube();
            let factor = f32::exp(before - top);
            sum *= factor;
            for i in 0..rows {
                sum += weights[i];
            }
            #[unroll]
            for column in 0..columns {
                let c = column * rows + unit;
                let mut found = sums[column] * factor;
                if c < p {
                    let mut at = v_start + last * v.stride(2) + c * v.stride(3);
                    for i in 0..count {
                        found += weights[i] * v[at];
                        at -= min(v.stride(2), at);
                    }
                }
                sums[column] = found;
            }
        }

        let at = (head * time + query) * (CUBE_COUNT_X as usize) + part;
        let mut factor = f32::new(1.0);
        if whole {
            factor = select(sum > f32::new(0.0), f32::new(1.0) / sum, f32::new(0.0));
        }
        #[unroll]
        for column in 0..columns {
            let c = column * rows + unit;
            if c < p {
                y[at * p + c] = sums[column] * factor;
            }
        }
        if unit == 0 {
            if whole {
                stats[at] = top + f32::ln(max(sum, f32::new(1e-30)));
            } else {
                stats[2 * at] = top;
                stats[2 * at + 1] = sum;
            }
        }
    }
}

pub(super) mod join {
    use super::*;

    /// Fills `y: [b, h, t, p]` and `log_sum: [b, h, t]` from what [`part`](super::part) left of `parts`.
    #[cube(launch)]
    pub(in super::super) fn join_kernel(
        sums: &Tensor<f32>,
        stats: &Tensor<f32>,
        y: &mut Tensor<f32>,
        log_sum: &mut Tensor<f32>,
        parts: usize,
    ) {
        let c = ABSOLUTE_POS_X as usize;
        let p = y.shape(3);
        let row = CUBE_POS_Z as usize * y.shape(2) + CUBE_POS_Y as usize;
        if c < p {
            let mut top = f32::new(FLOOR);
            for part in 0..parts {
                top = max(top, stats[2 * (row * parts + part)]);
            }
            let mut sum = f32::new(0.0);
            let mut found = f32::new(0.0);
            for part in 0..parts {
                let at = row * parts + part;
                let factor = f32::exp(stats[2 * at] - top);
                sum += factor * stats[2 * at + 1];
                found += factor * sums[at * p + c];
            }
            y[row * p + c] = select(sum > f32::new(0.0), found / sum, f32::new(0.0));
            if c == 0 {
                log_sum[row] = top + f32::ln(max(sum, f32::new(1e-30)));
            }
        }
    }
}
