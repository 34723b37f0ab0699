//! Mixtures of heads: a router weighs the heads of any multi-head mixer, token by token.

mod mixture;
mod routing;

pub use mixture::{Moh, MohConfig};
pub use routing::{GateScale, RouterKind, Routing, RoutingConfig};
