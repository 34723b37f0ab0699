//! Linear attention and its relatives: a matrix memory that is added to.

mod abc;
mod feature_map;
mod fenwick;
mod flow;
mod gla;
mod gsa;
mod hgrn;
mod hgrn2;
mod linear_attention;
mod log_linear;
mod mesa_net;
mod normalized_attention;
mod parts;
mod retnet;
mod simple_gla;

pub use abc::{Abc, AbcConfig, bounded_memory, no_weights};
pub use feature_map::{
    FavorShift, FeatureMap, Features, HedgehogForm, favor_features, quadratic_features, taylor_features,
};
#[cfg(feature = "flex")]
pub(crate) use fenwick::bits;
pub use fenwick::{LogLinearInputs, log_linear};
pub use flow::{Flow, FlowConfig, flow_attention};
pub use gla::{Gla, GlaConfig};
pub use gsa::{Gsa, GsaConfig, SlotAttention};
pub use hgrn::{Hgrn, HgrnAux, HgrnConfig};
pub use hgrn2::{Hgrn2, Hgrn2Config};
pub use linear_attention::{
    LinearAttention, LinearAttentionConfig, Normalizer, bidirectional, normalize, with_normalizer,
};
pub use log_linear::{LogLinearAttention, LogLinearAttentionConfig};
pub use mesa_net::{MesaInputs, MesaNet, MesaNetConfig, mesa};
pub use normalized_attention::{Eta, NormalizedAttention, NormalizedAttentionConfig, normalized_system};
pub use parts::{GatedReadout, Qkv};
pub use retnet::{RetNet, RetNetAux, RetNetConfig, Rotation, retention_decays};
pub use simple_gla::{SimpleGla, SimpleGlaConfig};
