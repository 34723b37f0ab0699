//! Linear attention (Katharopoulos et al., arXiv 2006.16236): softmax's kernel replaced by a product of
//! features, so that all keys and values seen fit into one matrix. Nothing is forgotten.
//!
//! ```text
//! q, k = φ(W_q x), φ(W_k x),   v = W_v x
//! H_t = H_{t-1} + k_t v_tᵀ,    s_t = s_{t-1} + k_t                            (Eq. 18, 19)
//! sum:        y_t = H_tᵀ q̃_t / (s_t · q̃_t + eps),    q̃ = scale · q           (Eq. 20)
//! sum at least: y_t = H_tᵀ q̃_t / max(s_t · q̃_t, eps)
//! head norm:  y_t = rmsnorm(H_tᵀ q̃_t) per head       (arXiv 2210.10340)
//! out = W_o (y ∘ act(W_g x))                          (the gate is optional)
//! ```
//!
//! The feature maps `φ` make it Performer, cosFormer, Based, ReBased, Hedgehog and DPFP: see [`FeatureMap`].
//!
//! | symbol | shape |
//! | --- | --- |
//! | W_q x, W_k x | `[b, h, t, n]` (`n` = `key_dim`) |
//! | q, k | `[b, h, t, m]` (`m` features) |
//! | v, y | `[b, h, t, p]` (`p` = `head_dim`) |
//! | H | `[b, h, m, p]`, with `s` as one more column under a sum: `[b, h, m, p+1]` |

use burn::module::Module;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::feature_map::{FeatureMap, Features};
use crate::error::{head_dim, require};
#[cfg(feature = "cube")]
use crate::kernels;
use crate::nn::{Activation, Ended, Gated, Linear, RmsNorm, merge_heads, project_with, share, split_heads};
use crate::system::{
    Cost, Form, Gate, Io, LinearMixer, MEMORY, Mixer, Run, State, System, Transition, Views, engine, fresh,
};
use crate::{Init, Result};

const NAME: &str = "linear_attention";

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
    /// The same with a sum that counts as `eps` where it is smaller (cosFormer).
    SumAtLeast {
        /// The smallest sum.
        eps: f64,
    },
    /// Root mean square of each head's output, with a weight.
    HeadNorm {
        /// Added to the mean square.
        eps: f64,
    },
}

impl Normalizer {
    /// Whether the memory has a column for the sum.
    fn is_sum(self) -> bool {
        matches!(self, Self::Sum { .. } | Self::SumAtLeast { .. })
    }

    /// The denominator from the sum of the scores.
    fn denominator(self, sum: Tensor<4>) -> Tensor<4> {
        match self {
            Self::Sum { eps } => sum.add_scalar(eps),
            Self::SumAtLeast { eps } => sum.clamp_min(eps),
            Self::None | Self::HeadNorm { .. } => sum.ones_like(),
        }
    }
}

/// Sizes and switches of [`LinearAttention`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LinearAttentionConfig {
    /// Heads.
    pub heads: usize,
    /// Value channels `p` of a head; `None` for `d_model / heads`.
    pub head_dim: Option<usize>,
    /// Query and key channels `n` of a head, before the feature map; `None` for `head_dim`.
    pub key_dim: Option<usize>,
    /// Applied to `q` and `k`.
    pub feature_map: FeatureMap,
    /// Let `q` and `k` share the parameters of the feature map.
    pub tie_feature_maps: bool,
    /// Divide the features of each query by their sum (plus 1e-4).
    pub norm_q: bool,
    /// Divide the features of each key by their sum (plus 1e-4).
    pub norm_k: bool,
    /// What bounds the output.
    pub normalizer: Normalizer,
    /// Factor on `q` after the feature map; `None` for `1/√n`, or 1 where the map has it in itself.
    pub scale: Option<f64>,
    /// Whether the maps to `q`, `k` and `v` have biases.
    pub qkv_bias: bool,
    /// Whether the output map has a bias.
    pub out_bias: bool,
    /// Multiplies the output by this function of a linear map of the input.
    pub output_gate: Option<Activation>,
}

impl Default for LinearAttentionConfig {
    fn default() -> Self {
        Self {
            heads: 4,
            head_dim: None,
            key_dim: None,
            feature_map: FeatureMap::default(),
            tie_feature_maps: false,
            norm_q: false,
            norm_k: false,
            normalizer: Normalizer::Sum { eps: 1e-6 },
            scale: None,
            qkv_bias: false,
            out_bias: false,
            output_gate: None,
        }
    }
}

