//! Linear maps.

use burn::module::{Module, Param};
use burn::tensor::Tensor;

#[cfg(feature = "flex")]
use crate::kernels;

/// `x W + b` over the last axis. Burn's own module of this name in all but how few tokens are multiplied, as when
/// decoding: on the CPU by a kernel.
#[derive(Module, Debug)]
pub struct Linear {
    /// `W: [in, out]`
    pub weight: Param<Tensor<2>>,
    /// `b: [out]`
    pub bias: Option<Param<Tensor<1>>>,
}

impl Linear {
    /// Maps the last axis, whose size must be `in`.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        project(x, self.weight.val(), self.bias.as_ref().map(|bias| bias.val()))
    }
}

/// `x W + b` over the last axis, of size `in`: `W: [in, out]`, `b: [out]`.
pub fn project<const D: usize>(x: Tensor<D>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<D> {
    #[cfg(feature = "flex")]
    if kernels::enabled() {
        let mut dims = x.dims();
        let rows = dims[..D - 1].iter().product();
        if kernels::linear::FEW.contains(&rows) {
            let x = x.clone().reshape([rows, dims[D - 1]]);
            if let Some(y) = kernels::linear::run(&x, &weight, bias.as_ref()) {
                dims[D - 1] = weight.dims()[1];
                return y.reshape(dims);
            }
        }
    }
    burn::tensor::module::linear(x, weight, bias)
}
