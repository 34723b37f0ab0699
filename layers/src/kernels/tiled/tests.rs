//! The kernels against the recurrence: every kind and size, any layout of the inputs, values and all gradients.

#[cfg(feature = "cube")]
#[path = "graphics_tests.rs"]
mod graphics;

use burn::tensor::{DType, Device, Tensor, TensorData};
use proptest::prelude::*;

use super::*;
use crate::kernels::view::Number;
use crate::lightning::{SlopeKind, slopes};
use crate::system::{Form, System, engine};
use crate::testing::{Draw, error, gap, numbers, properties};

/// What decays, and whether what is read is added back.
#[derive(Clone, Copy, Debug)]
struct Kind {
    channels: bool,
    rank_one: bool,
}

const KINDS: [Kind; 4] = [
    Kind { channels: false, rank_one: false },
    Kind { channels: true, rank_one: false },
    Kind { channels: false, rank_one: true },
    Kind { channels: true, rank_one: true },
];

/// Decays between `weakest` and three times that.
fn recurrence(kind: Kind, [b, h, t, n, p]: [usize; 5], weakest: f64, seed: u64) -> Recurrence {
    let mut draw = Draw::new(seed);
    let width = if kind.channels { n } else { 1 };
    let log_d = Some(draw.tensor([b, h, t, width], 3.0 * weakest, weakest));
    let mut random = |sizes, range: f64| draw.tensor::<4>(sizes, -range, range);
    // The read is not larger than what it reads, so that the memory does not grow without end.
    let small = 1.0 / (n as f64).sqrt();
    let two = [random([b, h, t, n], small), random([b, h, t, n], small)];
    Recurrence {
        q: random([b, h, t, n], 1.0),
        k: random([b, h, t, n], 1.0),
        v: random([b, h, t, p], 1.0),
        log_d,
        rank_one: kind.rank_one.then_some(two),
        memory: random([b, h, n, p], 1.0),
        gain: 0.6,
    }
}

impl Recurrence {
    fn map(&self, mut f: impl FnMut(Tensor<4>) -> Tensor<4>) -> Self {
        let mut f = |x: &Tensor<4>| f(x.clone());
        Self {
            q: f(&self.q),
            k: f(&self.k),
            v: f(&self.v),
            log_d: self.log_d.as_ref().map(&mut f),
            memory: f(&self.memory),
            rank_one: self.rank_one.as_ref().map(|[a, b]| [f(a), f(b)]),
            gain: self.gain,
        }
    }

    fn all(&self) -> impl Iterator<Item = &Tensor<4>> {
        let four = [Some(&self.q), Some(&self.k), Some(&self.v), self.log_d.as_ref(), Some(&self.memory)];
        four.into_iter().flatten().chain(self.rank_one.iter().flatten())
    }

    fn transition(&self) -> Transition {
        let log_d = self.log_d.clone().expect("a decay");
        match self.rank_one.clone() {
            Some([a, b]) => Transition::Householder { log_d, a, b },
            None if log_d.dims()[3] == 1 => Transition::Scalar { log_a: log_d.squeeze_dim(3) },
            None => Transition::Diagonal { log_a: log_d },
        }
    }

    /// By tensor operations.
    fn engine(self, form: Form) -> (Tensor<4>, Tensor<4>) {
        let transition = self.transition();
        let Self { q, k, v, memory, gain, .. } = self;
        let system = System::outer(transition, q, k, v).with_gain(gain);
        engine::run_with(system, memory, form, false).unwrap()
    }

    fn tiled(self, block: usize) -> (Tensor<4>, Tensor<4>) {
        assert!(self.applies());
        self.run(Some(block))
    }
}

/// `Σ weight ∘ (y, memory)`, with another weight everywhere.
fn weigh((y, last): (Tensor<4>, Tensor<4>)) -> Tensor<1> {
    let weigh = |x: Tensor<4>, seed| {
        let cotangent = Draw::new(seed).tensor::<4>(x.dims(), -1.0, 1.0);
        let cotangent = cotangent.to_device(&x.device().inner()).cast(x.dtype());
        (x * cotangent).sum()
    };
    weigh(y, 91) + weigh(last, 92)
}

const NAMES: [&str; 9] = ["y", "last memory", "dq", "dk", "dv", "dlog_d", "dmemory", "da", "db"];

