//! The kernel on Flex.

use burn::backend::Flex;
use burn::tensor::DType;

use super::walk::{self, Gradients, Inputs, Outputs};
use super::{Given, Options, Passes};
use crate::kernels::room::Room;
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
        dx: &Primitive,
        last: Option<&Primitive>,
    ) -> [Primitive; 6] {
        match given[0].dtype() {
            DType::F64 => backward_in::<Double>(given, options, dx, last),
            _ => backward_in::<f32>(given, options, dx, last),
        }
    }
}

pub(super) fn inputs<E: Number>(given: &Given<Flex>, options: Options) -> Inputs<'_, E> {
    let [q, k, log_a, beta, lambda, g] = given.each_ref().map(view);
    Inputs { q, k, log_a, beta, lambda, g, options }
}

#[allow(unsafe_code, reason = "see there")]
fn forward_in<E: Number + Vector>(given: &Given<Flex>, options: Options) -> [Primitive; 2] {
    let inputs = inputs::<E>(given, options);
    let mut out = Outputs::new(&inputs);
    walk::forward(&inputs, &mut out);
    // SAFETY: all solutions and the whole of `G` have been written.
    let [x, last] = [out.x, out.last].map(|room| unsafe { room.written() });
    [E::tensor(x, &inputs.q.dims), E::tensor(last, &inputs.g.dims)]
}

#[allow(unsafe_code, reason = "see there")]
fn backward_in<E: Number + Vector>(
    given: &Given<Flex>,
    options: Options,
    dx: &Primitive,
    last: Option<&Primitive>,
) -> [Primitive; 6] {
    let inputs = inputs::<E>(given, options);
    let mut grads = Gradients::new(&inputs);
    walk::backward(&inputs, view(dx), last.map(view), &mut grads);
    // SAFETY: all gradients have been written.
    let written = |room: Room<E>| unsafe { room.written() };
    let Gradients { q, k, log_a, beta, lambda, g } = grads;
    let width = inputs.lambda.dims.iter().product();
    let mut ridge = vec![E::default(); width];
    for row in written(lambda).chunks_exact(width) {
        ridge.iter_mut().zip(row).for_each(|(sum, &x)| *sum += x);
    }
    let tensor = |room, dims: [usize; 4]| E::tensor(written(room), &dims);
    [
        tensor(q, inputs.q.dims),
        tensor(k, inputs.k.dims),
        tensor(log_a, inputs.log_a.dims),
        tensor(beta, inputs.beta.dims),
        E::tensor(ridge, &inputs.lambda.dims),
        tensor(g, inputs.g.dims),
    ]
}
