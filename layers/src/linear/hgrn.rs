//! HGRN (Qin et al., arXiv 2311.04823): a gated linear RNN with a forget gate that has a lower bound, higher in higher
//! layers.
//!
//! ```text
//! c = silu(W_i x),   f = l + (1 - l) sigmoid(W_f x)
//! h_t = f_t ∘ e^{iθ} h_{t-1} + (1 - f_t) ∘ c_t                        (Eq. 5, 6)
//! out = W_o (norm([Re h, Im h]) ∘ silu(W_g x))
//! ```
//!
//! Common ports drop the rotation `θ`, so that `c` and `h` are real: the default here. The rotation is constant, so
//! the memory is kept in the frame that turns with it, `g_t = e^{-iθ t} h_t`, where all decays are real.
//!
//! The paper learns `l` together for all layers, starting at `layer / layers`; here it stays there.
//!
//! | symbol | shape |
//! | --- | --- |
//! | c, h | `[b, t, n]` (`n` = `width`), or `[b, t, 2n]` as real and imaginary parts |
//! | f, θ | `[b, t, n]`, `[n]` |
//! | state | `[b, 1, n, 1]` or `[b, 1, 2n, 1]` |

use burn::module::{Module, Param};
use burn::tensor::{Tensor, TensorData};
use serde::{Deserialize, Serialize};

use super::parts::{bounded_forget, check_bound, convolution, convolve, with_tails};
use crate::error::require;
use crate::nn::{Activation, CausalConv, Ended, Ending, Gated, Linear, Norm, NormConfig, project_with, silu};
use crate::system::{Cost, Form, Gate, LinearMixer, MEMORY, Run, Spectrum, State, System, Transition, Views};
use crate::{Init, Result};

const NAME: &str = "hgrn";

/// Sizes and switches of [`Hgrn`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HgrnConfig {
    /// Channels `n` of the recurrence; `None` for `d_model`.
    pub width: Option<usize>,
    /// `l`: smallest forget gate; `None` lets the model say (0 for a layer on its own).
    pub lower_bound: Option<f64>,
    /// Complex channels that rotate by a learned angle per token.
    pub complex: bool,
    /// Kernel width of the short convolutions; 0 for none.
    pub conv_kernel: usize,
    /// Whether they have biases.
    pub conv_bias: bool,
    /// Normalisation of the output, over all its channels.
    pub norm: NormConfig,
}

impl Default for HgrnConfig {
    fn default() -> Self {
        Self {
            width: None,
            lower_bound: None,
            complex: false,
            conv_kernel: 0,
            conv_bias: false,
            norm: NormConfig::Rms { eps: 1e-5, unit_offset: false },
        }
    }
}

impl HgrnConfig {
    /// Checks the values and draws the parameters for width `d_model`.
    ///
    /// # Errors
    /// For zero sizes or a lower bound outside `[0, 1)`.
    pub fn init(&self, d_model: usize, init: &mut Init) -> Result<Hgrn> {
        require(d_model > 0, NAME, "d_model", d_model, "must be positive")?;
        let n = self.width.unwrap_or(d_model);
        require(n > 0, NAME, "width", n, "must be positive")?;
        let lower_bound = check_bound(self.lower_bound.unwrap_or(0.0), NAME)?;
        let eps = self.norm.eps();
        require(eps > 0.0, NAME, "norm.eps", eps, "must be positive")?;
        let inner = if self.complex { 2 * n } else { n };
        let mut conv =
            |channels| convolution(self.conv_kernel, self.conv_bias, Activation::Identity, channels, init);
        let (conv_i, conv_f) = (conv(inner), conv(n));
        let angles = (0..n).map(|c| 10_000.0_f64.powf(-2.0 * c as f64 / n as f64) as f32).collect();
        Ok(Hgrn {
            i_proj: init.linear(d_model, inner),
            f_proj: init.linear(d_model, n),
            gate_proj: init.linear(d_model, inner),
            out_proj: init.linear(inner, d_model),
            conv_i,
            conv_f,
            theta: self.complex.then(|| init.param([n], angles)),
            norm: self.norm.init(inner, init),
            config: self.clone(),
            lower_bound,
            d_model,
        })
    }
}

/// The layer; see the module's equations. Built by [`HgrnConfig::init`].
#[derive(Module, Debug)]
pub struct Hgrn {
    /// `W_i: [d, n]` or `[d, 2n]`
    pub i_proj: Linear,
    /// `W_f: [d, n]`
    pub f_proj: Linear,
    /// `W_g`, of the shape of `W_i`
    pub gate_proj: Linear,
    /// `W_o: [n, d]` or `[2n, d]`
    pub out_proj: Linear,
    /// Short convolution on `W_i x`
    pub conv_i: Option<CausalConv>,
    /// Short convolution on `W_f x`
    pub conv_f: Option<CausalConv>,
    /// `θ: [n]`
    pub theta: Option<Param<Tensor<1>>>,
    /// Over all channels
    pub norm: Norm,
    #[module(skip)]
    config: HgrnConfig,
    #[module(skip)]
    lower_bound: f64,
    #[module(skip)]
    d_model: usize,
}

/// What the readout needs besides the core's output.
#[derive(Debug)]
pub struct HgrnAux {
    /// Output gate before its activation, `[b, t, n]` or `[b, t, 2n]`
    gate: Tensor<3>,
    /// Angle of the turning frame at each position, `[1 or b, 1, t, n]`
    angle: Option<Tensor<4>>,
}

