//! Attention with bounded-memory control (ABC; Peng et al., arXiv 2110.02488): softmax attention over a fixed number
//! of slots, each a softmax-weighted average of all tokens so far.
//!
//! ```text
//! q, k, v = W_q x, W_k x, W_v x                     (rotary positions of q and k are optional)
//! φ_t = clamp(W_φ x_t, ±c)                          (how much each slot wants a token)
//! z_t = log Σ_{s ≤ t} e^{φ_s}
//! K_t = Σ_{s ≤ t} e^{φ_s - z_t} k_sᵀ,   V_t = Σ_{s ≤ t} e^{φ_s - z_t} v_sᵀ                     (Eq. 5)
//! y_t = V_tᵀ softmax(K_t q_t / √n),   out = W_o (rmsnorm(y) ∘ silu(W_g x))
//! ```
//!
//! As gated slot attention: a slot keeps `e^{z_{t-1} - z_t}` and takes `e^{φ_t - z_t}`, both at most 1.
//!
//! | symbol | shape |
//! | --- | --- |
//! | q, k | `[b, h, t, n]` |
//! | v, y | `[b, h, t, p]` |
//! | φ | `[b, h, t, m]` (`m` = `slots`) |
//! | K, V, z | `[b, h, m, n]`, `[b, h, m, p]`, `[b, h, 1, m]` |

use burn::module::Module;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::gsa::{SlotAttention, empty_slots, run_slots, slot_views};
use crate::error::{head_dim, require};
#[cfg(feature = "flex")]
use crate::kernels;
use crate::nn::{Activation, Gated, Linear, RmsNorm, Rope, RopeConfig, split_heads};
use crate::system::scan::NEGATIVE;
use crate::system::{Cost, Form, Mixer, Run, State, Views};
use crate::{Init, Result};

const NAME: &str = "abc";

/// Slot of the state: `z`.
const WEIGHTS: &str = "log_weights";

/// Sizes and switches of [`Abc`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AbcConfig {
    /// Heads.
    pub heads: usize,
    /// Channels `n` of a query and key; `None` for `d_model / heads`.
    pub head_dim: Option<usize>,
    /// Channels `p` of a value over `n`.
    pub expand_v: f64,
    /// Slots `m` of a head.
    pub slots: usize,
    /// Rotary positions; `None` for none.
    pub rope: Option<RopeConfig>,
    /// Bound `c` on what a slot wants.
    pub clamp: f64,
    /// Added to the mean square in the output norm.
    pub norm_eps: f64,
}

impl Default for AbcConfig {
    fn default() -> Self {
        Self {
            heads: 4,
            head_dim: None,
            expand_v: 1.0,
            slots: 16,
            rope: Some(RopeConfig::default()),
            clamp: 32.0,
            norm_eps: 1e-5,
        }
    }
}

impl AbcConfig {
    /// Checks the values and draws the parameters for width `d_model`.
    ///
    /// # Errors
    /// For zero sizes, heads that do not divide the width, or an impossible rotary share.
    pub fn init(&self, d_model: usize, init: &mut Init) -> Result<Abc> {
        let (h, m) = (self.heads, self.slots);
        let n = head_dim(self.head_dim, d_model, h, NAME)?;
        let p = (n as f64 * self.expand_v).round() as usize;
        require(p > 0, NAME, "expand_v", self.expand_v, "must leave a positive value size")?;
        require(m > 0, NAME, "slots", m, "must be positive")?;
        let clamp = self.clamp;
        require(clamp > 0.0 && clamp.is_finite(), NAME, "clamp", clamp, "must be positive")?;
        require(self.norm_eps > 0.0, NAME, "norm_eps", self.norm_eps, "must be positive")?;
        Ok(Abc {
            q_proj: init.linear(d_model, h * n),
            k_proj: init.linear(d_model, h * n),
            v_proj: init.linear(d_model, h * p),
            slot_proj: init.linear(d_model, h * m),
            gate_proj: init.linear(d_model, h * p),
            norm: RmsNorm::new(p, self.norm_eps, init),
            out_proj: init.linear(h * p, d_model),
            rope: self.rope.map(|rope| rope.init(n)).transpose()?,
            config: self.clone(),
            sizes: [h, m, n, p],
            d_model,
        })
    }
}

/// The layer; see the module's equations. Built by [`AbcConfig::init`].
#[derive(Module, Debug)]
pub struct Abc {
    /// `W_q: [d, h n]`
    pub q_proj: Linear,
    /// `W_k: [d, h n]`
    pub k_proj: Linear,
    /// `W_v: [d, h p]`
    pub v_proj: Linear,
    /// `W_φ: [d, h m]`
    pub slot_proj: Linear,
    /// `W_g: [d, h p]`
    pub gate_proj: Linear,
    /// Per head, over `p`
    pub norm: RmsNorm,
    /// `W_o: [h p, d]`
    pub out_proj: Linear,
    #[module(skip)]
    rope: Option<Rope>,
    #[module(skip)]
    config: AbcConfig,
    /// `[h, m, n, p]`
    #[module(skip)]
    sizes: [usize; 4],
    #[module(skip)]
    d_model: usize,
}

