//! `seqzoo-bench run`

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use seqzoo::compare::{Machine, now};
use seqzoo_bench::child::{Limits, measure_in_turns};
use seqzoo_bench::plan::{Choice, Plan, Preset};
use seqzoo_bench::point::{FormArg, MACHINE, Point, Task};
use seqzoo_bench::record::{Header, Outcome, Record, SCHEMA};
use seqzoo_bench::store::Store;
use seqzoo_bench::summary::summarise;
use seqzoo_bench::sweep::{self, Driver, Ended};
use seqzoo_bench::{Error, Result};
use seqzoo_layers::system::Form;

use super::baseline::{Baseline, BaselineArgs};

/// Flags of every sweep.
#[derive(clap::Args)]
pub(super) struct SweepArgs {
    /// How thorough.
    #[arg(long, value_enum, default_value = "quick")]
    pub(super) preset: Preset,
    /// Lengths in tokens, instead of the preset's.
    #[arg(long, value_name = "T,T", value_delimiter = ',', value_parser = positive)]
    lengths: Vec<usize>,
    /// Sequences at once, at every length, instead of the preset's.
    #[arg(long, value_name = "B,B", value_delimiter = ',', value_parser = positive)]
    batches: Vec<usize>,
    /// Tasks, of prefill, train, decode [default: all].
    #[arg(long, value_name = "TASK,TASK", value_delimiter = ',')]
    tasks: Vec<Task>,
    /// Where to compute.
    #[arg(long, value_name = "A,B", value_delimiter = ',', default_value = "flex")]
    device: Vec<String>,
    /// Go on with a file that an earlier run of the same kind began.
    #[arg(long)]
    resume: bool,
    /// Print what would be measured, and for how long at least; measure nothing.
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Minutes after which to end, with everything finished kept for `--resume` [default: 25 for full, else none].
    #[arg(long, value_name = "MINUTES", value_parser = positive_number)]
    budget: Option<f64>,
    /// Seconds that one measurement may take.
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0, value_parser = positive_number)]
    time_limit: f64,
    /// MiB that one measurement may have in use [default: 8192].
    #[arg(long, value_name = "MIB", default_value_t = 8192)]
    memory_limit: u64,
    /// Threads of a measurement [default: as many as the machine has].
    #[arg(long, value_name = "N", value_parser = positive)]
    threads: Option<usize>,
    /// Times to measure everything, instead of the preset's.
    #[arg(long, value_name = "N", value_parser = positive)]
    rounds: Option<usize>,
    /// Stretch every repetition of a subject by a factor, to see whether `compare` notices.
    #[arg(long, value_name = "SUBJECT=FACTOR", hide = true, value_parser = plant)]
    plant: Option<(String, f64)>,
}

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    sweep: SweepArgs,
    /// Architectures, or `all` [default: nine, of every family; all for full].
    #[arg(long, value_name = "A,B", value_delimiter = ',', value_parser = super::known_arch)]
    arch: Vec<String>,
    /// Forms, of auto, recurrent, parallel, chunked:SIZE, instead of the preset's.
    #[arg(long, value_name = "F,F", value_delimiter = ',')]
    forms: Vec<FormArg>,
    /// The results, a line of JSON each.
    #[arg(long, value_name = "FILE", default_value = super::report::RESULTS)]
    out: PathBuf,
    #[command(flatten)]
    baseline: BaselineArgs,
}

fn positive(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&n| n > 0).ok_or_else(|| "a whole number above 0".into())
}

fn positive_number(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|&s: &f64| s.is_finite() && s > 0.0).ok_or_else(|| "a number above 0".into())
}

