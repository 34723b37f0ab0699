//! RWKV-6 (Finch; Peng et al., arXiv 2404.05892): a matrix memory whose decay and whose mixes of neighbouring
//! tokens depend on the token.
//!
//! ```text
//! δ = x' - x,  x'_t = x_{t-1};   z = tanh((x + δ ∘ a_x) W_1) in five parts               (Eq. 11–14)
//! x_* = x + δ ∘ (a_* + z_* W_{2*})                       for r, w, k, v, g
//! r, k, v = W_r x_r, W_k x_k, W_v x_v
//! log w = -exp(decay + tanh(x_w D_1) D_2)                decay per key channel           (Eq. 17)
//! y_t = (H_{t-1} + diag(u) k_t v_tᵀ)ᵀ r_t,   H_t = diag(w_t) H_{t-1} + k_t v_tᵀ           (Eq. 18, 19)
//! out = W_o (layernorm_head(y) ∘ silu(W_g x_g))
//! ```
//!
//! | symbol | shape |
//! | --- | --- |
//! | x, x', δ | `[b, t, d]` |
//! | r, k, w | `[b, h, t, n]` (`n` = `head_dim`) |
//! | v, y | `[b, h, t, p]` (`p` = `expand_v · head_dim`) |
//! | u | `[h, n]` |
//! | H | `[b, h, n, p]` |

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::shift::{Depth, SHIFT, by_channel, no_token, place, shifted, zigzag};
use super::{HeadLayerNorm, LowRank};
use crate::error::require;
use crate::nn::{
    Activation, Gated, Linear, lerp, lerp_by, minus_rate, on_graphics, project, silu, split_heads, tanh,
    weighted_dot,
};
use crate::system::{Cost, Form, Gate, LinearMixer, MEMORY, Run, State, System, Transition, Views};
use crate::{Init, Result};

const NAME: &str = "rwkv6";

/// Tokens below which the five weights are made by one product.
const TOGETHER: usize = 16;

/// `e^{-e^x}` is 0 in every precision from here on, and `e^x` still far from overflow.
const LARGEST_RATE: f64 = 10.0;

/// Sizes of [`Rwkv6`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rwkv6Config {
    /// Heads, each with a memory of its own.
    pub heads: usize,
    /// Key size `n` of a head.
    pub head_dim: usize,
    /// Value size over key size.
    pub expand_v: f64,
    /// Rank of each of the five maps from a token to its mix with the one before.
    pub mix_rank: usize,
    /// Rank of the map from a token to its decays.
    pub decay_rank: usize,
    /// Added to the variance in the output norm.
    pub norm_eps: f64,
    /// Place of the layer in its stack, from 0: later layers start with other mixes and decays. `None` for 0.
    pub layer: Option<usize>,
    /// Number of layers in the stack; `None` for 1.
    pub layers: Option<usize>,
}

impl Default for Rwkv6Config {
    fn default() -> Self {
        Self {
            heads: 4,
            head_dim: 32,
            expand_v: 1.0,
            mix_rank: 32,
            decay_rank: 64,
            norm_eps: 64e-5,
            layer: None,
            layers: None,
        }
    }
}

impl Rwkv6Config {
    fn sizes(&self) -> (usize, usize, usize) {
        (self.heads, self.head_dim, (self.head_dim as f64 * self.expand_v).round() as usize)
    }

    /// Checks the values and draws the parameters for width `d_model`.
    ///
    /// # Errors
    /// For zero sizes and ranks, and an epsilon that is not positive.
    pub fn init(&self, d_model: usize, init: &mut Init) -> Result<Rwkv6> {
        let (h, n, p) = self.sizes();
        let positive = |field, value: usize| require(value > 0, NAME, field, value, "must be positive");
        positive("d_model", d_model)?;
        positive("heads", h)?;
        positive("head_dim", n)?;
        positive("mix_rank", self.mix_rank)?;
        positive("decay_rank", self.decay_rank)?;
        positive("layers", self.layers.unwrap_or(1))?;
        require(p > 0, NAME, "expand_v", self.expand_v, "must leave a positive value size")?;
        require(self.norm_eps > 0.0, NAME, "norm_eps", self.norm_eps, "must be positive")?;
        let Depth { rho, tau } = Depth::new(self.layer, self.layers);
        let share = |c: usize| c as f64 / d_model as f64;
        // r, w, k, v, g
        let slow = |c: usize| 1.0 - share(c).powf(tau);
        let fast = |c: usize| 1.0 - share(c).powf(0.5 * tau);
        let value = |c: usize| slow(c) - 0.3 * rho;
        let mixes: [&dyn Fn(usize) -> f64; 5] = [&fast, &slow, &slow, &value, &fast];
        let mixes = mixes.into_iter().flat_map(|mix| (0..d_model).map(move |c| mix(c) as f32)).collect();
        let keys = h * n;
        let decay = (0..keys).map(|c| (-6.0 + 5.0 * place(c, keys).powf(0.7 + 1.3 * rho)) as f32).collect();
        let bonus = (0..keys).map(|c| (rho * (1.0 - place(c, keys)) + 0.1 * zigzag(c)) as f32).collect();
        Ok(Rwkv6 {
            mix_x: by_channel(d_model, init, slow),
            mix_down: init.linear_std(d_model, 5 * self.mix_rank, 0.1 / (d_model as f64).sqrt(), false),
            mix_up: init.uniform([5, self.mix_rank, d_model], -0.01, 0.01),
            mix: init.param([5, d_model], mixes),
            r_proj: init.linear(d_model, keys),
            k_proj: init.linear(d_model, keys),
            v_proj: init.linear(d_model, h * p),
            gate_proj: init.linear(d_model, h * p),
            out_proj: init.linear(h * p, d_model),
            decay: LowRank::new(d_model, self.decay_rank, keys, Some(decay), init),
            bonus: init.param([h, n], bonus),
            norm: HeadLayerNorm::new(h * p, self.norm_eps, init),
            config: self.clone(),
            d_model,
        })
    }
}

