//! Sums over rows of pairs: how gradients of parameters end.

use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::buffer::empty;

/// Columns of a cube.
pub(super) const COLUMNS: usize = 16;

/// Units of a cube that add up a column.
const STRIPES: usize = 16;

/// Adds up `sums: [parts, 2, columns]` over its first axis: the first row as `dims`, and the second one, if there are to
/// be `both`.
pub(super) fn add_up(sums: CubeTensor, dims: [usize; 4], both: bool) -> (CubeTensor, Option<CubeTensor>) {
    let columns: usize = dims.iter().product();
    let first = empty(&sums, &dims);
    // What is written must not be bound twice.
    let second = empty(&sums, if both { &dims } else { &[1] });
    sum_kernel::launch(
        &first.client,
        CubeCount::Static(columns.div_ceil(COLUMNS) as u32, if both { 2 } else { 1 }, 1),
        CubeDim::new_2d(COLUMNS as u32, STRIPES as u32),
        sums.into_tensor_arg(),
        first.clone().into_tensor_arg(),
        second.clone().into_tensor_arg(),
        COLUMNS,
        STRIPES,
        both,
    );
    (first, both.then_some(second))
}

#[cube(launch)]
fn sum_kernel(
    sums: &Tensor<f32>,
    first: &mut Tensor<f32>,
    second: &mut Tensor<f32>,
    #[comptime] columns: usize,
    #[comptime] stripes: usize,
    #[comptime] both: bool,
) {
    let mut shared = Shared::<[f32]>::new_slice(columns * stripes);
    let width = sums.shape(2);
    let column = ABSOLUTE_POS_X as usize;
    let stripe = UNIT_POS_Y as usize;
    let which = CUBE_POS_Y as usize;
    let mut sum = f32::new(0.0);
    if column < width {
        for part in range_stepped(stripe, sums.shape(0), stripes) {
            sum += sums[(2 * part + which) * width + column];
        }
    }
    shared[stripe * columns + UNIT_POS_X as usize] = sum;
    sync_cube();
    if stripe == 0 && column < width {
        let mut all = f32::new(0.0);
        for i in 0..stripes {
            all += shared[i * columns + UNIT_POS_X as usize];
        }
        if which == 0 {
            first[column] = all;
        } else if both {
            second[column] = all;
        }
    }
}
