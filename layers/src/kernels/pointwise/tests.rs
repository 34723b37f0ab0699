//! The kernel against tensor operations: every function, values and all gradients.

use burn::backend::Flex;
use burn::tensor::{DType, Device, Tensor, activation};

use super::flex::{self, Gradients};
use super::*;
use crate::kernels::view::{Number, view};
use crate::nn::{Formula, Function, LOG_ZERO};
use crate::testing::{Draw, error, numbers};

/// `x`, `y`, `z`, `p`, `q`.
type Five = [Tensor<4>; 5];

fn formulas() -> Vec<Formula> {
    let limited = Formula { low: 0.3, high: 1.5, ..Formula::new(Function::Step) };
    let all = Function::ALL.map(|function| Formula { scale: 0.7, ..Formula::new(function) });
    all.into_iter().chain([limited, Formula { function: Function::StepDecay, ..limited }]).collect()
}

/// With parameters for every head or for all.
fn inputs(function: Function, dims: [usize; 4], every: bool, seed: u64) -> Five {
    let mut draw = Draw::new(seed);
    let [_, _, m, n] = dims;
    let parameter = [1, 1, if every { m } else { 1 }, n];
    let size = if function == Function::GateInput { [-3.0, -0.01] } else { [-6.0, 6.0] };
    let x = draw.tensor(dims, size[0], size[1]);
    let y = draw.tensor(dims, -4.0, 1.0);
    // Resets are 0 or 1.
    let y = match function {
        Function::GateDecay => y.clamp(0.0, 1.0).ceil(),
        Function::Share => y.abs().add_scalar(0.3),
        _ => y,
    };
    let z = draw.tensor(dims, -2.0, 2.0);
    [x, y, z, draw.tensor(parameter, -1.0, 1.0), draw.tensor(parameter, -1.0, 1.0)]
}

fn softplus(x: Tensor<4>) -> Tensor<4> {
    x.clone().clamp_min(0.0) + x.abs().neg().exp().log1p()
}

fn plain([x, y, z, p, q]: Five, formula: Formula) -> Tensor<4> {
    let Formula { function, scale, low, high } = formula;
    let gelu = |x: Tensor<4>| {
        let inner = x.clone() + x.clone().powi_scalar(3).mul_scalar(0.044715);
        x * (inner.mul_scalar((2.0 / std::f64::consts::PI).sqrt()).tanh().add_scalar(1.0)).mul_scalar(0.5)
    };
    let step = |x: Tensor<4>| softplus(x).clamp(low, high);
    match function {
        Function::Silu => activation::silu(x),
        Function::Sigmoid => activation::sigmoid(x).mul_scalar(scale),
        Function::Closed => activation::sigmoid(x.neg()).mul_scalar(scale),
        Function::GeluTanh => gelu(x),
        Function::LogSigmoid => softplus(x.neg()).mul_scalar(-scale),
        Function::EluPlusOne => (activation::relu(x.clone()) + x.clamp_max(0.0).exp()).mul_scalar(scale),
        Function::LogGate => softplus((x + p).neg()).mul_scalar(-scale),
        Function::SiluGate => x * activation::silu(y),
        Function::SigmoidGate => x * activation::sigmoid(y),
        Function::GeluGate => x * gelu(y),
        Function::Step => step(x + p),
        Function::StepDecay => step(x + p) * q.exp().neg(),
        Function::GateDecay => {
            let log = activation::sigmoid(x + p) * softplus(q).mul_scalar(-scale);
            log * y.clone().neg().add_scalar(1.0) + y.mul_scalar(LOG_ZERO)
        }
        Function::Erase => x * y.exp().neg(),
        Function::Share => x / y.add_scalar(scale),
        Function::Skip => x + y * p,
        Function::GateInput => {
            let root = (x.clone().neg().tanh() * x.mul_scalar(2.0).exp().add_scalar(1.0)).sqrt();
            root * activation::sigmoid(y + p) * z
        }
        Function::Tanh => x.tanh(),
        Function::SquaredRelu => activation::relu(x).square(),
        Function::Rate => x.clamp_max(scale).exp().neg(),
        Function::Lerp => x.clone() + p * (y - x),
        Function::Mix => x.clone() + (p + z) * (y - x),
        Function::Rescale => x * (p * y.sub_scalar(1.0)).add_scalar(1.0),
        Function::Product => x * y * p,
    }
}

