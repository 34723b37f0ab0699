//! Softmax attention: the state is a cache that grows with every token.

mod softmax;

pub use softmax::{Attention, AttentionConfig};
