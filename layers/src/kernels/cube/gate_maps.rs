//! Gates of heads without gradients, as memories that learn by descent have them: maps of low rank and a function of each
//! number, and learning rates and steps of mini-batches. A cube takes [`TOKENS`] tokens through a map.
//!
//! ```text
//! gate = f(W_up (W_down x) + b)
//! η = base sigmoid(z + b),   c_i = max(0, 1/i + learned_i)                    i: place in the mini-batch
//! ```
//!
//! Floor: memory, the maps once per [`TOKENS`] tokens, in a launch for every two gates instead of four for each.

#![allow(clippy::collapsible_if, reason = "the outer one is decided when a kernel is compiled")]

use burn::tensor::Tensor as Burn;
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;
use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;

use super::buffer::{ALIGNED, MOST_CUBES, empty, part_of, plain};
use super::functions::sigmoid;
use super::pointwise::softplus;

/// Units that share a token's products.
const LANES: usize = 32;

/// Tokens of a cube.
const TOKENS: usize = 8;

/// Largest rank.
const MOST: usize = 256;

/// Maps of a launch.
const TOGETHER: usize = 2;

/// What becomes of a number `z`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Opening {
    /// `s sigmoid(z)`
    Sigmoid(f64),
    /// `log sigmoid(z)`
    LogSigmoid,
    /// `softplus(z) + s`
    Softplus(f64),
}

/// A gate of every head.
#[derive(Clone, Debug)]
pub(crate) struct GateOf {
    /// `[d, rank]`
    pub(crate) down: Burn<2>,
    /// `[rank, h]`
    pub(crate) up: Burn<2>,
    /// `[h]`
    pub(crate) bias: Burn<1>,
    pub(crate) opening: Opening,
}

/// Gates of `x: [b, t, d]`, `[b, h, t, 1]` each, beside each other in one buffer; `None` where they are not for the
/// kernel: gradients, another device or element type, a large rank.
pub(crate) fn open_gates(x: &Burn<3>, gates: &[GateOf]) -> Option<Vec<Burn<4>>> {
    let [b, t, _] = x.dims();
    let [rank, h] = gates.first()?.up.dims();
    let (rows, cubes) = (b * h * t, (b * t).div_ceil(TOKENS));
    let alike = |gate: &GateOf| gate.up.dims() == [rank, h];
    if rows == 0 || rank > MOST || cubes > MOST_CUBES || !gates.iter().all(alike) {
        return None;
    }
    let x = plain(x)?;
    let maps = gates.iter().map(|gate| Some([plain(&gate.down)?, plain(&gate.up)?, plain(&gate.bias)?]));
    let maps: Vec<[CubeTensor; 3]> = maps.collect::<Option<_>>()?;
    let apart = rows.next_multiple_of(ALIGNED);
    let out = empty(&x, &[gates.len() * apart]);
    for (first, some) in maps.chunks(TOGETHER).enumerate().map(|(i, some)| (TOGETHER * i, some)) {
        let (one, two) = (&some[0], some.last().unwrap_or(&some[0]));
        let kind = |i: usize| match gates[(first + i).min(gates.len() - 1)].opening {
            Opening::Sigmoid(scale) => (0, scale as f32),
            Opening::LogSigmoid => (1, 0.0),
            Opening::Softplus(least) => (2, least as f32),
        };
        let ((one_kind, one_number), (two_kind, two_number)) = (kind(0), kind(1));
        gate_maps_kernel::launch(
            &out.client,
            CubeCount::Static(cubes as u32, some.len() as u32, 1),
            CubeDim::new_2d(LANES as u32, TOKENS as u32),
            x.clone().into_tensor_arg(),
            one[0].clone().into_tensor_arg(),
            one[1].clone().into_tensor_arg(),
            one[2].clone().into_tensor_arg(),
            two[0].clone().into_tensor_arg(),
            two[1].clone().into_tensor_arg(),
            two[2].clone().into_tensor_arg(),
            out.clone().into_tensor_arg(),
            first * apart,
            apart,
            one_number,
            two_number,
            one_kind,
            two_kind,
            rank,
        );
    }
    let part = |i: usize| Burn::from_primitive::<CubeBackend>(part_of(&out, i * apart, [b, h, t, 1]));
    Some((0..gates.len()).map(part).collect())
}

