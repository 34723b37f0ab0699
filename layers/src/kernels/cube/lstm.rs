//! [`lstm`](crate::kernels::lstm): one cube for each row of the batch walks over all tokens, with the state in shared
//! memory; its [`STRIPES`] rows of units share the sums over the units before.
//!
//! Floor: latency. A token is `8 n²` operations, of which a cube's units do 512 at a time, and three barriers; `U` is read
//! once per token and row of the batch, which the device's own caches must bear: `16 n²` bytes. In exchange a sequence
//! is one launch, where tensor operations are about fifteen per token.

use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::buffer::{dims, empty};
use super::functions::{bounded, sigmoid};
use crate::kernels::lstm::{Options, Passes, Read, turned};

/// Most units of a cell: states and gates have to fit shared memory.
const MOST: usize = 512;

/// Cells that a cube's units take at a time.
const CELLS: usize = 64;

/// Units that share a cell, one per gate.
const STRIPES: usize = 4;

/// Whether the kernel can run these: `p: [b, t, 4 n]`.
pub(in crate::kernels) fn gates(p: &burn::tensor::Tensor<3>, n: usize) -> bool {
    n <= MOST && super::fits(p, p.dims()[0])
}

fn grid(batch: usize) -> (CubeCount, CubeDim) {
    (CubeCount::Static(1, batch as u32, 1), CubeDim::new_2d(CELLS as u32, STRIPES as u32))
}

impl Passes for CubeBackend {
    fn forward(read: &Read<Self>, p: &CubeTensor, kept: bool) -> (CubeTensor, Option<CubeTensor>) {
        let Read { weight, h, c, lengths, options, .. } = read;
        let Options { ragged, reversed, .. } = *options;
        let ([b, _, t, _], [.., n]) = (dims(p), dims(h));
        let states = empty(p, &[2, b, t, n]);
        // A binding has to be there even where nothing is kept.
        let gates = empty(p, &if kept { [b, 1, t, 4 * n] } else { [1; 4] });
        let (cubes, units) = grid(b);
        forward::forward_kernel::launch(
            &p.client,
            cubes,
            units,
            p.clone().into_tensor_arg(),
            weight.clone().into_tensor_arg(),
            h.clone().into_tensor_arg(),
            c.clone().into_tensor_arg(),
            lengths.clone().into_tensor_arg(),
            states.clone().into_tensor_arg(),
            gates.clone().into_tensor_arg(),
            n,
            ragged,
            reversed,
            kept,
        );
        (states, kept.then_some(gates))
    }

    fn backward(
        read: &Read<Self>,
        gates: &CubeTensor,
        states: &CubeTensor,
        dy: &CubeTensor,
    ) -> [CubeTensor; 3] {
        let Read { weight, c, lengths, options, .. } = read;
        let Options { ragged, reversed, .. } = *options;
        let [_, b, t, n] = dims(states);
        let dp = empty(states, &[b, 1, t, 4 * n]);
        let [dh, dc] = [(); 2].map(|()| empty(states, &[b, 1, 1, n]));
        // Units side by side then read numbers side by side.
        let weight = into_contiguous(turned::<Self>(weight.clone()));
        let (cubes, units) = grid(b);
        backward::backward_kernel::launch(
            &states.client,
            cubes,
            units,
            gates.clone().into_tensor_arg(),
            weight.into_tensor_arg(),
            c.clone().into_tensor_arg(),
            lengths.clone().into_tensor_arg(),
            states.clone().into_tensor_arg(),
            dy.clone().into_tensor_arg(),
            dp.clone().into_tensor_arg(),
            dh.clone().into_tensor_arg(),
            dc.clone().into_tensor_arg(),
            n,
            ragged,
            reversed,
        );
        [dp, dh, dc]
    }
}

mod forward {
    use super::*;

    #[cube(launch)]
    #[allow(clippy::too_many_arguments, reason = "a kernel's bindings")]
    pub(super) fn forward_kernel(
        p: &Tensor<f32>,
        weight: &Tensor<f32>,
        start_h: &Tensor<f32>,
        start_c: &Tensor<f32>,
        lengths: &Tensor<f32>,
        states: &mut Tensor<f32>,
        kept_gates: &mut Tensor<f32>,
        #[comptime] n: usize,
        #[comptime] ragged: bool,
        #[comptime] reversed: bool,
        #[comptime] kept: bool,
    ) {
        // States take turns at two halves: all units read the one while some write the other.
        let mut h = Shared::<[f32]>::new_slice(comptime!(2 * n));
        let mut c = Shared::<[f32]>::new_slice(n);
        let mut sums = Shared::<[f32]>::new_slice(comptime!(STRIPES * CELLS));
        let x = UNIT_POS_X as usize;
        let gate = UNIT_POS_Y as usize;
        let b = CUBE_POS_Y as usize;
        let time = p.shape(2);
        let batch = p.shape(0);
        if gate == 0 {
            for j in range_stepped(x, n, CELLS) {
                h[j] = start_h[b * start_h.stride(0) + j * start_h.stride(3)];
                c[j] = start_c[b * start_c.stride(0) + j * start_c.stride(3)];
            }
        }
        let mut length = time;
        if comptime!(ragged) {
            length = lengths[b * lengths.stride(0)] as usize;
        }
        sync_cube();
        for step in 0..time {
            let mut t = step;
            if comptime!(reversed) {
                t = time - 1 - step;
            }
            let read = (step % 2) * n;
            let written = n - read;
            for block in 0..comptime!(n.div_ceil(CELLS)) {
                let j = block * CELLS + x;
                let here = j < n;
                let column = gate * n + j;
                let mut sum = f32::new(0.0);
                if here {
                    sum = p[b * p.stride(0) + t * p.stride(2) + column * p.stride(3)];
                    for k in 0..n {
                        sum += h[read + k] * weight[k * weight.stride(2) + column * weight.stride(3)];
                    }
                }
                if gate == 2 {
                    sum = bounded(sum);
                } else {
                    sum = sigmoid(sum);
                }
                sums[gate * CELLS + x] = sum;
                if comptime!(kept) && here {
                    kept_gates[(b * time + t) * comptime!(4 * n) + column] = sum;
                }
                sync_cube();
                if gate == 0 && here {
                    let next = sums[CELLS + x] * c[j] + sums[x] * sums[2 * CELLS + x];
                    let out = sums[3 * CELLS + x] * bounded(next);
                    let counts = t < length;
                    c[j] = select(counts, next, c[j]);
                    h[written + j] = select(counts, out, h[read + j]);
                    states[(b * time + t) * n + j] = h[written + j];
                    states[((batch + b) * time + t) * n + j] = c[j];
                }
                sync_cube();
            }
        }
    }
}

