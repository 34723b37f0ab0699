//! PaTH attention (Yang et al., arXiv 2505.16381): positions are what the tokens between a key and a query do to
//! the key, one Householder-like matrix each.
//!
//! ```text
//! w_t = l2norm(silu(conv(W_w x)_t)),   β_t = 2 sigmoid(W_β x_t + b_β)
//! H_t = I - β_t w_t w_tᵀ
//! s_ij = q_iᵀ H_i H_{i-1} ⋯ H_{j+1} k_j · scale,   y_i = Σ_{j ≤ i} softmax_j(s_i) v_j           (Eq. 2)
//! forget gate (PaTH-FoX): s_ij += Σ_{j < s ≤ i} log f_s,   f_t = sigmoid(W_f x_t + b_f)
//! ```
//!
//! The gates' logarithms are added as in forgetting attention; flash-linear-attention multiplies them by `scale` too.
//! Everything else is [`Attention`]'s. With `β = 0` it is attention without positions.
//!
//! | symbol | shape |
//! | --- | --- |
//! | k, v (cache) | `[b, h_kv, T, n]` |
//! | w, before convolution and norm (cache) | `[b, h_kv, T, n]` |
//! | β (cache) | `[b, h_kv, T, 1]` |
//!
//! The cache has keys as they came, so that it can be cut back to any earlier token like every cache; keys moved
//! on by each new token would be cheaper to read, `O(n)` per key, but cannot go back. Products of `H` over a block
//! of tokens are `I - Wᵀ Y` (UT transform), so a query visits the past block by block. `Auto` and `Chunked` run a
//! [kernel](crate::kernels) where there is one.

use burn::module::Module;
use burn::tensor::{Tensor, activation};
use serde::{Deserialize, Serialize};

use super::cache::{Cached, append};
use super::forgetting::{forget, forget_gate};
use super::reflections::Between;
use super::scores::Read;
use super::{Attention, AttentionConfig};
use crate::error::require;
use crate::nn::{CausalConv, CausalConvConfig, Linear, l2_normalize, merge_heads, split_heads};
use crate::system::engine::AUTO_CHUNK;
use crate::system::{Cost, Form, Gate, HeadMixer, Mixer, Run, State, Views, token_by_token};
use crate::{Init, Result};

const NAME: &str = "path_attention";

/// Tokens to a block of products when one token is read: what a block costs grows with its square, and one query
/// visits blocks quickly.
const STEP_BLOCK: usize = 16;

/// Sizes and switches of [`PathAttention`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PathAttentionConfig {
    /// The attention whose positions these are: causal, without rotary positions and without a window.
    pub attention: AttentionConfig,
    /// Inner width of `W_w` as a product of two maps; `None` for one map.
    pub rank: Option<usize>,
    /// Width of the convolution of `w`; 0 for none, and for no `silu`.
    pub conv_kernel: usize,
    /// Whether scores also fade, as in [`super::ForgettingAttention`].
    pub forget_gate: bool,
}

impl Default for PathAttentionConfig {
    fn default() -> Self {
        Self {
            attention: AttentionConfig { rope: None, ..Default::default() },
            rank: Some(32),
            conv_kernel: 3,
            forget_gate: false,
        }
    }
}

impl PathAttentionConfig {
    /// Checks the values and draws the parameters for width `d_model`.
    ///
    /// # Errors
    /// Like [`AttentionConfig::init`], and for attention with other positions, a window or no causality.
    pub fn init(&self, d_model: usize, init: &mut Init) -> Result<PathAttention> {
        let inner = &self.attention;
        require(inner.causal, NAME, "attention.causal", false, "must be true")?;
        require(
            inner.rope.is_none(),
            NAME,
            "attention.rope",
            "set",
            "must be null: `w` makes the positions",
        )?;
        let window = inner.window.unwrap_or(0);
        require(inner.window.is_none(), NAME, "attention.window", window, "must be null")?;
        require(self.rank != Some(0), NAME, "rank", 0, "must be positive, or null for a full map")?;
        let attention = inner.init(d_model, init)?;
        let (h, kv) = (inner.heads, inner.kv_heads.unwrap_or(inner.heads));
        let width = kv * attention.head_dim();
        let conv = CausalConvConfig { kernel: self.conv_kernel, ..Default::default() };
        Ok(PathAttention {
            w_down: self.rank.map(|rank| init.linear(d_model, rank)),
            w_proj: init.linear(self.rank.unwrap_or(d_model), width),
            conv: conv.init_unless_empty(width, init),
            beta_proj: forget_gate(d_model, kv, 0.0, init),
            forget_proj: self.forget_gate.then(|| forget_gate(d_model, h, 0.0, init)),
            attention,
        })
    }
}

