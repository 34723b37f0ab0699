//! Linear recurrences of matrix memories, by blocks of tokens that are quadratic inside and pass a memory on
//! (lightning attention's tiling, arXiv 2401.04658). The graph holds the inputs, the outputs and one memory for every few
//! blocks, from which the backward pass recomputes those between.
//!
//! ```text
//!            one decay per head    one per channel
//! H D + k v    Linear, HeadDecay     Linear, ChannelDecay
//! … + b a H    Delta, HeadDecay      Delta, ChannelDecay
//! ```
//!
//! `passes` goes through the blocks for all of them, `decay` and `channels` say what decays do inside a block, `linear`
//! and `delta` what a block computes.

mod channels;
mod decay;
mod delta;
mod inputs;
mod linear;
mod passes;
mod solve;
#[cfg(test)]
mod tests;

use std::mem::MaybeUninit;

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients as Tape;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, DispatchDevice, Flex, backend_extension};
use burn::tensor::{DType, Tensor};

use self::channels::ChannelDecay;
use self::decay::HeadDecay;
use self::delta::Delta;
use self::inputs::Inputs;
use self::linear::Linear;
use self::passes::{Gradients, backward, forward};
use crate::kernels::vector::Vector;
use crate::kernels::view::{Number, Primitive, Room, View, view};
use crate::system::engine::AUTO_CHUNK;
use crate::system::{Io, Transition};

/// Tokens per block at which rank one and decays per channel are fastest (measured with heads of 64): what is quadratic
/// inside a block costs more with them.
const SMALL_BLOCK: usize = 32;

/// Tokens per block beyond which more of them only make it slower.
const LARGEST_BLOCK: usize = 128;

/// What a recurrence reads, as the engine has it: `H_t = (diag exp(log_d_t) + b_t a_tᵀ) H_{t-1} + k_t v_tᵀ`,
/// `y_t = H_tᵀ q_t`.
#[derive(Clone, Debug)]
pub(crate) struct Recurrence {
    /// `[b, h, t, n]`
    pub(crate) q: Tensor<4>,
    /// `[b, h, t, n]`
    pub(crate) k: Tensor<4>,
    /// `[b, h, t, p]`
    pub(crate) v: Tensor<4>,
    /// `[b, h, t, 1]`, `[b, h, t, n]`, or `None` if nothing decays
    pub(crate) log_d: Option<Tensor<4>>,
    /// `a` and `b`, `[b, h, t, n]`
    pub(crate) rank_one: Option<[Tensor<4>; 2]>,
    /// `[b, h, n, p]`
    pub(crate) memory: Tensor<4>,
}

impl Recurrence {
    /// A recurrence that the kernel can run.
    pub(crate) fn new(transition: &Transition, io: &Io, memory: &Tensor<4>) -> Option<Self> {
        let Io::Outer { q, k, v } = io else { return None };
        let (log_d, rank_one) = match transition {
            Transition::Identity => (None, None),
            Transition::Scalar { log_a } => (Some(log_a.clone().unsqueeze_dim(3)), None),
            Transition::Diagonal { log_a } => (Some(log_a.clone()), None),
            Transition::Householder { log_d, a, b } => (Some(log_d.clone()), Some([a.clone(), b.clone()])),
            Transition::Dense { .. } => return None,
        };
        let [q, k, v, memory] = [q, k, v, memory].map(Clone::clone);
        Some(Self { q, k, v, log_d, rank_one, memory }).filter(Self::applies)
    }

    fn applies(&self) -> bool {
        let Self { q, k, v, log_d, rank_one, memory } = self;
        let ([b, h, t, n], [.., p]) = (k.dims(), v.dims());
        let keys = [Some(q), rank_one.as_ref().map(|[a, _]| a), rank_one.as_ref().map(|[_, b]| b)];
        let shapes = keys.iter().flatten().all(|x| x.dims() == [b, h, t, n])
            && v.dims() == [b, h, t, p]
            && memory.dims() == [b, h, n, p]
            && log_d.as_ref().is_none_or(|log| [1, n].contains(&log.dims()[3]));
        let mut all = [Some(v), Some(memory)].into_iter().chain(keys).flatten();
        shapes
            && all.all(|x| x.dtype() == k.dtype())
            && [b, h, t, n, p].iter().all(|&size| size > 0)
            && matches!(k.dtype(), DType::F32 | DType::F64)
            && matches!(k.device().inner().as_dispatch(), DispatchDevice::Flex(_))
    }

