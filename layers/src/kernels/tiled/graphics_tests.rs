//! The kernels for graphics devices against the recurrence on the CPU. Every buffer they make is full of what is not a
//! number before.

use burn::tensor::{DType, Device, Tensor};

use super::*;
use crate::kernels;
use crate::system::{Form, System, engine};
use crate::testing::{Draw, error, gap, graphics, numbers};

fn on(device: &Device, x: &Recurrence) -> Recurrence {
    x.map(|x| x.to_device(device))
}

/// Values and every gradient.
fn agree(device: &Device, inputs: &Recurrence, block: Option<usize>, what: &str) {
    let run = |x: Recurrence| {
        assert!(x.applies());
        x.run(block)
    };
    let expected = everything(&inputs.map(|x| x.cast(DType::F64)), |x| x.engine(Form::Recurrent));
    let found = everything(&on(device, inputs), run);
    for (i, name) in NAMES.iter().enumerate().take(expected.len()) {
        let off = error(&found[i], &expected[i]);
        assert!(off <= if i < 2 { 1e-5 } else { 1e-4 }, "{what}: {name} off by {off:e}");
    }
    // Without gradients the last memory is a tensor of its own.
    let (y, memory) = run(on(device, inputs));
    assert_eq!([y.dims(), memory.dims()], [inputs.v.dims(), inputs.memory.dims()]);
    for (found, expected) in [y, memory].into_iter().zip(&expected) {
        let off = error(&numbers(found), expected);
        assert!(off <= 1e-5, "{what}: off by {off:e} without gradients");
    }
}

#[test]
fn every_size_is_the_recurrence() {
    for device in graphics() {
        // Tokens around a stage's and a segment's; heads that fill no tile, one slice, and several with a rest.
        for (b, t, n, p) in [(1, 1, 1, 1), (3, 5, 4, 3), (1, 37, 8, 16), (3, 33, 17, 20), (1, 70, 33, 40)] {
            for kind in KINDS {
                for weakest in [0.0, -0.02, -4.0] {
                    let inputs = recurrence(kind, [b, 2, t, n, p], weakest, t as u64);
                    let what = format!("{kind:?} b={b} t={t} n={n} p={p} decay {weakest}");
                    agree(&device, &inputs, None, &what);
                }
            }
        }
    }
}

/// What is staged at a time depends on the size of a head.
#[test]
fn large_heads_are_the_recurrence() {
    for device in graphics() {
        for (kind, n) in KINDS.into_iter().flat_map(|kind| [101, 128].map(|n| (kind, n))) {
            let inputs = recurrence(kind, [1, 1, 9, n, 18], -0.1, n as u64);
            agree(&device, &inputs, None, &format!("{kind:?} n={n}"));
        }
    }
}

#[test]
fn chunks_beside_each_other_are_the_recurrence() {
    for device in graphics() {
        for kind in &KINDS[..2] {
            for block in [1, 16, 33, 64] {
                let inputs = recurrence(*kind, [2, 2, 70, 10, 18], -0.05, 5);
                agree(&device, &inputs, Some(block), &format!("{kind:?} chunks of {block}"));
            }
            // As many as there are for long sequences of few heads.
            let inputs = recurrence(*kind, [1, 1, 300, 5, 4], -0.01, 6);
            agree(&device, &inputs, None, &format!("{kind:?} long"));
        }
    }
}

/// Heads split from `[b, t, h n]`, one key for all heads, a part of a longer tensor, reversed time.
#[test]
fn inputs_may_lie_in_any_order_there() {
    for device in graphics() {
        for kind in KINDS {
            let inputs = laid_out_anyhow(kind);
            let expected = everything(&inputs, |x| views(x).engine(Form::Recurrent));
            for block in [None, Some(8)] {
                let found = everything(&on(&device, &inputs), |x| views(x).run(block));
                for ((found, expected), name) in found.iter().zip(&expected).zip(NAMES) {
                    let off = error(found, expected);
                    assert!(off <= 1e-5, "{kind:?} {name}: off by {off:e}");
                }
            }
        }
    }
}

