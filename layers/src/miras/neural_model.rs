//! The memory of [`super::NeuralMemory`] and how it learns: one step of gradient descent with momentum per chunk.
//!
//! ```text
//! M(x) = x + LN(gelu(x W1) W2) ∘ (1 + g)                                     W = (g, W1, W2), all of them fast
//! S_c = μ_c S_{c-1} - Σ_{t in chunk c} η_t ∇ mean (M(k_t; W_a) - v_t)²       mean over the channels
//! W_c = (1 - α_c) W_{c-1} + S_c
//! y_t = M(q_t; W)        W: after the last chunk that is complete with token t
//! ```
//!
//! `W_a` are the weights at the last refresh, so that between two of them `(W, S)` is a linear recurrence over
//! chunks, with the same two decays for all entries: all chunks at once, or token by token. Inside a chunk the
//! state also holds the gradient so far and the sums from which α and μ come.
//!
//! | symbol | shape |
//! | --- | --- |
//! | q, k, v, y | `[b, h, t, n]` |
//! | η; α and μ before mean and sigmoid | `[b, h, t, 1]`; `[b, h, t, 2]` |
//! | g; W1; W2 | `[b, h, 1, n]`; `[b, h, n, m]`; `[b, h, m, n]` |

use burn::module::{Module, Param};
use burn::tensor::{Tensor, TensorData};

use super::inner::Clock;
use super::layer_norm::Standardized;
use super::memory::{Factor, gelu, gelu_slope, outer_sum, times, times_transposed};
use super::ttt_memory::row_flags;
use crate::Init;
#[cfg(feature = "flex")]
use crate::delta::MomentumRule;
#[cfg(feature = "flex")]
use crate::kernels;
use crate::nn::log_sigmoid;
use crate::system::scan::{pad, shared_scan, unbind};

/// ε of the memory's layer norm.
const NORM_EPS: f64 = 1e-5;

/// The weights the memory starts from; matrices are input by output.
#[derive(Module, Debug)]
pub struct NeuralModel {
    /// `g: [h, n]`
    pub gain: Param<Tensor<2>>,
    /// `W1: [h, n, m]`
    pub w1: Param<Tensor<3>>,
    /// `W2: [h, m, n]`
    pub w2: Param<Tensor<3>>,
}

/// What the memory is given, per token.
#[derive(Clone, Debug)]
pub(super) struct NeuralTokens {
    pub(super) q: Tensor<4>,
    pub(super) k: Tensor<4>,
    pub(super) v: Tensor<4>,
    /// `η`
    pub(super) eta: Tensor<4>,
    /// What α and μ of the chunk are the sigmoid of the mean of.
    pub(super) gates: Tensor<4>,
}

impl NeuralTokens {
    fn narrow(&self, start: usize, size: usize) -> Self {
        let cut = |x: &Tensor<4>| x.clone().narrow(2, start, size);
        let Self { q, k, v, eta, gates } = self;
        Self { q: cut(q), k: cut(k), v: cut(v), eta: cut(eta), gates: cut(gates) }
    }

    fn unbind(self) -> impl Iterator<Item = Self> {
        let Self { q, k, v, eta, gates } = self;
        let keys = unbind(q, 2).into_iter().zip(unbind(k, 2)).zip(unbind(v, 2));
        let rates = unbind(eta, 2).into_iter().zip(unbind(gates, 2));
        keys.zip(rates).map(|(((q, k), v), (eta, gates))| Self { q, k, v, eta, gates })
    }
}

/// The fast weights, in the order of [`NAMES`].
#[derive(Clone, Debug)]
pub(super) struct NeuralFast {
    /// `W`
    pub(super) weights: Vec<Tensor<4>>,
    /// `S`
    pub(super) momentum: Vec<Tensor<4>>,
    /// `W_a`
    pub(super) anchor: Vec<Tensor<4>>,
    /// The gradient of the chunk so far.
    pub(super) gradient: Vec<Tensor<4>>,
    /// The sum of the chunk's gates so far, `[b, h, 1, 2]`
    pub(super) gates: Tensor<4>,
}

/// Names of the fast weights.
pub(super) const NAMES: [&str; 3] = ["gain", "w1", "w2"];

/// Tokens of a chunk and of a refresh of `W_a`, and where the rows stand.
#[derive(Clone, Debug)]
pub(super) struct NeuralClock {
    chunk: usize,
    refresh: Option<usize>,
    positions: Vec<usize>,
    lengths: Option<Vec<usize>>,
}

