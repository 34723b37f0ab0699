//! The delta rule with momentum in all forms: linear in memory and momentum together, and so a system of twice the
//! size, but one whose `Λ` is not diagonal plus rank one; the chunks have an algorithm of their own.
//!
//! ```text
//! w_t = S_{t-1}ᵀ p_t - v_t,   M_t = μ_t M_{t-1} + k_t w_tᵀ,   S_t = α_t S_{t-1} - β_t M_t,   y_t = S_tᵀ q_t
//! [S; M]_t = [α I - β k pᵀ, -β μ I; k pᵀ, μ I] [S; M]_{t-1} + [β k; -k] v_tᵀ
//! ```
//!
//! On the CPU a [kernel](crate::kernels) goes from token to token in `Auto` and `Chunked` form. Elsewhere chunks do:
//! unrolled from a chunk's start, what was written at `s` enters `S_t` with the weight `γ_ts`, all ways of staying
//! momentum until `r` and memory from then on, so the chunk is solved as that of the delta rule is:
//!
//! ```text
//! A_tr = Π_{r<i≤t} α_i,   U_rs = Π_{s<i≤r} μ_i,   γ_ts = Σ_{s≤r≤t} A_tr β_r U_rs
//! S_t = A_t0 S_0 - γ_t0 M_0 - Σ_{s≤t} γ_ts k_s w_sᵀ,     M_t = U_t0 M_0 + Σ_{s≤t} U_ts k_s w_sᵀ
//! (I + L) W = (A_{t-1,0} p_t)ᵀ S_0 - (γ_{t-1,0} p_t)ᵀ M_0 - V,   L_ts = γ_{t-1,s} p_t·k_s  for s < t
//! ```

use burn::tensor::Tensor;

#[cfg(feature = "flex")]
use crate::kernels;
use crate::system::engine::{AUTO_CHUNK, chunks, unchunk};
use crate::system::inverse::unit_lower_inverse;
use crate::system::scan::{segment_sums, unbind};
use crate::system::{Form, Lengths, Spectrum, SpectrumKind};

/// The recurrence on one input.
#[derive(Clone, Debug)]
pub struct MomentumRule {
    /// `[b, h, t, n]`
    pub q: Tensor<4>,
    /// What is written, step size included: `[b, h, t, n]`
    pub k: Tensor<4>,
    /// `[b, h, t, p]`
    pub v: Tensor<4>,
    /// What is read before writing: `[b, h, t, n]`
    pub p: Tensor<4>,
    /// Decay of the memory: `[b, h, t]`, at most 0
    pub log_alpha: Tensor<3>,
    /// Decay of the momentum: `[b, h, t]`, at most 0
    pub log_mu: Tensor<3>,
    /// How much of the momentum is applied: `[b, h, t]`
    pub beta: Tensor<3>,
}

impl MomentumRule {
    /// Outputs `[b, h, t, p]` and the final state, from the state `[b, h, 2 n, p]`: memory above momentum.
    pub fn run(self, state: Tensor<4>, form: Form) -> (Tensor<4>, Tensor<4>) {
        let t = self.k.dims()[2];
        #[cfg(feature = "flex")]
        if kernels::enabled()
            && matches!(form, Form::Auto | Form::Chunked { .. })
            && let Some(found) = kernels::momentum::run(&self, &state)
        {
            return found;
        }
        match form {
            Form::Recurrent => self.recurrent(state),
            Form::Auto if t == 1 => self.recurrent(state),
            Form::Auto => self.chunked(state, AUTO_CHUNK.min(t)),
            Form::Parallel => self.chunked(state, t),
            Form::Chunked { size } => self.chunked(state, size.clamp(1, t)),
        }
    }

    /// Makes padded tokens leave memory and momentum untouched.
    pub fn gate_padding(self, lengths: &Lengths) -> Self {
        let t = self.k.dims()[2];
        let valid = lengths.valid(t, &self.k.device(), self.k.dtype()).unsqueeze_dim::<3>(1);
        Self {
            k: self.k * valid.clone().unsqueeze_dim::<4>(3),
            log_alpha: self.log_alpha * valid.clone(),
            log_mu: self.log_mu * valid.clone(),
            beta: self.beta * valid,
            ..self
        }
    }

