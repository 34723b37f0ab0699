//! The memory's learning algorithm: decayed gradient descent with gradients at the chunk's start.
//!
//! ```text
//! A_t = α_t A_{t-1} - η_t ∇ℓ(W_c; k_t, v_t),     y_t = M(q_t; A_t)                (read after write)
//! W_c = A at the last position that is a multiple of C                             (C = 1: plain descent)
//! ```
//!
//! Inside a chunk `A` is affine in the factors `∇ = left rightᵀ`, so no `A_t` is formed (Miras sec. 3; `G` is
//! the product of decays between two tokens):
//!
//! ```text
//! G[t, i] = exp Σ_{i < s ≤ t} log α_s,     E[t, i] = G[t, i] η_i  for i ≤ t, else 0
//! X A_tᵀ = (exp Σ_{s ≤ t} log α_s) ∘ (X Aᵀ) - ((X rightᵀ) ∘ E) left
//! A_end  = (exp Σ log α) A - (E[end] ∘ left)ᵀ right
//! ```
//!
//! `C` belongs to the model: it changes the function. Both [`chunk_wise`] and [`recurrent`] compute that same
//! function from any position inside a chunk. The state is the running `A` and `W_c`; the decay since the
//! chunk's start need not be kept, because a continued chunk goes on from `A` itself.

use burn::tensor::{Tensor, TensorData};

use super::memory::{Factor, Memory, OutputGradient, outer_sum, times, times_transposed};
use crate::system::scan::{segment_sums, suffix, unbind};

/// What the memory is given, per token.
#[derive(Clone, Debug)]
pub(crate) struct Tokens {
    /// `[b, h, t, n]`
    pub(crate) q: Tensor<4>,
    /// `[b, h, t, n]`
    pub(crate) k: Tensor<4>,
    /// `[b, h, t, p]`
    pub(crate) v: Tensor<4>,
    /// Retention `log α ≤ 0`, `[b, h, t, 1]`
    pub(crate) log_alpha: Tensor<4>,
    /// Learning rate, `[b, h, t, 1]`
    pub(crate) eta: Tensor<4>,
    /// The bias's threshold, `[b, h, t, 1]`
    pub(crate) delta: Tensor<4>,
}

impl Tokens {
    fn map(self, f: impl Fn(Tensor<4>) -> Tensor<4>) -> Self {
        let Self { q, k, v, log_alpha, eta, delta } = self;
        let [q, k, v, log_alpha, eta, delta] = [q, k, v, log_alpha, eta, delta].map(f);
        Self { q, k, v, log_alpha, eta, delta }
    }

    /// Makes padding (`valid = 0`, `[b, 1, t, 1]`) leave the memory alone.
    pub(crate) fn gate_padding(mut self, valid: Tensor<4>) -> Self {
        self.log_alpha = self.log_alpha * valid.clone();
        self.eta = self.eta * valid;
        self
    }

    fn len(&self) -> usize {
        self.k.dims()[2]
    }

    /// One entry of `Tokens` per entry of axis 2.
    fn unbind(self) -> impl Iterator<Item = Self> {
        let Self { q, k, v, log_alpha, eta, delta } = self;
        let keys = unbind(q, 2).into_iter().zip(unbind(k, 2)).zip(unbind(v, 2));
        let gates = unbind(log_alpha, 2).into_iter().zip(unbind(eta, 2)).zip(unbind(delta, 2));
        keys.zip(gates).map(|(((q, k), v), ((log_alpha, eta), delta))| Self {
            q,
            k,
            v,
            log_alpha,
            eta,
            delta,
        })
    }
}

/// The fast weights, `[b, h, rows, cols]` per matrix.
#[derive(Clone, Debug)]
pub(crate) struct Fast {
    /// `A`: the memory now.
    pub(crate) running: Vec<Tensor<4>>,
    /// `W_c`: the memory at the start of the chunk.
    pub(crate) anchor: Vec<Tensor<4>>,
}

