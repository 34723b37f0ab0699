//! A causal convolution of every channel by itself, and SiLU after it where there is one, in one pass over the tokens
//! and one pass back:
//!
//! ```text
//! z_t = bias + Σ_j w_j ∘ x_{t+j},   y_t = silu(z_t)        (counted from the first of the K - 1 inputs before the call)
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

/// Whether a kernel can run these: `x: [b, t, c]` after `tail: [b, K - 1, c]` and `weight: [c, K]`.
pub(crate) fn applies(x: &Tensor<3>, tail: &Tensor<3>, weight: &Tensor<2>) -> bool {
    let ([b, t, channels], [c, kernel]) = (x.dims(), weight.dims());
    b > 0
        && t > 0
        && c > 0
        && channels == c
        && kernel > 0
        && tail.dims() == [b, kernel - 1, c]
        && tail.dtype() == x.dtype()
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

/// `[b, t, c]` from `x: [b, t, c]` after `tail: [b, K - 1, c]`, `weight: [c, K]`, `bias: [c]`; and the last `K - 1`
/// inputs, `[b, K - 1, c]`, if they are to be `kept`, there are any, and nothing is differentiated.
pub(crate) fn run(
    x: Tensor<3>,
    tail: Tensor<3>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    silu: bool,
    kept: bool,
) -> (Tensor<3>, Option<Tensor<3>>) {
    let (all, options, kept) = arguments(x, tail, weight, bias, silu, kept);
    #[cfg(feature = "flex")]
    if let Some(found) = Read::<burn::backend::Flex>::untracked(&all, options, kept) {
        return found;
    }
    #[cfg(feature = "cube")]
    if let Some(found) = Read::<Cube>::untracked(&all, options, kept) {
        return found;
    }
    let [x, tail, weight, bias] = all.map(Tensor::into_dispatch);
    let y = <Dispatch as Conv>::conv(x, tail, weight, bias, options);
    (Tensor::<4>::from_dispatch(y).squeeze_dim(1), None)
}

/// [`run`] in tensors of `widths` channels each, on a graphics device without gradients.
#[cfg(feature = "cube")]
pub(crate) fn run_parts<const N: usize>(
    x: Tensor<3>,
    tail: Tensor<3>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    (silu, kept): (bool, bool),
    widths: [usize; N],
) -> Option<([Tensor<3>; N], Option<Tensor<3>>)> {
    let (all, options, kept) = arguments(x, tail, weight, bias, silu, kept);
    let read = Read::<Cube>::plain(&all, options)?;
    let (parts, last) = super::cube::convolve_parts(&read, kept, &widths)?;
    let whole = |x| Tensor::<4>::from_primitive::<Cube>(x).squeeze_dim(1);
    let parts: Vec<Tensor<3>> = parts.into_iter().map(whole).collect();
    Some((parts.try_into().ok()?, last.map(whole)))
}

/// Outputs and last inputs, as [`run`] has them, of several `(x, tail, weight)` in one launch, on a graphics device without
/// gradients.
#[cfg(feature = "cube")]
pub(crate) fn run_several(
    all: Vec<(Tensor<3>, Tensor<3>, Tensor<2>)>,
    silu: bool,
) -> Option<Vec<[Tensor<3>; 2]>> {
    let read = |(x, tail, weight): (Tensor<3>, Tensor<3>, Tensor<2>)| {
        if !applies(&x, &tail, &weight) {
            return None;
        }
        let (all, options, _) = arguments(x, tail, weight, None, silu, true);
        Read::<Cube>::plain(&all, options)
    };
    let reads: Vec<Read<Cube>> = all.into_iter().map(read).collect::<Option<_>>()?;
    let found = super::cube::convolve_several(&reads)?;
    let whole = |x| Tensor::<4>::from_primitive::<Cube>(x).squeeze_dim(1);
    Some(found.into_iter().map(|both| both.map(whole)).collect())
}

/// What backends are given, and whether the last inputs are to be kept.
fn arguments(
    x: Tensor<3>,
    tail: Tensor<3>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    silu: bool,
    kept: bool,
) -> ([Tensor<4>; 4], Options, bool) {
    let dtype = x.dtype();
    let options = Options { bias: bias.is_some(), silu };
    let bias = bias.unwrap_or_else(|| Tensor::empty([1], (&x.device().inner(), dtype))).cast(dtype);
    let early = weight.dims()[1] > 1;
    let x = x.unsqueeze_dim::<4>(1);
    // In place of what there is not: it is neither read nor differentiated, so it must be the very tensor that is.
    let tail = if early { tail.unsqueeze_dim::<4>(1) } else { x.clone() };
    ([x, tail, weight.unsqueeze::<4>(), bias.unsqueeze::<4>()], options, kept && early)
}

/// What there is beside the convolution itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    pub(super) bias: bool,
    pub(super) silu: bool,
}

