//! What the units of a cube do together with the numbers of a chunk; see the equations of
//! [`descent`](crate::kernels::descent).

#![allow(clippy::collapsible_if, reason = "the outer one is decided when a kernel is compiled")]

use cubecl::prelude::*;

use super::rule::{Loss, ROWS, Rule, Step, UNITS};
use crate::kernels::cube::buffer::ALIGNED;
use crate::kernels::cube::functions::{bounded, error_function};
use crate::kernels::cube::pointwise::{gelu, gelu_slope};
use crate::miras::SMOOTH;

/// A number of a token of `x: [.., t, n]`, of which a head begins at `start`.
#[cube]
pub(super) fn token(x: &Tensor<f32>, start: usize, t: usize, i: usize) -> f32 {
    x[start + t * x.stride(2) + i * x.stride(3)]
}

/// A head's number of `x: [h, n]`.
#[cube]
pub(super) fn of_head(x: &Tensor<f32>, head: usize, i: usize) -> f32 {
    x[head % x.shape(0) * x.stride(0) + i * x.stride(1)]
}

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

/// `sums[r] = Σ_k x[r, k] w[k] f[k]` for some rows, the last of which is row `last`: where each of them begins, and how
/// far its numbers lie apart.
#[cube]
#[allow(clippy::too_many_arguments, reason = "three matrices of one buffer")]
fn multiply(
    all: &mut Tensor<f32>,
    sums: &mut Array<f32>,
    x: usize,
    w: usize,
    factors: usize,
    last: usize,
    depth: usize,
    #[comptime] by_row: usize,
    #[comptime] by_k: usize,
    #[comptime] w_by_k: usize,
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

/// A step of `size` tokens, whose chunk `ends` with them or not: units take some rows of a column.
#[cube]
#[allow(clippy::too_many_arguments, reason = "a chunk and its place")]
pub(super) fn take(
    all: &mut Tensor<f32>,
    weights: usize,
    scratch: usize,
    head: usize,
    heads: usize,
    size: usize,
    ends: bool,
    #[comptime] step: Step,
    #[comptime] l: usize,
    #[comptime] rule: Rule,
) {
    let (inputs, outputs, wide) = comptime!((rule.inputs(l), rule.outputs(l), rule.wide()));
    let product = comptime!(rule.product(step, l));
    let tile = comptime!(if step == Step::Write { ROWS } else { ROWS.min(rule.tokens) });
    let plan = scratch + comptime!(rule.plan());
    let of_a = plan + comptime!(rule.tokens * wide);
    let to = scratch + comptime!(product.to);
    let anchor = matrix(weights, head, heads, comptime!(rule.anchor()), l, rule);
    let mut right = anchor;
    if comptime!(product.w.is_some()) {
        right = scratch + comptime!(product.w.unwrap_or(0));
    }
    let mut rows = size;
    let mut columns = size;
    let mut depth = size;
    if comptime!(step == Step::Write) {
        rows = inputs.runtime();
    }
    if comptime!(step == Step::Down) {
        columns = comptime!(rule.hidden).runtime();
        depth = outputs.runtime();
    }
    if comptime!(matches!(step, Step::Up | Step::Answer | Step::Write)) {
        columns = outputs.runtime();
    }
    if comptime!(matches!(step, Step::Up | Step::Score)) {
        depth = inputs.runtime();
    }
    let mut sums = Array::<f32>::new(ROWS);
    let mut parts = Array::<f32>::new(ROWS);
    for task in range_stepped(UNIT_POS as usize, rows.div_ceil(tile) * columns, UNITS) {
        let first = task / columns * tile;
        let column = task % columns;
        let last = rows - 1 - first;
        let left = scratch + comptime!(product.x) + first * comptime!(product.by_row);
        let (by_row, by_k, w_by_k) = comptime!((product.by_row, product.by_k, product.w_by_k));
        let w = right + column * comptime!(product.by_column);
        let weighed = comptime!(step == Step::Write);
        multiply(all, &mut sums, left, w, of_a, last, depth, by_row, by_k, w_by_k, weighed, tile);
        if comptime!(step == Step::Write && rule.momentum) {
            multiply(all, &mut parts, left, w, of_a + wide, last, depth, by_row, by_k, w_by_k, true, tile);
        }
        if comptime!(step == Step::Answer) {
            let query = scratch + comptime!(rule.query(l)) + first * inputs;
            #[unroll]
            for s in 0..comptime!(rule.carriers()) {
                let slot = comptime!(if s == 0 { 0 } else { rule.last() });
                let w = matrix(weights, head, heads, slot, l, rule) + column;
                multiply(
                    all,
                    &mut parts,
                    query,
                    w,
                    0usize,
                    last,
                    inputs.runtime(),
                    inputs,
                    1usize,
                    outputs,
                    false,
                    tile,
                );
                #[unroll]
                for r in 0..tile {
                    sums[r] +=
                        parts[r] * all[plan + min(first + r, size - 1) * wide + comptime!(rule.tokens + s)];
                }
            }
        }
        #[unroll]
        for r in 0..tile {
            let row = first + r;
            if row < rows {
                if comptime!(matches!(step, Step::Up | Step::Answer)) {
                    let slopes = scratch + comptime!(rule.slope(l));
                    store_made(all, sums[r], row, column, to, slopes, comptime!(step == Step::Up), l, rule);
                }
                if comptime!(step == Step::Down) {
                    let at = row * comptime!(rule.hidden) + column;
                    all[to + at] = sums[r] * all[scratch + comptime!(rule.slope(l.max(1) - 1)) + at];
                }
                if comptime!(step == Step::Score) {
                    // A token does not read what comes after it.
                    let mut score = f32::new(0.0);
                    if column <= row {
                        score = -(sums[r] * all[plan + row * wide + column]);
                    }
                    all[to + row * comptime!(rule.tokens) + column] = score;
                }
                if comptime!(step == Step::Write) {
                    let at = row * outputs + column;
                    let running = matrix(weights, head, heads, 0usize, l, rule) + at;
                    let mut next = all[of_a + comptime!(rule.tokens)] * all[running] - sums[r];
                    if comptime!(rule.momentum) {
                        let momentum = matrix(weights, head, heads, comptime!(rule.last()), l, rule) + at;
                        let before = all[momentum];
                        let of_s = comptime!(rule.tokens + 1);
                        next += all[of_a + of_s] * before;
                        all[momentum] = all[of_a + wide + of_s] * before - parts[r];
                    }
                    all[running] = next;
                    if comptime!(!rule.batched) {
                        if ends {
                            all[anchor + at] = next;
                        }
                    }
                }
            }
        }
    }
}

/// The chunk's plan: units take columns.
#[cube]
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
    for column in range_stepped(UNIT_POS as usize, wide, UNITS) {
        if column < size || column >= tokens {
            let (of_a, of_s) = (column == tokens, column > tokens);
            let one = f32::new(1.0);
            let none = f32::new(0.0);
            let mut n = select(of_s, f32::new(comptime!(if rule.batched { -1.0 } else { 1.0 })), none);
            let mut g = select(of_a, one, none);
            let mut real = one;
            for t in 0..size {
                let eta = token(gates, gates_at, t, 0usize);
                let second = token(gates, gates_at, t, 1usize);
                if comptime!(rule.batched) {
                    n += select(column == t, eta, none);
                    g = select(of_a, one, second * n);
                } else {
                    let mut keep = none;
                    if comptime!(rule.momentum) {
                        keep = f32::exp(token(gates, gates_at, t, 2usize));
                    }
                    if comptime!(rule.ragged) {
                        real = token(gates, gates_at, t, comptime!(rule.valid()));
                    }
                    n = select(column == t, eta, n * keep);
                    g = g * f32::exp(second) + n * real;
                }
                all[to + t * wide + column] = g;
            }
            if comptime!(rule.batched) {
                // Until the mini-batch ends, `A` stays and `S` takes what there is.
                g = select(ends, g, select(of_a, one, none));
                n = select(ends, none, -n);
            }
            let last = to + comptime!(tokens * wide) + column;
            all[last] = g;
            if comptime!(rule.momentum) {
                all[last + wide] = n;
            }
        }
    }
}

/// The rows' `x W` of a layer, and what the next one sees of them: gelu from `to` on, its slopes from `slopes` on if they
/// are wanted; of the last layer the products.
#[cube]
#[allow(clippy::too_many_arguments, reason = "a number and its places")]
fn store_made(
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
fn cdf(x: f32) -> f32 {
    let scaled = x * f32::new(comptime!(std::f32::consts::FRAC_1_SQRT_2));
    f32::new(0.5) + f32::new(0.5) * error_function(scaled)
}

/// Makes the row that begins at `z` into `ẑ = (z - mean) rate`; the rate.
#[cube]
pub(super) fn standard(all: &mut Tensor<f32>, z: usize, eps: f32, #[comptime] width: usize) -> f32 {
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
        all[z + i] = apart;
    }
    let rate = f32::new(1.0) / f32::sqrt(squares * share + eps);
    for i in 0..width {
        all[z + i] *= rate;
    }
    rate
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
