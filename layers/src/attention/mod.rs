//! Softmax attention: the state is a cache that grows with every token.

mod cache;
mod cosine;
mod forgetting;
mod mla;
mod path;
mod reflections;
mod scores;
mod softmax;

pub use cosine::{CosineAttention, CosineAttentionConfig};
pub use forgetting::{ForgettingAttention, ForgettingAttentionConfig};
pub use mla::{Mla, MlaConfig};
pub use path::{PathAttention, PathAttentionConfig};
pub use scores::attend;
pub use softmax::{Attention, AttentionConfig, Sink};
