//! Mamba-2.

use seqzoo_layers::nn::NormConfig;
use seqzoo_layers::params::Named;
use seqzoo_layers::ssm::Mamba2Config;

use super::{Family, Fields, Names, Weights, parts};
use crate::Result;
use crate::model::{LanguageModelConfig, LayerConfig, Residual};
use crate::registry::MixerConfig;

pub(super) struct Mamba2;

impl Family for Mamba2 {
    fn types(&self) -> &'static [&'static str] {
        &["mamba2"]
    }

    fn names(&self) -> Names {
        Names {
            embedding: "backbone.embeddings",
            layers: "backbone.layers",
            norm: "norm",
            mixer: &["mixer"],
            last_norm: "backbone.norm_f",
            ..Names::LLAMA
        }
    }

    fn config(&self, fields: &Fields) -> Result<LanguageModelConfig> {
        let d_model = fields.size("hidden_size")?;
        let eps = fields.number_or("layer_norm_epsilon", 1e-5)?;
        let expand = fields.number_or("expand", 2.0)?;
        let (heads, head_dim) = (fields.size_or("num_heads", 128)?, fields.size_or("head_dim", 64)?);
        if (heads * head_dim) as f64 != expand * d_model as f64 {
            let reason = format!("{heads} heads of {head_dim} are not `expand` = {expand} times {d_model}");
            return Err(fields.refuse(reason));
        }
        let limit = fields.numbers("time_step_limit")?.unwrap_or(vec![0.0, f64::INFINITY]);
        let [low, high] = limit[..] else {
            return Err(fields.refuse("`time_step_limit` must be two numbers"));
        };
        let mixer = MixerConfig::Mamba2(Mamba2Config {
            expand,
            head_dim,
            state: fields.size_or("state_size", 128)?,
            groups: fields.size_or("n_groups", 8)?,
            conv_kernel: fields.size_or("conv_kernel", 4)?,
            conv_bias: fields.flag_or("use_conv_bias", true)?,
            proj_bias: fields.flag_or("use_bias", false)?,
            dt_limit_low: low,
            dt_limit_high: high.is_finite().then_some(high),
            norm_eps: eps,
            ..Default::default()
        });
        Ok(LanguageModelConfig {
            vocab: fields.size("vocab_size")?,
            d_model,
            embed_scale: None,
            learned_positions: None,
            pattern: vec![LayerConfig { mixer, conv: None, mlp: None, residual: Residual::PreNorm }],
            depth: Some(fields.size("num_hidden_layers")?),
            norm: NormConfig::Rms { eps, unit_offset: false },
            tied: fields.flag_or("tie_word_embeddings", false)?,
            head_bias: false,
            logit_softcap: None,
        })
    }

    fn mixer(&self, _fields: &Fields, _layer: usize, from: &Weights<'_>) -> Result<Named> {
        let mut to = Named::new();
        parts::linear(&mut to, "in_proj", from, "in_proj")?;
        parts::linear(&mut to, "out_proj", from, "out_proj")?;
        parts::convolution(&mut to, "conv", from, "conv1d")?;
        parts::norm(&mut to, "norm", from, "norm")?;
        for (ours, theirs) in [("a_log", "A_log"), ("dt_bias", "dt_bias"), ("d", "D")] {
            parts::copy::<1>(&mut to, ours, from, theirs)?;
        }
        Ok(to)
    }
}
