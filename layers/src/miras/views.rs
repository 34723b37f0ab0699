//! What can be seen of a memory while it reads.
//!
//! Inner loss of each token before it is written, norm of the weights after it, norm of its inner gradient (the
//! surprise), all gates; the implied attention of a linear memory whose loss weighs all channels of a residual
//! alike; the spectrum of the linear part of the transition.

use burn::tensor::Tensor;

use super::algorithm::{implicit, implicit_system};
use super::inner::{Clock, Fast, Tokens, chunk_wise, recurrent};
use super::memory::{Factor, Memory, times_transposed};
use super::miras::{Learner, Miras};
use super::{Algorithm, GateAxis};
use crate::Result;
use crate::system::{Form, Gate, Run, Spectrum, SpectrumKind, State, Views};

/// Numbers per token, `[b, h, 1, 1]` each.
#[derive(Default)]
struct Trace {
    losses: Vec<Tensor<4>>,
    norms: Vec<Tensor<4>>,
    surprises: Vec<Tensor<4>>,
}

/// `Σ |W|²` of a matrix, `[b, h, 1, 1]`.
fn squares(w: &Tensor<4>) -> Tensor<4> {
    w.clone().square().sum_dim(3).sum_dim(2)
}

/// The root of the sum of terms, of which there is at least one.
fn root_of_sum(terms: impl Iterator<Item = Tensor<4>>) -> Option<Tensor<4>> {
    terms.reduce(|a, b| a + b).map(Tensor::sqrt)
}

/// `|left rightᵀ|²`, `[b, h, 1, 1]`.
fn rank_one_squares(factor: &Factor) -> Tensor<4> {
    squares(&factor.left) * squares(&factor.right)
}

impl Trace {
    /// A token of a linear memory with the squared error, by its residual.
    fn linear(&mut self, residual: &Tensor<4>, k: &Tensor<4>, memory: &Tensor<4>) {
        self.losses.push(squares(residual).mul_scalar(0.5));
        self.surprises.push((squares(residual) * squares(k)).sqrt());
        self.norms.push(squares(memory).sqrt());
    }
}

impl Miras {
    /// All views; the spectrum is α, the memory's own decay, except where the transition is a matrix.
    pub(super) fn look(&self, x: &Tensor<3>, mut state: State) -> Result<Views> {
        let clock = self.clock(&state, Run::default());
        let tokens = self.tokens(x, &mut state, Run::default())?;
        let alpha = tokens.step(0).log_alpha.clone().exp();
        let decay = Spectrum { re: alpha, im: None, kind: SpectrumKind::Frozen };
        let (trace, attention, spectrum) = match &self.memory {
            Learner::Descent(memory) => {
                let (trace, weights) = self.watch(memory, tokens.clone(), self.fast(memory, &state)?, &clock);
                (trace, self.attention(memory, tokens.clone(), weights, &clock), decay)
            }
            Learner::Implicit(memory) => {
                let (mut trace, mut w) = (Trace::default(), self.matrix(memory, &state)?);
                for token in tokens.clone().unbind() {
                    let residual = times_transposed(token.k.clone(), w.clone()) - token.v.clone();
                    w = implicit(&token, w, Form::Recurrent)?.1;
                    trace.linear(&residual, &token.k, &w);
                }
                let exact = Views::of_system(implicit_system(&tokens))?;
                match self.config.gates {
                    GateAxis::Head => (trace, exact.attention, exact.spectrum.unwrap_or(decay)),
                    _ => (trace, None, decay),
                }
            }
            Learner::LeastSquares(memory) => {
                let (solver, lambda) = (self.solver(), memory.lambda());
                let start = self.moments(memory, &state)?;
                let (mut trace, mut moments) = (Trace::default(), start.clone());
                for token in tokens.clone().unbind() {
                    let residual = solver.read(token.k.clone(), &lambda, &moments)? - token.v.clone();
                    moments = solver.run(&token, &lambda, moments, Form::Recurrent)?.1;
                    trace.linear(&residual, &token.k, &moments.values);
                }
                // With unit impulses for values, the outputs are the matrix.
                let impulses = Tokens { v: impulses(&tokens.k), ..tokens.clone() };
                let [b, h, t, n] = tokens.k.dims();
                let mut empty = start;
                empty.values = Tensor::zeros([b, h, t, n], (&tokens.k.device().inner(), tokens.k.dtype()));
                (trace, Some(solver.run(&impulses, &lambda, empty, Form::Auto)?.0), decay)
            }
        };
        let per_token = |list: Vec<Tensor<4>>| Tensor::cat(list, 2).squeeze_dim::<3>(3);
        let mut gates = self.named_gates(&tokens);
        let surprise = per_token(trace.surprises).swap_dims(1, 2);
        gates.push(Gate { name: "|∇ℓ| (surprise)".into(), values: surprise });
        Ok(Views {
            attention,
            spectrum: Some(spectrum),
            gates,
            router: None,
            memory_loss: Some(per_token(trace.losses)),
            memory_norm: Some(per_token(trace.norms)),
        })
    }

