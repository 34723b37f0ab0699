//! Log-linear attention (Guo et al., arXiv 2506.04761): gated linear attention whose past is a binary tree of
//! memories instead of one, so that the recent past is kept in finer grain than the distant one.
//!
//! ```text
//! q, k, v = silu(conv(W x))
//! log a = -exp(A_log) softplus(W_a x + dt_bias)
//! λ^ℓ = softplus(L^ℓ ∘ (W_λ x)^ℓ)                        one weight per level, head and token
//! y_i = Σ_{j ≤ i} λ_i^{ℓ(i, j)} a_i … a_{j+1} (k_j · q_i / √n) v_j,    ℓ(i, j) = number of bits of (i xor j)
//! out = W_o (rmsnorm(y) ∘ silu(W_g x))
//! ```
//!
//! Level 0 is the token itself, level `m + 1` a bucket of `2^m` tokens: after `t` tokens there are `⌊log₂ t⌋ + 1`
//! memories, of which a token reads those that are not empty. With all weights 1 it is gated linear attention.
//!
//! | symbol | shape |
//! | --- | --- |
//! | q, k, v, y | `[b, h, t, n]` (`n` = `head_dim`) |
//! | a | `[b, h, t]` |
//! | λ | `[b, h, t, levels]` |
//! | memories | `[b, h, ⌊log₂ t⌋ + 1, n, n]` |

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::fenwick::{LogLinearInputs, bits, log_linear};
use crate::error::require;
use crate::nn::{
    Activation, CausalConv, CausalConvConfig, Gated, Linear, RmsNorm, short_conv, softplus, split_heads,
};
use crate::system::engine::AUTO_CHUNK;
use crate::system::{Cost, Form, Gate, Mixer, Run, Spectrum, SpectrumKind, State, Views};
use crate::{Init, Result};

const NAME: &str = "log_linear_attention";
/// Slot of the memories; none before the first token.
const BUCKETS: &str = "buckets";

/// Sizes and switches of [`LogLinearAttention`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogLinearAttentionConfig {
    /// Heads, each with memories of its own.
    pub heads: usize,
    /// Size `n` of a head.
    pub head_dim: usize,
    /// Levels with a weight of their own; the last one weighs all higher levels. Sequences may be longer.
    pub levels: usize,
    /// Kernel width of the short convolution; 0 for none.
    pub conv_kernel: usize,
    /// Smallest step `softplus(dt_bias)` drawn at the start.
    pub dt_min: f64,
    /// Largest step drawn at the start; small steps are long memories.
    pub dt_max: f64,
    /// Added to the mean square in the output norm.
    pub norm_eps: f64,
}

impl Default for LogLinearAttentionConfig {
    fn default() -> Self {
        Self { heads: 4, head_dim: 32, levels: 15, conv_kernel: 4, dt_min: 1e-3, dt_max: 0.1, norm_eps: 1e-6 }
    }
}

impl LogLinearAttentionConfig {
    /// Checks the values and draws the parameters for width `d_model`.
    ///
    /// # Errors
    /// For zero sizes or levels, and an impossible range of steps.
    pub fn init(&self, d_model: usize, init: &mut Init) -> Result<LogLinearAttention> {
        let (h, n) = (self.heads, self.head_dim);
        require(d_model > 0, NAME, "d_model", d_model, "must be positive")?;
        require(h > 0, NAME, "heads", h, "must be positive")?;
        require(n > 0, NAME, "head_dim", n, "must be positive")?;
        require(self.levels > 0, NAME, "levels", self.levels, "must be positive")?;
        require(self.dt_min > 0.0, NAME, "dt_min", self.dt_min, "must be positive")?;
        let range = self.dt_max >= self.dt_min && self.dt_max.is_finite();
        require(range, NAME, "dt_max", self.dt_max, "must be a number not below `dt_min`")?;
        require(self.norm_eps > 0.0, NAME, "norm_eps", self.norm_eps, "must be positive")?;
        let conv = CausalConvConfig { kernel: self.conv_kernel, ..Default::default() };
        let mut conv = || conv.init_unless_empty(h * n, init);
        let (conv_q, conv_k, conv_v) = (conv(), conv(), conv());
        Ok(LogLinearAttention {
            q_proj: init.linear(d_model, h * n),
            k_proj: init.linear(d_model, h * n),
            v_proj: init.linear(d_model, h * n),
            a_proj: init.linear(d_model, h),
            level_proj: init.linear(d_model, h * self.levels),
            gate_proj: init.linear(d_model, h * n),
            out_proj: init.linear(h * n, d_model),
            conv_q,
            conv_k,
            conv_v,
            // A ~ U(0, 16), away from 0 where its logarithm is undefined
            a_log: init.log_of_uniform([h], 1e-3, 16.0),
            dt_bias: init.inverse_softplus_dt(h, self.dt_min, self.dt_max, 1e-4),
            level_scale: init.constant([h * self.levels], 1.0),
            norm: RmsNorm::new(n, self.norm_eps, init),
            config: self.clone(),
            d_model,
        })
    }
}

