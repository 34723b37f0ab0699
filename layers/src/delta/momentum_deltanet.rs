//! Momentum DeltaNet (arXiv 2605.05838): the memory follows a decayed sum of its corrections, as gradient descent with
//! momentum does, not only the latest one. Parameterized as in flash-linear-attention.
//!
//! ```text
//! q, k, v = silu(conv(W x)),   q̂ = l2norm(q - D k) / √n,   k̂ = l2norm(k)     D > 0 per head: output correction
//! η = 1 + tanh(W_e x / √d)                             step size
//! log μ = max(-exp(U_log) softplus(W_m x + dt_bias'), floor)
//! β = sigmoid(W_b x) u² / (1 + u²),   u = f η          f > 0 per head
//! log α = -log(1 + u²) - exp(A_log) softplus(W_a x + dt_bias)
//! w_t = α_t S_{t-1}ᵀ k̂_t - v_t                         the miss of the decayed memory
//! M_t = μ_t M_{t-1} + η_t k̂_t w_tᵀ
//! S_t = α_t S_{t-1} - β_t M_t,   y_t = S_tᵀ q̂_t,   out = W_o (rmsnorm(y) ∘ silu(W_g x))
//! ```
//!
//! The recurrence is linear in `[S; M]` (`momentum_rule`). Along a unit key its two eigenvalues have the product `α μ`
//! and the sum `α (1 - β η) + μ`; with `β` in (0, 1), `η` in (0, 2) and decays below 1 both lie in the unit disc.
//!
//! | symbol | shape |
//! | --- | --- |
//! | q, k | `[b, h, t, n]` (`n` = `head_dim`) |
//! | v, y | `[b, h, t, p]` (`p` = `expand_v · head_dim`) |
//! | α, β, η, μ | `[b, h, t]` |
//! | \[S; M\] | `[b, h, 2 n, p]` |

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::momentum_rule::MomentumRule;
use super::parts::{HeadDecay, HeadOutput, HeadSizes, OutputGate, Qkv, check_steps};
use crate::error::require;
use crate::nn::{Activation, Linear, l2_normalize, repeat_heads, scaled_sigmoid, split_heads};
use crate::system::{Cost, Form, Gate, MEMORY, Mixer, Run, State, Views};
use crate::{Init, Result};

const NAME: &str = "momentum_deltanet";

/// Sizes and switches of [`MomentumDeltaNet`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MomentumDeltaNetConfig {
    /// Query and key heads.
    pub heads: usize,
    /// Value heads, a multiple of `heads`; `None` for `heads`. Each query head serves a group.
    pub value_heads: Option<usize>,
    /// Key size `n` of a head.
    pub head_dim: usize,
    /// Value size over key size.
    pub expand_v: f64,
    /// Kernel width of the short convolution; 0 for none.
    pub conv_kernel: usize,
    /// Whether the key is taken out of the query.
    pub output_correction: bool,
    /// Whether the output is gated.
    pub output_gate: bool,
    /// Smallest `log μ`, below 0; `None` for no limit.
    pub log_mu_floor: Option<f64>,
    /// Smallest step `softplus(dt_bias)` drawn at the start.
    pub dt_min: f64,
    /// Largest step drawn at the start; small steps are long memories.
    pub dt_max: f64,
    /// Added to the mean square in the output norm.
    pub norm_eps: f64,
}

impl Default for MomentumDeltaNetConfig {
    fn default() -> Self {
        Self {
            heads: 4,
            value_heads: None,
            head_dim: 32,
            expand_v: 1.0,
            conv_kernel: 4,
            output_correction: true,
            output_gate: true,
            log_mu_floor: Some(-2.0),
            dt_min: 1e-3,
            dt_max: 0.1,
            norm_eps: 1e-5,
        }
    }
}

impl MomentumDeltaNetConfig {
    fn sizes(&self) -> HeadSizes {
        HeadSizes::new(self.heads, self.value_heads, self.head_dim, self.expand_v)
    }

