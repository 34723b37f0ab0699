//! Longhorn's memories, `n` numbers per channel whose decays and writes are made of its rate and of keys that all channels
//! share, in one pass over the tokens, and two passes back:
//!
//! ```text
//! e_t = β_t / (1 + β_t |k_t|²)                                     per channel
//! h_t = (1 - e_t k_t∘k_t)∘h_{t-1} + e_t x_t k_t,   y_t = h_t·q_t + D x_t
//! ```
//!
//! Back, `g_t` being the gradient of `h_t`, `κ = k∘h_{t-1}` and sums over channels where a gradient is shared:
//!
//! ```text
//! g_t = q_t dy_t + (1 - e_{t+1} k∘k) g_{t+1},   dq_t = Σ h_t dy_t,   dx_t = D dy_t + e_t g_t·k_t,   dD = Σ dy_t x_t
//! de_t = g_t·(k_t∘(x_t - κ)),   dk_t = Σ e_t g_t∘(x_t - 2 κ) - 2 k_t Σ e_t² de_t,   dβ_t = de_t / (1 + β_t |k_t|²)²
//! ```
//!
//! The system of the same, with a decay per channel and number written out, is `n` times as large as what goes in.
//!
//! Floor: 8 operations per number of the memory forward, 26 back with the memories made again, and 12 bytes per token and
//! channel in `f32` forward, 28 with gradients.

#[cfg(feature = "flex")]
mod channels;
#[cfg(feature = "flex")]
mod flex;
#[cfg(all(test, feature = "flex"))]
mod tests;

use burn::tensor::Tensor;

/// What projections leave, for graphics devices without gradients, where the kernel makes the rest.
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
    /// As [`Inputs::run`].
    pub(crate) fn run(&self) -> Option<(Tensor<3>, Tensor<4>)> {
        super::cube::learn(self)
    }
}

/// The tensors of a call.
#[derive(Clone, Debug)]
pub(crate) struct Inputs {
    /// `β: [b, t, E]`
    pub(crate) beta: Tensor<3>,
    /// `[b, t, n]`
    pub(crate) q: Tensor<3>,
    /// `[b, t, n]`
    pub(crate) k: Tensor<3>,
    /// `[b, t, E]`
    pub(crate) x: Tensor<3>,
    /// `h: [b, E, n, 1]`
    pub(crate) memory: Tensor<4>,
    /// `D: [E]`
    pub(crate) d: Tensor<1>,
}

impl Inputs {
    /// Whether sizes and types are those of one call.
    fn fit(&self) -> bool {
        let Self { beta, q, k, x, memory, d } = self;
        let ([b, t, channels], n) = (x.dims(), k.dims()[2]);
        let keys = [b, t, n];
        let dtype = x.dtype();
        beta.dims() == x.dims()
            && q.dims() == keys
            && k.dims() == keys
            && memory.dims() == [b, channels, n, 1]
            && d.dims() == [channels]
            && [b, t, channels, n].iter().all(|&size| size > 0)
            && [beta, q, k].iter().all(|other| other.dtype() == dtype)
            && memory.dtype() == dtype
            && d.dtype() == dtype
    }

    /// `y: [b, t, E]` and the memory after the last token; `None` where no kernel runs these with their gradients.
    pub(crate) fn run(&self) -> Option<(Tensor<3>, Tensor<4>)> {
        if !self.fit() {
            return None;
        }
        #[cfg(feature = "flex")]
        if super::view::fits(&self.x) {
            return Some(tracked::run(self.clone()));
        }
        None
    }
}

#[cfg(feature = "flex")]
mod tracked {
    //! The operation with its gradients.

    use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
    use burn::backend::tensor::FloatTensor;
    use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
    use burn::tensor::Tensor;

    use super::Inputs;
    use crate::kernels::gradient::{self, Two, track_two};

    pub(super) fn run(inputs: Inputs) -> (Tensor<3>, Tensor<4>) {
        let Inputs { beta, q, k, x, memory, d } = inputs;
        let memory = memory.swap_dims(2, 3).swap_dims(1, 2); // [b, 1, E, n]
        let [beta, q, k, x] = [beta, q, k, x].map(|x| x.unsqueeze_dim::<4>(1));
        let [beta, q, k, x, memory, d] =
            [beta, q, k, x, memory, d.unsqueeze::<4>()].map(Tensor::into_dispatch);
        let (y, last) = <Dispatch as Learn>::learn(beta, q, k, x, memory, d);
        let last = Tensor::<4>::from_dispatch(last).swap_dims(1, 2).swap_dims(2, 3);
        (Tensor::<4>::from_dispatch(y).squeeze_dim(1), last)
    }

    /// The operation as backends see it: `beta`, `x`: `[b, 1, t, E]`, `q`, `k`: `[b, 1, t, n]`, `memory: [b, 1, E, n]`,
    /// `d: [1, 1, 1, E]`.
    #[backend_extension(Flex: cfg(feature = "flex"), Autodiff)]
    pub(crate) trait Learn: Backend {
        /// `y` as `x` is, and the memory after it.
        fn learn(
            beta: FloatTensor<Self>,
            q: FloatTensor<Self>,
            k: FloatTensor<Self>,
            x: FloatTensor<Self>,
            memory: FloatTensor<Self>,
            d: FloatTensor<Self>,
        ) -> (FloatTensor<Self>, FloatTensor<Self>);
    }

    /// Inputs in the order of the operation's arguments.
    pub(crate) type Given<B> = [FloatTensor<B>; 6];

    /// A backend's kernels.
    pub(crate) trait Passes: Backend {
        /// Outputs and the last memory.
        fn forward(given: &Given<Self>) -> [FloatTensor<Self>; 2];

        /// Gradients of all inputs.
        fn backward(
            given: &Given<Self>,
            dy: &FloatTensor<Self>,
            last: Option<&FloatTensor<Self>>,
        ) -> Given<Self>;
    }

    impl Learn for Flex {
        fn learn(
            beta: FloatTensor<Self>,
            q: FloatTensor<Self>,
            k: FloatTensor<Self>,
            x: FloatTensor<Self>,
            memory: FloatTensor<Self>,
            d: FloatTensor<Self>,
        ) -> (FloatTensor<Self>, FloatTensor<Self>) {
            Self::forward(&[beta, q, k, x, memory, d]).into()
        }
    }

    /// What the backward pass starts from.
    #[derive(Clone, Debug)]
    struct Saved<B: Backend>(Given<B>);

    impl<B: Passes> gradient::SavedForTwo<B, 6> for Saved<B> {
        fn gradients(
            self,
            dy: FloatTensor<B>,
            last: Option<FloatTensor<B>>,
            _wanted: [bool; 6],
        ) -> [Option<FloatTensor<B>>; 6] {
            B::backward(&self.0, &dy, last.as_ref()).map(Some)
        }
    }

    impl<B: Learn + Passes, C: CheckpointStrategy> Learn for Autodiff<B, C> {
        fn learn(
            beta: FloatTensor<Self>,
            q: FloatTensor<Self>,
            k: FloatTensor<Self>,
            x: FloatTensor<Self>,
            memory: FloatTensor<Self>,
            d: FloatTensor<Self>,
        ) -> Two<Self> {
            let given = [beta, q, k, x, memory, d];
            let nodes = given.each_ref().map(|x| x.node());
            let given = given.map(|x| x.into_primitive());
            track_two::<B, C, _, 6>(nodes, |_| (B::forward(&given), Saved(given)))
        }
    }
}
