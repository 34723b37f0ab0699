//! What both passes are made of: where rows lie, how their numbers are shared, and sums over them.

use super::*;

/// Where row `row` of `x` starts.
#[cube]
pub(super) fn start(x: &Tensor<f32>, row: usize, #[comptime] joint: bool) -> usize {
    let b = x.shape(1);
    let m = x.shape(2);
    let mut at = (row / (b * m)) * x.stride(0) + (row / m % b) * x.stride(1) + (row % m) * x.stride(2);
    if joint {
        at = (row / b) * x.stride(0) + (row % b) * x.stride(1);
    }
    at
}

/// Where number `c` of a row is, from its start.
#[cube]
pub(super) fn place(x: &Tensor<f32>, c: usize, #[comptime] form: Form) -> usize {
    let mut at = c * x.stride(3);
    if comptime!(form.joint) {
        at = (c / form.n) * x.stride(2) + (c % form.n) * x.stride(3);
    }
    at
}

/// Where row `group` of a weight starts.
#[cube]
pub(super) fn scale_start(weight: &Tensor<f32>, group: usize, #[comptime] form: Form) -> usize {
    let mut at = 0usize;
    if comptime!(!form.joint) {
        at = group * weight.stride(form.axis);
    }
    at
}

/// `act(g)`
#[cube]
pub(super) fn act(g: f32, #[comptime] opening: Opening) -> f32 {
    let mut found = g;
    if comptime!(opening == Opening::Silu) {
        found = g * sigmoid(g);
    }
    if comptime!(opening == Opening::Sigmoid) {
        found = sigmoid(g);
    }
    found
}

/// Its derivative.
#[cube]
pub(super) fn slope(g: f32, #[comptime] opening: Opening) -> f32 {
    let mut found = f32::new(1.0);
    if comptime!(opening != Opening::Linear) {
        let open = sigmoid(g);
        if comptime!(opening == Opening::Silu) {
            found = open * (g * (f32::new(1.0) - open) + f32::new(1.0));
        } else {
            found = open * (f32::new(1.0) - open);
        }
    }
    found
}

/// The sum over the units of a row, in four parts. All units of a cube have to come here.
#[cube]
pub(super) fn total(value: f32, shared: &mut Shared<[f32]>, #[comptime] form: Form) -> f32 {
    let lanes = comptime!(form.lanes);
    let mut sum = value;
    if comptime!(lanes > 1) {
        let first = UNIT_POS_Y as usize * lanes;
        // What was there before has been read by all.
        sync_cube();
        shared[first + UNIT_POS_X as usize] = value;
        sync_cube();
        let quarter = comptime!(lanes.div_ceil(4));
        let mut sums = Array::<f32>::new(4usize);
        #[unroll]
        for part in 0..4usize {
            sums[part] = f32::new(0.0);
            if comptime!(part * quarter < lanes) {
                #[unroll]
                for i in 0..quarter {
                    sums[part] += shared[first + part * quarter + i];
                }
            }
        }
        sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    }
    sum
}

/// `c` of the numbers that a unit has of a row instead of them; returns `1 / sqrt(k Σ c² + eps)`.
#[cube]
pub(super) fn factor(
    u: &mut Array<f32>,
    shared: &mut Shared<[f32]>,
    eps: f32,
    #[comptime] form: Form,
) -> f32 {
    let each = comptime!(form.width.div_ceil(form.lanes));
    let lane = UNIT_POS_X as usize;
    if comptime!(form.centred) {
        let mut sum = f32::new(0.0);
        #[unroll]
        for i in 0..each {
            sum += u[i];
        }
        let mean = total(sum, shared, form) / f32::cast_from(form.width);
        #[unroll]
        for i in 0..each {
            if lane + i * form.lanes < form.width {
                u[i] -= mean;
            }
        }
    }
    let mut squares = f32::new(0.0);
    #[unroll]
    for i in 0..each {
        squares += u[i] * u[i];
    }
    let mut sum = total(squares, shared, form);
    if comptime!(form.mean) {
        sum /= f32::cast_from(form.width);
    }
    f32::new(1.0) / f32::sqrt(sum + eps)
}
