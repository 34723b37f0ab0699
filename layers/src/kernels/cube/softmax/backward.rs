//! Weights are made again, from what the forward pass left:
//!
//! ```text
//! P = e^{S - L}      dS = P ∘ (dY Vᵀ - y · dy)      dQ = scale dS K      dK = scale dSᵀ Q      dV = Pᵀ dY
//! ```

use cubecl::prelude::*;

use super::Form;
use super::tile::{
    Four, HIDDEN, add, faded, four, lanes, product, read_row, read_shifts, read_tile, sees, write_row,
};

pub(super) mod stats {
    use super::*;

    /// Fills `stats: [b, h, t, 2]` with `L` and `y · dy`, and, where there is a sink, `sinks: [b, h, t, 1]` with its
    /// gradient from each query.
    #[cube(launch)]
    pub(in super::super) fn stats_kernel(
        y: &Tensor<f32>,
        dy: &Tensor<f32>,
        log_sum: &Tensor<f32>,
        sink: &Tensor<f32>,
        stats: &mut Tensor<f32>,
        sinks: &mut Tensor<f32>,
        #[comptime] form: Form,
    ) {
        let query = ABSOLUTE_POS_X as usize;
        let head = CUBE_POS_Y as usize;
        let time = y.shape(2);
        let b = head / y.shape(1);
        let h = head % y.shape(1);
        if query < time {
            let at = head * time + query;
            let from = b * dy.stride(0) + h * dy.stride(1) + query * dy.stride(2);
            // Added up as `dY Vᵀ` is: where a query sees one key, the difference is 0 and not a rounding.
            let mut products = Four::new(f32::new(0.0));
            let p = comptime!(form.p);
            #[unroll]
            for i in 0..p.div_ceil(4) {
                let y = four(y, at * p, i, f32::new(1.0), p);
                products += y * four(dy, from, i, f32::new(1.0), p);
            }
            let mean = lanes(products);
            stats[2 * at] = log_sum[at];
            stats[2 * at + 1] = mean;
            if comptime!(form.sunk) {
                sinks[at] = -f32::exp(sink[h * sink.stride(0)] - log_sum[at]) * mean;
            } else if at == 0 {
                sinks[0] = f32::new(0.0);
            }
        }
    }
}

pub(super) mod queries {
    use super::*;

    /// Fills `dq: [b, h, t, n]`: keys pass by queries, as forward.
    #[cube(launch)]
    #[allow(clippy::too_many_arguments, reason = "a kernel's bindings")]
    pub(in super::super) fn queries_kernel(
        q: &Tensor<f32>,
        k: &Tensor<f32>,
        v: &Tensor<f32>,
        forget: &Tensor<f32>,
        offsets: &Tensor<f32>,
        dy: &Tensor<f32>,
        stats: &Tensor<f32>,
        dq: &mut Tensor<f32>,
        scale: f32,
        cap: f32,
        cached: usize,
        window: usize,
        #[comptime] form: Form,
    ) {
        let n = comptime!(form.n);
        let p = comptime!(form.p);
        let rows = comptime!(form.rows);
        let tile = comptime!(form.tile);
        let (n4, p4) = comptime!((n.div_ceil(4), p.div_ceil(4)));
        let mut keys = Shared::<[Four]>::new_slice(comptime!(tile * n4));
        let mut values = Shared::<[Four]>::new_slice(comptime!(tile * p4));
        let mut gates = Shared::<[f32]>::new_slice(tile);
        let mut shifts = Shared::<[f32]>::new_slice(tile);

        let unit = UNIT_POS_X as usize;
        let head = CUBE_POS_Y as usize;
        let heads = q.shape(1);
        let time = q.shape(2);
        let total = k.shape(2);
        let b = head / heads;
        let h = head % heads;
        let kv = h / (heads / k.shape(1));
        let first = (time.div_ceil(rows) - 1 - CUBE_POS_X as usize) * rows;
        let query = first + unit;
        let here = query < time;
        let own = cached + query;
        let k_start = b * k.stride(0) + kv * k.stride(1);
        let v_start = b * v.stride(0) + kv * v.stride(1);
        let gate_start = b * forget.stride(0) + h * forget.stride(1);

        let mut q_row = Array::<Four>::new(n4);
        let mut dy_row = Array::<Four>::new(p4);
        let mut dq_row = Array::<Four>::new(n4);
        let q_start = b * q.stride(0) + h * q.stride(1) + query * q.stride(2);
        let dy_start = b * dy.stride(0) + h * dy.stride(1) + query * dy.stride(2);
        read_row(q, q_start, here, scale, &mut q_row, n);
        read_row(dy, dy_start, here, f32::new(1.0), &mut dy_row, p);
        #[unroll]
        for i in 0..n4 {
            dq_row[i] = Four::new(f32::new(0.0));
        }
        let mut log_sum = f32::new(0.0);
        let mut mean = f32::new(0.0);
        if here {
            log_sum = stats[2 * (head * time + query)];
            mean = stats[2 * (head * time + query) + 1];
        }

        let mut to = total;
        if comptime!(form.causal) {
            to = min(cached + min(first + rows, time), total);
        }
        let mut from = 0usize;
        if comptime!(form.windowed) {
            let seen = cached + first + 1;
            from = min(seen - min(seen, window), to);
        }
        let mut fade = f32::new(0.0);
        let mut carry = f32::new(0.0);
        if comptime!(form.forgets) {
            if here {
                fade = faded(forget, gate_start, cached + first, own);
            }
            carry -= faded(forget, gate_start, cached + first, to - 1);
        }

        for index in 0..(to - from).div_ceil(tile) {
            let last = to - 1 - index * tile;
            let count = min(last + 1 - from, tile);
            sync_cube();
            read_tile(k, k_start, last, count, f32::new(1.0), &mut keys, n, form, true);
            read_tile(v, v_start, last, count, f32::new(1.0), &mut values, p, form, true);
            read_shifts(
                forget,
                gate_start,
                offsets,
                b * offsets.stride(0),
                last,
                count,
                &mut gates,
                &mut shifts,
                form,
            );
            sync_cube();
            for row in 0..count {
                let mut score = product(&q_row, &keys, row, n);
                let mut slope = f32::new(1.0);
                if comptime!(form.capped) {
                    let bounded = f32::tanh(score / cap);
                    score = bounded * cap;
                    slope = f32::new(1.0) - bounded * bounded;
                }
                if comptime!(form.shifted) {
                    score += shifts[row];
                }
                if comptime!(form.forgets) {
                    score += fade + carry;
                    carry += gates[row];
                }
                let seen = here && sees(own, last - row, window, form.causal, form.windowed);
                let weight = f32::exp(select(seen, score - log_sum, f32::new(HIDDEN)));
                let d_weight = product(&dy_row, &values, row, p);
                add(&mut dq_row, weight * (d_weight - mean) * slope, &keys, row, n);
            }
        }
        if here {
            write_row(&dq_row, dq, (head * time + query) * n, scale, n);
        }
    }
}

