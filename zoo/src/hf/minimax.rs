//! MiniMax-Text-01: lightning and softmax attention, experts, and a residual of the normalised stream.

use seqzoo_layers::attention::AttentionConfig;
use seqzoo_layers::lightning::LightningConfig;
use seqzoo_layers::nn::Activation;
use seqzoo_layers::params::Named;

use super::llama::rms;
use super::{Family, Fields, Names, Weights, parts};
use crate::Result;
use crate::model::{LanguageModelConfig, LayerConfig, MlpConfig, Residual};
use crate::registry::MixerConfig;

pub(super) struct MiniMax;

/// Whether a layer is lightning attention; without a list every other one is.
fn linear(fields: &Fields, layer: usize) -> Result<bool> {
    fields.linear_layer(layer, layer.is_multiple_of(2))
}

impl Family for MiniMax {
    fn types(&self) -> &'static [&'static str] {
        &["minimax"]
    }

    fn names(&self) -> Names {
        Names::LLAMA
    }

    fn config(&self, fields: &Fields) -> Result<LanguageModelConfig> {
        let d_model = fields.size("hidden_size")?;
        let heads = fields.size("num_attention_heads")?;
        let head_dim = fields.size_or("head_dim", d_model / heads.max(1))?;
        let mlp = MlpConfig::Moe {
            experts: fields.size_or("num_local_experts", 8)?,
            top_k: fields.size_or("num_experts_per_tok", 2)?,
            hidden: fields.size("intermediate_size")?,
            activation: fields.activation("hidden_act", Activation::Silu)?,
            norm_topk: true,
            shared: None,
        };
        let factor = |name: &str| fields.number_or(name, 1.0);
        let layer = |layer| {
            let (mixer, kind) = if linear(fields, layer)? {
                (MixerConfig::Lightning(LightningConfig::minimax(heads, head_dim)), "linear")
            } else {
                let attention = AttentionConfig {
                    heads,
                    kv_heads: fields.find_size("num_key_value_heads")?,
                    head_dim: Some(head_dim),
                    rope: Some(fields.rope(1e6, 1.0)?),
                    window: fields.find_size("sliding_window")?,
                    ..Default::default()
                };
                (MixerConfig::Attention(attention), "full")
            };
            let residual = Residual::Normalized {
                mixer_alpha: factor(&format!("{kind}_attn_alpha_factor"))?,
                mixer_beta: factor(&format!("{kind}_attn_beta_factor"))?,
                mlp_alpha: factor("mlp_alpha_factor")?,
                mlp_beta: factor("mlp_beta_factor")?,
            };
            Ok(LayerConfig { mixer, conv: None, mlp: Some(mlp.clone()), residual })
        };
        Ok(LanguageModelConfig {
            vocab: fields.size("vocab_size")?,
            d_model,
            embed_scale: None,
            learned_positions: None,
            pattern: (0..fields.size("num_hidden_layers")?).map(layer).collect::<Result<_>>()?,
            depth: None,
            norm: rms(fields, 1e-5)?,
            tied: fields.flag_or("tie_word_embeddings", false)?,
            head_bias: false,
            logit_softcap: None,
        })
    }

    fn mixer(&self, fields: &Fields, layer: usize, from: &Weights<'_>) -> Result<Named> {
        if !linear(fields, layer)? {
            return parts::attention(from);
        }
        let mut to = Named::new();
        // Each head's rows are its query's, then its key's, then its value's.
        let all = from.get::<2>("qkv_proj.weight")?.transpose();
        let [d, width] = all.dims();
        let heads = fields.size("num_attention_heads")?;
        let head_dim = width / (3 * heads);
        let all = all.reshape([d, heads, 3, head_dim]);
        for (part, name) in ["q_proj", "k_proj", "v_proj"].into_iter().enumerate() {
            let weight = all.clone().narrow(2, part, 1).reshape([d, heads * head_dim]);
            to.insert(format!("{name}.weight"), weight.into());
        }
        parts::linear(&mut to, "gate_proj", from, "output_gate")?;
        parts::linear(&mut to, "out_proj", from, "out_proj")?;
        parts::norm(&mut to, "norm", from, "norm")?;
        Ok(to)
    }

    /// Tables of the decay.
    fn derived(&self, name: &str) -> bool {
        ["slope_rate", "query_decay", "key_decay", "diagonal_decay", "rotary_emb.inv_freq"]
            .iter()
            .any(|buffer| name.ends_with(&format!(".{buffer}")))
    }
}
