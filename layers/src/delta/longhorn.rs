//! Longhorn (Liu et al., arXiv 2407.14207): the memory of each channel takes the exact, implicit step of an online
//! learner, `h_t = argmin |h - h_{t-1}|² + β_t (h·k_t - x_t)²`, whose decay follows from the key: no parameter sets it.
//!
//! ```text
//! (x, z) = W_in u,   x = silu(conv(x)),   (r, k, q) = W_x x,   β = sigmoid(W_dt r + bias)    per channel c
//! e = β / (1 + β |k|²)
//! exact:     h_t = (I - e_t k_t k_tᵀ) h_{t-1} + e_t x_t k_t
//! diagonal:  h_t = (1 - e_t k_t∘k_t)∘h_{t-1} + e_t x_t k_t            as released: an elementwise recurrence
//! y_t = h_t·q_t + D x_t,   out = W_out (y ∘ silu(z))
//! ```
//!
//! The exact step has the eigenvalues 1 and `1 - e |k|² = 1 / (1 + β |k|²)`: it contracts for any key, so keys need no
//! norm. `Λ` differs from channel to channel by `e`, so to the engine each of the `E` channels is a head with values of
//! size 1; queries and keys are shared. A kernel runs the diagonal update without making that system.
//!
//! | symbol | shape |
//! | --- | --- |
//! | x, z, β, e, y | `[b, t, E]` (`E` = `expand · d`) |
//! | k, q | `[b, t, n]` (`n` = `state`) |
//! | h | `[b, E, n, 1]` |

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::error::require;
#[cfg(any(feature = "flex", feature = "cube"))]
use crate::kernels;
use crate::nn::{
    Activation, CausalConv, CausalConvConfig, Ending, Gated, Linear, columns_of, gated_through, short_conv,
};
use crate::system::{Cost, Form, LinearMixer, MEMORY, Run, State, System, Transition, run_system};
use crate::{Init, Result};

const NAME: &str = "longhorn";
const CONV: &str = "conv";

/// How the memory is updated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LonghornUpdate {
    /// The diagonal of the exact transition, as released.
    #[default]
    Diagonal,
    /// The minimiser itself.
    Exact,
}

/// Sizes and switches of [`Longhorn`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LonghornConfig {
    /// Inner width `E` over `d_model`.
    pub expand: f64,
    /// State size `n` of a channel.
    pub state: usize,
    /// Width of `r`; `None` for `d_model / 16`, rounded up.
    pub rank: Option<usize>,
    /// Kernel width of the short convolution; 0 for none.
    pub conv_kernel: usize,
    /// Whether the convolution has a bias.
    pub conv_bias: bool,
    /// How the memory is updated.
    pub update: LonghornUpdate,
}

impl Default for LonghornConfig {
    fn default() -> Self {
        Self {
            expand: 2.0,
            state: 16,
            rank: None,
            conv_kernel: 4,
            conv_bias: true,
            update: LonghornUpdate::Diagonal,
        }
    }
}

impl LonghornConfig {
    /// Checks the values and draws the parameters for width `d_model`.
    ///
    /// # Errors
    /// For zero sizes.
    pub fn init(&self, d_model: usize, init: &mut Init) -> Result<Longhorn> {
        let n = self.state;
        require(d_model > 0, NAME, "d_model", d_model, "must be positive")?;
        let inner = (d_model as f64 * self.expand).round() as usize;
        let expected = "must be a number that leaves a positive inner width";
        require(inner > 0 && self.expand.is_finite(), NAME, "expand", self.expand, expected)?;
        require(n > 0, NAME, "state", n, "must be positive")?;
        let rank = self.rank.unwrap_or(d_model.div_ceil(16));
        require(rank > 0, NAME, "rank", rank, "must be positive")?;
        let conv = CausalConvConfig { kernel: self.conv_kernel, bias: self.conv_bias, ..Default::default() };
        Ok(Longhorn {
            in_proj: init.linear(d_model, 2 * inner),
            conv: conv.init_unless_empty(inner, init),
            x_proj: init.linear(inner, rank + 2 * n),
            dt_proj: init.linear_std(rank, inner, (1.0 / rank as f64).sqrt(), true),
            d: init.constant([inner], 1.0),
            out_proj: init.linear(inner, d_model),
            config: self.clone(),
            inner,
            rank,
            d_model,
        })
    }
}

