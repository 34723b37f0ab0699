//! LSTM's recurrence over all tokens in one pass, and one pass back:
//!
//! ```text
//! i, f, g, o = p_t + b + U h_{t-1}
//! c_t = σ(f) ∘ c_{t-1} + σ(i) ∘ tanh(g),   h_t = σ(o) ∘ tanh(c_t)
//! dp_t = d(i, f, g, o),   dh_{t-1} = Uᵀ dp_t,   dU = Σ_t h_{t-1} dp_tᵀ
//! ```
//!
//! Floor: `8 n²` operations per token and row forward, three times that with gradients, of which `dU` is one large
//! product. Tokens wait for one another, so one row is bound by reading `U`, `16 n²` bytes in `f32`, from the cache;
//! threads without a row of their own take a share of the units on Flex, whose part of `U` is then in their own caches.

#[cfg(feature = "flex")]
mod cells;
#[cfg(feature = "flex")]
mod flex;
#[cfg(feature = "flex")]
mod team;
#[cfg(all(test, feature = "flex"))]
mod tests;
#[cfg(feature = "flex")]
mod together;

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, TensorMetadata, backend_extension};
use burn::tensor::{Tensor, TensorData};
#[cfg(feature = "cube")]
use burn_cubecl::CubeBackend as Cube;

use super::gradient::{self, track};
use crate::system::Lengths;

/// Whether a kernel can run these: `p: [b, t, 4 n]`, `weight: [n, 4 n]`, `h` and `c`: `[b, 1, n]`.
pub(crate) fn applies(p: &Tensor<3>, weight: &Tensor<2>, h: &Tensor<3>, c: &Tensor<3>) -> bool {
    let ([b, t, _], [n, _]) = (p.dims(), weight.dims());
    b * t * n > 0
        && p.dims() == [b, t, 4 * n]
        && weight.dims() == [n, 4 * n]
        && [h, c].iter().all(|x| x.dims() == [b, 1, n] && x.dtype() == p.dtype())
        && weight.dtype() == p.dtype()
        && device_applies(p, n)
}

/// Whether there is a kernel where `p` lies, for `n` units.
#[allow(unused_variables, reason = "which are used depends on the features")]
fn device_applies(p: &Tensor<3>, n: usize) -> bool {
    #[cfg(feature = "flex")]
    if super::view::fits(p) {
        return true;
    }
    #[cfg(feature = "cube")]
    if super::cube::gates(p, n) {
        return true;
    }
    false
}

/// `h_t` and `c_t`, each `[b, t, n]`, from `p: [b, t, 4 n]`, `weight: [n, 4 n]`, `h` and `c`: `[b, 1, n]` and `bias:
/// [4 n]`, which `p` is without. Tokens after a row's length change nothing. With `reversed`, time runs from the last token to the first.
pub(crate) fn run(
    p: Tensor<3>,
    weight: Tensor<2>,
    [h, c]: [Tensor<3>; 2],
    bias: Option<Tensor<1>>,
    lengths: Option<&Lengths>,
    reversed: bool,
) -> [Tensor<3>; 2] {
    // What a kernel for graphics devices would gain by it is a launch or nothing: a projection adds it, too.
    let (p, bias) = match bias {
        Some(bias) if !takes_bias(&p) => (p + bias.unsqueeze(), None),
        bias => (p, bias),
    };
    let options = Options { ragged: lengths.is_some(), biased: bias.is_some(), reversed };
    // From data, not of zeros, which a graphics device would be told to make.
    let nothing = || Tensor::<4>::from_data([[[[0.0f32]]]], (&p.device().inner(), p.dtype()));
    let bias = bias.map_or_else(nothing, Tensor::unsqueeze);
    let lengths = match lengths {
        Some(Lengths(lengths)) => {
            let data = TensorData::new(lengths.iter().map(|&n| n as f64).collect(), [lengths.len(), 1, 1, 1]);
            Tensor::<4>::from_data(data, (&p.device().inner(), p.dtype()))
        }
        None => nothing(),
    };
    let [p, h, c] = [p, h, c].map(|x| x.unsqueeze_dim::<4>(1).into_dispatch());
    let [weight, bias, lengths] = [weight.unsqueeze::<4>(), bias, lengths].map(Tensor::into_dispatch);
    let states =
        Tensor::<4>::from_dispatch(<Dispatch as Lstm>::lstm(p, weight, h, c, bias, lengths, options));
    [0, 1].map(|part| states.clone().narrow(0, part, 1).squeeze_dim(0))
}

/// Whether a kernel adds the bias to `p`.
#[allow(unused_variables, reason = "which are used depends on the features")]
fn takes_bias(p: &Tensor<3>) -> bool {
    #[cfg(feature = "flex")]
    if super::view::fits(p) {
        return true;
    }
    false
}

/// What there is beside the recurrence itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    /// Rows have lengths.
    pub(super) ragged: bool,
    /// There is a bias.
    pub(super) biased: bool,
    /// From the last token to the first.
    pub(super) reversed: bool,
}

