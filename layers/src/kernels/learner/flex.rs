//! The kernel on Flex.

use burn::backend::Flex;
use burn::tensor::DType;

use super::channels::{self, Gradients, Inputs, Outputs};
use super::tracked::{Given, Passes};
use crate::kernels::room::Room;
use crate::kernels::vector::Vector;
use crate::kernels::view::{Number, Primitive, view};

impl Passes for Flex {
    fn forward(given: &Given<Self>) -> [Primitive; 2] {
        match given[0].dtype() {
            DType::F64 => forward_in::<f64>(given),
            _ => forward_in::<f32>(given),
        }
    }

    fn backward(given: &Given<Self>, dy: &Primitive, last: Option<&Primitive>) -> Given<Self> {
        match given[0].dtype() {
            DType::F64 => backward_in::<f64>(given, dy, last),
            _ => backward_in::<f32>(given, dy, last),
        }
    }
}

pub(super) fn inputs<E: Number>(given: &Given<Flex>) -> Inputs<'_, E> {
    let [beta, q, k, x, memory, d] = given.each_ref().map(view);
    Inputs { beta, q, k, x, memory, d }
}

#[allow(unsafe_code, reason = "see there")]
fn forward_in<E: Number + Vector>(given: &Given<Flex>) -> [Primitive; 2] {
    let inputs = inputs::<E>(given);
    let mut out = Outputs::new(&inputs);
    channels::forward(&inputs, &mut out);
    // SAFETY: all outputs and the whole memory have been written.
    let [y, last] = [out.y, out.last].map(|room| unsafe { room.written() });
    [E::tensor(y, &inputs.x.dims), E::tensor(last, &inputs.memory.dims)]
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
    let Gradients { beta, x, memory, q, k, d, parts } = grads;
    // SAFETY: all gradients have been written.
    let written = |room: Room<E>| unsafe { room.written() };
    let [b, _, t, channels] = inputs.x.dims;
    let keys = t * inputs.k.dims[3];
    let tensor = |numbers, dims: [usize; 4]| E::tensor(numbers, &dims);
    [
        tensor(written(beta), inputs.x.dims),
        tensor(added(written(q), parts, keys), inputs.q.dims),
        tensor(added(written(k), parts, keys), inputs.k.dims),
        tensor(written(x), inputs.x.dims),
        tensor(written(memory), inputs.memory.dims),
        tensor(added(written(d), b, channels), inputs.d.dims),
    ]
}

/// `[a, parts, size] -> [a, size]`
fn added<E: Number>(numbers: Vec<E>, parts: usize, size: usize) -> Vec<E> {
    if parts == 1 {
        return numbers;
    }
    let add = |all: &[E]| {
        let (first, others) = all.split_at(size);
        let mut sum = first.to_vec();
        for other in others.chunks_exact(size) {
            sum.iter_mut().zip(other).for_each(|(sum, &x)| *sum += x);
        }
        sum
    };
    numbers.chunks_exact(parts * size).flat_map(add).collect()
}
