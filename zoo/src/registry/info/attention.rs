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
    Architecture {
        name: "forgetting_attention",
        title: "Forgetting attention (Forgetting Transformer, FoX)",
        paper: "2503.02130",
        state: "cache of keys, values and log f, [b, h_kv, T, n] twice and [b, h, T, 1]",
        equations: "s_ij = q_i·k_j/√n + Σ_{j<s≤i} log f_s,  f_t = sigmoid(W_f x_t + b_f),  y_i = Σ_j softmax_j(s_i) v_j",
    },
    Architecture {
        name: "path_attention",
        title: "PaTH attention (positions by products of reflections)",
        paper: "2505.16381",
        state: "cache of keys, values, w and β, [b, h_kv, T, n] three times and [b, h_kv, T, 1]",
        equations: "s_ij = q_iᵀ H_i ⋯ H_{j+1} k_j/√n,  H_t = I - β_t w_t w_tᵀ,  y_i = Σ_j softmax_j(s_i) v_j",
    },
    Architecture {
        name: "mla",
        title: "Multi-head latent attention (DeepSeek-V2; without positions as in Kimi Linear)",
        paper: "2405.04434",
        state: "cache of one latent and one shared key per token, [b, 1, T, kv_rank + rope_dim]",
        equations: "c_t = norm(W_dkv x_t),  [k_j | v_j] = W_ukv c_j per head,  s_ij = (q^n_i·k_j + q^r_i·r_j)/√(n+r)",
    },
];
