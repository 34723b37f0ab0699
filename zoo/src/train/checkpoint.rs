//! Checkpoints: a folder that is either complete or not there.
//!
//! ```text
//! DIR/checkpoint/config.json            the architecture (LanguageModelConfig)
//! DIR/checkpoint/model.safetensors      parameters by name
//! DIR/checkpoint/optimizer.safetensors  moments by name
//! DIR/checkpoint/train.json             step, settings, data and its position, tokenizer
//! ```
//!
//! Files are written to `DIR/checkpoint.new`, which then takes the place of `DIR/checkpoint`; a failure at
//! any moment leaves the previous checkpoint, at worst under the name `DIR/checkpoint.old`, where
//! [`Checkpoint::load`] finds it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::Device;
use seqzoo_layers::Value;
use seqzoo_layers::params::{self, Named};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::optimizer::AdamW;
use super::trainer::not_finite;
use super::{Portable, TrainConfig, Trainer, weights};
use crate::data::{Source, Tokenizer};
use crate::files::write_synced;
use crate::model::{LanguageModel, LanguageModelConfig};
use crate::{Error, Result};

const FORMAT: &str = "seqzoo-checkpoint-1";
const CURRENT: &str = "checkpoint";
const NEW: &str = "checkpoint.new";
const OLD: &str = "checkpoint.old";

/// `train.json`: everything of a run that is no tensor.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Progress {
    format: String,
    /// Steps done, which is also the number of batches drawn from the data's stream.
    pub step: usize,
    /// Updates the optimizer made.
    pub updates: usize,
    /// Seconds of training so far.
    pub elapsed: f64,
    /// Settings, with the seed of the data's stream.
    pub train: TrainConfig,
    /// What is learned from.
    pub source: Source,
    /// Tells whether that data is still the same.
    pub fingerprint: u64,
    /// Text to tokens.
    pub tokenizer: Tokenizer,
}

/// What a training run reads, as it is written into its checkpoints.
#[derive(Clone, Debug)]
pub struct RunData {
    /// Where the data comes from.
    pub source: Source,
    /// Tells whether that data is still the same.
    pub fingerprint: u64,
    /// Text to tokens.
    pub tokenizer: Tokenizer,
}

/// A checkpoint read from a folder.
#[derive(Debug)]
pub struct Checkpoint {
    /// The architecture.
    pub config: LanguageModelConfig,
    /// The model, on the device asked for.
    pub model: LanguageModel,
    /// Step, settings, data, tokenizer.
    pub progress: Progress,
    folder: PathBuf,
}

impl Checkpoint {
    /// Whether a folder holds a checkpoint.
    pub fn exists(dir: &Path) -> bool {
        locate(dir).is_some()
    }

    /// Reads the checkpoint of a training folder, or a checkpoint folder itself.
    ///
    /// # Errors
    /// When there is none, a file is missing or damaged, or the tensors are not this architecture's.
    pub fn load(dir: &Path, device: &Device) -> Result<Self> {
        let folder = locate(dir).ok_or_else(|| Error::Checkpoint {
            path: dir.to_path_buf(),
            reason: format!("no checkpoint here (expected `{CURRENT}/train.json`, or a Hugging Face `config.json` to generate from)"),
        })?;
        let progress: Progress = read_json(&folder.join("train.json"))?;
        if progress.format != FORMAT {
            return Err(Error::Checkpoint {
                path: folder,
                reason: format!("its format is `{}`, this program reads `{FORMAT}`", progress.format),
            });
        }
        let config = LanguageModelConfig::load(folder.join("config.json"))?;
        let path = folder.join("model.safetensors");
        // Trainable first, so that a model taken to a plain device can be trained again later.
        let training = device.clone().autodiff();
        let named = weights::load(&path, &training)?;
        let named = named.into_iter().map(|(name, value)| (name, value.require_grad())).collect();
        let model = params::assign(config.blank(&training)?, named).map_err(|e| {
            let reason = format!("its tensors do not fit its config.json ({e})");
            Error::Checkpoint { path, reason }
        })?;
        let model = if device.is_autodiff() { model } else { model.valid() };
        Ok(Self { config, model, progress, folder })
    }

    /// Checks that the checkpoint is of this architecture.
    ///
    /// # Errors
    /// Naming both when it is another one.
    pub fn expect(&self, config: &LanguageModelConfig) -> Result<()> {
        if self.config == *config {
            return Ok(());
        }
        let [has, wanted] = [&self.config, config].map(|c| serde_json::to_string(c).unwrap_or_default());
        Err(Error::Checkpoint {
            path: self.folder.clone(),
            reason: format!("it is of another architecture: it has {has}, asked for was {wanted}"),
        })
    }

    /// Checks that some layer of the checkpoint is of this architecture.
    ///
    /// # Errors
    /// Naming the architectures it has.
    pub fn expect_arch(&self, name: &str) -> Result<()> {
        let mut has: Vec<&str> = self.config.mixers().map(|mixer| mixer.name()).collect();
        has.dedup();
        if has.contains(&name) {
            return Ok(());
        }
        let reason = format!("it is of another architecture: {}, not {name}", has.join(", "));
        Err(Error::Checkpoint { path: self.folder.clone(), reason })
    }

