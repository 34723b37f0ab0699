//! Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): keys and values of all heads are linear in one
//! small vector per token, and only that is kept.
//!
//! ```text
//! c_t = rmsnorm(W_dkv x_t),  r_t = rope(W_kr x_t)                 (one per token, shared by all heads)
//! q_t = W_uq rmsnorm(W_dq x_t), or W_q x_t;  per head [q^n | rope(q^r)]
//! [k^n_j | v_j] = W_ukv c_j                                       (per head)
//! s_ij = (q^n_i · k^n_j + q^r_i · r_j) · scale,   y_i = Σ_{j ≤ i} softmax_j(s_i) v_j,   out = W_o y
//! ```
//!
//! One token is read without forming keys and values of the past ("absorbed"), as one key-value head that all
//! query heads share: with `W_ukv = [W_uk | W_uv]`,
//!
//! ```text
//! q^n_i · W_uk c_j = (W_ukᵀ q^n_i) · c_j,   Σ_j a_ij W_uv c_j = W_uv Σ_j a_ij c_j
//! ```
//!
//! Without rotary positions (`rope` null; Kimi Linear) the shared part `r` is a key like any other.
//!
//! | symbol | shape |
//! | --- | --- |
//! | q^n, k^n | `[b, h, t, n]` (`n` = `head_dim`) |
//! | q^r, r | `[b, h, t, rope_dim]`, `[b, 1, t, rope_dim]` |
//! | v, y | `[b, h, t, p]` (`p` = `value_dim`) |
//! | (c, r) (cache) | `[b, 1, T, kv_rank + rope_dim]` |

use burn::module::Module;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::cache::{Cached, append};
use super::scores::{Read, Scoring};
use crate::error::{head_dim, require};
use crate::nn::{Linear, RmsNorm, Rope, RopeConfig, merge_heads, split_heads};
use crate::system::{Cost, Form, Mixer, Run, State, Views, token_by_token};
use crate::{Init, Result};

const NAME: &str = "mla";

/// Sizes and switches of [`Mla`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MlaConfig {
    /// Query heads; keys and values have as many.
    pub heads: usize,
    /// Channels `n` of a head that are compared with keys from the latent; `None` for `d_model / heads`.
    pub head_dim: Option<usize>,
    /// Channels of a head that are compared with the key all heads share; 0 for no such key.
    pub rope_dim: usize,
    /// Channels `p` of a value; `None` for `head_dim`.
    pub value_dim: Option<usize>,
    /// Size of the latent `c`.
    pub kv_rank: usize,
    /// Size of the queries' latent; `None` for one map.
    pub q_rank: Option<usize>,
    /// Rotary positions of the shared key; `None` for none.
    pub rope: Option<RopeConfig>,
    /// Factor on the scores; `None` for `1/√(head_dim + rope_dim)`.
    pub scale: Option<f64>,
    /// Added to the mean square in the latents' norms.
    pub norm_eps: f64,
}

impl Default for MlaConfig {
    fn default() -> Self {
        Self {
            heads: 4,
            head_dim: None,
            rope_dim: 16,
            value_dim: None,
            kv_rank: 64,
            q_rank: None,
            rope: Some(RopeConfig::default()),
            scale: None,
            norm_eps: 1e-6,
        }
    }
}

impl MlaConfig {
    /// Checks the values and draws the parameters for width `d_model`.
    ///
    /// # Errors
    /// For zero sizes, heads that do not divide the width, or rotary positions without a shared key.
    pub fn init(&self, d_model: usize, init: &mut Init) -> Result<Mla> {
        let (h, r, rank) = (self.heads, self.rope_dim, self.kv_rank);
        let n = head_dim(self.head_dim, d_model, h, NAME)?;
        let p = self.value_dim.unwrap_or(n);
        require(p > 0, NAME, "value_dim", p, "must be positive")?;
        require(rank > 0, NAME, "kv_rank", rank, "must be positive")?;
        require(self.q_rank != Some(0), NAME, "q_rank", 0, "must be positive, or null for one map")?;
        let shared = self.rope.is_none() || r > 0;
        require(shared, NAME, "rope_dim", r, "must be positive, or set `rope` to null")?;
        require(self.norm_eps > 0.0, NAME, "norm_eps", self.norm_eps, "must be positive")?;
        let scale = self.scale.unwrap_or(((n + r) as f64).powf(-0.5));
        require(scale.is_finite() && scale > 0.0, NAME, "scale", scale, "must be positive")?;
        Ok(Mla {
            q_down: self.q_rank.map(|rank| init.linear(d_model, rank)),
            q_norm: self.q_rank.map(|rank| RmsNorm::new(rank, self.norm_eps, init)),
            q_proj: init.linear(self.q_rank.unwrap_or(d_model), h * (n + r)),
            kv_down: init.linear(d_model, rank + r),
            kv_norm: RmsNorm::new(rank, self.norm_eps, init),
            kv_up: init.linear(rank, h * (n + p)),
            out_proj: init.linear(h * p, d_model),
            rope: self.rope.map(|rope| rope.init(r)).transpose()?,
            sizes: Sizes { h, n, r, p, rank },
            scale,
            d_model,
        })
    }
}

