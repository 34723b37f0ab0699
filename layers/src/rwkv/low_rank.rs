//! A map through a narrow middle.

use burn::module::Module;
use burn::tensor::Tensor;

use crate::Init;
use crate::nn::Linear;

/// `W_up f(W_down x) + b`
#[derive(Module, Debug)]
pub struct LowRank {
    /// `W_down: [d, rank]`
    pub down: Linear,
    /// `W_up: [rank, out]`, `b: [out]`
    pub up: Linear,
}

impl LowRank {
    /// Small maps, so that the result starts close to the bias; none for `None`. The authors start with
    /// `W_down = 0`; here both maps learn from the first step.
    pub(super) fn new(
        d_model: usize,
        rank: usize,
        out: usize,
        bias: Option<Vec<f32>>,
        init: &mut Init,
    ) -> Self {
        let std = 0.1 / (d_model as f64).sqrt();
        Self {
            down: init.linear_std(d_model, rank, std, false),
            up: Linear {
                weight: init.normal([rank, out], 0.1 / (rank as f64).sqrt()),
                bias: bias.map(|bias| init.param([out], bias)),
            },
        }
    }

    /// `[b, t, d] -> [b, t, out]`
    pub fn forward(&self, x: Tensor<3>, middle: impl Fn(Tensor<3>) -> Tensor<3>) -> Tensor<3> {
        self.up.forward(middle(self.down.forward(x)))
    }

    /// Operations per token.
    pub(super) fn flops(&self) -> usize {
        let ([d, rank], [_, out]) = (self.down.weight.dims(), self.up.weight.dims());
        2 * rank * (d + out)
    }
}
