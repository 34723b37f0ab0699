//! Sequence mixers under one dynamical-systems interface, on [Burn](https://burn.dev).
//!
//! Every layer here maps a sequence and a state to a sequence and a state, in any form (one token at a
//! time, in chunks, all at once) with the same numbers: see [`system::Mixer`]. One module per family;
//! inside, one file per architecture that reads like its paper.
//!
//! Axes: `b` batch, `t` time, `d` model width, `h` heads, `n` state (key) size, `p` value size.

pub mod attention;
pub mod delta;
pub mod device;
mod error;
mod init;
pub mod kernels;
pub mod lightning;
pub mod linear;
pub mod miras;
pub mod moh;
pub mod nn;
pub mod params;
pub mod rnn;
pub mod rwkv;
pub mod ssm;
pub mod system;
#[cfg(test)]
mod testing;
mod value;

pub use error::{Error, Result};
pub use init::Init;
pub use value::Value;
