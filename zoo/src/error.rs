//! One typed error of this crate.

use std::path::{Path, PathBuf};

/// What can go wrong; every message says what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// From the layers.
    #[error(transparent)]
    Layers(#[from] seqzoo_layers::Error),
    /// A configuration file cannot be read as one.
    #[error("{what}: {reason}")]
    Config {
        /// The file, or what the text is.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A configuration names a mixer that is not in the registry.
    #[error("unknown mixer `{name}`; {}", did_you_mean(*nearest))]
    UnknownMixer {
        /// The name that was given.
        name: String,
        /// The known name most like it.
        nearest: Option<&'static str>,
    },
    /// A checkpoint is of a model type that is not known here.
    #[error("{path}: model type `{model_type}` is not supported; supported: {supported}", path = path.display())]
    ModelType {
        /// The `config.json`.
        path: PathBuf,
        /// Its `model_type`.
        model_type: String,
        /// The known ones.
        supported: String,
    },
    /// A file could not be read or written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// A text file is not UTF-8.
    #[error("{path}: not UTF-8 text (first bad byte at offset {offset}, counted from byte 0); convert it first",
        path = path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// First byte that is not.
        offset: usize,
    },
    /// A text file or folder holds no text.
    #[error("{path}: empty, there is nothing to learn from", path = path.display())]
    EmptyText {
        /// The file or folder.
        path: PathBuf,
    },
    /// Data cannot be used as asked.
    #[error("{0}")]
    Data(String),
    /// A tokenizer cannot be read or used.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// A checkpoint is missing, damaged or of another model.
    #[error("checkpoint {path}: {reason}", path = path.display())]
    Checkpoint {
        /// The folder or file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A checkpoint could not be written.
    #[error("could not save the checkpoint: {path}: {source}; {}", kept_words(kept.as_deref()), path = path.display())]
    Save {
        /// The file that failed.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
        /// The previous checkpoint.
        kept: Option<PathBuf>,
    },
    /// A number stopped being finite.
    #[error("step {step}: {tensor} is not finite; {}", kept_words(checkpoint.as_deref()))]
    NotFinite {
        /// The step.
        step: usize,
        /// The tensor.
        tensor: String,
        /// The last good checkpoint.
        checkpoint: Option<PathBuf>,
    },
}

fn did_you_mean(nearest: Option<&str>) -> String {
    match nearest {
        Some(name) => format!("did you mean `{name}`?"),
        None => format!("known are {}", crate::registry::MixerConfig::NAMES.join(", ")),
    }
}

fn kept_words(kept: Option<&Path>) -> String {
    match kept {
        Some(path) => format!("the previous checkpoint is unchanged: {}", path.display()),
        None => "there is no checkpoint yet".into(),
    }
}

impl Error {
    /// A file error.
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Self::Io { path: path.as_ref().to_path_buf(), source }
    }
}

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