fn fused(five: Five, formula: Formula) -> Tensor<4> {
    let (tensors, parameters) = formula.function.arity();
    let inputs = Inputs { tensors: five[..tensors].to_vec(), parameters: five[3..][..parameters].to_vec() };
    assert!(inputs.applies(formula), "{formula:?}");
    inputs.run(formula)
}

/// Outputs and the gradients of all inputs that have some.
fn everything(five: &Five, formula: Formula, run: impl FnOnce(Five) -> Tensor<4>) -> Vec<Vec<f64>> {
    let (tensors, parameters) = formula.function.arity();
    let resets = five[1].clone().autodiff();
    let mut five = five.clone().map(|x| x.autodiff().require_grad());
    if formula.function == Function::GateDecay {
        five[1] = resets;
    }
    let y = run(five.clone());
    let cotangent = Draw::new(91).tensor::<4>(y.dims(), -1.0, 1.0).cast(y.dtype());
    let cotangent = cotangent.to_device(&y.device().inner());
    let grads = (y.clone() * cotangent).sum().backward();
    let mut all = vec![numbers(y)];
    for (i, x) in five.iter().enumerate() {
        let reset = formula.function == Function::GateDecay && i == 1;
        if (i < tensors || (3..3 + parameters).contains(&i)) && !reset {
            all.push(numbers(x.grad(&grads).unwrap()));
        }
    }
    all
}

fn compare(found: &[Vec<f64>], expected: &[Vec<f64>], limits: [f64; 2], case: &str) {
    assert_eq!(found.len(), expected.len(), "{case}");
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let (off, limit) = (error(found, expected), limits[i.min(1)]);
        assert!(off <= limit, "result {i} of {case}: off by {off:e}");
    }
}

const SIZES: [([usize; 4], bool); 4] =
    [([1, 1, 1, 1], false), ([2, 3, 5, 4], true), ([1, 2, 90, 70], false), ([3, 1, 130, 33], true)];

#[test]
fn every_function_has_its_place() {
    for (i, function) in Function::ALL.into_iter().enumerate() {
        assert_eq!(function as usize, i, "{function:?}");
    }
}

#[test]
fn it_is_what_tensors_compute() {
    for formula in formulas() {
        for (dims, every) in SIZES {
            let five = inputs(formula.function, dims, every, dims[2] as u64);
            let double = five.clone().map(|x| x.cast(DType::F64));
            let expected = everything(&double, formula, |five| plain(five, formula));
            let case = format!("{formula:?} at {dims:?}");
            let exact = everything(&double, formula, |five| fused(five, formula));
            compare(&exact, &expected, [1e-12, 1e-11], &case);
            let single = everything(&five, formula, |five| fused(five, formula));
            compare(&single, &expected, [1e-6, 1e-5], &case);
        }
    }
}

/// Heads before time, a part of a longer tensor.
fn views([x, y, z, p, q]: Five) -> Five {
    let [x, y, z] = [x, y, z].map(|x| x.swap_dims(1, 2).narrow(1, 1, 2));
    [x, y, z, p, q]
}

fn viewed(function: Function) -> Five {
    let [x, y, z, p, q] = inputs(function, [2, 3, 4, 5], false, 3);
    [x, y, z, p.expand([1, 1, 3, 5]), q.expand([1, 1, 3, 5])]
}

#[test]
fn inputs_may_lie_in_any_order() {
    for formula in formulas() {
        let five = viewed(formula.function).map(|x| x.cast(DType::F64));
        let expected = everything(&five, formula, |five| plain(views(five), formula));
        let found = everything(&five, formula, |five| fused(views(five), formula));
        compare(&found, &expected, [1e-12, 1e-11], &format!("{formula:?}"));
    }
}

