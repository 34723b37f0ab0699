//! Memories that learn while they read.

use super::Architecture;

pub(super) const ALL: &[Architecture] = &[
    Architecture {
        name: "yaad",
        title: "Yaad (Miras: deep memory trained on a Huber loss)",
        paper: "2504.13173",
        state: "weights of a two-layer memory per head, [b, h, n, 4n] and [b, h, 4n, n], now and at the \
                chunk's start, and the last 3 inputs of each convolution",
        equations: "A_t = α_t A_{t-1} - η_t ∇ℓ_δ(W_c; k_t, v_t),  y_t = M(q_t; A_t)",
    },
    Architecture {
        name: "miras",
        title: "Miras (any memory, loss, retention and learning algorithm)",
        paper: "2504.13173",
        state: "weights of the memory per head, one [b, h, rows, cols] per matrix, now and at the chunk's start \
                (with momentum that too), and the last 3 inputs of each convolution",
        equations: "A_t = α_t A_{t-1} - η_t ∇ℓ(W_c; k_t, v_t),  W_t = Φ(A_t),  y_t = M(q_t; W_t)",
    },
    Architecture {
        name: "moneta",
        title: "Moneta (Miras: cubic loss, weights of fixed 4-norm)",
        paper: "2504.13173",
        state: "weights of a two-layer memory per head, [b, h, n, 4n] and [b, h, 4n, n], now and at the \
                chunk's start, and the last 3 inputs of each convolution",
        equations: "A_t = α_t A_{t-1} - η_t ∇ℓ_p(W_c; k_t, v_t),  W_t = A_t / |A_t|_q^(q-2),  y_t = M(q_t; W_t)",
    },
    Architecture {
        name: "memora",
        title: "Memora (Miras: weights on a simplex)",
        paper: "2504.13173",
        state: "logits of a two-layer memory per head, [b, h, n, 4n] and [b, h, 4n, n], now and at the \
                chunk's start, and the last 3 inputs of each convolution",
        equations: "L_t = α_t L_{t-1} - η_t ∇ℓ(W_c; k_t, v_t),  W_t = c softmax(L_t),  y_t = M(q_t; W_t)",
    },
    Architecture {
        name: "titans",
        title: "Titans' long-term memory (deep memory with momentum)",
        paper: "2501.00663",
        state: "weights of a two-layer memory per head, [b, h, n, 4n] and [b, h, 4n, n], now and at the \
                chunk's start, their momentum, and the last 3 inputs of each convolution",
        equations: "S_t = μ_t S_{t-1} - η_t ∇ℓ(W_c; k_t, v_t),  A_t = α_t A_{t-1} + S_t,  y_t = M(q_t; A_t)",
    },
];
