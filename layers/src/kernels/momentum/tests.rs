//! The kernel against the rule token by token: every size, any layout of the inputs, values and all gradients.

use burn::backend::Flex;
use burn::tensor::{DType, Tensor};
use proptest::prelude::*;

use super::walk::{self, Gradients, Outputs};
use super::{MomentumRule, run};
use crate::kernels::room::Room;
use crate::nn::l2_normalize;
use crate::system::Form;
use crate::testing::{Draw, error, numbers, properties};

/// Batch, heads, tokens, numbers of a key, columns.
type Sizes = [usize; 5];

#[derive(Clone)]
struct Inputs {
    rule: MomentumRule,
    state: Tensor<4>,
}

fn inputs([b, h, t, n, c]: Sizes, seed: u64) -> Inputs {
    let mut draw = Draw::new(seed);
    let [q, k, p] = [0, 1, 2].map(|_| l2_normalize(draw.tensor::<4>([b, h, t, n], -1.0, 1.0), 0.0));
    let v = draw.tensor([b, h, t, c], -1.0, 1.0);
    let [log_alpha, log_mu] = [0, 1].map(|_| draw.tensor::<3>([b, h, t], -1.0, 0.0));
    let beta = draw.tensor([b, h, t], 0.0, 1.0);
    let state = draw.tensor([b, h, 2 * n, c], -1.0, 1.0);
    Inputs { rule: MomentumRule { q, k, v, p, log_alpha, log_mu, beta }, state }
}

impl Inputs {
    fn map(&self, four: impl Fn(Tensor<4>) -> Tensor<4>, three: impl Fn(Tensor<3>) -> Tensor<3>) -> Self {
        let Self { rule: MomentumRule { q, k, v, p, log_alpha, log_mu, beta }, state } = self.clone();
        let [q, k, v, p, state] = [q, k, v, p, state].map(four);
        let [log_alpha, log_mu, beta] = [log_alpha, log_mu, beta].map(three);
        Self { rule: MomentumRule { q, k, v, p, log_alpha, log_mu, beta }, state }
    }

    fn cast(&self, dtype: DType) -> Self {
        self.map(|x| x.cast(dtype), |x| x.cast(dtype))
    }

    fn plain(&self) -> (Tensor<4>, Tensor<4>) {
        self.rule.clone().run(self.state.clone(), Form::Recurrent)
    }

    fn fused(&self) -> (Tensor<4>, Tensor<4>) {
        run(&self.rule, &self.state).expect("they are for the kernel")
    }

    /// Outputs, state and the gradients of all inputs, weighed differently everywhere; those of one output only where
    /// `wanted` says so.
    fn everything(
        &self,
        wanted: [bool; 2],
        run: impl FnOnce(&Self) -> (Tensor<4>, Tensor<4>),
    ) -> Vec<(&'static str, Vec<f64>)> {
        let inputs = self.map(|x| x.autodiff().require_grad(), |x| x.autodiff().require_grad());
        let (y, last) = run(&inputs);
        let weigh = |x: &Tensor<4>, seed| {
            let cotangent = Draw::new(seed).tensor::<4>(x.dims(), -1.0, 1.0).cast(x.dtype());
            (x.clone() * cotangent).sum()
        };
        let sums = [(&y, 91), (&last, 92)].into_iter().zip(wanted).filter(|(_, wanted)| *wanted);
        let sum = sums.map(|((x, seed), _)| weigh(x, seed)).reduce(|a, b| a + b).expect("some output");
        let grads = sum.backward();
        let MomentumRule { q, k, v, p, log_alpha, log_mu, beta } = &inputs.rule;
        let none = |count| vec![0.0; count];
        let four = [("dq", q), ("dk", k), ("dv", v), ("dp", p), ("dstate", &inputs.state)]
            .map(|(name, x)| (name, x.grad(&grads).map_or_else(|| none(x.shape().num_elements()), numbers)));
        let three = [("dlog α", log_alpha), ("dlog μ", log_mu), ("dβ", beta)]
            .map(|(name, x)| (name, numbers(x.grad(&grads).expect("a gradient"))));
        let values = [("y", numbers(y)), ("state", numbers(last))];
        values.into_iter().chain(four).chain(three).collect()
    }
}

