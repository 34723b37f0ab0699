//! Memories that are trained mini-batch by mini-batch.

use super::Architecture;

pub(super) const ALL: &[Architecture] = &[
    Architecture {
        name: "ttt_linear",
        title: "TTT-Linear (test-time training of an affine map)",
        paper: "2407.04620",
        state: "matrix and bias per head, [b, h, n+1, n], at the mini-batch's start, and the sum of gradients since",
        equations: "G_t = G_{t-1} + η_t ∇½|f(k_t; W) - v_t|²,  W_t = W - c_i G_t,  y_t = f(q_t; W_t),  \
                    f(x) = x + LN(x W1 + b1)",
    },
    Architecture {
        name: "ttt_mlp",
        title: "TTT-MLP (test-time training of a two-layer network)",
        paper: "2407.04620",
        state: "matrices and biases per head, [b, h, n+1, 4n] and [b, h, 4n+1, n], at the mini-batch's start, and \
                the sums of gradients since",
        equations: "as ttt_linear with f(x) = x + LN(gelu(x W1 + b1) W2 + b2)",
    },
    Architecture {
        name: "titans_neural_memory",
        title: "Titans neural memory, as in titans-pytorch (deep memory with momentum, a step per chunk)",
        paper: "2501.00663",
        state: "weights of a two-layer memory per head, [b, h, n, m], [b, h, m, n] and [b, h, 1, n], and their \
                momentum; inside a chunk also its gradient",
        equations: "S_c = μ_c S_{c-1} - Σ_t η_t ∇mean(M(k_t; W_a) - v_t)²,  W_c = (1 - α_c) W_{c-1} + S_c,  \
                    y_t = M(q_t; W_c)",
    },
];