mod backward {
    use super::*;

    #[cube(launch)]
    #[allow(clippy::too_many_arguments, reason = "a kernel's bindings")]
    pub(super) fn backward_kernel(
        gates: &Tensor<f32>,
        turned: &Tensor<f32>,
        start_c: &Tensor<f32>,
        lengths: &Tensor<f32>,
        states: &Tensor<f32>,
        dy: &Tensor<f32>,
        dp: &mut Tensor<f32>,
        start_dh: &mut Tensor<f32>,
        start_dc: &mut Tensor<f32>,
        #[comptime] n: usize,
        #[comptime] ragged: bool,
        #[comptime] reversed: bool,
    ) {
        let mut dh = Shared::<[f32]>::new_slice(n);
        let mut dc = Shared::<[f32]>::new_slice(n);
        let mut d_gates = Shared::<[f32]>::new_slice(comptime!(4 * n));
        let mut sums = Shared::<[f32]>::new_slice(comptime!(STRIPES * CELLS));
        let x = UNIT_POS_X as usize;
        let stripe = UNIT_POS_Y as usize;
        let unit = stripe * CELLS + x;
        let units = comptime!(STRIPES * CELLS);
        let b = CUBE_POS_Y as usize;
        let time = gates.shape(2);
        let batch = gates.shape(0);
        for j in range_stepped(unit, n, units) {
            dh[j] = 0.0;
            dc[j] = 0.0;
        }
        let mut length = time;
        if comptime!(ragged) {
            length = lengths[b * lengths.stride(0)] as usize;
        }
        sync_cube();
        for back in 0..time {
            let step = time - 1 - back;
            let mut t = step;
            let mut before_t = max(step, 1) - 1;
            if comptime!(reversed) {
                t = back;
                before_t = min(back + 1, time - 1);
            }
            let counts = t < length;
            let dy_h = b * dy.stride(1) + t * dy.stride(2);
            let dy_c = dy_h + dy.stride(0);
            for j in range_stepped(unit, n, units) {
                let own_dh = dh[j] + dy[dy_h + j * dy.stride(3)];
                let own_dc = dc[j] + dy[dy_c + j * dy.stride(3)];
                let at = b * gates.stride(0) + t * gates.stride(2) + j * gates.stride(3);
                let across = n * gates.stride(3);
                let i = gates[at];
                let f = gates[at + across];
                let g = gates[at + 2 * across];
                let o = gates[at + 3 * across];
                let size = bounded(states[((batch + b) * time + t) * n + j]);
                let mut before = start_c[b * start_c.stride(0) + j * start_c.stride(3)];
                if step > 0 {
                    before = states[((batch + b) * time + before_t) * n + j];
                }
                let through = own_dc + own_dh * o * (f32::new(1.0) - size * size);
                let zero = f32::new(0.0);
                d_gates[j] = select(counts, through * g * i * (f32::new(1.0) - i), zero);
                d_gates[n + j] = select(counts, through * before * f * (f32::new(1.0) - f), zero);
                d_gates[2 * n + j] = select(counts, through * i * (f32::new(1.0) - g * g), zero);
                d_gates[3 * n + j] = select(counts, own_dh * size * o * (f32::new(1.0) - o), zero);
                dc[j] = select(counts, through * f, own_dc);
                // The sums below add to it what came through the gates.
                dh[j] = select(counts, zero, own_dh);
                #[unroll]
                for k in 0..4usize {
                    dp[(b * time + t) * comptime!(4 * n) + k * n + j] = d_gates[k * n + j];
                }
            }
            sync_cube();
            for block in 0..comptime!(n.div_ceil(CELLS)) {
                let j = block * CELLS + x;
                let here = j < n;
                let mut sum = f32::new(0.0);
                if here {
                    for k in stripe * n..(stripe + 1) * n {
                        sum += d_gates[k] * turned[k * n + j];
                    }
                }
                sums[unit] = sum;
                sync_cube();
                if stripe == 0 && here {
                    #[unroll]
                    for k in 0..STRIPES {
                        dh[j] += sums[k * CELLS + x];
                    }
                }
                sync_cube();
            }
        }
        for j in range_stepped(unit, n, units) {
            start_dh[b * n + j] = dh[j];
            start_dc[b * n + j] = dc[j];
        }
    }
}
