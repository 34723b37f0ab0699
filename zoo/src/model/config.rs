//! What a language model is made of, as a file says it.

use std::path::Path;

use burn::tensor::Device;
use seqzoo_layers::nn::{CausalConvConfig, NormConfig};
use seqzoo_layers::{Error as LayerError, Init};
use serde::{Deserialize, Serialize};

use super::{Block, LanguageModel, MlpConfig, Residual};
use crate::registry::{MixerConfig, nearest};
use crate::{Error, Result};

const NAME: &str = "language_model";

/// One block of the pattern.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerConfig {
    /// Mixes over time.
    pub mixer: MixerConfig,
    /// Short convolution on the mixer's input, added to it, so that mixers without one can tell a token's
    /// neighbours apart (arXiv 2212.14052, 2312.04927); `None` for none.
    #[serde(default)]
    pub conv: Option<CausalConvConfig>,
    /// Mixes channels; `None` for none (Mamba).
    #[serde(default)]
    pub mlp: Option<MlpConfig>,
    /// How both are added to the stream.
    #[serde(default)]
    pub residual: Residual,
}

/// Sizes and parts of a [`LanguageModel`]; JSON and TOML.
///
/// ```
/// let text = r#"
///     vocab = 256
///     d_model = 32
///     depth = 4                       # the pattern of two blocks, twice
///
///     [[pattern]]
///     mixer = { arch = "gated_deltanet", heads = 2, head_dim = 16 }
///     mlp = { kind = "dense", hidden = 64 }
///
///     [[pattern]]
///     mixer = { arch = "attention", heads = 2, window = 16 }
///     mlp = { kind = "dense", hidden = 64 }
/// "#;
/// let config = seqzoo::model::LanguageModelConfig::from_toml(text)?;
/// assert_eq!(config.layers().count(), 4);
/// # Ok::<(), seqzoo::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LanguageModelConfig {
    /// Number of tokens.
    pub vocab: usize,
    /// Width of the stream.
    pub d_model: usize,
    /// Factor on the embedding; `None` for 1.
    #[serde(default)]
    pub embed_scale: Option<f64>,
    /// Positions with a learned embedding of their own; `None` for none. No longer sequence can be read.
    #[serde(default)]
    pub learned_positions: Option<usize>,
    /// The blocks, repeated in this order up to `depth`.
    pub pattern: Vec<LayerConfig>,
    /// Number of blocks; `None` for the length of the pattern.
    #[serde(default)]
    pub depth: Option<usize>,
    /// Normalisation before every part and before the head.
    #[serde(default)]
    pub norm: NormConfig,
    /// Use the embedding as the head.
    #[serde(default)]
    pub tied: bool,
    /// Bias of the head.
    #[serde(default)]
    pub head_bias: bool,
    /// Bend the logits smoothly into `±cap`; `None` for not.
    #[serde(default)]
    pub logit_softcap: Option<f64>,
}

impl LanguageModelConfig {
    /// A plain model of one mixer: scaled embedding, RMS norms, SwiGLU of 8/3 the width, tied head.
    pub fn small(mixer: MixerConfig, vocab: usize, d_model: usize, depth: usize) -> Self {
        let hidden = (8 * d_model).div_ceil(3).next_multiple_of(8);
        let mlp = Some(MlpConfig::swiglu(hidden));
        Self {
            vocab,
            d_model,
            // The embedding is drawn small because the head reads it; the stream starts at size 1.
            embed_scale: Some((d_model as f64).sqrt()),
            learned_positions: None,
            pattern: vec![LayerConfig { mixer, conv: None, mlp, residual: Residual::PreNorm }],
            depth: Some(depth),
            norm: NormConfig::default(),
            tied: true,
            head_bias: false,
            logit_softcap: None,
        }
    }

    /// The blocks from first to last, the pattern repeated.
    pub fn layers(&self) -> impl Iterator<Item = &LayerConfig> {
        self.pattern.iter().cycle().take(self.depth.unwrap_or(self.pattern.len()))
    }

    /// The mixers from first to last.
    pub fn mixers(&self) -> impl Iterator<Item = &MixerConfig> {
        self.layers().map(|layer| &layer.mixer)
    }

    /// Checks what can be checked without the mixers, which check their own values in `init`.
    ///
    /// # Errors
    /// For zero sizes, an empty pattern, and factors that are not positive numbers.
    pub fn validate(&self) -> Result<()> {
        let require = |ok: bool, field, given: String, expected: &str| {
            if ok { Ok(()) } else { Err(LayerError::config(NAME, field, given, expected)) }
        };
        let size = |field, value: usize| require(value > 0, field, value.to_string(), "must be positive");
        let factor = |field, value: Option<f64>| match value {
            Some(x) => require(x.is_finite() && x > 0.0, field, x.to_string(), "must be positive"),
            None => Ok(()),
        };
        size("vocab", self.vocab)?;
        size("d_model", self.d_model)?;
        size("depth", self.depth.unwrap_or(1))?;
        size("learned_positions", self.learned_positions.unwrap_or(1))?;
        require(!self.pattern.is_empty(), "pattern", "[]".into(), "must name at least one block")?;
        factor("embed_scale", self.embed_scale)?;
        factor("logit_softcap", self.logit_softcap)?;
        let eps = self.norm.eps();
        require(eps.is_finite() && eps > 0.0, "norm.eps", eps.to_string(), "must be positive")?;
        let kernels = self.pattern.iter().filter_map(|layer| layer.conv.map(|conv| conv.kernel));
        kernels.into_iter().try_for_each(|kernel| size("pattern.conv.kernel", kernel))?;
        self.pattern.iter().filter_map(|layer| layer.mlp.as_ref()).try_for_each(MlpConfig::validate)
    }

