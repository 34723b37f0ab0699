//! Decay and gated input of one state per channel, as [`pointwise`](crate::kernels::pointwise) has them, without
//! gradients: a unit takes a number of both.
//!
//! Floor: memory, 16 bytes per number read and 8 written, in one launch instead of two.

use burn::tensor::Tensor as Burn;
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;
use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;

use super::buffer::{ALIGNED, dims, empty, part_of};
use super::functions::sigmoid;
use super::pointwise::{column, minus_expm1, place, softplus};
use crate::nn::LOG_ZERO;

/// Units of a cube.
const UNITS: u32 = 64;

/// `log a = -scale softplus(rate) sigmoid(r + p)`, or [`LOG_ZERO`] where `reset` is 1 and not 0, and
/// `sqrt(1 - a²) sigmoid(i + q) u`, of `[r, reset, i, u]: [a, b, m, n]` and `[p, rate, q]: [1, 1, m, n]`; `None` where
/// they are not for this kernel: gradients, another device or element type.
pub(crate) fn decay_and_input(
    tensors: [&Burn<4>; 4],
    parameters: [&Burn<4>; 3],
    scale: f64,
) -> Option<[Burn<4>; 2]> {
    let sizes = tensors[0].dims();
    let fits = |x: &Burn<4>| super::linear::on_graphics(x) && super::fits(x, 1);
    let alike = tensors.iter().all(|x| x.dims() == sizes && fits(x));
    let columns = parameters.iter().all(|x| x.dims() == [1, 1, sizes[2], sizes[3]] && fits(x));
    if !alike || !columns || sizes.contains(&0) {
        return None;
    }
    let plain = |x: &Burn<4>| x.clone().try_into_primitive::<CubeBackend>().ok();
    let [r, reset, i, u] = tensors.map(plain);
    let [p, rate, q] = parameters.map(plain);
    let r: CubeTensor = r?;
    let count: usize = sizes.iter().product();
    let apart = count.next_multiple_of(ALIGNED);
    let out = empty(&r, &[2 * apart]);
    let units = CubeDim::new_1d(UNITS);
    gate_kernel::launch(
        &out.client,
        calculate_cube_count_elemwise(&out.client, count, units),
        units,
        r.clone().into_tensor_arg(),
        reset?.into_tensor_arg(),
        i?.into_tensor_arg(),
        u?.into_tensor_arg(),
        p?.into_tensor_arg(),
        rate?.into_tensor_arg(),
        q?.into_tensor_arg(),
        out.clone().into_tensor_arg(),
        scale as f32,
        count,
        apart,
    );
    Some([0, apart].map(|start| Burn::from_primitive::<CubeBackend>(part_of(&out, start, dims(&r)))))
}

#[cube(launch)]
#[allow(clippy::too_many_arguments, reason = "a kernel's bindings")]
fn gate_kernel(
    r: &Tensor<f32>,
    reset: &Tensor<f32>,
    i: &Tensor<f32>,
    u: &Tensor<f32>,
    p: &Tensor<f32>,
    rate: &Tensor<f32>,
    q: &Tensor<f32>,
    out: &mut Tensor<f32>,
    scale: f32,
    count: usize,
    apart: usize,
) {
    let at = ABSOLUTE_POS;
    if at < count {
        let forgets = reset[place(reset, at)];
        let speed = scale * softplus(rate[column(rate, r, at)]);
        let open = sigmoid(r[place(r, at)] + p[column(p, r, at)]);
        let log = forgets * f32::new(comptime!(LOG_ZERO as f32)) - (f32::new(1.0) - forgets) * (speed * open);
        let root = f32::sqrt(minus_expm1(log + log));
        out[at] = log;
        out[apart + at] = root * sigmoid(i[place(i, at)] + q[column(q, r, at)]) * u[place(u, at)];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::pointwise::Inputs;
    use crate::nn::{Formula, Function};
    use crate::testing::{Draw, error, graphics, numbers};

    #[test]
    fn both_are_what_they_are_apart() {
        for device in graphics() {
            for [a, b, m, n] in [[1, 1, 1, 1], [2, 5, 3, 20], [1, 70, 2, 33]] {
                let mut draw = Draw::new(n as u64);
                let mut four = |dims, low, high| draw.tensor::<4>(dims, low, high).to_device(&device);
                let [r, i, u] = [0, 1, 2].map(|_| four([a, b, m, n], -3.0, 3.0));
                let reset = four([a, b, 1, 1], -1.0, 1.0).clamp_min(0.0).ceil().expand([a, b, m, n]);
                let [p, rate, q] = [0, 1, 2].map(|_| four([1, 1, m, n], -1.0, 1.0));
                let found = decay_and_input([&r, &reset, &i, &u], [&p, &rate, &q], 8.0);
                let decay = Inputs { tensors: vec![r.clone(), reset], parameters: vec![p.clone(), rate] };
                let log = decay.run(Formula { scale: 8.0, ..Formula::new(Function::GateDecay) });
                let input = Inputs { tensors: vec![log.clone(), i, u], parameters: vec![q] };
                let input = input.run(Formula::new(Function::GateInput));
                for (found, expected) in found.expect("it is for the kernel").into_iter().zip([log, input]) {
                    assert_eq!(found.dims(), expected.dims());
                    assert!(error(&numbers(found), &numbers(expected)) <= 1e-6, "{m} {n}");
                }
                let leaf = r.autodiff().require_grad();
                assert!(decay_and_input([&leaf; 4], [&p; 3], 8.0).is_none());
            }
        }
    }
}
