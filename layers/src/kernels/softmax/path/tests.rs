//! The kernel against one matrix after another: every size and option, values and all gradients.

use burn::tensor::{DType, Device, Tensor, TensorData, activation};
use proptest::prelude::*;

use super::*;
use crate::nn::l2_normalize;
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
    softcap: None,
    sink: false,
    padded: false,
    forget: false,
};

impl Inputs {
    fn map(&self, four: impl Fn(Tensor<4>) -> Tensor<4>, one: impl Fn(Tensor<1>) -> Tensor<1>) -> Self {
        let Self { q, k, v, w, beta, sink, forget, offsets, weighing } = self.clone();
        let [q, k, v, w, beta] = [q, k, v, w, beta].map(&four);
        Self { q, k, v, w, beta, sink: sink.map(one), forget: forget.map(four), offsets, weighing }
    }

    fn cast(&self, dtype: DType) -> Self {
        self.map(|x| x.cast(dtype), |x| x.cast(dtype))
    }

    /// The keys as every query finds them: one matrix after another.
    fn plain(&self) -> Tensor<4> {
        let Self { q, k, v, w, beta, sink, forget, offsets, weighing } = self.clone();
        let ([b, h, t, _], [_, kv, total, _]) = (q.dims(), v.dims());
        let [mut keys, v, w, beta] = [k, v, w, beta].map(|x| repeat_heads(x, h / kv));
        let row = |x: &Tensor<4>, i| x.clone().narrow(2, i, 1);
        let (device, dtype) = (q.device().inner(), q.dtype());
        let mut scores = Vec::new();
        for at in 0..total {
            // Keys before this token: `k ← H k`.
            if at > 0 {
                let earlier = keys.clone().narrow(2, 0, at);
                let reads = (earlier.clone() * row(&w, at)).sum_dim(3) * row(&beta, at);
                keys = Tensor::cat(vec![earlier - reads * row(&w, at), keys.narrow(2, at, total - at)], 2);
            }
            if at >= weighing.cached {
                scores.push((row(&q, at - weighing.cached) * keys.clone()).sum_dim(3).swap_dims(2, 3));
            }
        }
        let mut scores = Tensor::cat(scores, 2).mul_scalar(weighing.scale);
        if let Some(cap) = weighing.softcap {
            // Burn's derivative of `div_scalar` is rounded to `f32`.
            scores = scores.mul_scalar(1.0 / cap).tanh().mul_scalar(cap);
        }
        let unseen =
            (0..t).flat_map(|i| (0..total).map(move |j| if j > weighing.cached + i { -1e30 } else { 0.0 }));
        let unseen = TensorData::new(unseen.collect::<Vec<f64>>(), [1, 1, t, total]);
        scores = scores + Tensor::from_data(unseen, (&device, dtype));
        if let Some(forget) = forget {
            let sums = forget.cumsum(2);
            scores = scores + sums.clone().narrow(2, total - t, t) - sums.swap_dims(2, 3);
        }
        if let Some(offsets) = offsets {
            scores = scores + offsets;
        }
        if let Some(sink) = sink {
            scores = Tensor::cat(vec![scores, sink.reshape([1, h, 1, 1]).expand([b, h, t, 1])], 3);
        }
        activation::softmax(scores, 3).narrow(3, 0, total).matmul(v)
    }

    fn fused(&self) -> Tensor<4> {
        self.run().expect("they are for the kernel")
    }

    /// Outputs, and the gradients of everything, weighed differently everywhere.
    fn everything(&self, run: impl FnOnce(&Self) -> Tensor<4>) -> Vec<(&'static str, Vec<f64>)> {
        let inputs = self.map(|x| x.autodiff().require_grad(), |x| x.autodiff().require_grad());
        let y = run(&inputs);
        let cotangent = Draw::new(91).tensor::<4>(y.dims(), -1.0, 1.0).cast(y.dtype());
        let grads = (y.clone() * cotangent).sum().backward();
        let mut all = vec![("y", numbers(y))];
        let Self { q, k, v, w, beta, sink, forget, .. } = &inputs;
        // One token's matrix is nobody's: there is no gradient of it.
        let none = |numbers: usize| vec![0.0; numbers];
        let four = [("dq", Some(q)), ("dk", Some(k)), ("dv", Some(v)), ("dw", Some(w)), ("dβ", Some(beta))];
        for (name, x) in four.into_iter().chain([("dlog f", forget.as_ref())]) {
            let gradient = |x: &Tensor<4>| x.grad(&grads).map_or(none(x.shape().num_elements()), numbers);
            all.extend(x.map(|x| (name, gradient(x))));
        }
        all.extend(sink.as_ref().map(|x| ("dsink", numbers(x.grad(&grads).expect("a gradient")))));
        all
    }
}

impl Case {
    fn inputs(self, seed: u64) -> Inputs {
        let Self { b, kv, group, t, cached, n, p, softcap, .. } = self;
        let (h, total) = (kv * group, cached + t);
        let mut draw = Draw::new(seed);
        let mut random = |dims, size: f64| draw.tensor::<4>(dims, -size, size).cast(DType::F64);
        let [q, k] = [random([b, h, t, n], 2.0), random([b, kv, total, n], 2.0)];
        let (v, w) = (random([b, kv, total, p], 1.0), l2_normalize(random([b, kv, total, n], 1.0), 1e-6));
        let (beta, log_f) = (random([b, kv, total, 1], 2.0).abs(), random([b, h, total, 1], 0.2).abs().neg());
        let sink = draw.tensor::<1>([h], -1.0, 1.0).cast(DType::F64);
        // Each row lacks its first keys, fewer and fewer of them.
        let absent = |row: usize, key: usize| key < cached / (row + 1);
        let flags =
            (0..b).flat_map(|row| (0..total).map(move |key| if absent(row, key) { -1e30 } else { 0.0 }));
        let offsets = TensorData::new(flags.collect::<Vec<f64>>(), [b, 1, 1, total]);
        let offsets = Tensor::from_data(offsets, (&Device::flex(), DType::F64));
        Inputs {
            q,
            k,
            v,
            w,
            beta,
            sink: self.sink.then_some(sink),
            forget: self.forget.then_some(log_f),
            offsets: self.padded.then_some(offsets),
            weighing: Weighing {
                causal: true,
                cached,
                window: None,
                scale: 1.3 * (n as f64).powf(-0.5),
                softcap,
            },
        }
    }

