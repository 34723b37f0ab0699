//! The kernel against tensor operations: every size and kind, values and all gradients.

use burn::backend::Flex;
use burn::tensor::{DType, Device, Tensor, activation};

use super::rows::{self, Gradients};
use super::*;
use crate::kernels::view::{Number, view};
use crate::nn::Scaling;
use crate::testing::{Draw, error, numbers};

/// A way to normalise, and what goes with it.
#[derive(Clone, Copy, Debug)]
struct Case {
    dims: [usize; 4],
    scaling: Scaling,
    /// Which axes the weight has, the last one always.
    weight: Option<[bool; 2]>,
    bias: bool,
    gate: Option<Gating>,
}

const PLAIN: Case = Case { dims: [2, 3, 5, 16], scaling: RMS, weight: None, bias: false, gate: None };
const RMS: Scaling = Scaling { eps: 1e-3, mean: true, centred: false, offset: 0.0, gain: 1.0, joint: false };
const SHARED: Option<[bool; 2]> = Some([false, false]);

fn gating(opening: Opening, before: bool) -> Option<Gating> {
    Some(Gating { opening, before })
}

fn cases() -> Vec<Case> {
    let layer = Scaling { centred: true, ..RMS };
    let mut cases = vec![
        PLAIN,
        Case { scaling: Scaling { mean: false, gain: 0.3, ..RMS }, ..PLAIN },
        Case { scaling: Scaling { centred: true, mean: false, ..RMS }, dims: [1, 1, 1, 3], ..PLAIN },
        Case { scaling: Scaling { offset: 1.0, ..RMS }, weight: SHARED, ..PLAIN },
        Case { scaling: layer, weight: SHARED, bias: true, dims: [1, 1, 7, 33], ..PLAIN },
        Case { scaling: layer, weight: Some([true, false]), bias: true, dims: [2, 3, 9, 20], ..PLAIN },
        Case { scaling: layer, weight: Some([false, true]), bias: true, dims: [2, 5, 3, 20], ..PLAIN },
        Case { weight: SHARED, dims: [3, 1, 65, 1], ..PLAIN },
        Case { weight: SHARED, dims: [1, 1, 3, 700], bias: true, ..PLAIN },
        Case { weight: SHARED, dims: [1, 2, 130, 64], ..PLAIN },
    ];
    for opening in [Opening::Linear, Opening::Silu, Opening::Sigmoid] {
        for before in [false, true] {
            let gate = gating(opening, before);
            let joint = Scaling { joint: true, ..RMS };
            let all = Some([false, true]);
            cases.push(Case { gate, ..PLAIN });
            cases.push(Case { gate, weight: SHARED, bias: true, scaling: layer, ..PLAIN });
            cases.push(Case { gate, weight: all, scaling: joint, dims: [2, 9, 4, 12], ..PLAIN });
            cases.push(Case {
                gate,
                scaling: Scaling { centred: true, ..joint },
                weight: all,
                bias: true,
                ..PLAIN
            });
        }
    }
    cases
}

/// `x`, weight, bias, gate.
type Four = [Tensor<4>; 4];

fn inputs(case: Case, seed: u64) -> Four {
    let mut draw = Draw::new(seed);
    let [_, b, m, n] = case.dims;
    let [by_b, by_m] = case.weight.unwrap_or_default();
    let scale = [1, if by_b { b } else { 1 }, if by_m { m } else { 1 }, n];
    [
        draw.tensor(case.dims, -2.0, 2.0),
        draw.tensor(scale, -1.5, 1.5),
        draw.tensor(scale, -1.0, 1.0),
        draw.tensor(case.dims, -4.0, 4.0),
    ]
}

fn plain([x, weight, bias, gate]: Four, case: Case) -> Tensor<4> {
    let Scaling { eps, mean, centred, offset, gain, joint } = case.scaling;
    let [a, b, m, n] = case.dims;
    let gate = |x: Tensor<4>, before: bool| match case.gate {
        Some(gating) if gating.before == before => {
            x * match gating.opening {
                Opening::Linear => gate.clone(),
                Opening::Silu => activation::silu(gate.clone()),
                Opening::Sigmoid => activation::sigmoid(gate.clone()),
            }
        }
        _ => x,
    };
    let x = gate(x, true);
    let x = if joint { x.reshape([a, b, 1, m * n]) } else { x };
    let x = if centred { x.clone() - x.mean_dim(3) } else { x };
    let squares = x.clone().square();
    let squares = if mean { squares.mean_dim(3) } else { squares.sum_dim(3) };
    let mut y = (x / squares.add_scalar(eps).sqrt()).reshape(case.dims);
    if case.weight.is_some() {
        y = y * weight.add_scalar(offset);
    } else {
        y = y.mul_scalar(gain);
    }
    if case.bias {
        y = y + bias;
    }
    gate(y, false)
}