fn plant(text: &str) -> Result<(String, f64), String> {
    let parts = text.split_once('=').and_then(|(subject, factor)| Some((subject, factor.parse().ok()?)));
    let (subject, factor) = parts.ok_or("as in `lstm=1.2`")?;
    if (1.0..10.0).contains(&factor) {
        Ok((subject.into(), factor))
    } else {
        Err("a factor from 1 to 10".into())
    }
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let forms: Vec<_> = args.forms.iter().map(|form| form.0).collect();
    let all = args.arch.is_empty() && args.sweep.preset == Preset::Full;
    let subjects = if all { super::chosen(&[super::ALL.to_string()]) } else { super::chosen(&args.arch) };
    let plan = args.sweep.plan(subjects, chosen(&forms))?;
    if args.sweep.dry_run {
        super::emit(&plan.describe(args.sweep.budget()))?;
        return Ok(ExitCode::SUCCESS);
    }
    let (ended, _) = args.sweep.sweep(&plan, &args.out, "", Vec::new(), &args.baseline)?;
    let out = args.out.display();
    super::emit(&match args.baseline.out().map(Path::display) {
        Some(baseline) => {
            format!("results: {baseline}, {out}\nnext: seqzoo-bench compare {baseline} {out}\n")
        }
        None => format!("results: {out}\nnext: seqzoo-bench report {out}\n"),
    })?;
    Ok(code(ended))
}

/// An argument as results keep it: of an absolute path only the last part, which says what ran and not where.
pub(super) fn without_folder(argument: &str) -> String {
    if let Some((flag, value)) = argument.split_once('=')
        && flag.starts_with("--")
    {
        return format!("{flag}={}", without_folder(value));
    }
    let path = Path::new(argument);
    match path.file_name() {
        Some(name) if path.is_absolute() => name.to_string_lossy().into_owned(),
        _ => argument.into(),
    }
}

pub(super) fn code(ended: Ended) -> ExitCode {
    match ended {
        Ended::Finished => ExitCode::SUCCESS,
        Ended::Stopped => ExitCode::from(130),
    }
}

/// A list that the user gave, `None` where it is empty.
fn chosen<T: Clone>(list: &[T]) -> Option<Vec<T>> {
    (!list.is_empty()).then(|| list.to_vec())
}

impl SweepArgs {
    pub(super) fn budget(&self) -> Option<f64> {
        self.budget.or(self.preset.budget())
    }

    /// What these flags ask to measure.
    pub(super) fn plan(&self, subjects: Vec<String>, forms: Option<Vec<Form>>) -> Result<Plan> {
        for device in &self.device {
            seqzoo_layers::device::open(device)?;
        }
        let mut plan = Plan::new(&Choice {
            preset: self.preset,
            subjects,
            lengths: chosen(&self.lengths),
            forms,
            tasks: chosen(&self.tasks),
            batches: chosen(&self.batches),
            devices: self.device.clone(),
        });
        plan.rounds = self.rounds.unwrap_or(plan.rounds);
        Ok(plan)
    }

