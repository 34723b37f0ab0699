//! `seqzoo verify`: the parity matrix on the user's own machine.

use std::process::ExitCode;

use clap::{Args, ValueEnum};
use seqzoo::registry::{MixerConfig, nearest};
use seqzoo::verify::{self, Options, Outcome, Report, subjects};
use seqzoo_layers::{device, kernels};

/// Whether hand-written kernels run where there are any.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kernels {
    /// They do
    On,
    /// Tensor operations only
    Off,
}

/// Arguments of `seqzoo verify`.
#[derive(Args, Clone, Debug)]
pub(crate) struct VerifyArgs {
    /// Architecture to check; all when left out
    arch: Option<String>,
    /// Device to check on
    #[arg(long, default_value = device::default_name())]
    device: String,
    /// Tokens of the test sequences
    #[arg(long, default_value_t = Options::default().time as u16, value_parser = clap::value_parser!(u16).range(8..=512))]
    time: u16,
    /// Seed of parameters and inputs
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Leave out the double-precision comparison with central differences
    #[arg(long)]
    no_differences: bool,
    /// Let hand-written kernels run, or check the tensor forms alone; what `SEQZOO_KERNELS` says when left out
    #[arg(long, value_enum)]
    kernels: Option<Kernels>,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

/// Runs the command; fails when any promise is broken.
pub(crate) fn run(args: &VerifyArgs) -> Result<ExitCode, seqzoo::Error> {
    let arch = args.arch.as_deref();
    if let Some(name) = arch
        && !MixerConfig::NAMES.contains(&name)
    {
        return Err(seqzoo::Error::UnknownMixer { name: name.into(), nearest: nearest(name) });
    }
    if let Some(wanted) = args.kernels {
        kernels::enable(wanted == Kernels::On);
    }
    let device = device::open(&args.device)?;
    let options = Options { time: args.time.into(), double: !args.no_differences, seed: args.seed };
    let mut reports = Vec::new();
    let subjects = subjects(arch);
    let head = format!("device: {}, kernels {}", args.device, if kernels::enabled() { "on" } else { "off" });
    let width = subjects.iter().map(|subject| subject.name.len()).fold(head.len(), usize::max);
    if !args.json {
        println!("{head:<width$} {}", verify::PROMISES.join(" "));
    }
    for subject in &subjects {
        let report = verify::verify(subject, &device, options);
        if !args.json {
            print_row(&report, width);
        }
        reports.push(report);
    }
    if args.json {
        let json = serde_json::to_string_pretty(&reports);
        println!("{}", json.map_err(|e| seqzoo::Error::Data(e.to_string()))?);
    }
    let failed = reports.iter().filter(|report| !report.passed()).count();
    if !args.json {
        println!("{} passed, {failed} failed", reports.len() - failed);
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One line of the table, and a line per broken promise.
fn print_row(report: &Report, width: usize) {
    let cells: Vec<String> = (report.checks.iter())
        .map(|check| {
            let mark = match &check.outcome {
                Outcome::Skipped(_) => "-",
                _ if check.passed() => "ok",
                _ => "FAIL",
            };
            let columns = check.promise.len();
            format!("{mark:<columns$}")
        })
        .collect();
    println!("{:<width$} {}  {:.1} s", report.subject, cells.join(" "), report.seconds);
    for check in report.checks.iter().filter(|check| !check.passed()) {
        match &check.outcome {
            Outcome::Measured { error, tolerance, worst } => {
                println!("    {}: {error:.1e} > {tolerance:.0e} at {worst}", check.promise);
            }
            Outcome::Failed(reason) => println!("    {}: {reason}", check.promise),
            Outcome::Skipped(_) => {}
        }
    }
}