fn fused([x, weight, bias, gate]: Four, case: Case) -> Tensor<4> {
    let inputs = Inputs {
        x,
        weight: case.weight.map(|_| weight),
        bias: case.bias.then_some(bias),
        gate: case.gate.map(|gating| (gate, gating)),
    };
    assert!(inputs.applies(case.scaling.joint), "{case:?}");
    inputs.run(case.scaling)
}

const NAMES: [&str; 5] = ["y", "dx", "dweight", "dbias", "dgate"];

/// Outputs and the gradients of all inputs, weighed differently everywhere; empty where there is no such input.
fn everything(four: &Four, case: Case, run: impl FnOnce(Four) -> Tensor<4>) -> [Vec<f64>; 5] {
    let four = four.clone().map(|x| x.autodiff().require_grad());
    let y = run(four.clone());
    let cotangent = Draw::new(91).tensor::<4>(y.dims(), -1.0, 1.0).cast(y.dtype());
    let cotangent = cotangent.to_device(&y.device().inner());
    let grads = (y.clone() * cotangent).sum().backward();
    let there = [true, case.weight.is_some(), case.bias, case.gate.is_some()];
    let mut all = vec![numbers(y)];
    for (x, there) in four.iter().zip(there) {
        let grad = x.grad(&grads);
        assert_eq!(grad.is_some(), there, "{case:?}");
        all.push(grad.map_or_else(Vec::new, numbers));
    }
    all.try_into().unwrap()
}

fn compare(found: &[Vec<f64>; 5], expected: &[Vec<f64>; 5], limits: [f64; 2], case: Case) {
    assert_eq!(found.each_ref().map(Vec::len), expected.each_ref().map(Vec::len), "{case:?}");
    let there = found.iter().zip(expected).enumerate().filter(|(_, (found, _))| !found.is_empty());
    for (i, (found, expected)) in there {
        let (off, limit) = (error(found, expected), limits[i.min(1)]);
        assert!(off <= limit, "{} of {case:?}: off by {off:e}", NAMES[i]);
    }
}

#[test]
fn it_is_what_tensors_compute() {
    for (seed, case) in cases().into_iter().enumerate() {
        let four = inputs(case, seed as u64);
        let double = four.clone().map(|x| x.cast(DType::F64));
        let expected = everything(&double, case, |four| plain(four, case));
        compare(&everything(&double, case, |four| fused(four, case)), &expected, [1e-12, 1e-11], case);
        compare(&everything(&four, case, |four| fused(four, case)), &expected, [1e-6, 1e-5], case);
    }
}

/// Heads side by side, a part of a longer tensor; a gate of another order.
fn views([x, weight, bias, gate]: Four) -> Four {
    [x.swap_dims(1, 2).narrow(1, 1, 4), weight, bias, gate.swap_dims(2, 3)]
}

const VIEWS: Case = Case {
    dims: [2, 4, 3, 16],
    weight: Some([false, true]),
    bias: true,
    gate: Some(Gating { opening: Opening::Silu, before: false }),
    ..PLAIN
};

fn viewed(joint: bool) -> (Case, Four) {
    let mut draw = Draw::new(7);
    let mut scale = || draw.tensor([1, 1, 3, 16], -1.0, 1.0);
    let (weight, bias) = (scale(), scale());
    let (x, gate) = (draw.tensor([2, 3, 6, 16], -1.0, 1.0), draw.tensor([2, 4, 16, 3], -1.0, 1.0));
    (Case { scaling: Scaling { joint, ..RMS }, ..VIEWS }, [x, weight, bias, gate])
}

#[test]
fn inputs_may_lie_in_any_order() {
    for joint in [false, true] {
        let (case, four) = viewed(joint);
        let four = four.map(|x| x.cast(DType::F64));
        let expected = everything(&four, case, |four| plain(views(four), case));
        let found = everything(&four, case, |four| fused(views(four), case));
        compare(&found, &expected, [1e-12, 1e-11], case);
    }
}

