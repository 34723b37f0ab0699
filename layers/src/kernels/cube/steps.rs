//! Steps and decays of a head, and keys times steps, as Mamba-2 has them, without gradients: a unit takes a number of a
//! key.
//!
//! Floor: memory, 4 bytes per number of the keys written, in one launch instead of three. Each step is made for every
//! number of its key again, which costs no memory.

use burn::tensor::Tensor as Burn;
use burn_cubecl::CubeBackend;
use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;

use super::buffer::{ALIGNED, empty, part_of};
use super::pointwise::step;

/// Units of a cube.
const UNITS: u32 = 64;

/// `-exp(log_rate) Δ: [b, h, t, 1]` and `Δ key: [b, h, t, n]` with `Δ = clamp(softplus(dt + bias))`, of
/// `key: [b, t, groups n]`, `dt: [b, t, h]`, `bias` and `log_rate`: `[h]`; `None` where they are not for this kernel:
/// gradients, another device or element type.
pub(crate) fn decays_and_keys(
    key: &Burn<3>,
    groups: usize,
    dt: &Burn<3>,
    [bias, log_rate]: [&Burn<1>; 2],
    [low, high]: [f64; 2],
) -> Option<[Burn<4>; 2]> {
    let ([b, t, h], [_, _, width]) = (dt.dims(), key.dims());
    let n = width / groups;
    let numbers = b * h * t * n;
    let fits = |x: &Burn<3>| super::linear::on_graphics(x) && super::fits(x, 1);
    if !fits(key) || !fits(dt) || numbers == 0 || numbers >= 1 << 30 {
        return None;
    }
    let plain = |x: &Burn<3>| x.clone().try_into_primitive::<CubeBackend>().ok();
    let parameter = |x: &Burn<1>| x.clone().try_into_primitive::<CubeBackend>().ok();
    let (key, dt, bias, log_rate) = (plain(key)?, plain(dt)?, parameter(bias)?, parameter(log_rate)?);
    let log_at = numbers.next_multiple_of(ALIGNED);
    let out = empty(&key, &[log_at + b * h * t]);
    let units = CubeDim::new_1d(UNITS);
    step_kernel::launch(
        &out.client,
        calculate_cube_count_elemwise(&out.client, numbers, units),
        units,
        key.into_tensor_arg(),
        dt.into_tensor_arg(),
        bias.into_tensor_arg(),
        log_rate.into_tensor_arg(),
        out.clone().into_tensor_arg(),
        low as f32,
        high as f32,
        numbers,
        n,
        h / groups,
        log_at,
    );
    let part = |start, columns| {
        let part = part_of(&out, start, [b, h, t, columns]);
        Burn::<4>::from_primitive::<CubeBackend>(part)
    };
    Some([part(log_at, 1), part(0, n)])
}

#[cube(launch)]
#[allow(clippy::too_many_arguments, reason = "a kernel's bindings")]
fn step_kernel(
    key: &Tensor<f32>,
    dt: &Tensor<f32>,
    bias: &Tensor<f32>,
    log_rate: &Tensor<f32>,
    out: &mut Tensor<f32>,
    low: f32,
    high: f32,
    numbers: usize,
    n: usize,
    group: usize,
    log_at: usize,
) {
    let at = ABSOLUTE_POS;
    if at < numbers {
        let (time, heads) = (dt.shape(1), dt.shape(2));
        let (row, c) = (at / n, at % n);
        let token = row % time;
        let head = row / time % heads;
        let batch = row / time / heads;
        let raw = dt[batch * dt.stride(0) + token * dt.stride(1) + head * dt.stride(2)];
        let size = step(raw + bias[head * bias.stride(0)], low, high);
        let column = head / group * n + c;
        out[at] = size * key[batch * key.stride(0) + token * key.stride(1) + column * key.stride(2)];
        if c == 0 {
            out[log_at + row] = -(f32::exp(log_rate[head * log_rate.stride(0)]) * size);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::Steps;
    use crate::testing::{Draw, error, graphics, numbers};

    #[test]
    fn they_are_those_of_tensor_operations() {
        for device in graphics() {
            for (b, t, groups, group, n) in [(1, 1, 1, 1, 1), (2, 5, 3, 2, 20), (1, 70, 1, 4, 33)] {
                let mut draw = Draw::new(n as u64);
                let h = groups * group;
                let key = draw.tensor::<3>([b, t, groups * n], -1.0, 1.0);
                let dt = draw.tensor::<3>([b, t, h], -4.0, 4.0);
                let [bias, log_rate] = [0, 1].map(|_| draw.tensor::<1>([h], -1.0, 1.0));
                let steps = Steps { low: 0.3, high: Some(1.5) };
                let (log, keys) =
                    steps.decays_and_keys(dt.clone(), bias.clone(), log_rate.clone(), key.clone(), groups);
                let [key, dt] = [key, dt].map(|x| x.to_device(&device));
                let [bias, log_rate] = [bias, log_rate].map(|x| x.to_device(&device));
                let found = decays_and_keys(&key, groups, &dt, [&bias, &log_rate], [0.3, 1.5]);
                let [found_log, found_keys] = found.expect("it is for the kernel");
                assert_eq!(found_keys.dims(), keys.dims());
                assert!(error(&numbers(found_log), &numbers(log)) <= 1e-6, "{t} {n}");
                assert!(error(&numbers(found_keys), &numbers(keys)) <= 1e-6, "{t} {n}");
                let leaf = key.autodiff().require_grad();
                assert!(decays_and_keys(&leaf, groups, &dt, [&bias, &log_rate], [0.3, 1.5]).is_none());
            }
        }
    }
}
