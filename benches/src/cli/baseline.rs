//! Another build of this program, measured in turns with this one: what slows the machine for a while slows both.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use seqzoo::compare::now;
use seqzoo_bench::child::Limits;
use seqzoo_bench::point::Point;
use seqzoo_bench::record::{Header, Outcome, Record};
use seqzoo_bench::store::{Store, THERE};
use seqzoo_bench::{Error, Result};

/// What the name and version of this program start with.
const NAME: &str = "seqzoo-bench ";

#[derive(clap::Args, Clone, Default)]
pub(super) struct BaselineArgs {
    /// Measure another build of this program too, in turns: `compare` is more certain of two such files.
    #[arg(long, value_name = "PROGRAM")]
    baseline: Option<PathBuf>,
    /// Its results, a line of JSON each.
    #[arg(long, value_name = "FILE", default_value = "baseline.jsonl", requires = "baseline")]
    baseline_out: PathBuf,
}

/// The other build and its results.
pub(super) struct Baseline {
    limits: Limits,
    store: Store,
    known: HashSet<(String, usize)>,
}

impl BaselineArgs {
    /// What the files of this sweep and of its baseline have in common, where there is one.
    pub(super) fn turns(&self) -> Option<String> {
        self.baseline.as_ref().map(|_| format!("{}, process {}", now(), std::process::id()))
    }

    /// The file of its results, where there is one.
    pub(super) fn out(&self) -> Option<&Path> {
        self.baseline.as_ref().map(|_| self.baseline_out.as_path())
    }

    /// Makes ready what measures it, if there is any, as this build's results in `out` are, under the same limits.
    pub(super) fn open(
        &self,
        header: &Header,
        limits: &Limits,
        out: &Path,
        resume: bool,
    ) -> Result<Option<Baseline>> {
        let Some(program) = &self.baseline else { return Ok(None) };
        super::check_writable(&self.baseline_out)?;
        let header = Header { version: version(program)?, ..header.clone() };
        if self.baseline_out == out {
            return Err(Error::file(
                out,
                "is where the other results go: name another file with `--baseline-out`",
            ));
        }
        if !resume && out.exists() {
            // Before a file is begun that the next try would find in its way.
            return Err(Error::file(out, THERE));
        }
        let (store, known) = Store::open(&self.baseline_out, &header, resume)?;
        let known = known.iter().map(|record| (record.point.to_string(), record.round)).collect();
        let limits = Limits { program: program.clone(), ..limits.clone() };
        Ok(Some(Baseline { limits, store, known }))
    }
}

/// The version that a build says it is.
fn version(program: &Path) -> Result<String> {
    let output = Command::new(program).arg("--version").output().map_err(|e| Error::io(program, e))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.trim().strip_prefix(NAME);
    Ok(version.ok_or_else(|| Error::file(program, "is no build of seqzoo-bench"))?.to_string())
}

impl Baseline {
    /// What measures it.
    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Whether a point is known from before.
    pub(super) fn knows(&self, point: &Point, round: usize) -> bool {
        self.known.contains(&(point.to_string(), round))
    }

    /// Keeps what came of a point.
    pub(super) fn keep(&mut self, point: &Point, round: usize, outcome: Outcome) -> Result<()> {
        self.store.append(&Record { point: point.clone(), round, outcome })?;
        self.known.insert((point.to_string(), round));
        Ok(())
    }
}
