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

use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::tensor::{Tensor, activation};
use serde::{Deserialize, Serialize};

use crate::error::require;
use crate::nn::{
    CausalConv, CausalConvConfig, RmsNorm, l2_normalize, merge_heads, repeat_heads, short_conv, softplus,
    split_heads,
};
use crate::system::{Cost, Form, LinearMixer, MEMORY, Run, State, System, Transition};
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
    fn sizes(&self) -> (usize, usize, usize, usize) {
        let value_heads = self.value_heads.unwrap_or(self.heads);
        let p = (self.head_dim as f64 * self.expand_v).round() as usize;
        (self.heads, value_heads, self.head_dim, p)
    }

    /// Checks the values and draws the parameters for width `d_model`.
    ///
    /// # Errors
    /// For zero sizes or value heads that do not divide over the query heads.
    pub fn init(&self, d_model: usize, init: &mut Init) -> Result<GatedDeltaNet> {
        let (h, hv, n, p) = self.sizes();
        require(d_model > 0, NAME, "d_model", d_model, "must be positive")?;
        require(h > 0, NAME, "heads", h, "must be positive")?;
        require(n > 0, NAME, "head_dim", n, "must be positive")?;
        require(p > 0, NAME, "expand_v", self.expand_v, "must leave a positive value size")?;
        require(hv > 0 && hv % h == 0, NAME, "value_heads", hv, "must be a multiple of `heads`")?;
        require(self.dt_min > 0.0, NAME, "dt_min", self.dt_min, "must be positive")?;
        let range = self.dt_max >= self.dt_min && self.dt_max.is_finite();
        require(range, NAME, "dt_max", self.dt_max, "must be a number not below `dt_min`")?;
        require(self.norm_eps > 0.0, NAME, "norm_eps", self.norm_eps, "must be positive")?;
        let mut conv = |channels| {
            (self.conv_kernel > 0).then(|| {
                CausalConvConfig { kernel: self.conv_kernel, ..Default::default() }.init(channels, init)
            })
        };
        let (conv_q, conv_k, conv_v) = (conv(h * n), conv(h * n), conv(hv * p));
        Ok(GatedDeltaNet {
            q_proj: init.linear(d_model, h * n),
            k_proj: init.linear(d_model, h * n),
            v_proj: init.linear(d_model, hv * p),
            a_proj: init.linear(d_model, hv),
            b_proj: init.linear(d_model, hv),
            gate_proj: init.linear(d_model, hv * p),
            out_proj: init.linear(hv * p, d_model),
            conv_q,
            conv_k,
            conv_v,
            // A ~ U(0, 16), away from 0 where its logarithm is undefined
            a_log: init.log_of_uniform([hv], 1e-3, 16.0),
            dt_bias: init.inverse_softplus_dt(hv, self.dt_min, self.dt_max, 1e-4),
            norm: RmsNorm::new(p, self.norm_eps, init),
            config: self.clone(),
            d_model,
        })
    }
}

/// The layer; see the module's equations. Built by [`GatedDeltaNetConfig::init`].
#[derive(Module, Debug)]
pub struct GatedDeltaNet {
    /// `W_q: [d, h n]`
    pub q_proj: Linear,
    /// `W_k: [d, h n]`
    pub k_proj: Linear,
    /// `W_v: [d, h p]`
    pub v_proj: Linear,
    /// `W_a: [d, h]`
    pub a_proj: Linear,
    /// `W_b: [d, h]`
    pub b_proj: Linear,
    /// `W_g: [d, h p]`
    pub gate_proj: Linear,
    /// `W_o: [h p, d]`
    pub out_proj: Linear,
    /// Short convolution on `q`
    pub conv_q: Option<CausalConv>,
    /// Short convolution on `k`
    pub conv_k: Option<CausalConv>,
    /// Short convolution on `v`
    pub conv_v: Option<CausalConv>,
    /// `[h]`
    pub a_log: Param<Tensor<1>>,
    /// `[h]`
    pub dt_bias: Param<Tensor<1>>,
    /// Per head, over `p`
    pub norm: RmsNorm,
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
    let b = write.clone() * log_d.clone().exp().neg();
    System::outer(Transition::Householder { log_d, a: k, b }, q, write, v)
}

impl LinearMixer for GatedDeltaNet {
    /// Output gate before its activation, `[b, h, t, p]`.
    type Aux = Tensor<4>;

    fn d_model(&self) -> usize {
        self.d_model
    }

    fn initial_state(&self, batch: usize) -> State {
        let (_, hv, n, p) = self.config.sizes();
        let like = self.a_log.val();
        let zeros = Tensor::<4>::zeros([batch, hv, n, p], (&like.device(), like.dtype()));
        let mut state = State::new(batch).with(MEMORY, zeros);
        for (name, conv) in self.convolutions() {
            state.put(name, conv.initial_state(batch));
        }
        state
    }

    fn system(&self, x: Tensor<3>, state: &mut State, run: Run<'_>) -> Result<(System, Tensor<4>)> {
        let (h, hv, n, _) = self.config.sizes();
        let q = short_conv("conv_q", &self.conv_q, self.q_proj.forward(x.clone()), state, run)?;
        let k = short_conv("conv_k", &self.conv_k, self.k_proj.forward(x.clone()), state, run)?;
        let v = short_conv("conv_v", &self.conv_v, self.v_proj.forward(x.clone()), state, run)?;
        let scale = (n as f64).powf(-0.5);
        let q = repeat_heads(l2_normalize(split_heads(q, h), 1e-6), hv / h).mul_scalar(scale);
        let k = repeat_heads(l2_normalize(split_heads(k, h), 1e-6), hv / h);
        let v = split_heads(v, hv);

        let beta = activation::sigmoid(self.b_proj.forward(x.clone())).swap_dims(1, 2);
        let beta = if self.config.negative_eigenvalues { beta.mul_scalar(2.0) } else { beta };
        let dt = softplus(self.a_proj.forward(x.clone()) + self.dt_bias.val().unsqueeze());
        let log_a = (dt * self.a_log.val().exp().neg().unsqueeze()).swap_dims(1, 2);
        let gate = split_heads(self.gate_proj.forward(x), hv);
        Ok((delta_system(log_a, beta, q, k, v), gate))
    }

    fn readout(&self, y: Tensor<4>, gate: Tensor<4>) -> Tensor<3> {
        self.out_proj.forward(merge_heads(self.norm.forward(y) * activation::silu(gate)))
    }

    fn cost(&self, batch: usize, time: usize, form: Form) -> Cost {
        let (h, hv, n, p) = self.config.sizes();
        let d = self.d_model;
        let projections = 2 * d * (2 * h * n + 3 * hv * p + 2 * hv);
        let conv = 2 * self.config.conv_kernel * (2 * h * n + hv * p);
        let core = hv * Cost::rank_one_core(n, p, time, form);
        Cost::of(self, (projections + conv + core) as f64, batch, time)
    }
}

impl GatedDeltaNet {
    fn convolutions(&self) -> impl Iterator<Item = (&'static str, &CausalConv)> {
        [("conv_q", &self.conv_q), ("conv_k", &self.conv_k), ("conv_v", &self.conv_v)]
            .into_iter()
            .filter_map(|(name, conv)| conv.as_ref().map(|conv| (name, conv)))
    }
}
