//! DeltaNet (Schlag et al., arXiv 2102.11174; Yang et al., arXiv 2406.06484): before a value is written, what the
//! memory says about its key is read and taken back. Nothing else is forgotten.
//!
//! ```text
//! q, k = norm(φ(conv(W x))),  v = silu(conv(W_v x))       norm: x / |x|, or x / Σ x where φ ≥ 0
//! β = sigmoid(W_b x)                       write strength (×2 if negative eigenvalues are allowed), or 1
//! H_t = (I - β_t k_t k_tᵀ) H_{t-1} + β_t k_t v_tᵀ,         y_t = H_tᵀ q_t / √n
//! out = W_o (rmsnorm(y) ∘ silu(W_g x))     (the gate is optional)
//! ```
//!
//! Under either norm `|k| ≤ 1`, so with `β` in [0, 2] the eigenvalues `1` and `1 - β |k|²` lie in [-1, 1].
//!
//! | symbol | shape |
//! | --- | --- |
//! | q, k | `[b, h, t, n]` (`n` = `head_dim`) |
//! | v, y | `[b, h, t, p]` (`p` = `expand_v · head_dim`) |
//! | β | `[b, h, t]` |
//! | H | `[b, h, n, p]` |

use burn::module::Module;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::delta_system;
#[cfg(feature = "cube")]
use super::parts::of_heads;
use super::parts::{HeadOutput, HeadSizes, OutputGate, Qkv, UNIT_EPS, made_by_the_rule};
use crate::error::require;
#[cfg(feature = "cube")]
use crate::kernels;
use crate::nn::{Activation, Ended, Gated, Linear, l2_normalize, scaled_sigmoid, split_heads};
use crate::system::{Cost, Form, LinearMixer, Run, State, System, fresh};
use crate::{Init, Result};

const NAME: &str = "deltanet";

/// How queries and keys are normalised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QkNorm {
    /// `x / |x|`
    #[default]
    L2,
    /// `x / Σ x`, for activations that are not negative.
    Sum,
}

impl QkNorm {
    fn apply(self, x: Tensor<4>) -> Tensor<4> {
        match self {
            QkNorm::L2 => l2_normalize(x, UNIT_EPS),
            QkNorm::Sum => x.clone() / x.sum_dim(3).add_scalar(1e-6),
        }
    }
}

/// Sizes and switches of [`DeltaNet`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DeltaNetConfig {
    /// Heads.
    pub heads: usize,
    /// Key size `n` of a head.
    pub head_dim: usize,
    /// Value size over key size.
    pub expand_v: f64,
    /// Kernel width of the short convolution; 0 for none.
    pub conv_kernel: usize,
    /// `φ`, after the convolution.
    pub qk_activation: Activation,
    /// Normalisation of queries and keys.
    pub qk_norm: QkNorm,
    /// Whether `β` is computed from the input; else it is 1.
    pub learned_beta: bool,
    /// Double `β`, so that eigenvalues range over (-1, 1).
    pub negative_eigenvalues: bool,
    /// Whether the output is gated.
    pub output_gate: bool,
    /// Added to the mean square in the output norm.
    pub norm_eps: f64,
}

impl Default for DeltaNetConfig {
    fn default() -> Self {
        Self {
            heads: 4,
            head_dim: 32,
            expand_v: 1.0,
            conv_kernel: 4,
            qk_activation: Activation::Silu,
            qk_norm: QkNorm::L2,
            learned_beta: true,
            negative_eigenvalues: false,
            output_gate: false,
            norm_eps: 1e-5,
        }
    }
}

impl DeltaNetConfig {
    fn sizes(&self) -> HeadSizes {
        HeadSizes::new(self.heads, None, self.head_dim, self.expand_v)
    }