impl NeuralClock {
    pub(super) fn new(
        chunk: usize,
        refresh: Option<usize>,
        positions: &[usize],
        lengths: Option<&[usize]>,
    ) -> Self {
        Self { chunk, refresh, positions: positions.to_vec(), lengths: lengths.map(<[usize]>::to_vec) }
    }

    fn of(&self, size: usize) -> Clock {
        Clock::new(&self.positions, size, self.lengths.as_deref())
    }

    /// Whether all rows stand at the same place of their chunks and of their refreshes.
    pub(super) fn uniform(&self) -> bool {
        self.of(self.refresh.unwrap_or(self.chunk)).phase().is_some()
    }

    /// Tokens from `start` until `W_a` is refreshed next.
    fn until_refresh(&self, start: usize) -> usize {
        let position = self.positions.first().map_or(0, |position| position + start);
        self.refresh.map_or(usize::MAX, |refresh| refresh - position % refresh)
    }

    /// How many of `most` tokens from the call's token `start` on are whole chunks, if one starts there; with padding only of
    /// one token each.
    #[cfg(feature = "flex")]
    fn whole_chunks(&self, start: usize, most: usize) -> usize {
        let at = self.positions.first().map_or(0, |position| position + start);
        let whole = at.is_multiple_of(self.chunk) && (self.chunk == 1 || self.lengths.is_none());
        if whole { most / self.chunk * self.chunk } else { 0 }
    }

    /// Whether `row` has read `end` tokens of the call and no padding.
    fn real(&self, row: usize, end: usize) -> bool {
        self.lengths.as_ref().is_none_or(|lengths| end <= lengths[row])
    }
}

/// `new` in the marked rows, `old` in the others.
fn choose(rows: &[bool], new: Vec<Tensor<4>>, old: Vec<Tensor<4>>) -> Vec<Tensor<4>> {
    if rows.iter().all(|&row| row) {
        return new;
    }
    let pick = |(new, old): (Tensor<4>, Tensor<4>)| {
        let flags = row_flags(rows, &old);
        new * flags.clone() + old * flags.neg().add_scalar(1.0)
    };
    new.into_iter().zip(old).map(pick).collect()
}

/// `log (1 - α)` and `log μ` from the mean of the chunk's gates, `[b, h, c, 1]` each.
pub(super) fn log_decays(mean: Tensor<4>) -> [Tensor<4>; 2] {
    [log_sigmoid(mean.clone().narrow(3, 0, 1).neg()), log_sigmoid(mean.narrow(3, 1, 1))]
}

impl NeuralModel {
    /// Draws the initial weights of heads of `n` channels with `m` hidden ones.
    pub(super) fn new(heads: usize, n: usize, m: usize, init: &mut Init) -> Self {
        let bound = (6.0 / (n + m) as f64).sqrt();
        Self {
            gain: init.constant([heads, n], 0.0),
            w1: init.uniform([heads, n, m], -bound, bound),
            w2: init.uniform([heads, m, n], -bound, bound),
        }
    }

    /// The weights before any token.
    pub(super) fn initial(&self, batch: usize) -> Vec<Tensor<4>> {
        let [h, n, m] = self.w1.dims();
        // Flat, because graphics devices sum a turned gradient of rank 4 over its first axis wrongly.
        let expand = |flat: Tensor<2>, rows: usize, cols: usize| {
            flat.expand([batch, h * rows * cols]).reshape([batch, h, rows, cols])
        };
        vec![
            expand(self.gain.val().reshape([1, h * n]), 1, n),
            expand(self.w1.val().reshape([1, h * n * m]), n, m),
            expand(self.w2.val().reshape([1, h * m * n]), m, n),
        ]
    }

    /// The state before any token.
    pub(super) fn start(&self, batch: usize) -> NeuralFast {
        let weights = self.initial(batch);
        let zeros: Vec<_> = weights.iter().map(Tensor::zeros_like).collect();
        let like = &weights[0];
        let [b, h, ..] = like.dims();
        let gates = Tensor::zeros([b, h, 1, 2], (&like.device(), like.dtype()));
        NeuralFast { anchor: weights.clone(), momentum: zeros.clone(), gradient: zeros, weights, gates }
    }

