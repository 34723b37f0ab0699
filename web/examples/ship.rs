//! Writes trained models as half floats into a folder for the demo, with an index of what they can do:
//! `ship OUT RUNS NAME…`, where `RUNS/NAME` is a folder of `seqzoo train`, and where the task is the name up to its
//! hyphen. `ship copying FILE` writes the text that copying is learned from. See `web/models.sh`.

use std::error::Error;
use std::fs;
use std::path::Path;

use burn::tensor::{DType, Device};
use futures_lite::future::block_on;
use seqzoo::data::{Batches, TextData};
use seqzoo::train::{Portable, evaluate};
use seqzoo_web::{MARK, Model};
use serde_json::{Value, json};

/// Batches of 16 rows on which a model is judged.
const JUDGED: usize = 16;

/// Lines of the text that copying is learned from.
const LINES: usize = 40_000;

/// Lengths of what is copied there.
const COPIED: [u64; 2] = [2, 24];

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [command, file] = args.as_slice()
        && command == "copying"
    {
        let mut words = Words(1);
        let lines = (0..LINES).map(|_| words.next(COPIED)).map(|word| format!("{word}{MARK}{word}\n"));
        return Ok(fs::write(file, lines.collect::<String>())?);
    }
    let [out, runs, names @ ..] = args.as_slice() else {
        return Err("usage: ship OUT RUNS NAME…, or ship copying FILE".into());
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
    let arch = shipped.model.config().mixers().next().map_or("", |mixer| mixer.name());
    let mut entry = json!({ "file": file, "arch": arch, "bytes": half.len() });
    if name.starts_with("copy-") {
        entry["task"] = json!("copy");
        entry["copied"] = json!(round(copied(&half)?));
        entry["note"] = json!(format!("random letters, {} to {}, said twice", COPIED[0], COPIED[1]));
        return Ok(entry);
    }
    let mut batches: Box<dyn Batches> = match &shipped.task {
        Some(task) => Box::new(task.batches(u64::MAX, 16)?),
        None => Box::new(TextData::own_sources(&shipped.tokenizer)?.validation.batches(u64::MAX, 16, 96)?),
    };
    let judged = evaluate(&shipped.model, &mut *batches, JUDGED)?;
    entry["loss"] = json!(round(judged.loss));
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

/// Share of right letters when words that were not learned from are said again.
fn copied(weights: &[u8]) -> Result<f64, Box<dyn Error>> {
    const WORDS: usize = 200;
    let (model, mut words) = (Model::from_weights(weights)?, Words(2));
    let mut right = 0.0;
    for _ in 0..WORDS {
        right += model.copy(&words.next(COPIED))?.right();
    }
    Ok(right / WORDS as f64)
}

/// Random words of letters and blanks, by Knuth's linear congruential generator.
struct Words(u64);

impl Words {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }

    /// Of a length from the first to the last of these.
    fn next(&mut self, [shortest, longest]: [u64; 2]) -> String {
        let length = shortest + self.below(longest - shortest + 1);
        (0..length).map(|_| char::from(b" abcdefghijklmnopqrstuvwxyz"[self.below(27) as usize])).collect()
    }
}

fn round(x: f64) -> f64 {
    (x * 1e4).round() / 1e4
}
