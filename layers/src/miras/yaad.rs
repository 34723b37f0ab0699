//! Yaad (Miras, Behrouz et al., arXiv 2504.13173, Eq. 26): a deep memory trained on a Huber loss, so that single
//! surprising tokens cannot overwrite it.
//!
//! ```text
//! q, k = l2norm(rope(silu(conv(W x)))),  v = silu(conv(W_v x))
//! α = sigmoid(z_α)                 retention          z = W_up (W_down x) + b per gate and head
//! η = η_base sigmoid(z_η)          learning rate
//! δ = softplus(z_δ) + 10⁻³         threshold of the loss
//! A_t = α_t A_{t-1} - η_t ∇ℓ(W_c; k_t, v_t),   ∇ℓ from u = r min(1, δ/|r|),  r = M(k_t; W_c) - v_t
//! y_t = M(q_t; A_t),   M(x; W) = x + LN(W1 gelu(W2 x))  or  W x
//! out = W_o (rmsnorm(y) ∘ silu(W_g x))
//! ```
//!
//! `W_c` is `A` at the last position that is a multiple of `chunk`. The paper states neither how gates act on a
//! matrix nor the loss at the threshold: here gates are one number per head, and [`YaadConfig::stable`] (the
//! default) is Huber in the residual's length while [`YaadConfig::paper`] is the literal choice between the
//! squared and the absolute error, which jumps at `|r| = δ`. Factors of the loss (2 for `|r|²`) belong to η.
//! For the linear memory with keys of length 1 and `W = 0` at the start, `|A|_F ≤ max η δ / (1 - max α)`,
//! whatever the values (norm-wise Huber).
//!
//! | symbol | shape |
//! | --- | --- |
//! | q, k, v, y, r, u | `[b, h, t, n]` (`n` = `head_dim`) |
//! | α, η, δ | `[b, h, t, 1]` |
//! | A, W_c | `[b, h, n, n]`, or `[b, h, n, m]` and `[b, h, m, n]` |

use burn::module::Module;
use burn::tensor::{Tensor, activation};
use serde::{Deserialize, Serialize};

use super::Bias;
use super::inner::{Clock, Fast, Tokens, chunk_wise, recurrent};
use super::layer::{GateMap, MirasLayer, Sizes};
use super::memory::{Memory, MemoryConfig};
use crate::error::require;
use crate::nn::{RopeConfig, log_sigmoid, softplus};
use crate::system::{Cost, Form, Gate, Mixer, Run, Spectrum, SpectrumKind, State, Views};
use crate::{Error, Init, Result};

const NAME: &str = "yaad";
/// Smallest threshold δ.
const DELTA_MIN: f64 = 1e-3;

/// Sizes and switches of [`Yaad`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct YaadConfig {
    /// Heads, each with a memory of its own.
    pub heads: usize,
    /// Size `n` of queries, keys and values of a head.
    pub head_dim: usize,
    /// The memory's architecture.
    pub memory: MemoryConfig,
    /// The inner loss.
    pub bias: Bias,
    /// Tokens `C` whose inner gradients are taken at the same weights. Part of the model: it changes the
    /// function, unlike the size in [`Form::Chunked`].
    pub chunk: usize,
    /// Whether the memory decays; `false` fixes α = 1.
    pub decay: bool,
    /// Rank of the maps from a token to its gates.
    pub gate_rank: usize,
    /// Largest learning rate; `None` for `1/head_dim` (linear) or `0.1/head_dim` (MLP).
    pub eta_base: Option<f64>,
    /// Threshold δ before training; `None` for the typical length of a residual then.
    pub delta_start: Option<f64>,
    /// Kernel width of the short convolution; 0 for none.
    pub conv_kernel: usize,
    /// Rotary positions of queries and keys; `None` for none.
    pub rope: Option<RopeConfig>,
    /// Added to the mean square in the output norm.
    pub norm_eps: f64,
}