    /// Implied attention `[b, h, t, t]`: the outputs for unit impulses.
    pub fn attention(self) -> Tensor<4> {
        let ([b, h, t, n], device, dtype) = (self.k.dims(), self.k.device().inner(), self.k.dtype());
        let v = Tensor::<2>::eye(t, &device).cast(dtype).reshape([1, 1, t, t]).expand([b, h, t, t]);
        Self { v, ..self }.run(Tensor::zeros([b, h, 2 * n, t], (&device, dtype)), Form::Auto).0
    }

    /// Eigenvalues of `Λ`: `α` and `μ` across the key, and along it two with the product `α μ` and the sum
    /// `α - β p·k + μ`.
    pub fn spectrum(&self) -> Spectrum {
        let wide = |x: &Tensor<3>| x.clone().unsqueeze_dim::<4>(3);
        let (alpha, mu) = (wide(&self.log_alpha).exp(), wide(&self.log_mu).exp());
        let gain = (self.p.clone() * self.k.clone()).sum_dim(3) * wide(&self.beta);
        let middle = (alpha.clone() + mu.clone() - gain).mul_scalar(0.5);
        let square = middle.clone().square() - alpha.clone() * mu.clone();
        let (apart, turned) = (square.clone().clamp_min(0.0).sqrt(), square.neg().clamp_min(0.0).sqrt());
        let re = vec![alpha.clone(), mu, middle.clone() + apart.clone(), middle - apart];
        let im = vec![alpha.zeros_like(), alpha.zeros_like(), turned.clone(), turned.neg()];
        Spectrum { re: Tensor::cat(re, 3), im: Some(Tensor::cat(im, 3)), kind: SpectrumKind::Exact }
    }

    /// The reference: one token at a time.
    fn recurrent(self, state: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
        let n = self.k.dims()[3];
        let column = |x: Tensor<4>| x.swap_dims(2, 3); // [b, h, 1, n] -> [b, h, n, 1]
        let scalars = |x: Tensor<3>| unbind(x.unsqueeze_dim::<4>(3), 2);
        let (alpha, mu, beta) =
            (scalars(self.log_alpha.exp()), scalars(self.log_mu.exp()), scalars(self.beta));
        let vectors = unbind(self.q, 2).into_iter().zip(unbind(self.k, 2)).zip(unbind(self.p, 2));
        let tokens = vectors.zip(unbind(self.v, 2)).zip(alpha).zip(mu).zip(beta);
        let (mut memory, mut momentum) = (state.clone().narrow(2, 0, n), state.narrow(2, n, n));
        let mut out = Vec::new();
        for ((((((q, k), p), v), alpha), mu), beta) in tokens {
            let miss = (column(p) * memory.clone()).sum_dim(2) - v; // w: [b, h, 1, p]
            momentum = mu * momentum + column(k) * miss;
            memory = alpha * memory - beta * momentum.clone();
            out.push((column(q) * memory.clone()).sum_dim(2));
        }
        (Tensor::cat(out, 2), Tensor::cat(vec![memory, momentum], 2))
    }

