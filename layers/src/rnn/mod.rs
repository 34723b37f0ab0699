//! Recurrent cells and gated linear recurrences with a vector state.

mod rglru;

pub use rglru::{BlockLinear, RgLru, RgLruConfig, RgLruCore};
mod lstm;

pub use lstm::{Lstm, LstmCell, LstmConfig, LstmJacobian, LstmStack, LstmStackConfig};
