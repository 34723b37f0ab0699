//! The kernel on Flex.

use burn::backend::Flex;
use burn::tensor::DType;

use super::heads::{self, Gradients, Inputs};
use super::{Given, Options, Passes};
use crate::kernels::vector::Vector;
use crate::kernels::view::{Double, Number, Primitive, View, view};

impl Passes for Flex {
    fn forward(given: &Given<Self>, options: &Options, keep: bool) -> (Primitive, Option<Primitive>) {
        match given[0].dtype() {
            DType::F64 => forward_in::<Double>(given, options, keep),
            _ => forward_in::<f32>(given, options, keep),
        }
    }

    fn backward(
        given: &Given<Self>,
        options: &Options,
        kept: &Primitive,
        out: &Primitive,
    ) -> [Option<Primitive>; 10] {
        match given[0].dtype() {
            DType::F64 => backward_in::<Double>(given, options, kept, out),
            _ => backward_in::<f32>(given, options, kept, out),
        }
    }
}

pub(super) fn inputs<'a, E: Number + Vector>(given: &'a Given<Flex>, options: &'a Options) -> Inputs<'a, E> {
    let [q, k, v, threshold, plan, norm, sizes, running, anchor, momentum] = given.each_ref().map(view);
    let weights = [running, anchor, momentum];
    Inputs { options, tokens: [q, k, v], threshold, plan, norm, sizes, weights }
}

fn forward_in<E: Number + Vector>(
    given: &Given<Flex>,
    options: &Options,
    keep: bool,
) -> (Primitive, Option<Primitive>) {
    let inputs = inputs::<E>(given, options);
    let ([b, h, ..], [heads, _]) = (inputs.tokens[0].dims, inputs.extent());
    let mut out = vec![E::default(); heads * inputs.outputs()];
    let mut kept = keep.then(|| vec![E::default(); heads * inputs.kept()]);
    heads::forward(&inputs, &mut out, kept.as_deref_mut());
    let kept = kept.map(|kept| E::tensor(kept, &[heads, inputs.kept()]));
    (E::tensor(out, &[b, h, 1, inputs.outputs()]), kept)
}

fn backward_in<E: Number + Vector>(
    given: &Given<Flex>,
    options: &Options,
    kept: &Primitive,
    out: &Primitive,
) -> [Option<Primitive>; 10] {
    let inputs = inputs::<E>(given, options);
    let mut grads = Gradients::filled(&inputs, E::default());
    heads::backward(&inputs, E::numbers(kept), view(out), &mut grads);
    let Gradients { tokens: [q, k, v], threshold, plan, norm, sizes, weights } = grads;
    let [running, anchor, momentum] = weights;
    let views = given.each_ref().map(view::<E>);
    let mut found = [q, k, v, threshold, plan, norm, sizes, running, anchor, momentum].into_iter();
    views.map(|View { dims, .. }| {
        let grad = found.next().expect("one of each input");
        (grad.len() == dims.iter().product::<usize>()).then(|| E::tensor(grad, &dims))
    })
}
