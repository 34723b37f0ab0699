//! RWKV-7 (Goose; Peng et al., arXiv 2503.14456): the delta rule with a decay and a rate of replacement per
//! channel.
//!
//! ```text
//! x_* = x + (x' - x) ∘ a_*,   x'_t = x_{t-1}                      for r, w, k, v, a, g     (Eq. 3)
//! r, k, v = W_r x_r, W_k x_k, W_v x_v
//! log w = -e^{-1/2} sigmoid(w_0 + tanh(x_w W_1) W_2)              in (-0.607, 0)            (Eq. 4)
//! a = sigmoid(a_0 + x_a A_1 A_2),   g = sigmoid(x_g G_1) G_2
//! v ← v + (v_first - v) ∘ sigmoid(v_0 + x_v V_1 V_2)              after the first layer    (Eq. 7)
//! κ = k ∘ k_k / |k ∘ k_k|,   k̃ = k ∘ (1 + (a - 1) ∘ k_a)
//! H_t = (diag(w_t) - (κ_t ∘ a_t) κ_tᵀ) H_{t-1} + k̃_t v_tᵀ,   y_t = H_tᵀ r_t                (Eq. 17, 18)
//! out = W_o ((layernorm_head(y) + (r · (r_k ∘ k̃)) v) ∘ g)
//! ```
//!
//! `v_first` is the value of the stack's first layer, before any mix. A mixer sees only its own input, so the
//! layer of [`Rwkv7Config::init`], alone or in a registry, is always a first one: its value is its own. Layers of
//! [`Rwkv7Config::init_later`] have `V`, and read through [`Rwkv7::forward_after`].
//!
//! | symbol | shape |
//! | --- | --- |
//! | x, x', g | `[b, t, d]`, `[b, t, h n]` |
//! | r, k, k̃, κ, w, a, v, y | `[b, h, t, n]` (`n` = `head_dim`) |
//! | H | `[b, h, n, n]` |

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::shift::{Depth, SHIFT, by_channel, no_token, place, shifted};
use super::{HeadLayerNorm, LowRank};
use crate::error::require;
use crate::nn::{
    Linear, l2_normalize, lerp, merge_heads, rescale, scaled_sigmoid, split_heads, tanh, weighted_dot,
};
use crate::system::{
    Cost, Form, Gate, LinearMixer, MEMORY, Mixer, Run, State, System, Transition, Views, engine,
};
use crate::{Error, Init, Result};

const NAME: &str = "rwkv7";

/// Sizes of [`Rwkv7`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rwkv7Config {
    /// Heads, each with a memory of its own.
    pub heads: usize,
    /// Size `n` of a head.
    pub head_dim: usize,
    /// Rank of the maps to decays and rates; `None` for about `2.5 √d`.
    pub decay_rank: Option<usize>,
    /// Rank of the map to the share of the first layer's value; `None` for about `1.7 √d`.
    pub value_rank: Option<usize>,
    /// Rank of the output gate; `None` for about `5 √d`.
    pub gate_rank: Option<usize>,
    /// Added to the variance in the output norm.
    pub norm_eps: f64,
    /// Place of the layer in its stack, from 0: later layers start with other mixes and decays. `None` for 0.
    pub layer: Option<usize>,
    /// Number of layers in the stack; `None` for 1.
    pub layers: Option<usize>,
}

impl Default for Rwkv7Config {
    fn default() -> Self {
        Self {
            heads: 4,
            head_dim: 32,
            decay_rank: None,
            value_rank: None,
            gate_rank: None,
            norm_eps: 64e-5,
            layer: None,
            layers: None,
        }
    }
}

