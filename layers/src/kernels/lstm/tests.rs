//! The kernel against the recurrence in tensor operations: every size, any layout, padding, both directions, values and
//! all gradients.

use burn::backend::Flex;
use burn::tensor::{DType, Device, Gradients, Tensor, activation};
use proptest::prelude::*;

use super::cells;
use super::*;
use crate::kernels::view::{Number, view};
use crate::system::scan::unbind;
use crate::testing::{Draw, error, numbers, properties};

/// `p`, the weight, `h` and `c`, and the bias.
type Five = (Tensor<3>, Tensor<2>, [Tensor<3>; 2], Tensor<1>);

#[derive(Clone, Debug)]
struct Case {
    /// `[b, t, n]`
    dims: [usize; 3],
    lengths: Option<Lengths>,
    reversed: bool,
    seed: u64,
}

impl Case {
    fn inputs(&self) -> Five {
        let ([b, t, n], mut draw) = (self.dims, Draw::new(self.seed));
        let p = draw.tensor([b, t, 4 * n], -2.0, 2.0);
        let weight = draw.tensor([n, 4 * n], -1.0, 1.0) * (1.5 / (n as f64).sqrt());
        let mut state = || draw.tensor([b, 1, n], -1.0, 1.0);
        let states = [state(), state()];
        (p, weight, states, draw.tensor([4 * n], -1.0, 1.0))
    }

    fn fused(&self, (p, weight, [h, c], bias): Five) -> [Tensor<3>; 2] {
        assert!(applies(&p, &weight, &h, &c));
        run(p, weight, [h, c], Some(bias), self.lengths.as_ref(), self.reversed)
    }

    fn plain(&self, (p, weight, [mut h, mut c], bias): Five) -> [Tensor<3>; 2] {
        let ([_, t, n], steps) = (self.dims, unbind(p + bias.unsqueeze(), 1));
        let mut states = vec![[h.clone(), c.clone()]; t];
        for step in 0..t {
            let token = if self.reversed { t - 1 - step } else { step };
            let gates = steps[token].clone() + h.clone().matmul(weight.clone().unsqueeze());
            let block = |k: usize| gates.clone().narrow(2, k * n, n);
            let [i, f, o] = [0, 1, 3].map(|k| activation::sigmoid(block(k)));
            let next_c = f * c.clone() + i * block(2).tanh();
            let next_h = o * next_c.clone().tanh();
            let kept = |next: Tensor<3>, before: Tensor<3>| {
                let Some(Lengths(lengths)) = &self.lengths else { return next };
                let rows = lengths.iter().enumerate().map(|(row, &length)| {
                    if token < length { &next } else { &before }.clone().narrow(0, row, 1)
                });
                Tensor::cat(rows.collect(), 0)
            };
            (h, c) = (kept(next_h, h), kept(next_c, c));
            states[token] = [h.clone(), c.clone()];
        }
        [0, 1].map(|part| Tensor::cat(states.iter().map(|both| both[part].clone()).collect(), 1))
    }
}

const NAMES: [&str; 7] = ["h", "c", "dp", "dweight", "dh", "dc", "dbias"];

/// States and the gradients of all inputs, `weight`ed differently everywhere.
fn everything((p, weight, [h, c], bias): &Five, run: impl FnOnce(Five) -> [Tensor<3>; 2]) -> Vec<Vec<f64>> {
    let leaf = |x: &Tensor<3>| x.clone().autodiff().require_grad();
    let (p, h, c) = (leaf(p), leaf(h), leaf(c));
    let weight = weight.clone().autodiff().require_grad();
    let bias = bias.clone().autodiff().require_grad();
    let states = run((p.clone(), weight.clone(), [h.clone(), c.clone()], bias.clone()));
    let weighed = [0, 1].map(|part| {
        let x = states[part].clone();
        let cotangent = Draw::new(91 + part as u64).tensor::<3>(x.dims(), -1.0, 1.0).cast(x.dtype());
        (x.clone() * cotangent.to_device(&x.device().inner())).sum()
    });
    let [a, b] = weighed;
    let grads = (a + b).backward();
    // Where no row has a token, the recurrence does not see what is not read.
    fn gradient<const D: usize>(x: &Tensor<D>, grads: &Gradients) -> Vec<f64> {
        numbers(x.grad(grads).unwrap_or_else(|| x.clone().inner().zeros_like()))
    }
    let mut all = states.map(numbers).to_vec();
    all.extend([gradient(&p, &grads), gradient(&weight, &grads), gradient(&h, &grads), gradient(&c, &grads)]);
    all.push(gradient(&bias, &grads));
    all
}

