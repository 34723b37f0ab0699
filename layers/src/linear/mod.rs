//! Linear attention and the delta family: matrix-valued states.

mod gated_deltanet;

pub use gated_deltanet::{GatedDeltaNet, GatedDeltaNetConfig, delta_system};
