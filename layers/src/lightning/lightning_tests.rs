use burn::tensor::Device;

use super::*;
use crate::system::{Mixer, engine};
use crate::testing::{Draw, gap};

const FORMS: [Form; 5] =
    [Form::Recurrent, Form::Chunked { size: 3 }, Form::Chunked { size: 8 }, Form::Parallel, Form::Auto];

fn close(a: &[f64], b: &[f64], tolerance: f64) {
    assert_eq!(a.len(), b.len());
    assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() <= tolerance), "{a:?} is not {b:?}");
}

#[test]
fn alibi_slopes_are_those_of_the_released_code() {
    let first = slopes(&SlopeKind::Alibi, 8, 0, 24).unwrap();
    let lambda: Vec<f64> = first.iter().map(|s| (-s).exp()).collect();
    close(&[lambda[0], lambda[7]], &[0.607, 0.996], 5e-4);
    // the last layer hardly decays
    let last = slopes(&SlopeKind::Alibi, 8, 23, 24).unwrap();
    close(&[last[0]], &[0.5e-5], 1e-12);
    // six heads: those of four, then every other one of eight; in the only layer of a model
    let six = slopes(&SlopeKind::Alibi, 6, 0, 1).unwrap();
    let expected = [0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125].map(|s| s * (1.0 + 1e-5));
    close(&six, &expected, 1e-15);
    // golden `tnl_attention__h4`: layer 1 of 4
    let golden = [0.16666916, 0.04166729, 0.01041682, 0.00260421];
    close(&slopes(&SlopeKind::Alibi, 4, 1, 4).unwrap(), &golden, 1e-8);
}

#[test]
fn minimax_slopes_differ_from_alibi_in_the_last_layer_and_off_powers_of_two() {
    let both = |layer| {
        let of = |kind| slopes(&kind, 8, layer, 80).unwrap();
        (of(SlopeKind::Alibi), of(SlopeKind::MiniMax))
    };
    let (a, b) = both(40);
    close(&a, &b, 5e-8);
    let (a, b) = both(79);
    close(&[a[0] / 0.5, b[0] / 0.5], &[1e-5, 1.0127e-5], 5e-10);
    let six = slopes(&SlopeKind::MiniMax, 6, 0, 1).unwrap();
    close(&six[..1], &[(-8.0_f64 / 6.0).exp2() * (1.0 + 1e-5)], 1e-12);
    // goldens `minimax_lightning__*`: layer 0 of 2 and 2 of 4
    let golden = [0.2500025, 0.06250063, 0.01562516, 0.00390629];
    close(&slopes(&SlopeKind::MiniMax, 4, 0, 2).unwrap(), &golden, 1e-8);
    let golden = [0.08333639, 0.0208341, 0.00520852, 0.00130213];
    close(&slopes(&SlopeKind::MiniMax, 4, 2, 4).unwrap(), &golden, 1e-8);
}

#[test]
fn paper_slopes_are_linear_in_the_head() {
    let span = |h0| {
        let s = slopes(&SlopeKind::PaperLinear { h0 }, 8, 0, 24).unwrap();
        [(-s[0]).exp(), (-s[7]).exp()]
    };
    close(&span(0), &[1.0, 9e-4], 2e-5);
    close(&span(1), &[0.368, 3.35e-4], 2e-4);
    let half = slopes(&SlopeKind::PaperLinear { h0: 1 }, 8, 12, 24).unwrap();
    close(&half[..2], &[0.5, 1.0], 1e-12);
    close(&slopes(&SlopeKind::None, 3, 0, 1).unwrap(), &[0.0; 3], 0.0);
}

#[test]
fn wrong_slopes_and_sizes_are_errors_that_name_the_field() {
    let error = |config: LightningConfig, d| {
        config.init(d, &mut Init::new(0, &Device::flex())).expect_err("must fail").to_string()
    };
    let tnl = LightningConfig::tnl(2);
    let fixed = |values: &[f64]| LightningConfig {
        slopes: SlopeKind::Fixed { values: values.to_vec() },
        ..tnl.clone()
    };
    let cases = [
        (fixed(&[0.1, -0.1]), "slopes.values` = -0.1"),
        (fixed(&[0.1, f64::NAN]), "slopes.values` = NaN"),
        (fixed(&[0.1]), "must be 2 numbers"),
        (LightningConfig { layer: Some(3), layers: Some(3), ..tnl.clone() }, "`layer` = 3: must be below"),
        (LightningConfig { layer: Some(1), ..tnl.clone() }, "must be below `layers` = 1"),
        (LightningConfig { heads: 0, ..tnl.clone() }, "`heads` = 0"),
        (LightningConfig { heads: 3, ..tnl.clone() }, "must divide d_model = 8"),
        (LightningConfig { head_dim: Some(0), ..tnl.clone() }, "`head_dim` = 0"),
        (LightningConfig { scale: f64::INFINITY, ..tnl.clone() }, "`scale`"),
        (LightningConfig { norm: LightningNorm::Srms { eps: 0.0 }, ..tnl.clone() }, "`norm.eps`"),
        (LightningConfig { gate: LightningGate::LowRank { rank: 0 }, ..tnl.clone() }, "`gate.rank`"),
        (LightningConfig { slopes: SlopeKind::PaperLinear { h0: 2 }, ..tnl.clone() }, "`slopes.h0`"),
    ];
    for (config, part) in cases {
        let message = error(config, 8);
        assert!(message.contains(part), "{message}");
    }
    assert!(slopes(&SlopeKind::None, 0, 0, 1).is_err());
    let x = || Draw::new(0).tensor([1, 2, 3, 4], -1.0, 1.0);
    assert!(lightning_system(&[0.1], x(), x(), x()).is_err());
}

