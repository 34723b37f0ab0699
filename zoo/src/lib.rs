//! A unified zoo of sequence models: registry of architectures, language model, training, generation,
//! verification and reports, over the layers of [`seqzoo_layers`].

pub mod registry;
pub mod verify;

#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct ReadmeExamples;
