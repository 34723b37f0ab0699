//! The kernel against products, a softmax and products: every size and option, values and all gradients.

use burn::backend::Flex;
use burn::tensor::{DType, Device, Tensor, TensorData, activation};
use proptest::prelude::*;

use super::*;
use crate::kernels::view::Number;
use crate::nn::repeat_heads;
use crate::testing::{Draw, error, numbers, properties};

/// Sizes and options of one call.
#[derive(Clone, Copy, Debug)]
struct Case {
    b: usize,
    kv: usize,
    /// Query heads per key-value head
    group: usize,
    t: usize,
    cached: usize,
    n: usize,
    p: usize,
    causal: bool,
    window: Option<usize>,
    softcap: Option<f64>,
    sink: bool,
    padded: bool,
    forget: bool,
}

const PLAIN: Case = Case {
    b: 1,
    kv: 2,
    group: 1,
    t: 70,
    cached: 0,
    n: 16,
    p: 16,
    causal: true,
    window: None,
    softcap: None,
    sink: false,
    padded: false,
    forget: false,
};

/// `q`, `k`, `v`, `log f`, the sink and `offsets`, on the CPU in `F64`.
type Five = ([Tensor<4>; 4], Tensor<1>, Tensor<4>);

impl Case {
    fn weighing(self) -> Weighing {
        let Self { causal, cached, window, softcap, n, .. } = self;
        Weighing { causal, cached, window, scale: 1.3 * (n as f64).powf(-0.5), softcap }
    }

    fn inputs(self, seed: u64) -> Five {
        let Self { b, kv, group, t, cached, n, p, .. } = self;
        let (h, total) = (kv * group, cached + t);
        let mut draw = Draw::new(seed);
        let mut random = |dims, size: f64| draw.tensor::<4>(dims, -size, size).cast(DType::F64);
        let [q, k] = [random([b, h, t, n], 2.0), random([b, kv, total, n], 2.0)];
        let (v, log_f) = (random([b, kv, total, p], 1.0), random([b, h, total, 1], 0.2).abs().neg());
        let four = [q, k, v, log_f];
        let sink = draw.tensor::<1>([h], -1.0, 1.0).cast(DType::F64);
        // Each row lacks its first keys, fewer and fewer of them; also one of the row's own, if that leaves any.
        let absent =
            |row: usize, key: usize| key < cached / (row + 1) || (cached > 0 && t > 2 && key == total - 2);
        let flags =
            (0..b).flat_map(|row| (0..total).map(move |key| if absent(row, key) { -1e30 } else { 0.0 }));
        let offsets = TensorData::new(flags.collect::<Vec<f64>>(), [b, 1, 1, total]);
        (four, sink, Tensor::from_data(offsets, (&Device::flex(), DType::F64)))
    }

    /// The tensor form.
    fn plain(self, ([q, k, v, log_f], sink, offsets): Five) -> Tensor<4> {
        let Weighing { causal, cached, window, scale, softcap } = self.weighing();
        let [b, h, t, _] = q.dims();
        let total = k.dims()[2];
        let mut scores = q.matmul(repeat_heads(k, self.group).swap_dims(2, 3)).mul_scalar(scale);
        if let Some(cap) = softcap {
            // Burn's derivative of `div_scalar` is rounded to `f32`.
            scores = scores.mul_scalar(1.0 / cap).tanh().mul_scalar(cap);
        }
        let unseen = (0..t).flat_map(|i| {
            (0..total).map(move |j| {
                let future = causal && j > cached + i;
                if future || window.is_some_and(|w| cached + i >= j + w) { -1e30 } else { 0.0 }
            })
        });
        let unseen = TensorData::new(unseen.collect::<Vec<f64>>(), [1, 1, t, total]);
        scores = scores + Tensor::from_data(unseen, (&Device::flex(), DType::F64));
        if self.forget {
            let sums = log_f.cumsum(2);
            let own = sums.clone().narrow(2, total - t, t);
            scores = scores + own - sums.swap_dims(2, 3);
        }
        if self.padded {
            scores = scores + offsets;
        }
        if self.sink {
            scores = Tensor::cat(vec![scores, sink.reshape([1, h, 1, 1]).expand([b, h, t, 1])], 3);
        }
        activation::softmax(scores, 3).narrow(3, 0, total).matmul(repeat_heads(v, self.group))
    }

