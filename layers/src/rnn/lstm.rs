//! LSTM (Hochreiter and Schmidhuber 1997; forget gate: Gers et al. 2000), in the form of torch's `nn.LSTM`.
//!
//! ```text
//! i, f, g, o = W x_t + b + U h_{t-1} + b'        (blocks of one map, in this order)
//! c_t = σ(f) ∘ c_{t-1} + σ(i) ∘ tanh(g),   h_t = σ(o) ∘ tanh(c_t),   y_t = h_t
//! ```
//!
//! Layers are stacked: the outputs of one are the inputs of the next. The gates depend on the state, so every form
//! reads token by token, over input maps computed at once: the recurrent and the parallel form by tensor operations, the
//! others by a kernel where there is one.
//!
//! As a system the cell path is `Λ_t = diag(σ(f_t))` with the gates frozen along the trajectory (DSF,
//! arXiv 2405.15731); the views show that system. The true Jacobian is [`LstmCell::jacobian`].
//!
//! | symbol | shape |
//! | --- | --- |
//! | x | `[b, t, d_in]` |
//! | i, f, g, o | `[b, t, n]` (`n` = `hidden`) |
//! | h, c (state) | `[b, layers, n]` |

use burn::module::Module;
use burn::tensor::{Tensor, activation};
use rand::RngExt;
use serde::{Deserialize, Serialize};

use crate::error::require;
use crate::kernels;
use crate::nn::{Linear, log_sigmoid};
use crate::system::scan::unbind;
use crate::system::{
    Cost, Form, Gate, Lengths, Mixer, Run, Spectrum, SpectrumKind, State, System, Views, fresh,
};
use crate::{Error, Init, Result};

const NAME: &str = "lstm";

/// Sizes and switches of [`Lstm`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LstmConfig {
    /// Units `n` of a layer; `None` for `d_model`.
    pub hidden: Option<usize>,
    /// Layers on top of each other.
    pub layers: usize,
    /// Both biases `b` and `b'`.
    pub bias: bool,
    /// Start of the forget gate's total bias; `None` to draw it like the others.
    pub forget_bias: Option<f64>,
    /// A linear map from `hidden` to `d_model` even where the two are equal; otherwise it is always there.
    pub out_proj: bool,
}

impl Default for LstmConfig {
    fn default() -> Self {
        Self { hidden: None, layers: 1, bias: true, forget_bias: Some(1.0), out_proj: false }
    }
}

impl LstmConfig {
    /// Checks the values and draws the parameters for width `d_model`.
    ///
    /// # Errors
    /// For zero sizes, or a forget bias where there is no bias.
    pub fn init(&self, d_model: usize, init: &mut Init) -> Result<Lstm> {
        require(d_model > 0, NAME, "d_model", d_model, "must be positive")?;
        let hidden = self.hidden.unwrap_or(d_model);
        let stack = LstmStackConfig {
            input: d_model,
            hidden,
            layers: self.layers,
            bias: self.bias,
            forget_bias: self.forget_bias,
            bidirectional: false,
        };
        let stack = stack.init(init)?;
        let out_proj = (self.out_proj || hidden != d_model).then(|| init.linear(hidden, d_model));
        Ok(Lstm { stack, out_proj, d_model })
    }
}

/// The mixer: a causal stack and, where widths differ, an output map. Built by [`LstmConfig::init`].
#[derive(Module, Debug)]
pub struct Lstm {
    /// The layers
    pub stack: LstmStack,
    /// `[n, d]`
    pub out_proj: Option<Linear>,
    #[module(skip)]
    d_model: usize,
}

/// Sizes and switches of [`LstmStack`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LstmStackConfig {
    /// Channels of the input.
    pub input: usize,
    /// Units of a layer and direction.
    pub hidden: usize,
    /// Layers on top of each other.
    pub layers: usize,
    /// Both biases `b` and `b'`.
    pub bias: bool,
    /// Start of the forget gate's total bias; `None` to draw it like the others.
    pub forget_bias: Option<f64>,
    /// A second set of cells reads from the end; outputs are concatenated. Not causal.
    pub bidirectional: bool,
}

