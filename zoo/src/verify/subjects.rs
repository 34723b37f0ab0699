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
        (
            "mqa-nope-bias",
            json!({"arch": "attention", "heads": 2, "kv_heads": 1, "rope": null,
            "qkv_bias": true, "out_bias": true, "qk_norm": {"kind": "rms", "eps": 1e-6}}),
        ),
        ("window", json!({"arch": "attention", "heads": 2, "window": 5})),
        ("default", json!({"arch": "linear_attention", "heads": 2})),
        (
            "relu-gated",
            json!({"arch": "linear_attention", "heads": 2, "feature_map": "relu",
            "normalizer": {"kind": "sum", "eps": 0.1}, "output_gate": "silu"}),
        ),
        (
            "signed",
            json!({"arch": "linear_attention", "heads": 1, "head_dim": 6, "feature_map": "identity",
            "normalizer": {"kind": "head_norm", "eps": 1e-5}}),
        ),
        (
            "square",
            json!({"arch": "linear_attention", "heads": 2, "feature_map": "square",
            "normalizer": {"kind": "none"}, "scale": 1.0}),
        ),
        ("tnl", json!({"arch": "lightning", "heads": 4, "layer": 1, "layers": 4})),
        (
            "minimax",
            json!({"arch": "lightning", "heads": 2, "head_dim": 6, "slopes": {"kind": "minimax"},
            "value_activation": "silu", "norm": {"kind": "rms", "eps": 1e-6}, "gate": {"kind": "sigmoid"}}),
        ),
        (
            "paper",
            json!({"arch": "lightning", "heads": 4, "slopes": {"kind": "paper_linear", "h0": 1},
            "norm": {"kind": "layer", "eps": 1e-5}, "gate": {"kind": "low_rank", "rank": 3}, "scale": 0.5}),
        ),
        (
            "bare",
            json!({"arch": "lightning", "heads": 2, "slopes": {"kind": "none"},
            "norm": {"kind": "none"}, "gate": {"kind": "none"}}),
        ),
        ("default", json!({"arch": "gated_deltanet", "heads": 2, "head_dim": 4})),
        (
            "wide-negative",
            json!({"arch": "gated_deltanet", "heads": 1, "value_heads": 2, "head_dim": 4,
            "expand_v": 2.0, "negative_eigenvalues": true}),
        ),
        ("no-conv", json!({"arch": "gated_deltanet", "heads": 2, "head_dim": 8, "conv_kernel": 0})),
        ("default", json!({"arch": "mamba2", "head_dim": 8, "state": 6})),
        (
            "groups-before-limits",
            json!({"arch": "mamba2", "head_dim": 4, "state": 5, "groups": 2,
            "norm": "before_gate", "proj_bias": true, "dt_limit_low": 0.01, "dt_limit_high": 0.08}),
        ),
        (
            "no-conv-no-norm",
            json!({"arch": "mamba2", "expand": 1.0, "head_dim": 8, "state": 6,
            "conv_kernel": 0, "norm": "none"}),
        ),
        ("default", json!({"arch": "rglru"})),
        (
            "wide-no-conv-no-bias",
            json!({"arch": "rglru", "lru_width": 24, "heads": 2, "conv_kernel": 0,
            "proj_bias": false, "activation": "silu"}),
        ),
        ("default", json!({"arch": "lstm"})),
        ("two-layers-narrow", json!({"arch": "lstm", "hidden": 6, "layers": 2, "forget_bias": null})),
        ("default", json!({"arch": "moh"})),
        (
            "paper-one-shared",
            json!({"arch": "moh", "attention": {"heads": 4, "kv_heads": 2},
            "routing": {"shared": 1, "top_k": 2, "scale": "paper"}}),
        ),
        (
            "query-norm",
            json!({"arch": "moh", "attention": {"heads": 4, "window": 6},
            "routing": {"shared": 2, "top_k": 1,
                "router": {"kind": "query_norm", "straight_through": false}}}),
        ),
        ("mlp", json!({"arch": "yaad", "heads": 2, "head_dim": 4, "chunk": 4, "gate_rank": 4})),
        (
            "linear",
            json!({"arch": "yaad", "heads": 2, "head_dim": 4, "memory": "linear", "chunk": 5,
            "bias": "huber_coordinate", "eta_base": 0.5, "delta_start": 0.5, "gate_rank": 4}),
        ),
        (
            "paper",
            json!({"arch": "yaad", "heads": 2, "head_dim": 4, "memory": {"mlp": {"expansion": 2}},
            "chunk": 1, "bias": {"huber_mixture": {}}, "decay": false, "rope": null, "conv_kernel": 0,
            "gate_rank": 4}),
        ),
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