#[test]
fn a_configuration_survives_json() {
    let config = LightningConfig {
        slopes: SlopeKind::PaperLinear { h0: 1 },
        gate: LightningGate::LowRank { rank: 3 },
        ..LightningConfig::minimax(2, 8)
    };
    let json = serde_json::to_string(&config).unwrap();
    assert_eq!(serde_json::from_str::<LightningConfig>(&json).unwrap(), config);
    assert!(serde_json::from_str::<LightningConfig>(r#"{"slope": "alibi"}"#).is_err());
}

/// Right padding must not decay the memory (flash-linear-attention #1272).
#[test]
fn padding_does_not_decay_the_memory() {
    let config = LightningConfig { slopes: SlopeKind::PaperLinear { h0: 1 }, ..LightningConfig::tnl(2) };
    let layer = config.init(8, &mut Init::new(1, &Device::flex())).unwrap();
    let x = Draw::new(2).tensor([1, 9, 8], -1.0, 1.0);
    let start = || Mixer::initial_state(&layer, 1);
    for form in FORMS {
        let (_, short) = layer.forward(x.clone().narrow(1, 0, 6), start(), form).unwrap();
        let mask = crate::system::Mask::from_lengths(&[6], 9);
        let (_, padded) = layer.forward_masked(x.clone(), start(), form, &mask).unwrap();
        assert!(gap(short.get::<4>(MEMORY).unwrap(), padded.get::<4>(MEMORY).unwrap()) < 1e-6);
    }
}

/// Steep, hardly any and no decay over thousands of tokens stay finite and agree with the recurrence.
#[test]
fn long_sequences_stay_exact() {
    let t = 2048;
    let mut draw = Draw::new(3);
    let [q, k, v] = [0, 1, 2].map(|_| draw.tensor([1, 3, t, 4], -1.0, 1.0));
    let run = |form| {
        let slopes = [1.0, 0.5e-5, 0.0];
        let system = lightning_system(&slopes, q.clone(), k.clone(), v.clone()).unwrap();
        engine::run(system, Tensor::zeros([1, 3, 4, 4], &Device::flex()), form).unwrap()
    };
    let (y, memory) = run(Form::Recurrent);
    for form in [Form::Auto, Form::Chunked { size: 100 }] {
        let (other, last) = run(form);
        assert!(gap(other, y.clone()) < 1e-5);
        assert!(gap(last, memory.clone()) < 1e-5);
    }
}

/// Reading in parts, with rows at different positions, is reading at once: positions come from the state.
#[test]
fn positions_continue_where_the_state_is() {
    let config = LightningConfig { lrpe: LrpeLayers::First, ..LightningConfig::tnl(2) };
    let layer = config.init(8, &mut Init::new(4, &Device::flex())).unwrap();
    assert_eq!(Mixer::initial_state(&layer, 1).get::<4>(MEMORY).unwrap().dims(), [1, 2, 8, 4]);
    let second = LightningConfig { layer: Some(1), layers: Some(2), ..config };
    assert!(second.init(8, &mut Init::new(4, &Device::flex())).unwrap().lrpe.is_none());
    let x = Draw::new(5).tensor([2, 11, 8], -1.0, 1.0);
    let start = || Mixer::initial_state(&layer, 2);
    let (whole, _) = layer.forward(x.clone(), start(), Form::Recurrent).unwrap();
    for form in FORMS {
        // Row 0 reads four tokens first, row 1 seven; then both the same number again.
        let mask = crate::system::Mask::from_lengths(&[4, 7], 7);
        let (_, state) = layer.forward_masked(x.clone().narrow(1, 0, 7), start(), form, &mask).unwrap();
        let row = |row: usize, from: usize| x.clone().narrow(0, row, 1).narrow(1, from, 4);
        let rest = Tensor::cat(vec![row(0, 4), row(1, 7)], 0);
        let (y, _) = layer.forward(rest, state, form).unwrap();
        for (i, from) in [(0, 4), (1, 7)] {
            let expected = whole.clone().narrow(0, i, 1).narrow(1, from, 4);
            assert!(gap(y.clone().narrow(0, i, 1), expected) < 1e-5, "{form}, row {i}");
        }
    }
}

/// Steps at `s = 0.5` go on long after `λ^{-t}` has left the range of `f32`.
#[test]
fn steps_are_robust_where_negative_powers_overflow() {
    assert!((0.5f32 * 178.0).exp().is_infinite());
    let config = LightningConfig {
        slopes: SlopeKind::Fixed { values: vec![0.5, 10.0] },
        lrpe: LrpeLayers::All,
        ..LightningConfig::tnl(2)
    };
    let layer = config.init(8, &mut Init::new(6, &Device::flex())).unwrap();
    let x = Draw::new(7).tensor([1, 300, 8], -1.0, 1.0);
    let start = || Mixer::initial_state(&layer, 1);
    let (y, last) = layer.forward(x.clone(), start(), Form::Auto).unwrap();
    let (_, mut state) = layer.forward(x.clone().narrow(1, 0, 177), start(), Form::Auto).unwrap();
    for t in 177..300 {
        let (step, next) = layer.step(x.clone().narrow(1, t, 1).squeeze_dim(1), state).unwrap();
        state = next;
        assert!(gap(step, y.clone().narrow(1, t, 1).squeeze_dim(1)) < 1e-5, "token {t}");
    }
    assert!(gap(state.get::<4>(MEMORY).unwrap(), last.get::<4>(MEMORY).unwrap()) < 1e-5);
}
