//! Writes trained models as half floats into a folder for the demo, with an index of what they can do:
//! `ship OUT RUNS NAME…`, where `RUNS/NAME` is a folder of `seqzoo train`. See `web/models.sh`.

use std::error::Error;
use std::fs;
use std::path::Path;

use burn::tensor::{DType, Device};
use futures_lite::future::block_on;
use seqzoo::data::{Batches, TextData};
use seqzoo::train::{Portable, evaluate};
use serde_json::{Value, json};

/// Batches of 16 rows on which a model is judged.
const JUDGED: usize = 16;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [out, runs, names @ ..] = args.as_slice() else {
        return Err("usage: ship OUT RUNS NAME…".into());
    };
    fs::create_dir_all(out)?;
    let mut index = Vec::new();
    for name in names {
        let entry = ship(name, &Path::new(runs).join(name), Path::new(out))?;
        println!("{entry}");
        index.push(entry);
    }
    fs::write(Path::new(out).join("index.json"), serde_json::to_string_pretty(&index)? + "\n")?;
    Ok(())
}

fn ship(name: &str, run: &Path, out: &Path) -> Result<Value, Box<dyn Error>> {
    let (device, file) = (Device::flex(), format!("{name}.safetensors"));
    let path = run.join("checkpoint/model.safetensors");
    let trained = Portable::from_bytes(&fs::read(&path)?, &path.display().to_string(), &device)?;
    let half = block_on(trained.to_bytes(DType::F16))?;
    fs::write(out.join(&file), &half)?;
    // What is judged is what ships.
    let shipped = Portable::from_bytes(&half, &file, &device)?;
    let mut batches: Box<dyn Batches> = match &shipped.task {
        Some(task) => Box::new(task.batches(u64::MAX, 16)?),
        None => Box::new(TextData::own_sources(&shipped.tokenizer)?.validation.batches(u64::MAX, 16, 96)?),
    };
    let judged = evaluate(&shipped.model, &mut *batches, JUDGED)?;
    let arch = shipped.model.config().mixers().next().map_or("", |mixer| mixer.name());
    let mut entry = json!({ "file": file, "arch": arch, "bytes": half.len(), "loss": round(judged.loss) });
    match &shipped.task {
        Some(task) => {
            entry["task"] = json!("mqar");
            entry["recall"] = json!(round(judged.accuracy));
            entry["note"] = json!(format!("{} pairs in {} tokens", task.pairs, task.length));
        }
        None => {
            entry["task"] = json!("text");
            entry["note"] = json!("the sources of seqzoo, byte by byte");
        }
    }
    Ok(entry)
}

fn round(x: f64) -> f64 {
    (x * 1e4).round() / 1e4
}
