//! Simple gated linear attention (arXiv 2312.06635 with the scalar gate of arXiv 2405.21060): one decay per head
//! that depends on the token.
//!
//! ```text
//! q, k, v = silu(conv(W x))                            (without a convolution: W x)
//! log α = log_sigmoid(W_a x + b) / τ                   τ = 16
//! H_t = α_t H_{t-1} + k_t v_tᵀ,     y_t = H_tᵀ q_t / √n
//! out = W_o (rmsnorm(y) ∘ silu(W_g x))
//! ```
//!
//! | symbol | shape |
//! | --- | --- |
//! | q, k | `[b, h, t, n]` (`n` = `key_dim`) |
//! | v, y | `[b, h, t, p]` (`p` = `value_dim`) |
//! | α | `[b, h, t]` |
//! | H | `[b, h, n, p]` |

use burn::module::Module;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::parts::{GatedReadout, Qkv, Sizes, channels};
use crate::error::require;
use crate::nn::{Activation, Ended, Ending, Gated, Linear};
use crate::system::{Cost, Form, Gate, LinearMixer, Run, State, System, Transition, Views};
use crate::{Init, Result};

const NAME: &str = "simple_gla";

/// Sizes and switches of [`SimpleGla`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SimpleGlaConfig {
    /// Query heads.
    pub heads: usize,
    /// Heads of keys and values, a divisor of `heads`; `None` for `heads`.
    pub kv_heads: Option<usize>,
    /// Key channels `n` of a head; `None` for `d_model / heads`.
    pub key_dim: Option<usize>,
    /// Value channels `p` of a head; `None` for `d_model / heads`.
    pub value_dim: Option<usize>,
    /// Applied to `q` and `k`.
    pub feature_map: Activation,
    /// Kernel width of the short convolutions; 0 for none.
    pub conv_kernel: usize,
    /// Whether they have biases.
    pub conv_bias: bool,
    /// `τ`: divides the logarithm of the decay, so that memories start long.
    pub gate_temperature: f64,
    /// Multiplies the output by this function of a linear map of the input.
    pub output_gate: Option<Activation>,
    /// Whether the norm of each head's output has a weight.
    pub norm_weight: bool,
    /// Added to the mean square in that norm.
    pub norm_eps: f64,
}

impl Default for SimpleGlaConfig {
    fn default() -> Self {
        Self {
            heads: 4,
            kv_heads: None,
            key_dim: None,
            value_dim: None,
            feature_map: Activation::Identity,
            conv_kernel: 4,
            conv_bias: false,
            gate_temperature: 16.0,
            output_gate: Some(Activation::Silu),
            norm_weight: true,
            norm_eps: 1e-5,
        }
    }
}

impl SimpleGlaConfig {
    /// Checks the values and draws the parameters for width `d_model`.
    ///
    /// # Errors
    /// For zero sizes, heads that do not divide the width or each other, or a decay that could exceed 1.
    pub fn init(&self, d_model: usize, init: &mut Init) -> Result<SimpleGla> {
        let sizes = Sizes {
            heads: self.heads,
            kv_heads: self.kv_heads.unwrap_or(self.heads),
            n: channels(self.key_dim, d_model, 1.0, self.heads, NAME, "key_dim")?,
            p: channels(self.value_dim, d_model, 1.0, self.heads, NAME, "value_dim")?,
            conv_kernel: self.conv_kernel,
            conv_bias: self.conv_bias,
        };
        let sizes = sizes.check(NAME, d_model)?;
        let tau = self.gate_temperature;
        require(tau > 0.0 && tau.is_finite(), NAME, "gate_temperature", tau, "must be a positive number")?;
        require(self.norm_eps > 0.0, NAME, "norm_eps", self.norm_eps, "must be positive")?;
        let norm = (self.norm_weight, self.norm_eps);
        Ok(SimpleGla {
            qkv: Qkv::new(d_model, sizes, init),
            decay_proj: init.linear_std(d_model, sizes.heads, (d_model as f64).powf(-0.5), true),
            readout: GatedReadout::new(d_model, sizes, self.output_gate, norm, init),
            config: self.clone(),
            sizes,
            d_model,
        })
    }
}

/// The layer; see the module's equations. Built by [`SimpleGlaConfig::init`].
#[derive(Module, Debug)]
pub struct SimpleGla {
    /// `W_q`, `W_k`, `W_v` and convolutions
    pub qkv: Qkv,
    /// `W_a: [d, h]` and `b`
    pub decay_proj: Linear,
    /// Norm, `W_g` and `W_o`
    pub readout: GatedReadout,
    #[module(skip)]
    config: SimpleGlaConfig,
    #[module(skip)]
    sizes: Sizes,
    #[module(skip)]
    d_model: usize,
}

impl LinearMixer for SimpleGla {
    /// Output gate, `[b, t, h p]`.
    type Aux = Option<Gated<3>>;

