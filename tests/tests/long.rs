//! A long sequence read at once and continued token by token is the sequence read whole; fixed states stay fixed.

use burn::tensor::{Device, Tensor};
use seqzoo::registry::MixerConfig;
use seqzoo_layers::Init;
use seqzoo_layers::attention::AttentionConfig;
use seqzoo_layers::system::{Form, Growth, Mixer, State};
use seqzoo_tests::gap;

const WIDTH: usize = 32;
const PREFIX: usize = 8192;
const STEPS: usize = 100;

/// Whether a state holds something per token.
fn grows(state: &State) -> bool {
    state.slots().any(|(.., growth)| matches!(growth, Growth::PerToken { .. }))
}

/// Whether a state holds something per doubling of the tokens.
fn doubles(state: &State) -> bool {
    state.slots().any(|(.., growth)| matches!(growth, Growth::PerDoubling { .. }))
}

fn check(name: &str, config: &MixerConfig, bounded: bool) {
    let mut init = Init::new(0, &Device::flex());
    let layer = config.init(WIDTH, &mut init).expect("a default configuration");
    let x: Tensor<3> = init.normal([1, PREFIX + STEPS, WIDTH], 1.0).val();
    let read = |from, len, state| {
        layer.forward(x.clone().narrow(1, from, len), state, Form::Auto).expect("a fitting state")
    };
    let (whole, end) = read(0, PREFIX + STEPS, layer.initial_state(1));
    let (_, early) = read(0, PREFIX / 8, layer.initial_state(1));
    let (_, mut state) = read(0, PREFIX, layer.initial_state(1));
    let bytes = [early.bytes(), state.bytes()];
    let mut steps = Vec::new();
    for t in PREFIX..PREFIX + STEPS {
        let (y, next) = layer.step(x.clone().narrow(1, t, 1).squeeze_dim(1), state).expect("its own state");
        steps.push(y);
        state = next;
    }
    let error = gap(Tensor::stack::<3>(steps, 1), whole.narrow(1, PREFIX, STEPS));
    assert!(error <= 1e-5, "{name}: outputs differ by {error:.1e}");
    assert_eq!(state.positions(), [PREFIX + STEPS]);
    for ((slot, ours, _), (_, theirs, _)) in state.slots().zip(end.slots()) {
        let error = gap(ours.clone(), theirs.clone());
        assert!(error <= 1e-5, "{name}: `{slot}` differs by {error:.1e}");
    }
    if doubles(&state) {
        // As many entries more as there were doublings, and no other growth.
        let levels = |tokens: usize| f64::from(usize::BITS - tokens.leading_zeros());
        let share = bytes[1] as f64 / bytes[0] as f64;
        assert!(share > 1.0 && share <= levels(PREFIX) / levels(PREFIX / 8) + 1e-9, "{name}: {bytes:?}");
        assert_eq!(state.bytes(), bytes[1], "{name}");
    } else if bounded || !grows(&state) {
        assert!(bytes.iter().all(|&bytes| bytes == state.bytes()), "{name}: {bytes:?}, {}", state.bytes());
    } else {
        assert!(state.bytes() > bytes[1] && bytes[1] > bytes[0], "{name}");
    }
    assert_eq!(state.bytes(), end.bytes());
}

#[test]
fn prefill_and_steps_equal_one_forward() {
    for name in MixerConfig::NAMES {
        check(name, &MixerConfig::named(name).expect("a registered name"), false);
    }
}

/// A window bounds the cache.
#[test]
fn a_window_stays_as_large_as_it_is() {
    let config = AttentionConfig { window: Some(48), ..Default::default() };
    check("windowed attention", &MixerConfig::Attention(config), true);
}
