//! Training in the open: a few steps at a time, and a look at the model in between.

use burn::module::Module;
use burn::tensor::{DType, Device};
use seqzoo::Result;
use seqzoo::data::{Batches, Data, Mqar, TextData, Tokenizer};
use seqzoo::model::LanguageModelConfig;
use seqzoo::train::{Portable, TrainConfig, Trainer as Loop, evaluate_async};
use serde::{Deserialize, Serialize};
use web_time::Instant;

use crate::info::{bad, mixer_of};
use crate::words::vocabulary;
use crate::{Model, ModelInfo, model};

/// What is trained, on what, and how.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrainerConfig {
    /// A name, or a configuration with the field `arch`.
    pub mixer: serde_json::Value,
    /// Width.
    #[serde(default = "width")]
    pub d_model: usize,
    /// Blocks.
    #[serde(default = "depth")]
    pub layers: usize,
    /// What is learned.
    pub task: Task,
    /// Fields of [`TrainConfig`]; the rest is chosen for a browser.
    #[serde(default)]
    pub train: serde_json::Map<String, serde_json::Value>,
    /// Where; chosen by who opens the device.
    #[serde(default)]
    pub backend: Option<String>,
}

fn width() -> usize {
    32
}

fn depth() -> usize {
    2
}

/// What is learned.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "task", rename_all = "snake_case", deny_unknown_fields)]
pub enum Task {
    /// Multi-query associative recall.
    Mqar {
        /// Token ids.
        #[serde(default = "vocab")]
        vocab: usize,
        /// Tokens per sequence.
        #[serde(default = "length")]
        length: usize,
        /// Pairs to remember.
        #[serde(default = "pairs")]
        pairs: usize,
    },
    /// The next byte of a text.
    Text {
        /// The text; `None` for sources of the library.
        #[serde(default)]
        text: Option<String>,
    },
}

fn vocab() -> usize {
    64
}

fn length() -> usize {
    32
}

fn pairs() -> usize {
    4
}

/// One training step.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StepRow {
    /// Counted from 1.
    pub step: usize,
    /// In nats, before the update.
    pub loss: f64,
    /// Share of right answers on sequences that are not trained on, after the last step of a call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
    /// Length of the gradient.
    pub grad_norm: f64,
    /// Milliseconds of this step.
    pub ms_per_step: f64,
}

/// A model in training.
pub struct Trainer {
    inner: Loop,
    batches: Box<dyn Batches>,
    data: Data,
    tokenizer: Tokenizer,
    task: Option<Mqar>,
}

impl Trainer {
    /// Starts from drawn parameters on a device (without autodiff; it is added).
    ///
    /// # Errors
    /// For impossible values, an unknown architecture, or a text that is too short.
    pub fn new(config: &str, seed: u64, device: &Device) -> Result<Self> {
        let config: TrainerConfig = serde_json::from_str(config).map_err(|e| bad(e.to_string()))?;
        let train = train_config(config.train, seed)?;
        let (tokenizer, task, data) = match config.task {
            Task::Mqar { vocab, length, pairs } => {
                let task = Mqar { vocab, length, pairs, ..Default::default() };
                task.validate()?;
                (Tokenizer::Ids { vocab }, Some(task.clone()), Data::Mqar(task))
            }
            Task::Text { text: None } => {
                (Tokenizer::Bytes, None, Data::Text(TextData::own_sources(&Tokenizer::Bytes)?))
            }
            Task::Text { text: Some(text) } => {
                (Tokenizer::Bytes, None, Data::Text(TextData::of(&[text], &Tokenizer::Bytes)?))
            }
        };
        let mixer = mixer_of(config.mixer)?;
        let model = LanguageModelConfig::small(mixer, tokenizer.vocab(), config.d_model, config.layers);
        let model = model.init(seed, &device.clone().autodiff())?;
        let batches = data.train(&train)?;
        Ok(Self { inner: Loop::new(model, train)?, batches, data, tokenizer, task })
    }

    /// Facts about the model.
    ///
    /// # Errors
    /// When its configuration cannot be written.
    pub fn info(&self) -> Result<ModelInfo> {
        let whole = self.portable();
        model::info(&whole, &vocabulary(&whole.tokenizer, whole.task.is_some()), true)
    }

    /// Makes `steps` steps, or fewer where the schedule ends; the last row has the accuracy.
    ///
    /// # Errors
    /// When the loss stops being finite.
    pub async fn steps(&mut self, steps: usize) -> Result<Vec<StepRow>> {
        let mut rows = Vec::new();
        for _ in 0..steps {
            if self.inner.finished() {
                break;
            }
            let started = Instant::now();
            let metrics = self.inner.step_async(&self.batches.next_batch()).await?;
            rows.push(StepRow {
                step: metrics.step,
                loss: metrics.loss,
                accuracy: None,
                grad_norm: metrics.grad_norm,
                ms_per_step: started.elapsed().as_secs_f64() * 1e3,
            });
        }
        if let Some(last) = rows.last_mut() {
            let mut batches = self.data.validation(self.inner.config())?;
            last.accuracy = Some(evaluate_async(self.inner.model(), &mut *batches, 1).await?.accuracy);
        }
        Ok(rows)
    }

