//! Mamba-2 (Dao and Gu, arXiv 2405.21060): a state-space layer with one decay per head, dual to a masked
//! attention (SSD).
//!
//! ```text
//! (z, xBC, dt) = W_in u
//! x, B, C = silu(conv(xBC))
//! Δ = clamp(softplus(dt + dt_bias)),   log a = -exp(A_log) Δ
//! H_t = a_t H_{t-1} + Δ_t B_t x_tᵀ,    y_t = H_tᵀ C_t + D x_t
//! out = W_out rmsnorm(y ∘ silu(z))                      norm after the gate, over each group's E / G channels
//! ```
//!
//! | symbol | shape |
//! | --- | --- |
//! | z | `[b, t, E]` (`E` = `expand · d`) |
//! | x, y | `[b, h, t, p]` (`p` = `head_dim`, `h` = `E / p`) |
//! | B, C | `[b, G, t, n]` (`n` = `state`), each group shared by `h / G` heads |
//! | Δ, a | `[b, h, t]` |
//! | H | `[b, h, n, p]` |

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::error::require;
use crate::nn::{
    Activation, CausalConv, CausalConvConfig, Gated, Linear, Normalize, RmsNorm, Scaling, Steps, columns_of,
    gated_through, merge_heads, repeat_heads, silu, split_heads,
};
use crate::system::{Cost, Form, LinearMixer, MEMORY, Run, State, System, Transition, fresh};
use crate::{Error, Init, Result};

const NAME: &str = "mamba2";
const CONV: &str = "conv";

/// How the output is normalised and gated by `z`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GatedNorm {
    /// `rmsnorm(y ∘ silu(z))`: every published Mamba-2 checkpoint.
    #[default]
    AfterGate,
    /// `rmsnorm(y) ∘ silu(z)`
    BeforeGate,
    /// `y ∘ silu(z)`
    None,
}

/// Sizes and switches of [`Mamba2`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mamba2Config {
    /// Inner width `E` over `d_model`.
    pub expand: f64,
    /// Value size `p` of a head; must divide `E`.
    pub head_dim: usize,
    /// State size `n`.
    pub state: usize,
    /// Groups of heads that share `B` and `C`.
    pub groups: usize,
    /// Kernel width of the short convolution; 0 for none.
    pub conv_kernel: usize,
    /// Whether the convolution has a bias.
    pub conv_bias: bool,
    /// Whether the input and output projections have biases.
    pub proj_bias: bool,
    /// Smallest step `Δ` drawn at the start.
    pub dt_min: f64,
    /// Largest step `Δ` drawn at the start.
    pub dt_max: f64,
    /// Steps are clamped from below (transformers: `time_step_limit[0]`).
    pub dt_limit_low: f64,
    /// Steps are clamped from above (transformers: `time_step_limit[1]`); `None` for no limit.
    pub dt_limit_high: Option<f64>,
    /// Order of output norm and gate.
    pub norm: GatedNorm,
    /// Normalise each group's channels by themselves, as the authors and transformers 5.23 do; `false`
    /// for all `E` at once. The same with one group.
    pub grouped_norm: bool,
    /// Added to the mean square in the output norm.
    pub norm_eps: f64,
}

impl Default for Mamba2Config {
    fn default() -> Self {
        Self {
            expand: 2.0,
            head_dim: 16,
            state: 32,
            groups: 1,
            conv_kernel: 4,
            conv_bias: true,
            proj_bias: false,
            dt_min: 1e-3,
            dt_max: 0.1,
            dt_limit_low: 0.0,
            dt_limit_high: None,
            norm: GatedNorm::AfterGate,
            grouped_norm: true,
            norm_eps: 1e-5,
        }
    }
}

