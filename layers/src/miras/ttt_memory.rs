//! The memory of TTT layers and how it learns: gradient descent over growing parts of mini-batches.
//!
//! ```text
//! f(x) = x + LN(z(x)),   z(x) = x W1 + b1,  or  gelu(x W1 + b1) W2 + b2          target: v
//! G_t  = G_{t-1} + η_t ∇ ½|f(k_t; W) - v_t|²           W: the weights at the mini-batch's start
//! W_t  = W - c_i G_t       at token i of the mini-batch; at its end W becomes W_t, and G 0
//! ```
//!
//! The gradient step of a prefix of the mini-batch, scaled by `c_i` (1/i makes it a mean): `η[i, j] = c_i η_j`
//! of the paper's dual form. No `W_t` is formed there, because every gradient is of rank one per token:
//!
//! ```text
//! x W_t = x W - c_i (x G + ((x Xᵀ) ∘ tril ∘ η) dZ)            ∇ = Xᵀ dZ,  per affine map
//! ```
//!
//! A mini-batch may be left and continued anywhere: the state is `W` and `G`. A sequence that ends inside a
//! mini-batch is what the reference calls a final, shorter mini-batch: `c_i` counts from its start too.
//!
//! | symbol | shape |
//! | --- | --- |
//! | q, k, v, z | `[b, h, t, n]` |
//! | η; c | `[b, h, t, 1]`; broadcastable to it |
//! | W, G with the bias as last row | `[b, h, n+1, n]`, or `[b, h, n+1, m]` and `[b, h, m+1, n]` |

use burn::module::{Module, Param};
use burn::tensor::{Tensor, TensorData};

#[cfg(feature = "flex")]
use super::Bias;
use super::inner::{Clock, pieces};
use super::layer_norm::Standardized;
#[cfg(feature = "flex")]
use super::memory::Gelu;
use super::memory::{Factor, gelu_tanh_slope, outer_sum, per_head, times, times_transposed, with_one};
use crate::Init;
#[cfg(feature = "cube")]
use crate::kernels;
#[cfg(feature = "flex")]
use crate::kernels::descent::{self, Descent, Map, Options};
use crate::nn::Activation;
use crate::system::Form;
use crate::system::scan::{tril_ones, unbind};

/// Standard deviation of the initial weights.
const INIT_STD: f64 = 0.02;
/// ε of the memory's layer norm.
const NORM_EPS: f64 = 1e-6;

/// `f`: its slow parameters, among them the weights it starts from. Matrices are input by output.
#[derive(Module, Debug)]
pub struct TttMemory {
    /// `[h, n, n]`, or `[h, n, m]`
    pub w1: Param<Tensor<3>>,
    /// `[h, n]`, or `[h, m]`
    pub b1: Param<Tensor<2>>,
    /// `[h, m, n]` of the memory with a hidden layer
    pub w2: Option<Param<Tensor<3>>>,
    /// `[h, n]` of the memory with a hidden layer
    pub b2: Option<Param<Tensor<2>>>,
    /// Gain of LN, `[h, n]`; without it `f` is `z`
    pub norm_weight: Option<Param<Tensor<2>>>,
    /// Bias of LN, `[h, n]`
    pub norm_bias: Option<Param<Tensor<2>>>,
}

/// What the memory is given, per token.
#[derive(Clone, Debug)]
pub struct TttTokens {
    /// `[b, h, t, n]`
    pub q: Tensor<4>,
    /// `[b, h, t, n]`
    pub k: Tensor<4>,
    /// `[b, h, t, n]`
    pub v: Tensor<4>,
    /// `η`: what a token's gradient counts, `[b, h, t, 1]`
    pub eta: Tensor<4>,
    /// `c`: what the sum of gradients counts when this token reads, broadcastable to `[b, h, t, 1]`
    pub scale: Tensor<4>,
}

impl TttTokens {
    fn map(self, f: impl Fn(Tensor<4>) -> Tensor<4>) -> Self {
        let Self { q, k, v, eta, scale } = self;
        let [q, k, v, eta, scale] = [q, k, v, eta, scale].map(f);
        Self { q, k, v, eta, scale }
    }

    /// One entry per entry of axis 2.
    fn unbind(self) -> impl Iterator<Item = Self> {
        let Self { q, k, v, eta, scale } = self;
        let keys = unbind(q, 2).into_iter().zip(unbind(k, 2)).zip(unbind(v, 2));
        let rates = unbind(eta, 2).into_iter().zip(unbind(scale, 2));
        keys.zip(rates).map(|(((q, k), v), (eta, scale))| Self { q, k, v, eta, scale })
    }

