//! The kernel against products of tensors: values and gradients.

use burn::tensor::DType;

use super::*;
use crate::testing::{Draw, error, numbers};

fn plain(x: Tensor<4>, table: Tensor<4>) -> Tensor<4> {
    let (n, half) = (x.dims()[3], table.dims()[3] / 2);
    let (cos, sin) = (table.clone().narrow(3, 0, half), table.narrow(3, half, half));
    let (early, late) = (x.clone().narrow(3, 0, half), x.clone().narrow(3, half, half));
    let turned = [early.clone() * cos.clone() - late.clone() * sin.clone(), late * cos + early * sin];
    let mut parts = turned.to_vec();
    if 2 * half < n {
        parts.push(x.narrow(3, 2 * half, n - 2 * half));
    }
    Tensor::cat(parts, 3)
}

fn fused(x: Tensor<4>, table: Tensor<4>) -> Tensor<4> {
    assert!(applies(&x, &table));
    run(x, table)
}

/// Outputs and the gradient of `x`.
fn both(x: &Tensor<4>, run: impl FnOnce(Tensor<4>) -> Tensor<4>) -> [Vec<f64>; 2] {
    let x = x.clone().autodiff().require_grad();
    let y = run(x.clone());
    let cotangent = Draw::new(91).tensor::<4>(y.dims(), -1.0, 1.0).cast(y.dtype());
    let cotangent = cotangent.to_device(&y.device().inner());
    let grads = (y.clone() * cotangent).sum().backward();
    [numbers(y), numbers(x.grad(&grads).unwrap())]
}

/// Dimensions of `x`, rows and angles of the table.
const SIZES: [([usize; 4], usize, usize); 5] = [
    ([1, 1, 1, 2], 1, 1),
    ([2, 3, 7, 8], 1, 4),
    ([2, 3, 7, 9], 2, 3),
    ([3, 2, 130, 64], 3, 32),
    ([1, 4, 300, 20], 1, 7),
];

fn inputs(([b, h, t, n], rows, half): ([usize; 4], usize, usize)) -> (Tensor<4>, Tensor<4>) {
    let mut draw = Draw::new(t as u64);
    (draw.tensor([b, h, t, n], -1.0, 1.0), draw.tensor([rows, 1, t, 2 * half], -1.0, 1.0))
}

#[test]
fn it_is_what_tensors_compute() {
    for sizes in SIZES {
        let (x, table) = inputs(sizes);
        for (dtype, limit) in [(DType::F64, 1e-14), (DType::F32, 1e-6)] {
            let (x, table) = (x.clone().cast(dtype), table.clone().cast(dtype));
            let expected = both(&x, |x| plain(x, table.clone()));
            let found = both(&x, |x| fused(x, table.clone()));
            for (found, expected) in found.iter().zip(&expected) {
                assert!(error(found, expected) <= limit, "{sizes:?}");
            }
            // As heads are split from projections.
            let there = |x: Tensor<4>| x.swap_dims(1, 2);
            let few = table.clone().narrow(2, 0, x.dims()[1]);
            let expected = both(&x, |x| plain(there(x), few.clone()));
            let found = both(&x, |x| fused(there(x), few.clone()));
            for (found, expected) in found.iter().zip(&expected) {
                assert!(error(found, expected) <= limit, "{sizes:?}, split");
            }
            // Tokens before heads, a part of a longer tensor.
            let turned = |x: Tensor<4>| x.swap_dims(1, 2).narrow(1, 0, 1).swap_dims(0, 2);
            let table = table.narrow(0, 0, 1).narrow(2, 0, 1).expand([1, 1, x.dims()[0], 2 * sizes.2]);
            let expected = both(&x, |x| plain(turned(x), table.clone()));
            let found = both(&x, |x| fused(turned(x), table.clone()));
            for (found, expected) in found.iter().zip(&expected) {
                assert!(error(found, expected) <= limit, "{sizes:?}, turned");
            }
        }
    }
}