impl Mamba2Config {
    /// Checks the values and draws the parameters for width `d_model`.
    ///
    /// # Errors
    /// For zero sizes, heads or groups that do not divide, or empty ranges of the step.
    pub fn init(&self, d_model: usize, init: &mut Init) -> Result<Mamba2> {
        let (p, n, groups) = (self.head_dim, self.state, self.groups);
        let positive = "must be a positive number";
        require(d_model > 0, NAME, "d_model", d_model, "must be positive")?;
        require(self.expand > 0.0 && self.expand.is_finite(), NAME, "expand", self.expand, positive)?;
        require(p > 0, NAME, "head_dim", p, "must be positive")?;
        require(n > 0, NAME, "state", n, "must be positive")?;
        let inner = (d_model as f64 * self.expand).round() as usize;
        if inner == 0 || !inner.is_multiple_of(p) {
            let expected =
                format!("must divide the inner width {inner} (`expand` times d_model = {d_model})");
            return Err(Error::config(NAME, "head_dim", p, expected));
        }
        let heads = inner / p;
        let divides = groups > 0 && heads.is_multiple_of(groups);
        require(divides, NAME, "groups", groups, &format!("must divide the {heads} heads"))?;
        require(self.dt_min > 0.0 && self.dt_min.is_finite(), NAME, "dt_min", self.dt_min, positive)?;
        let range = self.dt_max >= self.dt_min && self.dt_max.is_finite();
        require(range, NAME, "dt_max", self.dt_max, "must be a number not below `dt_min`")?;
        let low = self.dt_limit_low;
        require(low >= 0.0 && low.is_finite(), NAME, "dt_limit_low", low, "must be a number not below 0")?;
        if let Some(high) = self.dt_limit_high {
            let fits = high >= low && high > 0.0 && high.is_finite();
            let expected = "must be a positive number not below `dt_limit_low`, or absent for no limit";
            require(fits, NAME, "dt_limit_high", high, expected)?;
        }
        require(self.norm_eps > 0.0, NAME, "norm_eps", self.norm_eps, "must be positive")?;
        let channels = inner + 2 * groups * n;
        let std = |width: usize| (1.0 / width as f64).sqrt();
        let conv = CausalConvConfig { kernel: self.conv_kernel, bias: self.conv_bias, ..Default::default() };
        Ok(Mamba2 {
            in_proj: init.linear_std(d_model, inner + channels + heads, std(d_model), self.proj_bias),
            conv: conv.init_unless_empty(channels, init),
            a_log: init.log_of_uniform([heads], 1.0, 16.0),
            dt_bias: init.inverse_softplus_dt(heads, self.dt_min, self.dt_max, 1e-4),
            d: init.constant([heads], 1.0),
            norm: (self.norm != GatedNorm::None).then(|| RmsNorm::new(inner, self.norm_eps, init)),
            out_proj: init.linear_std(inner, d_model, std(inner), self.proj_bias),
            config: self.clone(),
            heads,
            d_model,
        })
    }
}

/// The layer; see the module's equations. Built by [`Mamba2Config::init`].
#[derive(Module, Debug)]
pub struct Mamba2 {
    /// `W_in: [d, E + (E + 2 G n) + h]`, in the order `z, x, B, C, dt`
    pub in_proj: Linear,
    /// Short convolution on `x, B, C`
    pub conv: Option<CausalConv>,
    /// `[h]`
    pub a_log: Param<Tensor<1>>,
    /// `[h]`
    pub dt_bias: Param<Tensor<1>>,
    /// Feed-through `D: [h]`
    pub d: Param<Tensor<1>>,
    /// Over `E`
    pub norm: Option<RmsNorm>,
    /// `W_out: [E, d]`
    pub out_proj: Linear,
    #[module(skip)]
    config: Mamba2Config,
    #[module(skip)]
    heads: usize,
    #[module(skip)]
    d_model: usize,
}

impl LinearMixer for Mamba2 {
    /// Gate `z` before its activation, `[b, t, E]`.
    type Aux = Tensor<3>;

    fn d_model(&self) -> usize {
        self.d_model
    }

    fn initial_state(&self, batch: usize) -> State {
        let like = self.a_log.val();
        let shape = [batch, self.heads, self.config.state, self.config.head_dim];
        let state = State::new(batch).with(MEMORY, fresh(shape, &like));
        match &self.conv {
            Some(conv) => state.with(CONV, conv.initial_state(batch)),
            None => state,
        }
    }

    fn system(&self, x: Tensor<3>, state: &mut State, run: Run<'_>) -> Result<(System, Tensor<3>)> {
        let (h, groups) = (self.heads, self.config.groups);
        let (inner, shared) = (h * self.config.head_dim, groups * self.config.state);
        let [z, xbc, dt] = self.in_proj.forward_parts(x, [inner, inner + 2 * shared, h]);

        let widths = [inner, shared, shared];
        let [x, b, c] = match &self.conv {
            Some(conv) => {
                let (parts, tail) = conv.forward_parts(xbc, state.get(CONV)?, run.lengths, widths);
                state.put(CONV, tail);
                parts
            }
            None => columns_of(&silu(xbc), widths),
        };
        let v = split_heads(x, h);
        let c = repeat_heads(split_heads(c, groups), h / groups);

        let steps = Steps { low: self.config.dt_limit_low, high: self.config.dt_limit_high };
        // Δ goes with B, not with x: the feed-through D acts on x itself.
        let (log_a, k) = steps.decays_and_keys(dt, self.dt_bias.val(), self.a_log.val(), b, groups);
        let skip = self.d.val().reshape([1, h, 1, 1]);
        Ok((System::outer(Transition::Scalar { log_a }, c, k, v).with_skip(skip), z))
    }

    fn readout(&self, y: Tensor<4>, z: Tensor<3>) -> Tensor<3> {
        let gate =
            Gated { before: self.config.norm == GatedNorm::AfterGate, ..Gated::new(z, Activation::Silu) };
        match &self.norm {
            Some(norm) if self.in_groups() => self.out_proj.forward(self.normalize(norm, y, Some(gate))),
            Some(norm) => norm.parts().merged_through(y, Some(gate), &self.out_proj),
            None => gated_through(y, gate, &self.out_proj),
        }
    }

