//! Recurrent cells and gated linear recurrences with a vector state.

mod lstm;

pub use lstm::{Lstm, LstmCell, LstmConfig, LstmJacobian, LstmStack, LstmStackConfig};
