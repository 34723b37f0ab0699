//! Llama and the models that differ from it by a bias, a norm, a window or a mixture of experts.

use seqzoo_layers::attention::AttentionConfig;
use seqzoo_layers::nn::{Activation, NormConfig};
use seqzoo_layers::params::Named;

use super::{Family, Fields, Names, Weights, parts};
use crate::Result;
use crate::model::{LanguageModelConfig, LayerConfig, MlpConfig, Residual};
use crate::registry::MixerConfig;

pub(super) struct Llama;

impl Family for Llama {
    fn types(&self) -> &'static [&'static str] {
        &["llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe"]
    }

    fn names(&self) -> Names {
        Names::LLAMA
    }

    fn config(&self, fields: &Fields) -> Result<LanguageModelConfig> {
        let depth = fields.size("num_hidden_layers")?;
        let pattern = (0..depth).map(|layer| {
            Ok(LayerConfig {
                mixer: MixerConfig::Attention(attention(fields, layer)?),
                conv: None,
                mlp: Some(mlp(fields, layer)?),
                residual: Residual::PreNorm,
            })
        });
        Ok(LanguageModelConfig {
            vocab: fields.size("vocab_size")?,
            d_model: fields.size("hidden_size")?,
            embed_scale: None,
            learned_positions: None,
            pattern: pattern.collect::<Result<_>>()?,
            depth: None,
            norm: rms(fields, 1e-6)?,
            tied: fields.flag_or("tie_word_embeddings", false)?,
            head_bias: false,
            logit_softcap: None,
        })
    }

    fn mixer(&self, _fields: &Fields, _layer: usize, from: &Weights<'_>) -> Result<Named> {
        parts::attention(from)
    }

    fn derived(&self, name: &str) -> bool {
        name.ends_with(".rotary_emb.inv_freq")
    }
}

/// Root-mean-square norms of `rms_norm_eps`.
pub(super) fn rms(fields: &Fields, eps: f64) -> Result<NormConfig> {
    Ok(NormConfig::Rms { eps: fields.number_or("rms_norm_eps", eps)?, unit_offset: false })
}

fn attention(fields: &Fields, layer: usize) -> Result<AttentionConfig> {
    let kind = fields.text("model_type")?;
    let heads = fields.size("num_attention_heads")?;
    let bias = fields.flag_or("attention_bias", false)?;
    let theta = if matches!(kind, "mixtral") { 1e6 } else { 1e4 };
    let windowed = match kind {
        "mistral" | "mixtral" => true,
        "qwen2" | "qwen3" | "qwen3_moe" if fields.flag_or("use_sliding_window", false)? => {
            match fields.texts("layer_types")? {
                Some(types) => types.get(layer) == Some(&"sliding_attention"),
                None => layer >= fields.size_or("max_window_layers", 28)?,
            }
        }
        _ => false,
    };
    Ok(AttentionConfig {
        heads,
        kv_heads: fields.find_size("num_key_value_heads")?,
        head_dim: fields.find_size("head_dim")?,
        rope: Some(fields.rope(theta, 1.0)?),
        window: if windowed { fields.find_size("sliding_window")? } else { None },
        qkv_bias: bias || kind == "qwen2",
        out_bias: bias && kind != "qwen2",
        qk_norm: if kind.starts_with("qwen3") { Some(rms(fields, 1e-6)?) } else { None },
        ..Default::default()
    })
}

fn mlp(fields: &Fields, layer: usize) -> Result<MlpConfig> {
    let activation = fields.activation("hidden_act", Activation::Silu)?;
    let mixtral = fields.text("model_type")? == "mixtral";
    let experts = match fields.text("model_type")? {
        "mixtral" => Some(fields.size_or("num_local_experts", 8)?),
        "qwen3_moe" => sparse(fields, layer)?,
        _ => None,
    };
    Ok(match experts {
        None => MlpConfig::Dense {
            hidden: fields.size("intermediate_size")?,
            activation,
            gated: true,
            bias: fields.flag_or("mlp_bias", false)?,
        },
        Some(experts) => MlpConfig::Moe {
            experts,
            top_k: fields.size_or("num_experts_per_tok", if mixtral { 2 } else { 8 })?,
            hidden: fields.size(if mixtral { "intermediate_size" } else { "moe_intermediate_size" })?,
            activation,
            norm_topk: mixtral || fields.flag_or("norm_topk_prob", false)?,
            shared: None,
        },
    })
}

/// Number of experts of a Qwen layer; `None` where its MLP is dense.
pub(super) fn sparse(fields: &Fields, layer: usize) -> Result<Option<usize>> {
    let dense = fields.numbers("mlp_only_layers")?.unwrap_or_default();
    let step = fields.size_or("decoder_sparse_step", 1)?.max(1);
    // transformers 5 writes the second name.
    let experts = fields.find_size("num_experts")?.map_or_else(|| fields.size("num_local_experts"), Ok)?;
    let sparse = experts > 0 && (layer + 1).is_multiple_of(step) && !dense.contains(&(layer as f64));
    Ok(sparse.then_some(experts))
}
