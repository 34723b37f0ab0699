//! RWKV-4 (Peng et al., arXiv 2305.13048): a softmax over the past whose scores are keys minus a distance, so
//! that it is a recurrence with two numbers per channel.
//!
//! ```text
//! x'_t = x_{t-1},   x_* = x ∘ μ_* + x' ∘ (1 - μ_*)   for k, v, r             (Eq. 11–13)
//! k, v, r = W_k x_k, W_v x_v, W_r x_r,    w = -e^decay
//! y_t = (Σ_{j<t} e^{(t-1-j) w + k_j} v_j + e^{u + k_t} v_t) / (the same with v = 1)      (Eq. 16)
//! out = W_o (sigmoid(r) ∘ y)
//! ```
//!
//! Of the two sums the layer carries their quotient `m` and the logarithm `s` of the lower one. Tokens join by
//! `e^{s - max}` and `e^{k - max}`, so keys of any size are safe.
//!
//! | symbol | shape |
//! | --- | --- |
//! | x, x' | `[b, t, d]` |
//! | k, v, r, y | `[b, t, n]` (`n` = `hidden`) |
//! | w, u | `[n]` |
//! | s, m | `[b, 1, n]` |

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::shift::{Depth, SHIFT, by_channel, no_token, place, shifted, zigzag};
use super::wkv::{Averages, BLOCK, averages};
use crate::error::require;
#[cfg(any(feature = "flex", feature = "cube"))]
use crate::kernels;
use crate::nn::{Activation, Linear, gated, lerp, scaled_sigmoid};
use crate::system::scan::{NEGATIVE, segment_sums};
use crate::system::{Cost, Form, Gate, Mixer, Run, Spectrum, SpectrumKind, State, Views};
use crate::{Error, Init, Result};

const NAME: &str = "rwkv4";
/// Slots of `s` and `m`.
const LOG: &str = "wkv_log_weight";
const MEAN: &str = "wkv_mean";

/// Sizes of [`Rwkv4`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rwkv4Config {
    /// Channels `n` of the recurrence; `None` for the layer's width.
    pub hidden: Option<usize>,
    /// Place of the layer in its stack, from 0: later layers start with other mixes and decays. `None` for 0.
    pub layer: Option<usize>,
    /// Number of layers in the stack; `None` for 1.
    pub layers: Option<usize>,
}

impl Rwkv4Config {
    /// Checks the values and draws the parameters for width `d_model`: mixes, decays and bonus as the authors
    /// set them. Their maps start at zero; these are drawn, so that a fresh layer does something.
    ///
    /// # Errors
    /// For zero sizes.
    pub fn init(&self, d_model: usize, init: &mut Init) -> Result<Rwkv4> {
        let n = self.hidden.unwrap_or(d_model);
        require(d_model > 0, NAME, "d_model", d_model, "must be positive")?;
        require(n > 0, NAME, "hidden", n, "must be positive")?;
        require(self.layers != Some(0), NAME, "layers", 0, "must be positive")?;
        let Depth { rho, tau } = Depth::new(self.layer, self.layers);
        let share = |c: usize| c as f64 / d_model as f64;
        Ok(Rwkv4 {
            mix_k: by_channel(d_model, init, |c| share(c).powf(tau)),
            mix_v: by_channel(d_model, init, |c| share(c).powf(tau) + 0.3 * rho),
            mix_r: by_channel(d_model, init, |c| share(c).powf(0.5 * tau)),
            k_proj: init.linear(d_model, n),
            v_proj: init.linear(d_model, n),
            r_proj: init.linear(d_model, n),
            out_proj: init.linear(n, d_model),
            decay: by_channel(n, init, |c| -5.0 + 8.0 * place(c, n).powf(0.7 + 1.3 * rho)),
            bonus: by_channel(n, init, |c| 0.3f64.ln() + 0.5 * zigzag(c)),
            d_model,
        })
    }
}

