//! Retention: what keeps a memory from forgetting or from growing, as a map `Φ` from what gradient descent
//! accumulates to the weights that are used, and a decay α (Miras sec. 5.2).
//!
//! ```text
//! retention     A accumulates                  W = Φ(A)
//! none          A - η g                        A                                     α = 1
//! l2            α A - η g                      A
//! lq            α A - η g                      ν A,  ν = |A|_q^(2-q) per matrix       (Moneta, Eq. 25)
//! kl            α A - η g                      c softmax(A) per row: KL to the last W plus entropy (Memora, Eq. 27)
//! f_divergence  0 at W_c, then A - η g         W_c ∘ (f')⁻¹(A - ζ) per row, ζ such that rows keep their sums (Eq. 18)
//! elastic_net   α A - η g                      sign(A) max(0, |A| - γ)               (Eq. 22; `dual`: Eq. 23)
//! bregman       α A - η g                      sigmoid(A): Bregman divergence with F' = logit
//! ```
//!
//! Gradients are taken at `W_c`, the weights where the chunk began. Within a chunk a token is read with
//! `Φ(A_t)` (or, on demand, with `W_c`: [`super::ReadAt`]), except that `ν` of `lq` is frozen at `A_c`, so that
//! reads stay products. The map is applied to what is *carried* only at the chunk's end, and only by
//! `f_divergence` (a chunk of `C` tokens is one step from `W_c` with the sum of their gradients) and by
//! `elastic_net` without `dual` (which so shrinks once per chunk): with these two `C = 1` is the printed rule and a
//! larger `C` regularises less often. For all others `C` only decides where gradients are taken. A printed
//! `log softmax` differs from `A` by a number per row, which softmax drops.

use burn::tensor::{Tensor, activation};
use serde::{Deserialize, Serialize};

use super::inner::Fast;
use super::simplex::step_on_simplex;
use crate::Result;
use crate::error::require;

/// What is kept of the memory, and in which geometry it is learned; see the module's table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Retention {
    /// Everything is kept.
    None,
    /// Decay: local and global L2.
    #[default]
    L2,
    /// Decay, and weights of a fixed size in the q-norm.
    Lq {
        /// Exponent, at least 2 (which is no normaliser).
        #[serde(default = "four")]
        q: f64,
        /// How the size is fixed.
        #[serde(default)]
        map: LqMap,
    },
    /// Rows are distributions times a learned number.
    Kl,
    /// Rows keep their sums, entries stay non-negative.
    FDivergence {
        /// Which divergence.
        divergence: Divergence,
    },
    /// Small weights become 0.
    ElasticNet {
        /// `γ`
        #[serde(default = "small")]
        threshold: f64,
        /// Whether what is accumulated is not shrunk itself.
        #[serde(default)]
        dual: bool,
    },
    /// Weights between 0 and 1.
    Bregman,
}

fn four() -> f64 {
    4.0
}

fn small() -> f64 {
    1e-4
}

/// What stands for the printed `W = A / |A|_q^(q-2)`.
///
/// That map is homogeneous of degree `3 - q`, -1 at Moneta's `q = 4`: it is singular at 0, and large updates
/// shrink the weights.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum LqMap {
    /// As printed, with norms below `floor` taken for it. The learned start is `W_0`.
    Literal {
        /// Smallest norm.
        floor: f64,
    },
    /// Relative to the start, and within limits: `ν = clamp(|A|_q / |A_0|_q, 1/κ, κ)^(2-q)`.
    Rescaled {
        /// `κ`, at least 1.
        clamp: f64,
    },
    /// `W = scale · sign(A) |A|^(q-1) / |A|_q^(q-2)`, the exact solution for the regulariser `|W|_s²`, `1/q + 1/s = 1`.
    ExactLink {
        /// Factor on the weights.
        scale: f64,
    },
}

impl Default for LqMap {
    fn default() -> Self {
        Self::Rescaled { clamp: 4.0 }
    }
}

/// A divergence `Σ w' f(w/w')` that keeps weights close to the last ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Divergence {
    /// `(f')⁻¹(y) = max(0, 1 + y)`: weights may become exactly 0, and then stay 0.
    ChiSquare,
    /// `(f')⁻¹(y) = -1/y`
    ReverseKl,
}

/// How weights inside a chunk come from the accumulated matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reads {
    /// Its multiples: read without forming them.
    Linear,
    /// Entry by entry: every token's matrix is formed.
    PerToken,
}