    fn fused(self, ([q, k, v, log_f], sink, offsets): Five) -> Tensor<4> {
        assert!(applies(&q, &k, &v), "{self:?}");
        let (sink, log_f) = (self.sink.then_some(sink), self.forget.then_some(log_f));
        run([q, k, v], sink, log_f, self.padded.then_some(offsets), self.weighing())
    }

    /// Outputs, and the gradients of everything, `weight`ed differently everywhere.
    fn everything(self, five: &Five, run: impl FnOnce(Five) -> Tensor<4>) -> Vec<Vec<f64>> {
        let (four, sink, offsets) = five.clone();
        let four = four.map(|x| x.autodiff().require_grad());
        let sink = sink.autodiff().require_grad();
        let y = run((four.clone(), sink.clone(), offsets));
        let cotangent = Draw::new(91).tensor::<4>(y.dims(), -1.0, 1.0).cast(y.dtype());
        let cotangent = cotangent.to_device(&y.device().inner());
        let grads = (y.clone() * cotangent).sum().backward();
        let mut all = vec![numbers(y)];
        let inputs = four.iter().take(if self.forget { 4 } else { 3 });
        all.extend(inputs.map(|x| numbers(x.grad(&grads).expect("a gradient"))));
        if self.sink {
            all.push(numbers(sink.grad(&grads).expect("a gradient of the sink")));
        }
        all
    }

    fn check(mut self, seed: u64) {
        // Without a sink, a query that sees nothing has no value in the tensor form.
        self.padded &= self.sink || self.window.is_none_or(|window| window > 2);
        let five = self.inputs(seed);
        let expected = self.everything(&five, |five| self.plain(five));
        let exact = self.everything(&five, |five| self.fused(five));
        let (four, sink, offsets) = five;
        let single = (four.map(|x| x.cast(DType::F32)), sink.cast(DType::F32), offsets);
        let single = self.everything(&single, |five| self.fused(five));
        for i in 0..expected.len() {
            let name = if i < 4 { ["y", "dq", "dk", "dv"][i] } else { "dlog_f or dsink" };
            for (found, limit) in [(&exact[i], 1e-11), (&single[i], if i == 0 { 1e-5 } else { 1e-4 })] {
                let off = error(found, &expected[i]);
                assert!(off <= limit, "{name}: off by {off:e} in {self:?}");
            }
        }
    }
}

#[test]
fn it_is_a_softmax_at_every_size() {
    // Tokens around a tile of queries and of keys; heads that fill no register, one, and several with a rest.
    for (t, n, p) in
        [(1, 1, 1), (2, 4, 3), (63, 5, 20), (64, 16, 16), (65, 33, 17), (129, 20, 65), (300, 64, 64)]
    {
        for cached in [0, 1, 130] {
            Case { b: 2, t, n, p, cached, ..PLAIN }.check(t as u64);
        }
    }
}

#[test]
fn it_is_a_softmax_with_every_option() {
    for window in [None, Some(1), Some(5), Some(100)] {
        for softcap in [None, Some(1.5)] {
            for (sink, padded, group) in
                [(false, false, 1), (true, false, 3), (false, true, 2), (true, true, 1)]
            {
                let case = Case { b: 2, group, window, softcap, sink, padded, ..PLAIN };
                case.check(1);
                Case { forget: true, ..case }.check(5);
                Case { forget: true, cached: 75, ..case }.check(6);
                Case { forget: true, t: 2, cached: 75, ..case }.check(7);
                Case { cached: 75, ..case }.check(2);
                // So few that tiles are not used.
                Case { t: 3, cached: 175, ..case }.check(4);
                Case { causal: false, window: None, ..case }.check(3);
            }
        }
    }
}

proptest! {
    #![proptest_config(properties(64))]

    #[test]
    fn it_is_a_softmax_whatever_is_asked(
        (b, kv, group) in (1usize..3, 1usize..3, 1usize..4),
        (t, cached) in (1usize..150, 0usize..150),
        (n, p) in (1usize..40, 1usize..40),
        causal in any::<bool>(),
        window in proptest::option::of(1usize..200),
        softcap in proptest::option::of(0.5f64..30.0),
        (sink, padded, forget) in any::<(bool, bool, bool)>(),
        seed in any::<u64>(),
    ) {
        let (window, forget) = (window.filter(|_| causal), forget && causal);
        Case { b, kv, group, t, cached, n, p, causal, window, softcap, sink, padded, forget }.check(seed);
    }
}

