//! Training: loss, optimizer, the loop, checkpoints that resume exactly, and the record of a run.
//!
//! [`fit`] trains a model in memory; [`Run`] trains one in a folder, with evaluation and checkpoints.

mod checkpoint;
mod config;
mod loss;
mod metrics;
mod optimizer;
mod portable;
mod run;
#[cfg(test)]
mod tests;
mod trainer;
pub mod weights;

use std::ops::ControlFlow;

pub use checkpoint::{Checkpoint, Progress, RunData};
pub use config::TrainConfig;
pub use loss::{EvalMetrics, evaluate, evaluate_async, loss};
pub use metrics::{MetricsLog, Row};
pub use optimizer::AdamW;
pub use portable::Portable;
pub use run::{Event, Outcome, Run};
pub use trainer::{StepMetrics, Trainer};

use crate::Result;
use crate::data::Batches;
use crate::model::LanguageModel;

/// Trains a model for the configured number of steps, or until `on_step` breaks off, and returns it ready
/// for inference. Batches decide their own size: `batch`, `time` and `seed` of the configuration are not used.
///
/// # Errors
/// When the configuration is impossible or the loss stops being finite.
pub fn fit(
    model: LanguageModel,
    batches: &mut dyn Batches,
    config: &TrainConfig,
    on_step: &mut dyn FnMut(&StepMetrics) -> ControlFlow<()>,
) -> Result<LanguageModel> {
    let mut trainer = Trainer::new(model, config.clone())?;
    while !trainer.finished() {
        let metrics = trainer.step(&batches.next_batch())?;
        if on_step(&metrics).is_break() {
            break;
        }
    }
    Ok(trainer.into_model())
}
