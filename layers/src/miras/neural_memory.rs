//! The neural memory of titans-pytorch: Titans (Behrouz et al., arXiv 2501.00663) as most people run it.
//!
//! ```text
//! x̂ = rmsnorm(x) to store, x̌ = rmsnorm(x) to retrieve, each with its own gain
//! k, v = W x̂_t,   q = W_q x̌_t,   η_t = max_lr sigmoid(w·x̂_t + b)
//! α_c, μ_c = sigmoid(w·mean_{t in chunk c} x̂_t + b)                      α forgets, μ keeps momentum
//! S_c = μ_c S_{c-1} - Σ_{t in c} η_t ∇ mean (M(k_t; W_a) - v_t)²
//! W_c = (1 - α_c) W_{c-1} + S_c,    y_t = M(q_t; W of the last chunk complete at t)
//! M(x) = x + LN(gelu(x W1) W2) ∘ (1 + g)
//! out = W_o (y ∘ sigmoid(W_r x̌))                          one gate per head; y itself where there is one head
//! ```
//!
//! Where that implementation differs from the paper: gates of retention and momentum are shared by a chunk, the
//! norm's gain is learned in the loop too, the loss is a mean over channels, and gradients are taken at `W_a`,
//! the weights at the last multiple of `refresh` tokens (its `batch_size`), which without one stay the learned
//! initial weights: then the memory is linear in its past, and only its readout is not.
//! `neural_model` has both forms of the recurrence.
//!
//! | symbol | shape |
//! | --- | --- |
//! | q, k, v, y | `[b, h, t, n]` (`n` = `head_dim`) |
//! | η; α, μ | `[b, h, t, 1]`; one per head and chunk |
//! | W, S | `[b, h, 1, n]`, `[b, h, n, m]`, `[b, h, m, n]` |

use burn::module::Module;
use burn::tensor::{Tensor, activation};
use serde::{Deserialize, Serialize};

use super::neural_model::{NAMES, NeuralClock, NeuralFast, NeuralModel, NeuralTokens, log_decays};
use crate::error::require;
use crate::nn::{Linear, RmsNorm, merge_heads, split_heads};
use crate::system::{Cost, Form, Gate, Mixer, Run, Spectrum, SpectrumKind, State, Views};
use crate::{Error, Init, Result};

const NAME: &str = "titans_neural_memory";
/// Tokens [`Form::Auto`] takes at once: every chunk's weights are kept for them.
const AUTO_TOKENS: usize = 256;

/// Sizes and switches of [`NeuralMemory`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NeuralMemoryConfig {
    /// Heads, each with a memory of its own. With several, outputs are gated and projected.
    pub heads: usize,
    /// Size `n` of queries, keys and values of a head; the layer's width where there is one head.
    pub head_dim: usize,
    /// Hidden width of the memory over head width.
    pub expansion: usize,
    /// Tokens per step of the memory. Part of the model, unlike the size in [`Form::Chunked`].
    pub chunk: usize,
    /// Tokens, a multiple of `chunk`, after which gradients are taken at the new weights; `None` for never.
    pub refresh: Option<usize>,
    /// Largest learning rate.
    pub max_lr: f64,
    /// The memory starts by forgetting `sigmoid(forget_bias)` in each step.
    pub forget_bias: f64,
    /// The memory starts by keeping `sigmoid(momentum_bias)` of its momentum in each step.
    pub momentum_bias: f64,
    /// Added to the mean square in the norms before the memory.
    pub norm_eps: f64,
}

impl Default for NeuralMemoryConfig {
    fn default() -> Self {
        Self {
            heads: 4,
            head_dim: 32,
            expansion: 2,
            chunk: 1,
            refresh: None,
            max_lr: 0.1,
            forget_bias: -3.0,
            momentum_bias: 0.0,
            norm_eps: 1e-6,
        }
    }
}