    fn chunked(self, state: Tensor<4>, size: usize) -> (Tensor<4>, Tensor<4>) {
        let [_, _, t, n] = self.k.dims();
        let [q, k, v, p] = [self.q, self.k, self.v, self.p].map(|x| chunks(x, size));
        // One entry more than tokens: 0 is the chunk's start.
        let scalars = |x: Tensor<3>| {
            let x = chunks(x.unsqueeze_dim::<4>(3), size);
            Tensor::cat(vec![x.clone().narrow(3, 0, 1).zeros_like(), x], 3) // [b, h, c, 1 + q, 1]
        };
        let kept = segment_sums(scalars(self.log_alpha)).exp(); // A
        let carried = segment_sums(scalars(self.log_mu)).exp(); // U
        let weights = kept.clone().matmul(scalars(self.beta) * carried.clone()); // γ
        let column = |x: &Tensor<5>, from: usize| x.clone().narrow(3, from, size).narrow(4, 0, 1);
        let square = |x: &Tensor<5>, from: usize| x.clone().narrow(3, from, size).narrow(4, 1, size);
        let last_row = |x: &Tensor<5>| x.clone().narrow(3, size, 1);
        // What x reads of the chunk's start, [S; M], at each token.
        let start = |x: &Tensor<5>, from: usize| {
            Tensor::cat(vec![x.clone() * column(&kept, from), x.clone() * column(&weights, from).neg()], 4)
        };
        let keys = k.clone().swap_dims(3, 4);

        let solve = unit_lower_inverse(p.clone().matmul(keys.clone()) * square(&weights, 0));
        let reads_state = solve.clone().matmul(start(&p, 0)); // [b, h, c, q, 2 n]
        let reads_input = solve.matmul(v).neg();

        // [S; M] ← carry [S; M] + local per chunk.
        let write = |x: &Tensor<5>| k.clone() * last_row(x).narrow(4, 1, size).swap_dims(3, 4);
        let writes = Tensor::cat(vec![write(&weights).neg(), write(&carried)], 4).swap_dims(3, 4);
        let eye = Tensor::<2>::eye(n, &state.device().inner()).cast(state.dtype()).reshape([1, 1, 1, n, n]);
        let diagonal = |x: &Tensor<5>| last_row(x).narrow(4, 0, 1) * eye.clone();
        let none = diagonal(&carried).zeros_like();
        let decay = blocks([diagonal(&kept), diagonal(&weights).neg()], [none, diagonal(&carried)]);
        let carry = decay + writes.clone().matmul(reads_state.clone());
        let local = writes.matmul(reads_input.clone());
        let mut state = state.unsqueeze_dim::<5>(2);
        let mut before = Vec::new();
        for (carry, local) in unbind(carry, 2).into_iter().zip(unbind(local, 2)) {
            before.push(state.clone());
            state = carry.matmul(state) + local;
        }
        let states = Tensor::cat(before, 2);

        let reads = reads_state.matmul(states.clone()) + reads_input; // W
        let scores = q.clone().matmul(keys) * square(&weights, 1);
        let y = start(&q, 1).matmul(states) - scores.matmul(reads);
        (unchunk(y, t), state.squeeze_dim(2))
    }
}