    /// Runs the memory token by token; also the weights of the residuals for [`Self::attention`].
    fn watch(
        &self,
        memory: &Memory,
        tokens: Tokens,
        fast: Fast,
        clock: &Clock,
    ) -> (Trace, Option<Vec<Tensor<4>>>) {
        let bias = self.config.bias;
        let gradient = |r, v, delta| bias.gradient(r, v, delta);
        let (mut trace, mut weights) = (Trace::default(), Some(Vec::new()));
        let rule = self.rule(memory, &gradient);
        recurrent(&rule, tokens, fast, clock, |seen| {
            let Tokens { k, v, delta, .. } = seen.token;
            let residual = memory.read_at(&seen.before.weights(&rule.map), k) - v.clone();
            trace.losses.push(bias.loss(residual, v, delta.clone()));
            trace.norms.extend(root_of_sum(seen.after.weights(&rule.map).iter().map(squares)));
            trace.surprises.extend(root_of_sum(seen.factors.iter().map(rank_one_squares)));
            weights = weights.take().zip(bias.weight(seen.residual, delta)).map(|(mut all, weight)| {
                all.push(weight);
                all
            });
        });
        (trace, weights)
    }

    /// Implied attention `[b, h, t, t]` of the linear memory, where the loss weighs all channels alike: with
    /// the weights `c_t` of `u_t = c_t r_t` frozen along the trajectory, `A` is linear in the values, and the
    /// outputs for unit impulses are the matrix.
    fn attention(
        &self,
        memory: &Memory,
        tokens: Tokens,
        weights: Option<Vec<Tensor<4>>>,
        clock: &Clock,
    ) -> Option<Tensor<4>> {
        let (config, [b, h, t, n]) = (&self.config, tokens.k.dims());
        // Gates per row weigh the channels of the values apart; the weights of inner steps differ.
        let alike = config.gates != GateAxis::Row && config.retention.is_linear();
        let one_step = config.algorithm.steps() == 1;
        let (Memory::Linear(_), Some(weights), true, true) = (memory, weights, alike, one_step) else {
            return None;
        };
        let empty = vec![Tensor::zeros([b, h, t, n], (&tokens.k.device().inner(), tokens.k.dtype()))];
        let momentum = match config.algorithm {
            Algorithm::Momentum { .. } => empty.clone(),
            _ => Vec::new(),
        };
        let fast = Fast { running: empty.clone(), anchor: empty, momentum };
        let tokens = Tokens { v: impulses(&tokens.k), delta: Tensor::cat(weights, 2), ..tokens };
        let bias = config.bias;
        let frozen = |r, v, weight| bias.frozen(r, v, weight);
        let rule = self.rule(memory, &frozen);
        let (y, _) = match clock.phase() {
            Some(phase) => chunk_wise(&rule, tokens, fast, clock, phase),
            None => recurrent(&rule, tokens, fast, clock, |_| {}),
        };
        Some(y)
    }

    fn named_gates(&self, tokens: &Tokens) -> Vec<Gate> {
        let gate = |name: &str, values: &Tensor<4>| {
            let [b, h, t, w] = values.dims();
            let values = values.clone().swap_dims(1, 2).reshape([b, t, h * w]);
            Gate { name: name.into(), values }
        };
        let many = tokens.gates.len() > 1;
        let mut gates = Vec::new();
        for (i, step) in tokens.gates.iter().enumerate() {
            let of = if many { format!(" of W{}", i + 1) } else { String::new() };
            if !self.gates.alpha.is_empty() {
                gates.push(gate(&format!("α (decay){of}"), &step.log_alpha.clone().exp()));
            }
            gates.push(gate(&format!("η (learning rate){of}"), &step.eta));
            if let Some(log_mu) = &step.log_mu {
                gates.push(gate(&format!("μ (momentum){of}"), &log_mu.clone().exp()));
            }
        }
        if self.delta.is_some() {
            gates.push(gate("δ (threshold)", &tokens.delta));
        }
        gates
    }
}

/// One unit impulse per token as values, `[b, h, t, t]`.
fn impulses(k: &Tensor<4>) -> Tensor<4> {
    let [b, h, t, _] = k.dims();
    let eye = Tensor::<2>::eye(t, &k.device().inner()).cast(k.dtype());
    eye.reshape([1, 1, t, t]).expand([b, h, t, t])
}
