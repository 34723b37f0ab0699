//! The delta family.

use serde_json::{Value, json};

pub(super) fn rows() -> Vec<(&'static str, Value)> {
    vec![
        ("default", json!({"arch": "gated_deltanet", "heads": 2, "head_dim": 4})),
        (
            "wide-negative",
            json!({"arch": "gated_deltanet", "heads": 1, "value_heads": 2, "head_dim": 4,
            "expand_v": 2.0, "negative_eigenvalues": true}),
        ),
        ("no-conv", json!({"arch": "gated_deltanet", "heads": 2, "head_dim": 8, "conv_kernel": 0})),
    ]
}
