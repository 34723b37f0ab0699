//! The traits every architecture implements.

use std::fmt::Debug;

use burn::tensor::Tensor;

use super::scan::unbind;
use super::{Cost, Form, Lengths, MEMORY, Mask, State, System, Terms, Views, engine};
use crate::{Error, Result};

/// How one call is executed, as a mixer's own code sees it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Run<'a> {
    /// The requested form.
    pub form: Form,
    /// Real tokens per row where the batch is right-padded; `None` when all are real.
    pub lengths: Option<&'a Lengths>,
}

/// A causal sequence layer: sequence in and state in, sequence out and state out.
///
/// `x: [batch, time, d_model] -> y: [batch, time, d_model]`. The state may come from anywhere (a
/// previous call, a file, a learned start) and gradients flow through it, so a sequence can be split at
/// any point and continued: the result does not change.
///
/// ```
/// use burn::tensor::{Device, Distribution, Tensor};
/// use seqzoo_layers::{Init, delta::GatedDeltaNetConfig, system::{Form, Mixer}};
///
/// let device = Device::flex();
/// let layer = GatedDeltaNetConfig { heads: 2, ..Default::default() }.init(16, &mut Init::new(0, &device))?;
/// let x = Tensor::<3>::random([1, 10, 16], Distribution::Default, &device);
/// let (whole, _) = layer.forward(x.clone(), layer.initial_state(1), Form::Auto)?;
/// let (_, state) = layer.forward(x.clone().narrow(1, 0, 9), layer.initial_state(1), Form::Parallel)?;
/// let (last, _) = layer.step(x.narrow(1, 9, 1).squeeze_dim(1), state)?;
/// let gap = (whole.narrow(1, 9, 1).squeeze_dim::<2>(1) - last).abs().max().into_scalar::<f32>();
/// assert!(gap < 1e-5);
/// # Ok::<(), seqzoo_layers::Error>(())
/// ```
pub trait Mixer: Send + Debug {
    /// Width of input and output.
    fn d_model(&self) -> usize;

    /// The state before any token; differentiable where it is learned.
    fn initial_state(&self, batch: usize) -> State;

    /// The layer itself. `x` has at least one row and one token and the right width; padding is on the
    /// right; positions are advanced by the caller. Users call [`Mixer::forward`].
    fn run(&self, x: Tensor<3>, state: State, run: Run<'_>) -> Result<(Tensor<3>, State)>;

    /// What can be looked at while the layer reads `x` from `state`.
    fn views(&self, x: Tensor<3>, state: State) -> Result<Views>;

    /// What one forward call over `[batch, time]` tokens from the initial state costs.
    fn cost(&self, batch: usize, time: usize, form: Form) -> Cost;

    /// The numbers from which `x`, read from `state`, gets its implied attention, where that has a closed form.
    ///
    /// # Errors
    /// As [`Mixer::views`].
    fn terms(&self, _x: Tensor<3>, _state: State) -> Result<Option<Terms>> {
        Ok(None)
    }

    /// Loss the layer asks the training to add (a router's load balance), of shape `[1]`.
    fn auxiliary_loss(&self, _x: Tensor<3>) -> Result<Option<Tensor<1>>> {
        Ok(None)
    }

    /// Reads `x` from `state`.
    ///
    /// # Errors
    /// When shapes do not fit or the state belongs to another layer.
    fn forward(&self, x: Tensor<3>, state: State, form: Form) -> Result<(Tensor<3>, State)> {
        if !self.check(&x, &state)? {
            return Ok((x, state));
        }
        let time = x.dims()[1];
        let (y, mut state) = self.run(x, state, Run { form, lengths: None })?;
        let tokens = vec![time; state.batch()];
        state.advance(&tokens);
        Ok((y, state))
    }

    /// Reads `x` from `state`, skipping the tokens that `mask` marks as padding.
    fn forward_masked(
        &self,
        x: Tensor<3>,
        state: State,
        form: Form,
        mask: &Mask,
    ) -> Result<(Tensor<3>, State)> {
        if !self.check(&x, &state)? {
            return Ok((x, state));
        }
        let [b, t, _] = x.dims();
        if mask.dims() != [b, t] {
            return Err(Error::shape("padding mask", format!("[{b}, {t}]"), &mask.dims()));
        }
        let lengths = mask.lengths();
        let run = Run { form, lengths: Some(&lengths) };
        let (y, mut state) = self.run(mask.compact(x), state, run)?;
        state.advance(&lengths.0);
        Ok((mask.spread(y), state))
    }

    /// Reads one token: `x: [batch, d_model]`. The same numbers as [`Mixer::forward`] on it.
    fn step(&self, x: Tensor<2>, state: State) -> Result<(Tensor<2>, State)> {
        let (y, state) = self.forward(x.unsqueeze_dim(1), state, Form::Auto)?;
        Ok((y.squeeze_dim(1), state))
    }

    /// Checks the call's shapes; `false` when there is nothing to do.
    #[doc(hidden)]
    fn check(&self, x: &Tensor<3>, state: &State) -> Result<bool> {
        let [b, t, d] = x.dims();
        if d != self.d_model() {
            let expected = format!("[batch, time, {}]", self.d_model());
            return Err(Error::shape("mixer input", expected, &x.dims()));
        }
        if b != state.batch() {
            return Err(Error::State(format!(
                "it has {} rows, the input has {b}; use `initial_state({b})`, `select` or `repeat`",
                state.batch()
            )));
        }
        Ok(b > 0 && t > 0)
    }
}

/// A mixer that is linear in its state: says only how tokens become a [`System`] and how the core's
/// output becomes the layer's. Implements [`Mixer`] in all forms.
pub trait LinearMixer: Send + Debug {
    /// What [`LinearMixer::readout`] needs besides the core's output (output gates, for example).
    type Aux;

