//! RG-LRU and the recurrent block around it (Griffin and Hawk, De et al., arXiv 2402.19427; RecurrentGemma).
//!
//! ```text
//! u = conv(W_x x)
//! r_t = sigmoid(W_a u_t + b_a),  i_t = sigmoid(W_i u_t + b_i)      block-diagonal W, one block per head
//! log a_t = -c softplus(Λ) ∘ r_t,                                  c = 8
//! h_t = a_t ∘ h_{t-1} + sqrt(1 - a_t²) ∘ i_t ∘ u_t                 (Eq. 4)
//! out = W_o (gelu(W_y x) ∘ h)
//! ```
//!
//! The first token of a sequence resets: there `a = 0` and the input's multiplier is 1, whatever the state.
//!
//! | symbol | shape |
//! | --- | --- |
//! | u, r, i, a, h | `[b, t, n]` (`n` = `lru_width`) |
//! | W_a, W_i | `[heads, n/heads, n/heads]` |
//! | state | `[b, 1, n, 1]` |

use burn::module::{Module, Param};
use burn::tensor::{Tensor, TensorData, activation};
use rand::RngExt;
use serde::{Deserialize, Serialize};

use crate::error::require;
#[cfg(feature = "cube")]
use crate::kernels;
use crate::nn::{
    Activation, CausalConv, CausalConvConfig, Formula, Function, Gated, LOG_ZERO, Linear, MOST_SLOPE,
    gated_through, project_with, softplus,
};
use crate::system::{Cost, Form, LinearMixer, MEMORY, Run, State, System, engine, fresh};
use crate::{Error, Init, Result};

const NAME: &str = "rglru";
const CONV: &str = "conv";

/// Sizes and switches of [`RgLru`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RgLruConfig {
    /// Channels `n` of the recurrence; `None` for `d_model`.
    pub lru_width: Option<usize>,
    /// Blocks on the diagonal of the gates' weights; must divide the width.
    pub heads: usize,
    /// Kernel width of the short convolution; 0 for none.
    pub conv_kernel: usize,
    /// Whether the convolution has a bias.
    pub conv_bias: bool,
    /// Whether the three projections have biases.
    pub proj_bias: bool,
    /// How far an open recurrence gate lowers the decay: `a = s^c` for `r = 1`, `s` for `r = 1/c`.
    pub c: f64,
    /// Applied to the branch that gates the output.
    pub activation: Activation,
}

impl Default for RgLruConfig {
    fn default() -> Self {
        Self {
            lru_width: None,
            heads: 4,
            conv_kernel: 4,
            conv_bias: true,
            proj_bias: true,
            c: 8.0,
            activation: Activation::GeluTanh,
        }
    }
}

impl RgLruConfig {
    /// Checks the values and draws the parameters for width `d_model`.
    ///
    /// # Errors
    /// For zero sizes, heads that do not divide the width, or a `c` that is not positive.
    pub fn init(&self, d_model: usize, init: &mut Init) -> Result<RgLru> {
        require(d_model > 0, NAME, "d_model", d_model, "must be positive")?;
        let width = self.lru_width.unwrap_or(d_model);
        require(width > 0, NAME, "lru_width", width, "must be positive")?;
        let rg_lru = self.init_core(width, init)?;
        let linear = |init: &mut Init, from: usize, to| {
            init.linear_std(from, to, (1.0 / from as f64).sqrt(), self.proj_bias)
        };
        let conv = CausalConvConfig {
            kernel: self.conv_kernel,
            bias: self.conv_bias,
            activation: Activation::Identity,
        };
        Ok(RgLru {
            x_proj: linear(init, d_model, width),
            y_proj: linear(init, d_model, width),
            out_proj: linear(init, width, d_model),
            conv: conv.init_unless_empty(width, init),
            rg_lru,
            config: self.clone(),
            d_model,
        })
    }

