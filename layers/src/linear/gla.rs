//! Gated linear attention (Yang et al., arXiv 2312.06635): a decay per key channel that depends on the token.
//!
//! ```text
//! q, k, v = W_q x, W_k x, W_v x            each through a short convolution with silu, if there is one
//! log α = log_sigmoid(W_2 W_1 x + b) / τ                                       τ = 16, rank 16 (Sec. 4.4)
//! H_t = diag(α_t) H_{t-1} + k_t v_tᵀ,     y_t = H_tᵀ q_t / √n                  (Eq. 3)
//! out = W_o (rmsnorm(y) ∘ silu(W_g x))
//! ```
//!
//! | symbol | shape |
//! | --- | --- |
//! | q, k, α | `[b, h, t, n]` (`n` = `key_dim`) |
//! | v, y | `[b, h, t, p]` (`p` = `value_dim`) |
//! | H | `[b, h, n, p]` |

use burn::module::Module;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::parts::{GatedReadout, Qkv, Sizes, channels};
use crate::error::require;
use crate::nn::{Activation, Ended, Ending, Gated, Linear, repeat_heads, split_heads};
use crate::system::{Cost, Form, Gate, LinearMixer, Run, State, System, Transition, Views};
use crate::{Init, Result};

const NAME: &str = "gla";

/// Sizes and switches of [`Gla`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GlaConfig {
    /// Query heads.
    pub heads: usize,
    /// Heads of keys, values and decays, a divisor of `heads`; `None` for `heads`.
    pub kv_heads: Option<usize>,
    /// Key channels `n` of a head; `None` for `d_model / 2 heads`.
    pub key_dim: Option<usize>,
    /// Value channels `p` of a head; `None` for `d_model / heads`.
    pub value_dim: Option<usize>,
    /// Applied to `q` and `k`.
    pub feature_map: Activation,
    /// Kernel width of the short convolutions; 0 for none.
    pub conv_kernel: usize,
    /// Whether they have biases.
    pub conv_bias: bool,
    /// Rows of `W_1`.
    pub gate_rank: usize,
    /// `τ`: divides the logarithm of the decay, so that memories start long.
    pub gate_temperature: f64,
    /// Smallest logarithm of the decay.
    pub min_log_decay: Option<f64>,
    /// Multiplies the output by this function of a linear map of the input.
    pub output_gate: Option<Activation>,
    /// Whether the norm of each head's output has a weight.
    pub norm_weight: bool,
    /// Added to the mean square in that norm.
    pub norm_eps: f64,
}

impl Default for GlaConfig {
    fn default() -> Self {
        Self {
            heads: 4,
            kv_heads: None,
            key_dim: None,
            value_dim: None,
            feature_map: Activation::Identity,
            conv_kernel: 0,
            conv_bias: false,
            gate_rank: 16,
            gate_temperature: 16.0,
            min_log_decay: None,
            output_gate: Some(Activation::Silu),
            norm_weight: true,
            norm_eps: 1e-5,
        }
    }
}

impl GlaConfig {
    /// Checks the values and draws the parameters for width `d_model`.
    ///
    /// # Errors
    /// For zero sizes, heads that do not divide the width or each other, or a decay that could exceed 1.
    pub fn init(&self, d_model: usize, init: &mut Init) -> Result<Gla> {
        let sizes = Sizes {
            heads: self.heads,
            kv_heads: self.kv_heads.unwrap_or(self.heads),
            n: channels(self.key_dim, d_model, 0.5, self.heads, NAME, "key_dim")?,
            p: channels(self.value_dim, d_model, 1.0, self.heads, NAME, "value_dim")?,
            conv_kernel: self.conv_kernel,
            conv_bias: self.conv_bias,
        };
        let sizes = sizes.check(NAME, d_model)?;
        require(self.gate_rank > 0, NAME, "gate_rank", self.gate_rank, "must be positive")?;
        let tau = self.gate_temperature;
        require(tau > 0.0 && tau.is_finite(), NAME, "gate_temperature", tau, "must be a positive number")?;
        if let Some(least) = self.min_log_decay {
            require(least <= 0.0, NAME, "min_log_decay", least, "must not be positive")?;
        }
        require(self.norm_eps > 0.0, NAME, "norm_eps", self.norm_eps, "must be positive")?;
        let (rank, keys) = (self.gate_rank, sizes.kv_heads * sizes.n);
        Ok(Gla {
            qkv: Qkv::new(d_model, sizes, init),
            decay_down: init.linear(d_model, rank),
            decay_up: init.linear_std(rank, keys, (rank as f64).powf(-0.5), true),
            readout: GatedReadout::new(
                d_model,
                sizes,
                self.output_gate,
                (self.norm_weight, self.norm_eps),
                init,
            ),
            config: self.clone(),
            sizes,
            d_model,
        })
    }
}

