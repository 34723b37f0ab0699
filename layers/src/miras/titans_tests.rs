use super::*;
use crate::miras::MemoryConfig;
use crate::params::{self, Named};
use crate::system::{Form, Mixer};
use crate::testing::gap;
use crate::{Init, Value};
use burn::tensor::{Device, Tensor};

fn input() -> Tensor<3> {
    Init::new(5, &Device::flex()).normal([2, 11, 8], 1.0).val().detach()
}

#[test]
fn a_momentum_that_is_lost_at_once_is_plain_descent() {
    let memory = MemoryConfig::Linear;
    let base = MirasConfig {
        heads: 2,
        head_dim: 4,
        chunk: 3,
        memory,
        eta_base: Some(0.5),
        ..TitansConfig::default().0
    };
    let device = Device::flex();
    let run = |start: f64| {
        let config = MirasConfig { algorithm: Algorithm::Momentum { start }, ..base.clone() };
        let with = TitansConfig(config).init(8, &mut Init::new(0, &device)).unwrap();
        let plain = MirasConfig { algorithm: Algorithm::Gd, ..base.clone() };
        let plain = plain.init(8, &mut Init::new(1, &device)).unwrap();
        let shared: Named =
            params::parameters(&with).into_iter().filter(|(name, _)| !name.starts_with("gates.mu")).collect();
        let plain = params::assign(plain, shared).unwrap();
        let y = with.forward(input(), with.initial_state(2), Form::Auto).unwrap().0;
        gap(y, plain.forward(input(), plain.initial_state(2), Form::Auto).unwrap().0)
    };
    assert!(run(1e-9) < 1e-6);
    assert!(run(0.9) > 1e-2);
}

#[test]
fn a_preset_takes_the_builders_fields_and_no_others() {
    let config: TitansConfig = serde_json::from_str(r#"{"heads": 2, "memory": "linear"}"#).unwrap();
    let expected = MirasConfig { heads: 2, memory: MemoryConfig::Linear, ..TitansConfig::default().0 };
    assert_eq!(config.0, expected);
    let error = serde_json::from_str::<TitansConfig>(r#"{"momentum": 0.9}"#).unwrap_err();
    assert!(error.to_string().contains("unknown field `momentum`"), "{error}");
    let text = serde_json::to_string(&config).unwrap();
    assert_eq!(serde_json::from_str::<TitansConfig>(&text).unwrap(), config);
}

#[test]
fn the_momentum_is_part_of_the_state_and_its_gate_is_shown() {
    let config = MirasConfig { heads: 2, head_dim: 4, ..TitansConfig::default().0 };
    let layer = TitansConfig(config).init(8, &mut Init::new(0, &Device::flex())).unwrap();
    let (_, state) = layer.forward(input(), layer.initial_state(2), Form::Auto).unwrap();
    let momentum = state.get::<4>("w1_momentum").unwrap();
    assert!(Value::from(momentum.abs().max()).to_f64().unwrap()[0] > 0.0);
    let names: Vec<_> = layer.views(input(), state).unwrap().gates.into_iter().map(|g| g.name).collect();
    assert_eq!(names, ["α (decay)", "η (learning rate)", "μ (momentum)", "|∇ℓ| (surprise)"]);
}
