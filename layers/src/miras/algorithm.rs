//! Learning algorithms: how a memory descends, and the two that a linear memory with squared error can run
//! exactly, as linear systems on the engine.
//!
//! ```text
//! gd                  A ← α A - η g                                  one step per token
//! momentum            S ← μ S - η g,  A ← α A + S                    (Titans, arXiv 2501.00663)
//! multi_step          A ← α A - η g(A), then A ← A - η g(A) …        C = 1
//! implicit            A ← argmin |W - α A|² + η |W k - v|²           e = η/(1 + η|k|²)  (Longhorn, arXiv 2407.14207)
//!                       = α A (I - e k kᵀ) + e v kᵀ
//! conjugate_gradient  H ← α H + η k kᵀ,  G ← α G + η v kᵀ,           (MesaNet, arXiv 2506.05233)
//!                     y = G (H + diag λ)⁻¹ q by a fixed number of steps
//! ```
//!
//! The last two do not depend on a chunk: their steps are taken at each token's own memory in every form. The
//! steps of the conjugate gradients are products with every token's own `H_t`: one run of the engine each.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::inner::Tokens;
use super::memory::times_transposed;
use crate::delta::delta_system;
use crate::nn::{repeat_heads, softplus};
use crate::system::{Form, System, Transition, engine};
use crate::{Init, Result};

/// How the memory learns; see the module's table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Algorithm {
    /// One step of gradient descent per token.
    #[default]
    Gd,
    /// The same, with a momentum that the token decides on.
    Momentum {
        /// `μ` before training.
        #[serde(default = "half")]
        start: f64,
    },
    /// Several steps of gradient descent per token.
    MultiStep {
        /// Steps per token.
        steps: usize,
    },
    /// The exact minimum of the token's loss and the distance from the decayed memory.
    Implicit,
    /// The exact minimum of all decayed losses so far.
    ConjugateGradient {
        /// Steps per token.
        #[serde(default = "thirty")]
        iterations: usize,
        /// Added to denominators: steps shorter than its root are damped, so that they have a gradient.
        #[serde(default = "damping")]
        eps: f64,
    },
}

fn half() -> f64 {
    0.5
}

fn thirty() -> usize {
    30
}

fn damping() -> f64 {
    1e-5
}

impl Algorithm {
    /// Steps of gradient descent per token.
    pub(crate) fn steps(self) -> usize {
        match self {
            Algorithm::MultiStep { steps } => steps,
            _ => 1,
        }
    }

    /// `μ` before training, with momentum.
    pub(crate) fn momentum(self) -> Option<f64> {
        match self {
            Algorithm::Momentum { start } => Some(start),
            _ => None,
        }
    }
}

/// The implicit step as a system on `[b, h, n, p]` (or, with a gate per row, on one head per row).
pub(super) fn implicit_system(tokens: &Tokens) -> System {
    let step = tokens.step(0);
    let [_, _, _, w] = step.eta.dims();
    let (q, k) = (repeat_heads(tokens.q.clone(), w), repeat_heads(tokens.k.clone(), w));
    let v = if w == 1 { tokens.v.clone() } else { rows_as_heads(tokens.v.clone()) };
    let (log_alpha, eta) = (rows_as_heads(step.log_alpha.clone()), rows_as_heads(step.eta.clone()));
    let length = k.clone().square().sum_dim(3);
    let rate = eta.clone() / (eta * length).add_scalar(1.0);
    delta_system(log_alpha.squeeze_dim(3), rate.squeeze_dim(3), q, k, v)
}

/// `[b, h, t, w] -> [b, h w, t, 1]`
fn rows_as_heads(x: Tensor<4>) -> Tensor<4> {
    let [b, h, t, w] = x.dims();
    if w == 1 { x } else { x.swap_dims(2, 3).reshape([b, h * w, t, 1]) }
}

/// Reads and learns by implicit steps. `w: [b, h, rows, cols]`.
pub(super) fn implicit(tokens: &Tokens, w: Tensor<4>, form: Form) -> Result<(Tensor<4>, Tensor<4>)> {
    let system = implicit_system(tokens);
    let [b, h, rows, cols] = w.dims();
    if tokens.step(0).eta.dims()[3] == 1 {
        let (y, memory) = engine::run(system, w.swap_dims(2, 3), form)?;
        return Ok((y, memory.swap_dims(2, 3)));
    }
    let t = tokens.len();
    let (y, memory) = engine::run(system, w.reshape([b, h * rows, cols, 1]), form)?;
    let y = y.reshape([b, h, rows, t]).swap_dims(2, 3);
    Ok((y, memory.reshape([b, h, rows, cols])))
}

