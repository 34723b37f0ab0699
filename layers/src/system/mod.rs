//! The interface: every sequence layer is a dynamical system
//! `h_t = Λ_t h_{t-1} + B_t u_t`, `y_t = C_t h_t + D_t u_t` (DSF, arXiv 2405.15731).
//!
//! A mixer that is linear in its state implements [`LinearMixer`]: how tokens become a [`System`].
//! Everything else (forms, steps, views) is derived. Other mixers implement [`Mixer`] by hand.

mod cost;
mod decay;
pub mod engine;
#[cfg(test)]
mod engine_tests;
pub(crate) mod inverse;
mod mask;
mod mixer;
pub(crate) mod scan;
mod state;
mod transition;
mod views;

use serde::{Deserialize, Serialize};

pub use cost::Cost;
pub use mask::{Lengths, Mask};
pub(crate) use mixer::run_system;
pub use mixer::{HeadMixer, LinearMixer, Mixer, Run, token_by_token};
pub(crate) use state::fresh;
pub use state::{Growth, MEMORY, Snapshots, State};
pub use transition::{Io, Read, System, Transition};
pub use views::{Gate, Spectrum, SpectrumKind, Terms, Views, influence};

/// How a sequence is executed. All forms compute the same function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// One token at a time: the reference.
    Recurrent,
    /// Quadratic inside chunks, recurrent across them.
    Chunked {
        /// Tokens per chunk, at least 1; a ragged last chunk is fine.
        size: usize,
    },
    /// The whole sequence at once.
    Parallel,
    /// Whatever is fastest for the length.
    #[default]
    Auto,
}

impl std::fmt::Display for Form {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Form::Recurrent => f.write_str("recurrent"),
            Form::Chunked { size } => write!(f, "chunked({size})"),
            Form::Parallel => f.write_str("parallel"),
            Form::Auto => f.write_str("auto"),
        }
    }
}