/// Where each row stands in its chunk, and which of a call's tokens are real.
#[derive(Clone, Debug)]
pub(crate) struct Clock {
    phases: Vec<usize>,
    chunk: usize,
    lengths: Option<Vec<usize>>,
}

impl Clock {
    /// For rows at `positions` and right-padded rows of `lengths` tokens.
    pub(crate) fn new(positions: &[usize], chunk: usize, lengths: Option<&[usize]>) -> Self {
        let phases = positions.iter().map(|p| p % chunk).collect();
        Self { phases, chunk, lengths: lengths.map(<[usize]>::to_vec) }
    }

    /// Tokens into the chunk, where all rows agree.
    pub(crate) fn phase(&self) -> Option<usize> {
        let first = self.phases.first().copied()?;
        self.phases.iter().all(|&phase| phase == first).then_some(first)
    }

    /// Which rows begin a chunk after `end` tokens of this call.
    pub(super) fn boundary(&self, end: usize) -> Vec<bool> {
        let real = |row: usize| self.lengths.as_ref().is_none_or(|lengths| end <= lengths[row]);
        let phases = self.phases.iter().enumerate();
        phases.map(|(row, phase)| real(row) && (phase + end).is_multiple_of(self.chunk)).collect()
    }

    /// Moves `W_c` to the running memory in the rows that begin a chunk after `end` tokens.
    fn refresh(&self, fast: &mut Fast, end: usize) {
        let rows = self.boundary(end);
        if rows.iter().all(|&row| row) {
            fast.anchor = fast.running.clone();
        } else if rows.iter().any(|&row| row) {
            let flags: Vec<f32> = rows.iter().map(|&row| f32::from(row)).collect();
            for (anchor, running) in fast.anchor.iter_mut().zip(&fast.running) {
                let options = (&anchor.device().inner(), anchor.dtype());
                let data = TensorData::new(flags.clone(), [rows.len(), 1, 1, 1]);
                let new = Tensor::<4>::from_data(data, options);
                let old = new.clone().neg().add_scalar(1.0);
                *anchor = anchor.clone() * old + running.clone() * new;
            }
        }
    }
}

/// One token as the recurrence sees it.
pub(crate) struct Seen<'a> {
    /// The token.
    pub(crate) token: Tokens,
    /// `M(k; W_c) - v`, `[b, h, 1, p]`
    pub(crate) residual: Tensor<4>,
    /// `A_{t-1}`
    pub(crate) before: Vec<Tensor<4>>,
    /// `A_t`
    pub(crate) after: &'a [Tensor<4>],
}

