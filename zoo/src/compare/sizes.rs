//! The sizes of each mixer in the comparison: the one table that knows architectures by name.
//!
//! Rules: as many numbers of state per layer as the budget says where the architecture lets one choose, copies of
//! the memory and momentum included, the tails of convolutions not;
//! four heads (eight for the router to choose from); everything else as the architecture's own default.

use burn::tensor::{Device, Int, Tensor};
use seqzoo_layers::nn::{Activation, CausalConvConfig};
use seqzoo_layers::system::Form;
use serde_json::{Map, Value, json};

use super::results::{Model, ModelSizes};
use crate::model::{LanguageModel, LanguageModelConfig, MlpConfig};
use crate::registry::MixerConfig;
use crate::{Error, Result};

/// Heads of every multi-head mixer.
const HEADS: usize = 4;

/// Largest step at the start of gated DeltaNet, a tenth of the default: in the few updates there are, long
/// memories are shortened sooner than short ones are lengthened. Mamba-2, whose step also scales its input,
/// learns better from its default.
const SLOW_STEP: f64 = 0.01;

/// Sizes at which each layer of width `d_model` keeps `state` numbers.
fn own_sizes(name: &str, d_model: usize, state: usize) -> Value {
    // Matrix memories: heads × n × n numbers.
    let head_dim = ((state / HEADS) as f64).sqrt().round() as usize;
    match name {
        "attention" => json!({ "heads": HEADS }),
        "forgetting_attention" | "path_attention" => json!({ "attention": { "heads": HEADS } }),
        // A token's latent is half as wide as the layer, its shared key half as wide as a head.
        "mla" => json!({ "heads": HEADS, "kv_rank": d_model / 2, "rope_dim": d_model / HEADS / 2 }),
        "flow" => json!({ "heads": HEADS, "head_dim": head_dim }),
        // Keys and values of the slots: 2 × heads × slots × n numbers.
        "gsa" | "abc" => {
            json!({ "heads": HEADS, "head_dim": head_dim, "slots": state / (2 * HEADS * head_dim) })
        }
        "moh" => json!({}),
        "linear_attention" | "lightning" => json!({ "heads": HEADS, "head_dim": head_dim }),
        "deltanet" => json!({ "heads": HEADS, "head_dim": head_dim }),
        "gated_deltanet" | "deltaproduct" | "kda" | "comba" | "dplr" => {
            json!({ "heads": HEADS, "head_dim": head_dim, "dt_max": SLOW_STEP })
        }
        // Memory and momentum share the budget.
        "momentum_deltanet" => json!({ "heads": HEADS, "head_dim": head_dim / 2, "expand_v": 2.0 }),
        "longhorn" => json!({ "expand": 2.0, "state": state / (2 * d_model) }),
        // The memory now and at the chunk's start. Two layers of it would leave heads too narrow to address anything.
        "yaad" | "miras" | "moneta" => {
            json!({ "heads": HEADS / 2, "head_dim": head_dim, "memory": "linear" })
        }
        // Weights on a simplex are positive: only behind a layer norm can they say no. Two layers, twice each.
        "memora" => {
            json!({ "heads": HEADS / 4, "head_dim": head_dim, "memory": { "mlp": { "expansion": 1 } } })
        }
        // Momentum too: the even width of a head at which all three fit.
        "titans" => {
            let width = ((state / (HEADS / 2 * 3)) as f64).sqrt() as usize / 2 * 2;
            json!({ "heads": HEADS / 2, "head_dim": width, "memory": "linear" })
        }
        // The weights at the mini-batch's start, and the gradients since.
        "ttt_linear" => json!({ "heads": HEADS / 2, "head_dim": head_dim }),
        "ttt_mlp" => {
            json!({ "heads": HEADS / 4, "head_dim": head_dim, "memory": { "expansion": 1 } })
        }
        // Two layers and their momentum.
        "titans_neural_memory" => {
            let width = ((state / (HEADS / 2 * 4)) as f64).sqrt() as usize;
            json!({ "heads": HEADS / 2, "head_dim": width, "expansion": 1 })
        }
        "mamba2" => {
            let expand = (HEADS * head_dim) as f64 / d_model as f64;
            json!({ "expand": expand, "head_dim": head_dim, "state": head_dim })
        }
        // Vectors: the memory is as wide as the layer, and widening it costs parameters, not only memory.
        "rglru" => json!({ "lru_width": 2 * d_model }),
        "lstm" => json!({}),
        "normalized_attention" | "retnet" | "gla" | "simple_gla" | "hgrn2" => {
            json!({ "heads": HEADS, "key_dim": head_dim, "value_dim": head_dim })
        }
        "hgrn" => json!({ "width": 2 * d_model }),
        "rwkv4" => json!({}),
        // The authors' ranks are for wide layers: at these widths they would leave no room for the MLP.
        "rwkv6" => {
            let rank = d_model / 8;
            json!({ "heads": HEADS, "head_dim": head_dim, "mix_rank": rank, "decay_rank": rank })
        }
        "rwkv7" => {
            let rank = d_model / 4;
            json!({ "heads": HEADS, "head_dim": head_dim, "decay_rank": rank, "gate_rank": rank })
        }
        // Two matrices per head.
        "mesa_net" => json!({ "heads": HEADS / 2, "head_dim": head_dim }),
        // A memory per doubling of the length: each as large as the others' only one.
        "log_linear_attention" => json!({ "heads": HEADS, "head_dim": head_dim }),
        _ => json!({}),
    }
}

