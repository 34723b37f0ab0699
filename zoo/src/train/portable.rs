//! A whole model in one file: weights, with the architecture, the tokenizer and the task as metadata. The
//! `model.safetensors` of every checkpoint is one; a browser opens it.

use burn::tensor::{DType, Device};
use safetensors::tensor::SafeTensors;
use seqzoo_layers::params;

use super::weights;
use crate::data::{Mqar, Source, Tokenizer};
use crate::model::{LanguageModel, LanguageModelConfig};
use crate::{Error, Result};

/// A model that knows how to read.
#[derive(Clone, Debug)]
pub struct Portable {
    /// The model.
    pub model: LanguageModel,
    /// Text to tokens.
    pub tokenizer: Tokenizer,
    /// The recall task it was trained on; `None` for text.
    pub task: Option<Mqar>,
}

/// What the metadata of a model that was never trained on a known task say.
const TEXT: &str = "text";

impl Portable {
    /// Architecture, tokenizer and task as the metadata of a weights file. Where a text was read from stays
    /// out of it, and so do tokenizers that have a file of their own.
    pub(super) fn metadata(
        config: &LanguageModelConfig,
        tokenizer: &Tokenizer,
        source: &Source,
    ) -> Result<Vec<(&'static str, String)>> {
        let json = |value: serde_json::Result<String>| {
            value.map_err(|e| Error::Data(format!("writing metadata: {e}")))
        };
        let mut metadata = vec![("config", json(serde_json::to_string(config))?)];
        if matches!(tokenizer, Tokenizer::Bytes | Tokenizer::Ids { .. }) {
            metadata.push(("tokenizer", json(serde_json::to_string(tokenizer))?));
        }
        metadata.push(match source {
            Source::Mqar(task) => ("task", json(serde_json::to_string(task))?),
            Source::Text { .. } => ("task", TEXT.into()),
        });
        Ok(metadata)
    }

    /// The file, with every number as `dtype`: [`DType::F16`] takes half the bytes of [`DType::F32`].
    ///
    /// # Errors
    /// When a tensor cannot be read back.
    pub async fn to_bytes(&self, dtype: DType) -> Result<Vec<u8>> {
        let source = match &self.task {
            Some(task) => Source::Mqar(task.clone()),
            None => Source::Text { path: None },
        };
        let metadata = Self::metadata(self.model.config(), &self.tokenizer, &source)?;
        let cpu = Device::flex();
        let mut named = params::Named::new();
        for (name, value) in params::parameters(&self.model) {
            let data = value.detach().to_data_async().await?.convert_dtype(dtype);
            named.insert(name, seqzoo_layers::Value::from_data(data, &cpu)?);
        }
        weights::to_bytes(&named, &metadata)
    }

    /// Reads the file, in single precision.
    ///
    /// # Errors
    /// When the bytes are truncated or malformed, lack the metadata, or the weights do not fit the architecture.
    pub fn from_bytes(bytes: &[u8], what: &str, device: &Device) -> Result<Self> {
        let bad =
            |reason: String| Error::Layers(seqzoo_layers::Error::SafeTensors { what: what.into(), reason });
        let named = weights::from_bytes(bytes, what, device)?;
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(|e| bad(e.to_string()))?;
        let meta = header.metadata().clone().unwrap_or_default();
        let field = |name: &str| {
            let lacks = || bad(format!("it does not say its `{name}`: no model saved by seqzoo"));
            meta.get(name).cloned().ok_or_else(lacks)
        };
        let config = LanguageModelConfig::from_json(&field("config")?)?;
        let parse = |e: serde_json::Error| bad(e.to_string());
        let tokenizer: Tokenizer = serde_json::from_str(&field("tokenizer")?).map_err(parse)?;
        let task = match field("task")?.as_str() {
            TEXT => None,
            json => Some(serde_json::from_str::<Mqar>(json).map_err(parse)?),
        };
        if config.vocab < tokenizer.vocab() {
            return Err(bad(format!(
                "its tokenizer makes {} tokens, it reads {}",
                tokenizer.vocab(),
                config.vocab
            )));
        }
        let single = named.into_iter().map(|(name, value)| (name, value.cast(DType::F32))).collect();
        let model = params::assign(config.blank(device)?, single)?;
        Ok(Self { model, tokenizer, task })
    }
}

#[cfg(test)]
mod tests {
    use futures_lite::future::block_on;

    use super::*;
    use crate::registry::MixerConfig;

    #[test]
    fn a_model_returns_with_all_it_needs_and_half_floats_are_half_the_size() {
        let device = Device::flex();
        // The header is in no fixed order.
        let numbers = |bytes: &[u8]| {
            let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            bytes[8 + header..].to_vec()
        };
        let mixer = MixerConfig::named("gated_deltanet").unwrap();
        let task = Mqar { vocab: 40, length: 24, pairs: 4, ..Default::default() };
        let model = LanguageModelConfig::small(mixer, 40, 16, 1).init(3, &device).unwrap();
        let whole = Portable { model, tokenizer: Tokenizer::Ids { vocab: 40 }, task: Some(task.clone()) };
        let bytes = block_on(whole.to_bytes(DType::F32)).unwrap();
        let half = block_on(whole.to_bytes(DType::F16)).unwrap();
        assert!(half.len() < bytes.len() * 2 / 3);
        let again = Portable::from_bytes(&bytes, "model", &device).unwrap();
        assert_eq!(again.task, Some(task));
        assert_eq!(again.tokenizer.vocab(), 40);
        assert_eq!(again.model.config(), whole.model.config());
        assert!(numbers(&block_on(again.to_bytes(DType::F32)).unwrap()) == numbers(&bytes));
        // What a half float can hold comes back as it was written.
        let rounded = Portable::from_bytes(&half, "model", &device).unwrap();
        assert!(numbers(&block_on(rounded.to_bytes(DType::F16)).unwrap()) == numbers(&half));
        for length in [0, 9, bytes.len() / 2, bytes.len() - 1] {
            assert!(Portable::from_bytes(&bytes[..length], "model", &device).is_err());
        }
        let bare = weights::to_bytes(&params::parameters(&whole.model), &[]).unwrap();
        let error = Portable::from_bytes(&bare, "model", &device).unwrap_err().to_string();
        assert!(error.contains("config"), "{error}");
    }
}
