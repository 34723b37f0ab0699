//! The kernel against the recurrence: every size, any layout of the inputs, values and all gradients.

use burn::tensor::{DType, Device, Tensor};

use super::blocks::{self, Gradients};
use super::*;
use crate::lightning::{SlopeKind, slopes};
use crate::system::{Form, System, Transition, engine};
use crate::testing::{Draw, error, gap, numbers};

/// `q`, `k`, `v`, `log_a`, memory.
type Five = ([Tensor<4>; 4], Tensor<3>);

fn inputs([b, h, t, n, p]: [usize; 5], weakest: f64, seed: u64) -> Five {
    let mut draw = Draw::new(seed);
    let mut random = |sizes| draw.tensor::<4>(sizes, -1.0, 1.0);
    let four = [random([b, h, t, n]), random([b, h, t, n]), random([b, h, t, p]), random([b, h, n, p])];
    (four, draw.tensor([b, h, t], 3.0 * weakest, weakest))
}

fn cast(([q, k, v, memory], log_a): &Five, dtype: DType) -> Five {
    ([q, k, v, memory].map(|x| x.clone().cast(dtype)), log_a.clone().cast(dtype))
}

/// Outputs, memory and the gradients of all five inputs, `weight`ed differently everywhere.
fn everything(five: &Five, run: impl FnOnce(Five) -> (Tensor<4>, Tensor<4>)) -> Vec<Vec<f64>> {
    let ([q, k, v, memory], log_a) = five.clone();
    let four = [q, k, v, memory].map(|x| x.autodiff().require_grad());
    let log_a = log_a.autodiff().require_grad();
    let (y, last) = run((four.clone(), log_a.clone()));
    let weigh = |x: Tensor<4>, seed| {
        let cotangent = Draw::new(seed).tensor::<4>(x.dims(), -1.0, 1.0).cast(x.dtype());
        (x * cotangent).sum()
    };
    let grads = (weigh(y.clone(), 91) + weigh(last.clone(), 92)).backward();
    let mut all = vec![numbers(y), numbers(last)];
    all.extend(four.iter().map(|x| numbers(x.grad(&grads).expect("a gradient"))));
    all.push(numbers(log_a.grad(&grads).expect("a gradient of the decay")));
    all
}

const NAMES: [&str; 7] = ["y", "memory", "dq", "dk", "dv", "dmemory", "dlog_a"];

fn tiled(block: usize) -> impl Fn(Five) -> (Tensor<4>, Tensor<4>) {
    move |([q, k, v, memory], log_a)| {
        assert!(applies(&q, &k, &v, &memory));
        run(Some(log_a), q, k, v, memory, block)
    }
}

fn engine(form: Form) -> impl Fn(Five) -> (Tensor<4>, Tensor<4>) {
    move |([q, k, v, memory], log_a)| {
        let system = System::outer(Transition::Scalar { log_a }, q, k, v);
        engine::run_with(system, memory, form, false).unwrap()
    }
}

#[test]
fn it_is_the_recurrence_and_the_tensor_form_at_every_size() {
    // Tokens around and far beyond a block; heads that fill no tile, one tile, and several with a rest.
    for (t, n, p) in
        [(1, 1, 1), (5, 4, 3), (16, 16, 16), (63, 3, 20), (64, 8, 5), (65, 33, 17), (200, 12, 65)]
    {
        for weakest in [0.0, -0.02, -4.0] {
            let five = inputs([2, 3, t, n, p], weakest, t as u64);
            let double = cast(&five, DType::F64);
            let expected = everything(&double, engine(Form::Recurrent));
            let chunked = everything(&double, engine(Form::Chunked { size: 16 }));
            for block in [1, 7, 16, 64, 1000] {
                let exact = everything(&double, tiled(block));
                let single = everything(&five, tiled(block));
                for (i, name) in NAMES.iter().enumerate() {
                    let at = format!("{name} at t={t} n={n} p={p} block={block} decay {weakest}");
                    for (found, limit) in [(&exact[i], 1e-11), (&single[i], if i < 2 { 1e-5 } else { 1e-4 })]
                    {
                        let off = error(found, &expected[i]).max(error(found, &chunked[i]));
                        assert!(off <= limit, "{at}: off by {off:e}");
                    }
                }
            }
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
                let ([q, k, v, memory], _) = inputs([1, heads, t, 4, 5], -1.0, t as u64);
                let memory = memory.mul_scalar(start);
                let (y, last) = plain(&slopes, [&q, &k, &v, &memory]);
                let log: Vec<f64> = slopes.iter().map(|s| -s).collect();
                let log = TensorData::new(log, [1, heads, 1]);
                let log = Tensor::<3>::from_data(log, (&Device::flex(), DType::F32)).expand([1, heads, t]);
                for block in [1, 4, 8, 16, 64] {
                    let [q, k, v, memory] = [&q, &k, &v, &memory].map(Clone::clone);
                    let (found, memory) = run(Some(log.clone()), q, k, v, memory, block);
                    let off = error(&numbers(found), &y).max(error(&numbers(memory), &last));
                    assert!(off <= 1e-5, "heads={heads} t={t} block={block}: off by {off:e}");
                }
            }
        }
    }
}

