//! Recurrent cells and gated linear recurrences with a vector state.

mod rglru;

pub use rglru::{BlockLinear, RgLru, RgLruConfig, RgLruCore};
