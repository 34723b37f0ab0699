//! The kernel against the fit token by token: every size and number of steps, any layout, values and all gradients.

use burn::backend::Flex;
use burn::tensor::{DType, Tensor};
use proptest::prelude::*;

use super::walk::{self, Gradients, Outputs};
use super::{Options, solve};
use crate::kernels::room::Room;
use crate::linear::{MesaInputs, mesa};
use crate::nn::l2_normalize;
use crate::system::Form;
use crate::testing::{Draw, error, numbers, properties};

/// Batch, heads, tokens, numbers, steps.
type Sizes = [usize; 5];

#[derive(Clone)]
struct Case {
    given: MesaInputs,
    /// `G` beside `H`, to be made symmetric
    memory: Tensor<4>,
}

fn case([b, h, t, n, steps]: Sizes, seed: u64) -> Case {
    let mut draw = Draw::new(seed);
    let mut of = |dims, from: f64| draw.tensor::<4>(dims, from, 1.0).cast(DType::F64);
    let [q, k, v] =
        [of([b, h, t, n], -1.0), l2_normalize(of([b, h, t, n], -1.0), 1e-6), of([b, h, t, n], -1.0)];
    let memory = of([b, h, n, 2 * n], -1.0).mul_scalar(0.3);
    let scalar = |x: Tensor<4>| x.squeeze_dim::<3>(3);
    let (log_a, beta) = (scalar(of([b, h, t, 1], 0.0)).mul_scalar(-0.3), scalar(of([b, h, t, 1], 0.1)));
    let lambda = of([1, 1, h, n], 0.5).add_scalar(0.5).reshape([h, n]);
    Case {
        given: MesaInputs { q, k, v, log_a, beta, lambda, lambda_min: 0.25, steps, any_gram: false },
        memory,
    }
}

