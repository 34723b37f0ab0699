//! The kernel on Flex.

use burn::backend::Flex;
use burn::tensor::DType;

use super::rows::{self, Inputs};
use super::{Passes, Read};
use crate::kernels::room::Room;
use crate::kernels::vector::Vector;
use crate::kernels::view::{Double, Number, Primitive, view};

impl Passes for Flex {
    fn forward(read: &Read<Self>, kept: bool) -> (Primitive, Option<Primitive>) {
        match read.x.dtype() {
            DType::F64 => read.forward_in::<Double>(kept),
            _ => read.forward_in::<f32>(kept),
        }
    }

    fn backward(read: Read<Self>, dy: Primitive) -> [Option<Primitive>; 4] {
        match read.x.dtype() {
            DType::F64 => read.backward_in::<Double>(&dy),
            _ => read.backward_in::<f32>(&dy),
        }
    }
}

impl Read<Flex> {
    pub(super) fn inputs<E: Number + Vector>(&self) -> Inputs<'_, E> {
        let Self { x, tail, weight, bias, options } = self;
        Inputs::new([view(x), view(tail)], view(weight), options.bias.then(|| view(bias)), options.silu)
    }

    #[allow(unsafe_code, reason = "see there")]
    fn forward_in<E: Number + Vector>(&self, kept: bool) -> (Primitive, Option<Primitive>) {
        let inputs = self.inputs::<E>();
        let dims = inputs.out_dims();
        let mut y = Room::new(dims.iter().product());
        rows::forward(&inputs, &mut y);
        let last = kept.then(|| {
            let (numbers, dims) = rows::last(&inputs);
            E::tensor(numbers, &dims)
        });
        // SAFETY: all outputs have been written.
        (E::tensor(unsafe { y.written() }, &dims), last)
    }

    #[allow(unsafe_code, reason = "see there")]
    fn backward_in<E: Number + Vector>(&self, dy: &Primitive) -> [Option<Primitive>; 4] {
        let inputs = self.inputs::<E>();
        let mut grads = rows::Gradients::new(&inputs);
        rows::backward(&inputs, view(dy), &mut grads);
        let rows::Gradients { x, weight, bias } = grads;
        let channels = bias.len();
        let taps = weight.len() / channels;
        // Without a bias, one number stands for it.
        let bias = if self.options.bias { bias } else { vec![E::default()] };
        let width = bias.len();
        let [b, _, t, _] = inputs.out_dims();
        // SAFETY: all gradients have been written.
        let all = E::tensor(unsafe { x.written() }, &[b, 1, taps - 1 + t, channels]);
        let tail = (taps > 1).then(|| all.clone().narrow(2, 0, taps - 1));
        [
            Some(all.narrow(2, taps - 1, t)),
            tail,
            Some(E::tensor(weight, &[1, 1, channels, taps])),
            Some(E::tensor(bias, &[1, 1, 1, width])),
        ]
    }
}
