//! Recurrent cells and gated linear recurrences with a vector state.

mod lstm;
mod rglru;

pub use lstm::{Lstm, LstmCell, LstmConfig, LstmJacobian, LstmStack, LstmStackConfig};
pub use rglru::{BlockLinear, RgLru, RgLruConfig, RgLruCore};
