//! The kernel against the system that it stands for, token by token: every size, any layout of the inputs, values and all
//! gradients.

use burn::backend::Flex;
use burn::tensor::{DType, Device, Tensor};
use proptest::prelude::*;

use super::Inputs;
use super::channels::{self, Gradients, Outputs};
use crate::delta::{LonghornUpdate, longhorn_system};
use crate::kernels::room::Room;
use crate::system::{Form, engine};
use crate::testing::{Draw, error, numbers, properties};

/// Batch, tokens, channels, numbers of a memory.
type Sizes = [usize; 4];

/// `large`: of keys, whose square decides how much is forgotten.
fn inputs([b, t, channels, n]: Sizes, large: f64, seed: u64) -> Inputs {
    let mut draw = Draw::new(seed);
    Inputs {
        beta: draw.tensor([b, t, channels], 0.0, 1.0),
        q: draw.tensor([b, t, n], -1.0, 1.0),
        k: draw.tensor([b, t, n], -large, large),
        x: draw.tensor([b, t, channels], -1.0, 1.0),
        memory: draw.tensor([b, channels, n, 1], -1.0, 1.0),
        d: draw.tensor([channels], -1.0, 1.0),
    }
}

impl Inputs {
    fn map(
        &self,
        three: impl Fn(Tensor<3>) -> Tensor<3>,
        four: impl Fn(Tensor<4>) -> Tensor<4>,
        one: impl Fn(Tensor<1>) -> Tensor<1>,
    ) -> Self {
        let Self { beta, q, k, x, memory, d } = self.clone();
        let [beta, q, k, x] = [beta, q, k, x].map(three);
        Self { beta, q, k, x, memory: four(memory), d: one(d) }
    }

    fn cast(&self, dtype: DType) -> Self {
        self.map(|x| x.cast(dtype), |x| x.cast(dtype), |x| x.cast(dtype))
    }

    /// As the engine runs the system, `[b, t, E]` and the memory.
    fn plain(&self) -> (Tensor<3>, Tensor<4>) {
        let Self { beta, q, k, x, memory, d } = self.clone();
        let system = longhorn_system(beta, q, k, x, LonghornUpdate::Diagonal);
        let system = system.with_skip(d.reshape([1, self.d.dims()[0], 1, 1]));
        let (y, last) = engine::run_with(system, memory, Form::Recurrent, false).unwrap();
        (y.squeeze_dim::<3>(3).swap_dims(1, 2), last)
    }

    fn fused(&self) -> (Tensor<3>, Tensor<4>) {
        self.run().expect("they are for the kernel")
    }
}

const NAMES: [&str; 8] = ["y", "memory", "dbeta", "dq", "dk", "dx", "dmemory", "dd"];

/// Outputs, memory and the gradients of all inputs, weighed differently everywhere.
fn everything(inputs: &Inputs, run: impl FnOnce(&Inputs) -> (Tensor<3>, Tensor<4>)) -> Vec<Vec<f64>> {
    let inputs = inputs.map(
        |x| x.autodiff().require_grad(),
        |x| x.autodiff().require_grad(),
        |x| x.autodiff().require_grad(),
    );
    let (y, last) = run(&inputs);
    fn weigh<const D: usize>(x: Tensor<D>, seed: u64) -> Tensor<1> {
        let cotangent = Draw::new(seed).tensor::<D>(x.dims(), -1.0, 1.0).cast(x.dtype());
        (x.clone() * cotangent.to_device(&x.device().inner())).sum()
    }
    let grads = (weigh(y.clone(), 91) + weigh(last.clone(), 92)).backward();
    let Inputs { beta, q, k, x, memory, d } = inputs;
    let mut all = vec![numbers(y), numbers(last)];
    all.extend([beta, q, k, x].map(|x| numbers(x.grad(&grads).expect("a gradient"))));
    all.push(numbers(memory.grad(&grads).expect("a gradient")));
    all.push(numbers(d.grad(&grads).expect("a gradient")));
    all
}

fn compare(found: &[Vec<f64>], expected: &[Vec<f64>], limits: [f64; 2], case: &str) {
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let (off, limit) = (error(found, expected), limits[usize::from(i >= 2)]);
        assert!(off <= limit, "{} of {case}: off by {off:e}", NAMES[i]);
    }
}

fn check(sizes: Sizes, large: f64, seed: u64) {
    let inputs = inputs(sizes, large, seed);
    let double = inputs.cast(DType::F64);
    let expected = everything(&double, Inputs::plain);
    let case = format!("{sizes:?}, keys up to {large}");
    compare(&everything(&double, Inputs::fused), &expected, [1e-11; 2], &case);
    compare(&everything(&inputs, Inputs::fused), &expected, [1e-5, 1e-4], &case);
}

#[test]
fn it_is_the_system_at_every_size() {
    for (t, channels, n) in [(1, 1, 1), (2, 3, 4), (32, 16, 16), (33, 17, 5), (65, 40, 16), (100, 33, 3)] {
        for large in [0.1, 1.0, 10.0] {
            check([2, t, channels, n], large, t as u64);
        }
    }
    // More channels than a job has.
    check([1, 40, 530, 2], 1.0, 1);
}

proptest! {
    #![proptest_config(properties(24))]

    #[test]
    fn it_is_the_system_whatever_is_asked(
        sizes in [1usize..4, 1usize..80, 1usize..60, 1usize..20],
        large in 0.01f64..20.0,
        seed in any::<u64>(),
    ) {
        check(sizes, large, seed);
    }
}

