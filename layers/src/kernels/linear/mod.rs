//! Linear maps of a few tokens, as in decoding: `y = x W + b` without gradients. Floor: memory, `W` is read once.
//!
//! On graphics devices all maps of the same tokens are one launch, and every map fills a tensor of its own.

#[cfg(feature = "flex")]
mod flex;
#[cfg(all(test, feature = "flex"))]
mod tests;

use burn::tensor::Tensor;

#[cfg(feature = "cube")]
use crate::nn::Formula;

#[cfg(feature = "cube")]
pub(crate) use super::cube::linear::{on_graphics, project};
#[cfg(feature = "flex")]
pub(crate) use flex::run;

/// For how many tokens the matrix is read once.
pub(crate) const FEW: std::ops::RangeInclusive<usize> = 1..=4;

/// Whether tokens, the last axis apart, are so few.
pub(crate) fn are_few<const D: usize>(x: &Tensor<D>) -> bool {
    FEW.contains(&x.dims()[..D - 1].iter().product())
}

/// Columns of a matrix, and what is added to their products.
#[cfg(feature = "cube")]
#[derive(Clone, Debug)]
pub(crate) struct Map {
    /// `[n, m]`
    pub(crate) weight: Tensor<2>,
    /// `[m]` each
    pub(crate) biases: Vec<Tensor<1>>,
    /// The first of the columns
    pub(crate) first: usize,
    /// How many they are
    pub(crate) width: usize,
    /// What becomes of every number: a function of it alone
    pub(crate) then: Option<Formula>,
}