impl NeuralMemoryConfig {
    /// Checks the values and draws the parameters for width `d_model`.
    ///
    /// # Errors
    /// For zero sizes, a single head of another width than the layer's, or a refresh inside a chunk.
    pub fn init(&self, d_model: usize, init: &mut Init) -> Result<NeuralMemory> {
        let (d, h, n) = (d_model, self.heads, self.head_dim);
        require(d > 0, NAME, "d_model", d, "must be positive")?;
        require(h > 0, NAME, "heads", h, "must be positive")?;
        require(n > 0, NAME, "head_dim", n, "must be positive")?;
        let expected = format!("must be the layer's width {d}, as there is one head");
        require(h > 1 || n == d, NAME, "head_dim", n, &expected)?;
        require(self.expansion > 0, NAME, "expansion", self.expansion, "must be positive")?;
        require(self.chunk > 0, NAME, "chunk", self.chunk, "must be at least 1")?;
        if let Some(refresh) = self.refresh {
            let whole = refresh > 0 && refresh.is_multiple_of(self.chunk);
            let expected = format!("must be a multiple of `chunk` = {}", self.chunk);
            require(whole, NAME, "refresh", refresh, &expected)?;
        }
        let lr_ok = self.max_lr >= 0.0 && self.max_lr.is_finite();
        require(lr_ok, NAME, "max_lr", self.max_lr, "must be finite and not negative")?;
        for (field, bias) in [("forget_bias", self.forget_bias), ("momentum_bias", self.momentum_bias)] {
            require(bias.is_finite(), NAME, field, bias, "must be finite")?;
        }
        require(self.norm_eps > 0.0, NAME, "norm_eps", self.norm_eps, "must be positive")?;
        let mut gate = |bias: f64| Linear {
            weight: init.normal([d, h], 0.02),
            bias: Some(init.constant([h], bias as f32)),
        };
        let (step_proj, forget_proj, momentum_proj) =
            (gate(0.0), gate(self.forget_bias), gate(self.momentum_bias));
        Ok(NeuralMemory {
            store_norm: RmsNorm::new(d, self.norm_eps, init),
            retrieve_norm: RmsNorm::new(d, self.norm_eps, init),
            q_proj: init.linear(d, h * n),
            k_proj: init.linear(d, h * n),
            v_proj: init.linear(d, h * n),
            step_proj,
            forget_proj,
            momentum_proj,
            memory: NeuralModel::new(h, n, self.expansion * n, init),
            gate_proj: (h > 1).then(|| init.linear(d, h)),
            out_proj: (h > 1).then(|| init.linear(h * n, d)),
            config: self.clone(),
            d_model,
        })
    }
}

/// The layer; see the module's equations. Built by [`NeuralMemoryConfig::init`].
#[derive(Module, Debug)]
pub struct NeuralMemory {
    /// Norm before keys, values and the memory's gates
    pub store_norm: RmsNorm,
    /// Norm before queries and the output's gate
    pub retrieve_norm: RmsNorm,
    /// `W_q: [d, h n]`
    pub q_proj: Linear,
    /// `W_k: [d, h n]`
    pub k_proj: Linear,
    /// `W_v: [d, h n]`
    pub v_proj: Linear,
    /// of η: `[d, h]`, `[h]`
    pub step_proj: Linear,
    /// of α: `[d, h]`, `[h]`
    pub forget_proj: Linear,
    /// of μ: `[d, h]`, `[h]`
    pub momentum_proj: Linear,
    /// What is trained while reading
    pub memory: NeuralModel,
    /// `W_r: [d, h]`, with several heads
    pub gate_proj: Option<Linear>,
    /// `W_o: [h n, d]`, with several heads
    pub out_proj: Option<Linear>,
    #[module(skip)]
    config: NeuralMemoryConfig,
    #[module(skip)]
    d_model: usize,
}

/// Slot of the sum of a chunk's gates.
const GATES: &str = "chunk_gates";

