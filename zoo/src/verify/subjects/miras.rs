//! Memories that learn while they read.

use serde_json::{Value, json};

pub(super) fn rows() -> Vec<(&'static str, Value)> {
    [yaad(), builder(), members()].concat()
}

fn yaad() -> Vec<(&'static str, Value)> {
    vec![
        // Narrower heads make the memory's layer norm amplify rounding.
        ("mlp", json!({"arch": "yaad", "heads": 2, "head_dim": 16, "chunk": 4, "gate_rank": 4})),
        (
            "linear",
            json!({"arch": "yaad", "heads": 2, "head_dim": 4, "memory": "linear", "chunk": 5,
            "bias": "huber_coordinate", "eta_base": 0.5, "delta_start": 0.5, "gate_rank": 4}),
        ),
        // Larger steps make of the loss's jump and its steep tanh a chaos of roundings.
        (
            "paper",
            json!({"arch": "yaad", "heads": 2, "head_dim": 8, "memory": {"mlp": {"expansion": 2}},
            "chunk": 1, "bias": {"huber_mixture": {}}, "delta_start": 2.0, "eta_base": 0.0005, "decay": false,
            "rope": null, "conv_kernel": 0, "gate_rank": 4}),
        ),
    ]
}

fn builder() -> Vec<(&'static str, Value)> {
    vec![
        (
            "deep-row",
            json!({"arch": "miras", "heads": 2, "head_dim": 4, "memory": {"mlp": {"expansion": 2, "depth": 3}},
            "gates": "row", "chunk": 4, "gate_rank": 4}),
        ),
        (
            "mlp-all_d",
            json!({"arch": "miras", "heads": 2, "head_dim": 8, "memory": {"mlp": {"expansion": 2}},
            "gates": "all_d", "bias": {"value_less": {"nu": 1}}, "eta_base": 0.001, "chunk": 4,
            "gate_rank": 4}),
        ),
        (
            "ttt_mlp",
            json!({"arch": "miras", "heads": 2, "head_dim": 8, "memory": {"mlp": {"expansion": 2, "bias": true,
            "gelu": "tanh"}}, "retention": "none", "conv_kernel": 0, "chunk": 4, "gate_rank": 4}),
        ),
        (
            "linear-exact_link",
            json!({"arch": "miras", "heads": 2, "head_dim": 4, "memory": "linear", "bias": {"lp": {"p": 1.5}},
            "retention": {"lq": {"q": 3, "map": {"exact_link": {"scale": 1}}}}, "chunk": 4, "gate_rank": 4}),
        ),
        (
            "linear-all_d-momentum",
            json!({"arch": "miras", "heads": 2, "head_dim": 4, "memory": "linear", "gates": "all_d",
            "bias": "value_shift", "algorithm": {"momentum": {}}, "chunk": 5, "gate_rank": 4}),
        ),
        (
            "linear-dot-elastic",
            json!({"arch": "miras", "heads": 2, "head_dim": 4, "memory": "linear", "bias": "dot_product",
            "retention": {"elastic_net": {"threshold": 0.01}}, "eta_base": 1.0, "chunk": 4, "gate_rank": 4}),
        ),
        (
            "linear-chi_square",
            json!({"arch": "miras", "heads": 2, "head_dim": 4, "memory": "linear",
            "retention": {"f_divergence": {"divergence": "chi_square"}}, "read": "boundary", "eta_base": 0.5,
            "chunk": 4, "gate_rank": 4}),
        ),
        (
            "vector-bregman",
            json!({"arch": "miras", "heads": 2, "head_dim": 8, "memory": "vector", "retention": "bregman",
            "gates": "row", "chunk": 4, "lag_token": true, "gate_rank": 4}),
        ),
        (
            "mlp-boundary",
            json!({"arch": "miras", "heads": 2, "head_dim": 4, "memory": {"mlp": {"expansion": 2}},
            "retention": {"f_divergence": {"divergence": "reverse_kl"}}, "bias": "huber_norm",
            "read": "boundary", "chunk": 4, "gate_rank": 4}),
        ),
        (
            "implicit",
            json!({"arch": "miras", "heads": 2, "head_dim": 4, "memory": "linear", "algorithm": "implicit",
            "chunk": 1, "gate_rank": 4}),
        ),
        (
            "conjugate_gradient",
            json!({"arch": "miras", "heads": 2, "head_dim": 4, "memory": "linear",
            "algorithm": {"conjugate_gradient": {"iterations": 4}}, "chunk": 1, "gate_rank": 4}),
        ),
        (
            "multi_step",
            json!({"arch": "miras", "heads": 2, "head_dim": 4, "memory": "linear", "bias": "huber_norm",
            "algorithm": {"multi_step": {"steps": 2}}, "chunk": 1, "gate_rank": 4}),
        ),
    ]
}

fn members() -> Vec<(&'static str, Value)> {
    vec![
        ("mlp", json!({"arch": "moneta", "heads": 2, "head_dim": 4, "chunk": 4, "gate_rank": 4})),
        (
            "paper",
            json!({"arch": "moneta", "heads": 2, "head_dim": 4, "memory": {"mlp": {"expansion": 2}},
            "gates": "all_d", "retention": {"lq": {"map": {"literal": {"floor": 0.001}}}}, "chunk": 5,
            "gate_rank": 4}),
        ),
        ("mlp", json!({"arch": "memora", "heads": 2, "head_dim": 4, "chunk": 4, "gate_rank": 4})),
        (
            "linear-row",
            json!({"arch": "memora", "heads": 2, "head_dim": 4, "memory": "linear", "gates": "row",
            "chunk": 5, "eta_base": 4.0, "gate_rank": 4}),
        ),
        ("mlp", json!({"arch": "titans", "heads": 2, "head_dim": 8, "chunk": 4, "gate_rank": 4})),
        (
            "linear-row",
            json!({"arch": "titans", "heads": 2, "head_dim": 4, "memory": "linear", "gates": "row",
            "chunk": 5, "eta_base": 0.3, "gate_rank": 4}),
        ),
    ]
}
