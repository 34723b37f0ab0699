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
        name: "gated_deltanet",
        title: "Gated DeltaNet",
        paper: "2412.06464",
        state: "matrix per head, [b, h, n, p], and the last 3 inputs of each convolution",
        equations: "H_t = α_t (I - β_t k_t k_tᵀ) H_{t-1} + β_t k_t v_tᵀ,  y_t = H_tᵀ q_t/√n",
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
