//! GPT-2.

use seqzoo_layers::attention::AttentionConfig;
use seqzoo_layers::nn::{Activation, NormConfig};
use seqzoo_layers::params::Named;

use super::{Family, Fields, Names, Weights, parts};
use crate::Result;
use crate::model::{LanguageModelConfig, LayerConfig, MlpConfig, Residual};
use crate::registry::MixerConfig;

pub(super) struct Gpt2;

impl Family for Gpt2 {
    fn types(&self) -> &'static [&'static str] {
        &["gpt2"]
    }

    fn names(&self) -> Names {
        Names {
            embedding: "transformer.wte",
            positions: Some("transformer.wpe"),
            layers: "transformer.h",
            norm: "ln_1",
            mixer: &["attn"],
            mlp_norm: "ln_2",
            mlp: "mlp",
            last_norm: "transformer.ln_f",
        }
    }

    fn config(&self, fields: &Fields) -> Result<LanguageModelConfig> {
        if fields.flag_or("scale_attn_by_inverse_layer_idx", false)? {
            return Err(fields.refuse("`scale_attn_by_inverse_layer_idx` = true is not supported"));
        }
        let d_model = fields.size("n_embd")?;
        let scaled = fields.flag_or("scale_attn_weights", true)?;
        let mixer = MixerConfig::Attention(AttentionConfig {
            heads: fields.size("n_head")?,
            rope: None,
            qkv_bias: true,
            out_bias: true,
            scale: (!scaled).then_some(1.0),
            ..Default::default()
        });
        let mlp = MlpConfig::Dense {
            hidden: fields.size_or("n_inner", 4 * d_model)?,
            activation: fields.activation("activation_function", Activation::GeluTanh)?,
            gated: false,
            bias: true,
        };
        Ok(LanguageModelConfig {
            vocab: fields.size("vocab_size")?,
            d_model,
            embed_scale: None,
            learned_positions: Some(fields.size("n_positions")?),
            pattern: vec![LayerConfig { mixer, conv: None, mlp: Some(mlp), residual: Residual::PreNorm }],
            depth: Some(fields.size("n_layer")?),
            norm: NormConfig::Layer { eps: fields.number_or("layer_norm_epsilon", 1e-5)? },
            tied: fields.flag_or("tie_word_embeddings", true)?,
            head_bias: false,
            logit_softcap: None,
        })
    }

    fn mixer(&self, _fields: &Fields, _layer: usize, from: &Weights<'_>) -> Result<Named> {
        let mut to = Named::new();
        let (weight, bias) = (from.get::<2>("c_attn.weight")?, from.get::<1>("c_attn.bias")?);
        let width = weight.dims()[1] / 3;
        for (part, name) in ["q_proj", "k_proj", "v_proj"].into_iter().enumerate() {
            to.insert(format!("{name}.weight"), weight.clone().narrow(1, part * width, width).into());
            to.insert(format!("{name}.bias"), bias.clone().narrow(0, part * width, width).into());
        }
        parts::conv1d(&mut to, "out_proj", from, "c_proj")?;
        Ok(to)
    }

    fn mlp(&self, _fields: &Fields, _layer: usize, from: &Weights<'_>) -> Result<Named> {
        let mut to = Named::new();
        parts::conv1d(&mut to, "up", from, "c_fc")?;
        parts::conv1d(&mut to, "down", from, "c_proj")?;
        Ok(to)
    }

    /// Causal masks.
    fn derived(&self, name: &str) -> bool {
        name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias")
    }
}
