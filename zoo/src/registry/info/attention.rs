//! Softmax attention and what keeps a growing cache.

use super::Architecture;

pub(super) const ALL: &[Architecture] = &[
    Architecture {
        name: "attention",
        title: "Softmax attention (MHA, GQA, MQA; rotary positions)",
        paper: "1706.03762",
        state: "cache of keys and values, [b, h_kv, T, n] twice: grows with every token",
        equations: "s_ij = q_i·k_j/√n (j ≤ i),  y_i = Σ_j softmax_j(s_i) v_j",
    },
    Architecture {
        name: "moh",
        title: "Mixture of heads (MoH) over softmax attention",
        paper: "2410.11842",
        state: "attention's cache, [b, h_kv, T, n] twice: every head reads every token",
        equations: "y_t = Σ_i g_i(x_t) H_i(t) W_O^i,  g_i = 0 unless head i is shared or among the k chosen",
    },
];
