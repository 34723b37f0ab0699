use burn::tensor::{DType, Device};

use super::*;
use crate::system::{Mask, Mixer};
use crate::testing::{Draw, error, gap, numbers};

fn build() -> Flow {
    let config = FlowConfig { heads: 1, head_dim: Some(3), clamp: 0.9, ..Default::default() };
    config.init(4, &mut Init::new(3, &Device::flex())).unwrap()
}

/// The streaming recurrence against sums over the whole prefix, computed anew for every token.
#[test]
#[allow(clippy::needless_range_loop, reason = "indices as in the equations")]
fn streaming_is_recomputing_every_prefix() {
    const T: usize = 9;
    let layer = build();
    let x = Draw::new(1).tensor::<3>([1, T, 4], -2.0, 2.0);
    let rows = |x: Tensor<3>| numbers(x).chunks(3).map(<[f64]>::to_vec).collect::<Vec<_>>();
    let q = rows(activation::sigmoid(layer.q_proj.forward(x.clone())));
    let k = rows(activation::sigmoid(layer.k_proj.forward(x.clone())));
    let v = rows(layer.v_proj.forward(x.clone()));
    let eps = 1e-6;
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a + eps) * (b + eps)).sum::<f64>();
    let sum = |x: &[Vec<f64>], weights: &[f64], t: usize| -> Vec<f64> {
        (0..3).map(|c| (0..=t).map(|s| weights[s] * x[s][c]).sum()).collect()
    };
    let n = |t: usize| (t + 1) as f64;
    let ones = [1.0; T];
    let incoming: Vec<f64> = (0..T).map(|t| n(t) / dot(&q[t], &sum(&k, &ones, t))).collect();
    let outgoing: Vec<f64> = (0..T).map(|t| n(t) / dot(&k[t], &sum(&q, &ones, t))).collect();
    let conserved = |t: usize| (dot(&k[t], &sum(&q, &incoming, t)) / n(t)).clamp(-0.9, 0.9).exp();
    let mut expected = Vec::new();
    for t in 0..T {
        let allocation = 1.0 / (1.0 + (-dot(&q[t], &sum(&k, &outgoing, t)) / n(t)).exp());
        for c in 0..3 {
            let read = (0..=t).map(|s| {
                let competition = n(s) * conserved(s) / (0..=s).map(conserved).sum::<f64>();
                q[t].iter().zip(&k[s]).map(|(q, k)| q * k).sum::<f64>() * competition * v[s][c]
            });
            expected.push(allocation * incoming[t] / n(t) * read.sum::<f64>());
        }
    }
    let expected =
        Tensor::<3>::from_data(TensorData::new(expected, [1, T, 3]), (&Device::flex(), DType::F32));
    let expected = layer.out_proj.forward(expected);
    let mut state = Mixer::initial_state(&layer, 1);
    let mut steps = Vec::new();
    for t in 0..T {
        let (y, next) = layer.step(x.clone().narrow(1, t, 1).squeeze_dim(1), state).unwrap();
        state = next;
        steps.push(y.unsqueeze_dim::<3>(1));
    }
    assert!(gap(Tensor::cat(steps, 1), expected.clone()) < 1e-5);
    assert!(
        gap(layer.forward(x, Mixer::initial_state(&layer, 1), Form::Parallel).unwrap().0, expected) < 1e-5
    );
}

/// All that goes out comes in: `Σ_i Î_i = S` and `Σ_j Ô_j = L`, the balance the method is named after.
#[test]
fn flow_is_conserved() {
    let mut draw = Draw::new(2);
    let (q, k) = (draw.tensor::<4>([1, 1, 5, 4], 0.1, 1.0), draw.tensor::<4>([1, 1, 8, 4], 0.1, 1.0));
    let (_, [taken, given]) = conserved(&q, &k, 1e-6);
    let total = |x: Tensor<4>| numbers(x.sum_dim(2))[0];
    assert!((total(taken) - 8.0).abs() < 1e-4);
    assert!((total(given) - 5.0).abs() < 1e-4);
}

