//! Selective state-space layers.

mod mamba2;

pub use mamba2::{GatedNorm, Mamba2, Mamba2Config};
