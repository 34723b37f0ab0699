use std::fs;

use seqzoo_layers::system::Form;

use super::*;
use crate::train::weights;

fn architecture(config: serde_json::Value) -> Result<Architecture> {
    Architecture::new(config, "config.json")
}

#[test]
fn unknown_types_and_settings_are_refused_by_name() {
    let message = |config| architecture(config).err().expect("an error").to_string();
    let unknown = message(serde_json::json!({"model_type": "bert"}));
    assert!(unknown.contains("`bert`") && unknown.contains("llama"), "{unknown}");
    let llama = serde_json::json!({
        "model_type": "llama", "vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": 8
    });
    assert_eq!(architecture(llama.clone()).unwrap().config().d_model, 8);
    for (field, value, expected) in [
        ("hidden_size", serde_json::json!("wide"), "`hidden_size`"),
        ("vocab_size", serde_json::json!(null), "`vocab_size` is missing"),
        ("hidden_act", serde_json::json!("quick_gelu"), "quick_gelu"),
        ("rope_parameters", serde_json::json!({"rope_type": "yarn"}), "yarn"),
        ("rope_parameters", serde_json::json!({"rope_type": "llama3"}), "`factor` is missing"),
        ("num_hidden_layers", serde_json::json!(0), "pattern"),
    ] {
        let mut config = llama.clone();
        config[field] = value;
        let message = message(config);
        assert!(message.contains(expected), "{field}: {message}");
    }
}

#[test]
fn left_over_and_missing_tensors_are_named() {
    let llama = serde_json::json!({
        "model_type": "llama", "vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 0,
        "num_attention_heads": 2, "intermediate_size": 8
    });
    assert!(architecture(llama).is_err());
    let gpt2 = architecture(serde_json::json!({
        "model_type": "gpt2", "vocab_size": 8, "n_embd": 8, "n_head": 2, "n_layer": 1, "n_positions": 4
    }));
    let error = gpt2.unwrap().model(&Named::new(), &Device::flex()).expect_err("an error").to_string();
    assert!(error.contains("transformer.wte.weight"), "{error}");
}

#[test]
fn module_paths_name_parts() {
    let qwen = architecture(serde_json::json!({
        "model_type": "qwen3_next", "vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 4,
        "num_attention_heads": 2, "head_dim": 8, "intermediate_size": 8, "num_experts": 0
    }));
    let qwen = qwen.unwrap();
    assert_eq!(qwen.part("model.layers.3.self_attn"), Some(Part::Mixer(3)));
    assert_eq!(qwen.part("model.layers.0.linear_attn"), Some(Part::Mixer(0)));
    assert_eq!(qwen.part("model.layers.1.mlp"), Some(Part::Mlp(1)));
    assert_eq!(qwen.part("model.layers.2"), Some(Part::Block(2)));
    assert_eq!(qwen.part("model.layers.9"), None);
    assert_eq!(qwen.part("model.norm"), None);
}

/// The first GPT-2 on the hub has no `transformer.` before its names.
#[test]
fn a_checkpoint_without_its_outer_module_is_the_same_model() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/models/gpt2");
    let dir = tempfile::tempdir().unwrap();
    fs::copy(golden.join("config.json"), dir.path().join("config.json")).unwrap();
    let device = Device::flex();
    let named = tensors(&golden.join("model.safetensors"), &device).unwrap().into_iter();
    let bare = named.map(|(name, value)| (name.replacen("transformer.", "", 1), value)).collect();
    fs::write(dir.path().join("model.safetensors"), weights::to_bytes(&bare, &[]).unwrap()).unwrap();
    let logits = |dir: &Path| {
        let model = load(dir, &device).unwrap();
        let tokens = model.tokens(&[vec![1, 2, 3]]).unwrap();
        Value::from(model.forward(tokens, model.initial_state(1), Form::Auto).unwrap().logits)
            .to_f64()
            .unwrap()
    };
    assert_eq!(logits(dir.path()), logits(&golden));
}
