//! Developer commands, used by hand and by CI alike: `cargo xtask --help`.

mod report;
mod shell;
mod steps;
mod vulkan;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use report::Report;
use steps::Lints;

/// Developer commands of seqzoo, used by hand and by CI alike.
#[derive(Parser)]
#[command(name = "cargo xtask", version)]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Everything CI runs: toolchain, formatting, build, tests on every device, doctests, lints, golden
    /// vectors, a short `compare`. Installs what it needs; the last line is `N passed, N failed`
    Test {
        /// Leave out the parity matrix on Vulkan in software, which installs the driver where it is missing
        #[arg(long)]
        no_vulkan: bool,
        /// Leave out clippy and cargo-deny, which check the dependencies a second time
        #[arg(long)]
        no_lint: bool,
    },
    /// rustfmt, clippy with warnings as errors, and cargo-deny where it is installed
    Lint {
        /// Let rustfmt rewrite the files first
        #[arg(long)]
        fix: bool,
    },
    /// Runs every golden case found in a folder against our layers and models
    Golden {
        /// The folder, as described in its own README
        dir: PathBuf,
    },
    /// Runs `seqzoo verify`: every architecture in every form, on one device
    Parity {
        /// Device name; the default of `seqzoo verify` otherwise
        #[arg(long)]
        device: Option<String>,
        /// Only this architecture
        arch: Option<String>,
    },
    /// Says what this machine has and lacks for the other commands; changes nothing
    Doctor,
}

fn main() -> ExitCode {
    let mut report = Report::default();
    match Cli::parse().command {
        Task::Test { no_vulkan, no_lint } => {
            steps::test(&mut report, !no_vulkan, if no_lint { Lints::Skip } else { Lints::Run });
            report.print_with_counts();
        }
        Task::Lint { fix } => {
            steps::lint(&mut report, fix);
            report.print();
        }
        Task::Golden { dir } => report.quiet("golden", || steps::golden(&dir)),
        Task::Parity { device, arch } => {
            report.quiet("parity", || steps::parity(device.as_deref(), arch.as_deref()));
        }
        Task::Doctor => steps::doctor(),
    }
    if report.all_passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
