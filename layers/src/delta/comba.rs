//! Comba (Hu et al., arXiv 2506.02475): gated DeltaNet as closed-loop control. What is taken back is read with a
//! weakened key `p`, and the query is corrected by it too.
//!
//! ```text
//! q, k, v = silu(conv(W x)),   p = sigmoid(c) k                         c per head
//! q̂ = l2norm(q - D p),  k̂ = l2norm(k),  p̂ = sigmoid(c) k̂                D per head: output correction
//! β = sigmoid(W_b x),   log α = -exp(A_log) softplus(W_a x + dt_bias)
//! before the decay:  H_t = (α_t I - β_t k̂_t p̂_tᵀ) H_{t-1} + β_t k̂_t v_tᵀ
//! after the decay:   H_t = (I - β_t k̂_t p̂_tᵀ) α_t H_{t-1} + β_t k̂_t v_tᵀ
//! y_t = H_tᵀ q̂_t / √n,   out = W_o (rmsnorm(y) ∘ sigmoid(W_g x))
//! ```
//!
//! The two readings are those of the reference implementation (flash-linear-attention): its chunk kernel, like the
//! paper, reads before the decay, its recurrent one after. The reference's layer also divides `p` by its norm,
//! which undoes `sigmoid(c)` in the feedback; here it is kept, as in the paper.
//!
//! | symbol | shape |
//! | --- | --- |
//! | q, k, p | `[b, h, t, n]` (`n` = `head_dim`) |
//! | v, y | `[b, h, t, p]` (`p` = `expand_v · head_dim`) |
//! | α, β | `[b, h, t]` |
//! | H | `[b, h, n, p]` |
//!
//! Either way one eigenvalue of `Λ_t` is `α - β p·k` or `α (1 - β p·k)`, within (-1, 1), and all others are `α`.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::parts::{HeadDecay, HeadOutput, HeadSizes, OutputGate, Qkv, check_steps};
use crate::error::require;
use crate::nn::{Activation, Gated, Linear, l2_normalize, repeat_heads, scaled_sigmoid, split_heads};
use crate::system::{Cost, Form, LinearMixer, Run, State, System, Transition};
use crate::{Init, Result};

const NAME: &str = "comba";

/// Which memory the feedback reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Feedback {
    /// `H_{t-1}`: the paper and the chunk kernel of the reference.
    #[default]
    BeforeDecay,
    /// `α_t H_{t-1}`, as gated DeltaNet does: the recurrent kernel of the reference.
    AfterDecay,
}

/// Sizes and switches of [`Comba`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CombaConfig {
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
    /// Which memory the feedback reads.
    pub feedback: Feedback,
    /// Whether the feedback's key is weaker than the key that is written; else `p = k`.
    pub inner_decay: bool,
    /// `D` at the start; `None` for no output correction.
    pub correction: Option<f64>,
    /// Smallest step `softplus(dt_bias)` drawn at the start.
    pub dt_min: f64,
    /// Largest step drawn at the start; small steps are long memories.
    pub dt_max: f64,
    /// Added to the mean square in the output norm.
    pub norm_eps: f64,
}

impl Default for CombaConfig {
    fn default() -> Self {
        Self {
            heads: 4,
            value_heads: None,
            head_dim: 32,
            expand_v: 1.0,
            conv_kernel: 4,
            feedback: Feedback::BeforeDecay,
            inner_decay: true,
            // The paper's choice for small models; 1 for large ones.
            correction: Some(0.02),
            dt_min: 1e-3,
            dt_max: 0.1,
            norm_eps: 1e-5,
        }
    }
}

impl CombaConfig {
    fn sizes(&self) -> HeadSizes {
        HeadSizes::new(self.heads, self.value_heads, self.head_dim, self.expand_v)
    }

