//! Gated slot attention (GSA; Zhang et al., arXiv 2409.07146): softmax attention over a fixed number of slots, each
//! of which is a gated average of what was written to it.
//!
//! ```text
//! q, k, v = silu(W_q x), silu(W_k x), silu(W_v x)
//! α_t = sigmoid(W_α x_t)^{1/τ},  s_t = 1 - α_t                     (one gate per slot)
//! K_t = diag(α_t) K_{t-1} + s_t k_tᵀ,   V_t = diag(α_t) V_{t-1} + s_t v_tᵀ       (Eq. 7)
//! y_t = V_tᵀ softmax(K_t q_t · scale),    out = W_o rmsnorm(silu(y))
//! ```
//!
//! Both passes are linear systems: the slots' keys one state per entry, read by `q`; the slots' values a matrix read
//! by the softmax.
//!
//! | symbol | shape |
//! | --- | --- |
//! | q, k, v, y | `[b, h, t, n]` |
//! | α, s | `[b, h, t, m]` (`m` = `slots`) |
//! | K, V | `[b, h, m, n]` |

use burn::module::Module;
use burn::tensor::{Tensor, activation};
use serde::{Deserialize, Serialize};

use crate::error::{head_dim, require};
#[cfg(feature = "flex")]
use crate::kernels;
use crate::nn::{Linear, RmsNorm, log_sigmoid, merge_heads, silu, split_heads};
use crate::system::scan::segment_sums;
use crate::system::{
    Cost, Form, Gate, Lengths, Mixer, Run, Spectrum, SpectrumKind, State, System, Transition, Views, engine,
};
use crate::{Init, Result};

const NAME: &str = "gsa";

/// Slots of the state: the keys and values kept.
const KEYS: &str = "keys";
const VALUES: &str = "values";

/// A memory of `m` key-value slots, written and read by a sequence.
#[derive(Clone, Debug)]
pub struct SlotAttention {
    /// `[b, h, t, n]`, scaled
    pub q: Tensor<4>,
    /// `[b, h, t, n]`
    pub k: Tensor<4>,
    /// `[b, h, t, p]`
    pub v: Tensor<4>,
    /// How much of a token each slot takes, `[b, h, t, m]`
    pub write: Tensor<4>,
    /// What each slot keeps, `[b, h, t, m]`, a logarithm `≤ 0`
    pub log_keep: Tensor<4>,
}

impl SlotAttention {
    /// Reads and writes from slots `keys: [b, h, m, n]` and `values: [b, h, m, p]`; returns `[b, h, t, p]` and the
    /// slots after the last token.
    ///
    /// # Errors
    /// When the slots do not fit.
    pub fn run(
        self,
        keys: Tensor<4>,
        values: Tensor<4>,
        form: Form,
        lengths: Option<&Lengths>,
    ) -> Result<(Tensor<4>, [Tensor<4>; 2])> {
        let gate = |system: System| match lengths {
            Some(lengths) => system.gate_padding(lengths),
            None => system,
        };
        let (scores, keys) = self.scores(keys, form, lengths)?;
        let Self { v, write, log_keep: log_a, .. } = self;
        let read = activation::softmax(scores, 3);
        let second = System::outer(Transition::Diagonal { log_a }, read, write, v);
        let (y, values) = engine::run(gate(second), values, form)?;
        Ok((y, [keys, values]))
    }

    /// `K_t q_t` of every slot, `[b, h, t, m]`, and the last `K`.
    fn scores(
        &self,
        keys: Tensor<4>,
        form: Form,
        lengths: Option<&Lengths>,
    ) -> Result<(Tensor<4>, Tensor<4>)> {
        #[cfg(feature = "flex")]
        if kernels::enabled()
            && matches!(form, Form::Auto | Form::Chunked { .. })
            && let Some(found) = self.kernel(&keys, lengths)
        {
            return Ok(found);
        }
        let ([b, h, t, n], m) = (self.q.dims(), self.write.dims()[3]);
        let flat = |x: Tensor<5>| x.reshape([b, h, t, m * n]);
        let keep = flat(self.log_keep.clone().unsqueeze_dim::<5>(4).expand([b, h, t, m, n]));
        let write = self.write.clone().unsqueeze_dim::<5>(4) * self.k.clone().unsqueeze_dim::<5>(3);
        let mut first = System::direct(keep, flat(write));
        if let Some(lengths) = lengths {
            first = first.gate_padding(lengths);
        }
        let (all, last) = engine::run(first, keys.reshape([b, h, m * n, 1]), form)?;
        let read = all.reshape([b, h, t, m, n]) * self.q.clone().unsqueeze_dim::<5>(3);
        Ok((read.sum_dim(4).squeeze_dim(4), last.reshape([b, h, m, n])))
    }

