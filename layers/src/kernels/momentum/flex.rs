//! The kernel on Flex.

use burn::backend::Flex;
use burn::tensor::DType;

use super::walk::{self, Gradients, Inputs, Outputs};
use super::{Given, Passes};
use crate::kernels::shares::added;
use crate::kernels::vector::Vector;
use crate::kernels::view::{Double, Number, Primitive, view};

impl Passes for Flex {
    fn forward(given: &Given<Self>) -> [Primitive; 2] {
        match given[0].dtype() {
            DType::F64 => forward_in::<Double>(given),
            _ => forward_in::<f32>(given),
        }
    }

    fn backward(given: &Given<Self>, dy: &Primitive, last: Option<&Primitive>) -> [Primitive; 8] {
        match given[0].dtype() {
            DType::F64 => backward_in::<Double>(given, dy, last),
            _ => backward_in::<f32>(given, dy, last),
        }
    }
}

pub(super) fn inputs<E: Number>(given: &Given<Flex>) -> Inputs<'_, E> {
    let [q, k, p, v, log_alpha, log_mu, beta, state] = given.each_ref().map(view);
    Inputs { keys: [q, k, p], v, scalars: [log_alpha, log_mu, beta], state }
}

#[allow(unsafe_code, reason = "see there")]
fn forward_in<E: Number + Vector>(given: &Given<Flex>) -> [Primitive; 2] {
    let inputs = inputs::<E>(given);
    let mut out = Outputs::new(&inputs);
    walk::forward(&inputs, &mut out);
    // SAFETY: all outputs and the whole state have been written.
    let [y, last] = [out.y, out.last].map(|room| unsafe { room.written() });
    [E::tensor(y, &inputs.v.dims), E::tensor(last, &inputs.state.dims)]
}

#[allow(unsafe_code, reason = "see there")]
fn backward_in<E: Number + Vector>(
    given: &Given<Flex>,
    dy: &Primitive,
    last: Option<&Primitive>,
) -> [Primitive; 8] {
    let inputs = inputs::<E>(given);
    let mut grads = Gradients::new(&inputs);
    walk::backward(&inputs, view(dy), last.map(view), &mut grads);
    let ([b, h, t, _], n) = (inputs.v.dims, inputs.n());
    let width = 3 * n + 3;
    // SAFETY: all gradients have been written.
    let [v, state, shared] = [grads.v, grads.state, grads.shared].map(|room| unsafe { room.written() });
    let shared = E::tensor(added(shared, grads.parts, t * width), &[b, h, t, width]);
    let key = |index| shared.narrow(3, index * n, n);
    let scalar = |index| shared.narrow(3, 3 * n + index, 1);
    let (v, state) = (E::tensor(v, &inputs.v.dims), E::tensor(state, &inputs.state.dims));
    [key(0), key(1), key(2), v, scalar(0), scalar(1), scalar(2), state]
}
