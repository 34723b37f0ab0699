//! The kernel against the systems that it stands for, token by token: every size, any layout of the inputs, values and all
//! gradients.

use burn::backend::Flex;
use burn::tensor::{DType, Device, Tensor};
use proptest::prelude::*;

use super::channels::{self, Gradients, Outputs};
use super::{Inputs, Options, Rule, rule};
use crate::delta::{LonghornUpdate, longhorn_system};
use crate::kernels::room::Room;
use crate::system::{Form, System, Transition, engine};
use crate::testing::{Draw, error, numbers, properties};

/// Batch, heads, tokens, columns, numbers of a column.
type Sizes = [usize; 5];

/// `large`: of keys, whose square decides how much a learner forgets.
fn inputs(rule: Rule, [b, h, t, c, n]: Sizes, large: f64, seed: u64) -> Inputs {
    let mut draw = Draw::new(seed);
    let (rates, d) = match rule {
        Rule::Learner => (draw.tensor([b, h, t, c], 0.0, 1.0), Some(draw.tensor([c], -1.0, 1.0))),
        Rule::Fading => (draw.tensor([b, h, t, c], -2.0, 0.0), None),
    };
    Inputs {
        rule,
        rates,
        q: draw.tensor([b, h, t, n], -1.0, 1.0),
        k: draw.tensor([b, h, t, n], -large, large),
        x: draw.tensor([b, h, t, c], -1.0, 1.0),
        memory: draw.tensor([b, h, c, n], -1.0, 1.0),
        d,
    }
}

impl Inputs {
    fn map(&self, four: impl Fn(Tensor<4>) -> Tensor<4>, one: impl Fn(Tensor<1>) -> Tensor<1>) -> Self {
        let Self { rule, rates, q, k, x, memory, d } = self.clone();
        let [rates, q, k, x, memory] = [rates, q, k, x, memory].map(four);
        Self { rule, rates, q, k, x, memory, d: d.map(one) }
    }

    fn cast(&self, dtype: DType) -> Self {
        self.map(|x| x.cast(dtype), |x| x.cast(dtype))
    }

    /// As the engine runs the system: each column a head of its own.
    fn plain(&self) -> (Tensor<4>, Tensor<4>) {
        let Self { rule, rates, q, k, x, memory, d } = self.clone();
        let ([b, h, t, c], n) = (x.dims(), k.dims()[3]);
        let column = |x: Tensor<4>| x.swap_dims(2, 3).reshape([b * h, c, t, 1]);
        let shared = |x: Tensor<4>| x.reshape([b * h, 1, t, n]).expand([b * h, c, t, n]);
        let system = match rule {
            Rule::Learner => {
                let rows = |x: Tensor<4>| x.clone().reshape([b * h, t, x.dims()[3]]);
                longhorn_system(rows(rates), rows(q), rows(k), rows(x), LonghornUpdate::Diagonal)
            }
            Rule::Fading => {
                let log_a = column(rates).expand([b * h, c, t, n]);
                System::outer(Transition::Diagonal { log_a }, shared(q), shared(k), column(x))
            }
        };
        let system = match d {
            Some(d) => system.with_skip(d.reshape([1, c, 1, 1])),
            None => system,
        };
        let memory = memory.reshape([b * h, c, n, 1]);
        let (y, last) = engine::run_with(system, memory, Form::Recurrent, false).unwrap();
        (y.reshape([b, h, c, t]).swap_dims(2, 3), last.reshape([b, h, c, n]))
    }

    fn fused(&self) -> (Tensor<4>, Tensor<4>) {
        self.run().expect("they are for the kernel")
    }
}

const NAMES: [&str; 8] = ["y", "memory", "drates", "dx", "dq", "dk", "dmemory", "dd"];

/// Outputs, memory and the gradients of all inputs, weighed differently everywhere.
fn everything(inputs: &Inputs, run: impl FnOnce(&Inputs) -> (Tensor<4>, Tensor<4>)) -> Vec<Vec<f64>> {
    let inputs = inputs.map(|x| x.autodiff().require_grad(), |x| x.autodiff().require_grad());
    let (y, last) = run(&inputs);
    let weigh = |x: &Tensor<4>, seed| {
        let cotangent = Draw::new(seed).tensor::<4>(x.dims(), -1.0, 1.0).cast(x.dtype());
        (x.clone() * cotangent).sum()
    };
    let grads = (weigh(&y, 91) + weigh(&last, 92)).backward();
    let Inputs { rates, q, k, x, memory, d, .. } = inputs;
    let mut all = vec![numbers(y), numbers(last)];
    all.extend([rates, x, q, k, memory].map(|x| numbers(x.grad(&grads).expect("a gradient"))));
    all.extend(d.map(|d| numbers(d.grad(&grads).expect("a gradient"))));
    all
}

