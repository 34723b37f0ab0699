//! Matrices that lie anyhow, one after another in a buffer: a unit takes a number.

use burn_cubecl::tensor::CubeTensor;
use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;

use crate::kernels::cube::buffer::{ALIGNED, dims};
use crate::kernels::cube::pointwise::place;

/// Units of a cube.
const UNITS: u32 = 64;

/// Matrices of a launch.
const MOST: usize = 6;

/// Copies `matrices: [b, h, inputs, outputs]` to `to` from number `at` on.
pub(super) fn place_all(matrices: &[CubeTensor], to: &CubeTensor, mut at: usize) {
    let size = |x: &CubeTensor| dims(x).iter().product::<usize>();
    for some in matrices.chunks(MOST) {
        // In place of what there is not: it is not read.
        let matrix = |i: usize| some.get(i).unwrap_or(&some[0]).clone().into_tensor_arg();
        let all = some.iter().map(size).sum();
        let units = CubeDim::new_1d(UNITS);
        place_kernel::launch(
            &to.client,
            calculate_cube_count_elemwise(&to.client, all, units),
            units,
            matrix(0),
            matrix(1),
            matrix(2),
            matrix(3),
            matrix(4),
            matrix(5),
            to.clone().into_tensor_arg(),
            at,
            some.len(),
        );
        at += some.iter().map(|x| size(x).next_multiple_of(ALIGNED)).sum::<usize>();
    }
}

#[cube(launch)]
#[allow(clippy::too_many_arguments, reason = "a kernel's bindings")]
fn place_kernel(
    a: &Tensor<f32>,
    b: &Tensor<f32>,
    c: &Tensor<f32>,
    d: &Tensor<f32>,
    e: &Tensor<f32>,
    f: &Tensor<f32>,
    to: &mut Tensor<f32>,
    at: usize,
    #[comptime] count: usize,
) {
    let (first, start) = place_one(a, to, 0usize, at, comptime!(count > 0));
    let (first, start) = place_one(b, to, first, start, comptime!(count > 1));
    let (first, start) = place_one(c, to, first, start, comptime!(count > 2));
    let (first, start) = place_one(d, to, first, start, comptime!(count > 3));
    let (first, start) = place_one(e, to, first, start, comptime!(count > 4));
    place_one(f, to, first, start, comptime!(count > 5));
}

/// A number of `x`, if it is the unit's: its units begin at `first`, and it lies from `start` on. Those of the next one.
#[cube]
fn place_one(
    x: &Tensor<f32>,
    to: &mut Tensor<f32>,
    first: usize,
    start: usize,
    #[comptime] here: bool,
) -> (usize, usize) {
    let mut size = 0usize;
    if comptime!(here) {
        size = x.shape(0) * x.shape(1) * x.shape(2) * x.shape(3);
        if ABSOLUTE_POS >= first && ABSOLUTE_POS < first + size {
            to[start + ABSOLUTE_POS - first] = x[place(x, ABSOLUTE_POS - first)];
        }
    }
    (first + size, start + size.div_ceil(ALIGNED) * ALIGNED)
}
