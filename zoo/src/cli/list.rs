//! `seqzoo list`

use std::fmt::Write;
use std::process::ExitCode;

use seqzoo::Result;
use seqzoo::model::PRESETS;
use seqzoo::registry::{architectures, families};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Print the page `docs/architectures.md`.
    #[arg(long)]
    markdown: bool,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    super::emit(&if args.markdown { markdown() } else { text() })?;
    Ok(ExitCode::SUCCESS)
}

// Writing to a string cannot fail.

fn text() -> String {
    let width = architectures().map(|a| a.name.len()).max().unwrap_or(0);
    let mut out = String::new();
    for family in families() {
        let _ = writeln!(out, "{}", family.title);
        for a in family.members {
            let pad = " ".repeat(width - a.name.len());
            let _ = writeln!(out, "  {}{pad}  {} (arXiv {})", a.name, a.title, a.paper);
        }
        out.push('\n');
    }
    let _ = writeln!(out, "Whole models, for `seqzoo train --preset NAME`");
    for preset in PRESETS {
        let _ = writeln!(out, "  {:<width$}  {} (arXiv {})", preset.name, preset.title, preset.paper);
    }
    out.push_str("\n`seqzoo describe NAME` prints equations, state, parameters and cost.\n");
    out
}

fn markdown() -> String {
    let mut out = String::from("# Architectures\n\nWritten by `seqzoo list --markdown`.\n");
    for family in families() {
        let _ = write!(
            out,
            "\n## {}\n\n| name | what it is | state | paper |\n| --- | --- | --- | --- |\n",
            family.title
        );
        for a in family.members {
            let cell = |text: &str| text.replace('|', "\\|");
            let paper = format!("[{0}](https://arxiv.org/abs/{0})", a.paper);
            let _ = writeln!(out, "| `{}` | {} | {} | {paper} |", a.name, cell(a.title), cell(a.state));
        }
        let equations = family.members.iter().map(|a| format!("{}: {}", a.name, a.equations));
        let _ = write!(out, "\n```text\n{}\n```\n", equations.collect::<Vec<_>>().join("\n"));
    }
    out
}
