//! Normalised attention (Sieber et al., arXiv 2405.15731): linear attention divided by a function of the token in
//! place of the sum of its scores, so that nothing has to be positive.
//!
//! ```text
//! q, k, v = φ(W_q x), φ(W_k x)/√n, W_v x
//! ν_t = ν(W_η x_t + o),     η_t = e^{ν_t}                              one per head
//! H_t = H_{t-1} + k_t v_tᵀ,     y_t = H_tᵀ q_t / η_t
//! out = W_o y
//! ```
//!
//! With the state divided by `η_t` this is the dynamical system `Λ_t = η_{t-1}/η_t`, which may also grow; the memory
//! kept here is the undivided one, in which nothing is forgotten. [`Eta`] lists the functions `ν`.
//!
//! | symbol | shape |
//! | --- | --- |
//! | q, k | `[b, h, t, m]` (`m` features of `n` = `key_dim` channels) |
//! | v, y | `[b, h, t, p]` (`p` = `value_dim`) |
//! | η | `[b, h, t]` |
//! | H | `[b, h, m, p]` |

use burn::module::{Module, Param};
use burn::tensor::{Tensor, activation};
use serde::{Deserialize, Serialize};

use super::feature_map::{FeatureMap, Features};
use super::parts::{Qkv, Sizes, channels};
use crate::nn::{Linear, log_sigmoid, merge_heads, softplus};
use crate::system::{Cost, Form, Gate, LinearMixer, Run, State, System, Transition, Views};
use crate::{Init, Result};

const NAME: &str = "normalized_attention";

/// `|ν|` beyond this counts as this, so that `1/η` stays finite.
const LIMIT: f64 = 30.0;

/// `η` as a function of `z = W_η x + o`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Eta {
    /// `e^z`, the paper's best
    Exp,
    /// `log(1 + e^z)`
    Softplus,
    /// `1 / (1 + e^{-z})`
    Sigmoid,
    /// `exp(e^z)`
    ExpExp,
    /// `exp(elu(z))`
    ExpElu,
    /// `exp(softplus(z)) = 1 + e^z`, the authors' later default
    #[default]
    ExpSoftplus,
    /// `exp(sigmoid(z))`
    ExpSigmoid,
}

impl Eta {
    /// `ν = log η`, at least -30.
    pub fn log<const D: usize>(self, z: Tensor<D>) -> Tensor<D> {
        match self {
            Self::Exp => z.clamp_min(-LIMIT),
            Self::Softplus => softplus(z).clamp_min((-LIMIT).exp()).log(),
            Self::Sigmoid => log_sigmoid(z).clamp_min(-LIMIT),
            Self::ExpExp => z.clamp_max(LIMIT).exp(),
            Self::ExpElu => activation::relu(z.clone()) + z.clamp_max(0.0).exp().sub_scalar(1.0),
            Self::ExpSoftplus => softplus(z),
            Self::ExpSigmoid => activation::sigmoid(z),
        }
    }
}

/// Sizes and switches of [`NormalizedAttention`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NormalizedAttentionConfig {
    /// Heads.
    pub heads: usize,
    /// Query and key channels `n` of a head, before the feature map; `None` for `d_model / heads`.
    pub key_dim: Option<usize>,
    /// Value channels `p` of a head; `None` for `d_model / heads`.
    pub value_dim: Option<usize>,
    /// Applied to `q` and `k`.
    pub feature_map: FeatureMap,
    /// What the output is divided by.
    pub eta: Eta,
    /// Learn an offset `o` per head, from 4 to 9 at the start, so that `1/η` starts small.
    pub offset: bool,
    /// Divide keys by `√n`.
    pub key_scale: bool,
    /// Kernel width of the short convolutions (with silu) on `q`, `k` and `v`; 0 for none.
    pub conv_kernel: usize,
}

impl Default for NormalizedAttentionConfig {
    fn default() -> Self {
        Self {
            heads: 4,
            key_dim: None,
            value_dim: None,
            feature_map: FeatureMap::Identity,
            eta: Eta::default(),
            offset: true,
            key_scale: true,
            conv_kernel: 0,
        }
    }
}