/// One source gets all competition and gives its value, scaled only by the allocation.
#[test]
fn the_whole_network_normalises() {
    let mut draw = Draw::new(3);
    let (q, k) = (draw.tensor::<4>([1, 2, 6, 4], -2.0, 2.0), draw.tensor::<4>([1, 2, 1, 4], -2.0, 2.0));
    let v = draw.tensor::<4>([1, 2, 1, 3], -1.0, 1.0);
    let y = flow_attention(q.clone(), k.clone(), v.clone(), 1.0, 1e-9).unwrap();
    // I_i q_i·k = 1; O = 1 / k·Σ q, so Î_i L = L q_i·k / k·Σ q
    let (q, k) = (activation::sigmoid(q), activation::sigmoid(k));
    let share = (q.clone() * k.clone()).sum_dim(3).mul_scalar(6.0) / (k * q.sum_dim(2)).sum_dim(3);
    assert!(gap(y, activation::sigmoid(share) * v.clone()) < 1e-5);
    let wrong = draw.tensor::<4>([1, 2, 4, 3], -1.0, 1.0);
    assert!(flow_attention(wrong.clone(), wrong.clone(), v, 1.0, 1e-6).is_err());
}

/// The causal form is its own definition: at the first token it is the whole network's, later not.
#[test]
fn causal_is_not_the_whole_network_on_each_prefix() {
    let layer = build();
    let x = Draw::new(4).tensor::<3>([1, 4, 4], -2.0, 2.0);
    let (y, _) = layer.forward(x.clone(), Mixer::initial_state(&layer, 1), Form::Auto).unwrap();
    let heads = |map: &Linear, t: usize| split_heads(map.forward(x.clone().narrow(1, 0, t)), 1);
    let prefix = |t: usize| {
        let [q, k, v] = [&layer.q_proj, &layer.k_proj, &layer.v_proj].map(|map| heads(map, t));
        let y = flow_attention(q, k, v, 0.9, 1e-6).unwrap().narrow(2, t - 1, 1);
        numbers(layer.out_proj.forward(merge_heads(y)))
    };
    let own = |t: usize| numbers(y.clone().narrow(1, t - 1, 1));
    assert!(error(&own(1), &prefix(1)) < 1e-5);
    assert!(error(&own(3), &prefix(3)) > 1e-3);
}

/// A row of padding only leaves its state as it was.
#[test]
fn a_row_without_tokens_continues_as_if_new() {
    let layer = build();
    let mut draw = Draw::new(6);
    let (first, second) = (draw.tensor([2, 5, 4], -2.0, 2.0), draw.tensor::<3>([2, 4, 4], -2.0, 2.0));
    let mask = Mask::from_lengths(&[0, 5], 5);
    for form in [Form::Recurrent, Form::Parallel, Form::Auto] {
        let start = Mixer::initial_state(&layer, 2);
        let (_, state) = layer.forward_masked(first.clone(), start, form, &mask).unwrap();
        let (y, _) = layer.forward(second.clone(), state, form).unwrap();
        let row = |x: Tensor<3>| x.narrow(0, 0, 1);
        let start = Mixer::initial_state(&layer, 1);
        let (alone, _) = layer.forward(row(second.clone()), start, form).unwrap();
        assert!(gap(row(y), alone) < 1e-6, "{form}");
    }
}

/// With kernels and without.
#[test]
fn foreign_sums_are_refused() {
    let layer = build();
    let x = Draw::new(2).tensor::<3>([1, 5, 4], -2.0, 2.0);
    for form in [Form::Recurrent, Form::Auto] {
        let mut state = Mixer::initial_state(&layer, 1);
        state.put(FLOWS, Tensor::<4>::zeros([1, 1, 3, 1], &Device::flex()));
        assert!(layer.forward(x.clone(), state, form).is_err(), "{form}");
    }
}

#[test]
fn bad_settings_are_refused() {
    let refused = |config: FlowConfig| config.init(8, &mut Init::new(0, &Device::flex())).is_err();
    assert!(!refused(FlowConfig::default()));
    assert!(refused(FlowConfig { clamp: 0.0, ..Default::default() }));
    assert!(refused(FlowConfig { clamp: f64::NAN, ..Default::default() }));
    assert!(refused(FlowConfig { eps: -1.0, ..Default::default() }));
    assert!(refused(FlowConfig { heads: 3, ..Default::default() }));
}