/// The reference: every `A_t` is formed. Shows each token to `observe`.
pub(crate) fn recurrent(
    memory: &Memory,
    gradient: OutputGradient<'_>,
    tokens: Tokens,
    mut fast: Fast,
    clock: &Clock,
    mut observe: impl FnMut(Seen<'_>),
) -> (Tensor<4>, Fast) {
    let mut out = Vec::with_capacity(tokens.len());
    for (t, token) in tokens.unbind().enumerate() {
        let Tokens { q, k, v, log_alpha, eta, delta } = token.clone();
        let (factors, residual) = memory.gradients(&fast.anchor, k, v, delta, gradient);
        let alpha = log_alpha.exp();
        let write = |(running, factor): (&Tensor<4>, Factor)| {
            running.clone() * alpha.clone() - outer_sum(factor.left * eta.clone(), factor.right)
        };
        let next = fast.running.iter().zip(factors).map(write).collect();
        let before = std::mem::replace(&mut fast.running, next);
        out.push(memory.read_at(&fast.running, q));
        observe(Seen { token, residual, before, after: &fast.running });
        clock.refresh(&mut fast, t + 1);
    }
    (Tensor::cat(out, 2), fast)
}

/// The decays of one chunk of `c` tokens.
struct Decays {
    /// `exp Σ_{s ≤ t} log α`, `[b, h, c, 1]`
    from_start: Tensor<4>,
    /// `E`, `[b, h, c, c]`
    pairs: Tensor<4>,
    /// `E[end]`, `[b, h, c, 1]`
    to_end: Tensor<4>,
    /// `exp Σ log α`, `[b, h, 1, 1]`
    total: Tensor<4>,
}

impl Decays {
    fn new(log_alpha: Tensor<4>, eta: Tensor<4>) -> Self {
        let size = eta.dims()[2];
        let from_start = log_alpha.clone().cumsum(2).exp();
        Self {
            total: from_start.clone().narrow(2, size - 1, 1),
            from_start,
            pairs: segment_sums(log_alpha.clone()).exp() * eta.clone().swap_dims(2, 3),
            to_end: suffix(log_alpha).exp() * eta,
        }
    }
}

/// The dual form: per chunk, products of all its tokens; nothing of the size of the memory per token.
/// All rows must be at the same phase.
pub(crate) fn chunk_wise(
    memory: &Memory,
    gradient: OutputGradient<'_>,
    tokens: Tokens,
    mut fast: Fast,
    clock: &Clock,
    phase: usize,
) -> (Tensor<4>, Fast) {
    let mut out = Vec::new();
    let mut end = 0;
    for (start, size, count) in pieces(phase, clock.chunk, tokens.len()) {
        let piece = tokens.clone().map(|x| x.narrow(2, start, size * count));
        let chunks: Vec<Tokens> = split(piece, size, count);
        for chunk in chunks {
            out.push(one_chunk(memory, gradient, chunk, &mut fast));
            end += size;
            clock.refresh(&mut fast, end);
        }
    }
    (Tensor::cat(out, 2), fast)
}

/// A call of `len` tokens as `(start, size, count)`: the rest of a chunk begun before, whole chunks, a rest.
pub(super) fn pieces(phase: usize, chunk: usize, len: usize) -> Vec<(usize, usize, usize)> {
    let first = if phase == 0 { 0 } else { (chunk - phase).min(len) };
    let whole = (len - first) / chunk;
    let last = len - first - whole * chunk;
    [(0, first, 1), (first, chunk, whole), (len - last, last, 1)]
        .into_iter()
        .filter(|(_, size, count)| size * count > 0)
        .collect()
}

/// `count` chunks of `size` tokens.
fn split(tokens: Tokens, size: usize, count: usize) -> Vec<Tokens> {
    if count == 1 {
        return vec![tokens];
    }
    // Chunks take the time axis, tokens and channels share the last one.
    let narrow = |x: Tensor<4>| {
        let [b, h, _, n] = x.dims();
        x.reshape([b, h, count, size * n])
    };
    let widen = |x: Tensor<4>| {
        let [b, h, _, flat] = x.dims();
        x.reshape([b, h, size, flat / size])
    };
    tokens.map(narrow).unbind().map(|chunk| chunk.map(widen)).collect()
}

fn one_chunk(memory: &Memory, gradient: OutputGradient<'_>, tokens: Tokens, fast: &mut Fast) -> Tensor<4> {
    let Tokens { q, k, v, log_alpha, eta, delta } = tokens;
    let (factors, _) = memory.gradients(&fast.anchor, k, v, delta, gradient);
    let decays = Decays::new(log_alpha, eta);
    let y = memory.read(q, &|i, x| {
        let Factor { left, right } = &factors[i];
        let scores = times_transposed(x.clone(), right.clone()) * decays.pairs.clone();
        let old = times_transposed(x, fast.running[i].clone()) * decays.from_start.clone();
        old - times(scores, left.clone())
    });
    for (running, Factor { left, right }) in fast.running.iter_mut().zip(factors) {
        let written = outer_sum(left * decays.to_end.clone(), right);
        *running = running.clone() * decays.total.clone() - written;
    }
    y
}

#[cfg(test)]
#[path = "inner_tests.rs"]
mod tests;
