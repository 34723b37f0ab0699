//! One measurement in a process of its own, under a limit of time and one of memory: whatever it does, the sweep
//! gets an outcome.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
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
        let model = models::config(&point.subject)?;
        let job = Job { point: point.clone(), sizes, effort, memory: self.memory, model };
        let mut child = self.spawn(&job)?;
        let (stdout, stderr) = (drain(child.stdout.take()), drain(child.stderr.take()));
        // Held open until the end: a child whose parent is gone reads the end of it and stops.
        let held = child.stdin.take();
        let started = Instant::now();
        let ended = loop {
            match child.try_wait().map_err(|e| Error::io(&self.program, e))? {
                Some(status) => break Some(status),
                None if stop() || started.elapsed().as_secs_f64() > self.seconds => break None,
                None => thread::sleep(POLL),
            }
        };
        if ended.is_none() {
            // A child that has ended meanwhile cannot be killed, which is as well.
            let _ = child.kill();
            let _ = child.wait();
        }
        drop(held);
        let (stdout, stderr) = (text(stdout), text(stderr));
        if stop() {
            return Ok(None);
        }
        Ok(Some(match ended {
            None => Outcome::TimedOut { limit: self.seconds },
            Some(status) => self.outcome(status, &stdout, &stderr),
        }))
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
    thread::spawn(|| {
        let mut rest = Vec::new();
        // Ends when the parent closes the pipe or is gone.
        let _ = std::io::stdin().read_to_end(&mut rest);
        std::process::exit(3);
    });
    let outcome = if heap::limit(job.memory) {
        match measure::measure(&job.point, job.sizes, job.effort) {
            Ok(measurement) => Outcome::Done(measurement),
            Err(error) => Outcome::Failed { reason: error.to_string() },
        }
    } else {
        Outcome::OutOfMemory { limit: job.memory }
    };
    let line = serde_json::to_string(&outcome).map_err(|e| Error::Measure(e.to_string()))?;
    writeln!(std::io::stdout(), "{line}").map_err(|e| Error::io("stdout", e))
}
