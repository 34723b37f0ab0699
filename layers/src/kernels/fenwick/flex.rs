//! The kernel on Flex, and what both passes read.

use burn::backend::Flex;
use burn::tensor::DType;

use super::passes::{self, Gradients};
use super::{Given, Passes, Places};
use crate::kernels::room::Room;
use crate::kernels::vector::Vector;
use crate::kernels::view::{Double, Number, Primitive, View, view};

impl Passes for Flex {
    fn forward(given: &Given<Self>, places: &Places) -> [Primitive; 2] {
        match given[0].dtype() {
            DType::F64 => forward_in::<Double>(given, places),
            _ => forward_in::<f32>(given, places),
        }
    }

    fn backward(
        given: &Given<Self>,
        places: &Places,
        dy: &Primitive,
        last: Option<&Primitive>,
    ) -> [Option<Primitive>; 6] {
        match given[0].dtype() {
            DType::F64 => backward_in::<Double>(given, places, dy, last),
            _ => backward_in::<f32>(given, places, dy, last),
        }
    }
}

/// What the memory is given.
#[derive(Clone, Copy, Debug)]
pub(super) struct Views<'a, E> {
    /// `[b, h, t, n]`
    pub(super) q: View<'a, E>,
    /// `[b, h, t, n]`
    pub(super) k: View<'a, E>,
    /// `[b, h, t, p]`
    pub(super) v: View<'a, E>,
    /// `[b, h, t, 1]`
    pub(super) log_a: View<'a, E>,
    /// `[b, h, t, levels]`
    pub(super) scales: View<'a, E>,
    /// `[b, h, buckets n, p]`
    pub(super) buckets: Option<View<'a, E>>,
    pub(super) places: &'a Places,
}

impl<E: Vector> Views<'_, E> {
    /// Numbers of keys and values.
    pub(super) fn widths(&self) -> [usize; 2] {
        [self.k.dims[3], self.v.dims[3]]
    }

    pub(super) fn levels(&self) -> usize {
        self.scales.dims[3]
    }

    /// Tokens before a head's first one.
    pub(super) fn start(&self, head: usize) -> usize {
        self.places.starts[head / self.v.dims[1]]
    }

    /// A head's tokens that are no padding.
    pub(super) fn real(&self, head: usize) -> usize {
        self.places.real[head / self.v.dims[1]]
    }
}

fn views<'a, E: Number>(given: &'a Given<Flex>, places: &'a Places) -> Views<'a, E> {
    let [q, k, v, log_a, scales, buckets] = given.each_ref().map(view);
    let buckets = (places.buckets[0] > 0).then_some(buckets);
    Views { q, k, v, log_a, scales, buckets, places }
}

#[allow(unsafe_code, reason = "see there")]
fn forward_in<E: Number + Vector>(given: &Given<Flex>, places: &Places) -> [Primitive; 2] {
    let views = views::<E>(given, places);
    let (dims @ [b, h, ..], [n, p]) = (views.v.dims, views.widths());
    let [_, new] = places.buckets;
    let mut y = Room::new(dims.iter().product());
    let mut last = vec![E::default(); b * h * new * n * p];
    passes::forward(&views, &mut y, &mut last);
    // SAFETY: all outputs have been written.
    let y = views.v.order().tensor(unsafe { y.written() }, dims);
    [y, E::tensor(last, &[b, h, new * n, p])]
}

#[allow(unsafe_code, reason = "see there")]
fn backward_in<E: Number + Vector>(
    given: &Given<Flex>,
    places: &Places,
    dy: &Primitive,
    last: Option<&Primitive>,
) -> [Option<Primitive>; 6] {
    let views = views::<E>(given, places);
    let mut grads = Gradients::new(&views);
    passes::backward(&views, view(dy), last.map(view), &mut grads);
    let Gradients { rows: [q, k, v, log_a, scales], buckets } = grads;
    let laid_out =
        // SAFETY: all gradients have been written.
        |room: Room<E>, like: View<'_, E>| Some(like.order().tensor(unsafe { room.written() }, like.dims));
    [
        laid_out(q, views.q),
        laid_out(k, views.k),
        laid_out(v, views.v),
        laid_out(log_a, views.log_a),
        laid_out(scales, views.scales),
        views.buckets.map(|view| E::tensor(buckets, &view.dims)),
    ]
}