impl NeuralMemory {
    /// What the memory is given, with padding switched off, and `x̌`.
    fn tokens(&self, x: &Tensor<3>, run: Run<'_>) -> (NeuralTokens, Tensor<3>) {
        let (store, retrieve) = (self.store_norm.forward(x.clone()), self.retrieve_norm.forward(x.clone()));
        let heads = |z: Tensor<3>| split_heads(z, self.config.heads);
        let gate = |proj: &Linear| proj.forward(store.clone()).swap_dims(1, 2).unsqueeze_dim::<4>(3);
        let mut eta = activation::sigmoid(gate(&self.step_proj)).mul_scalar(self.config.max_lr);
        let mut gates = Tensor::cat(vec![gate(&self.forget_proj), gate(&self.momentum_proj)], 3);
        if let Some(lengths) = run.lengths {
            let valid = lengths.valid(x.dims()[1], &x.device(), x.dtype());
            let valid = valid.unsqueeze_dim::<3>(1).unsqueeze_dim::<4>(3);
            (eta, gates) = (eta * valid.clone(), gates * valid);
        }
        let tokens = NeuralTokens {
            q: heads(self.q_proj.forward(retrieve.clone())),
            k: heads(self.k_proj.forward(store.clone())),
            v: heads(self.v_proj.forward(store.clone())),
            eta,
            gates,
        };
        (tokens, retrieve)
    }

    fn clock(&self, state: &State, lengths: Option<&[usize]>) -> NeuralClock {
        NeuralClock::new(self.config.chunk, self.config.refresh, state.positions(), lengths)
    }

    /// The fast weights in a state.
    fn fast(&self, state: &State) -> Result<NeuralFast> {
        let get = |name: &str, like: &Tensor<4>| {
            let tensor = state.get::<4>(name)?;
            if tensor.dims() == like.dims() {
                return Ok(tensor);
            }
            Err(Error::shape(format!("state slot `{name}`"), format!("{:?}", like.dims()), &tensor.dims()))
        };
        let start = self.memory.start(state.batch());
        let all = |suffix: &str| {
            let names = NAMES.iter().zip(&start.weights);
            names.map(|(name, like)| get(&format!("{name}{suffix}"), like)).collect::<Result<Vec<_>>>()
        };
        let (weights, momentum) = (all("")?, all("_momentum")?);
        let whole = self.config.chunk == 1;
        let gradient = if whole { start.gradient.clone() } else { all("_gradient")? };
        let gates = if whole { start.gates.clone() } else { get(GATES, &start.gates)? };
        let anchor = match self.config.refresh {
            None => start.anchor.clone(),
            Some(1) => weights.clone(),
            Some(_) => all("_anchor")?,
        };
        Ok(NeuralFast { weights, momentum, anchor, gradient, gates })
    }

    fn put(&self, state: &mut State, fast: NeuralFast) {
        let mut all = |suffix: &str, list: Vec<Tensor<4>>| {
            for (name, tensor) in NAMES.iter().zip(list) {
                state.put(&format!("{name}{suffix}"), tensor);
            }
        };
        all("", fast.weights);
        all("_momentum", fast.momentum);
        // A chunk of one token is never left open, and without a refresh the anchor stays the learned start.
        if self.config.chunk > 1 {
            all("_gradient", fast.gradient);
        }
        if self.config.refresh.is_some_and(|refresh| refresh > 1) {
            all("_anchor", fast.anchor);
        }
        if self.config.chunk > 1 {
            state.put(GATES, fast.gates);
        }
    }

    /// The layer's output from the memory's, `y: [b, h, t, n]`.
    fn readout(&self, y: Tensor<4>, retrieve: Tensor<3>) -> Tensor<3> {
        let y = match &self.gate_proj {
            Some(gate) => {
                let gate = activation::sigmoid(gate.forward(retrieve));
                y * gate.swap_dims(1, 2).unsqueeze_dim::<4>(3)
            }
            None => y,
        };
        let y = merge_heads(y);
        if let Some(out_proj) = &self.out_proj { out_proj.forward(y) } else { y }
    }
}

