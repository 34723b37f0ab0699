//! Softmax attention (Vaswani et al., arXiv 1706.03762) with grouped queries (arXiv 2305.13245), rotary
//! positions and a key-value cache.
//!
//! ```text
//! q, k, v = W_q x, W_k x, W_v x            (optional per-head norm of q and k, rotary positions)
//! s_ij = q_i · k_j · scale  for j ≤ i (and i - j < window),   y_i = Σ_j softmax_j(s_i) v_j
//! out = W_o (y ∘ sigmoid(gate))            (the gate is optional)
//! ```
//!
//! As a system the state is the list of all `(k_j, v_j)`; with `l_i = logsumexp_j s_ij` its eigenvalue is
//! `exp(l_{i-1} - l_i)`, the ratio of normalisers (DSF, arXiv 2405.15731).
//!
//! | symbol | shape |
//! | --- | --- |
//! | q, y | `[b, h, t, n]` |
//! | k, v (cache) | `[b, h_kv, T, n]`, `T` = all tokens seen, or the last `window - 1` |
//!
//! The cache ends with each row's latest token, so where rows have seen different numbers of tokens
//! their positions say which entries are theirs: a step never reads anything back to the host.

use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::{Int, Tensor, TensorData, activation};
use serde::{Deserialize, Serialize};

use crate::error::require;
use crate::nn::{Norm, NormConfig, Rope, RopeConfig, split_heads};
use crate::system::scan::NEGATIVE;
use crate::system::{
    Cost, Form, HeadMixer, Mixer, Run, Spectrum, SpectrumKind, State, Views, token_by_token,
};
use crate::{Error, Init, Result};

const NAME: &str = "attention";

/// Queries to a block in `Auto`: the memory of the scores grows with the length, not with its square.
const AUTO_BLOCK: usize = 512;

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
        require(d_model > 0, NAME, "d_model", d_model, "must be positive")?;
        require(h > 0, NAME, "heads", h, "must be positive")?;
        let head_dim = match self.head_dim {
            Some(n) => n,
            None => {
                let expected = format!("must divide d_model = {d_model}, or set `head_dim`");
                require(d_model.is_multiple_of(h), NAME, "heads", h, &expected)?;
                d_model / h
            }
        };
        require(head_dim > 0, NAME, "head_dim", head_dim, "must be positive")?;
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
    #[module(skip)]
    rope: Option<Rope>,
    #[module(skip)]
    config: AttentionConfig,
    #[module(skip)]
    head_dim: usize,
    #[module(skip)]
    d_model: usize,
}

/// Queries of one call, and the keys and values they may look at.
struct Read {
    /// `[b, h, t, n]`
    q: Tensor<4>,
    /// `[b, h_kv, T, n]`, the cached ones first
    k: Tensor<4>,
    /// `[b, h_kv, T, n]`
    v: Tensor<4>,
    /// Number of cached keys, `T - t`.
    cached: usize,
    /// `[b, 1, 1, T]`: hugely negative where a row has no such key. `None` when all rows have all.
    absent: Option<Tensor<4>>,
}

impl Attention {
    fn kv_heads(&self) -> usize {
        self.config.kv_heads.unwrap_or(self.config.heads)
    }

    fn query(&self, x: Tensor<3>) -> Tensor<4> {
        let q = split_heads(self.q_proj.forward(x), self.config.heads);
        match &self.q_norm {
            Some(norm) => norm.forward(q),
            None => q,
        }
    }

    /// Projects the call's tokens and adds their keys and values to the cache.
    fn read(&self, x: Tensor<3>, mut state: State, run: Run<'_>) -> Result<(Read, State)> {
        let t = x.dims()[1];
        let mut q = self.query(x.clone());
        let mut k = split_heads(self.k_proj.forward(x.clone()), self.kv_heads());
        if let Some(norm) = &self.k_norm {
            k = norm.forward(k);
        }
        let mut v = split_heads(self.v_proj.forward(x), self.kv_heads());
        if let Some(rope) = &self.rope {
            q = rope.apply(q, state.positions());
            k = rope.apply(k, state.positions());
        }
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
            return Ok((Read { q, k, v, cached: 0, absent }, state));
        }

