//! The kernel on Flex, and what both passes read.

use burn::backend::Flex;
use burn::tensor::DType;

use super::super::tiles::Shifts;
use super::backward::{self, Gradients, Outcome};
use super::{BLOCK, Given, Options, Passes, Saved, forward};
use crate::kernels::dense::Matrix;
use crate::kernels::room::Room;
use crate::kernels::vector::Vector;
use crate::kernels::view::{Double, Head, Number, Primitive, View, read, view};

impl Passes for Flex {
    fn forward(given: Given<Self>, options: Options) -> Saved<Self> {
        match given[0].dtype() {
            DType::F64 => forward_in::<Double>(given, options),
            _ => forward_in::<f32>(given, options),
        }
    }

    fn backward(saved: Saved<Self>, dy: Primitive) -> [Option<Primitive>; 5] {
        match saved.y.dtype() {
            DType::F64 => backward_in::<Double>(&saved, &dy),
            _ => backward_in::<f32>(&saved, &dy),
        }
    }
}

/// What attention reads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Views<'a, E> {
    /// `[b, h blocks, C, C + n]`
    pub(super) reads: View<'a, E>,
    /// `[b, h blocks, n, C + n]`
    pub(super) ends: View<'a, E>,
    /// `[b, h, T, p]`
    pub(super) v: View<'a, E>,
    /// `[h, 1, 1, 1]`
    pub(super) sink: Option<View<'a, E>>,
    /// `[b, h, T, 1]`
    pub(super) forget: Option<View<'a, E>>,
    /// `[b, 1, 1, T]`
    pub(super) offsets: Option<View<'a, E>>,
    pub(super) options: Options,
}

/// Some queries of a block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// Of all `b h`
    pub(super) head: usize,
    pub(super) block: usize,
    /// Rows of the block before them
    pub(super) before: usize,
    pub(super) rows: usize,
}

impl<'a, E: Vector> Views<'a, E> {
    /// Batch rows, heads, tokens, keys.
    pub(super) fn sizes(&self) -> [usize; 4] {
        let [b, h, total, _] = self.v.dims;
        [b, h, self.options.time, total]
    }

    /// Numbers of keys and values.
    pub(super) fn widths(&self) -> [usize; 2] {
        [self.ends.dims[2], self.v.dims[3]]
    }

    /// Blocks of a head.
    pub(super) fn blocks(&self) -> usize {
        self.ends.dims[1] / self.v.dims[1]
    }

    /// Blocks of all heads that have queries.
    pub(super) fn places(&self) -> Vec<Place> {
        let ([b, h, _, total], first) = (self.sizes(), self.options.weighing.cached);
        let place = |head, block| {
            let (from, to) = (first.max(block * BLOCK), total.min((block + 1) * BLOCK));
            Place { head, block, before: from - block * BLOCK, rows: to - from }
        };
        let heads = 0..b * h;
        heads
            .flat_map(|head| (first / BLOCK..self.blocks()).map(move |block| (head, block)))
            .map(|(head, block)| place(head, block))
            .collect()
    }

    /// The number of a block's first query among all that ask.
    pub(super) fn query(&self, place: Place) -> usize {
        place.block * BLOCK + place.before - self.options.weighing.cached
    }

    /// Keys of a block.
    pub(super) fn keys(&self, block: usize) -> usize {
        BLOCK.min(self.v.dims[2] - block * BLOCK)
    }

    pub(super) fn shifts(&self) -> Shifts {
        let [b, h, _, total] = self.sizes();
        Shifts::of([b, h, total], self.offsets, self.forget)
    }

    /// The score of nothing of head `head` of all, in units of `ln 2`.
    pub(super) fn sink(&self, head: usize) -> Option<f64> {
        let heads = self.v.dims[1];
        self.sink.map(|sink| sink.head(head % heads).column(0, 1).sum::<f64>() * std::f64::consts::LOG2_E)
    }

    /// Scores within the block, turned, and the queries at its start, turned: `[C, rows]` and `[n, rows]`, both so that
    /// products are in units of `ln 2`.
    pub(super) fn queries(
        &self,
        place: Place,
        space: &mut Matrix<E>,
        scores: &mut Matrix<E>,
        q: &mut Matrix<E>,
    ) {
        let Place { head, block, before, rows } = place;
        let [n, _] = self.widths();
        let from = self.reads.head(head * self.blocks() + block);
        let to_bits = E::of(self.options.weighing.scale * std::f64::consts::LOG2_E);
        let mut turned = |from: Head<'_, E>, columns, to: &mut Matrix<E>| {
            read(space, from, (before, rows), columns);
            to.set_transpose(space);
            to.scale(to_bits);
        };
        turned(from, BLOCK, scores);
        turned(from.columns_from(BLOCK), n, q);
    }
}

/// What a block does, and its values.
pub(super) struct Block<E> {
    /// Keys at its end: `[n, C]`
    pub(super) keys: Matrix<E>,
    /// `P: [n, n]`
    pub(super) moves: Matrix<E>,
    /// `[C, p]`
    pub(super) v: Matrix<E>,
}

impl<E: Vector> Block<E> {
    /// Block `block` of head `head`.
    pub(super) fn read(views: &Views<'_, E>, head: usize, block: usize) -> Self {
        let ([n, p], rows) = (views.widths(), views.keys(block));
        let from = views.ends.head(head * views.blocks() + block);
        let (mut keys, mut moves, mut v) = (Matrix::new(n, BLOCK), Matrix::new(n, n), Matrix::new(rows, p));
        read(&mut keys, from, (0, n), BLOCK);
        read(&mut moves, from.columns_from(BLOCK), (0, n), n);
        read(&mut v, views.v.head(head), (block * BLOCK, rows), p);
        Self { keys, moves, v }
    }
}

fn views<E: Number>(given: &Given<Flex>, options: Options) -> Views<'_, E> {
    let [reads, ends, v, sink, forget, offsets] = given.each_ref().map(view);
    Views {
        reads,
        ends,
        v,
        sink: options.sink.then_some(sink),
        forget: options.forget.then_some(forget),
        offsets: options.offsets.then_some(offsets),
        options,
    }
}

#[allow(unsafe_code, reason = "see there")]
fn forward_in<E: Number + Vector>(given: Given<Flex>, options: Options) -> Saved<Flex> {
    let views = views::<E>(&given, options);
    let ([b, h, t, _], [_, p]) = (views.sizes(), views.widths());
    let (mut y, mut log_sum) = (Room::new(b * h * t * p), Room::new(b * h * t));
    forward::forward(&views, &mut y, &mut log_sum);
    // SAFETY: all outputs have been written.
    let [y, log_sum] = [y, log_sum].map(|room| unsafe { room.written() });
    let (y, log_sum) = (E::tensor(y, &[b, h, t, p]), E::tensor(log_sum, &[b, h, t]));
    Saved { given, options, y, log_sum }
}

fn backward_in<E: Number + Vector>(saved: &Saved<Flex>, dy: &Primitive) -> [Option<Primitive>; 5] {
    let views = views::<E>(&saved.given, saved.options);
    let outcome = Outcome { y: view(&saved.y), log_sum: E::numbers(&saved.log_sum), dy: view(dy) };
    let Gradients { reads, ends, v, sink, forget } = backward::backward(&views, outcome);
    [
        Some(E::tensor(reads, &views.reads.dims)),
        Some(E::tensor(ends, &views.ends.dims)),
        Some(E::tensor(v, &views.v.dims)),
        views.sink.map(|sinks| E::tensor(sink, &sinks.dims)),
        views.forget.map(|fades| E::tensor(forget, &fades.dims)),
    ]
}
