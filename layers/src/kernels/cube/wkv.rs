//! [`wkv`](crate::kernels::wkv) without gradients, in one launch: as in [`scan`](super::scan), a cube takes [`CHANNELS`]
//! channels of a sequence and walks over tiles of time, of which a unit joins [`STEPS`] tokens of a channel. A run of
//! tokens is a sum of weights and one of weighted values, both scaled by the largest logarithm, as a state is.
//!
//! Floor: memory, 12 bytes per token and channel.

use burn::tensor::Tensor as Burn;
use burn_cubecl::CubeBackend;
use cubecl::prelude::*;

use super::buffer::{ALIGNED, MOST_CUBES, empty, part_of, plain};
use crate::kernels::wkv::{Averaged, Inputs};
use crate::system::scan::NEGATIVE;

/// Channels of a cube.
const CHANNELS: usize = 16;

/// Units of a cube that share a channel.
const STRIPES: usize = 16;

/// Tokens of a unit in a tile.
const STEPS: usize = 8;

/// The averages; `None` where they are not for this kernel: gradients, another device or element type.
pub(crate) fn average(inputs: &Inputs) -> Option<Averaged> {
    let [b, t, n] = inputs.k.dims();
    if b > MOST_CUBES {
        return None;
    }
    let (k, v) = (plain(&inputs.k)?, plain(&inputs.v)?);
    let (decay, bonus) = (plain(&inputs.decay)?, plain(&inputs.bonus)?);
    let (log, mean) = (plain(&inputs.log)?, plain(&inputs.mean)?);
    let log_at = (b * t * n).next_multiple_of(ALIGNED);
    let mean_at = (log_at + b * n).next_multiple_of(ALIGNED);
    let out = empty(&k, &[mean_at + b * n]);
    average_kernel::launch(
        &out.client,
        CubeCount::Static(n.div_ceil(CHANNELS) as u32, b as u32, 1),
        CubeDim::new_2d(CHANNELS as u32, STRIPES as u32),
        decay.into_tensor_arg(),
        bonus.into_tensor_arg(),
        k.into_tensor_arg(),
        v.into_tensor_arg(),
        log.into_tensor_arg(),
        mean.into_tensor_arg(),
        out.clone().into_tensor_arg(),
        log_at,
        mean_at,
        CHANNELS,
        STRIPES,
        STEPS,
    );
    let part = |start, tokens| Burn::from_primitive::<CubeBackend>(part_of(&out, start, [b, tokens, n]));
    Some(Averaged { y: part(0, t), log: part(log_at, 1), mean: part(mean_at, 1) })
}

/// `e^{x - top}` for `top ≥ x`: 0 where `x` is far below, such as the logarithm of no weight at all.
#[cube]
fn power(x: f32, top: f32) -> f32 {
    f32::exp(f32::max(x - top, f32::new(-200.0)))
}

#[cube(launch)]
#[allow(clippy::too_many_arguments, reason = "a kernel's bindings")]
fn average_kernel(
    decay: &Tensor<f32>,
    bonus: &Tensor<f32>,
    k: &Tensor<f32>,
    v: &Tensor<f32>,
    log: &Tensor<f32>,
    mean: &Tensor<f32>,
    out: &mut Tensor<f32>,
    log_at: usize,
    mean_at: usize,
    #[comptime] channels: usize,
    #[comptime] stripes: usize,
    #[comptime] steps: usize,
) {
    // Tiles take turns at two halves, so that one barrier to a tile is enough.
    let half = comptime!(channels * stripes);
    let mut aboves = Shared::<[f32]>::new_slice(2 * half);
    let mut belows = Shared::<[f32]>::new_slice(2 * half);
    let mut tops = Shared::<[f32]>::new_slice(2 * half);
    let unit = UNIT_POS_X as usize;
    let stripe = UNIT_POS_Y as usize;
    let b = CUBE_POS_Y as usize;
    let c = CUBE_POS_X as usize * channels + unit;
    let width = k.shape(2);
    let time = k.shape(1);
    let here = c < width;
    let none = f32::new(comptime!(NEGATIVE as f32));
    let mut fade = f32::new(0.0);
    let mut own_bonus = f32::new(0.0);
    // What all tokens before this tile are together.
    let mut above = f32::new(0.0);
    let mut below = f32::new(1.0);
    let mut top = none;
    if here {
        fade = -f32::exp(decay[c * decay.stride(0)]);
        own_bonus = bonus[c * bonus.stride(0)];
        above = mean[b * mean.stride(0) + c * mean.stride(2)];
        top = log[b * log.stride(0) + c * log.stride(2)];
    }
    let mut key = Array::<f32>::new(steps);
    let mut value = Array::<f32>::new(steps);
    let tile = comptime!(stripes * steps);
    for index in 0..time.div_ceil(tile) {
        let first = index * tile + stripe * steps;
        let mut run_above = f32::new(0.0);
        let mut run_below = f32::new(0.0);
        let mut run_top = none;
        #[unroll]
        for i in 0..steps {
            key[i] = none;
            value[i] = f32::new(0.0);
            if here && first + i < time {
                key[i] = k[b * k.stride(0) + (first + i) * k.stride(1) + c * k.stride(2)];
                value[i] = v[b * v.stride(0) + (first + i) * v.stride(1) + c * v.stride(2)];
                let faded = run_top + fade;
                let next = f32::max(faded, key[i]);
                let (old, new) = (power(faded, next), power(key[i], next));
                run_above = old * run_above + new * value[i];
                run_below = old * run_below + new;
                run_top = next;
            }
        }
        let turn = (index % 2) * half;
        aboves[turn + stripe * channels + unit] = run_above;
        belows[turn + stripe * channels + unit] = run_below;
        tops[turn + stripe * channels + unit] = run_top;
        sync_cube();
        let mut own_above = above;
        let mut own_below = below;
        let mut own_top = top;
        for s in 0..stripes {
            let mine = s == stripe;
            own_above = select(mine, above, own_above);
            own_below = select(mine, below, own_below);
            own_top = select(mine, top, own_top);
            // Tokens of the stripe that there are.
            let start = index * tile + s * steps;
            if start < time {
                let place = turn + s * channels + unit;
                let faded = top + fade * f32::cast_from(min(time - start, steps));
                let next = f32::max(faded, tops[place]);
                let (old, new) = (power(faded, next), power(tops[place], next));
                above = old * above + new * aboves[place];
                below = old * below + new * belows[place];
                top = next;
            }
        }
        #[unroll]
        for i in 0..steps {
            if here && first + i < time {
                let asked = key[i] + own_bonus;
                let most = f32::max(own_top, asked);
                let (old, new) = (power(own_top, most), power(asked, most));
                out[(b * time + first + i) * width + c] =
                    (old * own_above + new * value[i]) / (old * own_below + new);
                let faded = own_top + fade;
                let next = f32::max(faded, key[i]);
                let (old, new) = (power(faded, next), power(key[i], next));
                own_above = old * own_above + new * value[i];
                own_below = old * own_below + new;
                own_top = next;
            }
        }
    }
    if here && stripe == 0 {
        out[log_at + b * width + c] = top + f32::ln(below);
        out[mean_at + b * width + c] = above / below;
    }
}