impl Rwkv7Config {
    /// Checks the values and draws the parameters for width `d_model`: a first layer, whose values are its own.
    ///
    /// # Errors
    /// For zero sizes and ranks, and an epsilon that is not positive.
    pub fn init(&self, d_model: usize, init: &mut Init) -> Result<Rwkv7> {
        let (h, n) = (self.heads, self.head_dim);
        let positive = |field, value: usize| require(value > 0, NAME, field, value, "must be positive");
        positive("d_model", d_model)?;
        positive("heads", h)?;
        positive("head_dim", n)?;
        positive("decay_rank", self.decay_rank.unwrap_or(1))?;
        positive("value_rank", self.value_rank.unwrap_or(1))?;
        positive("gate_rank", self.gate_rank.unwrap_or(1))?;
        positive("layers", self.layers.unwrap_or(1))?;
        require(self.norm_eps > 0.0, NAME, "norm_eps", self.norm_eps, "must be positive")?;
        let Depth { rho, tau } = Depth::new(self.layer, self.layers);
        let mix = |power: f64, init: &Init| {
            by_channel(d_model, init, |c| 1.0 - (c as f64 / d_model as f64).powf(power * tau))
        };
        let keys = h * n;
        let per_key = |f: &dyn Fn(usize) -> f64| (0..keys).map(|c| f(c) as f32).collect::<Vec<_>>();
        let line = |c: usize| place(c, keys) - 0.5;
        let bend = |c: usize| {
            let z = 2.0 * place(c % n, n) - 1.0;
            z * z.abs()
        };
        let decay = per_key(&|c| -5.5 + 6.0 * place(c, keys).powf(1.0 + rho.powf(0.3)) + 2.5 * bend(c));
        let rate = per_key(&|c| -0.19 + 0.3 * bend(c) + 0.4 * line(c));
        let decay_rank = self.decay_rank.unwrap_or(rank(2.5, d_model));
        let gate_rank = self.gate_rank.unwrap_or(rank(5.0, d_model));
        Ok(Rwkv7 {
            mix_r: mix(0.2, init),
            mix_w: mix(0.9, init),
            mix_k: mix(0.7, init),
            mix_v: mix(0.7, init),
            mix_a: mix(0.9, init),
            mix_g: mix(0.2, init),
            r_proj: init.linear(d_model, keys),
            k_proj: init.linear(d_model, keys),
            v_proj: init.linear(d_model, keys),
            out_proj: init.linear(keys, d_model),
            decay: LowRank::new(d_model, decay_rank, keys, Some(decay), init),
            rate: LowRank::new(d_model, decay_rank, keys, Some(rate), init),
            gate: LowRank { down: init.linear(d_model, gate_rank), up: init.linear(gate_rank, keys) },
            first: None,
            k_k: by_channel(keys, init, |c| 0.71 - 0.1 * line(c)),
            k_a: init.constant([keys], 1.02),
            r_k: init.constant([h, n], -0.04),
            norm: HeadLayerNorm::new(keys, self.norm_eps, init),
            config: self.clone(),
            d_model,
        })
    }

    /// A later layer of a stack, which mixes the first layer's value into its own; see
    /// [`Rwkv7::forward_after`].
    ///
    /// # Errors
    /// Like [`Rwkv7Config::init`].
    pub fn init_later(&self, d_model: usize, init: &mut Init) -> Result<Rwkv7> {
        let layer = self.init(d_model, init)?;
        let keys = self.heads * self.head_dim;
        let start = (0..keys).map(|c| (0.73 - 0.4 * (place(c, keys) - 0.5)) as f32).collect();
        let value_rank = self.value_rank.unwrap_or(rank(1.7, d_model));
        Ok(Rwkv7 { first: Some(LowRank::new(d_model, value_rank, keys, Some(start), init)), ..layer })
    }
}

/// The authors' rank for a map: about `factor √d`, in steps of 32.
fn rank(factor: f64, d_model: usize) -> usize {
    32 * ((factor * (d_model as f64).sqrt() / 32.0).round() as usize).max(1)
}

