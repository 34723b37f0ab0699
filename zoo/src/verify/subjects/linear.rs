//! Linear attention and its decayed relatives.

use serde_json::{Value, json};

pub(super) fn rows() -> Vec<(&'static str, Value)> {
    vec![
        ("default", json!({"arch": "linear_attention", "heads": 2})),
        (
            "relu-gated",
            json!({"arch": "linear_attention", "heads": 2, "feature_map": "relu",
            "normalizer": {"kind": "sum", "eps": 0.1}, "output_gate": "silu"}),
        ),
        (
            "signed",
            json!({"arch": "linear_attention", "heads": 1, "head_dim": 6, "feature_map": "identity",
            "normalizer": {"kind": "head_norm", "eps": 1e-5}}),
        ),
        (
            "square",
            json!({"arch": "linear_attention", "heads": 2, "feature_map": "square",
            "normalizer": {"kind": "none"}, "scale": 1.0}),
        ),
        ("tnl", json!({"arch": "lightning", "heads": 4, "layer": 1, "layers": 4})),
        ("lrpe", json!({"arch": "lightning", "heads": 2, "lrpe": "first", "layers": 3})),
        (
            "minimax",
            json!({"arch": "lightning", "heads": 2, "head_dim": 6, "slopes": {"kind": "minimax"},
            "value_activation": "silu", "norm": {"kind": "rms", "eps": 1e-6}, "gate": {"kind": "sigmoid"}}),
        ),
        (
            "paper",
            json!({"arch": "lightning", "heads": 4, "slopes": {"kind": "paper_linear", "h0": 1},
            "norm": {"kind": "layer", "eps": 1e-5}, "gate": {"kind": "low_rank", "rank": 3}, "scale": 0.5}),
        ),
        (
            "bare",
            json!({"arch": "lightning", "heads": 2, "slopes": {"kind": "none"},
            "norm": {"kind": "none"}, "gate": {"kind": "none"}}),
        ),
        (
            "performer",
            json!({"arch": "linear_attention", "heads": 2, "feature_map": {"favor": {"features": 7, "seed": 3}}}),
        ),
        (
            "cosformer",
            json!({"arch": "linear_attention", "heads": 2, "feature_map": {"cosformer": {"length": 64}},
            "normalizer": {"kind": "sum", "eps": 0.1}, "qkv_bias": true, "out_bias": true}),
        ),
        (
            "based",
            json!({"arch": "linear_attention", "heads": 2, "key_dim": 3, "feature_map": "taylor",
            "normalizer": {"kind": "sum_at_least", "eps": 1e-6}}),
        ),
        (
            "rebased",
            json!({"arch": "linear_attention", "heads": 2, "key_dim": 4, "feature_map": "rebased",
            "tie_feature_maps": true, "normalizer": {"kind": "sum", "eps": 0.1}}),
        ),
        (
            "hedgehog",
            json!({"arch": "linear_attention", "heads": 2, "key_dim": 4,
            "feature_map": {"hedgehog": {"form": "joint"}}}),
        ),
        (
            "hedgehog-halves",
            json!({"arch": "linear_attention", "heads": 2, "key_dim": 3, "scale": 1.0,
            "feature_map": {"hedgehog": {"form": "halves"}}, "normalizer": {"kind": "head_norm", "eps": 1e-5}}),
        ),
        (
            "hedgehog-exp",
            json!({"arch": "linear_attention", "heads": 2, "key_dim": 3,
            "feature_map": {"hedgehog": {"form": "exp"}}}),
        ),
        (
            "dpfp",
            json!({"arch": "linear_attention", "heads": 2, "key_dim": 4, "feature_map": {"dpfp": {"nu": 3}},
            "norm_q": true, "norm_k": true, "normalizer": {"kind": "sum", "eps": 0.1}}),
        ),
        (
            "t2r",
            json!({"arch": "linear_attention", "heads": 2, "feature_map": {"t2r": {"features": 5}},
            "normalizer": {"kind": "sum", "eps": 0.1}}),
        ),
        ("exp", json!({"arch": "linear_attention", "heads": 2, "feature_map": "exp"})),
        ("default", json!({"arch": "normalized_attention", "heads": 2})),
        (
            "exp-conv",
            json!({"arch": "normalized_attention", "heads": 1, "key_dim": 4, "value_dim": 6, "eta": "exp",
            "offset": false, "key_scale": false, "conv_kernel": 3}),
        ),
        (
            "elu-exp_elu",
            json!({"arch": "normalized_attention", "heads": 2, "feature_map": "elu_plus_one", "eta": "exp_elu"}),
        ),
        ("sigmoid", json!({"arch": "normalized_attention", "heads": 2, "eta": "sigmoid", "offset": false})),
        ("softplus", json!({"arch": "normalized_attention", "heads": 2, "eta": "softplus", "offset": false})),
        ("default", json!({"arch": "retnet", "heads": 2})),
        (
            // The gradient takes the divisor as a constant, which it is but for the norm's epsilon.
            "divided",
            json!({"arch": "retnet", "heads": 2, "key_dim": 6, "value_dim": 5, "score_norm": true,
            "norm_eps": 1e-12, "norm_weight": true}),
        ),
        (
            "grouped-conv",
            json!({"arch": "retnet", "heads": 4, "kv_heads": 2, "key_dim": 4, "value_dim": 4, "conv_kernel": 3,
            "rotation": {"kind": "rope", "base": 100.0}, "output_gate": null}),
        ),
        ("default", json!({"arch": "gla", "heads": 2})),
        (
            "grouped-conv",
            json!({"arch": "gla", "heads": 4, "kv_heads": 2, "key_dim": 5, "value_dim": 3, "conv_kernel": 4,
            "conv_bias": true, "feature_map": "relu", "gate_rank": 3, "gate_temperature": 1.0,
            "min_log_decay": -2.0, "output_gate": "sigmoid", "norm_weight": false}),
        ),
        ("default", json!({"arch": "simple_gla", "heads": 2})),
        (
            "grouped-no-conv",
            json!({"arch": "simple_gla", "heads": 4, "kv_heads": 1, "key_dim": 3, "value_dim": 6, "conv_kernel": 0,
            "feature_map": "silu", "gate_temperature": 1.0, "output_gate": null}),
        ),
        ("default", json!({"arch": "hgrn2", "heads": 2})),
        (
            "bounded-conv",
            json!({"arch": "hgrn2", "heads": 2, "key_dim": 6, "value_dim": 3, "lower_bound": 0.4, "conv_kernel": 3,
            "query_activation": "sigmoid", "value_activation": "silu"}),
        ),
        ("default", json!({"arch": "hgrn"})),
        (
            "complex-bounded-conv",
            json!({"arch": "hgrn", "width": 10, "complex": true, "lower_bound": 0.3, "conv_kernel": 3,
            "conv_bias": true, "norm": {"kind": "layer", "eps": 1e-5}}),
        ),
        ("default", json!({"arch": "flow", "heads": 2})),
        ("language-no-bias", json!({"arch": "flow", "heads": 2, "head_dim": 5, "clamp": 5.0, "bias": false})),
        ("default", json!({"arch": "gsa", "heads": 2, "slots": 5})),
        (
            "fast",
            json!({"arch": "gsa", "heads": 1, "head_dim": 6, "slots": 3, "gate_root": 1.0, "scale": 0.5}),
        ),
        ("default", json!({"arch": "abc", "heads": 2, "slots": 5})),
        (
            "nope-wide",
            json!({"arch": "abc", "heads": 2, "head_dim": 3, "expand_v": 2.0, "slots": 4, "rope": null,
            "clamp": 1.0}),
        ),
    ]
}
