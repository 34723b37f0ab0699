//! Linear recurrences of matrix memories.
//!
//! On the CPU by blocks of tokens that are quadratic inside and pass a memory on
//! (lightning attention's tiling, arXiv 2401.04658). The graph holds the inputs, the outputs and one memory for every few
//! blocks, from which the backward pass recomputes those between.
//!
//! ```text
//!            one decay per head    one per channel
//! H D + k v    Linear, HeadDecay     Linear, ChannelDecay
//! … + b a H    Delta, HeadDecay      Delta, ChannelDecay
//! ```
//!
//! `passes` goes through the blocks for all of them, `decay` and `channels` (`whole` where they are mild, `halved` and
//! `tile` where not) say what decays do inside a block, `linear` and `delta` what a block computes.

#[cfg(feature = "flex")]
mod channels;
#[cfg(feature = "flex")]
mod decay;
#[cfg(feature = "flex")]
mod delta;
#[cfg(feature = "flex")]
mod flex;
#[cfg(feature = "cube")]
mod graphics;
#[cfg(feature = "flex")]
mod halved;
#[cfg(feature = "flex")]
mod inputs;
#[cfg(feature = "flex")]
mod linear;
#[cfg(feature = "flex")]
mod passes;
#[cfg(feature = "flex")]
mod solve;
#[cfg(all(test, feature = "flex"))]
mod tests;
#[cfg(feature = "flex")]
mod tile;
#[cfg(feature = "flex")]
mod whole;

#[cfg(feature = "flex")]
use burn::backend::Flex;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, backend_extension};
use burn::tensor::Tensor;
#[cfg(feature = "cube")]
use burn_cubecl::CubeBackend as Cube;

use super::gradient::{self, Two, track_two};
use crate::system::{Io, Transition};

/// What a recurrence reads, as the engine has it: `H_t = (diag exp(log_d_t) + b_t a_tᵀ) H_{t-1} + k_t v_tᵀ`,
/// `y_t = H_tᵀ q_t`.
#[derive(Clone, Debug)]
pub(crate) struct Recurrence {
    /// `[b, h, t, n]`
    pub(crate) q: Tensor<4>,
    /// `[b, h, t, n]`
    pub(crate) k: Tensor<4>,
    /// `[b, h, t, p]`
    pub(crate) v: Tensor<4>,
    /// `[b, h, t, 1]`, `[b, h, t, n]`, or `None` if nothing decays
    pub(crate) log_d: Option<Tensor<4>>,
    /// `a` and `b`, `[b, h, t, n]`
    pub(crate) rank_one: Option<[Tensor<4>; 2]>,
    /// `[b, h, n, p]`
    pub(crate) memory: Tensor<4>,
    /// Multiplies what queries find
    pub(crate) gain: f64,
}

/// How it is run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    /// Tokens of a block, or as many as are fastest
    block: Option<usize>,
    /// Multiplies what queries find
    gain: f64,
}

/// What stands around a recurrence and its kernel for graphics devices does without gradients.
#[cfg(feature = "cube")]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Around<'a> {
    /// `d`, of which outputs have `d v` more: a number for each head and channel, `[1, h, 1, p]`, where both may share one
    pub(crate) skip: Option<&'a Tensor<4>>,
    /// Logarithms of decays, `a` and `b`, beside each other
    pub(crate) packed: Option<&'a Tensor<4>>,
}

impl Recurrence {
    /// A recurrence that the kernel can run.
    pub(crate) fn new(transition: &Transition, io: &Io, memory: &Tensor<4>) -> Option<Self> {
        let Io::Outer { q, k, v } = io else { return None };
        let (log_d, rank_one) = match transition {
            Transition::Identity => (None, None),
            Transition::Scalar { log_a } => (Some(log_a.clone().unsqueeze_dim(3)), None),
            Transition::Diagonal { log_a } => (Some(log_a.clone()), None),
            Transition::Householder { log_d, a, b } => (Some(log_d.clone()), Some([a.clone(), b.clone()])),
            Transition::Dense { .. } => return None,
        };
        let [q, k, v, memory] = [q, k, v, memory].map(Clone::clone);
        Some(Self { q, k, v, log_d, rank_one, memory, gain: 1.0 }).filter(Self::applies)
    }

    /// The same with what queries find multiplied.
    pub(crate) fn with_gain(self, gain: f64) -> Self {
        Self { gain: self.gain * gain, ..self }
    }

    pub(crate) fn tokens(&self) -> usize {
        self.k.dims()[2]
    }

