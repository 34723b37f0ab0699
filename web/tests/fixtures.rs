//! The files with which the page is drawn before the engine is there (`first.json`) and with which the
//! browser's tests compare what the engine computes there (`reference.json`). Both are written by
//! `SEQZOO_WRITE=1 cargo all --test fixtures`, and both must be what this library computes.

use std::fs;
use std::path::{Path, PathBuf};

use seqzoo_web::{Model, describe};
use serde_json::{Value, json};

/// The models of the first picture, exactly as the page asks for them.
const FIRST: &[&str] = &[
    "attention",
    "linear_attention",
    r#"{"arch":"mamba2","expand":1,"head_dim":8,"state":16}"#,
    "lstm",
    "moh",
    r#"{"arch":"yaad","heads":2,"head_dim":8}"#,
];

/// More kinds of state and transition than the first picture has.
const REFERENCE: &[&str] = &[
    r#"{"arch": "attention", "heads": 2, "head_dim": 8}"#,
    r#"{"arch": "linear_attention", "heads": 2, "head_dim": 8, "key_dim": 8}"#,
    r#"{"arch": "gated_deltanet", "heads": 2, "head_dim": 8}"#,
    r#"{"arch": "mamba2", "expand": 1.0, "head_dim": 16, "state": 8}"#,
    r#"{"arch": "kda", "heads": 2, "head_dim": 8}"#,
    r#"{"arch": "rglru", "heads": 2}"#,
    r#"{"arch": "lstm", "hidden": 16}"#,
    r#"{"arch": "moh", "attention": {"heads": 4, "head_dim": 8}, "routing": {"shared": 1, "top_k": 1}}"#,
    r#"{"arch": "yaad", "heads": 2, "head_dim": 4}"#,
    r#"{"arch": "titans", "heads": 2, "head_dim": 4}"#,
    r#"{"mixer": {"arch": "gla", "heads": 2}, "d_model": 24, "layers": 2}"#,
];

fn fixture(specs: &[&str], text: &str, seed: u64) -> Value {
    let models = specs.iter().map(|spec| {
        let mut model = Model::preset(spec, seed).unwrap();
        let (info, trace) = (model.info().unwrap(), model.read(text).unwrap());
        let arch = describe(info.arch).unwrap();
        let spec = json!({ "kind": "drawn", "config": spec, "seed": seed });
        json!({ "spec": spec, "info": info, "arch": arch, "trace": trace, "states": model.states(0).unwrap() })
    });
    json!({ "text": text, "seed": seed, "models": models.collect::<Vec<_>>() })
}

/// Fewer significant digits: four are enough for a picture, seven are all of a single-precision number.
fn rounded(value: Value, digits: usize) -> Value {
    match value {
        Value::Number(n) if n.is_f64() => {
            let x = n.as_f64().unwrap_or(0.0);
            let rounded: f64 = format!("{x:.*e}", digits - 1).parse().unwrap();
            if rounded.fract() == 0.0 && rounded.abs() < 1e9 { json!(rounded as i64) } else { json!(rounded) }
        }
        Value::Array(items) => items.into_iter().map(|item| rounded(item, digits)).collect(),
        Value::Object(fields) => {
            fields.into_iter().map(|(key, value)| (key, rounded(value, digits))).collect()
        }
        other => other,
    }
}

/// Compares two values; numbers may differ by `tolerance` of the largest in their array.
fn compare(found: &Value, expected: &Value, tolerance: f64, place: &str) {
    match (found, expected) {
        (Value::Number(a), Value::Number(b)) => {
            let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
            assert!((a - b).abs() <= tolerance * b.abs().max(1.0), "{place}: {a} for {b}");
        }
        (Value::Array(a), Value::Array(b)) => {
            assert_eq!(a.len(), b.len(), "{place}");
            let largest = b.iter().filter_map(Value::as_f64).fold(0.0, |m: f64, x| m.max(x.abs()));
            for (i, (a, b)) in a.iter().zip(b).enumerate() {
                match (a.as_f64(), b.as_f64()) {
                    (Some(a), Some(b)) => {
                        assert!((a - b).abs() <= tolerance * largest.max(1e-3), "{place}[{i}]: {a} for {b}");
                    }
                    _ => compare(a, b, tolerance, &format!("{place}[{i}]")),
                }
            }
        }
        (Value::Object(a), Value::Object(b)) => {
            assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>(), "{place}");
            for (key, value) in a {
                compare(value, &b[key], tolerance, &format!("{place}.{key}"));
            }
        }
        _ => assert_eq!(found, expected, "{place}"),
    }
}

fn check(path: &Path, computed: &Value, tolerance: f64) {
    if std::env::var_os("SEQZOO_WRITE").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, serde_json::to_string(computed).unwrap() + "\n").unwrap();
    }
    let text = fs::read_to_string(path).unwrap_or_else(|e| {
        panic!("{}: {e}; `SEQZOO_WRITE=1 cargo all --test fixtures` writes it", path.display())
    });
    compare(computed, &serde_json::from_str(&text).unwrap(), tolerance, "");
}

fn site() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("site")
}

#[test]
fn the_first_picture_is_what_the_library_computes() {
    let computed = rounded(fixture(FIRST, "the cat sat on the mat. the cat", 0), 4);
    check(&site().join("public/first.json"), &computed, 2e-3);
}

#[test]
fn the_reference_is_what_the_library_computes() {
    let computed = rounded(fixture(REFERENCE, "to be or", 7), 7);
    check(&site().join("e2e/reference.json"), &computed, 1e-5);
}