    /// `M(x)`
    pub(super) fn read(weights: &[Tensor<4>], x: Tensor<4>) -> Tensor<4> {
        let z = times(gelu(times(x.clone(), weights[1].clone())), weights[2].clone());
        x + Standardized::of(z, NORM_EPS).normal * weights[0].clone().add_scalar(1.0)
    }

    /// The gradient of `mean (M(k) - v)²` for each weight.
    fn gradients(weights: &[Tensor<4>], k: Tensor<4>, v: Tensor<4>) -> [Factor; 3] {
        let n = k.dims()[3] as f64;
        let gain = weights[0].clone().add_scalar(1.0);
        let a = times(k.clone(), weights[1].clone());
        let s = gelu(a.clone());
        let z = Standardized::of(times(s.clone(), weights[2].clone()), NORM_EPS);
        let residual = k.clone() + z.normal.clone() * gain.clone() - v;
        let u = residual.mul_scalar(2.0 / n);
        let ones = k.clone().narrow(3, 0, 1).ones_like();
        let along = u.clone() * z.normal.clone();
        let dz = z.gradient(u * gain);
        let da = times_transposed(dz.clone(), weights[2].clone()) * gelu_slope(a);
        [Factor { left: ones, right: along }, Factor { left: k, right: da }, Factor { left: s, right: dz }]
    }

    /// The reference, token by token. Shows each token with the weights before and after it to `observe`.
    pub(super) fn recurrent(
        tokens: NeuralTokens,
        mut fast: NeuralFast,
        clock: &NeuralClock,
        mut observe: impl FnMut(&NeuralTokens, &[Tensor<4>], &[Tensor<4>]),
    ) -> (Tensor<4>, NeuralFast) {
        let (chunks, refreshes) = (clock.of(clock.chunk), clock.refresh.map(|size| clock.of(size)));
        let mut out = Vec::with_capacity(tokens.k.dims()[2]);
        for (t, token) in tokens.unbind().enumerate() {
            let factors = Self::gradients(&fast.anchor, token.k.clone(), token.v.clone());
            for (sum, Factor { left, right }) in fast.gradient.iter_mut().zip(factors) {
                *sum = sum.clone() + outer_sum(left * token.eta.clone(), right);
            }
            fast.gates = fast.gates + token.gates.clone();
            let before = fast.weights.clone();
            let rows = chunks.boundary(t + 1);
            if rows.iter().any(|&row| row) {
                fast.step(&rows, clock.chunk);
            }
            out.push(Self::read(&fast.weights, token.q.clone()));
            observe(&token, &before, &fast.weights);
            if let Some(refreshes) = &refreshes {
                let rows = refreshes.boundary(t + 1);
                if rows.iter().any(|&row| row) {
                    fast.anchor = choose(&rows, fast.weights.clone(), fast.anchor);
                }
            }
        }
        (Tensor::cat(out, 2), fast)
    }

    /// At most `size` tokens at a time; all rows must stand at the same place.
    pub(super) fn chunked(
        tokens: NeuralTokens,
        mut fast: NeuralFast,
        clock: &NeuralClock,
        size: usize,
    ) -> (Tensor<4>, NeuralFast) {
        let refreshes = clock.refresh.map(|size| clock.of(size));
        let (mut out, mut start, total) = (Vec::new(), 0, tokens.k.dims()[2]);
        while start < total {
            let most = clock.until_refresh(start).min(total - start);
            #[cfg(feature = "flex")]
            let (size, found) = match clock.whole_chunks(start, most) {
                0 => (size.min(most), None),
                whole => match Self::by_kernel(&tokens.narrow(start, whole), &mut fast, clock, start) {
                    Some(y) => (whole, Some(y)),
                    None => (size.min(most), None),
                },
            };
            #[cfg(not(feature = "flex"))]
            let (size, found) = (size.min(most), None);
            let together = || Self::together(tokens.narrow(start, size), &mut fast, clock, start);
            out.push(found.unwrap_or_else(together));
            start += size;
            if let Some(refreshes) = &refreshes {
                let rows = refreshes.boundary(start);
                if rows.iter().any(|&row| row) {
                    fast.anchor = choose(&rows, fast.weights.clone(), fast.anchor);
                }
            }
        }
        (Tensor::cat(out, 2), fast)
    }

