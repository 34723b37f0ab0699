//! Diagonal plus low rank, in general: what the memory forgets, what it reads before writing and where it adds that
//! back are functions of the token of their own, apart from the key it writes. DeltaNet and its gated forms, identity
//! plus low rank and the transition of RWKV-7 (arXiv 2503.14456) are members.
//!
//! ```text
//! q, k = l2norm(silu(conv(W x))),  v = silu(conv(W_v x)),   a = l2norm(silu(conv(W_e x)))
//! Λ_t = diag(d_t) + b_t a_tᵀ
//! d = 1                                                                        decay: none
//! d = α,      log α = -exp(A_log) softplus(W_a x + dt_bias)                    per head
//! d = α δ,    log δ = logsigmoid(W_c (W_r x) + bias) / 16                      per channel
//! contraction:  b = -β d∘a + (1 - α) w,   β = sigmoid(W_b x) (×2),   w = u / √(1 + |u|²),  u = W_u x
//! rates:        b = -i∘a,                 i = sigmoid(W_b x) per channel
//! H_t = Λ_t H_{t-1} + (β_t or i_t)∘k_t v_tᵀ,   y_t = H_tᵀ q_t / √n,   out = W_o (rmsnorm(y) ∘ silu(W_g x))
//! ```
//!
//! A free `b` would let the memory grow without bound. A *contraction* never grows in norm, whatever the tokens:
//! `|Λ| = |diag(d)(I - β a aᵀ) + (1 - α) w aᵀ| ≤ α · 1 + (1 - α) · 1`, as `d ≤ α`, `|a| ≤ 1`, `|w| < 1` and `β` in
//! (0, 2). So `b` is free within what the decay leaves; without decay only the delta rule remains, for a matrix that
//! leaves all `x ⟂ a` alone and lengthens nothing has `b ∥ a`. *Rates* bound each token by itself: `Λ` is similar to
//! the symmetric `diag(d) - s sᵀ`, `s = √i∘a`, so its eigenvalues are real and in (-1, 1]. That is RWKV-7's bound, and
//! with no decay that of identity plus low rank.
//!
//! | symbol | shape |
//! | --- | --- |
//! | q, k, a, b, w, i, δ | `[b, h, t, n]` (`n` = `head_dim`) |
//! | v, y | `[b, h, t, p]` (`p` = `expand_v · head_dim`) |
//! | α, β | `[b, h, t]` |
//! | H | `[b, h, n, p]` |

use burn::module::Module;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::parts::{HeadDecay, HeadOutput, HeadSizes, OutputGate, Qkv, check_steps, short_convolution};
use crate::error::require;
use crate::nn::{
    Activation, CausalConv, Gated, Linear, l2_normalize, log_sigmoid, put_tail, scaled_sigmoid, short_conv,
    split_heads,
};
use crate::system::{Cost, Form, LinearMixer, Run, State, System, Transition};
use crate::{Init, Result};

const NAME: &str = "dplr";
const CONV: &str = "conv_erase";

/// Divides the logarithm of a channel's decay, as in gated linear attention.
const TEMPERATURE: f64 = 16.0;

/// The diagonal `d`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DplrDecay {
    /// 1
    None,
    /// One per head.
    Head,
    /// One per channel, below the head's.
    #[default]
    Channel,
}

/// How the rank-one part is bounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DplrBound {
    /// No token lengthens the memory: `|Λ_t| ≤ 1`.
    #[default]
    Contraction,
    /// The eigenvalues of each `Λ_t` are real and in (-1, 1].
    Rates,
}

/// Sizes and switches of [`Dplr`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DplrConfig {
    /// Heads.
    pub heads: usize,
    /// Key size `n` of a head.
    pub head_dim: usize,
    /// Value size over key size.
    pub expand_v: f64,
    /// Kernel width of the short convolution; 0 for none.
    pub conv_kernel: usize,
    /// The diagonal.
    pub decay: DplrDecay,
    /// Width between the two maps of the decay per channel.
    pub decay_rank: usize,
    /// The bound of the rank-one part.
    pub bound: DplrBound,
    /// Let `β` range over (0, 2), so that eigenvalues range over (-1, 1); for contractions.
    pub negative_eigenvalues: bool,
    /// Smallest step `softplus(dt_bias)` drawn at the start.
    pub dt_min: f64,
    /// Largest step drawn at the start; small steps are long memories.
    pub dt_max: f64,
    /// Added to the mean square in the output norm.
    pub norm_eps: f64,
}

