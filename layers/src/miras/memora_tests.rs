use super::*;
use crate::miras::{Learner, MemoryConfig};
use crate::params::{self, Named};
use crate::system::{Form, Mixer};
use crate::testing::{error, gap, numbers};
use crate::{Init, Value};
use burn::tensor::{Device, Tensor};

fn small() -> MirasConfig {
    MirasConfig { heads: 2, head_dim: 4, chunk: 4, ..MemoraConfig::default().0 }
}

fn input(t: usize, size: f64) -> Tensor<3> {
    Init::new(5, &Device::flex()).normal([2, t, 8], size).val().detach()
}

#[test]
fn weights_stay_on_the_simplex_however_large_the_steps() {
    let config = MirasConfig { eta_base: Some(50.0), ..small() };
    let layer = MemoraConfig(config).init(8, &mut Init::new(0, &Device::flex())).unwrap();
    let (y, state) = layer.forward(input(101, 5.0), layer.initial_state(2), Form::Auto).unwrap();
    assert!(numbers(y).iter().all(|y| y.is_finite()));
    let Learner::Descent(memory) = &layer.memory else { panic!("no descent") };
    let none = |r: Tensor<4>, _: Tensor<4>, _: Tensor<4>| r;
    let rule = layer.rule(memory, &none);
    let weights = layer.fast(memory, &state).unwrap().weights(&rule.map);
    for (w, sums) in weights.into_iter().zip(&rule.map.sums) {
        assert!(numbers(w.clone()).iter().all(|w| *w >= 0.0));
        let [b, h, rows, _] = w.dims();
        assert!(gap(w.sum_dim(3), sums.clone().expand([b, h, rows, 1])) < 1e-5);
    }
}

#[test]
fn rows_start_with_the_sum_of_moduli_of_small_weights() {
    let layer = MemoraConfig(small()).init(8, &mut Init::new(0, &Device::flex())).unwrap();
    let sums: Vec<f64> =
        layer.log_sums.iter().flat_map(|c| Value::from(c.val().exp()).to_f64().unwrap()).collect();
    let expected = 0.02 * (2.0 / std::f64::consts::PI).sqrt();
    // W1 has 16 columns, W2 has 4.
    assert!(error(&sums, &[16.0, 16.0, 4.0, 4.0].map(|cols| cols * expected)) < 1e-5);
}

#[test]
fn with_chunks_of_two_the_lag_token_is_plain_descent() {
    let memory = MemoryConfig::Linear;
    let config = |chunk, lag_token| MirasConfig { memory, chunk, lag_token, eta_base: Some(2.0), ..small() };
    let device = Device::flex();
    let run = |config: MirasConfig| {
        let layer = MemoraConfig(config).init(8, &mut Init::new(0, &device)).unwrap();
        layer.forward(input(9, 1.0), layer.initial_state(2), Form::Auto).unwrap().0
    };
    assert!(gap(run(config(2, true)), run(config(1, false))) < 1e-6);
    assert!(gap(run(config(2, false)), run(config(1, false))) > 1e-5);
}

#[test]
fn the_sum_of_a_row_is_learned() {
    let device = Device::flex().autodiff();
    let layer = MemoraConfig(small()).init(8, &mut Init::new(0, &device)).unwrap();
    let x = Tensor::from_inner(input(6, 1.0));
    let (y, _) = layer.forward(x, layer.initial_state(2), Form::Auto).unwrap();
    let found: Named = params::gradients(&layer, &y.square().sum().backward());
    for name in params::parameters(&layer).keys() {
        let grad = found.get(name).unwrap_or_else(|| panic!("no gradient for {name}"));
        assert!(grad.to_f64().unwrap().iter().any(|g| *g != 0.0), "{name}");
    }
}