/// The layer; see the module's equations. Built by [`Rwkv6Config::init`].
#[derive(Module, Debug)]
pub struct Rwkv6 {
    /// `a_x: [d]`
    pub mix_x: Param<Tensor<1>>,
    /// `W_1: [d, 5 rank]`
    pub mix_down: Linear,
    /// `W_2: [5, rank, d]`, for r, w, k, v, g
    pub mix_up: Param<Tensor<3>>,
    /// `a: [5, d]`, in the same order
    pub mix: Param<Tensor<2>>,
    /// `W_r: [d, h n]`
    pub r_proj: Linear,
    /// `W_k: [d, h n]`
    pub k_proj: Linear,
    /// `W_v: [d, h p]`
    pub v_proj: Linear,
    /// `W_g: [d, h p]`
    pub gate_proj: Linear,
    /// `W_o: [h p, d]`
    pub out_proj: Linear,
    /// `D_1, D_2, decay`
    pub decay: LowRank,
    /// `u: [h, n]`
    pub bonus: Param<Tensor<2>>,
    /// Per head, over `p`
    pub norm: HeadLayerNorm,
    #[module(skip)]
    config: Rwkv6Config,
    #[module(skip)]
    d_model: usize,
}

impl Rwkv6 {
    /// `x_*` for r, w, k, v, g.
    fn mixed(&self, x: Tensor<3>, before: Tensor<3>) -> [Tensor<3>; 5] {
        let ([b, t, d], rank) = (x.dims(), self.config.mix_rank);
        let z = tanh(self.mix_down.forward(lerp(x.clone(), before.clone(), self.mix_x.val())));
        if b * t < TOGETHER || on_graphics(&x) {
            // One product starts faster than five.
            let z = z.reshape([b * t, 5, rank]).swap_dims(0, 1);
            let weights = z.matmul(self.mix_up.val()) + self.mix.val().unsqueeze_dim(1);
            let delta = before - x.clone();
            return [0, 1, 2, 3, 4].map(|i| {
                let weight = weights.clone().narrow(0, i, 1).reshape([b, t, d]);
                x.clone() + delta.clone() * weight
            });
        }
        // The gradient of each part of one product would be as large as all of them.
        [0, 1, 2, 3, 4].map(|i| {
            let up = self.mix_up.val().narrow(0, i, 1).squeeze_dim::<2>(0);
            let own = project(z.clone().narrow(2, i * rank, rank), up, None);
            lerp_by(x.clone(), before.clone(), own, self.mix.val().narrow(0, i, 1).squeeze_dim(0))
        })
    }
}

impl LinearMixer for Rwkv6 {
    /// Output gate before its activation, `[b, t, h p]`.
    type Aux = Tensor<3>;

    fn d_model(&self) -> usize {
        self.d_model
    }

    fn initial_state(&self, batch: usize) -> State {
        let ((h, n, p), like) = (self.config.sizes(), self.mix_x.val());
        let zeros = Tensor::<4>::zeros([batch, h, n, p], (&like.device(), like.dtype()));
        State::new(batch).with(MEMORY, zeros).with(SHIFT, no_token(batch, self.d_model, &like))
    }

    fn system(&self, x: Tensor<3>, state: &mut State, run: Run<'_>) -> Result<(System, Tensor<3>)> {
        let (h, _, _) = self.config.sizes();
        let before = shifted(x.clone(), state, run)?;
        let [r, w, k, v, g] = self.mixed(x, before);
        let log_a = minus_rate(self.decay.forward(w, tanh), LARGEST_RATE);
        let [r, k, log_a] =
            [self.r_proj.forward(r), self.k_proj.forward(k), log_a].map(|x| split_heads(x, h));
        let v = split_heads(self.v_proj.forward(v), h);
        let bonus = weighted_dot(r.clone(), k.clone(), self.bonus.val());
        let system = System::outer(Transition::Diagonal { log_a }, r, k, v);
        Ok((system.read_before().with_skip(bonus), self.gate_proj.forward(g)))
    }

