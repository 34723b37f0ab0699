//! Keys pass by queries, the last ones first.

use cubecl::prelude::*;

use super::Form;
use super::tile::{
    FLOOR, Four, HIDDEN, add, faded, product, read_row, read_shifts, read_tile, sees, write_row,
};

/// Keys whose weights are made together.
const TOGETHER: usize = 8;

#[cube(launch)]
#[allow(clippy::too_many_arguments, reason = "a kernel's bindings")]
pub(super) fn forward_kernel(
    q: &Tensor<f32>,
    k: &Tensor<f32>,
    v: &Tensor<f32>,
    sink: &Tensor<f32>,
    forget: &Tensor<f32>,
    offsets: &Tensor<f32>,
    y: &mut Tensor<f32>,
    log_sum: &mut Tensor<f32>,
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
    let together = comptime!(TOGETHER);
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
    let q_start = b * q.stride(0) + h * q.stride(1) + query * q.stride(2);
    read_row(q, q_start, here, scale, &mut q_row, n);
    let mut sum_row = Array::<Four>::new(p4);
    #[unroll]
    for i in 0..p4 {
        sum_row[i] = Four::new(f32::new(0.0));
    }
    let mut top = f32::new(FLOOR);
    let mut sum = f32::new(0.0);
    if comptime!(form.sunk) {
        top = sink[h * sink.stride(0)];
        sum = f32::new(1.0);
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
    // Of a query, `Σ log f` from the cube's first query on; of the tile's last key, up to that query.
    let mut fade = f32::new(0.0);
    let mut carry = f32::new(0.0);
    if comptime!(form.forgets) {
        if here {
            fade = faded(forget, gate_start, cached + first, own);
        }
        carry -= faded(forget, gate_start, cached + first, to - 1);
    }

    for index in 0..(to - from).div_ceil(tile) {
        // From the last key down.
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
        for part in 0..comptime!(tile / together) {
            let mut weights = Array::<f32>::new(together);
            let before = top;
            #[unroll]
            for j in 0..together {
                let row = part * together + j;
                let mut score = product(&q_row, &keys, row, n);
                if comptime!(form.capped) {
                    score = f32::tanh(score / cap) * cap;
                }
                if comptime!(form.shifted) {
                    score += shifts[row];
                }
                if comptime!(form.forgets) {
                    score += fade + carry;
                    carry += gates[row];
                }
                let seen =
                    row < count && sees(own, last - min(row, last), window, form.causal, form.windowed);
                let score = select(seen, score, f32::new(HIDDEN));
                weights[j] = score;
                top = max(top, score);
            }
            let factor = f32::exp(before - top);
            sum *= factor;
            #[unroll]
            for i in 0..p4 {
                sum_row[i] *= Four::new(factor);
            }
            #[unroll]
            for j in 0..together {
                let weight = f32::exp(weights[j] - top);
                sum += weight;
                add(&mut sum_row, weight, &values, part * together + j, p);
            }
        }
    }
    if here {
        let at = head * time + query;
        let inverse = select(sum > f32::new(0.0), f32::new(1.0) / sum, f32::new(0.0));
        write_row(&sum_row, y, at * p, inverse, p);
        log_sum[at] = top + f32::ln(max(sum, f32::new(1e-30)));
    }
}
