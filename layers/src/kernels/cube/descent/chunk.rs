//! What the units of a cube do together with the numbers of a chunk; see the equations of
//! [`descent`](crate::kernels::descent).

#![allow(clippy::collapsible_if, reason = "the outer one is decided when a kernel is compiled")]

use cubecl::prelude::*;

use super::rule::{Loss, Rule, UNITS};
use crate::kernels::cube::buffer::ALIGNED;
use crate::kernels::cube::functions::bounded;
use crate::kernels::cube::pointwise::{gelu, gelu_slope};
use crate::miras::SMOOTH;

/// Where a head's matrix of a layer lies.
#[cube]
pub(super) fn matrix(
    start: usize,
    head: usize,
    heads: usize,
    #[comptime] slot: usize,
    #[comptime] l: usize,
    #[comptime] rule: Rule,
) -> usize {
    let mut at = start + head * comptime!(rule.size(l));
    #[unroll]
    for before in 0..comptime!(slot * rule.depth + l) {
        at += (heads * comptime!(rule.size(before % rule.depth))).div_ceil(ALIGNED) * ALIGNED;
    }
    at
}

/// `sums[r] += Σ_k x[r, k] w[k] f[k]` for some rows, the last of which is row `last`: where each of them begins, and how
/// far its numbers lie apart.
#[cube]
#[allow(clippy::too_many_arguments, reason = "three matrices of one buffer")]
pub(super) fn multiply(
    all: &mut Tensor<f32>,
    sums: &mut Array<f32>,
    x: usize,
    by_row: usize,
    by_k: usize,
    last: usize,
    w: usize,
    w_by_k: usize,
    factors: usize,
    depth: usize,
    #[comptime] weighed: bool,
    #[comptime] rows: usize,
) {
    #[unroll]
    for r in 0..rows {
        sums[r] = 0.0;
    }
    for k in 0..depth {
        let mut number = all[w + k * w_by_k];
        if comptime!(weighed) {
            number *= all[factors + k];
        }
        #[unroll]
        for r in 0..rows {
            sums[r] += number * all[x + min(r, last) * by_row + k * by_k];
        }
    }
}

/// The chunk's plan: units take columns.
#[cube]
#[allow(clippy::too_many_arguments, reason = "a chunk and its place")]
pub(super) fn plan(
    gates: &Tensor<f32>,
    all: &mut Tensor<f32>,
    to: usize,
    gates_at: usize,
    size: usize,
    ends: bool,
    #[comptime] rule: Rule,
) {
    let (wide, tokens) = comptime!((rule.wide(), rule.tokens));
    let (by_token, by_gate) = (gates.stride(2), gates.stride(3));
    for column in range_stepped(UNIT_POS as usize, wide, UNITS) {
        if column < size || column >= tokens {
            let of_a = column == tokens;
            let of_s = column > tokens;
            let one = f32::new(1.0);
            let none = f32::new(0.0);
            let mut n = none;
            if of_s {
                n = f32::new(comptime!(if rule.batched { -1.0 } else { 1.0 }));
            }
            let mut g = select(of_a, one, none);
            let mut real = one;
            for t in 0..size {
                let from = gates_at + t * by_token;
                let eta = gates[from];
                let second = gates[from + by_gate];
                if comptime!(rule.ragged) {
                    real = gates[from + comptime!(rule.valid()) * by_gate];
                }
                if comptime!(rule.batched) {
                    n += select(column == t, eta, none);
                    g = select(of_a, one, second * n);
                } else {
                    let mut keep = none;
                    if comptime!(rule.momentum) {
                        keep = f32::exp(gates[from + 2 * by_gate]);
                    }
                    n = select(column == t, eta, n * keep);
                    g = g * f32::exp(second) + n * real;
                }
                all[to + t * wide + column] = g;
            }
            if comptime!(rule.batched) {
                all[to + comptime!(tokens * wide) + column] = select(ends, g, select(of_a, one, none));
                if comptime!(rule.momentum) {
                    all[to + comptime!((tokens + 1) * wide) + column] = select(ends, none, -n);
                }
            } else {
                all[to + comptime!(tokens * wide) + column] = g;
                if comptime!(rule.momentum) {
                    all[to + comptime!((tokens + 1) * wide) + column] = n;
                }
            }
        }
    }
}