impl LstmStackConfig {
    /// Checks the values and draws the parameters: uniform in `±1/√hidden`.
    ///
    /// # Errors
    /// For zero sizes, or a forget bias where there is no bias.
    pub fn init(&self, init: &mut Init) -> Result<LstmStack> {
        require(self.input > 0, NAME, "input", self.input, "must be positive")?;
        require(self.hidden > 0, NAME, "hidden", self.hidden, "must be positive")?;
        require(self.layers > 0, NAME, "layers", self.layers, "must be positive")?;
        if let Some(bias) = self.forget_bias.filter(|_| !self.bias) {
            return Err(Error::config(NAME, "forget_bias", bias, "needs `bias` = true; or set it to null"));
        }
        let directions = if self.bidirectional { 2 } else { 1 };
        let width = |layer: usize| if layer == 0 { self.input } else { directions * self.hidden };
        let cells = (0..self.layers * directions)
            .map(|i| LstmCell::new(width(i / directions), self.hidden, self.bias, self.forget_bias, init))
            .collect();
        Ok(LstmStack { cells, bidirectional: self.bidirectional })
    }
}

/// Layers of cells, causal or bidirectional. Built by [`LstmStackConfig::init`].
#[derive(Module, Debug)]
pub struct LstmStack {
    /// Layer by layer; with two directions, the forward one first
    pub cells: Vec<LstmCell>,
    #[module(skip)]
    bidirectional: bool,
}

/// One layer in one direction.
#[derive(Module, Debug)]
pub struct LstmCell {
    /// `W, b: [d_in, 4 n]`, blocks i, f, g, o
    pub input: Linear,
    /// `U, b': [n, 4 n]`, blocks i, f, g, o
    pub recurrent: Linear,
}

/// Blocks of one step of [`LstmCell`] as derivatives: `[b, n, n]`, row = output unit, column = input unit.
#[derive(Clone, Debug)]
pub struct LstmJacobian {
    /// `∂h_t/∂h_{t-1}`
    pub dh_dh: Tensor<3>,
    /// `∂h_t/∂c_{t-1}`
    pub dh_dc: Tensor<3>,
    /// `∂c_t/∂h_{t-1}`
    pub dc_dh: Tensor<3>,
    /// `∂c_t/∂c_{t-1}`, which is `Λ_t`
    pub dc_dc: Tensor<3>,
}

/// What a cell did, step by step.
struct Trace {
    /// Gates before their activations `[b, 1, 4 n]`.
    gates: Vec<Tensor<3>>,
    /// `h_t: [b, 1, n]`
    h: Vec<Tensor<3>>,
    /// `c_t: [b, 1, n]`
    c: Vec<Tensor<3>>,
}

impl LstmCell {
    fn new(input: usize, hidden: usize, bias: bool, forget_bias: Option<f64>, init: &mut Init) -> Self {
        let bound = 1.0 / (hidden as f64).sqrt();
        let mut map = |inputs: usize, forget: Option<f64>| Linear {
            weight: init.uniform([inputs, 4 * hidden], -bound, bound),
            bias: bias.then(|| {
                let mut unit = 0..4 * hidden;
                init.draw([4 * hidden], |rng| {
                    let drawn = bound * (2.0 * rng.random::<f64>() - 1.0);
                    let forgets = unit.next().is_some_and(|unit| unit / hidden == 1);
                    forget.filter(|_| forgets).unwrap_or(drawn) as f32
                })
            }),
        };
        let (input, recurrent) = (map(input, forget_bias), map(hidden, forget_bias.map(|_| 0.0)));
        Self { input, recurrent }
    }

    /// Units `n`.
    pub fn hidden(&self) -> usize {
        self.recurrent.weight.dims()[0]
    }

    /// What the gates get from the inputs, `[b, t, 4 n]`.
    fn inputs(&self, x: Tensor<3>) -> Tensor<3> {
        self.input.forward_onto(x, self.recurrent.bias.as_ref())
    }

