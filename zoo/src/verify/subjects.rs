//! The rows of the parity matrix.

use serde_json::{Value, json};

use crate::registry::MixerConfig;

/// One row: an architecture in one configuration.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Architecture and variant, `attention/gqa`.
    pub name: String,
    /// The mixer.
    pub config: MixerConfig,
    /// Width of the layer under test.
    pub d_model: usize,
}

/// Every row, or the rows of one architecture.
pub fn subjects(architecture: Option<&str>) -> Vec<Subject> {
    let rows = table().into_iter().map(|(variant, config)| {
        let config: MixerConfig = match serde_json::from_value(config) {
            Ok(config) => config,
            Err(error) => panic!("row `{variant}` of the parity table does not parse: {error}"),
        };
        Subject { name: format!("{}/{variant}", config.name()), config, d_model: 16 }
    });
    rows.filter(|row| architecture.is_none_or(|name| row.config.name() == name)).collect()
}

/// A line per row; every architecture of the registry has at least one.
fn table() -> Vec<(&'static str, Value)> {
    vec![
        ("mha", json!({"arch": "attention", "heads": 2})),
        ("gqa", json!({"arch": "attention", "heads": 4, "kv_heads": 2, "output_gate": true})),
        ("mqa-nope-bias", json!({"arch": "attention", "heads": 2, "kv_heads": 1, "rope": null,
            "qkv_bias": true, "out_bias": true, "qk_norm": {"kind": "rms", "eps": 1e-6}})),
        ("window", json!({"arch": "attention", "heads": 2, "window": 5})),
        ("default", json!({"arch": "linear_attention", "heads": 2})),
        ("relu-gated", json!({"arch": "linear_attention", "heads": 2, "feature_map": "relu",
            "normalizer": {"kind": "sum", "eps": 0.1}, "output_gate": "silu"})),
        ("signed", json!({"arch": "linear_attention", "heads": 1, "head_dim": 6, "feature_map": "identity",
            "normalizer": {"kind": "head_norm", "eps": 1e-5}})),
        ("square", json!({"arch": "linear_attention", "heads": 2, "feature_map": "square",
            "normalizer": {"kind": "none"}, "scale": 1.0})),
        ("tnl", json!({"arch": "lightning", "heads": 4, "layer": 1, "layers": 4})),
        ("minimax", json!({"arch": "lightning", "heads": 2, "head_dim": 6, "slopes": {"kind": "minimax"},
            "value_activation": "silu", "norm": {"kind": "rms", "eps": 1e-6}, "gate": {"kind": "sigmoid"}})),
        ("paper", json!({"arch": "lightning", "heads": 4, "slopes": {"kind": "paper_linear", "h0": 1},
            "norm": {"kind": "layer", "eps": 1e-5}, "gate": {"kind": "low_rank", "rank": 3}, "scale": 0.5})),
        ("bare", json!({"arch": "lightning", "heads": 2, "slopes": {"kind": "none"},
            "norm": {"kind": "none"}, "gate": {"kind": "none"}})),
        ("default", json!({"arch": "gated_deltanet", "heads": 2, "head_dim": 4})),
        ("wide-negative", json!({"arch": "gated_deltanet", "heads": 1, "value_heads": 2, "head_dim": 4,
            "expand_v": 2.0, "negative_eigenvalues": true})),
        ("no-conv", json!({"arch": "gated_deltanet", "heads": 2, "head_dim": 8, "conv_kernel": 0})),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_architecture_has_a_row() {
        for name in MixerConfig::NAMES {
            assert!(!subjects(Some(name)).is_empty(), "{name} is not in the parity table");
        }
    }
}
