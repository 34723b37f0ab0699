//! What a training run reads, by name: written into checkpoints, opened to give streams.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Batches, Mqar, TextData, Tokenizer};
use crate::Result;
use crate::train::TrainConfig;

/// Where training data comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "task", rename_all = "snake_case")]
pub enum Source {
    /// Real text.
    Text {
        /// A file or folder; `None` for the sources of this workspace.
        path: Option<PathBuf>,
    },
    /// Multi-query associative recall.
    Mqar(Mqar),
}

/// Data that was read and checked.
#[derive(Clone, Debug)]
pub enum Data {
    /// Real text in tokens.
    Text(TextData),
    /// Multi-query associative recall.
    Mqar(Mqar),
}

impl Source {
    /// Reads the text, or checks the task.
    ///
    /// # Errors
    /// When the text is missing, empty or not UTF-8, or the task impossible.
    pub fn open(&self, tokenizer: &Tokenizer) -> Result<Data> {
        match self {
            Self::Text { path: Some(path) } => Ok(Data::Text(TextData::load(path, tokenizer)?)),
            Self::Text { path: None } => Ok(Data::Text(TextData::own_sources(tokenizer)?)),
            Self::Mqar(task) => {
                task.validate()?;
                Ok(Data::Mqar(task.clone()))
            }
        }
    }
}

impl Data {
    /// The stream to learn from.
    ///
    /// # Errors
    /// When the text is too short for one window.
    pub fn train(&self, config: &TrainConfig) -> Result<Box<dyn Batches>> {
        let TrainConfig { seed, batch, time, .. } = *config;
        Ok(match self {
            Self::Text(text) => Box::new(text.train.batches(seed, batch, time)?),
            Self::Mqar(task) => Box::new(task.batches(seed, batch)?),
        })
    }

    /// The stream to be judged on: the same at every call.
    ///
    /// # Errors
    /// When the text is too short.
    pub fn validation(&self, config: &TrainConfig) -> Result<Box<dyn Batches>> {
        // Any seed but the training's: a task is generated, so its sequences must differ.
        let seed = !config.seed;
        Ok(match self {
            Self::Text(text) => {
                // The last tenth of a short text is judged in shorter windows.
                let time = config.time.min(text.validation.len().saturating_sub(1)).max(1);
                Box::new(text.validation.batches(seed, config.batch, time)?)
            }
            Self::Mqar(task) => Box::new(task.batches(seed, config.batch)?),
        })
    }

    /// A number that changes when the data does (FNV-1a over the tokens).
    pub fn fingerprint(&self) -> u64 {
        match self {
            Self::Text(text) => text.fingerprint(),
            Self::Mqar(_) => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_survive_json_and_open() {
        let config = TrainConfig { batch: 2, time: 16, ..Default::default() };
        for source in [Source::Text { path: None }, Source::Mqar(Mqar::default())] {
            let json = serde_json::to_string(&source).unwrap();
            assert_eq!(serde_json::from_str::<Source>(&json).unwrap(), source, "{json}");
            let data = source.open(&Tokenizer::Bytes).unwrap();
            assert_eq!(data.fingerprint(), source.open(&Tokenizer::Bytes).unwrap().fingerprint());
            let learned = data.train(&config).unwrap().next_batch();
            let judged = data.validation(&config).unwrap().next_batch();
            assert_ne!(learned, judged);
            assert_eq!(judged, data.validation(&config).unwrap().next_batch());
        }
        assert!(Source::Mqar(Mqar { pairs: 99, ..Default::default() }).open(&Tokenizer::Bytes).is_err());
    }
}