/// The layer; see the module's equations. Built by [`LonghornConfig::init`].
#[derive(Module, Debug)]
pub struct Longhorn {
    /// `W_in: [d, 2 E]`, in the order `x, z`
    pub in_proj: Linear,
    /// Short convolution on `x`
    pub conv: Option<CausalConv>,
    /// `W_x: [E, rank + 2 n]`, in the order `r, k, q`
    pub x_proj: Linear,
    /// `W_dt: [rank, E]`, with a bias
    pub dt_proj: Linear,
    /// Feed-through `D: [E]`
    pub d: Param<Tensor<1>>,
    /// `W_out: [E, d]`
    pub out_proj: Linear,
    #[module(skip)]
    config: LonghornConfig,
    #[module(skip)]
    inner: usize,
    #[module(skip)]
    rank: usize,
    #[module(skip)]
    d_model: usize,
}

/// One learner per channel: `beta`, `x`: `[b, t, E]`, `q`, `k`: `[b, t, n]`.
pub fn longhorn_system(
    beta: Tensor<3>,
    q: Tensor<3>,
    k: Tensor<3>,
    x: Tensor<3>,
    update: LonghornUpdate,
) -> System {
    let ([b, t, n], inner) = (k.dims(), x.dims()[2]);
    let shared = |x: Tensor<3>| x.unsqueeze_dim::<4>(1).expand([b, inner, t, n]);
    let channel = |x: Tensor<3>| x.swap_dims(1, 2).unsqueeze_dim::<4>(3);
    let (beta, k, x) = (channel(beta), shared(k), channel(x));
    let squares = k.clone().square();
    let norm = squares.clone().sum_dim(3);
    let strength = beta.clone() / (beta.clone() * norm.clone()).add_scalar(1.0);
    let write = k.clone() * strength;
    let transition = match update {
        LonghornUpdate::Exact => {
            Transition::Householder { log_d: beta.zeros_like(), a: k, b: write.clone().neg() }
        }
        // 1 - e k² = (1 + β (|k|² - k²)) / (1 + β |k|²): both logarithms exist however close it is to 0.
        LonghornUpdate::Diagonal => {
            let others = (beta.clone() * (norm.clone() - squares)).log1p();
            Transition::Diagonal { log_a: others - (beta * norm).log1p() }
        }
    };
    System::outer(transition, shared(q), write, x)
}

impl LinearMixer for Longhorn {
    /// Gate `z` before its activation, `[b, t, E]`.
    type Aux = Tensor<3>;

    fn d_model(&self) -> usize {
        self.d_model
    }

    fn initial_state(&self, batch: usize) -> State {
        let like = self.d.val();
        let shape = [batch, self.inner, self.config.state, 1];
        let state = State::new(batch).with(MEMORY, Tensor::<4>::zeros(shape, (&like.device(), like.dtype())));
        match &self.conv {
            Some(conv) => state.with(CONV, conv.initial_state(batch)),
            None => state,
        }
    }

    fn system(&self, x: Tensor<3>, state: &mut State, run: Run<'_>) -> Result<(System, Tensor<3>)> {
        let (x, z) = self.tokens(x, state, run)?;
        let address = self.x_proj.forward(x.clone());
        Ok((self.system_of(self.learners(x, address)), z))
    }

    fn core(&self, x: Tensor<3>, state: &mut State, run: Run<'_>) -> Result<(Tensor<4>, Tensor<3>)> {
        let (x, z) = self.tokens(x, state, run)?;
        let address = self.x_proj.forward(x.clone());
        #[cfg(any(feature = "flex", feature = "cube"))]
        if let Some(y) = self.learn(&x, &address, state, run)? {
            return Ok((y, z));
        }
        Ok((run_system(self.system_of(self.learners(x, address)), state, run)?, z))
    }

    fn readout(&self, y: Tensor<4>, z: Tensor<3>) -> Tensor<3> {
        gated_through(y, Gated::new(z, Activation::Silu), &self.out_proj)
    }

    fn cost(&self, batch: usize, time: usize, form: Form) -> Cost {
        let n = self.config.state;
        let maps = self.num_params() - self.d.num_params();
        let core = match self.config.update {
            LonghornUpdate::Diagonal => Cost::decayed_core(n, 1, time, form),
            LonghornUpdate::Exact => Cost::rank_one_core(n, 1, time, form),
        };
        Cost::of(self, (2 * maps + self.inner * core) as f64, batch, time)
    }
}

/// What the learners are given: `beta`, `x`: `[b, t, E]`, `q`, `k`: `[b, t, n]`.
struct Learners {
    beta: Tensor<3>,
    q: Tensor<3>,
    k: Tensor<3>,
    x: Tensor<3>,
}

