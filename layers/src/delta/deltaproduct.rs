//! DeltaProduct (Siems et al., arXiv 2502.10297): several delta steps per token, so that the transition is a
//! product of reflections, which can rotate.
//!
//! ```text
//! q = l2norm(silu(conv(W_q x))),  k_j = l2norm(silu(conv(W_k x)_j)),  v_j = silu(conv(W_v x)_j),  j = 1 … m
//! β_j = sigmoid(W_b x)_j                   write strength (×2 if negative eigenvalues are allowed)
//! log α = -exp(A_log) softplus(W_a x + dt_bias)                       (or α = 1: ungated)
//! H ← α_t H_{t-1};   H ← (I - β_j k_j k_jᵀ) H + β_j k_j v_jᵀ  for j = 1 … m;   y_t = H_tᵀ q_t / √n
//! out = W_o (rmsnorm(y) ∘ silu(W_g x))
//! ```
//!
//! | symbol | shape |
//! | --- | --- |
//! | q, k_j | `[b, h, t, n]` (`n` = `head_dim`) |
//! | v_j, y | `[b, h, t, p]` (`p` = `expand_v · head_dim`) |
//! | α, β_j | `[b, h, t]` |
//! | H | `[b, h, n, p]` |
//!
//! To the engine it is a sequence of `t m` steps of which every `m`-th is read.

use burn::module::Module;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::delta_system;
use super::parts::{HeadDecay, HeadOutput, HeadSizes, OutputGate, Qkv, check_steps};
use crate::error::require;
use crate::nn::{Activation, Gated, Linear, l2_normalize, repeat_heads, scaled_sigmoid, split_heads};
use crate::system::{Cost, Form, LinearMixer, Run, State, System};
use crate::{Init, Result};

const NAME: &str = "deltaproduct";

/// Sizes and switches of [`DeltaProduct`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DeltaProductConfig {
    /// Query and key heads.
    pub heads: usize,
    /// Value heads, a multiple of `heads`; `None` for `heads`. Each query head serves a group.
    pub value_heads: Option<usize>,
    /// Key size `n` of a head.
    pub head_dim: usize,
    /// Value size over key size.
    pub expand_v: f64,
    /// Delta steps `m` per token.
    pub steps: usize,
    /// Kernel width of the short convolution; 0 for none.
    pub conv_kernel: usize,
    /// Whether the memory decays before the first step.
    pub gated: bool,
    /// Let `β` range over (0, 2): two reflections make a rotation.
    pub negative_eigenvalues: bool,
    /// Smallest step `softplus(dt_bias)` of the decay drawn at the start.
    pub dt_min: f64,
    /// Largest step drawn at the start; small steps are long memories.
    pub dt_max: f64,
    /// Added to the mean square in the output norm.
    pub norm_eps: f64,
}

impl Default for DeltaProductConfig {
    fn default() -> Self {
        Self {
            heads: 4,
            value_heads: None,
            head_dim: 32,
            expand_v: 1.0,
            steps: 2,
            conv_kernel: 4,
            gated: true,
            negative_eigenvalues: true,
            dt_min: 1e-3,
            dt_max: 0.1,
            norm_eps: 1e-5,
        }
    }
}

impl DeltaProductConfig {
    fn sizes(&self) -> HeadSizes {
        HeadSizes::new(self.heads, self.value_heads, self.head_dim, self.expand_v)
    }

    /// Checks the values and draws the parameters for width `d_model`.
    ///
    /// # Errors
    /// For zero sizes or value heads that do not divide over the query heads.
    pub fn init(&self, d_model: usize, init: &mut Init) -> Result<DeltaProduct> {
        let sizes = self.sizes();
        sizes.check(NAME, d_model, self.expand_v)?;
        let m = self.steps;
        require(m > 0, NAME, "steps", m, "must be positive")?;
        check_steps(NAME, self.dt_min, self.dt_max)?;
        require(self.norm_eps > 0.0, NAME, "norm_eps", self.norm_eps, "must be positive")?;
        let HeadSizes { value_heads: hv, p, .. } = sizes;
        let gate = OutputGate::Full;
        Ok(DeltaProduct {
            qkv: Qkv::init(sizes, m, self.conv_kernel, Activation::Silu, d_model, init),
            a_proj: self.gated.then(|| init.linear(d_model, hv)),
            b_proj: init.linear(d_model, m * hv),
            output: HeadOutput::init([hv, p], gate, Activation::Silu, self.norm_eps, d_model, init),
            decay: self.gated.then(|| HeadDecay::init(hv, self.dt_min, self.dt_max, init)),
            config: self.clone(),
            d_model,
        })
    }
}