    /// [`Self::scores`] from a kernel that writes out no decay per number, where there is one.
    #[cfg(feature = "flex")]
    fn kernel(&self, keys: &Tensor<4>, lengths: Option<&Lengths>) -> Option<(Tensor<4>, Tensor<4>)> {
        if !kernels::columns::runs_on(keys) {
            return None;
        }
        // At padding slots keep all and take nothing.
        let valid = lengths.map(|lengths| {
            let valid = lengths.valid(self.q.dims()[2], &keys.device(), keys.dtype());
            valid.unsqueeze_dim::<3>(1).unsqueeze_dim::<4>(3)
        });
        let gate = |x: &Tensor<4>| match &valid {
            Some(valid) => x.clone() * valid.clone(),
            None => x.clone(),
        };
        let (rule, memory) = (kernels::columns::Rule::Fading, keys.clone());
        let (rates, x, q, k) = (gate(&self.log_keep), gate(&self.write), self.q.clone(), self.k.clone());
        kernels::columns::Inputs { rule, rates, x, q, k, memory, d: None }.run()
    }

    /// The slots' softmax, their gates, and what each token reads of each: `M_ij = Σ_m softmax_m(i) α_{i…j+1} s_jm`.
    ///
    /// # Errors
    /// When the slots do not fit.
    pub fn views(self, keys: Tensor<4>) -> Result<Views> {
        let (scores, _) = self.scores(keys, Form::Auto, None)?;
        let [b, h, t, m] = scores.dims();
        let read = activation::softmax(scores, 3);
        let flat = |x: Tensor<4>| x.reshape([b * h, t, m]).swap_dims(1, 2); // [b·h, m, t]
        let kept = segment_sums(flat(self.log_keep.clone()).unsqueeze_dim::<4>(3)).exp();
        let read_column = flat(read.clone()).unsqueeze_dim::<4>(3);
        let written_row = flat(self.write).unsqueeze_dim::<4>(2);
        let attention = (kept * read_column * written_row).sum_dim(1).reshape([b, h, t, t]);
        let alpha = self.log_keep.exp();
        let gates = [("α (kept by each slot)", alpha.clone()), ("slots read", read)];
        let gates = gates.map(|(name, x)| Gate { name: name.into(), values: merge_heads(x) });
        Ok(Views {
            attention: Some(attention),
            spectrum: Some(Spectrum { re: alpha, im: None, kind: SpectrumKind::Exact }),
            gates: gates.into(),
            ..Views::default()
        })
    }

    /// Operations per token and head.
    pub(super) fn flops(m: usize, n: usize, p: usize, time: usize, form: Form) -> usize {
        // Keys are a state per entry: decay, add, and read.
        6 * m * n + 5 * m + Cost::decayed_core(m, p, time, form)
    }
}

/// Empty slots, `keys: [b, h, m, n]` and `values: [b, h, m, p]`.
pub(super) fn empty_slots(batch: usize, [h, m, n, p]: [usize; 4], like: Tensor<2>) -> State {
    let zeros = |width| Tensor::<4>::zeros([batch, h, m, width], (&like.device(), like.dtype()));
    State::new(batch).with(KEYS, zeros(n)).with(VALUES, zeros(p))
}

/// Runs a memory from the slots in `state` and moves them on.
///
/// # Errors
/// When the state is another layer's.
pub(super) fn run_slots(memory: SlotAttention, state: &mut State, run: Run<'_>) -> Result<Tensor<4>> {
    let (y, [keys, values]) = memory.run(state.get(KEYS)?, state.get(VALUES)?, run.form, run.lengths)?;
    state.put(KEYS, keys);
    state.put(VALUES, values);
    Ok(y)
}