/// Central differences in `f64`, of inputs that reach every branch.
#[test]
fn gradients_are_slopes() {
    let case = Case { group: 2, t: 7, cached: 3, n: 3, p: 2, window: Some(4), softcap: Some(2.0), ..PLAIN };
    let case = Case { sink: true, padded: true, forget: true, ..case };
    let five = case.inputs(5);
    let found = case.everything(&five, |five| case.fused(five));
    let loss = |five: Five| {
        let y = case.fused(five);
        let cotangent = Draw::new(91).tensor::<4>(y.dims(), -1.0, 1.0).cast(y.dtype());
        numbers((y * cotangent).sum())[0]
    };
    let step = 1e-5;
    for which in 0..5 {
        let length = found[which + 1].len();
        let moved = |at: usize, by: f64| {
            let (mut four, mut sink, offsets) = five.clone();
            let shift: Vec<f64> = (0..length).map(|i| if i == at { by } else { 0.0 }).collect();
            let options = (&Device::flex(), DType::F64);
            if which < 4 {
                let dims = four[which].dims();
                four[which] = four[which].clone() + Tensor::from_data(TensorData::new(shift, dims), options);
            } else {
                sink = sink + Tensor::from_data(TensorData::new(shift, [length]), options);
            }
            loss((four, sink, offsets))
        };
        let slopes: Vec<f64> =
            (0..length).map(|at| (moved(at, step) - moved(at, -step)) / (2.0 * step)).collect();
        let off = error(&found[which + 1], &slopes);
        assert!(off <= 1e-9, "input {which}: off by {off:e}");
    }
}

/// Heads split from `[b, t, h n]`, one key for all rows, a part of a longer tensor, reversed time.
#[test]
fn inputs_may_lie_in_any_order() {
    let case = Case { b: 2, kv: 3, t: 21, n: 5, p: 5, forget: true, ..PLAIN };
    let mut draw = Draw::new(7);
    let mut random = |dims| draw.tensor::<4>(dims, -1.0, 1.0).cast(DType::F64);
    let log_f = random([1, 3, 1, 21]).abs().neg();
    let four = [random([2, 21, 3, 5]), random([1, 3, 21, 5]), random([2, 3, 42, 5]), log_f];
    let (_, sink, offsets) = case.inputs(7);
    let views = |([q, k, v, log_f], sink, offsets): Five| {
        let (q, k, v) = (q.swap_dims(1, 2), k.expand([2, 3, 21, 5]), v.narrow(2, 7, 21).flip([2]));
        ([q, k, v, log_f.expand([2, 3, 1, 21]).swap_dims(2, 3)], sink, offsets)
    };
    let five = (four, sink, offsets);
    let expected = case.everything(&five, |five| case.plain(views(five)));
    let found = case.everything(&five, |five| case.fused(views(five)));
    for ((found, expected), name) in found.iter().zip(&expected).zip(["y", "dq", "dk", "dv", "dlog_f"]) {
        assert!(error(found, expected) <= 1e-11, "{name}");
    }
}

/// Every number of every result is written: rooms are full of NaN in tests.
#[test]
fn every_number_is_written() {
    for (t, causal, window) in [(1, true, None), (70, true, Some(3)), (37, false, None)] {
        let case = Case { b: 2, t, causal, window, sink: true, ..PLAIN };
        let ([q, k, v, forget], sink, offsets) = case.inputs(3);
        let [q, k, v, forget, offsets] =
            [q, k, v, forget, offsets].map(|x| x.try_into_primitive::<Flex>().unwrap());
        let sink = sink.try_into_primitive::<Flex>().unwrap();
        let options = Options { weighing: case.weighing(), sink: true, forget: causal, offsets: true };
        let read = Read::<Flex> { q, k, v, sink, forget, offsets, options };
        let saved = Flex::forward(read);
        let (y, log_sum) = (saved.y.clone(), saved.log_sum.clone());
        let grads = Flex::backward(saved, y.clone());
        for results in [y, log_sum].iter().chain(&grads) {
            assert!(<f64 as Number>::numbers(results).iter().all(|x| x.is_finite()), "{t} tokens");
        }
    }
}

