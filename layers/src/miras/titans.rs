//! The long-term memory of Titans (Behrouz et al., arXiv 2501.00663): a deep memory trained with momentum, so
//! that a surprising token also changes what is made of those that follow it.
//!
//! ```text
//! S_t = μ_t S_{t-1} - η_t ∇ℓ(W_c; k_t, v_t),   ∇ℓ from u = r,  r = M(k_t; W_c) - v_t          (Eq. 9, 10)
//! A_t = α_t A_{t-1} + S_t                                                                    (Eq. 13)
//! y_t = M(q_t; A_t),   M(x; W) = x + LN(W1 gelu(W2 x))
//! ```
//!
//! | memory | bias | retention | algorithm |
//! | --- | --- | --- | --- |
//! | MLP of two layers | L2 | local and global L2 | gradient descent with momentum |
//!
//! The paper writes α for what is forgotten (1 - α here), η for the momentum (μ) and θ for the learning rate (η). It
//! leaves the momentum's start open: here 0.5, that of a sigmoid without a bias.

use super::preset::preset;
use super::{Algorithm, Bias, MirasConfig, Retention};

preset! {
    /// Sizes and switches of the Titans memory.
    TitansConfig, "titans", MirasConfig {
        bias: Bias::L2,
        retention: Retention::L2,
        algorithm: Algorithm::Momentum { start: 0.5 },
        rope: None,
        ..MirasConfig::default()
    }
}

#[cfg(test)]
#[path = "titans_tests.rs"]
mod tests;
