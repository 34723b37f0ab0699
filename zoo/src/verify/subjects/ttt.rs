//! Memories that are trained mini-batch by mini-batch.

use serde_json::{Value, json};

pub(super) fn rows() -> Vec<(&'static str, Value)> {
    vec![
        ("default", json!({"arch": "ttt_linear", "heads": 2, "head_dim": 4, "mini_batch": 4})),
        (
            "mamba-backbone",
            json!({"arch": "ttt_linear", "heads": 2, "head_dim": 4, "mini_batch": 5, "share_qk": true,
            "conv_kernel": 4, "gate": true}),
        ),
        (
            "online-bare",
            json!({"arch": "ttt_linear", "heads": 2, "head_dim": 4, "mini_batch": 1, "memory_norm": false,
            "base_lr": 0.5, "rope_interleaved": false, "rope": {"fraction": 0.5}}),
        ),
        ("default", json!({"arch": "ttt_mlp", "heads": 2, "head_dim": 4, "mini_batch": 4})),
        (
            "narrow-gated",
            json!({"arch": "ttt_mlp", "heads": 2, "head_dim": 4, "memory": {"expansion": 1},
            "mini_batch": 3, "rope": null, "gate": true}),
        ),
        ("default", json!({"arch": "titans_neural_memory", "heads": 2, "head_dim": 4})),
        // Wide enough for the norm: over four channels its gradient can magnify rounding beyond the tolerances.
        (
            "chunked-refreshed",
            json!({"arch": "titans_neural_memory", "heads": 2, "head_dim": 8, "chunk": 3, "refresh": 6,
            "expansion": 1, "max_lr": 0.02}),
        ),
        (
            "one-head",
            json!({"arch": "titans_neural_memory", "heads": 1, "head_dim": 16, "chunk": 4, "momentum_bias": 1.0}),
        ),
    ]
}
