//! Both passes on the CPU.

use burn::backend::Flex;
use burn::tensor::DType;

use super::channels::ChannelDecay;
use super::decay::HeadDecay;
use super::delta::Delta;
use super::inputs::Inputs;
use super::linear::Linear;
use super::passes::{self, Gradients, backward, forward};
use super::{LOG_D, Options, Passes};
use crate::kernels::room::Room;
use crate::kernels::vector::Vector;
use crate::kernels::view::{Double, Number, Primitive, View, view};
use crate::system::engine::AUTO_CHUNK;

/// Tokens per block at which rank one and decays per channel are fastest (measured with heads of 64): what is quadratic
/// inside a block costs more with them.
const SMALL_BLOCK: usize = 32;

/// Tokens per block beyond which more of them only make it slower.
const LARGEST_BLOCK: usize = 128;

impl Passes for Flex {
    fn forward(inputs: &[Primitive], options: Options, keep: bool) -> ([Primitive; 2], Option<Primitive>) {
        let (out, kept) = Given::new(inputs, options).forward(keep);
        (out, keep.then_some(kept))
    }

    fn backward(
        inputs: &[Primitive],
        options: Options,
        dy: Primitive,
        last: Option<Primitive>,
        kept: &Primitive,
        decay: bool,
    ) -> Vec<Option<Primitive>> {
        Given::new(inputs, options).backward(&dy, last.as_ref(), kept, decay)
    }
}

/// Inputs in the order of the operation's arguments, and tokens per block.
#[derive(Clone, Copy, Debug)]
struct Given<'p> {
    inputs: &'p [Primitive],
    block: usize,
    gain: f64,
}

impl<'p> Given<'p> {
    fn new(inputs: &'p [Primitive], Options { block, gain }: Options) -> Self {
        let wide = inputs[LOG_D].layout().shape()[3] > 1;
        let fastest = if inputs.len() > 5 || wide { SMALL_BLOCK } else { AUTO_CHUNK };
        Self { inputs, block: block.unwrap_or(fastest).min(LARGEST_BLOCK), gain }
    }

    fn inputs<E: Number + Vector>(&self) -> Inputs<'p, E> {
        let [q, k, v, log_d, memory, rank_one @ ..] = self.inputs else {
            unreachable!("made below, with five inputs or more")
        };
        let rank_one = if let [a, b] = rank_one { Some([view(a), view(b)]) } else { None };
        let [q, k, v, log_d, memory] = [q, k, v, log_d, memory].map(view);
        Inputs { q, k, v, log_d, memory, rank_one, gain: E::of(self.gain) }
    }

    /// The outputs, the last memory, and the memories that the backward pass starts from, none unless they are to be
    /// kept.
    fn forward(&self, keep: bool) -> ([Primitive; 2], Primitive) {
        match self.inputs[0].dtype() {
            DType::F64 => self.forward_in::<Double>(keep),
            _ => self.forward_in::<f32>(keep),
        }
    }

    #[allow(unsafe_code, reason = "see there")]
    fn forward_in<E: Number + Vector>(&self, keep: bool) -> ([Primitive; 2], Primitive) {
        let inputs = self.inputs::<E>();
        let room = |view: &View<'_, E>| Room::new(view.dims.iter().product());
        let (mut y, mut last) = (room(&inputs.v), room(&inputs.memory));
        let mut kept = if keep { passes::kept(&inputs, self.block) } else { Room::new(0) };
        fill(&inputs, self.block, [&mut y, &mut last, &mut kept]);
        // SAFETY: `fill` writes every output, every last memory and every memory that there is room for.
        let [y, last, kept] = [y, last, kept].map(|room| unsafe { room.written() });
        let count = kept.len();
        let y = inputs.v.order().tensor(y, inputs.v.dims);
        ([y, E::tensor(last, &inputs.memory.dims)], E::tensor(kept, &[count]))
    }

    /// Gradients of the inputs, in their order; there is none of the decay where it is not wanted.
    fn backward(
        &self,
        dy: &Primitive,
        last: Option<&Primitive>,
        kept: &Primitive,
        decay: bool,
    ) -> Vec<Option<Primitive>> {
        match self.inputs[0].dtype() {
            DType::F64 => self.backward_in::<Double>(dy, last, kept, decay),
            _ => self.backward_in::<f32>(dy, last, kept, decay),
        }
    }

    #[allow(unsafe_code, reason = "see there")]
    fn backward_in<E: Number + Vector>(
        &self,
        dy: &Primitive,
        last: Option<&Primitive>,
        kept: &Primitive,
        decay: bool,
    ) -> Vec<Option<Primitive>> {
        let inputs = self.inputs::<E>();
        let mut grads = Gradients::new(&inputs, decay);
        fill_gradients(&inputs, (view(dy), last.map(view)), E::numbers(kept), self.block, &mut grads);
        // SAFETY: `fill_gradients` writes all of them.
        let grads = unsafe { grads.all() };
        let laid_out = |(grad, input): (Option<Vec<E>>, View<'_, E>)| {
            grad.map(|grad| input.order().tensor(grad, input.dims))
        };
        grads.zip(inputs.all()).map(laid_out).collect()
    }
}

/// See [`forward`].
fn fill<E: Number + Vector>(inputs: &Inputs<'_, E>, block: usize, to: [&mut Room<E>; 3]) {
    match (inputs.rank_one.is_some(), inputs.log_d.dims[3]) {
        (false, 1) => forward::<E, Linear<E, HeadDecay<E>>>(inputs, block, to),
        (false, _) => forward::<E, Linear<E, ChannelDecay<E>>>(inputs, block, to),
        (true, 1) => forward::<E, Delta<E, HeadDecay<E>>>(inputs, block, to),
        (true, _) => forward::<E, Delta<E, ChannelDecay<E>>>(inputs, block, to),
    }
}

/// See [`backward`].
fn fill_gradients<'a, E: Number + Vector>(
    inputs: &Inputs<'_, E>,
    given: (View<'a, E>, Option<View<'a, E>>),
    kept: &[E],
    block: usize,
    to: &mut Gradients<E>,
) {
    match (inputs.rank_one.is_some(), inputs.log_d.dims[3]) {
        (false, 1) => backward::<E, Linear<E, HeadDecay<E>>>(inputs, given, kept, block, to),
        (false, _) => backward::<E, Linear<E, ChannelDecay<E>>>(inputs, given, kept, block, to),
        (true, 1) => backward::<E, Delta<E, HeadDecay<E>>>(inputs, given, kept, block, to),
        (true, _) => backward::<E, Delta<E, ChannelDecay<E>>>(inputs, given, kept, block, to),
    }
}
