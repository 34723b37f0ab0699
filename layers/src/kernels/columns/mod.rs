//! Memories `[n, c]` whose columns change each by its own rule, while keys and queries of `n` numbers are those of all
//! columns: Longhorn's, a column per channel, and the keys of slots, a column per slot. One pass over the tokens, and two
//! back:
//!
//! ```text
//! learner   h_t = (1 - e_t k_t∘k_t)∘h_{t-1} + e_t x_t k_t,   e_t = β_t / (1 + β_t |k_t|²)
//! fading    h_t = a_t h_{t-1} + x_t k_t
//! both      y_t = h_t·q_t + D x_t
//! ```
//!
//! Back, `g_t` being the gradient of `h_t`, `κ = k∘h_{t-1}` and sums over columns where a gradient is shared:
//!
//! ```text
//! both      g_t = q_t dy_t + (what is kept of) g_{t+1},   dq_t = Σ h_t dy_t,   dx_t = D dy_t + e_t g_t·k_t,   dD = Σ dy_t x_t
//! learner   de_t = g_t·(k_t∘(x_t - κ)),   dk_t = Σ e_t g_t∘(x_t - 2 κ) - 2 k_t Σ e_t² de_t,   dβ_t = de_t / (1 + β_t |k_t|²)²
//! fading    d(log a_t) = a_t g_t·h_{t-1},   dk_t = Σ x_t g_t,   e_t = 1
//! ```
//!
//! The system of the same, with a decay and a write for every number, is `n` times as large as what goes in.
//!
//! Floor: 6 to 8 operations per number of the memory forward, 20 to 26 back with the memories made again, and 12 bytes per
//! token and column in `f32` forward, 28 with gradients.

#[cfg(feature = "flex")]
mod channels;
#[cfg(feature = "flex")]
mod flex;
#[cfg(feature = "flex")]
mod rule;
#[cfg(all(test, feature = "flex"))]
mod tests;

use burn::tensor::Tensor;

/// What Longhorn's projections leave, for graphics devices without gradients, where a kernel makes the rest.
#[cfg(feature = "cube")]
#[derive(Clone, Debug)]
pub(crate) struct Packed {
    /// `β` before its sigmoid and its bias, `[b, t, E]`
    pub(crate) rates: Tensor<3>,
    /// `[E]`
    pub(crate) bias: Option<Tensor<1>>,
    /// `k` and then `q`, `n` numbers each, from number `first` on: `[b, t, first + 2 n or more]`
    pub(crate) address: Tensor<3>,
    pub(crate) first: usize,
    /// `[b, t, E]`
    pub(crate) x: Tensor<3>,
    /// `h: [b, E, n, 1]`
    pub(crate) memory: Tensor<4>,
    /// `D: [E]`
    pub(crate) d: Tensor<1>,
}

#[cfg(feature = "cube")]
impl Packed {
    /// `y: [b, t, E]` and the memory after the last token; `None` where no kernel runs these.
    pub(crate) fn run(&self) -> Option<(Tensor<3>, Tensor<4>)> {
        super::cube::learn(self)
    }
}

/// How columns change; see the module.
#[cfg(feature = "flex")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    Learner,
    Fading,
}

/// A rule, and whether anything passes the memory by.
#[cfg(feature = "flex")]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    rule: Rule,
    skip: bool,
}

/// Whether [`Inputs`] like `x` may be for the kernel.
#[cfg(feature = "flex")]
pub(crate) fn runs_on<const D: usize>(x: &Tensor<D>) -> bool {
    super::view::fits(x)
}

/// The tensors of a call.
#[cfg(feature = "flex")]
#[derive(Clone, Debug)]
pub(crate) struct Inputs {
    pub(crate) rule: Rule,
    /// `β` or `log a`: `[b, h, t, c]`
    pub(crate) rates: Tensor<4>,
    /// `[b, h, t, c]`
    pub(crate) x: Tensor<4>,
    /// `[b, h, t, n]`
    pub(crate) q: Tensor<4>,
    /// `[b, h, t, n]`
    pub(crate) k: Tensor<4>,
    /// `[b, h, c, n]`
    pub(crate) memory: Tensor<4>,
    /// `D: [c]`
    pub(crate) d: Option<Tensor<1>>,
}