    /// Checks the values and draws the parameters for width `d_model`.
    ///
    /// # Errors
    /// For zero sizes or value heads that do not divide over the query heads.
    pub fn init(&self, d_model: usize, init: &mut Init) -> Result<Comba> {
        let sizes = self.sizes();
        sizes.check(NAME, d_model, self.expand_v)?;
        check_steps(NAME, self.dt_min, self.dt_max)?;
        if let Some(d) = self.correction {
            require(d.is_finite(), NAME, "correction", d, "must be a number, or absent for none")?;
        }
        require(self.norm_eps > 0.0, NAME, "norm_eps", self.norm_eps, "must be positive")?;
        let HeadSizes { heads: h, value_heads: hv, p, .. } = sizes;
        let gate = OutputGate::Full;
        Ok(Comba {
            qkv: Qkv::init(sizes, 1, self.conv_kernel, Activation::Silu, d_model, init),
            a_proj: init.linear(d_model, hv),
            b_proj: init.linear(d_model, hv),
            output: HeadOutput::init([hv, p], gate, Activation::Sigmoid, self.norm_eps, d_model, init),
            decay: HeadDecay::init(hv, self.dt_min, self.dt_max, init),
            inner_decay: self.inner_decay.then(|| init.constant([h], 1.0)),
            correction: self.correction.map(|d| init.constant([h], d as f32)),
            config: self.clone(),
            d_model,
        })
    }
}

/// The layer; see the module's equations. Built by [`CombaConfig::init`].
#[derive(Module, Debug)]
pub struct Comba {
    /// Queries, keys and values
    pub qkv: Qkv,
    /// `W_a: [d, h]`
    pub a_proj: Linear,
    /// `W_b: [d, h]`
    pub b_proj: Linear,
    /// `α`
    pub decay: HeadDecay,
    /// `c: [h]`
    pub inner_decay: Option<Param<Tensor<1>>>,
    /// `D: [h]`
    pub correction: Option<Param<Tensor<1>>>,
    /// Norm, gate and `W_o`
    pub output: HeadOutput,
    #[module(skip)]
    config: CombaConfig,
    #[module(skip)]
    d_model: usize,
}

/// `α H_{t-1} - β k pᵀ (H_{t-1} or α H_{t-1}) + β k vᵀ`. `log_a`, `beta`: `[b, h, t]`; `p` as `k`.
pub fn comba_system(
    log_a: Tensor<3>,
    beta: Tensor<3>,
    q: Tensor<4>,
    [k, p]: [Tensor<4>; 2],
    v: Tensor<4>,
    feedback: Feedback,
) -> System {
    let log_d = log_a.unsqueeze_dim::<4>(3);
    let write = k * beta.unsqueeze_dim::<4>(3);
    let a = match feedback {
        Feedback::BeforeDecay => p,
        Feedback::AfterDecay => p * log_d.clone().exp(),
    };
    System::outer(Transition::Householder { log_d, a, b: write.clone().neg() }, q, write, v)
}

impl LinearMixer for Comba {
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
        let sizes = self.config.sizes();
        let per_head = |parameter: Tensor<1>| parameter.reshape([1, sizes.heads, 1, 1]);
        let [q, k, v] = self.qkv.forward(x.clone(), state, run)?;
        let [q, k] = [q, k].map(|x| split_heads(x, sizes.heads));
        let weaken = |k: Tensor<4>| match &self.inner_decay {
            Some(c) => k * scaled_sigmoid(per_head(c.val()), 1.0),
            None => k,
        };
        let q = match &self.correction {
            Some(d) => q - weaken(k.clone()) * per_head(d.val()),
            None => q,
        };
        let [q, k] = [q, k].map(|x| l2_normalize(x, 1e-6));
        let p = weaken(k.clone());
        let [q, k, p] = [q, k, p].map(|x| repeat_heads(x, sizes.group()));
        let q = q.mul_scalar((sizes.n as f64).powf(-0.5));
        let v = split_heads(v, sizes.value_heads);