/// What the least-squares memory learns outside: the weight of a small solution.
#[derive(Module, Debug)]
pub struct LeastSquares {
    /// `λ = softplus(·) + 0.25` of a head and key channel, `[h, n]`
    pub ridge: Param<Tensor<2>>,
}

/// Smallest `λ`.
const RIDGE_MIN: f64 = 0.25;

impl LeastSquares {
    /// `λ = 1` everywhere.
    pub(crate) fn new(heads: usize, n: usize, init: &Init) -> Self {
        let start = (1.0 - RIDGE_MIN).exp_m1().ln();
        Self { ridge: init.constant([heads, n], start as f32) }
    }

    /// `λ`, `[1, h, 1, n]`
    pub(crate) fn lambda(&self) -> Tensor<4> {
        let [h, n] = self.ridge.dims();
        softplus(self.ridge.val()).add_scalar(RIDGE_MIN).reshape([1, h, 1, n])
    }
}

/// `H` and `G` of the least-squares memory, `[b, h, n, n]` and `[b, h, p, n]`.
#[derive(Clone, Debug)]
pub(super) struct Moments {
    pub(super) keys: Tensor<4>,
    pub(super) values: Tensor<4>,
}

/// Steps and damping of the conjugate gradients.
#[derive(Clone, Copy, Debug)]
pub(super) struct Solver {
    pub(super) iterations: usize,
    pub(super) eps: f64,
}

impl Solver {
    /// Reads every token from the moments that include it; moves them on.
    pub(super) fn run(
        self,
        tokens: &Tokens,
        lambda: &Tensor<4>,
        moments: Moments,
        form: Form,
    ) -> Result<(Tensor<4>, Moments)> {
        let step = tokens.step(0);
        let written = tokens.k.clone() * step.eta.clone();
        let system = |q: Tensor<4>, v: Tensor<4>| {
            let transition = Transition::Scalar { log_a: step.log_alpha.clone().squeeze_dim(3) };
            System::outer(transition, q, written.clone(), v)
        };
        let apply = |p: Tensor<4>| -> Result<(Tensor<4>, Tensor<4>)> {
            let (hp, keys) = engine::run(system(p.clone(), tokens.k.clone()), moments.keys.clone(), form)?;
            Ok((hp + p * lambda.clone(), keys))
        };
        let (x, keys) = self.solve(tokens.q.clone(), &apply)?;
        let values = moments.values.swap_dims(2, 3);
        let (y, values) = engine::run(system(x, tokens.v.clone()), values, form)?;
        Ok((y, Moments { keys, values: values.swap_dims(2, 3) }))
    }

    /// What the moments say about `q` as they are, `[b, h, 1, p]`.
    pub(super) fn read(self, q: Tensor<4>, lambda: &Tensor<4>, moments: &Moments) -> Result<Tensor<4>> {
        let apply = |p: Tensor<4>| {
            let hp = times_transposed(p.clone(), moments.keys.clone());
            Ok((hp + p * lambda.clone(), moments.keys.clone()))
        };
        let (x, _) = self.solve(q, &apply)?;
        Ok(times_transposed(x, moments.values.clone()))
    }

    /// `x` with `apply(x) = q`, and what else `apply` returns.
    fn solve(
        self,
        q: Tensor<4>,
        apply: &dyn Fn(Tensor<4>) -> Result<(Tensor<4>, Tensor<4>)>,
    ) -> Result<(Tensor<4>, Tensor<4>)> {
        let dot = |a: &Tensor<4>, b: &Tensor<4>| (a.clone() * b.clone()).sum_dim(3);
        let (mut x, mut r, mut p) = (q.zeros_like(), q.clone(), q);
        let mut size = dot(&r, &r);
        let mut memory = None;
        for _ in 0..self.iterations {
            let (ap, last) = apply(p.clone())?;
            memory = Some(last);
            let a = size.clone() / dot(&p, &ap).add_scalar(self.eps);
            x = x + p.clone() * a.clone();
            r = r - ap * a;
            let next = dot(&r, &r);
            p = r.clone() + p * (next.clone() / size.add_scalar(self.eps));
            size = next;
        }
        match memory {
            Some(memory) => Ok((x, memory)),
            None => apply(x.clone()).map(|(_, memory)| (x, memory)),
        }
    }
}
