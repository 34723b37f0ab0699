//! The delta family.

use super::Architecture;

pub(super) const ALL: &[Architecture] = &[Architecture {
    name: "gated_deltanet",
    title: "Gated DeltaNet",
    paper: "2412.06464",
    state: "matrix per head, [b, h, n, p], and the last 3 inputs of each convolution",
    equations: "H_t = α_t (I - β_t k_t k_tᵀ) H_{t-1} + β_t k_t v_tᵀ,  y_t = H_tᵀ q_t/√n",
}];
