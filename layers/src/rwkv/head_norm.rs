//! Layer norm of each head.

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use crate::Init;
use crate::nn::{Gated, Normalize, Scaling};

/// `(y - mean) / sqrt(var + eps) w + b` over the channels of each head: group norm with a group per head.
#[derive(Module, Debug)]
pub struct HeadLayerNorm {
    /// `[h p]`
    pub weight: Param<Tensor<1>>,
    /// `[h p]`
    pub bias: Param<Tensor<1>>,
    #[module(skip)]
    eps: f64,
}

impl HeadLayerNorm {
    /// Scale 1 and bias 0 for `channels` of all heads together.
    pub fn new(channels: usize, eps: f64, init: &Init) -> Self {
        Self { weight: init.constant([channels], 1.0), bias: init.constant([channels], 0.0), eps }
    }

    /// `[b, h, t, p] -> [b, h, t, p]`, where `h p` is the number of channels.
    pub fn forward(&self, y: Tensor<4>) -> Tensor<4> {
        let [_, h, _, p] = y.dims();
        self.parts([1, h, 1, p]).run(y, None)
    }

    /// The same merged and gated: `[b, t, h p]`.
    pub(super) fn gated(&self, y: Tensor<4>, gate: Gated<3>) -> Tensor<3> {
        let [_, h, _, p] = y.dims();
        self.parts([1, 1, h, p]).heads(y, Some(gate))
    }

    fn parts(&self, dims: [usize; 4]) -> Normalize {
        let [weight, bias] = [&self.weight, &self.bias].map(|x| Some(x.val().reshape(dims)));
        Normalize { scaling: Scaling::layer(self.eps), weight, bias }
    }
}
