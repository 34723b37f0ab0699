//! The kernel against shifted sums of tensors: every size, values and all gradients.

use burn::backend::Flex;
use burn::tensor::{DType, Device, Tensor, activation};
use proptest::prelude::*;

use super::*;
use crate::kernels::view::Number;
use crate::testing::{Draw, error, numbers, properties};

/// `x` with the inputs before it, weight and bias.
type Three = (Tensor<3>, Tensor<2>, Tensor<1>);

fn inputs([b, t, c, kernel]: [usize; 4], size: f64, seed: u64) -> Three {
    let mut draw = Draw::new(seed);
    let x = draw.tensor([b, kernel - 1 + t, c], -size, size);
    (x, draw.tensor([c, kernel], -1.0, 1.0), draw.tensor([c], -1.0, 1.0))
}

fn cast((x, weight, bias): Three, dtype: DType) -> Three {
    (x.cast(dtype), weight.cast(dtype), bias.cast(dtype))
}

fn plain((x, weight, bias): Three, with_bias: bool, silu: bool) -> Tensor<3> {
    let ([_, rows, c], [_, kernel]) = (x.dims(), weight.dims());
    let t = rows + 1 - kernel;
    let term = |j: usize| x.clone().narrow(1, j, t) * weight.clone().narrow(1, j, 1).reshape([1, 1, c]);
    let mut z = (1..kernel).fold(term(0), |sum, j| sum + term(j));
    if with_bias {
        z = z + bias.reshape([1, 1, c]);
    }
    if silu { activation::silu(z) } else { z }
}

fn fused((x, weight, bias): Three, with_bias: bool, silu: bool) -> Tensor<3> {
    let (x, tail) = apart(x, weight.dims()[1]);
    assert!(applies(&x, &tail, &weight));
    run(x, tail, weight, with_bias.then_some(bias), silu, false).0
}

/// The inputs of the call, and those before it.
fn apart(x: Tensor<3>, kernel: usize) -> (Tensor<3>, Tensor<3>) {
    let [b, rows, c] = x.dims();
    if kernel == 1 {
        let none = Tensor::zeros([b, 0, c], (&x.device(), x.dtype()));
        return (x, none);
    }
    (x.clone().narrow(1, kernel - 1, rows + 1 - kernel), x.narrow(1, 0, kernel - 1))
}

/// The last inputs are there without gradients, whatever is longer, the call or the kernel.
fn keeps_the_last(all: &Tensor<3>, weight: &Tensor<2>) {
    let (rows, kernel) = (all.dims()[1], weight.dims()[1]);
    let (x, tail) = apart(all.clone(), kernel);
    let (y, last) = run(x.clone(), tail.clone(), weight.clone(), None, false, true);
    let (alone, none) = run(x, tail, weight.clone(), None, false, false);
    assert!(none.is_none());
    assert_eq!(numbers(y), numbers(alone));
    let expected = (kernel > 1).then(|| numbers(all.clone().narrow(1, rows + 1 - kernel, kernel - 1)));
    assert_eq!(last.map(numbers), expected);
}

/// Outputs and the gradients of all inputs, `weight`ed differently everywhere.
fn everything(three: &Three, with_bias: bool, run: impl FnOnce(Three) -> Tensor<3>) -> Vec<Vec<f64>> {
    let (x, weight, bias) = three.clone();
    let (x, weight) = (x.autodiff().require_grad(), weight.autodiff().require_grad());
    let bias = bias.autodiff().require_grad();
    let y = run((x.clone(), weight.clone(), bias.clone()));
    let cotangent = Draw::new(91).tensor::<3>(y.dims(), -1.0, 1.0).cast(y.dtype());
    let cotangent = cotangent.to_device(&y.device().inner());
    let grads = (y.clone() * cotangent).sum().backward();
    let mut all = vec![numbers(y), numbers(x.grad(&grads).unwrap()), numbers(weight.grad(&grads).unwrap())];
    if with_bias {
        all.push(numbers(bias.grad(&grads).unwrap()));
    }
    all
}

