//! Qwen3-Next: gated DeltaNet and gated softmax attention, experts with a shared one.

use burn::tensor::Tensor;
use seqzoo_layers::attention::AttentionConfig;
use seqzoo_layers::delta::GatedDeltaNetConfig;
use seqzoo_layers::nn::{Activation, NormConfig};
use seqzoo_layers::params::Named;

use super::llama::sparse;
use super::{Family, Fields, Names, Weights, parts};
use crate::Result;
use crate::model::{LanguageModelConfig, LayerConfig, MlpConfig, Residual, SharedExpert};
use crate::registry::MixerConfig;

pub(super) struct Qwen3Next;

fn linear(fields: &Fields, layer: usize) -> Result<bool> {
    let interval = fields.size_or("full_attention_interval", 4)?.max(1);
    fields.linear_layer(layer, !(layer + 1).is_multiple_of(interval))
}

/// Key heads, value heads, key size and value size of the linear layers.
fn sizes(fields: &Fields) -> Result<[usize; 4]> {
    Ok([
        fields.size_or("linear_num_key_heads", 16)?,
        fields.size_or("linear_num_value_heads", 32)?,
        fields.size_or("linear_key_head_dim", 128)?,
        fields.size_or("linear_value_head_dim", 128)?,
    ])
}

fn norm(fields: &Fields) -> Result<NormConfig> {
    Ok(NormConfig::Rms { eps: fields.number_or("rms_norm_eps", 1e-6)?, unit_offset: true })
}

impl Family for Qwen3Next {
    fn types(&self) -> &'static [&'static str] {
        &["qwen3_next"]
    }

    fn names(&self) -> Names {
        Names { mixer: &["linear_attn", "self_attn"], ..Names::LLAMA }
    }

    fn config(&self, fields: &Fields) -> Result<LanguageModelConfig> {
        let activation = fields.activation("hidden_act", Activation::Silu)?;
        let [h, hv, n, p] = sizes(fields)?;
        if [h, hv, n, p].contains(&0) {
            return Err(fields.refuse("the sizes of the linear layers must be positive"));
        }
        let layer = |layer| {
            let mixer = if linear(fields, layer)? {
                MixerConfig::GatedDeltaNet(GatedDeltaNetConfig {
                    heads: h,
                    value_heads: Some(hv),
                    head_dim: n,
                    expand_v: p as f64 / n as f64,
                    conv_kernel: fields.size_or("linear_conv_kernel_dim", 4)?,
                    norm_eps: fields.number_or("rms_norm_eps", 1e-6)?,
                    ..Default::default()
                })
            } else {
                MixerConfig::Attention(AttentionConfig {
                    heads: fields.size("num_attention_heads")?,
                    kv_heads: fields.find_size("num_key_value_heads")?,
                    head_dim: Some(fields.size_or("head_dim", 256)?),
                    rope: Some(fields.rope(1e4, 0.25)?),
                    qkv_bias: fields.flag_or("attention_bias", false)?,
                    out_bias: fields.flag_or("attention_bias", false)?,
                    qk_norm: Some(norm(fields)?),
                    output_gate: true,
                    ..Default::default()
                })
            };
            let mlp = match sparse(fields, layer)? {
                None => MlpConfig::Dense {
                    hidden: fields.size("intermediate_size")?,
                    activation,
                    gated: true,
                    bias: false,
                },
                Some(experts) => MlpConfig::Moe {
                    experts,
                    top_k: fields.size_or("num_experts_per_tok", 10)?,
                    hidden: fields.size("moe_intermediate_size")?,
                    activation,
                    norm_topk: fields.flag_or("norm_topk_prob", true)?,
                    shared: Some(SharedExpert {
                        hidden: fields.size("shared_expert_intermediate_size")?,
                        gated: true,
                    }),
                },
            };
            Ok(LayerConfig { mixer, conv: None, mlp: Some(mlp), residual: Residual::PreNorm })
        };
        Ok(LanguageModelConfig {
            vocab: fields.size("vocab_size")?,
            d_model: fields.size("hidden_size")?,
            embed_scale: None,
            learned_positions: None,
            pattern: (0..fields.size("num_hidden_layers")?).map(layer).collect::<Result<_>>()?,
            depth: None,
            norm: norm(fields)?,
            tied: fields.flag_or("tie_word_embeddings", false)?,
            head_bias: false,
            logit_softcap: None,
        })
    }

    fn mixer(&self, fields: &Fields, layer: usize, from: &Weights<'_>) -> Result<Named> {
        if linear(fields, layer)? { delta(fields, from) } else { attention(fields, from) }
    }

    fn derived(&self, name: &str) -> bool {
        name.ends_with(".rotary_emb.inv_freq") || name.starts_with("mtp.")
    }
}