/// The layer; see the module's equations. Built by [`Rwkv7Config::init`].
#[derive(Module, Debug)]
pub struct Rwkv7 {
    /// `a_r: [d]`
    pub mix_r: Param<Tensor<1>>,
    /// `a_w: [d]`
    pub mix_w: Param<Tensor<1>>,
    /// `a_k: [d]`
    pub mix_k: Param<Tensor<1>>,
    /// `a_v: [d]`
    pub mix_v: Param<Tensor<1>>,
    /// `a_a: [d]`
    pub mix_a: Param<Tensor<1>>,
    /// `a_g: [d]`
    pub mix_g: Param<Tensor<1>>,
    /// `W_r: [d, h n]`
    pub r_proj: Linear,
    /// `W_k: [d, h n]`
    pub k_proj: Linear,
    /// `W_v: [d, h n]`
    pub v_proj: Linear,
    /// `W_o: [h n, d]`
    pub out_proj: Linear,
    /// `W_1, W_2, w_0`
    pub decay: LowRank,
    /// `A_1, A_2, a_0`
    pub rate: LowRank,
    /// `G_1, G_2`
    pub gate: LowRank,
    /// `V_1, V_2, v_0`; not in a first layer
    pub first: Option<LowRank>,
    /// `k_k: [h n]`
    pub k_k: Param<Tensor<1>>,
    /// `k_a: [h n]`
    pub k_a: Param<Tensor<1>>,
    /// `r_k: [h, n]`
    pub r_k: Param<Tensor<2>>,
    /// Per head, over `n`
    pub norm: HeadLayerNorm,
    #[module(skip)]
    config: Rwkv7Config,
    #[module(skip)]
    d_model: usize,
}

/// The square of the authors' `10⁻¹²`, below which a key keeps no unit length: they take the larger of both lengths, this
/// is the root of the sum, which is the same but near it.
const UNIT_EPS: f64 = 1e-24;

/// What is added to the normalised read and what multiplies it.
pub struct Output {
    /// `(r · (r_k ∘ k̃)) v`, `[b, h, t, n]`
    bonus: Tensor<4>,
    /// `g: [b, t, h n]`
    gate: Tensor<3>,
}

impl Rwkv7 {
    /// The system on `x` with the value `v_first`, `[b, h, t, n]`, and the layer's own value before any mix.
    fn parts(
        &self,
        x: Tensor<3>,
        state: &mut State,
        run: Run<'_>,
        v_first: Option<Tensor<4>>,
    ) -> Result<(System, Output, Tensor<4>)> {
        let h = self.config.heads;
        let before = shifted(x.clone(), state, run)?;
        let mix = |weight: &Param<Tensor<1>>| lerp(x.clone(), before.clone(), weight.val());
        let heads = |x| split_heads(x, h);
        let r = heads(self.r_proj.forward(mix(&self.mix_r)));
        let k = self.k_proj.forward(mix(&self.mix_k));
        let own = heads(self.v_proj.forward(mix(&self.mix_v)));
        let v = match (&self.first, v_first) {
            (None, None) => own.clone(),
            (Some(first), Some(v_first)) => {
                if v_first.dims() != own.dims() {
                    let expected = format!("{:?}", own.dims());
                    return Err(Error::shape("value of the first layer", expected, &v_first.dims()));
                }
                let share = scaled_sigmoid(first.forward(mix(&self.mix_v), |x| x), 1.0);
                own.clone() + (v_first - own.clone()) * heads(share)
            }
            (Some(_), None) => {
                let reason = "a later RWKV-7 layer needs the first layer's value: use `forward_after`";
                return Err(Error::State(reason.into()));
            }
            (None, Some(_)) => {
                let reason = "a first RWKV-7 layer takes no other layer's value: use `init_later`";
                return Err(Error::State(reason.into()));
            }
        };
        let log_d = heads(scaled_sigmoid(self.decay.forward(mix(&self.mix_w), tanh), -(-0.5f64).exp()));
        let a = scaled_sigmoid(self.rate.forward(mix(&self.mix_a), |x| x), 1.0);
        let gate = self.gate.forward(mix(&self.mix_g), |x| scaled_sigmoid(x, 1.0));
        let kappa = l2_normalize(heads(k.clone() * self.k_k.val().unsqueeze()), UNIT_EPS);
        let k = heads(rescale(k, a.clone(), self.k_a.val()));
        let bonus = weighted_dot(r.clone(), k.clone(), self.r_k.val()) * v.clone();
        let transition = Transition::Householder { log_d, a: kappa.clone().neg(), b: kappa * heads(a) };
        Ok((System::outer(transition, r, k, v), Output { bonus, gate }, own))
    }