    /// The recurrence alone, for `width` channels.
    ///
    /// # Errors
    /// For a zero width, heads that do not divide it, or a `c` that is not positive.
    pub fn init_core(&self, width: usize, init: &mut Init) -> Result<RgLruCore> {
        let h = self.heads;
        require(width > 0, NAME, "lru_width", width, "must be positive")?;
        let divides = h > 0 && width.is_multiple_of(h);
        require(divides, NAME, "heads", h, &format!("must divide the {width} channels of the recurrence"))?;
        require(self.c > 0.0 && self.c.is_finite(), NAME, "c", self.c, "must be a positive number")?;
        // s² ~ U(0.9², 0.999²) with s = exp(-softplus(Λ)), so Λ = log(e^{-log s} - 1).
        let a_param = init.draw([width], |rng| {
            let square = 0.81 + (0.999 * 0.999 - 0.81) * rng.random::<f64>();
            (-0.5 * square.ln()).exp_m1().ln() as f32
        });
        Ok(RgLruCore {
            a_param,
            a_gate: BlockLinear::new(h, width / h, init),
            input_gate: BlockLinear::new(h, width / h, init),
            c: self.c,
        })
    }
}

/// A linear map with a block per head on its diagonal.
#[derive(Module, Debug)]
pub struct BlockLinear {
    /// `[heads, w, w]`, each block `[in, out]`
    pub weight: Param<Tensor<3>>,
    /// `[heads, w]`
    pub bias: Param<Tensor<2>>,
}

impl BlockLinear {
    /// Weights `N(0, 1/w)`, bias 0.
    pub fn new(heads: usize, width: usize, init: &mut Init) -> Self {
        Self {
            weight: init.normal([heads, width, width], (1.0 / width as f64).sqrt()),
            bias: init.constant([heads, width], 0.0),
        }
    }

    /// `[b, t, heads · w] -> [b, t, heads · w]`
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let dims = x.dims();
        (self.blocks(x) + self.bias()).reshape(dims)
    }

    /// Without the bias: `[b, t, heads · w] -> [b, t, heads, w]`
    fn blocks(&self, x: Tensor<3>) -> Tensor<4> {
        let [b, t, _] = x.dims();
        let [heads, width, _] = self.weight.dims();
        let x = x.reshape([b * t, heads, width]).swap_dims(0, 1);
        x.matmul(self.weight.val()).swap_dims(0, 1).reshape([b, t, heads, width])
    }

    /// `[1, 1, heads, w]`
    fn bias(&self) -> Tensor<4> {
        self.bias.val().unsqueeze()
    }
}

/// The recurrence alone: `u -> h`, without convolution, projections and output gate.
#[derive(Module, Debug)]
pub struct RgLruCore {
    /// `Λ: [n]`
    pub a_param: Param<Tensor<1>>,
    /// `W_a, b_a`
    pub a_gate: BlockLinear,
    /// `W_i, b_i`
    pub input_gate: BlockLinear,
    #[module(skip)]
    c: f64,
}