impl LinearAttentionConfig {
    /// Checks the values and draws the parameters for width `d_model`.
    ///
    /// # Errors
    /// For zero sizes, heads that do not divide the width, a feature map that cannot be, or one that does not go
    /// with the normaliser.
    pub fn init(&self, d_model: usize, init: &mut Init) -> Result<LinearAttention> {
        let (h, map) = (self.heads, self.feature_map);
        let p = head_dim(self.head_dim, d_model, h, NAME)?;
        let n = self.key_dim.unwrap_or(p);
        if let Normalizer::Sum { eps } | Normalizer::SumAtLeast { eps } | Normalizer::HeadNorm { eps } =
            self.normalizer
        {
            require(eps > 0.0, NAME, "normalizer.eps", eps, "must be positive")?;
        }
        let sums = self.normalizer.is_sum() || self.norm_q || self.norm_k;
        let expected = "can be negative, so their sum can be 0: use another feature map or `head_norm`";
        require(!(sums && map.is_signed()), NAME, "feature_map", "identity", expected)?;
        let feature_q = map.init(n, NAME, init)?;
        let feature_k = if self.tie_feature_maps { None } else { Some(map.init(n, NAME, init)?) };
        let scale = if map.is_scaled() { 1.0 } else { (n as f64).powf(-0.5) };
        let scale = self.scale.unwrap_or(scale);
        require(scale.is_finite() && scale > 0.0, NAME, "scale", scale, "must be positive")?;
        let linear = |init: &mut Init, from: usize, to: usize, bias| {
            init.linear_std(from, to, (from as f64).powf(-0.5), bias)
        };
        Ok(LinearAttention {
            q_proj: linear(init, d_model, h * n, self.qkv_bias),
            k_proj: linear(init, d_model, h * n, self.qkv_bias),
            v_proj: linear(init, d_model, h * p, self.qkv_bias),
            gate_proj: self.output_gate.map(|_| init.linear(d_model, h * p)),
            out_proj: linear(init, h * p, d_model, self.out_bias),
            feature_q,
            feature_k,
            norm: match self.normalizer {
                Normalizer::HeadNorm { eps } => Some(RmsNorm::new(p, eps, init)),
                _ => None,
            },
            config: self.clone(),
            scale,
            key_dim: n,
            head_dim: p,
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
    /// `W_v: [d, h p]`
    pub v_proj: Linear,
    /// `W_g: [d, h p]`
    pub gate_proj: Option<Linear>,
    /// `W_o: [h p, d]`
    pub out_proj: Linear,
    /// `φ` of the queries
    pub feature_q: Features,
    /// `φ` of the keys, where it is not that of the queries
    pub feature_k: Option<Features>,
    /// Per head, over `p`
    pub norm: Option<RmsNorm>,
    #[module(skip)]
    config: LinearAttentionConfig,
    #[module(skip)]
    scale: f64,
    #[module(skip)]
    key_dim: usize,
    #[module(skip)]
    head_dim: usize,
    #[module(skip)]
    d_model: usize,
}

/// Appends a column of ones to the values, so that the memory's last column becomes `s_t = Σ k`:
/// `[b, h, t, p] -> [b, h, t, p+1]`.
pub fn with_normalizer(v: Tensor<4>) -> Tensor<4> {
    let [b, h, t, _] = v.dims();
    // From data, not of ones, which a graphics device would be told to make.
    let one = Tensor::<4>::from_data([[[[1.0f32]]]], (&v.device(), v.dtype()));
    Tensor::cat(vec![v, one.expand([b, h, t, 1])], 3)
}

/// Divides by the last column, which [`with_normalizer`] made `s_t · q_t`: `[b, h, t, p+1] -> [b, h, t, p]`.
pub fn normalize(y: Tensor<4>, eps: f64) -> Tensor<4> {
    divide(y, Normalizer::Sum { eps })
}

fn divide(y: Tensor<4>, normalizer: Normalizer) -> Tensor<4> {
    let p = y.dims()[3] - 1;
    let sum = y.clone().narrow(3, p, 1);
    let y = y.narrow(3, 0, p);
    match normalizer {
        Normalizer::Sum { eps } => share(y, sum, eps),
        _ => y / normalizer.denominator(sum),
    }
}

/// The same with the heads beside each other, `[b, t, h p]`.
fn divided_heads(y: Tensor<4>, normalizer: Normalizer) -> Tensor<3> {
    #[cfg(feature = "cube")]
    if let Normalizer::Sum { eps } = normalizer
        && kernels::enabled()
        && let Some(found) = kernels::quotients(&y, eps)
    {
        return found;
    }
    merge_heads(divide(y, normalizer))
}

/// Every query reads all keys, earlier or later: `Q (Kᵀ V)`.
pub fn bidirectional(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>) -> Tensor<4> {
    q.matmul(k.swap_dims(2, 3).matmul(v))
}

/// Divides each token's features by their sum.
fn to_unit_sum(x: Tensor<4>) -> Tensor<4> {
    let sum = x.clone().sum_dim(3).add_scalar(1e-4);
    x / sum
}

impl LinearMixer for LinearAttention {
    /// Output gate, `[b, t, h n]`.
    type Aux = Option<Gated<3>>;

    fn d_model(&self) -> usize {
        self.d_model
    }

    fn initial_state(&self, batch: usize) -> State {
        let shape = [batch, self.config.heads, self.feature_q.size(), self.columns()];
        State::new(batch).with(MEMORY, fresh(shape, &self.q_proj.weight.val()))
    }

    fn system(&self, x: Tensor<3>, state: &mut State, _run: Run<'_>) -> Result<(System, Self::Aux)> {
        let ([q, k, v], gate) = self.features(x, state.positions());
        Ok((System::outer(Transition::Identity, q, k, v), gate))
    }

    fn readout(&self, y: Tensor<4>, gate: Self::Aux) -> Tensor<3> {
        let normalizer = self.config.normalizer;
        let y = match &self.norm {
            Some(norm) if !normalizer.is_sum() => {
                return norm.parts().heads_through(y, gate, &self.out_proj);
            }
            _ if normalizer.is_sum() => divided_heads(y, normalizer),
            _ => merge_heads(y),
        };
        self.out_proj.forward(if let Some(gate) = gate { y * gate.open() } else { y })
    }

    /// Under the sum, the implied attention is divided by it, past tokens included.
    fn system_views(&self, system: System, gate: Self::Aux, state: &State) -> Result<Views> {
        let sums = match &system.io {
            Io::Outer { q, k, v } if self.config.normalizer.is_sum() => {
                let columns = v.dims()[3];
                let ones = v.clone().narrow(3, columns - 1, 1);
                let memory = state.get::<4>(MEMORY)?.narrow(3, columns - 1, 1);
                let sums = System::outer(Transition::Identity, q.clone(), k.clone(), ones);
                Some(self.config.normalizer.denominator(engine::run(sums, memory, Form::Auto)?.0))
            }
            _ => None,
        };
        let mut views = Views::of_system(system)?;
        if let Some(sums) = sums {
            views.attention = views.attention.map(|attention| attention / sums);
        }
        views.gates.extend(gate.map(|gate| Gate { name: "g (output gate)".into(), values: gate.open() }));
        Ok(views)
    }

    fn cost(&self, batch: usize, time: usize, form: Form) -> Cost {
        let (h, n, p, d) = (self.config.heads, self.key_dim, self.head_dim, self.d_model);
        let m = self.feature_q.size();
        let outer = 2 + usize::from(self.config.output_gate.is_some());
        let maps = 2 * d * h * (2 * n + outer * p);
        let learned = match self.config.feature_map {
            FeatureMap::T2r { .. } | FeatureMap::Favor { .. } => n * m,
            FeatureMap::Hedgehog { .. } => n * n,
            _ => 0,
        };
        let features = 2 * h * (2 * learned + m);
        let core = h * Cost::decayed_core(m, self.columns(), time, form);
        Cost::of(self, (maps + features + core) as f64, batch, time)
    }
}

impl LinearAttention {
    /// Columns of the memory.
    fn columns(&self) -> usize {
        self.head_dim + usize::from(self.config.normalizer.is_sum())
    }

    /// `φ(q)`, `φ(k)`, `v` (with a column of ones under a sum) and the output gate.
    fn features(&self, x: Tensor<3>, starts: &[usize]) -> ([Tensor<4>; 3], Option<Gated<3>>) {
        let others: Vec<Ended<'_>> = self.gate_proj.iter().map(Ended::from).collect();
        let (qkv, gate) = project_with(x, [&self.q_proj, &self.k_proj, &self.v_proj], &others);
        let [q, k, v] = qkv.map(|x| split_heads(x, self.config.heads));
        let gate = gate.into_iter().next().zip(self.config.output_gate);
        let gate = gate.map(|(values, activation)| Gated::new(values, activation));
        #[cfg(feature = "cube")]
        if self.adds_only_sums()
            && kernels::enabled()
            && let Some(found) = kernels::features_and_one([&q, &k, &v], self.scale)
        {
            return (found, gate);
        }
        let q = match self.config.norm_q {
            true => to_unit_sum(self.feature_q.apply(q, starts)).mul_scalar(self.scale),
            false => self.feature_q.apply_scaled(q, starts, self.scale),
        };
        let k = self.feature_k.as_ref().unwrap_or(&self.feature_q).apply(k, starts);
        let k = if self.config.norm_k { to_unit_sum(k) } else { k };
        let v = if self.config.normalizer.is_sum() { with_normalizer(v) } else { v };
        ([q, k, v], gate)
    }

    /// Whether features are `elu(x) + 1`, and all that is divided is divided by their sum in the end.
    #[cfg(feature = "cube")]
    fn adds_only_sums(&self) -> bool {
        let LinearAttentionConfig { feature_map, norm_q, norm_k, normalizer, .. } = self.config;
        feature_map == FeatureMap::EluPlusOne && !norm_q && !norm_k && normalizer.is_sum()
    }

    /// The layer where every token sees all others, for whole sequences and without a state: an encoder's.
    ///
    /// # Errors
    /// When the input has another width.
    pub fn forward_bidirectional(&self, x: Tensor<3>) -> Result<Tensor<3>> {
        let b = x.dims()[0];
        if !self.check(&x, &State::new(b))? {
            return Ok(x);
        }
        let ([q, k, v], gate) = self.features(x, &vec![0; b]);
        Ok(self.readout(bidirectional(q, k, v), gate))
    }
}

#[cfg(test)]
#[path = "linear_attention_tests.rs"]
mod tests;
