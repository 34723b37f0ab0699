//! The files of a checkpoint folder.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device, Tensor};
use seqzoo_layers::params::{self, Named};
use seqzoo_layers::{Error as LayerError, Value};
use serde::Deserialize;

use super::Architecture;
use crate::data::Tokenizer;
use crate::model::LanguageModel;
use crate::train::weights;
use crate::{Error, Result};

/// A folder with `config.json` and `model.safetensors` or its shards.
pub struct Checkpoint {
    dir: PathBuf,
    architecture: Architecture,
}

impl Checkpoint {
    /// Whether a folder has a `config.json` of transformers.
    pub fn exists(dir: &Path) -> bool {
        let text = std::fs::read(dir.join("config.json")).unwrap_or_default();
        serde_json::from_slice::<serde_json::Value>(&text)
            .is_ok_and(|config| config.get("model_type").is_some())
    }

    /// Reads the configuration.
    ///
    /// # Errors
    /// When the file is missing or malformed, or the model is not supported.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref().to_path_buf();
        let path = dir.join("config.json");
        let config = json(&path)?;
        Ok(Self { architecture: Architecture::new(config, &path.display().to_string())?, dir })
    }

    /// What the configuration describes.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// All tensors in 32 bits, as transformers names them in memory.
    ///
    /// # Errors
    /// When a file is missing or damaged.
    pub fn tensors(&self, device: &Device) -> Result<Named> {
        let mut all = Named::new();
        for path in self.files()? {
            all.extend(tensors(&path, device)?);
        }
        Ok(self.rooted(in_memory(all)?))
    }

    /// A checkpoint of the model without its head lacks the name of the module around everything but the head,
    /// as the first GPT-2 does.
    fn rooted(&self, tensors: Named) -> Named {
        let embedding = self.architecture.family.names().embedding;
        let root = embedding.split_once('.').map_or(String::new(), |(root, _)| format!("{root}."));
        if tensors.keys().any(|name| name.starts_with(&root)) {
            return tensors;
        }
        let head = format!("{}.", self.architecture.family.head());
        let inside = |name: String| if name.starts_with(&head) { name } else { format!("{root}{name}") };
        tensors.into_iter().map(|(name, value)| (inside(name), value)).collect()
    }

    /// The model; on an autodiff device its parameters can be trained.
    ///
    /// # Errors
    /// When a file is missing or damaged, or tensors do not fit the configuration.
    pub fn load(&self, device: &Device) -> Result<LanguageModel> {
        let model = self.architecture.model(&self.tensors(device)?, device)?;
        if !device.is_autodiff() {
            return Ok(model);
        }
        // Parameters are parts of the checkpoint's tensors: cut loose, they are leaves that an optimizer can move.
        let leaves = params::parameters(&model).into_iter();
        let leaves = leaves.map(|(name, value)| (name, value.detach().require_grad())).collect();
        Ok(params::assign(model, leaves)?)
    }

    /// The folder's `tokenizer.json`; without one, tokens are written as numbers.
    ///
    /// # Errors
    /// When the file is damaged.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        let path = self.dir.join("tokenizer.json");
        let vocab = self.architecture.config().vocab;
        if path.exists() { Tokenizer::load(&path) } else { Ok(Tokenizer::Ids { vocab }) }
    }

    /// The weight files: one, or those an index lists.
    fn files(&self) -> Result<Vec<PathBuf>> {
        #[derive(Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let index = self.dir.join("model.safetensors.index.json");
        if !index.exists() {
            return Ok(vec![self.dir.join("model.safetensors")]);
        }
        let Index { weight_map } = serde_json::from_value(json(&index)?)
            .map_err(|e| Error::Config { what: index.display().to_string(), reason: e.to_string() })?;
        let names: BTreeSet<String> = weight_map.into_values().collect();
        // A name with a path in it could point outside the folder.
        if let Some(bad) = names.iter().find(|name| Path::new(name).components().count() != 1) {
            let reason = format!("`{bad}` is not the name of a file in this folder");
            return Err(Error::Config { what: index.display().to_string(), reason });
        }
        Ok(names.into_iter().map(|name| self.dir.join(name)).collect())
    }
}

fn json(path: &Path) -> Result<serde_json::Value> {
    let text = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    serde_json::from_slice(&text)
        .map_err(|e| Error::Config { what: path.display().to_string(), reason: e.to_string() })
}

/// The float tensors of a safetensors file in 32 bits.
///
/// # Errors
/// When the file is missing or damaged, or holds other than float tensors.
pub fn tensors(path: &Path, device: &Device) -> Result<Named> {
    let named = weights::load(path, device)?;
    Ok(named.into_iter().map(|(name, value)| (name, value.cast(DType::F32))).collect())
}

/// Experts stored one by one are stacked, and modules get their names of today.
fn in_memory(tensors: Named) -> Result<Named> {
    let mut all = Named::new();
    // By the path of the experts: by expert, its tensors by name.
    let mut experts: BTreeMap<String, BTreeMap<usize, Named>> = BTreeMap::new();
    for (name, value) in tensors {
        let name = name.replace(".block_sparse_moe.", ".mlp.");
        let inside = name.split_once(".experts.").and_then(|(path, rest)| {
            let (expert, rest) = rest.split_once('.')?;
            Some((path.to_string(), expert.parse::<usize>().ok()?, rest.to_string()))
        });
        match inside {
            Some((path, expert, rest)) => {
                experts.entry(path).or_default().entry(expert).or_default().insert(rest, value);
            }
            None => {
                all.insert(name, value);
            }
        }
    }
    for (path, group) in experts {
        let stack = |names: [&str; 2]| -> Result<Tensor<3>> {
            let one = |expert: &Named| -> Result<Tensor<2>> {
                let value: Option<&Value> =
                    names.iter().find_map(|name| expert.get(&format!("{name}.weight")));
                let missing =
                    || LayerError::Weights(format!("`{path}.experts` lacks `{}`", names.join("` or `")));
                Ok(value.ok_or_else(missing)?.tensor(&path)?)
            };
            let all = group.values().map(one).collect::<Result<Vec<_>>>()?;
            if let Some(other) = all.iter().find(|expert| expert.dims() != all[0].dims()) {
                let expected = format!("{:?} like the first expert", all[0].dims());
                return Err(LayerError::shape(format!("{path}.experts"), expected, &other.dims()).into());
            }
            Ok(Tensor::stack(all, 0))
        };
        let (gate, up) = (stack(["w1", "gate_proj"])?, stack(["w3", "up_proj"])?);
        all.insert(format!("{path}.experts.gate_up_proj"), Tensor::cat(vec![gate, up], 1).into());
        all.insert(format!("{path}.experts.down_proj"), stack(["w2", "down_proj"])?.into());
    }
    Ok(all)
}