    /// Draws the parameters from one seed; use an autodiff device to train.
    ///
    /// # Errors
    /// When a value is impossible, here or in a mixer: the message names the field.
    pub fn init(&self, seed: u64, device: &Device) -> Result<LanguageModel> {
        self.build(Init::new(seed, device))
    }

    /// A model whose parameters are assigned next: nothing is drawn.
    pub(crate) fn blank(&self, device: &Device) -> Result<LanguageModel> {
        self.build(Init::blank(device))
    }

    fn build(&self, mut init: Init) -> Result<LanguageModel> {
        self.validate()?;
        let d = self.d_model;
        let std = (1.0 / d as f64).sqrt();
        let embedding = init.normal([self.vocab, d], std);
        let positions = self.learned_positions.map(|n| init.normal([n, d], std));
        let depth = self.layers().count();
        let blocks = self
            .layers()
            .enumerate()
            .map(|(i, layer)| {
                let mlp = layer.mlp.as_ref();
                Ok(Block {
                    norm: self.norm.init(d, &init),
                    conv: layer.conv.map(|conv| conv.init(d, &mut init)),
                    mixer: layer.mixer.clone().at_layer(i, depth).init(d, &mut init)?,
                    mlp_norm: mlp.map(|_| self.norm.init(d, &init)),
                    mlp: mlp.map(|mlp| mlp.init(d, &mut init)).transpose()?,
                    residual: layer.residual,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(LanguageModel {
            embedding,
            positions,
            blocks,
            norm: self.norm.init(d, &init),
            head: (!self.tied).then(|| init.linear(d, self.vocab)),
            head_bias: self.head_bias.then(|| init.constant([self.vocab], 0.0)),
            config: self.clone(),
        })
    }

    /// Reads a `.json` or `.toml` file.
    ///
    /// # Errors
    /// When it cannot be read, has another extension, is malformed, has unknown or impossible fields, or
    /// names a mixer that does not exist (the message names the nearest).
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        let what = path.display().to_string();
        let parsed = match path.extension().and_then(|e| e.to_str()) {
            Some("json") => serde_json::from_str(&text).map_err(|e| e.to_string()),
            Some("toml") => toml::from_str(&text).map_err(|e| e.to_string()),
            _ => Err("a configuration file ends in `.json` or `.toml`".into()),
        };
        match parsed {
            Ok(value) => Self::from_value(value, &what),
            Err(reason) => Err(Error::Config { what, reason }),
        }
    }

    /// Reads JSON text.
    pub fn from_json(text: &str) -> Result<Self> {
        let bad = |e: serde_json::Error| Error::Config { what: "JSON".into(), reason: e.to_string() };
        Self::from_value(serde_json::from_str(text).map_err(bad)?, "JSON")
    }

    /// Reads TOML text.
    pub fn from_toml(text: &str) -> Result<Self> {
        let bad = |e: toml::de::Error| Error::Config { what: "TOML".into(), reason: e.to_string() };
        Self::from_value(toml::from_str(text).map_err(bad)?, "TOML")
    }

    fn from_value(value: serde_json::Value, what: &str) -> Result<Self> {
        if let Some(name) = unknown_mixer(&value) {
            return Err(Error::UnknownMixer { nearest: nearest(&name), name });
        }
        let config: Self = serde_json::from_value(value)
            .map_err(|e| Error::Config { what: what.into(), reason: e.to_string() })?;
        config.validate()?;
        Ok(config)
    }

    /// As JSON text.
    pub fn to_json(&self) -> Result<String> {
        serde_json::to_string_pretty(self)
            .map_err(|e| Error::Config { what: "JSON".into(), reason: e.to_string() })
    }
}

/// The first `arch` anywhere in the file that is not in the registry.
fn unknown_mixer(value: &serde_json::Value) -> Option<String> {
    match value {
        serde_json::Value::Object(fields) => fields.iter().find_map(|(key, value)| match value.as_str() {
            Some(name) if key == "arch" => (!MixerConfig::NAMES.contains(&name)).then(|| name.into()),
            _ => unknown_mixer(value),
        }),
        serde_json::Value::Array(items) => items.iter().find_map(unknown_mixer),
        _ => None,
    }
}
