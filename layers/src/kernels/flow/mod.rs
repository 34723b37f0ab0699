//! The balance of causal Flow-Attention (arXiv 2202.06258) on the CPU, token by token, with its five running sums in the
//! fastest cache. With `q̂ = q + ε`, `k̂ = k + ε` and the sums `K`, `Q`, `G`, `T`, `C` after token `t`:
//!
//! ```text
//! K += k,   Q += q,   I = 1 / q̂·(K + ε),   O = 1 / k̂·(Q + ε),   G += t O k,   T += t I q
//! a = sigmoid(q̂·(G + ε) / t),   s = e^{clamp(k̂·(T + ε) / t)},   C += s,   c = s t / C
//! ```
//!
//! Back, with gradients of sums kept from token to token as the sums are:
//!
//! ```text
//! Ds = t Dc / C + DC,   DC -= s t Dc / C²,   u = Ds s / t where not clamped,   v = a (1 - a) Da / t
//! Dk += u (T + ε),   DT += u k̂,   Dq += v (G + ε),   DG += v q̂
//! DI += t q·DT,   Dq += t I DT,   DO = t k·DG,   Dk += t O DG
//! Dq -= DI I² (K + ε),   DK -= DI I² q̂,   Dk -= DO O² (Q + ε),   DQ -= DO O² k̂,   Dk += DK,   Dq += DQ
//! ```
//!
//! Floor for `n` numbers: `20 n` operations a token forward, `60 n` back with sums made again.

mod flex;
#[cfg(test)]
mod tests;
mod walk;

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::Tensor;

use super::gradient::{self, Two, track_two};
use super::view::fits_outside_pages;

/// Where rows stand, and the numbers of the balance.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// Tokens of each row before this call
    pub(crate) starts: Vec<usize>,
    /// Tokens of each row that are no padding
    pub(crate) real: Vec<usize>,
    pub(crate) eps: f64,
    pub(crate) clamp: f64,
}

/// Whether queries like `q` may be for the kernel.
pub(crate) fn runs_on(q: &Tensor<4>) -> bool {
    fits_outside_pages(q)
}

/// `a`, `c` and `I`, beside each other, `[b, h, t, 3]`, and the sums after the last token, from `q`, `k`: `[b, h, t, n]` and
/// the sums `K`, `Q`, `G`, `T`, `C`: `[b, h, 4 n + 1, 1]`; `None` where no kernel runs these.
pub(crate) fn run(
    q: &Tensor<4>,
    k: &Tensor<4>,
    sums: &Tensor<4>,
    options: Options,
) -> Option<(Tensor<4>, Tensor<4>)> {
    let [b, h, t, n] = q.dims();
    let fit = runs_on(q)
        && [b, h, t, n].iter().all(|&size| size > 0)
        && k.dims() == q.dims()
        && sums.dims() == [b, h, 4 * n + 1, 1]
        && [k, sums].iter().all(|x| x.dtype() == q.dtype());
    if !fit {
        return None;
    }
    let [q, k, sums] = [q, k, sums].map(|x| x.clone().into_dispatch());
    let (y, last) = <Dispatch as Balance>::balance(q, k, sums, options);
    Some((Tensor::from_dispatch(y), Tensor::from_dispatch(last)))
}

/// The operation as backends see it.
#[backend_extension(Flex: cfg(feature = "flex"), Autodiff)]
pub(crate) trait Balance: Backend {
    /// See [`run`].
    fn balance(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        sums: FloatTensor<Self>,
        options: Options,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
}

/// Inputs in the order of the operation's arguments.
type Given<B> = [FloatTensor<B>; 3];

/// A backend's kernels.
trait Passes: Backend {
    /// Outputs and the last sums.
    fn forward(given: &Given<Self>, options: &Options) -> [FloatTensor<Self>; 2];

    /// Gradients of all inputs.
    fn backward(
        given: &Given<Self>,
        options: &Options,
        dy: &FloatTensor<Self>,
        last: Option<&FloatTensor<Self>>,
    ) -> Given<Self>;
}

impl Balance for Flex {
    fn balance(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        sums: FloatTensor<Self>,
        options: Options,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        Self::forward(&[q, k, sums], &options).into()
    }
}

/// What the backward pass starts from.
#[derive(Clone, Debug)]
struct Saved<B: Backend> {
    given: Given<B>,
    options: Options,
}

impl<B: Passes> gradient::SavedForTwo<B, 3> for Saved<B> {
    fn gradients(
        self,
        dy: FloatTensor<B>,
        last: Option<FloatTensor<B>>,
        _wanted: [bool; 3],
    ) -> [Option<FloatTensor<B>>; 3] {
        B::backward(&self.given, &self.options, &dy, last.as_ref()).map(Some)
    }
}

impl<B: Balance + Passes, C: CheckpointStrategy> Balance for Autodiff<B, C> {
    fn balance(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        sums: FloatTensor<Self>,
        options: Options,
    ) -> Two<Self> {
        let given = [q, k, sums];
        let nodes = given.each_ref().map(|x| x.node());
        let given = given.map(|x| x.into_primitive());
        track_two::<B, C, _, 3>(nodes, |_| (B::forward(&given, &options), Saved { given, options }))
    }
}