#[cube(launch)]
#[allow(clippy::too_many_arguments, reason = "a kernel's bindings")]
fn gate_maps_kernel(
    x: &Tensor<f32>,
    one_down: &Tensor<f32>,
    one_up: &Tensor<f32>,
    one_bias: &Tensor<f32>,
    two_down: &Tensor<f32>,
    two_up: &Tensor<f32>,
    two_bias: &Tensor<f32>,
    out: &mut Tensor<f32>,
    first: usize,
    apart: usize,
    one_number: f32,
    two_number: f32,
    #[comptime] one_kind: u32,
    #[comptime] two_kind: u32,
    #[comptime] rank: usize,
) {
    let mut hidden = Shared::<[f32]>::new_slice(comptime!(TOKENS * rank));
    if CUBE_POS_Y == 0 {
        open(x, one_down, one_up, one_bias, &mut hidden, out, first, one_number, one_kind, rank);
    } else {
        open(x, two_down, two_up, two_bias, &mut hidden, out, first + apart, two_number, two_kind, rank);
    }
}

/// A gate of the cube's tokens: its units take numbers of a row of units' token.
#[cube]
#[allow(clippy::too_many_arguments, reason = "a map and its place")]
fn open(
    x: &Tensor<f32>,
    down: &Tensor<f32>,
    up: &Tensor<f32>,
    bias: &Tensor<f32>,
    hidden: &mut Shared<[f32]>,
    out: &mut Tensor<f32>,
    to: usize,
    number: f32,
    #[comptime] kind: u32,
    #[comptime] rank: usize,
) {
    let row = CUBE_POS_X as usize * TOKENS + UNIT_POS_Y as usize;
    let own = UNIT_POS_Y as usize * rank;
    let (time, heads) = (x.shape(1), up.shape(1));
    let here = row < x.shape(0) * time;
    if here {
        let from = row / time * x.stride(0) + row % time * x.stride(1);
        for r in range_stepped(UNIT_POS_X as usize, rank, LANES) {
            let mut sum = f32::new(0.0);
            for i in 0..x.shape(2) {
                sum += x[from + i * x.stride(2)] * down[i * down.stride(0) + r * down.stride(1)];
            }
            hidden[own + r] = sum;
        }
    }
    sync_cube();
    if here {
        for head in range_stepped(UNIT_POS_X as usize, heads, LANES) {
            let mut z = bias[head * bias.stride(0)];
            for r in 0..rank {
                z += hidden[own + r] * up[r * up.stride(0) + head * up.stride(1)];
            }
            let mut found = number * sigmoid(z);
            if comptime!(kind == 1) {
                found = -softplus(-z);
            }
            if comptime!(kind == 2) {
                found = softplus(z) + number;
            }
            out[to + (row / time * heads + head) * time + row % time] = found;
        }
    }
}

/// `η` and `c` of `z: [b, t, h]`, the latter for tokens of which the first is at `phase` of its mini-batch:
/// `[b, h, t, 1]` both, beside each other in one buffer. What is learned is `[size]` for mini-batches of so many tokens,
/// `bias: [h]`. `None` where they are not for the kernel.
pub(crate) fn rates_and_steps(
    z: &Burn<3>,
    bias: Option<&Burn<1>>,
    learned: &Burn<1>,
    base: f64,
    phase: usize,
) -> Option<[Burn<4>; 2]> {
    let [b, t, h] = z.dims();
    let rows = b * h * t;
    if rows == 0 {
        return None;
    }
    let (z, learned) = (plain(z)?, plain(learned)?);
    let biased = bias.is_some();
    // In place of what there is not: it is not read.
    let bias = bias.map_or_else(|| Some(learned.clone()), plain)?;
    let apart = rows.next_multiple_of(ALIGNED);
    let out = empty(&z, &[2 * apart]);
    let units = CubeDim::new_1d(64);
    rates_kernel::launch(
        &out.client,
        calculate_cube_count_elemwise(&out.client, rows, units),
        units,
        z.into_tensor_arg(),
        bias.into_tensor_arg(),
        learned.into_tensor_arg(),
        out.clone().into_tensor_arg(),
        base as f32,
        phase,
        rows,
        apart,
        biased,
    );
    Some([0, apart].map(|at| Burn::from_primitive::<CubeBackend>(part_of(&out, at, [b, h, t, 1]))))
}