        let cached = match (state.find::<4>("k")?, state.find::<4>("v")?) {
            (Some(older_k), Some(older_v)) => {
                let cached = older_k.dims()[2];
                k = Tensor::cat(vec![older_k, k], 2);
                v = Tensor::cat(vec![older_v, v], 2);
                cached
            }
            _ => 0,
        };
        // The cache ends with each row's latest token; a row that has seen fewer lacks the first entries.
        let missing = |&seen: &usize| cached.saturating_sub(seen);
        let absent = state.positions().iter().any(|seen| missing(seen) > 0).then(|| {
            let flags = state.positions().iter().flat_map(|seen| {
                let missing = missing(seen);
                (0..cached + t).map(move |j| j < missing)
            });
            hidden(flags.collect(), cached + t, &k)
        });
        self.store(&k, &v, cached, &mut state, run);
        Ok((Read { q, k, v, cached, absent }, state))
    }

    /// Keeps the keys and values that later tokens may see.
    fn store(&self, k: &Tensor<4>, v: &Tensor<4>, cached: usize, state: &mut State, run: Run<'_>) {
        let [b, kv, total, n] = k.dims();
        let added = |row: usize| run.lengths.map_or(total - cached, |lengths| lengths.0[row]);
        let seen = state.positions().iter().enumerate().map(|(row, &seen)| seen + added(row));
        // A window needs no keys older than `window - 1` tokens.
        let window = self.config.window.map_or(usize::MAX, |w| w - 1);
        let keep = seen.max().unwrap_or(0).min(window).min(total);
        if keep == 0 {
            return;
        }
        let trim = |x: Tensor<4>| {
            if run.lengths.is_none() {
                return if keep == total { x } else { x.narrow(2, total - keep, keep) };
            }
            // Padding is dropped: each row ends with its last real token.
            let source = |row: usize, j: usize| (cached + added(row) + j).saturating_sub(keep);
            let index: Vec<i64> = (0..b)
                .flat_map(|row| (0..keep).map(move |j| (row * total + source(row, j)) as i64))
                .collect();
            let index = Tensor::<1, Int>::from_data(TensorData::new(index, [b * keep]), &x.device().inner());
            let rows = x.swap_dims(1, 2).reshape([b * total, kv * n]).select(0, index);
            rows.reshape([b, keep, kv, n]).swap_dims(1, 2)
        };
        state.put_cache("k", trim(k.clone()), 2);
        state.put_cache("v", trim(v.clone()), 2);
    }

    /// Scores before the softmax of queries `start..start + len` with keys `from..to`, the hidden ones hugely
    /// negative: `[b, h, len, to - from]`.
    fn scores(&self, read: &Read, start: usize, len: usize, from: usize, to: usize) -> Tensor<4> {
        let q = part(&read.q, start, len);
        let [b, h, _, n] = q.dims();
        let kv = self.kv_heads();
        let scale = self.config.scale.unwrap_or((n as f64).powf(-0.5));
        // The queries that share a key-value head become rows of one product, so keys are not repeated.
        let q = q.mul_scalar(scale).reshape([b, kv, h / kv * len, n]);
        let keys = part(&read.k, from, to - from);
        let mut scores = q.matmul(keys.swap_dims(2, 3)).reshape([b, h, len, to - from]);
        if let Some(cap) = self.config.softcap {
            scores = scores.div_scalar(cap).tanh().mul_scalar(cap);
        }
        if let Some(absent) = &read.absent {
            scores = scores + absent.clone().narrow(3, from, to - from);
        }
        let first = read.cached + start;
        let future = self.config.causal && first + 1 < to;
        let old = self.config.window.filter(|w| first + len > from + w);
        if !future && old.is_none() {
            return scores;
        }
        let (device, dtype) = (scores.device().inner(), scores.dtype());
        let index = |from: usize, to: usize| Tensor::<1, Int>::arange(from as i64..to as i64, &device);
        let behind = index(first, first + len).reshape([len, 1]) - index(from, to).reshape([1, to - from]);
        let mut unseen = behind.clone().lower_elem(0);
        if let Some(window) = old {
            unseen = unseen.bool_or(behind.greater_equal_elem(window as i64));
        }
        scores + unseen.float().cast(dtype).mul_scalar(NEGATIVE).unsqueeze::<4>()
    }

    /// `softmax(scores) v` in blocks of queries, so that the scores of a long sequence are never all in memory:
    /// `[b, h, t, n]`.
    fn attend(&self, read: &Read, form: Form) -> Tensor<4> {
        let [b, h, t, _] = read.q.dims();
        let [_, kv, total, n] = read.v.dims();
        let size = match form {
            Form::Chunked { size } => size.clamp(1, t),
            Form::Auto => t.min(AUTO_BLOCK),
            Form::Parallel | Form::Recurrent => t,
        };
        let blocks = (0..t).step_by(size).map(|start| {
            let len = size.min(t - start);
            let to = if self.config.causal { read.cached + start + len } else { total };
            let from = self.config.window.map_or(0, |w| (read.cached + start + 1).saturating_sub(w));
            let weights = activation::softmax(self.scores(read, start, len, from, to), 3);
            let weights = weights.reshape([b, kv, h / kv * len, to - from]);
            weights.matmul(part(&read.v, from, to - from)).reshape([b, h, len, n])
        });
        let mut blocks: Vec<_> = blocks.collect();
        if blocks.len() == 1 { blocks.remove(0) } else { Tensor::cat(blocks, 2) }
    }
}

