//! Miras (Behrouz et al., arXiv 2504.13173): sequence layers as memories trained while they read.
//!
//! A layer of the family is four choices, one file each: the memory's architecture (`memory`), the inner loss
//! or attentional bias (`bias`), retention and learning algorithm (`inner`: decayed gradient descent, token by
//! token or chunk by chunk). `layer` is the block around them, which all members share.

mod bias;
mod inner;
mod layer;
mod layer_norm;
mod memory;
mod neural_memory;
mod neural_model;
mod ttt;
mod ttt_memory;
mod yaad;

pub use bias::Bias;
pub use layer::{GateMap, MirasLayer};
pub use memory::{LinearMemory, Memory, MemoryConfig, MlpMemory};
pub use neural_memory::{NeuralMemory, NeuralMemoryConfig};
pub use neural_model::NeuralModel;
pub use ttt::{HiddenLayer, OneMap, Ttt, TttConfig, TttKind, TttLinearConfig, TttMlpConfig};
pub use ttt_memory::{TttFast, TttMemory, TttTokens};
pub use yaad::{Yaad, YaadConfig};
