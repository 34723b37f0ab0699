//! The kernel on Flex.

use burn::backend::Flex;
use burn::tensor::DType;

use super::rows::{self, Gradients, Rows};
use super::{Passes, Read};
use crate::kernels::vector::Vector;
use crate::kernels::view::{Double, Number, Primitive, view};

impl Passes for Flex {
    fn forward(read: &Read<Self>) -> Primitive {
        match read.x.dtype() {
            DType::F64 => read.forward_in::<Double>(),
            _ => read.forward_in::<f32>(),
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
    pub(super) fn rows<E: Number + Vector>(&self) -> Rows<'_, E> {
        let Self { x, weight, bias, gate, options } = self;
        Rows::new(
            view(x),
            options.weight.then(|| view(weight)),
            options.bias.then(|| view(bias)),
            options.gate.map(|gating| (view(gate), gating)),
            options.scaling,
        )
    }

    fn forward_in<E: Number + Vector>(&self) -> Primitive {
        let rows = self.rows::<E>();
        let mut y = vec![E::default(); rows.count()];
        rows::forward(&rows, &mut y);
        E::tensor(y, &rows.dims())
    }

    fn backward_in<E: Number + Vector>(&self, dy: &Primitive) -> [Option<Primitive>; 4] {
        let rows = self.rows::<E>();
        let mut grads = Gradients::filled(&rows, E::default());
        rows::backward(&rows, view(dy), &mut grads);
        let Gradients { x, gate, weight, bias } = grads;
        let dims = rows.dims();
        let scale = |numbers| E::tensor(numbers, &rows.weight_dims());
        [
            Some(E::tensor(x, &dims)),
            self.options.weight.then(|| scale(weight)),
            self.options.bias.then(|| scale(bias)),
            self.options.gate.map(|_| E::tensor(gate, &dims)),
        ]
    }
}
