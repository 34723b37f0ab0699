//! The language model: embedding, blocks of any mixer and an MLP, normalisation, head.
//!
//! ```text
//! x = E[token] · scale (+ P[position])
//! x = x + mixer(norm(x)),   x = x + mlp(norm(x))        for every block of the pattern
//! logits = cap · tanh(W norm(x) / cap)                  (the cap is optional, W = Eᵀ if tied)
//! ```
//!
//! ```
//! use burn::tensor::Device;
//! use seqzoo::model::LanguageModelConfig;
//! use seqzoo::registry::MixerConfig;
//! use seqzoo_layers::system::Form;
//!
//! let mixer = MixerConfig::named("gated_deltanet").ok_or("no such mixer")?;
//! let model = LanguageModelConfig::small(mixer, 256, 32, 2).init(0, &Device::flex())?;
//! let tokens = model.tokens(&[vec![72, 101, 108, 108, 111]])?;
//! let output = model.forward(tokens, model.initial_state(1), Form::Auto)?;
//! assert_eq!(output.logits.dims(), [1, 5, 256]);
//! assert_eq!(output.state.position(), Some(5));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod block;
mod config;
mod language;
mod mlp;
mod moe;
mod presets;
mod state;
#[cfg(test)]
mod tests;

pub use block::{Block, Residual};
pub use config::{LanguageModelConfig, LayerConfig};
pub use language::{LanguageModel, Output};
pub use mlp::{DenseMlp, Mlp, MlpConfig};
pub use moe::{Moe, SharedExpert};
pub use presets::{PRESETS, Preset};
pub use state::ModelState;