#[cfg(feature = "flex")]
impl Inputs {
    /// Whether sizes and types are those of one call.
    fn fit(&self) -> bool {
        let Self { rates, x, q, k, memory, d, .. } = self;
        let ([b, h, t, c], n) = (x.dims(), k.dims()[3]);
        let dtype = x.dtype();
        rates.dims() == x.dims()
            && [q, k].iter().all(|x| x.dims() == [b, h, t, n])
            && memory.dims() == [b, h, c, n]
            && [b, h, t, c, n].iter().all(|&size| size > 0)
            && [rates, q, k, memory].iter().all(|other| other.dtype() == dtype)
            && d.as_ref().is_none_or(|d| d.dims() == [c] && d.dtype() == dtype)
    }

    /// `y: [b, h, t, c]` and the memory after the last token; `None` where no kernel runs these with their gradients.
    pub(crate) fn run(&self) -> Option<(Tensor<4>, Tensor<4>)> {
        (runs_on(&self.x) && self.fit()).then(|| tracked::run(self.clone()))
    }
}

#[cfg(feature = "flex")]
mod tracked {
    //! The operation with its gradients.

    use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
    use burn::backend::tensor::FloatTensor;
    use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
    use burn::tensor::Tensor;

    use super::{Inputs, Options};
    use crate::kernels::gradient::{self, Two, track_two};

    pub(super) fn run(inputs: Inputs) -> (Tensor<4>, Tensor<4>) {
        let Inputs { rule, rates, x, q, k, memory, d } = inputs;
        let options = Options { rule, skip: d.is_some() };
        // In place of what there is not: it is neither read nor differentiated, so it must be the very tensor that is.
        let d = d.map_or_else(|| x.clone(), Tensor::unsqueeze);
        let [rates, x, q, k, memory, d] = [rates, x, q, k, memory, d].map(Tensor::into_dispatch);
        let (y, last) = <Dispatch as Columns>::columns(rates, x, q, k, memory, d, options);
        (Tensor::from_dispatch(y), Tensor::from_dispatch(last))
    }

    /// The operation as backends see it; see [`Inputs`]. `d: [1, 1, 1, c]`.
    #[backend_extension(Flex: cfg(feature = "flex"), Autodiff)]
    pub(crate) trait Columns: Backend {
        /// See [`Inputs::run`].
        fn columns(
            rates: FloatTensor<Self>,
            x: FloatTensor<Self>,
            q: FloatTensor<Self>,
            k: FloatTensor<Self>,
            memory: FloatTensor<Self>,
            d: FloatTensor<Self>,
            options: Options,
        ) -> (FloatTensor<Self>, FloatTensor<Self>);
    }

    /// Inputs in the order of the operation's arguments.
    pub(crate) type Given<B> = [FloatTensor<B>; 6];

    /// A backend's kernels.
    pub(crate) trait Passes: Backend {
        /// Outputs and the last memory.
        fn forward(given: &Given<Self>, options: Options) -> [FloatTensor<Self>; 2];

        /// Gradients of all inputs that there are.
        fn backward(
            given: &Given<Self>,
            options: Options,
            dy: &FloatTensor<Self>,
            last: Option<&FloatTensor<Self>>,
        ) -> [Option<FloatTensor<Self>>; 6];
    }

    impl Columns for Flex {
        fn columns(
            rates: FloatTensor<Self>,
            x: FloatTensor<Self>,
            q: FloatTensor<Self>,
            k: FloatTensor<Self>,
            memory: FloatTensor<Self>,
            d: FloatTensor<Self>,
            options: Options,
        ) -> (FloatTensor<Self>, FloatTensor<Self>) {
            Self::forward(&[rates, x, q, k, memory, d], options).into()
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
            dy: FloatTensor<B>,
            last: Option<FloatTensor<B>>,
            _wanted: [bool; 6],
        ) -> [Option<FloatTensor<B>>; 6] {
            B::backward(&self.given, self.options, &dy, last.as_ref())
        }
    }

    impl<B: Columns + Passes, C: CheckpointStrategy> Columns for Autodiff<B, C> {
        fn columns(
            rates: FloatTensor<Self>,
            x: FloatTensor<Self>,
            q: FloatTensor<Self>,
            k: FloatTensor<Self>,
            memory: FloatTensor<Self>,
            d: FloatTensor<Self>,
            options: Options,
        ) -> Two<Self> {
            let given = [rates, x, q, k, memory, d];
            let nodes = given.each_ref().map(|x| x.node());
            let given = given.map(|x| x.into_primitive());
            track_two::<B, C, _, 6>(nodes, |_| (B::forward(&given, options), Saved { given, options }))
        }
    }
}
