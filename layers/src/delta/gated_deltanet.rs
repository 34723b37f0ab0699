//! Gated DeltaNet (Yang et al., arXiv 2412.06464): a decayed memory that is corrected, not only added to.
//!
//! ```text
//! q, k = l2norm(silu(conv(W x))),  v = silu(conv(W_v x))
//! β = sigmoid(W_b x)                       write strength (×2 if negative eigenvalues are allowed)
//! log α = -exp(A_log) softplus(W_a x + dt_bias)
//! H_t = α_t (I - β_t k_t k_tᵀ) H_{t-1} + β_t k_t v_tᵀ,     y_t = H_tᵀ q_t / √n      (Eq. 10)
//! out = W_o (rmsnorm(y) ∘ silu(W_g x))
//! ```
//!
//! | symbol | shape |
//! | --- | --- |
//! | q, k | `[b, h, t, n]` (`n` = `head_dim`) |
//! | v, y | `[b, h, t, p]` (`p` = `expand_v · head_dim`) |
//! | α, β | `[b, h, t]` |
//! | H | `[b, h, n, p]` |

use burn::module::Module;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

#[cfg(feature = "cube")]
use super::parts::of_heads;
use super::parts::{
    HeadDecay, HeadOutput, HeadSizes, OutputGate, Qkv, UNIT_EPS, check_steps, made_by_the_rule,
};
use crate::error::require;
#[cfg(feature = "cube")]
use crate::kernels;
use crate::nn::{
    Activation, Ended, Gated, Linear, Normalize, Scaling, erase, repeat_heads, scaled_sigmoid, split_heads,
};
use crate::system::{Cost, Form, LinearMixer, Run, State, System, Transition};
use crate::{Init, Result};

const NAME: &str = "gated_deltanet";

/// Sizes and switches of [`GatedDeltaNet`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GatedDeltaNetConfig {
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
    /// Let `β` range over (0, 2), so that eigenvalues range over (-1, 1).
    pub negative_eigenvalues: bool,
    /// Smallest step `softplus(dt_bias)` drawn at the start.
    pub dt_min: f64,
    /// Largest step drawn at the start; small steps are long memories.
    pub dt_max: f64,
    /// Added to the mean square in the output norm.
    pub norm_eps: f64,
}

impl Default for GatedDeltaNetConfig {
    fn default() -> Self {
        Self {
            heads: 4,
            value_heads: None,
            head_dim: 32,
            expand_v: 1.0,
            conv_kernel: 4,
            negative_eigenvalues: false,
            dt_min: 1e-3,
            dt_max: 0.1,
            norm_eps: 1e-6,
        }
    }
}

impl GatedDeltaNetConfig {
    fn sizes(&self) -> HeadSizes {
        HeadSizes::new(self.heads, self.value_heads, self.head_dim, self.expand_v)
    }

    /// Checks the values and draws the parameters for width `d_model`.
    ///
    /// # Errors
    /// For zero sizes or value heads that do not divide over the query heads.
    pub fn init(&self, d_model: usize, init: &mut Init) -> Result<GatedDeltaNet> {
        let sizes = self.sizes();
        sizes.check(NAME, d_model, self.expand_v)?;
        check_steps(NAME, self.dt_min, self.dt_max)?;
        require(self.norm_eps > 0.0, NAME, "norm_eps", self.norm_eps, "must be positive")?;
        let HeadSizes { value_heads: hv, p, .. } = sizes;
        let gate = OutputGate::Full;
        Ok(GatedDeltaNet {
            qkv: Qkv::init(sizes, 1, self.conv_kernel, Activation::Silu, d_model, init),
            a_proj: init.linear(d_model, hv),
            b_proj: init.linear(d_model, hv),
            output: HeadOutput::init([hv, p], gate, Activation::Silu, self.norm_eps, d_model, init),
            decay: HeadDecay::init(hv, self.dt_min, self.dt_max, init),
            config: self.clone(),
            d_model,
        })
    }
}

/// The layer; see the module's equations. Built by [`GatedDeltaNetConfig::init`].
#[derive(Module, Debug)]
pub struct GatedDeltaNet {
    /// Queries, keys and values
    pub qkv: Qkv,
    /// `W_a: [d, h]`
    pub a_proj: Linear,
    /// `W_b: [d, h]`
    pub b_proj: Linear,
    /// `α`
    pub decay: HeadDecay,
    /// Norm, gate and `W_o`
    pub output: HeadOutput,
    #[module(skip)]
    config: GatedDeltaNetConfig,
    #[module(skip)]
    d_model: usize,
}