pub(super) mod keys {
    use super::*;

    /// Fills `out` with the gradient of the keys, `[b, h_kv, T, n]`, and, where there are gates, behind each row the
    /// gradients of what the scores of its key lose to them, one per head that shares it; or with that of the values,
    /// `[b, h_kv, T, p]`. Queries pass by keys, the first ones first.
    #[cube(launch)]
    #[allow(clippy::too_many_arguments, reason = "a kernel's bindings")]
    pub(in super::super) fn keys_kernel(
        q: &Tensor<f32>,
        k: &Tensor<f32>,
        v: &Tensor<f32>,
        forget: &Tensor<f32>,
        offsets: &Tensor<f32>,
        dy: &Tensor<f32>,
        stats: &Tensor<f32>,
        out: &mut Tensor<f32>,
        scale: f32,
        cap: f32,
        cached: usize,
        window: usize,
        #[comptime] form: Form,
        #[comptime] of_keys: bool,
    ) {
        let n = comptime!(form.n);
        let p = comptime!(form.p);
        let rows = comptime!(form.rows);
        let tile = comptime!(form.tile);
        let (n4, p4) = comptime!((n.div_ceil(4), p.div_ceil(4)));
        let size = comptime!(if of_keys { n } else { p });
        let mut queries = Shared::<[Four]>::new_slice(comptime!(tile * n4));
        let mut grads = Shared::<[Four]>::new_slice(comptime!(tile * p4));
        let mut gates = Shared::<[f32]>::new_slice(tile);
        let mut log_sums = Shared::<[f32]>::new_slice(tile);
        let mut means = Shared::<[f32]>::new_slice(tile);

        let unit = UNIT_POS_X as usize;
        let kv = CUBE_POS_Y as usize;
        let shared_heads = k.shape(1);
        let heads = q.shape(1);
        let group = heads / shared_heads;
        let time = q.shape(2);
        let total = k.shape(2);
        let b = kv / shared_heads;
        let first = CUBE_POS_X as usize * rows;
        let key = first + unit;
        let here = key < total;

        let mut k_row = Array::<Four>::new(n4);
        let mut v_row = Array::<Four>::new(p4);
        let mut sum_row = Array::<Four>::new(comptime!(size.div_ceil(4)));
        let k_start = b * k.stride(0) + (kv % shared_heads) * k.stride(1) + key * k.stride(2);
        let v_start = b * v.stride(0) + (kv % shared_heads) * v.stride(1) + key * v.stride(2);
        read_row(k, k_start, here, f32::new(1.0), &mut k_row, n);
        if of_keys {
            read_row(v, v_start, here, f32::new(1.0), &mut v_row, p);
        }
        #[unroll]
        for i in 0..comptime!(size.div_ceil(4)) {
            sum_row[i] = Four::new(f32::new(0.0));
        }
        let mut offset = f32::new(0.0);
        if comptime!(form.shifted) {
            if here {
                offset = offsets[b * offsets.stride(0) + key * offsets.stride(3)];
            }
        }

        // Queries that see any key of the cube.
        let mut from = 0usize;
        if comptime!(form.causal) {
            from = min(first - min(first, cached), time);
        }
        let mut to = time;
        if comptime!(form.windowed) {
            let end = min(first + rows, total) - 1 + window;
            to = min(end - min(end, cached), time);
        }
        to = max(to, from);
        let width = out.shape(3);
        let out_start = (kv * total + key) * width;

        for member in 0..group {
            let h = (kv % shared_heads) * group + member;
            let q_start = b * q.stride(0) + h * q.stride(1);
            let dy_start = b * dy.stride(0) + h * dy.stride(1);
            let stats_start = 2 * (b * heads + h) * time;
            let gate_start = b * forget.stride(0) + h * forget.stride(1);
            // Of a query, `Σ log f` from the first one on; of the key, up to that query.
            let mut carry = f32::new(0.0);
            let mut fade = offset;
            if comptime!(form.forgets) {
                if here {
                    let start = cached + from;
                    fade += faded(forget, gate_start, min(key, start), start)
                        - faded(forget, gate_start, start, max(key, start));
                }
            }
            let mut lost = f32::new(0.0);
            for index in 0..(to - from).div_ceil(tile) {
                let start = from + index * tile;
                let count = min(to - start, tile);
                sync_cube();
                read_tile(q, q_start, start, count, scale, &mut queries, n, form, false);
                read_tile(dy, dy_start, start, count, f32::new(1.0), &mut grads, p, form, false);
                if unit < count {
                    let at = stats_start + 2 * (start + unit);
                    log_sums[unit] = stats[at];
                    means[unit] = stats[at + 1];
                    if comptime!(form.forgets) {
                        // Of the next query, which passes it.
                        let next = min(cached + start + unit + 1, total - 1);
                        gates[unit] = forget[gate_start + next * forget.stride(2)];
                    }
                }
                sync_cube();
                for row in 0..count {
                    let mut score = product(&k_row, &queries, row, n);
                    let mut slope = f32::new(1.0);
                    if comptime!(form.capped) {
                        let bounded = f32::tanh(score / cap);
                        score = bounded * cap;
                        slope = f32::new(1.0) - bounded * bounded;
                    }
                    score += fade;
                    if comptime!(form.forgets) {
                        score += carry;
                        carry += gates[row];
                    }
                    let own = cached + start + row;
                    let seen = here && sees(own, key, window, form.causal, form.windowed);
                    let weight = f32::exp(select(seen, score - log_sums[row], f32::new(HIDDEN)));
                    if of_keys {
                        let d_score = weight * (product(&v_row, &grads, row, p) - means[row]);
                        lost -= d_score;
                        add(&mut sum_row, d_score * slope, &queries, row, n);
                    } else {
                        add(&mut sum_row, weight, &grads, row, p);
                    }
                }
            }
            if comptime!(form.forgets && of_keys) {
                if here {
                    out[out_start + n + member] = lost;
                }
            }
        }
        if here {
            write_row(&sum_row, out, out_start, f32::new(1.0), size);
        }
    }
}