/// The layer; see the module's equations. Built by [`Rwkv4Config::init`].
#[derive(Module, Debug)]
pub struct Rwkv4 {
    /// `μ_k: [d]`
    pub mix_k: Param<Tensor<1>>,
    /// `μ_v: [d]`
    pub mix_v: Param<Tensor<1>>,
    /// `μ_r: [d]`
    pub mix_r: Param<Tensor<1>>,
    /// `W_k: [d, n]`
    pub k_proj: Linear,
    /// `W_v: [d, n]`
    pub v_proj: Linear,
    /// `W_r: [d, n]`
    pub r_proj: Linear,
    /// `W_o: [n, d]`
    pub out_proj: Linear,
    /// `[n]`
    pub decay: Param<Tensor<1>>,
    /// `u: [n]`
    pub bonus: Param<Tensor<1>>,
    #[module(skip)]
    d_model: usize,
}

/// What the recurrence is given, `[b, t, n]` each.
struct Inputs {
    /// `w`, 0 at padding
    fade: Tensor<3>,
    /// `k`, nothing at padding, and `v`
    tokens: Averages,
    /// `u + k`, and `v`
    own: Averages,
    start: Averages,
}

impl Rwkv4 {
    /// `r` before its sigmoid, `k` and `v`: `[b, t, n]` each.
    fn projected(&self, x: Tensor<3>, state: &mut State, run: Run<'_>) -> Result<[Tensor<3>; 3]> {
        let before = shifted(x.clone(), state, run)?;
        let mix = |weight: &Param<Tensor<1>>| lerp(before.clone(), x.clone(), weight.val());
        let (r, k) = (self.r_proj.forward(mix(&self.mix_r)), self.k_proj.forward(mix(&self.mix_k)));
        Ok([r, k, self.v_proj.forward(mix(&self.mix_v))])
    }

    /// What the state knows of earlier tokens.
    fn start(&self, state: &State) -> Result<Averages> {
        let expected = [state.batch(), 1, self.decay.dims()[0]];
        let start = Averages { log: state.get(LOG)?, mean: state.get(MEAN)? };
        for part in [&start.log, &start.mean] {
            if part.dims() != expected {
                return Err(Error::shape("memory", format!("{expected:?}"), &part.dims()));
            }
        }
        Ok(start)
    }

    fn inputs(&self, [k, v]: [Tensor<3>; 2], start: Averages, run: Run<'_>) -> Inputs {
        let dims @ [_, t, _] = k.dims();
        let own = Averages { log: k.clone() + self.bonus.val().unsqueeze(), mean: v.clone() };
        let fade = self.decay.val().exp().neg().unsqueeze::<3>().expand(dims);
        let (fade, log) = match run.lengths {
            Some(lengths) => {
                let valid = lengths.valid(t, &k.device(), k.dtype()).unsqueeze_dim::<3>(2);
                let none = valid.clone().sub_scalar(1.0).mul_scalar(-NEGATIVE);
                (fade * valid.clone(), k * valid + none)
            }
            None => (fade, k),
        };
        Inputs { fade, tokens: Averages { log, mean: v }, own, start }
    }

    /// `y` and what is known after it.
    fn averaged(&self, [k, v]: [Tensor<3>; 2], start: Averages, run: Run<'_>) -> (Tensor<3>, Averages) {
        #[cfg(any(feature = "flex", feature = "cube"))]
        if kernels::enabled()
            && run.lengths.is_none()
            && matches!(run.form, Form::Auto | Form::Chunked { .. })
            && let Some(kernels::wkv::Averaged { y, log, mean }) = (kernels::wkv::Inputs {
                decay: self.decay.val(),
                bonus: self.bonus.val(),
                k: k.clone(),
                v: v.clone(),
                log: start.log.clone(),
                mean: start.mean.clone(),
            })
            .run()
        {
            return (y, Averages { log, mean });
        }
        let t = k.dims()[1];
        let block = match run.form {
            Form::Recurrent => t,
            Form::Chunked { size } => size.max(2),
            Form::Parallel | Form::Auto => BLOCK,
        };
        let Inputs { fade, tokens, own, start } = self.inputs([k, v], start, run);
        let after = averages(fade, tokens, start.clone(), block);
        let end = after.narrow(t - 1, 1);
        (start.delayed(&after).join(own).mean, end)
    }
}

