//! Kimi delta attention (Kimi Team, arXiv 2510.26692): gated DeltaNet with a decay per key channel.
//!
//! ```text
//! q, k = l2norm(silu(conv(W x))),  v = silu(conv(W_v x))
//! β = sigmoid(W_b x)                       write strength (×2 if negative eigenvalues are allowed)
//! f = W_f (W_r x) + dt_bias,   log α = -exp(A_log) softplus(f)                per channel, `A_log` per head
//!                              log α = -c sigmoid(exp(A_log) f)               bounded by c
//! H_t = (I - β_t k_t k_tᵀ) diag(α_t) H_{t-1} + β_t k_t v_tᵀ,   y_t = H_tᵀ q_t / √n
//! out = W_o (rmsnorm(y) ∘ sigmoid(W_g (W_d x)))
//! ```
//!
//! | symbol | shape |
//! | --- | --- |
//! | q, k, α | `[b, h, t, n]` (`n` = `head_dim`) |
//! | v, y | `[b, h, t, p]` (`p` = `expand_v · head_dim`) |
//! | β | `[b, h, t]` |
//! | H | `[b, h, n, p]` |

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

#[cfg(feature = "cube")]
use super::parts::of_heads;
use super::parts::{HeadOutput, HeadSizes, OutputGate, Qkv, UNIT_EPS, check_steps, made_by_the_rule};
use crate::error::require;
#[cfg(feature = "cube")]
use crate::kernels;
use crate::nn::{Activation, Ended, Gated, Linear, l2_normalize, scaled_sigmoid, softplus, split_heads};
use crate::system::{Cost, Form, LinearMixer, Run, State, System, Transition};
use crate::{Init, Result};

const NAME: &str = "kda";

/// Sizes and switches of [`Kda`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KdaConfig {
    /// Heads.
    pub heads: usize,
    /// Key size `n` of a head.
    pub head_dim: usize,
    /// Value size over key size.
    pub expand_v: f64,
    /// Kernel width of the short convolution; 0 for none.
    pub conv_kernel: usize,
    /// Width between the two maps of the decay and of the output gate; `None` for the value size.
    pub rank: Option<usize>,
    /// Whether the output gate has a bias.
    pub gate_bias: bool,
    /// Largest `-log α`, which makes the decay a bounded function; `None` for no bound.
    pub decay_bound: Option<f64>,
    /// Let `β` range over (0, 2), so that eigenvalues range over (-1, 1).
    pub negative_eigenvalues: bool,
    /// Smallest step `softplus(dt_bias)` drawn at the start.
    pub dt_min: f64,
    /// Largest step drawn at the start; small steps are long memories.
    pub dt_max: f64,
    /// Added to the mean square in the output norm.
    pub norm_eps: f64,
}

impl Default for KdaConfig {
    fn default() -> Self {
        Self {
            heads: 4,
            head_dim: 32,
            expand_v: 1.0,
            conv_kernel: 4,
            rank: None,
            gate_bias: false,
            decay_bound: None,
            negative_eigenvalues: false,
            dt_min: 1e-3,
            dt_max: 0.1,
            norm_eps: 1e-5,
        }
    }
}

impl KdaConfig {
    fn sizes(&self) -> HeadSizes {
        HeadSizes::new(self.heads, None, self.head_dim, self.expand_v)
    }

    /// Checks the values and draws the parameters for width `d_model`.
    ///
    /// # Errors
    /// For zero sizes or a bound of the decay that is not positive.
    pub fn init(&self, d_model: usize, init: &mut Init) -> Result<Kda> {
        let sizes = self.sizes();
        sizes.check(NAME, d_model, self.expand_v)?;
        check_steps(NAME, self.dt_min, self.dt_max)?;
        let HeadSizes { heads: h, n, p, .. } = sizes;
        let rank = self.rank.unwrap_or(p);
        require(rank > 0, NAME, "rank", rank, "must be positive")?;
        if let Some(bound) = self.decay_bound {
            let expected = "must be a positive number, or absent for no bound";
            require(bound > 0.0 && bound.is_finite(), NAME, "decay_bound", bound, expected)?;
        }
        require(self.norm_eps > 0.0, NAME, "norm_eps", self.norm_eps, "must be positive")?;
        let gate = OutputGate::LowRank { rank, bias: self.gate_bias };
        Ok(Kda {
            qkv: Qkv::init(sizes, 1, self.conv_kernel, Activation::Silu, d_model, init),
            decay_down: init.linear(d_model, rank),
            decay_proj: init.linear(rank, h * n),
            b_proj: init.linear(d_model, h),
            a_log: init.log_of_uniform([h], 1.0, 16.0),
            dt_bias: init.inverse_softplus_dt(h * n, self.dt_min, self.dt_max, 1e-4),
            output: HeadOutput::init([h, p], gate, Activation::Sigmoid, self.norm_eps, d_model, init),
            config: self.clone(),
            d_model,
        })
    }
}