/// Large numbers neither overflow nor lose their slopes, and small ones keep their digits.
#[test]
fn the_ends_are_exact() {
    let at = |function: Function, x: f64, dtype: DType| {
        let x = burn::tensor::TensorData::new(vec![x], [1, 1, 1, 1]);
        let x = Tensor::<4>::from_data(x, (&Device::flex(), dtype));
        let zero = || x.zeros_like();
        let one = zero().add_scalar(1.0);
        numbers(fused([x.clone(), zero().add_scalar(80.0), one, zero(), zero()], Formula::new(function)))[0]
    };
    for (dtype, limit) in [(DType::F64, 1e-14), (DType::F32, 2e-7)] {
        for x in [-80.0f64, -30.0, -1e-3, 0.25, 20.0, 80.0] {
            let near = |found: f64, expected: f64| {
                assert!((found / expected - 1.0).abs() < limit, "{found} is not {expected} at {x}");
            };
            near(at(Function::LogSigmoid, -x, dtype), -(x.max(0.0) + (-x.abs()).exp().ln_1p()));
            near(at(Function::Step, x, dtype), x.max(0.0) + (-x.abs()).exp().ln_1p());
            near(at(Function::Sigmoid, x, dtype), 1.0 / (1.0 + (-x).exp()));
        }
        for x in [-1e-7f64, -1e-4, -0.2, -0.3, -5.0, -1e4] {
            let (found, x) = (
                at(Function::GateInput, x, dtype),
                if dtype == DType::F32 { f64::from(x as f32) } else { x },
            );
            assert!((found / (-(2.0 * x).exp_m1()).sqrt() - 1.0).abs() < limit, "{found} at {x}");
        }
    }
}

/// Every number of every result is written: what was there before does not show.
#[test]
fn results_do_not_depend_on_what_was_there() {
    for formula in formulas() {
        let all = inputs(formula.function, [2, 3, 90, 33], true, 1);
        let all = all.map(|x| x.try_into_primitive::<Flex>().unwrap());
        let read = Read::<Flex> { all, formula };
        let given = read.given::<f32>();
        let mut out = vec![f32::NAN; 2 * 3 * 90 * 33];
        flex::forward(&given, &mut out);
        assert!(out.iter().all(|x| x.is_finite()));
        let out = <f32 as Number>::tensor(out, &[2, 3, 90, 33]);
        let mut dirty = Gradients::filled(&given, f32::NAN);
        flex::backward(&given, view(&out), &mut dirty);
        let Gradients { tensors, parameters } = dirty;
        assert!(
            tensors.concat().into_iter().chain(parameters.concat()).all(|x| x.is_finite()),
            "{formula:?}"
        );
    }
}

#[cfg(feature = "cube")]
#[test]
fn graphics_devices_find_the_same() {
    for device in crate::testing::graphics() {
        for formula in formulas() {
            let there = |five: &Five| five.clone().map(|x| x.to_device(&device));
            for (dims, every) in SIZES {
                let five = inputs(formula.function, dims, every, dims[2] as u64);
                let expected = everything(&five.clone().map(|x| x.cast(DType::F64)), formula, |five| {
                    plain(five, formula)
                });
                let found = everything(&there(&five), formula, |five| fused(five, formula));
                compare(&found, &expected, [2e-6, 1e-5], &format!("{formula:?} at {dims:?}"));
            }
            let five = viewed(formula.function);
            let expected = everything(&five, formula, |five| plain(views(five), formula));
            let found = everything(&there(&five), formula, |five| fused(views(five), formula));
            compare(&found, &expected, [2e-6, 1e-5], &format!("{formula:?}, views"));
        }
    }
}

#[test]
fn it_declines_what_it_cannot_do() {
    let [x, y, _, p, _] = inputs(Function::Step, [2, 3, 5, 4], false, 1);
    let applies = |tensors: Vec<Tensor<4>>, parameters: Vec<Tensor<4>>, function: Function| {
        Inputs { tensors, parameters }.applies(Formula::new(function))
    };
    assert!(applies(vec![x.clone()], vec![p.clone()], Function::Step));
    assert!(!applies(vec![x.clone()], vec![], Function::Step));
    assert!(!applies(vec![x.clone(), y.clone().narrow(2, 0, 2)], vec![], Function::SiluGate));
    assert!(!applies(vec![x.clone(), y.cast(DType::F64)], vec![], Function::SiluGate));
    assert!(!applies(vec![x.clone()], vec![p.narrow(3, 0, 2)], Function::Step));
    assert!(!applies(vec![x.cast(DType::F16)], vec![], Function::Silu));
    assert!(!applies(vec![Tensor::zeros([1, 0, 2, 2], &Device::flex())], vec![], Function::Silu));
}