    fn cost(&self, batch: usize, time: usize, form: Form) -> Cost {
        let (h, n, p) = (self.heads, self.config.state, self.config.head_dim);
        let channels = h * p + 2 * self.config.groups * n;
        let projections = 2 * self.d_model * (2 * h * p + channels + h);
        let conv = 2 * self.config.conv_kernel * channels;
        let core = h * Cost::decayed_core(n, p, time, form);
        Cost::of(self, (projections + conv + core) as f64, batch, time)
    }
}

impl Mamba2 {
    /// Whether the output norm takes each group's channels by themselves.
    fn in_groups(&self) -> bool {
        self.config.grouped_norm && self.config.groups > 1
    }

    /// `y: [b, h, t, p] -> [b, t, h p]`
    fn normalize(&self, norm: &RmsNorm, y: Tensor<4>, gate: Option<Gated<3>>) -> Tensor<3> {
        if !self.in_groups() {
            return norm.parts().merged(y, gate);
        }
        let [b, h, t, p] = y.dims();
        let groups = self.config.groups;
        let width = h / groups * p;
        let split = |x: Tensor<3>| x.reshape([b, t, groups, width]);
        let gate = gate.map(|Gated { values, activation, before }| {
            let values = split(values);
            Gated { values, activation, before }
        });
        let weight = Some(norm.weight.val().reshape([1, 1, groups, width]));
        let norm = Normalize { weight, ..Normalize::plain(Scaling::rms(self.config.norm_eps)) };
        norm.run(split(merge_heads(y)), gate).reshape([b, t, h * p])
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::nn::rms_normalize;
    use crate::testing::{Draw, gap};

    fn build(config: Mamba2Config, d_model: usize) -> Mamba2 {
        config.init(d_model, &mut Init::new(3, &Device::flex().autodiff())).unwrap()
    }

    #[test]
    fn steps_stay_within_their_limits() {
        let config = Mamba2Config { dt_limit_low: 0.02, dt_limit_high: Some(0.05), ..Default::default() };
        let layer = build(config, 16);
        let a = layer.a_log.val().exp();
        let x = Draw::new(1).tensor([1, 40, 16], -20.0, 20.0);
        let state = &mut LinearMixer::initial_state(&layer, 1);
        let (system, _) = layer.system(x, state, Run::default()).unwrap();
        let Transition::Scalar { log_a } = system.transition else { panic!("a scalar decay") };
        let dt = log_a.neg().swap_dims(1, 2) / a.unsqueeze();
        let (low, high) = (dt.clone().min().into_scalar::<f32>(), dt.max().into_scalar::<f32>());
        assert!((low - 0.02).abs() < 1e-6 && (high - 0.05).abs() < 1e-6, "{low} … {high}");
    }

    #[test]
    fn a_grouped_norm_is_one_norm_per_group() {
        let config = Mamba2Config { groups: 2, ..Default::default() };
        let layer = build(config, 16);
        let norm = layer.norm.as_ref().unwrap();
        let y = Draw::new(1).tensor([2, 3, 32], -1.0, 1.0);
        let half = |start| rms_normalize(y.clone().narrow(2, start, 16), 1e-5);
        let expected = Tensor::cat(vec![half(0), half(16)], 2);
        let heads = split_heads(y.clone(), 2);
        assert!(gap(layer.normalize(norm, heads.clone(), None), expected) < 1e-6);
        let whole = build(Mamba2Config { groups: 2, grouped_norm: false, ..Default::default() }, 16);
        assert!(gap(whole.normalize(norm, heads, None), rms_normalize(y, 1e-5)) < 1e-6);
    }

    #[test]
    fn impossible_sizes_are_refused() {
        let refused = |config: Mamba2Config, field: &str| {
            let error = config.init(12, &mut Init::new(0, &Device::flex())).unwrap_err().to_string();
            assert!(error.contains(&format!("`{field}`")), "{error}");
        };
        let ok = Mamba2Config { head_dim: 8, ..Default::default() };
        refused(Mamba2Config { head_dim: 0, ..ok.clone() }, "head_dim");
        refused(Mamba2Config { head_dim: 7, ..ok.clone() }, "head_dim");
        refused(Mamba2Config { expand: f64::NAN, ..ok.clone() }, "expand");
        refused(Mamba2Config { expand: 0.01, ..ok.clone() }, "head_dim");
        refused(Mamba2Config { state: 0, ..ok.clone() }, "state");
        refused(Mamba2Config { groups: 2, ..ok.clone() }, "groups");
        refused(Mamba2Config { groups: 0, ..ok.clone() }, "groups");
        refused(Mamba2Config { dt_min: 0.0, ..ok.clone() }, "dt_min");
        refused(Mamba2Config { dt_max: 1e-4, ..ok.clone() }, "dt_max");
        refused(Mamba2Config { dt_limit_low: -1.0, ..ok.clone() }, "dt_limit_low");
        refused(Mamba2Config { dt_limit_high: Some(0.0), ..ok.clone() }, "dt_limit_high");
        refused(Mamba2Config { norm_eps: 0.0, ..ok }, "norm_eps");
    }
}
