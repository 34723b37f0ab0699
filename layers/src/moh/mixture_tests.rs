use burn::tensor::Device;

use super::*;
use crate::moh::{GateScale, RouterKind};
use crate::params;
use crate::testing::{Draw, gap, numbers};

fn init() -> Init {
    Init::new(5, &Device::flex())
}

fn small(routing: RoutingConfig) -> Moh<Attention> {
    let attention = AttentionConfig { heads: 4, ..Default::default() };
    MohConfig { attention, routing }.init(16, &mut Init::new(2, &Device::flex().autodiff())).unwrap()
}

/// With the router's maps at zero.
fn even(routing: RoutingConfig) -> Moh<Attention> {
    let layer = small(routing);
    let zero = |(name, value): (String, crate::Value)| {
        let routed = !name.starts_with("mixer.");
        let value = if routed { value.tensor::<2>(&name).unwrap().zeros_like().into() } else { value };
        (name, value)
    };
    let named = params::parameters(&layer).into_iter().map(zero).collect();
    params::assign(layer, named).unwrap()
}

#[test]
fn an_even_router_gates_by_one_and_balances_at_k() {
    let x = Draw::new(1).tensor::<3>([2, 5, 16], -1.0, 1.0);
    let routing = RoutingConfig { shared: 1, top_k: 2, balance: 0.5, ..Default::default() };
    let layer = even(routing.clone());
    // Of equal heads, the first are chosen.
    let gates = numbers(layer.route(x.clone()).gates);
    assert!(gates.chunks(4).all(|g| g.iter().zip([1.0, 1.0, 1.0, 0.0]).all(|(a, b)| (a - b).abs() < 1e-6)));
    let loss = |layer: &Moh<Attention>| numbers(layer.auxiliary_loss(x.clone()).unwrap().unwrap())[0];
    assert!((loss(&layer) - 0.5 * 2.0).abs() < 1e-6);
    let layer = even(RoutingConfig { scale: GateScale::Paper, ..routing });
    assert!((loss(&layer) - 0.5 * 2.0 / 3.0).abs() < 1e-6);
    let gates = numbers(layer.route(x.clone()).gates);
    let expected = [0.5, 0.5 / 3.0, 0.5 / 3.0, 0.0];
    assert!(gates.chunks(4).all(|g| g.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6)));
}

/// `y = Σ_i g_i H_i W_O^i`, by heads computed one at a time.
#[test]
fn the_output_is_the_weighted_sum_of_heads() {
    let x = Draw::new(3).tensor::<3>([2, 6, 16], -1.0, 1.0);
    let layer = small(RoutingConfig { shared: 2, top_k: 1, ..Default::default() });
    let (y, state) = layer.forward(x.clone(), layer.initial_state(2), Form::Auto).unwrap();
    let run = Run { form: Form::Auto, lengths: None };
    let (heads, _) = layer.mixer.run_heads(x.clone(), layer.initial_state(2), run).unwrap();
    let gates = layer.views(x.clone(), layer.initial_state(2)).unwrap().router.unwrap();
    let weight = layer.mixer.out_proj.weight.val();
    let mut sum = y.zeros_like();
    for head in 0..4 {
        let values = heads.clone().narrow(2, head, 1).squeeze_dim::<3>(2);
        let rows = weight.clone().narrow(0, 4 * head, 4).unsqueeze::<3>();
        sum = sum + values.matmul(rows) * gates.clone().narrow(2, head, 1);
    }
    assert!(gap(sum, y) < 1e-6);
    // Three heads at most, yet the state is attention's own, of all heads.
    assert!(numbers(gates).chunks(4).all(|g| g.iter().filter(|&&g| g != 0.0).count() == 3));
    let (_, plain) = layer.mixer.forward(x, layer.initial_state(2), Form::Auto).unwrap();
    assert_eq!(state.bytes(), plain.bytes());
}

/// Three routed heads: of two, the spread normalises the difference away and probabilities are constant.
#[test]
fn straight_through_changes_gradients_and_not_values() {
    let x = Draw::new(4).tensor::<3>([1, 6, 16], -1.0, 1.0);
    let read = |straight_through| {
        let router = RouterKind::QueryNorm { straight_through };
        let layer = small(RoutingConfig { shared: 1, top_k: 1, router, ..Default::default() });
        let (y, _) = layer.forward(x.clone(), layer.initial_state(1), Form::Auto).unwrap();
        let grads = y.clone().sum().backward();
        (y, params::gradients(&layer, &grads)["mixer.q_proj.weight"].tensor::<2>("q").unwrap())
    };
    let ((soft, with), (hard, without)) = (read(true), read(false));
    assert!(gap(soft, hard) < 1e-6);
    assert!(gap(with, without) > 1e-3);
}

#[test]
fn impossible_routings_are_refused() {
    let attention = AttentionConfig { heads: 4, ..Default::default() };
    for (shared, top_k) in [(5, 0), (2, 3), (2, 0), (4, 1)] {
        let routing = RoutingConfig { shared, top_k, ..Default::default() };
        let config = MohConfig { attention: attention.clone(), routing };
        let error = config.init(16, &mut init()).unwrap_err().to_string();
        assert!(error.contains(if shared > 4 { "`shared` = 5" } else { "`top_k`" }), "{error}");
    }
}
