//! Hugging Face checkpoints: a folder with `config.json` and `model.safetensors` (or its shards), as
//! `save_pretrained` of transformers writes it.
//!
//! ```no_run
//! use burn::tensor::Device;
//!
//! let model = seqzoo::hf::load("path/to/a/llama", &Device::flex())?;
//! println!("{} parameters", model.num_params());
//! # Ok::<(), seqzoo::Error>(())
//! ```

mod checkpoint;
mod fields;
mod gpt2;
mod llama;
mod mamba2;
mod minimax;
mod parts;
mod qwen3_next;
mod recurrent_gemma;
mod rwkv4;
#[cfg(test)]
mod tests;
mod weights;

use std::path::Path;

use burn::tensor::{Device, Tensor};
use seqzoo_layers::params::{self, Named};
use seqzoo_layers::{Error as LayerError, Value};

pub use checkpoint::{Checkpoint, tensors};
use fields::Fields;
use weights::Weights;

use crate::model::{Block, LanguageModel, LanguageModelConfig};
use crate::{Error, Result};

/// Loads a model from a checkpoint folder; use an autodiff device to train it.
///
/// # Errors
/// When a file is missing or damaged, the model type or a setting is not supported, or tensors do not fit.
pub fn load(dir: impl AsRef<Path>, device: &Device) -> Result<LanguageModel> {
    Checkpoint::open(dir)?.load(device)
}

/// How the checkpoints of some model types are laid out, and what our model is called there.
trait Family: Sync {
    /// The values of `model_type` it reads.
    fn types(&self) -> &'static [&'static str];

    /// Where the parts are.
    fn names(&self) -> Names;

    /// Our model of the same function.
    fn config(&self, fields: &Fields) -> Result<LanguageModelConfig>;

    /// The parameters of a block's mixer, by our names.
    fn mixer(&self, fields: &Fields, layer: usize, from: &Weights<'_>) -> Result<Named>;

    /// The parameters of a block's MLP, by our names.
    fn mlp(&self, _fields: &Fields, _layer: usize, from: &Weights<'_>) -> Result<Named> {
        parts::mlp(from)
    }

    /// The embedding; a norm right behind it is part of it.
    fn embedding(&self, _fields: &Fields, from: &Weights<'_>) -> Result<Tensor<2>> {
        from.get(&format!("{}.weight", self.names().embedding))
    }

    /// The module name of the head.
    fn head(&self) -> &'static str {
        "lm_head"
    }

    /// Buffers that follow from the configuration.
    fn derived(&self, _name: &str) -> bool {
        false
    }
}

/// Module names in the checkpoint; those of a block are relative to it.
#[derive(Clone, Copy)]
struct Names {
    embedding: &'static str,
    positions: Option<&'static str>,
    layers: &'static str,
    norm: &'static str,
    /// The first that is there; a hybrid's layers differ.
    mixer: &'static [&'static str],
    mlp_norm: &'static str,
    mlp: &'static str,
    last_norm: &'static str,
}

impl Names {
    /// Those of Llama and the many that follow it.
    const LLAMA: Self = Self {
        embedding: "model.embed_tokens",
        positions: None,
        layers: "model.layers",
        norm: "input_layernorm",
        mixer: &["self_attn"],
        mlp_norm: "post_attention_layernorm",
        mlp: "mlp",
        last_norm: "model.norm",
    };
}

const FAMILIES: &[&dyn Family] = &[
    &llama::Llama,
    &gpt2::Gpt2,
    &mamba2::Mamba2,
    &minimax::MiniMax,
    &recurrent_gemma::RecurrentGemma,
    &qwen3_next::Qwen3Next,
    &rwkv4::Rwkv4,
];

/// The values of `model_type` that can be loaded.
pub fn model_types() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().flat_map(|family| family.types().iter().copied())
}

/// A part of a model, by its module path in the checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The whole block of this layer.
    Block(usize),
    /// The mixer of this layer.
    Mixer(usize),
    /// The MLP of this layer.
    Mlp(usize),
}

/// What a `config.json` describes: our model of the same function, and where its parameters are.
pub struct Architecture {
    family: &'static dyn Family,
    fields: Fields,
    config: LanguageModelConfig,
}

impl Architecture {
    /// From the fields of a `config.json` read from `what`. Left-out fields have the values that
    /// transformers gives them.
    ///
    /// # Errors
    /// When the model type is not known here, a field is missing or malformed, or a setting is not supported.
    pub fn new(config: serde_json::Value, what: &str) -> Result<Self> {
        let fields = Fields::new(config, what)?;
        let model_type = fields.text("model_type")?;
        let family = FAMILIES.iter().find(|family| family.types().contains(&model_type));
        let family = family.ok_or_else(|| Error::ModelType {
            path: what.into(),
            model_type: model_type.into(),
            supported: model_types().collect::<Vec<_>>().join(", "),
        })?;
        let config = family.config(&fields)?;
        config.validate()?;
        Ok(Self { family: *family, config, fields })
    }