    fn applies(&self) -> bool {
        let Self { q, k, v, log_d, rank_one, memory, .. } = self;
        let ([b, h, t, n], [.., p]) = (k.dims(), v.dims());
        let keys = [Some(q), rank_one.as_ref().map(|[a, _]| a), rank_one.as_ref().map(|[_, b]| b)];
        let shapes = keys.iter().flatten().all(|x| x.dims() == [b, h, t, n])
            && v.dims() == [b, h, t, p]
            && memory.dims() == [b, h, n, p]
            && log_d.as_ref().is_none_or(|log| [1, n].contains(&log.dims()[3]));
        let mut all = [Some(v), Some(memory)].into_iter().chain(keys).flatten();
        shapes
            && all.all(|x| x.dtype() == k.dtype())
            && [b, h, t, n, p].iter().all(|&size| size > 0)
            && self.has_kernel()
    }

    /// Whether there is a kernel for this device, element type and size.
    fn has_kernel(&self) -> bool {
        #[cfg(feature = "flex")]
        if crate::kernels::view::fits(&self.k) {
            return true;
        }
        #[cfg(feature = "cube")]
        if crate::kernels::cube::fits(&self.k, 1) {
            let ([b, h, t, n], [.., p]) = (self.k.dims(), self.v.dims());
            let width = self.log_d.as_ref().map_or(1, |log| log.dims()[3]);
            return graphics::fits([b, h, t, n, p], width, self.rank_one.is_some());
        }
        false
    }

    /// Whether one token, too, is for the kernel.
    pub(crate) fn takes_one_token(&self) -> bool {
        #[cfg(feature = "cube")]
        if crate::kernels::cube::fits(&self.k, 1) {
            return true;
        }
        false
    }

    /// As [`Self::run`] where it lies on a graphics device without gradients, with what stands around it.
    #[cfg(feature = "cube")]
    pub(crate) fn run_on_graphics(
        &self,
        block: Option<usize>,
        Around { skip, packed }: Around<'_>,
    ) -> Option<(Tensor<4>, Tensor<4>)> {
        let Self { q, k, v, rank_one, memory, gain, .. } = self;
        let [_, h, _, p] = v.dims();
        let shared = |d: &Tensor<4>| d.dims()[0] * d.dims()[2] == 1 && d.dtype() == v.dtype();
        if !skip.is_none_or(shared) {
            return None;
        }
        let d = skip.map(|d| d.clone().expand([1, h, 1, p]));
        let log_d = self.decays();
        let all = [q, k, v, &log_d, memory].into_iter().chain(rank_one.iter().flatten());
        graphics::untracked(&all.cloned().collect::<Vec<_>>(), packed, Options { block, gain: *gain }, d)
    }

    /// Logarithms of decays, `[b, h, t, 1]` or `[b, h, t, n]`.
    fn decays(&self) -> Tensor<4> {
        let [b, h, t, _] = self.k.dims();
        // From data, not of zeros, which a graphics device would be told to make.
        let none = || Tensor::from_data([[[[0.0f32]]]], (&self.k.device().inner(), self.k.dtype()));
        let log_d = self.log_d.clone().unwrap_or_else(none);
        let width = log_d.dims()[3];
        log_d.cast(self.k.dtype()).expand([b, h, t, width])
    }

    /// In blocks of `block` tokens, or as many as are fastest: `y: [b, h, t, p]` and the last memory.
    pub(crate) fn run(self, block: Option<usize>) -> (Tensor<4>, Tensor<4>) {
        #[cfg(feature = "cube")]
        if let Some(found) = self.run_on_graphics(block, Around { skip: None, packed: None }) {
            return found;
        }
        let log_d = self.decays();
        let Self { q, k, v, rank_one, memory, gain, .. } = self;
        let options = Options { block, gain };
        let [q, k, v, log_d, memory] = [q, k, v, log_d, memory].map(Tensor::into_dispatch);
        let (y, memory) = match rank_one {
            None => <Dispatch as Tiled>::linear(q, k, v, log_d, memory, options),
            Some(rank_one) => {
                let [a, b] = rank_one.map(Tensor::into_dispatch);
                <Dispatch as Tiled>::delta(q, k, v, log_d, memory, a, b, options)
            }
        };
        (Tensor::from_dispatch(y), Tensor::from_dispatch(memory))
    }
}

