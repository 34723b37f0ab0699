//! Keys pass by queries, the last ones first.

use cubecl::prelude::*;

use super::Form;
use super::tile::{Four, HIDDEN, add, faded, four, product, read_row, sees, write_row};

/// Keys whose weights are made together.
const TOGETHER: usize = 8;

/// No largest score counts as less, so that the weight of what is hidden is 0 also where nothing is seen.
const FLOOR: f32 = -1e29;

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
        for place in range_stepped(unit, comptime!(tile * n4), rows) {
            let row = place / n4;
            let mut some = Four::new(f32::new(0.0));
            if row < count {
                let start = k_start + (last - row) * k.stride(2);
                some = four(k, start, place % n4, f32::new(1.0), n, comptime!(n.is_multiple_of(4)));
            }
            keys[place] = some;
        }
        for place in range_stepped(unit, comptime!(tile * p4), rows) {
            let row = place / p4;
            let mut some = Four::new(f32::new(0.0));
            if row < count {
                let start = v_start + (last - row) * v.stride(2);
                some = four(v, start, place % p4, f32::new(1.0), p, comptime!(p.is_multiple_of(4)));
            }
            values[place] = some;
        }
        if comptime!(form.forgets || form.shifted) {
            if unit < tile {
                let mut shift = f32::new(0.0);
                let mut gate = f32::new(0.0);
                if unit < count {
                    if comptime!(form.shifted) {
                        shift = offsets[b * offsets.stride(0) + (last - unit) * offsets.stride(3)];
                    }
                    if comptime!(form.forgets) {
                        gate = forget[gate_start + (last - unit) * forget.stride(2)];
                    }
                }
                shifts[unit] = shift;
                gates[unit] = gate;
            }
        }
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