pub(super) mod gates {
    use super::*;

    /// Fills `out: [b, h, T, 1]` with sums over all tokens from each on: `log f_s` is in the sums of all of them. What
    /// scores of a key lose to gates stands behind its gradient, `dk: [b, h_kv, T, n + group]`; what those of a query
    /// get is 0 but for the sink's share.
    #[cube(launch)]
    pub(in super::super) fn gates_kernel(
        dk: &Tensor<f32>,
        sinks: &Tensor<f32>,
        out: &mut Tensor<f32>,
        cached: usize,
        n: usize,
        group: usize,
        #[comptime] units: usize,
        #[comptime] sunk: bool,
    ) {
        let mut sums = Shared::<[f32]>::new_slice(units);
        let unit = UNIT_POS_X as usize;
        let head = CUBE_POS_X as usize;
        let total = out.shape(2);
        let time = total - cached;
        let width = dk.shape(3);
        let start = (head / group) * total * width + n + head % group;
        let size = total.div_ceil(units);
        let from = min(unit * size, total);
        let to = min(from + size, total);
        let mut sum = f32::new(0.0);
        for s in from..to {
            sum += dk[start + s * width];
            if sunk {
                if s >= cached {
                    sum -= sinks[head * time + s - cached];
                }
            }
        }
        sums[unit] = sum;
        sync_cube();
        let mut later = f32::new(0.0);
        for i in unit + 1..units {
            later += sums[i];
        }
        for i in from..to {
            let s = to - 1 - (i - from);
            later += dk[start + s * width];
            if sunk {
                if s >= cached {
                    later -= sinks[head * time + s - cached];
                }
            }
            out[head * total + s] = later;
        }
    }
}
