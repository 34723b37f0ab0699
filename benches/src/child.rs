//! One measurement in a process of its own, under a limit of time and one of memory: whatever it does, the sweep
//! gets an outcome. Two builds measure the same point in turns, a repetition of one and then a repetition of the other:
//! before each the child prints [`TURN`] and waits for a line.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::plan::Effort;
use crate::point::{Point, Sizes};
use crate::record::Outcome;
use crate::{Error, Result, heap, measure, models, peers};

/// The hidden subcommand of this program that measures one point.
pub const COMMAND: &str = "point";
/// The program for the peers written in Python.
const TORCH: &str = include_str!("../peers/torch_peer.py");
/// How often a running child is looked at.
const POLL: Duration = Duration::from_millis(5);
/// The line with which a child asks for its turn.
const TURN: &str = "turn";
/// Rust's last words when an allocation fails.
const NO_MEMORY: &str = "memory allocation of";

/// What a child is told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// What to measure.
    pub point: Point,
    /// At which sizes.
    pub sizes: Sizes,
    /// How often.
    pub effort: Effort,
    /// Bytes it may have in use.
    pub memory: u64,
    /// The `config.json` of the model that the subject names, where it names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<serde_json::Value>,
    /// Whether it waits for its turn before each repetition; builds from before there were turns do not.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub in_turns: bool,
}

/// How children are run.
#[derive(Clone, Debug)]
pub struct Limits {
    /// This program.
    pub program: PathBuf,
    /// The Python that has torch.
    pub python: String,
    /// Seconds for one child.
    pub seconds: f64,
    /// Bytes that a child may have in use.
    pub memory: u64,
    /// Threads, where they are limited.
    pub threads: Option<usize>,
}

/// What a child does next.
enum Next {
    /// It waits for its turn.
    Turn,
    /// It is over.
    Over(Outcome),
    /// The sweep was stopped.
    Stopped,
}

impl Limits {
    /// Measures a point in a child; `None` when `stop` says so, with the child ended.
    ///
    /// # Errors
    /// When the child cannot be started at all.
    pub fn measure(
        &self,
        point: &Point,
        sizes: Sizes,
        effort: Effort,
        stop: &dyn Fn() -> bool,
    ) -> Result<Option<Outcome>> {
        let mut running = self.start(point, sizes, effort, false)?;
        loop {
            match running.next(stop)? {
                Next::Turn => running.go(),
                Next::Over(outcome) => return Ok(Some(outcome)),
                Next::Stopped => return Ok(None),
            }
        }
    }

    fn start(&self, point: &Point, sizes: Sizes, effort: Effort, in_turns: bool) -> Result<Running<'_>> {
        let model = models::config(&point.subject)?;
        let job = Job { point: point.clone(), sizes, effort, memory: self.memory, model, in_turns };
        let mut child = self.spawn(&job)?;
        let (asked, turns) = mpsc::channel();
        let stdout = child.stdout.take().map(|pipe| answers(pipe, asked));
        let (stderr, held) = (drain(child.stderr.take()), child.stdin.take());
        Ok(Running { limits: self, child, held, turns, stdout, stderr: Some(stderr), spent: Duration::ZERO })
    }

    fn spawn(&self, job: &Job) -> Result<Child> {
        let json = serde_json::to_string(job).map_err(|e| Error::Measure(e.to_string()))?;
        let in_python = matches!(peers::library(&job.point.subject), Some("torch" | "transformers" | "fla"));
        let (program, args) = if in_python {
            (PathBuf::from(&self.python), ["-c", TORCH, &json].map(String::from).to_vec())
        } else {
            (self.program.clone(), [COMMAND, &json].map(String::from).to_vec())
        };
        let mut command = Command::new(&program);
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some(threads) = self.threads {
            for variable in ["RAYON_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"] {
                command.env(variable, threads.to_string());
            }
        }
        command.spawn().map_err(|e| Error::io(&program, e))
    }

    fn outcome(&self, status: ExitStatus, stdout: &str, stderr: &str) -> Outcome {
        let last = stdout.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
        match serde_json::from_str::<Outcome>(last) {
            Ok(outcome) => outcome,
            Err(_) if stderr.contains(NO_MEMORY) => Outcome::OutOfMemory { limit: self.memory },
            Err(_) => {
                let words = stderr.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no message");
                Outcome::Crashed { reason: format!("{status}: {}", words.trim()) }
            }
        }
    }
}

