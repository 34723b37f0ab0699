//! `seqzoo miras-table`: known models as four choices, each measured against a computation of its own.

use std::fmt::Write;
use std::process::ExitCode;

use seqzoo::{Error, Result};
use seqzoo_layers::device;
use seqzoo_layers::miras::presets;
use serde_json::json;

/// Largest relative error at which two recurrences are the same.
const TOLERANCE: f64 = 1e-5;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Device to measure on
    #[arg(long, default_value = device::default_name())]
    device: String,
    /// Print JSON instead of a Markdown table
    #[arg(long)]
    json: bool,
}

/// Runs the command; fails when a model is not the one it is said to be.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let device = device::open(&args.device)?;
    let mut rows = Vec::new();
    for preset in presets() {
        let error = preset.measure(&device)?;
        rows.push((preset, error));
    }
    let same = rows.iter().all(|(_, error)| error.is_none_or(|error| error <= TOLERANCE));
    let mut out = String::new();
    if args.json {
        let rows = rows.iter().map(|(preset, error)| {
            let [memory, bias, retention, algorithm] = preset.choices();
            json!({
                "name": preset.name, "paper": preset.paper, "update": preset.update, "memory": memory,
                "bias": bias, "retention": retention, "algorithm": algorithm, "chunk": preset.config.chunk,
                "twin": preset.twin.map(|twin| twin.name()), "error": error,
            })
        });
        let text = serde_json::to_string_pretty(&rows.collect::<Vec<_>>());
        out = text.map_err(|e| Error::Data(e.to_string()))? + "\n";
    } else {
        // Writing to a string cannot fail.
        let _ =
            writeln!(out, "| model | memory | bias | retention | algorithm | C | measured against | error |");
        let _ = writeln!(out, "| --- | --- | --- | --- | --- | --- | --- | --- |");
        for (preset, error) in &rows {
            let twin = preset.twin.map_or("", |twin| twin.name());
            let error = error.map_or(String::new(), |error| format!("{error:.1e}"));
            let (choices, chunk) = (preset.choices().join(" | "), preset.config.chunk);
            let _ = writeln!(out, "| {} | {choices} | {chunk} | {twin} | {error} |", preset.name);
        }
    }
    super::emit(&out)?;
    Ok(if same { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