    /// Checks the values and draws the parameters for width `d_model`.
    ///
    /// # Errors
    /// For zero sizes, value heads that do not divide over the query heads, or a floor that is not below 0.
    pub fn init(&self, d_model: usize, init: &mut Init) -> Result<MomentumDeltaNet> {
        let sizes = self.sizes();
        sizes.check(NAME, d_model, self.expand_v)?;
        check_steps(NAME, self.dt_min, self.dt_max)?;
        if let Some(floor) = self.log_mu_floor {
            let expected = "must be a number below 0, or absent for no limit";
            require(floor < 0.0 && floor.is_finite(), NAME, "log_mu_floor", floor, expected)?;
        }
        require(self.norm_eps > 0.0, NAME, "norm_eps", self.norm_eps, "must be positive")?;
        let HeadSizes { heads: h, value_heads: hv, p, .. } = sizes;
        let gate = if self.output_gate { OutputGate::Full } else { OutputGate::None };
        Ok(MomentumDeltaNet {
            qkv: Qkv::init(sizes, 1, self.conv_kernel, Activation::Silu, d_model, init),
            a_proj: init.linear(d_model, hv),
            b_proj: init.linear(d_model, hv),
            m_proj: init.linear(d_model, hv),
            e_proj: init.linear(d_model, hv),
            output: HeadOutput::init([hv, p], gate, Activation::Silu, self.norm_eps, d_model, init),
            decay: HeadDecay::init(hv, self.dt_min, self.dt_max, init),
            momentum: HeadDecay::init(hv, self.dt_min, self.dt_max, init),
            factor_log: init.log_of_uniform([hv], 1e-3, 4.0),
            correction_log: self.output_correction.then(|| init.log_of_uniform([h], 1e-3, 1.0)),
            config: self.clone(),
            d_model,
        })
    }
}

/// The layer; see the module's equations. Built by [`MomentumDeltaNetConfig::init`].
#[derive(Module, Debug)]
pub struct MomentumDeltaNet {
    /// Queries, keys and values
    pub qkv: Qkv,
    /// `W_a: [d, h]`
    pub a_proj: Linear,
    /// `W_b: [d, h]`
    pub b_proj: Linear,
    /// `W_m: [d, h]`
    pub m_proj: Linear,
    /// `W_e: [d, h]`
    pub e_proj: Linear,
    /// Of `α`
    pub decay: HeadDecay,
    /// Of `μ`: `U_log` and its bias
    pub momentum: HeadDecay,
    /// `log f: [h]`
    pub factor_log: Param<Tensor<1>>,
    /// `log D: [h]`
    pub correction_log: Option<Param<Tensor<1>>>,
    /// Norm, gate and `W_o`
    pub output: HeadOutput,
    #[module(skip)]
    config: MomentumDeltaNetConfig,
    #[module(skip)]
    d_model: usize,
}

impl MomentumDeltaNet {
    /// The recurrence on `x`; moves the convolutions' tails on.
    fn rule(&self, x: Tensor<3>, state: &mut State, run: Run<'_>) -> Result<MomentumRule> {
        let sizes = self.config.sizes();
        let [q, k, v] = self.qkv.forward(x.clone(), state, run)?;
        let [q, k] = [q, k].map(|x| split_heads(x, sizes.heads));
        let q = match &self.correction_log {
            Some(d) => q - k.clone() * d.val().exp().reshape([1, sizes.heads, 1, 1]),
            None => q,
        };
        let [q, k] = [q, k].map(|x| repeat_heads(l2_normalize(x, 1e-6), sizes.group()));
        let q = q.mul_scalar((sizes.n as f64).powf(-0.5));
        let v = split_heads(v, sizes.value_heads);

        let scale = (self.d_model as f64).powf(-0.5);
        let eta = self.e_proj.forward(x.clone()).mul_scalar(scale).tanh().add_scalar(1.0);
        let share = (eta.clone() * self.factor_log.val().exp().unsqueeze()).square(); // u²
        let log_mu = self.momentum.forward(self.m_proj.forward(x.clone()));
        let log_mu = match self.config.log_mu_floor {
            Some(floor) => log_mu.clamp_min(floor),
            None => log_mu,
        };
        let beta = scaled_sigmoid(self.b_proj.forward(x.clone()), 1.0) * share.clone()
            / share.clone().add_scalar(1.0);
        let log_alpha = self.decay.forward(self.a_proj.forward(x)) - share.log1p().swap_dims(1, 2);
        Ok(MomentumRule {
            p: k.clone() * log_alpha.clone().exp().unsqueeze_dim(3),
            k: k * eta.swap_dims(1, 2).unsqueeze_dim(3),
            beta: beta.swap_dims(1, 2),
            q,
            v,
            log_alpha,
            log_mu,
        })
    }
}

impl Mixer for MomentumDeltaNet {
    fn d_model(&self) -> usize {
        self.d_model
    }

