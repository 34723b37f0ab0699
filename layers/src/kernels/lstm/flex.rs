//! The kernel on Flex.

use burn::backend::Flex;
use burn::tensor::DType;

use super::cells::{self, Inputs};
use super::{Passes, Read};
use crate::kernels::vector::Vector;
use crate::kernels::view::{Double, Number, Primitive, view};

impl Passes for Flex {
    fn forward(read: &Read<Self>, p: &Primitive, kept: bool) -> (Primitive, Option<Primitive>) {
        match p.dtype() {
            DType::F64 => forward_in::<Double>(read, p, kept),
            _ => forward_in::<f32>(read, p, kept),
        }
    }

    fn backward(read: &Read<Self>, gates: &Primitive, states: &Primitive, dy: &Primitive) -> [Primitive; 3] {
        match dy.dtype() {
            DType::F64 => backward_in::<Double>(read, gates, states, dy),
            _ => backward_in::<f32>(read, gates, states, dy),
        }
    }
}

impl Read<Flex> {
    pub(super) fn inputs<E: Number + Vector>(&self, time: usize) -> Inputs<'_, E> {
        let Self { weight, h, c, bias, lengths, options } = self;
        let lengths = options.ragged.then(|| view(lengths));
        let bias = options.biased.then(|| view(bias));
        Inputs::new(view(weight), [view(h), view(c)], bias, lengths, options.reversed, time)
    }
}

fn forward_in<E: Number + Vector>(
    read: &Read<Flex>,
    p: &Primitive,
    kept: bool,
) -> (Primitive, Option<Primitive>) {
    let p = view::<E>(p);
    let inputs = read.inputs::<E>(p.dims[2]);
    let [b, n] = inputs.sizes();
    let t = p.dims[2];
    let mut states = vec![E::default(); 2 * b * t * n];
    let mut gates = kept.then(|| vec![E::default(); b * t * 4 * n]);
    cells::forward(&inputs, p, &mut states, gates.as_deref_mut());
    (E::tensor(states, &[2, b, t, n]), gates.map(|gates| E::tensor(gates, &[b, 1, t, 4 * n])))
}

fn backward_in<E: Number + Vector>(
    read: &Read<Flex>,
    gates: &Primitive,
    states: &Primitive,
    dy: &Primitive,
) -> [Primitive; 3] {
    let gates = view::<E>(gates);
    let t = gates.dims[2];
    let inputs = read.inputs::<E>(t);
    let [b, n] = inputs.sizes();
    let mut grads = cells::Gradients::filled(&inputs, E::default());
    cells::backward(&inputs, gates, view(states), view(dy), &mut grads);
    let cells::Gradients { p, h, c } = grads;
    [E::tensor(p, &[b, 1, t, 4 * n]), E::tensor(h, &[b, 1, 1, n]), E::tensor(c, &[b, 1, 1, n])]
}