fn compare(found: &[Vec<f64>], expected: &[Vec<f64>], limits: [f64; 2], case: &str) {
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let (off, limit) = (error(found, expected), limits[usize::from(i >= 2)]);
        assert!(off <= limit, "{} of {case}: off by {off:e}", NAMES[i]);
    }
}

const RULES: [Rule; 2] = [Rule::Learner, Rule::Fading];

fn check(sizes: Sizes, large: f64, seed: u64) {
    for rule in RULES {
        let inputs = inputs(rule, sizes, large, seed);
        let double = inputs.cast(DType::F64);
        let expected = everything(&double, Inputs::plain);
        let case = format!("{rule:?}, {sizes:?}, keys up to {large}");
        compare(&everything(&double, Inputs::fused), &expected, [1e-11; 2], &case);
        compare(&everything(&inputs, Inputs::fused), &expected, [1e-5, 1e-4], &case);
    }
}

#[test]
fn it_is_the_system_at_every_size() {
    for (h, t, c, n) in
        [(1, 1, 1, 1), (3, 2, 3, 4), (1, 32, 16, 16), (2, 33, 17, 5), (1, 65, 40, 16), (2, 100, 33, 3)]
    {
        for large in [0.1, 1.0, 10.0] {
            check([2, h, t, c, n], large, t as u64);
        }
    }
    // More columns than a job has.
    check([1, 1, 40, 530, 2], 1.0, 1);
}

proptest! {
    #![proptest_config(properties(24))]

    #[test]
    fn it_is_the_system_whatever_is_asked(
        sizes in [1usize..3, 1usize..3, 1usize..80, 1usize..60, 1usize..20],
        large in 0.01f64..20.0,
        seed in any::<u64>(),
    ) {
        check(sizes, large, seed);
    }
}

/// Parts of a projection, heads behind tokens, reversed time, a turned memory, one rate for all columns.
#[test]
fn inputs_may_lie_in_any_order() {
    for rule in RULES {
        let mut draw = Draw::new(5);
        let mut random = |dims| draw.tensor::<4>(dims, -1.0, 1.0).cast(DType::F64);
        let (whole, turned) = (random([2, 30, 3, 40]).swap_dims(1, 2), random([2, 3, 20, 30]));
        let part = |first, width| whole.clone().narrow(3, first, width);
        let views = Inputs {
            rule,
            rates: match rule {
                Rule::Learner => part(0, 1).abs().expand([2, 3, 30, 20]),
                Rule::Fading => part(0, 1).abs().neg().expand([2, 3, 30, 20]),
            },
            q: part(1, 7),
            k: part(8, 7).flip([2]),
            x: turned.swap_dims(2, 3),
            memory: random([2, 3, 7, 20]).swap_dims(2, 3),
            d: Some(random([1, 1, 1, 20]).reshape([20])),
        };
        let straight = |x: Tensor<4>| Tensor::<4>::from_data(x.clone().into_data(), (&x.device(), x.dtype()));
        let expected = everything(&views.map(straight, |x| x), Inputs::plain);
        compare(&everything(&views, Inputs::fused), &expected, [1e-11; 2], &format!("views, {rule:?}"));
    }
}

/// Every number of every result is written: what was there before does not show.
#[test]
fn results_do_not_depend_on_what_was_there() {
    for sizes in [[1, 1, 1, 1, 1], [2, 2, 37, 70, 5]] {
        let Inputs { rates, q, k, x, memory, d, .. } = inputs(Rule::Learner, sizes, 1.0, 3);
        let given = [rates, x, q, k, memory, d.unwrap().unsqueeze::<4>()]
            .map(|x| x.try_into_primitive::<Flex>().unwrap());
        let options = Options { rule: Rule::Learner, skip: true };
        let inputs = super::flex::inputs::<f32>(&given, options);
        let finite = |room: Room<f32>| {
            // SAFETY: rooms are full of NaN in tests.
            #[allow(unsafe_code, reason = "see there")]
            let numbers = unsafe { room.written() };
            assert!(numbers.iter().all(|x| x.is_finite()));
        };
        let mut out = Outputs::new(&inputs);
        channels::forward::<f32, rule::Learner>(&inputs, &mut out);
        let mut grads = Gradients::new(&inputs);
        channels::backward::<f32, rule::Learner>(&inputs, inputs.given[1], Some(inputs.memory), &mut grads);
        let Gradients { given: [rates, x], memory, q, k, d, .. } = grads;
        [out.y, out.last, rates, x, memory, q, k, d].into_iter().for_each(finite);
    }
}

