//! Functions of single numbers, of which only powers of non-positive numbers are taken: some drivers' own overflow.

use cubecl::prelude::*;

/// `1 / (1 + e^{-z})`
#[cube]
pub(super) fn sigmoid(z: f32) -> f32 {
    let small = f32::exp(-f32::abs(z));
    let share = f32::new(1.0) / (f32::new(1.0) + small);
    select(z >= f32::new(0.0), share, small * share)
}

/// `tanh x`, near 0 by the CPU's polynomial: there the quotient would lose digits.
#[cube]
pub(super) fn bounded(x: f32) -> f32 {
    let size = f32::abs(x);
    let square = x * x;
    let mut near = f32::new(-5.704_988_7e-3);
    near = near * square + f32::new(2.063_909e-2);
    near = near * square + f32::new(-5.373_971_6e-2);
    near = near * square + f32::new(1.333_144_2e-1);
    near = near * square + f32::new(-3.333_328e-1);
    near = near * square * x + x;
    let power = f32::exp(size * f32::new(-2.0));
    let far = (f32::new(1.0) - power) / (f32::new(1.0) + power);
    let signed = select(x < f32::new(0.0), -far, far);
    select(size < f32::new(0.625), near, signed)
}

/// `erf x` by the CPU's polynomials: drivers' own is off by `1.5e-7`, which layers that learn from layers make much of.
#[cube]
pub(super) fn error_function(x: f32) -> f32 {
    let size = f32::abs(x);
    let square = x * x;
    let mut near = f32::new(-5.967_617e-4);
    near = near * square + f32::new(4.991_194_2e-3);
    near = near * square + f32::new(-2.676_813_5e-2);
    near = near * square + f32::new(1.128_199_25e-1);
    near = near * square + f32::new(-3.761_253_4e-1);
    near = near * square + f32::new(1.283_791_7e-1);
    near = near * x + x;
    // ln(1 - erf |x|)
    let mut far = f32::new(-1.728_534_7e-5);
    far = far * size + f32::new(3.831_972e-4);
    far = far * size + f32::new(-3.883_964_4e-3);
    far = far * size + f32::new(2.425_462_2e-2);
    far = far * size + f32::new(-1.067_778_8e-1);
    far = far * size + f32::new(-6.348_467e-1);
    far = far * size + f32::new(-1.287_175_1e-1);
    far = f32::new(1.0) - f32::exp(far * size - size);
    let signed = select(x < f32::new(0.0), -far, far);
    select(size > f32::new(0.927_734_4), signed, near)
}