/// The layer; see the module's equations. Built by [`GlaConfig::init`].
#[derive(Module, Debug)]
pub struct Gla {
    /// `W_q`, `W_k`, `W_v` and convolutions
    pub qkv: Qkv,
    /// `W_1: [d, rank]`
    pub decay_down: Linear,
    /// `W_2: [rank, kv_heads n]` and `b`
    pub decay_up: Linear,
    /// Norm, `W_g` and `W_o`
    pub readout: GatedReadout,
    #[module(skip)]
    config: GlaConfig,
    #[module(skip)]
    sizes: Sizes,
    #[module(skip)]
    d_model: usize,
}

impl LinearMixer for Gla {
    /// Output gate, `[b, t, h p]`.
    type Aux = Option<Gated<3>>;

    fn d_model(&self) -> usize {
        self.d_model
    }

    fn initial_state(&self, batch: usize) -> State {
        self.qkv.with_tails(self.sizes.memory(batch, 0, &self.qkv.q_proj))
    }

    fn system(&self, x: Tensor<3>, state: &mut State, run: Run<'_>) -> Result<(System, Self::Aux)> {
        let others = [&self.decay_down].into_iter().chain(&self.readout.gate_proj);
        let others: Vec<Ended<'_>> = others.map(Ended::from).collect();
        let ([q, k, v], rest) = self.qkv.forward_with(x, &others, state, run)?;
        let mut rest = rest.into_iter();
        let [q, k] = [q, k].map(|x| self.config.feature_map.apply(x));
        let low = rest.next().expect("the map to the decay is the first");
        let log_a = self.decay_up.then(Ending::LogSigmoid(1.0 / self.config.gate_temperature)).forward(low);
        let log_a = match self.config.min_log_decay {
            Some(least) => log_a.clamp_min(least),
            None => log_a,
        };
        let log_a = repeat_heads(split_heads(log_a, self.sizes.kv_heads), self.sizes.group());
        let system = System::outer(Transition::Diagonal { log_a }, q, k, v);
        let gain = (self.sizes.n as f64).powf(-0.5);
        Ok((system.with_gain(gain), self.readout.gate_of(rest.next())))
    }

    fn readout(&self, y: Tensor<4>, gate: Self::Aux) -> Tensor<3> {
        self.readout.forward(y, gate)
    }

    fn system_views(&self, system: System, gate: Self::Aux, _state: &State) -> Result<Views> {
        let mut views = Views::of_system(system)?;
        views.gates.extend(gate.map(|gate| Gate { name: "g (output gate)".into(), values: gate.open() }));
        Ok(views)
    }

    fn cost(&self, batch: usize, time: usize, form: Form) -> Cost {
        let (Sizes { heads, kv_heads, n, p, .. }, d) = (self.sizes, self.d_model);
        let maps = self.qkv.flops(d) + self.readout.flops(d);
        let decay = 2 * self.config.gate_rank * (d + kv_heads * n);
        let core = heads * Cost::decayed_core(n, p, time, form);
        Cost::of(self, (maps + decay + core) as f64, batch, time)
    }
}

#[cfg(test)]
#[path = "gla_tests.rs"]
mod tests;