/// Nothing is wanted of the last memory, or nothing but that.
#[test]
fn either_output_may_be_all_that_counts() {
    for rule in RULES {
        let inputs = inputs(rule, [1, 2, 40, 5, 3], 1.0, 2).cast(DType::F64);
        for outputs in [[true, false], [false, true]] {
            let only = |run: fn(&Inputs) -> (Tensor<4>, Tensor<4>)| {
                let x = inputs.x.clone().autodiff().require_grad();
                let (y, last) = run(&Inputs { x: x.clone(), ..inputs.clone() });
                let grads = if outputs[0] { y.square().sum() } else { last.square().sum() }.backward();
                numbers(x.grad(&grads).expect("a gradient"))
            };
            assert!(error(&only(Inputs::fused), &only(Inputs::plain)) <= 1e-11, "{rule:?} {outputs:?}");
        }
    }
}

/// `β = sigmoid(rates + bias)`, keys and queries behind other numbers of the same rows.
#[cfg(feature = "cube")]
#[test]
fn graphics_devices_find_the_same() {
    use super::Packed;
    use crate::nn::scaled_sigmoid;

    for device in crate::testing::graphics() {
        // Tokens around a unit's and a tile's, channels around a cube's.
        for (i, sizes) in
            [[1, 1, 1, 1], [3, 7, 17, 2], [1, 8, 16, 16], [2, 129, 33, 5], [1, 300, 5, 1], [2, 128, 20, 3]]
                .into_iter()
                .enumerate()
        {
            let [b, t, channels, n] = sizes;
            let inputs = inputs(Rule::Learner, [b, 1, t, channels, n], 1.5, t as u64);
            let mut draw = Draw::new(i as u64);
            let (rates, before) =
                (draw.tensor([b, t, channels], -2.0, 2.0), draw.tensor([b, t, i], -9.0, 9.0));
            let bias = (i % 2 == 0).then(|| draw.tensor::<1>([channels], -1.0, 1.0));
            let beta = match &bias {
                Some(bias) => rates.clone() + bias.clone().unsqueeze(),
                None => rates.clone(),
            };
            let beta = scaled_sigmoid(beta, 1.0).unsqueeze_dim(1);
            let expected = Inputs { rates: beta, ..inputs.clone() }.plain();
            let address = Tensor::cat(vec![before, inputs.k.squeeze_dim(1), inputs.q.squeeze_dim(1)], 2);
            let memory = inputs.memory.swap_dims(1, 2).swap_dims(2, 3);
            let there = Packed {
                rates: rates.to_device(&device),
                bias: bias.map(|bias| bias.to_device(&device)),
                address: address.to_device(&device),
                first: i,
                x: inputs.x.squeeze_dim::<3>(1).to_device(&device),
                memory: memory.to_device(&device),
                d: inputs.d.unwrap().to_device(&device),
            };
            let found = there.run().expect("they are for the kernel");
            let found = [numbers(found.0), numbers(found.1)];
            compare(&found, &[numbers(expected.0), numbers(expected.1)], [1e-5; 2], &format!("{sizes:?}"));
            let tracked = Packed { x: there.x.clone().autodiff().require_grad(), ..there.clone() };
            assert!(tracked.run().is_none(), "gradients have no kernel there");
            assert!(Packed { first: i + 1, ..there }.run().is_none(), "no room for queries");
        }
    }
}

#[test]
fn it_declines_what_it_cannot_do() {
    let ok = inputs(Rule::Learner, [1, 2, 4, 6, 3], 1.0, 1);
    assert!(ok.run().is_some());
    let narrow = |x: &Tensor<4>| x.clone().narrow(3, 0, 2);
    assert!(Inputs { rates: narrow(&ok.rates), ..ok.clone() }.run().is_none());
    assert!(Inputs { k: narrow(&ok.k), ..ok.clone() }.run().is_none());
    assert!(Inputs { memory: narrow(&ok.memory), ..ok.clone() }.run().is_none());
    assert!(Inputs { x: ok.x.clone().cast(DType::F64), ..ok.clone() }.run().is_none());
    assert!(ok.cast(DType::F16).run().is_none());
    let none = |dims| Tensor::<4>::zeros(dims, &Device::flex());
    let empty = Inputs {
        rates: none([0, 2, 4, 6]),
        x: none([0, 2, 4, 6]),
        q: none([0, 2, 4, 3]),
        k: none([0, 2, 4, 3]),
        memory: none([0, 2, 6, 3]),
        ..ok
    };
    assert!(empty.run().is_none());
}
