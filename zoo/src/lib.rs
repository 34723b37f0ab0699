//! A unified zoo of sequence models: registry of architectures, language model, training, generation,
//! verification and reports, over the layers of [`seqzoo_layers`].

mod error;
mod files;
pub mod model;
pub mod registry;
pub mod verify;

pub use error::{Error, Result};

#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct ReadmeExamples;