impl Longhorn {
    /// `x` and the gate `z`, `[b, t, E]` each.
    fn tokens(&self, x: Tensor<3>, state: &mut State, run: Run<'_>) -> Result<(Tensor<3>, Tensor<3>)> {
        let [x, z] = self.in_proj.forward_parts(x, [self.inner; 2]);
        Ok((short_conv(CONV, &self.conv, x, state, run)?, z))
    }

    fn learners(&self, x: Tensor<3>, address: Tensor<3>) -> Learners {
        let [r, k, q] = columns_of(&address, [self.rank, self.config.state, self.config.state]);
        let beta = self.dt_proj.then(Ending::Activation(Activation::Sigmoid)).forward(r);
        Learners { beta, q, k, x }
    }

    fn system_of(&self, Learners { beta, q, k, x }: Learners) -> System {
        let skip = self.d.val().reshape([1, self.inner, 1, 1]);
        longhorn_system(beta, q, k, x, self.config.update).with_skip(skip)
    }

    /// `[b, E, t, 1]` from a kernel that needs no system, where there is one: of the diagonal update.
    #[cfg(any(feature = "flex", feature = "cube"))]
    fn learn(
        &self,
        x: &Tensor<3>,
        address: &Tensor<3>,
        state: &mut State,
        run: Run<'_>,
    ) -> Result<Option<Tensor<4>>> {
        let form = matches!(run.form, Form::Auto | Form::Chunked { .. });
        let diagonal = self.config.update == LonghornUpdate::Diagonal;
        if !(kernels::enabled() && form && diagonal) {
            return Ok(None);
        }
        let found = self.learned(x.clone(), address.clone(), state.get(MEMORY)?, run.lengths);
        Ok(found.map(|(y, last)| {
            state.put(MEMORY, last);
            y.unsqueeze_dim::<4>(3).swap_dims(1, 2)
        }))
    }