    fn check(self, seed: u64) {
        let double = self.inputs(seed);
        let expected = double.everything(Inputs::plain);
        for (inputs, limits) in [(double.clone(), [1e-11; 2]), (double.cast(DType::F32), [1e-5, 1e-4])] {
            let single = inputs.q.dtype() == DType::F32;
            let inputs = Inputs { offsets: inputs.offsets.map(|x| x.cast(inputs.q.dtype())), ..inputs };
            // A few queries without gradients have a way of their own.
            let off = error(&numbers(inputs.fused()), &expected[0].1);
            assert!(off <= limits[0], "y without gradients: off by {off:e}, single {single}, in {self:?}");
            for (i, ((name, found), (_, expected))) in
                inputs.everything(Inputs::fused).iter().zip(&expected).enumerate()
            {
                let (off, limit) = (error(found, expected), limits[i.min(1)]);
                assert!(off <= limit, "{name}: off by {off:e}, single {single}, in {self:?}");
            }
        }
    }
}

#[test]
fn it_is_one_matrix_after_another_at_every_size() {
    for (t, cached) in
        [(1, 0), (1, 63), (2, 64), (5, 0), (64, 0), (65, 0), (130, 0), (4, 70), (30, 50), (70, 100)]
    {
        for (n, p) in [(1, 1), (7, 5), (16, 20)] {
            Case { b: 2, t, cached, n, p, ..PLAIN }.check((t + cached) as u64);
        }
    }
}

#[test]
fn every_option_is_part_of_it() {
    for (t, cached) in [(70, 0), (3, 80), (40, 100)] {
        let case = Case { t, cached, kv: 1, group: 3, ..PLAIN };
        for case in [
            Case { softcap: Some(1.5), ..case },
            Case { sink: true, ..case },
            Case { padded: true, b: 2, ..case },
            Case { forget: true, ..case },
            Case { softcap: Some(2.0), sink: true, padded: true, forget: true, b: 3, ..case },
        ] {
            case.check(t as u64);
        }
    }
}

proptest! {
    #![proptest_config(properties(12))]

    #[test]
    fn it_is_that_whatever_is_asked(
        sizes in [1usize..3, 1usize..3, 1usize..3, 1usize..90, 0usize..100, 1usize..20, 1usize..20],
        softcap in proptest::option::of(1.0f64..5.0),
        [sink, padded, forget] in any::<[bool; 3]>(),
        seed in any::<u64>(),
    ) {
        let [b, kv, group, t, cached, n, p] = sizes;
        Case { b, kv, group, t, cached, n, p, softcap, sink, padded, forget }.check(seed);
    }
}

/// Parts of a projection, heads behind tokens.
#[test]
fn inputs_may_lie_in_any_order() {
    let mut draw = Draw::new(5);
    let whole = draw.tensor::<4>([2, 80, 3, 40], -1.0, 1.0).cast(DType::F64).swap_dims(1, 2);
    let part = |first, width| whole.clone().narrow(3, first, width);
    let turned = draw.tensor::<4>([2, 3, 6, 80], -1.0, 1.0).cast(DType::F64).swap_dims(2, 3);
    let views = Inputs {
        q: part(0, 7),
        k: part(7, 7).flip([2]),
        v: turned,
        w: part(14, 7),
        beta: part(30, 1).abs(),
        ..Case { b: 2, kv: 3, t: 80, n: 7, p: 6, ..PLAIN }.inputs(1)
    };
    let straight = |x: Tensor<4>| Tensor::<4>::from_data(x.clone().into_data(), (&x.device(), x.dtype()));
    let expected = views.map(straight, |x| x).everything(Inputs::plain);
    for ((name, found), (_, expected)) in views.everything(Inputs::fused).iter().zip(&expected) {
        let off = error(found, expected);
        assert!(off <= 1e-11, "{name}: off by {off:e}");
    }
    let last = Inputs {
        q: views.q.clone().narrow(2, 79, 1),
        weighing: Weighing { cached: 79, ..views.weighing },
        ..views
    };
    assert!(error(&numbers(last.fused()), &numbers(last.plain())) <= 1e-11);
}

#[test]
fn it_declines_what_it_cannot_do() {
    let ok = Case { t: 5, ..PLAIN }.inputs(1);
    assert!(ok.run().is_some());
    let weighing = |weighing| Inputs { weighing, ..ok.clone() }.run();
    assert!(weighing(Weighing { window: Some(3), ..ok.weighing }).is_none());
    assert!(weighing(Weighing { causal: false, ..ok.weighing }).is_none());
    assert!(weighing(Weighing { cached: 1, ..ok.weighing }).is_none());
    assert!(Inputs { w: ok.w.clone().narrow(3, 0, 2), ..ok.clone() }.run().is_none());
    assert!(Inputs { beta: ok.beta.clone().cast(DType::F32), ..ok.clone() }.run().is_none());
    assert!(ok.cast(DType::F16).run().is_none());
}
