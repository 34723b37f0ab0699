//! Subcommands and what they share. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.

mod compare;
mod describe;
mod generate;
mod list;
mod miras_table;
mod progress;
mod train;
mod verify;

use std::error::Error as _;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{Parser, Subcommand};
use seqzoo::model::{PRESETS, Preset};
use seqzoo::registry::{MixerConfig, nearest};
use seqzoo::{Error, Result};
use tracing_subscriber::EnvFilter;

#[derive(Parser)]
#[command(name = "seqzoo", version, about = "A zoo of sequence models: train, compare, generate, verify")]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    /// Log more to stderr (-v, -vv); RUST_LOG overrides.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
}

#[derive(Subcommand)]
enum Command {
    /// Train and time every architecture side by side and write report.html: what runs without a command.
    Compare(Box<compare::Args>),
    /// Print all architectures.
    List(list::Args),
    /// Print an architecture's equations, state, parameters and cost.
    Describe(describe::Args),
    /// Train a language model, or a model of a recall task.
    Train(Box<train::Args>),
    /// Continue a prompt with a trained model.
    Generate(Box<generate::Args>),
    /// Print known models as points of the Miras builder, and how far it is from their own recurrences.
    MirasTable(miras_table::Args),
    /// Check every promise of the interface on this machine.
    Verify(verify::VerifyArgs),
}

/// Parses, runs, reports.
pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    let level = ["warn", "info", "debug"][usize::from(cli.verbose.min(2))];
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).without_time().init();
    std::panic::set_hook(Box::new(|info| {
        eprintln!("error: internal error, please report it: {info}");
    }));
    let run = || match cli.command {
        None => match Cli::parse_from(["seqzoo", "compare"]).command {
            Some(Command::Compare(args)) => compare::run(&args),
            _ => usage(),
        },
        Some(Command::Compare(args)) => compare::run(&args),
        Some(Command::List(args)) => list::run(&args),
        Some(Command::Describe(args)) => describe::run(&args),
        Some(Command::Train(args)) => train::run(&args),
        Some(Command::Generate(args)) => generate::run(&args),
        Some(Command::MirasTable(args)) => miras_table::run(&args),
        Some(Command::Verify(args)) => verify::run(&args),
    };
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(code)) => code,
        Ok(Err(error)) => report(&error),
        Err(_) => ExitCode::FAILURE,
    }
}

fn usage() -> Result<ExitCode> {
    let help = <Cli as clap::CommandFactory>::command().render_help();
    eprintln!("{help}");
    Ok(ExitCode::from(2))
}

fn report(error: &Error) -> ExitCode {
    // A reader that went away (`seqzoo list | head`) is no failure.
    if let Error::Io { source, .. } = error
        && source.kind() == std::io::ErrorKind::BrokenPipe
    {
        return ExitCode::SUCCESS;
    }
    let mut message = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        // Most messages already quote their cause.
        if !message.contains(&cause.to_string()) {
            message.push_str(&format!("\n  caused by: {cause}"));
        }
        source = cause.source();
    }
    eprintln!("error: {message}");
    ExitCode::FAILURE
}

/// Writes to stdout at once.
fn emit(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(|e| Error::io("stdout", e))
}

/// The default configuration of an architecture; a misspelt name is answered with the nearest.
fn parse_arch(name: &str) -> Result<MixerConfig, String> {
    MixerConfig::named(name).ok_or_else(|| match nearest(name) {
        _ if Preset::named(name).is_some() => {
            format!("a whole model; `seqzoo train --preset {name}` trains it")
        }
        Some(near) => format!("unknown architecture; did you mean `{near}`? (`seqzoo list` prints all)"),
        None => "unknown architecture; `seqzoo list` prints all".into(),
    })
}

/// A whole model by name.
fn parse_preset(name: &str) -> Result<&'static Preset, String> {
    let names: Vec<_> = PRESETS.iter().map(|preset| preset.name).collect();
    Preset::named(name).ok_or_else(|| format!("unknown model; there is {}", names.join(", ")))
}

/// Whether Ctrl-C was pressed.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From now on the first Ctrl-C asks to stop, the second one stops at once.
fn catch_ctrl_c() {
    let set = ctrlc::set_handler(|| {
        if INTERRUPTED.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
        eprintln!("\nstopping after this step (Ctrl-C again to stop at once)");
    });
    if let Err(error) = set {
        tracing::warn!("Ctrl-C will not save: {error}");
    }
}

fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

/// `1234567` as `1,234,567`.
fn thousands(n: usize) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A quantity with three digits and a prefix: `12.3 M`.
fn si(x: f64) -> String {
    let (scale, prefix) = [(1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")]
        .into_iter()
        .find(|(scale, _)| x >= *scale)
        .unwrap_or((1.0, ""));
    let x = x / scale;
    if prefix.is_empty() || x >= 100.0 { format!("{x:.0}{prefix}") } else { format!("{x:.1}{prefix}") }
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
    fn numbers_read_well() {
        assert_eq!(thousands(0), "0");
        assert_eq!(thousands(1_234_567), "1,234,567");
        assert_eq!([si(12.0), si(1234.0), si(123_456.0), si(2.5e9)], ["12", "1.2 k", "123 k", "2.5 G"]);
    }
}
