//! Linear attention and its decayed relatives.

use super::Architecture;

pub(super) const ALL: &[Architecture] = &[
    Architecture {
        name: "linear_attention",
        title: "Linear attention (feature maps; normalised or not)",
        paper: "2006.16236",
        state: "matrix per head, [b, h, n, n+1]: sums of keys times values, and of keys",
        equations: "H_t = H_{t-1} + φ(k_t) v_tᵀ,  s_t = s_{t-1} + φ(k_t),  y_t = H_tᵀφ(q_t) / s_t·φ(q_t)",
    },
    Architecture {
        name: "lightning",
        title: "Lightning attention (TransNormerLLM, MiniMax-01)",
        paper: "2401.04658",
        state: "matrix per head, [b, h, n, n] (twice as tall with LRPE positions)",
        equations: "H_t = λ_h H_{t-1} + k_t v_tᵀ,  y_t = H_tᵀ q_t,  λ_h = exp(-s_h) fixed",
    },
];