    fn initial_state(&self, batch: usize) -> State {
        let HeadSizes { value_heads, n, p, .. } = self.config.sizes();
        self.qkv.initial_state([batch, value_heads, 2 * n, p])
    }

    fn run(&self, x: Tensor<3>, mut state: State, run: Run<'_>) -> Result<(Tensor<3>, State)> {
        let rule = self.rule(x.clone(), &mut state, run)?;
        let rule = match run.lengths {
            Some(lengths) => rule.gate_padding(lengths),
            None => rule,
        };
        let (y, memory) = rule.run(state.get(MEMORY)?, run.form);
        state.put(MEMORY, memory);
        Ok((self.output.forward(y, self.output.gate(x)), state))
    }

    fn views(&self, x: Tensor<3>, mut state: State) -> Result<Views> {
        self.check(&x, &state)?;
        let rule = self.rule(x, &mut state, Run::default())?;
        let gates = [("α (decay)", &rule.log_alpha), ("μ (momentum)", &rule.log_mu)];
        let gates = gates.map(|(name, log)| (name, log.clone().exp()));
        let gates = gates.into_iter().chain([("β (momentum applied)", rule.beta.clone())]);
        let gates = gates.map(|(name, values)| Gate { name: name.into(), values: values.swap_dims(1, 2) });
        let gates = gates.collect();
        let spectrum = Some(rule.spectrum());
        Ok(Views { attention: Some(rule.attention()), spectrum, gates, ..Views::default() })
    }

    fn cost(&self, batch: usize, time: usize, form: Form) -> Cost {
        let HeadSizes { value_heads: hv, n, p, .. } = self.config.sizes();
        let maps = 2 * (self.qkv.num_params() + 4 * self.d_model * hv) + self.output.flops();
        // Three products of vectors and the memory or momentum, and three decays of one of them; in chunks, the
        // delta rule with a state of twice the size.
        let token_by_token = matches!(form, Form::Recurrent) || (matches!(form, Form::Auto) && time <= 1);
        let core = if token_by_token { 10 * n * p } else { Cost::rank_one_core(2 * n, p, time, form) };
        Cost::of(self, (maps + hv * core) as f64, batch, time)
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::testing::{Draw, numbers};

    #[test]
    fn it_stays_stable() {
        let config = MomentumDeltaNetConfig { heads: 2, head_dim: 4, ..Default::default() };
        let layer = config.init(8, &mut Init::new(5, &Device::flex())).unwrap();
        let x = Draw::new(1).tensor([1, 2000, 8], -9.0, 9.0);
        let views = layer.views(x.clone().narrow(1, 0, 40), layer.initial_state(1)).unwrap();
        let moduli = numbers(views.spectrum.unwrap().modulus());
        assert!(moduli.iter().all(|&modulus| modulus <= 1.0 + 1e-5));
        let (_, last) = layer.forward(x, layer.initial_state(1), Form::Auto).unwrap();
        assert!(numbers(last.get::<4>(MEMORY).unwrap()).iter().all(|entry| entry.abs() < 1e3));
    }

    /// What the floor keeps: no token's momentum is forgotten faster than `exp(floor)`.
    #[test]
    fn the_momentum_keeps_its_floor() {
        let least = |log_mu_floor| {
            let config = MomentumDeltaNetConfig { heads: 2, head_dim: 4, log_mu_floor, ..Default::default() };
            let layer = config.init(8, &mut Init::new(5, &Device::flex())).unwrap();
            let x = Draw::new(1).tensor([1, 40, 8], -90.0, 90.0);
            let rule = layer.rule(x, &mut layer.initial_state(1), Run::default()).unwrap();
            numbers(rule.log_mu).into_iter().fold(0.0, f64::min)
        };
        assert_eq!(least(Some(-2.0)), -2.0);
        assert!(least(None) < -3.0);
    }

    #[test]
    fn impossible_settings_are_refused() {
        let refused = |config: MomentumDeltaNetConfig, field: &str| {
            let error = config.init(8, &mut Init::new(0, &Device::flex())).unwrap_err().to_string();
            assert!(error.contains(&format!("`{field}`")), "{error}");
        };
        let ok = MomentumDeltaNetConfig::default();
        refused(MomentumDeltaNetConfig { log_mu_floor: Some(0.0), ..ok.clone() }, "log_mu_floor");
        refused(MomentumDeltaNetConfig { value_heads: Some(0), ..ok.clone() }, "value_heads");
        refused(MomentumDeltaNetConfig { dt_max: f64::INFINITY, ..ok }, "dt_max");
    }
}
