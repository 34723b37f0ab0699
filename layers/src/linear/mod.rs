//! Linear attention and its decayed relatives: a matrix memory that is added to.

mod fenwick;
mod linear_attention;
mod log_linear;
mod mesa_net;

pub use fenwick::{LogLinearInputs, log_linear};
pub use linear_attention::{
    FeatureMap, LinearAttention, LinearAttentionConfig, Normalizer, normalize, with_normalizer,
};
pub use log_linear::{LogLinearAttention, LogLinearAttentionConfig};
pub use mesa_net::{MesaInputs, MesaNet, MesaNetConfig, mesa};
