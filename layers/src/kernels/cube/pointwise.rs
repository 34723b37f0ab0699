//! [`pointwise`](crate::kernels::pointwise): a unit takes a number of the output; backward, where there are parameters,
//! some of a column, whose gradients it adds up.
//!
//! Floor: memory, in one launch forward. Backward one, and one more that adds up the sums of units for parameters.

#![allow(clippy::collapsible_if, reason = "the outer one is decided when a kernel is compiled")]

mod backward;

use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;
use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;

use super::buffer::{ALIGNED, dims, empty, part_of};
use super::functions::{bounded, sigmoid};
use super::sum::{COLUMNS, add_up};
use crate::kernels::pointwise::{Passes, Read};
use crate::nn::{Formula, Function, LOG_ZERO, MOST_SLOPE};

pub(super) use self::formulas::{alone, gelu, gelu_slope, minus_expm1, place, softplus, step};

/// Units of a cube.
const UNITS: u32 = 64;

/// Units that keep a device busy.
const BUSY: usize = 1 << 16;

/// Whether the kernel can run these: `x: [a, b, m, n]`.
pub(in crate::kernels) fn maps(x: &burn::tensor::Tensor<4>) -> bool {
    let [a, b, m, n] = x.dims();
    // All gradients lie in one buffer.
    let fits = (3 * a * b).saturating_mul(m).saturating_mul(n) < 1 << 31;
    fits && super::fits(x, m.saturating_mul(n).div_ceil(COLUMNS))
}

impl Passes for CubeBackend {
    fn forward(read: &Read<Self>) -> CubeTensor {
        let [x, y, z, p, q] = &read.all;
        let Formula { function, scale, low, high } = read.formula;
        let sizes = dims(x);
        let out = empty(x, &sizes);
        let count = sizes.iter().product();
        let units = CubeDim::new_1d(UNITS);
        forward::forward_kernel::launch(
            &x.client,
            calculate_cube_count_elemwise(&x.client, count, units),
            units,
            x.clone().into_tensor_arg(),
            y.clone().into_tensor_arg(),
            z.clone().into_tensor_arg(),
            p.clone().into_tensor_arg(),
            q.clone().into_tensor_arg(),
            out.clone().into_tensor_arg(),
            scale as f32,
            low as f32,
            high as f32,
            count,
            function,
        );
        out
    }

    fn backward(read: Read<Self>, dy: CubeTensor) -> [Option<CubeTensor>; 5] {
        let Formula { function, scale, low, high } = read.formula;
        let [x, y, z, p, q] = read.all;
        let (tensors, parameters) = function.arity();
        let sizes = dims(&x);
        let count: usize = sizes.iter().product();
        let parameter = if parameters > 0 { dims(&p) } else { [1, 1, 1, sizes[3]] };
        let columns: usize = parameter.iter().product();
        let rows = count / columns;
        // As few sums as leave enough units.
        let size = if parameters > 0 { (count / BUSY).clamp(1, 64).max(rows.div_ceil(1 << 12)) } else { 1 };
        let parts = rows.div_ceil(size);
        let apart = count.next_multiple_of(ALIGNED);
        let grads = empty(&x, &[tensors * apart]);
        let sums = empty(&x, &if parameters > 0 { [parts, 2, columns] } else { [1; 3] });
        let units = CubeDim::new_1d(UNITS);
        let client = x.client.clone();
        backward::backward_kernel::launch(
            &client,
            calculate_cube_count_elemwise(&client, parts * columns, units),
            units,
            x.into_tensor_arg(),
            y.into_tensor_arg(),
            z.into_tensor_arg(),
            p.into_tensor_arg(),
            q.into_tensor_arg(),
            dy.into_tensor_arg(),
            grads.clone().into_tensor_arg(),
            sums.clone().into_tensor_arg(),
            scale as f32,
            low as f32,
            high as f32,
            count,
            columns,
            size,
            apart,
            function,
        );
        let part = |which: usize| part_of(&grads, which * apart, sizes);
        let second = tensors > 1 && function != Function::GateDecay;
        let tensors = [Some(part(0)), second.then(|| part(1)), (tensors > 2).then(|| part(2))];
        let (p, q) = match parameters {
            0 => (None, None),
            _ => {
                let (p, q) = add_up(sums, parameter, parameters > 1);
                (Some(p), q)
            }
        };
        let [x, y, z] = tensors;
        [x, y, z, p, q]
    }
}

mod formulas {
    use super::*;

