//! Normalisation over the last axis, or the last two together, with what stands around it in layers: a weight, a bias,
//! and a gate before or after; in one pass over the rows and one pass back:
//!
//! ```text
//! u = x, or x ∘ act(g)      c = u, or u - mean(u)      h = c / sqrt(k Σ c² + eps)      k = 1, or 1 / width
//! z = h ∘ (offset + w) + b, or gain h      y = z, or z ∘ act(g)
//! dc = (dh - h k Σ dh ∘ h) / sqrt(k Σ c² + eps)      du = dc, or dc - mean(dc)
//! ```
//!
//! Floor: memory. 8 bytes per number in `f32` forward, 12 backward, and 4 and 8 more with a gate; rows are normalised
//! again on the way back.

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
use crate::nn::Scaling;

/// What becomes of the values of a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Opening {
    /// Nothing
    Linear,
    /// `g sigmoid(g)`
    Silu,
    /// `sigmoid(g)`
    Sigmoid,
}

/// How a gate is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Gating {
    pub(crate) opening: Opening,
    /// To what comes in, not to what goes out.
    pub(crate) before: bool,
}

/// What is normalised, and with what.
#[derive(Clone, Debug)]
pub(crate) struct Inputs {
    /// `[a, b, m, n]`
    pub(crate) x: Tensor<4>,
    /// `[1, b or 1, m or 1, n]`, with one of the two; `[1, 1, m, n]` for joint rows
    pub(crate) weight: Option<Tensor<4>>,
    /// As the weight
    pub(crate) bias: Option<Tensor<4>>,
    /// As `x`
    pub(crate) gate: Option<(Tensor<4>, Gating)>,
}

impl Inputs {
    /// Whether a kernel can run these.
    pub(crate) fn applies(&self, joint: bool) -> bool {
        let Self { x, weight, bias, gate } = self;
        let [_, b, m, n] = x.dims();
        let scales = |w: &Tensor<4>| {
            let one = [1, 1, 1, n];
            let fits = if joint { [1, 1, m, n] == w.dims() } else { false };
            fits || !joint && [one, [1, b, 1, n], [1, 1, m, n]].contains(&w.dims())
        };
        let alike = match (weight, bias) {
            (Some(weight), Some(bias)) => weight.dims() == bias.dims(),
            (None, Some(_)) => false,
            _ => true,
        };
        let others = [weight.as_ref(), bias.as_ref(), gate.as_ref().map(|(gate, _)| gate)];
        alike
            && x.dims().iter().all(|&size| size > 0)
            && weight.as_ref().is_none_or(scales)
            && gate.as_ref().is_none_or(|(gate, _)| gate.dims() == x.dims())
            && others.iter().flatten().all(|other| other.dtype() == x.dtype())
            && self.has_kernel(joint)
    }

    #[allow(unused_variables, reason = "which are used depends on the features")]
    fn has_kernel(&self, joint: bool) -> bool {
        #[cfg(feature = "flex")]
        if super::view::fits(&self.x) {
            return true;
        }
        #[cfg(feature = "cube")]
        if super::cube::normalises(&self.x, joint) {
            return true;
        }
        false
    }

    /// `[a, b, m, n]`
    pub(crate) fn run(self, scaling: Scaling) -> Tensor<4> {
        let Self { x, weight, bias, gate } = self;
        let options = Options {
            scaling,
            weight: weight.is_some(),
            bias: bias.is_some(),
            gate: gate.as_ref().map(|(_, gating)| *gating),
        };
        // In place of what there is not: it is neither read nor differentiated.
        let given =
            |x: Option<Tensor<4>>, instead: &Tensor<4>| x.unwrap_or_else(|| instead.clone()).into_dispatch();
        let (weight, bias) = (given(weight, &x), given(bias, &x));
        let gate = given(gate.map(|(gate, _)| gate), &x);
        Tensor::from_dispatch(<Dispatch as Norm>::norm(x.into_dispatch(), weight, bias, gate, options))
    }
}

/// What is done, and which inputs there are beside `x`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    pub(super) scaling: Scaling,
    pub(super) weight: bool,
    pub(super) bias: bool,
    pub(super) gate: Option<Gating>,
}

/// The operation as backends see it; see [`Inputs`].
#[backend_extension(Flex: cfg(feature = "flex"), Cube: cfg(feature = "cube"), Autodiff)]
pub(crate) trait Norm: Backend {
    /// See [`Inputs::run`].
    fn norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        options: Options,
    ) -> FloatTensor<Self>;
}

/// What both passes read.
#[derive(Clone, Debug)]
pub(crate) struct Read<B: Backend> {
    pub(super) x: FloatTensor<B>,
    pub(super) weight: FloatTensor<B>,
    pub(super) bias: FloatTensor<B>,
    pub(super) gate: FloatTensor<B>,
    pub(super) options: Options,
}

/// How the rows of `[a, b, m, n]` lie, and how they share weights.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) rows: usize,
    /// Numbers of a row
    pub(super) width: usize,
    /// Rows of the weight
    pub(super) groups: usize,
    /// Rows one after another that share one of them
    pub(super) inner: usize,
}

impl Shape {
    pub(super) fn new([a, b, m, n]: [usize; 4], weight: Option<[usize; 4]>, joint: bool) -> Self {
        if joint {
            return Self { rows: a * b, width: m * n, groups: 1, inner: a * b };
        }
        let rows = a * b * m;
        let (groups, inner) = match weight {
            Some([_, groups, 1, _]) if groups > 1 => (groups, m),
            Some([_, _, groups, _]) if groups > 1 => (groups, 1),
            _ => (1, rows),
        };
        Self { rows, width: n, groups, inner }
    }

    /// Which row of the weight is row `row`'s.
    pub(super) fn group(self, row: usize) -> usize {
        row / self.inner % self.groups
    }
}

/// A backend's kernels.
pub(crate) trait Passes: Backend {
    /// See [`Inputs::run`].
    fn forward(read: &Read<Self>) -> FloatTensor<Self>;

    /// Gradients of `x`, weight, bias and gate, in this order, where there are such.
    fn backward(read: Read<Self>, dy: FloatTensor<Self>) -> [Option<FloatTensor<Self>>; 4];
}

macro_rules! norm_of {
    ($($backend:ty, $feature:literal;)*) => {$(
        #[cfg(feature = $feature)]
        impl Norm for $backend {
            fn norm(
                x: FloatTensor<Self>,
                weight: FloatTensor<Self>,
                bias: FloatTensor<Self>,
                gate: FloatTensor<Self>,
                options: Options,
            ) -> FloatTensor<Self> {
                Self::forward(&Read { x, weight, bias, gate, options })
            }
        }
    )*};
}

norm_of!(burn::backend::Flex, "flex"; Cube, "cube";);

impl<B: Passes> gradient::Saved<B, 4> for Read<B> {
    fn gradients(self, dy: FloatTensor<B>, _wanted: [bool; 4]) -> [Option<FloatTensor<B>>; 4] {
        B::backward(self, dy)
    }
}

impl<B: Norm + Passes, C: CheckpointStrategy> Norm for Autodiff<B, C> {
    fn norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        options: Options,
    ) -> FloatTensor<Self> {
        let nodes = [&x, &weight, &bias, &gate].map(|x| x.node());
        let [x, weight, bias, gate] = [x, weight, bias, gate].map(|x| x.into_primitive());
        let read = Read::<B> { x, weight, bias, gate, options };
        track::<B, C, _, 4>(nodes, |_| (B::forward(&read), read))
    }
}
