//! Memories that learn by gradient descent, all chunks of a call in one pass, and one pass back.
//!
//! ```text
//! x_1 = k,  a_l = x_l W_l,  x_{l+1} = gelu(a_l),  z = a_L                     gradients, at the W of the chunk's start
//! r = k + ẑ ∘ g + b - v,  u = ∂ℓ/∂r,  d_L = P (u ∘ g),  P w = ρ (w - mean w - ẑ mean(w ∘ ẑ))
//! e_l = d_l W_lᵀ,  d_{l-1} = e_l ∘ gelu'(a_{l-1})
//! A_t = α_t A + φ_t S - Σ_{i ≤ t} G[t, i] x_i d_iᵀ                            per layer
//! q_1 = q,  p_l = q_l A_t,  q_{l+1} = gelu(p_l),  y = q + LN(p_L)             reads
//! ```
//!
//! Equations of the chunk-wise form: `miras::chunk`, `miras::ttt_memory`. What token `t` reads and what the chunk leaves
//! behind are the same affine function of its gradients and of `A` and `S`, so a chunk of `c` tokens comes with one
//! matrix, its *plan*: a row for every token, one for the next `A` and one for the next `S`; a column for every gradient
//! (`G`), one for `A` (`α`) and one for `S` (`φ`). Decays, learning rates and momenta only make plans, in tensor
//! operations for all chunks at once. Chunks go on one after another in one thread per head, everything in its cache.
//!
//! The pass back (derived here; `D·` is the gradient of what follows it) starts from the kept `A` and `S` of each chunk's
//! start, computes the chunk again, and goes through it in reverse order:
//!
//! ```text
//! writes     Dd -= G ∘ (x DA'),  Dx -= G ∘ (d DA'ᵀ),  DG = -d·(x DA'),  DA = α DA',  DS = φ DA'
//! reads      DP = -(Dp dᵀ) ∘ G,  Dq_l = α Dp Aᵀ + φ Dp Sᵀ + DP x,  Dx += DPᵀ q_l,  Dd -= (G ∘ q xᵀ)ᵀ Dp,  DA += α q_lᵀ Dp
//! errors     De = Dd ∘ gelu'(a),  Da = Dd ∘ e ∘ gelu''(a),  Dd_{l+1} += De W,  DW += Deᵀ d_{l+1}
//! norm       Dw = P Dd,  Dẑ = -ρ (Dd mean(w ∘ ẑ) + w mean(Dd ∘ ẑ)) + Dr ∘ g,  Dρ = Dd·d/ρ
//!            Dz = P Dẑ - ρ² ẑ Dρ / n
//! layers     Da_L = Dz,  Dx_l += Da_l W_lᵀ,  DW_l += x_lᵀ Da_l,  Da_{l-1} += Dx_l ∘ gelu'(a_{l-1})
//! ```
//!
//! Weights may also be multiples of `A` (`map`) or distributions (`softmax`). Multiples are products with `A` times a
//! number. Distributions are formed for every token, one after the other, so their plan is `α` and `η` of each token, and
//! chunks may be two runs, with a `W` each.
//!
//! Floor: 6 operations per weight and token forward for the first layer and 8 for the others, 22 and 30 with gradients, as
//! products of matrices of `c` rows; of distributions one exponential per weight and token, two with gradients. What is
//! kept for the way back are the weights at every run's start.

mod activation;
mod back;
mod distribution;
mod flex;
mod heads;
mod loss;
mod map;
mod network;
mod norm;
mod softmax;
#[cfg(test)]
mod tests;

use std::ops::Range;

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::Tensor;

#[cfg(feature = "cube")]
pub(crate) use super::cube::{Call, Plans};
use super::gradient::{self, track};
use crate::miras::{Bias, Gelu};

pub(crate) use map::Map;

/// The memory's function, and what is asked of it.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// Tokens of a chunk
    pub(crate) chunk: usize,
    /// Whether a chunk is two runs: its first token, and the others; with [`Map::Softmax`] only
    pub(crate) lag: bool,
    /// Numbers of a key and of a value
    pub(crate) width: usize,
    /// Numbers between layers
    pub(crate) hidden: usize,
    /// Layers
    pub(crate) depth: usize,
    /// Whether layers see a 1 beside their input
    pub(crate) offset: bool,
    /// Between layers
    pub(crate) gelu: Gelu,
    /// Whether `M(x) = x + LN(z)`, or `z` itself
    pub(crate) norm: bool,
    /// Whether answers are `z`, which the caller norms
    pub(crate) raw: bool,
    /// ε of the layer norm
    pub(crate) eps: f64,
    /// The inner loss
    pub(crate) bias: Bias,
    /// From what is accumulated to weights
    pub(crate) map: Map,
    /// Whether there is an `S`
    pub(crate) momentum: bool,
    /// Whether `W` becomes that of `A` at the end of a run: of every run of every row
    pub(crate) renewed: Vec<bool>,
}