        let beta = scaled_sigmoid(self.b_proj.forward(x.clone()), 1.0).swap_dims(1, 2);
        let log_a = self.decay.forward(self.a_proj.forward(x.clone()));
        Ok((comba_system(log_a, beta, q, [k, p], v, self.config.feedback), self.output.gate(x)))
    }

    fn readout(&self, y: Tensor<4>, gate: Self::Aux) -> Tensor<3> {
        self.output.forward(y, gate)
    }

    fn cost(&self, batch: usize, time: usize, form: Form) -> Cost {
        let HeadSizes { value_heads: hv, n, p, .. } = self.config.sizes();
        let maps = 2 * (self.qkv.num_params() + 2 * self.d_model * hv) + self.output.flops();
        let core = hv * Cost::rank_one_core(n, p, time, form);
        Cost::of(self, (maps + core) as f64, batch, time)
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::delta::{GatedDeltaNetConfig, delta_system};
    use crate::params;
    use crate::system::{MEMORY, Mixer, engine};
    use crate::testing::{Draw, gap, numbers};

    #[test]
    fn with_the_key_itself_it_is_gated_deltanet() {
        let mut draw = Draw::new(1);
        let [q, k] = [0, 1].map(|_| l2_normalize(draw.tensor::<4>([2, 3, 19, 5], -1.0, 1.0), 0.0));
        let v = draw.tensor::<4>([2, 3, 19, 4], -1.0, 1.0);
        let (log, beta) = (draw.tensor::<3>([2, 3, 19], -2.0, 0.0), draw.tensor::<3>([2, 3, 19], 0.0, 1.0));
        let memory = draw.tensor::<4>([2, 3, 5, 4], -1.0, 1.0);
        let theirs = delta_system(log.clone(), beta.clone(), q.clone(), k.clone(), v.clone());
        let (expected, _) = engine::run(theirs, memory.clone(), Form::Recurrent).unwrap();
        let ours = |feedback| {
            let both = [k.clone(), k.clone()];
            let system = comba_system(log.clone(), beta.clone(), q.clone(), both, v.clone(), feedback);
            engine::run(system, memory.clone(), Form::Chunked { size: 6 }).unwrap().0
        };
        assert!(gap(ours(Feedback::AfterDecay), expected.clone()) < 1e-5);
        // The other reading takes back what the decay has not yet weakened: another model.
        assert!(gap(ours(Feedback::BeforeDecay), expected) > 0.1);
    }

    /// Without feedback's own key and correction, the layer has gated DeltaNet's equations but for its gate.
    #[test]
    fn its_core_is_gated_deltanets() {
        let config = CombaConfig {
            heads: 2,
            value_heads: Some(4),
            head_dim: 4,
            feedback: Feedback::AfterDecay,
            inner_decay: false,
            correction: None,
            ..Default::default()
        };
        let mut init = Init::new(5, &Device::flex());
        let ours = config.init(8, &mut init).unwrap();
        let gated = GatedDeltaNetConfig { heads: 2, value_heads: Some(4), head_dim: 4, ..Default::default() };
        let gated = params::assign(gated.init(8, &mut init).unwrap(), params::parameters(&ours)).unwrap();
        let x = Draw::new(6).tensor([2, 11, 8], -2.0, 2.0);
        let memory = |layer: &dyn Mixer| {
            let state = layer.forward(x.clone(), layer.initial_state(2), Form::Auto).unwrap().1;
            state.get::<4>(MEMORY).unwrap()
        };
        assert!(gap(memory(&ours), memory(&gated)) < 1e-5);
    }

    #[test]
    fn both_readings_stay_stable() {
        for feedback in [Feedback::BeforeDecay, Feedback::AfterDecay] {
            let config = CombaConfig { heads: 2, head_dim: 4, feedback, ..Default::default() };
            let layer = config.init(8, &mut Init::new(5, &Device::flex())).unwrap();
            let x = Draw::new(1).tensor([1, 2000, 8], -9.0, 9.0);
            let start = Mixer::initial_state(&layer, 1);
            let views = layer.views(x.clone().narrow(1, 0, 60), start.clone()).unwrap();
            let moduli = numbers(views.spectrum.unwrap().modulus());
            assert!(moduli.iter().all(|&modulus| modulus <= 1.0));
            let (_, last) = layer.forward(x, start, Form::Auto).unwrap();
            assert!(numbers(last.get::<4>(MEMORY).unwrap()).iter().all(|entry| entry.abs() < 1e3));
        }
    }

    #[test]
    fn impossible_settings_are_refused() {
        let refused = |config: CombaConfig, field: &str| {
            let error = config.init(8, &mut Init::new(0, &Device::flex())).unwrap_err().to_string();
            assert!(error.contains(&format!("`{field}`")), "{error}");
        };
        let ok = CombaConfig::default();
        refused(CombaConfig { value_heads: Some(6), ..ok.clone() }, "value_heads");
        refused(CombaConfig { correction: Some(f64::NAN), ..ok.clone() }, "correction");
        refused(CombaConfig { norm_eps: 0.0, ..ok }, "norm_eps");
    }
}
