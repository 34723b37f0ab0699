//! The kernel against the layer's tensor form: every size, any layout of the inputs, values and all gradients.

use burn::backend::Flex;
use burn::tensor::{DType, Device, Tensor};
use proptest::prelude::*;

use super::channels::{self, Gradients, Outputs};
use super::{Averaged, Inputs};
use crate::kernels::room::Room;
use crate::rwkv::{Averages, averages};
use crate::system::scan::NEGATIVE;
use crate::testing::{Draw, error, numbers, properties};

/// Batch, tokens, channels.
type Sizes = [usize; 3];

/// `large`: of keys.
fn inputs([b, t, n]: Sizes, large: f64, seed: u64) -> Inputs {
    let mut draw = Draw::new(seed);
    Inputs {
        decay: draw.tensor([n], -5.0, 2.0),
        bonus: draw.tensor([n], -1.0, 1.0),
        k: draw.tensor([b, t, n], -large, large),
        v: draw.tensor([b, t, n], -1.0, 1.0),
        log: draw.tensor([b, 1, n], -2.0, 2.0),
        mean: draw.tensor([b, 1, n], -1.0, 1.0),
    }
}

impl Inputs {
    fn map(&self, one: impl Fn(Tensor<1>) -> Tensor<1>, three: impl Fn(Tensor<3>) -> Tensor<3>) -> Self {
        let Self { decay, bonus, k, v, log, mean } = self.clone();
        let ([decay, bonus], [k, v, log, mean]) = ([decay, bonus].map(one), [k, v, log, mean].map(three));
        Self { decay, bonus, k, v, log, mean }
    }

    fn cast(&self, dtype: DType) -> Self {
        self.map(|x| x.cast(dtype), |x| x.cast(dtype))
    }

    /// With nothing before the first token.
    fn fresh(self) -> Self {
        Self { log: self.log.full_like(NEGATIVE), mean: self.mean.zeros_like(), ..self }
    }

    /// In tensor operations, one token after the other.
    fn plain(&self) -> Averaged {
        let Self { decay, bonus, k, v, log, mean } = self.clone();
        let (dims @ [_, t, _], start) = (k.dims(), Averages { log, mean });
        let own = Averages { log: k.clone() + bonus.unsqueeze(), mean: v.clone() };
        let fade = decay.exp().neg().unsqueeze::<3>().expand(dims);
        let after = averages(fade, Averages { log: k, mean: v }, start.clone(), t);
        let Averages { log, mean } = after.narrow(t - 1, 1);
        Averaged { y: start.delayed(&after).join(own).mean, log, mean }
    }

    fn fused(&self) -> Averaged {
        self.run().expect("they are for the kernel")
    }
}

const NAMES: [&str; 9] =
    ["y", "log", "mean", "ddecay", "dbonus", "dk", "dv", "dlog of the start", "dmean of the start"];

/// Outputs, state and the gradients of all inputs, weighed differently everywhere.
fn everything(inputs: &Inputs, run: impl FnOnce(&Inputs) -> Averaged) -> Vec<Vec<f64>> {
    let inputs = inputs.map(|x| x.autodiff().require_grad(), |x| x.autodiff().require_grad());
    let Averaged { y, log, mean } = run(&inputs);
    let weigh = |x: &Tensor<3>, seed| {
        let cotangent = Draw::new(seed).tensor::<3>(x.dims(), -1.0, 1.0).cast(x.dtype());
        (x.clone() * cotangent).sum()
    };
    let grads = (weigh(&y, 91) + weigh(&log, 92) + weigh(&mean, 93)).backward();
    let mut all = vec![numbers(y), numbers(log), numbers(mean)];
    let Inputs { decay, bonus, k, v, log, mean } = inputs;
    all.extend([decay, bonus].map(|x| numbers(x.grad(&grads).expect("a gradient"))));
    all.extend([k, v, log, mean].map(|x| numbers(x.grad(&grads).expect("a gradient"))));
    all
}

fn compare(found: &[Vec<f64>], expected: &[Vec<f64>], limits: [f64; 2], case: &str) {
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let (off, limit) = (error(found, expected), limits[usize::from(i >= 3)]);
        assert!(off <= limit, "{} of {case}: off by {off:e}", NAMES[i]);
    }
}

fn check(sizes: Sizes, large: f64, seed: u64) {
    let some = inputs(sizes, large, seed);
    for inputs in [some.clone(), some.fresh()] {
        let double = inputs.cast(DType::F64);
        let expected = everything(&double, Inputs::plain);
        let case = format!("{sizes:?}, keys up to {large}");
        compare(&everything(&double, Inputs::fused), &expected, [1e-11; 2], &case);
        compare(&everything(&inputs, Inputs::fused), &expected, [1e-5, 1e-4], &case);
    }
}

#[test]
fn it_is_the_tensor_form_at_every_size() {
    for (t, n) in [(1, 1), (2, 3), (32, 16), (33, 17), (65, 130), (200, 5)] {
        for large in [0.1, 3.0, 20.0] {
            check([2, t, n], large, t as u64);
        }
    }
    // More channels than a job has.
    check([1, 40, 530], 2.0, 1);
}

