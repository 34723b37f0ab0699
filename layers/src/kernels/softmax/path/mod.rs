//! PaTH attention (arXiv 2505.16381): an online softmax whose queries are changed on their way to the keys,
//! `s_ij = q_iᵀ H_i ⋯ H_{j+1} k_j · scale` with `H_t = I - β_t w_t w_tᵀ`.
//!
//! A block of tokens does to what passes it what the delta rule does to a memory, so [`Recurrence`]'s kernel makes all that
//! blocks need, and takes its gradients back: run over each block with a unit vector per token for values and a unit
//! matrix, beside them, for the memory,
//!
//! ```text
//! outputs      [scores within the block | q_iᵀ H_i ⋯ H_1]
//! last memory  [keys at the block's end | P = H_C ⋯ H_1]
//! ```
//!
//! Then tiles of queries go from block to block, `q ← Pᵀ q`, with what softmax attention does at each. One query goes from
//! key to key instead. Floor for `t` queries of `h` heads of `n` channels in blocks of `C`: `t² h (2 n + n² / C)`
//! floating-point operations, 2.5 times that backward, besides the blocks'.

mod backward;
mod few;
mod flex;
mod forward;
#[cfg(test)]
mod tests;

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::Tensor;

use super::Weighing;
use crate::kernels::gradient::{self, track};
use crate::kernels::tiled::Recurrence;
use crate::kernels::view::fits_outside_pages;
use crate::nn::repeat_heads;
use crate::system::scan::pad;

/// Tokens of a block, and queries of a tile.
const BLOCK: usize = 64;

/// The tensors of a call.
#[derive(Clone, Debug)]
pub(crate) struct Inputs {
    /// `[b, h, t, n]`
    pub(crate) q: Tensor<4>,
    /// `[b, h_kv, T, n]`
    pub(crate) k: Tensor<4>,
    /// `[b, h_kv, T, p]`
    pub(crate) v: Tensor<4>,
    /// `[b, h_kv, T, n]`
    pub(crate) w: Tensor<4>,
    /// `[b, h_kv, T, 1]`
    pub(crate) beta: Tensor<4>,
    /// A score of nothing, `[h]`
    pub(crate) sink: Option<Tensor<1>>,
    /// `log f: [b, h, T, 1]`, of which scores get `Σ_{j < s ≤ i} log f_s`
    pub(crate) forget: Option<Tensor<4>>,
    /// What all scores of a key get, without a gradient: `[b, 1, 1, T]`
    pub(crate) offsets: Option<Tensor<4>>,
    /// Causal and without a window.
    pub(crate) weighing: Weighing,
}

impl Inputs {
    /// `softmax(scores) v: [b, h, t, p]`; `None` where no kernel runs these.
    pub(crate) fn run(&self) -> Option<Tensor<4>> {
        if !self.fit() {
            return None;
        }
        if let Some(y) = few::run(self) {
            return Some(y);
        }
        let Self { q, v, sink, forget, offsets, weighing, .. } = self;
        let (dtype, device) = (q.dtype(), q.device().inner());
        let options = Options {
            weighing: *weighing,
            time: q.dims()[2],
            sink: sink.is_some(),
            forget: forget.is_some(),
            offsets: offsets.is_some(),
        };
        let [reads, ends] = self.blocks();
        let v = repeat_heads(v.clone(), q.dims()[1] / v.dims()[1]);
        // In place of what there is not: it is neither read nor differentiated.
        let none = |x: Option<Tensor<4>>| {
            x.unwrap_or_else(|| Tensor::empty([1; 4], (&device, dtype))).cast(dtype).into_dispatch()
        };
        let sink = none(sink.clone().map(|sink| sink.reshape([-1, 1, 1, 1])));
        let (forget, offsets) = (none(forget.clone()), none(offsets.clone()));
        let [reads, ends, v] = [reads, ends, v].map(Tensor::into_dispatch);
        Some(Tensor::from_dispatch(<Dispatch as Path>::path(reads, ends, v, sink, forget, offsets, options)))
    }

    /// Whether sizes and types are those of one call.
    fn fit(&self) -> bool {
        let Self { q, k, v, w, beta, weighing, .. } = self;
        let ([b, h, t, n], [_, kv, total, p]) = (q.dims(), v.dims());
        fits_outside_pages(q)
            && [b, h, t, n, kv, p].iter().all(|&size| size > 0)
            && [k, w].iter().all(|x| x.dims() == [b, kv, total, n])
            && v.dims()[0] == b
            && beta.dims() == [b, kv, total, 1]
            && h.is_multiple_of(kv)
            && weighing.causal
            && weighing.window.is_none()
            && weighing.cached + t == total
            && [k, v, w, beta].iter().all(|x| x.dtype() == q.dtype())
    }

