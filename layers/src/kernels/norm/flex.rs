//! The kernel on Flex.

use burn::backend::Flex;
use burn::tensor::DType;

use super::rows::{self, Gradients, Rows};
use super::{Passes, Read};
use crate::kernels::room::Order;
use crate::kernels::vector::Vector;
use crate::kernels::view::{Number, Primitive, tensor_turned, view, view_turned};

impl Passes for Flex {
    fn forward(read: &Read<Self>) -> Primitive {
        match read.x.dtype() {
            DType::F64 => read.forward_in::<f64>(),
            _ => read.forward_in::<f32>(),
        }
    }

    fn backward(read: Read<Self>, dy: Primitive) -> [Option<Primitive>; 4] {
        match read.x.dtype() {
            DType::F64 => read.backward_in::<f64>(&dy),
            _ => read.backward_in::<f32>(&dy),
        }
    }
}

impl Read<Flex> {
    /// Whether tokens lie outside heads and rows are alike, so that the rows may be gone through as they lie.
    fn turned<E: Number>(&self) -> bool {
        let Self { x, weight, bias, options, .. } = self;
        let [.., n] = view::<E>(x).dims;
        let shared = |there: bool, w: &Primitive| !there || view::<E>(w).dims == [1, 1, 1, n];
        !options.scaling.joint
            && shared(options.weight, weight)
            && shared(options.bias, bias)
            && view::<E>(x).order() == Order::Tokens
    }

    /// With axes 1 and 2 for each other if they are `turned`.
    pub(super) fn rows<E: Number + Vector>(&self, turned: bool) -> Rows<'_, E> {
        let Self { x, weight, bias, gate, options } = self;
        Rows::new(
            view_turned(x, turned),
            options.weight.then(|| view(weight)),
            options.bias.then(|| view(bias)),
            options.gate.map(|gating| (view_turned(gate, turned), gating)),
            options.scaling,
        )
    }

    fn forward_in<E: Number + Vector>(&self) -> Primitive {
        let turned = self.turned::<E>();
        let rows = self.rows::<E>(turned);
        let mut y = vec![E::default(); rows.count()];
        rows::forward(&rows, &mut y);
        tensor_turned(y, rows.dims(), turned)
    }

    fn backward_in<E: Number + Vector>(&self, dy: &Primitive) -> [Option<Primitive>; 4] {
        let turned = self.turned::<E>();
        let rows = self.rows::<E>(turned);
        let mut grads = Gradients::filled(&rows, E::default());
        rows::backward(&rows, view_turned(dy, turned), &mut grads);
        let Gradients { x, gate, weight, bias } = grads;
        let of_x = |numbers| tensor_turned(numbers, rows.dims(), turned);
        let scale = |numbers| E::tensor(numbers, &rows.weight_dims());
        [
            Some(of_x(x)),
            self.options.weight.then(|| scale(weight)),
            self.options.bias.then(|| scale(bias)),
            self.options.gate.map(|_| of_x(gate)),
        ]
    }
}
