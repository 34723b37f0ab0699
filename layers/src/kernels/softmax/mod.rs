//! Attention by an online softmax (Dao et al., arXiv 2205.14135): tiles of keys pass by each tile of queries, and what
//! was added up is scaled down whenever a larger score appears. No scores are kept: the backward pass makes them again
//! from one logarithm per query, so memory is linear in the number of tokens.
//!
//! Queries may be fewer than keys (a cache), share key-value heads, see only a window, have a sink, a softcap, and
//! padding. Floor for `t` causal queries of `h` heads of `n` channels: `2 t² h n` floating-point operations forward,
//! 2.5 times that backward, and `t² h / 2` exponentials in each.

mod few;
mod tiles;
mod weights;

#[cfg(test)]
mod tests;

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, DispatchDevice, Flex, backend_extension};
use burn::tensor::{DType, Tensor};

use self::tiles::{Inputs, Outcome};
use super::vector::Vector;
use super::view::{Number, Primitive, view};

/// How products become weights.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weighing {
    /// Whether a query sees only its own token and earlier ones.
    pub(crate) causal: bool,
    /// Number of keys before the first query's own.
    pub(crate) cached: usize,
    /// Each query sees its own token and the `window - 1` before it.
    pub(crate) window: Option<usize>,
    /// Factor on the products.
    pub(crate) scale: f64,
    /// Bounds the scaled products.
    pub(crate) softcap: Option<f64>,
}

/// Whether the kernel can run these: `q`, `k` and `v` as [`run`] has them.
pub(crate) fn applies(q: &Tensor<4>, k: &Tensor<4>, v: &Tensor<4>) -> bool {
    let ([b, h, t, n], [_, kv, total, p]) = (q.dims(), v.dims());
    let sizes = [b, h, t, n, kv, total, p].iter().all(|&size| size > 0);
    sizes
        && k.dims() == [b, kv, total, n]
        && v.dims()[0] == b
        && h.is_multiple_of(kv)
        && [k, v].iter().all(|x| x.dtype() == q.dtype())
        && matches!(q.dtype(), DType::F32 | DType::F64)
        && matches!(q.device().inner().as_dispatch(), DispatchDevice::Flex(_))
}

/// `softmax(scores) v`: `[b, h, t, p]`, from `q: [b, h, t, n]`, `k: [b, h_kv, T, n]`, `v: [b, h_kv, T, p]`, a score of
/// nothing per head, `sink: [h]`, and a number that all scores of a key get, `offsets: [b, 1, 1, T]`, which has no
/// gradient. A query that sees no key gets 0.
pub(crate) fn run(
    [q, k, v]: [Tensor<4>; 3],
    sink: Option<Tensor<1>>,
    offsets: Option<Tensor<4>>,
    weighing: Weighing,
) -> Tensor<4> {
    let dtype = q.dtype();
    let options = (q.device().inner(), dtype);
    let given = Given { sink: sink.is_some(), offsets: offsets.is_some() };
    let sink = sink.unwrap_or_else(|| Tensor::zeros([1], (&options.0, dtype))).cast(dtype);
    let offsets = offsets.unwrap_or_else(|| Tensor::zeros([1, 1, 1, 1], (&options.0, dtype))).cast(dtype);
    let [q, k, v, offsets] = [q, k, v, offsets].map(Tensor::into_dispatch);
    let y = <Dispatch as Softmax>::softmax(q, k, v, sink.into_dispatch(), offsets, given, weighing);
    Tensor::from_dispatch(y)
}

/// Which of the optional inputs are there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Given {
    sink: bool,
    offsets: bool,
}

/// The operation as backends see it.
#[backend_extension(Flex, Autodiff)]
pub(crate) trait Softmax: Backend {
    /// See [`run`].
    fn softmax(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        sink: FloatTensor<Self>,
        offsets: FloatTensor<Self>,
        given: Given,
        weighing: Weighing,
    ) -> FloatTensor<Self>;
}

/// What the operation reads.
#[derive(Clone, Debug)]
struct Read {
    q: Primitive,
    k: Primitive,
    v: Primitive,
    sink: Primitive,
    offsets: Primitive,
    given: Given,
    weighing: Weighing,
}