    /// What blocks do, as the module says: `[b, h blocks, C, C + n]` and `[b, h blocks, n, C + n]`.
    fn blocks(&self) -> [Tensor<4>; 2] {
        let Self { q, k, w, beta, weighing, .. } = self;
        let ([b, h, _, n], [_, kv, total, _]) = (q.dims(), k.dims());
        let (dtype, device) = (q.dtype(), q.device().inner());
        let count = total.div_ceil(BLOCK);
        let q = if weighing.cached == 0 {
            q.clone()
        } else {
            Tensor::cat(vec![Tensor::zeros([b, h, weighing.cached, n], (&device, dtype)), q.clone()], 2)
        };
        let back = (w.clone() * beta.clone()).neg();
        let blocks = |x: Tensor<4>| pad(x, 2, count * BLOCK).reshape([b, h * count, BLOCK, n]);
        let [k, w, back] = [k, w, &back].map(|x| blocks(repeat_heads(x.clone(), h / kv)));
        // Parts of a unit matrix of as many rows as columns.
        let unit = Tensor::<2>::eye(BLOCK + n, &device).cast(dtype);
        let part = |first, rows| {
            let part = unit.clone().narrow(0, first, rows).reshape([1, 1, rows, BLOCK + n]);
            part.expand([b, h * count, rows, BLOCK + n])
        };
        let (v, memory) = (part(0, BLOCK), part(BLOCK, n));
        let rule =
            Recurrence { q: blocks(q), k, v, log_d: None, rank_one: Some([w, back]), memory, gain: 1.0 };
        rule.run(Some(BLOCK)).into()
    }
}

/// How products become weights, how many tokens ask, and which of the optional inputs are there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    weighing: Weighing,
    time: usize,
    sink: bool,
    forget: bool,
    offsets: bool,
}

/// The operation as backends see it: what blocks do, as many of each head as there are, `v: [b, h, T, p]`, and
/// `sink: [h, 1, 1, 1]`.
#[backend_extension(Flex: cfg(feature = "flex"), Autodiff)]
pub(crate) trait Path: Backend {
    /// See [`Inputs::run`].
    fn path(
        reads: FloatTensor<Self>,
        ends: FloatTensor<Self>,
        v: FloatTensor<Self>,
        sink: FloatTensor<Self>,
        forget: FloatTensor<Self>,
        offsets: FloatTensor<Self>,
        options: Options,
    ) -> FloatTensor<Self>;
}

/// Inputs in the order of the operation's arguments.
type Given<B> = [FloatTensor<B>; 6];

/// What the backward pass starts from.
#[derive(Clone, Debug)]
struct Saved<B: Backend> {
    given: Given<B>,
    options: Options,
    /// `[b, h, t, p]`
    y: FloatTensor<B>,
    /// Binary logarithms of the sums over each query's keys: `[b, h, t]`
    log_sum: FloatTensor<B>,
}

/// A backend's kernels.
trait Passes: Backend {
    /// See [`Inputs::run`].
    fn forward(given: Given<Self>, options: Options) -> Saved<Self>;

    /// Gradients of the first five inputs.
    fn backward(saved: Saved<Self>, dy: FloatTensor<Self>) -> [Option<FloatTensor<Self>>; 5];
}

impl Path for Flex {
    fn path(
        reads: FloatTensor<Self>,
        ends: FloatTensor<Self>,
        v: FloatTensor<Self>,
        sink: FloatTensor<Self>,
        forget: FloatTensor<Self>,
        offsets: FloatTensor<Self>,
        options: Options,
    ) -> FloatTensor<Self> {
        Self::forward([reads, ends, v, sink, forget, offsets], options).y
    }
}

impl<B: Passes> gradient::Saved<B, 5> for Saved<B> {
    fn gradients(self, dy: FloatTensor<B>, _wanted: [bool; 5]) -> [Option<FloatTensor<B>>; 5] {
        B::backward(self, dy)
    }
}

impl<B: Path + Passes, C: CheckpointStrategy> Path for Autodiff<B, C> {
    fn path(
        reads: FloatTensor<Self>,
        ends: FloatTensor<Self>,
        v: FloatTensor<Self>,
        sink: FloatTensor<Self>,
        forget: FloatTensor<Self>,
        offsets: FloatTensor<Self>,
        options: Options,
    ) -> FloatTensor<Self> {
        let nodes = [&reads, &ends, &v, &sink, &forget].map(|x| x.node());
        let given = [reads, ends, v, sink, forget, offsets].map(|x| x.into_primitive());
        track::<B, C, _, 5>(nodes, |_| {
            let saved = B::forward(given, options);
            (saved.y.clone(), saved)
        })
    }
}
