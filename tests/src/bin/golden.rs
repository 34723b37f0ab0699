//! Judges every golden case in a folder; see `cargo xtask golden`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use seqzoo_tests::golden::{self, Verdict};

/// Compare our layers and models with golden vectors.
#[derive(Parser)]
struct Args {
    /// Folder with cases, models, or folders of them.
    dir: PathBuf,
    /// Device to compute on.
    #[arg(long, default_value = "flex")]
    device: String,
    /// Only architectures whose name contains this.
    #[arg(long)]
    only: Option<String>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let wanted = |name: &str| args.only.as_deref().is_none_or(|only| name.contains(only));
    let judged = seqzoo_layers::device::open(&args.device)
        .map_err(golden::Error::from)
        .and_then(|device| golden::run(&args.dir, &device, &wanted, &mut golden::print));
    let rows = match judged {
        Ok(rows) => rows,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(2);
        }
    };
    let failed = rows.iter().filter(|row| row.failed()).count();
    let unsupported = rows.iter().filter(|row| matches!(row.verdict, Verdict::NotSupported)).count();
    let passed = rows.len() - failed - unsupported;
    println!("\n{passed} passed, {failed} failed, {unsupported} not supported, on {}", args.device);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
