//! `seqzoo compare`: the main job.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use seqzoo::compare::{self, Entry, Observer, Options, Plan, Results, Status};
use seqzoo::registry::MixerConfig;
use seqzoo::{Error, Result, report};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// About two minutes instead of ten.
    #[arg(long)]
    quick: bool,
    /// UTF-8 file or folder to learn from [default: the sources of seqzoo].
    #[arg(long, value_name = "PATH")]
    text: Option<PathBuf>,
    /// Architectures, separated by commas, or `all` [default: nine, of every family].
    #[arg(long, value_name = "A,B", value_delimiter = ',', value_parser = known_arch)]
    arch: Vec<String>,
    /// Same seed, same numbers (timings aside).
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Where to compute.
    #[arg(long, default_value = "flex")]
    device: String,
    /// The report, rewritten after every measurement.
    #[arg(long, value_name = "FILE", default_value = "report.html")]
    out: PathBuf,
    /// All numbers as JSON too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Measure nothing: draw the report of an earlier `--json` file.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["quick", "text", "arch", "seed", "device", "json"])]
    from: Option<PathBuf>,
}

/// Stands for the whole registry.
const ALL: &str = "all";

fn known_arch(name: &str) -> Result<String, String> {
    if name == ALL {
        return Ok(name.into());
    }
    super::parse_arch(name).map(|config| config.name().to_string())
}

/// The architectures that were asked for.
fn chosen(named: &[String]) -> Vec<String> {
    let owned = |names: &[&str]| names.iter().map(ToString::to_string).collect();
    match named {
        [] => owned(compare::REPRESENTATIVES),
        [one] if one == ALL => owned(MixerConfig::NAMES),
        _ => named.to_vec(),
    }
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    check_writable(&args.out)?;
    if let Some(json) = &args.json {
        check_writable(json)?;
    }
    if let Some(from) = &args.from {
        let results = Results::load(from)?;
        report::write(&results, &args.out)?;
        super::emit(&format!("{}\nreport: {}\n", report::table(&results), args.out.display()))?;
        return Ok(ExitCode::SUCCESS);
    }
    let options = Options {
        quick: args.quick,
        text: args.text.clone(),
        architectures: chosen(&args.arch),
        seed: args.seed,
        device: args.device.clone(),
        command: std::iter::once("seqzoo".into())
            .chain(std::env::args().skip(1))
            .collect::<Vec<_>>()
            .join(" "),
    };
    let plan = if args.quick { Plan::quick() } else { Plan::full() };
    super::catch_ctrl_c();
    let mut watch = Watch {
        bar: bar(compare::units(&options, &plan)),
        begun: 0,
        units: 0,
        entry: String::new(),
        out: &args.out,
        json: args.json.as_deref(),
    };
    let results = compare::run(&options, &plan, &mut watch)?;
    watch.bar.finish_and_clear();

    super::emit(&format!("\n{}\nreport: {}\n", report::table(&results), args.out.display()))?;
    for entry in &results.entries {
        for failure in &entry.failures {
            eprintln!("error: {}: {failure}", entry.name);
        }
    }
    Ok(match results.status {
        Status::Interrupted => ExitCode::from(130),
        _ if results.entries.iter().any(|e| !e.failures.is_empty()) => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    })
}

/// Fails before minutes of work rather than after.
fn check_writable(path: &Path) -> Result<()> {
    if path.is_dir() {
        let reason = std::io::Error::new(std::io::ErrorKind::IsADirectory, "is a folder; name a file");
        return Err(Error::io(path, reason));
    }
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    tempfile::tempfile_in(folder).map(|_| ()).map_err(|e| Error::io(folder, e))
}

fn bar(units: usize) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(units as u64), ProgressDrawTarget::stderr());
    let template = "{bar:24} {percent:>3} %  {elapsed_precise}, {eta} left  {wide_msg}";
    // The template is a constant; a broken one would only cost its looks.
    bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.enable_steady_tick(Duration::from_millis(500));
    bar
}

/// Progress on stderr, and the files after every measurement.
struct Watch<'a> {
    bar: ProgressBar,
    /// Units of the measurements before this one.
    begun: usize,
    /// Units of this one.
    units: usize,
    entry: String,
    out: &'a Path,
    json: Option<&'a Path>,
}

impl Observer for Watch<'_> {
    fn begin(&mut self, entry: &Entry, what: &'static str, units: usize) {
        self.begun += self.units;
        self.units = units;
        self.entry = format!("{}, {what}", entry.name);
        self.bar.set_position(self.begun as u64);
        self.bar.set_message(self.entry.clone());
    }

    fn advance(&mut self, done: usize, note: &str) -> ControlFlow<()> {
        self.bar.set_position((self.begun + done) as u64);
        self.bar.set_message(format!("{}: {note}", self.entry));
        if super::interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn keep(&mut self, results: &Results, summary: &str) -> Result<()> {
        if self.bar.is_hidden() {
            eprintln!("[{:>4.0} s] {summary}", results.seconds);
        } else {
            self.bar.println(summary);
        }
        report::write(results, self.out)?;
        self.json.map_or(Ok(()), |path| results.save(path))
    }
}
