use super::*;
use crate::params;
use crate::testing::gap;
use burn::tensor::{DType, Device};

fn small() -> NeuralMemoryConfig {
    NeuralMemoryConfig { heads: 2, head_dim: 4, chunk: 2, max_lr: 0.5, ..Default::default() }
}

fn layer(config: &NeuralMemoryConfig, device: &Device) -> NeuralMemory {
    let mut init = Init::new(3, device);
    let mut layer = config.init(6, &mut init).unwrap();
    layer.memory.gain = init.normal([2, 4], 0.3);
    layer
}

fn input(t: usize) -> Tensor<3> {
    Init::new(9, &Device::flex()).normal([2, t, 6], 1.0).val().detach()
}

/// The recurrence as the module states it, its gradients by autodiff.
fn literal(layer: &NeuralMemory, x: &Tensor<3>, chunk: usize, refresh: Option<usize>) -> Tensor<4> {
    let (tokens, _) = layer.tokens(x, Run::default());
    let mut w = layer.memory.initial(2);
    let (mut s, mut anchor): (Vec<_>, _) = (w.iter().map(Tensor::zeros_like).collect(), w.clone());
    let mut out = Vec::new();
    for t in 0..x.dims()[1] {
        if (t + 1) % chunk == 0 {
            let part = |x: &Tensor<4>| x.clone().narrow(2, t + 1 - chunk, chunk);
            let leaves: Vec<_> = anchor.iter().map(|w| w.clone().autodiff().require_grad()).collect();
            let residual = NeuralModel::read(&leaves, part(&tokens.k)) - part(&tokens.v);
            let loss = residual.square().mean_dim(3) * part(&tokens.eta);
            let grads = loss.sum().backward();
            let gates = activation::sigmoid(part(&tokens.gates).mean_dim(2));
            let (forget, keep) = (gates.clone().narrow(3, 0, 1), gates.narrow(3, 1, 1));
            for ((w, s), leaf) in w.iter_mut().zip(&mut s).zip(&leaves) {
                *s = s.clone() * keep.clone() - leaf.grad(&grads).expect("a gradient");
                *w = w.clone() * forget.clone().neg().add_scalar(1.0) + s.clone();
            }
        }
        out.push(NeuralModel::read(&w, tokens.q.clone().narrow(2, t, 1)));
        if refresh.is_some_and(|refresh| (t + 1) % refresh == 0) {
            anchor = w.clone();
        }
    }
    Tensor::cat(out, 2)
}

#[test]
fn both_forms_are_the_recurrence_with_gradients_by_autodiff() {
    for (chunk, refresh) in [(1, None), (3, None), (2, Some(4)), (1, Some(1))] {
        let layer = layer(&NeuralMemoryConfig { chunk, refresh, ..small() }, &Device::flex());
        let layer = params::cast(layer, DType::F64);
        let x = input(11).cast(DType::F64);
        let expected = literal(&layer, &x, chunk, refresh);
        let clock = NeuralClock::new(chunk, refresh, &[0, 0], None);
        let (tokens, _) = layer.tokens(&x, Run::default());
        let start = layer.memory.start(2);
        let (y, end) = NeuralModel::recurrent(tokens.clone(), start.clone(), &clock, |_, _, _| {});
        assert!(gap(y, expected.clone()) < 1e-10, "{chunk} {refresh:?}");
        for size in [1, 4, 11] {
            let (y, other) = NeuralModel::chunked(tokens.clone(), start.clone(), &clock, size);
            assert!(gap(y, expected.clone()) < 1e-10, "{chunk} {refresh:?} by {size}");
            let [a, b] =
                [&end, &other].map(|fast| [&fast.weights[..], &fast.momentum, &fast.gradient].concat());
            for (a, b) in a.into_iter().zip(b) {
                assert!(gap(b, a) < 1e-10, "{chunk} {refresh:?} by {size}");
            }
        }
    }
}

#[test]
fn without_a_learning_rate_the_memory_only_fades() {
    let layer = |forget_bias| {
        let mut layer = layer(&NeuralMemoryConfig { max_lr: 0.0, forget_bias, ..small() }, &Device::flex());
        layer.forget_proj.weight = Init::blank(&Device::flex()).normal([6, 2], 1.0);
        layer
    };
    let weight = |state: &State| state.get::<4>("w1").unwrap();
    for (bias, kept) in [(-40.0, 1.0), (0.0, 0.5f64.powi(5))] {
        let layer = layer(bias);
        let start = layer.initial_state(2);
        let (_, end) = layer.forward(input(10), start.clone(), Form::Auto).unwrap();
        assert!(gap(weight(&end), weight(&start).mul_scalar(kept)) < 1e-6, "{bias}");
    }
}

#[test]
fn a_token_reads_only_complete_chunks() {
    let layer = layer(&NeuralMemoryConfig { chunk: 4, ..small() }, &Device::flex());
    let x = input(8);
    let run = |x: Tensor<3>| layer.forward(x, layer.initial_state(2), Form::Auto).unwrap().0;
    let y = run(x.clone());
    let other = Tensor::cat(vec![x.clone().narrow(1, 0, 1).neg(), x.narrow(1, 1, 7)], 1);
    let changed = run(other);
    let rest = |y: &Tensor<3>, from: usize, size: usize| y.clone().narrow(1, from, size);
    assert_eq!(gap(rest(&changed, 1, 2), rest(&y, 1, 2)), 0.0, "the chunk of token 0 is still open");
    assert!(gap(rest(&changed, 3, 1), rest(&y, 3, 1)) > 1e-4, "its last token reads it");
    assert!(gap(rest(&changed, 4, 3), rest(&y, 4, 3)) > 1e-4);
}

#[test]
fn impossible_settings_are_refused() {
    let refused = |config: NeuralMemoryConfig| config.init(6, &mut Init::new(0, &Device::flex())).is_err();
    assert!(!refused(small()));
    assert!(refused(NeuralMemoryConfig { chunk: 0, ..small() }));
    assert!(refused(NeuralMemoryConfig { refresh: Some(3), ..small() }));
    assert!(refused(NeuralMemoryConfig { refresh: Some(0), ..small() }));
    assert!(refused(NeuralMemoryConfig { heads: 1, ..small() }));
    assert!(!refused(NeuralMemoryConfig { heads: 1, head_dim: 6, ..small() }));
    assert!(refused(NeuralMemoryConfig { max_lr: f64::INFINITY, ..small() }));
    assert!(refused(NeuralMemoryConfig { expansion: 0, ..small() }));
    let layer = layer(&small(), &Device::flex());
    assert!(layer.forward(input(3), State::new(2), Form::Auto).is_err());
}
