//! What the browser demo computes, as plain Rust that is tested natively: models that show their states, what
//! every shown number is made of, training, speed, and the parity matrix. The types serialize to what
//! `web/site/src/engine/types.ts` says; `wasm` binds them to JavaScript.
//!
//! Whatever is looked at is computed on the CPU, where reading a tensor is immediate. Training, speed and
//! parity also run on WebGPU, where a tensor can only be read asynchronously.
//!
//! ```
//! use seqzoo_web::Model;
//!
//! let mut model = Model::preset(r#"{"arch": "gated_deltanet", "heads": 2}"#, 0)?;
//! let trace = model.read("to be, or not to be")?;
//! assert_eq!(trace.tokens.len(), 19);
//! let why = model.explain(0, seqzoo_web::Kind::Attention, [0, 9, 4], None)?;
//! assert!((why.value - why.recomputed.unwrap()).abs() < 1e-5);
//! # Ok::<(), seqzoo::Error>(())
//! ```

mod bench;
mod copying;
mod explain;
mod info;
mod model;
mod numbers;
mod parity;
mod recall;
mod trace;
mod trainer;
mod words;

#[cfg(target_arch = "wasm32")]
pub mod wasm;

pub use bench::{BenchConfig, BenchPoint, Mode, bench};
pub use copying::{CopyAnswer, MARK};
pub use explain::{Explanation, Kind, Term, TermValue};
pub use info::{ArchInfo, ModelInfo, architectures, describe};
pub use model::{MAX_TOKENS, Model};
pub use numbers::{Doubles, Floats, Grid};
pub use parity::{ParityRow, parity};
pub use recall::RecallAnswer;
pub use trace::{LayerTrace, NamedGrid, Prediction, SpectrumGrid, StateSlot, Trace};
pub use trainer::{StepRow, Trainer, TrainerConfig};