proptest! {
    #![proptest_config(properties(24))]

    #[test]
    fn it_is_the_tensor_form_whatever_is_asked(
        sizes in [1usize..4, 1usize..90, 1usize..60],
        large in 0.01f64..30.0,
        seed in any::<u64>(),
    ) {
        check(sizes, large, seed);
    }
}

/// A part of a projection, reversed time, turned values, states of several rows.
#[test]
fn inputs_may_lie_in_any_order() {
    let mut draw = Draw::new(5);
    let mut random = |dims| draw.tensor::<3>(dims, -1.0, 1.0).cast(DType::F64);
    let (whole, turned, states) = (random([2, 30, 40]), random([2, 20, 30]), random([2, 7, 20]));
    let views = Inputs {
        decay: random([1, 1, 20]).reshape([20]),
        bonus: random([1, 1, 20]).reshape([20]),
        k: whole.narrow(2, 3, 20).flip([1]),
        v: turned.swap_dims(1, 2),
        log: states.clone().narrow(1, 2, 1),
        mean: states.narrow(1, 5, 1),
    };
    let straight = |x: Tensor<3>| Tensor::<3>::from_data(x.clone().into_data(), (&x.device(), x.dtype()));
    let same = views.map(|x| x, straight);
    let expected = everything(&same, Inputs::plain);
    compare(&everything(&views, Inputs::fused), &expected, [1e-11; 2], "views");
}

/// Keys far beyond what has an exponential, in single precision: nothing overflows.
#[test]
fn huge_keys_are_safe() {
    let huge = inputs([2, 70, 20], 1e4, 3);
    for inputs in [huge.clone(), huge.fresh()] {
        let (found, expected) = (everything(&inputs, Inputs::fused), everything(&inputs, Inputs::plain));
        // A key of 1e4 has a rounding of 5e-4 itself, which moves weights that are close.
        compare(&found, &expected, [1e-3; 2], "huge keys");
    }
}

/// Every number of every result is written: what was there before does not show.
#[test]
fn results_do_not_depend_on_what_was_there() {
    for sizes in [[1, 1, 1], [2, 37, 70]] {
        let Inputs { decay, bonus, k, v, log, mean } = inputs(sizes, 1.0, 3);
        let [k, v, log, mean] = [k, v, log, mean].map(|x| x.unsqueeze_dim::<4>(1));
        let given = [decay.unsqueeze::<4>(), bonus.unsqueeze::<4>(), k, v, log, mean]
            .map(|x| x.try_into_primitive::<Flex>().unwrap());
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
        channels::backward(&inputs, inputs.v, None, &mut grads);
        let Gradients { fade, bonus, k, v, log, mean } = grads;
        [out.y, out.last, fade, bonus, k, v, log, mean].into_iter().for_each(finite);
    }
}

#[cfg(feature = "cube")]
#[test]
fn graphics_devices_find_the_same() {
    for device in crate::testing::graphics() {
        // Tokens around a unit's and a tile's, channels around a cube's.
        for sizes in [[1, 1, 1], [3, 7, 17], [1, 8, 16], [2, 129, 33], [1, 300, 5], [2, 128, 20]] {
            for large in [1.0, 20.0, 1e4] {
                let some = inputs(sizes, large, sizes[1] as u64);
                for inputs in [some.clone(), some.fresh()] {
                    let there = inputs.map(|x| x.to_device(&device), |x| x.to_device(&device));
                    let list = |Averaged { y, log, mean }| [y, log, mean].map(numbers);
                    let (found, expected) = (list(there.fused()), list(inputs.plain()));
                    let limit = if large > 100.0 { 1e-3 } else { 1e-5 };
                    compare(&found, &expected, [limit; 2], &format!("{sizes:?}, keys up to {large}"));
                    let tracked = there.map(|x| x.autodiff().require_grad(), |x| x);
                    assert!(tracked.run().is_none(), "gradients have no kernel there");
                }
            }
        }
    }
}

#[test]
fn it_declines_what_it_cannot_do() {
    let ok = inputs([1, 4, 6], 1.0, 1);
    assert!(ok.run().is_some());
    let narrow = |x: &Tensor<3>| x.clone().narrow(2, 0, 2);
    assert!(Inputs { v: narrow(&ok.v), ..ok.clone() }.run().is_none());
    assert!(Inputs { log: narrow(&ok.log), ..ok.clone() }.run().is_none());
    assert!(Inputs { bonus: ok.bonus.clone().narrow(0, 0, 2), ..ok.clone() }.run().is_none());
    assert!(Inputs { v: ok.v.clone().cast(DType::F64), ..ok.clone() }.run().is_none());
    assert!(ok.cast(DType::F16).run().is_none());
    let none = |dims| Tensor::<3>::zeros(dims, &Device::flex());
    let empty =
        Inputs { k: none([0, 4, 6]), v: none([0, 4, 6]), log: none([0, 1, 6]), mean: none([0, 1, 6]), ..ok };
    assert!(empty.run().is_none());
}
