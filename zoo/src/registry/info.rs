//! What `seqzoo list` and `seqzoo describe` print about each architecture.

/// Facts about an architecture that its code cannot state.
#[derive(Clone, Copy, Debug)]
pub struct Architecture {
    /// Name in files and on the command line.
    pub name: &'static str,
    /// Full name.
    pub title: &'static str,
    /// arXiv id of the paper.
    pub paper: &'static str,
    /// What the state is and how it grows.
    pub state: &'static str,
    /// The recurrence in plain text.
    pub equations: &'static str,
}

const ARCHITECTURES: &[Architecture] = &[
    Architecture {
        name: "attention",
        title: "Softmax attention (MHA, GQA, MQA; rotary positions)",
        paper: "1706.03762",
        state: "cache of keys and values, [b, h_kv, T, n] twice: grows with every token",
        equations: "s_ij = q_i·k_j/√n (j ≤ i),  y_i = Σ_j softmax_j(s_i) v_j",
    },
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
        state: "matrix per head, [b, h, n, n]",
        equations: "H_t = λ_h H_{t-1} + k_t v_tᵀ,  y_t = H_tᵀ q_t,  λ_h = exp(-s_h) fixed",
    },
    Architecture {
        name: "gated_deltanet",
        title: "Gated DeltaNet",
        paper: "2412.06464",
        state: "matrix per head, [b, h, n, p], and the last 3 inputs of each convolution",
        equations: "H_t = α_t (I - β_t k_t k_tᵀ) H_{t-1} + β_t k_t v_tᵀ,  y_t = H_tᵀ q_t/√n",
    },
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
    Architecture {
        name: "moh",
        title: "Mixture of heads (MoH) over softmax attention",
        paper: "2410.11842",
        state: "attention's cache, [b, h_kv, T, n] twice: every head reads every token",
        equations: "y_t = Σ_i g_i(x_t) H_i(t) W_O^i,  g_i = 0 unless head i is shared or among the k chosen",
    },
    Architecture {
        name: "yaad",
        title: "Yaad (Miras: deep memory trained on a Huber loss)",
        paper: "2504.13173",
        state: "weights of a two-layer memory per head, [b, h, n, 4n] and [b, h, 4n, n], now and at the \
                chunk's start, and the last 3 inputs of each convolution",
        equations: "A_t = α_t A_{t-1} - η_t ∇ℓ_δ(W_c; k_t, v_t),  y_t = M(q_t; A_t)",
    },
];

/// All architectures, in the registry's order.
pub fn architectures() -> &'static [Architecture] {
    ARCHITECTURES
}

/// The architecture of that name.
pub fn architecture(name: &str) -> Option<&'static Architecture> {
    ARCHITECTURES.iter().find(|a| a.name == name)
}

/// The known name most like a misspelt one, if any is close.
pub fn nearest(name: &str) -> Option<&'static str> {
    ARCHITECTURES
        .iter()
        .map(|a| (strsim::jaro_winkler(&name.to_lowercase(), a.name), a.name))
        .filter(|(score, _)| *score > 0.7)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::MixerConfig;

    #[test]
    fn every_registered_mixer_is_described_in_order() {
        let described: Vec<_> = architectures().iter().map(|a| a.name).collect();
        assert_eq!(described, MixerConfig::NAMES);
    }

    #[test]
    fn a_misspelt_name_finds_its_neighbour() {
        assert_eq!(nearest("gated_deltnet"), Some("gated_deltanet"));
        assert_eq!(nearest("zzz"), None);
    }
}