    /// Width of input and output.
    fn d_model(&self) -> usize;

    /// The state before any token; its slot [`MEMORY`] is `[b, h, n, p]` (`p` = 1 for [`super::Io::Direct`]).
    fn initial_state(&self, batch: usize) -> State;

    /// `(Λ, B, C, D)` on `x`. Updates the other slots of the state (convolution tails), not the memory.
    fn system(&self, x: Tensor<3>, state: &mut State, run: Run<'_>) -> Result<(System, Self::Aux)>;

    /// The core's output, `[b, h, t, p]`, and what else the readout needs; moves the whole state on. Overridden where a
    /// kernel makes the system as it goes.
    fn core(&self, x: Tensor<3>, state: &mut State, run: Run<'_>) -> Result<(Tensor<4>, Self::Aux)> {
        let (system, aux) = self.system(x, state, run)?;
        Ok((run_system(system, state, run)?, aux))
    }

    /// The layer's output from the core's: `y: [b, h, t, p] -> [b, t, d_model]`.
    fn readout(&self, y: Tensor<4>, aux: Self::Aux) -> Tensor<3>;

    /// What can be looked at; the memory in `state` is the one before the input. Overridden where the
    /// readout changes what a token sees of others (a normaliser), or to show gates.
    fn system_views(&self, system: System, _aux: Self::Aux, _state: &State) -> Result<Views> {
        Views::of_system(system)
    }

    /// What one forward call costs.
    fn cost(&self, batch: usize, time: usize, form: Form) -> Cost;
}

/// Runs the engine on the memory of `state`, which moves on.
pub(crate) fn run_system(system: System, state: &mut State, run: Run<'_>) -> Result<Tensor<4>> {
    let system = match run.lengths {
        Some(lengths) => system.gate_padding(lengths),
        None => system,
    };
    let (y, memory) = engine::run(system, state.get(MEMORY)?, run.form)?;
    state.put(MEMORY, memory);
    Ok(y)
}

impl<M: LinearMixer> Mixer for M {
    fn d_model(&self) -> usize {
        LinearMixer::d_model(self)
    }

    fn initial_state(&self, batch: usize) -> State {
        LinearMixer::initial_state(self, batch)
    }

    fn run(&self, x: Tensor<3>, mut state: State, run: Run<'_>) -> Result<(Tensor<3>, State)> {
        let (y, aux) = self.core(x, &mut state, run)?;
        Ok((self.readout(y, aux), state))
    }

    fn views(&self, x: Tensor<3>, mut state: State) -> Result<Views> {
        self.check(&x, &state)?;
        let (system, aux) = self.system(x, &mut state, Run::default())?;
        self.system_views(system.settled(), aux, &state)
    }

    fn terms(&self, x: Tensor<3>, mut state: State) -> Result<Option<Terms>> {
        self.check(&x, &state)?;
        Ok(Some(Terms::Linear(self.system(x, &mut state, Run::default())?.0.settled())))
    }

    fn cost(&self, batch: usize, time: usize, form: Form) -> Cost {
        LinearMixer::cost(self, batch, time, form)
    }
}

/// Runs a whole sequence through `step`, one token per call: the recurrent form of hand-written mixers.
///
/// `step` gets `[b, 1, d]` and must not advance positions; this function does so between tokens and
/// leaves the final count to the caller, like [`Mixer::run`].
pub fn token_by_token(
    x: Tensor<3>,
    mut state: State,
    run: Run<'_>,
    mut step: impl FnMut(Tensor<3>, State, Run<'_>) -> Result<(Tensor<3>, State)>,
) -> Result<(Tensor<3>, State)> {
    let start = state.positions().to_vec();
    let mut out = Vec::with_capacity(x.dims()[1]);
    for (t, x) in unbind(x, 1).into_iter().enumerate() {
        let real = |row: usize| run.lengths.is_none_or(|lengths| t < lengths.0[row]);
        let tokens: Vec<usize> = (0..state.batch()).map(|row| usize::from(real(row))).collect();
        let lengths = run.lengths.map(|_| Lengths(tokens.clone()));
        let (y, next) = step(x, state, Run { form: Form::Recurrent, lengths: lengths.as_ref() })?;
        state = next;
        state.advance(&tokens);
        out.push(y);
    }
    state.set_positions(start);
    Ok((Tensor::cat(out, 1), state))
}

/// A mixer whose heads can be weighed before they are merged, so that a router can wrap it (MoH).
pub trait HeadMixer: Mixer {
    /// Number of (query) heads.
    fn heads(&self) -> usize;

    /// Like [`Mixer::run`], but stops before the output projection: `[b, t, heads, p]`.
    fn run_heads(&self, x: Tensor<3>, state: State, run: Run<'_>) -> Result<(Tensor<4>, State)>;

    /// The output projection: `[b, t, heads, p] -> [b, t, d_model]`.
    fn merge_heads(&self, y: Tensor<4>) -> Tensor<3>;

    /// Norm of each head's query, `[b, t, heads]`: the parameter-free routing signal.
    fn query_norms(&self, x: Tensor<3>) -> Tensor<3>;
}
