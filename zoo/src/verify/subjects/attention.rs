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
        ("sink", json!({"arch": "attention", "heads": 4, "kv_heads": 2, "window": 6, "sink": "learned"})),
        ("softmax1", json!({"arch": "attention", "heads": 2, "softcap": 2.0, "sink": "zero"})),
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
        ("default", json!({"arch": "forgetting_attention", "attention": {"rope": null}})),
        (
            "gqa-window-gated-sink",
            json!({"arch": "forgetting_attention", "forget_bias": 1.0,
            "attention": {"heads": 4, "kv_heads": 2, "window": 6, "output_gate": true,
                "qk_norm": {"kind": "rms", "eps": 1e-6}, "sink": "learned"}}),
        ),
        ("default", json!({"arch": "path_attention", "attention": {"heads": 2, "rope": null}, "rank": 4})),
        (
            "gqa-forget-no-conv",
            json!({"arch": "path_attention", "rank": null, "conv_kernel": 0, "forget_gate": true,
            "attention": {"heads": 4, "kv_heads": 2, "rope": null, "output_gate": true}}),
        ),
        (
            "rope",
            json!({"arch": "mla", "heads": 2, "kv_rank": 6, "rope_dim": 4, "q_rank": 5, "value_dim": 3}),
        ),
        ("nope", json!({"arch": "mla", "heads": 4, "kv_rank": 8, "rope_dim": 2, "rope": null})),
        ("nothing-shared", json!({"arch": "mla", "heads": 2, "kv_rank": 5, "rope_dim": 0, "rope": null})),
    ]
}
