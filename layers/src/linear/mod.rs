//! Linear attention and its decayed relatives: a matrix memory that is added to.

mod abc;
mod flow;
mod gsa;
mod linear_attention;

pub use abc::{Abc, AbcConfig, bounded_memory, no_weights};
pub use flow::{Flow, FlowConfig, flow_attention};
pub use gsa::{Gsa, GsaConfig, SlotAttention};
pub use linear_attention::{
    FeatureMap, LinearAttention, LinearAttentionConfig, Normalizer, normalize, with_normalizer,
};
