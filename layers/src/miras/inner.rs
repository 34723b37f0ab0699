//! The memory's learning algorithm: decayed gradient descent with gradients at the chunk's start.
//!
//! ```text
//! A_t = α_t A_{t-1} - η_t ∇ℓ(W_c; k_t, v_t)                            gradient descent
//! S_t = μ_t S_{t-1} - η_t ∇ℓ(W_c; k_t, v_t),   A_t = α_t A_{t-1} + S_t    with momentum (Titans)
//! y_t = M(q_t; Φ(A_t))                                                  (read after write)
//! W_c = Φ(A) at the last position that is a multiple of C               (C = 1: plain descent)
//! ```
//!
//! Read at boundaries, `y_t = M(q_t; W_c)` with the `W_c` that token `t` may just have begun. With a lag token,
//! `W_c` is also renewed after the first token of a chunk (Miras Eq. 30 to 32). With several steps per token
//! (`C = 1`), each further step takes its gradient where the last one arrived, without decay.
//!
//! `C` belongs to the model: it changes the function. Both [`chunk_wise`] and [`recurrent`] compute that same
//! function from any position inside a chunk. The state is the running `A` (and `S`) and `W_c`; the decay since
//! the chunk's start need not be kept, because a continued chunk goes on from `A` itself.

use burn::tensor::{Tensor, TensorData};

use super::Bias;
use super::chunk::one_chunk;
use super::config::ReadAt;
use super::gates::{Axis, Step};
use super::memory::{Factor, Memory, OutputGradient, outer_sum};
use super::retention::Map;
#[cfg(all(feature = "flex", feature = "cube"))]
use crate::system::Lengths;
use crate::system::scan::unbind;

/// The four choices, ready to run.
pub(crate) struct Rule<'a> {
    pub(crate) memory: &'a Memory,
    /// The bias's `u`
    pub(crate) gradient: OutputGradient<'a>,
    /// The bias, unless `gradient` is something else's
    #[cfg_attr(not(feature = "flex"), allow(dead_code, reason = "only the kernel asks"))]
    pub(crate) bias: Option<Bias>,
    /// `Φ`
    pub(crate) map: Map,
    /// What the gates of each matrix act on
    pub(crate) axes: Vec<Axis>,
    /// Steps per token
    pub(crate) steps: usize,
    /// Which weights a token is read with
    pub(crate) read: ReadAt,
}

/// What the memory is given, per token.
#[derive(Clone, Debug)]
pub(crate) struct Tokens {
    /// `[b, h, t, n]`
    pub(crate) q: Tensor<4>,
    /// `[b, h, t, n]`
    pub(crate) k: Tensor<4>,
    /// `[b, h, t, p]`
    pub(crate) v: Tensor<4>,
    /// The bias's threshold, `[b, h, t, 1]`
    pub(crate) delta: Tensor<4>,
    /// Shared by all matrices, or one per matrix
    pub(crate) gates: Vec<Step>,
    /// 1 for real tokens, 0 for padding, `[b, 1, t, 1]`; `None` when all are real
    pub(crate) valid: Option<Tensor<4>>,
}

impl Tokens {
    fn map(self, f: impl Fn(Tensor<4>) -> Tensor<4>) -> Self {
        Self {
            gates: self.gates.iter().map(|step| step.each(|x| f(x.clone()))).collect(),
            valid: self.valid.map(&f),
            q: f(self.q),
            k: f(self.k),
            v: f(self.v),
            delta: f(self.delta),
        }
    }

    /// Makes padding (`valid = 0`, `[b, 1, t, 1]`) leave the memory alone.
    pub(crate) fn gate_padding(mut self, valid: Tensor<4>) -> Self {
        for step in &mut self.gates {
            *step = step.each(|gate| gate.clone() * valid.clone());
        }
        self.valid = Some(valid);
        self
    }

    pub(crate) fn len(&self) -> usize {
        self.k.dims()[2]
    }

    /// The gates of the `i`-th matrix.
    pub(crate) fn step(&self, i: usize) -> &Step {
        &self.gates[i.min(self.gates.len() - 1)]
    }

    /// One entry of `Tokens` per entry of axis 2.
    pub(super) fn unbind(self) -> Vec<Self> {
        let split = |x: &Tensor<4>| unbind(x.clone(), 2);
        let [q, k, v, delta] = [&self.q, &self.k, &self.v, &self.delta].map(split);
        let valid = self.valid.as_ref().map(split);
        let gates: Vec<_> = self.gates.iter().map(|step| step.each(split)).collect();
        let entry = |t: usize| Self {
            q: q[t].clone(),
            k: k[t].clone(),
            v: v[t].clone(),
            delta: delta[t].clone(),
            gates: gates.iter().map(|step| step.each(|x| x[t].clone())).collect(),
            valid: valid.as_ref().map(|valid| valid[t].clone()),
        };
        (0..self.len()).map(entry).collect()
    }
}