/// The operation as backends see it: `x: [b, 1, t, c]`, `tail: [b, 1, K - 1, c]`, `weight: [1, 1, c, K]`,
/// `bias: [1, 1, 1, c]`.
#[backend_extension(Flex: cfg(feature = "flex"), Cube: cfg(feature = "cube"), Autodiff)]
pub(crate) trait Conv: Backend {
    /// See [`run`].
    fn conv(
        x: FloatTensor<Self>,
        tail: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        options: Options,
    ) -> FloatTensor<Self>;
}

/// What both passes read.
#[derive(Clone, Debug)]
pub(crate) struct Read<B: Backend> {
    pub(super) x: FloatTensor<B>,
    pub(super) tail: FloatTensor<B>,
    pub(super) weight: FloatTensor<B>,
    pub(super) bias: FloatTensor<B>,
    pub(super) options: Options,
}

/// A backend's kernels.
pub(crate) trait Passes: Backend {
    /// The outputs, and the last `K - 1` inputs if they are to be `kept`, `[b, 1, K - 1, c]`.
    fn forward(read: &Read<Self>, kept: bool) -> (FloatTensor<Self>, Option<FloatTensor<Self>>);

    /// Gradients of `x`, the tail if there is one, `weight` and `bias`, in this order.
    fn backward(read: Read<Self>, dy: FloatTensor<Self>) -> [Option<FloatTensor<Self>>; 4];
}

macro_rules! conv_of {
    ($($backend:ty, $feature:literal;)*) => {$(
        #[cfg(feature = $feature)]
        impl Conv for $backend {
            fn conv(
                x: FloatTensor<Self>,
                tail: FloatTensor<Self>,
                weight: FloatTensor<Self>,
                bias: FloatTensor<Self>,
                options: Options,
            ) -> FloatTensor<Self> {
                Self::forward(&Read { x, tail, weight, bias, options }, false).0
            }
        }

        #[cfg(feature = $feature)]
        impl Read<$backend> {
            /// What [`run`] finds for `x`, the tail, the weight and the bias, if they lie there without gradients.
            fn untracked(
                all: &[Tensor<4>; 4],
                options: Options,
                kept: bool,
            ) -> Option<(Tensor<3>, Option<Tensor<3>>)> {
                let (y, last) = Passes::forward(&Self::plain(all, options)?, kept);
                let whole = |x| Tensor::<4>::from_primitive::<$backend>(x).squeeze_dim(1);
                Some((whole(y), last.map(whole)))
            }

            /// These, if they lie there without gradients.
            fn plain(all: &[Tensor<4>; 4], options: Options) -> Option<Self> {
                let plain = |i: usize| all[i].clone().try_into_primitive::<$backend>().ok();
                Some(Self { x: plain(0)?, tail: plain(1)?, weight: plain(2)?, bias: plain(3)?, options })
            }
        }
    )*};
}

conv_of!(burn::backend::Flex, "flex"; Cube, "cube";);

impl<B: Passes> gradient::Saved<B, 4> for Read<B> {
    fn gradients(self, dy: FloatTensor<B>, _wanted: [bool; 4]) -> [Option<FloatTensor<B>>; 4] {
        B::backward(self, dy)
    }
}

impl<B: Conv + Passes, C: CheckpointStrategy> Conv for Autodiff<B, C> {
    fn conv(
        x: FloatTensor<Self>,
        tail: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        options: Options,
    ) -> FloatTensor<Self> {
        let nodes = [&x, &tail, &weight, &bias].map(|x| x.node());
        let [x, tail, weight, bias] = [x, tail, weight, bias].map(|x| x.into_primitive());
        let read = Read::<B> { x, tail, weight, bias, options };
        track::<B, C, _, 4>(nodes, |_| (B::forward(&read, false).0, read))
    }
}