type Found = Vec<(&'static str, Vec<f64>)>;

fn compare(found: &Found, expected: &Found, limits: [f64; 2], case: &str) {
    for (i, ((name, found), (_, expected))) in found.iter().zip(expected).enumerate() {
        let (off, limit) = (error(found, expected), limits[usize::from(i >= 2)]);
        assert!(off <= limit, "{name} of {case}: off by {off:e}");
    }
}

fn check(sizes: Sizes, seed: u64) {
    let double = inputs(sizes, seed).cast(DType::F64);
    let expected = double.everything([true; 2], Inputs::plain);
    compare(&double.everything([true; 2], Inputs::fused), &expected, [1e-11; 2], &format!("{sizes:?}"));
    let single = double.cast(DType::F32).everything([true; 2], Inputs::fused);
    compare(&single, &expected, [1e-5, 1e-4], &format!("{sizes:?}, single"));
}

#[test]
fn it_is_the_rule_at_every_size() {
    for (h, t, n, c) in [(1, 1, 1, 1), (3, 2, 4, 3), (1, 32, 16, 16), (2, 33, 5, 17), (1, 65, 16, 40)] {
        check([2, h, t, n, c], t as u64);
    }
    // More columns than a job has.
    check([1, 1, 40, 3, 530], 1);
}

proptest! {
    #![proptest_config(properties(24))]

    #[test]
    fn it_is_the_rule_whatever_is_asked(
        sizes in [1usize..3, 1usize..3, 1usize..80, 1usize..20, 1usize..60],
        seed in any::<u64>(),
    ) {
        check(sizes, seed);
    }
}

/// Parts of a projection, heads behind tokens, reversed time, a turned state, one number for all tokens.
#[test]
fn inputs_may_lie_in_any_order() {
    let mut draw = Draw::new(5);
    let mut random = |dims| draw.tensor::<4>(dims, -0.3, 0.3).cast(DType::F64);
    let (whole, turned) = (random([2, 30, 3, 40]).swap_dims(1, 2), random([2, 3, 20, 30]));
    let part = |first, width| whole.clone().narrow(3, first, width);
    let scalar = |first| part(first, 1).squeeze_dim::<3>(3).abs();
    let views = Inputs {
        rule: MomentumRule {
            q: part(0, 7),
            k: part(7, 7).flip([2]),
            p: part(14, 7),
            v: turned.swap_dims(2, 3),
            log_alpha: scalar(30).neg(),
            log_mu: scalar(31).narrow(2, 0, 1).neg().expand([2, 3, 30]),
            beta: scalar(32),
        },
        state: random([2, 3, 20, 14]).swap_dims(2, 3),
    };
    let straight = |x: Tensor<4>| Tensor::<4>::from_data(x.clone().into_data(), (&x.device(), x.dtype()));
    let expected = views.map(straight, |x| x).everything([true; 2], Inputs::plain);
    compare(&views.everything([true; 2], Inputs::fused), &expected, [1e-11; 2], "views");
}

/// Every number of every result is written: what was there before does not show.
#[test]
fn results_do_not_depend_on_what_was_there() {
    for sizes in [[1, 1, 1, 1, 1], [2, 2, 37, 5, 70]] {
        let Inputs { rule: MomentumRule { q, k, v, p, log_alpha, log_mu, beta }, state } = inputs(sizes, 3);
        let [log_alpha, log_mu, beta] = [log_alpha, log_mu, beta].map(|x| x.unsqueeze_dim::<4>(3));
        let given =
            [q, k, p, v, log_alpha, log_mu, beta, state].map(|x| x.try_into_primitive::<Flex>().unwrap());
        let inputs = super::flex::inputs::<f32>(&given);
        let finite = |room: Room<f32>| {
            // SAFETY: rooms are full of NaN in tests.
            #[allow(unsafe_code, reason = "see there")]
            let numbers = unsafe { room.written() };
            assert!(numbers.iter().all(|x| x.is_finite()));
        };
        let mut out = Outputs::new(&inputs);
        walk::forward(&inputs, &mut out);
        let mut grads = Gradients::new(&inputs);
        walk::backward(&inputs, inputs.v, Some(inputs.state), &mut grads);
        [out.y, out.last, grads.v, grads.state, grads.shared].into_iter().for_each(finite);
    }
}

/// Nothing is wanted of the last state, or nothing but that.
#[test]
fn either_output_may_be_all_that_counts() {
    let inputs = inputs([1, 2, 40, 5, 3], 2).cast(DType::F64);
    for wanted in [[true, false], [false, true]] {
        let expected = inputs.everything(wanted, Inputs::plain);
        compare(&inputs.everything(wanted, Inputs::fused), &expected, [1e-11; 2], &format!("{wanted:?}"));
    }
}

#[test]
fn it_declines_what_it_cannot_do() {
    let ok = inputs([1, 2, 4, 6, 3], 1);
    let declines = |inputs: Inputs| run(&inputs.rule, &inputs.state).is_none();
    assert!(!declines(ok.clone()));
    assert!(declines(Inputs { state: ok.state.clone().narrow(2, 0, 6), ..ok.clone() }));
    assert!(declines(Inputs { state: ok.state.clone().cast(DType::F64), ..ok.clone() }));
    assert!(declines(ok.cast(DType::F16)));
    let rule = MomentumRule { p: ok.rule.p.clone().narrow(3, 0, 2), ..ok.rule.clone() };
    assert!(declines(Inputs { rule, ..ok }));
}