/// The mixer `name` as it takes part in the comparison.
///
/// # Errors
/// When the name is not in the registry.
pub fn mixer(name: &str, sizes: &ModelSizes) -> Result<MixerConfig> {
    let default = MixerConfig::named(name)
        .ok_or_else(|| Error::UnknownMixer { name: name.into(), nearest: crate::registry::nearest(name) })?;
    let bad =
        |e: serde_json::Error| Error::Config { what: format!("sizes of {name}"), reason: e.to_string() };
    let mut config = serde_json::to_value(default).map_err(bad)?;
    merge(&mut config, own_sizes(name, sizes.d_model, sizes.state));
    // One convolution is enough: where every mixer has one before it, those inside are left out.
    if sizes.conv > 0 && config.get("conv_kernel").is_some() {
        config["conv_kernel"] = json!(0);
    }
    serde_json::from_value(config).map_err(bad)
}

/// Parameters of the model that all others are brought to: softmax attention with an MLP three times as wide
/// as the model, so that larger mixers find room by narrowing theirs.
pub(super) fn reference(sizes: &ModelSizes, vocab: usize, device: &Device) -> Result<usize> {
    let mixer = mixer("attention", sizes)?;
    Ok(with_mlp(mixer, sizes, vocab, 3 * sizes.d_model).init(0, device)?.num_params())
}

/// The model of an architecture with as many parameters as `sizes` says, by the width of its MLP.
///
/// # Errors
/// When the mixer alone has more.
pub(super) fn model(
    name: &str,
    sizes: &ModelSizes,
    vocab: usize,
    device: &Device,
) -> Result<(LanguageModelConfig, Model)> {
    let mixer = mixer(name, sizes)?;
    let params =
        |hidden| Ok::<_, Error>(with_mlp(mixer.clone(), sizes, vocab, hidden).init(0, device)?.num_params());
    let (one, two) = (params(1)?, params(2)?);
    if one > sizes.params {
        return Err(Error::Data(format!(
            "{name} has {one} parameters with the smallest MLP, more than the {} of the comparison",
            sizes.params
        )));
    }
    let mlp_hidden = 1 + ((sizes.params - one) as f64 / (two - one) as f64).round() as usize;
    let config = with_mlp(mixer.clone(), sizes, vocab, mlp_hidden);
    let facts = Model {
        params: params(mlp_hidden)?,
        mlp_hidden,
        state_bytes: 0,
        mixer: serde_json::to_value(mixer).unwrap_or_default(),
    };
    Ok((config, facts))
}

