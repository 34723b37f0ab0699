//! Attention by an online softmax (Dao et al., arXiv 2205.14135): tiles of keys pass by each tile of queries, and what
//! was added up is scaled down whenever a larger score appears. No scores are kept: the backward pass makes them again
//! from one logarithm per query, so memory is linear in the number of tokens.
//!
//! Queries may be fewer than keys (a cache), share key-value heads, see only a window, have a sink, a softcap, gates and
//! padding. Floor for `t` causal queries of `h` heads of `n` channels: `2 t² h n` floating-point operations forward,
//! 2.5 times that backward, and `t² h / 2` exponentials in each.

#[cfg(feature = "flex")]
mod backward;
#[cfg(feature = "flex")]
mod few;
#[cfg(feature = "flex")]
mod flex;
#[cfg(feature = "flex")]
mod forward;
#[cfg(feature = "flex")]
pub(crate) mod path;
#[cfg(feature = "flex")]
mod tiles;
#[cfg(feature = "flex")]
mod weights;

#[cfg(all(test, feature = "flex"))]
mod tests;

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, backend_extension};
use burn::tensor::Tensor;
#[cfg(feature = "cube")]
use burn_cubecl::CubeBackend as Cube;

use super::gradient::{self, track};

/// How products become weights.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weighing {
    /// Whether a query sees only its own token and earlier ones.
    pub(crate) causal: bool,
    /// Number of keys before the first query's own.
    pub(crate) cached: usize,
    /// Each query sees its own token and the `window - 1` before it.
    pub(crate) window: Option<usize>,
    /// Factor on the products.
    pub(crate) scale: f64,
    /// Bounds the scaled products.
    pub(crate) softcap: Option<f64>,
}

/// Whether a kernel can run these: `q`, `k` and `v` as [`run`] has them.
pub(crate) fn applies(q: &Tensor<4>, k: &Tensor<4>, v: &Tensor<4>) -> bool {
    let ([b, h, t, n], [_, kv, total, p]) = (q.dims(), v.dims());
    let sizes = [b, h, t, n, kv, total, p].iter().all(|&size| size > 0);
    sizes
        && k.dims() == [b, kv, total, n]
        && v.dims()[0] == b
        && h.is_multiple_of(kv)
        && [k, v].iter().all(|x| x.dtype() == q.dtype())
        && device_applies(q, v)
}

/// Whether there is a kernel where `q` lies.
#[allow(unused_variables, reason = "which are used depends on the features")]
fn device_applies(q: &Tensor<4>, v: &Tensor<4>) -> bool {
    #[cfg(feature = "flex")]
    if super::view::fits(q) {
        return true;
    }
    #[cfg(feature = "cube")]
    if super::cube::attends(q, v) {
        return true;
    }
    false
}

/// `softmax(scores) v`: `[b, h, t, p]`, from `q: [b, h, t, n]`, `k: [b, h_kv, T, n]`, `v: [b, h_kv, T, p]`, a score of
/// nothing per head, `sink: [h]`, the gates `log f` in `forget: [b, h, T, 1]`, of which scores get
/// `Σ_{j < s ≤ i} log f_s`, and a number that all scores of a key get, `offsets: [b, 1, 1, T]`, which has no gradient.
/// A query that sees no key gets 0.
pub(crate) fn run(
    [q, k, v]: [Tensor<4>; 3],
    sink: Option<Tensor<1>>,
    forget: Option<Tensor<4>>,
    offsets: Option<Tensor<4>>,
    weighing: Weighing,
) -> Tensor<4> {
    let dtype = q.dtype();
    let device = q.device().inner();
    let (sunk, forgets, shifted) = (sink.is_some(), forget.is_some(), offsets.is_some());
    let options = Options { weighing, sink: sunk, forget: forgets, offsets: shifted };
    let sink = sink.unwrap_or_else(|| Tensor::empty([1], (&device, dtype))).cast(dtype);
    let [forget, offsets] = [forget, offsets]
        .map(|x| x.unwrap_or_else(|| Tensor::empty([1, 1, 1, 1], (&device, dtype))).cast(dtype));
    let [q, k, v, forget, offsets] = [q, k, v, forget, offsets].map(Tensor::into_dispatch);
    let sink = sink.into_dispatch();
    let y = <Dispatch as Softmax>::softmax(q, k, v, sink, forget, offsets, options);
    Tensor::from_dispatch(y)
}