/// The layer; see the module's equations. Built by [`KdaConfig::init`].
#[derive(Module, Debug)]
pub struct Kda {
    /// Queries, keys and values
    pub qkv: Qkv,
    /// `W_r: [d, rank]`
    pub decay_down: Linear,
    /// `W_f: [rank, h n]`
    pub decay_proj: Linear,
    /// `W_b: [d, h]`
    pub b_proj: Linear,
    /// `[h]`
    pub a_log: Param<Tensor<1>>,
    /// `[h n]`
    pub dt_bias: Param<Tensor<1>>,
    /// Norm, gate and `W_o`
    pub output: HeadOutput,
    #[module(skip)]
    config: KdaConfig,
    #[module(skip)]
    d_model: usize,
}

/// `H_t = (I - β k kᵀ) diag(α) H_{t-1} + β k vᵀ`: decayed first, then corrected. `log_d: [b, h, t, n]`,
/// `beta: [b, h, t]`; `k` has unit length.
pub fn kda_system(log_d: Tensor<4>, beta: Tensor<3>, q: Tensor<4>, k: Tensor<4>, v: Tensor<4>) -> System {
    let a = k.clone() * log_d.clone().exp();
    let write = k * beta.unsqueeze_dim::<4>(3);
    System::outer(Transition::Householder { log_d, a, b: write.clone().neg() }, q, write, v)
}

impl Kda {
    /// The system from queries, keys and values behind their convolutions, from `a = W_f (W_r x)`, and from `b = W_b x`,
    /// unless that is still to be made of `x`.
    fn rule(&self, [q, k, v]: [Tensor<3>; 3], a: Tensor<3>, b: Option<Tensor<3>>, x: Tensor<3>) -> System {
        let (heads, bound) = (self.config.heads, self.config.decay_bound);
        let gain = (self.config.head_dim as f64).powf(-0.5);
        let most = if self.config.negative_eigenvalues { 2.0 } else { 1.0 };
        let v = split_heads(v, heads);
        #[cfg(feature = "cube")]
        if kernels::enabled() && kernels::linear::on_graphics(&q) {
            let b = Some(b.clone().map_or_else(|| of_heads(&x, &self.b_proj), kernels::HeadInputs::Made));
            let (dt_bias, a_log) = (self.dt_bias.val(), self.a_log.val());
            let decay = Some(kernels::Decaying::Channels { a: a.clone(), dt_bias, a_log, bound });
            let (q, k) = (q.clone(), k.clone());
            let rule = kernels::DeltaRule { q, k, b, decay, heads, gain, most, eps: UNIT_EPS };
            if let Some(system) = rule.system(&v) {
                return system;
            }
        }
        let [q, k] = [q, k].map(|x| l2_normalize(split_heads(x, heads), UNIT_EPS));
        let b = b.unwrap_or_else(|| self.b_proj.forward(x));
        let beta = scaled_sigmoid(b, most).swap_dims(1, 2);
        let f = split_heads(a + self.dt_bias.val().unsqueeze(), heads);
        let rate = self.a_log.val().exp().reshape([1, heads, 1, 1]);
        let log_d = match bound {
            Some(bound) => scaled_sigmoid(f * rate, -bound),
            None => softplus(f) * rate.neg(),
        };
        kda_system(log_d, beta, q, k, v).with_gain(gain)
    }
}

impl LinearMixer for Kda {
    /// Output gate, `[b, t, h p]`.
    type Aux = Option<Gated<3>>;

    fn d_model(&self) -> usize {
        self.d_model
    }

    fn initial_state(&self, batch: usize) -> State {
        let HeadSizes { heads, n, p, .. } = self.config.sizes();
        self.qkv.initial_state([batch, heads, n, p])
    }

    fn system(&self, x: Tensor<3>, state: &mut State, run: Run<'_>) -> Result<(System, Self::Aux)> {
        let step = Some(&self.b_proj).filter(|_| !made_by_the_rule(&x));
        let others = [&self.decay_down].into_iter().chain(step).chain(self.output.first_gate_map());
        let others: Vec<Ended<'_>> = others.map(Ended::from).collect();
        let (qkv, rest) = self.qkv.forward_with(x.clone(), &others, state, run)?;
        let mut rest = rest.into_iter();
        let a = self.decay_proj.forward(rest.next().expect("the map to the decay comes first"));
        let b = step.and_then(|_| rest.next());
        Ok((self.rule(qkv, a, b, x), self.output.gate_of(rest.next())))
    }

    fn readout(&self, y: Tensor<4>, gate: Self::Aux) -> Tensor<3> {
        self.output.forward(y, gate)
    }

