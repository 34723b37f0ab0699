//! Both passes on the CPU.

use std::mem::MaybeUninit;

use burn::backend::Flex;
use burn::tensor::DType;

use super::channels::ChannelDecay;
use super::decay::HeadDecay;
use super::delta::Delta;
use super::inputs::Inputs;
use super::linear::Linear;
use super::passes::{self, Gradients, backward, forward};
use super::{LOG_D, Passes};
use crate::kernels::vector::Vector;
use crate::kernels::view::{Number, Primitive, Room, View, view};
use crate::system::engine::AUTO_CHUNK;

/// Tokens per block at which rank one and decays per channel are fastest (measured with heads of 64): what is quadratic
/// inside a block costs more with them.
const SMALL_BLOCK: usize = 32;

/// Tokens per block beyond which more of them only make it slower.
const LARGEST_BLOCK: usize = 128;

impl Passes for Flex {
    fn forward(inputs: &[Primitive], block: Option<usize>, keep: bool) -> (Primitive, Option<Primitive>) {
        let (out, kept) = Given::new(inputs, block).forward(keep);
        (out, keep.then_some(kept))
    }

    fn backward(
        inputs: &[Primitive],
        block: Option<usize>,
        out: Primitive,
        kept: &Primitive,
        decay: bool,
    ) -> Vec<Option<Primitive>> {
        let grads = Given::new(inputs, block).backward(&out, kept, decay);
        grads.into_iter().map(Some).collect()
    }
}

/// Inputs in the order of the operation's arguments, and tokens per block.
#[derive(Clone, Copy, Debug)]
struct Given<'p> {
    inputs: &'p [Primitive],
    block: usize,
}

impl<'p> Given<'p> {
    fn new(inputs: &'p [Primitive], block: Option<usize>) -> Self {
        let wide = inputs[LOG_D].layout().shape()[3] > 1;
        let fastest = if inputs.len() > 5 || wide { SMALL_BLOCK } else { AUTO_CHUNK };
        Self { inputs, block: block.unwrap_or(fastest).min(LARGEST_BLOCK) }
    }

    fn inputs<E: Number + Vector>(&self) -> Inputs<'p, E> {
        let [q, k, v, log_d, memory, rank_one @ ..] = self.inputs else {
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
