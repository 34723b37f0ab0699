//! Yaad (Miras, Behrouz et al., arXiv 2504.13173, Eq. 26): a deep memory trained on a Huber loss, so that single
//! surprising tokens cannot overwrite it.
//!
//! ```text
//! A_t = α_t A_{t-1} - η_t ∇ℓ(W_c; k_t, v_t),   ∇ℓ from u = r min(1, δ_t/|r|),  r = M(k_t; W_c) - v_t
//! y_t = M(q_t; A_t),   M(x; W) = x + LN(W1 gelu(W2 x))
//! ```
//!
//! | memory | bias | retention | algorithm |
//! | --- | --- | --- | --- |
//! | MLP of two layers | Huber | local and global L2 | gradient descent |
//!
//! The paper states neither how gates act on a matrix nor the loss at the threshold: here gates are one number
//! per head, and [`YaadConfig::stable`] (the default) is Huber in the residual's length, while
//! [`YaadConfig::paper`] has a gate per channel and the literal choice between the squared and the absolute error,
//! which jumps at `|r| = δ`. For the linear memory with keys of length 1 and `W = 0` at the start,
//! `|A|_F ≤ max η δ / (1 - max α)`, whatever the values (norm-wise Huber).

use super::preset::preset;
use super::{Bias, GateAxis, MirasConfig};

preset! {
    /// Sizes and switches of Yaad.
    YaadConfig, "yaad", MirasConfig { bias: Bias::HuberNorm, ..MirasConfig::default() }
}

impl YaadConfig {
    /// Huber in the residual's length: continuous, bounded, differentiable in δ. The default.
    pub fn stable() -> Self {
        Self::default()
    }

    /// The paper's loss as printed, and a gate per channel.
    pub fn paper() -> Self {
        let bias = Bias::HuberMixture { nu: 10.0 };
        Self(MirasConfig { bias, gates: GateAxis::AllD, ..Self::default().0 })
    }
}

#[cfg(test)]
#[path = "yaad_tests.rs"]
mod tests;
