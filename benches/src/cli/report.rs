//! `seqzoo-bench report`

use std::path::PathBuf;
use std::process::ExitCode;

use seqzoo_bench::Result;
use seqzoo_bench::hardware::Hardware;
use seqzoo_bench::report::{self, Data};
use seqzoo_bench::store::Results;

/// The results that are written and read where no file is named.
pub(super) const RESULTS: &str = "bench.jsonl";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Results of `run` and `peers`, all of one machine.
    #[arg(default_value = RESULTS)]
    files: Vec<PathBuf>,
    /// The page.
    #[arg(long, value_name = "FILE", default_value = "bench.html")]
    out: PathBuf,
    /// Print Markdown tables and write no page.
    #[arg(long, conflicts_with = "out")]
    markdown: bool,
    /// Results of `seqzoo compare --json`, for quality against cost.
    #[arg(long, value_name = "FILE")]
    quality: Option<PathBuf>,
    /// Descriptions of other hardware, TOML [default: H100, M-series, phone; see benches/hardware].
    #[arg(long, value_name = "FILE")]
    hardware: Vec<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let results = args.files.iter().map(|path| Results::load(path)).collect::<Result<Vec<_>>>()?;
    let quality = args.quality.as_deref().map(seqzoo::compare::Results::load).transpose()?;
    let hardware = match args.hardware.as_slice() {
        [] => Hardware::examples()?,
        files => files.iter().map(|path| Hardware::load(path)).collect::<Result<Vec<_>>>()?,
    };
    let data = Data::new(&results, quality, hardware)?;
    if args.markdown {
        super::emit(&data.markdown())?;
        return Ok(ExitCode::SUCCESS);
    }
    super::check_writable(&args.out)?;
    report::write(&data, &args.out)?;
    super::emit(&format!("report: {}\n", args.out.display()))?;
    Ok(ExitCode::SUCCESS)
}