impl Default for DplrConfig {
    fn default() -> Self {
        Self {
            heads: 4,
            head_dim: 32,
            expand_v: 1.0,
            conv_kernel: 4,
            decay: DplrDecay::Channel,
            decay_rank: 16,
            bound: DplrBound::Contraction,
            negative_eigenvalues: false,
            dt_min: 1e-3,
            dt_max: 0.1,
            norm_eps: 1e-5,
        }
    }
}

impl DplrConfig {
    fn sizes(&self) -> HeadSizes {
        HeadSizes::new(self.heads, None, self.head_dim, self.expand_v)
    }

    /// Checks the values and draws the parameters for width `d_model`.
    ///
    /// # Errors
    /// For zero sizes, or negative eigenvalues asked of rates.
    pub fn init(&self, d_model: usize, init: &mut Init) -> Result<Dplr> {
        let sizes = self.sizes();
        sizes.check(NAME, d_model, self.expand_v)?;
        check_steps(NAME, self.dt_min, self.dt_max)?;
        require(self.decay_rank > 0, NAME, "decay_rank", self.decay_rank, "must be positive")?;
        let contraction = self.bound == DplrBound::Contraction;
        let expected = "rates above 1 leave the unit disc: use `bound` = `contraction`";
        require(contraction || !self.negative_eigenvalues, NAME, "negative_eigenvalues", true, expected)?;
        require(self.norm_eps > 0.0, NAME, "norm_eps", self.norm_eps, "must be positive")?;
        let HeadSizes { heads: h, n, p, .. } = sizes;
        let decays = self.decay != DplrDecay::None;
        let channels = self.decay == DplrDecay::Channel;
        let rank = self.decay_rank;
        Ok(Dplr {
            qkv: Qkv::init(sizes, 1, self.conv_kernel, Activation::Silu, d_model, init),
            conv_erase: short_convolution(self.conv_kernel, Activation::Silu, h * n, init),
            erase_proj: init.linear(d_model, h * n),
            b_proj: init.linear(d_model, if contraction { h } else { h * n }),
            push_proj: (contraction && decays).then(|| init.linear(d_model, h * n)),
            a_proj: decays.then(|| init.linear(d_model, h)),
            decay: decays.then(|| HeadDecay::init(h, self.dt_min, self.dt_max, init)),
            decay_down: channels.then(|| init.linear(d_model, rank)),
            decay_proj: channels.then(|| init.linear_std(rank, h * n, (1.0 / rank as f64).sqrt(), true)),
            output: HeadOutput::init(
                [h, p],
                OutputGate::Full,
                Activation::Silu,
                self.norm_eps,
                d_model,
                init,
            ),
            config: self.clone(),
            d_model,
        })
    }
}

/// The layer; see the module's equations. Built by [`DplrConfig::init`].
#[derive(Module, Debug)]
pub struct Dplr {
    /// Queries, keys and values
    pub qkv: Qkv,
    /// `W_e: [d, h n]`
    pub erase_proj: Linear,
    /// Short convolution on `a`
    pub conv_erase: Option<CausalConv>,
    /// `W_b: [d, h]`, or `[d, h n]` for rates
    pub b_proj: Linear,
    /// `W_u: [d, h n]`
    pub push_proj: Option<Linear>,
    /// `W_a: [d, h]`
    pub a_proj: Option<Linear>,
    /// `α`
    pub decay: Option<HeadDecay>,
    /// `W_r: [d, rank]`
    pub decay_down: Option<Linear>,
    /// `W_c: [rank, h n]`
    pub decay_proj: Option<Linear>,
    /// Norm, gate and `W_o`
    pub output: HeadOutput,
    #[module(skip)]
    config: DplrConfig,
    #[module(skip)]
    d_model: usize,
}

impl LinearMixer for Dplr {
    /// Output gate, `[b, t, h p]`.
    type Aux = Option<Gated<3>>;

    fn d_model(&self) -> usize {
        self.d_model
    }

    fn initial_state(&self, batch: usize) -> State {
        let HeadSizes { heads, n, p, .. } = self.config.sizes();
        let mut state = self.qkv.initial_state([batch, heads, n, p]);
        put_tail(&mut state, CONV, &self.conv_erase);
        state
    }

