//! Lightning attention (Qin et al., arXiv 2401.04658 and 2405.17381), the token mixer of TransNormerLLM
//! and MiniMax-01: linear attention whose memory decays by a constant per head.
//!
//! ```text
//! q, k, v = act(W_q x), act(W_k x), act_v(W_v x)
//! H_t = λ H_{t-1} + k_t v_tᵀ,     y_t = scale · H_tᵀ q_t,     λ = e^{-s}      (2401.04658, Eq. 3-5)
//! out = W_o (gate(x) ∘ norm(concat_heads y))
//! ```
//!
//! The slope `s ≥ 0` of head `h` in layer `l` is fixed: [`slopes`]. The norm stands for the softmax's
//! denominator and runs over the whole width, not per head. Queries and keys may carry positions: [`Lrpe`], which
//! makes their channels `m = 2n` (else `m = n`).
//!
//! The recurrence is the robust form of inference: keys are never divided by `λ^t`, which would leave the range of
//! `f32` at token 178 for `s = 0.5`.
//!
//! | symbol | shape |
//! | --- | --- |
//! | q, k | `[b, h, t, m]` |
//! | v, y | `[b, h, t, n]` |
//! | s | `[h]` |
//! | H | `[b, h, m, n]` |

use burn::module::Module;
use burn::tensor::{Tensor, TensorData};
use serde::{Deserialize, Serialize};

use super::lrpe::{Lrpe, LrpeLayers};
use crate::error::{head_dim, require};
use crate::nn::{
    Activation, Ended, Ending, Gated, LayerNorm, Linear, Norm, RmsNorm, SrmsNorm, gated_through, merge_heads,
    project_with, split_heads,
};
use crate::system::{Cost, Form, Gate, LinearMixer, MEMORY, Run, State, System, Transition, Views, fresh};
use crate::{Error, Init, Result};

const NAME: &str = "lightning";

/// Where a head's slope `s`, `λ = e^{-s}`, comes from; layer `l` of `L`, heads counted from 0.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum SlopeKind {
    /// No decay: plain linear attention.
    None,
    /// The released TransNormerLLM: `2^{-8(h+1)/H} (1 - l/(L-1) + 1e-5)`, with ALiBi's interleaving when
    /// `H` is no power of two.
    #[default]
    Alibi,
    /// MiniMax-01: `2^{-8(h+1)/H} (1 - l/(L-1+1e-5) + 1e-5)` for any `H`.
    #[serde(rename = "minimax")]
    MiniMax,
    /// The papers' text: `8(h+h0)/H (1 - l/L)`.
    PaperLinear {
        /// Number of the first head: 0 (which then never decays) or 1.
        h0: usize,
    },
    /// These, whatever the layer.
    Fixed {
        /// One per head, `≥ 0`.
        values: Vec<f64>,
    },
}

/// The slopes `s_h ≥ 0` of all heads of layer `layer` (from 0) of `layers`.
///
/// # Errors
/// For no heads, a layer that does not exist, or fixed values that are negative or not one per head.
///
/// ```
/// use seqzoo_layers::lightning::{SlopeKind, slopes};
///
/// let s = slopes(&SlopeKind::MiniMax, 8, 0, 80)?;
/// assert!((s[0] - 0.5).abs() < 1e-5 && (s[7] - 1.0 / 256.0).abs() < 1e-5);
/// # Ok::<(), seqzoo_layers::Error>(())
/// ```
pub fn slopes(kind: &SlopeKind, heads: usize, layer: usize, layers: usize) -> Result<Vec<f64>> {
    require(heads > 0, NAME, "heads", heads, "must be positive")?;
    let expected = format!("must be below `layers` = {layers} (counted from 0)");
    require(layer < layers, NAME, "layer", layer, &expected)?;
    let (h, l, last) = (heads as f64, layer as f64, layers as f64 - 1.0);
    Ok(match kind {
        SlopeKind::None => vec![0.0; heads],
        SlopeKind::Alibi => {
            let factor = if layers == 1 { 1.0 } else { 1.0 - l / last } + 1e-5;
            alibi(heads).into_iter().map(|s| s * factor).collect()
        }
        SlopeKind::MiniMax => {
            let factor = 1.0 - l / (last + 1e-5) + 1e-5;
            geometric(heads).into_iter().map(|s| s * factor).collect()
        }
        SlopeKind::PaperLinear { h0 } => {
            require(*h0 <= 1, NAME, "slopes.h0", h0, "must be 0 or 1")?;
            (0..heads).map(|i| 8.0 * (i + h0) as f64 / h * (1.0 - l / layers as f64)).collect()
        }
        SlopeKind::Fixed { values } => {
            let expected = format!("must be {heads} numbers, one per head");
            require(values.len() == heads, NAME, "slopes.values", values.len(), &expected)?;
            if let Some(bad) = values.iter().find(|s| !(0.0..=1e4).contains(*s)) {
                let expected =
                    "must be from 0 (no decay) to 1e4; a negative one would let the memory explode";
                return Err(Error::config(NAME, "slopes.values", bad, expected));
            }
            values.clone()
        }
    })
}

