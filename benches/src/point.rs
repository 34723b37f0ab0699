//! What is measured: one subject, one task, one size.

use std::fmt;
use std::str::FromStr;

use seqzoo_layers::system::Form;
use serde::{Deserialize, Serialize};

/// The machine's own speed, the ceiling of everything else.
pub const MACHINE: &str = "machine";

/// What a subject has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// Multiply two square matrices of side `time`.
    Matmul,
    /// Read and write `time` numbers.
    Copy,
    /// Read `time` tokens.
    Prefill,
    /// Read `time` tokens and find all gradients.
    Train,
    /// Read one more token after `time`.
    Decode,
}

impl Task {
    /// What a layer does with sequences.
    pub const SEQUENCE: [Task; 3] = [Task::Prefill, Task::Train, Task::Decode];
}

impl FromStr for Task {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::SEQUENCE.into_iter().find(|task| task.to_string() == text);
        found.ok_or_else(|| format!("one of {}", Self::SEQUENCE.map(|task| task.to_string()).join(", ")))
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Task::Matmul => "matmul",
            Task::Copy => "copy",
            Task::Prefill => "prefill",
            Task::Train => "train",
            Task::Decode => "decode",
        })
    }
}

/// One measurement that a sweep takes, several rounds of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Point {
    /// An architecture of the registry, [`MACHINE`], or a peer such as `torch/lstm`.
    pub subject: String,
    /// What it does.
    pub task: Task,
    /// How a sequence is executed.
    pub form: Form,
    /// Execution device, by name.
    pub device: String,
    /// Sequences at once.
    pub batch: usize,
    /// Tokens of a sequence; see [`Task`].
    pub time: usize,
}

impl Point {
    /// Tokens of one repetition.
    pub fn tokens(&self) -> usize {
        match self.task {
            Task::Decode => self.batch,
            _ => self.batch * self.time,
        }
    }

    /// Whether both do the same thing at the same size, whoever does it.
    pub fn matches(&self, other: &Self) -> bool {
        let subject = other.subject.clone();
        *other == Self { subject, ..self.clone() }
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { subject, task, form, device, batch, time } = self;
        write!(f, "{subject} {task} {form} on {device}, batch {batch}, {time} tokens")
    }
}

/// Sizes of every layer under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sizes {
    /// Width.
    pub d_model: usize,
    /// Numbers of memory, where the architecture lets one choose.
    pub state: usize,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { d_model: crate::WIDTH, state: 4096 }
    }
}

/// A [`Form`] as people type it: `auto`, `recurrent`, `parallel`, `chunked`, `chunked:32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FormArg(pub Form);

impl FromStr for FormArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, size) = text.split_once(':').map_or((text, None), |(name, size)| (name, Some(size)));
        match (name, size) {
            ("auto", None) => Ok(Self(Form::Auto)),
            ("recurrent", None) => Ok(Self(Form::Recurrent)),
            ("parallel", None) => Ok(Self(Form::Parallel)),
            ("chunked", size) => match size.unwrap_or("64").parse() {
                Ok(size) if size > 0 => Ok(Self(Form::Chunked { size })),
                _ => Err("a chunk has at least one token, as in `chunked:64`".into()),
            },
            _ => Err("one of auto, recurrent, parallel, chunked, chunked:SIZE".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_typed_as_they_are_written() {
        assert_eq!("chunked:8".parse(), Ok(FormArg(Form::Chunked { size: 8 })));
        assert_eq!("auto".parse(), Ok(FormArg(Form::Auto)));
        for bad in ["chunked:0", "chunked:x", "parallel:3", ""] {
            assert!(bad.parse::<FormArg>().is_err(), "{bad}");
        }
        assert_eq!("decode".parse(), Ok(Task::Decode));
        assert_eq!("copy".parse::<Task>(), Err("one of prefill, train, decode".into()));
    }

    #[test]
    fn points_match_across_subjects_only_in_everything_else() {
        let point = |subject: &str, time| Point {
            subject: subject.into(),
            task: Task::Prefill,
            form: Form::Auto,
            device: "flex".into(),
            batch: 1,
            time,
        };
        assert!(point("lstm", 4).matches(&point("torch/lstm", 4)));
        assert!(!point("lstm", 4).matches(&point("torch/lstm", 8)));
    }
}
