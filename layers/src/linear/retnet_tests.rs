use burn::tensor::Device;

use super::*;
use crate::linear::GlaConfig;
use crate::params;
use crate::system::Mixer;
use crate::testing::{Draw, gap, numbers};

fn layer(config: &RetNetConfig) -> RetNet {
    config.init(8, &mut Init::new(1, &Device::flex())).unwrap()
}

#[test]
fn decays_are_those_of_the_paper() {
    let gamma: Vec<f64> = retention_decays(3).into_iter().map(f64::exp).collect();
    for (gamma, exact) in gamma.into_iter().zip([31.0 / 32.0, 63.0 / 64.0, 127.0 / 128.0]) {
        assert!((gamma - exact).abs() < 1e-15);
    }
}

/// GLA whose gates do not see the input and equal `γ` is a retention without rotation.
#[test]
fn it_is_gla_with_constant_gates() {
    let device = Device::flex();
    let config = RetNetConfig {
        heads: 2,
        value_dim: Some(6),
        rotation: Rotation::None,
        norm_weight: true,
        ..Default::default()
    };
    let retnet = layer(&config);
    let config = GlaConfig {
        heads: 2,
        key_dim: Some(4),
        value_dim: Some(6),
        gate_rank: 1,
        gate_temperature: 1.0,
        norm_eps: 1e-6,
        ..Default::default()
    };
    let gla = config.init(8, &mut Init::new(2, &device)).unwrap();
    let init = Init::new(0, &device);
    let mut named = params::parameters(&retnet);
    named.insert("decay_down.weight".into(), init.constant::<2>([8, 1], 1.0).val().into());
    named.insert("decay_up.weight".into(), init.constant::<2>([1, 8], 0.0).val().into());
    // sigmoid(b) = γ for b = log(γ / (1 - γ)) = log(2^{5+h} - 1)
    let bias = (0..8).map(|channel| ((1 << (5 + channel / 4)) as f32 - 1.0).ln()).collect();
    named.insert("decay_up.bias".into(), init.param::<1>([8], bias).val().into());
    let gla = params::assign(gla, named).unwrap();
    let x = Draw::new(3).tensor::<3>([2, 13, 8], -1.0, 1.0);
    let (a, a_end) = retnet.forward(x.clone(), Mixer::initial_state(&retnet, 2), Form::Auto).unwrap();
    let (b, b_end) = gla.forward(x, Mixer::initial_state(&gla, 2), Form::Auto).unwrap();
    assert!(gap(a, b) < 1e-5);
    assert!(gap::<4>(a_end.get(MEMORY).unwrap(), b_end.get(MEMORY).unwrap()) < 1e-5);
}

/// The head norm undoes the division of scores, but for its epsilon.
#[test]
fn dividing_the_scores_changes_nothing_but_the_epsilon() {
    let plain = RetNetConfig { heads: 2, norm_eps: 1e-12, ..Default::default() };
    let divided = RetNetConfig { score_norm: true, ..plain.clone() };
    let x = Draw::new(4).tensor::<3>([2, 40, 8], -3.0, 3.0);
    let run = |config: &RetNetConfig| {
        let layer = layer(config);
        let state = Mixer::initial_state(&layer, 2);
        layer.forward(x.clone(), state, Form::Auto).unwrap().0
    };
    assert!(gap(run(&divided), run(&plain)) < 1e-5);
    let coarse = |config: RetNetConfig| run(&RetNetConfig { norm_eps: 0.1, ..config });
    assert!(gap(coarse(divided), coarse(plain)) > 1e-2);
}

/// `√Γ` from the position is the root of the sum of a row of decays.
#[test]
fn row_masses_follow_from_the_position() {
    let v = Tensor::<4>::zeros([2, 2, 3, 1], &Device::flex());
    let found = numbers(roots(&retention_decays(2), &[0, 5], &v));
    assert!(
        numbers(roots(&[0.0, 0.0], &[3], &v))
            .iter()
            .zip([4.0_f64, 5.0, 6.0])
            .all(|(a, b)| (a - b.sqrt()).abs() < 1e-6)
    );
    let mut at = found.into_iter();
    for start in [0, 5] {
        for gamma in [31.0_f64 / 32.0, 63.0 / 64.0] {
            for position in start..start + 3 {
                let sum: f64 = (0..=position).map(|age| gamma.powi(age)).sum();
                assert!((at.next().unwrap() - sum.sqrt()).abs() < 1e-6);
            }
        }
    }
}

/// Under the division the implied attention is what the layer applies to its values.
#[test]
fn the_implied_attention_is_divided_too() {
    let config = RetNetConfig { heads: 2, score_norm: true, value_dim: Some(4), ..Default::default() };
    let layer = layer(&config);
    let x = Draw::new(6).tensor::<3>([1, 9, 8], -3.0, 3.0);
    let state = Mixer::initial_state(&layer, 1);
    let attention = layer.views(x.clone(), state.clone()).unwrap().attention.unwrap();
    let sums = numbers(attention.clone().sum_dim(3));
    assert!(sums.iter().all(|sum| sum.abs() < 1.0 + 1e-5), "{sums:?}");
    let [_, _, v] = layer.qkv.forward(x.clone(), &mut state.clone(), Run::default()).unwrap();
    let gate = layer.readout.gate_proj.as_ref().map(|map| map.forward(x.clone()));
    let y = layer.readout.forward(attention.matmul(v), layer.readout.gate_of(gate));
    let (expected, _) = layer.forward(x, state, Form::Recurrent).unwrap();
    assert!(gap(y, expected) < 1e-5);
}

#[test]
fn impossible_sizes_are_refused() {
    let refused = |config: RetNetConfig, field: &str| {
        let error = config.init(8, &mut Init::new(0, &Device::flex())).unwrap_err().to_string();
        assert!(error.contains(&format!("`{field}`")), "{error}");
    };
    refused(RetNetConfig { heads: 0, ..Default::default() }, "heads");
    refused(RetNetConfig { key_dim: Some(3), ..Default::default() }, "key_dim");
    refused(RetNetConfig { rotation: Rotation::Rope { base: 0.0 }, ..Default::default() }, "rotation.base");
    refused(RetNetConfig { norm_eps: 0.0, ..Default::default() }, "norm_eps");
    refused(RetNetConfig { kv_heads: Some(3), ..Default::default() }, "kv_heads");
    let odd = RetNetConfig { key_dim: Some(3), rotation: Rotation::None, ..Default::default() };
    assert!(odd.init(8, &mut Init::new(0, &Device::flex())).is_ok());
}
