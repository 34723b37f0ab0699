//! Moneta (Miras, Behrouz et al., arXiv 2504.13173, Eq. 24 and 25): a deep memory trained on the third power of
//! its errors, with weights of a fixed size in the 4-norm.
//!
//! ```text
//! A_t = α_t A_{t-1} - η_t ∇ℓ(W_c; k_t, v_t),   ∇ℓ from u = tanh(ν r) (r² + ε)^((p-1)/2),  r = M(k_t; W_c) - v_t
//! W_t = A_t / |A_t|_q^(q-2)  per head and matrix
//! y_t = M(q_t; W_t),   M(x; W) = x + LN(W1 gelu(W2 x))
//! ```
//!
//! | memory | bias | retention | algorithm |
//! | --- | --- | --- | --- |
//! | MLP of two layers | l_p, p = 3 | l_q, q = 4, and L2 | gradient descent |
//!
//! The printed normaliser is of degree `3 - q = -1` in `A`: singular at 0, and a large update shrinks the weights
//! to nothing, which the layer norm turns into a large gradient. The default takes norms relative to the start and
//! within a factor of 4 ([`LqMap::Rescaled`]); [`MonetaConfig::paper`] is literal. Inside a chunk the norm is that
//! of the chunk's start. For p = 3 a residual above `2/(p η |k|²)` grows with every step, so residuals are
//! clipped at 10 per channel. The paper gives no ν; the factor p of the loss belongs to η.

use super::preset::preset;
use super::{Bias, GateAxis, LqMap, MirasConfig, Retention};

/// The paper's loss.
const CUBIC: Bias = Bias::Lp { p: 3.0, nu: Some(10.0), clip: 10.0 };

preset! {
    /// Sizes and switches of Moneta.
    MonetaConfig, "moneta", MirasConfig {
        bias: CUBIC,
        retention: Retention::Lq { q: 4.0, map: LqMap::Rescaled { clamp: 4.0 } },
        ..MirasConfig::default()
    }
}

impl MonetaConfig {
    /// The normaliser as printed (with a floor under the norm), and a gate per channel.
    pub fn paper() -> Self {
        let retention = Retention::Lq { q: 4.0, map: LqMap::Literal { floor: 1e-3 } };
        Self(MirasConfig { retention, gates: GateAxis::AllD, ..Self::default().0 })
    }
}

#[cfg(test)]
#[path = "moneta_tests.rs"]
mod tests;
