//! Miras (Behrouz et al., arXiv 2504.13173): a memory that is trained while it reads, by four choices.
//!
//! ```text
//! q, k = l2norm(rope(silu(conv(W x)))),  v = silu(conv(W_v x))
//! α = sigmoid(z_α)                 retention          z = W_up (W_down x) + b per gate
//! η = η_base sigmoid(z_η)          learning rate
//! μ = sigmoid(z_μ)                 momentum, if any
//! δ = softplus(z_δ) + 10⁻³         threshold of the loss, if any
//! A_t = α_t A_{t-1} - η_t ∇ℓ(W_c; k_t, v_t),   y_t = M(q_t; Φ(A_t))
//! out = W_o (rmsnorm(y) ∘ silu(W_g x))
//! ```
//!
//! The memory `M` ([`MemoryConfig`]), the loss `ℓ` ([`super::Bias`]), the retention `α`, `Φ` ([`super::Retention`])
//! and the algorithm ([`super::Algorithm`]) are chosen apart; each is described in its own file. `W_c` is the
//! memory at the last position that is a multiple of `chunk`. The paper's models are presets, named by
//! [`super::presets`].
//!
//! | symbol | shape |
//! | --- | --- |
//! | q, k, v, y, r, u | `[b, h, t, n]` (`n` = `head_dim`) |
//! | α, η, μ | `[b, h, t, w]`, `w` by [`super::GateAxis`] |
//! | δ | `[b, h, t, 1]` |
//! | A, S, W_c | one `[b, h, rows, cols]` per matrix of the memory |

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use super::algorithm::{LeastSquares, Moments, Solver, implicit};
use super::config::{DELTA_MIN, MirasConfig, ReadAt};
use super::gates::Gates;
use super::inner::{Clock, Fast, Rule, Tokens, chunk_wise, recurrent};
use super::layer::{GateMap, MirasLayer};
use super::memory::{FlatMemory, Memory, OutputGradient};
use super::retention::{Map, Reads};
use super::{Algorithm, Bias};
use crate::nn::softplus;
use crate::system::{Cost, Form, Mixer, Run, State, Views, fresh};
use crate::{Error, Result};

pub(super) const NAME: &str = "miras";

/// The memory and how it is run.
#[derive(Module, Debug)]
pub enum Learner {
    /// Gradient descent on any memory
    Descent(Memory),
    /// Implicit steps of a matrix
    Implicit(FlatMemory),
    /// Least squares on everything seen; starts empty
    LeastSquares(LeastSquares),
}

/// The layer; see the module's equations. Built by [`MirasConfig::init`] and by the presets.
#[derive(Module, Debug)]
pub struct Miras {
    /// All around the memory
    pub layer: MirasLayer,
    /// `z_α`, `z_η` and `z_μ`
    pub gates: Gates,
    /// `z_δ`, where the loss has a threshold
    pub delta: Option<GateMap>,
    /// What is trained while reading
    pub memory: Learner,
    /// Logarithm of the sum of a row per matrix, `[h]`; on the simplex only
    pub log_sums: Vec<Param<Tensor<1>>>,
    #[module(skip)]
    eta_base: f64,
    #[module(skip)]
    pub(super) config: MirasConfig,
    #[module(skip)]
    d_model: usize,
}

/// Slot of a matrix at the chunk's start.
pub(super) fn anchor_slot(name: &str) -> String {
    format!("{name}_chunk_start")
}

/// Slot of a matrix's momentum.
fn momentum_slot(name: &str) -> String {
    format!("{name}_momentum")
}

/// Slots of the two moments of least squares.
const MOMENTS: [&str; 2] = ["keys", "values"];

impl Miras {
    #[allow(clippy::too_many_arguments, reason = "the fields, in their order")]
    pub(super) fn new(
        layer: MirasLayer,
        gates: Gates,
        delta: Option<GateMap>,
        memory: Learner,
        log_sums: Vec<Param<Tensor<1>>>,
        eta_base: f64,
        config: &MirasConfig,
        d_model: usize,
    ) -> Self {
        Self { layer, gates, delta, memory, log_sums, eta_base, config: config.clone(), d_model }
    }

    /// What the memory is given, with padding switched off; moves the convolutions' tails on.
    pub(super) fn tokens(&self, x: &Tensor<3>, state: &mut State, run: Run<'_>) -> Result<Tokens> {
        Ok(self.tokens_and_gate(x, state, run)?.0)
    }