    /// Measures a plan into a file; all records are returned.
    pub(super) fn sweep(
        &self,
        plan: &Plan,
        out: &Path,
        python: &str,
        notes: Vec<String>,
        baseline: &BaselineArgs,
    ) -> Result<(Ended, Vec<Record>)> {
        if plan.points.iter().all(|point| point.subject == MACHINE) {
            return Err(Error::Measure("none of these does any of these tasks: nothing to measure".into()));
        }
        super::check_writable(out)?;
        let threads = self.threads.or(self.preset.threads());
        let arguments: Vec<String> =
            std::env::args().skip(1).map(|argument| without_folder(&argument)).collect();
        let header = Header {
            schema: SCHEMA,
            version: env!("CARGO_PKG_VERSION").into(),
            command: format!("seqzoo-bench {}", arguments.join(" ")),
            started: now(),
            machine: Machine::here(&self.device.join(",")),
            threads,
            sizes: plan.sizes,
            notes,
            turns: baseline.turns(),
        };
        super::catch_ctrl_c();
        let program = std::env::current_exe().map_err(|e| Error::io("seqzoo-bench", e))?;
        let limits = Limits {
            program,
            python: python.into(),
            seconds: self.time_limit,
            memory: self.memory_limit << 20,
            threads,
        };
        let baseline = baseline.open(&header, &limits, out, self.resume)?;
        let (store, known) = Store::open(out, &header, self.resume)?;
        let owed = sweep::owed(plan, &known);
        let (plant, records) = (self.plant.clone(), known.clone());
        let budget = self.budget().and_then(|minutes| Duration::try_from_secs_f64(60.0 * minutes).ok());
        let end = budget.and_then(|budget| Instant::now().checked_add(budget));
        let mut live = Live { plan, limits, store, baseline, bar: bar(owed), records, plant, end };
        let mut ended = sweep::run(plan, &known, &mut live)?;
        live.bar.finish_and_clear();
        let left = sweep::owed(plan, &live.records);
        if ended == Ended::Stopped && !super::interrupted() {
            eprintln!("{left} measurements are left at the end of the budget; `--resume` takes them");
            ended = Ended::Finished;
        } else if ended == Ended::Stopped {
            eprintln!("stopped; what is finished is kept, `--resume` goes on");
        }
        let records = live.records;
        for summary in summarise(&records) {
            if let Some(trouble) = &summary.trouble {
                eprintln!("{}: {}", summary.point, trouble.words());
            }
        }
        Ok((ended, records))
    }
}

fn bar(owed: usize) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(owed as u64), ProgressDrawTarget::stderr());
    let template = "{bar:24} {pos}/{len}  {elapsed_precise}, {eta} left  {wide_msg}";
    // The template is a constant; a broken one would only cost its looks.
    bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.enable_steady_tick(Duration::from_millis(500));
    bar
}

/// Measures in children, keeps in a file, shows on stderr.
struct Live<'a> {
    plan: &'a Plan,
    limits: Limits,
    store: Store,
    baseline: Option<Baseline>,
    bar: ProgressBar,
    records: Vec<Record>,
    plant: Option<(String, f64)>,
    /// When the budget is spent.
    end: Option<Instant>,
}

impl Driver for Live<'_> {
    fn measure(&mut self, point: &Point, round: usize) -> Result<Option<Outcome>> {
        if self.end.is_some_and(|end| Instant::now() >= end) {
            return Ok(None);
        }
        self.bar.set_message(format!("round {} of {}: {point}", round + 1, self.plan.rounds));
        let mut effort = self.plan.effort;
        if let Some((_, factor)) = self.plant.as_ref().filter(|(subject, _)| *subject == point.subject) {
            effort.stretch = *factor;
        }
        let (sizes, stop) = (self.plan.sizes, &super::interrupted);
        let Some(baseline) = self.baseline.as_mut().filter(|baseline| !baseline.knows(point, round)) else {
            return self.limits.measure(point, sizes, effort, stop);
        };
        let mut builds = [(baseline.limits(), self.plan.effort), (&self.limits, effort)];
        // Who is first takes turns too.
        let ours_first = round.is_multiple_of(2);
        if ours_first {
            builds.reverse();
        }
        let Some(mut outcomes) = measure_in_turns(builds, point, sizes, stop)? else { return Ok(None) };
        if ours_first {
            outcomes.reverse();
        }
        let [before, after] = outcomes;
        baseline.keep(point, round, before)?;
        Ok(Some(after))
    }

    fn keep(&mut self, record: Record) -> Result<()> {
        self.store.append(&record)?;
        self.bar.inc(1);
        if self.bar.is_hidden() && record.outcome.done().is_none() {
            eprintln!("{}: {}", record.point, record.outcome.words());
        }
        self.records.push(record);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn results_do_not_say_where_a_program_lies() {
        let kept =
            ["/opt/venv/bin/python", "--out=/tmp/a.jsonl", "--out=a/b.jsonl", "results/a.jsonl", "1e-3"];
        let expected = ["python", "--out=a.jsonl", "--out=a/b.jsonl", "results/a.jsonl", "1e-3"];
        assert_eq!(kept.map(without_folder), expected);
    }
}