/// Turns pairs of channel `i` and `i + n` by an angle.
fn turn(x: Tensor<4>, angle: Tensor<4>) -> Tensor<4> {
    let n = angle.dims()[3];
    let (re, im) = (x.clone().narrow(3, 0, n), x.narrow(3, n, n));
    let (cos, sin) = (angle.clone().cos(), angle.sin());
    let turned = re.clone() * cos.clone() - im.clone() * sin.clone();
    Tensor::cat(vec![turned, im * cos + re * sin], 3)
}

impl LinearMixer for Hgrn {
    type Aux = HgrnAux;

    fn d_model(&self) -> usize {
        self.d_model
    }

    fn initial_state(&self, batch: usize) -> State {
        let like = self.out_proj.weight.val();
        let shape = [batch, 1, like.dims()[0], 1];
        let zeros = Tensor::<4>::zeros(shape, (&like.device(), like.dtype()));
        let state = State::new(batch).with(MEMORY, zeros);
        with_tails(state, [("conv_i", &self.conv_i), ("conv_f", &self.conv_f)])
    }

    fn system(&self, x: Tensor<3>, state: &mut State, run: Run<'_>) -> Result<(System, HgrnAux)> {
        // The activation ends the map, or the convolution where there is one.
        let ending = |conv: &Option<CausalConv>| match conv {
            Some(_) => Activation::Identity,
            None => Activation::Silu,
        };
        let of_c = self.i_proj.then(Ending::Activation(ending(&self.conv_i)));
        let ends = [of_c, Ended::from(&self.f_proj), Ended::from(&self.gate_proj)];
        let ([c, z, gate], _) = project_with(x.clone(), ends, &[]);
        let c = match &self.conv_i {
            Some(_) => silu(convolve("conv_i", &self.conv_i, c, state, run)?),
            None => c,
        };
        let z = convolve("conv_f", &self.conv_f, z, state, run)?;
        let c = c.unsqueeze_dim::<4>(1);
        let (log_f, write) = bounded_forget(z.unsqueeze_dim::<4>(1), self.lower_bound);
        let angle = self.theta.as_ref().map(|theta| angles(theta.val(), state.positions(), &x));
        let system = match &angle {
            None => System::direct(log_f, write * c),
            Some(angle) => {
                let twice = |x: Tensor<4>| Tensor::cat(vec![x.clone(), x], 3);
                System::direct(twice(log_f), twice(write) * turn(c, angle.clone().neg()))
            }
        };
        Ok((system, HgrnAux { gate, angle }))
    }

    fn readout(&self, y: Tensor<4>, aux: HgrnAux) -> Tensor<3> {
        let h = match aux.angle {
            Some(angle) => turn(y, angle),
            None => y,
        };
        let gate = Gated::new(aux.gate, Activation::Silu);
        self.norm.parts().heads_through(h, Some(gate), &self.out_proj)
    }

    /// With a rotation, the eigenvalues are `f e^{±iθ}`; the implied attention is that of the turning frame.
    fn system_views(&self, system: System, aux: HgrnAux, _state: &State) -> Result<Views> {
        let decay = match &system.transition {
            Transition::Diagonal { log_a } => Some(log_a.clone().exp()),
            _ => None,
        };
        let mut views = Views::of_system(system)?;
        if let (Some(theta), Some(decay), Some(spectrum)) = (&self.theta, decay, &views.spectrum) {
            let theta = theta.val();
            let both = Tensor::cat(vec![theta.clone(), theta.neg()], 0).unsqueeze::<4>();
            let (re, im) = (decay.clone() * both.clone().cos(), decay * both.sin());
            views.spectrum = Some(Spectrum { re, im: Some(im), kind: spectrum.kind });
        }
        views.gates.push(Gate { name: "g (output gate)".into(), values: silu(aux.gate) });
        Ok(views)
    }

    fn cost(&self, batch: usize, time: usize, _form: Form) -> Cost {
        let (d, [inner, _]) = (self.d_model, self.out_proj.weight.dims());
        let n = self.f_proj.weight.dims()[1];
        let maps = 2 * d * (3 * inner + n);
        let conv = 2 * self.config.conv_kernel * (inner + n);
        // gates, input, update and output gate; two turns
        let core = 8 * inner + if self.theta.is_some() { 12 * n } else { 0 };
        Cost::of(self, (maps + conv + core) as f64, batch, time)
    }
}

/// `θ` times the position of each token, `[1 or b, 1, t, n]`.
fn angles(theta: Tensor<1>, starts: &[usize], x: &Tensor<3>) -> Tensor<4> {
    let t = x.dims()[1];
    let uniform = starts.iter().all(|&start| start == starts[0]);
    let starts = if uniform { &starts[..1] } else { starts };
    let positions: Vec<f64> =
        starts.iter().flat_map(|&start| (start..start + t).map(|position| position as f64)).collect();
    let data = TensorData::new(positions, [starts.len(), 1, t, 1]);
    Tensor::<4>::from_data(data, (&x.device().inner(), x.dtype())) * theta.unsqueeze::<4>()
}

#[cfg(test)]
#[path = "hgrn_tests.rs"]
mod tests;