/// Parts of a projection, reversed time, a turned memory, one rate for all channels.
#[test]
fn inputs_may_lie_in_any_order() {
    let mut draw = Draw::new(5);
    let mut random = |dims| draw.tensor::<3>(dims, -1.0, 1.0).cast(DType::F64);
    let (whole, turned) = (random([2, 30, 40]), random([2, 20, 30]));
    let part = |first, width| whole.clone().narrow(2, first, width);
    let views = Inputs {
        beta: part(0, 1).abs().expand([2, 30, 20]),
        q: part(1, 7),
        k: part(8, 7).flip([1]),
        x: turned.swap_dims(1, 2),
        memory: random([2, 7, 20]).swap_dims(1, 2).unsqueeze_dim(3),
        d: random([1, 1, 20]).reshape([20]),
    };
    let straight = |x: Tensor<3>| Tensor::<3>::from_data(x.clone().into_data(), (&x.device(), x.dtype()));
    let same = views.map(straight, |x| straight(x.squeeze_dim(3)).unsqueeze_dim(3), |x| x);
    compare(&everything(&views, Inputs::fused), &everything(&same, Inputs::plain), [1e-11; 2], "views");
}

/// Every number of every result is written: what was there before does not show.
#[test]
fn results_do_not_depend_on_what_was_there() {
    for sizes in [[1, 1, 1, 1], [2, 37, 70, 5]] {
        let Inputs { beta, q, k, x, memory, d } = inputs(sizes, 1.0, 3);
        let [beta, q, k, x] = [beta, q, k, x].map(|x| x.unsqueeze_dim::<4>(1));
        let memory = memory.swap_dims(2, 3).swap_dims(1, 2);
        let given =
            [beta, q, k, x, memory, d.unsqueeze::<4>()].map(|x| x.try_into_primitive::<Flex>().unwrap());
        let inputs = super::flex::inputs::<f32>(&given);
        let finite = |room: Room<f32>| {
            // SAFETY: rooms are full of NaN in tests.
            #[allow(unsafe_code, reason = "see there")]
            let numbers = unsafe { room.written() };
            assert!(numbers.iter().all(|x| x.is_finite()));
        };
        let mut out = Outputs::new(&inputs);
        channels::forward(&inputs, &mut out);
        let mut grads = Gradients::new(&inputs);
        channels::backward(&inputs, inputs.x, Some(inputs.memory), &mut grads);
        let Gradients { beta, x, memory, q, k, d, .. } = grads;
        [out.y, out.last, beta, x, memory, q, k, d].into_iter().for_each(finite);
    }
}

/// Nothing is wanted of the last memory, or nothing but that.
#[test]
fn either_output_may_be_all_that_counts() {
    let inputs = inputs([1, 40, 5, 3], 1.0, 2).cast(DType::F64);
    for outputs in [[true, false], [false, true]] {
        let only = |run: fn(&Inputs) -> (Tensor<3>, Tensor<4>)| {
            let x = inputs.x.clone().autodiff().require_grad();
            let (y, last) = run(&Inputs { x: x.clone(), ..inputs.clone() });
            let grads = if outputs[0] { y.square().sum() } else { last.square().sum() }.backward();
            numbers(x.grad(&grads).expect("a gradient"))
        };
        assert!(error(&only(Inputs::fused), &only(Inputs::plain)) <= 1e-11, "{outputs:?}");
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
            let [b, t, channels, _] = sizes;
            let inputs = inputs(sizes, 1.5, t as u64);
            let mut draw = Draw::new(i as u64);
            let (rates, before) =
                (draw.tensor([b, t, channels], -2.0, 2.0), draw.tensor([b, t, i], -9.0, 9.0));
            let bias = (i % 2 == 0).then(|| draw.tensor::<1>([channels], -1.0, 1.0));
            let beta = match &bias {
                Some(bias) => rates.clone() + bias.clone().unsqueeze(),
                None => rates.clone(),
            };
            let expected = Inputs { beta: scaled_sigmoid(beta, 1.0), ..inputs.clone() }.plain();
            let there = Packed {
                rates: rates.to_device(&device),
                bias: bias.map(|bias| bias.to_device(&device)),
                address: Tensor::cat(vec![before, inputs.k, inputs.q], 2).to_device(&device),
                first: i,
                x: inputs.x.to_device(&device),
                memory: inputs.memory.to_device(&device),
                d: inputs.d.to_device(&device),
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
    let ok = inputs([1, 4, 6, 3], 1.0, 1);
    assert!(ok.run().is_some());
    let narrow = |x: &Tensor<3>| x.clone().narrow(2, 0, 2);
    assert!(Inputs { beta: narrow(&ok.beta), ..ok.clone() }.run().is_none());
    assert!(Inputs { k: narrow(&ok.k), ..ok.clone() }.run().is_none());
    assert!(Inputs { memory: ok.memory.clone().narrow(2, 0, 2), ..ok.clone() }.run().is_none());
    assert!(Inputs { x: ok.x.clone().cast(DType::F64), ..ok.clone() }.run().is_none());
    assert!(ok.cast(DType::F16).run().is_none());
    let none = |dims| Tensor::<3>::zeros(dims, &Device::flex());
    let empty = Inputs {
        beta: none([0, 4, 6]),
        q: none([0, 4, 3]),
        k: none([0, 4, 3]),
        x: none([0, 4, 6]),
        memory: Tensor::zeros([0, 6, 3, 1], &Device::flex()),
        d: ok.d,
    };
    assert!(empty.run().is_none());
}
