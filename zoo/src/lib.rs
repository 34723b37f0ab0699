//! A unified zoo of sequence models: registry of architectures, language model, training, generation,
//! verification and reports, over the layers of [`seqzoo_layers`].

pub mod compare;
pub mod data;
mod error;
pub mod files;
pub mod generate;
pub mod heap;
pub mod hf;
pub mod model;
pub mod registry;
pub mod report;
pub mod train;
pub mod verify;

pub use error::{Error, Result};

#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct ReadmeExamples;
