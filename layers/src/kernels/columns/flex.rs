//! The kernel on Flex.

use burn::backend::Flex;
use burn::tensor::DType;

use super::channels::{self, Gradients, Inputs, Outputs};
use super::rule;
use super::tracked::{Given, Passes};
use super::{Options, Rule};
use crate::kernels::room::Room;
use crate::kernels::shares::added;
use crate::kernels::vector::Vector;
use crate::kernels::view::{Double, Number, Primitive, view};

impl Passes for Flex {
    fn forward(given: &Given<Self>, options: Options) -> [Primitive; 2] {
        match given[0].dtype() {
            DType::F64 => forward_in::<Double>(given, options),
            _ => forward_in::<f32>(given, options),
        }
    }

    fn backward(
        given: &Given<Self>,
        options: Options,
        dy: &Primitive,
        last: Option<&Primitive>,
    ) -> [Option<Primitive>; 6] {
        match given[0].dtype() {
            DType::F64 => backward_in::<Double>(given, options, dy, last),
            _ => backward_in::<f32>(given, options, dy, last),
        }
    }
}

pub(super) fn inputs<E: Number>(given: &Given<Flex>, options: Options) -> Inputs<'_, E> {
    let [rates, x, q, k, memory, d] = given.each_ref().map(view);
    Inputs { given: [rates, x], q, k, memory, d: options.skip.then_some(d) }
}

#[allow(unsafe_code, reason = "see there")]
fn forward_in<E: Number + Vector>(given: &Given<Flex>, options: Options) -> [Primitive; 2] {
    let inputs = inputs::<E>(given, options);
    let mut out = Outputs::new(&inputs);
    match options.rule {
        Rule::Learner => channels::forward::<E, rule::Learner>(&inputs, &mut out),
        Rule::Fading => channels::forward::<E, rule::Fading>(&inputs, &mut out),
    }
    // SAFETY: all outputs and the whole memory have been written.
    let [y, last] = [out.y, out.last].map(|room| unsafe { room.written() });
    [E::tensor(y, &inputs.given[1].dims), E::tensor(last, &inputs.memory.dims)]
}

#[allow(unsafe_code, reason = "see there")]
fn backward_in<E: Number + Vector>(
    given: &Given<Flex>,
    options: Options,
    dy: &Primitive,
    last: Option<&Primitive>,
) -> [Option<Primitive>; 6] {
    let inputs = inputs::<E>(given, options);
    let mut grads = Gradients::new(&inputs);
    let (dy, last) = (view(dy), last.map(view));
    match options.rule {
        Rule::Learner => channels::backward::<E, rule::Learner>(&inputs, dy, last, &mut grads),
        Rule::Fading => channels::backward::<E, rule::Fading>(&inputs, dy, last, &mut grads),
    }
    let Gradients { given: [rates, x], memory, q, k, d, parts } = grads;
    // SAFETY: all gradients have been written.
    let written = |room: Room<E>| unsafe { room.written() };
    let dims @ [b, h, t, columns] = inputs.given[1].dims;
    let keys = t * inputs.k.dims[3];
    let tensor = |numbers, dims: [usize; 4]| Some(E::tensor(numbers, &dims));
    [
        tensor(written(rates), dims),
        tensor(written(x), dims),
        tensor(added(written(q), parts, keys), inputs.q.dims),
        tensor(added(written(k), parts, keys), inputs.k.dims),
        tensor(written(memory), inputs.memory.dims),
        inputs.d.and_then(|view| tensor(added(written(d), b * h, columns), view.dims)),
    ]
}
