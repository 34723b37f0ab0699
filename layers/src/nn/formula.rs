//! Functions of single numbers that kernels compute.

use burn::tensor::Tensor;

use super::normalize::{back, four};
use crate::kernels;

/// What is computed of tensors `x`, `y`, `z` and parameters `p`, `q`; `s` is [`Formula::scale`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub(crate) enum Function {
    /// `x sigmoid(x)`
    Silu,
    /// `s sigmoid(x)`
    Sigmoid,
    /// `s sigmoid(-x)`
    Closed,
    /// `x Φ(x)` by the tanh approximation
    GeluTanh,
    /// `s log sigmoid(x)`
    LogSigmoid,
    /// `s (x + 1)` above 0, `s e^x` below
    EluPlusOne,
    /// `s log sigmoid(x + p)`
    LogGate,
    /// `x y sigmoid(y)`
    SiluGate,
    /// `x sigmoid(y)`
    SigmoidGate,
    /// `x gelu(y)`
    GeluGate,
    /// `clamp(softplus(x + p))`
    Step,
    /// `-exp(q) clamp(softplus(x + p))`
    StepDecay,
    /// `-s softplus(q) sigmoid(x + p)`, or [`LOG_ZERO`] where `y`, which has no gradient, is 1 and not 0
    GateDecay,
    /// `-x e^y`
    Erase,
    /// `x / (y + s)`
    Share,
    /// `x + p y`
    Skip,
    /// `sqrt(1 - e^{2 x}) sigmoid(y + p) z`, the root with a slope of at most [`MOST_SLOPE`]
    GateInput,
    /// `tanh x`
    Tanh,
    /// `max(x, 0)²`
    SquaredRelu,
    /// `-e^{min(x, s)}`
    Rate,
    /// `x + p (y - x)`
    Lerp,
    /// `x + (z + p) (y - x)`
    Mix,
    /// `x (1 + p (y - 1))`
    Rescale,
    /// `x y p`
    Product,
}

impl Function {
    /// Every function, in the order of its number.
    pub(crate) const ALL: [Self; 24] = [
        Self::Silu,
        Self::Sigmoid,
        Self::Closed,
        Self::GeluTanh,
        Self::LogSigmoid,
        Self::EluPlusOne,
        Self::LogGate,
        Self::SiluGate,
        Self::SigmoidGate,
        Self::GeluGate,
        Self::Step,
        Self::StepDecay,
        Self::GateDecay,
        Self::Erase,
        Self::Share,
        Self::Skip,
        Self::GateInput,
        Self::Tanh,
        Self::SquaredRelu,
        Self::Rate,
        Self::Lerp,
        Self::Mix,
        Self::Rescale,
        Self::Product,
    ];

    /// Tensors and parameters that it takes.
    pub(crate) const fn arity(self) -> (usize, usize) {
        match self {
            Self::Silu
            | Self::Sigmoid
            | Self::Closed
            | Self::GeluTanh
            | Self::LogSigmoid
            | Self::EluPlusOne
            | Self::Tanh
            | Self::SquaredRelu
            | Self::Rate => (1, 0),
            Self::SiluGate | Self::SigmoidGate | Self::GeluGate | Self::Erase | Self::Share => (2, 0),
            Self::Step | Self::LogGate => (1, 1),
            Self::Skip | Self::Lerp | Self::Rescale | Self::Product => (2, 1),
            Self::StepDecay => (1, 2),
            Self::GateDecay => (2, 2),
            Self::GateInput | Self::Mix => (3, 1),
        }
    }
}

/// Stands for `log 0`: its exponential is 0 in every float width, and sums of it stay finite in `f32`.
pub(crate) const LOG_ZERO: f64 = -1e4;

/// The slope of a square root is kept below this, since it is infinite at 0.
pub(crate) const MOST_SLOPE: f64 = 1000.0;

/// A function and its numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Formula {
    pub(crate) function: Function,
    pub(crate) scale: f64,
    /// Limits of a step
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl Formula {
    pub(crate) fn new(function: Function) -> Self {
        Self { function, scale: 1.0, low: 0.0, high: f64::from(f32::MAX) }
    }

    /// Of `tensors` of one shape and `parameters` of their last axis or last two, which `plain` computes in tensor
    /// operations.
    #[cfg_attr(
        not(any(feature = "flex", feature = "cube")),
        allow(unused_variables, reason = "there are no kernels without a backend")
    )]
    pub(crate) fn run<const D: usize, const N: usize, const M: usize>(
        self,
        tensors: [Tensor<D>; N],
        parameters: [Tensor<D>; M],
        plain: impl FnOnce([Tensor<D>; N], [Tensor<D>; M]) -> Tensor<D>,
    ) -> Tensor<D> {
        #[cfg(any(feature = "flex", feature = "cube"))]
        if kernels::enabled() {
            let fours = |all: &[Tensor<D>]| all.iter().cloned().map(four).collect();
            let inputs =
                kernels::pointwise::Inputs { tensors: fours(&tensors), parameters: fours(&parameters) };
            if inputs.applies(self) {
                return back(inputs.run(self), tensors[0].dims());
            }
        }
        plain(tensors, parameters)
    }
}
