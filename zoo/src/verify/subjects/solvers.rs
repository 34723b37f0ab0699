//! Linear memories that are read in other ways than by one product.

use serde_json::{Value, json};

pub(super) fn rows() -> Vec<(&'static str, Value)> {
    vec![
        // Twice as many steps as the heads have channels are as good as the default, and a quarter of the time.
        ("default", json!({"arch": "mesa_net", "heads": 2, "head_dim": 4, "steps": 8})),
        (
            // Stopped half-way, the solver's derivative by λ is ill-conditioned; after two steps it is not yet.
            "few-steps-gated",
            json!({"arch": "mesa_net", "heads": 1, "head_dim": 6, "steps": 2, "lambda_min": 0.01,
            "conv_kernel": 0, "output_gate": true}),
        ),
        ("default", json!({"arch": "log_linear_attention", "heads": 2, "head_dim": 4})),
        (
            "few-levels",
            json!({"arch": "log_linear_attention", "heads": 1, "head_dim": 6, "levels": 3, "conv_kernel": 0}),
        ),
    ]
}
