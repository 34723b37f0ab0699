//! State-space models and recurrent cells.

use super::Architecture;

pub(super) const ALL: &[Architecture] = &[
    Architecture {
        name: "mamba2",
        title: "Mamba-2 (SSD)",
        paper: "2405.21060",
        state: "matrix per head, [b, h, n, p], and the last 3 inputs of the convolution",
        equations: "H_t = a_t H_{t-1} + Δ_t B_t x_tᵀ,  y_t = H_tᵀ C_t + D x_t,  log a_t = -exp(A_log) Δ_t",
    },
    Architecture {
        name: "rglru",
        title: "RG-LRU recurrent block (Griffin, Hawk, RecurrentGemma)",
        paper: "2402.19427",
        state: "vector, [b, n], and the last 3 inputs of the convolution",
        equations: "h_t = a_t ∘ h_{t-1} + √(1 - a_t²) ∘ i_t ∘ x_t,  log a_t = -8 softplus(Λ) ∘ r_t",
    },
    Architecture {
        name: "lstm",
        title: "LSTM",
        paper: "1503.04069",
        state: "two vectors per layer, h and c: [b, layers, n] each",
        equations: "c_t = f_t∘c_{t-1} + i_t∘g_t,  h_t = o_t∘tanh(c_t),  (i, f, g, o)_t of x_t and h_{t-1}",
    },
];