    /// Outputs and the last `h` and `c`, as [`run`](Self::run) finds them, by a kernel where there is one and it is
    /// wanted.
    #[cfg_attr(
        not(any(feature = "flex", feature = "cube")),
        allow(unused_variables, reason = "there are no kernels without a backend")
    )]
    fn read(
        &self,
        x: Tensor<3>,
        [h, c]: [Tensor<3>; 2],
        lengths: Option<&Lengths>,
        backward: bool,
        kernel: bool,
    ) -> [Tensor<3>; 3] {
        #[cfg(any(feature = "flex", feature = "cube"))]
        if kernel {
            let (inputs, bias) = self.input.forward_apart(x.clone(), self.recurrent.bias.as_ref());
            let weight = self.recurrent.weight.val();
            if kernels::lstm::applies(&inputs, &weight, &h, &c) {
                let last = if backward { 0 } else { x.dims()[1] - 1 };
                let [h, c] = kernels::lstm::run(inputs, weight, [h, c], bias, lengths, backward);
                return [h.clone(), h.narrow(1, last, 1), c.narrow(1, last, 1)];
            }
        }
        let (trace, last_h, last_c) = self.run(x, h, c, lengths, backward);
        [Tensor::cat(trace.h, 1), last_h, last_c]
    }

    /// Reads `x: [b, t, d_in]` from `h`, `c`: `[b, 1, n]`, from the end if `backward`. Steps stand in the trace in
    /// the order of time.
    fn run(
        &self,
        x: Tensor<3>,
        mut h: Tensor<3>,
        mut c: Tensor<3>,
        lengths: Option<&Lengths>,
        backward: bool,
    ) -> (Trace, Tensor<3>, Tensor<3>) {
        let time = x.dims()[1];
        let valid = lengths.map(|lengths| {
            let valid = lengths.valid(time, &x.device(), x.dtype());
            unbind(valid.unsqueeze_dim::<3>(2), 1)
        });
        let inputs = unbind(self.inputs(x), 1);
        let weight = self.recurrent.weight.val().unsqueeze::<3>();
        let mut trace = Trace { gates: Vec::new(), h: Vec::new(), c: Vec::new() };
        for step in 0..time {
            // Reading from the end, padding comes first and is skipped like any padding.
            let t = if backward { time - 1 - step } else { step };
            let gates = inputs[t].clone() + h.clone().matmul(weight.clone());
            let (mut next_h, mut next_c) = update(gates.clone(), c.clone());
            if let Some(valid) = &valid {
                let keep = |new: Tensor<3>, old: Tensor<3>| {
                    new * valid[t].clone() + old * valid[t].clone().neg().add_scalar(1.0)
                };
                (next_h, next_c) = (keep(next_h, h), keep(next_c, c));
            }
            (h, c) = (next_h, next_c);
            trace.gates.push(gates);
            trace.h.push(h.clone());
            trace.c.push(c.clone());
        }
        if backward {
            trace.gates.reverse();
            trace.h.reverse();
            trace.c.reverse();
        }
        (trace, h, c)
    }

    /// The exact Jacobian of one step (dsf.md 5): reads `x: [b, d_in]` from `h`, `c`: `[b, n]`. For a whole
    /// trajectory, put its tokens on the batch axis.
    pub fn jacobian(&self, x: Tensor<2>, h: Tensor<2>, c: Tensor<2>) -> LstmJacobian {
        let n = self.hidden();
        let gates = self.input.forward(x) + self.recurrent.forward(h);
        let block = |k: usize| gates.clone().narrow(1, k * n, n);
        let [i, f, o] = [0, 1, 3].map(|k| activation::sigmoid(block(k)));
        let g = block(2).tanh();
        let tanh_c = (f.clone() * c.clone() + i.clone() * g.clone()).tanh();
        // σ' and tanh' from their values.
        let sigmoid_slope = |s: &Tensor<2>| s.clone() * s.clone().neg().add_scalar(1.0);
        let tanh_slope = |s: &Tensor<2>| s.clone().square().neg().add_scalar(1.0);
        // D[scale] U_k
        let weight = self.recurrent.weight.val();
        let through = |k: usize, scale: Tensor<2>| {
            let u = weight.clone().narrow(1, k * n, n).transpose().unsqueeze::<3>();
            scale.unsqueeze_dim::<3>(2) * u
        };
        let eye = Tensor::<2>::eye(n, &weight.device().inner()).cast(weight.dtype()).unsqueeze::<3>();
        let diagonal = |scale: Tensor<2>| scale.unsqueeze_dim::<3>(2) * eye.clone();
        let dc_dh = through(1, c * sigmoid_slope(&f))
            + through(0, g.clone() * sigmoid_slope(&i))
            + through(2, i * tanh_slope(&g));
        let out = o.clone() * tanh_slope(&tanh_c);
        LstmJacobian {
            dh_dh: through(3, tanh_c * sigmoid_slope(&o)) + out.clone().unsqueeze_dim::<3>(2) * dc_dh.clone(),
            dh_dc: diagonal(out * f.clone()),
            dc_dh,
            dc_dc: diagonal(f),
        }
    }
}

