use burn::tensor::{Device, activation};

use super::*;
use crate::linear::Hgrn2Config;
use crate::system::Mixer;
use crate::testing::{Draw, error, gap, numbers};

fn layer(config: &HgrnConfig) -> Hgrn {
    config.init(6, &mut Init::new(1, &Device::flex())).unwrap()
}

/// With one channel per head, HGRN2's memory is HGRN's: a vector that is written where it is forgotten.
#[test]
fn its_core_is_that_of_hgrn2_with_heads_of_one_channel() {
    let ours = layer(&HgrnConfig { lower_bound: Some(0.3), ..Default::default() });
    let config = Hgrn2Config {
        heads: 6,
        lower_bound: Some(0.3),
        value_activation: Activation::Silu,
        ..Default::default()
    };
    let mut theirs = config.init(6, &mut Init::new(2, &Device::flex())).unwrap();
    theirs.i_proj = ours.i_proj.clone();
    theirs.f_proj = ours.f_proj.clone();
    let x = Draw::new(3).tensor::<3>([2, 12, 6], -2.0, 2.0);
    let run = |layer: &dyn Mixer| {
        let end = layer.forward(x.clone(), layer.initial_state(2), Form::Auto).unwrap().1;
        numbers(end.get::<4>(MEMORY).unwrap())
    };
    assert!(error(&run(&ours), &run(&theirs)) < 1e-5);
}

/// The turning frame is the recurrence with complex numbers.
#[test]
fn the_turning_frame_is_the_complex_recurrence() {
    let layer = layer(&HgrnConfig { complex: true, width: Some(3), ..Default::default() });
    let x = Draw::new(4).tensor::<3>([1, 9, 6], -2.0, 2.0);
    let c = numbers(activation::silu(layer.i_proj.forward(x.clone())));
    let f = numbers(activation::sigmoid(layer.f_proj.forward(x.clone())));
    let theta = numbers(layer.theta.as_ref().unwrap().val());
    let mut expected = vec![0.0; 9 * 6];
    let mut h = [(0.0, 0.0); 3];
    for t in 0..9 {
        for (n, h) in h.iter_mut().enumerate() {
            let (f, (re, im), (sin, cos)) = (f[t * 3 + n], *h, theta[n].sin_cos());
            let turned = (re * cos - im * sin, im * cos + re * sin);
            let write = |c: f64| (1.0 - f) * c;
            *h = (f * turned.0 + write(c[t * 6 + n]), f * turned.1 + write(c[t * 6 + 3 + n]));
            (expected[t * 6 + n], expected[t * 6 + 3 + n]) = *h;
        }
    }
    let h = Tensor::<3>::from_data(TensorData::new(expected, [1, 9, 6]), &Device::flex());
    let gate = activation::silu(layer.gate_proj.forward(x.clone()));
    let expected = layer.out_proj.forward(layer.norm.forward(h) * gate);
    let start = Mixer::initial_state(&layer, 1);
    assert!(gap(layer.forward(x.clone(), start.clone(), Form::Auto).unwrap().0, expected) < 1e-5);
    let spectrum = layer.views(x, start).unwrap().spectrum.unwrap();
    let moduli = numbers(spectrum.modulus());
    let twice: Vec<f64> = f.chunks(3).flat_map(|f| [f, f].concat()).collect();
    assert!(error(&moduli, &twice) < 1e-5);
    assert!(numbers(spectrum.im.unwrap()).iter().any(|im| im.abs() > 0.1));
}

#[test]
fn impossible_values_are_refused() {
    let refused = |config: HgrnConfig, field: &str| {
        let error = config.init(6, &mut Init::new(0, &Device::flex())).unwrap_err().to_string();
        assert!(error.contains(&format!("`{field}`")), "{error}");
    };
    refused(HgrnConfig { width: Some(0), ..Default::default() }, "width");
    refused(HgrnConfig { lower_bound: Some(1.0), ..Default::default() }, "lower_bound");
    refused(HgrnConfig { norm: NormConfig::Layer { eps: 0.0 }, ..Default::default() }, "norm.eps");
}
