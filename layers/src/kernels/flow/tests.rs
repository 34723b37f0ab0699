//! The kernel against the balance as its module states it: positions, lengths and sizes of any kind, values and all gradients.

use burn::tensor::{DType, Device, Tensor};
use proptest::prelude::*;

use super::{Options, run};
use crate::testing::{Draw, error, numbers, properties};

#[derive(Clone)]
struct Case {
    q: Tensor<4>,
    k: Tensor<4>,
    sums: Tensor<4>,
    options: Options,
}

/// Heads, tokens, numbers; rows that start and end at these tokens.
fn case([h, t, n]: [usize; 3], rows: &[(usize, usize)], clamp: f64, seed: u64) -> Case {
    let b = rows.len();
    let mut draw = Draw::new(seed);
    let mut positive = |dims| draw.tensor::<4>(dims, 0.1, 1.0).cast(DType::F64);
    let (q, k, sums) = (positive([b, h, t, n]), positive([b, h, t, n]), positive([b, h, 4 * n + 1, 1]));
    let (starts, real) = rows.iter().copied().unzip();
    Case { q, k, sums, options: Options { starts, real, eps: 1e-3, clamp } }
}

impl Case {
    fn map(&self, four: impl Fn(Tensor<4>) -> Tensor<4>) -> Self {
        let [q, k, sums] = [&self.q, &self.k, &self.sums].map(|x| four(x.clone()));
        Self { q, k, sums, options: self.options.clone() }
    }

    fn plain(&self) -> (Tensor<4>, Tensor<4>) {
        let Self { q, k, sums, options: Options { starts, real, eps, clamp } } = self;
        let ([b, _, t, n], dtype) = (q.dims(), q.dtype());
        let row = |numbers: Vec<f64>| {
            Tensor::<1>::from_data(&numbers[..], (&Device::flex(), dtype)).reshape([b, 1, 1, 1])
        };
        let mut all: Vec<Tensor<4>> =
            (0..4).map(|i| sums.clone().narrow(2, i * n, n).swap_dims(2, 3)).collect();
        let mut competition = sums.clone().narrow(2, 4 * n, 1);
        let up = |x: Tensor<4>| x.add_scalar(*eps);
        let flow = |x: &Tensor<4>, sum: &Tensor<4>| (up(x.clone()) * up(sum.clone())).sum_dim(3);
        let mut out = Vec::new();
        for i in 0..t {
            let [q, k] = [q, k].map(|x| x.clone().narrow(2, i, 1));
            let valid = row(real.iter().map(|&real| f64::from(i < real)).collect());
            let count = row(starts.iter().map(|&start| (start + i + 1) as f64).collect());
            all[0] = all[0].clone() + k.clone() * valid.clone();
            all[1] = all[1].clone() + q.clone() * valid.clone();
            let (incoming, outgoing) = (flow(&q, &all[0]).recip(), flow(&k, &all[1]).recip());
            all[2] = all[2].clone() + k.clone() * outgoing * count.clone() * valid.clone();
            all[3] = all[3].clone() + q.clone() * incoming.clone() * count.clone() * valid.clone();
            let allocation = (flow(&q, &all[2]) / count.clone()).neg().exp().add_scalar(1.0).recip();
            let source = (flow(&k, &all[3]) / count.clone()).clamp(-clamp, *clamp).exp();
            competition = competition.clone() + source.clone() * valid.clone();
            let with = competition.clone() + valid.neg().add_scalar(1.0);
            out.push(Tensor::cat(vec![allocation, source * count / with, incoming], 3));
        }
        let mut last: Vec<_> = all.into_iter().map(|x| x.swap_dims(2, 3)).collect();
        last.push(competition);
        (Tensor::cat(out, 2), Tensor::cat(last, 2))
    }

    fn fused(&self) -> (Tensor<4>, Tensor<4>) {
        run(&self.q, &self.k, &self.sums, self.options.clone()).expect("they are for the kernel")
    }

