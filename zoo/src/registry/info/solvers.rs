//! Linear memories that are read in other ways than by one product.

use super::Architecture;

pub(super) const ALL: &[Architecture] = &[
    Architecture {
        name: "mesa_net",
        title: "MesaNet (least squares at every token)",
        paper: "2506.05233",
        state: "two matrices per head, [b, h, n, 2n], and the last 3 inputs of each convolution",
        equations: "G_t = γ_t G_{t-1} + β_t k_t k_tᵀ,  H_t = γ_t H_{t-1} + β_t k_t v_tᵀ,  \
                    y_t = H_tᵀ (G_t + diag λ)⁻¹ q_t",
    },
    Architecture {
        name: "log_linear_attention",
        title: "Log-linear attention (gated, a Fenwick tree of memories)",
        paper: "2506.04761",
        state: "a matrix per head and bit of the position, [b, h, ⌊log₂ T⌋ + 1, n, n]: grows with every \
                doubling; and the last 3 inputs of each convolution",
        equations: "y_i = Σ_{j≤i} λ_i^{ℓ(i,j)} a_i…a_{j+1} (q_i·k_j/√n) v_j,  ℓ(i,j) = bits of (i xor j)",
    },
];