    /// `count` runs of `size` tokens.
    fn split(self, size: usize, count: usize) -> Vec<Self> {
        if count == 1 {
            return vec![self];
        }
        // Runs take the time axis, tokens and channels share the last one.
        let narrow = |x: Tensor<4>| {
            let [b, h, _, n] = x.dims();
            x.reshape([b, h, count, size * n])
        };
        let widen = |x: Tensor<4>| {
            let [b, h, _, flat] = x.dims();
            x.reshape([b, h, size, flat / size])
        };
        self.map(narrow).unbind().map(|run| run.map(widen)).collect()
    }
}

/// The fast weights, with the bias as the last row of each matrix: `[b, h, in + 1, out]`.
#[derive(Clone, Debug)]
pub struct TttFast {
    /// `W`: at the mini-batch's start.
    pub start: Vec<Tensor<4>>,
    /// `G`: the weighted gradients since; `None` at the start of a mini-batch.
    pub sum: Option<Vec<Tensor<4>>>,
}

impl TttFast {
    /// `G` with `more` of a run of tokens.
    fn grown(&self, more: Vec<Tensor<4>>) -> Vec<Tensor<4>> {
        match &self.sum {
            None => more,
            Some(sum) => sum.iter().zip(more).map(|(sum, more)| sum.clone() + more).collect(),
        }
    }

    /// `W - c G`
    pub(super) fn now(&self, scale: &Tensor<4>) -> Vec<Tensor<4>> {
        match &self.sum {
            None => self.start.clone(),
            Some(sum) => {
                self.start.iter().zip(sum).map(|(w, sum)| w.clone() - sum.clone() * scale.clone()).collect()
            }
        }
    }

    /// Begins a mini-batch in the rows that `boundary` marks; `scale` is that of the last token before.
    fn advance(&mut self, boundary: &[bool], scale: &Tensor<4>) {
        if boundary.iter().all(|&row| row) {
            self.start = self.now(scale);
            self.sum = None;
        } else if boundary.iter().any(|&row| row) {
            let Some(like) = self.start.first() else { return };
            let new = row_flags(boundary, like);
            self.start = self.now(&(scale.clone() * new.clone()));
            let old = new.neg().add_scalar(1.0);
            self.sum = self.sum.take().map(|sum| sum.into_iter().map(|g| g * old.clone()).collect());
        }
    }
}

/// How the gradients of every mini-batch, `W` and `G` make what its tokens are read with and what `W` and `G` become,
/// `[b, h count, …]`; see [`Descent`]. `G` is the sum of gradients, and not of steps against them.
#[cfg(feature = "flex")]
fn plan(
    eta: Tensor<4>,
    scale: Tensor<4>,
    boundaries: &[bool],
    [count, size]: [usize; 2],
    momentum: bool,
) -> Tensor<4> {
    let [b, h, t, _] = eta.dims();
    let apart = |x: Tensor<4>| x.expand([b, h, t, 1]).reshape([b, h * count, size, 1]);
    let (eta, scale) = (apart(eta).swap_dims(2, 3), apart(scale));
    let options = (&eta.device().inner(), eta.dtype());
    let causal = tril_ones(size, 0, &eta.device(), eta.dtype()).unsqueeze::<4>();
    let mut reads = vec![eta.clone() * causal * scale.clone(), Tensor::ones(scale.dims(), options)];
    if !momentum {
        let reads = Tensor::cat(reads, 3);
        return Tensor::cat(vec![reads.clone(), reads.narrow(2, size - 1, 1)], 2);
    }
    reads.push(scale.neg());
    let reads = Tensor::cat(reads, 3);
    let flags: Vec<f32> = boundaries.iter().map(|&boundary| f32::from(boundary)).collect();
    let begins = Tensor::<4>::from_data(TensorData::new(flags, [b, 1, count, 1]), options);
    let begins = begins.expand([b, h, count, 1]).reshape([b, h * count, 1, 1]);
    let goes_on = begins.clone().neg().add_scalar(1.0);
    let one = |at: usize| {
        let mut row = vec![0.0f32; size + 2];
        row[size + at] = 1.0;
        Tensor::<4>::from_data(TensorData::new(row, [1, 1, 1, size + 2]), options)
    };
    let start = reads.clone().narrow(2, size - 1, 1) * begins + one(0) * goes_on.clone();
    let none = Tensor::zeros([b, h * count, 1, 2], options);
    let sum = (Tensor::cat(vec![eta.neg(), none], 3) + one(1)) * goes_on;
    Tensor::cat(vec![reads, start, sum], 2)
}

