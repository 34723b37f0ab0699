//! [`rotary`](crate::kernels::rotary): a unit takes a number of the output.
//!
//! Floor: memory, 8 bytes per number in one launch; what two units read, a pair, lies close to both.

#![allow(clippy::collapsible_if, reason = "the outer one is decided when a kernel is compiled")]

use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;
use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;

use super::buffer::{dims, empty};
use crate::kernels::rotary::Passes;

/// Units of a cube.
const UNITS: u32 = 64;

impl Passes for CubeBackend {
    fn rotate(x: &CubeTensor, table: &CubeTensor, back: bool) -> CubeTensor {
        launch(x, None, table, back).0
    }
}

/// Two tensors rotated by one table.
pub(in crate::kernels) fn rotate_two(x: &CubeTensor, z: &CubeTensor, table: &CubeTensor) -> [CubeTensor; 2] {
    let (x, z) = launch(x, Some(z), table, false);
    [x, z]
}

/// `x`, and perhaps another; the second result has a meaning only then.
fn launch(
    x: &CubeTensor,
    other: Option<&CubeTensor>,
    table: &CubeTensor,
    back: bool,
) -> (CubeTensor, CubeTensor) {
    let numbers = |x: &CubeTensor| dims(x).iter().product::<usize>();
    let (count, all) = (numbers(x), numbers(x) + other.map_or(0, numbers));
    let y = empty(x, &dims(x));
    // What is written must not be bound twice.
    let second = empty(x, &other.map_or([1; 4], dims));
    let units = CubeDim::new_1d(UNITS);
    rotate_kernel::launch(
        &x.client,
        calculate_cube_count_elemwise(&x.client, all, units),
        units,
        x.clone().into_tensor_arg(),
        other.unwrap_or(x).clone().into_tensor_arg(),
        table.clone().into_tensor_arg(),
        y.clone().into_tensor_arg(),
        second.clone().into_tensor_arg(),
        count,
        all,
        back,
        other.is_some(),
    );
    (y, second)
}

#[cube(launch)]
#[allow(clippy::too_many_arguments, reason = "a kernel's bindings")]
fn rotate_kernel(
    x: &Tensor<f32>,
    other: &Tensor<f32>,
    table: &Tensor<f32>,
    y: &mut Tensor<f32>,
    second: &mut Tensor<f32>,
    count: usize,
    all: usize,
    #[comptime] back: bool,
    #[comptime] both: bool,
) {
    let at = ABSOLUTE_POS;
    if at < count {
        y[at] = rotated(x, table, at, back);
    }
    if comptime!(both) {
        if at >= count && at < all {
            second[at - count] = rotated(other, table, at - count, back);
        }
    }
}

/// Number `at` of `x`, rotated.
#[cube]
fn rotated(x: &Tensor<f32>, table: &Tensor<f32>, at: usize, #[comptime] back: bool) -> f32 {
    let (heads, time, n) = (x.shape(1), x.shape(2), x.shape(3));
    let half = table.shape(3) / 2;
    let c = at % n;
    let row = at / n;
    let t = row % time;
    let head = row / time;
    let b = head / heads;
    let from = b * x.stride(0) + (head % heads) * x.stride(1) + t * x.stride(2);
    let mut found = x[from + c * x.stride(3)];
    if c < 2 * half {
        // A table for all rows has one.
        let start = (b % table.shape(0)) * table.stride(0) + t * table.stride(2);
        let angle = c % half;
        let cos = table[start + angle * table.stride(3)];
        let mut sin = table[start + (angle + half) * table.stride(3)];
        if back {
            sin = -sin;
        }
        let late = c >= half;
        let partner = select(late, angle, angle + half);
        let other = x[from + partner * x.stride(3)];
        found = found * cos + select(late, other, -other) * sin;
    }
    found
}
