//! Lightning attention's tiling (arXiv 2401.04658) for any decay that is one number per head and token: blocks of
//! tokens are quadratic inside and pass a memory on. The graph holds the inputs, the outputs and one memory for every
//! few blocks, from which the backward pass recomputes those between.

pub(super) mod blocks;
mod decay;
#[cfg(test)]
mod tests;

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, DispatchDevice, Flex, backend_extension};
use burn::tensor::{DType, Tensor, TensorData};

use self::blocks::{Inputs, View};
use super::dense::Real;

/// Tokens per block beyond which more of them only make it slower.
const LARGEST_BLOCK: usize = 128;

/// Whether the kernel can run these: `q`, `k`, `v` and the memory as the engine has them.
pub(crate) fn applies(q: &Tensor<4>, k: &Tensor<4>, v: &Tensor<4>, memory: &Tensor<4>) -> bool {
    let ([b, h, t, n], [.., p]) = (k.dims(), v.dims());
    let shapes = q.dims() == k.dims() && v.dims() == [b, h, t, p] && memory.dims() == [b, h, n, p];
    let types = [q, k, v, memory].iter().all(|x| x.dtype() == k.dtype());
    shapes
        && types
        && [b, h, t, n, p].iter().all(|&size| size > 0)
        && matches!(k.dtype(), DType::F32 | DType::F64)
        && matches!(k.device().inner().as_dispatch(), DispatchDevice::Flex(_))
}

/// `H_t = exp(log_a_t) H_{t-1} + k_t v_tᵀ`, `y_t = H_tᵀ q_t` in blocks of `block` tokens; without `log_a` nothing
/// decays. Returns `y: [b, h, t, p]` and the last memory.
pub(crate) fn run(
    log_a: Option<Tensor<3>>,
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    memory: Tensor<4>,
    block: usize,
) -> (Tensor<4>, Tensor<4>) {
    let [b, h, t, n] = k.dims();
    let log_a = log_a.unwrap_or_else(|| Tensor::zeros([1, 1, 1], (&k.device().inner(), k.dtype())));
    let log_a = log_a.cast(k.dtype()).expand([b, h, t]);
    let [q, k, v, memory] = [q, k, v, memory].map(Tensor::into_dispatch);
    let block = block.min(LARGEST_BLOCK);
    let out = <Dispatch as Tiled>::tiled(q, k, v, log_a.into_dispatch(), memory, block);
    let out = Tensor::<4>::from_dispatch(out);
    (out.clone().narrow(2, 0, t), out.narrow(2, t, n))
}

/// The operation as backends see it. One tensor can come out, so the memory is below the outputs:
/// `[b, h, t + n, p]`.
#[backend_extension(Flex, Autodiff)]
pub(crate) trait Tiled: Backend {
    /// See [`run`].
    fn tiled(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        log_a: FloatTensor<Self>,
        memory: FloatTensor<Self>,
        block: usize,
    ) -> FloatTensor<Self>;
}

/// A tensor on Flex.
pub(super) type Primitive = FloatTensor<Flex>;

/// Numbers that tensors on Flex hold.
pub(super) trait Number: Real {
    fn numbers(tensor: &Primitive) -> &[Self];
    fn tensor(numbers: Vec<Self>, shape: &[usize]) -> Primitive;
}

macro_rules! number {
    ($($number:ty)*) => {$(
        impl Number for $number {
            fn numbers(tensor: &Primitive) -> &[Self] {
                tensor.storage()
            }

            fn tensor(numbers: Vec<Self>, shape: &[usize]) -> Primitive {
                Primitive::from_data(TensorData::new(numbers, shape.to_vec()))
            }
        }
    )*};
}

number!(f32 f64);

/// `tensor: [b, h, ..]` as a view of rank 4.
pub(super) fn view<E: Number>(tensor: &Primitive) -> View<'_, E> {
    let layout = tensor.layout();
    let (mut dims, mut strides) = ([1; 4], [1; 4]);
    for (i, (dim, stride)) in layout.shape().iter().zip(layout.strides()).enumerate() {
        (dims[i], strides[i]) = (*dim, *stride);
    }
    View { numbers: E::numbers(tensor), start: layout.start_offset(), dims, strides }
}