/// `(h_t, c_t)` from the gates before their activations `[b, 1, 4 n]` and `c_{t-1}`.
fn update(gates: Tensor<3>, c: Tensor<3>) -> (Tensor<3>, Tensor<3>) {
    let n = c.dims()[2];
    let block = |k: usize| gates.clone().narrow(2, k * n, n);
    let [i, f, o] = [0, 1, 3].map(|k| activation::sigmoid(block(k)));
    let c = f * c + i * block(2).tanh();
    (o * c.clone().tanh(), c)
}

impl LstmStack {
    /// Zeros for `h` and `c`: `[b, layers · directions, n]`.
    pub fn initial_state(&self, batch: usize) -> (Tensor<3>, Tensor<3>) {
        let weight = self.cells[0].recurrent.weight.val();
        let shape = [batch, self.cells.len(), self.cells[0].hidden()];
        let zeros = fresh(shape, &weight);
        (zeros.clone(), zeros)
    }

    /// Reads `x: [b, t, input]` from `h`, `c`: `[b, layers · directions, n]`, layer by layer and forward before
    /// backward. Gives `y: [b, t, directions · n]` and the final `h` and `c`. With `lengths`, padding on the right
    /// changes nothing.
    ///
    /// # Errors
    /// When the states do not fit.
    pub fn forward(
        &self,
        x: Tensor<3>,
        h: Tensor<3>,
        c: Tensor<3>,
        lengths: Option<&Lengths>,
    ) -> Result<(Tensor<3>, Tensor<3>, Tensor<3>)> {
        self.read(x, [h, c], lengths, kernels::enabled())
    }

    fn read(
        &self,
        x: Tensor<3>,
        starts: [Tensor<3>; 2],
        lengths: Option<&Lengths>,
        kernel: bool,
    ) -> Result<(Tensor<3>, Tensor<3>, Tensor<3>)> {
        self.stacked(x, starts, |cell, x, starts, backward| cell.read(x, starts, lengths, backward, kernel))
    }

    /// What every cell did, and what came of it.
    fn trace(&self, x: Tensor<3>, starts: [Tensor<3>; 2]) -> Result<Vec<Trace>> {
        let mut traces = Vec::new();
        self.stacked(x, starts, |cell, x, [h, c], backward| {
            let (trace, h, c) = cell.run(x, h, c, None, backward);
            let y = Tensor::cat(trace.h.clone(), 1);
            traces.push(trace);
            [y, h, c]
        })?;
        Ok(traces)
    }

