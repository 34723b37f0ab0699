//! MesaNet's solver (arXiv 2506.05233) on the CPU: `x_t = (G_t + diag λ)⁻¹ q_t` by conjugate gradients, token by token, with
//! `G_t = γ_t G_{t-1} + β_t k_t k_tᵀ` in the fastest cache. The fit's values are read at `x_t` by the kernel for linear
//! recurrences.
//!
//! A chunk that never forms `G_t` reads a memory and all tokens of the chunk at every step; that is more work than forming
//! it, and tensor operations on every step. The way back goes through the same steps in reverse, with everything that they
//! made made again. Floor for `s` steps and `n` numbers: `2 s n²` operations per token and head forward, `8 s n²` back.

mod flex;
mod solve;
#[cfg(test)]
mod tests;
mod walk;

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::Tensor;

use super::gradient::{self, Two, track_two};
use super::view::fits_outside_pages;
use crate::linear::MesaInputs;

/// How systems are solved.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    steps: usize,
    /// Below any eigenvalue of a system
    least: f64,
}

/// `x: [b, h, t, n]` and the last `G`, from a symmetric `g: [b, h, n, n]`; `None` where no kernel runs these.
pub(crate) fn solve(inputs: &MesaInputs, g: &Tensor<4>) -> Option<(Tensor<4>, Tensor<4>)> {
    let MesaInputs { q, k, log_a, beta, lambda, lambda_min, steps, any_gram, .. } = inputs;
    let [b, h, t, n] = k.dims();
    let fit = fits_outside_pages(k)
        && !any_gram
        && [b, h, t, n, *steps].iter().all(|&size| size > 0)
        && q.dims() == k.dims()
        && g.dims() == [b, h, n, n]
        && lambda.dims() == [h, n]
        && [log_a, beta].iter().all(|x| x.dims() == [b, h, t] && x.dtype() == k.dtype())
        && [q, g].iter().all(|x| x.dtype() == k.dtype())
        && lambda.dtype() == k.dtype();
    if !fit {
        return None;
    }
    let [log_a, beta] = [log_a, beta].map(|x| x.clone().unsqueeze_dim::<4>(3));
    let lambda = lambda.clone().reshape([1, h, 1, n]);
    let all = [q.clone(), k.clone(), log_a, beta, lambda, g.clone()];
    let [q, k, log_a, beta, lambda, g] = all.map(Tensor::into_dispatch);
    let options = Options { steps: *steps, least: *lambda_min };
    let (x, last) = <Dispatch as Mesa>::mesa(q, k, log_a, beta, lambda, g, options);
    Some((Tensor::from_dispatch(x), Tensor::from_dispatch(last)))
}

/// The operation as backends see it: `[b, h, t, 1]` for numbers per token, and `λ: [1, h, 1, n]`.
#[backend_extension(Flex: cfg(feature = "flex"), Autodiff)]
pub(crate) trait Mesa: Backend {
    /// See [`solve`].
    fn mesa(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        log_a: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        lambda: FloatTensor<Self>,
        g: FloatTensor<Self>,
        options: Options,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
}

/// Inputs in the order of the operation's arguments.
type Given<B> = [FloatTensor<B>; 6];

/// A backend's kernels.
trait Passes: Backend {
    /// Solutions and the last `G`.
    fn forward(given: &Given<Self>, options: Options) -> [FloatTensor<Self>; 2];

    /// Gradients of all inputs.
    fn backward(
        given: &Given<Self>,
        options: Options,
        dx: &FloatTensor<Self>,
        last: Option<&FloatTensor<Self>>,
    ) -> [FloatTensor<Self>; 6];
}

impl Mesa for Flex {
    fn mesa(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        log_a: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        lambda: FloatTensor<Self>,
        g: FloatTensor<Self>,
        options: Options,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        Self::forward(&[q, k, log_a, beta, lambda, g], options).into()
    }
}

/// What the backward pass starts from.
#[derive(Clone, Debug)]
struct Saved<B: Backend> {
    given: Given<B>,
    options: Options,
}

impl<B: Passes> gradient::SavedForTwo<B, 6> for Saved<B> {
    fn gradients(
        self,
        dx: FloatTensor<B>,
        last: Option<FloatTensor<B>>,
        _wanted: [bool; 6],
    ) -> [Option<FloatTensor<B>>; 6] {
        B::backward(&self.given, self.options, &dx, last.as_ref()).map(Some)
    }
}

impl<B: Mesa + Passes, C: CheckpointStrategy> Mesa for Autodiff<B, C> {
    fn mesa(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        log_a: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        lambda: FloatTensor<Self>,
        g: FloatTensor<Self>,
        options: Options,
    ) -> Two<Self> {
        let given = [q, k, log_a, beta, lambda, g];
        let nodes = given.each_ref().map(|x| x.node());
        let given = given.map(|x| x.into_primitive());
        track_two::<B, C, _, 6>(nodes, |_| (B::forward(&given, options), Saved { given, options }))
    }
}
