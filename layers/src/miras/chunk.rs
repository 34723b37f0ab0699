//! A chunk of tokens at once: nothing of the size of the memory is formed per token where a token's weights are a
//! multiple of what is accumulated. Where `fused` finds one, a kernel does all of it.
//!
//! With gradients at the chunk's start, `A` and the momentum `S` are affine in the factors `g = left rightᵀ`
//! (`B`, `N`: products of decays between two tokens, 0 for `i > t`; one set per gate channel):
//!
//! ```text
//! B[t, i] = exp Σ_{i < s ≤ t} log α_s,     N[t, i] = η_i exp Σ_{i < s ≤ t} log μ_s
//! A_t = b_t A + f_t S - Σ_i G[t, i] g_i,   b_t = exp Σ_{s ≤ t} log α_s
//! S_t = m_t S - Σ_i N[t, i] g_i,           m_t = exp Σ_{s ≤ t} log μ_s
//! plain:     G[t, i] = B[t, i] η_i,        f = 0
//! momentum:  G = B N,                      f = B m
//! X A_tᵀ = b_t ∘ (X Aᵀ) + f_t ∘ (X Sᵀ) - ((X rightᵀ) ∘ G) left                   (one gate per head)
//! rows:      the last term is Σ_i (x_t · right_i) G[t, i] ∘ left_i, with G per row
//! columns:   (X rightᵀ) ∘ G becomes Σ_c x_tc right_ic G_c[t, i], and b, f act on x
//! ```

use burn::tensor::Tensor;

use super::config::ReadAt;
use super::gates::{Axis, Step};
use super::inner::{Fast, Rule, Tokens};
use super::memory::{Factor, outer_sum, times, times_transposed};
use super::retention::Reads;
use crate::system::scan::segment_sums;

/// `[b, h, c, w] -> [b, h w, c, 1]`: every gate channel as a head.
fn columns(gate: Tensor<4>) -> Tensor<4> {
    match gate.dims() {
        [_, _, _, 1] => gate,
        [b, h, c, w] => gate.swap_dims(2, 3).reshape([b, h * w, c, 1]),
    }
}

/// `[b, h w, c, 1] -> [b, h, c, w]`
fn channels(columns: Tensor<4>, w: usize) -> Tensor<4> {
    let [b, heads, c, _] = columns.dims();
    if w == 1 { columns } else { columns.reshape([b, heads / w, w, c]).swap_dims(2, 3) }
}

/// `x y`, `[b, h, c, c]` by `[b, h, c, n]`; one token multiplies, because WebGPU's matrix product with a single
/// row is broken.
fn product(x: Tensor<4>, y: Tensor<4>) -> Tensor<4> {
    if x.dims()[2] == 1 { x * y } else { x.matmul(y) }
}

/// Entry `c - 1` of axis 2.
fn last(x: &Tensor<4>) -> Tensor<4> {
    let c = x.dims()[2];
    x.clone().narrow(2, c - 1, 1)
}

/// The decays of one chunk of `c` tokens with `w` gate channels.
pub(super) struct Decays {
    width: usize,
    /// `b`, `[b, h, c, w]`
    from_start: Tensor<4>,
    /// `G`, `[b, h w, c, c]`
    pairs: Tensor<4>,
    momentum: Option<Momentum>,
}

/// What momentum adds.
struct Momentum {
    /// `f`, `[b, h, c, w]`
    of_start: Tensor<4>,
    /// `N[end]`, `[b, h, c, w]`
    to_end: Tensor<4>,
    /// `m[end]`, `[b, h, 1, w]`
    total: Tensor<4>,
}

impl Decays {
    /// Where `valid` (`[b, 1, c, 1]`) is 0, `A` does not take up the momentum.
    pub(super) fn new(step: Step, valid: Option<&Tensor<4>>) -> Self {
        let Step { log_alpha, eta, log_mu } = step;
        let width = eta.dims()[3];
        let from_start = log_alpha.clone().cumsum(2).exp();
        let decay = segment_sums(columns(log_alpha)).exp();
        let eta = columns(eta).swap_dims(2, 3);
        let Some(log_mu) = log_mu else {
            return Self { width, from_start, pairs: decay * eta, momentum: None };
        };
        let decay = if let Some(valid) = valid { decay * valid.clone().swap_dims(2, 3) } else { decay };
        let kept = log_mu.clone().cumsum(2).exp();
        let written = segment_sums(columns(log_mu)).exp() * eta;
        let of_start = (decay.clone() * columns(kept.clone()).swap_dims(2, 3)).sum_dim(3);
        let momentum = Momentum {
            of_start: channels(of_start, width),
            to_end: channels(last(&written).swap_dims(2, 3), width),
            total: last(&kept),
        };
        Self { width, from_start, pairs: product(decay, written), momentum: Some(momentum) }
    }

