//! Multi-scale retention (RetNet, Sun et al., arXiv 2307.08621): rotated keys in a memory with one constant decay
//! per head.
//!
//! ```text
//! q, k, v = W_q x, W_k x, W_v x;    q, k rotated by their position
//! H_t = γ_h H_{t-1} + k_t v_tᵀ,     y_t = H_tᵀ q_t / √n,     γ_h = 1 - 2^{-5-h}         (Eq. 6, 8)
//! out = W_o (rmsnorm(y) ∘ silu(W_g x))
//! ```
//!
//! The released code also divides the scores `m_ij = γ^{i-j} q_i·k_j / √n` of each row, before the norm:
//!
//! ```text
//! y_i = Σ_j m_ij v_j / (√Γ_i max(|Σ_j m_ij| / √Γ_i, 1)),     Γ_i = Σ_{j ≤ i} γ^{i-j} = (1 - γ^{i+1}) / (1 - γ)
//! ```
//!
//! which the norm undoes but for its epsilon. Here it is an option and the same in all forms: `Γ_i` follows from the
//! position, and `Σ_j m_ij = q_i · s_i / √n` from one more column of the memory, `s_t = γ s_{t-1} + k_t`. As in the
//! released code, the gradient takes the row's sum as a constant.
//!
//! | symbol | shape |
//! | --- | --- |
//! | q, k | `[b, h, t, n]` (`n` = `key_dim`) |
//! | v, y | `[b, h, t, p]` (`p` = `value_dim`) |
//! | H | `[b, h, n, p]`, or `[b, h, n, p+1]` with `s` |

use burn::module::Module;
use burn::tensor::{Tensor, TensorData};
use serde::{Deserialize, Serialize};

use super::linear_attention::with_normalizer;
use super::parts::{GatedReadout, Qkv, Sizes, channels};
use crate::error::require;
use crate::lightning::lightning_system;
use crate::nn::{Activation, Ended, Gated, Rope};
use crate::system::{Cost, Form, Gate, Io, LinearMixer, MEMORY, Run, State, System, Views, engine};
use crate::{Init, Result};

const NAME: &str = "retnet";

/// How queries and keys are rotated: pair `i` of a head's `n/2` pairs by `position · angle_i`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Rotation {
    /// Not at all.
    None,
    /// `angle_i = base^{-i / (n/2 - 1)}`, the slowest pair at `1/base` (the released code).
    Endpoint {
        /// The base of the angles.
        base: f64,
    },
    /// `angle_i = base^{-2i/n}` (RoFormer; other ports).
    Rope {
        /// The base of the angles.
        base: f64,
    },
}

impl Rotation {
    fn init(self, n: usize) -> Result<Option<Rope>> {
        let (base, steps) = match self {
            Self::None => return Ok(None),
            Self::Endpoint { base } => (base, (n / 2).saturating_sub(1).max(1)),
            Self::Rope { base } => (base, n / 2),
        };
        let expected = "must be even, or set `rotation` to `none`";
        require(n.is_multiple_of(2), NAME, "key_dim", n, expected)?;
        require(base >= 1.0 && base.is_finite(), NAME, "rotation.base", base, "must be a number from 1")?;
        let angle = |i: usize| base.powf(-(i as f64) / steps as f64);
        Ok(Some(Rope::with_frequencies((0..n / 2).map(angle).collect())))
    }
}

/// Sizes and switches of [`RetNet`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetNetConfig {
    /// Query heads.
    pub heads: usize,
    /// Heads of keys and values, a divisor of `heads`; `None` for `heads`.
    pub kv_heads: Option<usize>,
    /// Key channels `n` of a head; `None` for `d_model / heads`.
    pub key_dim: Option<usize>,
    /// Value channels `p` of a head; `None` for `2 d_model / heads`.
    pub value_dim: Option<usize>,
    /// Rotation of queries and keys.
    pub rotation: Rotation,
    /// Kernel width of the short convolutions; 0 for none.
    pub conv_kernel: usize,
    /// Divide each row of scores as the released code does, see the module.
    pub score_norm: bool,
    /// Multiplies the output by this function of a linear map of the input.
    pub output_gate: Option<Activation>,
    /// Whether the norm of each head's output has a weight.
    pub norm_weight: bool,
    /// Added to the mean square in that norm.
    pub norm_eps: f64,
}