/// In the order of [`NAMES`].
fn everything(inputs: &Recurrence, run: impl FnOnce(Recurrence) -> (Tensor<4>, Tensor<4>)) -> Vec<Vec<f64>> {
    let leaves = inputs.map(|x| x.autodiff().require_grad());
    let (y, last) = run(leaves.clone());
    let grads = weigh((y.clone(), last.clone())).backward();
    let mut all = vec![numbers(y), numbers(last)];
    all.extend(leaves.all().map(|x| numbers(x.grad(&grads).expect("a gradient"))));
    all
}

/// In both precisions.
fn agree(inputs: &Recurrence, blocks: &[usize]) -> Result<(), String> {
    let double = inputs.map(|x| x.cast(DType::F64));
    let expected = everything(&double, |x| x.engine(Form::Recurrent));
    let chunked = everything(&double, |x| x.engine(Form::Chunked { size: 16 }));
    for &block in blocks {
        let exact = everything(&double, |x| x.tiled(block));
        let single = everything(inputs, |x| x.tiled(block));
        for (i, name) in NAMES.iter().enumerate().take(expected.len()) {
            let limit = if i < 2 { 1e-5 } else { 1e-4 };
            for (found, limit) in [(&exact[i], 1e-11), (&single[i], limit)] {
                let off = error(found, &expected[i]).max(error(found, &chunked[i]));
                if off > limit {
                    return Err(format!("{name} with blocks of {block}: off by {off:e}"));
                }
            }
        }
    }
    Ok(())
}

