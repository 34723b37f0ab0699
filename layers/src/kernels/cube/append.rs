//! New rows after those of caches, without gradients: a unit takes a number of one of two results.
//!
//! Floor: memory, 8 bytes per number, in one launch for a layer's keys and values.

#![allow(clippy::collapsible_if, reason = "the outer one is decided when a kernel is compiled")]

use burn::tensor::{DType, Tensor as Burn};
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;
use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;

use super::buffer::{dims, empty};

/// Units of a cube.
const UNITS: u32 = 64;

/// Every `older: [b, h, T, n]` and its `new: [b, h, t, n]` as one; `None` where they are not for this kernel: gradients,
/// another device or element type.
pub(crate) fn join(older: &[Burn<4>], new: &[Burn<4>]) -> Option<Vec<Burn<4>>> {
    let plain = |x: &Burn<4>| {
        let fits = x.dtype() == DType::F32 && super::fits(x, 1) && x.dims().iter().all(|&size| size > 0);
        if fits { x.clone().try_into_primitive::<CubeBackend>().ok() } else { None }
    };
    let older: Vec<CubeTensor> = older.iter().map(plain).collect::<Option<_>>()?;
    let new: Vec<CubeTensor> = new.iter().map(plain).collect::<Option<_>>()?;
    let two = older.chunks(2).zip(new.chunks(2));
    Some(two.flat_map(|(older, new)| join_two(older, new)).map(Burn::from_primitive::<CubeBackend>).collect())
}

/// One or two of them.
fn join_two(older: &[CubeTensor], new: &[CubeTensor]) -> Vec<CubeTensor> {
    let whole = |(older, new): (&CubeTensor, &CubeTensor)| {
        let ([b, h, before, n], [_, _, t, _]) = (dims(older), dims(new));
        empty(older, &[b, h, before + t, n])
    };
    let found: Vec<CubeTensor> = older.iter().zip(new).map(whole).collect();
    let numbers = |x: &CubeTensor| dims(x).iter().product::<usize>();
    let (first, all) = (numbers(&found[0]), found.iter().map(numbers).sum());
    let (last, both) = (found.len() - 1, found.len() > 1);
    // What is written must not be bound twice.
    let second = if both { found[1].clone() } else { empty(&found[0], &[1; 4]) };
    let units = CubeDim::new_1d(UNITS);
    join_kernel::launch(
        &second.client,
        calculate_cube_count_elemwise(&second.client, all, units),
        units,
        older[0].clone().into_tensor_arg(),
        new[0].clone().into_tensor_arg(),
        older[last].clone().into_tensor_arg(),
        new[last].clone().into_tensor_arg(),
        found[0].clone().into_tensor_arg(),
        second.clone().into_tensor_arg(),
        first,
        all,
        both,
    );
    found
}

#[cube(launch)]
#[allow(clippy::too_many_arguments, reason = "a kernel's bindings")]
fn join_kernel(
    a: &Tensor<f32>,
    after_a: &Tensor<f32>,
    b: &Tensor<f32>,
    after_b: &Tensor<f32>,
    first: &mut Tensor<f32>,
    second: &mut Tensor<f32>,
    count: usize,
    all: usize,
    #[comptime] both: bool,
) {
    let at = ABSOLUTE_POS;
    if at < count {
        first[at] = joined(a, after_a, at);
    }
    if comptime!(both) {
        if at >= count && at < all {
            second[at - count] = joined(b, after_b, at - count);
        }
    }
}

/// Number `at` of both as one.
#[cube]
fn joined(older: &Tensor<f32>, new: &Tensor<f32>, at: usize) -> f32 {
    let (heads, before, n) = (older.shape(1), older.shape(2), older.shape(3));
    let rows = before + new.shape(2);
    let c = at % n;
    let t = (at / n) % rows;
    let head = at / n / rows;
    let (b, h) = (head / heads, head % heads);
    let mut found = f32::new(0.0);
    if t < before {
        found = older[b * older.stride(0) + h * older.stride(1) + t * older.stride(2) + c * older.stride(3)];
    }
    if t >= before {
        found = new[b * new.stride(0) + h * new.stride(1) + (t - before) * new.stride(2) + c * new.stride(3)];
    }
    found
}

#[cfg(test)]
mod tests {
    use burn::tensor::Tensor;

    use super::join;
    use crate::testing::{Draw, graphics, numbers};

    #[test]
    fn it_is_concatenation() {
        for device in graphics() {
            let mut draw = Draw::new(1);
            let sizes = [(1, 1, 1, 1, 1), (2, 3, 5, 1, 17), (1, 4, 70, 3, 32), (3, 2, 1, 40, 8)];
            let (mut older, mut new) = (Vec::new(), Vec::new());
            for (b, h, before, t, n) in sizes {
                older.push(draw.tensor::<4>([b, h, before, n], -1.0, 1.0));
                // Heads split from `[b, t, h n]`.
                new.push(draw.tensor::<4>([b, t, h, n], -1.0, 1.0).swap_dims(1, 2));
            }
            let there = |all: &[Tensor<4>]| -> Vec<Tensor<4>> {
                all.iter().map(|x| x.clone().to_device(&device)).collect()
            };
            for count in 1..=sizes.len() {
                let found =
                    join(&there(&older[..count]), &there(&new[..count])).expect("it is for the kernel");
                assert_eq!(found.len(), count);
                for (i, found) in found.into_iter().enumerate() {
                    let expected = Tensor::cat(vec![older[i].clone(), new[i].clone()], 2);
                    assert_eq!(found.dims(), expected.dims());
                    assert_eq!(numbers(found), numbers(expected), "{:?}", sizes[i]);
                }
            }
            let leaf = there(&older[..1]).remove(0).autodiff().require_grad();
            assert!(join(std::slice::from_ref(&leaf), std::slice::from_ref(&leaf)).is_none());
            assert!(join(&older[..1], &new[..1]).is_none());
        }
    }
}