impl Mixer for Rwkv4 {
    fn d_model(&self) -> usize {
        self.d_model
    }

    fn initial_state(&self, batch: usize) -> State {
        let decay = self.decay.val();
        let last = no_token(batch, self.d_model, &decay);
        let (shape, options) = ([batch, 1, decay.dims()[0]], (&decay.device(), decay.dtype()));
        let log = Tensor::<3>::full(shape, NEGATIVE, options);
        State::new(batch).with(SHIFT, last).with(LOG, log).with(MEAN, Tensor::<3>::zeros(shape, options))
    }

    /// One token after the other, or in blocks: a chunk's tokens step together with those of all other chunks. A kernel
    /// takes all tokens in one pass.
    fn run(&self, x: Tensor<3>, mut state: State, run: Run<'_>) -> Result<(Tensor<3>, State)> {
        let [r, k, v] = self.projected(x, &mut state, run)?;
        let (y, end) = self.averaged([k, v], self.start(&state)?, run);
        state.put(LOG, end.log);
        state.put(MEAN, end.mean);
        Ok((self.out_proj.forward(gated(y, r, Activation::Sigmoid)), state))
    }

    /// The implied attention is that of the average, a mean over channels; what came before the input keeps its
    /// share. The spectrum is `e^w`, by which both sums fade.
    fn views(&self, x: Tensor<3>, mut state: State) -> Result<Views> {
        if !self.check(&x, &state)? {
            return Ok(Views::default());
        }
        let [r, k, v] = self.projected(x, &mut state, Run::default())?;
        let Inputs { fade, tokens, own, start } = self.inputs([k, v], self.start(&state)?, Run::default());
        let [b, t, n] = fade.dims();
        let after = averages(fade.clone(), tokens.clone(), start.clone(), BLOCK);
        let before = start.delayed(&after);
        let total = before.join(own.clone()).log;
        let columns = |x: Tensor<3>| x.swap_dims(1, 2).unsqueeze_dim::<4>(3); // [b, n, t, 1]
        let rows = |x: Tensor<3>| x.swap_dims(1, 2).unsqueeze_dim::<4>(2); // [b, n, 1, t]
        // Token i finds what token i-1 left: the decay between them, one step less, is the row above.
        let fades = segment_sums(columns(fade.clone()));
        let none = fades.clone().narrow(2, 0, 1).zeros_like().add_scalar(NEGATIVE);
        let past = if t == 1 { none } else { Tensor::cat(vec![none, fades.narrow(2, 0, t - 1)], 2) };
        let past = (past + rows(tokens.log) - columns(total.clone())).exp();
        let eye = Tensor::<2>::eye(t, &total.device().inner()).cast(total.dtype()).unsqueeze::<4>();
        let own = columns((own.log - total).exp()) * eye;
        Ok(Views {
            attention: Some((past + own).mean_dim(1)),
            spectrum: Some(Spectrum {
                re: fade.exp().reshape([b, 1, t, n]),
                im: None,
                kind: SpectrumKind::Exact,
            }),
            gates: vec![Gate { name: "sigmoid(r) (receptance)".into(), values: scaled_sigmoid(r, 1.0) }],
            ..Views::default()
        })
    }

    fn cost(&self, batch: usize, time: usize, _form: Form) -> Cost {
        let n = self.decay.dims()[0];
        // Two joins of about ten operations per channel, and three mixes per channel of the input.
        Cost::of(self, (8 * self.d_model * n + 20 * n + 9 * self.d_model) as f64, batch, time)
    }
}

#[cfg(test)]
#[path = "rwkv4_tests.rs"]
mod tests;