impl Default for YaadConfig {
    fn default() -> Self {
        Self {
            heads: 4,
            head_dim: 32,
            memory: MemoryConfig::default(),
            bias: Bias::HuberNorm,
            chunk: 16,
            decay: true,
            gate_rank: 32,
            eta_base: None,
            delta_start: None,
            conv_kernel: 4,
            rope: Some(RopeConfig::default()),
            norm_eps: 1e-6,
        }
    }
}

impl YaadConfig {
    /// Huber in the residual's length: continuous, bounded, differentiable in δ. The default.
    pub fn stable() -> Self {
        Self::default()
    }

    /// The paper's loss as printed.
    pub fn paper() -> Self {
        Self { bias: Bias::HuberMixture { nu: 10.0 }, ..Self::default() }
    }

    /// Checks the values and draws the parameters for width `d_model`.
    ///
    /// # Errors
    /// For zero sizes, a learning rate or threshold that is not positive, or an impossible rotary share.
    pub fn init(&self, d_model: usize, init: &mut Init) -> Result<Yaad> {
        let (h, n) = (self.heads, self.head_dim);
        let sizes = Sizes {
            mixer: NAME,
            d_model,
            heads: h,
            head_dim: n,
            conv_kernel: self.conv_kernel,
            rope: self.rope,
            norm_eps: self.norm_eps,
        };
        let layer = sizes.init(init)?;
        require(self.chunk > 0, NAME, "chunk", self.chunk, "must be at least 1")?;
        require(self.gate_rank > 0, NAME, "gate_rank", self.gate_rank, "must be positive")?;
        self.bias.validate(NAME)?;
        let default_eta = match self.memory {
            MemoryConfig::Linear => 1.0 / n as f64,
            MemoryConfig::Mlp { .. } => 0.1 / n as f64,
        };
        let eta_base = self.eta_base.unwrap_or(default_eta);
        let positive = |x: f64| x > 0.0 && x.is_finite();
        require(positive(eta_base), NAME, "eta_base", eta_base, "must be positive and finite")?;
        // A linear memory starts near 0; the MLP's layer norm has unit variance, and it adds its input.
        let value = sizes.typical_value().powi(2);
        let residual = match self.memory {
            MemoryConfig::Linear => (n as f64 * value).sqrt(),
            MemoryConfig::Mlp { .. } => (n as f64 * (1.0 + value) + 1.0).sqrt(),
        };
        let delta = self.delta_start.unwrap_or(residual);
        let expected = format!("must be above {DELTA_MIN} and finite");
        require(delta > DELTA_MIN && delta.is_finite(), NAME, "delta_start", delta, &expected)?;
        let mut gate = |bias| GateMap::new(d_model, self.gate_rank, h, bias, init);
        Ok(Yaad {
            layer,
            alpha: self.decay.then(|| gate((0.99f64 / 0.01).ln())),
            eta: gate(0.0),
            delta: self.bias.has_threshold().then(|| gate(inverse_softplus(delta - DELTA_MIN))),
            memory: self.memory.init(NAME, h, n, init)?,
            eta_base,
            config: self.clone(),
            d_model,
        })
    }
}

/// `x` with `softplus(x) = y`, for `y > 0`.
fn inverse_softplus(y: f64) -> f64 {
    y + (-(-y).exp_m1()).ln()
}

/// The layer; see the module's equations. Built by [`YaadConfig::init`].
#[derive(Module, Debug)]
pub struct Yaad {
    /// All around the memory
    pub layer: MirasLayer,
    /// `z_α`, unless the memory keeps everything
    pub alpha: Option<GateMap>,
    /// `z_η`
    pub eta: GateMap,
    /// `z_δ`, where the loss has a threshold
    pub delta: Option<GateMap>,
    /// What is trained while reading
    pub memory: Memory,
    #[module(skip)]
    eta_base: f64,
    #[module(skip)]
    config: YaadConfig,
    #[module(skip)]
    d_model: usize,
}

/// Slot of a matrix at the chunk's start.
fn anchor_slot(name: &str) -> String {
    format!("{name}_chunk_start")
}