/// What can be looked at while a memory runs from the slots in `state`.
///
/// # Errors
/// When the state is another layer's.
pub(super) fn slot_views(memory: SlotAttention, state: &State) -> Result<Views> {
    memory.views(state.get(KEYS)?)
}

/// Sizes and switches of [`Gsa`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GsaConfig {
    /// Heads.
    pub heads: usize,
    /// Channels `n` of a head; `None` for `d_model / heads`.
    pub head_dim: Option<usize>,
    /// Slots `m` of a head.
    pub slots: usize,
    /// τ: the gate is this root of a sigmoid; larger values start with longer memories.
    pub gate_root: f64,
    /// Factor on the slots' scores.
    pub scale: f64,
    /// Added to the mean square in the output norm.
    pub norm_eps: f64,
}

impl Default for GsaConfig {
    fn default() -> Self {
        Self { heads: 4, head_dim: None, slots: 16, gate_root: 8.0, scale: 1.0, norm_eps: 1e-5 }
    }
}

impl GsaConfig {
    /// Checks the values and draws the parameters for width `d_model`.
    ///
    /// # Errors
    /// For zero sizes, heads that do not divide the width, or factors that are not positive.
    pub fn init(&self, d_model: usize, init: &mut Init) -> Result<Gsa> {
        let (h, m) = (self.heads, self.slots);
        let n = head_dim(self.head_dim, d_model, h, NAME)?;
        require(m > 0, NAME, "slots", m, "must be positive")?;
        let root = self.gate_root;
        require(root > 0.0 && root.is_finite(), NAME, "gate_root", root, "must be positive")?;
        let scale = self.scale;
        require(scale > 0.0 && scale.is_finite(), NAME, "scale", scale, "must be positive")?;
        require(self.norm_eps > 0.0, NAME, "norm_eps", self.norm_eps, "must be positive")?;
        Ok(Gsa {
            q_proj: init.linear(d_model, h * n),
            k_proj: init.linear(d_model, h * n),
            v_proj: init.linear(d_model, h * n),
            gate_proj: init.linear(d_model, h * m),
            norm: RmsNorm::new(h * n, self.norm_eps, init),
            out_proj: init.linear(h * n, d_model),
            config: self.clone(),
            head_dim: n,
            d_model,
        })
    }
}

/// The layer; see the module's equations. Built by [`GsaConfig::init`].
#[derive(Module, Debug)]
pub struct Gsa {
    /// `W_q: [d, h n]`
    pub q_proj: Linear,
    /// `W_k: [d, h n]`
    pub k_proj: Linear,
    /// `W_v: [d, h n]`
    pub v_proj: Linear,
    /// `W_α: [d, h m]`
    pub gate_proj: Linear,
    /// Over all heads' outputs
    pub norm: RmsNorm,
    /// `W_o: [h n, d]`
    pub out_proj: Linear,
    #[module(skip)]
    config: GsaConfig,
    #[module(skip)]
    head_dim: usize,
    #[module(skip)]
    d_model: usize,
}

impl Gsa {
    fn memory(&self, x: Tensor<3>) -> SlotAttention {
        let h = self.config.heads;
        let map = |map: &Linear| split_heads(silu(map.forward(x.clone())), h);
        let [q, k, v] = [&self.q_proj, &self.k_proj, &self.v_proj].map(map);
        let log_keep = log_sigmoid(split_heads(self.gate_proj.forward(x.clone()), h));
        let log_keep = log_keep.mul_scalar(1.0 / self.config.gate_root);
        let write = log_keep.clone().exp().neg().add_scalar(1.0);
        SlotAttention { q: q.mul_scalar(self.config.scale), k, v, write, log_keep }
    }
}

impl Mixer for Gsa {
    fn d_model(&self) -> usize {
        self.d_model
    }

    fn initial_state(&self, batch: usize) -> State {
        let (h, n) = (self.config.heads, self.head_dim);
        empty_slots(batch, [h, self.config.slots, n, n], self.q_proj.weight.val())
    }

    fn run(&self, x: Tensor<3>, mut state: State, run: Run<'_>) -> Result<(Tensor<3>, State)> {
        let y = run_slots(self.memory(x), &mut state, run)?;
        let y = self.norm.forward(silu(merge_heads(y)));
        Ok((self.out_proj.forward(y), state))
    }