/// `log(e^a + e^b)`
fn log_add(a: Tensor<4>, b: Tensor<4>) -> Tensor<4> {
    let apart = (a.clone() - b.clone()).abs();
    a.max_pair(b) + apart.neg().exp().log1p()
}

/// `z_t = log(e^{z_0} + Σ_{s ≤ t} e^{x_s})` along axis 2, `z_0` among them: `[b, h, t, m] -> [b, h, t+1, m]`.
fn running_log_sum(x: Tensor<4>, start: Tensor<4>) -> Tensor<4> {
    #[cfg(feature = "flex")]
    if kernels::enabled()
        && let Some(z) = kernels::log_sum::run(&x, &start)
    {
        return z;
    }
    by_doubling(x, start)
}

/// [`running_log_sum`] of tensor operations.
fn by_doubling(x: Tensor<4>, start: Tensor<4>) -> Tensor<4> {
    let mut z = Tensor::cat(vec![start, x], 2);
    let total = z.dims()[2];
    let mut reach = 1;
    while reach < total {
        // Each entry has summed `reach` entries; it adds those that the one `reach` before has.
        let head = z.clone().narrow(2, 0, reach);
        let both = log_add(z.clone().narrow(2, reach, total - reach), z.narrow(2, 0, total - reach));
        z = Tensor::cat(vec![head, both], 2);
        reach *= 2;
    }
    z
}

/// The memory in which slots weigh tokens by `e^φ`, `wants: [b, h, t, m]`, after those with `z: [b, h, 1, m]`;
/// returns the last `z` too. An empty memory's `z` is hugely negative.
pub fn bounded_memory(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    wants: Tensor<4>,
    z: Tensor<4>,
) -> (SlotAttention, Tensor<4>) {
    let t = wants.dims()[2];
    let sums = running_log_sum(wants.clone(), z);
    let (before, after) = (sums.clone().narrow(2, 0, t), sums.clone().narrow(2, 1, t));
    let write = (wants - after.clone()).exp();
    (SlotAttention { q, k, v, write, log_keep: before - after }, sums.narrow(2, t, 1))
}

/// `z` of an empty memory: nothing has any weight.
pub fn no_weights(batch: usize, heads: usize, slots: usize, like: &Tensor<2>) -> Tensor<4> {
    Tensor::full([batch, heads, 1, slots], NEGATIVE, (&like.device(), like.dtype()))
}

impl Abc {
    fn memory(&self, x: Tensor<3>, state: &mut State, run: Run<'_>) -> Result<SlotAttention> {
        let [h, _, n, _] = self.sizes;
        let mut q = split_heads(self.q_proj.forward(x.clone()), h).mul_scalar((n as f64).powf(-0.5));
        let mut k = split_heads(self.k_proj.forward(x.clone()), h);
        if let Some(rope) = &self.rope {
            [q, k] = rope.apply_all([q, k], state.positions());
        }
        let v = split_heads(self.v_proj.forward(x.clone()), h);
        let bound = self.config.clamp;
        let mut wants = split_heads(self.slot_proj.forward(x), h).clamp(-bound, bound);
        if let Some(lengths) = run.lengths {
            let valid = lengths.valid(wants.dims()[2], &wants.device(), wants.dtype());
            let valid = valid.unsqueeze_dim::<3>(1).unsqueeze_dim::<4>(3);
            wants = wants * valid.clone() + valid.sub_scalar(1.0).mul_scalar(-NEGATIVE);
        }
        let (memory, z) = bounded_memory(q, k, v, wants, state.get(WEIGHTS)?);
        state.put(WEIGHTS, z);
        Ok(memory)
    }
}

impl Mixer for Abc {
    fn d_model(&self) -> usize {
        self.d_model
    }

    fn initial_state(&self, batch: usize) -> State {
        let [h, m, ..] = self.sizes;
        let like = self.q_proj.weight.val();
        let z = no_weights(batch, h, m, &like);
        empty_slots(batch, self.sizes, like).with(WEIGHTS, z)
    }

    fn run(&self, x: Tensor<3>, mut state: State, run: Run<'_>) -> Result<(Tensor<3>, State)> {
        let gate = Gated::new(self.gate_proj.forward(x.clone()), Activation::Silu);
        let memory = self.memory(x, &mut state, run)?;
        let y = self.norm.parts().heads(run_slots(memory, &mut state, run)?, Some(gate));
        Ok((self.out_proj.forward(y), state))
    }

    fn views(&self, x: Tensor<3>, mut state: State) -> Result<Views> {
        self.check(&x, &state)?;
        let memory = self.memory(x, &mut state, Run::default())?;
        slot_views(memory, &state)
    }