/// `2^{-8(h+1)/H}`
fn geometric(heads: usize) -> Vec<f64> {
    (1..=heads).map(|i| (-8.0 * i as f64 / heads as f64).exp2()).collect()
}

/// The geometric slopes of the power of two below, then every other one of the power above.
fn alibi(heads: usize) -> Vec<f64> {
    if heads.is_power_of_two() {
        return geometric(heads);
    }
    let below = heads.next_power_of_two() / 2;
    let between = geometric(2 * below).into_iter().step_by(2).take(heads - below);
    geometric(below).into_iter().chain(between).collect()
}

/// What normalises the merged heads, over all `h n` channels.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum LightningNorm {
    /// Nothing.
    None,
    /// `y / sqrt(mean(y²) + eps)`, without a weight (TransNormerLLM).
    Srms {
        /// Added to the mean square.
        eps: f64,
    },
    /// The same with a weight (MiniMax).
    Rms {
        /// Added to the mean square.
        eps: f64,
    },
    /// With mean, weight and bias (the kernel repository's example).
    Layer {
        /// Added to the variance.
        eps: f64,
    },
}

/// What multiplies the normalised output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum LightningGate {
    /// Nothing.
    None,
    /// `W_g x` (TransNormerLLM's `U`).
    Linear,
    /// `sigmoid(W_g x)` (MiniMax).
    Sigmoid,
    /// `sigmoid(W_2 W_1 x)`
    LowRank {
        /// Rows of `W_1`.
        rank: usize,
    },
}

/// Sizes and switches of [`Lightning`]; the default is [`LightningConfig::tnl`] with 4 heads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LightningConfig {
    /// Heads `H`.
    pub heads: usize,
    /// Channels `n` of a head; `None` for `d_model / heads`.
    pub head_dim: Option<usize>,
    /// Decay of each head.
    pub slopes: SlopeKind,
    /// Which layer of the model this is, from 0; `None` lets the model say (0 for a layer on its own).
    pub layer: Option<usize>,
    /// Layers of the model; `None` lets the model say (1 for a layer on its own).
    pub layers: Option<usize>,
    /// Applied to `q` and `k`.
    pub activation: Activation,
    /// Applied to `v`.
    pub value_activation: Activation,
    /// Positions on `q` and `k`, after the activation.
    pub lrpe: LrpeLayers,
    /// Factor on the output.
    pub scale: f64,
    /// Normalisation of the merged heads.
    pub norm: LightningNorm,
    /// Output gate.
    pub gate: LightningGate,
}

impl Default for LightningConfig {
    fn default() -> Self {
        Self::tnl(4)
    }
}

impl LightningConfig {
    /// TransNormerLLM as released, without the positions of its first layer: silu on `q` and `k`, norm without
    /// weight, linear gate.
    pub fn tnl(heads: usize) -> Self {
        Self {
            heads,
            head_dim: None,
            slopes: SlopeKind::Alibi,
            layer: None,
            layers: None,
            activation: Activation::Silu,
            value_activation: Activation::Identity,
            lrpe: LrpeLayers::None,
            scale: 1.0,
            norm: LightningNorm::Srms { eps: 1e-6 },
            gate: LightningGate::Linear,
        }
    }

