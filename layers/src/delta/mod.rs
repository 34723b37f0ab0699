//! The delta family: a matrix memory that is corrected, not only added to.

mod gated_deltanet;

pub use gated_deltanet::{GatedDeltaNet, GatedDeltaNetConfig, delta_system};