fn compare(found: &[Vec<f64>], expected: &[Vec<f64>], [values, gradients]: [f64; 2], case: &Case) {
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let (off, limit) = (error(found, expected), if i < 2 { values } else { gradients });
        assert!(off <= limit, "{} of {case:?}: off by {off:e}", NAMES[i]);
    }
}

const SINGLE: [f64; 2] = [1e-5, 1e-4];
const DOUBLE: [f64; 2] = [1e-11; 2];

fn double((p, weight, states, bias): Five) -> Five {
    let states = states.map(|x| x.cast(DType::F64));
    (p.cast(DType::F64), weight.cast(DType::F64), states, bias.cast(DType::F64))
}

fn check(case: &Case) {
    let five = case.inputs();
    let expected = everything(&double(five.clone()), |five| case.plain(five));
    compare(&everything(&double(five.clone()), |five| case.fused(five)), &expected, DOUBLE, case);
    compare(&everything(&five, |five| case.fused(five)), &expected, SINGLE, case);
}

/// Rows around a register tile's and a job's, tokens around those for which the weights are laid out anew, units around
/// a panel's.
fn cases() -> Vec<Case> {
    let sizes = [
        [1, 1, 1],
        [1, 1, 16],
        [2, 7, 16],
        [1, 8, 16],
        [1, 9, 17],
        [3, 12, 5],
        [4, 3, 32],
        [9, 6, 33],
        [17, 10, 3],
        [2, 20, 70],
    ];
    let mut cases = Vec::new();
    for (seed, dims @ [b, t, _]) in (0..).zip(sizes) {
        let ragged = Lengths((0..b).map(|row| (row * 5 + 2) % (t + 1)).collect());
        for lengths in [None, Some(ragged)] {
            cases.extend([false, true].map(|reversed| Case {
                dims,
                lengths: lengths.clone(),
                reversed,
                seed,
            }));
        }
    }
    cases
}

#[test]
fn it_is_the_recurrence_at_every_size() {
    cases().iter().for_each(check);
}

/// Units that are no whole number of panels, more threads than panels, a row that ends early.
#[test]
fn threads_without_a_row_share_the_units_of_one() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(7).build().unwrap();
    for (dims, length, reversed) in [
        ([1, 40, 130], None, false),
        ([1, 33, 200], Some(21), true),
        ([3, 35, 70], Some(30), false),
        ([2, 32, 128], None, true),
    ] {
        let threads = pool.install(|| together::members(dims[0], dims[2], dims[1]).is_some());
        assert!(threads, "{dims:?} are read by one thread each");
        let lengths = length.map(|length| Lengths(vec![length; dims[0]]));
        let case = Case { dims, lengths, reversed, seed: 11 };
        pool.install(|| check(&case));
    }
}

proptest! {
    #![proptest_config(properties(24))]

    #[test]
    fn it_is_the_recurrence_whatever_is_asked(
        dims in [1usize..12, 1usize..14, 1usize..40],
        ragged: bool,
        reversed: bool,
        seed in any::<u64>(),
    ) {
        let length = |row| (row * 7 + seed as usize % 5) % (dims[1] + 1);
        let lengths = ragged.then(|| Lengths((0..dims[0]).map(length).collect()));
        check(&Case { dims, lengths, reversed, seed });
    }
}

/// Time and batch turned around, the weight a transpose, states every other number of something longer.
fn turned(five: &Five) -> Five {
    let (p, weight, states, bias) = five.clone();
    let again = |x: Tensor<3>| {
        let [b, _, n] = x.dims();
        x.unsqueeze_dim::<4>(3).repeat_dim(3, 2).swap_dims(2, 3).reshape([2 * b, 1, n]).narrow(0, 0, b)
    };
    let p = p.swap_dims(0, 2).mul_scalar(1.0).swap_dims(0, 2);
    (p, weight.transpose().mul_scalar(1.0).transpose(), states.map(again), bias)
}

