//! A long sequence read at once and continued token by token is the sequence read whole; fixed states stay fixed.
//!
//! In single precision, but for the deep memories of Miras: their layer norm amplifies rounding with every step
//! (to 3e-5 here), so that they are held to a closer limit in double precision.

use burn::tensor::{DType, Device, Tensor};
use seqzoo::registry::MixerConfig;
use seqzoo::verify::VALUE_TOLERANCE;
use seqzoo_layers::attention::AttentionConfig;
use seqzoo_layers::system::{Form, Growth, Mixer, State};
use seqzoo_layers::{Init, params};
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

/// Precision and limit for an architecture.
fn precision(name: &str) -> (DType, f64) {
    match name {
        "miras" | "moneta" | "yaad" | "memora" | "titans" => (DType::F64, 1e-9),
        _ => (DType::F32, VALUE_TOLERANCE),
    }
}

/// Everything that is farther apart than it may be, named.
fn differences(name: &str, config: &MixerConfig, bounded: bool) -> Vec<String> {
    let mut init = Init::new(0, &Device::flex());
    let (dtype, limit) = precision(name);
    let layer = params::cast(config.init(WIDTH, &mut init).expect("a default configuration"), dtype);
    let x: Tensor<3> = init.normal([1, PREFIX + STEPS, WIDTH], 1.0).val().detach().cast(dtype);
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
    let mut gaps =
        vec![("outputs".to_string(), gap(Tensor::stack::<3>(steps, 1), whole.narrow(1, PREFIX, STEPS)))];
    assert_eq!(state.positions(), [PREFIX + STEPS]);
    for ((slot, ours, _), (_, theirs, _)) in state.slots().zip(end.slots()) {
        gaps.push((format!("slot `{slot}`"), gap(ours.clone(), theirs.clone())));
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
    let text = |(what, gap): &(String, f64)| format!("{name}: {what} differ by {gap:.1e}");
    gaps.iter().filter(|(_, gap)| gap.is_nan() || *gap > limit).map(text).collect()
}

#[test]
fn prefill_and_steps_equal_one_forward() {
    let all = |name: &&str| differences(name, &MixerConfig::named(name).expect("a registered name"), false);
    let found: Vec<_> = MixerConfig::NAMES.iter().flat_map(all).collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// A window bounds the cache.
#[test]
fn a_window_stays_as_large_as_it_is() {
    let config = AttentionConfig { window: Some(48), ..Default::default() };
    let found = differences("windowed attention", &MixerConfig::Attention(config), true);
    assert!(found.is_empty(), "{}", found.join("\n"));
}
