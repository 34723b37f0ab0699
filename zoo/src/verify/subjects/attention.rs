//! Softmax attention and what keeps a growing cache.

use serde_json::{Value, json};

pub(super) fn rows() -> Vec<(&'static str, Value)> {
    vec![
        ("mha", json!({"arch": "attention", "heads": 2})),
        ("gqa", json!({"arch": "attention", "heads": 4, "kv_heads": 2, "output_gate": true})),
        (
            "mqa-nope-bias",
            json!({"arch": "attention", "heads": 2, "kv_heads": 1, "rope": null,
            "qkv_bias": true, "out_bias": true, "qk_norm": {"kind": "rms", "eps": 1e-6}}),
        ),
        ("window", json!({"arch": "attention", "heads": 2, "window": 5})),
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
    ]
}
