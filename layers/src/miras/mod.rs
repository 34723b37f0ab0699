//! Miras (Behrouz et al., arXiv 2504.13173): sequence layers as memories trained while they read.
//!
//! A layer of the family is four choices, one file each: the memory's architecture (`memory`), the inner loss
//! or attentional bias (`bias`), what is kept (`retention`) and the learning algorithm (`algorithm`; gradient
//! descent token by token and chunk by chunk is in `inner` and `chunk`). `config` says which go together, `miras` is
//! the layer, `layer` and `gates` what surrounds the memory. Named members are presets of that builder, one file
//! each; `presets` lists them with the relatives the builder can express, and measures how well it does.

mod algorithm;
mod bias;
mod chunk;
mod config;
#[cfg(feature = "flex")]
mod fused;
mod gates;
#[cfg(all(feature = "flex", feature = "cube"))]
mod graphics;
mod inner;
mod layer;
mod layer_norm;
mod memora;
mod memory;
#[allow(clippy::module_inception, reason = "one file per architecture, named after it")]
mod miras;
mod moneta;
mod neural_memory;
mod neural_model;
mod preset;
mod presets;
mod retention;
mod simplex;
mod titans;
mod ttt;
mod ttt_memory;
mod views;
mod yaad;

pub use algorithm::{Algorithm, LeastSquares};
pub use bias::Bias;
#[cfg(feature = "flex")]
pub(crate) use bias::SMOOTH;
pub use config::{MirasConfig, ReadAt};
pub use gates::{GateAxis, Gates};
pub use layer::{GateMap, MirasLayer};
pub use memora::MemoraConfig;
pub use memory::{FlatMemory, Gelu, Memory, MemoryConfig, MlpMemory};
pub use miras::{Learner, Miras};
pub use moneta::MonetaConfig;
pub use neural_memory::{NeuralMemory, NeuralMemoryConfig};
pub use neural_model::NeuralModel;
pub use presets::{Preset, Twin, presets};
pub use retention::{Divergence, LqMap, Retention};
pub use titans::TitansConfig;
pub use ttt::{HiddenLayer, OneMap, Ttt, TttConfig, TttKind, TttLinearConfig, TttMlpConfig};
pub use ttt_memory::{TttFast, TttMemory, TttTokens};
pub use yaad::YaadConfig;

/// Standard deviation of a memory's initial weights (TTT, arXiv 2407.04620).
const INIT_STD: f64 = 0.02;
