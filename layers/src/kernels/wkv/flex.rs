//! The kernel on Flex.

use burn::backend::Flex;
use burn::tensor::DType;

use super::channels::{self, Gradients, Inputs, Outputs};
use super::tracked::{Given, Passes};
use crate::kernels::room::Room;
use crate::kernels::vector::Vector;
use crate::kernels::view::{Double, Number, Primitive, view};

impl Passes for Flex {
    fn forward(given: &Given<Self>) -> [Primitive; 2] {
        match given[0].dtype() {
            DType::F64 => forward_in::<Double>(given),
            _ => forward_in::<f32>(given),
        }
    }

    fn backward(given: &Given<Self>, dy: &Primitive, last: Option<&Primitive>) -> Given<Self> {
        match given[0].dtype() {
            DType::F64 => backward_in::<Double>(given, dy, last),
            _ => backward_in::<f32>(given, dy, last),
        }
    }
}

pub(super) fn inputs<E: Number>(given: &Given<Flex>) -> Inputs<'_, E> {
    let [fade, bonus, k, v, log, mean] = given.each_ref().map(view);
    Inputs { fade, bonus, k, v, log, mean }
}

#[allow(unsafe_code, reason = "see there")]
fn forward_in<E: Number + Vector>(given: &Given<Flex>) -> [Primitive; 2] {
    let inputs = inputs::<E>(given);
    let dims @ [b, .., n] = inputs.k.dims;
    let mut out = Outputs::new(&inputs);
    channels::forward(&inputs, &mut out);
    // SAFETY: all outputs and the whole state have been written.
    let [y, last] = [out.y, out.last].map(|room| unsafe { room.written() });
    [E::tensor(y, &dims), E::tensor(last, &[b, 1, 2, n])]
}

#[allow(unsafe_code, reason = "see there")]
fn backward_in<E: Number + Vector>(
    given: &Given<Flex>,
    dy: &Primitive,
    last: Option<&Primitive>,
) -> Given<Flex> {
    let inputs = inputs::<E>(given);
    let mut grads = Gradients::new(&inputs);
    channels::backward(&inputs, view(dy), last.map(view), &mut grads);
    let Gradients { fade, bonus, k, v, log, mean } = grads;
    let dims @ [b, .., n] = inputs.k.dims;
    // SAFETY: all gradients have been written.
    let tensor = |room: Room<E>, dims: [usize; 4]| E::tensor(unsafe { room.written() }, &dims);
    let added = |room: Room<E>| {
        // SAFETY: as above.
        let all = unsafe { room.written() };
        let mut sum = vec![E::default(); n];
        for row in all.chunks_exact(n) {
            sum.iter_mut().zip(row).for_each(|(sum, &x)| *sum += x);
        }
        E::tensor(sum, &[1, 1, 1, n])
    };
    let row = [b, 1, 1, n];
    [added(fade), added(bonus), tensor(k, dims), tensor(v, dims), tensor(log, row), tensor(mean, row)]
}