fn with_mlp(mixer: MixerConfig, sizes: &ModelSizes, vocab: usize, hidden: usize) -> LanguageModelConfig {
    let mut config = LanguageModelConfig::small(mixer, vocab, sizes.d_model, sizes.depth);
    for layer in &mut config.pattern {
        let conv = CausalConvConfig { kernel: sizes.conv, bias: false, activation: Activation::Identity };
        layer.conv = (sizes.conv > 0).then_some(conv);
        layer.mlp = Some(MlpConfig::swiglu(hidden));
    }
    config
}

/// Bytes of the state after one sequence of `length` tokens.
pub(super) fn state_bytes(model: &LanguageModel, length: usize, device: &Device) -> Result<usize> {
    let tokens = Tensor::<2, Int>::zeros([1, length], device);
    Ok(model.forward(tokens, model.initial_state(1), Form::Auto)?.state.bytes())
}

/// Replaces the fields of `base` that `changes` names.
fn merge(base: &mut Value, changes: Value) {
    let (Value::Object(base), Value::Object(changes)) = (base, changes) else { return };
    let _: &mut Map<String, Value> = base;
    for (key, change) in changes {
        match base.get_mut(&key) {
            Some(old) if old.is_object() && change.is_object() => merge(old, change),
            _ => {
                base.insert(key, change);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use seqzoo_layers::Init;
    use seqzoo_layers::system::{Growth, Mixer};

    use super::*;

    /// Their state is a few vectors, whose width is the layer's.
    const VECTORS: [&str; 4] = ["rglru", "hgrn", "lstm", "rwkv4"];

    #[test]
    fn every_architecture_can_be_built_at_every_size_of_the_plans() {
        for (d_model, state, conv) in [(64, 1024, 4), (128, 4096, 0)] {
            let sizes = ModelSizes { d_model, state, conv, ..ModelSizes::default() };
            for name in MixerConfig::NAMES {
                let config = mixer(name, &sizes).unwrap();
                let layer = config.init(d_model, &mut Init::new(0, &Device::flex())).unwrap();
                let x = Tensor::zeros([1, 3, d_model], &Device::flex());
                let (_, after) = layer.forward(x, layer.initial_state(1), Form::Auto).unwrap();
                let fixed = after.slots().all(|(_, _, growth)| growth == Growth::Fixed);
                let own =
                    after.slots().filter(|(slot, ..)| !slot.contains("conv") && !slot.contains("shift"));
                let numbers: usize = own.map(|(_, value, _)| value.numel()).sum();
                let share = numbers as f64 / state as f64;
                // Caches grow, vectors are as wide as the layer; normalisers add a few numbers to a memory.
                if fixed && !VECTORS.contains(name) {
                    assert!((0.8..=1.26).contains(&share), "{name} at {d_model}: {share:.3} of the state");
                }
            }
        }
        for (plan, quick) in [(super::super::Plan::full(), false), (super::super::Plan::quick(), true)] {
            for (sizes, vocab) in [(plan.recall.model, plan.recall.vocab), (plan.text.model, 256)] {
                let params = reference(&sizes, vocab, &Device::flex()).unwrap();
                let sizes = ModelSizes { params, ..sizes };
                for name in MixerConfig::NAMES {
                    let (_, model) = model(name, &sizes, vocab, &Device::flex()).unwrap();
                    let gap = (model.params as f64 / params as f64 - 1.0).abs();
                    assert!(gap < 0.02, "{name}, quick {quick}: {} for {params}", model.params);
                    assert!(model.mlp_hidden >= sizes.d_model / 2, "{name}: {}", model.mlp_hidden);
                }
            }
        }
        assert!(matches!(mixer("mamba3", &ModelSizes::default()), Err(Error::UnknownMixer { .. })));
    }
}