/// The rows' `x W` of a layer, and what the next one sees of them: gelu from `to` on, its slopes from `slopes` on if they
/// are wanted; of the last layer the products.
#[cube]
pub(super) fn store_made(
    all: &mut Tensor<f32>,
    made: f32,
    row: usize,
    column: usize,
    to: usize,
    slopes: usize,
    #[comptime] sloped: bool,
    #[comptime] l: usize,
    #[comptime] rule: Rule,
) {
    let outputs = comptime!(rule.outputs(l));
    if comptime!(l + 1 == rule.depth) {
        all[to + row * outputs + column] = made;
    } else {
        let wide = comptime!(rule.inputs(l + 1));
        all[to + row * wide + column] = activated(made, rule.tanh);
        if comptime!(rule.offset) {
            if column == 0 {
                all[to + row * wide + comptime!(rule.hidden)] = 1.0;
            }
        }
        if comptime!(sloped) {
            all[slopes + row * outputs + column] = slope(made, rule.tanh);
        }
    }
}

#[cube]
fn activated(x: f32, #[comptime] tanh: bool) -> f32 {
    let mut found = gelu(x);
    if comptime!(!tanh) {
        found = x * cdf(x);
    }
    found
}

#[cube]
fn slope(x: f32, #[comptime] tanh: bool) -> f32 {
    let mut found = gelu_slope(x);
    if comptime!(!tanh) {
        let density = f32::exp(f32::new(-0.5) * x * x) * f32::new(comptime!(0.398_942_3));
        found = cdf(x) + x * density;
    }
    found
}

#[cube]
#[allow(unstable_name_collisions, reason = "the device's")]
fn cdf(x: f32) -> f32 {
    f32::new(0.5) + f32::new(0.5) * f32::erf(x * f32::new(comptime!(std::f32::consts::FRAC_1_SQRT_2)))
}

/// `ẑ = (z - mean) rate` of the row that begins at `z`: both.
#[cube]
pub(super) fn standard(all: &mut Tensor<f32>, z: usize, eps: f32, #[comptime] width: usize) -> (f32, f32) {
    let share = f32::new(comptime!(1.0 / width as f32));
    let mut mean = f32::new(0.0);
    for i in 0..width {
        mean += all[z + i];
    }
    mean *= share;
    let mut squares = f32::new(0.0);
    for i in 0..width {
        let apart = all[z + i] - mean;
        squares += apart * apart;
    }
    (mean, f32::new(1.0) / f32::sqrt(squares * share + eps))
}

/// `u` of a channel, from its residual, value and threshold and the residuals' `squares`.
#[cube]
#[allow(clippy::too_many_arguments, reason = "what losses take")]
pub(super) fn of_loss(
    r: f32,
    v: f32,
    delta: f32,
    squares: f32,
    nu: f32,
    exponent: f32,
    clip: f32,
    #[comptime] loss: Loss,
) -> f32 {
    let mut u = r;
    let one = f32::new(1.0);
    let least = f32::new(comptime!(SMOOTH as f32));
    let length = f32::max(f32::sqrt(squares), f32::new(1e-6));
    if comptime!(loss == Loss::Dot) {
        u = -v;
    }
    if comptime!(matches!(loss, Loss::Power | Loss::SignedPower)) {
        let clipped = f32::min(f32::max(r, -clip), clip);
        let size = f32::exp(exponent * f32::ln(clipped * clipped + least));
        u = clipped * size;
        if comptime!(loss == Loss::SignedPower) {
            u = bounded(nu * clipped) * size;
        }
    }
    if comptime!(loss == Loss::Shift) {
        u = r * (one + delta / f32::sqrt(squares + least));
    }
    if comptime!(loss == Loss::Less) {
        u = bounded(nu * r);
    }
    if comptime!(loss == Loss::Huber) {
        u = r * f32::min(delta / length, one);
    }
    if comptime!(loss == Loss::Coordinate) {
        u = f32::min(f32::max(r, -delta), delta);
    }
    if comptime!(loss == Loss::Mixture) {
        u = select(length > delta, delta * bounded(nu * r), r);
    }
    u
}
