use burn::tensor::Device;

use super::*;
use crate::params;
use crate::testing::{Draw, error, gap, numbers};

fn layer(hidden: usize) -> Rwkv4 {
    let config = Rwkv4Config { hidden: Some(hidden), layer: Some(1), layers: Some(3) };
    config.init(8, &mut Init::new(5, &Device::flex())).unwrap()
}

/// The sums themselves in double precision, one exponential per pair.
fn naive(w: &[f64], u: &[f64], k: &[f64], v: &[f64]) -> Vec<f64> {
    let n = w.len();
    let mut y = vec![0.0; k.len()];
    for t in 0..k.len() / n {
        for c in 0..n {
            let score = |j: usize| match t - j {
                0 => u[c] + k[t * n + c],
                back => (back as f64 - 1.0) * w[c] + k[j * n + c],
            };
            let top = (0..=t).map(score).fold(f64::MIN, f64::max);
            let weight = |j: usize| (score(j) - top).exp();
            let above: f64 = (0..=t).map(|j| weight(j) * v[j * n + c]).sum();
            y[t * n + c] = above / (0..=t).map(weight).sum::<f64>();
        }
    }
    y
}

/// Keys whose exponentials are far beyond single precision.
#[test]
fn huge_keys_do_not_overflow() {
    let (t, n) = (37, 6);
    let mut draw = Draw::new(3);
    for size in [1.0, 300.0, 1e5] {
        let (k, v) = (draw.tensor([1, t, n], -size, size), draw.tensor([1, t, n], -1.0, 1.0));
        let (w, u) = (draw.tensor([1, 1, n], -2.0, -0.01), draw.tensor([1, 1, n], -1.0, 1.0));
        let [k64, v64] = [&k, &v].map(|x| numbers(x.clone()));
        let expected = naive(&numbers(w.clone()), &numbers(u.clone()), &k64, &v64);
        let own = Averages { log: k.clone() + u, mean: v.clone() };
        for block in [t, 2, 5, BLOCK] {
            let start = Averages::none([1, 1, n], &k);
            let tokens = Averages { log: k.clone(), mean: v.clone() };
            let after = averages(w.clone().expand([1, t, n]), tokens, start.clone(), block);
            let y = numbers(start.delayed(&after).join(own.clone()).mean);
            // A key of 1e5 has a rounding of 4e-3 itself, which moves weights that are close.
            let limit = 1e-5f64.max(size * 1e-6);
            assert!(error(&y, &expected) < limit, "keys of {size}, blocks of {block}");
        }
    }
}

/// In single precision with huge keys, gradients stay finite.
#[test]
fn gradients_of_huge_keys_are_finite() {
    let device = Device::flex().autodiff();
    let layer = Rwkv4Config::default().init(8, &mut Init::new(5, &device)).unwrap();
    let mut named = params::parameters(&layer);
    let huge = layer.k_proj.weight.val().detach().mul_scalar(1e4).detach().require_grad();
    named.insert("k_proj.weight".into(), huge.into());
    let layer = params::assign(layer, named).unwrap();
    let x = Draw::new(1).tensor::<3>([2, 21, 8], -1.0, 1.0).autodiff().require_grad();
    let (y, _) = layer.forward(x.clone(), layer.initial_state(2), Form::Parallel).unwrap();
    let grads = y.square().sum().backward();
    let named = params::gradients(&layer, &grads);
    assert_eq!(named.len(), params::parameters(&layer).len());
    for (name, grad) in named {
        assert!(grad.to_f64().unwrap().iter().all(|g| g.is_finite()), "{name}");
    }
    assert!(numbers(x.grad(&grads).unwrap()).iter().all(|g| g.is_finite()));
}

/// The implied attention, applied to the values, gives the layer's output.
#[test]
fn the_implied_attention_is_a_softmax() {
    let layer = layer(1); // with one channel, the mean over channels is the matrix itself
    let x = Draw::new(2).tensor([2, 7, 8], -1.0, 1.0);
    let start = layer.initial_state(2);
    let attention = layer.views(x.clone(), start.clone()).unwrap().attention.unwrap();
    let rows = attention.clone().sum_dim(3);
    assert!(gap(rows.clone(), rows.ones_like()) < 1e-5);
    let [r, _, v] = layer.projected(x.clone(), &mut start.clone(), Run::default()).unwrap();
    let y = attention.squeeze_dim::<3>(1).matmul(v);
    let (expected, state) = layer.forward(x.clone(), start, Form::Recurrent).unwrap();
    assert!(gap(layer.out_proj.forward(scaled_sigmoid(r, 1.0) * y), expected) < 1e-5);
    let later = layer.views(x, state).unwrap().attention.unwrap().sum_dim(3);
    assert!(numbers(later).iter().all(|&row| row > 0.0 && row < 1.0));
}

/// The first layer of a stack forgets at other rates than the last.
#[test]
fn the_start_depends_on_the_layer() {
    let decay = |layer| {
        let config = Rwkv4Config { layer: Some(layer), layers: Some(4), ..Default::default() };
        numbers(config.init(16, &mut Init::new(0, &Device::flex())).unwrap().decay.val())
    };
    let (first, last) = (decay(0), decay(3));
    assert_eq!((first[0], last[0]), (-5.0, -5.0));
    assert!((first[15] - 3.0).abs() < 1e-6 && (last[15] - 3.0).abs() < 1e-6);
    assert!(first[8] > last[8] + 1.0, "{first:?} {last:?}");
}

#[test]
fn impossible_sizes_and_foreign_states_are_refused() {
    let init = |config: Rwkv4Config| config.init(8, &mut Init::new(0, &Device::flex()));
    assert!(init(Rwkv4Config { hidden: Some(0), ..Default::default() }).is_err());
    assert!(init(Rwkv4Config { layers: Some(0), ..Default::default() }).is_err());
    let (narrow, wide) = (layer(4), layer(6));
    let x = Draw::new(0).tensor([1, 2, 8], -1.0, 1.0);
    let error = wide.forward(x, narrow.initial_state(1), Form::Auto).unwrap_err().to_string();
    assert!(error.contains("[1, 1, 6]"), "{error}");
}
