//! RWKV.

use super::Architecture;

pub(super) const ALL: &[Architecture] = &[
    Architecture {
        name: "rwkv4",
        title: "RWKV-4 time mix",
        paper: "2305.13048",
        state: "average and log-weight per channel, [b, 1, n] each, and the last token",
        equations: "y_t = (Σ_{j<t} e^{(t-1-j)w + k_j} v_j + e^{u+k_t} v_t) / Σ(…),  out = W_o(σ(r_t) ∘ y_t)",
    },
    Architecture {
        name: "rwkv6",
        title: "RWKV-6 time mix (Finch)",
        paper: "2404.05892",
        state: "matrix per head, [b, h, n, p], and the last token",
        equations: "y_t = (H_{t-1} + diag(u) k_t v_tᵀ)ᵀ r_t,  H_t = diag(w_t) H_{t-1} + k_t v_tᵀ",
    },
    Architecture {
        name: "rwkv7",
        title: "RWKV-7 time mix (Goose)",
        paper: "2503.14456",
        state: "matrix per head, [b, h, n, n], and the last token",
        equations: "H_t = (diag(w_t) - (κ_t∘a_t) κ_tᵀ) H_{t-1} + k̃_t v_tᵀ,  y_t = H_tᵀ r_t",
    },
];