    /// MiniMax-01's lightning layers: silu on `q`, `k` and `v`, norm with weight, sigmoid gate.
    pub fn minimax(heads: usize, head_dim: usize) -> Self {
        Self {
            head_dim: Some(head_dim),
            slopes: SlopeKind::MiniMax,
            value_activation: Activation::Silu,
            norm: LightningNorm::Rms { eps: 1e-6 },
            gate: LightningGate::Sigmoid,
            ..Self::tnl(heads)
        }
    }

    /// Checks the values and draws the parameters for width `d_model`.
    ///
    /// # Errors
    /// For zero sizes, heads that do not divide the width, a layer that does not exist or wrong slopes.
    pub fn init(&self, d_model: usize, init: &mut Init) -> Result<Lightning> {
        let h = self.heads;
        let head_dim = head_dim(self.head_dim, d_model, h, NAME)?;
        let scale_ok = self.scale.is_finite() && self.scale != 0.0;
        require(scale_ok, NAME, "scale", self.scale, "must be a number other than 0")?;
        if let LightningNorm::Srms { eps } | LightningNorm::Rms { eps } | LightningNorm::Layer { eps } =
            self.norm
        {
            require(eps > 0.0, NAME, "norm.eps", eps, "must be positive")?;
        }
        let slopes = slopes(&self.slopes, h, self.layer.unwrap_or(0), self.layers.unwrap_or(1))?;
        let inner = h * head_dim;
        let (q_proj, k_proj) = (init.linear(d_model, inner), init.linear(d_model, inner));
        let (v_proj, out_proj) = (init.linear(d_model, inner), init.linear(inner, d_model));
        let (gate_down, gate_proj) = match self.gate {
            LightningGate::None => (None, None),
            LightningGate::Linear | LightningGate::Sigmoid => (None, Some(init.linear(d_model, inner))),
            LightningGate::LowRank { rank } => {
                require(rank > 0, NAME, "gate.rank", rank, "must be positive")?;
                (Some(init.linear(d_model, rank)), Some(init.linear(rank, inner)))
            }
        };
        let lrpe = self.lrpe.has(self.layer.unwrap_or(0)).then(|| Lrpe::new(h, head_dim, init));
        let norm = match self.norm {
            LightningNorm::None => None,
            LightningNorm::Srms { eps } => Some(Norm::Srms(SrmsNorm::new(eps))),
            LightningNorm::Rms { eps } => Some(Norm::Rms(RmsNorm::new(inner, eps, init))),
            LightningNorm::Layer { eps } => Some(Norm::Layer(LayerNorm::new(inner, eps, true, init))),
        };
        let config = self.clone();
        Ok(Lightning {
            q_proj,
            k_proj,
            v_proj,
            gate_down,
            gate_proj,
            out_proj,
            norm,
            lrpe,
            config,
            slopes,
            head_dim,
            d_model,
        })
    }
}

/// The layer; see the module's equations. Built by [`LightningConfig::init`].
#[derive(Module, Debug)]
pub struct Lightning {
    /// `W_q: [d, h n]`
    pub q_proj: Linear,
    /// `W_k: [d, h n]`
    pub k_proj: Linear,
    /// `W_v: [d, h n]`
    pub v_proj: Linear,
    /// `W_1: [d, rank]` of a low-rank gate
    pub gate_down: Option<Linear>,
    /// `W_g: [d, h n]`, or `W_2: [rank, h n]`
    pub gate_proj: Option<Linear>,
    /// `W_o: [h n, d]`
    pub out_proj: Linear,
    /// Over all `h n` channels
    pub norm: Option<Norm>,
    /// Positions of queries and keys
    pub lrpe: Option<Lrpe>,
    #[module(skip)]
    config: LightningConfig,
    #[module(skip)]
    slopes: Vec<f64>,
    #[module(skip)]
    head_dim: usize,
    #[module(skip)]
    d_model: usize,
}