impl Mixer for NeuralMemory {
    fn d_model(&self) -> usize {
        self.d_model
    }

    /// The memory starts from its learned weights.
    fn initial_state(&self, batch: usize) -> State {
        let mut state = State::new(batch);
        self.put(&mut state, self.memory.start(batch));
        state
    }

    /// `Recurrent` goes token by token; every other form takes many chunks at once, except where rows stand at
    /// different places of theirs (after ragged padding).
    fn run(&self, x: Tensor<3>, mut state: State, run: Run<'_>) -> Result<(Tensor<3>, State)> {
        let fast = self.fast(&state)?;
        let clock = self.clock(&state, run.lengths.map(|lengths| lengths.0.as_slice()));
        let time = x.dims()[1];
        let (tokens, retrieve) = self.tokens(&x, run);
        let size = match run.form {
            Form::Recurrent => None,
            Form::Chunked { size } => Some(size.max(1)),
            Form::Parallel => Some(time),
            Form::Auto => Some(AUTO_TOKENS),
        };
        let (y, fast) = match size {
            Some(size) if time > 1 && clock.uniform() => NeuralModel::chunked(tokens, fast, &clock, size),
            _ => NeuralModel::recurrent(tokens, fast, &clock, |_, _, _| {}),
        };
        self.put(&mut state, fast);
        Ok((self.readout(y, retrieve), state))
    }

    /// Gates of a token are those that it alone would give its chunk. The spectrum is `1 - α` and `μ`, the
    /// eigenvalues of a step on `(W, S)` with the gradients frozen, per token of the chunk.
    fn views(&self, x: Tensor<3>, state: State) -> Result<Views> {
        if !self.check(&x, &state)? {
            return Ok(Views::default());
        }
        let (fast, clock) = (self.fast(&state)?, self.clock(&state, None));
        let (tokens, _) = self.tokens(&x, Run::default());
        let [keep, momentum] = log_decays(tokens.gates.clone());
        let eta = tokens.eta.clone();
        let (mut losses, mut norms) = (Vec::new(), Vec::new());
        NeuralModel::recurrent(tokens, fast, &clock, |token, before, after| {
            let residual = NeuralModel::read(before, token.k.clone()) - token.v.clone();
            losses.push(residual.square().mean_dim(3));
            let squares = after.iter().map(|w| w.clone().square().sum_dim(3).sum_dim(2));
            norms.extend(squares.reduce(|a, b| a + b).map(Tensor::sqrt));
        });
        let per_token = |list: Vec<Tensor<4>>| Tensor::cat(list, 2).squeeze_dim::<3>(3);
        let gate = |name: &str, values: Tensor<4>| Gate {
            name: name.into(),
            values: values.squeeze_dim::<3>(3).swap_dims(1, 2),
        };
        let gates = vec![
            gate("1 - α (decay)", keep.clone().exp()),
            gate("μ (momentum)", momentum.clone().exp()),
            gate("η (learning rate)", eta),
        ];
        let per_chunk = 1.0 / self.config.chunk as f64;
        let re = Tensor::cat(vec![keep, momentum], 3).mul_scalar(per_chunk).exp();
        Ok(Views {
            spectrum: Some(Spectrum { re, im: None, kind: SpectrumKind::Frozen }),
            gates,
            memory_loss: Some(per_token(losses)),
            memory_norm: Some(per_token(norms)),
            ..Views::default()
        })
    }

    fn cost(&self, batch: usize, time: usize, _: Form) -> Cost {
        let [d, width] = self.q_proj.weight.dims();
        let maps = 3 + usize::from(self.out_proj.is_some());
        let outer = 2 * maps * d * width + 8 * d * self.config.heads;
        let core = self.config.heads * self.memory.flops(self.config.chunk);
        Cost::of(self, (outer + core) as f64, batch, time)
    }
}

#[cfg(test)]
#[path = "neural_memory_tests.rs"]
mod tests;
