//! Memories that learn while they read.

use serde_json::{Value, json};

pub(super) fn rows() -> Vec<(&'static str, Value)> {
    vec![
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
