//! RWKV-4 (`rwkv`).
//!
//! The norm behind the embedding is applied to its rows when they are loaded, which is the same function. The
//! halving of the stream every `rescale_every` layers, with which transformers keeps half precision in range,
//! changes nothing but rounding and is left out.

use burn::tensor::Tensor;
use seqzoo_layers::nn::NormConfig;
use seqzoo_layers::params::Named;
use seqzoo_layers::rwkv::Rwkv4Config;

use super::{Family, Fields, Names, Weights, parts};
use crate::Result;
use crate::model::{LanguageModelConfig, LayerConfig, MlpConfig, Residual};
use crate::registry::MixerConfig;

pub(super) struct Rwkv4;

/// Added to the variance in all norms.
fn norm_eps(fields: &Fields) -> Result<f64> {
    fields.number_or("layer_norm_epsilon", 1e-5)
}

impl Family for Rwkv4 {
    fn types(&self) -> &'static [&'static str] {
        &["rwkv"]
    }

    fn names(&self) -> Names {
        Names {
            embedding: "rwkv.embeddings",
            layers: "rwkv.blocks",
            norm: "ln1",
            mixer: &["attention"],
            mlp_norm: "ln2",
            mlp: "feed_forward",
            last_norm: "rwkv.ln_out",
            ..Names::LLAMA
        }
    }

    fn config(&self, fields: &Fields) -> Result<LanguageModelConfig> {
        let d_model = fields.size("hidden_size")?;
        if fields.flag_or("tie_word_embeddings", false)? {
            let reason = "`tie_word_embeddings` = true is not supported: the norm behind the embedding is \
                          made part of it";
            return Err(fields.refuse(reason));
        }
        let hidden = fields.size_or("attention_hidden_size", d_model)?;
        let mixer = MixerConfig::Rwkv4(Rwkv4Config { hidden: Some(hidden), ..Default::default() });
        let hidden = fields.size_or("intermediate_size", 4 * d_model)?;
        let mlp = Some(MlpConfig::ChannelMix { hidden, receptance: true });
        Ok(LanguageModelConfig {
            vocab: fields.size("vocab_size")?,
            d_model,
            embed_scale: None,
            learned_positions: None,
            pattern: vec![LayerConfig { mixer, conv: None, mlp, residual: Residual::PreNorm }],
            depth: Some(fields.size("num_hidden_layers")?),
            norm: NormConfig::Layer { eps: norm_eps(fields)? },
            tied: false,
            head_bias: false,
            logit_softcap: None,
        })
    }

    fn embedding(&self, fields: &Fields, from: &Weights<'_>) -> Result<Tensor<2>> {
        let rows = from.get::<2>("rwkv.embeddings.weight")?;
        let norm = from.at("rwkv.blocks.0.pre_ln");
        let (weight, bias) = (norm.get::<1>("weight")?, norm.get::<1>("bias")?);
        let centred = rows.clone() - rows.mean_dim(1);
        let normed = seqzoo_layers::nn::rms_normalize(centred, norm_eps(fields)?);
        Ok(normed * weight.unsqueeze() + bias.unsqueeze())
    }

    fn head(&self) -> &'static str {
        "head"
    }

    fn mixer(&self, _fields: &Fields, _layer: usize, from: &Weights<'_>) -> Result<Named> {
        let mut to = Named::new();
        for (ours, theirs) in
            [("r_proj", "receptance"), ("k_proj", "key"), ("v_proj", "value"), ("out_proj", "output")]
        {
            parts::linear(&mut to, ours, from, theirs)?;
        }
        for (ours, theirs) in [("mix_r", "receptance"), ("mix_k", "key"), ("mix_v", "value")] {
            mix(&mut to, ours, from, theirs)?;
        }
        parts::copy::<1>(&mut to, "decay", from, "time_decay")?;
        parts::copy::<1>(&mut to, "bonus", from, "time_first")?;
        Ok(to)
    }

    fn mlp(&self, _fields: &Fields, _layer: usize, from: &Weights<'_>) -> Result<Named> {
        let mut to = Named::new();
        for name in ["key", "value", "receptance"] {
            parts::linear(&mut to, name, from, name)?;
        }
        mix(&mut to, "mix_k", from, "key")?;
        mix(&mut to, "mix_r", from, "receptance")?;
        Ok(to)
    }
}

/// A share per channel, stored `[1, 1, d]`.
fn mix(to: &mut Named, ours: &str, from: &Weights<'_>, theirs: &str) -> Result<()> {
    let share = from.get::<3>(&format!("time_mix_{theirs}"))?;
    let size = share.dims()[2];
    to.insert(ours.into(), share.reshape([size]).into());
    Ok(())
}
