//! Gates: retention α, learning rate η and momentum μ per token, and which entries of a matrix share one.
//!
//! ```text
//! z = W_up (W_down x) + b,     α = sigmoid(z_α),   η = η_base sigmoid(z_η),   μ = sigmoid(z_μ)
//! axis    one gate for                                     the gates of a matrix act on
//! head    every head                                       all of it
//! all_d   every channel of a head                          linear: its columns (key channels, as in GLA)
//!                                                          vector, mlp: W1's rows, W_L's columns
//! row     every row of every matrix                        its rows
//! ```
//!
//! Miras says "channel-wise" and leaves open which axis of a matrix is meant; `all_d` is the only reading in which
//! one vector of `n` numbers fits both matrices of its memory.

use burn::module::Module;
use burn::tensor::{Tensor, activation};
use serde::{Deserialize, Serialize};

use super::layer::GateMap;
use super::memory::MemoryConfig;
use crate::Init;
#[cfg(feature = "cube")]
use crate::kernels::{self, Opening};
use crate::nn::log_sigmoid;

/// How finely a memory is gated; see the module's table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GateAxis {
    /// One number per head.
    #[default]
    Head,
    /// One number per channel of a head.
    AllD,
    /// One number per row of each matrix.
    Row,
}

/// Which entries of a matrix one gate channel acts on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Axis {
    /// All.
    All,
    /// One row.
    Rows,
    /// One column.
    Cols,
}

impl GateAxis {
    /// The axis of every matrix of a memory.
    pub(crate) fn axes(self, memory: MemoryConfig) -> Vec<Axis> {
        let matrices = memory.sizes(1).len();
        let axis = |i: usize| match (self, memory) {
            (GateAxis::Head, _) => Axis::All,
            (GateAxis::AllD, MemoryConfig::Linear) => Axis::Cols,
            (GateAxis::AllD, MemoryConfig::Mlp { .. }) if i > 0 => Axis::Cols,
            (GateAxis::AllD | GateAxis::Row, _) => Axis::Rows,
        };
        (0..matrices).map(axis).collect()
    }

    /// Gate channels per head: one list entry where all matrices share them, else one per matrix.
    fn widths(self, memory: MemoryConfig, n: usize) -> Vec<usize> {
        match self {
            GateAxis::Head => vec![1],
            GateAxis::AllD => vec![n],
            GateAxis::Row => memory.sizes(n).into_iter().map(|[rows, _]| rows).collect(),
        }
    }
}

impl Axis {
    /// `[b, h, 1, w]` as a factor of a matrix `[b, h, rows, cols]`.
    pub(crate) fn of_matrix(self, gate: Tensor<4>) -> Tensor<4> {
        match self {
            Axis::Rows => gate.swap_dims(2, 3),
            Axis::All | Axis::Cols => gate,
        }
    }

    /// The factors of a gradient with the gate `[b, h, t, w]` of each token multiplied in.
    pub(crate) fn of_factors(
        self,
        gate: Tensor<4>,
        left: Tensor<4>,
        right: Tensor<4>,
    ) -> (Tensor<4>, Tensor<4>) {
        match self {
            Axis::All | Axis::Rows => (left * gate, right),
            Axis::Cols => (left, right * gate),
        }
    }
}

/// The gates of a run of tokens, `[b, h, t, w]` each.
#[derive(Clone, Debug)]
pub(crate) struct Step<T = Tensor<4>> {
    /// Retention, `log α ≤ 0`
    pub(crate) log_alpha: T,
    /// Learning rate
    pub(crate) eta: T,
    /// Momentum, `log μ ≤ 0`; `None` without
    pub(crate) log_mu: Option<T>,
}

impl<T> Step<T> {
    /// `f` of every gate.
    pub(crate) fn each<U>(&self, f: impl Fn(&T) -> U) -> Step<U> {
        Step { log_alpha: f(&self.log_alpha), eta: f(&self.eta), log_mu: self.log_mu.as_ref().map(f) }
    }
}