impl NormalizedAttentionConfig {
    /// Checks the values and draws the parameters for width `d_model`.
    ///
    /// # Errors
    /// For zero sizes, heads that do not divide the width, or a feature map that cannot be.
    pub fn init(&self, d_model: usize, init: &mut Init) -> Result<NormalizedAttention> {
        let n = channels(self.key_dim, d_model, 1.0, self.heads, NAME, "key_dim")?;
        let sizes = Sizes {
            heads: self.heads,
            kv_heads: self.heads,
            n,
            p: channels(self.value_dim, d_model, 1.0, self.heads, NAME, "value_dim")?,
            conv_kernel: self.conv_kernel,
            conv_bias: false,
        };
        let sizes = sizes.check(NAME, d_model)?;
        let heads = sizes.heads;
        let offsets = (0..heads).map(|h| 4.0 + 5.0 * h as f32 / (heads.max(2) - 1) as f32).collect();
        Ok(NormalizedAttention {
            qkv: Qkv::new(d_model, sizes, init),
            eta_proj: init.linear(d_model, heads),
            offset: self.offset.then(|| init.param([heads], offsets)),
            out_proj: init.linear(heads * sizes.p, d_model),
            features: self.feature_map.init(n, NAME, init)?,
            config: self.clone(),
            sizes,
            d_model,
        })
    }
}

/// The layer; see the module's equations. Built by [`NormalizedAttentionConfig::init`].
#[derive(Module, Debug)]
pub struct NormalizedAttention {
    /// `W_q`, `W_k`, `W_v` and convolutions
    pub qkv: Qkv,
    /// `W_η: [d, h]`
    pub eta_proj: Linear,
    /// `o: [h]`
    pub offset: Option<Param<Tensor<1>>>,
    /// `W_o: [h p, d]`
    pub out_proj: Linear,
    /// `φ` of queries and keys
    pub features: Features,
    #[module(skip)]
    config: NormalizedAttentionConfig,
    #[module(skip)]
    sizes: Sizes,
    #[module(skip)]
    d_model: usize,
}

/// `H_t = H_{t-1} + k_t v_tᵀ`, `y_t = H_tᵀ q_t / η_t` with `log_eta: [b, h, t]`.
pub fn normalized_system(log_eta: Tensor<3>, q: Tensor<4>, k: Tensor<4>, v: Tensor<4>) -> System {
    let q = q * log_eta.neg().exp().unsqueeze_dim::<4>(3);
    System::outer(Transition::Identity, q, k, v)
}

impl LinearMixer for NormalizedAttention {
    /// `log η`, `[b, t, h]`.
    type Aux = Tensor<3>;

    fn d_model(&self) -> usize {
        self.d_model
    }

    fn initial_state(&self, batch: usize) -> State {
        let sizes = Sizes { n: self.features.size(), ..self.sizes };
        self.qkv.with_tails(sizes.memory(batch, 0, &self.qkv.q_proj))
    }

    fn system(&self, x: Tensor<3>, state: &mut State, run: Run<'_>) -> Result<(System, Tensor<3>)> {
        let [q, k, v] = self.qkv.forward(x.clone(), state, run)?;
        let q = self.features.apply(q, state.positions());
        let k = self.features.apply(k, state.positions());
        let k = if self.config.key_scale { k.mul_scalar((self.sizes.n as f64).powf(-0.5)) } else { k };
        let z = self.eta_proj.forward(x);
        let z = match &self.offset {
            Some(offset) => z + offset.val().unsqueeze(),
            None => z,
        };
        let log_eta = self.config.eta.log(z);
        Ok((normalized_system(log_eta.clone().swap_dims(1, 2), q, k, v), log_eta))
    }

    fn readout(&self, y: Tensor<4>, _: Tensor<3>) -> Tensor<3> {
        self.out_proj.forward(merge_heads(y))
    }

    /// Shows the transition of the divided state, too; that of the first token, whose predecessor is not part of
    /// the input, as 1.
    fn system_views(&self, system: System, log_eta: Tensor<3>, _state: &State) -> Result<Views> {
        let mut views = Views::of_system(system)?;
        let t = log_eta.dims()[1];
        let first = log_eta.clone().narrow(1, 0, 1);
        let before = match t {
            1 => first,
            _ => Tensor::cat(vec![first, log_eta.clone().narrow(1, 0, t - 1)], 1),
        };
        let ratio = (before - log_eta.clone()).exp();
        views.gates.push(Gate { name: "1/η (normaliser)".into(), values: log_eta.neg().exp() });
        views.gates.push(Gate { name: "η₋/η (transition of the divided state)".into(), values: ratio });
        Ok(views)
    }

    fn cost(&self, batch: usize, time: usize, form: Form) -> Cost {
        let (Sizes { heads, p, .. }, d, m) = (self.sizes, self.d_model, self.features.size());
        let maps = self.qkv.flops(d) + 2 * d * heads + 2 * d * heads * p;
        let core = heads * (2 * m + Cost::decayed_core(m, p, time, form));
        Cost::of(self, (maps + core) as f64, batch, time)
    }
}

#[cfg(test)]
#[path = "normalized_attention_tests.rs"]
mod tests;