/// The fast weights, `[b, h, rows, cols]` per matrix.
#[derive(Clone, Debug)]
pub(crate) struct Fast {
    /// `A`: what is accumulated.
    pub(crate) running: Vec<Tensor<4>>,
    /// `A` at the start of the chunk, or `W_c` itself where the retention maps what is carried.
    pub(crate) anchor: Vec<Tensor<4>>,
    /// `S`; empty without momentum.
    pub(crate) momentum: Vec<Tensor<4>>,
}

impl Fast {
    /// The weights in use.
    pub(crate) fn weights(&self, map: &Map) -> Vec<Tensor<4>> {
        let pairs = self.running.iter().zip(&self.anchor).enumerate();
        pairs.map(|(i, (a, anchor))| map.weights(i, a.clone(), anchor)).collect()
    }
}

/// Where each row stands in its chunk, and which of a call's tokens are real.
#[derive(Clone, Debug)]
pub(crate) struct Clock {
    phases: Vec<usize>,
    chunk: usize,
    pub(super) lag: bool,
    lengths: Option<Vec<usize>>,
}

impl Clock {
    /// For rows at `positions` and right-padded rows of `lengths` tokens.
    pub(crate) fn new(positions: &[usize], chunk: usize, lengths: Option<&[usize]>) -> Self {
        let phases = positions.iter().map(|p| p % chunk).collect();
        Self { phases, chunk, lag: false, lengths: lengths.map(<[usize]>::to_vec) }
    }

    /// The same, with `W_c` renewed after the first token of each chunk too.
    pub(crate) fn with_lag(self, lag: bool) -> Self {
        Self { lag, ..self }
    }

    /// Tokens of a chunk.
    #[cfg(all(feature = "flex", feature = "cube"))]
    pub(super) fn chunk(&self) -> usize {
        self.chunk
    }

    /// 1 for real tokens of `t`, 0 for padding, `[b, 1, t, 1]`; `None` without lengths.
    #[cfg(all(feature = "flex", feature = "cube"))]
    pub(super) fn valid(&self, t: usize, like: &Tensor<4>) -> Option<Tensor<4>> {
        let lengths = Lengths(self.lengths.clone()?);
        Some(lengths.valid(t, &like.device(), like.dtype()).unsqueeze_dim::<3>(1).unsqueeze_dim(3))
    }

    /// Tokens into the chunk, where all rows agree.
    pub(crate) fn phase(&self) -> Option<usize> {
        let first = self.phases.first().copied()?;
        self.phases.iter().all(|&phase| phase == first).then_some(first)
    }

    /// Which rows begin a chunk (or end its lag token) after `end` tokens of this call.
    pub(super) fn boundary(&self, end: usize) -> Vec<bool> {
        let real = |row: usize| self.lengths.as_ref().is_none_or(|lengths| end <= lengths[row]);
        let begins = |place: usize| place == 0 || (self.lag && place == 1);
        let phases = self.phases.iter().enumerate();
        phases.map(|(row, phase)| real(row) && begins((phase + end) % self.chunk)).collect()
    }

    /// Whether a chunk begins after `end` tokens of this call, whose first token is learned before the others.
    #[cfg(feature = "flex")]
    pub(super) fn lags(&self, end: usize) -> bool {
        self.lag && self.phase().is_some_and(|phase| (phase + end).is_multiple_of(self.chunk))
    }

    /// [`Clock::boundary`] after so many tokens, row by row.
    #[cfg(feature = "flex")]
    pub(super) fn boundaries(&self, ends: impl Iterator<Item = usize>) -> Vec<bool> {
        let runs: Vec<_> = ends.map(|end| self.boundary(end)).collect();
        (0..self.phases.len()).flat_map(|row| runs.iter().map(move |rows| rows[row])).collect()
    }

    /// Moves `W_c` to the running memory in the rows that begin a chunk after `end` tokens.
    fn refresh(&self, map: &Map, fast: &mut Fast, end: usize) {
        let rows = self.boundary(end);
        if rows.iter().all(|&row| row) {
            *fast = map.boundary(fast);
        } else if rows.iter().any(|&row| row) {
            let flags: Vec<f32> = rows.iter().map(|&row| f32::from(row)).collect();
            let next = map.boundary(fast);
            let pick = |kept: &mut Vec<Tensor<4>>, next: Vec<Tensor<4>>| {
                for (kept, next) in kept.iter_mut().zip(next) {
                    let options = (&kept.device().inner(), kept.dtype());
                    let data = TensorData::new(flags.clone(), [rows.len(), 1, 1, 1]);
                    let new = Tensor::<4>::from_data(data, options);
                    let old = new.clone().neg().add_scalar(1.0);
                    *kept = kept.clone() * old + next * new;
                }
            };
            pick(&mut fast.running, next.running);
            pick(&mut fast.anchor, next.anchor);
        }
    }
}