    /// Reads `x` from `state` with the first layer's value, or as the first layer. Also gives the value for the
    /// layers that follow: `v_first` itself, or the first layer's own, `[b, h, t, n]`.
    ///
    /// # Errors
    /// Like [`Mixer::forward`]; when a value is missing or comes to a first layer.
    pub fn forward_after(
        &self,
        x: Tensor<3>,
        mut state: State,
        form: Form,
        v_first: Option<Tensor<4>>,
    ) -> Result<(Tensor<3>, State, Tensor<4>)> {
        if !self.check(&x, &state)? {
            let [b, t, _] = x.dims();
            let like = self.k_k.val();
            let sizes = [b, self.config.heads, t, self.config.head_dim];
            return Ok((x, state, Tensor::zeros(sizes, (&like.device(), like.dtype()))));
        }
        let [b, t, _] = x.dims();
        let (system, output, own) =
            self.parts(x, &mut state, Run { form, lengths: None }, v_first.clone())?;
        let (y, memory) = engine::run(system, state.get(MEMORY)?, form)?;
        state.put(MEMORY, memory);
        state.advance(&vec![t; b]);
        Ok((self.readout(y, output), state, v_first.unwrap_or(own)))
    }
}

impl LinearMixer for Rwkv7 {
    type Aux = Output;

    fn d_model(&self) -> usize {
        self.d_model
    }

    fn initial_state(&self, batch: usize) -> State {
        let (h, n, like) = (self.config.heads, self.config.head_dim, self.k_k.val());
        let zeros = Tensor::<4>::zeros([batch, h, n, n], (&like.device(), like.dtype()));
        State::new(batch).with(MEMORY, zeros).with(SHIFT, no_token(batch, self.d_model, &like))
    }

    fn system(&self, x: Tensor<3>, state: &mut State, run: Run<'_>) -> Result<(System, Output)> {
        let (system, output, _) = self.parts(x, state, run, None)?;
        Ok((system, output))
    }

    fn readout(&self, y: Tensor<4>, Output { bonus, gate }: Output) -> Tensor<3> {
        self.out_proj.forward(merge_heads(self.norm.forward(y) + bonus) * gate)
    }

    fn system_views(&self, system: System, output: Output, _state: &State) -> Result<Views> {
        let rate = match &system.transition {
            // |κ| = 1, so the length of κ ∘ a is a mean of the rates.
            Transition::Householder { b, .. } => {
                Some(b.clone().square().sum_dim(3).sqrt().squeeze_dim::<3>(3).swap_dims(1, 2))
            }
            _ => None,
        };
        let mut views = Views::of_system(system)?;
        views.gates.extend(rate.map(|values| Gate { name: "|κ ∘ a| (replacement)".into(), values }));
        views.gates.push(Gate { name: "g (output gate)".into(), values: output.gate });
        Ok(views)
    }

    fn cost(&self, batch: usize, time: usize, form: Form) -> Cost {
        let (h, n, d) = (self.config.heads, self.config.head_dim, self.d_model);
        let maps = [Some(&self.decay), Some(&self.rate), Some(&self.gate), self.first.as_ref()];
        let maps: usize = maps.into_iter().flatten().map(LowRank::flops).sum();
        let core = h * Cost::rank_one_core(n, n, time, form);
        Cost::of(self, (8 * d * h * n + maps + 18 * d + core) as f64, batch, time)
    }
}

#[cfg(test)]
#[path = "rwkv7_tests.rs"]
mod tests;