    /// Continues the training where it stopped.
    ///
    /// # Errors
    /// When the optimizer's file is damaged or does not fit the model.
    pub fn resume(self) -> Result<Trainer> {
        let path = self.folder.join("optimizer.safetensors");
        let device = self.model.devices().first().cloned().unwrap_or_default().inner();
        let moments = weights::load(&path, &device)?;
        let parameters = params::parameters(&self.model);
        let optimizer = AdamW::from_named(moments, self.progress.updates, &parameters)
            .map_err(|e| Error::Checkpoint { path, reason: e.to_string() })?;
        let Progress { train, step, elapsed, .. } = self.progress;
        Trainer::resumed(self.model, optimizer, train, step, elapsed)
    }
}

impl Trainer {
    /// Writes a checkpoint into a training folder, in place of the previous one.
    ///
    /// # Errors
    /// When a parameter is not finite or writing fails; the previous checkpoint then stays as it was.
    pub fn save(&self, dir: &Path, data: &RunData) -> Result<()> {
        self.save_with(dir, data, &mut write_synced)
    }

    pub(super) fn save_with(&self, dir: &Path, data: &RunData, write: &mut WriteFile<'_>) -> Result<()> {
        let parameters = params::parameters(&self.model);
        if let Some(tensor) = not_finite(&parameters)? {
            let checkpoint = locate(dir);
            return Err(Error::NotFinite { step: self.step, tensor, checkpoint });
        }
        let progress = Progress {
            format: FORMAT.into(),
            step: self.step,
            updates: self.optimizer.updates(),
            elapsed: self.elapsed,
            train: self.config.clone(),
            source: data.source.clone(),
            fingerprint: data.fingerprint,
            tokenizer: data.tokenizer.clone(),
        };
        let meta = [("format", FORMAT.to_string()), ("step", self.step.to_string())];
        let about = Portable::metadata(self.model.config(), &data.tokenizer, &data.source)?;
        let about = [meta.to_vec(), about].concat();
        let detached = |named: Named| named.into_iter().map(|(k, v): (_, Value)| (k, v.detach())).collect();
        replace_folder(
            dir,
            &[
                ("config.json", json(self.model.config())?),
                ("model.safetensors", weights::to_bytes(&detached(parameters), &about)?),
                ("optimizer.safetensors", weights::to_bytes(&self.optimizer.to_named(), &meta)?),
                ("train.json", json(&progress)?),
            ],
            write,
        )
    }
}

/// How one file reaches the disk; tests put a failing disk here.
pub(super) type WriteFile<'a> = dyn FnMut(&Path, &[u8]) -> io::Result<()> + 'a;

/// Writes files into `checkpoint.new` and puts that folder in the place of `checkpoint`.
fn replace_folder(dir: &Path, files: &[(&str, Vec<u8>)], write: &mut WriteFile<'_>) -> Result<()> {
    let [current, new, old] = [CURRENT, NEW, OLD].map(|name| dir.join(name));
    let fail = |path: &Path, source: io::Error| {
        // What was written so far is useless; failing to remove it changes nothing for the user.
        let _ = fs::remove_dir_all(&new);
        Error::Save { path: path.to_path_buf(), source, kept: locate(dir) }
    };
    fs::create_dir_all(dir).map_err(|e| fail(dir, e))?;
    if new.exists() {
        fs::remove_dir_all(&new).map_err(|e| fail(&new, e))?;
    }
    fs::create_dir(&new).map_err(|e| fail(&new, e))?;
    for (name, bytes) in files {
        let path = new.join(name);
        write(&path, bytes).map_err(|e| fail(&path, e))?;
    }
    if current.exists() {
        if old.exists() {
            fs::remove_dir_all(&old).map_err(|e| fail(&old, e))?;
        }
        fs::rename(&current, &old).map_err(|e| fail(&current, e))?;
    }
    if let Err(error) = fs::rename(&new, &current) {
        // Put the previous one back; if even that fails, `load` finds it under its other name.
        let _ = fs::rename(&old, &current);
        return Err(fail(&current, error));
    }
    if old.exists() {
        fs::remove_dir_all(&old).map_err(|e| Error::io(&old, e))?;
    }
    Ok(())
}

/// The folder with the files: the current checkpoint, the previous one if a save was cut short between
/// its two renames, or the folder itself.
fn locate(dir: &Path) -> Option<PathBuf> {
    let candidates = [dir.join(CURRENT), dir.join(OLD), dir.to_path_buf()];
    candidates.into_iter().find(|folder| folder.join("train.json").is_file())
}

fn json<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    serde_json::to_vec_pretty(value).map_err(|e| Error::Data(format!("writing JSON: {e}")))
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = fs::read(path).map_err(|e| Error::io(path, e))?;
    serde_json::from_slice(&bytes)
        .map_err(|e| Error::Checkpoint { path: path.to_path_buf(), reason: format!("damaged: {e}") })
}