    /// Outputs, sums and the gradients of all inputs, weighed differently everywhere.
    fn everything(&self, run: impl FnOnce(&Self) -> (Tensor<4>, Tensor<4>)) -> Vec<Vec<f64>> {
        let case = self.map(|x| x.autodiff().require_grad());
        let (y, last) = run(&case);
        let weigh = |x: &Tensor<4>, seed| {
            let cotangent = Draw::new(seed).tensor::<4>(x.dims(), -1.0, 1.0).cast(x.dtype());
            (x.clone() * cotangent).sum()
        };
        let grads = (weigh(&y, 91) + weigh(&last, 92)).backward();
        let mut all = vec![numbers(y), numbers(last)];
        all.extend([case.q, case.k, case.sums].map(|x| numbers(x.grad(&grads).expect("a gradient"))));
        all
    }
}

fn compare(found: &[Vec<f64>], expected: &[Vec<f64>], limits: [f64; 2], of: &str) {
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let (off, limit) = (error(found, expected), limits[usize::from(i >= 2)]);
        assert!(off <= limit, "{} of {of}: off by {off:e}", ["y", "sums", "dq", "dk", "dsums"][i]);
    }
}

fn check(sizes: [usize; 3], rows: &[(usize, usize)], clamp: f64, seed: u64) {
    let double = case(sizes, rows, clamp, seed);
    let expected = double.everything(Case::plain);
    let of = format!("{sizes:?}, {rows:?}, {clamp}");
    compare(&double.everything(Case::fused), &expected, [1e-11; 2], &of);
    // What is at the clamp in one precision may be beside it in the other.
    if clamp > 10.0 {
        let single = double.map(|x| x.cast(DType::F32)).everything(Case::fused);
        compare(&single, &expected, [1e-5, 1e-4], &of);
    }
}

#[test]
fn it_is_the_balance_at_every_size() {
    for (h, t, n) in [(1, 1, 1), (3, 2, 4), (1, 32, 16), (2, 33, 5), (1, 70, 17)] {
        for clamp in [0.9, 20.0] {
            check([h, t, n], &[(0, t), (0, t)], clamp, t as u64);
        }
    }
}

proptest! {
    #![proptest_config(properties(24))]

    #[test]
    fn it_is_the_balance_whatever_is_asked(
        sizes in [1usize..3, 1usize..70, 1usize..40],
        rows in proptest::collection::vec((0usize..50, 0usize..70), 1..3),
        clamp in prop_oneof![Just(1.0), Just(30.0)],
        seed in any::<u64>(),
    ) {
        let rows: Vec<_> = rows.into_iter().map(|(start, real)| (start, real.min(sizes[1]))).collect();
        check(sizes, &rows, clamp, seed);
    }
}

/// Parts of a projection, heads behind tokens, reversed time.
#[test]
fn inputs_may_lie_in_any_order() {
    let whole = Draw::new(5).tensor::<4>([2, 40, 3, 40], 0.1, 1.0).cast(DType::F64).swap_dims(1, 2);
    let ok = case([3, 40, 7], &[(0, 40), (3, 20)], 20.0, 1);
    let views = Case { q: whole.clone().narrow(3, 0, 7), k: whole.narrow(3, 7, 7).flip([2]), ..ok };
    let straight = |x: Tensor<4>| Tensor::<4>::from_data(x.clone().into_data(), (&x.device(), x.dtype()));
    let expected = views.map(straight).everything(Case::plain);
    compare(&views.everything(Case::fused), &expected, [1e-11; 2], "views");
}

#[test]
fn it_declines_what_it_cannot_do() {
    let Case { q, k, sums, options } = case([2, 4, 6], &[(0, 4)], 1.0, 1);
    let runs = |q: &Tensor<4>, k: &Tensor<4>, sums: &Tensor<4>| run(q, k, sums, options.clone()).is_some();
    assert!(runs(&q, &k, &sums));
    assert!(!runs(&q.clone().narrow(3, 0, 5), &k, &sums));
    assert!(!runs(&q, &k, &sums.clone().narrow(2, 0, 24)));
    assert!(!runs(&q, &k.clone().cast(DType::F32), &sums));
    let [q, k, sums] = [q, k, sums].map(|x| x.cast(DType::F16));
    assert!(!runs(&q, &k, &sums));
}