impl Yaad {
    /// What the memory is given, with padding switched off; moves the convolutions' tails on.
    fn tokens(&self, x: &Tensor<3>, state: &mut State, run: Run<'_>) -> Result<Tokens> {
        let [q, k, v] = self.layer.qkv(x, state, run)?;
        let eta = activation::sigmoid(self.eta.forward(x)).mul_scalar(self.eta_base);
        let log_alpha = match &self.alpha {
            Some(alpha) => log_sigmoid(alpha.forward(x)),
            None => eta.zeros_like(),
        };
        let delta = match &self.delta {
            Some(delta) => softplus(delta.forward(x)).add_scalar(DELTA_MIN),
            None => eta.ones_like(),
        };
        let tokens = Tokens { q, k, v, log_alpha, eta, delta };
        Ok(match run.lengths {
            Some(lengths) => {
                let valid = lengths.valid(x.dims()[1], &x.device(), x.dtype());
                tokens.gate_padding(valid.unsqueeze_dim::<3>(1).unsqueeze_dim(3))
            }
            None => tokens,
        })
    }

    /// The fast weights in a state.
    fn fast(&self, state: &State) -> Result<Fast> {
        let expected = self.memory.initial(state.batch());
        let names = self.memory.names().iter().zip(&expected);
        let get = |name: &str, like: &Tensor<4>| {
            let tensor = state.get::<4>(name)?;
            if tensor.dims() == like.dims() {
                return Ok(tensor);
            }
            Err(Error::shape(format!("state slot `{name}`"), format!("{:?}", like.dims()), &tensor.dims()))
        };
        let running = names.clone().map(|(name, like)| get(name, like)).collect::<Result<Vec<_>>>()?;
        let anchor = match self.config.chunk {
            1 => running.clone(),
            _ => names.map(|(name, like)| get(&anchor_slot(name), like)).collect::<Result<_>>()?,
        };
        Ok(Fast { running, anchor })
    }

    fn put(&self, state: &mut State, fast: Fast) {
        for (name, (running, anchor)) in
            self.memory.names().iter().zip(fast.running.into_iter().zip(fast.anchor))
        {
            state.put(name, running);
            // With chunks of one token both are the same.
            if self.config.chunk > 1 {
                state.put(&anchor_slot(name), anchor);
            }
        }
    }

    /// Implied attention `[b, h, t, t]` of the linear memory, where the loss weighs all channels alike: with
    /// the weights `c_t` of `u_t = c_t r_t` frozen along the trajectory, `A` is linear in the values, and the
    /// outputs for unit impulses are the matrix.
    fn attention(&self, tokens: Tokens, weights: Option<Vec<Tensor<4>>>, clock: &Clock) -> Option<Tensor<4>> {
        let (Memory::Linear(_), Some(weights)) = (&self.memory, weights) else {
            return None;
        };
        let [b, h, t, n] = tokens.k.dims();
        let options = (&tokens.k.device().inner(), tokens.k.dtype());
        let impulses = Tensor::<2>::eye(t, &tokens.k.device().inner()).cast(tokens.k.dtype());
        let v = impulses.reshape([1, 1, t, t]).expand([b, h, t, t]);
        let empty = vec![Tensor::zeros([b, h, t, n], options)];
        let fast = Fast { running: empty.clone(), anchor: empty };
        let tokens = Tokens { v, delta: Tensor::cat(weights, 2), ..tokens };
        let frozen = |r: Tensor<4>, c: Tensor<4>| r * c;
        let (y, _) = match clock.phase() {
            Some(phase) => chunk_wise(&self.memory, &frozen, tokens, fast, clock, phase),
            None => recurrent(&self.memory, &frozen, tokens, fast, clock, |_| {}),
        };
        Some(y)
    }
}

impl Mixer for Yaad {
    fn d_model(&self) -> usize {
        self.d_model
    }

    /// The memory starts from its learned weights.
    fn initial_state(&self, batch: usize) -> State {
        let mut state = State::new(batch);
        let start = self.memory.initial(batch);
        self.put(&mut state, Fast { running: start.clone(), anchor: start });
        self.layer.initial_state(&mut state);
        state
    }

