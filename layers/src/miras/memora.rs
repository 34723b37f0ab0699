//! Memora (Miras, Behrouz et al., arXiv 2504.13173, Eq. 27 and 30 to 32): a deep memory whose weights are
//! distributions, learned by multiplication.
//!
//! ```text
//! L_t = α_t L_{t-1} - η_t ∇ℓ(W; k_t, v_t),   ∇ℓ from u = r,  r = M(k_t; W) - v_t
//! W_t = c softmax(L_t)  per row                 = c softmax(α_t log W_{t-1} - η_t ∇ℓ)
//! y_t = M(q_t; W_t),   M(x; W) = x + LN(W1 gelu(W2 x))
//! ```
//!
//! | memory | bias | retention | algorithm |
//! | --- | --- | --- | --- |
//! | MLP of two layers | L2 | KL to the last weights and entropy | gradient descent |
//!
//! No logarithm of a weight is ever taken: `L` is carried instead, from which `log W` differs by a number per row,
//! which softmax drops; so `L` decays and adds like any other memory. The first token of a chunk is learned
//! first, and the gradients of the others are taken at the weights it leaves (`lag_token`). The paper does not
//! say over which axis a matrix is normalised nor how large a row is: here rows of outputs, with a learned sum `c`
//! that starts as that of moduli of `N(0, 0.02²)`. All weights are positive: signs come from the layer norm, the
//! residual connection and q.

use super::preset::preset;
use super::{Bias, MirasConfig, Retention};

preset! {
    /// Sizes and switches of Memora.
    MemoraConfig, "memora", MirasConfig {
        bias: Bias::L2,
        retention: Retention::Kl,
        lag_token: true,
        ..MirasConfig::default()
    }
}

#[cfg(test)]
#[path = "memora_tests.rs"]
mod tests;
