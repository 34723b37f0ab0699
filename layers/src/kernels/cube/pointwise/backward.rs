//! The derivatives.

use super::formulas::{column, gelu, gelu_slope, minus_expm1, place, silu_slope, softplus, step, step_slope};
use super::*;

/// A unit takes `size` rows of a column.
#[cube(launch)]
#[allow(clippy::too_many_arguments, reason = "a kernel's bindings")]
pub(super) fn backward_kernel(
    x: &Tensor<f32>,
    y: &Tensor<f32>,
    z: &Tensor<f32>,
    p: &Tensor<f32>,
    q: &Tensor<f32>,
    dy: &Tensor<f32>,
    grads: &mut Tensor<f32>,
    sums: &mut Tensor<f32>,
    scale: f32,
    low: f32,
    high: f32,
    count: usize,
    columns: usize,
    size: usize,
    apart: usize,
    #[comptime] function: Function,
) {
    let (tensors, parameters) = comptime!(function.arity());
    let c = ABSOLUTE_POS % columns;
    let part = ABSOLUTE_POS / columns;
    let rows = count / columns;
    let one = f32::new(1.0);
    if part < rows.div_ceil(size) {
        let mut d_p = f32::new(0.0);
        let mut d_q = f32::new(0.0);
        let first = part * size;
        for row in first..min(first + size, rows) {
            let at = row * columns + c;
            let a = x[place(x, at)];
            let grad = dy[place(dy, at)];
            let mut by_x = f32::new(0.0);
            let mut by_y = f32::new(0.0);
            let mut by_z = f32::new(0.0);
            if comptime!(function == Function::Silu) {
                by_x = silu_slope(a);
            }
            if comptime!(function == Function::Sigmoid) {
                let open = sigmoid(a);
                by_x = scale * open * (one - open);
            }
            if comptime!(function == Function::Closed) {
                let open = sigmoid(-a);
                by_x = -(scale * open * (one - open));
            }
            if comptime!(function == Function::GeluTanh) {
                by_x = gelu_slope(a);
            }
            if comptime!(function == Function::LogSigmoid) {
                by_x = scale * sigmoid(-a);
            }
            if comptime!(function == Function::EluPlusOne) {
                by_x = scale * f32::exp(f32::min(a, f32::new(0.0)));
            }
            if comptime!(function == Function::LogGate) {
                by_x = scale * sigmoid(-(a + p[column(p, x, at)]));
                d_p += grad * by_x;
            }
            if comptime!(function == Function::Skip) {
                by_x = one;
                by_y = p[column(p, x, at)];
                d_p += grad * y[place(y, at)];
            }
            if comptime!(function == Function::SiluGate) {
                let gate = y[place(y, at)];
                by_x = gate * sigmoid(gate);
                by_y = a * silu_slope(gate);
            }
            if comptime!(function == Function::SigmoidGate) {
                by_x = sigmoid(y[place(y, at)]);
                by_y = a * (by_x * (one - by_x));
            }
            if comptime!(function == Function::GeluGate) {
                let gate = y[place(y, at)];
                by_x = gelu(gate);
                by_y = a * gelu_slope(gate);
            }
            if comptime!(function == Function::Step) {
                by_x = step_slope(a + p[column(p, x, at)], low, high);
                d_p += grad * by_x;
            }
            if comptime!(function == Function::StepDecay) {
                let rate = -f32::exp(q[column(q, x, at)]);
                let sum = a + p[column(p, x, at)];
                by_x = rate * step_slope(sum, low, high);
                d_p += grad * by_x;
                d_q += grad * (rate * step(sum, low, high));
            }
            if comptime!(function == Function::GateDecay) {
                let keep = (one - y[place(y, at)]) * scale;
                let open = sigmoid(a + p[column(p, x, at)]);
                let base = q[column(q, x, at)];
                by_x = -(keep * softplus(base)) * (open * (one - open));
                d_p += grad * by_x;
                d_q -= grad * (keep * sigmoid(base) * open);
            }
            if comptime!(function == Function::Erase) {
                by_x = -f32::exp(y[place(y, at)]);
                by_y = a * by_x;
            }
            if comptime!(function == Function::Share) {
                by_x = one / (y[place(y, at)] + scale);
                by_y = -(a * by_x * by_x);
            }
            if comptime!(function == Function::GateInput) {
                let open = sigmoid(y[place(y, at)] + p[column(p, x, at)]);
                let input = z[place(z, at)];
                let rest = minus_expm1(a + a);
                let root = f32::sqrt(rest);
                let least = f32::new(comptime!((0.25 / (MOST_SLOPE * MOST_SLOPE)) as f32));
                by_x = -f32::exp(a + a) / f32::sqrt(f32::max(rest, least)) * open * input;
                by_y = root * (open * (one - open)) * input;
                by_z = root * open;
                d_p += grad * by_y;
            }
            if comptime!(function == Function::Tanh) {
                let found = bounded(a);
                by_x = one - found * found;
            }
            if comptime!(function == Function::SquaredRelu) {
                by_x = f32::new(2.0) * f32::max(a, f32::new(0.0));
            }
            if comptime!(function == Function::Rate) {
                by_x = select(a > scale, f32::new(0.0), -f32::exp(f32::min(a, scale)));
            }
            if comptime!(function == Function::Lerp) {
                by_y = p[column(p, x, at)];
                by_x = one - by_y;
                d_p += grad * (y[place(y, at)] - a);
            }
            if comptime!(function == Function::Mix) {
                by_y = z[place(z, at)] + p[column(p, x, at)];
                by_x = one - by_y;
                by_z = y[place(y, at)] - a;
                d_p += grad * by_z;
            }
            if comptime!(function == Function::Rescale) {
                let rest = y[place(y, at)] - one;
                by_y = a * p[column(p, x, at)];
                by_x = one + p[column(p, x, at)] * rest;
                d_p += grad * (a * rest);
            }
            if comptime!(function == Function::Product) {
                let other = y[place(y, at)];
                by_x = other * p[column(p, x, at)];
                by_y = a * p[column(p, x, at)];
                d_p += grad * (a * other);
            }
            grads[at] = grad * by_x;
            if comptime!(tensors > 1) {
                grads[apart + at] = grad * by_y;
            }
            if comptime!(tensors > 2) {
                grads[2 * apart + at] = grad * by_z;
            }
        }
        if comptime!(parameters > 0) {
            sums[2 * part * columns + c] = d_p;
            sums[(2 * part + 1) * columns + c] = d_q;
        }
    }
}