/// The operation as backends see it: `p: [b, 1, t, 4 n]`, `weight: [1, 1, n, 4 n]`, `h` and `c`: `[b, 1, 1, n]`,
/// `bias: [1, 1, 1, 4 n]`,
/// `lengths: [b, 1, 1, 1]`; the result, `[2, b, t, n]`, has all `h` before all `c`.
#[backend_extension(Flex: cfg(feature = "flex"), Cube: cfg(feature = "cube"), Autodiff)]
pub(crate) trait Lstm: Backend {
    /// See [`run`].
    fn lstm(
        p: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        h: FloatTensor<Self>,
        c: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        lengths: FloatTensor<Self>,
        options: Options,
    ) -> FloatTensor<Self>;
}

/// What both passes read.
#[derive(Clone, Debug)]
pub(crate) struct Read<B: Backend> {
    pub(super) weight: FloatTensor<B>,
    pub(super) h: FloatTensor<B>,
    pub(super) c: FloatTensor<B>,
    pub(super) bias: FloatTensor<B>,
    pub(super) lengths: FloatTensor<B>,
    pub(super) options: Options,
}

/// A backend's kernels.
pub(crate) trait Passes: Backend {
    /// The states `[2, b, t, n]`, and the gates after their functions `[b, 1, t, 4 n]` where they are `kept`.
    fn forward(
        read: &Read<Self>,
        p: &FloatTensor<Self>,
        kept: bool,
    ) -> (FloatTensor<Self>, Option<FloatTensor<Self>>);

    /// Gradients of `p`, `h` and `c`, in this order, from the gates, the states and their gradient.
    fn backward(
        read: &Read<Self>,
        gates: &FloatTensor<Self>,
        states: &FloatTensor<Self>,
        dy: &FloatTensor<Self>,
    ) -> [FloatTensor<Self>; 3];
}

macro_rules! lstm_of {
    ($($backend:ty, $feature:literal;)*) => {$(
        #[cfg(feature = $feature)]
        impl Lstm for $backend {
            fn lstm(
                p: FloatTensor<Self>,
                weight: FloatTensor<Self>,
                h: FloatTensor<Self>,
                c: FloatTensor<Self>,
                bias: FloatTensor<Self>,
                lengths: FloatTensor<Self>,
                options: Options,
            ) -> FloatTensor<Self> {
                Self::forward(&Read { weight, h, c, bias, lengths, options }, &p, false).0
            }
        }
    )*};
}

lstm_of!(burn::backend::Flex, "flex"; Cube, "cube";);

/// What the backward pass starts from.
#[derive(Clone, Debug)]
struct Saved<B: Backend> {
    read: Read<B>,
    gates: Option<FloatTensor<B>>,
    /// The states, which are the outputs
    states: FloatTensor<B>,
}

impl<B: Passes> gradient::Saved<B, 5> for Saved<B> {
    fn gradients(self, dy: FloatTensor<B>, wanted: [bool; 5]) -> [Option<FloatTensor<B>>; 5] {
        let gates = self.gates.expect("kept, because it is differentiated");
        let [dp, dh, dc] = B::backward(&self.read, &gates, &self.states, &dy);
        let d_weight = wanted[1].then(|| weight_gradient::<B>(&self.read, self.states, dp.clone()));
        let d_bias = wanted[4].then(|| {
            let [b, _, t, m] = dp.shape().dims();
            B::float_sum_dim(B::float_reshape(dp.clone(), [1, 1, b * t, m].into()), 2)
        });
        [Some(dp), d_weight, Some(dh), Some(dc), d_bias]
    }
}

/// `Σ h_{t-1} dp_tᵀ: [1, 1, n, 4 n]`, as one product.
fn weight_gradient<B: Backend>(read: &Read<B>, states: FloatTensor<B>, dp: FloatTensor<B>) -> FloatTensor<B> {
    let [_, b, t, n] = states.shape().dims::<4>();
    let whole = |size: usize| (0..size as isize).into();
    // What each token read: the states of the others, one step on, after the start.
    let first = if read.options.reversed { 1 } else { 0 };
    let part = (first..first + t as isize - 1).into();
    let start = B::float_reshape(read.h.clone(), [1, b, 1, n].into());
    let before = if t > 1 {
        let others = B::float_slice(states, &[(0..1isize).into(), whole(b), part, whole(n)]);
        let parts = if read.options.reversed { vec![others, start] } else { vec![start, others] };
        B::float_cat(parts, 2)
    } else {
        start
    };
    let before = B::float_reshape(before, [1, 1, b * t, n].into());
    let dp = B::float_reshape(dp, [1, 1, b * t, 4 * n].into());
    B::float_matmul(turned::<B>(before), dp)
}

/// The transpose of a matrix `[1, 1, rows, columns]`, where it lies.
pub(super) fn turned<B: Backend>(matrix: FloatTensor<B>) -> FloatTensor<B> {
    B::float_swap_dims(matrix, 2, 3)
}

impl<B: Lstm + Passes, C: CheckpointStrategy> Lstm for Autodiff<B, C> {
    fn lstm(
        p: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        h: FloatTensor<Self>,
        c: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        lengths: FloatTensor<Self>,
        options: Options,
    ) -> FloatTensor<Self> {
        let nodes = [&p, &weight, &h, &c, &bias].map(|x| x.node());
        let [p, weight, h, c, bias, lengths] = [p, weight, h, c, bias, lengths].map(|x| x.into_primitive());
        let read = Read::<B> { weight, h, c, bias, lengths, options };
        track::<B, C, _, 5>(nodes, |kept| {
            let (states, gates) = B::forward(&read, &p, kept);
            (states.clone(), Saved::<B> { read, gates, states })
        })
    }
}
