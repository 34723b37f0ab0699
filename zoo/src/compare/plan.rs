//! What is measured, at which sizes: the full comparison and the quick one.

use std::path::PathBuf;

use super::results::{ModelSizes, RecallTask, TextTask, Training};

/// What is compared where nothing is named: at least one of each family, in about ten minutes.
pub const REPRESENTATIVES: &[&str] = &[
    "attention",
    "linear_attention",
    "lightning",
    "gated_deltanet",
    "mamba2",
    "rglru",
    "lstm",
    "moh",
    "yaad",
];

/// What the user asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// The two-minute version.
    pub quick: bool,
    /// UTF-8 file or folder to learn from; `None` for this workspace's own sources.
    pub text: Option<PathBuf>,
    /// Names of architectures, in the order of the report.
    pub architectures: Vec<String>,
    /// Seed of models and data.
    pub seed: u64,
    /// Device by name.
    pub device: String,
    /// The command line, for the record.
    pub command: String,
}

/// All sizes of a comparison.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The recall task; parameters are filled in once the first model is built.
    pub recall: RecallTask,
    /// The text task; source and sizes are filled in once it is read.
    pub text: TextTask,
    /// Points on the recall training curve.
    pub curve_points: usize,
    /// Batches of held-out text in the evaluation.
    pub text_batches: usize,
    /// Lengths at which speed and memory are measured, rising.
    pub lengths: Vec<usize>,
    /// Tokens written at each length.
    pub decode_steps: usize,
}

impl Plan {
    /// About ten minutes on two cores for all architectures.
    pub fn full() -> Self {
        Self {
            recall: RecallTask {
                vocab: 192,
                pairs: vec![4, 8, 16, 32],
                samples: 64,
                model: ModelSizes { d_model: 64, depth: 1, conv: 4, state: 1024, ..ModelSizes::default() },
                training: Training { steps: 400, batch: 16, length: 128, learning_rate: 2e-2 },
                ..RecallTask::default()
            },
            text: TextTask {
                model: ModelSizes { d_model: 128, depth: 2, state: 4096, ..ModelSizes::default() },
                training: Training { steps: 150, batch: 16, length: 128, learning_rate: 3e-3 },
                ..TextTask::default()
            },
            curve_points: 24,
            text_batches: 8,
            lengths: vec![128, 256, 512, 1024, 2048, 4096, 8192],
            decode_steps: 24,
        }
    }

    /// About two minutes on two cores.
    pub fn quick() -> Self {
        let mut plan = Self::full();
        plan.recall.training.steps = 120;
        plan.recall.pairs = vec![4, 8, 16];
        plan.text.training.steps = 30;
        plan.text.training.batch = 8;
        plan.curve_points = 12;
        plan.text_batches = 2;
        plan.lengths = vec![128, 256, 512, 1024];
        plan.decode_steps = 12;
        plan
    }
}
