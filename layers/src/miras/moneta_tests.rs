use super::*;
use crate::miras::{Algorithm, MemoryConfig};
use crate::system::{Form, Mixer};
use crate::{Init, Value};
use burn::tensor::{Device, Tensor};

fn input(t: usize, size: f64) -> Tensor<3> {
    Init::new(5, &Device::flex()).normal([1, t, 16], size).val().detach()
}

fn finite(x: impl Into<Value>) -> bool {
    x.into().to_f64().unwrap().iter().all(|x| x.is_finite())
}

#[test]
fn clipped_residuals_keep_the_cubic_loss_from_running_away() {
    let clipped = |clip| MirasConfig {
        heads: 2,
        head_dim: 8,
        memory: MemoryConfig::Linear,
        bias: Bias::Lp { p: 3.0, nu: Some(10.0), clip },
        retention: Retention::L2,
        algorithm: Algorithm::Gd,
        chunk: 1,
        eta_base: Some(1.0),
        ..MonetaConfig::default().0
    };
    let end = |clip| {
        let layer = clipped(clip).init(16, &mut Init::new(0, &Device::flex())).unwrap();
        let (_, state) = layer.forward(input(64, 100.0), layer.initial_state(1), Form::Auto).unwrap();
        state.get::<4>("w").unwrap()
    };
    let largest = |w: Tensor<4>| Value::from(w.abs().max()).to_f64().unwrap()[0];
    // Every step is at most η clip² per channel, on keys of length 1, with α < 1.
    let kept = end(10.0);
    assert!(finite(kept.clone()) && largest(kept) < 64.0 * 100.0);
    let lost = end(1e9);
    assert!(!finite(lost.clone()) || largest(lost) > 1e12, "this is expected to run away");
}

#[test]
fn weights_keep_their_size_through_long_silence_and_large_steps() {
    for config in [MonetaConfig::default(), MonetaConfig::paper()] {
        let literal = config == MonetaConfig::paper();
        let config = MonetaConfig(MirasConfig { heads: 2, head_dim: 8, eta_base: Some(0.3), ..config.0 });
        let layer = config.init(16, &mut Init::new(0, &Device::flex())).unwrap();
        let views = layer.views(input(200, 3.0), layer.initial_state(1)).unwrap();
        let norms = Value::from(views.memory_norm.unwrap()).to_f64().unwrap();
        assert!(norms.iter().all(|norm| norm.is_finite()), "literal {literal}");
        if !literal {
            // ν stays within 4^±2 of the start's.
            let first = norms[0];
            assert!(norms.iter().all(|norm| *norm < 300.0 * first), "{norms:?}");
        }
    }
}
