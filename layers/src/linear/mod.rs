//! Linear attention and the delta family: matrix-valued states.

mod gated_deltanet;
mod linear_attention;

pub use gated_deltanet::{GatedDeltaNet, GatedDeltaNetConfig, delta_system};
pub use linear_attention::{
    FeatureMap, LinearAttention, LinearAttentionConfig, Normalizer, normalize, with_normalizer,
};