fn check(dims: [usize; 4], size: f64, seed: u64) {
    let three = inputs(dims, size, seed);
    keeps_the_last(&three.0, &three.1);
    let double = cast(three.clone(), DType::F64);
    for (bias, silu) in [(false, false), (true, false), (false, true), (true, true)] {
        let expected = everything(&double, bias, |three| plain(three, bias, silu));
        let exact = everything(&double, bias, |three| fused(three, bias, silu));
        let single = everything(&three, bias, |three| fused(three, bias, silu));
        for (i, name) in ["y", "dx", "dweight", "dbias"].into_iter().enumerate().take(expected.len()) {
            for (found, limit) in [(&exact[i], 1e-11), (&single[i], if i == 0 { 1e-5 } else { 1e-4 })] {
                let off = error(found, &expected[i]);
                assert!(off <= limit, "{name} at {dims:?}, bias {bias}, silu {silu}: off by {off:e}");
            }
        }
    }
}

#[test]
fn it_is_a_sum_of_shifts_at_every_size() {
    for (t, c, kernel) in
        [(1, 1, 1), (1, 20, 4), (2, 3, 5), (63, 16, 4), (64, 17, 1), (65, 33, 3), (200, 40, 70)]
    {
        check([2, t, c, kernel], 2.0, t as u64);
    }
}

/// SiLU far from 0 neither overflows nor loses its slope.
#[test]
fn large_numbers_pass() {
    check([1, 70, 5, 2], 200.0, 1);
}

proptest! {
    #![proptest_config(properties(32))]

    #[test]
    fn it_is_a_sum_of_shifts_whatever_is_asked(
        dims in [1usize..4, 1usize..150, 1usize..50, 1usize..8],
        seed in any::<u64>(),
    ) {
        check(dims, 2.0, seed);
    }
}

/// Channels before time, a part of a longer tensor.
#[test]
fn inputs_may_lie_in_any_order() {
    let mut draw = Draw::new(7);
    let x = draw.tensor::<3>([2, 7, 90], -1.0, 1.0).cast(DType::F64);
    let weight = draw.tensor::<2>([4, 7], -1.0, 1.0).cast(DType::F64);
    let bias = draw.tensor::<1>([7], -1.0, 1.0).cast(DType::F64);
    let views = |(x, weight, bias): Three| (x.swap_dims(1, 2).narrow(1, 3, 80), weight.swap_dims(0, 1), bias);
    let three = (x, weight, bias);
    let expected = everything(&three, true, |three| plain(views(three), true, true));
    let found = everything(&three, true, |three| fused(views(three), true, true));
    for ((found, expected), name) in found.iter().zip(&expected).zip(["y", "dx", "dweight", "dbias"]) {
        assert!(error(found, expected) <= 1e-11, "{name}");
    }
}

/// Every number of every result is written: rooms are full of NaN in tests.
#[test]
fn every_number_is_written() {
    for t in [1, 130] {
        let (x, weight, bias) = inputs([2, t, 5, 3], 1.0, 3);
        let (x, tail) = apart(x, 3);
        let [x, tail] = [x, tail].map(|x| x.unsqueeze_dim::<4>(1).try_into_primitive::<Flex>().unwrap());
        let weight = weight.unsqueeze::<4>().try_into_primitive::<Flex>().unwrap();
        let bias = bias.unsqueeze::<4>().try_into_primitive::<Flex>().unwrap();
        let saved = Read::<Flex> { x, tail, weight, bias, options: Options { bias: true, silu: true } };
        let (y, last) = Flex::forward(&saved, true);
        let grads = Flex::backward(saved, y.clone());
        for results in [Some(y), last].iter().chain(&grads).flatten() {
            assert!(<f32 as Number>::numbers(results).iter().all(|x| x.is_finite()), "{t} tokens");
        }
    }
}