/// `len` entries of axis 2 from `start`; no slicing where that is all of them.
fn part(x: &Tensor<4>, start: usize, len: usize) -> Tensor<4> {
    if len == x.dims()[2] { x.clone() } else { x.clone().narrow(2, start, len) }
}

/// Hugely negative where flagged, 0 elsewhere: `[rows, 1, 1, total]`.
fn hidden(flags: Vec<bool>, total: usize, like: &Tensor<4>) -> Tensor<4> {
    let values: Vec<f32> = flags.into_iter().map(|hide| if hide { NEGATIVE as f32 } else { 0.0 }).collect();
    let data = TensorData::new(values, [like.dims()[0], 1, 1, total]);
    Tensor::from_data(data, (&like.device().inner(), like.dtype()))
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
        let gate = self.gate_proj.as_ref().map(|gate| activation::sigmoid(gate.forward(x.clone())));
        let (read, state) = self.read(x, state, run)?;
        let y = self.attend(&read, run.form).swap_dims(1, 2);
        Ok((if let Some(gate) = gate { y * gate.reshape([b, t, h, n]) } else { y }, state))
    }

    fn merge_heads(&self, y: Tensor<4>) -> Tensor<3> {
        let [b, t, h, n] = y.dims();
        self.out_proj.forward(y.reshape([b, t, h * n]))
    }

    fn query_norms(&self, x: Tensor<3>) -> Tensor<3> {
        let squares = self.query(x).square().sum_dim(3).squeeze_dim::<3>(3);
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
        let (t, cached) = (read.q.dims()[2], read.cached);
        let scores = self.scores(&read, 0, t, 0, cached + t);
        let weights = activation::softmax(scores.clone(), 3);
        // Λ_i = exp(l_{i-1} - l_i); the first token has nothing to forget.
        let top = scores.clone().max_dim(3);
        let l = (scores - top.clone()).exp().sum_dim(3).log() + top;
        let re = if t == 1 {
            l.zeros_like()
        } else {
            let ratio = (l.clone().narrow(2, 0, t - 1) - l.clone().narrow(2, 1, t - 1)).exp();
            Tensor::cat(vec![l.narrow(2, 0, 1).zeros_like(), ratio], 2)
        };
        Ok(Views {
            attention: Some(weights.narrow(3, cached, t)),
            spectrum: Some(Spectrum { re, im: None, kind: SpectrumKind::Normaliser }),
            ..Views::default()
        })
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