impl Default for RetNetConfig {
    fn default() -> Self {
        Self {
            heads: 4,
            kv_heads: None,
            key_dim: None,
            value_dim: None,
            rotation: Rotation::Endpoint { base: 10_000.0 },
            conv_kernel: 0,
            score_norm: false,
            output_gate: Some(Activation::Silu),
            norm_weight: false,
            norm_eps: 1e-6,
        }
    }
}

impl RetNetConfig {
    /// Checks the values and draws the parameters for width `d_model`.
    ///
    /// # Errors
    /// For zero sizes, heads that do not divide the width or each other, or an odd key size that should rotate.
    pub fn init(&self, d_model: usize, init: &mut Init) -> Result<RetNet> {
        let sizes = Sizes {
            heads: self.heads,
            kv_heads: self.kv_heads.unwrap_or(self.heads),
            n: channels(self.key_dim, d_model, 1.0, self.heads, NAME, "key_dim")?,
            p: channels(self.value_dim, d_model, 2.0, self.heads, NAME, "value_dim")?,
            conv_kernel: self.conv_kernel,
            conv_bias: false,
        };
        let sizes = sizes.check(NAME, d_model)?;
        require(self.norm_eps > 0.0, NAME, "norm_eps", self.norm_eps, "must be positive")?;
        let rope = self.rotation.init(sizes.n)?;
        let norm = (self.norm_weight, self.norm_eps);
        Ok(RetNet {
            qkv: Qkv::new(d_model, sizes, init),
            readout: GatedReadout::new(d_model, sizes, self.output_gate, norm, init),
            config: self.clone(),
            rope,
            sizes,
            d_model,
        })
    }
}

/// The layer; see the module's equations. Built by [`RetNetConfig::init`].
#[derive(Module, Debug)]
pub struct RetNet {
    /// `W_q`, `W_k`, `W_v` and convolutions
    pub qkv: Qkv,
    /// Norm, `W_g` and `W_o`
    pub readout: GatedReadout,
    #[module(skip)]
    config: RetNetConfig,
    #[module(skip)]
    rope: Option<Rope>,
    #[module(skip)]
    sizes: Sizes,
    #[module(skip)]
    d_model: usize,
}

/// `log γ_h` of all heads, `γ_h = 1 - 2^{-5-h}`.
pub fn retention_decays(heads: usize) -> Vec<f64> {
    (0..heads).map(|h| (-(-5.0 - h as f64).exp2()).ln_1p()).collect()
}

/// What the readout needs besides the core's output.
#[derive(Debug)]
pub struct RetNetAux {
    /// Output gate, `[b, t, h p]`
    gate: Option<Gated<3>>,
    /// `√Γ`, `[1 or b, h, t, 1]`, if scores are divided
    root: Option<Tensor<4>>,
}

/// What each row of scores is divided by: `√Γ max(|s|/√Γ, 1)`, a constant but for the position.
fn divisor(sum: Tensor<4>, root: Tensor<4>) -> Tensor<4> {
    (sum.detach() / root.clone()).abs().clamp_min(1.0) * root
}

impl LinearMixer for RetNet {
    type Aux = RetNetAux;

    fn d_model(&self) -> usize {
        self.d_model
    }

    fn initial_state(&self, batch: usize) -> State {
        let extra = usize::from(self.config.score_norm);
        self.qkv.with_tails(self.sizes.memory(batch, extra, &self.qkv.q_proj))
    }