/// `[[a, b], [c, d]]` of `[.., n, n]` each.
fn blocks([a, b]: [Tensor<5>; 2], [c, d]: [Tensor<5>; 2]) -> Tensor<5> {
    Tensor::cat(vec![Tensor::cat(vec![a, b], 4), Tensor::cat(vec![c, d], 4)], 3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delta::delta_system;
    use crate::nn::l2_normalize;
    use crate::system::{System, Transition, Views, engine};
    use crate::testing::{Draw, gap, numbers};

    /// The same as a system of twice the size.
    fn dense(rule: MomentumRule) -> System {
        let n = rule.k.dims()[3];
        let wide = |x: Tensor<3>| x.unsqueeze_dim::<4>(3);
        let (alpha, mu, beta) = (wide(rule.log_alpha.exp()), wide(rule.log_mu.exp()), wide(rule.beta));
        let eye = Tensor::<2>::eye(n, &rule.k.device().inner()).cast(rule.k.dtype());
        let diagonal = |x: Tensor<4>| x.unsqueeze_dim::<5>(4) * eye.clone().reshape([1, 1, 1, n, n]);
        let correction = rule.k.clone().unsqueeze_dim::<5>(4) * rule.p.unsqueeze_dim::<5>(3); // k pᵀ
        let applied = beta.clone().unsqueeze_dim::<5>(4) * correction.clone();
        let lambda = blocks(
            [diagonal(alpha) - applied, diagonal(beta.clone() * mu.clone()).neg()],
            [correction, diagonal(mu)],
        );
        let q = Tensor::cat(vec![rule.q.clone(), rule.q.zeros_like()], 3);
        let write = Tensor::cat(vec![rule.k.clone() * beta, rule.k.neg()], 3);
        System::outer(Transition::Dense { lambda }, q, write, rule.v)
    }

    fn rule(seed: u64) -> (MomentumRule, Tensor<4>) {
        let mut draw = Draw::new(seed);
        let [q, k, p] = [0, 1, 2].map(|_| l2_normalize(draw.tensor::<4>([2, 3, 19, 5], -1.0, 1.0), 0.0));
        let v = draw.tensor::<4>([2, 3, 19, 4], -1.0, 1.0);
        let [log_alpha, log_mu] = [0, 1].map(|_| draw.tensor::<3>([2, 3, 19], -1.0, 0.0));
        let beta = draw.tensor::<3>([2, 3, 19], 0.0, 1.0);
        let state = draw.tensor::<4>([2, 3, 10, 4], -1.0, 1.0);
        (MomentumRule { q, k, v, p, log_alpha, log_mu, beta }, state)
    }

    #[test]
    fn the_chunks_and_the_dense_system_are_the_recurrence() {
        let (rule, state) = rule(1);
        let (expected, expected_last) = rule.clone().run(state.clone(), Form::Recurrent);
        for size in [1, 4, 7, 19] {
            let (y, last) = rule.clone().chunked(state.clone(), size);
            assert!(gap(y, expected.clone()) < 1e-5 && gap(last, expected_last.clone()) < 1e-5, "{size}");
        }
        let (y, last) = engine::run(dense(rule), state, Form::Recurrent).unwrap();
        assert!(gap(y, expected) < 1e-5 && gap(last, expected_last) < 1e-5);
    }

    #[test]
    fn its_views_are_those_of_the_dense_system() {
        let (rule, _) = rule(3);
        let views = Views::of_system(dense(rule.clone())).unwrap();
        assert!(gap(rule.clone().attention(), views.attention.unwrap()) < 1e-5);
        let pairs = |spectrum: Spectrum| -> Vec<(f64, f64)> {
            numbers(spectrum.re).into_iter().zip(numbers(spectrum.im.unwrap())).collect()
        };
        let (ours, theirs) = (pairs(rule.spectrum()), pairs(views.spectrum.unwrap()));
        let near = |a: &(f64, f64), b: &(f64, f64)| (a.0 - b.0).hypot(a.1 - b.1) < 1e-4;
        for (ours, theirs) in ours.chunks(4).zip(theirs.chunks(10)) {
            let all = ours.iter().all(|a| theirs.iter().any(|b| near(a, b)));
            let only = theirs.iter().all(|a| ours.iter().any(|b| near(a, b)));
            assert!(all && only, "{ours:?} for {theirs:?}");
        }
    }

    /// Momentum that is forgotten at once and applied in full leaves the gated delta rule, with the step size as its
    /// write strength.
    #[test]
    fn without_momentum_it_is_the_gated_delta_rule() {
        let (rule, state) = rule(2);
        let (eta, k, alpha) = (rule.beta.clone(), rule.k.clone(), rule.log_alpha.clone());
        let expected = delta_system(alpha.clone(), eta.clone(), rule.q.clone(), k.clone(), rule.v.clone());
        let memory = state.clone().narrow(2, 0, 5);
        let (expected, last) = engine::run(expected, memory, Form::Recurrent).unwrap();
        let rule = MomentumRule {
            k: k.clone() * eta.clone().unsqueeze_dim(3),
            p: k * alpha.exp().unsqueeze_dim(3),
            log_mu: eta.zeros_like() - 100.0,
            beta: eta.ones_like(),
            ..rule
        };
        for (y, end) in [rule.clone().run(state.clone(), Form::Recurrent), rule.chunked(state, 6)] {
            assert!(gap(y, expected.clone()) < 1e-5);
            assert!(gap(end.narrow(2, 0, 5), last.clone()) < 1e-5);
        }
    }
}
