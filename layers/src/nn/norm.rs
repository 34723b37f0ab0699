//! Normalisation layers.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::Linear;
use super::normalize::{Gated, Normalize, Scaling};
use crate::Init;

/// `x / sqrt(mean(x²) + eps)` over the last axis.
pub fn rms_normalize<const D: usize>(x: Tensor<D>, eps: f64) -> Tensor<D> {
    Normalize::plain(Scaling::rms(eps)).run(x, None)
}

/// `x / sqrt(Σx² + eps)` over the last axis.
pub fn l2_normalize<const D: usize>(x: Tensor<D>, eps: f64) -> Tensor<D> {
    Normalize::plain(Scaling::l2(eps)).run(x, None)
}

/// `rms_normalize(x) (offset + w)` with a weight per channel (`offset` is 1 in Gemma, else 0).
#[derive(Module, Debug)]
pub struct RmsNorm {
    /// `[size]`
    pub weight: Param<Tensor<1>>,
    #[module(skip)]
    eps: f64,
    #[module(skip)]
    offset: f64,
}

impl RmsNorm {
    /// Scale 1 at the start.
    pub fn new(size: usize, eps: f64, init: &Init) -> Self {
        Self { weight: init.constant([size], 1.0), eps, offset: 0.0 }
    }

    /// The same function at the start, with the weight stored as the distance from 1.
    pub fn unit_offset(size: usize, eps: f64, init: &Init) -> Self {
        Self { weight: init.constant([size], 0.0), eps, offset: 1.0 }
    }

    /// Normalises the last axis, whose size must be the weight's.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        self.parts().run(x, None)
    }

    /// What it does, on its own.
    pub(crate) fn parts(&self) -> Normalize {
        let scaling = Scaling { offset: self.offset, ..Scaling::rms(self.eps) };
        Normalize::weighted(scaling, self.weight.val(), None)
    }
}

/// `(x - mean) / sqrt(var + eps) w + b`.
#[derive(Module, Debug)]
pub struct LayerNorm {
    /// `[size]`
    pub weight: Param<Tensor<1>>,
    /// `[size]`
    pub bias: Option<Param<Tensor<1>>>,
    #[module(skip)]
    eps: f64,
}

impl LayerNorm {
    /// Scale 1 and bias 0 at the start.
    pub fn new(size: usize, eps: f64, bias: bool, init: &Init) -> Self {
        let bias = bias.then(|| init.constant([size], 0.0));
        Self { weight: init.constant([size], 1.0), bias, eps }
    }

    /// Normalises the last axis.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        self.parts().run(x, None)
    }

    /// Normalises all heads of a token of `y: [b, h, t, p]` together, and maps what the gate leaves.
    pub(crate) fn merged_through(&self, y: Tensor<4>, gate: Option<Gated<3>>, map: &Linear) -> Tensor<3> {
        self.parts().merged_through(y, gate, map)
    }

    fn parts(&self) -> Normalize {
        let bias = self.bias.as_ref().map(|bias| bias.val());
        Normalize::weighted(Scaling::layer(self.eps), self.weight.val(), bias)
    }
}

/// `rms_normalize(x)`: no weight (TransNormerLLM's SRMSNorm, arXiv 2307.14995).
#[derive(Module, Debug)]
pub struct SrmsNorm {
    #[module(skip)]
    eps: f64,
}

impl SrmsNorm {
    /// Adds `eps` to the mean square.
    pub fn new(eps: f64) -> Self {
        Self { eps }
    }

    /// Normalises the last axis.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        rms_normalize(x, self.eps)
    }
}

/// Which normalisation a block uses.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum NormConfig {
    /// [`RmsNorm`]
    Rms {
        /// Added to the mean square.
        eps: f64,
        /// Store the weight as its distance from 1 (Gemma).
        #[serde(default)]
        unit_offset: bool,
    },
    /// [`SrmsNorm`]
    Srms {
        /// Added to the mean square.
        eps: f64,
    },
    /// [`LayerNorm`]
    Layer {
        /// Added to the variance.
        eps: f64,
    },
}

impl Default for NormConfig {
    fn default() -> Self {
        NormConfig::Rms { eps: 1e-6, unit_offset: false }
    }
}

impl NormConfig {
    /// What keeps it finite at 0.
    pub fn eps(self) -> f64 {
        match self {
            Self::Rms { eps, .. } | Self::Srms { eps } | Self::Layer { eps } => eps,
        }
    }

    /// Builds it for `size` channels.
    pub fn init(self, size: usize, init: &Init) -> Norm {
        match self {
            NormConfig::Rms { eps, unit_offset: false } => Norm::Rms(RmsNorm::new(size, eps, init)),
            NormConfig::Rms { eps, unit_offset: true } => Norm::Rms(RmsNorm::unit_offset(size, eps, init)),
            NormConfig::Srms { eps } => Norm::Srms(SrmsNorm::new(eps)),
            NormConfig::Layer { eps } => Norm::Layer(LayerNorm::new(size, eps, true, init)),
        }
    }
}

/// Any normalisation.
#[derive(Module, Debug)]
pub enum Norm {
    /// Root mean square only.
    Rms(RmsNorm),
    /// The same without a weight.
    Srms(SrmsNorm),
    /// Mean and variance.
    Layer(LayerNorm),
}

impl Norm {
    /// Normalises the last axis.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        match self {
            Norm::Rms(norm) => norm.forward(x),
            Norm::Srms(norm) => norm.forward(x),
            Norm::Layer(norm) => norm.forward(x),
        }
    }

    /// What it does, on its own.
    pub(crate) fn parts(&self) -> Normalize {
        match self {
            Norm::Rms(norm) => norm.parts(),
            Norm::Srms(norm) => Normalize::plain(Scaling::rms(norm.eps)),
            Norm::Layer(norm) => norm.parts(),
        }
    }
}