/// The operations as backends see them.
#[backend_extension(Flex: cfg(feature = "flex"), Cube: cfg(feature = "cube"), Autodiff)]
#[allow(clippy::too_many_arguments, reason = "the tensors of the recurrence")]
pub(crate) trait Tiled: Backend {
    /// See [`Recurrence::run`].
    fn linear(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        log_d: FloatTensor<Self>,
        memory: FloatTensor<Self>,
        options: Options,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// See [`Recurrence::run`].
    fn delta(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        log_d: FloatTensor<Self>,
        memory: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        options: Options,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
}

/// What the inputs of an operation are to a backend: `q`, `k`, `v`, `log_d`, memory, and `a` and `b` if there are any.
type Given<B> = [FloatTensor<B>];

/// Where the decay is among the inputs.
const LOG_D: usize = 3;

/// Both passes on a device.
trait Passes: Backend {
    /// The outputs and the last memory, and what the way back starts from if that is to be kept.
    fn forward(
        inputs: &Given<Self>,
        options: Options,
        keep: bool,
    ) -> ([FloatTensor<Self>; 2], Option<FloatTensor<Self>>);

    /// Gradients of the inputs, in their order, for those of the outputs and of the last memory, if anything came of it;
    /// that of the decay is missing where it is not wanted.
    fn backward(
        inputs: &Given<Self>,
        options: Options,
        dy: FloatTensor<Self>,
        last: Option<FloatTensor<Self>>,
        kept: &FloatTensor<Self>,
        decay: bool,
    ) -> Vec<Option<FloatTensor<Self>>>;
}

/// The operations of a backend that has the passes.
macro_rules! operations {
    ($($condition:literal $backend:ty)*) => {$(
        #[cfg(feature = $condition)]
        impl Tiled for $backend {
            fn linear(
                q: FloatTensor<Self>,
                k: FloatTensor<Self>,
                v: FloatTensor<Self>,
                log_d: FloatTensor<Self>,
                memory: FloatTensor<Self>,
                options: Options,
            ) -> (FloatTensor<Self>, FloatTensor<Self>) {
                <Self as Passes>::forward(&[q, k, v, log_d, memory], options, false).0.into()
            }

            fn delta(
                q: FloatTensor<Self>,
                k: FloatTensor<Self>,
                v: FloatTensor<Self>,
                log_d: FloatTensor<Self>,
                memory: FloatTensor<Self>,
                a: FloatTensor<Self>,
                b: FloatTensor<Self>,
                options: Options,
            ) -> (FloatTensor<Self>, FloatTensor<Self>) {
                <Self as Passes>::forward(&[q, k, v, log_d, memory, a, b], options, false).0.into()
            }
        }
    )*};
}

operations!("flex" Flex "cube" Cube);

/// What the backward pass starts from.
#[derive(Clone, Debug)]
struct Saved<B: Backend> {
    inputs: Vec<FloatTensor<B>>,
    kept: Option<FloatTensor<B>>,
    options: Options,
}

impl<B: Passes, const N: usize> gradient::SavedForTwo<B, N> for Saved<B> {
    fn gradients(
        self,
        dy: FloatTensor<B>,
        last: Option<FloatTensor<B>>,
        wanted: [bool; N],
    ) -> [Option<FloatTensor<B>>; N] {
        let Self { inputs, kept, options } = self;
        let kept = kept.unwrap_or_else(|| unreachable!("it was told to keep something"));
        let mut found = B::backward(&inputs, options, dy, last, &kept, wanted[LOG_D]).into_iter();
        std::array::from_fn(|_| found.next().flatten())
    }
}

/// Runs forward, and remembers how to go back.
fn tracked<B: Passes, C: CheckpointStrategy, const N: usize>(
    inputs: [FloatTensor<Autodiff<B, C>>; N],
    options: Options,
) -> Two<Autodiff<B, C>> {
    let nodes = inputs.each_ref().map(|x| x.node());
    let inputs: Vec<_> = inputs.into_iter().map(|x| x.into_primitive()).collect();
    track_two::<B, C, _, N>(nodes, |keep| {
        let (out, kept) = B::forward(&inputs, options, keep);
        (out, Saved { inputs, kept, options })
    })
}

impl<B: Passes + Tiled, C: CheckpointStrategy> Tiled for Autodiff<B, C> {
    fn linear(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        log_d: FloatTensor<Self>,
        memory: FloatTensor<Self>,
        options: Options,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        tracked::<B, C, 5>([q, k, v, log_d, memory], options)
    }

    fn delta(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        log_d: FloatTensor<Self>,
        memory: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        options: Options,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        tracked::<B, C, 7>([q, k, v, log_d, memory, a, b], options)
    }
}