impl RgLruCore {
    /// `(Λ, B u)` on `u: [b, t, n]`; `reset: [b, t]` is 1 where a new document starts, 0 elsewhere.
    pub fn system(&self, u: Tensor<3>, reset: Option<Tensor<2>>) -> System {
        let [b, t, n] = u.dims();
        let gates = [&self.a_gate, &self.input_gate];
        let options = (&u.device().inner(), u.dtype());
        let reset = reset.unwrap_or_else(|| Tensor::from_data([[0.0f32]], options)).expand([b, t]);
        #[cfg(feature = "cube")]
        if kernels::enabled() && kernels::linear::on_graphics(&u) {
            let blocks = gates.map(|gate| gate.weight.val());
            let biases = gates.map(|gate| gate.bias.val());
            let all = kernels::BlockGates { blocks, biases, rate: self.a_param.val(), scale: self.c };
            if let Some([log_a, input]) = all.decay_and_input(&u, &reset) {
                return System::direct(log_a, input);
            }
        }
        let [r, i] = gates.map(|gate| gate.blocks(u.clone()));
        let dims @ [.., heads, width] = r.dims();
        let reset = reset.reshape([b, t, 1, 1]).expand(dims);
        let rate = self.a_param.val().reshape([1, 1, heads, width]);
        let u = u.reshape(dims);
        let decay = Formula { scale: self.c, ..Formula::new(Function::GateDecay) };
        let log_a = decay.run([r, reset], [self.a_gate.bias(), rate], |[r, reset], [bias, rate]| {
            let log_a = activation::sigmoid(r + bias) * softplus(rate).mul_scalar(-self.c);
            log_a * reset.clone().neg().add_scalar(1.0) + reset.mul_scalar(LOG_ZERO)
        });
        // After a reset the decay is 0, and the multiplier 1.
        let input = Formula::new(Function::GateInput);
        let inputs = [log_a.clone(), i, u];
        let input = input.run(inputs, [self.input_gate.bias()], |[log_a, i, u], [bias]| {
            bounded_sqrt(one_minus_square(log_a)) * activation::sigmoid(i + bias) * u
        });
        let settle = |x: Tensor<4>| x.reshape([b, 1, t, n]);
        System::direct(settle(log_a), settle(input))
    }

    /// Runs the recurrence on `u: [b, t, n]` from `h0: [b, n]`; returns all `h` and the last one.
    ///
    /// # Errors
    /// When the shapes do not fit each other or the width.
    pub fn forward(
        &self,
        u: Tensor<3>,
        reset: Option<Tensor<2>>,
        h0: Tensor<2>,
        form: Form,
    ) -> Result<(Tensor<3>, Tensor<2>)> {
        let [b, t, n] = u.dims();
        let width = self.a_param.dims()[0];
        if n != width || t == 0 {
            return Err(Error::shape("recurrence input", format!("[batch, time ≥ 1, {width}]"), &u.dims()));
        }
        if let Some(reset) = &reset
            && reset.dims() != [b, t]
        {
            return Err(Error::shape("reset mask", format!("[{b}, {t}]"), &reset.dims()));
        }
        if h0.dims() != [b, n] {
            return Err(Error::shape("initial state", format!("[{b}, {n}]"), &h0.dims()));
        }
        let (h, last) = engine::run(self.system(u, reset), h0.reshape([b, 1, n, 1]), form)?;
        Ok((h.reshape([b, t, n]), last.reshape([b, n])))
    }
}

/// `1 - a²` from `log a ≤ 0`, without the cancellation at `a = 1`: `tanh(-log a) (1 + a²)`.
fn one_minus_square<const D: usize>(log_a: Tensor<D>) -> Tensor<D> {
    let square = log_a.clone().mul_scalar(2.0).exp();
    log_a.neg().tanh() * square.add_scalar(1.0)
}

/// `sqrt(x)` whose slope is at most [`MOST_SLOPE`].
fn bounded_sqrt<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    if !x.is_autodiff() {
        return x.sqrt();
    }
    let fixed = x.clone().detach();
    let least = 0.25 / (MOST_SLOPE * MOST_SLOPE);
    let slope = fixed.clone().clamp_min(least).sqrt().recip().mul_scalar(0.5);
    // The last term is 0, and its derivative is the slope.
    fixed.clone().sqrt() + (x - fixed) * slope
}

/// The layer; see the module's equations. Built by [`RgLruConfig::init`].
#[derive(Module, Debug)]
pub struct RgLru {
    /// `W_x: [d, n]`, into the recurrence
    pub x_proj: Linear,
    /// `W_y: [d, n]`, the output's gate
    pub y_proj: Linear,
    /// `W_o: [n, d]`
    pub out_proj: Linear,
    /// Short convolution before the recurrence
    pub conv: Option<CausalConv>,
    /// The recurrence
    pub rg_lru: RgLruCore,
    #[module(skip)]
    config: RgLruConfig,
    #[module(skip)]
    d_model: usize,
}