/// Measures a point in two builds, in turns; `None` when `stop` says so, with both ended. A build that takes no turns
/// is measured whole, while the other waits.
///
/// # Errors
/// When a child cannot be started at all.
pub fn measure_in_turns(
    builds: [(&Limits, Effort); 2],
    point: &Point,
    sizes: Sizes,
    stop: &dyn Fn() -> bool,
) -> Result<Option<[Outcome; 2]>> {
    let mut running = Vec::with_capacity(builds.len());
    let mut outcomes = [None, None];
    // Both are warm before either is measured.
    for (outcome, (limits, effort)) in outcomes.iter_mut().zip(builds) {
        let mut child = limits.start(point, sizes, effort, true)?;
        match child.next(stop)? {
            Next::Turn => {}
            Next::Over(over) => *outcome = Some(over),
            Next::Stopped => return Ok(None),
        }
        running.push(child);
    }
    loop {
        for (child, outcome) in running.iter_mut().zip(&mut outcomes).filter(|(_, outcome)| outcome.is_none())
        {
            child.go();
            match child.next(stop)? {
                Next::Turn => {}
                Next::Over(over) => *outcome = Some(over),
                Next::Stopped => return Ok(None),
            }
        }
        if let [Some(first), Some(second)] = outcomes {
            return Ok(Some([first, second]));
        }
    }
}

/// A child at work; ended when dropped.
struct Running<'a> {
    limits: &'a Limits,
    child: Child,
    /// Open until the end: a child whose parent is gone reads the end of it and stops.
    held: Option<ChildStdin>,
    turns: Receiver<()>,
    stdout: Option<JoinHandle<String>>,
    stderr: Option<JoinHandle<Vec<u8>>>,
    /// While it was not waiting for its turn.
    spent: Duration,
}

impl Running<'_> {
    /// Gives it its turn.
    fn go(&mut self) {
        // A child that has ended meanwhile is noticed by `next`.
        let _ = self.held.as_mut().map(|pipe| pipe.write_all(b"\n").and_then(|()| pipe.flush()));
    }

    fn next(&mut self, stop: &dyn Fn() -> bool) -> Result<Next> {
        let started = Instant::now();
        let limit = Duration::try_from_secs_f64(self.limits.seconds).unwrap_or(Duration::MAX);
        let status = loop {
            if stop() {
                return Ok(Next::Stopped);
            }
            match self.turns.recv_timeout(POLL) {
                Ok(()) => {
                    self.spent += started.elapsed();
                    return Ok(Next::Turn);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => thread::sleep(POLL),
            }
            match self.child.try_wait().map_err(|e| Error::io(&self.limits.program, e))? {
                Some(status) => break Some(status),
                None if self.spent + started.elapsed() > limit => break None,
                None => {}
            }
        };
        let Some(status) = status else {
            // Now, so that it does not slow the other build.
            let _ = self.child.kill();
            return Ok(Next::Over(Outcome::TimedOut { limit: self.limits.seconds }));
        };
        if stop() {
            return Ok(Next::Stopped);
        }
        let stdout = self.stdout.take().and_then(|reader| reader.join().ok()).unwrap_or_default();
        let stderr = self.stderr.take().map(text).unwrap_or_default();
        Ok(Next::Over(self.limits.outcome(status, &stdout, &stderr)))
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        // A child that has ended meanwhile cannot be killed, which is as well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads what a child prints on a thread, passes on that it asks for its turn and keeps the rest.
fn answers(pipe: ChildStdout, asked: Sender<()>) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut kept = String::new();
        // What was read before an error is all there is.
        for line in BufReader::new(pipe).lines().map_while(std::io::Result::ok) {
            if line != TURN {
                kept += &line;
                kept.push('\n');
            } else if asked.send(()).is_err() {
                break;
            }
        }
        kept
    })
}

/// Reads a pipe to its end on a thread, so that a full pipe never blocks its writer.
fn drain(pipe: Option<impl Read + Send + 'static>) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // What was read before an error is all there is.
            let _ = pipe.read_to_end(&mut bytes);
        }
        bytes
    })
}