impl Retention {
    /// Checks the values.
    pub(crate) fn validate(self, mixer: &'static str) -> Result<()> {
        let positive = |x: f64| x > 0.0 && x.is_finite();
        match self {
            Retention::Lq { q, map } => {
                let expected =
                    "must be 2 to 8 (2 is no normaliser; below, it is the primal exponent: give q/(q-1))";
                require((2.0..=8.0).contains(&q), mixer, "retention.q", q, expected)?;
                let (field, value, ok) = match map {
                    LqMap::Literal { floor } => ("retention.map.floor", floor, positive(floor)),
                    LqMap::Rescaled { clamp } => {
                        ("retention.map.clamp", clamp, clamp >= 1.0 && clamp.is_finite())
                    }
                    LqMap::ExactLink { scale } => ("retention.map.scale", scale, positive(scale)),
                };
                let expected = "must be positive and finite (a clamp at least 1)";
                require(ok, mixer, field, value, expected)
            }
            Retention::ElasticNet { threshold, .. } => {
                let ok = threshold >= 0.0 && threshold.is_finite();
                require(ok, mixer, "retention.threshold", threshold, "must be a number not below 0")
            }
            _ => Ok(()),
        }
    }

    /// Whether it can decay.
    pub fn decays(self) -> bool {
        !matches!(self, Retention::None | Retention::FDivergence { .. })
    }

    /// Whether rows of the weights have a fixed sum.
    pub fn on_simplex(self) -> bool {
        matches!(self, Retention::Kl | Retention::FDivergence { .. })
    }

    /// Whether the map is the identity.
    pub(crate) fn is_linear(self) -> bool {
        matches!(self, Retention::None | Retention::L2)
    }

    /// Standard deviation of the learned start: small weights, or spread logits.
    pub(crate) fn start_std(self) -> f64 {
        match self {
            Retention::Kl | Retention::FDivergence { .. } | Retention::Bregman => 1.0,
            _ => super::INIT_STD,
        }
    }

    /// α before training. Logits that fade leave uniform rows, of which a deep memory cannot learn any more: all
    /// its hidden units are the same. So they start with a longer memory.
    pub(crate) fn start_alpha(self) -> f64 {
        if self == Retention::Kl { 0.9999 } else { 0.99 }
    }

    /// Whether what is carried starts again from 0 in every chunk.
    pub(crate) fn restarts(self) -> bool {
        matches!(self, Retention::FDivergence { .. })
    }
}

/// `Φ` with its tensors.
#[derive(Clone, Debug)]
pub(crate) struct Map {
    pub(crate) retention: Retention,
    /// Sum of a row per matrix, `[1, h, 1, 1]`; on the simplex only
    pub(crate) sums: Vec<Tensor<4>>,
    /// `|A_0|_q` per matrix, `[1, h, 1, 1]`; for `rescaled` only
    pub(crate) reference: Vec<Tensor<4>>,
}

impl Map {
    /// A map, given the learned start and the rows' sums.
    pub(crate) fn new(retention: Retention, start: &[Tensor<4>], sums: Vec<Tensor<4>>) -> Self {
        let reference = match retention {
            Retention::Lq { q, map: LqMap::Rescaled { .. } } => start.iter().map(|w| norm(w, q)).collect(),
            _ => Vec::new(),
        };
        Self { retention, sums, reference }
    }

    /// How tokens inside a chunk are read.
    pub(crate) fn reads(&self) -> Reads {
        match self.retention {
            Retention::None | Retention::L2 => Reads::Linear,
            Retention::Lq { map: LqMap::Literal { .. } | LqMap::Rescaled { .. }, .. } => Reads::Linear,
            _ => Reads::PerToken,
        }
    }

    /// The factor `ν` of the `i`-th matrix in a chunk that began at `anchor`, `[b, h, 1, 1]`; `None` for 1.
    pub(crate) fn factor(&self, i: usize, anchor: &Tensor<4>) -> Option<Tensor<4>> {
        let Retention::Lq { q, map } = self.retention else { return None };
        let size = match map {
            LqMap::Literal { floor } => norm(anchor, q).clamp_min(floor),
            LqMap::Rescaled { clamp } => {
                (norm(anchor, q) / self.reference[i].clone()).clamp(1.0 / clamp, clamp)
            }
            LqMap::ExactLink { .. } => return None,
        };
        Some(size.log().mul_scalar(2.0 - q).exp())
    }

    /// `Φ(a)`: the `i`-th matrix as it is used, in a chunk that began at `anchor`.
    pub(crate) fn weights(&self, i: usize, a: Tensor<4>, anchor: &Tensor<4>) -> Tensor<4> {
        match self.retention {
            Retention::None | Retention::L2 => a,
            Retention::Lq { q, map: LqMap::ExactLink { scale } } => exact_link(a, q).mul_scalar(scale),
            Retention::Lq { .. } => match self.factor(i, anchor) {
                Some(factor) => a * factor,
                None => a,
            },
            Retention::Kl => activation::softmax(a, 3) * self.sums[i].clone(),
            Retention::FDivergence { divergence } => step_on_simplex(divergence, anchor.clone(), a),
            Retention::ElasticNet { threshold, .. } => shrink(a, threshold),
            Retention::Bregman => activation::sigmoid(a),
        }
    }