    /// The same, and the output's gate.
    fn tokens_and_gate(&self, x: &Tensor<3>, state: &mut State, run: Run<'_>) -> Result<(Tokens, Tensor<3>)> {
        let ([q, k, v], gate) = self.layer.qkv(x, state, run)?;
        let [b, h, t, _] = k.dims();
        // In place of a threshold that there is not; from data, not of ones, which a graphics device would be told to make.
        let none =
            || Tensor::<4>::from_data([[[[1.0f32]]]], (&k.device().inner(), k.dtype())).expand([b, h, t, 1]);
        #[cfg(feature = "cube")]
        if run.lengths.is_none()
            && let threshold = self.delta.as_ref().map(|delta| (delta, DELTA_MIN))
            && let Some((step, delta)) = self.gates.on_graphics(x, self.eta_base, threshold)
        {
            let delta = delta.unwrap_or_else(none);
            return Ok((Tokens { q, k, v, delta, gates: vec![step], valid: None }, gate));
        }
        let gates = self.gates.forward(x, self.eta_base);
        let delta = match &self.delta {
            Some(delta) => softplus(delta.forward(x)).add_scalar(DELTA_MIN),
            None => none(),
        };
        let tokens = Tokens { q, k, v, delta, gates, valid: None };
        let tokens = match run.lengths {
            Some(lengths) => {
                let valid = lengths.valid(x.dims()[1], &x.device(), x.dtype());
                tokens.gate_padding(valid.unsqueeze_dim::<3>(1).unsqueeze_dim(3))
            }
            None => tokens,
        };
        Ok((tokens, gate))
    }

    /// `Φ` with its tensors.
    fn map(&self, memory: &Memory) -> Map {
        let sum = |log: &Param<Tensor<1>>| log.val().exp().reshape([1, self.config.heads, 1, 1]);
        Map::new(self.config.retention, &memory.initial(1), self.log_sums.iter().map(sum).collect())
    }

    /// The four choices, ready to run.
    pub(super) fn rule<'a>(&self, memory: &'a Memory, gradient: OutputGradient<'a>) -> Rule<'a> {
        let axes = self.config.gates.axes(self.config.memory);
        let (map, steps) = (self.map(memory), self.config.algorithm.steps());
        Rule { memory, gradient, bias: None, map, axes, steps, read: self.config.read }
    }

    /// Where the rows stand in their chunks.
    pub(super) fn clock(&self, state: &State, run: Run<'_>) -> Clock {
        let lengths = run.lengths.map(|lengths| lengths.0.as_slice());
        Clock::new(state.positions(), self.config.chunk, lengths).with_lag(self.config.lag_token)
    }

    /// Whether `W_c` differs from the running memory at every position.
    fn keeps_anchor(&self) -> bool {
        self.config.chunk > 1 || self.config.retention.restarts()
    }

    /// The fast weights in a state.
    pub(super) fn fast(&self, memory: &Memory, state: &State) -> Result<Fast> {
        let like = memory.initial(state.batch());
        let names = memory.names();
        let all = |slot: &dyn Fn(&str) -> String| -> Result<Vec<Tensor<4>>> {
            names.iter().zip(&like).map(|(name, like)| slot_like(state, &slot(name), like)).collect()
        };
        let running = all(&str::to_string)?;
        let anchor = if self.keeps_anchor() { all(&anchor_slot)? } else { running.clone() };
        let momentum = match self.config.algorithm {
            Algorithm::Momentum { .. } => all(&momentum_slot)?,
            _ => Vec::new(),
        };
        Ok(Fast { running, anchor, momentum })
    }

    fn put(&self, memory: &Memory, state: &mut State, fast: Fast) {
        let names = memory.names();
        for (name, running) in names.iter().zip(fast.running) {
            state.put(name, running);
        }
        if self.keeps_anchor() {
            for (name, anchor) in names.iter().zip(fast.anchor) {
                state.put(&anchor_slot(name), anchor);
            }
        }
        for (name, momentum) in names.iter().zip(fast.momentum) {
            state.put(&momentum_slot(name), momentum);
        }
    }

    /// `W` of the implicit memory in a state.
    pub(super) fn matrix(&self, memory: &FlatMemory, state: &State) -> Result<Tensor<4>> {
        let [h, rows, cols] = memory.w.dims();
        let w = state.get::<4>("w")?;
        expect_dims("w", &w, [state.batch(), h, rows, cols])?;
        Ok(w)
    }

    /// The moments of least squares in a state.
    pub(super) fn moments(&self, memory: &LeastSquares, state: &State) -> Result<Moments> {
        let [h, n] = memory.ridge.dims();
        let get = |name: &str| {
            let moment = state.get::<4>(name)?;
            expect_dims(name, &moment, [state.batch(), h, n, n])?;
            Ok::<_, Error>(moment)
        };
        Ok(Moments { keys: get(MOMENTS[0])?, values: get(MOMENTS[1])? })
    }

    /// The conjugate gradients.
    pub(super) fn solver(&self) -> Solver {
        match self.config.algorithm {
            Algorithm::ConjugateGradient { iterations, eps } => Solver { iterations, eps },
            _ => Solver { iterations: 0, eps: 1.0 },
        }
    }