    /// Checks the values and draws the parameters for width `d_model`.
    ///
    /// # Errors
    /// For zero sizes, or division by a sum of numbers that may be negative.
    pub fn init(&self, d_model: usize, init: &mut Init) -> Result<DeltaNet> {
        let sizes = self.sizes();
        sizes.check(NAME, d_model, self.expand_v)?;
        require(self.norm_eps > 0.0, NAME, "norm_eps", self.norm_eps, "must be positive")?;
        let positive =
            matches!(self.qk_activation, Activation::Relu | Activation::Sigmoid | Activation::EluPlusOne);
        let expected = "divides by a sum that can be 0: use `l2`, or the activation `elu_plus_one`";
        require(positive || self.qk_norm == QkNorm::L2, NAME, "qk_norm", "sum", expected)?;
        let HeadSizes { heads: h, p, .. } = sizes;
        let gate = if self.output_gate { OutputGate::Full } else { OutputGate::None };
        Ok(DeltaNet {
            qkv: Qkv::init(sizes, 1, self.conv_kernel, self.qk_activation, d_model, init),
            b_proj: self.learned_beta.then(|| init.linear(d_model, h)),
            output: HeadOutput::init([h, p], gate, Activation::Silu, self.norm_eps, d_model, init),
            config: self.clone(),
            d_model,
        })
    }
}

/// The layer; see the module's equations. Built by [`DeltaNetConfig::init`].
#[derive(Module, Debug)]
pub struct DeltaNet {
    /// Queries, keys and values
    pub qkv: Qkv,
    /// `W_b: [d, h]`
    pub b_proj: Option<Linear>,
    /// Norm, gate and `W_o`
    pub output: HeadOutput,
    #[module(skip)]
    config: DeltaNetConfig,
    #[module(skip)]
    d_model: usize,
}

impl DeltaNet {
    /// The system from queries, keys and values behind their convolutions, and from `W_b x`, unless that is still to be made
    /// of `x`.
    fn rule(&self, [q, k, v]: [Tensor<3>; 3], b: Option<Tensor<3>>, x: Tensor<3>) -> System {
        let heads = self.config.heads;
        let gain = (self.config.head_dim as f64).powf(-0.5);
        let most = if self.config.negative_eigenvalues { 2.0 } else { 1.0 };
        let v = split_heads(v, heads);
        #[cfg(feature = "cube")]
        if kernels::enabled() && self.config.qk_norm == QkNorm::L2 && kernels::linear::on_graphics(&q) {
            let made = b.clone().map(kernels::HeadInputs::Made);
            let b = made.or_else(|| self.b_proj.as_ref().map(|map| of_heads(&x, map)));
            let (q, k) = (q.clone(), k.clone());
            let rule = kernels::DeltaRule { q, k, b, decay: None, heads, gain, most, eps: UNIT_EPS };
            if let Some(system) = rule.system(&v) {
                return system;
            }
        }
        let [q, k] = [q, k].map(|x| self.config.qk_norm.apply(split_heads(x, heads)));
        let b = b.or_else(|| self.b_proj.as_ref().map(|map| map.forward(x)));
        let beta = match b {
            Some(b) => scaled_sigmoid(b, most).swap_dims(1, 2),
            None => k.clone().narrow(3, 0, 1).squeeze_dim::<3>(3).full_like(most),
        };
        delta_system(fresh(beta.dims(), &k), beta, q, k, v).with_gain(gain)
    }
}