/// `H_t = e^{-s_h} H_{t-1} + k_t v_tᵀ`, `y_t = H_tᵀ q_t` with one slope `s_h ≥ 0` per head.
///
/// # Errors
/// When there is not one slope per head.
pub fn lightning_system(slopes: &[f64], q: Tensor<4>, k: Tensor<4>, v: Tensor<4>) -> Result<System> {
    let [b, h, t, _] = k.dims();
    if slopes.len() != h {
        return Err(Error::shape("slopes", format!("[{h}], one per head"), &[slopes.len()]));
    }
    if slopes.iter().all(|&s| s == 0.0) {
        return Ok(System::outer(Transition::Identity, q, k, v));
    }
    let log: Vec<f64> = slopes.iter().map(|s| -s).collect();
    let log = Tensor::<3>::from_data(TensorData::new(log, [1, h, 1]), (&k.device().inner(), k.dtype()));
    Ok(System::outer(Transition::Scalar { log_a: log.expand([b, h, t]) }, q, k, v))
}

impl Lightning {
    /// Channels of a query or key, `m`.
    fn key_dim(&self) -> usize {
        if self.lrpe.is_some() { 2 * self.head_dim } else { self.head_dim }
    }
}

impl LinearMixer for Lightning {
    /// Output gate, `[b, t, h n]`.
    type Aux = Option<Gated<3>>;

    fn d_model(&self) -> usize {
        self.d_model
    }

    fn initial_state(&self, batch: usize) -> State {
        let (h, n, like) = (self.config.heads, self.head_dim, self.q_proj.weight.val());
        State::new(batch).with(MEMORY, fresh([batch, h, self.key_dim(), n], &like))
    }

    fn system(&self, x: Tensor<3>, state: &mut State, _run: Run<'_>) -> Result<(System, Self::Aux)> {
        let (h, config, time) = (self.config.heads, &self.config, x.dims()[1]);
        let first_gate_map = self.gate_down.as_ref().or(self.gate_proj.as_ref());
        let others: Vec<Ended<'_>> = first_gate_map.into_iter().map(Ended::from).collect();
        let [keys, values] = [config.activation, config.value_activation].map(Ending::Activation);
        let maps = [self.q_proj.then(keys), self.k_proj.then(keys), self.v_proj.then(values)];
        let ([q, k, v], mut rest) = project_with(x, maps, &others);
        let gate = rest.pop();
        let gate = gate.zip(self.gate_proj.as_ref()).map(|(gate, last)| {
            let gate = if self.gate_down.is_some() { last.forward(gate) } else { gate };
            let activation = match config.gate {
                LightningGate::None | LightningGate::Linear => Activation::Identity,
                LightningGate::Sigmoid | LightningGate::LowRank { .. } => Activation::Sigmoid,
            };
            Gated::new(gate, activation)
        });
        let [mut q, mut k, v] = [q, k, v].map(|x| split_heads(x, h));
        if let Some(lrpe) = &self.lrpe {
            let phases = lrpe.phases(state.positions(), time);
            (q, k) = (phases.apply(q), phases.apply(k));
        }
        Ok((lightning_system(&self.slopes, q, k, v)?.with_gain(config.scale), gate))
    }

    fn readout(&self, y: Tensor<4>, gate: Self::Aux) -> Tensor<3> {
        match (&self.norm, gate) {
            (Some(norm), gate) => norm.parts().merged_through(y, gate, &self.out_proj),
            (None, Some(gate)) => gated_through(y, gate, &self.out_proj),
            (None, None) => self.out_proj.forward(merge_heads(y)),
        }
    }

    fn system_views(&self, system: System, gate: Self::Aux, _state: &State) -> Result<Views> {
        let mut views = Views::of_system(system)?;
        views.gates.extend(gate.map(|gate| Gate { name: "g (output gate)".into(), values: gate.open() }));
        Ok(views)
    }

    fn cost(&self, batch: usize, time: usize, form: Form) -> Cost {
        let (h, n, d) = (self.config.heads, self.head_dim, self.d_model);
        let gate = match self.config.gate {
            LightningGate::None => 0,
            LightningGate::Linear | LightningGate::Sigmoid => d * h * n,
            LightningGate::LowRank { rank } => rank * (d + h * n),
        };
        let core = h * Cost::decayed_core(self.key_dim(), n, time, form);
        Cost::of(self, (2 * (4 * d * h * n + gate) + core) as f64, batch, time)
    }
}

#[cfg(test)]
#[path = "lightning_tests.rs"]
mod tests;
