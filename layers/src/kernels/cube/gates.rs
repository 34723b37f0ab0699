//! Decay and gated input of one state per channel from the products of blocks, as
//! [`pointwise`](crate::kernels::pointwise) has them, without gradients: a cube takes [`COLUMNS`] channels of up to
//! [`TOKENS`] tokens, whose sums its [`STRIPES`] rows of units share, and every unit ends with a channel of one token.
//!
//! Floor: memory, 8 bytes written per number, and the blocks once per [`TOKENS`] tokens, in one launch instead of seven.

use burn::tensor::Tensor as Burn;
use burn_cubecl::CubeBackend;
use cubecl::prelude::*;

use super::buffer::{ALIGNED, empty, part_of, plain};
use super::functions::sigmoid;
use super::pointwise::{minus_expm1, softplus};
use crate::nn::LOG_ZERO;

/// Channels of a cube.
const COLUMNS: usize = 32;

/// Rows of units in a cube.
const STRIPES: usize = 8;

/// Most tokens of a cube: one for each row of units.
const TOKENS: usize = STRIPES;

/// Two matrices with a block per head on their diagonals, what is added to their products, and how fast states decay.
#[derive(Clone, Debug)]
pub(crate) struct BlockGates {
    /// `[heads, w, w]` each, for decay and input
    pub(crate) blocks: [Burn<3>; 2],
    /// `[heads, w]` each
    pub(crate) biases: [Burn<2>; 2],
    /// `[heads w]`
    pub(crate) rate: Burn<1>,
    pub(crate) scale: f64,
}

impl BlockGates {
    /// `log a = -scale softplus(rate) sigmoid(r)`, or [`LOG_ZERO`] where `reset: [b, t]` is 1 and not 0, and
    /// `sqrt(1 - a²) sigmoid(i) u`, `[b, 1, t, n]` both, where `r` and `i` are the products of `u: [b, t, n]`; `None` where
    /// these are not for the kernel: gradients, another device or element type.
    pub(crate) fn decay_and_input(&self, u: &Burn<3>, reset: &Burn<2>) -> Option<[Burn<4>; 2]> {
        let ([b, t, n], [heads, width, _]) = (u.dims(), self.blocks[0].dims());
        let rows = b * t;
        let shapes = n == heads * width
            && reset.dims() == [b, t]
            && self.rate.dims() == [n]
            && self.blocks.iter().all(|blocks| blocks.dims() == [heads, width, width])
            && self.biases.iter().all(|bias| bias.dims() == [heads, width]);
        if !shapes || n == 0 || rows == 0 || !super::fits(u, rows.div_ceil(TOKENS)) {
            return None;
        }
        let [p, q] = [&self.biases[0], &self.biases[1]].map(plain);
        let [by_decay, by_input] = [&self.blocks[0], &self.blocks[1]].map(plain);
        let (reset, rate) = (plain(reset), plain(&self.rate));
        let u = plain(&u.clone().reshape([rows, n]))?;
        let apart = (rows * n).next_multiple_of(ALIGNED);
        let out = empty(&u, &[2 * apart]);
        let tokens = rows.min(TOKENS);
        gate_kernel::launch(
            &out.client,
            CubeCount::Static(n.div_ceil(COLUMNS) as u32, rows.div_ceil(tokens) as u32, 1),
            CubeDim::new_2d(COLUMNS as u32, STRIPES as u32),
            u.into_tensor_arg(),
            reset?.into_tensor_arg(),
            by_decay?.into_tensor_arg(),
            by_input?.into_tensor_arg(),
            p?.into_tensor_arg(),
            rate?.into_tensor_arg(),
            q?.into_tensor_arg(),
            out.clone().into_tensor_arg(),
            self.scale as f32,
            apart,
            tokens,
        );
        Some([0, apart].map(|start| Burn::from_primitive::<CubeBackend>(part_of(&out, start, [b, 1, t, n]))))
    }
}

#[cube(launch)]
#[allow(clippy::too_many_arguments, reason = "a kernel's bindings")]
fn gate_kernel(
    u: &Tensor<f32>,
    reset: &Tensor<f32>,
    by_decay: &Tensor<f32>,
    by_input: &Tensor<f32>,
    p: &Tensor<f32>,
    rate: &Tensor<f32>,
    q: &Tensor<f32>,
    out: &mut Tensor<f32>,
    scale: f32,
    apart: usize,
    #[comptime] tokens: usize,
) {
    let mut shared = Shared::<[f32]>::new_slice(comptime!(tokens * STRIPES * COLUMNS));
    let stripe = UNIT_POS_Y as usize;
    let (rows, n, width) = (u.shape(0), u.shape(1), by_decay.shape(1));
    let c = CUBE_POS_X as usize * COLUMNS + UNIT_POS_X as usize;
    let first = CUBE_POS_Y as usize * tokens;
    let (head, column) = (c / width, c % width);
    let mut r = Array::<f32>::new(tokens);
    let mut i = Array::<f32>::new(tokens);
    #[unroll]
    for token in 0..tokens {
        r[token] = f32::new(0.0);
        i[token] = f32::new(0.0);
    }
    if c < n {
        let decay_start = head * by_decay.stride(0) + column * by_decay.stride(2);
        let input_start = head * by_input.stride(0) + column * by_input.stride(2);
        for k in range_stepped(stripe, width, STRIPES) {
            let open = by_decay[decay_start + k * by_decay.stride(1)];
            let enter = by_input[input_start + k * by_input.stride(1)];
            let from = (head * width + k) * u.stride(1);
            #[unroll]
            for token in 0..tokens {
                // Behind the last token the last one again, whose sums nobody takes.
                let x = u[min(first + token, rows - 1) * u.stride(0) + from];
                r[token] += open * x;
                i[token] += enter * x;
            }
        }
    }
    let opening = total(&r, &mut shared, tokens);
    let entering = total(&i, &mut shared, tokens);
    let row = first + stripe;
    if stripe < tokens && row < rows && c < n {
        let time = reset.shape(1);
        let forgets = reset[row / time * reset.stride(0) + row % time * reset.stride(1)];
        let speed = scale * softplus(rate[c * rate.stride(0)]);
        let open = sigmoid(opening + p[head * p.stride(0) + column * p.stride(1)]);
        let enter = sigmoid(entering + q[head * q.stride(0) + column * q.stride(1)]);
        let log = forgets * f32::new(comptime!(LOG_ZERO as f32)) - (f32::new(1.0) - forgets) * (speed * open);
        let at = row * n + c;
        out[at] = log;
        out[apart + at] = f32::sqrt(minus_expm1(log + log)) * enter * u[row * u.stride(0) + c * u.stride(1)];
    }
}

