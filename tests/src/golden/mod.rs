//! Golden vectors: results of independent implementations that our layers and models must reproduce.
//!
//! A folder holds cases (`*.safetensors` with an `architecture` in their metadata) and models (folders with a
//! `config.json`, `model.safetensors` and `expected.safetensors`), at any depth. What a case means is decided
//! by its architecture and configuration, never by its name.

mod case;
mod layers;
mod model;
mod table;

use std::path::{Path, PathBuf};

use burn::tensor::Device;

pub use case::{Case, Output};
pub use table::print;

/// Why a case could not be judged.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The layers of this project refused it.
    #[error(transparent)]
    Zoo(#[from] seqzoo::Error),
    /// A file could not be read.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// A file is no case or contradicts itself.
    #[error("{0}")]
    Case(String),
}

impl From<seqzoo_layers::Error> for Error {
    fn from(error: seqzoo_layers::Error) -> Self {
        Self::Zoo(error.into())
    }
}

/// Result of judging.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The tensor that came closest to its limit, or went farthest beyond.
#[derive(Clone, Debug)]
pub struct Worst {
    /// Its name in the file, with the form it was computed in.
    pub tensor: String,
    /// Its error in the case's metric.
    pub error: f64,
    /// What the case allows.
    pub limit: f64,
}

/// What became of a case.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// Every tensor is within its limit.
    Pass(Worst),
    /// A tensor is not.
    Fail(Worst),
    /// It could not be run: the reason.
    Broken(String),
    /// Nothing here computes this architecture.
    NotSupported,
}

/// A case or model and its verdict.
#[derive(Clone, Debug)]
pub struct Row {
    /// File or folder name.
    pub name: String,
    /// From the metadata.
    pub architecture: String,
    /// How many tensors were compared.
    pub compared: usize,
    /// What became of it.
    pub verdict: Verdict,
}

impl Row {
    /// Whether it counts as a failure.
    pub fn failed(&self) -> bool {
        matches!(self.verdict, Verdict::Fail(_) | Verdict::Broken(_))
    }
}

/// Comparisons of one case, in all forms it was run in.
#[derive(Debug, Default)]
struct Findings {
    compared: usize,
    worst: Option<Worst>,
}

impl Findings {
    fn add(&mut self, tensor: String, error: f64, limit: f64) {
        self.compared += 1;
        // An infinite or undefined error must win whatever it is compared with.
        let share = |w: &Worst| {
            if w.error <= w.limit { w.error / w.limit.max(f64::MIN_POSITIVE) } else { 1.0 + w.error }
        };
        let found = Worst { tensor, error: if error.is_nan() { f64::INFINITY } else { error }, limit };
        if self.worst.as_ref().is_none_or(|worst| share(&found) > share(worst)) {
            self.worst = Some(found);
        }
    }

    fn verdict(self) -> Verdict {
        match self.worst {
            None => Verdict::Broken("nothing was compared".into()),
            Some(worst) if worst.error <= worst.limit => Verdict::Pass(worst),
            Some(worst) => Verdict::Fail(worst),
        }
    }
}

/// Judges everything in a folder, or only what `wanted` accepts of the architecture's name; `each` sees every
/// row as it is done.
///
/// # Errors
/// When the folder cannot be read or holds no case. A case that cannot be run is a row, not an error.
pub fn run(
    dir: &Path,
    device: &Device,
    wanted: &dyn Fn(&str) -> bool,
    each: &mut dyn FnMut(&Row),
) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    visit(dir, &mut |path, model| {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let (architecture, judged) =
            if model { model::judge(path, device, wanted) } else { layers::judge(path, device, wanted) };
        let Some(judged) = judged else { return };
        let (compared, verdict) = match judged {
            Ok(Some(findings)) => (findings.compared, findings.verdict()),
            Ok(None) => (0, Verdict::NotSupported),
            Err(error) => (0, Verdict::Broken(error.to_string())),
        };
        let row = Row { name, architecture, compared, verdict };
        each(&row);
        rows.push(row);
    })?;
    if rows.is_empty() {
        let reason = "no golden case here (expected *.safetensors, or folders with expected.safetensors)";
        return Err(Error::Case(format!("{}: {reason}", dir.display())));
    }
    Ok(rows)
}

/// Calls `found` with every case file (`false`) and model folder (`true`), in the order of their names.
fn visit(dir: &Path, found: &mut dyn FnMut(&Path, bool)) -> Result<()> {
    let io = |source| Error::Io { path: dir.to_path_buf(), source };
    let entries = std::fs::read_dir(dir).map_err(io)?;
    let mut paths = entries.map(|entry| Ok(entry.map_err(io)?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    if paths.iter().any(|path| path.ends_with("expected.safetensors")) {
        found(dir, true);
        return Ok(());
    }
    for path in paths {
        if path.is_dir() {
            visit(&path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "safetensors") {
            found(&path, false);
        }
    }
    Ok(())
}

/// What judging gives: the architecture, and findings, `None` inside where it is not supported, `None` outside
/// where it is not wanted.
type Judged = (String, Option<Result<Option<Findings>>>);
