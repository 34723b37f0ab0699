//! Linear attention and its decayed relatives: a matrix memory that is added to.

mod linear_attention;

pub use linear_attention::{
    FeatureMap, LinearAttention, LinearAttentionConfig, Normalizer, normalize, with_normalizer,
};