    /// The memory's outputs `[b, h, t, n]`; moves the memory in `state` on.
    fn learn(&self, tokens: Tokens, state: &mut State, run: Run<'_>) -> Result<Tensor<4>> {
        match &self.memory {
            Learner::Descent(memory) => {
                let (clock, bias) = (self.clock(state, run), self.config.bias);
                #[cfg_attr(
                    not(all(feature = "flex", feature = "cube")),
                    allow(unused_mut, reason = "see below")
                )]
                let mut fast = self.fast(memory, state)?;
                let gradient = |r, v, delta| Bias::gradient(bias, r, v, delta);
                let rule = Rule { bias: Some(bias), ..self.rule(memory, &gradient) };
                #[cfg(all(feature = "flex", feature = "cube"))]
                if run.form != Form::Recurrent
                    && let Some(y) = rule.on_graphics(&tokens, &mut fast, &clock)
                {
                    self.put(memory, state, fast);
                    return Ok(y);
                }
                // Gradients at every token's own weights make much of the last digit: one computation for all forms.
                let one_by_one = run.form == Form::Recurrent || tokens.len() == 1 || self.config.chunk == 1;
                let (y, fast) = match clock.phase() {
                    Some(phase) if !one_by_one => chunk_wise(&rule, tokens, fast, &clock, phase),
                    _ => recurrent(&rule, tokens, fast, &clock, |_| {}),
                };
                self.put(memory, state, fast);
                Ok(y)
            }
            Learner::Implicit(memory) => {
                let (y, w) = implicit(&tokens, self.matrix(memory, state)?, run.form)?;
                state.put("w", w);
                Ok(y)
            }
            Learner::LeastSquares(memory) => {
                let moments = self.moments(memory, state)?;
                let (y, moments) = self.solver().run(&tokens, &memory.lambda(), moments, run.form)?;
                state.put(MOMENTS[0], moments.keys);
                state.put(MOMENTS[1], moments.values);
                Ok(y)
            }
        }
    }
}

/// A state's slot, of the shape of another tensor.
fn slot_like(state: &State, name: &str, like: &Tensor<4>) -> Result<Tensor<4>> {
    let tensor = state.get::<4>(name)?;
    expect_dims(name, &tensor, like.dims())?;
    Ok(tensor)
}

fn expect_dims(name: &str, tensor: &Tensor<4>, dims: [usize; 4]) -> Result<()> {
    if tensor.dims() == dims {
        return Ok(());
    }
    Err(Error::shape(format!("state slot `{name}`"), format!("{dims:?}"), &tensor.dims()))
}

impl Mixer for Miras {
    fn d_model(&self) -> usize {
        self.d_model
    }

    /// The memory starts from its learned weights; least squares starts empty.
    fn initial_state(&self, batch: usize) -> State {
        let mut state = State::new(batch);
        match &self.memory {
            Learner::Descent(memory) => {
                let mut fast = self.map(memory).start(memory.initial(batch));
                if self.config.algorithm.momentum().is_some() {
                    fast.momentum = fast.running.iter().map(|a| fresh(a.dims(), a)).collect();
                }
                self.put(memory, &mut state, fast);
            }
            Learner::Implicit(memory) => {
                let start = Memory::Linear(memory.clone()).initial(batch);
                start.into_iter().for_each(|w| state.put("w", w));
            }
            Learner::LeastSquares(memory) => {
                let ([h, n], like) = (memory.ridge.dims(), memory.ridge.val());
                for name in MOMENTS {
                    state.put(name, Tensor::<4>::zeros([batch, h, n, n], (&like.device(), like.dtype())));
                }
            }
        }
        self.layer.initial_state(&mut state);
        state
    }

    /// `Recurrent` forms the memory after every token; every other form works on whole chunks of the model's
    /// own `chunk` tokens, except where rows stand at different places of their chunks (after ragged padding).
    /// The exact algorithms have no chunks and run in the form that is asked for.
    fn run(&self, x: Tensor<3>, mut state: State, run: Run<'_>) -> Result<(Tensor<3>, State)> {
        let (tokens, gate) = self.tokens_and_gate(&x, &mut state, run)?;
        let y = self.learn(tokens, &mut state, run)?;
        Ok((self.layer.readout(y, gate), state))
    }

    fn views(&self, x: Tensor<3>, state: State) -> Result<Views> {
        if !self.check(&x, &state)? {
            return Ok(Views::default());
        }
        self.look(&x, state)
    }

    fn cost(&self, batch: usize, time: usize, form: Form) -> Cost {
        let n = self.config.head_dim;
        let core = match &self.memory {
            Learner::Descent(memory) => {
                let chunks = form != Form::Recurrent && time > 1 && self.config.chunk > 1;
                // Where every token's matrix is formed, a chunk saves nothing.
                let boundary = self.config.read == ReadAt::Boundary;
                let products = boundary || self.map(memory).reads() == Reads::Linear;
                memory.flops((chunks && products).then_some(self.config.chunk.min(time)))
                    * self.config.algorithm.steps()
            }
            Learner::Implicit(_) => Cost::rank_one_core(n, n, time, form),
            Learner::LeastSquares(_) => {
                (1 + self.solver().iterations) * (Cost::decayed_core(n, n, time, form) + 12 * n)
            }
        };
        let gates = self.gates.flops() + self.delta.as_ref().map_or(0, GateMap::flops);
        let flops = self.layer.flops() + gates + self.config.heads * core;
        Cost::of(self, flops as f64, batch, time)
    }
}

#[cfg(test)]
#[path = "miras_tests.rs"]
mod tests;