fn text(reader: JoinHandle<Vec<u8>>) -> String {
    String::from_utf8_lossy(&reader.join().unwrap_or_default()).into_owned()
}

/// The child's side: measures what the job says and prints the outcome as a line.
///
/// # Errors
/// When the job cannot be read or the outcome not be printed.
pub fn run(job: &str) -> Result<()> {
    let job: Job = serde_json::from_str(job).map_err(|e| Error::Measure(format!("not a job: {e}")))?;
    let (given, turns) = mpsc::channel();
    thread::spawn(move || {
        // Ends when the parent closes the pipe or is gone; turns that nobody waits for are lost.
        for _ in std::io::stdin().lines().map_while(std::io::Result::ok) {
            let _ = given.send(());
        }
        std::process::exit(3);
    });
    let mut turn = || {
        if job.in_turns {
            print(TURN)?;
            turns.recv().map_err(|e| Error::Measure(format!("no turn: {e}")))?;
        }
        Ok(())
    };
    let outcome = if heap::limit(job.memory) {
        match measure::measure(&job.point, job.sizes, job.effort, &mut turn) {
            Ok(measurement) => Outcome::Done(measurement),
            Err(error) => Outcome::Failed { reason: error.to_string() },
        }
    } else {
        Outcome::OutOfMemory { limit: job.memory }
    };
    print(&serde_json::to_string(&outcome).map_err(|e| Error::Measure(e.to_string()))?)
}

fn print(line: &str) -> Result<()> {
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{line}").and_then(|()| stdout.flush()).map_err(|e| Error::io("stdout", e))
}

#[cfg(all(test, unix))]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use seqzoo_layers::system::Form;

    use super::*;
    use crate::point::Task;

    /// A program that does what `script` says and then fails with its name as the reason.
    fn build(folder: &Path, name: &str, script: &str) -> Limits {
        let program = folder.join(name);
        let text = program.with_extension("sh");
        let last = format!(r#"{{"kind":"failed","reason":"{name}"}}"#);
        fs::write(&text, format!("#!/bin/sh\ncd '{}'\n{script}\necho '{last}'\n", folder.display())).unwrap();
        // A child that another test forks may hold for a moment what this process writes, and such a
        // program is "busy"; what `cp` writes only `cp` holds.
        assert!(Command::new("cp").args([&text, &program]).status().unwrap().success());
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        Limits { program, python: "python3".into(), seconds: 60.0, memory: 1 << 30, threads: None }
    }

    /// Takes as many turns, and writes its letter into the file `log` at each.
    fn turns(letter: char, count: usize) -> String {
        format!("echo turn\nread go\nprintf {letter} >> log\n").repeat(count)
    }

    /// What is written where two builds take turns.
    fn log(first: &str, second: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let builds = [build(folder.path(), "first", first), build(folder.path(), "second", second)];
        let effort = Effort { seconds: 1.0, least: 1, most: 1, stretch: 1.0 };
        let [one, two] = &builds;
        let point = Point {
            subject: "lstm".into(),
            task: Task::Prefill,
            form: Form::Auto,
            device: "flex".into(),
            batch: 1,
            time: 8,
        };
        let outcomes =
            measure_in_turns([(one, effort), (two, effort)], &point, Sizes::default(), &|| false).unwrap();
        let failed = |reason: &str| Outcome::Failed { reason: reason.into() };
        assert_eq!(outcomes, Some(["first", "second"].map(failed)));
        let log = fs::read_to_string(folder.path().join("log")).unwrap();
        let stopped = measure_in_turns([(one, effort), (two, effort)], &point, Sizes::default(), &|| true);
        assert_eq!(stopped.unwrap(), None);
        log
    }

    #[test]
    fn repetitions_of_two_builds_alternate() {
        assert_eq!(log(&turns('a', 3), &turns('b', 3)), "ababab");
        // The faster one goes on alone.
        assert_eq!(log(&turns('a', 1), &turns('b', 3)), "abbb");
    }

    #[test]
    fn a_build_that_takes_no_turns_is_measured_whole() {
        let old = "printf o >> log\n".repeat(2);
        assert_eq!(log(&turns('a', 2), &old), "ooaa");
        assert_eq!(log(&old, &turns('b', 2)), "oobb");
    }
}
