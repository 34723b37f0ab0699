//! Linear attention (Katharopoulos et al., arXiv 2006.16236): softmax's kernel replaced by a product of
//! features, so that all keys and values seen fit into one matrix. Nothing is forgotten.
//!
//! ```text
//! q, k = φ(W_q x), φ(W_k x),   v = W_v x
//! H_t = H_{t-1} + k_t v_tᵀ,    s_t = s_{t-1} + k_t                            (Eq. 18, 19)
//! sum:        y_t = H_tᵀ q̃_t / (s_t · q̃_t + eps),    q̃ = scale · q           (Eq. 20)
//! head norm:  y_t = rmsnorm(H_tᵀ q̃_t) per head       (arXiv 2210.10340)
//! out = W_o (y ∘ act(W_g x))                          (the gate is optional)
//! ```
//!
//! | symbol | shape |
//! | --- | --- |
//! | q, k, v, y | `[b, h, t, n]` |
//! | H | `[b, h, n, n]`, with `s` as one more column under the sum: `[b, h, n, n+1]` |

use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::{Tensor, activation};
use serde::{Deserialize, Serialize};

use crate::error::require;
use crate::nn::{Activation, RmsNorm, merge_heads, split_heads};
use crate::system::{
    Cost, Form, Gate, Io, LinearMixer, MEMORY, Run, State, System, Transition, Views, engine,
};
use crate::{Init, Result};

const NAME: &str = "linear_attention";

/// `φ`: what stands for the exponential of softmax, entry by entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FeatureMap {
    /// `x`; not positive, so not for [`Normalizer::Sum`].
    Identity,
    /// `elu(x) + 1`: `x + 1` above 0, `e^x` below.
    #[default]
    EluPlusOne,
    /// `max(x, 0)`
    Relu,
    /// `x²`
    Square,
}

impl FeatureMap {
    /// Applies it entry by entry.
    pub fn apply<const D: usize>(self, x: Tensor<D>) -> Tensor<D> {
        match self {
            FeatureMap::Identity => x,
            FeatureMap::EluPlusOne => activation::relu(x.clone()) + x.clamp_max(0.0).exp(),
            FeatureMap::Relu => activation::relu(x),
            FeatureMap::Square => x.square(),
        }
    }
}

/// What bounds the output as the memory grows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Normalizer {
    /// Nothing.
    None,
    /// Division by the sum of the scores, as in softmax; needs features that are not negative.
    Sum {
        /// Added to the sum.
        eps: f64,
    },
    /// Root mean square of each head's output, with a weight.
    HeadNorm {
        /// Added to the mean square.
        eps: f64,
    },
}

/// Sizes and switches of [`LinearAttention`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LinearAttentionConfig {
    /// Heads.
    pub heads: usize,
    /// Channels `n` of a head; `None` for `d_model / heads`.
    pub head_dim: Option<usize>,
    /// Applied to `q` and `k`.
    pub feature_map: FeatureMap,
    /// What bounds the output.
    pub normalizer: Normalizer,
    /// Factor on `q` after the feature map; `None` for `1/√n`.
    pub scale: Option<f64>,
    /// Multiplies the output by this function of a linear map of the input.
    pub output_gate: Option<Activation>,
}

impl Default for LinearAttentionConfig {
    fn default() -> Self {
        Self {
            heads: 4,
            head_dim: None,
            feature_map: FeatureMap::default(),
            normalizer: Normalizer::Sum { eps: 1e-6 },
            scale: None,
            output_gate: None,
        }
    }
}

impl LinearAttentionConfig {
    /// Checks the values and draws the parameters for width `d_model`.
    ///
    /// # Errors
    /// For zero sizes, heads that do not divide the width, or a sum over features that may be negative.
    pub fn init(&self, d_model: usize, init: &mut Init) -> Result<LinearAttention> {
        let h = self.heads;
        require(d_model > 0, NAME, "d_model", d_model, "must be positive")?;
        require(h > 0, NAME, "heads", h, "must be positive")?;
        let n = match self.head_dim {
            Some(n) => n,
            None => {
                let expected = format!("must divide d_model = {d_model}, or set `head_dim`");
                require(d_model.is_multiple_of(h), NAME, "heads", h, &expected)?;
                d_model / h
            }
        };
        require(n > 0, NAME, "head_dim", n, "must be positive")?;
        if let Normalizer::Sum { eps } | Normalizer::HeadNorm { eps } = self.normalizer {
            require(eps > 0.0, NAME, "normalizer.eps", eps, "must be positive")?;
        }
        let signed_sum =
            matches!(self.normalizer, Normalizer::Sum { .. }) && self.feature_map == FeatureMap::Identity;
        let expected = "can be negative, so their sum can be 0: use another feature map or `head_norm`";
        require(!signed_sum, NAME, "feature_map", "identity", expected)?;
        let scale = self.scale.unwrap_or((n as f64).powf(-0.5));
        require(scale.is_finite() && scale > 0.0, NAME, "scale", scale, "must be positive")?;
        Ok(LinearAttention {
            q_proj: init.linear(d_model, h * n),
            k_proj: init.linear(d_model, h * n),
            v_proj: init.linear(d_model, h * n),
            gate_proj: self.output_gate.map(|_| init.linear(d_model, h * n)),
            out_proj: init.linear(h * n, d_model),
            norm: match self.normalizer {
                Normalizer::HeadNorm { eps } => Some(RmsNorm::new(n, eps, init)),
                Normalizer::None | Normalizer::Sum { .. } => None,
            },
            config: self.clone(),
            scale,
            head_dim: n,
            d_model,
        })
    }
}