/// The layer; see the module's equations. Built by [`LogLinearAttentionConfig::init`].
#[derive(Module, Debug)]
pub struct LogLinearAttention {
    /// `W_q: [d, h n]`
    pub q_proj: Linear,
    /// `W_k: [d, h n]`
    pub k_proj: Linear,
    /// `W_v: [d, h n]`
    pub v_proj: Linear,
    /// `W_a: [d, h]`
    pub a_proj: Linear,
    /// `W_λ: [d, h levels]`
    pub level_proj: Linear,
    /// `W_g: [d, h n]`
    pub gate_proj: Linear,
    /// `W_o: [h n, d]`
    pub out_proj: Linear,
    /// Short convolution on `q`
    pub conv_q: Option<CausalConv>,
    /// Short convolution on `k`
    pub conv_k: Option<CausalConv>,
    /// Short convolution on `v`
    pub conv_v: Option<CausalConv>,
    /// `[h]`
    pub a_log: Param<Tensor<1>>,
    /// `[h]`
    pub dt_bias: Param<Tensor<1>>,
    /// `L: [h levels]`
    pub level_scale: Param<Tensor<1>>,
    /// Per head, over `n`
    pub norm: RmsNorm,
    #[module(skip)]
    config: LogLinearAttentionConfig,
    #[module(skip)]
    d_model: usize,
}

impl LogLinearAttention {
    /// What the memories are given; moves the convolutions' tails on.
    fn inputs(&self, x: &Tensor<3>, state: &mut State, run: Run<'_>) -> Result<LogLinearInputs> {
        let (h, n) = (self.config.heads, self.config.head_dim);
        let q = short_conv("conv_q", &self.conv_q, self.q_proj.forward(x.clone()), state, run)?;
        let k = short_conv("conv_k", &self.conv_k, self.k_proj.forward(x.clone()), state, run)?;
        let v = short_conv("conv_v", &self.conv_v, self.v_proj.forward(x.clone()), state, run)?;
        let dt = softplus(self.a_proj.forward(x.clone()) + self.dt_bias.val().unsqueeze());
        let log_a = (dt * self.a_log.val().exp().neg().unsqueeze()).swap_dims(1, 2);
        let scales = softplus(self.level_proj.forward(x.clone()) * self.level_scale.val().unsqueeze());
        let [q, k, v, scales] = [q, k, v, scales].map(|x| split_heads(x, h));
        Ok(LogLinearInputs { q: q.mul_scalar((n as f64).powf(-0.5)), k, v, log_a, scales })
    }

    fn convolutions(&self) -> impl Iterator<Item = (&'static str, &CausalConv)> {
        [("conv_q", &self.conv_q), ("conv_k", &self.conv_k), ("conv_v", &self.conv_v)]
            .into_iter()
            .filter_map(|(name, conv)| conv.as_ref().map(|conv| (name, conv)))
    }
}

impl Mixer for LogLinearAttention {
    fn d_model(&self) -> usize {
        self.d_model
    }

    fn initial_state(&self, batch: usize) -> State {
        let mut state = State::new(batch);
        for (name, conv) in self.convolutions() {
            state.put(name, conv.initial_state(batch));
        }
        state
    }

    fn run(&self, x: Tensor<3>, mut state: State, run: Run<'_>) -> Result<(Tensor<3>, State)> {
        let inputs = self.inputs(&x, &mut state, run)?;
        let (old, starts) = (state.find(BUCKETS)?, state.positions());
        let (y, buckets) = log_linear(inputs, old, starts, run.lengths, run.form)?;
        if let Some(buckets) = buckets {
            state.put_doubling(BUCKETS, buckets, 2);
        }
        let gate = Gated::new(self.gate_proj.forward(x), Activation::Silu);
        Ok((self.norm.parts().heads_through(y, Some(gate), &self.out_proj), state))
    }

    /// The spectrum is the decay `a`, the same for all memories.
    fn views(&self, x: Tensor<3>, mut state: State) -> Result<Views> {
        if !self.check(&x, &state)? {
            return Ok(Views::default());
        }
        let inputs = self.inputs(&x, &mut state, Run::default())?;
        let [b, h, t, _] = inputs.k.dims();
        let levels = self.config.levels;
        let attention = inputs.attention(state.positions());
        let decay = inputs.log_a.exp();
        let scales = inputs.scales.swap_dims(1, 2).reshape([b, t, h * levels]);
        Ok(Views {
            attention: Some(attention),
            spectrum: Some(Spectrum {
                re: decay.clone().unsqueeze_dim(3),
                im: None,
                kind: SpectrumKind::Exact,
            }),
            gates: vec![
                Gate { name: "Λ (decay)".into(), values: decay.swap_dims(1, 2) },
                Gate { name: "λ (levels)".into(), values: scales },
            ],
            ..Views::default()
        })
    }

