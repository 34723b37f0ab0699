use burn::tensor::{Device, TensorData};

use super::*;
use crate::linear::{normalize, with_normalizer};
use crate::system::{Mixer, engine};
use crate::testing::{Draw, gap, numbers};

const T: usize = 11;

/// `[1, 1, t]` from a function of time.
fn along(f: impl Fn(usize) -> f64) -> Tensor<3> {
    let values: Vec<f64> = (0..T).map(f).collect();
    Tensor::from_data(TensorData::new(values, [1, 1, T]), &Device::flex())
}

fn run(system: System) -> Tensor<4> {
    let ([b, h, _], n) = system.dims();
    let memory = Tensor::zeros([b, h, n, 3], &Device::flex());
    engine::run(system, memory, Form::Chunked { size: 4 }).unwrap().0
}

fn qkv(seed: u64) -> [Tensor<4>; 3] {
    let mut draw = Draw::new(seed);
    [4, 4, 3].map(|n| draw.tensor([1, 1, T, n], -1.0, 1.0))
}

#[test]
fn eta_is_what_it_says() {
    let points = [-50.0, -1.5, 0.0, 0.7, 4.0];
    let z = Tensor::<1>::from_data(points, &Device::flex());
    let check = |eta: Eta, f: fn(f64) -> f64| {
        for (found, z) in numbers(eta.log(z.clone())).into_iter().zip(points) {
            let expected = f(z).max((-30.0_f64).exp()).ln();
            assert!((found - expected).abs() < 1e-5 * expected.abs().max(1.0), "{eta:?} at {z}: {found}");
        }
    };
    check(Eta::Exp, f64::exp);
    check(Eta::Softplus, |z| z.exp().ln_1p());
    check(Eta::Sigmoid, |z| 1.0 / (1.0 + (-z).exp()));
    check(Eta::ExpExp, |z| z.exp().exp());
    check(Eta::ExpElu, |z| if z > 0.0 { z } else { z.exp_m1() }.exp());
    check(Eta::ExpSoftplus, |z| 1.0 + z.exp());
    check(Eta::ExpSigmoid, |z| (1.0 / (1.0 + (-z).exp())).exp());
    let far = Tensor::<1>::from_data([-1e4, 1e4], &Device::flex());
    for eta in [Eta::Exp, Eta::Softplus, Eta::Sigmoid, Eta::ExpExp, Eta::ExpElu, Eta::ExpSoftplus] {
        assert!(numbers(eta.log(far.clone()).neg().exp()).iter().all(|x| x.is_finite()), "{eta:?}");
    }
}

/// A scalar-decay state space model `H_i = e^{-a Δ_i} H_{i-1} + Δ_i B_i u_iᵀ` is normalised attention with
/// `η_i = exp(a Σ_{t ≤ i} Δ_t)` and keys `Δ_j η_j B_j`.
#[test]
fn a_state_space_model_is_normalised_attention() {
    let [c, b, u] = qkv(1);
    let a = 0.7;
    let step = |t: usize| 0.1 + 0.05 * (t as f64).sin();
    let total = |t: usize| a * (0..=t).map(step).sum::<f64>();
    let column = |f: &dyn Fn(usize) -> f64| along(f).unsqueeze_dim::<4>(3);
    let log_a = along(|t| -a * step(t));
    let ssm = System::outer(Transition::Scalar { log_a }, c.clone(), b.clone() * column(&step), u.clone());
    let keys = b * column(&|t| step(t) * total(t).exp());
    assert!(gap(run(normalized_system(along(total), c, keys, u)), run(ssm)) < 1e-5);
}

/// Where the write scale is tied to the decay, the two classes meet in one sequence only: `Δ_i e^{a Δ_i} = Δ_{i-1}`,
/// `η = 1/Δ`, and keys `B` themselves.
#[test]
fn with_tied_steps_the_two_classes_meet_in_a_running_average() {
    let [c, b, u] = qkv(2);
    let a = 0.5;
    let mut steps = vec![1.0_f64];
    for t in 1..T {
        let mut d: f64 = steps[t - 1];
        for _ in 0..60 {
            // Newton's method for d e^{a d} = the step before
            d -= (d * (a * d).exp() - steps[t - 1]) / ((1.0 + a * d) * (a * d).exp());
        }
        steps.push(d);
    }
    let log_a = along(|t| -a * steps[t]);
    let write = b.clone() * along(|t| steps[t]).unsqueeze_dim::<4>(3);
    let ssm = run(System::outer(Transition::Scalar { log_a }, c.clone(), write, u.clone()));
    let attention = run(normalized_system(along(|t| -steps[t].ln()), c, b, u));
    assert!(gap(attention, ssm) < 1e-5);
}

/// Linear attention is the special case whose `η` is the sum of the scores.
#[test]
fn linear_attention_divides_by_its_own_scores() {
    let [q, k, v] = qkv(3);
    let (q, k) = (q.exp(), k.exp());
    let memory = Tensor::zeros([1, 1, 4, 4], &Device::flex());
    let system = System::outer(Transition::Identity, q.clone(), k.clone(), with_normalizer(v.clone()));
    let sums = engine::run(system, memory, Form::Auto).unwrap().0;
    let log_eta = sums.clone().narrow(3, 3, 1).log().squeeze_dim::<3>(3);
    assert!(gap(run(normalized_system(log_eta, q, k, v)), normalize(sums, 1e-12)) < 1e-5);
}

#[test]
fn views_show_the_normaliser_and_the_transition_of_the_divided_state() {
    let config = NormalizedAttentionConfig { heads: 2, eta: Eta::Exp, ..Default::default() };
    let layer = config.init(8, &mut Init::new(1, &Device::flex())).unwrap();
    assert_eq!(numbers(layer.offset.as_ref().unwrap().val()), [4.0, 9.0]);
    let x = Draw::new(4).tensor::<3>([1, 6, 8], -1.0, 1.0);
    let views = layer.views(x, Mixer::initial_state(&layer, 1)).unwrap();
    let [inverse, ratio] = &views.gates[..] else { panic!("two gates") };
    let (inverse, ratio) = (inverse.values.clone(), ratio.values.clone());
    let expected = inverse.clone().narrow(1, 1, 5) / inverse.narrow(1, 0, 5);
    assert!(gap(ratio.clone().narrow(1, 1, 5), expected) < 1e-5);
    assert!(numbers(ratio).iter().any(|&ratio| ratio > 1.0), "it may grow");
}

#[test]
fn impossible_values_are_refused() {
    let refused = |config: NormalizedAttentionConfig, field: &str| {
        let error = config.init(8, &mut Init::new(0, &Device::flex())).unwrap_err().to_string();
        assert!(error.contains(&format!("`{field}`")), "{error}");
    };
    refused(NormalizedAttentionConfig { heads: 0, ..Default::default() }, "heads");
    refused(NormalizedAttentionConfig { heads: 3, ..Default::default() }, "heads");
    refused(NormalizedAttentionConfig { key_dim: Some(0), ..Default::default() }, "key_dim");
    let cosformer = FeatureMap::Cosformer { length: 0 };
    refused(NormalizedAttentionConfig { feature_map: cosformer, ..Default::default() }, "feature_map.length");
}
