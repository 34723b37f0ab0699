//! What linear attention makes of its projections, and of what its memory answers, without gradients: features, values with
//! a one behind them that sums the weights, and quotients by that sum. A unit takes a number.
//!
//! Floor: memory, every number read and written once, in one launch instead of four and one instead of three.

use burn::tensor::Tensor as Burn;
use burn_cubecl::CubeBackend;
use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;

use super::buffer::{ALIGNED, empty, part_of, plain};
use super::pointwise::alone;
use crate::nn::Function;

/// Units of a cube.
const UNITS: u32 = 64;

/// Most numbers of a launch.
const MOST: usize = 1 << 30;

/// `s (elu(q) + 1)`, `elu(k) + 1`: `[b, h, t, n]`, and `v` with a one behind it, `[b, h, t, p + 1]`; `None` where they are
/// not for this kernel: gradients, another device or element type.
pub(crate) fn features_and_one([q, k, v]: [&Burn<4>; 3], scale: f64) -> Option<[Burn<4>; 3]> {
    let ([b, h, t, n], p) = (q.dims(), v.dims()[3]);
    let rows = b * h * t;
    let (keys, values) = (rows * n, rows * (p + 1));
    if keys == 0 || k.dims() != q.dims() || 2 * keys + values >= MOST {
        return None;
    }
    let (q, k, v) = (plain(q)?, plain(k)?, plain(v)?);
    let apart = keys.next_multiple_of(ALIGNED);
    let out = empty(&q, &[2 * apart + values]);
    let units = CubeDim::new_1d(UNITS);
    features_kernel::launch(
        &out.client,
        calculate_cube_count_elemwise(&out.client, 2 * keys + values, units),
        units,
        q.into_tensor_arg(),
        k.into_tensor_arg(),
        v.into_tensor_arg(),
        out.clone().into_tensor_arg(),
        scale as f32,
        keys,
        values,
        apart,
    );
    let part = |start, columns| Burn::from_primitive::<CubeBackend>(part_of(&out, start, [b, h, t, columns]));
    Some([part(0, n), part(apart, n), part(2 * apart, p + 1)])
}

/// `y / (s + eps)` of `[y, s]: [b, h, t, p + 1]`, as `[b, t, h p]`; `None` where they are not for this kernel.
pub(crate) fn quotients(y: &Burn<4>, eps: f64) -> Option<Burn<3>> {
    let [b, h, t, columns] = y.dims();
    let width = h * columns.checked_sub(1)?;
    let count = b * t * width;
    if count == 0 || count >= MOST {
        return None;
    }
    let y = plain(y)?;
    let out = empty(&y, &[b, t, width]);
    let units = CubeDim::new_1d(UNITS);
    quotients_kernel::launch(
        &out.client,
        calculate_cube_count_elemwise(&out.client, count, units),
        units,
        y.into_tensor_arg(),
        out.clone().into_tensor_arg(),
        eps as f32,
        count,
    );
    Some(Burn::from_primitive::<CubeBackend>(out))
}

#[cube(launch)]
#[allow(clippy::too_many_arguments, reason = "a kernel's bindings")]
fn features_kernel(
    q: &Tensor<f32>,
    k: &Tensor<f32>,
    v: &Tensor<f32>,
    out: &mut Tensor<f32>,
    scale: f32,
    keys: usize,
    values: usize,
    apart: usize,
) {
    let at = ABSOLUTE_POS;
    if at < keys {
        out[at] = alone(q[place(q, at, q.shape(3))], scale, Function::EluPlusOne);
    } else if at < 2 * keys {
        let at = at - keys;
        out[apart + at] = alone(k[place(k, at, k.shape(3))], f32::new(1.0), Function::EluPlusOne);
    } else if at < 2 * keys + values {
        let at = at - 2 * keys;
        let columns = v.shape(3) + 1;
        let mut found = f32::new(1.0);
        if at % columns < v.shape(3) {
            found = v[place(v, at, columns)];
        }
        out[2 * apart + at] = found;
    }
}

/// Where number `at` of a contiguous `[b, h, t, columns]` stands in `x: [b, h, t, …]`.
#[cube]
fn place(x: &Tensor<f32>, at: usize, columns: usize) -> usize {
    let (row, column) = (at / columns, at % columns);
    let token = row % x.shape(2);
    let head = row / x.shape(2) % x.shape(1);
    let batch = row / x.shape(2) / x.shape(1);
    batch * x.stride(0) + head * x.stride(1) + token * x.stride(2) + column * x.stride(3)
}

#[cube(launch)]
fn quotients_kernel(y: &Tensor<f32>, out: &mut Tensor<f32>, eps: f32, count: usize) {
    let at = ABSOLUTE_POS;
    if at < count {
        let (heads, time, p) = (y.shape(1), y.shape(2), y.shape(3) - 1);
        let (row, column) = (at / p, at % p);
        let head = row % heads;
        let token = row / heads % time;
        let batch = row / heads / time;
        let start = batch * y.stride(0) + head * y.stride(1) + token * y.stride(2);
        out[at] = y[start + column * y.stride(3)] / (y[start + p * y.stride(3)] + eps);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linear::{normalize, with_normalizer};
    use crate::nn::{elu_plus_one, merge_heads};
    use crate::testing::{Draw, gap, graphics};

    #[test]
    fn they_are_those_of_tensor_operations() {
        for device in graphics() {
            for [b, h, t, n, p] in [[1, 1, 1, 1, 1], [2, 3, 5, 4, 7], [1, 2, 70, 33, 20]] {
                let mut draw = Draw::new(n as u64);
                // As projections lie.
                let mut heads = |width| draw.tensor::<4>([b, t, h, width], -2.0, 2.0).swap_dims(1, 2);
                let (q, k, v) = (heads(n), heads(n), heads(p));
                let there = [&q, &k, &v].map(|x| x.clone().to_device(&device));
                let found = features_and_one(there.each_ref(), 0.3).expect("they are for the kernel");
                let expected = [elu_plus_one(q, 0.3), elu_plus_one(k, 1.0), with_normalizer(v)];
                for (found, expected) in found.into_iter().zip(&expected) {
                    assert_eq!(found.dims(), expected.dims());
                    assert!(gap(found, expected.clone()) <= 1e-6, "{t} {n}");
                }
                let y = draw.tensor::<4>([b, h, t, p + 1], 0.5, 2.0);
                let found = quotients(&y.clone().to_device(&device), 1e-3).expect("it is for the kernel");
                assert!(gap(found, merge_heads(normalize(y.clone(), 1e-3))) <= 1e-6, "{t} {p}");
                let [q, k, v] = there;
                assert!(features_and_one([&q.autodiff().require_grad(), &k, &v], 1.0).is_none());
                assert!(quotients(&y, 1e-3).is_none());
            }
        }
    }
}