/// The layer; see the module's equations. Built by [`LinearAttentionConfig::init`].
#[derive(Module, Debug)]
pub struct LinearAttention {
    /// `W_q: [d, h n]`
    pub q_proj: Linear,
    /// `W_k: [d, h n]`
    pub k_proj: Linear,
    /// `W_v: [d, h n]`
    pub v_proj: Linear,
    /// `W_g: [d, h n]`
    pub gate_proj: Option<Linear>,
    /// `W_o: [h n, d]`
    pub out_proj: Linear,
    /// Per head, over `n`
    pub norm: Option<RmsNorm>,
    #[module(skip)]
    config: LinearAttentionConfig,
    #[module(skip)]
    scale: f64,
    #[module(skip)]
    head_dim: usize,
    #[module(skip)]
    d_model: usize,
}

/// Appends a column of ones to the values, so that the memory's last column becomes `s_t = Σ k`:
/// `[b, h, t, p] -> [b, h, t, p+1]`.
pub fn with_normalizer(v: Tensor<4>) -> Tensor<4> {
    let ones = v.clone().narrow(3, 0, 1).ones_like();
    Tensor::cat(vec![v, ones], 3)
}

/// Divides by the last column, which [`with_normalizer`] made `s_t · q_t`: `[b, h, t, p+1] -> [b, h, t, p]`.
pub fn normalize(y: Tensor<4>, eps: f64) -> Tensor<4> {
    let p = y.dims()[3] - 1;
    let sum = y.clone().narrow(3, p, 1);
    y.narrow(3, 0, p) / sum.add_scalar(eps)
}

impl LinearMixer for LinearAttention {
    /// Output gate, `[b, t, h n]`.
    type Aux = Option<Tensor<3>>;

    fn d_model(&self) -> usize {
        self.d_model
    }

    fn initial_state(&self, batch: usize) -> State {
        let (h, n, like) = (self.config.heads, self.head_dim, self.q_proj.weight.val());
        let columns = n + usize::from(matches!(self.config.normalizer, Normalizer::Sum { .. }));
        let zeros = Tensor::<4>::zeros([batch, h, n, columns], (&like.device(), like.dtype()));
        State::new(batch).with(MEMORY, zeros)
    }

    fn system(&self, x: Tensor<3>, _state: &mut State, _run: Run<'_>) -> Result<(System, Self::Aux)> {
        let (h, phi) = (self.config.heads, self.config.feature_map);
        let q = phi.apply(self.q_proj.forward(x.clone())).mul_scalar(self.scale);
        let k = phi.apply(self.k_proj.forward(x.clone()));
        let [q, k, v] = [q, k, self.v_proj.forward(x.clone())].map(|x| split_heads(x, h));
        let v = match self.config.normalizer {
            Normalizer::Sum { .. } => with_normalizer(v),
            Normalizer::None | Normalizer::HeadNorm { .. } => v,
        };
        let gate = self.gate_proj.as_ref().zip(self.config.output_gate);
        let gate = gate.map(|(map, activation)| activation.apply(map.forward(x)));
        Ok((System::outer(Transition::Identity, q, k, v), gate))
    }

    fn readout(&self, y: Tensor<4>, gate: Self::Aux) -> Tensor<3> {
        let y = match (self.config.normalizer, &self.norm) {
            (Normalizer::Sum { eps }, _) => normalize(y, eps),
            (_, Some(norm)) => norm.forward(y),
            (_, None) => y,
        };
        let y = merge_heads(y);
        self.out_proj.forward(if let Some(gate) = gate { y * gate } else { y })
    }

    /// Under the sum, the implied attention is divided by it, past tokens included.
    fn system_views(&self, system: System, gate: Self::Aux, state: &State) -> Result<Views> {
        let sums = match (self.config.normalizer, &system.io) {
            (Normalizer::Sum { eps }, Io::Outer { q, k, v }) => {
                let columns = v.dims()[3];
                let ones = v.clone().narrow(3, columns - 1, 1);
                let memory = state.get::<4>(MEMORY)?.narrow(3, columns - 1, 1);
                let sums = System::outer(Transition::Identity, q.clone(), k.clone(), ones);
                Some(engine::run(sums, memory, Form::Auto)?.0.add_scalar(eps))
            }
            _ => None,
        };
        let mut views = Views::of_system(system)?;
        if let Some(sums) = sums {
            views.attention = views.attention.map(|attention| attention / sums);
        }
        views.gates.extend(gate.map(|values| Gate { name: "g (output gate)".into(), values }));
        Ok(views)
    }

    fn cost(&self, batch: usize, time: usize, form: Form) -> Cost {
        let (h, n, d) = (self.config.heads, self.head_dim, self.d_model);
        let maps = 4 + usize::from(self.config.output_gate.is_some());
        let columns = n + usize::from(matches!(self.config.normalizer, Normalizer::Sum { .. }));
        let core = h * Cost::decayed_core(n, columns, time, form);
        Cost::of(self, (2 * maps * d * h * n + core) as f64, batch, time)
    }
}

#[cfg(test)]
#[path = "linear_attention_tests.rs"]
mod tests;