    fn cost(&self, batch: usize, time: usize, form: Form) -> Cost {
        let ([h, m, n, p], d) = (self.sizes, self.d_model);
        let flops = 2 * d * h * (2 * n + 3 * p + m) + h * SlotAttention::flops(m, n, p, time, form);
        Cost::of(self, flops as f64, batch, time)
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use burn::tensor::activation;

    use super::*;
    use crate::system::Mask;
    use crate::testing::{Draw, gap, numbers};

    #[test]
    fn running_sums_of_logarithms_are_those_of_every_prefix() {
        for t in [1, 2, 7, 16] {
            let mut draw = Draw::new(t as u64);
            let x = draw.tensor::<4>([1, 1, t, 1], -8.0, 8.0);
            for start in [NEGATIVE, 12.0] {
                let z = Tensor::<4>::full([1, 1, 1, 1], start, &Device::flex());
                let found = numbers(by_doubling(x.clone(), z));
                let all = [vec![start], numbers(x.clone())].concat();
                for (i, z) in found.iter().enumerate().skip(1) {
                    let expected = all[..=i].iter().map(|x| x.exp()).sum::<f64>().ln();
                    assert!((z - expected).abs() < 1e-5, "{z} for {expected}");
                }
            }
        }
    }

    /// Slots are weighted averages, so adding a number to all that a slot wants changes nothing.
    #[test]
    fn only_differences_in_what_a_slot_wants_count() {
        let mut draw = Draw::new(1);
        let [q, k, v] = [0, 1, 2].map(|_| draw.tensor::<4>([1, 2, 12, 4], -1.0, 1.0));
        let wants = draw.tensor::<4>([1, 2, 12, 3], -3.0, 3.0);
        let run = |wants: Tensor<4>| {
            let z = Tensor::<4>::full([1, 2, 1, 3], NEGATIVE, &Device::flex());
            let (memory, _) = bounded_memory(q.clone(), k.clone(), v.clone(), wants, z);
            let empty = Tensor::<4>::zeros([1, 2, 3, 4], &Device::flex());
            memory.run(empty.clone(), empty, Form::Chunked { size: 5 }, None).unwrap()
        };
        let (y, [keys, _]) = run(wants.clone());
        assert!(gap(run(wants.clone().add_scalar(20.0)).0, y) < 1e-5);
        // K_T is the softmax over all tokens
        let weights = activation::softmax(wants, 2).swap_dims(2, 3);
        assert!(gap(keys, weights.matmul(k.clone())) < 1e-5);
    }

    /// Weights that are not averages over a slot's tokens would not sum to 1.
    #[test]
    fn rows_of_the_implied_attention_sum_to_one() {
        let config = AbcConfig { heads: 2, slots: 3, ..Default::default() };
        let layer = config.init(8, &mut Init::new(3, &Device::flex())).unwrap();
        let x = Draw::new(3).tensor::<3>([2, 7, 8], -2.0, 2.0);
        let rows = layer.views(x, layer.initial_state(2)).unwrap().attention.unwrap().sum_dim(3);
        assert!(numbers(rows).iter().all(|row| (row - 1.0).abs() < 1e-5));
    }

    /// A row of padding only leaves its state as it was.
    #[test]
    fn a_row_without_tokens_continues_as_if_new() {
        let config = AbcConfig { heads: 2, slots: 3, ..Default::default() };
        let layer = config.init(8, &mut Init::new(3, &Device::flex())).unwrap();
        let mut draw = Draw::new(6);
        let (first, second) = (draw.tensor([2, 5, 8], -2.0, 2.0), draw.tensor::<3>([2, 4, 8], -2.0, 2.0));
        let mask = Mask::from_lengths(&[0, 5], 5);
        for form in [Form::Recurrent, Form::Parallel] {
            let start = layer.initial_state(2);
            let (_, state) = layer.forward_masked(first.clone(), start, form, &mask).unwrap();
            let (y, _) = layer.forward(second.clone(), state, form).unwrap();
            let row = |x: Tensor<3>| x.narrow(0, 0, 1);
            let start = layer.initial_state(1);
            let (alone, _) = layer.forward(row(second.clone()), start, form).unwrap();
            assert!(gap(row(y), alone) < 1e-6, "{form}");
        }
    }

    #[test]
    fn bad_settings_are_refused() {
        let refused = |config: AbcConfig| config.init(8, &mut Init::new(0, &Device::flex())).is_err();
        assert!(!refused(AbcConfig::default()));
        assert!(refused(AbcConfig { slots: 0, ..Default::default() }));
        assert!(refused(AbcConfig { expand_v: 0.0, ..Default::default() }));
        assert!(refused(AbcConfig { clamp: f64::INFINITY, ..Default::default() }));
        assert!(refused(AbcConfig { head_dim: Some(3), ..Default::default() }));
    }
}