/// Slot of the gradients of a matrix since the mini-batch's start.
pub(super) fn sum_slot(name: &str) -> String {
    format!("{name}_gradient")
}

/// Channels `0, 1, 2, 3, …` as `0, 2, …, 1, 3, …`
pub(super) fn halves(x: Tensor<4>) -> Tensor<4> {
    let [b, h, t, n] = x.dims();
    x.reshape([b, h, t, n / 2, 2]).swap_dims(3, 4).reshape([b, h, t, n])
}

/// Undoes [`halves`].
pub(super) fn neighbours(x: Tensor<4>) -> Tensor<4> {
    let [b, h, t, n] = x.dims();
    x.reshape([b, h, t, 2, n / 2]).swap_dims(3, 4).reshape([b, h, t, n])
}

/// 1 in the marked rows, else 0: `[b, 1, 1, 1]`.
pub(super) fn row_flags(rows: &[bool], like: &Tensor<4>) -> Tensor<4> {
    let flags: Vec<f32> = rows.iter().map(|&row| f32::from(row)).collect();
    let data = TensorData::new(flags, [rows.len(), 1, 1, 1]);
    Tensor::from_data(data, (&like.device().inner(), like.dtype()))
}

impl TttMemory {
    /// Draws the initial weights of heads of `n` channels, with `hidden` channels inside if any.
    pub fn new(heads: usize, n: usize, hidden: Option<usize>, norm: bool, init: &mut Init) -> Self {
        let m = hidden.unwrap_or(n);
        Self {
            w1: init.normal([heads, n, m], INIT_STD),
            b1: init.constant([heads, m], 0.0),
            w2: hidden.map(|m| init.normal([heads, m, n], INIT_STD)),
            b2: hidden.map(|_| init.constant([heads, n], 0.0)),
            norm_weight: norm.then(|| init.constant([heads, n], 1.0)),
            norm_bias: norm.then(|| init.constant([heads, n], 0.0)),
        }
    }

