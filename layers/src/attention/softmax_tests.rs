use burn::tensor::Device;

use super::*;
use crate::Value;
use crate::system::{Lengths, Mask};
use crate::testing::{Draw, gap, numbers};

const FORMS: [Form; 5] =
    [Form::Recurrent, Form::Chunked { size: 1 }, Form::Chunked { size: 5 }, Form::Parallel, Form::Auto];

fn build(config: &AttentionConfig, d_model: usize) -> Attention {
    config.init(d_model, &mut Init::new(3, &Device::flex())).unwrap()
}

fn grouped() -> AttentionConfig {
    AttentionConfig { heads: 4, kv_heads: Some(2), ..Default::default() }
}

fn variants() -> Vec<AttentionConfig> {
    vec![
        AttentionConfig { heads: 2, ..Default::default() },
        AttentionConfig { window: Some(1), ..grouped() },
        AttentionConfig { window: Some(4), output_gate: true, ..grouped() },
        AttentionConfig { window: Some(64), softcap: Some(3.0), ..grouped() },
    ]
}

#[test]
fn blocks_of_queries_change_nothing() {
    let x = Draw::new(1).tensor::<3>([2, 600, 16], -1.0, 1.0);
    for config in variants() {
        let layer = build(&config, 16);
        let read = |form| layer.forward(x.clone(), layer.initial_state(2), form).unwrap().0;
        let whole = read(Form::Parallel);
        for form in [Form::Auto, Form::Chunked { size: 7 }] {
            assert!(gap(read(form), whole.clone()) < 1e-5, "{form} {config:?}");
        }
    }
}

/// Rows of different lengths continue from one cache as each would from its own.
#[test]
fn ragged_rows_continue_as_if_alone() {
    let lengths = [3, 9, 0, 1];
    let mut draw = Draw::new(2);
    let first = draw.tensor::<3>([4, 9, 16], -1.0, 1.0);
    let second = draw.tensor::<3>([4, 6, 16], -1.0, 1.0);
    let mask = Mask::from_lengths(&lengths, 9);
    let later = Mask::from_lengths(&[6, 2, 5, 0], 6);
    for config in variants() {
        let layer = build(&config, 16);
        for form in FORMS {
            let start = layer.initial_state(4);
            let (_, state) = layer.forward_masked(first.clone(), start, form, &mask).unwrap();
            let (second_y, end) = layer.forward_masked(second.clone(), state, form, &later).unwrap();
            assert_eq!(end.positions(), [9, 11, 5, 1]);
            let (third, end) = layer.step(second.clone().narrow(1, 0, 1).squeeze_dim(1), end).unwrap();
            for (row, &length) in lengths.iter().enumerate() {
                let own = |x: &Tensor<3>, length| x.clone().narrow(0, row, 1).narrow(1, 0, length);
                let mut state = layer.initial_state(1);
                if length > 0 {
                    state = layer.forward(own(&first, length), state, Form::Parallel).unwrap().1;
                }
                let length = later.lengths().0[row];
                if length > 0 {
                    let (y, next) = layer.forward(own(&second, length), state, Form::Parallel).unwrap();
                    assert!(gap(own(&second_y, length), y) < 1e-5, "{form}, row {row}, {config:?}");
                    state = next;
                }
                let (y, alone) = layer.step(own(&second, 1).squeeze_dim(1), state).unwrap();
                assert!(gap(third.clone().narrow(0, row, 1), y) < 1e-5, "{form}, row {row}, {config:?}");
                same(&end.select(&[row]).unwrap(), &alone);
            }
        }
    }
}

fn same(a: &State, b: &State) {
    assert_eq!((a.positions(), a.slots().count()), (b.positions(), b.slots().count()));
    for ((name, a, _), (_, b, _)) in a.slots().zip(b.slots()) {
        let (a, b): (Tensor<4>, Tensor<4>) = (a.tensor(name).unwrap(), b.tensor(name).unwrap());
        assert!(gap(a, b) < 1e-5, "{name}");
    }
}

#[test]
fn a_cache_can_be_cut_back_while_nothing_was_evicted() {
    let x = Draw::new(4).tensor::<3>([2, 12, 16], -1.0, 1.0);
    let layer = build(&grouped(), 16);
    let read =
        |from, to, state| layer.forward(x.clone().narrow(1, from, to - from), state, Form::Auto).unwrap();
    let (_, state) = read(0, 12, layer.initial_state(2));
    same(&state.truncate(5).unwrap(), &read(0, 5, layer.initial_state(2)).1);
    let nothing = state.truncate(0).unwrap();
    assert_eq!((nothing.bytes(), nothing.positions()), (0, &[0, 0][..]));
    assert!(state.truncate(13).is_err());
    // A cache longer than a row's history: the short row is cut at its own end.
    let lengths = Lengths(vec![4, 12]);
    let run = Run { form: Form::Auto, lengths: Some(&lengths) };
    let (_, mut ragged) = layer.run(x.clone(), layer.initial_state(2), run).unwrap();
    ragged.advance(&lengths.0);
    assert!(ragged.truncate(3).is_err());
    let short = ragged.select(&[0]).unwrap().truncate(3).unwrap();
    same(&short, &read(0, 3, layer.initial_state(2)).1.select(&[0]).unwrap());

    let windowed = build(&AttentionConfig { window: Some(4), ..grouped() }, 16);
    let (_, state) = windowed.forward(x.clone(), windowed.initial_state(2), Form::Auto).unwrap();
    assert!(state.truncate(11).is_err());
    assert_eq!(state.slots().map(|(_, k, _)| k.dims()[2]).collect::<Vec<_>>(), [3, 3]);
    let (_, state) =
        windowed.forward(x.clone().narrow(1, 0, 3), windowed.initial_state(2), Form::Auto).unwrap();
    assert!(state.truncate(2).is_ok());
}