impl LinearMixer for DeltaNet {
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
        let now = self.b_proj.as_ref().filter(|_| !made_by_the_rule(&x));
        let others = now.into_iter().chain(self.output.first_gate_map());
        let others: Vec<Ended<'_>> = others.map(Ended::from).collect();
        let (qkv, rest) = self.qkv.forward_with(x.clone(), &others, state, run)?;
        let mut rest = rest.into_iter();
        let b = now.and_then(|_| rest.next());
        Ok((self.rule(qkv, b, x), self.output.gate_of(rest.next())))
    }

    fn readout(&self, y: Tensor<4>, gate: Self::Aux) -> Tensor<3> {
        self.output.forward(y, gate)
    }

    fn cost(&self, batch: usize, time: usize, form: Form) -> Cost {
        let HeadSizes { heads: h, n, p, .. } = self.config.sizes();
        let maps = 2 * (self.qkv.num_params() + self.b_proj.num_params()) + self.output.flops();
        let core = h * Cost::rank_one_core(n, p, time, form);
        Cost::of(self, (maps + core) as f64, batch, time)
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::delta::GatedDeltaNetConfig;
    use crate::params;
    use crate::system::Mixer;
    use crate::testing::{Draw, gap, numbers};

    /// Without forgetting, gated DeltaNet is DeltaNet: `α = exp(-exp(A_log) Δ)` is 1 where `A` is 0.
    #[test]
    fn gated_deltanet_that_does_not_forget_is_deltanet() {
        let mut init = Init::new(5, &Device::flex());
        for negative_eigenvalues in [false, true] {
            let gated =
                GatedDeltaNetConfig { heads: 2, head_dim: 4, negative_eigenvalues, ..Default::default() };
            let plain = DeltaNetConfig {
                heads: 2,
                head_dim: 4,
                negative_eigenvalues,
                output_gate: true,
                norm_eps: gated.norm_eps,
                ..Default::default()
            };
            let gated = gated.init(8, &mut init).unwrap();
            let mut shared = params::parameters(&gated);
            shared.retain(|name, _| !name.starts_with("decay.") && !name.starts_with("a_proj."));
            let plain = params::assign(plain.init(8, &mut init).unwrap(), shared).unwrap();
            let mut frozen = params::parameters(&gated);
            let never = Tensor::<1>::full([2], -60.0, &Device::flex());
            frozen.insert("decay.a_log".into(), never.into());
            let gated = params::assign(gated, frozen).unwrap();

            let x = Draw::new(6).tensor([2, 11, 8], -2.0, 2.0);
            let (y, last) = gated.forward(x.clone(), Mixer::initial_state(&gated, 2), Form::Auto).unwrap();
            let (other, other_last) =
                plain.forward(x, Mixer::initial_state(&plain, 2), Form::Recurrent).unwrap();
            assert!(gap(other, y) < 1e-5);
            let memory = |state: &State| state.get::<4>(crate::system::MEMORY).unwrap();
            assert!(gap(memory(&other_last), memory(&last)) < 1e-5);
        }
    }

    /// Writing with `β = 1` at a unit key makes the memory say the value at that key.
    #[test]
    fn a_full_write_is_read_back() {
        let config = DeltaNetConfig { heads: 1, head_dim: 6, learned_beta: false, ..Default::default() };
        let layer = config.init(8, &mut Init::new(1, &Device::flex())).unwrap();
        let x = Draw::new(2).tensor([1, 9, 8], -2.0, 2.0);
        let start = Mixer::initial_state(&layer, 1);
        let (system, _) = layer.system(x.clone(), &mut start.clone(), Run::default()).unwrap();
        let crate::system::Io::Outer { k, v, .. } = system.io else { panic!("an outer product") };
        let (_, last) = layer.forward(x, start, Form::Chunked { size: 4 }).unwrap();
        let memory = last.get::<4>(crate::system::MEMORY).unwrap();
        let key = k.narrow(2, 8, 1);
        let read = (key.swap_dims(2, 3) * memory).sum_dim(2);
        assert!(gap(read, v.narrow(2, 8, 1)) < 1e-5);
    }

    #[test]
    fn divided_by_their_sum_keys_still_bound_the_eigenvalues() {
        for qk_activation in [Activation::Relu, Activation::EluPlusOne] {
            let config = DeltaNetConfig {
                heads: 2,
                head_dim: 4,
                qk_activation,
                qk_norm: QkNorm::Sum,
                negative_eigenvalues: true,
                ..Default::default()
            };
            let layer = config.init(8, &mut Init::new(1, &Device::flex())).unwrap();
            let x = Draw::new(2).tensor([1, 50, 8], -9.0, 9.0);
            let views = layer.views(x, Mixer::initial_state(&layer, 1)).unwrap();
            let moduli = numbers(views.spectrum.unwrap().modulus());
            assert!(moduli.iter().all(|&modulus| modulus <= 1.0 + 1e-6));
        }
    }

    #[test]
    fn impossible_settings_are_refused() {
        let refused = |config: DeltaNetConfig, field: &str| {
            let error = config.init(8, &mut Init::new(0, &Device::flex())).unwrap_err().to_string();
            assert!(error.contains(&format!("`{field}`")), "{error}");
        };
        let ok = DeltaNetConfig::default();
        refused(DeltaNetConfig { heads: 0, ..ok.clone() }, "heads");
        refused(DeltaNetConfig { head_dim: 0, ..ok.clone() }, "head_dim");
        refused(DeltaNetConfig { expand_v: f64::INFINITY, ..ok.clone() }, "expand_v");
        refused(DeltaNetConfig { expand_v: 0.0, ..ok.clone() }, "expand_v");
        refused(DeltaNetConfig { qk_norm: QkNorm::Sum, ..ok.clone() }, "qk_norm");
        refused(DeltaNetConfig { norm_eps: f64::NAN, ..ok }, "norm_eps");
    }
}