    /// Where number `at` of the output is in `x`.
    #[cube]
    pub(crate) fn place(x: &Tensor<f32>, at: usize) -> usize {
        let (b, m, n) = (x.shape(1), x.shape(2), x.shape(3));
        let row = at / n;
        let head = row / m;
        (head / b) * x.stride(0) + (head % b) * x.stride(1) + (row % m) * x.stride(2) + (at % n) * x.stride(3)
    }

    /// Where the parameter for number `at` of `x` is.
    #[cube]
    pub(super) fn column(p: &Tensor<f32>, x: &Tensor<f32>, at: usize) -> usize {
        let n = x.shape(3);
        (at / n % x.shape(2) % p.shape(2)) * p.stride(2) + (at % n) * p.stride(3)
    }

    /// `log(1 + e^z)`: the logarithm of `1 + y`, `y ≤ 1`, is `2 artanh(y / (2 + y))`, by its series.
    #[cube]
    pub(crate) fn softplus(z: f32) -> f32 {
        let y = f32::exp(-f32::abs(z));
        let s = y / (y + f32::new(2.0));
        let square = s * s;
        let mut sum = f32::new(comptime!(2.0 / 17.0));
        sum = sum * square + f32::new(comptime!(2.0 / 15.0));
        sum = sum * square + f32::new(comptime!(2.0 / 13.0));
        sum = sum * square + f32::new(comptime!(2.0 / 11.0));
        sum = sum * square + f32::new(comptime!(2.0 / 9.0));
        sum = sum * square + f32::new(comptime!(2.0 / 7.0));
        sum = sum * square + f32::new(comptime!(2.0 / 5.0));
        sum = sum * square + f32::new(comptime!(2.0 / 3.0));
        sum = sum * square + f32::new(2.0);
        s * sum + f32::max(z, f32::new(0.0))
    }

    /// `1 - e^v` for `v ≤ 0`, without cancellation near 0.
    #[cube]
    pub(crate) fn minus_expm1(v: f32) -> f32 {
        let one = f32::new(1.0);
        let mut sum = v * f32::new(comptime!(1.0 / 9.0)) + one;
        sum = sum * v * f32::new(comptime!(1.0 / 8.0)) + one;
        sum = sum * v * f32::new(comptime!(1.0 / 7.0)) + one;
        sum = sum * v * f32::new(comptime!(1.0 / 6.0)) + one;
        sum = sum * v * f32::new(comptime!(1.0 / 5.0)) + one;
        sum = sum * v * f32::new(comptime!(1.0 / 4.0)) + one;
        sum = sum * v * f32::new(comptime!(1.0 / 3.0)) + one;
        sum = sum * v * f32::new(comptime!(1.0 / 2.0)) + one;
        select(v > f32::new(-0.5), -v * sum, one - f32::exp(v))
    }

    /// `√(8/π) = 2 √(2/π)`, and that times 0.044715: `gelu(x) = x sigmoid(x (rate + cubic x²))`.
    const RATE: f32 = 1.595_769;
    const CUBIC: f32 = 0.071_354_82;

    #[cube]
    pub(crate) fn gelu(x: f32) -> f32 {
        x * sigmoid(x * (f32::new(RATE) + f32::new(CUBIC) * x * x))
    }

    #[cube]
    pub(crate) fn gelu_slope(x: f32) -> f32 {
        let square = x * x;
        let open = sigmoid(x * (f32::new(RATE) + f32::new(CUBIC) * square));
        let inner = f32::new(RATE) + f32::new(comptime!(3.0 * CUBIC)) * square;
        open * (x * inner * (f32::new(1.0) - open) + f32::new(1.0))
    }

    #[cube]
    pub(super) fn silu_slope(x: f32) -> f32 {
        let open = sigmoid(x);
        open * (x * (f32::new(1.0) - open) + f32::new(1.0))
    }

    #[cube]
    pub(crate) fn step(z: f32, low: f32, high: f32) -> f32 {
        f32::min(f32::max(softplus(z), low), high)
    }

    #[cube]
    pub(super) fn step_slope(z: f32, low: f32, high: f32) -> f32 {
        let step = softplus(z);
        select(step < low || step > high, f32::new(0.0), sigmoid(z))
    }