    /// Our model of the same function.
    pub fn config(&self) -> &LanguageModelConfig {
        &self.config
    }

    /// The model with these parameters, named as transformers names them in memory. They keep their
    /// autodiff graph, so that leaves among them receive gradients.
    ///
    /// # Errors
    /// When a tensor is missing, left over, or has another shape than the configuration says.
    pub fn model(&self, tensors: &Named, device: &Device) -> Result<LanguageModel> {
        let from = Weights::new(tensors);
        let names = self.family.names();
        let mut to = Named::new();
        to.insert("embedding".into(), self.family.embedding(&self.fields, &from)?.into());
        if let Some(positions) = names.positions {
            to.insert("positions".into(), from.get::<2>(&format!("{positions}.weight"))?.into());
        }
        parts::norm(&mut to, "norm", &from, names.last_norm)?;
        if !self.config.tied {
            parts::linear(&mut to, "head", &from, self.family.head())?;
        }
        for layer in 0..self.config.layers().count() {
            let block = self.block_parameters(layer, &from.at(names.layers).at(&layer.to_string()))?;
            to.extend(block.into_iter().map(|(name, value)| (format!("blocks.{layer}.{name}"), value)));
        }
        // A tied head is sometimes stored once more.
        let head = format!("{}.weight", self.family.head());
        let spare = |name: &str| self.family.derived(name) || (self.config.tied && name == head);
        let unused: Vec<&str> = from.unused().filter(|name| !spare(name)).take(5).collect();
        if !unused.is_empty() {
            let reason = format!("the checkpoint has tensors that this model has not: {}", unused.join(", "));
            return Err(LayerError::Weights(reason).into());
        }
        Ok(params::assign(self.config.blank(device)?, to)?)
    }

    /// Which part a module path names, as `model.layers.0.self_attn` names a mixer.
    pub fn part(&self, path: &str) -> Option<Part> {
        let names = self.family.names();
        let rest = path.strip_prefix(names.layers)?.strip_prefix('.')?;
        let (layer, rest) = rest.split_once('.').unwrap_or((rest, ""));
        let layer = layer.parse().ok().filter(|&layer| layer < self.config.layers().count())?;
        match rest {
            "" => Some(Part::Block(layer)),
            _ if names.mixer.contains(&rest) => Some(Part::Mixer(layer)),
            _ if rest == names.mlp => Some(Part::Mlp(layer)),
            _ => None,
        }
    }

    /// The block that holds `part`, with the part's parameters from `tensors`, named relative to it; the
    /// block's other parameters are as drawn.
    ///
    /// # Errors
    /// Like [`Architecture::model`].
    pub fn block(&self, part: Part, tensors: &Named, device: &Device) -> Result<Block> {
        let (Part::Block(layer) | Part::Mixer(layer) | Part::Mlp(layer)) = part;
        let block = self.config.init(0, device)?.blocks.swap_remove(layer);
        let from = Weights::new(tensors);
        let given = match part {
            Part::Block(_) => self.block_parameters(layer, &from)?,
            Part::Mixer(_) => prefixed("mixer", self.family.mixer(&self.fields, layer, &from)?),
            Part::Mlp(_) => prefixed("mlp", self.family.mlp(&self.fields, layer, &from)?),
        };
        let mut to = params::parameters(&block);
        let of_part = |name: &str| match part {
            Part::Block(_) => true,
            Part::Mixer(_) => name.starts_with("mixer."),
            Part::Mlp(_) => name.starts_with("mlp."),
        };
        to.retain(|name, _| !of_part(name));
        to.extend(given);
        Ok(params::assign(block, to)?)
    }

    fn block_parameters(&self, layer: usize, from: &Weights<'_>) -> Result<Named> {
        let names = self.family.names();
        let mixer = names.mixer.iter().find(|name| from.has_module(name)).unwrap_or(&names.mixer[0]);
        let mut to = prefixed("mixer", self.family.mixer(&self.fields, layer, &from.at(mixer))?);
        parts::norm(&mut to, "norm", from, names.norm)?;
        if self.config.layers().nth(layer).is_some_and(|layer| layer.mlp.is_some()) {
            parts::norm(&mut to, "mlp_norm", from, names.mlp_norm)?;
            to.extend(prefixed("mlp", self.family.mlp(&self.fields, layer, &from.at(names.mlp))?));
        }
        Ok(to)
    }
}

fn prefixed(prefix: &str, named: Named) -> Named {
    named.into_iter().map(|(name, value): (String, Value)| (format!("{prefix}.{name}"), value)).collect()
}