impl Options {
    /// What is carried: `A`, and `S` if any.
    pub(crate) fn slots(&self) -> usize {
        1 + usize::from(self.momentum)
    }

    /// Inputs and outputs of each layer.
    fn sizes(&self) -> Vec<[usize; 2]> {
        let width = |l: usize| if l == 0 || l == self.depth { self.width } else { self.hidden };
        (0..self.depth).map(|l| [width(l) + usize::from(self.offset), width(l + 1)]).collect()
    }

    /// Tokens of the runs of a chunk, which have one `W` each.
    fn runs(&self) -> impl Iterator<Item = Range<usize>> + Clone {
        let first = if self.lag { 1 } else { self.chunk };
        [0..first, first..self.chunk].into_iter().filter(|run| !run.is_empty())
    }

    /// Rows and columns of a chunk's plan.
    fn plan(&self) -> [usize; 2] {
        match self.map {
            Map::Softmax => [2, self.chunk],
            _ => [self.chunk + self.slots(); 2],
        }
    }

    /// Numbers of all matrices.
    fn numbers(&self) -> usize {
        self.sizes().iter().map(|[inputs, outputs]| inputs * outputs).sum()
    }
}

/// The tensors of a call.
#[derive(Clone, Debug)]
pub(crate) struct Descent {
    /// `[b, h, t, n]`
    pub(crate) q: Tensor<4>,
    /// `[b, h, t, n]`
    pub(crate) k: Tensor<4>,
    /// `[b, h, t, n]`
    pub(crate) v: Tensor<4>,
    /// `[b, h, t, 1]`
    pub(crate) threshold: Tensor<4>,
    /// `[b, h, t / c, (c + s)²]`, `s` of the slots; the column of `A` in the row of `S` is taken for 0. With
    /// [`Map::Softmax`], which has no `S`, `[b, h, t / c, 2 c]`: every token's `α`, then every token's `η`
    pub(crate) plan: Tensor<4>,
    /// Gain and bias of the layer norm, `[h, n]`
    pub(crate) norm: Option<[Tensor<2>; 2]>,
    /// A number of every matrix that the map asks for, `[b, h, 1, depth]`
    pub(crate) sizes: Option<Tensor<4>>,
    /// `A`, the first layer's first, `[b, h, inputs, outputs]`
    pub(crate) running: Vec<Tensor<4>>,
    /// `W`
    pub(crate) anchor: Vec<Tensor<4>>,
    /// `S`, or empty
    pub(crate) momentum: Vec<Tensor<4>>,
}

/// What comes out of a call.
#[derive(Clone, Debug)]
pub(crate) struct Learned {
    /// `[b, h, t, n]`
    pub(crate) y: Tensor<4>,
    /// `A`
    pub(crate) running: Vec<Tensor<4>>,
    /// `W`
    pub(crate) anchor: Vec<Tensor<4>>,
    /// `S`, or empty
    pub(crate) momentum: Vec<Tensor<4>>,
}

/// Whether a kernel runs these, and may.
pub(crate) fn applies(k: &Tensor<4>, v: &Tensor<4>) -> bool {
    super::enabled() && super::view::fits(k) && k.dims() == v.dims() && k.dims().iter().all(|&size| size > 0)
}

/// Whether the kernel for graphics devices runs these, and may.
#[cfg(feature = "cube")]
pub(crate) fn on_graphics(k: &Tensor<4>, v: &Tensor<4>) -> bool {
    super::enabled()
        && super::cube::descends(k)
        && k.dims() == v.dims()
        && k.dims().iter().all(|&size| size > 0)
}

/// All matrices of a slot, `[b, h, 1, numbers]`.
fn pack(matrices: &[Tensor<4>]) -> Tensor<4> {
    let flat = |matrix: &Tensor<4>| {
        let [b, h, inputs, outputs] = matrix.dims();
        matrix.clone().reshape([b, h, 1, inputs * outputs])
    };
    match matrices {
        [one] => flat(one),
        several => Tensor::cat(several.iter().map(flat).collect(), 3),
    }
}

