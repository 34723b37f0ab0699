//! Softmax attention (Vaswani et al., arXiv 1706.03762) with grouped queries (arXiv 2305.13245), rotary
//! positions and a key-value cache.
//!
//! ```text
//! q, k, v = W_q x, W_k x, W_v x            (optional per-head norm of q and k, rotary positions)
//! s_ij = q_i · k_j · scale  for j ≤ i (and i - j < window),   y_i = Σ_j softmax_j(s_i) v_j
//! sink: y_i = Σ_j e^{s_ij} v_j / (e^z + Σ_j e^{s_ij})     (z learned per head, or 0: softmax1)
//! out = W_o (y ∘ sigmoid(gate))            (the gate is optional)
//! ```
//!
//! A sink lets a head look at nothing; without it, heads learn to look at the first token instead (arXiv 2309.17453).
//!
//! As a system the state is the list of all `(k_j, v_j)`; with `l_i = logsumexp_j s_ij` its eigenvalue is
//! `exp(l_{i-1} - l_i)`, the ratio of normalisers (DSF, arXiv 2405.15731).
//!
//! | symbol | shape |
//! | --- | --- |
//! | q, y | `[b, h, t, n]` |
//! | k, v (cache) | `[b, h_kv, T, n]`, `T` = all tokens seen, or the last `window - 1` |

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::cache::{Cached, append, hidden};
use super::scores::{Read, Scoring};
use crate::error::{head_dim, require};
use crate::nn::{Activation, Linear, Norm, NormConfig, Rope, RopeConfig, gated, project_with, split_heads};
use crate::system::{Cost, Form, HeadMixer, Mixer, Run, State, Terms, Views, token_by_token};
use crate::{Error, Init, Result};

const NAME: &str = "attention";

/// The score `z` of a sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sink {
    /// One number per head (gpt-oss), 0 at the start.
    Learned,
    /// 0: softmax1, whose denominator has one more `e^0`.
    Zero,
}

/// Sizes and switches of [`Attention`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AttentionConfig {
    /// Query heads.
    pub heads: usize,
    /// Key-value heads, a divisor of `heads`; `None` for `heads` (1 is multi-query attention).
    pub kv_heads: Option<usize>,
    /// Channels of a head; `None` for `d_model / heads`.
    pub head_dim: Option<usize>,
    /// Rotary positions; `None` for none.
    pub rope: Option<RopeConfig>,
    /// Whether a token sees only itself and earlier ones. If not, the layer reads a whole sequence in one call.
    pub causal: bool,
    /// Each token sees itself and the `window - 1` tokens before it; `None` for all.
    pub window: Option<usize>,
    /// Bias of the query, key and value maps.
    pub qkv_bias: bool,
    /// Bias of the output map.
    pub out_bias: bool,
    /// Normalisation of each query and key head.
    pub qk_norm: Option<NormConfig>,
    /// Multiplies the output by the sigmoid of a linear map of the input.
    pub output_gate: bool,
    /// Factor on the scores; `None` for `1/√head_dim`.
    pub scale: Option<f64>,
    /// Bounds the scores to `±softcap` by `softcap · tanh(s / softcap)` (Gemma 2); `None` for no bound.
    pub softcap: Option<f64>,
    /// One more score that takes weight from the tokens and gives nothing; `None` for plain softmax.
    pub sink: Option<Sink>,
}

impl Default for AttentionConfig {
    fn default() -> Self {
        Self {
            heads: 4,
            kv_heads: None,
            head_dim: None,
            rope: Some(RopeConfig::default()),
            causal: true,
            window: None,
            qkv_bias: false,
            out_bias: false,
            qk_norm: None,
            output_gate: false,
            scale: None,
            softcap: None,
            sink: None,
        }
    }
}