    /// In blocks of `block` tokens, or as many as are fastest: `y: [b, h, t, p]` and the last memory.
    pub(crate) fn run(self, block: Option<usize>) -> (Tensor<4>, Tensor<4>) {
        let Self { q, k, v, log_d, rank_one, memory } = self;
        let [b, h, t, n] = k.dims();
        let log_d = log_d.unwrap_or_else(|| Tensor::zeros([1, 1, 1, 1], (&k.device().inner(), k.dtype())));
        let width = log_d.dims()[3];
        let log_d = log_d.cast(k.dtype()).expand([b, h, t, width]);
        let [q, k, v, log_d, memory] = [q, k, v, log_d, memory].map(Tensor::into_dispatch);
        let fastest = if rank_one.is_some() || width > 1 { SMALL_BLOCK } else { AUTO_CHUNK };
        let block = block.unwrap_or(fastest).min(LARGEST_BLOCK);
        let out = match rank_one {
            None => <Dispatch as Tiled>::linear(q, k, v, log_d, memory, block),
            Some(rank_one) => {
                let [a, b] = rank_one.map(Tensor::into_dispatch);
                <Dispatch as Tiled>::delta(q, k, v, log_d, memory, a, b, block)
            }
        };
        let out = Tensor::<4>::from_dispatch(out);
        (out.clone().narrow(2, 0, t), out.narrow(2, t, n))
    }
}

/// The operations as backends see them. One tensor can come out, so the memory is below the outputs:
/// `[b, h, t + n, p]`.
#[backend_extension(Flex, Autodiff)]
#[allow(clippy::too_many_arguments, reason = "the tensors of the recurrence and the block size")]
pub(crate) trait Tiled: Backend {
    /// See [`Recurrence::run`].
    fn linear(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        log_d: FloatTensor<Self>,
        memory: FloatTensor<Self>,
        block: usize,
    ) -> FloatTensor<Self>;

    /// See [`Recurrence::run`].
    fn delta(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        log_d: FloatTensor<Self>,
        memory: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        block: usize,
    ) -> FloatTensor<Self>;
}

/// What the backward pass starts from.
#[derive(Clone, Debug)]
struct Saved {
    /// `q`, `k`, `v`, `log_d`, memory, and `a` and `b` if there are any
    inputs: Vec<Primitive>,
    block: usize,
}

/// Where the decay is among the inputs.
const LOG_D: usize = 3;

impl Saved {
    fn inputs<E: Number + Vector>(&self) -> Inputs<'_, E> {
        let [q, k, v, log_d, memory, rank_one @ ..] = &*self.inputs else {
            unreachable!("made below, with five inputs or more")
        };
        let rank_one = if let [a, b] = rank_one { Some([view(a), view(b)]) } else { None };
        let [q, k, v, log_d, memory] = [q, k, v, log_d, memory].map(view);
        Inputs { q, k, v, log_d, memory, rank_one }
    }

    /// The outputs `[b, h, t + n, p]`, and the memories that the backward pass starts from, none unless they are to be
    /// kept.
    fn forward(&self, keep: bool) -> (Primitive, Primitive) {
        match self.inputs[0].dtype() {
            DType::F64 => self.forward_in::<f64>(keep),
            _ => self.forward_in::<f32>(keep),
        }
    }

    #[allow(unsafe_code, reason = "see there")]
    fn forward_in<E: Number + Vector>(&self, keep: bool) -> (Primitive, Primitive) {
        let inputs = self.inputs::<E>();
        let ([b, h, t, n], [.., p]) = (inputs.k.dims, inputs.v.dims);
        let mut out = Room::new(b * h * (t + n) * p);
        let mut kept = if keep { passes::kept(&inputs, self.block) } else { Room::new(0) };
        fill(&inputs, self.block, out.numbers(), kept.numbers());
        // SAFETY: `fill` writes every output, every last memory and every memory that there is room for.
        let [out, kept] = [out, kept].map(|room| unsafe { room.written() });
        let count = kept.len();
        (E::tensor(out, &[b, h, t + n, p]), E::tensor(kept, &[count]))
    }

    /// Gradients of the inputs, in their order; that of the decay is 0 where it is not wanted.
    fn backward(&self, out: &Primitive, kept: &Primitive, decay: bool) -> Vec<Primitive> {
        match self.inputs[0].dtype() {
            DType::F64 => self.backward_in::<f64>(out, kept, decay),
            _ => self.backward_in::<f32>(out, kept, decay),
        }
    }

    #[allow(unsafe_code, reason = "see there")]
    fn backward_in<E: Number + Vector>(
        &self,
        out: &Primitive,
        kept: &Primitive,
        decay: bool,
    ) -> Vec<Primitive> {
        let inputs = self.inputs::<E>();
        let mut grads = Gradients::new(&inputs);
        fill_gradients(&inputs, view(out), E::numbers(kept), self.block, decay, &mut grads);
        // SAFETY: `fill_gradients` writes all of them.
        let grads = unsafe { grads.all() };
        grads.into_iter().zip(inputs.all()).map(|(grad, input)| E::tensor(grad, &input.dims)).collect()
    }
}

