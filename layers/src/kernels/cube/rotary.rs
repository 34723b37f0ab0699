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
        launch(x, None, Some(table), Turn { back, ..Turn::default() }).0
    }
}

/// How rows are rotated, and what else becomes of them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Turn {
    /// By the opposite angles
    pub(crate) back: bool,
    /// Channels beside each other, and not those of two halves
    pub(crate) pairs: bool,
    /// Divided by their lengths, with this added to the squares
    pub(crate) unit: Option<f64>,
}

/// Two tensors rotated by one table, if there is one.
pub(in crate::kernels) fn rotate_two(
    x: &CubeTensor,
    z: &CubeTensor,
    table: Option<&CubeTensor>,
    turn: Turn,
) -> [CubeTensor; 2] {
    let (x, z) = launch(x, Some(z), table, turn);
    [x, z]
}

/// `x`, and perhaps another; the second result has a meaning only then.
fn launch(
    x: &CubeTensor,
    other: Option<&CubeTensor>,
    table: Option<&CubeTensor>,
    turn: Turn,
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
        // In place of what there is not: it is not read.
        table.unwrap_or(x).clone().into_tensor_arg(),
        y.clone().into_tensor_arg(),
        second.clone().into_tensor_arg(),
        count,
        all,
        turn.unit.unwrap_or(0.0) as f32,
        Form {
            turned: table.is_some(),
            back: turn.back,
            pairs: turn.pairs,
            unit: turn.unit.is_some(),
            both: other.is_some(),
        },
    );
    (y, second)
}

/// What the kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Form {
    turned: bool,
    back: bool,
    pairs: bool,
    unit: bool,
    both: bool,
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
    eps: f32,
    #[comptime] form: Form,
) {
    let at = ABSOLUTE_POS;
    if at < count {
        y[at] = rotated(x, table, at, eps, form);
    }
    if comptime!(form.both) {
        if at >= count && at < all {
            second[at - count] = rotated(other, table, at - count, eps, form);
        }
    }
}

/// Number `at` of `x`, rotated.
#[cube]
fn rotated(x: &Tensor<f32>, table: &Tensor<f32>, at: usize, eps: f32, #[comptime] form: Form) -> f32 {
    let (heads, time, n) = (x.shape(1), x.shape(2), x.shape(3));
    let c = at % n;
    let row = at / n;
    let t = row % time;
    let head = row / time;
    let b = head / heads;
    let from = b * x.stride(0) + (head % heads) * x.stride(1) + t * x.stride(2);
    let mut found = x[from + c * x.stride(3)];
    if comptime!(form.turned) {
        let half = table.shape(3) / 2;
        if c < 2 * half {
            // A table for all rows has one.
            let start = (b % table.shape(0)) * table.stride(0) + t * table.stride(2);
            let mut angle = c % half;
            let mut late = c >= half;
            let mut partner = select(late, angle, angle + half);
            if comptime!(form.pairs) {
                angle = c / 2;
                late = c % 2 == 1;
                partner = select(late, 2 * angle, 2 * angle + 1);
            }
            let cos = table[start + angle * table.stride(3)];
            let mut sin = table[start + (angle + half) * table.stride(3)];
            if comptime!(form.back) {
                sin = -sin;
            }
            let other = x[from + partner * x.stride(3)];
            found = found * cos + select(late, other, -other) * sin;
        }
    }
    if comptime!(form.unit) {
        // A rotation leaves the length as it is.
        let mut squares = eps;
        for i in 0..n {
            let number = x[from + i * x.stride(3)];
            squares += number * number;
        }
        found /= f32::sqrt(squares);
    }
    found
}