/// What the operation reads.
#[derive(Clone, Debug)]
struct Call {
    q: Primitive,
    k: Primitive,
    v: Primitive,
    log_a: Primitive,
    memory: Primitive,
    block: usize,
}

impl Call {
    fn inputs<E: Number>(&self) -> Inputs<'_, E> {
        let Self { q, k, v, log_a, memory, .. } = self;
        Inputs { q: view(q), k: view(k), v: view(v), log_a: view(log_a), memory: view(memory) }
    }

    /// The outputs `[b, h, t + n, p]` and the memories that the backward pass starts from, none unless they are to
    /// be kept.
    fn forward(&self, keep: bool) -> (Primitive, Primitive) {
        match self.k.dtype() {
            DType::F64 => self.forward_in::<f64>(keep),
            _ => self.forward_in::<f32>(keep),
        }
    }

    fn forward_in<E: Number>(&self, keep: bool) -> (Primitive, Primitive) {
        let inputs = self.inputs::<E>();
        let ([b, h, t, n], [.., p]) = (inputs.k.dims, inputs.v.dims);
        let mut out = vec![E::default(); b * h * (t + n) * p];
        let mut kept = if keep { blocks::kept(&inputs, self.block) } else { Vec::new() };
        blocks::forward(&inputs, self.block, &mut out, &mut kept);
        let count = kept.len();
        (E::tensor(out, &[b, h, t + n, p]), E::tensor(kept, &[count]))
    }

    /// Gradients of `q`, `k`, `v`, `log_a` and the memory, in this order; that of `log_a` is 0 where it is not
    /// wanted.
    fn backward(&self, out: &Primitive, kept: &Primitive, decay: bool) -> [Primitive; 5] {
        match self.k.dtype() {
            DType::F64 => self.backward_in::<f64>(out, kept, decay),
            _ => self.backward_in::<f32>(out, kept, decay),
        }
    }

    fn backward_in<E: Number>(&self, out: &Primitive, kept: &Primitive, decay: bool) -> [Primitive; 5] {
        let inputs = self.inputs::<E>();
        let mut grads = blocks::Gradients::filled(&inputs, E::default());
        blocks::backward(&inputs, view(out), E::numbers(kept), self.block, decay, &mut grads);
        let [b, h, t, _] = inputs.log_a.dims;
        let blocks::Gradients { q, k, v, log_a, memory } = grads;
        [
            E::tensor(q, &inputs.q.dims),
            E::tensor(k, &inputs.k.dims),
            E::tensor(v, &inputs.v.dims),
            E::tensor(log_a, &[b, h, t]),
            E::tensor(memory, &inputs.memory.dims),
        ]
    }
}

impl Tiled for Flex {
    fn tiled(
        q: Primitive,
        k: Primitive,
        v: Primitive,
        log_a: Primitive,
        memory: Primitive,
        block: usize,
    ) -> Primitive {
        Call { q, k, v, log_a, memory, block }.forward(false).0
    }
}

#[derive(Debug)]
struct TiledBackward;

impl Backward<Flex, 5> for TiledBackward {
    type State = (Call, Primitive);

    fn backward(self, ops: Ops<Self::State, 5>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let out = grads.consume::<Flex>(&ops.node);
        let (call, kept) = ops.state;
        let found = call.backward(&out, &kept, ops.parents[3].is_some());
        for (parent, grad) in ops.parents.into_iter().zip(found) {
            if let Some(parent) = parent {
                grads.register::<Flex>(parent.id, grad);
            }
        }
    }
}

impl<C: CheckpointStrategy> Tiled for Autodiff<Flex, C> {
    fn tiled(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        log_a: FloatTensor<Self>,
        memory: FloatTensor<Self>,
        block: usize,
    ) -> FloatTensor<Self> {
        let nodes = [&q, &k, &v, &log_a, &memory].map(|x| x.node());
        let [q, k, v, log_a, memory] = [q, k, v, log_a, memory].map(|x| x.into_primitive());
        let call = Call { q, k, v, log_a, memory, block };
        match TiledBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let (out, kept) = call.forward(true);
                prep.finish((call, kept), out)
            }
            OpsKind::UnTracked(prep) => prep.finish(call.forward(false).0),
        }
    }
}
