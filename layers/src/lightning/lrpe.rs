//! LRPE-d, the positions of TransNormerLLM (arXiv 2307.14995; with decay, 2405.17381 Eq. 9), in the cosine form of
//! the released code.
//!
//! ```text
//! φ(x, t) = [x ∘ cos(θ t), x ∘ sin(θ t)],     φ(q, t)·φ(k, s) = Σ_j q_j k_j cos(θ_j (t - s))
//! ```
//!
//! `θ` is learned and starts at `10000^{-2j/(h n)}`, `j` counted over the channels of all heads. A position falls
//! apart into one factor on the query and one on the key, so that the recurrence stays one; keys are twice as wide.
//!
//! | symbol | shape |
//! | --- | --- |
//! | x | `[b, h, t, n]` |
//! | θ | `[h, n]` |
//! | φ | `[b, h, t, 2 n]` |

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::Init;

/// Which layers of a model have LRPE.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LrpeLayers {
    /// None: the decay alone tells near from far.
    #[default]
    None,
    /// The first, as in TransNormerLLM: hardly worse than all, and faster.
    First,
    /// Every one.
    All,
}

impl LrpeLayers {
    /// Whether layer `layer`, counted from 0, has it.
    pub fn has(self, layer: usize) -> bool {
        match self {
            Self::None => false,
            Self::First => layer == 0,
            Self::All => true,
        }
    }
}

/// The learned frequencies; see the module's equations.
#[derive(Module, Debug)]
pub struct Lrpe {
    /// `θ: [h, n]`
    pub theta: Param<Tensor<2>>,
}

/// `cos(θ t)` and `sin(θ t)`, `[1 or b, h, t, n]`.
pub(super) struct Phases(Tensor<4>, Tensor<4>);

impl Lrpe {
    /// The frequencies at the start.
    pub(super) fn new(heads: usize, head_dim: usize, init: &Init) -> Self {
        let all = heads * head_dim;
        let theta = (0..all).map(|j| 10_000f64.powf(-2.0 * j as f64 / all as f64) as f32);
        Self { theta: init.param([heads, head_dim], theta.collect()) }
    }

    /// For `time` tokens, of which row `r` reads the first at position `starts[r]`.
    pub(super) fn phases(&self, starts: &[usize], time: usize) -> Phases {
        let theta = self.theta.val();
        let [h, n] = theta.dims();
        let positions = positions(starts, time, &theta.device(), theta.dtype());
        let angles = theta.reshape([1, h, 1, n]) * positions;
        Phases(angles.clone().cos(), angles.sin())
    }
}

/// `[1, 1, t, 1]`, or `[b, 1, t, 1]` where the rows start at different positions.
fn positions(starts: &[usize], time: usize, device: &Device, dtype: DType) -> Tensor<4> {
    let uniform = starts.iter().all(|start| *start == starts[0]);
    let rows = if uniform { starts.len().min(1) } else { starts.len() };
    let numbers = starts[..rows].iter().flat_map(|&start| (start..start + time).map(|t| t as f32));
    let data = TensorData::new(numbers.collect::<Vec<_>>(), [rows, 1, time, 1]);
    Tensor::from_data(data, (&device.clone().inner(), dtype))
}

impl Phases {
    /// `φ(x, t)`
    pub(super) fn apply(&self, x: Tensor<4>) -> Tensor<4> {
        Tensor::cat(vec![x.clone() * self.0.clone(), x * self.1.clone()], 3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Draw, numbers};

    /// Scores depend on distances alone, wherever the rows start.
    #[test]
    fn scores_are_cosines_of_distances() {
        let (h, n, t) = (2, 3, 6);
        let lrpe = Lrpe::new(h, n, &Init::new(0, &Device::flex()));
        let theta = numbers(lrpe.theta.val());
        assert!((theta[0] - 1.0).abs() < 1e-7 && (theta[5] - 10_000f64.powf(-10.0 / 6.0)).abs() < 1e-7);
        let mut draw = Draw::new(1);
        let [q, k] = [0, 1].map(|_| draw.tensor::<4>([2, h, t, n], -1.0, 1.0));
        for starts in [[0, 0], [7, 7], [3, 11]] {
            let phases = lrpe.phases(&starts, t);
            let scores = phases.apply(q.clone()).matmul(phases.apply(k.clone()).swap_dims(2, 3));
            let (scores, q, k) = (numbers(scores), numbers(q.clone()), numbers(k.clone()));
            for (i, score) in scores.iter().enumerate() {
                let (row, to, from) = (i / (t * t), i / t % t, i % t);
                let term = |j: usize| {
                    let distance = to as f64 - from as f64;
                    let product = q[(row * t + to) * n + j] * k[(row * t + from) * n + j];
                    product * (theta[row % h * n + j] * distance).cos()
                };
                let expected: f64 = (0..n).map(term).sum();
                assert!((score - expected).abs() < 1e-5, "{starts:?} {to} {from}: {score} is not {expected}");
            }
        }
    }

    #[test]
    fn the_first_layer_is_number_0() {
        assert_eq!([0, 1].map(|layer| LrpeLayers::First.has(layer)), [true, false]);
        assert_eq!([0, 1].map(|layer| LrpeLayers::All.has(layer)), [true, true]);
        assert_eq!([0, 1].map(|layer| LrpeLayers::None.has(layer)), [false, false]);
    }
}
