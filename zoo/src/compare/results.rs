//! What a comparison found: plain data, saved as JSON, drawn by [`crate::report`].

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Machine;
use crate::{Error, Result, files};

/// Version of the JSON layout; raised when a field changes its meaning.
pub const SCHEMA: u32 = 1;

/// How far the comparison came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Measurements are still being taken.
    #[default]
    Running,
    /// Stopped by the user; what is there is valid.
    Interrupted,
    /// Everything was measured.
    Finished,
}

/// A whole comparison.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// [`SCHEMA`] of the program that wrote it.
    pub schema: u32,
    /// Version of the program.
    pub version: String,
    /// The command line.
    pub command: String,
    /// Seed of every model and every data set.
    pub seed: u64,
    /// Start, as `2026-01-31 12:00 UTC`.
    pub started: String,
    /// Wall-clock time so far.
    pub seconds: f64,
    /// How far it came.
    pub status: Status,
    /// Where it ran.
    pub machine: Machine,
    /// The text task.
    pub text: TextTask,
    /// The recall task.
    pub recall: RecallTask,
    /// Lengths at which speed and memory are measured.
    pub lengths: Vec<usize>,
    /// One entry per architecture.
    pub entries: Vec<Entry>,
}

/// Sizes shared by all models of a task.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ModelSizes {
    /// Width.
    pub d_model: usize,
    /// Layers.
    pub depth: usize,
    /// Kernel width of the convolution before every mixer; 0 for none.
    pub conv: usize,
    /// Parameters every model is brought to.
    pub params: usize,
    /// Numbers of state per layer, where the architecture lets one choose.
    pub state: usize,
}

/// How models are trained on a task.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Training {
    /// Optimiser steps.
    pub steps: usize,
    /// Sequences per step, where they have this length; more where they are shorter.
    pub batch: usize,
    /// Tokens per sequence, at most.
    pub length: usize,
    /// Peak learning rate.
    pub learning_rate: f64,
}

/// The text task: predict the next byte.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TextTask {
    /// Where the text comes from.
    pub source: String,
    /// Its size.
    pub bytes: usize,
    /// Bytes at its end that are only evaluated on.
    pub held_out: usize,
    /// The models.
    pub model: ModelSizes,
    /// Their training.
    pub training: Training,
}

/// The recall task: MQAR.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RecallTask {
    /// Distinct tokens.
    pub vocab: usize,
    /// Numbers of key-value pairs in training, fewest first, and in the evaluation; sequences are four times as
    /// long.
    pub pairs: Vec<usize>,
    /// Accuracy of guessing among the values.
    pub chance: f64,
    /// Sequences per pair count in the evaluation.
    pub samples: usize,
    /// The models.
    pub model: ModelSizes,
    /// Their training.
    pub training: Training,
}

/// One architecture.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Name in the registry.
    pub name: String,
    /// Full name.
    pub title: String,
    /// What its state is, in words.
    pub state: String,
    /// The text model.
    pub text_model: Option<Model>,
    /// The recall model.
    pub recall_model: Option<Model>,
    /// What it learnt of the text.
    pub text: Option<TextRun>,
    /// What it learnt of recall.
    pub recall: Option<RecallRun>,
    /// Speed and memory of the text model by length.
    pub speed: Vec<Speed>,
    /// How the trained recall model's layers look back.
    pub maps: Vec<LayerMap>,
    /// What went wrong, in words.
    pub failures: Vec<String>,
}

/// One model as it was built.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Model {
    /// Trainable numbers.
    pub params: usize,
    /// Hidden size of the feed-forward network, chosen to meet the parameter count.
    pub mlp_hidden: usize,
    /// Bytes of state, all layers, after reading one sequence of the task.
    pub state_bytes: usize,
    /// The mixer's configuration.
    pub mixer: serde_json::Value,
}

/// A point of a training curve.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CurvePoint {
    /// Optimiser steps done.
    pub step: usize,
    /// Value after them.
    pub value: f64,
}

/// Training on text.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TextRun {
    /// Training loss in bits per byte, averaged over the steps since the point before.
    pub curve: Vec<CurvePoint>,
    /// Bits per byte on the held-out text after training.
    pub bits_per_byte: Option<f64>,
    /// Time spent in training.
    pub seconds: f64,
}

/// Training on recall.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RecallRun {
    /// Mean accuracy over all numbers of pairs, on samples never trained on.
    pub curve: Vec<CurvePoint>,
    /// Accuracy after training by number of pairs, on samples never trained on.
    pub by_pairs: Vec<PairAccuracy>,
    /// Time spent in training.
    pub seconds: f64,
}

impl RecallRun {
    /// Accuracy at the most pairs.
    pub fn hardest(&self) -> Option<PairAccuracy> {
        self.by_pairs.iter().copied().max_by_key(|point| point.pairs)
    }
}

/// Recall at one number of pairs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PairAccuracy {
    /// Key-value pairs to keep in mind.
    pub pairs: usize,
    /// Share of queries answered right.
    pub accuracy: f64,
}

/// Speed and memory at one length, batch 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Speed {
    /// Tokens read.
    pub length: usize,
    /// Tokens per second while reading all of them.
    pub prefill: f64,
    /// Milliseconds per token written after them (median).
    pub decode_ms: f64,
    /// Bytes of state after them.
    pub state_bytes: usize,
}

/// How a matrix of weights was obtained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MapKind {
    /// Implied attention `C_i (Λ_i … Λ_{j+1}) B_j`, or softmax weights.
    Attention,
    /// Size of the derivative `∂y_i/∂x_j`.
    Influence,
}

/// How one layer looks back over one recall sample.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerMap {
    /// Layer, from 1.
    pub layer: usize,
    /// Head shown, from 1: the one that looks most at the right pairs. `None` where there are no heads.
    pub head: Option<usize>,
    /// What the numbers are.
    pub kind: MapKind,
    /// Side of the matrix.
    pub size: usize,
    /// Rows, each divided by its largest absolute value.
    pub weights: Vec<f32>,
    /// Query positions and the positions of their pair's value.
    pub targets: Vec<[usize; 2]>,
    /// Mean over queries of the share of absolute weight on the right pair.
    pub on_target: f64,
}

impl Results {
    /// Reads a file that `compare --json` wrote.
    ///
    /// # Errors
    /// When it cannot be read, is no such file, or has another version's layout.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        let bad = |reason: String| Error::Config {
            what: path.display().to_string(),
            reason: format!("not the results of a comparison: {reason}"),
        };
        let value: serde_json::Value = serde_json::from_str(&text).map_err(|e| bad(e.to_string()))?;
        match value.get("schema").and_then(serde_json::Value::as_u64) {
            Some(schema) if schema == u64::from(SCHEMA) => {}
            Some(other) => {
                return Err(bad(format!("its layout is version {other}, this program reads {SCHEMA}")));
            }
            None => return Err(bad("it has no `schema` number".into())),
        }
        serde_json::from_value(value).map_err(|e| bad(e.to_string()))
    }

    /// Writes the results as JSON, whole or not at all.
    ///
    /// # Errors
    /// When the file cannot be written; an older one stays.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut json = serde_json::to_vec_pretty(self).map_err(|e| Error::Data(e.to_string()))?;
        json.push(b'\n');
        files::replace(path, &json)
    }
}
