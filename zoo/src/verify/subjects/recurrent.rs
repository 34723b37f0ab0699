//! State-space models and recurrent cells.

use serde_json::{Value, json};

pub(super) fn rows() -> Vec<(&'static str, Value)> {
    vec![
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
    ]
}