/// A row of padding only: 0, and no gradient.
#[test]
fn who_sees_nothing_says_nothing() {
    for dtype in [DType::F32, DType::F64] {
        let case = Case { b: 2, t: 20, causal: false, padded: true, ..PLAIN };
        let (four, sink, offsets) = case.inputs(4);
        let nothing = offsets.clone().narrow(0, 0, 1).full_like(-1e30);
        let offsets = Tensor::cat(vec![nothing, offsets.narrow(0, 1, 1)], 0);
        let five = (four.map(|x| x.cast(dtype)), sink, offsets);
        for all in case.everything(&five, |five| case.fused(five)) {
            let (nothing, some) = all.split_at(all.len() / 2);
            assert!(nothing.iter().all(|&x| x == 0.0) && some.iter().all(|&x| x != 0.0 && x.is_finite()));
        }
    }
}

#[cfg(feature = "cube")]
#[test]
fn graphics_devices_find_the_same() {
    let plain = Case { b: 2, t: 70, n: 8, p: 12, ..PLAIN };
    let mut cases = Vec::new();
    for (t, n, p) in [(1, 1, 1), (2, 4, 3), (63, 5, 20), (65, 33, 17), (129, 64, 64), (20, 128, 128)] {
        cases.extend([0, 1, 60].map(|cached| Case { b: 1, t, n, p, cached, ..PLAIN }));
    }
    cases.push(Case { b: 3, ..plain });
    for window in [None, Some(1), Some(5), Some(100)] {
        for (sink, padded, group) in [(false, false, 2), (true, false, 3), (false, true, 2), (true, true, 1)]
        {
            let softcap = sink.then_some(1.5);
            let case = Case { group, window, softcap, sink, padded, ..plain };
            cases.extend([case, Case { forget: true, ..case }]);
            cases.push(Case { forget: true, cached: 75, t: 40, softcap: None, ..case });
            cases.push(Case { causal: false, window: None, cached: 30, ..case });
            // So few that cubes share keys, of which there are one part or several.
            let few = Case { t: 1 + group, b: 3, p: 70, ..case };
            cases.push(Case { forget: true, cached: if padded { 20 } else { 600 }, ..few });
            cases.push(Case { causal: window.is_some(), cached: 600, ..few });
        }
    }
    for device in crate::testing::graphics() {
        for (seed, mut case) in cases.clone().into_iter().enumerate() {
            case.padded &= case.sink || case.window.is_none_or(|window| window > 2);
            let five = case.inputs(seed as u64);
            let expected = case.everything(&five, |five| case.plain(five));
            let (four, sink, offsets) = five;
            let single = (
                four.map(|x| x.cast(DType::F32).to_device(&device)),
                sink.cast(DType::F32).to_device(&device),
                offsets.cast(DType::F32).to_device(&device),
            );
            let found = case.everything(&single, |five| case.fused(five));
            for i in 0..expected.len() {
                let name = if i < 4 { ["y", "dq", "dk", "dv"][i] } else { "dlog_f or dsink" };
                let (off, limit) = (error(&found[i], &expected[i]), if i == 0 { 1e-5 } else { 1e-4 });
                assert!(off <= limit, "{name}: off by {off:e} in {case:?}");
            }
        }
        // Too few for as many units, too many for each to read the cache.
        let [q, k] = [20, 100].map(|t| Tensor::<4>::zeros([1, 1, t, 8], &device));
        assert!(!applies(&q, &k, &k));
        let case = Case { b: 2, kv: 3, t: 21, n: 5, p: 5, forget: true, ..PLAIN };
        let mut draw = Draw::new(7);
        let mut random = |dims| draw.tensor::<4>(dims, -1.0, 1.0);
        let log_f = random([1, 3, 1, 21]).abs().neg();
        let four = [random([2, 21, 3, 5]), random([1, 3, 21, 5]), random([2, 3, 42, 5]), log_f];
        let (_, sink, offsets) = case.inputs(7);
        let views = |([q, k, v, log_f], sink, offsets): Five| {
            let (q, k, v) = (q.swap_dims(1, 2), k.expand([2, 3, 21, 5]), v.narrow(2, 7, 21));
            ([q, k, v, log_f.expand([2, 3, 1, 21]).swap_dims(2, 3)], sink, offsets)
        };
        let moved = (
            four.clone().map(|x| x.to_device(&device)),
            sink.clone().cast(DType::F32).to_device(&device),
            offsets.clone().cast(DType::F32).to_device(&device),
        );
        let five = (four.map(|x| x.cast(DType::F64)), sink, offsets);
        let expected = case.everything(&five, |five| case.plain(views(five)));
        let found = case.everything(&moved, |five| case.fused(views(five)));
        for ((found, expected), name) in found.iter().zip(&expected).zip(["y", "dq", "dk", "dv", "dlog_f"]) {
            let limit = if name == "y" { 1e-5 } else { 1e-4 };
            assert!(error(found, expected) <= limit, "{name} of views");
        }
    }
}

