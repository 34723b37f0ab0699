//! One step of mirror descent on scaled simplices, for divergences other than KL.
//!
//! ```text
//! W = argmin ⟨-A, W⟩ + Σ W_c f(W/W_c)  over W ≥ 0 with the rows' sums of W_c
//!   = W_c ∘ (f')⁻¹(A - ζ),     ζ such that the rows' sums are kept                    (Miras Eq. 18)
//! ```
//!
//! The sum falls with ζ, so bisection comes close to it, without a graph, and Newton's method does the rest: its last
//! step starts from the solution, and so has the solution's derivative.

use burn::tensor::{Tensor, activation};

use super::retention::Divergence;

/// Halvings of the interval that holds ζ.
const HALVINGS: usize = 20;

impl Divergence {
    /// `(f')⁻¹(y)`
    fn inverse(self, y: Tensor<4>) -> Tensor<4> {
        match self {
            Divergence::ChiSquare => activation::relu(y.add_scalar(1.0)),
            Divergence::ReverseKl => y.recip().neg(),
        }
    }

    /// Its derivative.
    fn slope(self, y: Tensor<4>) -> Tensor<4> {
        match self {
            Divergence::ChiSquare => {
                let dtype = y.dtype();
                y.greater_elem(-1.0).float().cast(dtype)
            }
            Divergence::ReverseKl => y.square().recip(),
        }
    }

    /// Between which numbers ζ lies, `[b, h, rows, 1]`: where all entries shrink, and where all grow.
    fn bracket(self, a: &Tensor<4>) -> (Tensor<4>, Tensor<4>) {
        let (min, max) = (a.clone().min_dim(3), a.clone().max_dim(3));
        match self {
            Divergence::ChiSquare => (min, max),
            // y < 0 everywhere
            Divergence::ReverseKl => {
                let margin = max.clone().abs().add_scalar(1.0).mul_scalar(1e-6);
                (min.add_scalar(1.0).max_pair(max.clone() + margin), max.add_scalar(1.0))
            }
        }
    }
}

/// `W` from `W_c` and `A`, `[b, h, rows, cols]`.
pub(crate) fn step_on_simplex(divergence: Divergence, from: Tensor<4>, a: Tensor<4>) -> Tensor<4> {
    let (fixed, still) = (from.clone().detach(), a.clone().detach());
    let sums = fixed.clone().sum_dim(3);
    let (mut low, mut high) = divergence.bracket(&still);
    for _ in 0..HALVINGS {
        let middle = (low.clone() + high.clone()).mul_scalar(0.5);
        let total = (fixed.clone() * divergence.inverse(still.clone() - middle.clone())).sum_dim(3);
        let dtype = total.dtype();
        let above = total.greater(sums.clone()).float().cast(dtype);
        low = low.clone() + (middle.clone() - low) * above.clone();
        high = middle.clone() + (high - middle) * above;
    }
    let near = (low + high).mul_scalar(0.5);
    let newton = |from: &Tensor<4>, a: &Tensor<4>, zeta: Tensor<4>| {
        let slope = (fixed.clone() * divergence.slope(still.clone() - zeta.clone())).sum_dim(3);
        let total = (from.clone() * divergence.inverse(a.clone() - zeta.clone())).sum_dim(3);
        zeta + (total - from.clone().sum_dim(3)) / slope.clamp_min(1e-20)
    };
    let zeta = newton(&fixed, &still, near);
    let zeta = newton(&from, &a, zeta);
    from * divergence.inverse(a - zeta)
}
