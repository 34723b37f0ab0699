//! The delta family.

use super::Architecture;

pub(super) const ALL: &[Architecture] = &[
    Architecture {
        name: "deltanet",
        title: "DeltaNet",
        paper: "2406.06484",
        state: "matrix per head, [b, h, n, p], and the last 3 inputs of each convolution",
        equations: "H_t = (I - β_t k_t k_tᵀ) H_{t-1} + β_t k_t v_tᵀ,  y_t = H_tᵀ q_t/√n",
    },
    Architecture {
        name: "gated_deltanet",
        title: "Gated DeltaNet",
        paper: "2412.06464",
        state: "matrix per head, [b, h, n, p], and the last 3 inputs of each convolution",
        equations: "H_t = α_t (I - β_t k_t k_tᵀ) H_{t-1} + β_t k_t v_tᵀ,  y_t = H_tᵀ q_t/√n",
    },
    Architecture {
        name: "deltaproduct",
        title: "DeltaProduct (several delta steps per token; gated or not)",
        paper: "2502.10297",
        state: "matrix per head, [b, h, n, p], and the last 3 inputs of each convolution",
        equations: "H ← α_t H_{t-1};  H ← (I - β_j k_j k_jᵀ) H + β_j k_j v_jᵀ for j = 1…m;  y_t = H_tᵀ q_t/√n",
    },
    Architecture {
        name: "kda",
        title: "Kimi delta attention (KDA)",
        paper: "2510.26692",
        state: "matrix per head, [b, h, n, p], and the last 3 inputs of each convolution",
        equations: "H_t = (I - β_t k_t k_tᵀ) diag(α_t) H_{t-1} + β_t k_t v_tᵀ,  y_t = H_tᵀ q_t/√n",
    },
    Architecture {
        name: "comba",
        title: "Comba (closed-loop control)",
        paper: "2506.02475",
        state: "matrix per head, [b, h, n, p], and the last 3 inputs of each convolution",
        equations: "H_t = (α_t I - β_t k_t p_tᵀ) H_{t-1} + β_t k_t v_tᵀ,  p = σ(c) k,  y_t = H_tᵀ (q_t - D p_t)/√n",
    },
    Architecture {
        name: "dplr",
        title: "Diagonal plus low rank (free a, b and decay, bounded)",
        paper: "2503.14456",
        state: "matrix per head, [b, h, n, p], and the last 3 inputs of each convolution",
        equations: "H_t = (diag(d_t) + b_t a_tᵀ) H_{t-1} + β_t k_t v_tᵀ,  b = -β d∘a + (1 - α) w,  |a|, |w| ≤ 1",
    },
    Architecture {
        name: "longhorn",
        title: "Longhorn (implicit online learner; as released or exact)",
        paper: "2407.14207",
        state: "vector per channel, [b, E, n, 1], and the last 3 inputs of the convolution",
        equations: "h_t = (1 - e_t k_t²)∘h_{t-1} + e_t x_t k_t,  e = β/(1 + β|k|²),  y_t = h_t·q_t + D x_t",
    },
    Architecture {
        name: "momentum_deltanet",
        title: "Momentum DeltaNet",
        paper: "2605.05838",
        state: "memory and momentum per head, [b, h, 2n, p], and the last 3 inputs of each convolution",
        equations: "M_t = μ_t M_{t-1} + η_t k_t (α_t S_{t-1}ᵀk_t - v_t)ᵀ,  S_t = α_t S_{t-1} - β_t M_t,  y_t = S_tᵀ q_t/√n",
    },
];
