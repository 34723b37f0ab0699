//! A training run in a folder.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use burn::tensor::Device;

use super::{Checkpoint, EvalMetrics, MetricsLog, Row, RunData, StepMetrics, TrainConfig, Trainer, evaluate};
use crate::data::{Batches, Data, Source, Tokenizer};
use crate::model::LanguageModelConfig;
use crate::{Error, Result};

/// What a run tells while it goes on.
#[derive(Debug)]
pub enum Event<'a> {
    /// A step was made.
    Step(&'a StepMetrics),
    /// The model was evaluated after a step.
    Evaluated(usize, &'a EvalMetrics),
    /// A checkpoint was written after a step.
    Saved(usize),
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All steps are done.
    Finished,
    /// The caller broke it off; a checkpoint was written.
    Stopped,
}

/// A training run whose checkpoints and metrics live in a folder.
pub struct Run {
    dir: PathBuf,
    trainer: Trainer,
    data: Data,
    about: RunData,
    batches: Box<dyn Batches>,
    log: MetricsLog,
}

impl Run {
    /// Starts a run in a folder that holds none yet.
    ///
    /// # Errors
    /// When the folder holds a checkpoint or cannot be written, the data cannot be read or is too short,
    /// the model's vocabulary is smaller than the tokenizer's, or a configuration is impossible.
    pub fn create(
        dir: &Path,
        config: &LanguageModelConfig,
        train: TrainConfig,
        source: Source,
        tokenizer: Tokenizer,
        device: &Device,
    ) -> Result<Self> {
        if Checkpoint::exists(dir) {
            let reason = "it already holds a checkpoint; resume it, or choose another folder".into();
            return Err(Error::Checkpoint { path: dir.to_path_buf(), reason });
        }
        train.validate()?;
        config.validate()?;
        if config.vocab < tokenizer.vocab() {
            return Err(Error::Data(format!(
                "the model reads {} tokens, the tokenizer makes {}: set `vocab` to at least that",
                config.vocab,
                tokenizer.vocab()
            )));
        }
        let data = source.open(&tokenizer)?;
        let about = RunData { source, fingerprint: data.fingerprint(), tokenizer };
        let model = config.init(train.seed, &device.clone().autodiff())?;
        Self::start(dir, Trainer::new(model, train)?, data, about)
    }

    /// Continues the run of a folder. `steps` replaces the number of steps in all.
    ///
    /// # Errors
    /// When there is no checkpoint or it is damaged, or its data cannot be read any more.
    pub fn resume(dir: &Path, steps: Option<usize>, device: &Device) -> Result<Self> {
        let checkpoint = Checkpoint::load(dir, &device.clone().autodiff())?;
        Self::resume_from(dir, checkpoint, steps)
    }

    /// Continues from a checkpoint that was already read from `dir`.
    ///
    /// # Errors
    /// As [`Run::resume`].
    pub fn resume_from(dir: &Path, checkpoint: Checkpoint, steps: Option<usize>) -> Result<Self> {
        let progress = checkpoint.progress.clone();
        let data = progress.source.open(&progress.tokenizer)?;
        if data.fingerprint() != progress.fingerprint {
            tracing::warn!("the training text changed since the checkpoint: this is not an exact resume");
        }
        let mut trainer = checkpoint.resume()?;
        if let Some(steps) = steps {
            trainer.config.steps = steps;
        }
        let about = RunData {
            source: progress.source,
            fingerprint: data.fingerprint(),
            tokenizer: progress.tokenizer,
        };
        Self::start(dir, trainer, data, about)
    }

    fn start(dir: &Path, trainer: Trainer, data: Data, about: RunData) -> Result<Self> {
        let mut batches = data.train(trainer.config())?;
        batches.skip(trainer.steps_done());
        // Also shows before the first step whether the folder can be written.
        std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
        let log = MetricsLog::open(dir, trainer.steps_done())?;
        Ok(Self { dir: dir.to_path_buf(), trainer, data, about, batches, log })
    }

    /// The model and its progress.
    pub fn trainer(&self) -> &Trainer {
        &self.trainer
    }

    /// What the run learns from.
    pub fn data(&self) -> &Data {
        &self.data
    }

    /// Trains until all steps are done or `on_event` breaks off; either way a checkpoint is written.
    ///
    /// # Errors
    /// When the loss stops being finite (the last checkpoint stays and is named) or writing fails.
    pub fn run(&mut self, on_event: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>) -> Result<Outcome> {
        let every = |n: usize, step: usize| n > 0 && step.is_multiple_of(n);
        let (eval_every, save_every) = (self.trainer.config.eval_every, self.trainer.config.save_every);
        let mut stopped = false;
        while !stopped && !self.trainer.finished() {
            let metrics = self.trainer.step(&self.batches.next_batch()).map_err(|e| self.at_last_good(e))?;
            let step = metrics.step;
            stopped = on_event(Event::Step(&metrics)).is_break();
            let last = stopped || self.trainer.finished();
            let judged = match every(eval_every, step) || last {
                true => Some(self.evaluate()?),
                false => None,
            };
            self.log.push(&Row::new(&metrics, judged.as_ref()))?;
            if let Some(judged) = &judged {
                stopped |= on_event(Event::Evaluated(step, judged)).is_break();
            }
            if every(save_every, step) || stopped || last {
                self.save()?;
                stopped |= on_event(Event::Saved(step)).is_break();
            }
        }
        self.log.flush()?;
        Ok(if self.trainer.finished() { Outcome::Finished } else { Outcome::Stopped })
    }

    /// Loss and accuracy on the part of the data that is not trained on; the same batches every time.
    ///
    /// # Errors
    /// When the model fails.
    pub fn evaluate(&self) -> Result<EvalMetrics> {
        let config = self.trainer.config();
        let mut batches = self.data.validation(config)?;
        evaluate(self.trainer.model(), &mut *batches, config.eval_batches)
    }

    /// Writes a checkpoint now.
    ///
    /// # Errors
    /// When writing fails; the previous checkpoint then stays.
    pub fn save(&mut self) -> Result<()> {
        self.trainer.save(&self.dir, &self.about).map_err(|e| self.at_last_good(e))?;
        self.log.flush()
    }

    fn at_last_good(&self, error: Error) -> Error {
        match error {
            Error::NotFinite { step, tensor, .. } => {
                let checkpoint = Checkpoint::exists(&self.dir).then(|| self.dir.clone());
                Error::NotFinite { step, tensor, checkpoint }
            }
            other => other,
        }
    }
}
