//! Linear attention and its decayed relatives.

use serde_json::{Value, json};

pub(super) fn rows() -> Vec<(&'static str, Value)> {
    vec![
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
        ("lrpe", json!({"arch": "lightning", "heads": 2, "lrpe": "first", "layers": 3})),
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
    ]
}