/// Sizes and starts of [`Gates`].
pub(crate) struct GateSizes {
    pub(crate) d_model: usize,
    pub(crate) rank: usize,
    pub(crate) heads: usize,
    pub(crate) head_dim: usize,
    /// α before training, where it is learned.
    pub(crate) alpha: Option<f64>,
    /// μ before training, with momentum.
    pub(crate) momentum: Option<f64>,
}

/// The maps from a token to its gates: one for all matrices of the memory, or one for each.
#[derive(Module, Debug)]
pub struct Gates {
    /// `z_α`; empty where the memory keeps everything
    pub alpha: Vec<GateMap>,
    /// `z_η`
    pub eta: Vec<GateMap>,
    /// `z_μ`; empty without momentum
    pub mu: Vec<GateMap>,
}

/// `x` with `sigmoid(x) = y`.
fn logit(y: f64) -> f64 {
    (y / (1.0 - y)).ln()
}

impl Gates {
    pub(crate) fn new(sizes: &GateSizes, axis: GateAxis, memory: MemoryConfig, init: &mut Init) -> Self {
        let widths = axis.widths(memory, sizes.head_dim);
        let mut maps = |start: Option<f64>| -> Vec<GateMap> {
            let map = |bias| {
                let one = |&w: &usize| GateMap::new(sizes.d_model, sizes.rank, sizes.heads, w, bias, init);
                widths.iter().map(one).collect()
            };
            start.map(map).unwrap_or_default()
        };
        Self {
            alpha: maps(sizes.alpha.map(logit)),
            eta: maps(Some(0.0)),
            mu: maps(sizes.momentum.map(logit)),
        }
    }

    /// The gates of `x`, with learning rates up to `eta_base`.
    pub(crate) fn forward(&self, x: &Tensor<3>, eta_base: f64) -> Vec<Step> {
        let log = |map: &GateMap| log_sigmoid(map.forward(x));
        let step = |(i, eta): (usize, &GateMap)| {
            let eta = activation::sigmoid(eta.forward(x)).mul_scalar(eta_base);
            let log_alpha = if let Some(alpha) = self.alpha.get(i) { log(alpha) } else { eta.zeros_like() };
            Step { log_alpha, eta, log_mu: self.mu.get(i).map(log) }
        };
        self.eta.iter().enumerate().map(step).collect()
    }

    /// The same and the threshold of the loss, by the kernel for graphics devices: `None` where it is not for that.
    #[cfg(feature = "cube")]
    pub(crate) fn on_graphics(
        &self,
        x: &Tensor<3>,
        eta_base: f64,
        delta: Option<(&GateMap, f64)>,
    ) -> Option<(Step, Option<Tensor<4>>)> {
        let ([alpha], [eta], mu @ ([] | [_])) = (&self.alpha[..], &self.eta[..], &self.mu[..]) else {
            return None;
        };
        // In the order of the kernel that learns.
        let maps = [
            Some((eta, Opening::Sigmoid(eta_base))),
            Some((alpha, Opening::LogSigmoid)),
            mu.first().map(|mu| (mu, Opening::LogSigmoid)),
            delta.map(|(delta, least)| (delta, Opening::Softplus(least))),
        ];
        let maps: Vec<_> =
            maps.into_iter().flatten().map(|(map, opening)| map.of_heads(opening)).collect::<Option<_>>()?;
        let mut found = kernels::open_gates(x, &maps)?.into_iter();
        let (eta, log_alpha) = (found.next()?, found.next()?);
        let log_mu = mu.first().and_then(|_| found.next());
        Some((Step { log_alpha, eta, log_mu }, found.next()))
    }

    /// Operations per token.
    pub(crate) fn flops(&self) -> usize {
        let maps = self.alpha.iter().chain(&self.eta).chain(&self.mu);
        maps.map(GateMap::flops).sum()
    }
}