impl Descent {
    /// Runs all chunks.
    pub(crate) fn run(self, options: Options) -> Learned {
        let Self { q, k, v, threshold, plan, norm, sizes: given, running, anchor, momentum } = self;
        let [b, h, t, n] = k.dims();
        let none = || Tensor::<4>::zeros([1, 1, 1, 1], (&k.device().inner(), k.dtype()));
        let norm = norm.map_or_else(none, |parts| {
            let both = Tensor::cat(parts.map(|part| part.reshape([1, h, 1, n])).to_vec(), 2);
            both.expand([b, h, 2, n])
        });
        let momentum_before = if momentum.is_empty() { none() } else { pack(&momentum) };
        let given = given.unwrap_or_else(none);
        let all =
            [q, k.clone(), v, threshold, plan, norm, given, pack(&running), pack(&anchor), momentum_before];
        let [q, k, v, threshold, plan, norm, given, running, anchor, momentum] =
            all.map(Tensor::into_dispatch);
        let (sizes, numbers, slots) = (options.sizes(), options.numbers(), options.slots());
        let out = Tensor::<4>::from_dispatch(<Dispatch as Descend>::descend(
            q, k, v, threshold, plan, norm, given, running, anchor, momentum, options,
        ));
        let slot = |index: usize| -> Vec<Tensor<4>> {
            let mut start = t * n + index * numbers;
            let matrix = |&[inputs, outputs]: &[usize; 2]| {
                let matrix = out.clone().narrow(3, start, inputs * outputs);
                start += inputs * outputs;
                matrix.reshape([b, h, inputs, outputs])
            };
            sizes.iter().map(matrix).collect()
        };
        Learned {
            y: out.clone().narrow(3, 0, t * n).reshape([b, h, t, n]),
            running: slot(0),
            anchor: slot(1),
            momentum: if slots > 1 { slot(2) } else { Vec::new() },
        }
    }
}

/// The operation as backends see it; the result, `[b, h, 1, …]`, has `y`, `A`, `W` and `S` one after another.
#[backend_extension(Flex: cfg(feature = "flex"), Autodiff)]
#[allow(clippy::too_many_arguments, reason = "the tensors of a call")]
pub(crate) trait Descend: Backend {
    /// See [`Descent::run`].
    fn descend(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        threshold: FloatTensor<Self>,
        plan: FloatTensor<Self>,
        norm: FloatTensor<Self>,
        sizes: FloatTensor<Self>,
        running: FloatTensor<Self>,
        anchor: FloatTensor<Self>,
        momentum: FloatTensor<Self>,
        options: Options,
    ) -> FloatTensor<Self>;
}

/// The inputs, in the order of the operation's arguments.
type Given<B> = [FloatTensor<B>; 10];

/// Both passes on a device.
trait Passes: Backend {
    /// The output, and `A` and `S` before every chunk if they are to be kept.
    fn forward(
        given: &Given<Self>,
        options: &Options,
        keep: bool,
    ) -> (FloatTensor<Self>, Option<FloatTensor<Self>>);

    /// Gradients of the inputs for that of the output.
    fn backward(
        given: &Given<Self>,
        options: &Options,
        kept: &FloatTensor<Self>,
        out: &FloatTensor<Self>,
    ) -> [Option<FloatTensor<Self>>; 10];
}

impl Descend for Flex {
    fn descend(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        threshold: FloatTensor<Self>,
        plan: FloatTensor<Self>,
        norm: FloatTensor<Self>,
        sizes: FloatTensor<Self>,
        running: FloatTensor<Self>,
        anchor: FloatTensor<Self>,
        momentum: FloatTensor<Self>,
        options: Options,
    ) -> FloatTensor<Self> {
        Self::forward(&[q, k, v, threshold, plan, norm, sizes, running, anchor, momentum], &options, false).0
    }
}

/// What the backward pass starts from.
#[derive(Clone, Debug)]
struct Saved<B: Backend> {
    given: Given<B>,
    options: Options,
    kept: Option<FloatTensor<B>>,
}

impl<B: Passes> gradient::Saved<B, 10> for Saved<B> {
    fn gradients(self, out: FloatTensor<B>, _wanted: [bool; 10]) -> [Option<FloatTensor<B>>; 10] {
        let kept = self.kept.expect("kept, because it is differentiated");
        B::backward(&self.given, &self.options, &kept, &out)
    }
}

impl<B: Passes + Descend, C: CheckpointStrategy> Descend for Autodiff<B, C> {
    fn descend(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        threshold: FloatTensor<Self>,
        plan: FloatTensor<Self>,
        norm: FloatTensor<Self>,
        sizes: FloatTensor<Self>,
        running: FloatTensor<Self>,
        anchor: FloatTensor<Self>,
        momentum: FloatTensor<Self>,
        options: Options,
    ) -> FloatTensor<Self> {
        let given = [q, k, v, threshold, plan, norm, sizes, running, anchor, momentum];
        let nodes = given.each_ref().map(|x| x.node());
        let given = given.map(|x| x.into_primitive());
        track::<B, C, _, 10>(nodes, |keep| {
            let (out, kept) = B::forward(&given, &options, keep);
            (out, Saved::<B> { given, options, kept })
        })
    }
}
