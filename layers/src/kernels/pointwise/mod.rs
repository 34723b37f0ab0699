//! Functions of single numbers, of up to three tensors and two parameters per channel, in one pass and one pass back,
//! where tensor operations would take one for every sign.
//!
//! Floor: memory. 4 bytes per number of every tensor in `f32`, and 4 of the output.

#[cfg(feature = "flex")]
mod flex;
#[cfg(feature = "flex")]
mod formulas;
#[cfg(all(test, feature = "flex"))]
mod tests;

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, backend_extension};
use burn::tensor::Tensor;
#[cfg(feature = "cube")]
use burn_cubecl::CubeBackend as Cube;

use super::gradient::{self, track};
use crate::nn::Formula;

/// Tensors `[a, b, m, n]`, and parameters `[1, 1, 1, n]` or `[1, 1, m, n]`.
#[derive(Clone, Debug)]
pub(crate) struct Inputs {
    pub(crate) tensors: Vec<Tensor<4>>,
    pub(crate) parameters: Vec<Tensor<4>>,
}

impl Inputs {
    /// Whether a kernel can run these.
    pub(crate) fn applies(&self, formula: Formula) -> bool {
        let Self { tensors, parameters } = self;
        if (tensors.len(), parameters.len()) != formula.function.arity() {
            return false;
        }
        let first = &tensors[0];
        let [.., m, n] = first.dims();
        let columns = |p: &Tensor<4>| [[1, 1, 1, n], [1, 1, m, n]].contains(&p.dims());
        first.dims().iter().all(|&size| size > 0)
            && tensors.iter().all(|x| x.dims() == first.dims())
            && parameters.iter().all(|p| columns(p) && p.dims() == parameters[0].dims())
            && tensors.iter().chain(parameters).all(|x| x.dtype() == first.dtype())
            && has_kernel(first)
    }

    /// `[a, b, m, n]`
    pub(crate) fn run(self, formula: Formula) -> Tensor<4> {
        let Self { tensors, parameters } = self;
        // In place of what the function does not take: it is neither read nor differentiated.
        let pick = |from: &[Tensor<4>], i: usize| from.get(i).unwrap_or(&tensors[0]).clone().into_dispatch();
        let [x, y, z] = std::array::from_fn(|i| pick(&tensors, i));
        let [p, q] = std::array::from_fn(|i| pick(&parameters, i));
        Tensor::from_dispatch(<Dispatch as Pointwise>::pointwise(x, y, z, p, q, formula))
    }
}

#[allow(unused_variables, reason = "it is used where there is a backend")]
fn has_kernel(x: &Tensor<4>) -> bool {
    #[cfg(feature = "flex")]
    if super::view::fits(x) {
        return true;
    }
    #[cfg(feature = "cube")]
    if super::cube::maps(x) {
        return true;
    }
    false
}

/// The operation as backends see it; see [`Inputs`].
#[backend_extension(Flex: cfg(feature = "flex"), Cube: cfg(feature = "cube"), Autodiff)]
pub(crate) trait Pointwise: Backend {
    /// See [`Inputs::run`].
    fn pointwise(
        x: FloatTensor<Self>,
        y: FloatTensor<Self>,
        z: FloatTensor<Self>,
        p: FloatTensor<Self>,
        q: FloatTensor<Self>,
        formula: Formula,
    ) -> FloatTensor<Self>;
}

/// What both passes read: `x`, `y`, `z`, `p`, `q`.
#[derive(Clone, Debug)]
pub(crate) struct Read<B: Backend> {
    pub(super) all: [FloatTensor<B>; 5],
    pub(super) formula: Formula,
}

/// A backend's kernels.
pub(crate) trait Passes: Backend {
    /// See [`Inputs::run`].
    fn forward(read: &Read<Self>) -> FloatTensor<Self>;

    /// Gradients of all inputs, in their order, where there are such.
    fn backward(read: Read<Self>, dy: FloatTensor<Self>) -> [Option<FloatTensor<Self>>; 5];
}

macro_rules! pointwise_of {
    ($($backend:ty, $feature:literal;)*) => {$(
        #[cfg(feature = $feature)]
        impl Pointwise for $backend {
            fn pointwise(
                x: FloatTensor<Self>,
                y: FloatTensor<Self>,
                z: FloatTensor<Self>,
                p: FloatTensor<Self>,
                q: FloatTensor<Self>,
                formula: Formula,
            ) -> FloatTensor<Self> {
                Self::forward(&Read { all: [x, y, z, p, q], formula })
            }
        }
    )*};
}

pointwise_of!(burn::backend::Flex, "flex"; Cube, "cube";);

impl<B: Passes> gradient::Saved<B, 5> for Read<B> {
    fn gradients(self, dy: FloatTensor<B>, _wanted: [bool; 5]) -> [Option<FloatTensor<B>>; 5] {
        B::backward(self, dy)
    }
}

impl<B: Pointwise + Passes, C: CheckpointStrategy> Pointwise for Autodiff<B, C> {
    fn pointwise(
        x: FloatTensor<Self>,
        y: FloatTensor<Self>,
        z: FloatTensor<Self>,
        p: FloatTensor<Self>,
        q: FloatTensor<Self>,
        formula: Formula,
    ) -> FloatTensor<Self> {
        let all = [x, y, z, p, q];
        let nodes = all.each_ref().map(|x| x.node());
        let read = Read::<B> { all: all.map(|x| x.into_primitive()), formula };
        track::<B, C, _, 5>(nodes, |_| (B::forward(&read), read))
    }
}
