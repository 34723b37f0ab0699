//! Lightning attention: linear attention with a fixed decay per head.

#[allow(clippy::module_inception, reason = "one file per architecture, named after it")]
mod lightning;
mod lrpe;

pub use lightning::{
    Lightning, LightningConfig, LightningGate, LightningNorm, SlopeKind, lightning_system, slopes,
};
pub use lrpe::{Lrpe, LrpeLayers};