/// Derivatives in double precision are quotients of differences.
#[test]
fn gradients_are_slopes() {
    let case = Case { dims: [1, 2, 2, 5], scaling: Scaling { centred: true, ..RMS }, ..VIEWS };
    let four = inputs(Case { weight: SHARED, ..case }, 3).map(|x| x.cast(DType::F64));
    let case = Case { weight: SHARED, ..case };
    let found = everything(&four, case, |four| fused(four, case));
    let weigh = Draw::new(91).tensor::<4>(case.dims, -1.0, 1.0).cast(DType::F64);
    let value = |four: Four| numbers((fused(four, case) * weigh.clone()).sum())[0];
    for (i, grads) in found[1..].iter().enumerate() {
        for (place, grad) in grads.iter().enumerate() {
            let moved = |by: f64| {
                let mut four = four.clone();
                let mut all = numbers(four[i].clone());
                all[place] += by;
                let data = burn::tensor::TensorData::new(all, four[i].dims());
                four[i] = Tensor::from_data(data, (&Device::flex(), DType::F64));
                value(four)
            };
            let slope = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            assert!((slope - grad).abs() < 1e-8, "{} at {place}: {grad} is not {slope}", NAMES[i + 1]);
        }
    }
}

/// Every number of every result is written: what was there before does not show.
#[test]
fn results_do_not_depend_on_what_was_there() {
    for case in [VIEWS, Case { scaling: Scaling { joint: true, ..RMS }, ..VIEWS }] {
        let case = Case { dims: [2, 90, 3, 40], ..case };
        let [x, weight, bias, gate] = inputs(case, 3).map(|x| x.try_into_primitive::<Flex>().unwrap());
        let options = Options { scaling: case.scaling, weight: true, bias: true, gate: case.gate };
        let read = Read::<Flex> { x, weight, bias, gate, options };
        let inputs = read.rows::<f32>();
        let mut y = vec![f32::NAN; inputs.count()];
        rows::forward(&inputs, &mut y);
        assert!(y.iter().all(|x| x.is_finite()));
        let y = <f32 as Number>::tensor(y, &case.dims);
        let mut dirty = Gradients::filled(&inputs, f32::NAN);
        rows::backward(&inputs, view(&y), &mut dirty);
        let Gradients { x, gate, weight, bias } = dirty;
        assert!([x, gate, weight, bias].concat().iter().all(|x| x.is_finite()));
    }
}

#[cfg(feature = "cube")]
#[test]
fn graphics_devices_find_the_same() {
    for device in crate::testing::graphics() {
        let there = |four: Four| four.map(|x| x.to_device(&device));
        for (seed, case) in cases().into_iter().enumerate() {
            let four = inputs(case, seed as u64);
            let expected = everything(&four, case, |four| plain(four, case));
            let found = everything(&there(four), case, |four| fused(four, case));
            compare(&found, &expected, [1e-6, 1e-5], case);
        }
        for joint in [false, true] {
            let (case, four) = viewed(joint);
            let expected = everything(&four, case, |four| plain(views(four), case));
            let found = everything(&there(four), case, |four| fused(views(four), case));
            compare(&found, &expected, [1e-6, 1e-5], case);
        }
        let wide = Tensor::<4>::zeros([1, 1, 1, 5000], &device);
        assert!(!Inputs { x: wide, weight: None, bias: None, gate: None }.applies(false));
    }
}

#[test]
fn it_declines_what_it_cannot_do() {
    let [x, weight, bias, gate] = inputs(PLAIN, 1);
    let with = |x: &Tensor<4>, weight: Option<Tensor<4>>, gate: Option<Tensor<4>>| {
        let gate = gate.zip(gating(Opening::Silu, false));
        Inputs { x: x.clone(), weight, bias: None, gate }
    };
    assert!(with(&x, Some(weight.clone()), Some(gate.clone())).applies(false));
    assert!(!with(&x, Some(weight.clone()), None).applies(true));
    assert!(!with(&x, Some(weight.clone().cast(DType::F64)), None).applies(false));
    assert!(!with(&x, Some(weight.narrow(3, 0, 2)), None).applies(false));
    assert!(!with(&x, None, Some(gate.narrow(2, 0, 1))).applies(false));
    assert!(!with(&x.clone().cast(DType::F16), None, None).applies(false));
    assert!(!with(&Tensor::zeros([2, 3, 0, 16], &Device::flex()), None, None).applies(false));
    assert!(!Inputs { x, weight: None, bias: Some(bias), gate: None }.applies(false));
}
