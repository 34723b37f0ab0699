//! `seqzoo list`

use std::fmt::Write;
use std::process::ExitCode;

use seqzoo::Result;
use seqzoo::model::PRESETS;
use seqzoo::registry::architectures;

pub(crate) fn run() -> Result<ExitCode> {
    let width = architectures().map(|a| a.name.len()).max().unwrap_or(0);
    let mut out = String::new();
    for a in architectures() {
        let pad = " ".repeat(width - a.name.len());
        let _ = writeln!(out, "{}{pad}  {} (arXiv {})", a.name, a.title, a.paper);
        let _ = writeln!(out, "{}  state: {}", " ".repeat(width), a.state);
    }
    let _ = writeln!(out, "\nwhole models (seqzoo train --preset NAME)");
    for preset in PRESETS {
        let _ = writeln!(out, "{:<width$}  {} (arXiv {})", preset.name, preset.title, preset.paper);
    }
    super::emit(&out)?;
    Ok(ExitCode::SUCCESS)
}