/// `H_t = α (I - β k kᵀ) H_{t-1} + β k vᵀ` as a diagonal-plus-rank-one [`System`]. `log_a`, `beta`:
/// `[b, h, t]`; `k` has unit length.
pub fn delta_system(log_a: Tensor<3>, beta: Tensor<3>, q: Tensor<4>, k: Tensor<4>, v: Tensor<4>) -> System {
    let log_d = log_a.unsqueeze_dim::<4>(3);
    let beta = beta.unsqueeze_dim::<4>(3);
    let write = k.clone() * beta;
    let b = erase(write.clone(), log_d.clone());
    System::outer(Transition::Householder { log_d, a: k, b }, q, write, v)
}

impl GatedDeltaNet {
    /// The system from queries, keys and values behind their convolutions, and from `W_a x` and `W_b x`, unless those are
    /// still to be made of `x`.
    fn rule(&self, [q, k, v]: [Tensor<3>; 3], made: Option<[Tensor<3>; 2]>, x: Tensor<3>) -> System {
        let sizes = self.config.sizes();
        let v = split_heads(v, sizes.value_heads);
        let (gain, eps) = ((sizes.n as f64).powf(-0.5), UNIT_EPS);
        let most = if self.config.negative_eigenvalues { 2.0 } else { 1.0 };
        #[cfg(feature = "cube")]
        if kernels::enabled() && kernels::linear::on_graphics(&q) {
            let [a, b] = match &made {
                Some(both) => both.clone().map(kernels::HeadInputs::Made),
                None => [&self.a_proj, &self.b_proj].map(|map| of_heads(&x, map)),
            };
            let HeadDecay { a_log, dt_bias } = &self.decay;
            let decay = Some(kernels::Decaying::Heads { a, dt_bias: dt_bias.val(), a_log: a_log.val() });
            let (q, k, b, heads) = (q.clone(), k.clone(), Some(b), sizes.heads);
            let rule = kernels::DeltaRule { q, k, b, decay, heads, gain, most, eps };
            if let Some(system) = rule.system(&v) {
                return system;
            }
        }
        let [a, b] = made.unwrap_or_else(|| [&self.a_proj, &self.b_proj].map(|map| map.forward(x.clone())));
        let unit = |x, gain| {
            let norm = Normalize::plain(Scaling { gain, ..Scaling::l2(eps) });
            repeat_heads(norm.run(split_heads(x, sizes.heads), None), sizes.group())
        };
        let beta = scaled_sigmoid(b, most).swap_dims(1, 2);
        delta_system(self.decay.forward(a), beta, unit(q, gain), unit(k, 1.0), v)
    }
}

impl LinearMixer for GatedDeltaNet {
    /// Output gate, `[b, t, h p]`.
    type Aux = Option<Gated<3>>;

    fn d_model(&self) -> usize {
        self.d_model
    }

    fn initial_state(&self, batch: usize) -> State {
        let HeadSizes { value_heads, n, p, .. } = self.config.sizes();
        self.qkv.initial_state([batch, value_heads, n, p])
    }

    fn system(&self, x: Tensor<3>, state: &mut State, run: Run<'_>) -> Result<(System, Self::Aux)> {
        let later = made_by_the_rule(&x);
        let now = if later { &[][..] } else { &[&self.a_proj, &self.b_proj] };
        let others = now.iter().copied().chain(self.output.first_gate_map());
        let others: Vec<Ended<'_>> = others.map(Ended::from).collect();
        let (qkv, rest) = self.qkv.forward_with(x.clone(), &others, state, run)?;
        let mut rest = rest.into_iter();
        let made =
            (!later).then(|| [(); 2].map(|()| rest.next().expect("the maps to decay and step come first")));
        Ok((self.rule(qkv, made, x), self.output.gate_of(rest.next())))
    }

    fn readout(&self, y: Tensor<4>, gate: Self::Aux) -> Tensor<3> {
        self.output.forward(y, gate)
    }

    fn cost(&self, batch: usize, time: usize, form: Form) -> Cost {
        let HeadSizes { value_heads: hv, n, p, .. } = self.config.sizes();
        let maps = 2 * (self.qkv.num_params() + 2 * self.d_model * hv) + self.output.flops();
        let core = hv * Cost::rank_one_core(n, p, time, form);
        Cost::of(self, (maps + core) as f64, batch, time)
    }
}