    /// All of it as one matrix, for one gate channel: how the chunk's gradients, `A` and `S` make what every token is
    /// read with, and what `A` and `S` become, `[b, h, c + s, c + s]`.
    #[cfg(feature = "flex")]
    pub(super) fn plan(&self) -> Tensor<4> {
        let Self { from_start, pairs, momentum, .. } = self;
        let (pairs, from_start) = (pairs.clone(), from_start.clone());
        let Some(Momentum { of_start, to_end, total }) = momentum else {
            let reads = Tensor::cat(vec![pairs, from_start], 3);
            return Tensor::cat(vec![reads.clone(), last(&reads)], 2);
        };
        let reads = Tensor::cat(vec![pairs, from_start, of_start.clone()], 3);
        let to_end = to_end.clone().swap_dims(2, 3);
        let none = Tensor::zeros(total.dims(), (&total.device().inner(), total.dtype()));
        let kept = Tensor::cat(vec![to_end, none, total.clone()], 3);
        Tensor::cat(vec![reads.clone(), last(&reads), kept], 2)
    }

    /// `G` with the gate channels apart, `[b, h, w, c, c]`.
    fn pairs_by_channel(&self) -> Tensor<5> {
        let [b, heads, c, _] = self.pairs.dims();
        self.pairs.clone().reshape([b, heads / self.width, self.width, c, c])
    }

    /// `X A_tᵀ` for the tokens `t` of the chunk, without forming `A_t`.
    fn product(
        &self,
        axis: Axis,
        x: Tensor<4>,
        a: &Tensor<4>,
        s: Option<&Tensor<4>>,
        g: &Factor,
    ) -> Tensor<4> {
        let carried = |matrix: &Tensor<4>, decay: &Tensor<4>| match axis {
            Axis::Cols => times_transposed(x.clone() * decay.clone(), matrix.clone()),
            Axis::All | Axis::Rows => times_transposed(x.clone(), matrix.clone()) * decay.clone(),
        };
        let mut old = carried(a, &self.from_start);
        if let (Some(s), Some(momentum)) = (s, &self.momentum) {
            old = old + carried(s, &momentum.of_start);
        }
        let (left, right) = (g.left.clone(), g.right.clone());
        let new = match axis {
            Axis::All => times(times_transposed(x, right) * self.pairs.clone(), left),
            Axis::Rows => {
                let scores = times_transposed(x, right).unsqueeze_dim::<5>(2) * self.pairs_by_channel();
                let left = left.swap_dims(2, 3).unsqueeze_dim::<5>(3);
                (scores * left).sum_dim(4).squeeze_dim::<4>(4).swap_dims(2, 3)
            }
            Axis::Cols => {
                let (x, right) = (x.swap_dims(2, 3), right.swap_dims(2, 3));
                let scores = x.unsqueeze_dim::<5>(4) * right.unsqueeze_dim::<5>(3);
                let scores = (scores * self.pairs_by_channel()).sum_dim(2).squeeze_dim::<4>(2);
                times(scores, left)
            }
        };
        old - new
    }

