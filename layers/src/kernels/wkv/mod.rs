//! RWKV-4's average over the past with weights `e^{k_j}` that fade, in one pass over the tokens, and two passes back. The
//! state is the average `m` and the logarithm `s` of the sum of its weights:
//!
//! ```text
//! y_t = π m_{t-1} + (1 - π) v_t,   π = sigmoid(s_{t-1} - u - k_t)
//! m_t = ρ m_{t-1} + (1 - ρ) v_t,   ρ = sigmoid(s_{t-1} + w - k_t),   s_t = log(e^{s_{t-1} + w} + e^{k_t})
//! ```
//!
//! Within a pass the state is what the authors carry: a numerator, a denominator, and the largest logarithm so far that
//! both are scaled by, so that no token takes a logarithm. Back, with `D` for gradients and `δ = m_{t-1} - v_t`:
//!
//! ```text
//! c = π (1 - π) δ Dy,   f = ρ Ds + ρ (1 - ρ) δ Dm,   Dv = (1 - π) Dy + (1 - ρ) Dm
//! Dk = Ds - f - c,   Du -= c,   Dw += f,   Ds ← f + c,   Dm ← π Dy + ρ Dm
//! ```
//!
//! Floor: memory. 12 bytes per token and channel in `f32` forward and 20 back, beside two exponentials forward and four
//! back.

#[cfg(feature = "flex")]
mod channels;
#[cfg(feature = "flex")]
mod flex;
#[cfg(all(test, feature = "flex"))]
mod tests;

use burn::tensor::Tensor;

/// The tensors of a call.
#[derive(Clone, Debug)]
pub(crate) struct Inputs {
    /// `log(-w)`: `[n]`
    pub(crate) decay: Tensor<1>,
    /// `u: [n]`
    pub(crate) bonus: Tensor<1>,
    /// `[b, t, n]`
    pub(crate) k: Tensor<3>,
    /// `[b, t, n]`
    pub(crate) v: Tensor<3>,
    /// `s: [b, 1, n]`
    pub(crate) log: Tensor<3>,
    /// `m: [b, 1, n]`
    pub(crate) mean: Tensor<3>,
}

/// What comes out of a call.
#[derive(Clone, Debug)]
pub(crate) struct Averaged {
    /// `[b, t, n]`
    pub(crate) y: Tensor<3>,
    /// `s: [b, 1, n]`
    pub(crate) log: Tensor<3>,
    /// `m: [b, 1, n]`
    pub(crate) mean: Tensor<3>,
}

impl Inputs {
    /// Whether sizes and types are those of one call.
    fn fit(&self) -> bool {
        let Self { decay, bonus, k, v, log, mean } = self;
        let [b, t, n] = k.dims();
        let dtype = k.dtype();
        v.dims() == k.dims()
            && [log, mean].iter().all(|x| x.dims() == [b, 1, n] && x.dtype() == dtype)
            && [decay, bonus].iter().all(|x| x.dims() == [n] && x.dtype() == dtype)
            && v.dtype() == dtype
            && [b, t, n].iter().all(|&size| size > 0)
    }

    /// `None` where no kernel runs these.
    pub(crate) fn run(&self) -> Option<Averaged> {
        if !self.fit() {
            return None;
        }
        #[cfg(feature = "cube")]
        if let Some(found) = super::cube::average(self) {
            return Some(found);
        }
        #[cfg(feature = "flex")]
        if super::view::fits(&self.k) {
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

    use super::{Averaged, Inputs};
    use crate::kernels::gradient::{self, Two, track_two};

    pub(super) fn run(inputs: Inputs) -> Averaged {
        let Inputs { decay, bonus, k, v, log, mean } = inputs;
        let fade = decay.exp().neg();
        let [fade, bonus] = [fade, bonus].map(|x| x.unsqueeze::<4>().into_dispatch());
        let [k, v, log, mean] = [k, v, log, mean].map(|x| x.unsqueeze_dim::<4>(1).into_dispatch());
        let (y, last) = <Dispatch as Average>::average(fade, bonus, k, v, log, mean);
        let last = Tensor::<4>::from_dispatch(last);
        let part = |i| last.clone().narrow(2, i, 1).squeeze_dim(1);
        Averaged { y: Tensor::<4>::from_dispatch(y).squeeze_dim(1), log: part(0), mean: part(1) }
    }

    /// The operation as backends see it: `w`, `bonus`: `[1, 1, 1, n]`, `k`, `v`: `[b, 1, t, n]`, `log`, `mean`:
    /// `[b, 1, 1, n]`.
    #[backend_extension(Flex: cfg(feature = "flex"), Autodiff)]
    pub(crate) trait Average: Backend {
        /// `[b, 1, t, n]`, and the state after it, `s` and then `m`: `[b, 1, 2, n]`.
        fn average(
            fade: FloatTensor<Self>,
            bonus: FloatTensor<Self>,
            k: FloatTensor<Self>,
            v: FloatTensor<Self>,
            log: FloatTensor<Self>,
            mean: FloatTensor<Self>,
        ) -> (FloatTensor<Self>, FloatTensor<Self>);
    }

    /// Inputs in the order of the operation's arguments.
    pub(crate) type Given<B> = [FloatTensor<B>; 6];

    /// A backend's kernels.
    pub(crate) trait Passes: Backend {
        /// Outputs and the last state.
        fn forward(given: &Given<Self>) -> [FloatTensor<Self>; 2];

        /// Gradients of all inputs.
        fn backward(
            given: &Given<Self>,
            dy: &FloatTensor<Self>,
            last: Option<&FloatTensor<Self>>,
        ) -> Given<Self>;
    }

    impl Average for Flex {
        fn average(
            fade: FloatTensor<Self>,
            bonus: FloatTensor<Self>,
            k: FloatTensor<Self>,
            v: FloatTensor<Self>,
            log: FloatTensor<Self>,
            mean: FloatTensor<Self>,
        ) -> (FloatTensor<Self>, FloatTensor<Self>) {
            Self::forward(&[fade, bonus, k, v, log, mean]).into()
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

    impl<B: Average + Passes, C: CheckpointStrategy> Average for Autodiff<B, C> {
        fn average(
            fade: FloatTensor<Self>,
            bonus: FloatTensor<Self>,
            k: FloatTensor<Self>,
            v: FloatTensor<Self>,
            log: FloatTensor<Self>,
            mean: FloatTensor<Self>,
        ) -> Two<Self> {
            let given = [fade, bonus, k, v, log, mean];
            let nodes = given.each_ref().map(|x| x.node());
            let given = given.map(|x| x.into_primitive());
            track_two::<B, C, _, 6>(nodes, |_| (B::forward(&given), Saved(given)))
        }
    }
}