    /// `W_c`: the weights at the chunk's start.
    pub(crate) fn at_anchor(&self, anchor: &[Tensor<4>]) -> Vec<Tensor<4>> {
        match self.retention {
            Retention::FDivergence { .. } | Retention::ElasticNet { dual: false, .. } => anchor.to_vec(),
            _ => anchor.iter().enumerate().map(|(i, a)| self.weights(i, a.clone(), a)).collect(),
        }
    }

    /// What is carried into the next chunk.
    pub(crate) fn boundary(&self, fast: &Fast) -> Fast {
        let mapped = || -> Vec<Tensor<4>> {
            let pairs = fast.running.iter().zip(&fast.anchor).enumerate();
            pairs.map(|(i, (a, anchor))| self.weights(i, a.clone(), anchor)).collect()
        };
        let momentum = fast.momentum.clone();
        let same = |weights: Vec<Tensor<4>>| (weights.clone(), weights);
        let (running, anchor) = match self.retention {
            Retention::FDivergence { .. } => {
                (fast.running.iter().map(Tensor::zeros_like).collect(), mapped())
            }
            Retention::ElasticNet { dual: false, .. } => same(mapped()),
            _ => same(fast.running.clone()),
        };
        Fast { running, anchor, momentum }
    }

    /// What is carried before any token, from the learned start.
    pub(crate) fn start(&self, start: Vec<Tensor<4>>) -> Fast {
        let (running, anchor): (Vec<_>, Vec<_>) = match self.retention {
            Retention::Lq { q, map: LqMap::Literal { .. } } if q != 3.0 => {
                let size = |w: &Tensor<4>| norm(w, q).log().mul_scalar((q - 2.0) / (3.0 - q)).exp();
                start.into_iter().map(|w| w.clone() * size(&w)).map(|a| (a.clone(), a)).unzip()
            }
            Retention::FDivergence { .. } => {
                let rows = start.into_iter().zip(&self.sums);
                let rows = rows.map(|(logits, sum)| activation::softmax(logits, 3) * sum.clone());
                rows.map(|w| (w.zeros_like(), w)).unzip()
            }
            _ => start.into_iter().map(|a| (a.clone(), a)).unzip(),
        };
        Fast { running, anchor, momentum: Vec::new() }
    }
}

/// Largest modulus of each matrix, `[b, h, 1, 1]`, without a gradient and away from 0.
fn largest(a: &Tensor<4>) -> Tensor<4> {
    a.clone().detach().abs().max_dim(3).max_dim(2).clamp_min(1e-20)
}

/// `|z|^e` for `|z| ≤ 1`, entry by entry; smooth at 0 for `e ≥ 2`.
fn modulus_power(z: Tensor<4>, e: f64) -> Tensor<4> {
    z.square().add_scalar(1e-30).log().mul_scalar(0.5 * e).exp()
}

/// `|A|_q / max|A|` of each matrix from `z = A / max|A|`, `[b, h, 1, 1]`.
fn relative_norm(z: Tensor<4>, q: f64) -> Tensor<4> {
    // The largest entry alone gives 1, unless all are 0.
    let sum = modulus_power(z, q).sum_dim(3).sum_dim(2).clamp_min(1e-20);
    sum.log().mul_scalar(1.0 / q).exp()
}

/// `|A|_q` of each matrix, `[b, h, 1, 1]`.
fn norm(a: &Tensor<4>, q: f64) -> Tensor<4> {
    let size = largest(a);
    relative_norm(a.clone() / size.clone(), q) * size
}

/// `sign(A) |A|^(q-1) / |A|_q^(q-2)`
fn exact_link(a: Tensor<4>, q: f64) -> Tensor<4> {
    let z = a.clone() / largest(&a);
    let total = relative_norm(z.clone(), q).log().mul_scalar(2.0 - q).exp();
    a * modulus_power(z, q - 2.0) * total
}

/// `sign(z) max(0, |z| - γ)`
fn shrink(z: Tensor<4>, threshold: f64) -> Tensor<4> {
    let above = activation::relu(z.clone().sub_scalar(threshold));
    above - activation::relu(z.neg().sub_scalar(threshold))
}

#[cfg(test)]
#[path = "retention_tests.rs"]
mod tests;