/// A token that is not finite changes nothing before it, and a reset forgets all before it and nothing after.
#[test]
fn the_future_does_not_show_and_a_reset_forgets() {
    for device in graphics() {
        for kind in &KINDS[..2] {
            let inputs = recurrence(*kind, [1, 2, 20, 4, 4], -0.1, 9);
            let run = |x: &Recurrence| on(&device, x).run(None).0;
            let huge = inputs.k.clone().narrow(2, 0, 13).full_like(1e30);
            let k = Tensor::cat(vec![inputs.k.clone().narrow(2, 0, 7), huge], 2);
            let spoilt = Recurrence { k, ..inputs.clone() };
            let early = |x: Tensor<4>| numbers(x.narrow(2, 0, 7));
            assert_eq!(early(run(&inputs)), early(run(&spoilt)), "{kind:?}");

            let log_d = inputs.log_d.clone().unwrap();
            let reset = log_d.clone().narrow(2, 0, 1).full_like(-1e30);
            let parts = vec![log_d.clone().narrow(2, 0, 10), reset, log_d.narrow(2, 11, 9)];
            let cut = Recurrence { log_d: Some(Tensor::cat(parts, 2)), ..inputs };
            let later = Recurrence { memory: cut.memory.zeros_like(), ..cut.map(|x| x) };
            let later = later.map(|x| if x.dims()[2] == 20 { x.narrow(2, 10, 10) } else { x });
            assert!(gap(run(&cut).narrow(2, 10, 10), run(&later)) <= 1e-6, "{kind:?}");
        }
    }
}

/// Without a gradient of the decays, the others are the same.
#[test]
fn the_decay_may_be_constant_there() {
    for device in graphics() {
        for kind in KINDS {
            let inputs = on(&device, &recurrence(kind, [1, 2, 40, 6, 5], -0.3, 6));
            assert_eq!(others(&inputs, true, None), others(&inputs, false, None), "{kind:?}");
        }
    }
}

/// The engine takes kernels there, for one token too, and what they decline goes to tensor operations.
#[test]
fn the_engine_uses_them() {
    for device in graphics() {
        for (kind, t) in KINDS.into_iter().flat_map(|kind| [1, 20].map(|t| (kind, t))) {
            let inputs = on(&device, &recurrence(kind, [1, 2, t, 6, 5], -0.3, 7));
            assert!(inputs.takes_one_token());
            let by_tensors = inputs.clone().engine(Form::Recurrent);
            let Recurrence { q, k, v, memory, gain, .. } = inputs.clone();
            let system = System::outer(inputs.transition(), q, k, v).with_gain(gain);
            let found = engine::run_with(system, memory, Form::Auto, true).unwrap();
            assert!(
                gap(found.0, by_tensors.0) <= 1e-5 && gap(found.1, by_tensors.1) <= 1e-5,
                "{kind:?} t={t}"
            );
        }
        // What stands around the memory is in the same kernel, or in tensor operations.
        for (kind, t) in KINDS.into_iter().flat_map(|kind| [1, 20].map(|t| (kind, t))) {
            let x = on(&device, &recurrence(kind, [2, 3, t, 6, 20], -0.3, 8));
            for dims in [[1, 3, 1, 1], [1, 3, 1, 20], [1, 1, 1, 20], [2, 3, 1, 1]] {
                let skip = Draw::new(9).tensor::<4>(dims, -1.0, 1.0).to_device(&device);
                let system = System::outer(x.transition(), x.q.clone(), x.k.clone(), x.v.clone());
                let system = system.with_skip(skip.clone()).with_gain(0.3);
                let found = engine::run_with(system, x.memory.clone(), Form::Auto, true).unwrap();
                let by_tensors = x.clone().engine(Form::Recurrent);
                let y = by_tensors.0.mul_scalar(0.5) + skip * x.v.clone();
                assert!(gap(found.0, y) <= 1e-5 && gap(found.1, by_tensors.1) <= 1e-5, "{kind:?} {dims:?}");
            }
        }
        let inputs = on(&device, &recurrence(KINDS[0], [1, 1, 4, 300, 3], -0.1, 1));
        assert!(!inputs.applies(), "keys of 300 are too large");
        assert!(kernels::cube::tiled::fits([1, 8, 1 << 16, 64, 64], 1, true));
    }
}
