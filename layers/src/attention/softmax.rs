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
//! | k, v (cache) | `[b, h_kv, T, n]`, `T` = all tokens seen, or the window |

use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::{Tensor, TensorData, activation};
use serde::{Deserialize, Serialize};

use crate::error::require;
use crate::nn::{NormConfig, Norm, Rope, RopeConfig, repeat_heads, split_heads};
use crate::system::{
    Cost, Form, HeadMixer, Mixer, Run, Spectrum, SpectrumKind, State, Views, token_by_token,
};
use crate::{Init, Result};

const NAME: &str = "attention";

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
}

impl Default for AttentionConfig {
    fn default() -> Self {
        Self {
            heads: 4,
            kv_heads: None,
            head_dim: None,
            rope: Some(RopeConfig::default()),
            window: None,
            qkv_bias: false,
            out_bias: false,
            qk_norm: None,
            output_gate: false,
            scale: None,
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
                require(d_model % h == 0, NAME, "heads", h, &expected)?;
                d_model / h
            }
        };
        require(head_dim > 0, NAME, "head_dim", head_dim, "must be positive")?;
        let kv = self.kv_heads.unwrap_or(h);
        require(kv > 0 && h % kv == 0, NAME, "kv_heads", kv, "must divide `heads`")?;
        require(self.window != Some(0), NAME, "window", 0, "must be at least 1")?;
        let std = (1.0 / d_model as f64).sqrt();
        let rope = self.rope.map(|rope| rope.init(head_dim)).transpose()?;
        Ok(Attention {
            q_proj: init.linear_std(d_model, h * head_dim, std, self.qkv_bias),
            k_proj: init.linear_std(d_model, kv * head_dim, std, self.qkv_bias),
            v_proj: init.linear_std(d_model, kv * head_dim, std, self.qkv_bias),
            gate_proj: self
                .output_gate
                .then(|| init.linear_std(d_model, h * head_dim, std, self.qkv_bias)),
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

    /// Scores before the softmax `[b, h, t, T]` (masked ones hugely negative), values `[b, h, T, n]`, the
    /// new state.
    fn scores(
        &self,
        x: Tensor<3>,
        mut state: State,
        run: Run<'_>,
    ) -> Result<(Tensor<4>, Tensor<4>, State)> {
        let [b, t, _] = x.dims();
        let kv = self.kv_heads();
        let mut q = self.query(x.clone());
        let mut k = split_heads(self.k_proj.forward(x.clone()), kv);
        if let Some(norm) = &self.k_norm {
            k = norm.forward(k);
        }
        let v = split_heads(self.v_proj.forward(x), kv);
        if let Some(rope) = &self.rope {
            q = rope.apply(q, state.positions());
            k = rope.apply(k, state.positions());
        }

        let cached = state.find::<4>("k")?.map_or(0, |k| k.dims()[2]);
        let (k, v) = match cached {
            0 => (k, v),
            _ => (
                Tensor::cat(vec![state.get("k")?, k], 2),
                Tensor::cat(vec![state.get("v")?, v], 2),
            ),
        };
        // Position of every cached key; -1 where the cache holds a padded token.
        let mut keys = cached_positions(&state, cached)?;
        for (row, keys) in keys.iter_mut().enumerate() {
            let start = state.positions()[row] as i64;
            let real = run.lengths.map_or(t, |lengths| lengths.0[row]);
            keys.extend((0..t).map(|i| if i < real { start + i as i64 } else { -1 }));
        }
        let mask = self.mask(&keys, state.positions(), t, &q);
        let scale = self.config.scale.unwrap_or((self.head_dim as f64).powf(-0.5));
        let groups = self.config.heads / kv;
        let keys_full = repeat_heads(k.clone(), groups);
        let scores = q.mul_scalar(scale).matmul(keys_full.swap_dims(2, 3)) + mask;
        let values = repeat_heads(v.clone(), groups);

        // A window needs no keys older than `window - 1` tokens.
        let total = cached + t;
        let keep = self.config.window.map_or(total, |w| total.min(w - 1 + ragged_slack(&keys)));
        let trim = |x: Tensor<4>| x.narrow(2, total - keep, keep);
        state.put_cache("k", trim(k), 2);
        state.put_cache("v", trim(v), 2);
        if run.lengths.is_some() || state.find::<2>("key_positions")?.is_some() {
            let kept = keys.iter().flat_map(|row| row[total - keep..].iter().map(|&p| p as f32));
            let data = TensorData::new(kept.collect::<Vec<f32>>(), [b, keep]);
            let device = scores.device().inner();
            state.put_cache("key_positions", Tensor::<2>::from_data(data, &device), 1);
        }
        Ok((scores, values, state))
    }

    /// 0 where query `i` may see key `j`, hugely negative elsewhere: `[b or 1, 1, t, T]`.
    fn mask(&self, keys: &[Vec<i64>], starts: &[usize], t: usize, like: &Tensor<4>) -> Tensor<4> {
        let uniform = keys.windows(2).all(|w| w[0] == w[1]) && starts.windows(2).all(|w| w[0] == w[1]);
        let rows = if uniform { 1 } else { keys.len() };
        let total = keys.first().map_or(0, Vec::len);
        let window = self.config.window.map_or(i64::MAX, |w| w as i64);
        let mut values = Vec::with_capacity(rows * t * total);
        for (keys, &start) in keys.iter().zip(starts).take(rows) {
            for i in start as i64..(start + t) as i64 {
                // A padded query sees nothing; its row is uniform and its output is dropped.
                let seen = |&j: &i64| j >= 0 && j <= i && i - j < window;
                values.extend(keys.iter().map(|j| if seen(j) { 0.0f32 } else { -1e30 }));
            }
        }
        let data = TensorData::new(values, [rows, 1, t, total]);
        Tensor::from_data(data, (&like.device().inner(), like.dtype()))
    }
}

/// Extra cache entries to keep because padded ones sit among the last.
fn ragged_slack(keys: &[Vec<i64>]) -> usize {
    keys.iter().map(|row| row.iter().filter(|&&p| p < 0).count()).max().unwrap_or(0)
}

/// Position of each cached key, per row; -1 for padding.
fn cached_positions(state: &State, cached: usize) -> Result<Vec<Vec<i64>>> {
    match state.find::<2>("key_positions")? {
        Some(positions) => {
            let flat = crate::Value::from(positions).to_f64()?;
            if cached == 0 {
                return Ok(vec![Vec::new(); state.batch()]);
            }
            Ok(flat.chunks(cached).map(|row| row.iter().map(|&p| p as i64).collect()).collect())
        }
        None => Ok((state.positions().iter())
            .map(|&p| (p as i64 - cached as i64..p as i64).collect())
            .collect()),
    }
}

impl HeadMixer for Attention {
    fn heads(&self) -> usize {
        self.config.heads
    }

    fn run_heads(&self, x: Tensor<3>, state: State, run: Run<'_>) -> Result<(Tensor<4>, State)> {
        let gate = self.gate_proj.as_ref().map(|gate| {
            split_heads(activation::sigmoid(gate.forward(x.clone())), self.config.heads)
        });
        let (scores, values, state) = self.scores(x, state, run)?;
        let y = activation::softmax(scores, 3).matmul(values);
        let y = if let Some(gate) = gate { y * gate } else { y };
        Ok((y.swap_dims(1, 2), state))
    }

    fn merge_heads(&self, y: Tensor<4>) -> Tensor<3> {
        let [b, t, h, n] = y.dims();
        self.out_proj.forward(y.reshape([b, t, h * n]))
    }

    fn query_norms(&self, x: Tensor<3>) -> Tensor<3> {
        self.query(x).square().sum_dim(3).sqrt().squeeze_dim::<3>(3).swap_dims(1, 2)
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

    /// `Recurrent` reads token by token; every other form is one masked softmax over the whole call.
    fn run(&self, x: Tensor<3>, state: State, run: Run<'_>) -> Result<(Tensor<3>, State)> {
        if run.form == Form::Recurrent && x.dims()[1] > 1 {
            return token_by_token(x, state, run, |x, state, run| self.run(x, state, run));
        }
        let (y, state) = self.run_heads(x, state, run)?;
        Ok((self.merge_heads(y), state))
    }

    fn views(&self, x: Tensor<3>, state: State) -> Result<Views> {
        self.check(&x, &state)?;
        let (scores, _, _) = self.scores(x, state, Run::default())?;
        let [b, h, t, total] = scores.dims();
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
            attention: Some(weights.slice([0..b, 0..h, 0..t, total - t..total])),
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

