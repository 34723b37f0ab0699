//! Subcommands and what they share. Exit codes: 0 done, 1 failed or slower, 2 wrong usage, 130 interrupted.

mod baseline;
mod compare;
mod peers;
mod report;
mod run;

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{Parser, Subcommand};
use seqzoo::compare::REPRESENTATIVES;
use seqzoo::registry::{MixerConfig, nearest};
use seqzoo_bench::{Error, Result, child};

#[derive(Parser)]
#[command(name = "seqzoo-bench", version, about = "Scaling and latency of sequence models, on your machine")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure architectures over lengths, batches and forms; every result is kept at once.
    Run(Box<run::Args>),
    /// Draw one HTML page, or Markdown tables, of measured results.
    Report(report::Args),
    /// Tell whether new results are slower than old ones; exits with 1 if so.
    Compare(compare::Args),
    /// Measure other libraries' layers beside ours, in turns.
    Peers(Box<peers::Args>),
    /// Measure one point in this process.
    #[command(name = child::COMMAND, hide = true)]
    Point {
        /// The job, as JSON.
        job: String,
    },
}

/// Parses, runs, reports.
pub(crate) fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(args) => run::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Compare(args) => compare::run(&args),
        Command::Peers(args) => peers::run(&args),
        Command::Point { job } => child::run(&job).map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|error| {
        // A reader that went away (`… | head`) is no failure.
        if let Error::Zoo(seqzoo::Error::Io { source, .. }) = &error
            && source.kind() == std::io::ErrorKind::BrokenPipe
        {
            return ExitCode::SUCCESS;
        }
        eprintln!("error: {error}");
        ExitCode::FAILURE
    })
}

/// Writes to stdout at once.
fn emit(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(|e| Error::io("stdout", e))
}

/// Stands for the whole registry.
const ALL: &str = "all";

fn known_arch(name: &str) -> Result<String, String> {
    if name == ALL || MixerConfig::named(name).is_some() {
        return Ok(name.into());
    }
    Err(match nearest(name) {
        Some(near) => format!("unknown architecture; did you mean `{near}`? (`seqzoo list` prints all)"),
        None => "unknown architecture; `seqzoo list` prints all".into(),
    })
}

/// The architectures that were asked for, each once.
fn chosen(named: &[String]) -> Vec<String> {
    let owned = |names: &[&str]| names.iter().map(ToString::to_string).collect();
    match named {
        [] => owned(REPRESENTATIVES),
        names if names.iter().any(|name| name == ALL) => owned(MixerConfig::NAMES),
        names => names
            .iter()
            .enumerate()
            .filter(|(i, name)| !names[..*i].contains(name))
            .map(|(_, n)| n.clone())
            .collect(),
    }
}

/// Fails before minutes of work rather than after.
fn check_writable(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Err(Error::file(path, "is a folder; name a file"));
    }
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if folder.is_dir() { Ok(()) } else { Err(Error::file(folder, "is no folder; make it first")) }
}

/// Whether Ctrl-C was pressed.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From now on the first Ctrl-C stops the sweep, with all finished results kept; the second one stops at once.
fn catch_ctrl_c() {
    let set = ctrlc::set_handler(|| {
        if INTERRUPTED.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
    });
    if let Err(error) = set {
        eprintln!("warning: Ctrl-C will stop at once: {error}");
    }
}

fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn architectures_are_taken_once_in_the_order_named() {
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(chosen(&names(&["lstm", "attention", "lstm"])), names(&["lstm", "attention"]));
        assert_eq!(chosen(&names(&["all"])).len(), MixerConfig::NAMES.len());
        assert_eq!(chosen(&[]), names(REPRESENTATIVES));
        assert!(known_arch("gated_deltnet").unwrap_err().contains("gated_deltanet"));
    }
}
