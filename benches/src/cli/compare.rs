//! `seqzoo-bench compare`

use std::path::PathBuf;
use std::process::ExitCode;

use seqzoo_bench::compare::{Strictness, Turns, compare, markdown};
use seqzoo_bench::store::Results;
use seqzoo_bench::summary::summarise;
use seqzoo_bench::{Error, Result};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The results to compare with.
    old: PathBuf,
    /// The results in question.
    new: PathBuf,
    /// Compare only what is counted: operations, bytes, parameters, state, allocations, outcomes.
    #[arg(long)]
    counted: bool,
    /// Share by which times may differ.
    #[arg(long, value_name = "SHARE", default_value_t = 0.05, value_parser = share)]
    tolerance: f64,
}

fn share(text: &str) -> Result<f64, String> {
    let value = text.parse().ok().filter(|&s: &f64| (0.0..10.0).contains(&s));
    value.ok_or_else(|| "a share such as 0.05".into())
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let (old, new) = (Results::load(&args.old)?, Results::load(&args.new)?);
    if old.header.sizes != new.header.sizes {
        return Err(Error::file(&args.new, "layers of other sizes: the two cannot be compared"));
    }
    let other_machine = old.header.machine != new.header.machine || old.header.threads != new.header.threads;
    if other_machine && !args.counted {
        eprintln!(
            "warning: the two were measured on different machines or thread counts; `--counted` compares the rest"
        );
    }
    let in_turns = old.header.turns.is_some() && old.header.turns == new.header.turns;
    let strictness = Strictness {
        tolerance: args.tolerance,
        counted_only: args.counted,
        turns: if in_turns { Turns::Repetitions } else { Turns::Apart },
        ..Strictness::default()
    };
    let comparison = compare(&summarise(&old.records), &summarise(&new.records), strictness);
    if comparison.matched == 0 {
        return Err(Error::file(&args.new, "has no point in common with the other file"));
    }
    super::emit(&markdown(&comparison))?;
    Ok(if comparison.regressed() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
