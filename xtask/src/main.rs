//! Developer commands, used by hand and by CI alike: `cargo xtask --help`.

mod apt;
mod report;
mod shell;
mod steps;
mod vulkan;
mod web;

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
        /// Leave out the browser demo and its tests in a browser, which compile everything for WebAssembly
        #[arg(long)]
        no_web: bool,
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
    /// The browser demo: WebAssembly and the site around it
    Web {
        #[command(subcommand)]
        command: Web,
    },
    /// Says what this machine has and lacks for the other commands; changes nothing
    Doctor,
}

#[derive(Subcommand)]
enum Web {
    /// Builds web/site/dist, a folder for any static host, and the npm package web/pkg; prints the sizes
    Build,
    /// Builds, serves the site, and prints its address
    Serve,
    /// Builds, checks the sizes, and runs the site in a browser: all of it without WebGPU, a part with it
    Test,
    /// Builds, measures on the page Speed in Chromium, and writes results for `seqzoo-bench report`
    Bench {
        /// Where to; must not exist
        #[arg(long, value_name = "FILE", default_value = "browser.jsonl")]
        out: PathBuf,
        /// Without WebGPU, or with nothing else
        #[arg(long, value_name = "DEVICE")]
        only: Option<web::Only>,
        /// What web/site/e2e/bench.mjs takes: --archs, --tasks, --longest, --rounds
        #[arg(last = true)]
        more: Vec<String>,
    },
}

fn main() -> ExitCode {
    let mut report = Report::default();
    match Cli::parse().command {
        Task::Test { no_vulkan, no_lint, no_web } => {
            steps::test(&mut report, !no_vulkan, if no_lint { Lints::Skip } else { Lints::Run });
            if no_web {
                report.skip("browser demo", "left out by --no-web");
            } else {
                report.step("browser demo", web::test);
            }
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
        Task::Web { command: Web::Build } => report.quiet("web build", web::build),
        Task::Web { command: Web::Serve } => report.quiet("web serve", web::serve),
        Task::Web { command: Web::Test } => report.quiet("web test", web::test),
        Task::Web { command: Web::Bench { out, only, more } } => {
            report.quiet("web bench", || web::bench(&out, only, &more));
        }
        Task::Doctor => steps::doctor(),
    }
    if report.all_passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
