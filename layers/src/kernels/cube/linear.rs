//! [`linear`](crate::kernels::linear): a cube takes [`COLUMNS`] columns of one of the matrices, whose rows its
//! [`STRIPES`] rows of units share, and adds their sums up in shared memory.
//!
//! Floor: memory, 4 bytes per number of the matrices in one launch, read side by side; tokens come from the cache.

#![allow(clippy::collapsible_if, reason = "the outer one is decided when a kernel is compiled")]

use burn::backend::DispatchDevice;
use burn::tensor::{DType, Tensor as Burn};
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::buffer::{MOST_CUBES, empty, part_of};
use super::pointwise::alone;
use crate::kernels::linear::{FEW, Map};
use crate::nn::{Formula, Function};

/// Columns of a cube.
const COLUMNS: usize = 32;

/// Rows of units in a cube.
const STRIPES: usize = 8;

/// Cubes at multiples of which a map begins: its outputs then begin where a part of a buffer may.
const TOGETHER: usize = 2;

/// Matrices and biases of a launch: devices promise eight buffers, and two are the tokens and the outputs.
const SLOTS: usize = 6;

/// What stands where in the launch; a map's biases stand behind its matrix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Slot {
    /// First of the columns that are multiplied
    first: usize,
    /// How many they are, 0 where there is no matrix
    width: usize,
    /// First of the cubes
    cube: usize,
    biases: usize,
    /// What becomes of the products
    then: Option<Function>,
    /// Bits of that function's scale
    scale: u32,
}

