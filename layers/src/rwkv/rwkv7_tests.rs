use burn::tensor::Device;

use super::*;
use crate::system::Io;
use crate::testing::{Draw, gap, numbers};

fn config() -> Rwkv7Config {
    Rwkv7Config {
        heads: 2,
        head_dim: 4,
        decay_rank: Some(3),
        value_rank: Some(3),
        gate_rank: Some(5),
        ..Default::default()
    }
}

fn layer() -> Rwkv7 {
    config().init(8, &mut Init::new(1, &Device::flex())).unwrap()
}

/// With `a = 0` nothing is replaced: the memory only fades, channel by channel.
#[test]
fn without_replacement_it_is_a_diagonal_decay() {
    let mut layer = layer();
    layer.rate.up.bias = Some(Init::new(0, &Device::flex()).constant([8], -60.0));
    let x = Draw::new(2).tensor([2, 11, 8], -1.0, 1.0);
    let mut state = Mixer::initial_state(&layer, 2);
    let (system, output) = layer.system(x.clone(), &mut state, Run::default()).unwrap();
    let (Io::Outer { q, k, v }, Transition::Householder { log_d, .. }) = (system.io, system.transition)
    else {
        panic!("another system")
    };
    let fading = System::outer(Transition::Diagonal { log_a: log_d }, q, k, v);
    let (y, memory) = engine::run(fading, state.get(MEMORY).unwrap(), Form::Recurrent).unwrap();
    let (expected, end) =
        layer.forward(x, Mixer::initial_state(&layer, 2), Form::Chunked { size: 4 }).unwrap();
    assert!(gap(layer.readout(y, output), expected) < 1e-5);
    assert!(gap(memory, end.get(MEMORY).unwrap()) < 1e-5);
}

/// Decays stay in `(e^{-e^{-1/2}}, 1)` and `κ` has length 1.
#[test]
fn decays_are_bounded_and_keys_are_directions() {
    let layer = layer();
    let x = Draw::new(4).tensor([1, 9, 8], -50.0, 50.0);
    let (system, _) = layer.system(x, &mut Mixer::initial_state(&layer, 1), Run::default()).unwrap();
    let Transition::Householder { log_d, a, .. } = system.transition else { panic!("another system") };
    assert!(numbers(log_d).iter().all(|&g| g <= 0.0 && g > -0.6066));
    let lengths = a.square().sum_dim(3);
    assert!(gap(lengths.clone(), lengths.ones_like()) < 1e-5);
}

/// A stack hands the first layer's value on; splits and padding-free forms agree there too.
#[test]
fn later_layers_mix_the_first_value_into_their_own() {
    let init = &mut Init::new(7, &Device::flex());
    let (first, later) = (layer(), config().init_later(8, init).unwrap());
    let x = Draw::new(5).tensor([2, 9, 8], -1.0, 1.0);
    let start = |layer: &Rwkv7| Mixer::initial_state(layer, 2);
    let stack = |x: Tensor<3>, states: [State; 2], form| {
        let [one, two] = states;
        let (y, one, v) = first.forward_after(x, one, form, None).unwrap();
        let (y, two, passed) = later.forward_after(y, two, form, Some(v.clone())).unwrap();
        assert_eq!(gap(v, passed), 0.0);
        (y, [one, two])
    };
    let (whole, _) = stack(x.clone(), [start(&first), start(&later)], Form::Parallel);
    let (head, states) = stack(x.clone().narrow(1, 0, 4), [start(&first), start(&later)], Form::Recurrent);
    let (tail, states) = stack(x.clone().narrow(1, 4, 5), states, Form::Chunked { size: 3 });
    assert_eq!(states[1].positions(), [9, 9]);
    assert!(gap(Tensor::cat(vec![head, tail], 1), whole.clone()) < 1e-5);

    // A first layer is the plain mixer; where a later one takes all of the first value, its own does not count.
    let (plain, _) = first.forward(x.clone(), start(&first), Form::Auto).unwrap();
    let (same, _, v) = first.forward_after(x.clone(), start(&first), Form::Auto, None).unwrap();
    assert_eq!(gap(plain, same), 0.0);
    let mut all = later.clone();
    if let Some(share) = &mut all.first {
        share.up.bias = Some(init.constant([8], 60.0));
    }
    let (expected, ..) = all.forward_after(x.clone(), start(&all), Form::Auto, Some(v.clone())).unwrap();
    all.v_proj = init.linear(8, 8);
    let (other, ..) = all.forward_after(x.clone(), start(&all), Form::Auto, Some(v.clone())).unwrap();
    assert!(gap(other, expected) < 1e-5);

    let reason = |result: Result<(Tensor<3>, State, Tensor<4>)>| result.unwrap_err().to_string();
    assert!(
        reason(later.forward_after(x.clone(), start(&later), Form::Auto, None)).contains("forward_after")
    );
    assert!(later.forward(x.clone(), start(&later), Form::Auto).is_err());
    let short = v.clone().narrow(2, 0, 3);
    assert!(reason(later.forward_after(x.clone(), start(&later), Form::Auto, Some(short))).contains("first"));
    assert!(reason(first.forward_after(x, start(&first), Form::Auto, Some(v))).contains("init_later"));
}

#[test]
fn impossible_sizes_are_refused() {
    let init = |config: Rwkv7Config| config.init(8, &mut Init::new(0, &Device::flex()));
    assert!(init(Rwkv7Config { heads: 0, ..config() }).is_err());
    assert!(init(Rwkv7Config { head_dim: 0, ..config() }).is_err());
    assert!(init(Rwkv7Config { decay_rank: Some(0), ..config() }).is_err());
    assert!(init(Rwkv7Config { gate_rank: Some(0), ..config() }).is_err());
    assert!(init(Rwkv7Config { norm_eps: -1.0, ..config() }).is_err());
    assert_eq!((rank(2.5, 1024), rank(5.0, 1024), rank(2.5, 16)), (96, 160, 32));
}