/// One token as the recurrence sees it.
pub(crate) struct Seen<'a> {
    /// The token.
    pub(crate) token: Tokens,
    /// `M(k; W_c) - v` of the last step, `[b, h, 1, p]`
    pub(crate) residual: Tensor<4>,
    /// The last step's gradient
    pub(crate) factors: &'a [Factor],
    /// The memory before the token
    pub(crate) before: &'a Fast,
    /// The memory after it
    pub(crate) after: &'a Fast,
}

/// The reference: every `A_t` is formed. Shows each token to `observe`.
pub(crate) fn recurrent(
    rule: &Rule<'_>,
    tokens: Tokens,
    mut fast: Fast,
    clock: &Clock,
    mut observe: impl FnMut(Seen<'_>),
) -> (Tensor<4>, Fast) {
    let mut out = Vec::with_capacity(tokens.len());
    let mut before = fast.clone();
    for (t, token) in tokens.unbind().into_iter().enumerate() {
        let mut last = None;
        for step in 0..rule.steps {
            if step > 0 {
                clock.refresh(&rule.map, &mut fast, t + 1);
            }
            let start = rule.map.at_anchor(&fast.anchor);
            let (k, v, delta) = (token.k.clone(), token.v.clone(), token.delta.clone());
            let (factors, residual) = rule.memory.gradients(&start, k, v, delta, rule.gradient);
            for (i, factor) in factors.iter().enumerate() {
                write(rule.axes[i], token.step(i), &token, step == 0, i, factor, &mut fast);
            }
            last = Some((factors, residual));
        }
        let after = fast.clone();
        clock.refresh(&rule.map, &mut fast, t + 1);
        out.push(match rule.read {
            ReadAt::Token => rule.memory.read_at(&after.weights(&rule.map), token.q.clone()),
            ReadAt::Boundary => rule.memory.read_at(&rule.map.at_anchor(&fast.anchor), token.q.clone()),
        });
        if let Some((factors, residual)) = last {
            observe(Seen { token, residual, factors: &factors, before: &before, after: &after });
        }
        before = after;
    }
    (Tensor::cat(out, 2), fast)
}

/// One token's step of the `i`-th matrix.
fn write(axis: Axis, gate: &Step, token: &Tokens, decay: bool, i: usize, factor: &Factor, fast: &mut Fast) {
    let (left, right) = axis.of_factors(gate.eta.clone(), factor.left.clone(), factor.right.clone());
    let gradient = outer_sum(left, right);
    let kept = match decay {
        true => fast.running[i].clone() * axis.of_matrix(gate.log_alpha.clone().exp()),
        false => fast.running[i].clone(),
    };
    fast.running[i] = match (fast.momentum.get_mut(i), &gate.log_mu) {
        (Some(momentum), Some(log_mu)) => {
            *momentum = momentum.clone() * axis.of_matrix(log_mu.clone().exp()) - gradient;
            match &token.valid {
                Some(valid) => kept + momentum.clone() * valid.clone(),
                None => kept + momentum.clone(),
            }
        }
        _ => kept - gradient,
    };
}

/// The dual form: per chunk, products of all its tokens. All rows must be at the same phase.
pub(crate) fn chunk_wise(
    rule: &Rule<'_>,
    tokens: Tokens,
    mut fast: Fast,
    clock: &Clock,
    phase: usize,
) -> (Tensor<4>, Fast) {
    let mut out = Vec::new();
    let mut end = 0;
    for (start, size, count) in pieces(phase, clock.chunk, tokens.len()) {
        let piece = tokens.clone().map(|x| x.narrow(2, start, size * count));
        #[cfg(feature = "flex")]
        if let Some(options) = rule.kernel(&piece, clock, size) {
            out.push(rule.by_kernel(options, piece, &mut fast, clock, end));
            end += size * count;
            continue;
        }
        for chunk in split(piece, size, count) {
            // The lag token of a chunk is a chunk by itself.
            let begins = (phase + end).is_multiple_of(clock.chunk);
            let first = if clock.lag && begins && size > 1 { 1 } else { size };
            for (start, size) in [(0, first), (first, size - first)] {
                if size == 0 {
                    continue;
                }
                let part = chunk.clone().map(|x| x.narrow(2, start, size));
                let last = part.q.clone().narrow(2, size - 1, 1);
                let y = one_chunk(rule, part, &mut fast);
                end += size;
                clock.refresh(&rule.map, &mut fast, end);
                if rule.read == ReadAt::Token {
                    out.push(y);
                    continue;
                }
                // Only the last token may have begun a new W_c.
                if size > 1 {
                    out.push(y.narrow(2, 0, size - 1));
                }
                out.push(rule.memory.read_at(&rule.map.at_anchor(&fast.anchor), last));
            }
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
    tokens.map(narrow).unbind().into_iter().map(|chunk| chunk.map(widen)).collect()
}

#[cfg(test)]
#[path = "inner_tests.rs"]
mod tests;