    /// Functions of a number alone, which itself comes out for the others.
    #[cube]
    pub(crate) fn alone(a: f32, scale: f32, #[comptime] function: Function) -> f32 {
        let mut found = a;
        if comptime!(function == Function::Silu) {
            found = a * sigmoid(a);
        }
        if comptime!(function == Function::Sigmoid) {
            found = scale * sigmoid(a);
        }
        if comptime!(function == Function::Closed) {
            found = scale * sigmoid(-a);
        }
        if comptime!(function == Function::GeluTanh) {
            found = gelu(a);
        }
        if comptime!(function == Function::LogSigmoid) {
            found = -(scale * softplus(-a));
        }
        if comptime!(function == Function::EluPlusOne) {
            found = scale * (f32::max(a, f32::new(0.0)) + f32::exp(f32::min(a, f32::new(0.0))));
        }
        if comptime!(function == Function::Tanh) {
            found = bounded(a);
        }
        if comptime!(function == Function::SquaredRelu) {
            found = f32::max(a, f32::new(0.0)) * f32::max(a, f32::new(0.0));
        }
        if comptime!(function == Function::Rate) {
            found = -f32::exp(f32::min(a, scale));
        }
        found
    }
}

mod forward {
    use super::formulas::{alone, column, gelu, minus_expm1, place, softplus, step};
    use super::*;

    #[cube(launch)]
    #[allow(clippy::too_many_arguments, reason = "a kernel's bindings")]
    pub(super) fn forward_kernel(
        x: &Tensor<f32>,
        y: &Tensor<f32>,
        z: &Tensor<f32>,
        p: &Tensor<f32>,
        q: &Tensor<f32>,
        out: &mut Tensor<f32>,
        scale: f32,
        low: f32,
        high: f32,
        count: usize,
        #[comptime] function: Function,
    ) {
        let at = ABSOLUTE_POS;
        if at < count {
            out[at] = value(x, y, z, p, q, at, scale, low, high, function);
        }
    }

    /// Number `at` of what a function makes of its inputs.
    #[cube]
    #[allow(clippy::too_many_arguments, reason = "what a function takes")]
    fn value(
        x: &Tensor<f32>,
        y: &Tensor<f32>,
        z: &Tensor<f32>,
        p: &Tensor<f32>,
        q: &Tensor<f32>,
        at: usize,
        scale: f32,
        low: f32,
        high: f32,
        #[comptime] function: Function,
    ) -> f32 {
        let a = x[place(x, at)];
        let mut found = alone(a, scale, function);
        if comptime!(function == Function::LogGate) {
            found = -(scale * softplus(-(a + p[column(p, x, at)])));
        }
        if comptime!(function == Function::Skip) {
            found = a + p[column(p, x, at)] * y[place(y, at)];
        }
        if comptime!(function == Function::SiluGate) {
            let gate = y[place(y, at)];
            found = a * (gate * sigmoid(gate));
        }
        if comptime!(function == Function::SigmoidGate) {
            found = a * sigmoid(y[place(y, at)]);
        }
        if comptime!(function == Function::GeluGate) {
            found = a * gelu(y[place(y, at)]);
        }
        if comptime!(function == Function::Step) {
            found = step(a + p[column(p, x, at)], low, high);
        }
        if comptime!(function == Function::StepDecay) {
            found = -(f32::exp(q[column(q, x, at)]) * step(a + p[column(p, x, at)], low, high));
        }
        if comptime!(function == Function::GateDecay) {
            let rate = scale * softplus(q[column(q, x, at)]);
            let reset = y[place(y, at)];
            let keep = f32::new(1.0) - reset;
            found = reset * f32::new(comptime!(LOG_ZERO as f32))
                - keep * (rate * sigmoid(a + p[column(p, x, at)]));
        }
        if comptime!(function == Function::Erase) {
            found = -(a * f32::exp(y[place(y, at)]));
        }
        if comptime!(function == Function::Share) {
            found = a / (y[place(y, at)] + scale);
        }
        if comptime!(function == Function::GateInput) {
            let root = f32::sqrt(minus_expm1(a + a));
            found = root * sigmoid(y[place(y, at)] + p[column(p, x, at)]) * z[place(z, at)];
        }
        if comptime!(function == Function::Lerp) {
            found = a + p[column(p, x, at)] * (y[place(y, at)] - a);
        }
        if comptime!(function == Function::Mix) {
            found = a + (z[place(z, at)] + p[column(p, x, at)]) * (y[place(y, at)] - a);
        }
        if comptime!(function == Function::Rescale) {
            found = a * (f32::new(1.0) + p[column(p, x, at)] * (y[place(y, at)] - f32::new(1.0)));
        }
        if comptime!(function == Function::Product) {
            found = a * y[place(y, at)] * p[column(p, x, at)];
        }
        found
    }
}
