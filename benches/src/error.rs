//! One typed error of this crate.

use std::path::{Path, PathBuf};

/// What can go wrong; every message says what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// From the zoo or its layers.
    #[error(transparent)]
    Zoo(#[from] seqzoo::Error),
    /// A line of a file of results cannot be read.
    #[error("{path}, line {line}: {reason}", path = path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// A file cannot be used as asked.
    #[error("{path}: {reason}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not, and what to do.
        reason: String,
    },
    /// A measurement that this build or architecture does not offer, or that failed.
    #[error("{0}")]
    Measure(String),
}

impl From<seqzoo_layers::Error> for Error {
    fn from(error: seqzoo_layers::Error) -> Self {
        Self::Zoo(error.into())
    }
}

impl Error {
    /// A file could not be read or written.
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Self::Zoo(seqzoo::Error::io(path, source))
    }

    /// A file cannot be used as asked.
    pub fn file(path: impl AsRef<Path>, reason: impl Into<String>) -> Self {
        Self::File { path: path.as_ref().to_path_buf(), reason: reason.into() }
    }
}

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