    /// Whole chunks from the call's token `start` on. While `W_a` stays, every matrix is the memory of a
    /// [`MomentumRule`] that reads nothing before it writes: `left` is its key, and `η right` its value. It decays at a chunk's
    /// end and its momentum at a chunk's start. `None` where no kernel runs that.
    #[cfg(feature = "flex")]
    fn by_kernel(
        tokens: &NeuralTokens,
        fast: &mut NeuralFast,
        clock: &NeuralClock,
        start: usize,
    ) -> Option<Tensor<4>> {
        if !(kernels::enabled() && kernels::momentum::runs_on(&tokens.k)) {
            return None;
        }
        let NeuralTokens { q, k, v, eta, gates } = tokens.clone();
        let ([b, h, t, _], c) = (k.dims(), clock.chunk);
        let (device, dtype) = (k.device().inner(), k.dtype());
        let done = (0..b).flat_map(|row| (1..=t).map(move |end| (row, end)));
        let done = done.map(|(row, end)| f32::from(end % c == 0 && clock.real(row, start + end)));
        let done = TensorData::new(done.collect::<Vec<_>>(), [b, 1, t]);
        let done = Tensor::<3>::from_data(done, (&device, dtype)).expand([b, h, t]);
        let mean = gates.reshape([b, h * t / c, c, 2]).mean_dim(2).reshape([b, h, t / c, 2]);
        let [keep, momentum] = log_decays(mean);
        // With nothing for a chunk's other tokens.
        let spread = |log: Tensor<4>, last: bool| {
            let log = if c == 1 {
                log
            } else {
                let none = Tensor::zeros([b, h, t / c, c - 1], (&device, dtype));
                Tensor::cat(if last { vec![none, log] } else { vec![log, none] }, 3)
            };
            log.reshape([b, h, t])
        };
        let log_alpha = spread(keep, true) * done.clone();
        let mut log_mu = spread(momentum, false);
        if c == 1 {
            log_mu = log_mu * done.clone();
        }
        let rule = |q: Tensor<4>, Factor { left, right }: Factor, index: usize| {
            let [weights, momentum] = [&fast.weights, &fast.momentum].map(|list| list[index].clone());
            let rows = weights.dims()[2];
            let rule = MomentumRule {
                q,
                p: left.zeros_like(),
                k: left,
                v: right * eta.clone(),
                log_alpha: log_alpha.clone(),
                log_mu: log_mu.clone(),
                beta: done.clone().neg(),
            };
            let (y, last) = kernels::momentum::run(&rule, &Tensor::cat(vec![weights, momentum], 2))?;
            Some((y, [last.clone().narrow(2, 0, rows), last.narrow(2, rows, rows)]))
        };
        let [gain, first, second] = Self::gradients(&fast.anchor, k, v);
        let (gain, new_gain) = rule(gain.left.clone(), gain, 0)?;
        let (a, new_first) = rule(q.clone(), first, 1)?;
        let (z, new_second) = rule(gelu(a), second, 2)?;
        for (i, [weights, momentum]) in [new_gain, new_first, new_second].into_iter().enumerate() {
            (fast.weights[i], fast.momentum[i]) = (weights, momentum);
        }
        Some(q + Standardized::of(z, NORM_EPS).normal * gain.add_scalar(1.0))
    }

