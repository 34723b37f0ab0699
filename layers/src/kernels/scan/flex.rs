//! The kernel on Flex.

use burn::backend::Flex;
use burn::tensor::DType;

use super::Passes;
use super::channels::{self, Inputs};
use crate::kernels::room::Room;
use crate::kernels::vector::Vector;
use crate::kernels::view::{Double, Number, Primitive, view};

impl Passes for Flex {
    fn forward(log_a: &Primitive, u: &Primitive, memory: &Primitive) -> Primitive {
        match u.dtype() {
            DType::F64 => forward_in::<Double>(log_a, u, memory),
            _ => forward_in::<f32>(log_a, u, memory),
        }
    }

    fn backward(log_a: &Primitive, memory: &Primitive, y: &Primitive, dy: &Primitive) -> [Primitive; 3] {
        match y.dtype() {
            DType::F64 => backward_in::<Double>(log_a, memory, y, dy),
            _ => backward_in::<f32>(log_a, memory, y, dy),
        }
    }
}

#[allow(unsafe_code, reason = "see there")]
fn forward_in<E: Number + Vector>(log_a: &Primitive, u: &Primitive, memory: &Primitive) -> Primitive {
    let u = view::<E>(u);
    let mut y = Room::new(u.dims.iter().product());
    channels::forward(&Inputs { log_a: view(log_a), memory: view(memory) }, u, &mut y);
    // SAFETY: all states have been written.
    E::tensor(unsafe { y.written() }, &u.dims)
}

#[allow(unsafe_code, reason = "see there")]
fn backward_in<E: Number + Vector>(
    log_a: &Primitive,
    memory: &Primitive,
    y: &Primitive,
    dy: &Primitive,
) -> [Primitive; 3] {
    let inputs = Inputs { log_a: view::<E>(log_a), memory: view(memory) };
    let mut grads = channels::Gradients::new(&inputs);
    channels::backward(&inputs, view(y), view(dy), &mut grads);
    let channels::Gradients { log_a, u, memory } = grads;
    // SAFETY: all gradients have been written.
    let [log_a, u, memory] = [log_a, u, memory].map(|room| unsafe { room.written() });
    let dims = inputs.log_a.dims;
    [E::tensor(log_a, &dims), E::tensor(u, &dims), E::tensor(memory, &inputs.memory.dims)]
}
