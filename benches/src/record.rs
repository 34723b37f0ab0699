//! What a sweep found: a header and one record per measurement, each a line of JSON.

use serde::{Deserialize, Serialize};

use crate::point::{Point, Sizes};
use seqzoo::compare::Machine;

/// Version of the layout; raised when a field changes its meaning.
pub const SCHEMA: u32 = 1;

/// A line of the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "line", rename_all = "snake_case")]
pub enum Line {
    /// The first one.
    Header(Header),
    /// Every other one.
    Record(Record),
}

/// Where, when and how a sweep ran.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// [`SCHEMA`] of the program that wrote it.
    pub schema: u32,
    /// Version of the program.
    pub version: String,
    /// The command line.
    pub command: String,
    /// Start, as `2026-01-31 12:00 UTC`.
    pub started: String,
    /// The machine.
    pub machine: Machine,
    /// Threads that every measurement was told to use; `None` for as many as it likes. None are pinned.
    pub threads: Option<usize>,
    /// Sizes of the layers.
    pub sizes: Sizes,
    /// Notes on what was left out and why.
    pub notes: Vec<String>,
    /// The same in two files whose points were measured in turns, repetition by repetition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub turns: Option<String>,
}

/// One point in one round.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// What was measured.
    pub point: Point,
    /// Which time round the whole sweep, from 0.
    pub round: usize,
    /// What came of it.
    pub outcome: Outcome,
}

/// How a measurement ended. Every end is a result: none stops the sweep.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Outcome {
    /// With numbers.
    Done(Measurement),
    /// More memory was needed than allowed.
    OutOfMemory {
        /// Bytes allowed.
        limit: u64,
    },
    /// More time was needed than allowed.
    TimedOut {
        /// Seconds allowed.
        limit: f64,
    },
    /// The process died.
    Crashed {
        /// Its exit and last words.
        reason: String,
    },
    /// An error was reported.
    Failed {
        /// The message.
        reason: String,
    },
    /// Not tried, because of an earlier outcome.
    Skipped {
        /// Which.
        reason: String,
    },
}

impl Outcome {
    /// The numbers, if there are any.
    pub fn done(&self) -> Option<&Measurement> {
        if let Self::Done(measurement) = self { Some(measurement) } else { None }
    }

    /// In a few words.
    pub fn words(&self) -> String {
        match self {
            Self::Done(m) => format!("{} repetitions", m.seconds.len()),
            Self::OutOfMemory { limit } => format!("out of memory at {} MiB", limit >> 20),
            Self::TimedOut { limit } => format!("not done after {limit} s"),
            Self::Crashed { reason } => format!("crashed: {reason}"),
            Self::Failed { reason } => format!("failed: {reason}"),
            Self::Skipped { reason } => format!("skipped: {reason}"),
        }
    }
}

/// The numbers of one point in one round.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measurement {
    /// Seconds of the very first repetition, in a fresh process; for a decoded token, with its prompt read before
    /// it: the time to the first token.
    pub first_seconds: f64,
    /// Seconds of each repetition after the warm-up.
    pub seconds: Vec<f64>,
    /// Largest number of bytes on the host's heap, weights and inputs included; 0 where unknown.
    pub peak_bytes: u64,
    /// What can be counted: the same on every machine.
    pub counted: Counted,
}

/// Quantities that do not depend on the machine's mood.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counted {
    /// Floating-point operations of one repetition.
    pub flops: f64,
    /// Bytes that one repetition must move at least.
    pub bytes: f64,
    /// Trainable numbers.
    pub params: u64,
    /// Bytes of the state after one repetition.
    pub state_bytes: u64,
    /// Bytes asked of the allocator, in the repetition that asked least: on a single thread the same in every run; 0
    /// where unknown.
    pub allocated_bytes: u64,
    /// Kernels started by one repetition, on devices that start kernels; none on the CPU.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub launches: u64,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}
