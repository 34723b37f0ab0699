//! Softmax attention: the state is a cache that grows with every token.

mod cosine;
mod softmax;

pub use cosine::{CosineAttention, CosineAttentionConfig};
pub use softmax::{Attention, AttentionConfig};
