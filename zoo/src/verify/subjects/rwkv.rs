//! RWKV.

use serde_json::{Value, json};

pub(super) fn rows() -> Vec<(&'static str, Value)> {
    vec![
        ("default", json!({"arch": "rwkv4"})),
        ("last-layer", json!({"arch": "rwkv4", "hidden": 6, "layer": 2, "layers": 3})),
        ("default", json!({"arch": "rwkv6", "heads": 2, "head_dim": 4, "mix_rank": 4, "decay_rank": 6})),
        (
            "last-layer",
            json!({"arch": "rwkv6", "heads": 1, "head_dim": 6, "expand_v": 2.0, "mix_rank": 3,
            "decay_rank": 4, "norm_eps": 1e-5, "layer": 2, "layers": 3}),
        ),
        ("default", json!({"arch": "rwkv7", "heads": 2, "head_dim": 4})),
        (
            "last-layer",
            json!({"arch": "rwkv7", "heads": 1, "head_dim": 6, "decay_rank": 3, "gate_rank": 4,
            "layer": 2, "layers": 3}),
        ),
    ]
}