    /// The model as it is now, on the CPU.
    ///
    /// # Errors
    /// When its parameters cannot be read.
    pub async fn model(&self) -> Result<Model> {
        let bytes = self.weights().await?;
        Model::from_weights(&bytes)
    }

    /// The model as it is now, as a file.
    ///
    /// # Errors
    /// When its parameters cannot be read.
    pub async fn weights(&self) -> Result<Vec<u8>> {
        self.portable().to_bytes(DType::F32).await
    }

    fn portable(&self) -> Portable {
        let (tokenizer, task) = (self.tokenizer.clone(), self.task.clone());
        Portable { model: self.inner.model().valid(), tokenizer, task }
    }
}

fn train_config(given: serde_json::Map<String, serde_json::Value>, seed: u64) -> Result<TrainConfig> {
    let base =
        TrainConfig { steps: 2000, batch: 16, time: 64, lr: 3e-3, warmup: 20, seed, ..Default::default() };
    let mut all = serde_json::to_value(base).map_err(|e| bad(e.to_string()))?;
    if let Some(fields) = all.as_object_mut() {
        fields.extend(given);
    }
    let config: TrainConfig = serde_json::from_value(all).map_err(|e| bad(format!("train: {e}")))?;
    config.validate()?;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use futures_lite::future::block_on;

    use super::*;

    #[test]
    fn the_loss_falls_and_the_model_can_be_looked_at_and_taken_away() {
        let config = r#"{"mixer": "linear_attention", "dModel": 16, "layers": 1,
            "task": {"task": "mqar", "vocab": 16, "length": 12, "pairs": 2}, "train": {"batch": 8, "lr": 0.01}}"#;
        let mut trainer = Trainer::new(config, 0, &Device::flex()).unwrap();
        let first = block_on(trainer.steps(5)).unwrap();
        assert_eq!(first.iter().map(|row| row.step).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
        assert!(first[4].accuracy.is_some() && first[3].accuracy.is_none());
        let later = block_on(trainer.steps(60)).unwrap();
        let mean = |rows: &[StepRow]| rows.iter().map(|row| row.loss).sum::<f64>() / rows.len() as f64;
        assert!(mean(&later[50..]) < mean(&first) - 0.2, "{} {}", mean(&later[50..]), mean(&first));

        let mut model = block_on(trainer.model()).unwrap();
        assert_eq!(model.info().unwrap(), trainer.info().unwrap());
        let trace = model.read("k1 v3 k2 v5 k1").unwrap();
        assert_eq!(trace.tokens, ["k1", "v3", "k2", "v5", "k1"]);
        let pairs = [("k1".to_string(), "v3".to_string()), ("k2".to_string(), "v5".to_string())];
        let answer = model.recall(&pairs, "k1").unwrap();
        let (read, stepped) = (&answer.answer[0], &trace.predictions[4][0]);
        assert_eq!(read.token, stepped.token);
        assert!((read.probability - stepped.probability).abs() < 1e-5);
        let mut again = Model::from_weights(&block_on(trainer.weights()).unwrap()).unwrap();
        assert_eq!(again.read("k1 v3 k2 v5 k1").unwrap(), trace);
    }

    #[test]
    fn a_text_of_ones_own_is_learned() {
        let text = "abcd".repeat(200);
        let config = format!(
            r#"{{"mixer": {{"arch": "attention", "heads": 2}}, "dModel": 16, "layers": 1,
                "task": {{"task": "text", "text": "{text}"}}, "train": {{"batch": 4, "time": 16, "lr": 0.01}}}}"#
        );
        let mut trainer = Trainer::new(&config, 0, &Device::flex()).unwrap();
        let rows = block_on(trainer.steps(40)).unwrap();
        assert!(rows[39].loss < 0.5 * rows[0].loss, "{} {}", rows[39].loss, rows[0].loss);
        let model = block_on(trainer.model()).unwrap();
        assert!(model.generate("abc", 8, 0, 0.0).unwrap().starts_with("dabc"));
    }

    #[test]
    fn bad_settings_are_answered() {
        let error = |config: &str| match Trainer::new(config, 0, &Device::flex()) {
            Ok(_) => String::new(),
            Err(error) => error.to_string(),
        };
        let task = r#""task": {"task": "mqar"}"#;
        assert!(error(&format!(r#"{{"mixer": "atention", {task}}}"#)).contains("`attention`"));
        assert!(error(&format!(r#"{{"mixer": "attention", {task}, "train": {{"lr": -1}}}}"#)).contains("lr"));
        assert!(
            error(&format!(r#"{{"mixer": "attention", {task}, "train": {{"speed": 1}}}}"#)).contains("speed")
        );
        let short = r#"{"mixer": "attention", "task": {"task": "text", "text": "short"}}"#;
        assert!(error(short).contains("at least 65"), "{}", error(short));
    }
}
