//! Longhorn's [`columns`](crate::kernels::columns) without gradients, in one launch: as in [`scan`](super::scan), a cube takes
//! [`CHANNELS`] channels of a sequence and walks over tiles of time, of which a unit composes [`STEPS`] tokens of a
//! channel, for one number of the memory after the other.
//!
//! Floor: memory, 12 bytes per token and channel; the price is a barrier for each number of the memory and tile.

use burn::tensor::Tensor as Burn;
use burn_cubecl::CubeBackend;
use cubecl::prelude::*;

use super::buffer::{ALIGNED, MOST_CUBES, empty, part_of, plain};
use super::pointwise::alone;
use crate::kernels::columns::Packed;
use crate::nn::Function;

/// Channels of a cube.
const CHANNELS: usize = 16;

/// Units of a cube that share a channel.
const STRIPES: usize = 16;

/// Tokens of a unit in a tile.
const STEPS: usize = 8;

/// Most numbers of a channel's memory, which every unit has its own copy of.
const MOST_NUMBERS: usize = 64;

/// `y: [b, t, E]` and the last memory; `None` where they are not for this kernel: gradients, another device or element
/// type, larger memories.
pub(crate) fn learn(packed: &Packed) -> Option<(Burn<3>, Burn<4>)> {
    let Packed { rates, bias, address, first, x, memory, d } = packed;
    let ([b, t, channels], n) = (x.dims(), memory.dims()[2]);
    let fits = rates.dims() == x.dims()
        && address.dims()[..2] == [b, t]
        && address.dims()[2] >= first + 2 * n
        && memory.dims() == [b, channels, n, 1]
        && d.dims() == [channels]
        && bias.as_ref().is_none_or(|bias| bias.dims() == [channels])
        && b * t * channels * n > 0;
    if !fits || n > MOST_NUMBERS || b > MOST_CUBES {
        return None;
    }
    let (rates, address, x) = (plain(rates)?, plain(address)?, plain(x)?);
    let (memory, d) = (plain(memory)?, plain(d)?);
    let biased = bias.is_some();
    // Where there is none, it is not read.
    let bias = bias.as_ref().map_or_else(|| Some(d.clone()), plain)?;
    let last_at = (b * t * channels).next_multiple_of(ALIGNED);
    let out = empty(&x, &[last_at + b * channels * n]);
    learn_kernel::launch(
        &out.client,
        CubeCount::Static(channels.div_ceil(CHANNELS) as u32, b as u32, 1),
        CubeDim::new_2d(CHANNELS as u32, STRIPES as u32),
        rates.into_tensor_arg(),
        bias.into_tensor_arg(),
        address.into_tensor_arg(),
        x.into_tensor_arg(),
        memory.into_tensor_arg(),
        d.into_tensor_arg(),
        out.clone().into_tensor_arg(),
        *first,
        last_at,
        n,
        biased,
        CHANNELS,
        STRIPES,
        STEPS,
    );
    let y = Burn::from_primitive::<CubeBackend>(part_of(&out, 0, [b, t, channels]));
    Some((y, Burn::from_primitive::<CubeBackend>(part_of(&out, last_at, [b, channels, n, 1]))))
}

#[cube(launch)]
#[allow(clippy::too_many_arguments, reason = "a kernel's bindings")]
fn learn_kernel(
    rates: &Tensor<f32>,
    bias: &Tensor<f32>,
    address: &Tensor<f32>,
    x: &Tensor<f32>,
    memory: &Tensor<f32>,
    d: &Tensor<f32>,
    out: &mut Tensor<f32>,
    key_at: usize,
    last_at: usize,
    #[comptime] n: usize,
    #[comptime] biased: bool,
    #[comptime] channels: usize,
    #[comptime] stripes: usize,
    #[comptime] steps: usize,
) {
    // Numbers of the memory take turns at two halves, so that one barrier to each is enough.
    let half = comptime!(channels * stripes);
    let mut products = Shared::<[f32]>::new_slice(2 * half);
    let mut sums = Shared::<[f32]>::new_slice(2 * half);
    let unit = UNIT_POS_X as usize;
    let stripe = UNIT_POS_Y as usize;
    let b = CUBE_POS_Y as usize;
    let c = CUBE_POS_X as usize * channels + unit;
    let width = x.shape(2);
    let time = x.shape(1);
    let here = c < width;
    let mut state = Array::<f32>::new(n);
    let mut skip = f32::new(0.0);
    let mut offset = f32::new(0.0);
    if here {
        skip = d[c * d.stride(0)];
        if comptime!(biased) {
            offset = bias[c * bias.stride(0)];
        }
    }
    for j in 0..n {
        state[j] = f32::new(0.0);
        if here {
            state[j] = memory[b * memory.stride(0) + c * memory.stride(1) + j * memory.stride(2)];
        }
    }
    let mut rate = Array::<f32>::new(steps);
    let mut write = Array::<f32>::new(steps);
    let mut found = Array::<f32>::new(steps);
    let mut key = Array::<f32>::new(steps);
    let mut query = Array::<f32>::new(steps);
    let tile = comptime!(stripes * steps);
    let mut turn = 0;
    for index in 0..time.div_ceil(tile) {
        let first = index * tile + stripe * steps;
        #[unroll]
        for i in 0..steps {
            rate[i] = f32::new(0.0);
            write[i] = f32::new(0.0);
            found[i] = f32::new(0.0);
            if here && first + i < time {
                let t = first + i;
                let row = b * address.stride(0) + t * address.stride(1) + key_at * address.stride(2);
                let mut norm = f32::new(0.0);
                for j in 0..n {
                    let k = address[row + j * address.stride(2)];
                    norm += k * k;
                }
                let rate_at = b * rates.stride(0) + t * rates.stride(1) + c * rates.stride(2);
                let beta = alone(rates[rate_at] + offset, f32::new(1.0), Function::Sigmoid);
                let input = x[b * x.stride(0) + t * x.stride(1) + c * x.stride(2)];
                rate[i] = beta / (beta * norm + 1.0);
                write[i] = rate[i] * input;
                found[i] = skip * input;
            }
        }
        for j in 0..n {
            let mut product = f32::new(1.0);
            let mut sum = f32::new(0.0);
            #[unroll]
            for i in 0..steps {
                key[i] = f32::new(0.0);
                query[i] = f32::new(0.0);
                if here && first + i < time {
                    let t = first + i;
                    let row = b * address.stride(0) + t * address.stride(1) + key_at * address.stride(2);
                    key[i] = address[row + j * address.stride(2)];
                    query[i] = address[row + (j + n) * address.stride(2)];
                }
                let decay = 1.0 - rate[i] * key[i] * key[i];
                product *= decay;
                sum = decay * sum + write[i] * key[i];
            }
            products[turn + stripe * channels + unit] = product;
            sums[turn + stripe * channels + unit] = sum;
            sync_cube();
            let mut now = state[j];
            let mut own = now;
            for s in 0..stripes {
                own = select(s == stripe, now, own);
                now = products[turn + s * channels + unit] * now + sums[turn + s * channels + unit];
            }
            state[j] = now;
            #[unroll]
            for i in 0..steps {
                own += key[i] * (write[i] - rate[i] * key[i] * own);
                found[i] += query[i] * own;
            }
            turn = half - turn;
        }
        #[unroll]
        for i in 0..steps {
            if here && first + i < time {
                out[(b * time + first + i) * width + c] = found[i];
            }
        }
    }
    if here && stripe == 0 {
        for j in 0..n {
            out[last_at + (b * width + c) * n + j] = state[j];
        }
    }
}
