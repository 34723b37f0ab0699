//! One typed error for every public constructor, loader and forward call.

use std::path::PathBuf;

/// What can go wrong in this crate; every message says what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A configuration value is impossible or contradicts another one.
    #[error("invalid configuration of {mixer}: `{field}` = {given}: {expected}")]
    Config {
        /// Which configuration (`mamba2`, `attention`, …).
        mixer: &'static str,
        /// The offending field.
        field: &'static str,
        /// The value it had.
        given: String,
        /// What is accepted instead.
        expected: String,
    },
    /// A tensor has the wrong shape.
    #[error("{what}: expected shape {expected}, got {given:?}")]
    Shape {
        /// Which tensor.
        what: String,
        /// The accepted shape, in words.
        expected: String,
        /// The shape it had.
        given: Vec<usize>,
    },
    /// A state does not belong to the layer it was given to.
    #[error("state: {0}")]
    State(String),
    /// A named parameter is missing, unknown or has the wrong shape.
    #[error("weights: {0}")]
    Weights(String),
    /// A file could not be read or written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// A safetensors file is truncated or malformed.
    #[error(
        "{what} is not a valid safetensors file ({reason}); it may be truncated: copy or create it again"
    )]
    SafeTensors {
        /// Which file or buffer.
        what: String,
        /// What the parser said.
        reason: String,
    },
    /// A device name is unknown or its backend is not compiled in.
    #[error("device `{name}`: {reason}")]
    Device {
        /// The name that was asked for.
        name: String,
        /// Why it cannot be had and what to do.
        reason: String,
    },
}

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A configuration error.
    pub fn config(
        mixer: &'static str,
        field: &'static str,
        given: impl std::fmt::Display,
        expected: impl Into<String>,
    ) -> Self {
        Self::Config { mixer, field, given: given.to_string(), expected: expected.into() }
    }

    /// A shape error.
    pub fn shape(what: impl Into<String>, expected: impl Into<String>, given: &[usize]) -> Self {
        Self::Shape { what: what.into(), expected: expected.into(), given: given.to_vec() }
    }
}

/// Returns a configuration error unless `ok`.
pub(crate) fn require(
    ok: bool,
    mixer: &'static str,
    field: &'static str,
    given: impl std::fmt::Display,
    expected: &str,
) -> Result<()> {
    if ok { Ok(()) } else { Err(Error::config(mixer, field, given, expected)) }
}

/// Channels of a head: as given, or `d_model` divided over the heads.
pub(crate) fn head_dim(
    given: Option<usize>,
    d_model: usize,
    heads: usize,
    mixer: &'static str,
) -> Result<usize> {
    require(d_model > 0, mixer, "d_model", d_model, "must be positive")?;
    require(heads > 0, mixer, "heads", heads, "must be positive")?;
    let n = match given {
        Some(n) => n,
        None => {
            let expected = format!("must divide d_model = {d_model}, or set `head_dim`");
            require(d_model.is_multiple_of(heads), mixer, "heads", heads, &expected)?;
            d_model / heads
        }
    };
    require(n > 0, mixer, "head_dim", n, "must be positive")?;
    Ok(n)
}
