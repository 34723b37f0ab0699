//! `seqzoo-bench report`

use std::path::PathBuf;
use std::process::ExitCode;

use seqzoo_bench::{Error, Result};

/// The results that are written and read where no file is named.
pub(super) const RESULTS: &str = "bench.jsonl";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Results of `run` and `peers`, all of one machine.
    #[arg(default_value = RESULTS)]
    files: Vec<PathBuf>,
}

pub(crate) fn run(_args: &Args) -> Result<ExitCode> {
    Err(Error::file("report", "not yet"))
}
