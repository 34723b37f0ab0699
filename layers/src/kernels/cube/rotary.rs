//! [`rotary`](crate::kernels::rotary): a unit takes a number of the output.
//!
//! Floor: memory, 8 bytes per number in one launch; what two units read, a pair, lies close to both.

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
        let sizes = dims(x);
        let y = empty(x, &sizes);
        let count = sizes.iter().product();
        let units = CubeDim::new_1d(UNITS);
        rotate_kernel::launch(
            &x.client,
            calculate_cube_count_elemwise(&x.client, count, units),
            units,
            x.clone().into_tensor_arg(),
            table.clone().into_tensor_arg(),
            y.clone().into_tensor_arg(),
            count,
            back,
        );
        y
    }
}

#[cube(launch)]
fn rotate_kernel(
    x: &Tensor<f32>,
    table: &Tensor<f32>,
    y: &mut Tensor<f32>,
    count: usize,
    #[comptime] back: bool,
) {
    let at = ABSOLUTE_POS;
    if at < count {
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
        y[at] = found;
    }
}
