use burn::tensor::Device;

use super::*;
use crate::system::Mixer;
use crate::testing::{Draw, numbers};

#[test]
fn decays_stay_within_their_bounds() {
    let config = GlaConfig { heads: 2, min_log_decay: Some(-0.02), ..Default::default() };
    let layer = config.init(8, &mut Init::new(1, &Device::flex())).unwrap();
    let x = Draw::new(2).tensor::<3>([2, 9, 8], -20.0, 20.0);
    let views = layer.views(x, Mixer::initial_state(&layer, 2)).unwrap();
    let decays = numbers(views.spectrum.unwrap().re);
    let least = (-0.02_f64).exp() - 1e-6;
    assert!(decays.iter().all(|&a| (least..=1.0).contains(&a)));
    assert!(decays.iter().any(|&a| a < least + 1e-5), "the bound is never reached");
    assert_eq!(views.gates.len(), 2);
}

/// Two query heads that share keys, values and decays see the same memory.
#[test]
fn grouped_heads_share_their_memory() {
    let config = GlaConfig { heads: 4, kv_heads: Some(2), conv_kernel: 3, ..Default::default() };
    let layer = config.init(16, &mut Init::new(3, &Device::flex())).unwrap();
    let x = Draw::new(4).tensor::<3>([1, 6, 16], -1.0, 1.0);
    let (_, end) = layer.forward(x, Mixer::initial_state(&layer, 1), Form::Auto).unwrap();
    let memory = end.get::<4>("memory").unwrap();
    let head = |h| numbers(memory.clone().narrow(1, h, 1));
    assert_eq!(head(0), head(1));
    assert_eq!(head(2), head(3));
    assert_ne!(head(1), head(2));
}

#[test]
fn impossible_sizes_are_refused() {
    let refused = |config: GlaConfig, field: &str| {
        let error = config.init(8, &mut Init::new(0, &Device::flex())).unwrap_err().to_string();
        assert!(error.contains(&format!("`{field}`")), "{error}");
    };
    refused(GlaConfig { heads: 0, ..Default::default() }, "heads");
    refused(GlaConfig { heads: 8, ..Default::default() }, "heads");
    refused(GlaConfig { kv_heads: Some(3), ..Default::default() }, "kv_heads");
    refused(GlaConfig { key_dim: Some(0), ..Default::default() }, "key_dim");
    refused(GlaConfig { gate_rank: 0, ..Default::default() }, "gate_rank");
    refused(GlaConfig { gate_temperature: 0.0, ..Default::default() }, "gate_temperature");
    refused(GlaConfig { min_log_decay: Some(0.1), ..Default::default() }, "min_log_decay");
    refused(GlaConfig { norm_eps: 0.0, ..Default::default() }, "norm_eps");
}