    /// All `tokens`, from the call's token `start` on, at once.
    fn together(tokens: NeuralTokens, fast: &mut NeuralFast, clock: &NeuralClock, start: usize) -> Tensor<4> {
        let NeuralTokens { q, k, v, eta, gates } = tokens;
        let ([b, h, t, _], c) = (k.dims(), clock.chunk);
        let phase = (clock.positions[0] + start) % c;
        let chunks = (phase + t).div_ceil(c);
        // The chunk begun before is filled up with nothing on the left, the last one on the right.
        let split = |x: Tensor<4>, before: usize, chunks: usize| {
            let width = x.dims()[3];
            shift(x, before, chunks * c).reshape([b, h * chunks, c, width])
        };
        let done: Vec<f32> = (0..b)
            .flat_map(|row| (1..=chunks).map(move |chunk| (row, chunk * c - phase)))
            .map(|(row, end)| f32::from(end <= t && clock.real(row, start + end)))
            .collect();
        let done = Tensor::<4>::from_data(
            TensorData::new(done, [b, 1, chunks, 1]),
            (&k.device().inner(), k.dtype()),
        );
        let open = done.clone().neg().add_scalar(1.0);

        let sums = split(gates, phase, chunks).sum_dim(2).reshape([b, h, chunks, 2]);
        let sums = add_first(sums, fast.gates.clone());
        let decays = log_decays(sums.clone().mul_scalar(1.0 / c as f64));
        let [keep, momentum] = decays.map(|log| (log * done.clone()).reshape([b * h, chunks, 1]));
        fast.gates = (sums * open.clone()).sum_dim(2);

        let factors = Self::gradients(&fast.anchor, k, v);
        let mut weights = Vec::with_capacity(factors.len());
        for (i, Factor { left, right }) in factors.into_iter().enumerate() {
            let [.., rows, cols] = fast.weights[i].dims();
            let flat = |x: &Tensor<4>| x.clone().reshape([b, h, 1, rows * cols]);
            let single = |x: &Tensor<4>| x.clone().reshape([b * h, 1, rows * cols]);
            let gradient = outer_sum(split(left * eta.clone(), phase, chunks), split(right, phase, chunks));
            let gradient = add_first(gradient.reshape([b, h, chunks, rows * cols]), flat(&fast.gradient[i]));
            let rows_of = |x: Tensor<4>| x.reshape([b * h, chunks, rows * cols]);
            let write = rows_of(gradient.clone() * done.clone().neg());
            let s = shared_scan(momentum.clone(), write, single(&fast.momentum[i]));
            let s_after = s.clone().narrow(1, 1, chunks).reshape([b, h, chunks, rows * cols]);
            let w = shared_scan(keep.clone(), rows_of(s_after * done.clone()), single(&fast.weights[i]));
            let last = |x: &Tensor<3>| x.clone().narrow(1, chunks, 1).reshape([b, h, rows, cols]);
            (fast.momentum[i], fast.weights[i]) = (last(&s), last(&w));
            fast.gradient[i] = (gradient * open.clone()).sum_dim(2).reshape([b, h, rows, cols]);
            weights.push(w.reshape([b, h * (chunks + 1), rows, cols]));
        }
        // The last token of a chunk already reads what the chunk has written.
        let n = q.dims()[3];
        let y = Self::read(&weights, split(q, phase + 1, chunks + 1));
        y.reshape([b, h, (chunks + 1) * c, n]).narrow(2, phase + 1, t)
    }

    /// Operations per head and token, in chunks of `chunk` tokens.
    pub(super) fn flops(&self, chunk: usize) -> usize {
        let [_, n, m] = self.w1.dims();
        // Gradient and read; the momentum and the decay once per chunk.
        14 * n * m + 8 * n * m / chunk
    }
}

impl NeuralFast {
    /// Ends a chunk of `chunk` tokens in the marked rows.
    fn step(&mut self, rows: &[bool], chunk: usize) {
        let [keep, momentum] = log_decays(self.gates.clone().mul_scalar(1.0 / chunk as f64)).map(Tensor::exp);
        let pairs = self.momentum.iter().zip(&self.gradient);
        let s: Vec<_> = pairs.map(|(s, g)| s.clone() * momentum.clone() - g.clone()).collect();
        let pairs = self.weights.iter().zip(&s);
        let w = pairs.map(|(w, s)| w.clone() * keep.clone() + s.clone()).collect();
        let zeros = self.gradient.iter().map(Tensor::zeros_like).collect();
        let take = std::mem::take;
        self.momentum = choose(rows, s, take(&mut self.momentum));
        self.weights = choose(rows, w, take(&mut self.weights));
        self.gradient = choose(rows, zeros, take(&mut self.gradient));
        let open = row_flags(rows, &self.gates).neg().add_scalar(1.0);
        self.gates = self.gates.clone() * open;
    }
}

/// Zeros around `x: [b, h, t, n]`: `before` on the left, and on the right up to `length`.
fn shift(x: Tensor<4>, before: usize, length: usize) -> Tensor<4> {
    let [b, h, _, n] = x.dims();
    if before == 0 {
        return pad(x, 2, length);
    }
    let zeros = Tensor::zeros([b, h, before, n], (&x.device().inner(), x.dtype()));
    pad(Tensor::cat(vec![zeros, x], 2), 2, length)
}

/// `x: [b, h, c, m]` with `first: [b, h, 1, m]` added to its first entry.
fn add_first(x: Tensor<4>, first: Tensor<4>) -> Tensor<4> {
    let count = x.dims()[2];
    x + pad(first, 2, count)
}