/// The letters of the module's tables.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    h: usize,
    n: usize,
    r: usize,
    p: usize,
    rank: usize,
}

/// The layer; see the module's equations. Built by [`MlaConfig::init`].
#[derive(Module, Debug)]
pub struct Mla {
    /// `W_dq: [d, q_rank]`
    pub q_down: Option<Linear>,
    /// Over the queries' latent
    pub q_norm: Option<RmsNorm>,
    /// `W_uq: [q_rank, h (n + r)]`, or `W_q: [d, h (n + r)]`
    pub q_proj: Linear,
    /// `W_dkv` and `W_kr`: `[d, kv_rank + r]`
    pub kv_down: Linear,
    /// Over the latent
    pub kv_norm: RmsNorm,
    /// `W_ukv: [kv_rank, h (n + p)]`
    pub kv_up: Linear,
    /// `W_o: [h p, d]`
    pub out_proj: Linear,
    #[module(skip)]
    rope: Option<Rope>,
    #[module(skip)]
    sizes: Sizes,
    #[module(skip)]
    scale: f64,
    #[module(skip)]
    d_model: usize,
}

impl Mla {
    fn scoring(&self) -> Scoring {
        Scoring { causal: true, window: None, scale: self.scale, softcap: None, sink: None }
    }

    /// Queries `[b, h, t, n + r]`, and `(c, r)` of all tokens, the call's among them.
    fn read(&self, x: Tensor<3>, mut state: State, run: Run<'_>) -> Result<(Tensor<4>, Cached<1>, State)> {
        let Sizes { h, n, r, rank, .. } = self.sizes;
        let q = match (&self.q_down, &self.q_norm) {
            (Some(down), Some(norm)) => norm.forward(down.forward(x.clone())),
            _ => x.clone(),
        };
        let q = split_heads(self.q_proj.forward(q), h);
        let down = self.kv_down.forward(x).unsqueeze_dim::<4>(1);
        let latent = self.kv_norm.forward(down.clone().narrow(3, 0, rank));
        let (q, new) = if r == 0 {
            (q, latent)
        } else {
            let turn = |x: Tensor<4>| match &self.rope {
                Some(rope) => rope.apply(x, state.positions()),
                None => x,
            };
            let turned = turn(q.clone().narrow(3, n, r));
            let shared = turn(down.narrow(3, rank, r));
            (Tensor::cat(vec![q.narrow(3, 0, n), turned], 3), Tensor::cat(vec![latent, shared], 3))
        };
        let cached = append(&mut state, ["latent"], [new], None, run)?;
        Ok((q, cached, state))
    }

    /// Keys and values of every head from the latents.
    fn expanded(&self, q: Tensor<4>, cached: Cached<1>) -> Read {
        let Sizes { h, n, r, p, rank } = self.sizes;
        let Cached { all: [kept], cached, absent } = cached;
        let [b, _, total, _] = kept.dims();
        let latent = kept.clone().narrow(3, 0, rank).squeeze_dim::<3>(1);
        let both = split_heads(self.kv_up.forward(latent), h);
        let (k, v) = (both.clone().narrow(3, 0, n), both.narrow(3, n, p));
        let k = match r {
            0 => k,
            _ => Tensor::cat(vec![k, kept.narrow(3, rank, r).expand([b, h, total, r])], 3),
        };
        Read { q, k, v, cached, absent, between: None, log_forget: None }
    }

    /// `W_uk: [1, h, rank, n]` and `W_uv: [1, h, rank, p]`.
    fn up(&self) -> [Tensor<4>; 2] {
        let Sizes { h, n, p, rank, .. } = self.sizes;
        let both = self.kv_up.weight.val().reshape([1, rank, h, n + p]).swap_dims(1, 2);
        [both.clone().narrow(3, 0, n), both.narrow(3, n, p)]
    }

    /// One token's heads, `[b, h, 1, p]`, from the latents as they are.
    fn absorbed(&self, q: Tensor<4>, cached: Cached<1>) -> Tensor<4> {
        let Sizes { n, r, rank, .. } = self.sizes;
        let Cached { all: [kept], cached, absent } = cached;
        let [up_k, up_v] = self.up();
        // Products with one row go wrong on WebGPU, so multiply and sum.
        let asks = (up_k * q.clone().narrow(3, 0, n)).sum_dim(3).swap_dims(2, 3);
        let q = if r == 0 { asks } else { Tensor::cat(vec![asks, q.narrow(3, n, r)], 3) };
        let v = kept.clone().narrow(3, 0, rank);
        let read = Read { q, k: kept, v, cached, absent, between: None, log_forget: None };
        let latent = self.scoring().attend(&read, Form::Parallel);
        (latent.swap_dims(2, 3) * up_v).sum_dim(2)
    }
}

