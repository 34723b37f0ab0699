//! A causal convolution of every channel by itself, and SiLU after it where there is one, in one pass over the tokens
//! and one pass back:
//!
//! ```text
//! z_t = bias + Σ_j w_j ∘ x_{t+j},   y_t = silu(z_t)        (x starts with the K - 1 inputs before the call)
//! dz_t = dy_t ∘ silu'(z_t),   dx_s = Σ_j w_j ∘ dz_{s-j},   dw_j = Σ_t dz_t ∘ x_{t+j}
//! ```
//!
//! Floor: memory. 8 bytes per token and channel in `f32` forward, 12 backward; what comes before SiLU is made again.

mod rows;
#[cfg(test)]
mod tests;

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, DispatchDevice, Flex, backend_extension};
use burn::tensor::{DType, Tensor};

use self::rows::Inputs;
use super::vector::Vector;
use super::view::{Number, Primitive, view};

/// Whether the kernel can run these: `x: [b, K - 1 + t, c]` and `weight: [c, K]`.
pub(crate) fn applies(x: &Tensor<3>, weight: &Tensor<2>) -> bool {
    let ([b, rows, channels], [c, kernel]) = (x.dims(), weight.dims());
    b > 0
        && c > 0
        && channels == c
        && kernel > 0
        && rows >= kernel
        && x.dtype() == weight.dtype()
        && matches!(x.dtype(), DType::F32 | DType::F64)
        && matches!(x.device().inner().as_dispatch(), DispatchDevice::Flex(_))
}

/// `[b, t, c]` from `x: [b, K - 1 + t, c]`, `weight: [c, K]`, `bias: [c]`.
pub(crate) fn run(x: Tensor<3>, weight: Tensor<2>, bias: Option<Tensor<1>>, silu: bool) -> Tensor<3> {
    let dtype = x.dtype();
    let options = Options { bias: bias.is_some(), silu };
    let bias = bias.unwrap_or_else(|| Tensor::zeros([1], (&x.device().inner(), dtype))).cast(dtype);
    let bias = bias.unsqueeze::<4>().into_dispatch();
    let (x, weight) = (x.unsqueeze_dim::<4>(1).into_dispatch(), weight.unsqueeze::<4>().into_dispatch());
    Tensor::<4>::from_dispatch(<Dispatch as Conv>::conv(x, weight, bias, options)).squeeze_dim(1)
}

/// What there is beside the convolution itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    bias: bool,
    silu: bool,
}

/// The operation as backends see it: `x: [b, 1, K - 1 + t, c]`, `weight: [1, 1, c, K]`, `bias: [1, 1, 1, c]`.
#[backend_extension(Flex, Autodiff)]
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
struct Saved {
    x: Primitive,
    weight: Primitive,
    bias: Primitive,
    options: Options,
}

impl Saved {
    fn inputs<E: Number + Vector>(&self) -> Inputs<'_, E> {
        let Self { x, weight, bias, options } = self;
        Inputs::new(view(x), view(weight), options.bias.then(|| view(bias)), options.silu)
    }

    fn forward(&self) -> Primitive {
        match self.x.dtype() {
            DType::F64 => self.forward_in::<f64>(),
            _ => self.forward_in::<f32>(),
        }
    }

    fn forward_in<E: Number + Vector>(&self) -> Primitive {
        let inputs = self.inputs::<E>();
        let dims = inputs.out_dims();
        let mut y = vec![E::default(); dims.iter().product()];
        rows::forward(&inputs, &mut y);
        E::tensor(y, &dims)
    }

    /// Gradients of `x`, `weight` and `bias`, in this order.
    fn backward(&self, dy: &Primitive) -> [Primitive; 3] {
        match self.x.dtype() {
            DType::F64 => self.backward_in::<f64>(dy),
            _ => self.backward_in::<f32>(dy),
        }
    }

    fn backward_in<E: Number + Vector>(&self, dy: &Primitive) -> [Primitive; 3] {
        let inputs = self.inputs::<E>();
        let mut grads = rows::Gradients::filled(&inputs, E::default());
        rows::backward(&inputs, view(dy), &mut grads);
        let rows::Gradients { x, weight, bias } = grads;
        let channels = bias.len();
        let taps = weight.len() / channels;
        // Without a bias, one number stands for it.
        let bias = if self.options.bias { bias } else { vec![E::default()] };
        let width = bias.len();
        [
            E::tensor(x, &inputs.x_dims()),
            E::tensor(weight, &[1, 1, channels, taps]),
            E::tensor(bias, &[1, 1, 1, width]),
        ]
    }
}

impl Conv for Flex {
    fn conv(x: Primitive, weight: Primitive, bias: Primitive, options: Options) -> Primitive {
        Saved { x, weight, bias, options }.forward()
    }
}

#[derive(Debug)]
struct ConvBackward;

impl Backward<Flex, 3> for ConvBackward {
    type State = Saved;

    fn backward(self, ops: Ops<Saved, 3>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let dy = grads.consume::<Flex>(&ops.node);
        let found = ops.state.backward(&dy);
        for (parent, grad) in ops.parents.into_iter().zip(found) {
            if let Some(parent) = parent {
                grads.register::<Flex>(parent.id, grad);
            }
        }
    }
}

impl<C: CheckpointStrategy> Conv for Autodiff<Flex, C> {
    fn conv(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        options: Options,
    ) -> FloatTensor<Self> {
        let nodes = [&x, &weight, &bias].map(|x| x.node());
        let [x, weight, bias] = [x, weight, bias].map(|x| x.into_primitive());
        let saved = Saved { x, weight, bias, options };
        let y = saved.forward();
        match ConvBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(saved, y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }
}