/// Each head's rows of `q_proj` are its query's and then its gate's.
fn attention(fields: &Fields, from: &Weights<'_>) -> Result<Named> {
    let mut to = Named::new();
    let heads = fields.size("num_attention_heads")?;
    let both = from.get::<2>("q_proj.weight")?.transpose();
    let [d, width] = both.dims();
    let head_dim = width / (2 * heads);
    let both = both.reshape([d, heads, 2, head_dim]);
    for (part, name) in ["q_proj", "gate_proj"].into_iter().enumerate() {
        let weight = both.clone().narrow(2, part, 1).reshape([d, heads * head_dim]);
        to.insert(format!("{name}.weight"), weight.into());
    }
    if from.has("q_proj.bias") {
        let both = from.get::<1>("q_proj.bias")?.reshape([heads, 2, head_dim]);
        for (part, name) in ["q_proj", "gate_proj"].into_iter().enumerate() {
            let bias = both.clone().narrow(1, part, 1).reshape([heads * head_dim]);
            to.insert(format!("{name}.bias"), bias.into());
        }
    }
    for (ours, theirs) in [("k_proj", "k_proj"), ("v_proj", "v_proj"), ("out_proj", "o_proj")] {
        parts::linear(&mut to, ours, from, theirs)?;
    }
    parts::head_norms(&mut to, from)?;
    Ok(to)
}

/// Columns of a fused map, grouped by key head: `[d, h · Σ sizes] -> [d, h · size]` each.
fn split_groups(all: Tensor<2>, heads: usize, sizes: &[usize]) -> Vec<Tensor<2>> {
    let [d, width] = all.dims();
    let all = all.reshape([d, heads, width / heads]);
    let starts = sizes.iter().scan(0, |start, size| {
        *start += size;
        Some(*start - size)
    });
    starts
        .zip(sizes)
        .map(|(start, &size)| all.clone().narrow(2, start, size).reshape([d, heads * size]))
        .collect()
}

fn delta(fields: &Fields, from: &Weights<'_>) -> Result<Named> {
    let [h, hv, n, p] = sizes(fields)?;
    let group = hv / h;
    let mut to = Named::new();
    let qkvz = from.get::<2>("in_proj_qkvz.weight")?.transpose();
    let ba = from.get::<2>("in_proj_ba.weight")?.transpose();
    for (fused, names, sizes) in [
        (
            qkvz,
            &["qkv.q_proj", "qkv.k_proj", "qkv.v_proj", "output.gate_proj"][..],
            &[n, n, group * p, group * p][..],
        ),
        (ba, &["b_proj", "a_proj"], &[group, group]),
    ] {
        if fused.dims()[1] != h * sizes.iter().sum::<usize>() {
            return Err(
                fields.refuse(format!("a fused map of {:?} does not split into {names:?}", fused.dims()))
            );
        }
        for (name, weight) in names.iter().zip(split_groups(fused, h, sizes)) {
            to.insert(format!("{name}.weight"), weight.into());
        }
    }
    let kernel: Tensor<2> = from.get::<3>("conv1d.weight")?.squeeze_dim(1);
    for (name, start, size) in [("q", 0, h * n), ("k", h * n, h * n), ("v", 2 * h * n, hv * p)] {
        to.insert(format!("qkv.conv_{name}.weight"), kernel.clone().narrow(0, start, size).into());
    }
    parts::copy::<1>(&mut to, "decay.a_log", from, "A_log")?;
    parts::copy::<1>(&mut to, "decay.dt_bias", from, "dt_bias")?;
    parts::norm(&mut to, "output.norm", from, "norm")?;
    parts::linear(&mut to, "output.out_proj", from, "out_proj")?;
    Ok(to)
}
