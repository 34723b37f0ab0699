//! The kernel against the recurrence: every size, any layout of the inputs, values and all gradients.

use burn::backend::Flex;
use burn::tensor::{DType, Device, Tensor};
use proptest::prelude::*;

use super::channels::{self, Gradients, Inputs};
use super::*;
use crate::kernels::room::Room;
use crate::kernels::view::{Number, view};
use crate::system::{Form, System, engine};
use crate::testing::{Draw, error, numbers, properties};

/// `log_a`, `u`, memory.
type Three = [Tensor<4>; 3];

fn inputs([b, h, t, n]: [usize; 4], weakest: f64, seed: u64) -> Three {
    let mut draw = Draw::new(seed);
    let log_a = draw.tensor([b, h, t, n], 3.0 * weakest, weakest);
    [log_a, draw.tensor([b, h, t, n], -1.0, 1.0), draw.tensor([b, h, n, 1], -1.0, 1.0)]
}

/// States, memory and the gradients of all inputs, `weight`ed differently everywhere.
fn everything(three: &Three, run: impl FnOnce(Three) -> (Tensor<4>, Tensor<4>)) -> Vec<Vec<f64>> {
    let three = three.clone().map(|x| x.autodiff().require_grad());
    let (y, last) = run(three.clone());
    let weigh = |x: Tensor<4>, seed| {
        let cotangent = Draw::new(seed).tensor::<4>(x.dims(), -1.0, 1.0).cast(x.dtype());
        let cotangent = cotangent.to_device(&x.device().inner());
        (x * cotangent).sum()
    };
    let grads = (weigh(y.clone(), 91) + weigh(last.clone(), 92)).backward();
    let mut all = vec![numbers(y), numbers(last)];
    all.extend(three.iter().map(|x| numbers(x.grad(&grads).expect("a gradient"))));
    all
}

const NAMES: [&str; 5] = ["y", "memory", "dlog_a", "du", "dmemory"];

fn fused([log_a, u, memory]: Three) -> (Tensor<4>, Tensor<4>) {
    assert!(applies(&log_a, &u, &memory));
    run(log_a, u, memory)
}

fn plain(form: Form) -> impl Fn(Three) -> (Tensor<4>, Tensor<4>) {
    move |[log_a, u, memory]| engine::run_with(System::direct(log_a, u), memory, form, false).unwrap()
}

fn check(dims: [usize; 4], weakest: f64, seed: u64) {
    let three = inputs(dims, weakest, seed);
    let double = three.clone().map(|x| x.cast(DType::F64));
    let expected = everything(&double, plain(Form::Recurrent));
    let chunked = everything(&double, plain(Form::Chunked { size: 16 }));
    let (exact, single) = (everything(&double, fused), everything(&three, fused));
    for (i, name) in NAMES.iter().enumerate() {
        for (found, limit) in [(&exact[i], 1e-11), (&single[i], if i < 2 { 1e-5 } else { 1e-4 })] {
            let off = error(found, &expected[i]).max(error(found, &chunked[i]));
            assert!(off <= limit, "{name} at {dims:?}, decay {weakest}: off by {off:e}");
        }
    }
}

#[test]
fn it_is_the_recurrence_and_the_tensor_form_at_every_size() {
    for (t, n) in [(1, 1), (2, 3), (16, 64), (63, 65), (200, 130)] {
        for weakest in [0.0, -0.02, -4.0] {
            check([2, 3, t, n], weakest, t as u64);
        }
    }
    // More channels than a job has.
    check([1, 1, 40, 300], -0.02, 1);
}

proptest! {
    #![proptest_config(properties(32))]

    #[test]
    fn it_is_the_recurrence_whatever_is_asked(
        dims in [1usize..3, 1usize..3, 1usize..90, 1usize..150],
        weakest in -2.0f64..0.0,
        seed in any::<u64>(),
    ) {
        check(dims, weakest, seed);
    }
}

/// Heads split from `[b, t, h n]`, one decay for all channels or rows, a part of a longer tensor, reversed time.
#[test]
fn inputs_may_lie_in_any_order() {
    let mut draw = Draw::new(7);
    let mut random = |dims, low, high| draw.tensor::<4>(dims, low, high).cast(DType::F64);
    let u = random([2, 42, 3, 5], -1.0, 1.0);
    let memory = random([2, 1, 5, 3], -1.0, 1.0);
    for decay in [[2, 3, 21, 1], [1, 3, 21, 5], [1, 1, 1, 5]] {
        let three = [random(decay, -1.0, 0.0), u.clone(), memory.clone()];
        let views = |[log_a, u, memory]: Three| {
            [log_a, u.swap_dims(1, 2).narrow(2, 7, 21).flip([2]), memory.swap_dims(1, 3)]
        };
        let expected = everything(&three, |[log_a, u, memory]| {
            let [log_a, u, memory] = views([log_a, u, memory]);
            plain(Form::Recurrent)([log_a.expand(u.dims()), u, memory])
        });
        let found = everything(&three, |three| fused(views(three)));
        for ((found, expected), name) in found.iter().zip(&expected).zip(NAMES) {
            assert!(error(found, expected) <= 1e-11, "{name} with {decay:?}");
        }
    }
}