    /// Has every cell `read` the outputs of the layer below, from its `h` and `c`, which gives its outputs and its last
    /// `h` and `c`.
    fn stacked(
        &self,
        x: Tensor<3>,
        [h, c]: [Tensor<3>; 2],
        mut read: impl FnMut(&LstmCell, Tensor<3>, [Tensor<3>; 2], bool) -> [Tensor<3>; 3],
    ) -> Result<(Tensor<3>, Tensor<3>, Tensor<3>)> {
        let expected = [x.dims()[0], self.cells.len(), self.cells[0].hidden()];
        for (name, state) in [("h", &h), ("c", &c)] {
            if state.dims() != expected {
                return Err(Error::shape(
                    format!("LSTM state {name}"),
                    format!("{expected:?}"),
                    &state.dims(),
                ));
            }
        }
        let (directions, time) = (if self.bidirectional { 2 } else { 1 }, x.dims()[1]);
        let (mut y, mut ends_h, mut ends_c) = (x, Vec::new(), Vec::new());
        let mut starts = unbind(h, 1).into_iter().zip(unbind(c, 1));
        for layer in self.cells.chunks(directions) {
            let mut outputs = Vec::new();
            for (direction, (cell, (h, c))) in layer.iter().zip(starts.by_ref()).enumerate() {
                let [output, h, c] = read(cell, y.clone(), [h, c], direction == 1);
                outputs.push(output);
                ends_h.push(h);
                ends_c.push(c);
            }
            y = if outputs.len() == 1 { outputs.remove(0) } else { Tensor::cat(outputs, 2) };
        }
        let ends = [ends_h, ends_c].map(|ends| match ends.len() {
            // One token's are not part of a long sequence that a state should not hold.
            1 if time == 1 => ends[0].clone(),
            _ => Tensor::cat(ends, 1),
        });
        let [h, c] = ends;
        Ok((y, h, c))
    }
}

impl Mixer for Lstm {
    fn d_model(&self) -> usize {
        self.d_model
    }

    fn initial_state(&self, batch: usize) -> State {
        let (h, c) = self.stack.initial_state(batch);
        State::new(batch).with("h", h).with("c", c)
    }

    fn run(&self, x: Tensor<3>, mut state: State, run: Run<'_>) -> Result<(Tensor<3>, State)> {
        let kernel = kernels::enabled() && matches!(run.form, Form::Auto | Form::Chunked { .. });
        let (y, h, c) = self.stack.read(x, [state.get("h")?, state.get("c")?], run.lengths, kernel)?;
        state.put("h", h);
        state.put("c", c);
        Ok((if let Some(map) = &self.out_proj { map.forward(y) } else { y }, state))
    }

    /// Views of the frozen system `c_t = f_t ∘ c_{t-1} + i_t ∘ g_t`; each layer stands as a head. The implied
    /// attention is that of the cells, `M_ij = mean over units of f_i … f_{j+1}`.
    fn views(&self, x: Tensor<3>, state: State) -> Result<Views> {
        self.check(&x, &state)?;
        let traces = self.stack.trace(x, [state.get("h")?, state.get("c")?])?;
        let n = self.stack.cells[0].hidden();
        let layers = traces.len();
        let (mut gates, mut log_f, mut written, mut cells) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (layer, trace) in traces.into_iter().enumerate() {
            let raw = Tensor::cat(trace.gates, 1);
            let block = |k: usize| raw.clone().narrow(2, k * n, n);
            let place = if layers == 1 { String::new() } else { format!(", layer {}", layer + 1) };
            let [i, f, o] = [0, 1, 3].map(|k| activation::sigmoid(block(k)));
            let g = block(2).tanh();
            log_f.push(log_sigmoid(block(1)).unsqueeze_dim::<4>(1));
            written.push((i.clone() * g.clone()).unsqueeze_dim::<4>(1));
            cells.push(Tensor::cat(trace.c, 1).unsqueeze_dim::<4>(1));
            for (name, values) in
                [("i (input)", i), ("f (forget)", f), ("g (candidate)", g), ("o (output)", o)]
            {
                gates.push(Gate { name: format!("{name}{place}"), values });
            }
        }
        let cat = |parts| Tensor::cat(parts, 1);
        let views = Views::of_system(System::direct(cat(log_f), cat(written)))?;
        Ok(Views {
            spectrum: views.spectrum.map(|s| Spectrum { kind: SpectrumKind::Frozen, ..s }),
            gates,
            memory_norm: Some(cat(cells).square().sum_dim(3).sqrt().squeeze_dim(3)),
            ..views
        })
    }

    fn cost(&self, batch: usize, time: usize, _form: Form) -> Cost {
        // Every weight is used once per token; about ten operations per unit for the gates.
        let units: usize = self.stack.cells.iter().map(LstmCell::hidden).sum();
        Cost::of(self, (2 * self.num_params() + 10 * units) as f64, batch, time)
    }
}

#[cfg(test)]
#[path = "lstm_tests.rs"]
mod tests;
