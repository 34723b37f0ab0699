//! RecurrentGemma (Griffin): recurrent blocks and local attention.

use seqzoo_layers::attention::AttentionConfig;
use seqzoo_layers::nn::{Activation, NormConfig};
use seqzoo_layers::params::Named;
use seqzoo_layers::rnn::RgLruConfig;

use super::{Family, Fields, Names, Weights, parts};
use crate::Result;
use crate::model::{LanguageModelConfig, LayerConfig, MlpConfig, Residual};
use crate::registry::MixerConfig;

pub(super) struct RecurrentGemma;

/// Whether a layer is a recurrent block; `block_types` is repeated over the layers.
fn recurrent(fields: &Fields, layer: usize) -> Result<bool> {
    let types = fields.texts("block_types")?.unwrap_or(vec!["recurrent", "recurrent", "attention"]);
    match types.get(layer % types.len().max(1)) {
        Some(&"recurrent") => Ok(true),
        Some(&"attention") => Ok(false),
        other => Err(fields.refuse(format!("`block_types`: layer {layer} is {other:?}"))),
    }
}

impl Family for RecurrentGemma {
    fn types(&self) -> &'static [&'static str] {
        &["recurrent_gemma"]
    }

    fn names(&self) -> Names {
        Names {
            norm: "temporal_pre_norm",
            mixer: &["temporal_block"],
            mlp_norm: "channel_pre_norm",
            mlp: "mlp_block",
            last_norm: "model.final_norm",
            ..Names::LLAMA
        }
    }

    fn config(&self, fields: &Fields) -> Result<LanguageModelConfig> {
        let d_model = fields.size("hidden_size")?;
        let heads = fields.size("num_attention_heads")?;
        let activation = fields.activation("hidden_activation", Activation::GeluTanh)?;
        let layer = |layer| {
            let mixer = if recurrent(fields, layer)? {
                MixerConfig::RgLru(RgLruConfig {
                    lru_width: fields.find_size("lru_width")?,
                    heads,
                    conv_kernel: fields.size_or("conv1d_width", 4)?,
                    activation,
                    ..Default::default()
                })
            } else {
                MixerConfig::Attention(AttentionConfig {
                    heads,
                    kv_heads: fields.find_size("num_key_value_heads")?,
                    head_dim: fields.find_size("head_dim")?,
                    rope: Some(fields.rope(1e4, 0.5)?),
                    window: Some(fields.size_or("attention_window_size", 2048)?),
                    qkv_bias: fields.flag_or("attention_bias", false)?,
                    out_bias: true,
                    ..Default::default()
                })
            };
            // The width in the file counts gate and up together.
            let hidden = fields.size("intermediate_size")? / 2;
            let mlp = MlpConfig::Dense { hidden, activation, gated: true, bias: true };
            Ok(LayerConfig { mixer, conv: None, mlp: Some(mlp), residual: Residual::PreNorm })
        };
        Ok(LanguageModelConfig {
            vocab: fields.size("vocab_size")?,
            d_model,
            embed_scale: Some(to_bf16((d_model as f32).sqrt()).into()),
            learned_positions: None,
            pattern: (0..fields.size("num_hidden_layers")?).map(layer).collect::<Result<_>>()?,
            depth: None,
            norm: NormConfig::Rms { eps: fields.number_or("rms_norm_eps", 1e-6)?, unit_offset: true },
            tied: fields.flag_or("tie_word_embeddings", true)?,
            head_bias: false,
            logit_softcap: Some(fields.number_or("logits_soft_cap", 30.0)?),
        })
    }

    fn mixer(&self, fields: &Fields, layer: usize, from: &Weights<'_>) -> Result<Named> {
        if !recurrent(fields, layer)? {
            return parts::attention(from);
        }
        let mut to = Named::new();
        for (ours, theirs) in [("x_proj", "linear_x"), ("y_proj", "linear_y"), ("out_proj", "linear_out")] {
            parts::linear(&mut to, ours, from, theirs)?;
        }
        parts::convolution(&mut to, "conv", from, "conv_1d")?;
        let core = from.at("rg_lru");
        parts::copy::<1>(&mut to, "rg_lru.a_param", &core, "recurrent_param")?;
        for (ours, theirs) in [("a_gate", "recurrent_gate"), ("input_gate", "input_gate")] {
            let (weight, bias) = (format!("rg_lru.{ours}.weight"), format!("rg_lru.{ours}.bias"));
            parts::copy::<3>(&mut to, &weight, &core, &format!("{theirs}_weight"))?;
            parts::copy::<2>(&mut to, &bias, &core, &format!("{theirs}_bias"))?;
        }
        Ok(to)
    }
}

/// Rounds to the nearest number of 8 significant bits, as the reference does with the embedding's factor.
fn to_bf16(x: f32) -> f32 {
    let bits = x.to_bits();
    let even = (bits >> 16) & 1;
    f32::from_bits((bits + 0x7fff + even) & 0xffff_0000)
}

#[cfg(test)]
mod tests {
    use super::to_bf16;

    #[test]
    fn factors_are_rounded_to_bf16() {
        assert_eq!(to_bf16(8.0), 8.0);
        // √2560 of RecurrentGemma-2B
        assert_eq!(to_bf16(2560f32.sqrt()), 50.5);
        assert_eq!(to_bf16(1.0 + 3.0 / 256.0), 1.0 + 4.0 / 256.0);
    }
}
