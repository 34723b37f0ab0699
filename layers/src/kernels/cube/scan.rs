//! [`scan`](crate::kernels::scan): a cube takes [`CHANNELS`] channels of a head and walks over tiles of time. Of each
//! tile, a unit takes [`STEPS`] tokens of a channel: it composes their steps, `h → P h + H`, hands `P` and `H` to the
//! others, and, with the state that comes in from those before it, runs through its tokens again, which it has kept.
//!
//! Floor: memory, 12 bytes per token and channel forward, 20 backward, in one launch each. With one unit per channel, a
//! thousand channels would be 32 warps on the whole device, each waiting for its reads token after token; here
//! [`STRIPES`] times as many units have [`STEPS`] reads under way each, and tokens that wait for one another are fewer
//! by `STRIPES STEPS`. A scan in several launches, with cubes along time, would keep more of a device busy where
//! channels are few, at the price of reading everything twice. The price of this one: `STRIPES` multiplications per unit and tile, and
//! one barrier.

use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::buffer::{dims, empty};
use crate::kernels::scan::Passes;

/// Channels of a cube.
const CHANNELS: usize = 16;

/// Units of a cube that share a channel.
const STRIPES: usize = 16;

/// Tokens of a unit in a tile.
const STEPS: usize = 8;

fn grid([b, h, _, n]: [usize; 4]) -> (CubeCount, CubeDim) {
    let cubes = CubeCount::Static(n.div_ceil(CHANNELS) as u32, (b * h) as u32, 1);
    (cubes, CubeDim::new_2d(CHANNELS as u32, STRIPES as u32))
}

impl Passes for CubeBackend {
    fn forward(log_a: &CubeTensor, u: &CubeTensor, memory: &CubeTensor) -> CubeTensor {
        let y = empty(u, &dims(u));
        let (cubes, units) = grid(dims(u));
        forward::forward_kernel::launch(
            &u.client,
            cubes,
            units,
            log_a.clone().into_tensor_arg(),
            u.clone().into_tensor_arg(),
            memory.clone().into_tensor_arg(),
            y.clone().into_tensor_arg(),
            CHANNELS,
            STRIPES,
            STEPS,
        );
        y
    }

    fn backward(log_a: &CubeTensor, memory: &CubeTensor, y: &CubeTensor, dy: &CubeTensor) -> [CubeTensor; 3] {
        let [d_log_a, du] = [empty(y, &dims(y)), empty(y, &dims(y))];
        let d_memory = empty(y, &dims(memory));
        let (cubes, units) = grid(dims(y));
        backward::backward_kernel::launch(
            &y.client,
            cubes,
            units,
            log_a.clone().into_tensor_arg(),
            memory.clone().into_tensor_arg(),
            y.clone().into_tensor_arg(),
            dy.clone().into_tensor_arg(),
            d_log_a.clone().into_tensor_arg(),
            du.clone().into_tensor_arg(),
            d_memory.clone().into_tensor_arg(),
            CHANNELS,
            STRIPES,
            STEPS,
        );
        [d_log_a, du, d_memory]
    }
}

mod forward {
    use super::*;

    #[cube(launch)]
    pub(super) fn forward_kernel(
        log_a: &Tensor<f32>,
        u: &Tensor<f32>,
        memory: &Tensor<f32>,
        y: &mut Tensor<f32>,
        #[comptime] channels: usize,
        #[comptime] stripes: usize,
        #[comptime] steps: usize,
    ) {
        // Tiles take turns at two halves, so that one barrier to a tile is enough.
        let half = comptime!(channels * stripes);
        let mut products = Shared::<[f32]>::new_slice(2 * half);
        let mut sums = Shared::<[f32]>::new_slice(2 * half);
        let x = UNIT_POS_X as usize;
        let stripe = UNIT_POS_Y as usize;
        let n = u.shape(3);
        let time = u.shape(2);
        let heads = u.shape(1);
        let c = CUBE_POS_X as usize * channels + x;
        let b = CUBE_POS_Y as usize / heads;
        let h = CUBE_POS_Y as usize % heads;
        let here = c < n;
        let u_start = b * u.stride(0) + h * u.stride(1) + c * u.stride(3);
        let a_start = b * log_a.stride(0) + h * log_a.stride(1) + c * log_a.stride(3);
        let y_start = CUBE_POS_Y as usize * time * n + c;
        let mut state = f32::new(0.0);
        if here {
            state = memory[b * memory.stride(0) + h * memory.stride(1) + c * memory.stride(2)];
        }
        let mut a = Array::<f32>::new(steps);
        let mut input = Array::<f32>::new(steps);
        let tile = comptime!(stripes * steps);
        for index in 0..time.div_ceil(tile) {
            let first = index * tile + stripe * steps;
            let mut product = f32::new(1.0);
            let mut sum = f32::new(0.0);
            #[unroll]
            for i in 0..steps {
                a[i] = f32::new(1.0);
                input[i] = f32::new(0.0);
                if here && first + i < time {
                    a[i] = f32::exp(log_a[a_start + (first + i) * log_a.stride(2)]);
                    input[i] = u[u_start + (first + i) * u.stride(2)];
                }
            }
            #[unroll]
            for i in 0..steps {
                product *= a[i];
                sum = a[i] * sum + input[i];
            }
            let turn = (index % 2) * half;
            products[turn + stripe * channels + x] = product;
            sums[turn + stripe * channels + x] = sum;
            sync_cube();
            let mut own = state;
            for k in 0..stripes {
                own = select(k == stripe, state, own);
                state = products[turn + k * channels + x] * state + sums[turn + k * channels + x];
            }
            #[unroll]
            for i in 0..steps {
                own = a[i] * own + input[i];
                if here && first + i < time {
                    y[y_start + (first + i) * n] = own;
                }
            }
        }
    }
}