#[cube(launch)]
#[allow(clippy::too_many_arguments, reason = "a kernel's bindings")]
fn rates_kernel(
    z: &Tensor<f32>,
    bias: &Tensor<f32>,
    learned: &Tensor<f32>,
    out: &mut Tensor<f32>,
    base: f32,
    phase: usize,
    rows: usize,
    apart: usize,
    #[comptime] biased: bool,
) {
    let row = ABSOLUTE_POS;
    if row < rows {
        let (time, heads) = (z.shape(1), z.shape(2));
        let (t, head) = (row % time, row / time % heads);
        let mut raw = z[row / time / heads * z.stride(0) + t * z.stride(1) + head * z.stride(2)];
        if comptime!(biased) {
            raw += bias[head * bias.stride(0)];
        }
        let place = (phase + t) % learned.shape(0);
        let step = f32::new(1.0) / f32::cast_from(place + 1) + learned[place * learned.stride(0)];
        out[row] = base * sigmoid(raw);
        out[apart + row] = f32::max(step, f32::new(0.0));
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, activation};

    use super::*;
    use crate::nn::{log_sigmoid, softplus, split_heads};
    use crate::testing::{Draw, gap, graphics};

    #[test]
    fn gates_are_those_of_tensor_operations() {
        for device in graphics() {
            for (b, t, d, rank, h) in [(1, 1, 7, 1, 1), (2, 5, 20, 33, 3), (1, 70, 40, 8, 40)] {
                let mut draw = Draw::new(t as u64);
                let x = draw.tensor::<3>([t, b, d], -1.0, 1.0).swap_dims(0, 1);
                let openings = [Opening::Sigmoid(0.3), Opening::LogSigmoid, Opening::Softplus(0.1)];
                let gates = openings.map(|opening| GateOf {
                    down: draw.tensor([d, rank], -1.0, 1.0),
                    up: draw.tensor([rank, h], -1.0, 1.0),
                    bias: draw.tensor([h], -1.0, 1.0),
                    opening,
                });
                let there = gates.clone().map(|gate| GateOf {
                    down: gate.down.to_device(&device),
                    up: gate.up.to_device(&device),
                    bias: gate.bias.to_device(&device),
                    ..gate
                });
                let on_it = x.clone().to_device(&device);
                for count in 1..=gates.len() {
                    let found = open_gates(&on_it, &there[..count]).expect("they are for the kernel");
                    for (found, gate) in found.into_iter().zip(&gates) {
                        let hidden = x.clone().matmul(gate.down.clone().unsqueeze());
                        let z = hidden.matmul(gate.up.clone().unsqueeze()) + gate.bias.clone().unsqueeze();
                        let z = split_heads(z, h);
                        let expected = match gate.opening {
                            Opening::Sigmoid(scale) => activation::sigmoid(z).mul_scalar(scale),
                            Opening::LogSigmoid => log_sigmoid(z),
                            Opening::Softplus(least) => softplus(z).add_scalar(least),
                        };
                        let off = gap(found.to_device(&Device::flex()), expected);
                        assert!(off <= 1e-5, "{:?} of {b} {t} {d}: off by {off:e}", gate.opening);
                    }
                }
                assert!(open_gates(&on_it.clone().autodiff(), &there).is_none());
                assert!(open_gates(&x, &gates).is_none());
            }
        }
    }
}
