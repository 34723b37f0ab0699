//! Hand-written executions with a backward pass of their own, where they are faster than tensor operations.
//!
//! Every kernel has a tensor form that computes the same and that other devices, other element types and other
//! forms of execution use. Kernels run in [`Form::Auto`](crate::system::Form::Auto) and
//! [`Form::Chunked`](crate::system::Form::Chunked). To do without them, set the environment variable
//! `SEQZOO_KERNELS=0` before the first layer runs, or call [`enable`].
//!
//! | kernel | device | serves |
//! | --- | --- | --- |
//! | `append` | Flex, `f32` and `f64`; graphics, `f32`; without gradients | caches of one entry per token |
//! | `tiled` | Flex, `f32` and `f64`; graphics, `f32`, keys of up to 200 numbers (128 with rank one), one token too | every [`System`](crate::system::System) with a matrix memory: no decay, one per head or one per channel, with or without rank one |
//! | `delta`, `steps`, `gates` | graphics, `f32`; without gradients | what gated DeltaNet, Mamba-2 and RG-LRU make of their projections for `tiled` and `scan`, with RG-LRU's block products |
//! | `columns` | Flex, `f32` and `f64`; graphics, `f32`, without gradients (Longhorn) | Longhorn's learners, and the keys of slots in GSA and ABC |
//! | `conv` | Flex, `f32` and `f64`; graphics, `f32` | every [`CausalConv`](crate::nn::CausalConv), in every form |
//! | `descent` | Flex, `f32` and `f64`; graphics, `f32`, without gradients (not Moneta and Memora) | memories that learn by gradient descent: of any depth with one gate per head in Miras, Moneta, Yaad, Memora and Titans, TTT-Linear and TTT-MLP |
//! | `fenwick` | Flex, `f32` and `f64`, not in browsers | log-linear attention |
//! | `flow` | Flex, `f32` and `f64`, not in browsers | the balance of causal Flow-Attention |
//! | `log_sum` | Flex, `f32` and `f64` | ABC's running logarithms of sums |
//! | `mesa` | Flex, `f32` and `f64`, not in browsers | MesaNet's solver |
//! | `momentum` | Flex, `f32` and `f64`, not in browsers | the delta rule with momentum, and the matrices of titans-pytorch's neural memory |
//! | `norm` | Flex, `f32` and `f64`; graphics, `f32`, rows of up to 4096 numbers | every normalisation, with its weight, bias and gate |
//! | `pointwise` | Flex, `f32` and `f64`; graphics, `f32` | SiLU, sigmoids and their logarithms, gates, steps and decays, mixes of tokens |
//! | `rotary` | Flex, `f32` and `f64`; graphics, `f32` | every [`Rope`](crate::nn::Rope) |
//! | `token` | Flex, `f32` and `f64`, without gradients | one token of every `System` with a matrix state |
//! | `scan` | Flex, `f32` and `f64`; graphics, `f32` | every `System` with one state per channel |
//! | `output` | graphics, `f32`; up to four tokens without gradients | norm, gate and last projection of layers |
//! | `linear` | Flex, `f32` and `f64`; graphics, `f32`; up to four tokens without gradients | every [`Linear`](crate::nn::Linear), and on graphics devices all of a layer's with the same input at once |
//! | `lstm` | Flex, `f32` and `f64`; graphics, `f32`, up to 512 units | [`LstmStack`](crate::rnn::LstmStack) |
//! | `wkv` | Flex, `f32` and `f64`; graphics, `f32`, without gradients | RWKV-4's average over the past |
//! | `softmax` | Flex, `f32` and `f64`; graphics, `f32`, heads of up to 128 channels | softmax attention: causal or not, windows, shared key-value heads, sinks, softcaps, forget gates, caches, padding; on Flex but in browsers PaTH attention too |

#[cfg(feature = "flex")]
pub(crate) mod append;
#[cfg(any(feature = "flex", feature = "cube"))]
pub(crate) mod columns;
#[cfg(any(feature = "flex", feature = "cube"))]
pub(crate) mod conv;
#[cfg(feature = "cube")]
mod cube;
#[cfg(feature = "flex")]
mod dense;
#[cfg(feature = "flex")]
pub(crate) mod descent;
#[cfg(feature = "flex")]
pub(crate) mod fenwick;
#[cfg(feature = "flex")]
pub(crate) mod flow;
#[cfg(any(feature = "flex", feature = "cube"))]
mod gradient;
#[cfg(feature = "flex")]
mod lanes;
#[cfg(any(feature = "flex", feature = "cube"))]
pub(crate) mod linear;
#[cfg(feature = "flex")]
pub(crate) mod log_sum;
#[cfg(any(feature = "flex", feature = "cube"))]
pub(crate) mod lstm;
#[cfg(feature = "flex")]
pub(crate) mod mesa;
#[cfg(feature = "flex")]
pub(crate) mod momentum;
#[cfg(any(feature = "flex", feature = "cube"))]
pub(crate) mod norm;
#[cfg(any(feature = "flex", feature = "cube"))]
pub(crate) mod pointwise;
#[cfg(feature = "flex")]
mod room;
#[cfg(any(feature = "flex", feature = "cube"))]
pub(crate) mod rotary;
#[cfg(feature = "flex")]
mod rows;
#[cfg(any(feature = "flex", feature = "cube"))]
pub(crate) mod scan;
#[cfg(feature = "flex")]
mod shares;
#[cfg(any(feature = "flex", feature = "cube"))]
pub(crate) mod softmax;
#[cfg(any(feature = "flex", feature = "cube"))]
pub(crate) mod tiled;
#[cfg(feature = "flex")]
pub(crate) mod token;
#[cfg(feature = "flex")]
mod vector;
#[cfg(feature = "flex")]
mod view;
#[cfg(any(feature = "flex", feature = "cube"))]
pub(crate) mod wkv;

#[cfg(feature = "cube")]
pub(crate) use cube::{
    BlockGates, Decaying, DeltaRule, GateOf, HeadInputs, Opening, Output, columns, decays_and_keys,
    features_and_one, join, open_gates, quotients, rates_and_steps,
};

use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};

static ENABLED: LazyLock<AtomicBool> = LazyLock::new(|| {
    let off =
        std::env::var("SEQZOO_KERNELS").is_ok_and(|value| ["0", "off", "false"].contains(&value.as_str()));
    AtomicBool::new(!off)
});

/// Lets the engine of this process use kernels, or keeps it to tensor operations.
///
/// ```
/// use seqzoo_layers::kernels;
///
/// kernels::enable(false);
/// assert!(!kernels::enabled());
/// kernels::enable(true);
/// ```
pub fn enable(on: bool) {
    ENABLED.store(on, Ordering::Relaxed);
}

/// Whether the engine uses kernels: yes, unless [`enable`] or `SEQZOO_KERNELS=0` said no.
pub fn enabled() -> bool {
    ENABLED.load(Ordering::Relaxed)
}