    /// `A_t` for every token of the chunk, `[b c, h, rows, cols]`: tokens take the batch axis.
    fn matrices(&self, axis: Axis, a: &Tensor<4>, s: Option<&Tensor<4>>, g: &Factor) -> Tensor<4> {
        let [b, h, rows, cols] = a.dims();
        let c = self.from_start.dims()[2];
        // Gate channels outside, what shares one inside.
        let (w, shared) = (self.width, rows * cols / self.width);
        let inside = |x: Tensor<5>| -> Tensor<5> {
            match axis {
                Axis::All => x.reshape([b, h, c, 1, rows * cols]),
                Axis::Rows => x,
                Axis::Cols => x.swap_dims(3, 4),
            }
        };
        let outer = g.left.clone().unsqueeze_dim::<5>(4) * g.right.clone().unsqueeze_dim::<5>(3);
        let outer = inside(outer).swap_dims(2, 3).reshape([b, h * w, c, shared]);
        let new = product(self.pairs.clone(), outer).reshape([b, h, w, c, shared]).swap_dims(2, 3);
        let new: Tensor<5> = match axis {
            Axis::All => new.reshape([b, h, c, rows, cols]),
            Axis::Rows => new,
            Axis::Cols => new.swap_dims(3, 4),
        };
        let carried = |matrix: &Tensor<4>, decay: &Tensor<4>| {
            let decay: Tensor<5> = match axis {
                Axis::All | Axis::Rows => decay.clone().unsqueeze_dim(4),
                Axis::Cols => decay.clone().unsqueeze_dim(3),
            };
            matrix.clone().unsqueeze_dim::<5>(2) * decay
        };
        let mut all = carried(a, &self.from_start) - new;
        if let (Some(s), Some(momentum)) = (s, &self.momentum) {
            all = all + carried(s, &momentum.of_start);
        }
        tokens_as_rows(all)
    }

    /// Moves `A` and `S` to the chunk's end.
    fn write(&self, axis: Axis, a: &mut Tensor<4>, s: Option<&mut Tensor<4>>, g: Factor) {
        let written = |to_end: Tensor<4>| {
            let (left, right) = axis.of_factors(to_end, g.left.clone(), g.right.clone());
            outer_sum(left, right)
        };
        let to_end = channels(last(&self.pairs).swap_dims(2, 3), self.width);
        let mut new = a.clone() * axis.of_matrix(last(&self.from_start)) - written(to_end);
        if let (Some(s), Some(momentum)) = (s, &self.momentum) {
            new = new + s.clone() * axis.of_matrix(last(&momentum.of_start));
            *s = s.clone() * axis.of_matrix(momentum.total.clone()) - written(momentum.to_end.clone());
        }
        *a = new;
    }
}

/// `[b, h, c, m, n] -> [b c, h, m, n]`
fn tokens_as_rows(x: Tensor<5>) -> Tensor<4> {
    let [b, h, c, m, n] = x.dims();
    x.swap_dims(1, 2).reshape([b * c, h, m, n])
}

/// Reads and writes one chunk. All rows must be at the same place of it.
pub(super) fn one_chunk(rule: &Rule<'_>, tokens: Tokens, fast: &mut Fast) -> Tensor<4> {
    let Tokens { q, k, v, delta, gates, valid } = tokens;
    let start = rule.map.at_anchor(&fast.anchor);
    let (factors, _) = rule.memory.gradients(&start, k, v, delta, rule.gradient);
    let decays: Vec<Decays> = gates.into_iter().map(|step| Decays::new(step, valid.as_ref())).collect();
    let of = |i: usize| &decays[i.min(decays.len() - 1)];
    let y = match (rule.read, rule.map.reads()) {
        (ReadAt::Boundary, _) => rule.memory.read_at(&start, q),
        (ReadAt::Token, Reads::Linear) => {
            let scale: Vec<_> = fast.anchor.iter().enumerate().map(|(i, a)| rule.map.factor(i, a)).collect();
            rule.memory.read(q, &|i, x| {
                let a = (&fast.running[i], fast.momentum.get(i));
                let y = of(i).product(rule.axes[i], x, a.0, a.1, &factors[i]);
                if let Some(scale) = &scale[i] { y * scale.clone() } else { y }
            })
        }
        (ReadAt::Token, Reads::PerToken) => {
            let [b, h, c, n] = q.dims();
            let all = fast.running.iter().enumerate().map(|(i, a)| {
                let all = of(i).matrices(rule.axes[i], a, fast.momentum.get(i), &factors[i]);
                let [_, _, rows, cols] = a.dims();
                let anchor = fast.anchor[i].clone().unsqueeze_dim::<5>(2);
                rule.map.weights(i, all, &tokens_as_rows(anchor.expand([b, h, c, rows, cols])))
            });
            let all: Vec<_> = all.collect();
            let y = rule.memory.read_at(&all, tokens_as_rows(q.unsqueeze_dim::<5>(3)));
            y.reshape([b, c, h, n]).swap_dims(1, 2)
        }
    };
    for (i, factor) in factors.into_iter().enumerate() {
        of(i).write(rule.axes[i], &mut fast.running[i], fast.momentum.get_mut(i), factor);
    }
    y
}