    fn cost(&self, batch: usize, time: usize, form: Form) -> Cost {
        let HeadSizes { heads: h, n, p, .. } = self.config.sizes();
        let decay = self.decay_down.num_params() + self.decay_proj.num_params();
        let maps = 2 * (self.qkv.num_params() + decay + self.b_proj.num_params()) + self.output.flops();
        let core = h * Cost::rank_one_core(n, p, time, form);
        Cost::of(self, (maps + core) as f64, batch, time)
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::delta::delta_system;
    use crate::system::{Mixer, engine};
    use crate::testing::{Draw, gap, numbers};

    fn build(config: KdaConfig) -> Kda {
        config.init(8, &mut Init::new(5, &Device::flex())).unwrap()
    }

    #[test]
    fn with_equal_channels_it_is_gated_deltanet() {
        let mut draw = Draw::new(1);
        let [q, k] = [0, 1].map(|_| l2_normalize(draw.tensor::<4>([2, 3, 19, 5], -1.0, 1.0), 0.0));
        let v = draw.tensor::<4>([2, 3, 19, 4], -1.0, 1.0);
        let (log, beta) = (draw.tensor::<3>([2, 3, 19], -2.0, 0.0), draw.tensor::<3>([2, 3, 19], 0.0, 2.0));
        let memory = draw.tensor::<4>([2, 3, 5, 4], -1.0, 1.0);
        let channels = log.clone().unsqueeze_dim::<4>(3).expand([2, 3, 19, 5]);
        for form in [Form::Recurrent, Form::Chunked { size: 6 }, Form::Parallel] {
            let ours = kda_system(channels.clone(), beta.clone(), q.clone(), k.clone(), v.clone());
            let theirs = delta_system(log.clone(), beta.clone(), q.clone(), k.clone(), v.clone());
            let (y, last) = engine::run(ours, memory.clone(), form).unwrap();
            let (other, other_last) = engine::run(theirs, memory.clone(), Form::Recurrent).unwrap();
            assert!(gap(y, other) < 1e-5 && gap(last, other_last) < 1e-5, "{form}");
        }
    }

    /// Far out, the softplus grows without bound and the bounded decay stays where it is.
    #[test]
    fn a_bounded_decay_keeps_its_bound() {
        let log_of = |decay_bound| {
            let layer = build(KdaConfig { heads: 2, head_dim: 4, decay_bound, ..Default::default() });
            let x = Draw::new(1).tensor([1, 40, 8], -50.0, 50.0);
            let state = &mut LinearMixer::initial_state(&layer, 1);
            let (system, _) = layer.system(x, state, Run::default()).unwrap();
            let Transition::Householder { log_d, .. } = system.transition else { panic!("rank one") };
            numbers(log_d).into_iter().fold(0.0, f64::min)
        };
        assert!(log_of(Some(5.0)) >= -5.0 && log_of(Some(5.0)) < -4.9);
        assert!(log_of(None) < -100.0);
    }

    /// Eigenvalues of `(I - β k kᵀ) diag(α)` stay in the unit disc for `β` up to 2, and 2,000 tokens keep the
    /// memory within what is written.
    #[test]
    fn it_stays_stable_with_negative_eigenvalues() {
        let config = KdaConfig { heads: 2, head_dim: 4, negative_eigenvalues: true, ..Default::default() };
        let layer = build(config);
        let x = Draw::new(1).tensor([1, 30, 8], -9.0, 9.0);
        let start = Mixer::initial_state(&layer, 1);
        let moduli = numbers(layer.views(x, start.clone()).unwrap().spectrum.unwrap().modulus());
        assert!(moduli.iter().all(|&modulus| modulus <= 1.0 + 1e-5));
        let x = Draw::new(2).tensor([1, 2000, 8], -9.0, 9.0);
        let (y, last) = layer.forward(x, start, Form::Auto).unwrap();
        assert!(numbers(y).iter().all(|y| y.is_finite()));
        let memory = numbers(last.get::<4>(crate::system::MEMORY).unwrap());
        assert!(memory.iter().all(|entry| entry.abs() < 1e3));
    }

    /// A memory that is forgotten whole has its eigenvalues at 0.
    #[test]
    fn a_decay_to_nothing_has_a_spectrum() {
        let layer = build(KdaConfig { heads: 2, head_dim: 8, ..Default::default() });
        let x = Draw::new(1).tensor([1, 20, 8], -1e4, 1e4);
        let spectrum = layer.views(x, Mixer::initial_state(&layer, 1)).unwrap().spectrum.unwrap();
        let moduli = numbers(spectrum.modulus());
        assert!(moduli.iter().any(|&modulus| modulus < 1e-6));
        assert!(moduli.iter().all(|&modulus| modulus <= 1.0 + 1e-5));
    }

    #[test]
    fn impossible_settings_are_refused() {
        let refused = |config: KdaConfig, field: &str| {
            let error = config.init(8, &mut Init::new(0, &Device::flex())).unwrap_err().to_string();
            assert!(error.contains(&format!("`{field}`")), "{error}");
        };
        let ok = KdaConfig::default();
        refused(KdaConfig { heads: 0, ..ok.clone() }, "heads");
        refused(KdaConfig { rank: Some(0), ..ok.clone() }, "rank");
        refused(KdaConfig { decay_bound: Some(-5.0), ..ok.clone() }, "decay_bound");
        refused(KdaConfig { dt_min: 0.0, ..ok.clone() }, "dt_min");
        refused(KdaConfig { dt_max: 1e-4, ..ok }, "dt_max");
    }
}