/// The layer; see the module's equations. Built by [`DeltaProductConfig::init`].
#[derive(Module, Debug)]
pub struct DeltaProduct {
    /// Queries, and `m` keys and values per token
    pub qkv: Qkv,
    /// `W_a: [d, h]`
    pub a_proj: Option<Linear>,
    /// `W_b: [d, m h]`
    pub b_proj: Linear,
    /// `α`
    pub decay: Option<HeadDecay>,
    /// Norm, gate and `W_o`
    pub output: HeadOutput,
    #[module(skip)]
    config: DeltaProductConfig,
    #[module(skip)]
    d_model: usize,
}

/// `steps` delta steps per token, of which the first decays the memory: `log_a: [b, h, t]`,
/// `beta: [b, h, t m]`, `q: [b, h, t, n]`, `k: [b, h, t m, n]`, `v: [b, h, t m, p]`.
pub fn delta_product_system(
    log_a: Tensor<3>,
    beta: Tensor<3>,
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    steps: usize,
) -> System {
    let [b, h, t] = log_a.dims();
    let log_a = match steps {
        1 => log_a,
        _ => {
            let first = log_a.unsqueeze_dim::<4>(3);
            let none = Tensor::zeros([b, h, t, steps - 1], (&first.device(), first.dtype()));
            Tensor::cat(vec![first, none], 3).reshape([b, h, t * steps])
        }
    };
    delta_system(log_a, beta, q, k, v).with_steps(steps)
}

impl LinearMixer for DeltaProduct {
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
        let (sizes, m) = (self.config.sizes(), self.config.steps);
        let [b, t, _] = x.dims();
        // A token's m keys stand one after the other in its channels: as a sequence they are t m tokens.
        let steps = |x: Tensor<3>| {
            let channels = x.dims()[2] / m;
            x.reshape([b, t * m, channels])
        };
        let [q, k, v] = self.qkv.forward(x.clone(), state, run)?;
        let [q, k] = [q, steps(k)].map(|x| l2_normalize(split_heads(x, sizes.heads), 1e-6));
        let q = repeat_heads(q, sizes.group()).mul_scalar((sizes.n as f64).powf(-0.5));
        let k = repeat_heads(k, sizes.group());
        let v = split_heads(steps(v), sizes.value_heads);