    fn views(&self, x: Tensor<3>, state: State) -> Result<Views> {
        self.check(&x, &state)?;
        slot_views(self.memory(x), &state)
    }

    fn cost(&self, batch: usize, time: usize, form: Form) -> Cost {
        let (h, n, m, d) = (self.config.heads, self.head_dim, self.config.slots, self.d_model);
        let flops = 2 * d * h * (4 * n + m) + h * SlotAttention::flops(m, n, n, time, form);
        Cost::of(self, flops as f64, batch, time)
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::testing::{Draw, gap, numbers};

    /// A token to a slot and nothing forgotten is softmax attention: the last token sees every slot filled.
    #[test]
    fn as_many_slots_as_tokens_are_softmax_attention() {
        const T: usize = 7;
        let mut draw = Draw::new(1);
        let [q, k, v] = [0, 1, 2].map(|_| draw.tensor::<4>([2, 3, T, 4], -1.0, 1.0));
        let write = Tensor::<2>::eye(T, &Device::flex()).reshape([1, 1, T, T]).expand([2, 3, T, T]);
        let log_keep = write.zeros_like();
        let empty = Tensor::<4>::zeros([2, 3, T, 4], &Device::flex());
        let expected = activation::softmax(q.clone().matmul(k.clone().swap_dims(2, 3)), 3).matmul(v.clone());
        let memory = SlotAttention { q, k, v, write, log_keep };
        let (y, [keys, _]) =
            memory.clone().run(empty.clone(), empty, Form::Chunked { size: 3 }, None).unwrap();
        let last = |x: Tensor<4>| x.narrow(2, T - 1, 1);
        assert!(gap(last(y), last(expected)) < 1e-5);
        assert!(gap(keys, memory.k) < 1e-6);
    }

    /// One slot leaves nothing to choose: whatever the query, the value kept is the answer.
    #[test]
    fn one_slot_is_a_gated_average() {
        let config = GsaConfig { heads: 2, slots: 1, ..Default::default() };
        let layer = config.init(8, &mut Init::new(3, &Device::flex())).unwrap();
        let x = Draw::new(2).tensor::<3>([1, 9, 8], -2.0, 2.0);
        let memory = layer.memory(x.clone());
        let (mut value, mut expected) = (Tensor::<4>::zeros([1, 2, 1, 4], &Device::flex()), Vec::new());
        for t in 0..9 {
            let at = |x: &Tensor<4>| x.clone().narrow(2, t, 1);
            let keep = at(&memory.log_keep).exp();
            value = value * keep.clone() + at(&memory.v) * (keep.neg().add_scalar(1.0));
            expected.push(value.clone());
        }
        let mut state = layer.initial_state(1);
        let y = run_slots(memory, &mut state, Run { form: Form::Parallel, lengths: None }).unwrap();
        assert!(gap(y, Tensor::cat(expected, 2)) < 1e-5);
    }

    /// The implied attention is what is applied to the values.
    #[test]
    fn the_implied_attention_is_applied() {
        let config = GsaConfig { heads: 2, slots: 3, ..Default::default() };
        let layer = config.init(8, &mut Init::new(3, &Device::flex())).unwrap();
        let x = Draw::new(3).tensor::<3>([2, 7, 8], -2.0, 2.0);
        let attention = layer.views(x.clone(), layer.initial_state(2)).unwrap().attention.unwrap();
        let memory = layer.memory(x.clone());
        let y = run_slots(memory.clone(), &mut layer.initial_state(2), Run::default()).unwrap();
        assert!(gap(attention.clone().matmul(memory.v), y) < 1e-5);
        // 1 - Π α: what was never written is missing
        assert!(numbers(attention.sum_dim(3)).iter().all(|&row| row > 0.0 && row < 1.0));
    }

    #[test]
    fn bad_settings_are_refused() {
        let refused = |config: GsaConfig| config.init(8, &mut Init::new(0, &Device::flex())).is_err();
        assert!(!refused(GsaConfig::default()));
        assert!(refused(GsaConfig { slots: 0, ..Default::default() }));
        assert!(refused(GsaConfig { gate_root: 0.0, ..Default::default() }));
        assert!(refused(GsaConfig { scale: f64::NAN, ..Default::default() }));
    }
}