type Found = Vec<(&'static str, Vec<f64>)>;

impl Case {
    fn map(
        &self,
        four: impl Fn(Tensor<4>) -> Tensor<4>,
        three: impl Fn(Tensor<3>) -> Tensor<3>,
        two: impl Fn(Tensor<2>) -> Tensor<2>,
    ) -> Self {
        let MesaInputs { q, k, v, log_a, beta, lambda, .. } = self.given.clone();
        let [q, k, v, memory] = [q, k, v, self.memory.clone()].map(four);
        let [log_a, beta] = [log_a, beta].map(three);
        Self { given: MesaInputs { q, k, v, log_a, beta, lambda: two(lambda), ..self.given.clone() }, memory }
    }

    fn cast(&self, dtype: DType) -> Self {
        self.map(|x| x.cast(dtype), |x| x.cast(dtype), |x| x.cast(dtype))
    }

    /// Outputs, memory and the gradients of all inputs, weighed differently everywhere.
    fn everything(&self, form: Form) -> Found {
        let case = self.map(
            |x| x.autodiff().require_grad(),
            |x| x.autodiff().require_grad(),
            |x| x.autodiff().require_grad(),
        );
        // Positive, so that systems stay so.
        let n = self.given.k.dims()[3];
        let g = case.memory.clone().narrow(3, 0, n);
        let g = g.clone().matmul(g.swap_dims(2, 3));
        let memory = Tensor::cat(vec![g, case.memory.clone().narrow(3, n, n)], 3);
        let (y, last) = mesa(&case.given, memory, form).unwrap();
        let weigh = |x: &Tensor<4>, seed| {
            let cotangent = Draw::new(seed).tensor::<4>(x.dims(), -1.0, 1.0).cast(x.dtype());
            (x.clone() * cotangent).sum()
        };
        let grads = (weigh(&y, 91) + weigh(&last, 92)).backward();
        let MesaInputs { q, k, v, log_a, beta, lambda, .. } = &case.given;
        let four = [("dq", q), ("dk", k), ("dv", v), ("dmemory", &case.memory)]
            .map(|(name, x)| (name, numbers(x.grad(&grads).expect("a gradient"))));
        let three = [("dlog γ", log_a), ("dβ", beta)]
            .map(|(name, x)| (name, numbers(x.grad(&grads).expect("a gradient"))));
        let values = [("y", numbers(y)), ("memory", numbers(last))];
        let lambda = ("dλ", numbers(lambda.grad(&grads).expect("a gradient")));
        values.into_iter().chain(four).chain(three).chain([lambda]).collect()
    }
}

fn compare(found: &Found, expected: &Found, limits: [f64; 2], of: &str) {
    for (i, ((name, found), (_, expected))) in found.iter().zip(expected).enumerate() {
        let (off, limit) = (error(found, expected), limits[usize::from(i >= 2)]);
        assert!(off <= limit, "{name} of {of}: off by {off:e}");
    }
}

/// Conjugate gradients magnify rounding, in every form alike.
const EXACT: [f64; 2] = [1e-10; 2];

fn check(sizes: Sizes, seed: u64) {
    let double = case(sizes, seed);
    let expected = double.everything(Form::Recurrent);
    compare(&double.everything(Form::Auto), &expected, EXACT, &format!("{sizes:?}"));
    let single = double.cast(DType::F32).everything(Form::Auto);
    compare(&single, &expected, [1e-5, 1e-4], &format!("{sizes:?}, single"));
}

#[test]
fn it_is_the_fit_at_every_size() {
    for (h, t, n, steps) in
        [(1, 1, 1, 1), (3, 2, 4, 3), (1, 32, 16, 30), (2, 33, 5, 2), (1, 65, 17, 8), (1, 5, 40, 12)]
    {
        check([2, h, t, n, steps], t as u64);
    }
}

proptest! {
    #![proptest_config(properties(16))]

    #[test]
    fn it_is_the_fit_whatever_is_asked(
        sizes in [1usize..3, 1usize..3, 1usize..50, 1usize..20, 1usize..20],
        seed in any::<u64>(),
    ) {
        check(sizes, seed);
    }
}

/// Parts of a projection, heads behind tokens, reversed time.
#[test]
fn inputs_may_lie_in_any_order() {
    let mut draw = Draw::new(5);
    let whole = draw.tensor::<4>([2, 40, 3, 40], -1.0, 1.0).cast(DType::F64).swap_dims(1, 2);
    let part = |first, width| whole.clone().narrow(3, first, width);
    let ok = case([2, 3, 40, 7, 6], 1);
    let views = Case {
        given: MesaInputs {
            q: part(0, 7),
            k: part(7, 7).flip([2]),
            beta: part(30, 1).squeeze_dim::<3>(3).abs(),
            ..ok.given
        },
        memory: ok.memory,
    };
    let straight = |x: Tensor<4>| Tensor::<4>::from_data(x.clone().into_data(), (&x.device(), x.dtype()));
    let expected = views.map(straight, |x| x, |x| x).everything(Form::Recurrent);
    compare(&views.everything(Form::Auto), &expected, EXACT, "views");
}

/// Every number of every result is written: what was there before does not show.
#[test]
fn results_do_not_depend_on_what_was_there() {
    for sizes in [[1, 1, 1, 1, 1], [2, 2, 37, 20, 5]] {
        let Case { given: MesaInputs { q, k, log_a, beta, lambda, .. }, memory } =
            case(sizes, 3).cast(DType::F32);
        let [h, n] = lambda.dims();
        let [log_a, beta] = [log_a, beta].map(|x| x.unsqueeze_dim::<4>(3));
        let g = memory.narrow(3, 0, n);
        let given = [q, k, log_a, beta, lambda.reshape([1, h, 1, n]), g.clone().matmul(g.swap_dims(2, 3))]
            .map(|x| x.try_into_primitive::<Flex>().unwrap());
        let inputs = super::flex::inputs::<f32>(&given, Options { steps: sizes[4], least: 0.25 });
        let finite = |room: Room<f32>| {
            // SAFETY: rooms are full of NaN in tests.
            #[allow(unsafe_code, reason = "see there")]
            let numbers = unsafe { room.written() };
            assert!(numbers.iter().all(|x| x.is_finite()));
        };
        let mut out = Outputs::new(&inputs);
        walk::forward(&inputs, &mut out);
        let mut grads = Gradients::new(&inputs);
        walk::backward(&inputs, inputs.q, Some(inputs.g), &mut grads);
        let Gradients { q, k, log_a, beta, lambda, g } = grads;
        [out.x, out.last, q, k, log_a, beta, lambda, g].into_iter().for_each(finite);
    }
}

#[test]
fn it_declines_what_it_cannot_do() {
    let Case { given: ok, memory } = case([1, 2, 4, 6, 3], 1);
    let g = memory.narrow(3, 0, 6);
    assert!(solve(&ok, &g).is_some());
    assert!(solve(&ok, &g.clone().narrow(2, 0, 5)).is_none());
    assert!(solve(&ok, &g.clone().cast(DType::F32)).is_none());
    assert!(solve(&MesaInputs { any_gram: true, ..ok.clone() }, &g).is_none());
    assert!(solve(&MesaInputs { q: ok.q.clone().narrow(3, 0, 5), ..ok.clone() }, &g).is_none());
    let half = ok.k.clone().cast(DType::F16);
    assert!(solve(&MesaInputs { k: half, ..ok }, &g).is_none());
}