    fn readout(&self, y: Tensor<4>, gate: Tensor<3>) -> Tensor<3> {
        self.out_proj.forward(self.norm.gated(y, Gated::new(gate, Activation::Silu)))
    }

    fn system_views(&self, system: System, gate: Tensor<3>, _state: &State) -> Result<Views> {
        let mut views = Views::of_system(system)?;
        views.gates.push(Gate { name: "g (output gate)".into(), values: silu(gate) });
        Ok(views)
    }

    fn cost(&self, batch: usize, time: usize, form: Form) -> Cost {
        let ((h, n, p), d) = (self.config.sizes(), self.d_model);
        let projections = 2 * d * (2 * h * n + 3 * h * p);
        let mixes = 4 * 5 * self.config.mix_rank * d + 15 * d;
        let core = h * Cost::decayed_core(n, p, time, form);
        Cost::of(self, (projections + mixes + self.decay.flops() + core) as f64, batch, time)
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::system::{Io, Mixer};
    use crate::testing::{Draw, gap};

    fn config() -> Rwkv6Config {
        Rwkv6Config { heads: 2, head_dim: 4, expand_v: 1.5, mix_rank: 3, decay_rank: 5, ..Default::default() }
    }

    /// `y_t = (H_{t-1} + diag(u) k_t v_tᵀ)ᵀ r_t`, written out: the token itself is read through the bonus, not
    /// through the memory.
    #[test]
    fn the_bonus_stands_for_the_own_token() {
        let layer = config().init(8, &mut Init::new(2, &Device::flex())).unwrap();
        let x = Draw::new(3).tensor([2, 9, 8], -1.0, 1.0);
        let mut state = Mixer::initial_state(&layer, 2);
        let (system, gate) = layer.system(x.clone(), &mut state, Run::default()).unwrap();
        let (Io::Outer { q, k, v }, Transition::Diagonal { log_a }) = (system.io, system.transition) else {
            panic!("another system")
        };
        let column = |x: &Tensor<4>, t| x.clone().narrow(2, t, 1).swap_dims(2, 3);
        let mut memory = state.get::<4>(MEMORY).unwrap();
        let bonus = layer.bonus.val().reshape([1, 2, 4, 1]);
        let mut y = Vec::new();
        for t in 0..9 {
            let written = column(&k, t) * v.clone().narrow(2, t, 1);
            let read = memory.clone() + written.clone() * bonus.clone();
            y.push((read * column(&q, t)).sum_dim(2));
            memory = memory * column(&log_a, t).exp() + written;
        }
        let (expected, end) = layer.forward(x, Mixer::initial_state(&layer, 2), Form::Parallel).unwrap();
        assert!(gap(layer.readout(Tensor::cat(y, 2), gate), expected) < 1e-5);
        assert!(gap(memory, end.get(MEMORY).unwrap()) < 1e-5);
    }

    /// Decays beyond any use leave nothing, and no NaN.
    #[test]
    fn an_endless_rate_forgets_everything() {
        let mut layer = config().init(8, &mut Init::new(2, &Device::flex())).unwrap();
        layer.decay.up.bias = Some(Init::new(0, &Device::flex()).constant([8], 1e4));
        let x = Draw::new(3).tensor([1, 12, 8], -1.0, 1.0);
        let start = || Mixer::initial_state(&layer, 1);
        let (y, _) = layer.forward(x.clone(), start(), Form::Parallel).unwrap();
        // Only the token before is in the memory: the rest of the past makes no difference.
        let (tail, _) = layer.forward(x.clone().narrow(1, 6, 6), start(), Form::Recurrent).unwrap();
        assert!(gap(y.narrow(1, 8, 4), tail.narrow(1, 2, 4)) < 1e-5);
    }

    #[test]
    fn impossible_sizes_are_refused() {
        let init = |config: Rwkv6Config| config.init(8, &mut Init::new(0, &Device::flex()));
        assert!(init(Rwkv6Config { heads: 0, ..config() }).is_err());
        assert!(init(Rwkv6Config { mix_rank: 0, ..config() }).is_err());
        assert!(init(Rwkv6Config { decay_rank: 0, ..config() }).is_err());
        assert!(init(Rwkv6Config { expand_v: 0.0, ..config() }).is_err());
        assert!(init(Rwkv6Config { expand_v: f64::NAN, ..config() }).is_err());
        assert!(init(Rwkv6Config { norm_eps: 0.0, ..config() }).is_err());
        assert!(init(Rwkv6Config { layers: Some(0), ..config() }).is_err());
    }
}