impl Slot {
    fn cubes(self) -> usize {
        self.width.div_ceil(COLUMNS).next_multiple_of(TOGETHER)
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Plan {
    /// Tokens
    rows: usize,
    slots: [Slot; SLOTS],
}

/// Whether `x` lies on a graphics device, without gradients.
pub(crate) fn on_graphics<const D: usize>(x: &Burn<D>) -> bool {
    matches!(x.device().as_dispatch(), DispatchDevice::Cube(_))
}

/// The products of `x: [rows, n]`, one for each of the maps; `None` where they are not for this kernel: many rows,
/// gradients, another device or element type, matrices whose rows do not lie side by side, shapes that do not fit.
pub(crate) fn project(x: &Burn<2>, maps: &[Map]) -> Option<Vec<Burn<2>>> {
    let here = |x: &Burn<2>| x.dtype() == DType::F32 && on_graphics(x);
    let [rows, n] = x.dims();
    let fits = |map: &Map| {
        let [depth, m] = map.weight.dims();
        let cubes = SLOTS * map.width.div_ceil(COLUMNS).next_multiple_of(TOGETHER);
        let added = |bias: &Burn<1>| bias.dims() == [m] && bias.dtype() == DType::F32;
        depth == n
            && map.width > 0
            && map.then.is_none_or(|formula| formula.function.arity() == (1, 0))
            && map.first + map.width <= m
            && map.biases.len() < SLOTS.min(3)
            && map.biases.iter().all(added)
            && here(&map.weight)
            && cubes <= MOST_CUBES
            && super::fits(&map.weight, 1)
    };
    if !FEW.contains(&rows) || n == 0 || !here(x) || !maps.iter().all(fits) {
        return None;
    }
    let x = x.clone().try_into_primitive::<CubeBackend>().ok()?;
    let mut launches = vec![Launch::default()];
    for map in maps {
        if launches.last().is_none_or(|launch| launch.tensors.len() + 1 + map.biases.len() > SLOTS) {
            launches.push(Launch::default());
        }
        launches.last_mut()?.add(map)?;
    }
    Some(launches.into_iter().flat_map(|launch| launch.run(&x, rows)).collect())
}

/// Maps of one launch.
#[derive(Default)]
struct Launch {
    tensors: Vec<CubeTensor>,
    slots: [Slot; SLOTS],
    cubes: usize,
}

impl Launch {
    /// `None` for a matrix whose rows do not lie side by side.
    fn add(&mut self, map: &Map) -> Option<()> {
        let weight = map.weight.clone().try_into_primitive::<CubeBackend>().ok()?;
        if weight.meta.strides()[1] != 1 && weight.meta.shape()[1] > 1 {
            return None;
        }
        let Map { first, width, ref biases, .. } = *map;
        let (then, scale) = match map.then {
            Some(Formula { function, scale, .. }) => (Some(function), (scale as f32).to_bits()),
            None => (None, 0),
        };
        let slot = Slot { first, width, cube: self.cubes, biases: biases.len(), then, scale };
        self.slots[self.tensors.len()] = slot;
        self.cubes += slot.cubes();
        self.tensors.push(weight);
        for bias in &map.biases {
            self.tensors.push(bias.clone().try_into_primitive::<CubeBackend>().ok()?);
        }
        Some(())
    }

    fn run(self, x: &CubeTensor, rows: usize) -> Vec<Burn<2>> {
        let Self { tensors, slots, cubes } = self;
        let y = empty(x, &[cubes * COLUMNS * rows]);
        // In place of what there is not: it is not read.
        let slot = |i: usize| tensors.get(i).unwrap_or(x).clone().into_tensor_arg();
        project_kernel::launch(
            &x.client,
            CubeCount::Static(cubes as u32, 1, 1),
            CubeDim::new_2d(COLUMNS as u32, STRIPES as u32),
            x.clone().into_tensor_arg(),
            slot(0),
            slot(1),
            slot(2),
            slot(3),
            slot(4),
            slot(5),
            y.clone().into_tensor_arg(),
            Plan { rows, slots },
        );
        let maps = slots.iter().filter(|slot| slot.width > 0);
        let part = |slot: &Slot| {
            let part = part_of(&y, slot.cube * COLUMNS * rows, [rows, slot.width]);
            Burn::from_primitive::<CubeBackend>(part)
        };
        maps.map(part).collect()
    }
}

#[cube(launch)]
#[allow(clippy::too_many_arguments, reason = "a kernel's bindings")]
fn project_kernel(
    x: &Tensor<f32>,
    a: &Tensor<f32>,
    b: &Tensor<f32>,
    c: &Tensor<f32>,
    d: &Tensor<f32>,
    e: &Tensor<f32>,
    f: &Tensor<f32>,
    y: &mut Tensor<f32>,
    #[comptime] plan: Plan,
) {
    let rows = comptime!(plan.rows);
    let mut shared = Shared::<[f32]>::new_slice(comptime!(plan.rows * COLUMNS * STRIPES));
    let mut sums = Array::<f32>::new(rows);
    #[unroll]
    for row in 0..rows {
        sums[row] = f32::new(0.0);
    }
    multiply(x, a, b, c, &mut sums, rows, comptime!(plan.slots[0]));
    multiply(x, b, c, d, &mut sums, rows, comptime!(plan.slots[1]));
    multiply(x, c, d, e, &mut sums, rows, comptime!(plan.slots[2]));
    multiply(x, d, e, f, &mut sums, rows, comptime!(plan.slots[3]));
    multiply(x, e, f, f, &mut sums, rows, comptime!(plan.slots[4]));
    multiply(x, f, f, f, &mut sums, rows, comptime!(plan.slots[5]));

    let lane = UNIT_POS_X as usize;
    let stripe = UNIT_POS_Y as usize;
    #[unroll]
    for row in 0..rows {
        shared[(row * STRIPES + stripe) * COLUMNS + lane] = sums[row];
    }
    sync_cube();
    if stripe < rows {
        let mut sum = f32::new(0.0);
        for i in 0..STRIPES {
            sum += shared[(stripe * STRIPES + i) * COLUMNS + lane];
        }
        let cube = CUBE_POS_X as usize;
        #[unroll]
        for i in 0..SLOTS {
            let (width, from, to, then, scale) = comptime! {{
                let slot: Slot = plan.slots[i];
                (slot.width, slot.cube, slot.cube + slot.cubes(), slot.then, f32::from_bits(slot.scale))
            }};
            if comptime!(width > 0) {
                let column = (cube - min(cube, from)) * COLUMNS + lane;
                if cube >= from && cube < to && column < width {
                    let mut found = sum;
                    if comptime!(then.is_some()) {
                        found = alone(sum, f32::new(scale), comptime!(then.unwrap_or(Function::Sigmoid)));
                    }
                    y[comptime!(from * COLUMNS * rows) + stripe * width + column] = found;
                }
            }
        }
    }
}

/// Adds a unit's share of a column of `weight` times every token, and the biases, if the cube is one of the slot's.
#[cube]
fn multiply(
    x: &Tensor<f32>,
    weight: &Tensor<f32>,
    bias: &Tensor<f32>,
    second: &Tensor<f32>,
    sums: &mut Array<f32>,
    #[comptime] rows: usize,
    #[comptime] slot: Slot,
) {
    if comptime!(slot.width > 0) {
        let cube = CUBE_POS_X as usize;
        let stripe = UNIT_POS_Y as usize;
        let from = comptime!(slot.cube);
        let column = (cube - min(cube, from)) * COLUMNS + UNIT_POS_X as usize;
        if cube >= from && cube < comptime!(slot.cube + slot.cubes()) && column < slot.width {
            let at = column + slot.first;
            for i in range_stepped(stripe, weight.shape(0), STRIPES) {
                let number = weight[i * weight.stride(0) + at];
                #[unroll]
                for row in 0..rows {
                    sums[row] += number * x[row * x.stride(0) + i * x.stride(1)];
                }
            }
            if comptime!(slot.biases > 0) {
                if stripe == 0 {
                    let mut shift = bias[at * bias.stride(0)];
                    if comptime!(slot.biases > 1) {
                        shift += second[at * second.stride(0)];
                    }
                    #[unroll]
                    for row in 0..rows {
                        sums[row] += shift;
                    }
                }
            }
        }
    }
}