/// How products become weights, and which of the optional inputs are there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    pub(super) weighing: Weighing,
    pub(super) sink: bool,
    pub(super) forget: bool,
    pub(super) offsets: bool,
}

/// The operation as backends see it.
#[backend_extension(Flex: cfg(feature = "flex"), Cube: cfg(feature = "cube"), Autodiff)]
pub(crate) trait Softmax: Backend {
    /// See [`run`].
    fn softmax(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        sink: FloatTensor<Self>,
        forget: FloatTensor<Self>,
        offsets: FloatTensor<Self>,
        options: Options,
    ) -> FloatTensor<Self>;
}

/// What the operation reads.
#[derive(Clone, Debug)]
pub(crate) struct Read<B: Backend> {
    pub(super) q: FloatTensor<B>,
    pub(super) k: FloatTensor<B>,
    pub(super) v: FloatTensor<B>,
    pub(super) sink: FloatTensor<B>,
    pub(super) forget: FloatTensor<B>,
    pub(super) offsets: FloatTensor<B>,
    pub(super) options: Options,
}

/// What the backward pass starts from.
#[derive(Clone, Debug)]
pub(crate) struct Saved<B: Backend> {
    pub(super) read: Read<B>,
    /// `[b, h, t, p]`
    pub(super) y: FloatTensor<B>,
    /// Logarithms of the sums over each query's keys, in the unit that the backend likes: `[b, h, t]`
    pub(super) log_sum: FloatTensor<B>,
}

/// A backend's kernels.
pub(crate) trait Passes: Backend {
    /// See [`run`].
    fn forward(read: Read<Self>) -> Saved<Self>;

    /// Gradients of `q`, `k`, `v`, the sink and the gates, in this order.
    fn backward(saved: Saved<Self>, dy: FloatTensor<Self>) -> [FloatTensor<Self>; 5];
}

macro_rules! softmax_of {
    ($($backend:ty, $feature:literal;)*) => {$(
        #[cfg(feature = $feature)]
        impl Softmax for $backend {
            fn softmax(
                q: FloatTensor<Self>,
                k: FloatTensor<Self>,
                v: FloatTensor<Self>,
                sink: FloatTensor<Self>,
                forget: FloatTensor<Self>,
                offsets: FloatTensor<Self>,
                options: Options,
            ) -> FloatTensor<Self> {
                Self::forward(Read { q, k, v, sink, forget, offsets, options }).y
            }
        }
    )*};
}

softmax_of!(burn::backend::Flex, "flex"; Cube, "cube";);

impl<B: Passes> gradient::Saved<B, 5> for Saved<B> {
    fn gradients(self, dy: FloatTensor<B>, _wanted: [bool; 5]) -> [Option<FloatTensor<B>>; 5] {
        B::backward(self, dy).map(Some)
    }
}

impl<B: Softmax + Passes, C: CheckpointStrategy> Softmax for Autodiff<B, C> {
    fn softmax(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        sink: FloatTensor<Self>,
        forget: FloatTensor<Self>,
        offsets: FloatTensor<Self>,
        options: Options,
    ) -> FloatTensor<Self> {
        let nodes = [&q, &k, &v, &sink, &forget].map(|x| x.node());
        let [q, k, v, sink, forget, offsets] = [q, k, v, sink, forget, offsets].map(|x| x.into_primitive());
        track::<B, C, _, 5>(nodes, |_| {
            let saved = B::forward(Read { q, k, v, sink, forget, offsets, options });
            (saved.y.clone(), saved)
        })
    }
}