/// What the backward pass starts from.
#[derive(Clone, Debug)]
struct Saved {
    read: Read,
    /// `[b, h, t, p]`
    y: Primitive,
    /// `[b, h, t]`
    log_sum: Primitive,
}

impl Read {
    fn inputs<E: Number>(&self) -> Inputs<'_, E> {
        let Self { q, k, v, sink, offsets, given, weighing } = self;
        Inputs {
            q: view(q),
            k: view(k),
            v: view(v),
            sink: given.sink.then(|| view(sink)),
            offsets: given.offsets.then(|| view(offsets)),
            weighing: *weighing,
        }
    }

    fn forward(self) -> Saved {
        let [y, log_sum] = match self.q.dtype() {
            DType::F64 => self.forward_in::<f64>(),
            _ => self.forward_in::<f32>(),
        };
        Saved { read: self, y, log_sum }
    }

    fn forward_in<E: Number + Vector>(&self) -> [Primitive; 2] {
        let inputs = self.inputs::<E>();
        let ([b, h, t, _], [.., p]) = (inputs.q.dims, inputs.v.dims);
        let (mut y, mut log_sum) = (vec![E::default(); b * h * t * p], vec![E::default(); b * h * t]);
        let forward = if t <= few::FEW { few::forward } else { tiles::forward };
        forward(&inputs, &mut y, &mut log_sum);
        [E::tensor(y, &[b, h, t, p]), E::tensor(log_sum, &[b, h, t])]
    }
}

impl Saved {
    /// Gradients of `q`, `k`, `v` and the sink, in this order.
    fn backward(&self, dy: &Primitive) -> [Primitive; 4] {
        match self.y.dtype() {
            DType::F64 => self.backward_in::<f64>(dy),
            _ => self.backward_in::<f32>(dy),
        }
    }

    fn backward_in<E: Number + Vector>(&self, dy: &Primitive) -> [Primitive; 4] {
        let inputs = self.read.inputs::<E>();
        let outcome = Outcome { y: view(&self.y), log_sum: E::numbers(&self.log_sum), dy: view(dy) };
        let mut grads = tiles::Gradients::filled(&inputs, E::default());
        tiles::backward(&inputs, outcome, &mut grads);
        let tiles::Gradients { q, k, v, sink } = grads;
        // Without a sink, one number stands for it.
        let sink = if sink.is_empty() { vec![E::default()] } else { sink };
        let heads = sink.len();
        [
            E::tensor(q, &inputs.q.dims),
            E::tensor(k, &inputs.k.dims),
            E::tensor(v, &inputs.v.dims),
            E::tensor(sink, &[heads]),
        ]
    }
}

impl Softmax for Flex {
    fn softmax(
        q: Primitive,
        k: Primitive,
        v: Primitive,
        sink: Primitive,
        offsets: Primitive,
        given: Given,
        weighing: Weighing,
    ) -> Primitive {
        Read { q, k, v, sink, offsets, given, weighing }.forward().y
    }
}

#[derive(Debug)]
struct SoftmaxBackward;

impl Backward<Flex, 4> for SoftmaxBackward {
    type State = Saved;

    fn backward(self, ops: Ops<Saved, 4>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let dy = grads.consume::<Flex>(&ops.node);
        let found = ops.state.backward(&dy);
        for (parent, grad) in ops.parents.into_iter().zip(found) {
            if let Some(parent) = parent {
                grads.register::<Flex>(parent.id, grad);
            }
        }
    }
}

impl<C: CheckpointStrategy> Softmax for Autodiff<Flex, C> {
    fn softmax(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        sink: FloatTensor<Self>,
        offsets: FloatTensor<Self>,
        given: Given,
        weighing: Weighing,
    ) -> FloatTensor<Self> {
        let nodes = [&q, &k, &v, &sink].map(|x| x.node());
        let [q, k, v, sink, offsets] = [q, k, v, sink, offsets].map(|x| x.into_primitive());
        let saved = Read { q, k, v, sink, offsets, given, weighing }.forward();
        let y = saved.y.clone();
        match SoftmaxBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(saved, y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }
}
