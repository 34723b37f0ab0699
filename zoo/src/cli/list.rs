//! `seqzoo list`

use std::fmt::Write;
use std::process::ExitCode;

use seqzoo::Result;
use seqzoo::registry::architectures;

pub(crate) fn run() -> Result<ExitCode> {
    let width = architectures().map(|a| a.name.len()).max().unwrap_or(0);
    let mut out = String::new();
    for a in architectures() {
        let pad = " ".repeat(width - a.name.len());
        let _ = writeln!(out, "{}{pad}  {} (arXiv {})", a.name, a.title, a.paper);
        let _ = writeln!(out, "{}  state: {}", " ".repeat(width), a.state);
    }
    super::emit(&out)?;
    Ok(ExitCode::SUCCESS)
}