impl LinearMixer for RgLru {
    /// Output gate before its activation, `[b, t, n]`.
    type Aux = Tensor<3>;

    fn d_model(&self) -> usize {
        self.d_model
    }

    /// Zeros. A row at position 0 resets on its first token, so its memory then has no effect.
    fn initial_state(&self, batch: usize) -> State {
        let like = self.rg_lru.a_param.val();
        let state = State::new(batch).with(MEMORY, fresh([batch, 1, self.width(), 1], &like));
        match &self.conv {
            Some(conv) => state.with(CONV, conv.initial_state(batch)),
            None => state,
        }
    }

    fn system(&self, x: Tensor<3>, state: &mut State, run: Run<'_>) -> Result<(System, Tensor<3>)> {
        let ([gate, mut u], _) = project_with(x, [&self.y_proj, &self.x_proj], &[]);
        if let Some(conv) = &self.conv {
            let (y, tail) = conv.forward(u, state.get(CONV)?, run.lengths);
            state.put(CONV, tail);
            u = y;
        }
        let reset = first_tokens(state.positions(), &u);
        Ok((self.rg_lru.system(u, reset), gate))
    }

    fn readout(&self, y: Tensor<4>, gate: Tensor<3>) -> Tensor<3> {
        gated_through(y, Gated::new(gate, self.config.activation), &self.out_proj)
    }

    fn cost(&self, batch: usize, time: usize, _form: Form) -> Cost {
        let (d, n) = (self.d_model, self.width());
        let projections = 2 * d * n * 3;
        let conv = 2 * self.config.conv_kernel * n;
        let gates = 2 * 2 * n * (n / self.config.heads);
        // Decay, multiplier, gated input, update and output gate.
        let core = 12 * n;
        Cost::of(self, (projections + conv + gates + core) as f64, batch, time)
    }
}

impl RgLru {
    fn width(&self) -> usize {
        self.rg_lru.a_param.dims()[0]
    }
}

/// 1 at the first token of the rows that stand at position 0; `None` when no row does.
fn first_tokens(positions: &[usize], like: &Tensor<3>) -> Option<Tensor<2>> {
    if positions.iter().all(|&p| p > 0) {
        return None;
    }
    let [b, t, _] = like.dims();
    let flags: Vec<f32> =
        positions.iter().flat_map(|&p| (0..t).map(move |s| f32::from(p + s == 0))).collect();
    Some(Tensor::from_data(TensorData::new(flags, [b, t]), (&like.device().inner(), like.dtype())))
}

#[cfg(test)]
mod tests {
    use burn::tensor::{DType, Device};

    use super::*;
    use crate::system::{Mixer, Views};
    use crate::testing::{Draw, numbers};

    /// 1 at the positions `starts` of every row.
    fn resets(batch: usize, time: usize, starts: &[usize]) -> Option<Tensor<2>> {
        let flags: Vec<f32> = (0..batch * time).map(|i| f32::from(starts.contains(&(i % time)))).collect();
        Some(Tensor::from_data(TensorData::new(flags, [batch, time]), &Device::flex()))
    }

    #[test]
    fn the_square_root_keeps_its_value_and_bounds_its_slope() {
        let points = [0.0f64, 1e-12, 2e-7, 3e-7, 1e-3, 0.7];
        let data = TensorData::new(points.to_vec(), [1, 1, points.len()]);
        let x = Tensor::<3>::from_data(data, (&Device::flex().autodiff(), DType::F64)).require_grad();
        let y = bounded_sqrt(x.clone());
        let grads = y.clone().sum().backward();
        let slopes = numbers(x.grad(&grads).unwrap());
        for ((x, y), slope) in points.iter().zip(numbers(y)).zip(slopes) {
            assert_eq!(y, x.sqrt());
            let expected = (0.5 / x.sqrt()).min(1000.0);
            assert!((slope - expected).abs() <= 1e-12 * expected, "slope {slope} at {x}");
        }
    }