/// `out: [b, h, t + n, p]`, and the memories to be kept.
fn fill<E: Number + Vector>(
    inputs: &Inputs<'_, E>,
    block: usize,
    out: &mut [MaybeUninit<E>],
    kept: &mut [MaybeUninit<E>],
) {
    match (inputs.rank_one.is_some(), inputs.log_d.dims[3]) {
        (false, 1) => forward::<E, Linear<E, HeadDecay<E>>>(inputs, block, out, kept),
        (false, _) => forward::<E, Linear<E, ChannelDecay<E>>>(inputs, block, out, kept),
        (true, 1) => forward::<E, Delta<E, HeadDecay<E>>>(inputs, block, out, kept),
        (true, _) => forward::<E, Delta<E, ChannelDecay<E>>>(inputs, block, out, kept),
    }
}

/// The gradients for the gradient of what [`fill`] filled.
fn fill_gradients<E: Number + Vector>(
    inputs: &Inputs<'_, E>,
    out: View<'_, E>,
    kept: &[E],
    block: usize,
    decay: bool,
    to: &mut Gradients<E>,
) {
    match (inputs.rank_one.is_some(), inputs.log_d.dims[3]) {
        (false, 1) => backward::<E, Linear<E, HeadDecay<E>>>(inputs, out, kept, block, decay, to),
        (false, _) => backward::<E, Linear<E, ChannelDecay<E>>>(inputs, out, kept, block, decay, to),
        (true, 1) => backward::<E, Delta<E, HeadDecay<E>>>(inputs, out, kept, block, decay, to),
        (true, _) => backward::<E, Delta<E, ChannelDecay<E>>>(inputs, out, kept, block, decay, to),
    }
}

impl Tiled for Flex {
    fn linear(
        q: Primitive,
        k: Primitive,
        v: Primitive,
        log_d: Primitive,
        memory: Primitive,
        block: usize,
    ) -> Primitive {
        Saved { inputs: vec![q, k, v, log_d, memory], block }.forward(false).0
    }

    fn delta(
        q: Primitive,
        k: Primitive,
        v: Primitive,
        log_d: Primitive,
        memory: Primitive,
        a: Primitive,
        b: Primitive,
        block: usize,
    ) -> Primitive {
        Saved { inputs: vec![q, k, v, log_d, memory, a, b], block }.forward(false).0
    }
}

/// The step back, with this many inputs.
#[derive(Debug)]
struct TiledBackward<const N: usize>;

impl<const N: usize> Backward<Flex, N> for TiledBackward<N> {
    type State = (Saved, Primitive);

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Tape, _checkpointer: &mut Checkpointer) {
        let out = grads.consume::<Flex>(&ops.node);
        let (saved, kept) = ops.state;
        let found = saved.backward(&out, &kept, ops.parents[LOG_D].is_some());
        for (parent, grad) in ops.parents.into_iter().zip(found) {
            if let Some(parent) = parent {
                grads.register::<Flex>(parent.id, grad);
            }
        }
    }
}

/// Runs forward, and remembers how to go back.
fn tracked<C: CheckpointStrategy, const N: usize>(
    inputs: [FloatTensor<Autodiff<Flex, C>>; N],
    block: usize,
) -> FloatTensor<Autodiff<Flex, C>> {
    let nodes = inputs.each_ref().map(|x| x.node());
    let saved = Saved { inputs: inputs.map(|x| x.into_primitive()).into(), block };
    match TiledBackward::<N>.prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(prep) => {
            let (out, kept) = saved.forward(true);
            prep.finish((saved, kept), out)
        }
        OpsKind::UnTracked(prep) => prep.finish(saved.forward(false).0),
    }
}

impl<C: CheckpointStrategy> Tiled for Autodiff<Flex, C> {
    fn linear(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        log_d: FloatTensor<Self>,
        memory: FloatTensor<Self>,
        block: usize,
    ) -> FloatTensor<Self> {
        tracked::<C, 5>([q, k, v, log_d, memory], block)
    }

    fn delta(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        log_d: FloatTensor<Self>,
        memory: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        block: usize,
    ) -> FloatTensor<Self> {
        tracked::<C, 7>([q, k, v, log_d, memory, a, b], block)
    }
}