    fn system(&self, x: Tensor<3>, state: &mut State, run: Run<'_>) -> Result<(System, Self::Aux)> {
        let (h, n) = (self.config.heads, self.config.head_dim);
        let [q, k, v] = self.qkv.forward(x.clone(), state, run)?.map(|x| split_heads(x, h));
        let a = short_conv(CONV, &self.conv_erase, self.erase_proj.forward(x.clone()), state, run)?;
        let [q, k, a] = [q, k, split_heads(a, h)].map(|x| l2_normalize(x, 1e-6));
        let q = q.mul_scalar((n as f64).powf(-0.5));

        // [b, h, t, 1], or [b, h, t, n] for rates
        let beta = scaled_sigmoid(split_heads(self.b_proj.forward(x.clone()), h), 1.0);
        let beta = if self.config.negative_eigenvalues { beta.mul_scalar(2.0) } else { beta };
        let log_alpha = self.log_alpha(&x);
        let log_d = self.log_diagonal(&x, &log_alpha);
        let erase = (beta.clone() * a.clone()).neg();
        let b = match (self.config.bound, log_alpha, &self.push_proj) {
            (DplrBound::Rates, ..) => erase,
            (DplrBound::Contraction, Some(log_alpha), Some(map)) => {
                let u = split_heads(map.forward(x.clone()), h);
                let w = u.clone() / u.square().sum_dim(3).add_scalar(1.0).sqrt();
                erase * log_d.clone().exp() + w * (log_alpha.exp().neg() + 1.0)
            }
            (DplrBound::Contraction, ..) => erase,
        };
        let system = System::outer(Transition::Householder { log_d, a, b }, q, beta * k, v);
        Ok((system, self.output.gate(x)))
    }

    fn readout(&self, y: Tensor<4>, gate: Self::Aux) -> Tensor<3> {
        self.output.forward(y, gate)
    }

    fn cost(&self, batch: usize, time: usize, form: Form) -> Cost {
        let HeadSizes { heads: h, n, p, .. } = self.config.sizes();
        let gates = self.b_proj.num_params() + self.push_proj.num_params() + self.a_proj.num_params();
        let channels = self.decay_down.num_params() + self.decay_proj.num_params();
        let erase = self.erase_proj.num_params() + self.conv_erase.num_params();
        let maps = 2 * (self.qkv.num_params() + erase + gates + channels) + self.output.flops();
        let core = h * Cost::rank_one_core(n, p, time, form);
        Cost::of(self, (maps + core) as f64, batch, time)
    }
}

impl Dplr {
    /// `log α: [b, h, t, 1]`
    fn log_alpha(&self, x: &Tensor<3>) -> Option<Tensor<4>> {
        let (map, decay) = self.a_proj.as_ref().zip(self.decay.as_ref())?;
        Some(decay.forward(map.forward(x.clone())).unsqueeze_dim(3))
    }