    /// `Recurrent` forms the memory after every token; every other form works on whole chunks of the model's
    /// own `chunk` tokens, except where rows stand at different places of their chunks (after ragged padding).
    fn run(&self, x: Tensor<3>, mut state: State, run: Run<'_>) -> Result<(Tensor<3>, State)> {
        let fast = self.fast(&state)?;
        let lengths = run.lengths.map(|lengths| lengths.0.as_slice());
        let clock = Clock::new(state.positions(), self.config.chunk, lengths);
        let tokens = self.tokens(&x, &mut state, run)?;
        let bias = self.config.bias;
        let gradient = |r, delta| bias.gradient(r, delta);
        let one_by_one = run.form == Form::Recurrent || x.dims()[1] == 1;
        let (y, fast) = match clock.phase() {
            Some(phase) if !one_by_one => chunk_wise(&self.memory, &gradient, tokens, fast, &clock, phase),
            _ => recurrent(&self.memory, &gradient, tokens, fast, &clock, |_| {}),
        };
        self.put(&mut state, fast);
        Ok((self.layer.readout(y, x), state))
    }

    /// The spectrum is α, the memory's own decay: inside a chunk the gradient does not depend on it.
    fn views(&self, x: Tensor<3>, mut state: State) -> Result<Views> {
        if !self.check(&x, &state)? {
            return Ok(Views::default());
        }
        let fast = self.fast(&state)?;
        let clock = Clock::new(state.positions(), self.config.chunk, None);
        let tokens = self.tokens(&x, &mut state, Run::default())?;
        let bias = self.config.bias;
        let (mut losses, mut norms, mut weights) = (Vec::new(), Vec::new(), Some(Vec::new()));
        recurrent(&self.memory, &|r, delta| bias.gradient(r, delta), tokens.clone(), fast, &clock, |seen| {
            let Tokens { k, v, delta, .. } = seen.token;
            let residual = self.memory.read_at(&seen.before, k) - v;
            losses.push(bias.loss(residual, delta.clone()));
            let squares = |w: &Tensor<4>| w.clone().square().sum_dim(3).sum_dim(2);
            let total = seen.after.iter().map(squares).reduce(|a, b| a + b);
            norms.extend(total.map(Tensor::sqrt));
            weights = weights.take().zip(bias.weight(seen.residual, delta)).map(|(mut all, weight)| {
                all.push(weight);
                all
            });
        });
        let per_token = |list: Vec<Tensor<4>>| Tensor::cat(list, 2).squeeze_dim::<3>(3);
        let alpha = tokens.log_alpha.clone().exp();
        let gate = |name: &str, values: Tensor<4>| Gate {
            name: name.into(),
            values: values.squeeze_dim::<3>(3).swap_dims(1, 2),
        };
        let mut gates = vec![gate("η (learning rate)", tokens.eta.clone())];
        if self.alpha.is_some() {
            gates.insert(0, gate("α (decay)", alpha.clone()));
        }
        if self.delta.is_some() {
            gates.push(gate("δ (threshold)", tokens.delta.clone()));
        }
        Ok(Views {
            attention: self.attention(tokens, weights, &clock),
            spectrum: Some(Spectrum { re: alpha, im: None, kind: SpectrumKind::Frozen }),
            gates,
            router: None,
            memory_loss: Some(per_token(losses)),
            memory_norm: Some(per_token(norms)),
        })
    }

    fn cost(&self, batch: usize, time: usize, form: Form) -> Cost {
        let chunk = (form != Form::Recurrent && time > 1).then_some(self.config.chunk.min(time));
        let gates = [self.alpha.as_ref(), Some(&self.eta), self.delta.as_ref()];
        let gates: usize = gates.into_iter().flatten().map(GateMap::flops).sum();
        let core = self.config.heads * self.memory.flops(self.config.head_dim, chunk);
        Cost::of(self, (self.layer.flops() + gates + core) as f64, batch, time)
    }
}

#[cfg(test)]
#[path = "yaad_tests.rs"]
mod tests;
