//! Building blocks that mixers share and Burn lacks.

mod conv;
mod formula;
mod gates;
mod linear;
mod norm;
mod normalize;
mod rope;

pub(crate) use conv::last_inputs;
pub use conv::{CausalConv, CausalConvConfig, short_conv};
pub(crate) use conv::{put_tail, short_convs};
pub(crate) use formula::{Formula, Function, LOG_ZERO, MOST_SLOPE};
use gates::gelu_tanh;
pub(crate) use gates::{
    Steps, add_skip, elu_plus_one, erase, lerp, lerp_by, minus_rate, on_graphics, rescale, scaled_closed,
    share, squared_relu, tanh, weighted_dot,
};
pub use gates::{gated, log_sigmoid, scaled_log_sigmoid, scaled_sigmoid, silu, softplus};
pub(crate) use linear::{Ended, Ending, columns_of, project_with};
pub use linear::{Linear, project};
pub use norm::{LayerNorm, Norm, NormConfig, RmsNorm, SrmsNorm, l2_normalize, rms_normalize};
pub use normalize::Gated;
pub(crate) use normalize::{Normalize, Scaling, gated_through};
pub use rope::{Llama3Scaling, Rope, RopeConfig};

use burn::tensor::{Tensor, activation};
use serde::{Deserialize, Serialize};

/// A pointwise function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x`
    Identity,
    /// `max(x, 0)`
    Relu,
    /// `x sigmoid(x)`
    #[default]
    Silu,
    /// `x Φ(x)`, by the error function
    Gelu,
    /// `x Φ(x)`, by the tanh approximation
    GeluTanh,
    /// `1 / (1 + e^{-x})`
    Sigmoid,
    /// `elu(x) + 1`: `x + 1` above 0, `e^x` below.
    EluPlusOne,
}

impl Activation {
    /// What kernels call it, if they have it.
    #[cfg(feature = "cube")]
    pub(crate) fn function(self) -> Option<Function> {
        match self {
            Self::Silu => Some(Function::Silu),
            Self::GeluTanh => Some(Function::GeluTanh),
            Self::Sigmoid => Some(Function::Sigmoid),
            Self::EluPlusOne => Some(Function::EluPlusOne),
            Self::Identity | Self::Relu | Self::Gelu => None,
        }
    }

    /// Applies it entry by entry.
    pub fn apply<const D: usize>(self, x: Tensor<D>) -> Tensor<D> {
        match self {
            Activation::Identity => x,
            Activation::Relu => activation::relu(x),
            Activation::Silu => silu(x),
            Activation::Gelu => activation::gelu(x),
            Activation::GeluTanh => gelu_tanh(x),
            Activation::Sigmoid => scaled_sigmoid(x, 1.0),
            Activation::EluPlusOne => elu_plus_one(x, 1.0),
        }
    }
}

/// `[b, t, h·n] -> [b, h, t, n]`
pub fn split_heads(x: Tensor<3>, heads: usize) -> Tensor<4> {
    let [b, t, d] = x.dims();
    x.reshape([b, t, heads, d / heads]).swap_dims(1, 2)
}

/// `[b, h, t, n] -> [b, t, h·n]`
pub fn merge_heads(x: Tensor<4>) -> Tensor<3> {
    let [b, h, t, n] = x.dims();
    x.swap_dims(1, 2).reshape([b, t, h * n])
}

/// Repeats each head `times` times in a row: `[b, h, t, n] -> [b, h·times, t, n]` (grouped queries).
pub fn repeat_heads(x: Tensor<4>, times: usize) -> Tensor<4> {
    if times == 1 {
        return x;
    }
    let [b, h, t, n] = x.dims();
    if h == 1 {
        return x.expand([b, times, t, n]);
    }
    x.unsqueeze_dim::<5>(2).expand([b, h, times, t, n]).reshape([b, h * times, t, n])
}
