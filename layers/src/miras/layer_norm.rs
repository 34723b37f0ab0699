//! Layer norm without its gain and bias, and its gradient written out.
//!
//! ```text
//! ẑ = (z - mean z) ρ,   ρ = 1/sqrt(var z + ε)                        over the last axis
//! ∂ℓ/∂z = ρ (w - mean(w) - ẑ mean(w ∘ ẑ))   with w = ∂ℓ/∂ẑ
//! ```

use burn::tensor::Tensor;

/// `ẑ` and what its gradient needs.
pub(super) struct Standardized {
    /// `ẑ`
    pub(super) normal: Tensor<4>,
    rate: Tensor<4>,
}

impl Standardized {
    pub(super) fn of(z: Tensor<4>, eps: f64) -> Self {
        let centred = z.clone() - z.mean_dim(3);
        let rate = centred.clone().square().mean_dim(3).add_scalar(eps).sqrt().recip();
        Self { normal: centred * rate.clone(), rate }
    }

    /// `∂ℓ/∂z` from `w = ∂ℓ/∂ẑ`.
    pub(super) fn gradient(self, w: Tensor<4>) -> Tensor<4> {
        let along = (w.clone() * self.normal.clone()).mean_dim(3);
        (w.clone() - w.mean_dim(3) - self.normal * along) * self.rate
    }
}