impl AttentionConfig {
    /// Checks the values and draws the parameters for width `d_model`.
    ///
    /// # Errors
    /// For heads that do not divide the width or the key-value heads, or an impossible rotary share.
    pub fn init(&self, d_model: usize, init: &mut Init) -> Result<Attention> {
        let h = self.heads;
        let head_dim = head_dim(self.head_dim, d_model, h, NAME)?;
        let kv = self.kv_heads.unwrap_or(h);
        require(kv > 0 && h.is_multiple_of(kv), NAME, "kv_heads", kv, "must divide `heads`")?;
        require(self.window != Some(0), NAME, "window", 0, "must be at least 1")?;
        if let Some(cap) = self.softcap {
            require(cap > 0.0 && cap.is_finite(), NAME, "softcap", cap, "must be positive")?;
        }
        let window_ok = self.causal || self.window.is_none();
        require(window_ok, NAME, "window", format!("{:?}", self.window), "needs `causal` = true")?;
        let std = (1.0 / d_model as f64).sqrt();
        let rope = self.rope.map(|rope| rope.init(head_dim)).transpose()?;
        Ok(Attention {
            q_proj: init.linear_std(d_model, h * head_dim, std, self.qkv_bias),
            k_proj: init.linear_std(d_model, kv * head_dim, std, self.qkv_bias),
            v_proj: init.linear_std(d_model, kv * head_dim, std, self.qkv_bias),
            gate_proj: self.output_gate.then(|| init.linear_std(d_model, h * head_dim, std, self.qkv_bias)),
            out_proj: init.linear_std(
                h * head_dim,
                d_model,
                (1.0 / (h * head_dim) as f64).sqrt(),
                self.out_bias,
            ),
            q_norm: self.qk_norm.map(|norm| norm.init(head_dim, init)),
            k_norm: self.qk_norm.map(|norm| norm.init(head_dim, init)),
            sink: (self.sink == Some(Sink::Learned)).then(|| init.constant([h], 0.0)),
            rope,
            config: self.clone(),
            head_dim,
            d_model,
        })
    }
}

/// The layer; see the module's equations. Built by [`AttentionConfig::init`].
#[derive(Module, Debug)]
pub struct Attention {
    /// `W_q: [d, h n]`
    pub q_proj: Linear,
    /// `W_k: [d, h_kv n]`
    pub k_proj: Linear,
    /// `W_v: [d, h_kv n]`
    pub v_proj: Linear,
    /// `[d, h n]`
    pub gate_proj: Option<Linear>,
    /// `W_o: [h n, d]`
    pub out_proj: Linear,
    /// Over the channels of a query head
    pub q_norm: Option<Norm>,
    /// Over the channels of a key head
    pub k_norm: Option<Norm>,
    /// `z: [h]`
    pub sink: Option<Param<Tensor<1>>>,
    #[module(skip)]
    rope: Option<Rope>,
    #[module(skip)]
    config: AttentionConfig,
    #[module(skip)]
    head_dim: usize,
    #[module(skip)]
    d_model: usize,
}

impl Attention {
    fn kv_heads(&self) -> usize {
        self.config.kv_heads.unwrap_or(self.config.heads)
    }

    /// Sizes and switches.
    pub(super) fn config(&self) -> &AttentionConfig {
        &self.config
    }

    /// Channels `n` of a head.
    pub(super) fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Queries from what `W_q` made of the input.
    fn query(&self, q: Tensor<3>) -> Tensor<4> {
        let q = split_heads(q, self.config.heads);
        match &self.q_norm {
            Some(norm) => norm.forward(q),
            None => q,
        }
    }

    /// Projects the call's tokens and adds their keys and values to the cache.
    pub(super) fn read(&self, x: Tensor<3>, mut state: State, run: Run<'_>) -> Result<(Read, State)> {
        let t = x.dims()[1];
        let ([q, k, v], _) = project_with(x, [&self.q_proj, &self.k_proj, &self.v_proj], &[]);
        let mut q = self.query(q);
        let mut k = split_heads(k, self.kv_heads());
        if let Some(norm) = &self.k_norm {
            k = norm.forward(k);
        }
        let v = split_heads(v, self.kv_heads());
        if let Some(rope) = &self.rope {
            [q, k] = rope.apply_all([q, k], state.positions());
        }
        let (between, log_forget) = (None, None);
        if !self.config.causal {
            if state.positions().iter().any(|&seen| seen > 0) {
                return Err(Error::State(
                    "attention that is not causal reads its whole sequence in one call and cannot continue; \
                     start from `initial_state`, or set `causal` to true"
                        .into(),
                ));
            }
            let absent = run.lengths.map(|lengths| {
                let flags = lengths.0.iter().flat_map(|&n| (0..t).map(move |j| j >= n));
                hidden(flags.collect(), t, &k)
            });
            return Ok((Read { q, k, v, cached: 0, absent, between, log_forget }, state));
        }
        let Cached { all: [k, v], cached, absent } =
            append(&mut state, ["k", "v"], [k, v], self.config.window, run)?;
        Ok((Read { q, k, v, cached, absent, between, log_forget }, state))
    }

