//! The kernel on Flex.

use burn::backend::Flex;
use burn::tensor::DType;

use super::walk::{self, Inputs};
use super::{Given, Options, Passes};
use crate::kernels::room::Room;
use crate::kernels::vector::Vector;
use crate::kernels::view::{Double, Number, Primitive, view};

impl Passes for Flex {
    fn forward(given: &Given<Self>, options: &Options) -> [Primitive; 2] {
        match given[0].dtype() {
            DType::F64 => forward_in::<Double>(given, options),
            _ => forward_in::<f32>(given, options),
        }
    }

    fn backward(
        given: &Given<Self>,
        options: &Options,
        dy: &Primitive,
        last: Option<&Primitive>,
    ) -> Given<Self> {
        match given[0].dtype() {
            DType::F64 => backward_in::<Double>(given, options, dy, last),
            _ => backward_in::<f32>(given, options, dy, last),
        }
    }
}

fn inputs<'a, E: Number>(given: &'a Given<Flex>, options: &'a Options) -> Inputs<'a, E> {
    let [q, k, sums] = given.each_ref().map(view);
    Inputs { q, k, sums, options }
}

#[allow(unsafe_code, reason = "see there")]
fn forward_in<E: Number + Vector>(given: &Given<Flex>, options: &Options) -> [Primitive; 2] {
    let inputs = inputs::<E>(given, options);
    let [b, h, t, _] = inputs.q.dims;
    let sizes = [b * h * t * 3, inputs.sums.dims.iter().product()];
    let mut rooms = sizes.map(Room::<E>::new);
    walk::forward(&inputs, &mut rooms);
    // SAFETY: all outputs and sums have been written.
    let [y, last] = rooms.map(|room| unsafe { room.written() });
    [E::tensor(y, &[b, h, t, 3]), E::tensor(last, &inputs.sums.dims)]
}

#[allow(unsafe_code, reason = "see there")]
fn backward_in<E: Number + Vector>(
    given: &Given<Flex>,
    options: &Options,
    dy: &Primitive,
    last: Option<&Primitive>,
) -> Given<Flex> {
    let inputs = inputs::<E>(given, options);
    let all = [inputs.q.dims, inputs.k.dims, inputs.sums.dims];
    let mut rooms = all.map(|dims| Room::<E>::new(dims.iter().product()));
    walk::backward(&inputs, view(dy), last.map(view), &mut rooms);
    // SAFETY: all gradients have been written.
    let [q, k, sums] = rooms.map(|room| unsafe { room.written() });
    [E::tensor(q, &all[0]), E::tensor(k, &all[1]), E::tensor(sums, &all[2])]
}
