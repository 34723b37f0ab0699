//! The delta family: a matrix memory that is corrected, not only added to.
//!
//! All but one are diagonal plus rank one to the engine; `parts` is what their layers share. Momentum
//! DeltaNet, whose memory has a second one behind it, brings its own chunk algorithm in `momentum_rule`.

mod comba;
mod deltanet;
mod deltaproduct;
mod dplr;
mod gated_deltanet;
mod kda;
mod longhorn;
mod momentum_deltanet;
mod momentum_rule;
mod parts;

pub use comba::{Comba, CombaConfig, Feedback, comba_system};
pub use deltanet::{DeltaNet, DeltaNetConfig, QkNorm};
pub use deltaproduct::{DeltaProduct, DeltaProductConfig, delta_product_system};
pub use dplr::{Dplr, DplrBound, DplrConfig, DplrDecay};
pub use gated_deltanet::{GatedDeltaNet, GatedDeltaNetConfig, delta_system};
pub use kda::{Kda, KdaConfig, kda_system};
pub use longhorn::{Longhorn, LonghornConfig, LonghornUpdate, longhorn_system};
pub use momentum_deltanet::{MomentumDeltaNet, MomentumDeltaNetConfig};
pub use momentum_rule::MomentumRule;
pub use parts::{HeadDecay, HeadOutput, Qkv};