/// Every number of every result is written: what was there before does not show.
#[test]
fn results_do_not_depend_on_what_was_there() {
    for (t, n) in [(1, 1), (37, 70)] {
        let three = inputs([2, 2, t, n], -0.1, 3).map(|x| x.try_into_primitive::<Flex>().unwrap());
        let [log_a, u, memory] = &three;
        let inputs = Inputs { log_a: view::<f32>(log_a), memory: view(memory) };
        let written = |room: Room<f32>| {
            // SAFETY: rooms are full of NaN in tests.
            #[allow(unsafe_code, reason = "see there")]
            unsafe {
                room.written()
            }
        };
        let mut y = Room::new(4 * t * n);
        channels::forward(&inputs, view(u), &mut y);
        let y = written(y);
        assert!(y.iter().all(|x| x.is_finite()));
        let y = <f32 as Number>::tensor(y, &[2, 2, t, n]);
        let mut dirty = Gradients::new(&inputs);
        channels::backward(&inputs, view(&y), view(&y), &mut dirty);
        let Gradients { log_a, u, memory } = dirty;
        assert!([log_a, u, memory].map(written).concat().iter().all(|x| x.is_finite()));
    }
}

/// A reset, `log_a` of minus a very large number, forgets all before it and nothing after.
#[test]
fn a_reset_forgets_everything() {
    let [log_a, u, memory] = inputs([1, 2, 20, 4], -0.1, 9);
    let reset = log_a.clone().narrow(2, 0, 1).full_like(-1e30);
    let cut = Tensor::cat(vec![log_a.clone().narrow(2, 0, 10), reset, log_a.clone().narrow(2, 11, 9)], 2);
    let (whole, _) = run(cut, u.clone(), memory.clone());
    let [log_a, u] = [log_a, u].map(|x| x.narrow(2, 10, 10));
    let (fresh, _) = run(log_a, u, memory.zeros_like());
    assert_eq!(numbers(whole.narrow(2, 10, 10)), numbers(fresh));
}

#[cfg(feature = "cube")]
#[test]
fn graphics_devices_find_the_same() {
    let compare = |found: &[Vec<f64>], expected: &[Vec<f64>], case: &str| {
        for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
            let (off, limit) = (error(found, expected), if i < 2 { 1e-5 } else { 1e-4 });
            assert!(off <= limit, "{} of {case}: off by {off:e}", NAMES[i]);
        }
    };
    for device in crate::testing::graphics() {
        // Tokens around a unit's and a tile's, channels around a cube's.
        for (b, h, t, n) in
            [(1, 1, 1, 1), (3, 2, 7, 17), (1, 2, 8, 16), (2, 1, 129, 33), (1, 3, 300, 5), (3, 1, 128, 15)]
        {
            for weakest in [0.0, -0.02, -4.0] {
                let three = inputs([b, h, t, n], weakest, t as u64);
                let expected = everything(&three, plain(Form::Recurrent));
                let found = everything(&three.map(|x| x.to_device(&device)), fused);
                compare(&found, &expected, &format!("{:?}, decay {weakest}", [b, h, t, n]));
            }
        }
        let mut draw = Draw::new(7);
        let mut random = |dims, low, high| draw.tensor::<4>(dims, low, high);
        let (u, memory) = (random([2, 42, 3, 5], -1.0, 1.0), random([2, 1, 5, 3], -1.0, 1.0));
        for decay in [[2, 3, 21, 1], [1, 3, 21, 5], [1, 1, 1, 5]] {
            let three = [random(decay, -1.0, 0.0), u.clone(), memory.clone()];
            let views = |[log_a, u, memory]: Three| {
                [log_a, u.swap_dims(1, 2).narrow(2, 7, 21), memory.swap_dims(1, 3)]
            };
            let expected = everything(&three, |three| fused(views(three)));
            let found = everything(&three.map(|x| x.to_device(&device)), |three| fused(views(three)));
            compare(&found, &expected, &format!("views with {decay:?}"));
        }
    }
}

#[test]
fn it_declines_what_it_cannot_do() {
    let [log_a, u, memory] = inputs([1, 2, 4, 3], -0.1, 1);
    assert!(applies(&log_a, &u, &memory));
    assert!(applies(&log_a.clone().narrow(3, 0, 1), &u, &memory));
    assert!(!applies(&log_a.clone().narrow(3, 0, 2), &u, &memory));
    assert!(!applies(&log_a.clone().cast(DType::F64), &u, &memory));
    let half = [&log_a, &u, &memory].map(|x| x.clone().cast(DType::F16));
    assert!(!applies(&half[0], &half[1], &half[2]));
    let empty = |dims| Tensor::<4>::zeros(dims, &Device::flex());
    assert!(!applies(&empty([0, 2, 4, 3]), &empty([0, 2, 4, 3]), &empty([0, 2, 3, 1])));
}