/// The sum over all rows of units, of the token that this one ends with.
#[cube]
fn total(sums: &Array<f32>, shared: &mut Shared<[f32]>, #[comptime] tokens: usize) -> f32 {
    let lane = UNIT_POS_X as usize;
    let stripe = UNIT_POS_Y as usize;
    // What was there before has been read by all.
    sync_cube();
    #[unroll]
    for token in 0..tokens {
        shared[(token * STRIPES + stripe) * COLUMNS + lane] = sums[token];
    }
    sync_cube();
    let mut sum = f32::new(0.0);
    if stripe < tokens {
        for i in 0..STRIPES {
            sum += shared[(stripe * STRIPES + i) * COLUMNS + lane];
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::pointwise::Inputs;
    use crate::nn::{Formula, Function};
    use crate::testing::{Draw, error, graphics, numbers};

    /// Products in tensor operations, and what they become by the kernels of one function each.
    fn apart(gates: &BlockGates, u: Burn<3>, reset: Burn<2>) -> [Burn<4>; 2] {
        let ([b, t, n], [heads, width, _]) = (u.dims(), gates.blocks[0].dims());
        let split = u.clone().reshape([b * t, heads, n / heads]).swap_dims(0, 1);
        let [r, i] = [0, 1].map(|which| {
            let y = split.clone().matmul(gates.blocks[which].clone());
            y.swap_dims(0, 1).reshape([b, t, heads, width])
        });
        let dims = [b, t, heads, width];
        let reset = reset.reshape([b, t, 1, 1]).expand(dims);
        let [p, q] = [0, 1].map(|which| gates.biases[which].clone().unsqueeze());
        let rate = gates.rate.clone().reshape([1, 1, heads, width]);
        let decay = Inputs { tensors: vec![r, reset], parameters: vec![p, rate] };
        let log = decay.run(Formula { scale: gates.scale, ..Formula::new(Function::GateDecay) });
        let input = Inputs { tensors: vec![log.clone(), i, u.reshape(dims)], parameters: vec![q] };
        [log, input.run(Formula::new(Function::GateInput))].map(|x| x.reshape([b, 1, t, n]))
    }

    #[test]
    fn both_are_what_they_are_apart() {
        for device in graphics() {
            for (b, t, heads, width) in
                [(1, 1, 1, 1), (1, 1, 4, 32), (2, 5, 3, 20), (1, 70, 2, 33), (3, 1, 5, 9)]
            {
                let mut draw = Draw::new((t * width) as u64);
                let n = heads * width;
                let u = draw.tensor::<3>([t, b, n], -2.0, 2.0).to_device(&device).swap_dims(0, 1);
                let reset = draw.tensor::<2>([b, t], -1.0, 1.0).to_device(&device).clamp_min(0.0).ceil();
                let blocks = [false, true].map(|turned| {
                    let x = draw.tensor::<3>([heads, width, width], -0.5, 0.5).to_device(&device);
                    if turned { x.swap_dims(1, 2) } else { x }
                });
                let biases = [(); 2].map(|()| draw.tensor::<2>([heads, width], -1.0, 1.0).to_device(&device));
                let rate = draw.tensor::<1>([n], -1.0, 1.0).to_device(&device);
                let gates = BlockGates { blocks, biases, rate, scale: 8.0 };
                for reset in [reset, Burn::<2>::zeros([1, 1], &device).expand([b, t])] {
                    let found = gates.decay_and_input(&u, &reset).expect("it is for the kernel");
                    for (found, expected) in found.into_iter().zip(apart(&gates, u.clone(), reset)) {
                        assert_eq!(found.dims(), expected.dims());
                        let off = error(&numbers(found), &numbers(expected));
                        assert!(off <= 1e-5, "{b} {t} {heads} {width}: off by {off:e}");
                    }
                }
                let reset = Burn::<2>::zeros([b, t], &device);
                let short = gates.decay_and_input(&u.clone().narrow(2, 0, n.div_ceil(2)), &reset);
                assert!(n == 1 || short.is_none());
                assert!(gates.decay_and_input(&u.autodiff().require_grad(), &reset).is_none());
            }
        }
    }
}