    fn d_model(&self) -> usize {
        self.d_model
    }

    fn initial_state(&self, batch: usize) -> State {
        self.qkv.with_tails(self.sizes.memory(batch, 0, &self.qkv.q_proj))
    }

    fn system(&self, x: Tensor<3>, state: &mut State, run: Run<'_>) -> Result<(System, Self::Aux)> {
        let decay = self.decay_proj.then(Ending::LogSigmoid(1.0 / self.config.gate_temperature));
        let others: Vec<Ended<'_>> =
            std::iter::once(decay).chain(self.readout.gate_proj.iter().map(Ended::from)).collect();
        let ([q, k, v], rest) = self.qkv.forward_with(x, &others, state, run)?;
        let mut rest = rest.into_iter();
        let [q, k] = [q, k].map(|x| self.config.feature_map.apply(x));
        let log_a = rest.next().expect("the map to the decay is the first").swap_dims(1, 2);
        let system = System::outer(Transition::Scalar { log_a }, q, k, v);
        let gain = (self.sizes.n as f64).powf(-0.5);
        Ok((system.with_gain(gain), self.readout.gate_of(rest.next())))
    }

    fn readout(&self, y: Tensor<4>, gate: Self::Aux) -> Tensor<3> {
        self.readout.forward(y, gate)
    }

    fn system_views(&self, system: System, gate: Self::Aux, _state: &State) -> Result<Views> {
        let mut views = Views::of_system(system)?;
        views.gates.extend(gate.map(|gate| Gate { name: "g (output gate)".into(), values: gate.open() }));
        Ok(views)
    }

    fn cost(&self, batch: usize, time: usize, form: Form) -> Cost {
        let (Sizes { heads, n, p, .. }, d) = (self.sizes, self.d_model);
        let maps = self.qkv.flops(d) + 2 * d * heads + self.readout.flops(d);
        let core = heads * Cost::decayed_core(n, p, time, form);
        Cost::of(self, (maps + core) as f64, batch, time)
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::linear::GlaConfig;
    use crate::params;
    use crate::system::Mixer;
    use crate::testing::{Draw, gap};

    /// The same layer with a decay per key channel, all channels of a head alike.
    #[test]
    fn it_is_gla_with_equal_gates() {
        let device = Device::flex();
        let config = SimpleGlaConfig { heads: 2, conv_kernel: 3, ..Default::default() };
        let simple = config.init(8, &mut Init::new(1, &device)).unwrap();
        let config = GlaConfig {
            heads: 2,
            key_dim: Some(4),
            conv_kernel: 3,
            gate_rank: 2,
            gate_temperature: 16.0,
            ..Default::default()
        };
        let gla = config.init(8, &mut Init::new(2, &device)).unwrap();
        let mut named = params::parameters(&simple);
        named.remove("decay_proj.bias");
        let weight = named.remove("decay_proj.weight").unwrap();
        named.insert("decay_down.weight".into(), weight);
        let spread = (0..16).map(|i| if i / 8 == i % 8 / 4 { 1.0 } else { 0.0 }).collect();
        let init = Init::new(0, &device);
        named.insert("decay_up.weight".into(), init.param::<2>([2, 8], spread).val().into());
        named.insert("decay_up.bias".into(), init.constant::<1>([8], 0.0).val().into());
        let gla = params::assign(gla, named).unwrap();
        let x = Draw::new(3).tensor::<3>([2, 11, 8], -2.0, 2.0);
        let (a, a_end) = simple.forward(x.clone(), Mixer::initial_state(&simple, 2), Form::Auto).unwrap();
        let (b, b_end) = gla.forward(x, Mixer::initial_state(&gla, 2), Form::Chunked { size: 4 }).unwrap();
        assert!(gap(a, b) < 1e-5);
        assert!(gap::<4>(a_end.get("memory").unwrap(), b_end.get("memory").unwrap()) < 1e-5);
    }

    #[test]
    fn impossible_sizes_are_refused() {
        let refused = |config: SimpleGlaConfig, field: &str| {
            let error = config.init(8, &mut Init::new(0, &Device::flex())).unwrap_err().to_string();
            assert!(error.contains(&format!("`{field}`")), "{error}");
        };
        refused(SimpleGlaConfig { heads: 0, ..Default::default() }, "heads");
        refused(SimpleGlaConfig { heads: 3, ..Default::default() }, "heads");
        refused(SimpleGlaConfig { kv_heads: Some(3), ..Default::default() }, "kv_heads");
        refused(SimpleGlaConfig { key_dim: Some(0), ..Default::default() }, "key_dim");
        refused(SimpleGlaConfig { value_dim: Some(0), ..Default::default() }, "value_dim");
        refused(SimpleGlaConfig { gate_temperature: -1.0, ..Default::default() }, "gate_temperature");
        refused(SimpleGlaConfig { norm_eps: 0.0, ..Default::default() }, "norm_eps");
    }
}