#[cfg(feature = "cube")]
#[test]
fn graphics_devices_find_the_same() {
    for device in crate::testing::graphics() {
        for sizes in SIZES {
            let (x, table) = inputs(sizes);
            let expected = both(&x, |x| plain(x, table.clone()));
            let there = table.clone().to_device(&device);
            let found = both(&x.clone().to_device(&device), |x| fused(x, there.clone()));
            for (found, expected) in found.iter().zip(&expected) {
                assert!(error(found, expected) <= 1e-6, "{sizes:?}");
            }
            // With one that has fewer heads, both without gradients.
            let fewer = x.clone().narrow(1, 0, 1).mul_scalar(0.5);
            let on = |x: &Tensor<4>| x.clone().to_device(&device);
            let two = run_two(&on(&x), &on(&fewer), Some(&there), Turn::default()).expect("it lies there");
            for (found, x) in two.into_iter().zip([&x, &fewer]) {
                let expected = numbers(plain(x.clone(), table.clone()));
                assert!(error(&numbers(found), &expected) <= 1e-6, "{sizes:?}, two");
            }
            // Of unit length; neighbours together where all channels are rotated; or nothing but the length.
            let eps = 1e-3;
            let length = |x: &Tensor<4>| x.clone().square().sum_dim(3).add_scalar(eps).sqrt();
            let [b, h, t, n] = x.dims();
            let pairs = n == 2 * sizes.2;
            let turn = Turn { pairs, unit: Some(eps), ..Turn::default() };
            let two = run_two(&on(&x), &on(&fewer), Some(&there), turn).expect("it lies there");
            let apart = if pairs {
                let halves = x.clone().reshape([b, h, t, n / 2, 2]).swap_dims(3, 4).reshape([b, h, t, n]);
                let y = plain(halves, table.clone());
                y.reshape([b, h, t, 2, n / 2]).swap_dims(3, 4).reshape([b, h, t, n])
            } else {
                plain(x.clone(), table.clone())
            };
            assert!(error(&numbers(two[0].clone()), &numbers(apart / length(&x))) <= 1e-6, "{sizes:?}, unit");
            let turn = Turn { unit: Some(eps), ..Turn::default() };
            let two = run_two(&on(&x), &on(&fewer), None, turn).expect("it lies there");
            assert!(
                error(&numbers(two[1].clone()), &numbers(fewer.clone() / length(&fewer))) <= 1e-6,
                "{sizes:?}, none"
            );
            assert!(run_two(&x, &fewer, Some(&table), Turn::default()).is_none());
            let leaf = on(&x).autodiff().require_grad();
            assert!(run_two(&leaf, &on(&fewer).autodiff(), Some(&there), Turn::default()).is_none());
            // Tokens before heads.
            let x = x.swap_dims(1, 2);
            let turned = |x: Tensor<4>| x.swap_dims(1, 2);
            let expected = both(&x, |x| plain(turned(x), table.clone()));
            let found = both(&x.to_device(&device), |x| fused(turned(x), there.clone()));
            for (found, expected) in found.iter().zip(&expected) {
                assert!(error(found, expected) <= 1e-6, "{sizes:?}, turned");
            }
        }
    }
}

#[test]
fn it_declines_what_it_cannot_do() {
    let (x, table) = inputs(([2, 3, 7, 8], 1, 4));
    assert!(applies(&x, &table));
    assert!(!applies(&x.clone().narrow(3, 0, 7), &table));
    assert!(!applies(&x.clone().narrow(2, 0, 6), &table));
    assert!(!applies(&x.clone().cast(DType::F64), &table));
    assert!(!applies(&x.clone().cast(DType::F16), &table.clone().cast(DType::F16)));
    assert!(!applies(&x, &table.clone().expand([3, 1, 7, 8])));
    assert!(!applies(&Tensor::zeros([2, 0, 7, 8], &x.device()), &table));
}