    fn cost(&self, batch: usize, time: usize, form: Form) -> Cost {
        let (h, n, d) = (self.config.heads, self.config.head_dim, self.d_model);
        let projections = 2 * d * (5 * h * n + h + h * self.config.levels);
        let conv = 6 * self.config.conv_kernel * h * n;
        // Reading and rewriting every memory; inside a chunk a pair of tokens is scored once.
        let levels = bits(time);
        let memory = 4 * n * n * levels;
        let core = match form {
            Form::Recurrent => memory + 2 * n * n,
            Form::Chunked { size } => memory + 4 * size.min(time) * n,
            Form::Auto => memory + 4 * AUTO_CHUNK.min(time) * n,
            Form::Parallel => memory + 4 * time * n,
        };
        let mut cost = Cost::of(self, (projections + conv + h * core) as f64, batch, time);
        let buckets = 4 * batch * h * levels * n * n;
        cost.state_bytes += buckets;
        cost.bytes += 2.0 * buckets as f64;
        cost
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use burn::tensor::activation;

    use super::*;
    use crate::nn::merge_heads;
    use crate::testing::{Draw, gap};

    fn config() -> LogLinearAttentionConfig {
        LogLinearAttentionConfig { heads: 2, head_dim: 4, levels: 3, ..Default::default() }
    }

    /// The state holds one memory per bit of the position, and says so in bytes.
    #[test]
    fn the_state_grows_with_the_logarithm() {
        let layer = config().init(8, &mut Init::new(0, &Device::flex())).unwrap();
        let x = Draw::new(1).tensor([2, 33, 8], -1.0, 1.0);
        for (time, levels) in [(1, 1), (2, 2), (3, 2), (4, 3), (31, 5), (32, 6), (33, 6)] {
            let input = x.clone().narrow(1, 0, time);
            let (_, state) = layer.forward(input, layer.initial_state(2), Form::Auto).unwrap();
            assert_eq!(state.get::<5>(BUCKETS).unwrap().dims(), [2, 2, levels, 4, 4]);
            assert_eq!(state.bytes(), layer.cost(2, time, Form::Auto).state_bytes);
            let again = State::from_bytes(&state.to_bytes().unwrap(), &Device::flex()).unwrap();
            assert_eq!(again.slots().next().unwrap().2, state.slots().next().unwrap().2);
            assert!(state.truncate(0).unwrap_err().to_string().contains("Snapshots"));
        }
    }

    /// The implied attention is what the layer applies; from a state, a corner of the whole one.
    #[test]
    fn the_implied_attention_is_applied() {
        let layer = config().init(8, &mut Init::new(3, &Device::flex())).unwrap();
        let x = Draw::new(2).tensor([1, 21, 8], -1.0, 1.0);
        let start = || layer.initial_state(1);
        let whole = layer.views(x.clone(), start()).unwrap().attention.unwrap();
        let inputs = layer.inputs(&x, &mut start(), Run::default()).unwrap();
        let y = merge_heads(layer.norm.forward(whole.clone().matmul(inputs.v)));
        let y = layer.out_proj.forward(y * activation::silu(layer.gate_proj.forward(x.clone())));
        let (expected, _) = layer.forward(x.clone(), start(), Form::Recurrent).unwrap();
        assert!(gap(y, expected) < 1e-5);
        let (_, at) = layer.forward(x.clone().narrow(1, 0, 6), start(), Form::Auto).unwrap();
        let corner = layer.views(x.narrow(1, 6, 15), at).unwrap().attention.unwrap();
        assert!(gap(corner, whole.narrow(2, 6, 15).narrow(3, 6, 15)) < 1e-5);
    }

    #[test]
    fn impossible_sizes_and_foreign_states_are_refused() {
        let init = |config: LogLinearAttentionConfig| config.init(8, &mut Init::new(0, &Device::flex()));
        assert!(init(LogLinearAttentionConfig { levels: 0, ..config() }).is_err());
        assert!(init(LogLinearAttentionConfig { heads: 0, ..config() }).is_err());
        assert!(init(LogLinearAttentionConfig { dt_max: 1e-9, ..config() }).is_err());
        let layer = init(config()).unwrap();
        let x = Draw::new(0).tensor([1, 3, 8], -1.0, 1.0);
        let (_, state) = layer.forward(x.clone(), layer.initial_state(1), Form::Auto).unwrap();
        let mut wrong = state.clone();
        wrong.put(BUCKETS, Tensor::<5>::zeros([1, 2, 1, 4, 4], &Device::flex()));
        assert!(layer.forward(x.clone(), wrong, Form::Auto).unwrap_err().to_string().contains("buckets"));
        let mut lost = layer.initial_state(1);
        lost.advance(&[3]);
        assert!(layer.forward(x, lost, Form::Auto).unwrap_err().to_string().contains("after 3 tokens"));
    }
}