mod backward {
    use super::*;

    /// What a token hands to the one before it, `a_t (dy_t + handed)`, is a scan from the last token to the first.
    #[cube(launch)]
    pub(super) fn backward_kernel(
        log_a: &Tensor<f32>,
        memory: &Tensor<f32>,
        y: &Tensor<f32>,
        dy: &Tensor<f32>,
        d_log_a: &mut Tensor<f32>,
        du: &mut Tensor<f32>,
        d_memory: &mut Tensor<f32>,
        #[comptime] channels: usize,
        #[comptime] stripes: usize,
        #[comptime] steps: usize,
    ) {
        let half = comptime!(channels * stripes);
        let mut products = Shared::<[f32]>::new_slice(2 * half);
        let mut sums = Shared::<[f32]>::new_slice(2 * half);
        let x = UNIT_POS_X as usize;
        let stripe = UNIT_POS_Y as usize;
        let n = du.shape(3);
        let time = du.shape(2);
        let heads = du.shape(1);
        let c = CUBE_POS_X as usize * channels + x;
        let b = CUBE_POS_Y as usize / heads;
        let h = CUBE_POS_Y as usize % heads;
        let here = c < n;
        let dy_start = b * dy.stride(0) + h * dy.stride(1) + c * dy.stride(3);
        let y_start = b * y.stride(0) + h * y.stride(1) + c * y.stride(3);
        let a_start = b * log_a.stride(0) + h * log_a.stride(1) + c * log_a.stride(3);
        let start = CUBE_POS_Y as usize * time * n + c;
        let mut handed = f32::new(0.0);
        let mut a = Array::<f32>::new(steps);
        let mut input = Array::<f32>::new(steps);
        let mut before = Array::<f32>::new(steps);
        let tile = comptime!(stripes * steps);
        for index in 0..time.div_ceil(tile) {
            // Of `time` tokens still to go, counted from the last.
            let first = index * tile + stripe * steps;
            let mut product = f32::new(1.0);
            let mut sum = f32::new(0.0);
            #[unroll]
            for i in 0..steps {
                a[i] = f32::new(1.0);
                input[i] = f32::new(0.0);
                before[i] = f32::new(0.0);
                if here && first + i < time {
                    let t = time - 1 - first - i;
                    a[i] = f32::exp(log_a[a_start + t * log_a.stride(2)]);
                    input[i] = dy[dy_start + t * dy.stride(2)];
                    if t > 0 {
                        before[i] = y[y_start + (t - 1) * y.stride(2)];
                    } else {
                        before[i] =
                            memory[b * memory.stride(0) + h * memory.stride(1) + c * memory.stride(2)];
                    }
                }
            }
            #[unroll]
            for i in 0..steps {
                product *= a[i];
                sum = a[i] * (sum + input[i]);
            }
            let turn = (index % 2) * half;
            products[turn + stripe * channels + x] = product;
            sums[turn + stripe * channels + x] = sum;
            sync_cube();
            let mut own = handed;
            for k in 0..stripes {
                own = select(k == stripe, handed, own);
                handed = products[turn + k * channels + x] * handed + sums[turn + k * channels + x];
            }
            #[unroll]
            for i in 0..steps {
                let dh = own + input[i];
                own = dh * a[i];
                if here && first + i < time {
                    let t = time - 1 - first - i;
                    du[start + t * n] = dh;
                    d_log_a[start + t * n] = own * before[i];
                }
            }
        }
        if here && stripe == 0 {
            d_memory[CUBE_POS_Y as usize * n + c] = handed;
        }
    }
}
