//! The kernel on Flex.

use burn::backend::Flex;
use burn::tensor::DType;

use super::backward::{self, Gradients, Outcome};
use super::tiles::Inputs;
use super::{Passes, Read, Saved, few, forward};
use crate::kernels::room::Room;
use crate::kernels::vector::Vector;
use crate::kernels::view::{Double, Number, Primitive, View, view};

impl Passes for Flex {
    fn forward(read: Read<Self>) -> Saved<Self> {
        let [y, log_sum] = match read.q.dtype() {
            DType::F64 => read.forward_in::<Double>(),
            _ => read.forward_in::<f32>(),
        };
        Saved { read, y, log_sum }
    }

    fn backward(saved: Saved<Self>, dy: Primitive) -> [Primitive; 5] {
        match saved.y.dtype() {
            DType::F64 => saved.backward_in::<Double>(&dy),
            _ => saved.backward_in::<f32>(&dy),
        }
    }
}

impl Read<Flex> {
    pub(super) fn inputs<E: Number>(&self) -> Inputs<'_, E> {
        let Self { q, k, v, sink, forget, offsets, options } = self;
        Inputs {
            q: view(q),
            k: view(k),
            v: view(v),
            sink: options.sink.then(|| view(sink)),
            forget: options.forget.then(|| view(forget)),
            offsets: options.offsets.then(|| view(offsets)),
            weighing: options.weighing,
        }
    }

    #[allow(unsafe_code, reason = "see there")]
    fn forward_in<E: Number + Vector>(&self) -> [Primitive; 2] {
        let inputs = self.inputs::<E>();
        let ([b, h, t, _], [.., p]) = (inputs.q.dims, inputs.v.dims);
        let mut log_sum = vec![E::default(); b * h * t];
        let y = if t <= few::FEW {
            let mut y = vec![E::default(); b * h * t * p];
            few::forward(&inputs, &mut y, &mut log_sum);
            E::tensor(y, &[b, h, t, p])
        } else {
            let mut y = Room::new(b * h * t * p);
            forward::forward(&inputs, &mut y, &mut log_sum);
            // SAFETY: all outputs have been written.
            inputs.v.order().tensor(unsafe { y.written() }, [b, h, t, p])
        };
        [y, E::tensor(log_sum, &[b, h, t])]
    }
}

impl Saved<Flex> {
    #[allow(unsafe_code, reason = "see there")]
    fn backward_in<E: Number + Vector>(&self, dy: &Primitive) -> [Primitive; 5] {
        let inputs = self.read.inputs::<E>();
        let outcome = Outcome { y: view(&self.y), log_sum: E::numbers(&self.log_sum), dy: view(dy) };
        let mut grads = Gradients::new(&inputs);
        backward::backward(&inputs, outcome, &mut grads);
        let Gradients { q, k, v, sink, forget } = grads;
        // Without a sink, one number stands for it.
        let sink = if sink.is_empty() { vec![E::default()] } else { sink };
        let heads = sink.len();
        let forget = match inputs.forget {
            Some(view) => E::tensor(forget, &view.dims),
            None => E::tensor(vec![E::default()], &[1, 1, 1, 1]),
        };
        // SAFETY: all gradients have been written.
        let laid_out =
            |grad: Room<E>, like: View<'_, E>| like.order().tensor(unsafe { grad.written() }, like.dims);
        [
            laid_out(q, inputs.q),
            laid_out(k, inputs.k),
            laid_out(v, inputs.v),
            E::tensor(sink, &[heads]),
            forget,
        ]
    }
}