/// Keys that are not finite change nothing before them.
#[test]
fn the_future_does_not_show() {
    let case = Case { t: 100, ..PLAIN };
    let ([q, k, v, log_f], sink, offsets) = case.inputs(8);
    let nan = k.clone().narrow(2, 0, 60).full_like(f64::NAN);
    let spoilt = Tensor::cat(vec![k.clone().narrow(2, 0, 40), nan], 2);
    let run = |k: Tensor<4>| {
        let y = case.fused(([q.clone(), k, v.clone(), log_f.clone()], sink.clone(), offsets.clone()));
        numbers(y.narrow(2, 0, 40))
    };
    assert_eq!(run(k), run(spoilt));
}

/// Scores in the thousands, and all alike.
#[test]
fn large_scores_do_not_overflow() {
    let case = Case { t: 40, ..PLAIN };
    let ([q, k, v, log_f], sink, offsets) = case.inputs(9);
    for factor in [0.0, 3000.0] {
        let five = (
            [q.clone().mul_scalar(factor), k.clone(), v.clone(), log_f.clone()],
            sink.clone(),
            offsets.clone(),
        );
        let expected = case.everything(&five, |five| case.plain(five));
        let found = case.everything(&five, |five| case.fused(five));
        for (found, expected) in found.iter().zip(&expected) {
            assert!(error(found, expected) <= 1e-9);
        }
    }
}

/// PaTH attention's tokens after 8,192 others, whose weights are nearly equal, were off by 6e-5: each weight was added to
/// all before it, and rounded to the same side.
#[test]
fn many_equal_weights_are_not_rounded_to_one_side() {
    let (total, t) = (8192, 8);
    let ones = |dims: [usize; 4]| Tensor::<4>::ones(dims, &Device::flex());
    let (q, k, v) = (ones([1, 1, t, 4]).zeros_like(), ones([1, 1, total, 4]), ones([1, 1, total, 4]));
    for sink in [0.1, 0.3, 1.7] {
        let weighing = Weighing { causal: true, cached: total - t, window: None, scale: 1.0, softcap: None };
        let z = Tensor::full([1], sink, &Device::flex());
        let y = numbers(run([q.clone(), k.clone(), v.clone()], Some(z), None, None, weighing));
        for (i, y) in y.into_iter().enumerate() {
            let keys = (total - t + i / 4 + 1) as f64;
            let expected = keys / (keys + f64::from(sink as f32).exp());
            assert!((y - expected).abs() < 1e-5, "{y} for {expected}");
        }
    }
}

#[test]
fn it_declines_what_it_cannot_do() {
    let ([q, k, v, _], ..) = PLAIN.inputs(1);
    assert!(applies(&q, &k, &v));
    assert!(!applies(&q.clone().cast(DType::F32), &k, &v));
    assert!(!applies(&q.clone().narrow(1, 0, 1), &k, &v));
    assert!(!applies(&q.clone().narrow(3, 0, 2), &k, &v));
    let half = [&q, &k, &v].map(|x| x.clone().cast(DType::F16));
    assert!(!applies(&half[0], &half[1], &half[2]));
    let empty = Tensor::<4>::zeros([0, 2, 4, 16], (&Device::flex(), DType::F64));
    assert!(!applies(&empty, &empty, &empty));
    #[cfg(feature = "ndarray")]
    {
        let there = crate::device::open("ndarray").unwrap();
        let moved = [&q, &k, &v].map(|x| x.clone().cast(DType::F32).to_device(&there));
        assert!(!applies(&moved[0], &moved[1], &moved[2]));
    }
}