        let beta = scaled_sigmoid(steps(self.b_proj.forward(x.clone())), 1.0).swap_dims(1, 2);
        let beta = if self.config.negative_eigenvalues { beta.mul_scalar(2.0) } else { beta };
        let log_a = match self.a_proj.as_ref().zip(self.decay.as_ref()) {
            Some((map, decay)) => decay.forward(map.forward(x.clone())),
            None => Tensor::zeros([b, sizes.value_heads, t], (&x.device().inner(), x.dtype())),
        };
        Ok((delta_product_system(log_a, beta, q, k, v, m), self.output.gate(x)))
    }

    fn readout(&self, y: Tensor<4>, gate: Self::Aux) -> Tensor<3> {
        self.output.forward(y, gate)
    }

    fn cost(&self, batch: usize, time: usize, form: Form) -> Cost {
        let HeadSizes { value_heads: hv, n, p, .. } = self.config.sizes();
        let m = self.config.steps;
        let gates = self.a_proj.num_params() + self.b_proj.num_params();
        let maps = 2 * (self.qkv.num_params() + gates) + self.output.flops();
        let form = match form {
            Form::Chunked { size } => Form::Chunked { size: size * m },
            other => other,
        };
        let core = hv * m * Cost::rank_one_core(n, p, time * m, form);
        Cost::of(self, (maps + core) as f64, batch, time)
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::delta::{DeltaNetConfig, GatedDeltaNetConfig};
    use crate::params;
    use crate::system::{Mixer, Spectrum};
    use crate::testing::{Draw, gap, numbers};

    const SMALL: DeltaProductConfig = DeltaProductConfig {
        heads: 2,
        value_heads: None,
        head_dim: 4,
        expand_v: 1.0,
        steps: 2,
        conv_kernel: 4,
        gated: true,
        negative_eigenvalues: true,
        dt_min: 1e-3,
        dt_max: 0.1,
        norm_eps: 1e-5,
    };

    fn build(config: &DeltaProductConfig) -> DeltaProduct {
        config.init(8, &mut Init::new(5, &Device::flex())).unwrap()
    }

    /// Outputs of a layer on the same tokens.
    fn outputs<M: Mixer>(layer: &M, form: Form) -> Tensor<3> {
        let x = Draw::new(6).tensor([2, 11, 8], -2.0, 2.0);
        layer.forward(x, layer.initial_state(2), form).unwrap().0
    }

    #[test]
    fn one_step_is_gated_deltanet_or_deltanet() {
        let product = build(&DeltaProductConfig { steps: 1, value_heads: Some(4), ..SMALL });
        let gated = GatedDeltaNetConfig {
            heads: 2,
            value_heads: Some(4),
            head_dim: 4,
            negative_eigenvalues: true,
            norm_eps: 1e-5,
            ..Default::default()
        };
        let gated = gated.init(8, &mut Init::new(0, &Device::flex())).unwrap();
        let gated = params::assign(gated, params::parameters(&product)).unwrap();
        assert!(gap(outputs(&product, Form::Auto), outputs(&gated, Form::Recurrent)) < 1e-5);

        let product = build(&DeltaProductConfig { steps: 1, gated: false, ..SMALL });
        let plain = DeltaNetConfig {
            heads: 2,
            head_dim: 4,
            negative_eigenvalues: true,
            output_gate: true,
            ..Default::default()
        };
        let plain = plain.init(8, &mut Init::new(0, &Device::flex())).unwrap();
        let plain = params::assign(plain, params::parameters(&product)).unwrap();
        assert!(gap(outputs(&product, Form::Auto), outputs(&plain, Form::Recurrent)) < 1e-5);
    }

    /// With `β = 2` and two keys at an angle `θ`, a token turns the plane of the keys by `2 θ`.
    #[test]
    fn two_reflections_rotate() {
        let angle = 0.3_f64;
        let device = Device::flex();
        let key = [1.0, 0.0, 0.0, angle.cos(), angle.sin(), 0.0];
        let k = Tensor::<1>::from_floats(key.map(|x| x as f32), &device).reshape([1, 1, 2, 3]);
        let (one, two) = (Tensor::<3>::zeros([1, 1, 1], &device), Tensor::<3>::full([1, 1, 2], 2.0, &device));
        let q = Tensor::<4>::ones([1, 1, 1, 3], &device);
        let system = delta_product_system(one, two, q, k.clone(), k.zeros_like(), 2);
        let Spectrum { re, im, .. } = crate::system::Views::of_system(system).unwrap().spectrum.unwrap();
        let mut found: Vec<(f64, f64)> = numbers(re).into_iter().zip(numbers(im.unwrap())).collect();
        found.sort_by(|a, b| a.1.total_cmp(&b.1));
        let turned = (2.0 * angle).sin_cos();
        for ((re, im), (cos, sin)) in
            found.into_iter().zip([(turned.1, -turned.0), (1.0, 0.0), (turned.1, turned.0)])
        {
            assert!((re - cos).abs() < 1e-5 && (im - sin).abs() < 1e-5, "{re} {im} for {cos} {sin}");
        }
    }

    /// The products have many eigenvalues at 1, which no iteration can tell apart.
    #[test]
    fn every_product_has_a_spectrum() {
        let layer = build(&DeltaProductConfig { gated: false, head_dim: 8, ..SMALL });
        let x = Draw::new(6).tensor([1, 300, 8], -2.0, 2.0);
        let views = layer.views(x, Mixer::initial_state(&layer, 1)).unwrap();
        let moduli = numbers(views.spectrum.unwrap().modulus());
        assert_eq!(moduli.len(), 2 * 300 * 8);
        assert!(moduli.iter().all(|&modulus| modulus <= 1.0 + 1e-5));
        assert!(moduli.iter().filter(|&&modulus| (modulus - 1.0).abs() < 1e-5).count() >= 2 * 300 * 6);
    }

    #[test]
    fn every_step_costs_a_step() {
        let cost = |steps| {
            let layer = build(&DeltaProductConfig { steps, conv_kernel: 0, ..SMALL });
            let maps = layer.qkv.num_params() + layer.a_proj.num_params() + layer.b_proj.num_params();
            let cost = Mixer::cost(&layer, 1, 1, Form::Recurrent);
            cost.flops - (2 * maps + layer.output.flops()) as f64
        };
        assert!(cost(1) > 0.0);
        assert_eq!(cost(3), 3.0 * cost(1));
    }

    #[test]
    fn no_steps_are_refused() {
        let config = DeltaProductConfig { steps: 0, ..SMALL };
        let error = config.init(8, &mut Init::new(0, &Device::flex())).unwrap_err().to_string();
        assert!(error.contains("`steps`"), "{error}");
    }
}