/// One batch row of the recurrence, on numbers.
fn plain(slopes: &[f64], [q, k, v, memory]: [&Tensor<4>; 4]) -> (Vec<f64>, Vec<f64>) {
    let ([_, _, t, n], p) = (k.dims(), v.dims()[3]);
    let [q, k, v, mut memory] = [q, k, v, memory].map(|x| numbers(x.clone()));
    let mut y = vec![0.0; v.len()];
    for (h, slope) in slopes.iter().enumerate() {
        for row in h * t..(h + 1) * t {
            for j in 0..p {
                for i in 0..n {
                    let state = &mut memory[(h * n + i) * p + j];
                    *state = (-slope).exp() * *state + k[row * n + i] * v[row * p + j];
                    y[row * p + j] += q[row * n + i] * *state;
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
    let ([q, k, v, memory], _) = inputs([1, 3, t, n, n], -1.0, 5);
    let slopes = [1.0, 0.5e-5, 0.0];
    let (expected, last) = plain(&slopes, [&q, &k, &v, &memory]);
    let [q, k, v, memory] = [q, k, v, memory].map(|x| x.autodiff().require_grad());
    let log = TensorData::new(slopes.map(|s: f64| -s).to_vec(), [1, 3, 1]);
    let log_a = Tensor::<3>::from_data(log, (&Device::flex(), DType::F32)).autodiff().require_grad();
    let (y, end) = run(Some(log_a.clone()), q.clone(), k.clone(), v.clone(), memory.clone(), 64);
    assert!(error(&numbers(y.clone()), &expected) <= 1e-5);
    assert!(error(&numbers(end.clone()), &last) <= 1e-5);
    let grads = (y.sum() + end.sum()).backward();
    for x in [q, k, v, memory] {
        assert!(numbers(x.grad(&grads).unwrap()).iter().all(|x| x.is_finite()));
    }
    assert!(numbers(log_a.grad(&grads).unwrap()).iter().all(|x| x.is_finite()));
}

/// Heads split from `[b, t, h n]`, one key for all heads, a part of a longer tensor, reversed time.
#[test]
fn inputs_may_lie_in_any_order() {
    let [b, h, t, n] = [2, 3, 21, 5];
    let mut draw = Draw::new(7);
    let q = draw.tensor::<4>([b, t, h, n], -1.0, 1.0);
    let k = draw.tensor::<4>([b, 1, t, n], -1.0, 1.0);
    let v = draw.tensor::<4>([b, h, 2 * t, n], -1.0, 1.0);
    let memory = draw.tensor::<4>([b, h, n, n], -1.0, 1.0);
    let log_a = draw.tensor::<3>([1, h, t], -1.0, 0.0);
    let views = |[q, k, v, memory]: [Tensor<4>; 4], log_a: Tensor<3>| {
        let (q, k) = (q.swap_dims(1, 2), k.expand([b, h, t, n]));
        ([q, k, v.narrow(2, 7, t).flip([2]), memory.swap_dims(2, 3)], log_a.expand([b, h, t]))
    };
    let run = |tiles: bool| {
        let run = |([q, k, v, memory], log_a): Five| {
            let five = views([q, k, v, memory], log_a);
            if tiles { tiled(8)(five) } else { engine(Form::Recurrent)(five) }
        };
        everything(&([q.clone(), k.clone(), v.clone(), memory.clone()], log_a.clone()), run)
    };
    for ((found, expected), name) in run(true).iter().zip(&run(false)).zip(NAMES) {
        let off = error(found, expected);
        assert!(off <= 1e-5, "{name}: off by {off:e}");
    }
}

/// Every number of every result is written: what was there before does not show.
#[test]
fn results_do_not_depend_on_what_was_there() {
    for t in [1, 16, 37, 300] {
        let ([q, k, v, memory], log_a) = inputs([2, 2, t, 6, 7], -0.1, 3);
        let five = [q, k, v, memory].map(|x| x.try_into_primitive::<Flex>().unwrap());
        let log_a = log_a.try_into_primitive::<Flex>().unwrap();
        let [q, k, v, memory] = five;
        let call = Call { q, k, v, log_a, memory, block: 16 };
        let inputs = call.inputs::<f32>();
        let mut out = vec![f32::NAN; 2 * 2 * (t + 6) * 7];
        let mut kept = vec![f32::NAN; blocks::kept(&inputs, 16).len()];
        blocks::forward(&inputs, 16, &mut out, &mut kept);
        assert!(out.iter().chain(&kept).all(|x| x.is_finite()));
        let out = <f32 as Number>::tensor(out, &[2, 2, t + 6, 7]);
        let mut dirty = Gradients::filled(&inputs, f32::NAN);
        blocks::backward(&inputs, view(&out), &kept, 16, true, &mut dirty);
        let Gradients { q, k, v, log_a, memory } = dirty;
        assert!([q, k, v, log_a, memory].concat().iter().all(|x| x.is_finite()));
    }
}

/// A token that is not finite changes nothing before it, in its own block neither.
#[test]
fn the_future_does_not_show() {
    let ([q, k, v, memory], log_a) = inputs([1, 1, 12, 3, 3], -0.5, 8);
    let nan = k.clone().narrow(2, 0, 5).full_like(f64::NAN);
    let spoilt = Tensor::cat(vec![k.clone().narrow(2, 0, 7), nan], 2);
    let run =
        |k: Tensor<4>| run(Some(log_a.clone()), q.clone(), k, v.clone(), memory.clone(), 8).0.narrow(2, 0, 7);
    assert_eq!(numbers(run(k)), numbers(run(spoilt)));
}

/// A reset, `log_a` of minus a very large number, forgets all before it and nothing after.
#[test]
fn a_reset_forgets_everything() {
    let ([q, k, v, memory], log_a) = inputs([1, 2, 20, 4, 4], -0.1, 9);
    let reset = log_a.clone().narrow(2, 0, 1).full_like(-1e30);
    let cut = Tensor::cat(vec![log_a.clone().narrow(2, 0, 10), reset, log_a.clone().narrow(2, 11, 9)], 2);
    let (whole, _) = run(Some(cut), q.clone(), k.clone(), v.clone(), memory.clone(), 16);
    let [q, k, v] = [q, k, v].map(|x| x.narrow(2, 10, 10));
    let (fresh, _) = run(Some(log_a.narrow(2, 10, 10)), q, k, v, memory.zeros_like(), 16);
    assert!(gap(whole.narrow(2, 10, 10), fresh) <= 1e-6);
}

#[test]
fn it_declines_what_it_cannot_do() {
    let ([q, k, v, memory], _) = inputs([1, 2, 4, 3, 3], -0.1, 1);
    assert!(applies(&q, &k, &v, &memory));
    assert!(!applies(&q.clone().cast(DType::F64), &k, &v, &memory));
    assert!(!applies(&q.clone().narrow(0, 0, 1).narrow(1, 0, 1), &k, &v, &memory));
    let half = [&q, &k, &v, &memory].map(|x| x.clone().cast(DType::F16));
    assert!(!applies(&half[0], &half[1], &half[2], &half[3]));
    let empty = |x: &Tensor<4>| Tensor::<4>::zeros([0, 2, x.dims()[2], x.dims()[3]], &Device::flex());
    let empty = [&q, &k, &v, &memory].map(empty);
    assert!(!applies(&empty[0], &empty[1], &empty[2], &empty[3]));
    #[cfg(feature = "ndarray")]
    {
        let there = crate::device::open("ndarray").unwrap();
        let moved = [&q, &k, &v, &memory].map(|x| x.clone().to_device(&there));
        assert!(!applies(&moved[0], &moved[1], &moved[2], &moved[3]));
    }
}