    /// How this layer weighs.
    pub(super) fn scoring(&self) -> Scoring {
        let (config, like) = (&self.config, self.q_proj.weight.val());
        Scoring {
            causal: config.causal,
            window: config.window,
            scale: config.scale.unwrap_or((self.head_dim as f64).powf(-0.5)),
            softcap: config.softcap,
            sink: config.sink.map(|_| match &self.sink {
                Some(sink) => sink.val(),
                None => Tensor::zeros([config.heads], (&like.device(), like.dtype())),
            }),
        }
    }

    /// The heads' outputs on `x` from what they read, gated: `[b, t, h, n]`.
    pub(super) fn attend(&self, x: Tensor<3>, read: &Read, form: Form) -> Tensor<4> {
        let y = self.scoring().attend(read, form).swap_dims(1, 2);
        match &self.gate_proj {
            Some(gate) => {
                let gate = gate.forward(x).reshape(y.dims());
                gated(y, gate, Activation::Sigmoid)
            }
            None => y,
        }
    }
}

impl HeadMixer for Attention {
    fn heads(&self) -> usize {
        self.config.heads
    }

    fn run_heads(&self, x: Tensor<3>, state: State, run: Run<'_>) -> Result<(Tensor<4>, State)> {
        let (h, n) = (self.config.heads, self.head_dim);
        let [b, t, _] = x.dims();
        if run.form == Form::Recurrent && t > 1 && self.config.causal {
            let (y, state) = token_by_token(x, state, run, |x, state, run| {
                let (y, state) = self.run_heads(x, state, run)?;
                Ok((y.reshape([b, 1, h * n]), state))
            })?;
            return Ok((y.reshape([b, t, h, n]), state));
        }
        let (read, state) = self.read(x.clone(), state, run)?;
        Ok((self.attend(x, &read, run.form), state))
    }

    fn merge_heads(&self, y: Tensor<4>) -> Tensor<3> {
        let [b, t, h, n] = y.dims();
        self.out_proj.forward(y.reshape([b, t, h * n]))
    }

    fn query_norms(&self, x: Tensor<3>) -> Tensor<3> {
        let squares = self.query(self.q_proj.forward(x)).square().sum_dim(3).squeeze_dim::<3>(3);
        // Away from 0, where the root has no derivative.
        squares.clamp_min(1e-30).sqrt().swap_dims(1, 2)
    }
}

impl Mixer for Attention {
    fn d_model(&self) -> usize {
        self.d_model
    }

    /// An empty cache has no tensors at all: they appear with the first token.
    fn initial_state(&self, batch: usize) -> State {
        State::new(batch)
    }

    /// `Recurrent` reads token by token, every other form all tokens in blocks of queries: `Chunked` says how
    /// many to a block, `Parallel` is one block. Attention that is not causal reads all tokens in any form.
    fn run(&self, x: Tensor<3>, state: State, run: Run<'_>) -> Result<(Tensor<3>, State)> {
        let (y, state) = self.run_heads(x, state, run)?;
        Ok((self.merge_heads(y), state))
    }

    fn views(&self, x: Tensor<3>, state: State) -> Result<Views> {
        self.check(&x, &state)?;
        let (read, _) = self.read(x, state, Run::default())?;
        Ok(self.scoring().views(&read))
    }

    /// None where the scores are bent, cut or shared with a sink.
    fn terms(&self, x: Tensor<3>, state: State) -> Result<Option<Terms>> {
        self.check(&x, &state)?;
        let Scoring { causal, window, scale, softcap, sink } = self.scoring();
        let fresh = state.positions().iter().all(|&seen| seen == 0);
        if !(causal && fresh && window.is_none() && softcap.is_none() && sink.is_none()) {
            return Ok(None);
        }
        let (Read { q, k, .. }, _) = self.read(x, state, Run::default())?;
        Ok(Some(Terms::Softmax { q, k, scale }))
    }

    fn cost(&self, batch: usize, time: usize, _form: Form) -> Cost {
        let (h, kv, n, d) = (self.config.heads, self.kv_heads(), self.head_dim, self.d_model);
        let gates = usize::from(self.config.output_gate) * h;
        let projections = 2 * d * n * (2 * h + 2 * kv + gates);
        let seen = self.config.window.map_or(time, |w| w.min(time));
        let mut cost = Cost::of(self, (projections + 4 * h * n * seen) as f64, batch, time);
        cost.state_bytes = 2 * 4 * batch * kv * n * self.config.window.map_or(time, |w| (w - 1).min(time));
        cost.bytes += 2.0 * cost.state_bytes as f64;
        cost
    }
}

#[cfg(test)]
#[path = "softmax_tests.rs"]
mod tests;