    /// Names of the matrices.
    pub(super) fn names(&self) -> &'static [&'static str] {
        if self.w2.is_some() { &["w1", "w2"] } else { &["w1"] }
    }

    /// The fast weights before any token.
    pub fn initial(&self, batch: usize) -> TttFast {
        let pair = |(w, b): (&Param<Tensor<3>>, &Param<Tensor<2>>)| {
            let [h, _, cols] = w.dims();
            (w.val().unsqueeze::<4>(), b.val().reshape([1, h, 1, cols]))
        };
        let pairs = [Some((&self.w1, &self.b1)), self.w2.as_ref().zip(self.b2.as_ref())];
        let (w, b): (Vec<_>, Vec<_>) = pairs.into_iter().flatten().map(pair).unzip();
        let expand = |both: Tensor<4>| {
            let [_, h, rows, cols] = both.dims();
            // Flat, because graphics devices sum a turned gradient of rank 4 over its first axis wrongly.
            let size = h * rows * cols;
            both.reshape([1, size]).expand([batch, size]).reshape([batch, h, rows, cols])
        };
        #[cfg(feature = "cube")]
        if kernels::enabled()
            && let Some(all) = kernels::join(&w, &b)
        {
            return TttFast { start: all.into_iter().map(expand).collect(), sum: None };
        }
        let start = w.into_iter().zip(b).map(|(w, b)| expand(Tensor::cat(vec![w, b], 2)));
        TttFast { start: start.collect(), sum: None }
    }

    /// Sizes of the fast weights, `[b, h, in + 1, out]`.
    pub(super) fn sizes(&self, batch: usize) -> Vec<[usize; 4]> {
        let size = |w: &Param<Tensor<3>>| {
            let [h, rows, cols] = w.dims();
            [batch, h, rows + 1, cols]
        };
        [Some(&self.w1), self.w2.as_ref()].into_iter().flatten().map(size).collect()
    }

    /// `z(x)`, where `product(i, x)` multiplies by the `i`-th matrix.
    fn before_norm(&self, x: Tensor<4>, product: &dyn Fn(usize, Tensor<4>) -> Tensor<4>) -> Tensor<4> {
        let z = product(0, with_one(x));
        if self.w2.is_none() { z } else { product(1, with_one(Activation::GeluTanh.apply(z))) }
    }

    /// `f(x)` from `x` and `z(x)`.
    pub fn output(&self, x: Tensor<4>, z: Tensor<4>) -> Tensor<4> {
        match (&self.norm_weight, &self.norm_bias) {
            (Some(gain), Some(bias)) => {
                x + Standardized::of(z, NORM_EPS).normal * per_head(gain) + per_head(bias)
            }
            _ => z,
        }
    }

    /// `f(x)` with materialised weights.
    pub(super) fn read_at(&self, weights: &[Tensor<4>], x: Tensor<4>) -> Tensor<4> {
        let z = self.before_norm(x.clone(), &|i, x| times(x, weights[i].clone()));
        self.output(x, z)
    }

    /// The gradient of `½|f(k) - v|²` for each matrix, `Xᵀ dZ`.
    fn gradients(&self, weights: &[Tensor<4>], k: Tensor<4>, v: Tensor<4>) -> Vec<Factor> {
        let left = with_one(k.clone());
        let hidden = times(left.clone(), weights[0].clone());
        let Some(second) = weights.get(1) else {
            return vec![Factor { left, right: self.output_gradient(k, v, hidden) }];
        };
        let middle = with_one(Activation::GeluTanh.apply(hidden.clone()));
        let dz = self.output_gradient(k, v, times(middle.clone(), second.clone()));
        let inputs = second.dims()[2] - 1;
        let back = times_transposed(dz.clone(), second.clone().narrow(2, 0, inputs));
        let first = Factor { left, right: back * gelu_tanh_slope(hidden) };
        vec![first, Factor { left: middle, right: dz }]
    }

    /// `∂ ½|f(k) - v|² / ∂z`
    fn output_gradient(&self, k: Tensor<4>, v: Tensor<4>, z: Tensor<4>) -> Tensor<4> {
        match (&self.norm_weight, &self.norm_bias) {
            (Some(gain), Some(bias)) => {
                let (gain, z) = (per_head(gain), Standardized::of(z, NORM_EPS));
                let residual = k + z.normal.clone() * gain.clone() + per_head(bias) - v;
                z.gradient(residual * gain)
            }
            _ => z - v,
        }
    }

    /// Learns the pairs `(k, v)` from the start of a mini-batch on and answers every `q` with `z(q; W_t)`;
    /// [`TttMemory::output`] makes it `f(q)`.
    pub fn learn(
        &self,
        tokens: TttTokens,
        fast: TttFast,
        mini_batch: usize,
        form: Form,
    ) -> (Tensor<4>, TttFast) {
        let clock = Clock::new(&vec![0; tokens.k.dims()[0]], mini_batch, None);
        match form {
            Form::Recurrent => self.recurrent(tokens, fast, &clock, |_, _| {}),
            _ => self.dual(tokens, fast, &clock, mini_batch, 0),
        }
    }

    /// The reference: every `W_t` is formed. Shows each token with its `W_t` to `observe`.
    pub(super) fn recurrent(
        &self,
        tokens: TttTokens,
        mut fast: TttFast,
        clock: &Clock,
        mut observe: impl FnMut(TttTokens, &[Tensor<4>]),
    ) -> (Tensor<4>, TttFast) {
        let mut out = Vec::with_capacity(tokens.k.dims()[2]);
        for (t, token) in tokens.unbind().enumerate() {
            let TttTokens { q, k, v, eta, scale } = token.clone();
            let factors = self.gradients(&fast.start, k, v).into_iter();
            let more = factors.map(|Factor { left, right }| outer_sum(left * eta.clone(), right)).collect();
            fast.sum = Some(fast.grown(more));
            let now = fast.now(&scale);
            out.push(self.before_norm(q, &|i, x| times(x, now[i].clone())));
            observe(token, &now);
            fast.advance(&clock.boundary(t + 1), &scale);
        }
        (Tensor::cat(out, 2), fast)
    }

    /// The dual form, one mini-batch after the other; all rows stand at `phase` of theirs.
    pub(super) fn dual(
        &self,
        tokens: TttTokens,
        mut fast: TttFast,
        clock: &Clock,
        mini_batch: usize,
        phase: usize,
    ) -> (Tensor<4>, TttFast) {
        let (mut out, mut end) = (Vec::new(), 0);
        for (start, size, count) in pieces(phase, mini_batch, tokens.k.dims()[2]) {
            let piece = tokens.clone().map(|x| x.narrow(2, start, size * count));
            #[cfg(feature = "flex")]
            if descent::applies(&piece.k, &piece.v) {
                let boundaries = clock.boundaries((1..=count).map(|run| end + run * size));
                let z = self.by_kernel(piece, &mut fast, boundaries, size);
                out.push(z);
                end += size * count;
                continue;
            }
            for run in piece.split(size, count) {
                let scale = run.scale.clone().narrow(2, size - 1, 1);
                out.push(self.within(run, &mut fast));
                end += size;
                fast.advance(&clock.boundary(end), &scale);
            }
        }
        (Tensor::cat(out, 2), fast)
    }

    /// What is asked of a kernel for mini-batches of `size` tokens, with answers normed.
    #[cfg(feature = "flex")]
    pub(super) fn options(&self, fast: &TttFast, size: usize, momentum: bool) -> Options {
        let [_, _, _, hidden] = fast.start[0].dims();
        Options {
            chunk: size,
            lag: false,
            width: self.w1.dims()[1],
            hidden,
            depth: fast.start.len(),
            offset: true,
            gelu: Gelu::Tanh,
            norm: self.norm_weight.is_some(),
            raw: false,
            eps: NORM_EPS,
            bias: Bias::L2,
            map: Map::Same,
            momentum,
            renewed: Vec::new(),
        }
    }

    /// Gain and bias of the memory's layer norm.
    #[cfg(feature = "flex")]
    pub(super) fn norm_parts(&self) -> Option<[Tensor<2>; 2]> {
        let parts = self.norm_weight.as_ref().zip(self.norm_bias.as_ref());
        parts.map(|(gain, bias)| [gain.val(), bias.val()])
    }

    /// The dual form inside mini-batches of `size` tokens; the rows begin another one where `boundaries` says.
    #[cfg(feature = "flex")]
    fn by_kernel(
        &self,
        tokens: TttTokens,
        fast: &mut TttFast,
        boundaries: Vec<bool>,
        size: usize,
    ) -> Tensor<4> {
        let TttTokens { q, k, v, eta, scale } = tokens;
        let [b, h, t, _] = k.dims();
        let count = t / size;
        let open = (0..b).any(|row| !boundaries[(row + 1) * count - 1]);
        let momentum = fast.sum.is_some() || !boundaries.iter().all(|&boundary| boundary);
        let rows = size + 1 + usize::from(momentum);
        let sum = fast.sum.take().or_else(|| Some(fast.start.iter().map(Tensor::zeros_like).collect()));
        let descent = Descent {
            plan: plan(eta, scale, &boundaries, [count, size], momentum).reshape([b, h, count, rows * rows]),
            threshold: k.clone().narrow(3, 0, 1).detach(),
            norm: self.norm_parts(),
            sizes: None,
            running: fast.start.clone(),
            anchor: fast.start.clone(),
            momentum: if momentum { sum.unwrap_or_default() } else { Vec::new() },
            q,
            k,
            v,
        };
        // Between mini-batches only, W is what is carried.
        let renewed = vec![true; b * count];
        let learned = descent.run(Options { raw: true, renewed, ..self.options(fast, size, momentum) });
        *fast = TttFast { start: learned.running, sum: open.then_some(learned.momentum) };
        learned.y
    }

    /// The dual form inside one mini-batch.
    fn within(&self, tokens: TttTokens, fast: &mut TttFast) -> Tensor<4> {
        let TttTokens { q, k, v, eta, scale } = tokens;
        let factors = self.gradients(&fast.start, k, v);
        let causal = tril_ones(eta.dims()[2], 0, &eta.device(), eta.dtype()).unsqueeze::<4>();
        let weights = eta.clone().swap_dims(2, 3) * causal;
        let z = self.before_norm(q, &|i, x| {
            let Factor { left, right } = &factors[i];
            let scores = times_transposed(x.clone(), left.clone()) * weights.clone();
            let mut step = times(scores, right.clone());
            if let Some(sum) = &fast.sum {
                step = step + times(x.clone(), sum[i].clone());
            }
            times(x, fast.start[i].clone()) - step * scale.clone()
        });
        let more = factors.into_iter();
        let more = more.map(|Factor { left, right }| outer_sum(left * eta.clone(), right)).collect();
        fast.sum = Some(fast.grown(more));
        z
    }

    /// Operations per head and token; `run` tokens of a mini-batch at a time, or one by one.
    pub(super) fn flops(&self, run: Option<usize>) -> usize {
        let matrices = [Some(&self.w1), self.w2.as_ref()];
        let sizes = matrices.into_iter().flatten().map(|w| (w.dims()[1] + 1, w.dims()[2]));
        sizes
            .map(|(rows, cols)| match run {
                // Gradient, its sum, the weights, the read.
                None => 10 * rows * cols,
                Some(run) => 6 * rows * cols + 4 * run * (rows + cols),
            })
            .sum()
    }
}
