//! Memories that learn while they read.

use super::Architecture;

pub(super) const ALL: &[Architecture] = &[Architecture {
    name: "yaad",
    title: "Yaad (Miras: deep memory trained on a Huber loss)",
    paper: "2504.13173",
    state: "weights of a two-layer memory per head, [b, h, n, 4n] and [b, h, 4n, n], now and at the \
                chunk's start, and the last 3 inputs of each convolution",
    equations: "A_t = α_t A_{t-1} - η_t ∇ℓ_δ(W_c; k_t, v_t),  y_t = M(q_t; A_t)",
}];
