//! Forgetting attention (Forgetting Transformer, FoX; Lin et al., arXiv 2503.02130): softmax attention whose
//! scores fade with what the tokens between chose to forget. It needs no positions.
//!
//! ```text
//! f_t = sigmoid(W_f x_t + b_f)                              (one gate per query head)
//! s_ij = q_i · k_j · scale + Σ_{j < s ≤ i} log f_s,   y_i = Σ_{j ≤ i} softmax_j(s_i) v_j        (Eq. 6, 7)
//! ```
//!
//! Everything else is [`Attention`]'s. With `f = 1` it is that layer.
//!
//! | symbol | shape |
//! | --- | --- |
//! | f | `[b, h, t]` |
//! | k, v (cache) | `[b, h_kv, T, n]` |
//! | log f (cache) | `[b, h, T, 1]` |
//!
//! The cache has each token's own `log f`, not running sums: those grow without bound and lose what the
//! differences need.

use burn::module::Module;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::cache::append;
use super::scores::Read;
use super::{Attention, AttentionConfig};
use crate::error::require;
use crate::nn::{Linear, log_sigmoid};
use crate::system::{Cost, Form, Gate, HeadMixer, Mixer, Run, State, Views, token_by_token};
use crate::{Init, Result};

const NAME: &str = "forgetting_attention";

/// Sizes and switches of [`ForgettingAttention`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ForgettingAttentionConfig {
    /// The attention whose scores fade; by default without rotary positions, which the gates make unnecessary. What
    /// a given table leaves out is as in [`AttentionConfig`], rotary positions too.
    pub attention: AttentionConfig,
    /// `b_f` at the start, the same for every head.
    pub forget_bias: f64,
}

impl Default for ForgettingAttentionConfig {
    fn default() -> Self {
        Self { attention: AttentionConfig { rope: None, ..Default::default() }, forget_bias: 0.0 }
    }
}

impl ForgettingAttentionConfig {
    /// Checks the values and draws the parameters for width `d_model`.
    ///
    /// # Errors
    /// Like [`AttentionConfig::init`], and for attention that is not causal.
    pub fn init(&self, d_model: usize, init: &mut Init) -> Result<ForgettingAttention> {
        require(self.attention.causal, NAME, "attention.causal", false, "must be true")?;
        let bias = self.forget_bias;
        require(bias.is_finite(), NAME, "forget_bias", bias, "must be a number")?;
        Ok(ForgettingAttention {
            attention: self.attention.init(d_model, init)?,
            forget_proj: forget_gate(d_model, self.attention.heads, bias, init),
        })
    }
}

/// `W_f: [d, h]` and `b_f`.
pub(super) fn forget_gate(d_model: usize, heads: usize, bias: f64, init: &mut Init) -> Linear {
    Linear { bias: Some(init.constant([heads], bias as f32)), ..init.linear(d_model, heads) }
}

/// Lets the scores of `read` fade by the call's gates `log f = log sigmoid(W_f x + b_f)` and the cached ones.
///
/// # Errors
/// When the cache is that of another layer.
pub(super) fn forget(
    gate: &Linear,
    x: Tensor<3>,
    read: &mut Read,
    window: Option<usize>,
    state: &mut State,
    run: Run<'_>,
) -> Result<()> {
    let log_f = log_sigmoid(gate.forward(x)).swap_dims(1, 2).unsqueeze_dim::<4>(3);
    let [log_f] = append(state, ["log_f"], [log_f], window, run)?.all;
    read.log_forget = Some(log_f);
    Ok(())
}

/// The layer; see the module's equations. Built by [`ForgettingAttentionConfig::init`].
#[derive(Module, Debug)]
pub struct ForgettingAttention {
    /// The attention whose scores fade
    pub attention: Attention,
    /// `W_f: [d, h]`, `b_f`
    pub forget_proj: Linear,
}

impl ForgettingAttention {
    fn read(&self, x: Tensor<3>, state: State, run: Run<'_>) -> Result<(Read, State)> {
        let (mut read, mut state) = self.attention.read(x.clone(), state, run)?;
        let window = self.attention.config().window;
        forget(&self.forget_proj, x, &mut read, window, &mut state, run)?;
        Ok((read, state))
    }
}

impl Mixer for ForgettingAttention {
    fn d_model(&self) -> usize {
        self.attention.d_model()
    }

    fn initial_state(&self, batch: usize) -> State {
        self.attention.initial_state(batch)
    }

    /// In the forms of [`Attention`].
    fn run(&self, x: Tensor<3>, state: State, run: Run<'_>) -> Result<(Tensor<3>, State)> {
        if run.form == Form::Recurrent && x.dims()[1] > 1 {
            return token_by_token(x, state, run, |x, state, run| self.run(x, state, run));
        }
        let (read, state) = self.read(x.clone(), state, run)?;
        Ok((self.attention.merge_heads(self.attention.attend(x, &read, run.form)), state))
    }