#[test]
fn it_is_the_recurrence_and_the_tensor_form_at_every_size() {
    // Tokens around and far beyond a block; heads that fill no tile, one tile, and several with a rest.
    for (t, n, p) in
        [(1, 1, 1), (5, 4, 3), (16, 16, 16), (63, 3, 20), (64, 8, 5), (65, 33, 17), (200, 12, 65)]
    {
        for kind in KINDS {
            for weakest in [0.0, -0.02, -4.0] {
                let inputs = recurrence(kind, [2, 3, t, n, p], weakest, t as u64);
                if let Err(why) = agree(&inputs, &[1, 7, 16, 64, 1000]) {
                    panic!("{kind:?} t={t} n={n} p={p} decay {weakest}: {why}");
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(properties(24))]

    #[test]
    fn it_is_the_recurrence_at_any_size(
        kind in prop::sample::select(KINDS.to_vec()),
        sizes in [1..3_usize, 1..3, 1..90, 1..40, 1..40],
        block in 1..80_usize,
        weakest in -6.0..0.0,
        seed in any::<u64>(),
    ) {
        let inputs = recurrence(kind, sizes, weakest, seed);
        agree(&inputs, &[block]).map_err(TestCaseError::fail)?;
    }
}

/// Some channels all but forget at single tokens, in blocks that are as a whole still mild, just not, or far from it.
#[test]
fn strong_decays_among_mild_ones_lose_no_digits() {
    for kind in KINDS.into_iter().filter(|kind| kind.channels) {
        for strong in [-12.0, -29.0, -33.0, -200.0] {
            let mut inputs = recurrence(kind, [1, 2, 70, 9, 7], -0.01, 5);
            let at = |t: usize, c: usize| t % 23 == 11 && c.is_multiple_of(2);
            let all = (0..2 * 70 * 9).map(|i| if at(i / 9 % 70, i % 9) { strong } else { 0.0 });
            let all = TensorData::new(all.collect::<Vec<f64>>(), [1, 2, 70, 9]);
            let jumps = Tensor::<4>::from_data(all, (&Device::flex(), DType::F32));
            inputs.log_d = inputs.log_d.map(|log_d| log_d + jumps);
            if let Err(why) = agree(&inputs, &[16, 32]) {
                panic!("{kind:?} with {strong}: {why}");
            }
        }
    }
}

/// Gradients of all inputs where something comes of one of the two results only.
fn of_one(
    which: usize,
    inputs: &Recurrence,
    run: impl FnOnce(Recurrence) -> (Tensor<4>, Tensor<4>),
) -> Vec<f64> {
    let leaves = inputs.map(|x| x.autodiff().require_grad());
    let (y, last) = run(leaves.clone());
    let one = if which == 0 { y } else { last };
    let cotangent = Draw::new(93).tensor::<4>(one.dims(), -1.0, 1.0).cast(one.dtype());
    let grads = (one * cotangent).sum().backward();
    let zeros = |x: &Tensor<4>| vec![0.0; x.dims().iter().product()];
    leaves.all().flat_map(|x| x.grad(&grads).map_or_else(|| zeros(x), numbers)).collect()
}

#[test]
fn each_result_has_gradients_without_the_other() {
    for kind in KINDS {
        let inputs = recurrence(kind, [2, 2, 21, 5, 4], -0.2, 9).map(|x| x.cast(DType::F64));
        for which in [0, 1] {
            let expected = of_one(which, &inputs, |x| x.engine(Form::Recurrent));
            let off = error(&of_one(which, &inputs, |x| x.tiled(8)), &expected);
            assert!(off <= 1e-11, "{kind:?} {which}: off by {off:e}");
        }
    }
}

/// Along a random direction of every input.
#[test]
fn gradients_are_the_limits_of_differences() {
    for kind in KINDS {
        let inputs = recurrence(kind, [1, 2, 21, 5, 4], -0.2, 4).map(|x| x.cast(DType::F64));
        let leaves = inputs.map(|x| x.autodiff().require_grad());
        let grads = weigh(leaves.clone().tiled(8)).backward();
        for (which, leaf) in leaves.all().enumerate() {
            let direction = Draw::new(17).tensor::<4>(leaf.dims(), -1.0, 1.0).cast(DType::F64);
            let at = |step: f64| {
                let mut count = 0;
                let moved = inputs.map(|x| {
                    count += 1;
                    if count == which + 1 { x + direction.clone().mul_scalar(step) } else { x }
                });
                numbers(weigh(moved.tiled(8)))[0]
            };
            let (step, slope) = (1e-5, numbers((leaf.grad(&grads).unwrap() * direction.clone()).sum())[0]);
            let found = (at(step) - at(-step)) / (2.0 * step);
            let name = NAMES[which + 2];
            assert!((found - slope).abs() <= 1e-7 * slope.abs().max(1.0), "{kind:?} {name}: {found} {slope}");
        }
    }
}

/// The tiles of `lightning.md` 2.12 and both numbers of heads, against four loops.
#[test]
fn it_is_the_recurrence_with_released_slopes() {
    for heads in [8, 12] {
        let slopes = slopes(&SlopeKind::Alibi, heads, 0, 24).unwrap();
        for t in [1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 37, 63, 64, 65, 913, 1213] {
            for start in [0.0, 1.0] {
                let mut inputs = recurrence(KINDS[0], [1, heads, t, 4, 5], -1.0, t as u64);
                inputs.memory = inputs.memory.mul_scalar(start);
                inputs.log_d = Some(constant(&slopes, t));
                let (y, last) = plain(&slopes, &inputs);
                for block in [1, 4, 8, 16, 64] {
                    let (found, memory) = inputs.clone().run(Some(block));
                    let off = error(&numbers(found), &y).max(error(&numbers(memory), &last));
                    assert!(off <= 1e-5, "heads={heads} t={t} block={block}: off by {off:e}");
                }
            }
        }
    }
}

/// The same decay at every token: `[1, h, t, 1]`.
fn constant(slopes: &[f64], t: usize) -> Tensor<4> {
    let log: Vec<f64> = slopes.iter().map(|s| -s).collect();
    let log = TensorData::new(log, [1, slopes.len(), 1, 1]);
    Tensor::<4>::from_data(log, (&Device::flex(), DType::F32)).expand([1, slopes.len(), t, 1])
}

/// One batch row of the recurrence, on numbers.
fn plain(slopes: &[f64], Recurrence { q, k, v, memory, gain, .. }: &Recurrence) -> (Vec<f64>, Vec<f64>) {
    let ([_, _, t, n], p) = (k.dims(), v.dims()[3]);
    let [q, k, v, mut memory] = [q, k, v, memory].map(|x| numbers(x.clone()));
    let mut y = vec![0.0; v.len()];
    for (h, slope) in slopes.iter().enumerate() {
        for row in h * t..(h + 1) * t {
            for j in 0..p {
                for i in 0..n {
                    let state = &mut memory[(h * n + i) * p + j];
                    *state = (-slope).exp() * *state + k[row * n + i] * v[row * p + j];
                    y[row * p + j] += gain * q[row * n + i] * *state;
                }
            }
        }
    }
    (y, memory)
}

/// Steep, hardly any and no decay over 64 thousand tokens: finite, and the memory is that of the recurrence in `f64`.
#[test]
fn sixty_four_thousand_tokens_stay_exact() {
    let (t, n) = (65_536, 4);
    let slopes = [1.0, 0.5e-5, 0.0];
    for kind in &KINDS[..2] {
        let mut inputs = recurrence(*kind, [1, 3, t, n, n], -1.0, 5);
        let width = if kind.channels { n } else { 1 };
        inputs.log_d = Some(constant(&slopes, t).expand([1, 3, t, width]));
        let (expected, last) = plain(&slopes, &inputs);
        let leaves = inputs.map(|x| x.autodiff().require_grad());
        let (y, end) = leaves.clone().run(Some(64));
        for (found, expected) in [(&y, &expected), (&end, &last)] {
            let off = error(&numbers(found.clone()), expected);
            assert!(off <= 1e-5, "{kind:?}: off by {off:e}");
        }
        let grads = (y.sum() + end.sum()).backward();
        for x in leaves.all() {
            assert!(numbers(x.grad(&grads).unwrap()).iter().all(|x| x.is_finite()));
        }
    }
}

fn laid_out_anyhow(kind: Kind) -> Recurrence {
    let [b, h, t, n] = [2, 3, 21, 5];
    let mut draw = Draw::new(7);
    let mut random = |sizes| draw.tensor::<4>(sizes, -0.7, 0.7);
    Recurrence {
        q: random([b, t, h, n]),
        k: random([b, 1, t, n]),
        v: random([b, h, 2 * t, n]),
        log_d: Some(random([1, h, if kind.channels { n } else { 1 }, t]).abs().neg()),
        rank_one: kind.rank_one.then(|| [random([b, t, h, n]), random([b, 1, t, n])]),
        memory: random([b, h, n, n]),
        gain: 1.0,
    }
}

/// Heads split from `[b, t, h n]`, one key for all heads, a part of a longer tensor, reversed time.
fn views(Recurrence { q, k, v, log_d, rank_one, memory, gain }: Recurrence) -> Recurrence {
    let q = q.swap_dims(1, 2);
    let [b, h, t, n] = q.dims();
    Recurrence {
        q,
        k: k.expand([b, h, t, n]),
        v: v.narrow(2, 7, t).flip([2]),
        log_d: log_d.map(|log| {
            let width = log.dims()[2];
            log.swap_dims(2, 3).expand([b, h, t, width])
        }),
        rank_one: rank_one.map(|[a, b_]| [a.swap_dims(1, 2), b_.expand([b, h, t, n])]),
        memory: memory.swap_dims(2, 3),
        gain,
    }
}

#[test]
fn inputs_may_lie_in_any_order() {
    for kind in KINDS {
        let inputs = laid_out_anyhow(kind);
        let found = everything(&inputs, |x| views(x).tiled(8));
        let expected = everything(&inputs, |x| views(x).engine(Form::Recurrent));
        for ((found, expected), name) in found.iter().zip(&expected).zip(NAMES) {
            let off = error(found, expected);
            assert!(off <= 1e-5, "{kind:?} {name}: off by {off:e}");
        }
    }
}

/// Every number of every result is written: rooms are full of NaN in tests.
#[test]
fn every_number_is_written() {
    for (kind, t) in KINDS.into_iter().flat_map(|kind| [1, 16, 37, 300].map(|t| (kind, t))) {
        let inputs = recurrence(kind, [2, 2, t, 6, 7], -0.1, 3);
        let inputs: Vec<_> = inputs.all().map(|x| x.clone().try_into_primitive::<Flex>().unwrap()).collect();
        let options = Options { block: Some(16), gain: 0.6 };
        let ([y, last], kept) = Flex::forward(&inputs, options, true);
        let kept = kept.unwrap();
        let grads = Flex::backward(&inputs, options, y.clone(), Some(last.clone()), &kept, true);
        for results in [y, last, kept].iter().chain(grads.iter().flatten()) {
            assert!(<f32 as Number>::numbers(results).iter().all(|x| x.is_finite()), "{kind:?}, {t} tokens");
        }
    }
}

/// Gradients of everything but the decays, where those are tracked or not.
fn others(inputs: &Recurrence, tracked: bool, block: Option<usize>) -> Vec<Vec<f64>> {
    let leaves = inputs.map(|x| x.autodiff().require_grad());
    let mut given = leaves.clone();
    if !tracked {
        given.log_d.clone_from(&inputs.log_d);
    }
    let grads = weigh(given.run(block)).backward();
    let tensors = [&leaves.q, &leaves.k, &leaves.v, &leaves.memory];
    let tensors = tensors.into_iter().chain(leaves.rank_one.iter().flatten());
    tensors.map(|x| numbers(x.grad(&grads).unwrap())).collect()
}

/// Without a gradient of the decays, the others are the same.
#[test]
fn the_decay_may_be_constant() {
    for kind in KINDS {
        let inputs = recurrence(kind, [1, 2, 40, 6, 5], -0.3, 6);
        assert_eq!(others(&inputs, true, Some(16)), others(&inputs, false, Some(16)), "{kind:?}");
    }
}

/// A token that is not finite changes nothing before it, in its own block neither.
#[test]
fn the_future_does_not_show() {
    for kind in KINDS {
        let inputs = recurrence(kind, [1, 1, 12, 3, 3], -0.5, 8);
        let nan = inputs.k.clone().narrow(2, 0, 5).full_like(f64::NAN);
        let spoilt = Tensor::cat(vec![inputs.k.clone().narrow(2, 0, 7), nan], 2);
        let run = |k: &Tensor<4>| {
            let inputs = Recurrence { k: k.clone(), ..inputs.clone() };
            numbers(inputs.run(Some(8)).0.narrow(2, 0, 7))
        };
        assert_eq!(run(&inputs.k), run(&spoilt), "{kind:?}");
    }
}

/// A reset, a logarithm of minus a very large number, forgets all before it and nothing after.
#[test]
fn a_reset_forgets_everything() {
    for kind in &KINDS[..2] {
        let inputs = recurrence(*kind, [1, 2, 20, 4, 4], -0.1, 9);
        let log_d = inputs.log_d.clone().unwrap();
        let reset = log_d.clone().narrow(2, 0, 1).full_like(-1e30);
        let parts = vec![log_d.clone().narrow(2, 0, 10), reset, log_d.clone().narrow(2, 11, 9)];
        let cut = Recurrence { log_d: Some(Tensor::cat(parts, 2)), ..inputs.clone() };
        let (whole, _) = cut.run(Some(16));
        let memory = inputs.memory.zeros_like();
        let later = Recurrence {
            q: inputs.q.narrow(2, 10, 10),
            k: inputs.k.narrow(2, 10, 10),
            v: inputs.v.narrow(2, 10, 10),
            log_d: Some(log_d.narrow(2, 10, 10)),
            rank_one: None,
            memory,
            gain: inputs.gain,
        };
        assert!(gap(whole.narrow(2, 10, 10), later.run(Some(16)).0) <= 1e-6, "{kind:?}");
    }
}

#[test]
fn it_declines_what_it_cannot_do() {
    for kind in KINDS {
        let inputs = recurrence(kind, [1, 2, 4, 3, 3], -0.1, 1);
        assert!(inputs.applies());
        assert!(!Recurrence { q: inputs.q.clone().cast(DType::F64), ..inputs.clone() }.applies());
        let few = inputs.k.clone().narrow(1, 0, 1);
        assert!(!Recurrence { q: few.clone(), ..inputs.clone() }.applies());
        assert!(!Recurrence { rank_one: Some([few.clone(), few]), ..inputs.clone() }.applies());
        assert!(!inputs.map(|x| x.cast(DType::F16)).applies());
        let empty = |x: Tensor<4>| {
            let [_, h, t, n] = x.dims();
            Tensor::zeros([0, h, t, n], &Device::flex())
        };
        assert!(!inputs.map(empty).applies());
        #[cfg(feature = "ndarray")]
        {
            let there = crate::device::open("ndarray").unwrap();
            assert!(!inputs.map(|x| x.to_device(&there)).applies());
        }
    }
}