    /// `log d: [b, h, t, 1]`, or `[b, h, t, n]` for a decay per channel.
    fn log_diagonal(&self, x: &Tensor<3>, log_alpha: &Option<Tensor<4>>) -> Tensor<4> {
        let h = self.config.heads;
        let Some(log_alpha) = log_alpha else {
            let [b, t, _] = x.dims();
            return Tensor::zeros([b, h, t, 1], (&x.device().inner(), x.dtype()));
        };
        match self.decay_down.as_ref().zip(self.decay_proj.as_ref()) {
            Some((down, up)) => {
                let f = split_heads(up.forward(down.forward(x.clone())), h);
                log_sigmoid(f).mul_scalar(1.0 / TEMPERATURE) + log_alpha.clone()
            }
            None => log_alpha.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::delta::DeltaNetConfig;
    use crate::params;
    use crate::system::{MEMORY, Mixer, engine};
    use crate::testing::{Draw, gap, numbers};

    fn small(decay: DplrDecay, bound: DplrBound) -> DplrConfig {
        let negative_eigenvalues = bound == DplrBound::Contraction;
        DplrConfig { heads: 2, head_dim: 4, decay, bound, negative_eigenvalues, ..Default::default() }
    }

    fn build(config: &DplrConfig) -> Dplr {
        config.init(8, &mut Init::new(5, &Device::flex())).unwrap()
    }

    /// Without decay, and reading at the key it writes, it is DeltaNet.
    #[test]
    fn without_decay_it_is_deltanet() {
        let ours = build(&small(DplrDecay::None, DplrBound::Contraction));
        let mut shared = params::parameters(&ours);
        let key = |name: &str| shared[name].clone();
        let (map, kernel) = (key("qkv.k_proj.weight"), key("qkv.conv_k.weight"));
        shared.insert("erase_proj.weight".into(), map);
        shared.insert("conv_erase.weight".into(), kernel);
        let ours = params::assign(ours, shared.clone()).unwrap();
        shared.retain(|name, _| !name.contains("erase"));
        let plain = DeltaNetConfig {
            heads: 2,
            head_dim: 4,
            negative_eigenvalues: true,
            output_gate: true,
            ..Default::default()
        };
        let plain = plain.init(8, &mut Init::new(0, &Device::flex())).unwrap();
        let plain = params::assign(plain, shared).unwrap();
        let x = Draw::new(6).tensor([2, 11, 8], -2.0, 2.0);
        let (y, _) = ours.forward(x.clone(), Mixer::initial_state(&ours, 2), Form::Auto).unwrap();
        let (other, _) = plain.forward(x, Mixer::initial_state(&plain, 2), Form::Recurrent).unwrap();
        assert!(gap(y, other) < 1e-5);
    }

    /// With nothing written, no token of any kind lengthens the memory.
    #[test]
    fn a_contraction_never_grows() {
        for decay in [DplrDecay::None, DplrDecay::Head, DplrDecay::Channel] {
            let layer = build(&small(decay, DplrBound::Contraction));
            let mut draw = Draw::new(7);
            let x = draw.tensor([1, 40, 8], -9.0, 9.0);
            let state = &mut LinearMixer::initial_state(&layer, 1);
            let (system, _) = layer.system(x, state, Run::default()).unwrap();
            // Columns of the memory are vectors of their own: the largest singular value shows in one of many.
            let mut memory = draw.tensor::<4>([1, 2, 4, 64], -1.0, 1.0);
            for t in 0..40 {
                let Transition::Householder { log_d, a, b } = &system.transition else { panic!("rank one") };
                let [log_d, a, b] = [log_d, a, b].map(|x| x.clone().narrow(2, t, 1));
                let zero = a.zeros_like();
                let nothing = zero.clone().narrow(3, 0, 1).expand([1, 2, 1, 64]);
                let token =
                    System::outer(Transition::Householder { log_d, a, b }, zero.clone(), zero, nothing);
                let (_, next) = engine::run(token, memory.clone(), Form::Recurrent).unwrap();
                let lengths = |h: Tensor<4>| numbers(h.square().sum_dim(2).sqrt());
                for (after, before) in lengths(next.clone()).into_iter().zip(lengths(memory)) {
                    assert!(after <= before * (1.0 + 1e-5), "{decay:?}, token {t}: {before} to {after}");
                }
                memory = next;
            }
        }
    }

    /// The eigenvalues of RWKV-7's transition are real and in the unit interval.
    #[test]
    fn rates_bound_the_eigenvalues() {
        for decay in [DplrDecay::None, DplrDecay::Head, DplrDecay::Channel] {
            let layer = build(&small(decay, DplrBound::Rates));
            let x = Draw::new(7).tensor([1, 40, 8], -9.0, 9.0);
            let spectrum = layer.views(x, Mixer::initial_state(&layer, 1)).unwrap().spectrum.unwrap();
            assert!(numbers(spectrum.re).iter().all(|re| (-1.0..=1.0 + 1e-5).contains(re)), "{decay:?}");
            let imaginary = spectrum.im.map(numbers).unwrap_or_default();
            assert!(imaginary.iter().all(|im| im.abs() < 1e-3), "{decay:?}");
        }
    }

    #[test]
    fn two_thousand_tokens_stay_bounded() {
        let x = Draw::new(2).tensor([1, 2000, 8], -9.0, 9.0);
        for bound in [DplrBound::Contraction, DplrBound::Rates] {
            let layer = build(&small(DplrDecay::Channel, bound));
            let start = Mixer::initial_state(&layer, 1);
            let (y, last) = layer.forward(x.clone(), start, Form::Auto).unwrap();
            assert!(numbers(y).iter().all(|y| y.is_finite()));
            assert!(numbers(last.get::<4>(MEMORY).unwrap()).iter().all(|entry| entry.abs() < 1e3));
        }
    }

    #[test]
    fn impossible_settings_are_refused() {
        let refused = |config: DplrConfig, field: &str| {
            let error = config.init(8, &mut Init::new(0, &Device::flex())).unwrap_err().to_string();
            assert!(error.contains(&format!("`{field}`")), "{error}");
        };
        let rates = small(DplrDecay::Head, DplrBound::Rates);
        refused(DplrConfig { negative_eigenvalues: true, ..rates.clone() }, "negative_eigenvalues");
        refused(DplrConfig { decay_rank: 0, ..rates.clone() }, "decay_rank");
        refused(DplrConfig { head_dim: 0, ..rates }, "head_dim");
    }
}