    fn system(&self, x: Tensor<3>, state: &mut State, run: Run<'_>) -> Result<(System, RetNetAux)> {
        let Sizes { heads, n, .. } = self.sizes;
        let gate_map: Vec<Ended<'_>> = self.readout.gate_proj.iter().map(Ended::from).collect();
        let ([q, k, v], rest) = self.qkv.forward_with(x, &gate_map, state, run)?;
        let starts = state.positions();
        let [q, k] = match &self.rope {
            Some(rope) => rope.apply_all([q, k], starts),
            None => [q, k],
        };
        let decays = retention_decays(heads);
        let root = self.config.score_norm.then(|| roots(&decays, starts, &v));
        let v = if root.is_some() { with_normalizer(v) } else { v };
        let slopes: Vec<f64> = decays.iter().map(|log| -log).collect();
        let aux = RetNetAux { gate: self.readout.gate_of(rest.into_iter().next()), root };
        Ok((lightning_system(&slopes, q, k, v)?.with_gain((n as f64).powf(-0.5)), aux))
    }

    fn readout(&self, y: Tensor<4>, aux: RetNetAux) -> Tensor<3> {
        let y = match aux.root {
            Some(root) => {
                let p = self.sizes.p;
                let sum = y.clone().narrow(3, p, 1);
                y.narrow(3, 0, p) / divisor(sum, root)
            }
            None => y,
        };
        self.readout.forward(y, aux.gate)
    }

    fn system_views(&self, system: System, aux: RetNetAux, state: &State) -> Result<Views> {
        let divisor = match (&system.io, aux.root) {
            (Io::Outer { q, k, v }, Some(root)) => {
                let p = self.sizes.p;
                let ones = v.clone().narrow(3, p, 1);
                let sums = System::outer(system.transition.clone(), q.clone(), k.clone(), ones);
                let sums = sums.with_gain(system.gain);
                let memory = state.get::<4>(MEMORY)?.narrow(3, p, 1);
                Some(divisor(engine::run(sums, memory, Form::Auto)?.0, root))
            }
            _ => None,
        };
        let mut views = Views::of_system(system)?;
        if let Some(divisor) = divisor {
            views.attention = views.attention.map(|attention| attention / divisor);
        }
        views.gates.extend(aux.gate.map(|gate| Gate { name: "g (output gate)".into(), values: gate.open() }));
        Ok(views)
    }

    fn cost(&self, batch: usize, time: usize, form: Form) -> Cost {
        let (Sizes { heads, n, p, .. }, d) = (self.sizes, self.d_model);
        let maps = self.qkv.flops(d) + self.readout.flops(d);
        let rotation = if self.rope.is_some() { 6 * heads * n } else { 0 };
        let columns = p + usize::from(self.config.score_norm);
        let core = heads * Cost::decayed_core(n, columns, time, form);
        Cost::of(self, (maps + rotation + core) as f64, batch, time)
    }
}

/// `√Γ` at each position of each row, `[1 or b, h, t, 1]`.
fn roots(decays: &[f64], starts: &[usize], v: &Tensor<4>) -> Tensor<4> {
    let [_, h, t, _] = v.dims();
    let uniform = starts.iter().all(|&start| start == starts[0]);
    let starts = if uniform { &starts[..1] } else { starts };
    let root = |log: f64, position: usize| {
        let tokens = (position + 1) as f64;
        // The decay of a head beyond the thousandth is 1 in double precision.
        let mass = if log == 0.0 { tokens } else { (log * tokens).exp_m1() / log.exp_m1() };
        mass.sqrt()
    };
    let values: Vec<f64> = starts
        .iter()
        .flat_map(|&start| {
            decays.iter().flat_map(move |&log| (start..start + t).map(move |position| root(log, position)))
        })
        .collect();
    let data = TensorData::new(values, [starts.len(), h, t, 1]);
    Tensor::from_data(data, (&v.device().inner(), v.dtype()))
}

#[cfg(test)]
#[path = "retnet_tests.rs"]
mod tests;
