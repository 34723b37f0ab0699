//! Linear attention and its decayed relatives.

use super::Architecture;

pub(super) const ALL: &[Architecture] = &[
    Architecture {
        name: "linear_attention",
        title: "Linear attention (Performer, cosFormer, Based, ReBased, Hedgehog, DPFP by their feature maps)",
        paper: "2006.16236",
        state: "matrix per head, [b, h, m, p+1]: sums of keys' m features times values, and of features",
        equations: "H_t = H_{t-1} + φ(k_t) v_tᵀ,  s_t = s_{t-1} + φ(k_t),  y_t = H_tᵀφ(q_t) / s_t·φ(q_t)",
    },
    Architecture {
        name: "lightning",
        title: "Lightning attention (TransNormerLLM, MiniMax-01)",
        paper: "2401.04658",
        state: "matrix per head, [b, h, n, n] (twice as tall with LRPE positions)",
        equations: "H_t = λ_h H_{t-1} + k_t v_tᵀ,  y_t = H_tᵀ q_t,  λ_h = exp(-s_h) fixed",
    },
    Architecture {
        name: "normalized_attention",
        title: "Normalised attention (linear attention over a learned normaliser)",
        paper: "2405.15731",
        state: "matrix per head, [b, h, n, p]",
        equations: "H_t = H_{t-1} + k_t v_tᵀ,  y_t = H_tᵀ q_t / η_t,  log η_t = ν(w·x_t + o)",
    },
    Architecture {
        name: "retnet",
        title: "RetNet (multi-scale retention)",
        paper: "2307.08621",
        state: "matrix per head, [b, h, n, p]",
        equations: "H_t = γ_h H_{t-1} + k_t v_tᵀ,  y_t = H_tᵀ q_t/√n,  γ_h = 1 - 2^{-5-h};  q, k rotated",
    },
    Architecture {
        name: "gla",
        title: "Gated linear attention (GLA)",
        paper: "2312.06635",
        state: "matrix per head, [b, h, n, p]",
        equations: "H_t = diag(α_t) H_{t-1} + k_t v_tᵀ,  y_t = H_tᵀ q_t/√n,  log α_t = log_sigmoid(W₂W₁x_t + b)/16",
    },
    Architecture {
        name: "simple_gla",
        title: "Simple gated linear attention (one decay per head)",
        paper: "2312.06635",
        state: "matrix per head, [b, h, n, p], and the last 3 inputs of each convolution",
        equations: "H_t = α_t H_{t-1} + k_t v_tᵀ,  y_t = H_tᵀ q_t/√n,  log α_t = log_sigmoid(W x_t + b)/16",
    },
    Architecture {
        name: "hgrn2",
        title: "HGRN2 (gated linear RNN with state expansion)",
        paper: "2404.07904",
        state: "matrix per head, [b, h, n, p]",
        equations: "H_t = diag(f_t) H_{t-1} + (1 - f_t) v_tᵀ,  y_t = H_tᵀ q_t/√n,  f_t = l + (1-l) sigmoid(W x_t)",
    },
    Architecture {
        name: "hgrn",
        title: "HGRN (gated linear RNN, real or rotating)",
        paper: "2311.04823",
        state: "vector, [b, n], or twice that if it rotates",
        equations: "h_t = f_t ∘ e^{iθ} h_{t-1} + (1 - f_t) ∘ c_t,  f_t = l + (1-l) sigmoid(W x_t)",
    },
    Architecture {
        name: "flow",
        title: "Flow-Attention (Flowformer), causal",
        paper: "2202.06258",
        state: "matrix per head, [b, h, n, n], and running sums of 4n + 1 numbers",
        equations: "H_t = H_{t-1} + k_t (c_t v_t)ᵀ,  y_t = sigmoid(Î_t) (I_t/t) H_tᵀ q_t,  c_t = t e^{Ô_t} / Σ_{s≤t} e^{Ô_s}",
    },
    Architecture {
        name: "gsa",
        title: "Gated slot attention",
        paper: "2409.07146",
        state: "slots per head, keys and values [b, h, m, n] each",
        equations: "K_t = diag(α_t) K_{t-1} + (1-α_t) k_tᵀ,  V_t likewise,  y_t = V_tᵀ softmax(K_t q_t)",
    },
    Architecture {
        name: "abc",
        title: "Attention with bounded-memory control",
        paper: "2110.02488",
        state: "slots per head, keys [b, h, m, n], values [b, h, m, p] and their log weights [b, h, 1, m]",
        equations: "K_t = Σ_{s≤t} softmax_s(φ) k_sᵀ,  V_t likewise,  y_t = V_tᵀ softmax(K_t q_t/√n)",
    },
];