#[test]
fn without_causality_every_token_sees_every_token_once() {
    let x = Draw::new(5).tensor::<3>([2, 7, 16], -1.0, 1.0);
    let layer = build(&AttentionConfig { causal: false, ..grouped() }, 16);
    let (y, state) = layer.forward(x.clone(), layer.initial_state(2), Form::Parallel).unwrap();
    for form in FORMS {
        let (other, _) = layer.forward(x.clone(), layer.initial_state(2), form).unwrap();
        assert!(gap(other, y.clone()) < 1e-5, "{form}");
    }
    let views = layer.views(x.clone(), layer.initial_state(2)).unwrap();
    assert!(views.attention.unwrap().min().into_scalar::<f32>() > 0.0);
    // It cannot continue, and padding is not seen.
    assert!(layer.forward(x.clone(), state, Form::Parallel).is_err());
    let mask = Mask::from_lengths(&[4, 7], 7);
    let (padded, _) = layer.forward_masked(x.clone(), layer.initial_state(2), Form::Auto, &mask).unwrap();
    let row = |y: Tensor<3>| y.narrow(0, 0, 1).narrow(1, 0, 4);
    let (alone, _) = layer.forward(row(x), layer.initial_state(1), Form::Auto).unwrap();
    assert!(gap(row(padded), alone) < 1e-5);
    let refused = AttentionConfig { causal: false, window: Some(3), ..grouped() };
    assert!(refused.init(16, &mut Init::new(0, &Device::flex())).is_err());
}

/// Equal scores: the normaliser of token i is i, so `T - 1` ratios multiply to `1 / T`. The first token forgets nothing.
#[test]
fn half_life_leaves_out_the_token_that_has_nothing_to_forget() {
    let layer = build(&grouped(), 16);
    let half_life = |time| {
        let x = Draw::new(0).tensor::<3>([1, time, 16], 0.0, 0.0);
        numbers(layer.views(x, layer.initial_state(1)).unwrap().half_life().unwrap())
    };
    let expected = 8.0 * 2f64.ln() / 9f64.ln();
    for found in half_life(9) {
        assert!((found / expected - 1.0).abs() < 1e-5, "{found} tokens, not {expected}");
    }
    assert!(half_life(1).into_iter().all(|found| found >= 1e8));
}

/// A sink is one more key with a score of its own and the value 0.
#[test]
fn a_sink_takes_weight_and_gives_nothing() {
    let x = Draw::new(7).tensor::<3>([2, 9, 16], -1.0, 1.0);
    let sunk = |sink, z: f64| {
        let mut layer = build(&AttentionConfig { sink, window: Some(4), ..grouped() }, 16);
        layer.sink = layer.sink.map(|sink| Param::from_tensor(sink.val().zeros_like().add_scalar(z)));
        let y = layer.forward(x.clone(), layer.initial_state(2), Form::Chunked { size: 5 }).unwrap().0;
        (y, layer.views(x.clone(), layer.initial_state(2)).unwrap().attention.unwrap())
    };
    let (plain, weights) = sunk(None, 0.0);
    // softmax1 is a sink of score 0; a sink far below every score is none.
    let (one, shared) = sunk(Some(Sink::Zero), 0.0);
    assert!(gap(sunk(Some(Sink::Learned), 0.0).0, one) < 1e-6);
    assert!(gap(sunk(Some(Sink::Learned), -60.0).0, plain.clone()) < 1e-6);
    assert!(gap(sunk(Some(Sink::Learned), 60.0).0, plain.zeros_like()) < 1e-6);
    // What is left is shared out as before: o · sigmoid(logsumexp - z)
    let left = shared.clone().sum_dim(3);
    assert!(left.clone().max().into_scalar::<f32>() < 1.0);
    assert!(gap(shared, weights * left) < 1e-6);
}

#[test]
fn gradients_reach_the_cache() {
    let device = Device::flex().autodiff();
    let layer = grouped().init(16, &mut Init::new(3, &device)).unwrap();
    let x = Draw::new(6).tensor::<3>([1, 6, 16], -1.0, 1.0);
    let (_, state) = layer.forward(x.clone(), layer.initial_state(1), Form::Auto).unwrap();
    let state = state.detach().replace(|_, value| value.require_grad());
    let (y, _) = layer.forward(x, state.clone(), Form::Auto).unwrap();
    let grads = y.sum().backward();
    for (name, value, _) in state.slots() {
        let grad: Value = value.grad(&grads).unwrap_or_else(|| panic!("no gradient of {name}"));
        assert!(grad.to_f64().unwrap().iter().any(|g| g.abs() > 1e-6), "{name}");
    }
}