    fn views(&self, x: Tensor<3>, state: State) -> Result<Views> {
        self.check(&x, &state)?;
        let values = log_sigmoid(self.forget_proj.forward(x.clone())).exp();
        let (read, _) = self.read(x, state, Run::default())?;
        let gates = vec![Gate { name: "f (forget gate)".into(), values }];
        Ok(Views { gates, ..self.attention.scoring().views(&read) })
    }

    fn cost(&self, batch: usize, time: usize, form: Form) -> Cost {
        let (d, config) = (self.d_model(), self.attention.config());
        let (attention, tokens) = (self.attention.cost(batch, time, form), (batch * time) as f64);
        let kept = config.window.map_or(time, |w| (w - 1).min(time));
        Cost {
            flops: attention.flops + tokens * (2 * d * config.heads) as f64,
            params: self.num_params(),
            state_bytes: attention.state_bytes + 4 * batch * config.heads * kept,
            ..attention
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::module::Param;
    use burn::tensor::Device;

    use super::*;
    use crate::testing::{Draw, gap, numbers};

    fn build(forget_bias: f64) -> ForgettingAttention {
        let attention = AttentionConfig {
            heads: 4,
            kv_heads: Some(2),
            window: Some(9),
            rope: None,
            ..Default::default()
        };
        let config = ForgettingAttentionConfig { attention, forget_bias };
        config.init(16, &mut Init::new(3, &Device::flex())).unwrap()
    }

    #[test]
    fn without_forgetting_it_is_softmax_attention() {
        // sigmoid(30) is 1 in single precision
        let layer = build(30.0);
        let x = Draw::new(1).tensor::<3>([2, 14, 16], -1.0, 1.0);
        let (y, _) = layer.forward(x.clone(), layer.initial_state(2), Form::Auto).unwrap();
        let start = layer.attention.initial_state(2);
        assert!(gap(y, layer.attention.forward(x, start, Form::Auto).unwrap().0) < 1e-6);
    }

    #[test]
    fn a_token_that_forgets_everything_starts_anew() {
        let mut layer = build(0.0);
        let weight = layer.forget_proj.weight.val();
        // One input channel rules the gates of all heads.
        let [_, heads] = weight.dims();
        let ruled = weight.zeros_like().slice_fill([0..1, 0..heads], -80.0);
        layer.forget_proj.weight = Param::from_tensor(ruled);
        let mut draw = Draw::new(2);
        let x = draw.tensor::<3>([1, 6, 16], -1.0, 1.0).slice_fill([0..1, 0..6, 0..1], 0.0);
        let x = x.slice_fill([0..1, 3..4, 0..1], 1.0);
        let (y, _) = layer.forward(x.clone(), layer.initial_state(1), Form::Parallel).unwrap();
        let (alone, _) = layer.forward(x.narrow(1, 3, 3), layer.initial_state(1), Form::Parallel).unwrap();
        assert!(gap(y.narrow(1, 3, 3), alone) < 1e-5);
    }

    /// Sums of thousands of gates do not blur the ones that count.
    #[test]
    fn long_histories_keep_their_precision() {
        let layer = build(-4.0); // log f is about -4 per token
        let layer = ForgettingAttention {
            attention: AttentionConfig { heads: 4, rope: None, ..Default::default() }
                .init(16, &mut Init::new(3, &Device::flex()))
                .unwrap(),
            ..layer
        };
        let mut draw = Draw::new(5);
        let (past, x) = (draw.tensor([1, 3000, 16], -1.0, 1.0), draw.tensor::<3>([1, 4, 16], -1.0, 1.0));
        let (_, state) = layer.forward(past.clone(), layer.initial_state(1), Form::Auto).unwrap();
        let (y, _) = layer.forward(x.clone(), state, Form::Auto).unwrap();
        // e^{-4·30} is nothing: the last tokens alone say the same.
        let recent = past.narrow(1, 2970, 30);
        let (_, state) = layer.forward(recent, layer.initial_state(1), Form::Auto).unwrap();
        assert!(gap(y, layer.forward(x, state, Form::Auto).unwrap().0) < 1e-6);
    }

    #[test]
    fn the_implied_attention_has_rows_that_sum_to_one_and_gates_are_shown() {
        let layer = build(1.0);
        let x = Draw::new(4).tensor::<3>([2, 7, 16], -1.0, 1.0);
        let views = layer.views(x, layer.initial_state(2)).unwrap();
        for row in numbers(views.attention.unwrap().sum_dim(3)) {
            assert!((row - 1.0).abs() < 1e-5);
        }
        assert_eq!(views.gates[0].values.dims(), [2, 7, 4]);
        let config = AttentionConfig { causal: false, ..Default::default() };
        let config = ForgettingAttentionConfig { attention: config, ..Default::default() };
        assert!(config.init(16, &mut Init::new(0, &Device::flex())).is_err());
    }
}