    /// `[b, t, E]` and the memory after them.
    #[cfg(any(feature = "flex", feature = "cube"))]
    fn learned(
        &self,
        x: Tensor<3>,
        address: Tensor<3>,
        memory: Tensor<4>,
        lengths: Option<&crate::system::Lengths>,
    ) -> Option<(Tensor<3>, Tensor<4>)> {
        let d = self.d.val();
        #[cfg(feature = "cube")]
        if kernels::linear::on_graphics(&x) && lengths.is_none() {
            let [r] = columns_of(&address, [self.rank]);
            let (rates, bias) = self.dt_proj.forward_apart(r, None);
            return kernels::columns::Packed { rates, bias, address, first: self.rank, x, memory, d }.run();
        }
        #[cfg(feature = "flex")]
        if kernels::columns::runs_on(&x) {
            let Learners { beta, q, k, x } = self.learners(x, address);
            let beta = match lengths {
                // Who learns at rate 0 forgets nothing and writes nothing.
                Some(lengths) => {
                    beta * lengths.valid(x.dims()[1], &x.device(), x.dtype()).unsqueeze_dim::<3>(2)
                }
                None => beta,
            };
            let [rates, q, k, x] = [beta, q, k, x].map(|x| x.unsqueeze_dim::<4>(1));
            let memory = memory.swap_dims(2, 3).swap_dims(1, 2); // [b, 1, E, n]
            let rule = kernels::columns::Rule::Learner;
            let columns = kernels::columns::Inputs { rule, rates, x, q, k, memory, d: Some(d) };
            let (y, last) = columns.run()?;
            return Some((y.squeeze_dim(1), last.swap_dims(1, 2).swap_dims(2, 3)));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::system::{Io, Mixer, Views, engine};
    use crate::testing::{Draw, gap, numbers};

    /// Random learners: rates, queries, keys, targets.
    fn inputs(n: usize) -> [Tensor<3>; 4] {
        let mut draw = Draw::new(n as u64);
        [
            draw.tensor([2, 9, 3], 0.0, 1.0),
            draw.tensor([2, 9, n], -2.0, 2.0),
            draw.tensor([2, 9, n], -2.0, 2.0),
            draw.tensor([2, 9, 3], -2.0, 2.0),
        ]
    }

    /// At the minimum of `|h - h₀|² + β (h·k - x)²` the gradient `(h - h₀) + β (h·k - x) k` is 0.
    #[test]
    fn the_exact_step_is_the_minimiser() {
        let [beta, q, k, x] = inputs(4);
        let first = |x: Tensor<3>| x.narrow(1, 0, 1);
        let system = longhorn_system(
            first(beta.clone()),
            first(q),
            first(k.clone()),
            first(x.clone()),
            LonghornUpdate::Exact,
        );
        let before = Draw::new(1).tensor::<4>([2, 3, 4, 1], -1.0, 1.0);
        let (_, after) = engine::run(system, before.clone(), Form::Recurrent).unwrap();
        let column = |x: Tensor<3>| first(x).swap_dims(1, 2).unsqueeze_dim::<4>(3); // [b, E, 1, 1]
        let key = first(k).swap_dims(1, 2).unsqueeze_dim::<4>(1); // [b, 1, n, 1]
        let miss = (after.clone() * key.clone()).sum_dim(2) - column(x);
        let gradient = (after - before) + miss * column(beta) * key;
        assert!(numbers(gradient).iter().all(|slope| slope.abs() < 1e-5));
    }

    #[test]
    fn the_exact_step_contracts_for_any_key() {
        let [beta, q, k, x] = inputs(4);
        let (k, exact) = (k.mul_scalar(100.0), LonghornUpdate::Exact);
        let spectrum = |update| {
            let system = longhorn_system(beta.clone(), q.clone(), k.clone(), x.clone(), update);
            numbers(Views::of_system(system).unwrap().spectrum.unwrap().re)
        };
        let norm = k.clone().square().sum_dim(2);
        let least = numbers((beta.clone() * norm + 1.0).recip().swap_dims(1, 2));
        for (found, least) in spectrum(exact).chunks(2).zip(least) {
            assert!((found[0] - 1.0).abs() < 1e-6 && (found[1] - least).abs() < 1e-5, "{found:?} {least}");
        }
        assert!(spectrum(LonghornUpdate::Diagonal).iter().all(|value| (0.0..=1.0).contains(value)));
    }

    #[test]
    fn with_one_number_per_channel_both_updates_are_the_same() {
        let [beta, q, k, x] = inputs(1);
        let run = |update, form| {
            let system = longhorn_system(beta.clone(), q.clone(), k.clone(), x.clone(), update);
            engine::run(system, Tensor::ones([2, 3, 1, 1], &Device::flex()), form).unwrap().0
        };
        let diagonal = run(LonghornUpdate::Diagonal, Form::Chunked { size: 4 });
        assert!(gap(run(LonghornUpdate::Exact, Form::Recurrent), diagonal) < 1e-5);
    }

    /// The diagonal update is the released one: its decay is the diagonal of the exact transition.
    #[test]
    fn the_diagonal_is_that_of_the_exact_transition() {
        let [beta, q, k, x] = inputs(4);
        let exact = longhorn_system(beta.clone(), q.clone(), k.clone(), x.clone(), LonghornUpdate::Exact);
        let Transition::Householder { a, b, .. } = exact.transition else { panic!("rank one") };
        let diagonal = longhorn_system(beta, q, k, x, LonghornUpdate::Diagonal);
        let Transition::Diagonal { log_a } = diagonal.transition else { panic!("diagonal") };
        assert!(numbers(log_a.clone()).iter().all(|&log| log <= 0.0));
        assert!(gap(log_a.exp(), a * b + 1.0) < 1e-5);
        let (Io::Outer { k: one, .. }, Io::Outer { k: other, .. }) = (exact.io, diagonal.io) else {
            panic!("outer products")
        };
        assert!(gap(one, other) < 1e-7);
    }

    #[test]
    fn impossible_settings_are_refused() {
        let refused = |config: LonghornConfig, field: &str| {
            let error = config.init(8, &mut Init::new(0, &Device::flex())).unwrap_err().to_string();
            assert!(error.contains(&format!("`{field}`")), "{error}");
        };
        let ok = LonghornConfig::default();
        refused(LonghornConfig { expand: f64::NAN, ..ok.clone() }, "expand");
        refused(LonghornConfig { expand: 0.0, ..ok.clone() }, "expand");
        refused(LonghornConfig { state: 0, ..ok.clone() }, "state");
        refused(LonghornConfig { rank: Some(0), ..ok.clone() }, "rank");
        let layer = ok.init(8, &mut Init::new(0, &Device::flex())).unwrap();
        assert_eq!(Mixer::initial_state(&layer, 1).get::<4>(MEMORY).unwrap().dims(), [1, 16, 16, 1]);
    }
}
