//! A causal convolution of every channel by itself, and SiLU after it where there is one, in one pass over the tokens
//! and one pass back:
//!
//! ```text
//! z_t = bias + Σ_j w_j ∘ x_{t+j},   y_t = silu(z_t)        (x starts with the K - 1 inputs before the call)
//! dz_t = dy_t ∘ silu'(z_t),   dx_s = Σ_j w_j ∘ dz_{s-j},   dw_j = Σ_t dz_t ∘ x_{t+j}
//! ```
//!
//! Floor: memory. 8 bytes per token and channel in `f32` forward, 12 backward; what comes before SiLU is made again.

#[cfg(feature = "flex")]
mod flex;
#[cfg(feature = "flex")]
mod rows;
#[cfg(all(test, feature = "flex"))]
mod tests;

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, backend_extension};
use burn::tensor::Tensor;
#[cfg(feature = "cube")]
use burn_cubecl::CubeBackend as Cube;

use super::gradient::{self, track};

/// Whether a kernel can run these: `x: [b, K - 1 + t, c]` and `weight: [c, K]`.
pub(crate) fn applies(x: &Tensor<3>, weight: &Tensor<2>) -> bool {
    let ([b, rows, channels], [c, kernel]) = (x.dims(), weight.dims());
    b > 0
        && c > 0
        && channels == c
        && kernel > 0
        && rows >= kernel
        && x.dtype() == weight.dtype()
        && device_applies(x, kernel)
}

/// Whether there is a kernel where `x` lies.
#[allow(unused_variables, reason = "which are used depends on the features")]
fn device_applies(x: &Tensor<3>, kernel: usize) -> bool {
    #[cfg(feature = "flex")]
    if super::view::fits(x) {
        return true;
    }
    #[cfg(feature = "cube")]
    if super::cube::convolves(x, kernel) {
        return true;
    }
    false
}

/// `[b, t, c]` from `x: [b, K - 1 + t, c]`, `weight: [c, K]`, `bias: [c]`.
pub(crate) fn run(x: Tensor<3>, weight: Tensor<2>, bias: Option<Tensor<1>>, silu: bool) -> Tensor<3> {
    let dtype = x.dtype();
    let options = Options { bias: bias.is_some(), silu };
    let bias = bias.unwrap_or_else(|| Tensor::empty([1], (&x.device().inner(), dtype))).cast(dtype);
    let bias = bias.unsqueeze::<4>().into_dispatch();
    let (x, weight) = (x.unsqueeze_dim::<4>(1).into_dispatch(), weight.unsqueeze::<4>().into_dispatch());
    Tensor::<4>::from_dispatch(<Dispatch as Conv>::conv(x, weight, bias, options)).squeeze_dim(1)
}

/// What there is beside the convolution itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    pub(super) bias: bool,
    pub(super) silu: bool,
}

/// The operation as backends see it: `x: [b, 1, K - 1 + t, c]`, `weight: [1, 1, c, K]`, `bias: [1, 1, 1, c]`.
#[backend_extension(Flex: cfg(feature = "flex"), Cube: cfg(feature = "cube"), Autodiff)]
pub(crate) trait Conv: Backend {
    /// See [`run`].
    fn conv(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        options: Options,
    ) -> FloatTensor<Self>;
}

/// What both passes read.
#[derive(Clone, Debug)]
pub(crate) struct Read<B: Backend> {
    pub(super) x: FloatTensor<B>,
    pub(super) weight: FloatTensor<B>,
    pub(super) bias: FloatTensor<B>,
    pub(super) options: Options,
}

/// A backend's kernels.
pub(crate) trait Passes: Backend {
    /// See [`run`].
    fn forward(read: &Read<Self>) -> FloatTensor<Self>;

    /// Gradients of `x`, `weight` and `bias`, in this order.
    fn backward(read: Read<Self>, dy: FloatTensor<Self>) -> [FloatTensor<Self>; 3];
}

macro_rules! conv_of {
    ($($backend:ty, $feature:literal;)*) => {$(
        #[cfg(feature = $feature)]
        impl Conv for $backend {
            fn conv(
                x: FloatTensor<Self>,
                weight: FloatTensor<Self>,
                bias: FloatTensor<Self>,
                options: Options,
            ) -> FloatTensor<Self> {
                Self::forward(&Read { x, weight, bias, options })
            }
        }
    )*};
}

conv_of!(burn::backend::Flex, "flex"; Cube, "cube";);

impl<B: Passes> gradient::Saved<B, 3> for Read<B> {
    fn gradients(self, dy: FloatTensor<B>, _wanted: [bool; 3]) -> [Option<FloatTensor<B>>; 3] {
        B::backward(self, dy).map(Some)
    }
}

impl<B: Conv + Passes, C: CheckpointStrategy> Conv for Autodiff<B, C> {
    fn conv(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        options: Options,
    ) -> FloatTensor<Self> {
        let nodes = [&x, &weight, &bias].map(|x| x.node());
        let [x, weight, bias] = [x, weight, bias].map(|x| x.into_primitive());
        let read = Read::<B> { x, weight, bias, options };
        track::<B, C, _, 3>(nodes, |_| (B::forward(&read), read))
    }
}