/// The layer; see the module's equations. Built by [`PathAttentionConfig::init`].
#[derive(Module, Debug)]
pub struct PathAttention {
    /// The attention whose positions these are
    pub attention: Attention,
    /// `[d, rank]`, the first of two maps that make `W_w`
    pub w_down: Option<Linear>,
    /// `W_w: [d, h_kv n]`, or `[rank, h_kv n]`
    pub w_proj: Linear,
    /// On `w`
    pub conv: Option<CausalConv>,
    /// `W_β: [d, h_kv]`, `b_β`
    pub beta_proj: Linear,
    /// `W_f: [d, h]`, `b_f`
    pub forget_proj: Option<Linear>,
}

impl PathAttention {
    fn beta(&self, x: Tensor<3>) -> Tensor<3> {
        activation::sigmoid(self.beta_proj.forward(x)).mul_scalar(2.0)
    }

    fn read(&self, x: Tensor<3>, state: State, run: Run<'_>) -> Result<(Read, State)> {
        let (mut read, mut state) = self.attention.read(x.clone(), state, run)?;
        let kv = read.k.dims()[1];
        let w = match &self.w_down {
            Some(down) => self.w_proj.forward(down.forward(x.clone())),
            None => self.w_proj.forward(x.clone()),
        };
        let beta = self.beta(x.clone()).swap_dims(1, 2).unsqueeze_dim::<4>(3);
        let Cached { all: [mut w, beta], absent, .. } =
            append(&mut state, ["w", "beta"], [split_heads(w, kv), beta], None, run)?;
        if let Some(conv) = &self.conv {
            if let Some(absent) = &absent {
                // Before a row's first token there is nothing to convolve.
                w = w * absent.clone().clamp_min(-1.0).add_scalar(1.0).swap_dims(2, 3);
            }
            let nothing = conv.initial_state(w.dims()[0]);
            w = split_heads(conv.forward(merge_heads(w), nothing, None).0, kv);
        }
        let w = l2_normalize(w, 1e-6);
        let size = match run.form {
            Form::Chunked { size } => size.max(1),
            Form::Parallel => w.dims()[2],
            Form::Auto | Form::Recurrent if x.dims()[1] == 1 => STEP_BLOCK,
            Form::Auto | Form::Recurrent => AUTO_CHUNK,
        };
        let size = size.min(w.dims()[2]);
        read.between = Some(Between::new(w, beta, size));
        if let Some(gate) = &self.forget_proj {
            forget(gate, x, &mut read, None, &mut state, run)?;
        }
        Ok((read, state))
    }
}

impl Mixer for PathAttention {
    fn d_model(&self) -> usize {
        self.attention.d_model()
    }

    fn initial_state(&self, batch: usize) -> State {
        self.attention.initial_state(batch)
    }

    /// In the forms of [`Attention`]; without a kernel `Chunked` says how many tokens to a block of products as well, and
    /// `Parallel` is one block.
    fn run(&self, x: Tensor<3>, state: State, run: Run<'_>) -> Result<(Tensor<3>, State)> {
        if run.form == Form::Recurrent && x.dims()[1] > 1 {
            return token_by_token(x, state, run, |x, state, run| self.run(x, state, run));
        }
        let (read, state) = self.read(x.clone(), state, run)?;
        Ok((self.attention.merge_heads(self.attention.attend(x, &read, run.form)), state))
    }

    fn views(&self, x: Tensor<3>, state: State) -> Result<Views> {
        self.check(&x, &state)?;
        let beta = self.beta(x.clone());
        let mut gates = vec![Gate { name: "β (reflection)".into(), values: beta }];
        if let Some(gate) = &self.forget_proj {
            let values = activation::sigmoid(gate.forward(x.clone()));
            gates.push(Gate { name: "f (forget gate)".into(), values });
        }
        let (read, _) = self.read(x, state, Run::default())?;
        Ok(Views { gates, ..self.attention.scoring().views(&read) })
    }

    fn cost(&self, batch: usize, time: usize, form: Form) -> Cost {
        let (d, config, n) = (self.d_model(), self.attention.config(), self.attention.head_dim());
        let (h, kv) = (config.heads, config.kv_heads.unwrap_or(config.heads));
        let block = match form {
            Form::Chunked { size } => size.clamp(1, time.max(1)),
            Form::Parallel => time,
            Form::Auto | Form::Recurrent => AUTO_CHUNK.min(time),
        };
        let maps = match &self.w_down {
            Some(down) => down.weight.dims()[1] * (d + kv * n),
            None => d * kv * n,
        };
        let gates = kv + self.forget_proj.as_ref().map_or(0, |_| h);
        // Gram matrices and the solve per key; the walk of a query past every block.
        let keys = 2 * block * 4 * n + block * block;
        let walk = 4 * n * time;
        let flops = 2 * maps + 2 * d * gates + h * (keys + walk);
        let attention = self.attention.cost(batch, time, form);
        let cached = kv * (n + 1) + self.forget_proj.as_ref().map_or(0, |_| h);
        Cost {
            flops: attention.flops + (batch * time * flops) as f64,
            params: self.num_params(),
            state_bytes: attention.state_bytes + 4 * batch * time * cached,
            ..attention
        }
    }
}

#[cfg(test)]
#[path = "path_tests.rs"]
mod tests;
