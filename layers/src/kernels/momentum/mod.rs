//! The delta rule with momentum (arXiv 2605.05838), token by token, on the CPU. Columns of values do not touch each other,
//! so a block of them goes through all tokens with its memory and momentum in the fastest cache:
//!
//! ```text
//! w_t = S_{t-1}ᵀ p_t - v_t,   M_t = μ_t M_{t-1} + k_t w_tᵀ,   S_t = α_t S_{t-1} - β_t M_t,   y_t = S_tᵀ q_t
//! ```
//!
//! Back, with the gradients `s` of `S_t` and `m` of `M_t`, and sums over columns where a gradient is shared:
//!
//! ```text
//! s += q dyᵀ,   dq = Σ S dy,   dα = Σ s∘S',   dβ = -Σ s∘M,   m -= β s,   dμ = Σ m∘M',   dk = Σ m w,   dw = mᵀ k
//! dv = -dw,     dp = Σ S' dw,  s' = α s + p dwᵀ,   m' = μ m
//! ```
//!
//! Chunks, which need systems of twice the size, take more operations than that until memories are large. Floor for `n`
//! numbers of `p` columns: `10 n p` operations a token forward, `34 n p` back with memories made again.

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
use crate::delta::MomentumRule;

/// Whether a rule with values like `v` may be for the kernel.
pub(crate) fn runs_on(v: &Tensor<4>) -> bool {
    fits_outside_pages(v)
}

/// `y: [b, h, t, p]` and the state after the last token, from `state: [b, h, 2 n, p]`, memory above momentum; `None` where
/// no kernel runs these.
pub(crate) fn run(rule: &MomentumRule, state: &Tensor<4>) -> Option<(Tensor<4>, Tensor<4>)> {
    let MomentumRule { q, k, v, p, log_alpha, log_mu, beta } = rule;
    let ([b, h, t, n], columns) = (k.dims(), v.dims()[3]);
    let fit = runs_on(v)
        && [b, h, t, n, columns].iter().all(|&size| size > 0)
        && [q, p].iter().all(|x| x.dims() == [b, h, t, n])
        && v.dims() == [b, h, t, columns]
        && state.dims() == [b, h, 2 * n, columns]
        && [log_alpha, log_mu, beta].iter().all(|x| x.dims() == [b, h, t] && x.dtype() == v.dtype())
        && [q, k, p, state].iter().all(|x| x.dtype() == v.dtype());
    if !fit {
        return None;
    }
    let scalars = [log_alpha, log_mu, beta].map(|x| x.clone().unsqueeze_dim::<4>(3).into_dispatch());
    let [q, k, p, v, state] = [q, k, p, v, state].map(|x| x.clone().into_dispatch());
    let [log_alpha, log_mu, beta] = scalars;
    let (y, last) = <Dispatch as Momentum>::momentum(q, k, p, v, log_alpha, log_mu, beta, state);
    Some((Tensor::from_dispatch(y), Tensor::from_dispatch(last)))
}

/// The operation as backends see it; see [`MomentumRule`], with `[b, h, t, 1]` for numbers per token.
#[backend_extension(Flex: cfg(feature = "flex"), Autodiff)]
#[allow(clippy::too_many_arguments, reason = "the tensors of the recurrence")]
pub(crate) trait Momentum: Backend {
    /// See [`run`].
    fn momentum(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        p: FloatTensor<Self>,
        v: FloatTensor<Self>,
        log_alpha: FloatTensor<Self>,
        log_mu: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        state: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
}

/// Inputs in the order of the operation's arguments.
type Given<B> = [FloatTensor<B>; 8];

/// A backend's kernels.
trait Passes: Backend {
    /// Outputs and the last state.
    fn forward(given: &Given<Self>) -> [FloatTensor<Self>; 2];

    /// Gradients of all inputs.
    fn backward(
        given: &Given<Self>,
        dy: &FloatTensor<Self>,
        last: Option<&FloatTensor<Self>>,
    ) -> [FloatTensor<Self>; 8];
}

impl Momentum for Flex {
    fn momentum(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        p: FloatTensor<Self>,
        v: FloatTensor<Self>,
        log_alpha: FloatTensor<Self>,
        log_mu: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        state: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        Self::forward(&[q, k, p, v, log_alpha, log_mu, beta, state]).into()
    }
}

/// What the backward pass starts from.
#[derive(Clone, Debug)]
struct Saved<B: Backend>(Given<B>);

impl<B: Passes> gradient::SavedForTwo<B, 8> for Saved<B> {
    fn gradients(
        self,
        dy: FloatTensor<B>,
        last: Option<FloatTensor<B>>,
        _wanted: [bool; 8],
    ) -> [Option<FloatTensor<B>>; 8] {
        B::backward(&self.0, &dy, last.as_ref()).map(Some)
    }
}

impl<B: Momentum + Passes, C: CheckpointStrategy> Momentum for Autodiff<B, C> {
    fn momentum(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        p: FloatTensor<Self>,
        v: FloatTensor<Self>,
        log_alpha: FloatTensor<Self>,
        log_mu: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        state: FloatTensor<Self>,
    ) -> Two<Self> {
        let given = [q, k, p, v, log_alpha, log_mu, beta, state];
        let nodes = given.each_ref().map(|x| x.node());
        let given = given.map(|x| x.into_primitive());
        track_two::<B, C, _, 8>(nodes, |_| (B::forward(&given), Saved(given)))
    }
}