    #[test]
    fn the_input_multiplier_is_exact_where_the_decay_is_close_to_one() {
        let points: Vec<f32> = vec![-1e-7, -3e-6, -1e-4, -0.01, -0.3, -5.0, -90.0];
        let log_a = Tensor::<3>::from_data(TensorData::new(points.clone(), [1, 1, 7]), &Device::flex());
        for (value, point) in numbers(one_minus_square(log_a)).into_iter().zip(points) {
            let exact = -(2.0 * f64::from(point)).exp_m1();
            assert!((value - exact).abs() <= 1e-6 * exact, "{value} instead of {exact}");
        }
    }

    #[test]
    fn decays_start_in_the_range_of_the_paper() {
        let core = RgLruConfig::default().init_core(256, &mut Init::new(2, &Device::flex())).unwrap();
        let s = numbers(softplus(core.a_param.val()).neg().exp());
        assert!(s.iter().all(|s| (0.8999..0.9991).contains(s)), "{s:?}");
        let mean = s.iter().map(|s| s * s).sum::<f64>() / s.len() as f64;
        assert!((mean - 0.904).abs() < 0.02, "s² is uniform in [0.81, 0.998], not of mean {mean}");
    }

    #[test]
    fn the_spectrum_shows_the_reset_and_stays_finite() {
        let layer = RgLruConfig::default().init(8, &mut Init::new(1, &Device::flex())).unwrap();
        let x = Draw::new(1).tensor([1, 9, 8], -1.0, 1.0);
        let state = Mixer::initial_state(&layer, 1);
        let Views { spectrum, attention, .. } = layer.views(x, state).unwrap();
        let spectrum = spectrum.unwrap();
        let re = spectrum.re.clone();
        assert_eq!(numbers(re.clone().narrow(2, 0, 1).max()), [0.0]);
        assert!(numbers(re.narrow(2, 1, 8)).iter().all(|a| (0.4..1.0).contains(a)));
        assert!(numbers(spectrum.half_life()).iter().all(|h| h.is_finite()));
        assert!(numbers(attention.unwrap()).iter().all(|m| m.is_finite()));
    }

    #[test]
    fn shapes_and_sizes_that_do_not_fit_are_refused() {
        let init = &mut Init::new(0, &Device::flex());
        let refused = |config: RgLruConfig, field: &str| {
            let error = config.init(8, &mut Init::new(0, &Device::flex())).unwrap_err().to_string();
            assert!(error.contains(&format!("`{field}`")), "{error}");
        };
        refused(RgLruConfig { heads: 3, ..Default::default() }, "heads");
        refused(RgLruConfig { heads: 0, ..Default::default() }, "heads");
        refused(RgLruConfig { lru_width: Some(0), ..Default::default() }, "lru_width");
        refused(RgLruConfig { c: 0.0, ..Default::default() }, "c");
        let core = RgLruConfig::default().init_core(8, init).unwrap();
        let zeros = |t, n| Tensor::<3>::zeros([2, t, n], &Device::flex());
        let h0 = |n| Tensor::<2>::zeros([2, n], &Device::flex());
        assert!(core.forward(zeros(3, 7), None, h0(8), Form::Auto).is_err());
        assert!(core.forward(zeros(0, 8), None, h0(8), Form::Auto).is_err());
        assert!(core.forward(zeros(3, 8), None, h0(7), Form::Auto).is_err());
        assert!(core.forward(zeros(3, 8), resets(2, 4, &[0]), h0(8), Form::Auto).is_err());
        assert!(core.forward(zeros(3, 8), resets(2, 3, &[0]), h0(8), Form::Auto).is_ok());
    }
}