impl Mixer for Mla {
    fn d_model(&self) -> usize {
        self.d_model
    }

    fn initial_state(&self, batch: usize) -> State {
        State::new(batch)
    }

    /// One token is read from the latents, several from the keys and values they stand for, in blocks of queries
    /// like softmax attention's.
    fn run(&self, x: Tensor<3>, state: State, run: Run<'_>) -> Result<(Tensor<3>, State)> {
        let t = x.dims()[1];
        if run.form == Form::Recurrent && t > 1 {
            return token_by_token(x, state, run, |x, state, run| self.run(x, state, run));
        }
        let (q, cached, state) = self.read(x, state, run)?;
        let y = match t {
            1 => self.absorbed(q, cached),
            _ => self.scoring().attend(&self.expanded(q, cached), run.form),
        };
        Ok((self.out_proj.forward(merge_heads(y)), state))
    }

    fn views(&self, x: Tensor<3>, state: State) -> Result<Views> {
        self.check(&x, &state)?;
        let (q, cached, _) = self.read(x, state, Run::default())?;
        Ok(self.scoring().views(&self.expanded(q, cached)))
    }

    fn cost(&self, batch: usize, time: usize, _form: Form) -> Cost {
        let (d, Sizes { h, n, r, p, rank }) = (self.d_model, self.sizes);
        let query = match &self.q_down {
            Some(down) => down.weight.dims()[1] * (d + h * (n + r)),
            None => d * h * (n + r),
        };
        let maps = query + d * (rank + r) + rank * h * (n + p) + d * h * p;
        let mut cost = Cost::of(self, (2 * maps + 2 * h * (n + r + p) * time) as f64, batch, time);
        cost.state_bytes = 4 * batch * (rank + r) * time;
        cost.bytes += 2.0 * cost.state_bytes as f64;
        cost
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::testing::{Draw, gap};

    fn variants() -> [MlaConfig; 3] {
        let small = MlaConfig { head_dim: Some(5), rope_dim: 4, kv_rank: 6, ..Default::default() };
        [
            MlaConfig { q_rank: Some(7), value_dim: Some(3), ..small.clone() },
            MlaConfig { rope: None, ..small.clone() },
            MlaConfig { rope: None, rope_dim: 0, heads: 1, ..small },
        ]
    }

    /// The absorbed step against keys and values of every head.
    #[test]
    fn absorbed_is_expanded() {
        for config in variants() {
            let layer = config.init(16, &mut Init::new(3, &Device::flex())).unwrap();
            let mut draw = Draw::new(1);
            let past = draw.tensor::<3>([2, 9, 16], -1.0, 1.0);
            let (_, state) = layer.forward(past, layer.initial_state(2), Form::Auto).unwrap();
            let (q, cached, _) =
                layer.read(draw.tensor([2, 1, 16], -1.0, 1.0), state, Run::default()).unwrap();
            let again =
                Cached { all: cached.all.clone(), cached: cached.cached, absent: cached.absent.clone() };
            let expected = layer.scoring().attend(&layer.expanded(q.clone(), again), Form::Auto);
            assert!(gap(layer.absorbed(q, cached), expected) < 1e-5, "{config:?}");
        }
    }

    /// The cache is one vector per token, whatever the number of heads; rotated before it is kept.
    #[test]
    fn the_state_is_one_latent_per_token() {
        for config in variants() {
            let layer = config.init(16, &mut Init::new(3, &Device::flex())).unwrap();
            let x = Draw::new(2).tensor::<3>([2, 9, 16], -1.0, 1.0);
            let (_, state) = layer.forward(x, layer.initial_state(2), Form::Auto).unwrap();
            assert_eq!(state.bytes(), 4 * 2 * 9 * (config.kv_rank + config.rope_dim));
            assert_eq!(state.bytes(), Mixer::cost(&layer, 2, 9, Form::Auto).state_bytes);
        }
    }

    #[test]
    fn impossible_sizes_are_refused() {
        let refused = |config: MlaConfig| config.init(16, &mut Init::new(0, &Device::flex())).is_err();
        let fine = MlaConfig::default();
        assert!(!refused(fine.clone()));
        assert!(refused(MlaConfig { rope_dim: 0, ..fine.clone() }));
        assert!(refused(MlaConfig { rope_dim: 3, ..fine.clone() }));
        assert!(refused(MlaConfig { heads: 3, ..fine.clone() }));
        assert!(refused(MlaConfig { kv_rank: 0, ..fine.clone() }));
        assert!(refused(MlaConfig { q_rank: Some(0), ..fine.clone() }));
        assert!(refused(MlaConfig { scale: Some(0.0), ..fine }));
    }
}