#[cfg(feature = "cube")]
#[test]
fn graphics_devices_find_the_same() {
    for device in crate::testing::graphics() {
        let there = |(x, weight, bias): Three| {
            (x.to_device(&device), weight.to_device(&device), bias.to_device(&device))
        };
        for (b, t, c, kernel) in
            [(1, 1, 3, 1), (3, 1, 20, 4), (2, 17, 65, 4), (1, 45, 130, 3), (3, 70, 5, 2), (1, 33, 9, 16)]
        {
            let three = inputs([b, t, c, kernel], 2.0, t as u64);
            let moved = there(three.clone());
            keeps_the_last(&moved.0, &moved.1);
            for (bias, silu) in [(false, false), (true, false), (false, true), (true, true)] {
                let expected = everything(&three, bias, |three| plain(three, bias, silu));
                let found = everything(&moved, bias, |three| fused(three, bias, silu));
                compare(&found, &expected, &format!("{:?}, bias {bias}, silu {silu}", [b, t, c, kernel]));
            }
        }
        // Channels before time, a part of a longer tensor.
        let mut draw = Draw::new(7);
        let (x, weight) = (draw.tensor::<3>([2, 7, 90], -1.0, 1.0), draw.tensor::<2>([4, 7], -1.0, 1.0));
        let three = (x, weight, draw.tensor::<1>([7], -1.0, 1.0));
        let views =
            |(x, weight, bias): Three| (x.swap_dims(1, 2).narrow(1, 3, 80), weight.swap_dims(0, 1), bias);
        let expected = everything(&three, true, |three| plain(views(three), true, true));
        let found = everything(&there(three), true, |three| fused(views(three), true, true));
        compare(&found, &expected, "views");
        let wide = there(inputs([1, 3, 4, 17], 1.0, 1));
        let (x, tail) = apart(wide.0, 17);
        assert!(!applies(&x, &tail, &wide.1));
    }
}

/// Outputs in tensors of their own are parts of those in one.
#[cfg(feature = "cube")]
#[test]
fn parts_are_parts_of_the_whole() {
    for device in crate::testing::graphics() {
        let (x, weight, bias) = inputs([2, 21, 90, 4], 2.0, 3);
        let (x, tail) = apart(x, 4);
        let [x, tail] = [x, tail].map(|x| x.to_device(&device));
        let (weight, bias) = (weight.to_device(&device), Some(bias.to_device(&device)));
        let (whole, last) = run(x.clone(), tail.clone(), weight.clone(), bias.clone(), true, true);
        let parts = |widths: [usize; 3]| {
            run_parts(x.clone(), tail.clone(), weight.clone(), bias.clone(), (true, true), widths)
        };
        for widths in [[1, 2, 87], [50, 7, 33], [64, 25, 1]] {
            let (parts, kept) = parts(widths).expect("they are all channels");
            let mut start = 0;
            for (part, width) in parts.into_iter().zip(widths) {
                assert_eq!(numbers(part), numbers(whole.clone().narrow(2, start, width)), "{widths:?}");
                start += width;
            }
            assert_eq!(kept.map(numbers), last.clone().map(numbers));
        }
        assert!(parts([1, 2, 3]).is_none() && parts([0, 45, 45]).is_none());
    }
}

#[cfg(feature = "cube")]
fn compare(found: &[Vec<f64>], expected: &[Vec<f64>], case: &str) {
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let (off, limit) = (error(found, expected), if i == 0 { 1e-5 } else { 1e-4 });
        assert!(off <= limit, "{} of {case}: off by {off:e}", ["y", "dx", "dweight", "dbias"][i]);
    }
}

#[test]
fn it_declines_what_it_cannot_do() {
    let (x, weight, _) = inputs([1, 4, 3, 2], 1.0, 1);
    let (x, tail) = apart(x, 2);
    assert!(applies(&x, &tail, &weight));
    let [double, doubled] = [&x, &tail].map(|x| x.clone().cast(DType::F64));
    assert!(!applies(&double, &tail, &weight));
    assert!(!applies(&double, &doubled, &weight));
    assert!(!applies(&x.clone().narrow(2, 0, 2), &tail.clone().narrow(2, 0, 2), &weight));
    assert!(!applies(&x, &x, &weight));
    let [half, halved] = [&x, &tail].map(|x| x.clone().cast(DType::F16));
    assert!(!applies(&half, &halved, &weight.clone().cast(DType::F16)));
    let none = |rows: usize| Tensor::zeros([0, rows, 3], &Device::flex());
    assert!(!applies(&none(4), &none(1), &weight));
}
