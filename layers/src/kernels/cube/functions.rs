//! Functions of single numbers, of which only powers of non-positive numbers are taken: some drivers' own overflow.

use cubecl::prelude::*;

/// `1 / (1 + e^{-z})`
#[cube]
pub(super) fn sigmoid(z: f32) -> f32 {
    let small = f32::exp(-f32::abs(z));
    let share = f32::new(1.0) / (f32::new(1.0) + small);
    select(z >= f32::new(0.0), share, small * share)
}

/// `tanh x`
#[cube]
pub(super) fn bounded(x: f32) -> f32 {
    let power = f32::exp(f32::abs(x) * f32::new(-2.0));
    let size = (f32::new(1.0) - power) / (f32::new(1.0) + power);
    select(x < f32::new(0.0), -size, size)
}
