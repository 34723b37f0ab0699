//! Log-linear attention (arXiv 2506.04761) on the CPU: blocks of tokens that are quadratic inside read the buckets that
//! were there before them, one product each, and leave those after them.
//!
//! Blocks end where positions are multiples of their size, so that all tokens of a whole one go into the same bucket, and
//! none that a block reads changes its level on the way. Inside a block the tokens that a row weighs alike lie side by side,
//! one run of them for every bit of its position. The graph holds the inputs; the way back makes buckets again. Floor for
//! `T` tokens in blocks of `C`: per token and head `n p (log₂(T / C) + 2) + C (n + p)` operations forward, and 2.5 to 3 times
//! that back.

mod block;
mod buckets;
mod flex;
mod levels;
mod passes;
#[cfg(test)]
mod tests;

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::Tensor;

use super::gradient::{self, Two, track_two};
use super::view::fits_outside_pages;
use crate::linear::LogLinearInputs;

/// Where rows stand, and how many buckets there are.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    /// Tokens of each row before this call
    pub(crate) starts: Vec<usize>,
    /// Tokens of each row that are no padding
    pub(crate) real: Vec<usize>,
    /// Buckets before and after
    pub(crate) buckets: [usize; 2],
}

/// `y: [b, h, t, p]`, 0 for padding, and the buckets after the last token, `[b, h, buckets, n, p]`; `None` where no kernel
/// runs these.
pub(crate) fn run(
    inputs: &LogLinearInputs,
    buckets: Option<&Tensor<5>>,
    places: &Places,
) -> Option<(Tensor<4>, Tensor<5>)> {
    let LogLinearInputs { q, k, v, log_a, scales } = inputs;
    let ([b, h, t, n], p, levels) = (k.dims(), v.dims()[3], scales.dims()[3]);
    let [old, new] = places.buckets;
    let fit = fits_outside_pages(v)
        && [b, h, t, n, p, levels, new].iter().all(|&size| size > 0)
        && q.dims() == k.dims()
        && v.dims() == [b, h, t, p]
        && scales.dims() == [b, h, t, levels]
        && log_a.dims() == [b, h, t]
        && buckets.map_or(old == 0, |x| x.dims() == [b, h, old, n, p] && x.dtype() == v.dtype())
        && [q, k, scales].iter().all(|x| x.dtype() == v.dtype())
        && log_a.dtype() == v.dtype();
    if !fit {
        return None;
    }
    let buckets = match buckets {
        Some(buckets) => buckets.clone().reshape([b, h, old * n, p]),
        // In place of what there is not: it is neither read nor differentiated.
        None => Tensor::empty([1; 4], (&v.device().inner(), v.dtype())),
    };
    let log_a = log_a.clone().unsqueeze_dim::<4>(3);
    let [q, k, v, log_a, scales, buckets] =
        [q.clone(), k.clone(), v.clone(), log_a, scales.clone(), buckets].map(Tensor::into_dispatch);
    let (y, last) = <Dispatch as Fenwick>::fenwick(q, k, v, log_a, scales, buckets, places.clone());
    let last = Tensor::<4>::from_dispatch(last).reshape([b, h, new, n, p]);
    Some((Tensor::from_dispatch(y), last))
}

/// The operation as backends see it: `log_a: [b, h, t, 1]`, and buckets as `[b, h, buckets n, p]`.
#[backend_extension(Flex: cfg(feature = "flex"), Autodiff)]
pub(crate) trait Fenwick: Backend {
    /// See [`run`].
    fn fenwick(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        log_a: FloatTensor<Self>,
        scales: FloatTensor<Self>,
        buckets: FloatTensor<Self>,
        places: Places,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
}

/// Inputs in the order of the operation's arguments.
type Given<B> = [FloatTensor<B>; 6];

/// A backend's kernels.
trait Passes: Backend {
    /// Outputs and the last buckets.
    fn forward(given: &Given<Self>, places: &Places) -> [FloatTensor<Self>; 2];

    /// Gradients of all inputs that there are.
    fn backward(
        given: &Given<Self>,
        places: &Places,
        dy: &FloatTensor<Self>,
        last: Option<&FloatTensor<Self>>,
    ) -> [Option<FloatTensor<Self>>; 6];
}

impl Fenwick for Flex {
    fn fenwick(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        log_a: FloatTensor<Self>,
        scales: FloatTensor<Self>,
        buckets: FloatTensor<Self>,
        places: Places,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        Self::forward(&[q, k, v, log_a, scales, buckets], &places).into()
    }
}

/// What the backward pass starts from.
#[derive(Clone, Debug)]
struct Saved<B: Backend> {
    given: Given<B>,
    places: Places,
}

impl<B: Passes> gradient::SavedForTwo<B, 6> for Saved<B> {
    fn gradients(
        self,
        dy: FloatTensor<B>,
        last: Option<FloatTensor<B>>,
        _wanted: [bool; 6],
    ) -> [Option<FloatTensor<B>>; 6] {
        B::backward(&self.given, &self.places, &dy, last.as_ref())
    }
}

impl<B: Fenwick + Passes, C: CheckpointStrategy> Fenwick for Autodiff<B, C> {
    fn fenwick(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        log_a: FloatTensor<Self>,
        scales: FloatTensor<Self>,
        buckets: FloatTensor<Self>,
        places: Places,
    ) -> Two<Self> {
        let given = [q, k, v, log_a, scales, buckets];
        let nodes = given.each_ref().map(|x| x.node());
        let given = given.map(|x| x.into_primitive());
        track_two::<B, C, _, 6>(nodes, |_| (B::forward(&given, &places), Saved { given, places }))
    }
}