#[test]
fn inputs_may_lie_in_any_order() {
    for dims in [[3, 5, 16], [2, 9, 17]] {
        let case = Case { dims, lengths: None, reversed: false, seed: 3 };
        let five = double(case.inputs());
        let expected = everything(&five, |five| case.plain(turned(&five)));
        compare(&everything(&five, |five| case.fused(turned(&five))), &expected, DOUBLE, &case);
    }
}

/// Every number of every result is written: what was there before does not show.
#[test]
fn results_do_not_depend_on_what_was_there() {
    for (dims @ [b, t, n], reversed) in [([3, 9, 17], false), ([5, 1, 16], true)] {
        let lengths = Lengths((0..b).map(|row| row % (t + 1)).collect());
        let case = Case { dims, lengths: Some(lengths.clone()), reversed, seed: 5 };
        let (p, weight, [h, c], bias) = case.inputs();
        let lengths: Vec<f32> = lengths.0.iter().map(|&n| n as f32).collect();
        let part = |x: Tensor<3>| x.unsqueeze_dim::<4>(1).try_into_primitive::<Flex>().unwrap();
        let read = Read::<Flex> {
            weight: weight.unsqueeze::<4>().try_into_primitive::<Flex>().unwrap(),
            h: part(h),
            c: part(c),
            bias: bias.unsqueeze::<4>().try_into_primitive::<Flex>().unwrap(),
            lengths: <f32 as Number>::tensor(lengths, &[b, 1, 1, 1]),
            options: Options { ragged: true, biased: true, reversed },
        };
        let (p, inputs) = (part(p), read.inputs::<f32>(t));
        let mut states = vec![f32::NAN; 2 * b * t * n];
        let mut gates = vec![f32::NAN; 4 * b * t * n];
        cells::forward(&inputs, view(&p), &mut states, Some(&mut gates));
        assert!(states.iter().chain(&gates).all(|x| x.is_finite()));
        let states = <f32 as Number>::tensor(states, &[2, b, t, n]);
        let gates = <f32 as Number>::tensor(gates, &[b, 1, t, 4 * n]);
        let mut dirty = cells::Gradients::filled(&inputs, f32::NAN);
        cells::backward(&inputs, view(&gates), view(&states), view(&states), &mut dirty);
        let cells::Gradients { p, h, c } = dirty;
        assert!([p, h, c].concat().iter().all(|x| x.is_finite()));
    }
}

#[cfg(feature = "cube")]
#[test]
fn graphics_devices_find_the_same() {
    for device in crate::testing::graphics() {
        let there = |(p, weight, states, bias): Five| {
            let states = states.map(|x| x.to_device(&device));
            (p.to_device(&device), weight.to_device(&device), states, bias.to_device(&device))
        };
        for case in cases() {
            let five = case.inputs();
            let expected = everything(&double(five.clone()), |five| case.plain(five));
            compare(&everything(&there(five), |five| case.fused(five)), &expected, SINGLE, &case);
        }
        let case = Case { dims: [2, 9, 17], lengths: None, reversed: false, seed: 3 };
        let five = case.inputs();
        let expected = everything(&five, |five| case.plain(turned(&five)));
        compare(&everything(&there(five), |five| case.fused(turned(&five))), &expected, SINGLE, &case);
    }
}

#[test]
fn it_declines_what_it_cannot_do() {
    let (p, weight, [h, c], _) = Case { dims: [2, 3, 4], lengths: None, reversed: false, seed: 1 }.inputs();
    assert!(applies(&p, &weight, &h, &c));
    assert!(!applies(&p, &weight, &h, &c.clone().narrow(0, 0, 1)));
    assert!(!applies(&p, &weight, &h, &c.clone().cast(DType::F64)));
    let empty = |dims| Tensor::zeros(dims, &Device::flex());
    assert!(!applies(&empty([0, 3, 16]), &weight, &empty([0, 1, 4]), &empty([0, 1, 4])));
}
