//! One state per channel, `h_t = e^{log a_t} ∘ h_{t-1} + u_t`, in one pass over the tokens, and one pass back:
//!
//! ```text
//! dh_t = dy_t + a_{t+1} dh_{t+1},   du_t = dh_t,   d(log a_t) = dh_t a_t h_{t-1}
//! ```
//!
//! Floor: memory. 12 bytes per token and channel in `f32` forward (two numbers read, one written), 20 backward; decays
//! are made again from their logarithms.

mod channels;
#[cfg(test)]
mod tests;

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, DispatchDevice, Flex, backend_extension};
use burn::tensor::{DType, Tensor};

use self::channels::Inputs;
use super::vector::Vector;
use super::view::{Number, Primitive, view};

/// Whether the kernel can run these: `u: [b, h, t, n]`, `log_a` that expands to it, and the memory `[b, h, n, 1]`.
pub(crate) fn applies(log_a: &Tensor<4>, u: &Tensor<4>, memory: &Tensor<4>) -> bool {
    let [b, h, t, n] = u.dims();
    let expands = log_a.dims().iter().zip([b, h, t, n]).all(|(&given, size)| given == size || given == 1);
    expands
        && memory.dims() == [b, h, n, 1]
        && [b, h, t, n].iter().all(|&size| size > 0)
        && [log_a, memory].iter().all(|x| x.dtype() == u.dtype())
        && matches!(u.dtype(), DType::F32 | DType::F64)
        && matches!(u.device().inner().as_dispatch(), DispatchDevice::Flex(_))
}

/// The states after every token, `[b, h, t, n]`, and the last memory, `[b, h, n, 1]`.
pub(crate) fn run(log_a: Tensor<4>, u: Tensor<4>, memory: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
    let t = u.dims()[2];
    let log_a = log_a.expand(u.dims());
    let [log_a, u, memory] = [log_a, u, memory].map(Tensor::into_dispatch);
    let y = Tensor::<4>::from_dispatch(<Dispatch as Scan>::scan(log_a, u, memory));
    let last = y.clone().narrow(2, t - 1, 1).swap_dims(2, 3);
    (y, last)
}

/// The operation as backends see it.
#[backend_extension(Flex, Autodiff)]
pub(crate) trait Scan: Backend {
    /// See [`run`].
    fn scan(log_a: FloatTensor<Self>, u: FloatTensor<Self>, memory: FloatTensor<Self>) -> FloatTensor<Self>;
}

fn forward(log_a: &Primitive, u: &Primitive, memory: &Primitive) -> Primitive {
    match u.dtype() {
        DType::F64 => forward_in::<f64>(log_a, u, memory),
        _ => forward_in::<f32>(log_a, u, memory),
    }
}

fn forward_in<E: Number + Vector>(log_a: &Primitive, u: &Primitive, memory: &Primitive) -> Primitive {
    let u = view::<E>(u);
    let mut y = vec![E::default(); u.dims.iter().product()];
    channels::forward(&Inputs { log_a: view(log_a), memory: view(memory) }, u, &mut y);
    E::tensor(y, &u.dims)
}

/// What the backward pass starts from.
#[derive(Clone, Debug)]
struct Saved {
    log_a: Primitive,
    memory: Primitive,
    /// The states, which are the outputs
    y: Primitive,
}

impl Saved {
    /// Gradients of `log_a`, `u` and the memory, in this order.
    fn backward(&self, dy: &Primitive) -> [Primitive; 3] {
        match self.y.dtype() {
            DType::F64 => self.backward_in::<f64>(dy),
            _ => self.backward_in::<f32>(dy),
        }
    }

    fn backward_in<E: Number + Vector>(&self, dy: &Primitive) -> [Primitive; 3] {
        let inputs = Inputs { log_a: view::<E>(&self.log_a), memory: view(&self.memory) };
        let mut grads = channels::Gradients::filled(&inputs, E::default());
        channels::backward(&inputs, view(&self.y), view(dy), &mut grads);
        let channels::Gradients { log_a, u, memory } = grads;
        let dims = inputs.log_a.dims;
        [E::tensor(log_a, &dims), E::tensor(u, &dims), E::tensor(memory, &inputs.memory.dims)]
    }
}

impl Scan for Flex {
    fn scan(log_a: Primitive, u: Primitive, memory: Primitive) -> Primitive {
        forward(&log_a, &u, &memory)
    }
}

#[derive(Debug)]
struct ScanBackward;

impl Backward<Flex, 3> for ScanBackward {
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

impl<C: CheckpointStrategy> Scan for Autodiff<Flex, C> {
    fn scan(log_a: FloatTensor<Self>, u: FloatTensor<Self>, memory: FloatTensor<Self>) -> FloatTensor<Self> {
        let nodes = [&log_a, &u, &memory].map(|x| x.node());
        let [log_a, u, memory] = [log_a, u, memory].map(|x| x.into_primitive());
        let y = forward(&log_a, &u, &memory);
        match ScanBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(Saved { log_a, memory, y: y.clone() }, y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }
}
