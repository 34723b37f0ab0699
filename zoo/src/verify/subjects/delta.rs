//! The delta family.

use serde_json::{Value, json};

pub(super) fn rows() -> Vec<(&'static str, Value)> {
    vec![
        ("default", json!({"arch": "deltanet", "heads": 2, "head_dim": 4})),
        (
            "sum-gated-wide",
            json!({"arch": "deltanet", "heads": 1, "head_dim": 4, "expand_v": 2.0, "conv_kernel": 0,
            "qk_activation": "elu_plus_one", "qk_norm": "sum", "negative_eigenvalues": true, "output_gate": true}),
        ),
        (
            "fixed-beta",
            json!({"arch": "deltanet", "heads": 2, "head_dim": 4, "qk_activation": "identity",
            "learned_beta": false}),
        ),
        ("default", json!({"arch": "gated_deltanet", "heads": 2, "head_dim": 4})),
        (
            "wide-negative",
            json!({"arch": "gated_deltanet", "heads": 1, "value_heads": 2, "head_dim": 4,
            "expand_v": 2.0, "negative_eigenvalues": true}),
        ),
        ("no-conv", json!({"arch": "gated_deltanet", "heads": 2, "head_dim": 8, "conv_kernel": 0})),
        ("default", json!({"arch": "deltaproduct", "heads": 2, "head_dim": 4})),
        (
            "three-ungated",
            json!({"arch": "deltaproduct", "heads": 1, "value_heads": 2, "head_dim": 4, "steps": 3,
            "gated": false, "conv_kernel": 0}),
        ),
        ("default", json!({"arch": "kda", "heads": 2, "head_dim": 4})),
        (
            "bounded-wide-negative",
            json!({"arch": "kda", "heads": 1, "head_dim": 5, "expand_v": 2.0, "rank": 3, "gate_bias": true,
            "decay_bound": 5.0, "negative_eigenvalues": true, "conv_kernel": 0}),
        ),
        ("default", json!({"arch": "comba", "heads": 2, "head_dim": 4})),
        (
            "after-decay-plain",
            json!({"arch": "comba", "heads": 1, "value_heads": 2, "head_dim": 4, "feedback": "after_decay",
            "inner_decay": false, "correction": null, "conv_kernel": 0}),
        ),
        ("default", json!({"arch": "dplr", "heads": 2, "head_dim": 4, "decay_rank": 3})),
        (
            "head-negative",
            json!({"arch": "dplr", "heads": 1, "head_dim": 4, "decay": "head", "negative_eigenvalues": true,
            "conv_kernel": 0}),
        ),
        ("rates", json!({"arch": "dplr", "heads": 2, "head_dim": 4, "decay_rank": 3, "bound": "rates"})),
        (
            "identity-rates",
            json!({"arch": "dplr", "heads": 2, "head_dim": 4, "decay": "none", "bound": "rates"}),
        ),
        ("default", json!({"arch": "longhorn", "expand": 1.0, "state": 4})),
        (
            "exact-no-conv",
            json!({"arch": "longhorn", "expand": 0.5, "state": 5, "rank": 3, "update": "exact",
            "conv_kernel": 0}),
        ),
        ("default", json!({"arch": "momentum_deltanet", "heads": 2, "head_dim": 4})),
        (
            "plain-wide",
            json!({"arch": "momentum_deltanet", "heads": 1, "value_heads": 2, "head_dim": 4, "expand_v": 1.5,
            "output_correction": false, "output_gate": false, "log_mu_floor": null, "conv_kernel": 0}),
        ),
    ]
}
