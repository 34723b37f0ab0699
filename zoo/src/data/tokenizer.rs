//! Text to token ids and back.

use std::path::Path;

use serde::{Deserialize, Serialize};
#[cfg(feature = "tokenizers")]
use tokenizers::tokenizer::step_decode_stream;

use super::documents::read_utf8;
use crate::{Error, Result};

/// How text becomes tokens. Written into checkpoints, so that they are complete.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Tokenizer {
    /// One token per byte of UTF-8: 256 ids, any text.
    #[default]
    Bytes,
    /// Numbers separated by spaces are the ids themselves: for generated tasks.
    Ids {
        /// Number of ids.
        vocab: usize,
    },
    /// A `tokenizer.json` of Hugging Face's `tokenizers`.
    #[cfg(feature = "tokenizers")]
    HuggingFace {
        /// The tokenizer.
        json: Box<tokenizers::Tokenizer>,
    },
}

impl Tokenizer {
    /// Reads a Hugging Face `tokenizer.json`.
    ///
    /// # Errors
    /// When the file is missing, not UTF-8, or not such a tokenizer, or this program reads none.
    pub fn load(path: &Path) -> Result<Self> {
        let text = read_utf8(path)?;
        Self::from_json(path, &text)
    }

    #[cfg(not(feature = "tokenizers"))]
    fn from_json(path: &Path, _text: &str) -> Result<Self> {
        let reason = "not compiled in; build with the feature `tokenizers`";
        Err(Error::Tokenizer(format!("{}: {reason}", path.display())))
    }

    #[cfg(feature = "tokenizers")]
    fn from_json(path: &Path, text: &str) -> Result<Self> {
        let mut tokenizer: tokenizers::Tokenizer = text.parse().map_err(|e| {
            let expected = "expected a Hugging Face `tokenizer.json`";
            Error::Tokenizer(format!("{}: {expected}: {e}", path.display()))
        })?;
        // Such files may ask to cut or fill what they encode; a corpus must stay whole.
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|e| Error::Tokenizer(e.to_string()))?;
        Ok(Self::HuggingFace { json: Box::new(tokenizer) })
    }

    /// Number of ids a model needs: one more than the largest.
    pub fn vocab(&self) -> usize {
        match self {
            Self::Bytes => 256,
            Self::Ids { vocab } => *vocab,
            #[cfg(feature = "tokenizers")]
            Self::HuggingFace { json } => {
                json.get_vocab(true).values().max().map_or(0, |&id| id as usize + 1)
            }
        }
    }

    /// Token ids of a text.
    ///
    /// # Errors
    /// When the tokenizer cannot express it.
    pub fn encode(&self, text: &str) -> Result<Vec<i64>> {
        match self {
            Self::Bytes => Ok(text.bytes().map(i64::from).collect()),
            Self::Ids { vocab } => text
                .split_whitespace()
                .map(|word| match word.parse::<i64>() {
                    Ok(id) if id >= 0 && (id as usize) < *vocab => Ok(id),
                    _ => Err(Error::Tokenizer(format!(
                        "`{word}` is not a token: this model reads numbers from 0 to {}",
                        vocab.saturating_sub(1)
                    ))),
                })
                .collect(),
            #[cfg(feature = "tokenizers")]
            Self::HuggingFace { json } => {
                let encoding = json.encode_fast(text, false);
                let encoding = encoding.map_err(|e| Error::Tokenizer(e.to_string()))?;
                Ok(encoding.get_ids().iter().map(|&id| i64::from(id)).collect())
            }
        }
    }

    /// Text of token ids; bytes that are no UTF-8 show as `�`.
    ///
    /// # Errors
    /// When an id does not exist.
    pub fn decode(&self, ids: &[i64]) -> Result<String> {
        let mut stream = self.stream();
        let mut text = String::new();
        for &id in ids {
            text.push_str(&stream.push(id)?);
        }
        text.push_str(&stream.finish()?);
        Ok(text)
    }

    /// Decodes token by token, holding back incomplete characters.
    pub fn stream(&self) -> TextStream<'_> {
        TextStream {
            tokenizer: self,
            bytes: Vec::new(),
            #[cfg(feature = "tokenizers")]
            partial: Partial::default(),
        }
    }
}

/// Text of a growing sequence of tokens: see [`Tokenizer::stream`].
#[derive(Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    bytes: Vec<u8>,
    #[cfg(feature = "tokenizers")]
    partial: Partial,
}

/// What decoding a Hugging Face tokenizer's tokens one by one keeps.
#[cfg(feature = "tokenizers")]
#[derive(Debug, Default)]
struct Partial {
    ids: Vec<u32>,
    prefix: String,
    start: usize,
}

impl TextStream<'_> {
    /// The text that one more token completes, possibly none.
    ///
    /// # Errors
    /// When the id does not exist.
    pub fn push(&mut self, id: i64) -> Result<String> {
        let unknown = || Error::Tokenizer(format!("{id} is not a token id of this tokenizer"));
        match self.tokenizer {
            Tokenizer::Bytes => {
                self.bytes.push(u8::try_from(id).map_err(|_| unknown())?);
                Ok(self.complete_characters())
            }
            Tokenizer::Ids { vocab } => {
                let known = usize::try_from(id).is_ok_and(|id| id < *vocab);
                if known { Ok(format!("{id} ")) } else { Err(unknown()) }
            }
            #[cfg(feature = "tokenizers")]
            Tokenizer::HuggingFace { json } => {
                let id = u32::try_from(id).map_err(|_| unknown())?;
                let Partial { ids, prefix, start } = &mut self.partial;
                step_decode_stream(json, vec![id], false, ids, prefix, start)
                    .map(Option::unwrap_or_default)
                    .map_err(|e| Error::Tokenizer(e.to_string()))
            }
        }
    }

    /// What was held back, with `�` for characters that never became complete.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn finish(&mut self) -> Result<String> {
        match self.tokenizer {
            #[cfg(feature = "tokenizers")]
            Tokenizer::HuggingFace { json } => {
                let text =
                    json.decode(&self.partial.ids, false).map_err(|e| Error::Tokenizer(e.to_string()))?;
                self.partial.ids.clear();
                Ok(text.strip_prefix(self.partial.prefix.as_str()).unwrap_or_default().to_string())
            }
            _ => Ok(String::from_utf8_lossy(&std::mem::take(&mut self.bytes)).into_owned()),
        }
    }

    fn complete_characters(&mut self) -> String {
        let mut text = String::new();
        loop {
            match std::str::from_utf8(&self.bytes) {
                Ok(valid) => {
                    text.push_str(valid);
                    self.bytes.clear();
                    return text;
                }
                Err(error) => {
                    let (valid, rest) = self.bytes.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    match error.error_len() {
                        // A character may still become complete.
                        None => {
                            self.bytes = rest.to_vec();
                            return text;
                        }
                        Some(length) => {
                            text.push(char::REPLACEMENT_CHARACTER);
                            self.bytes = rest[length..].to_vec();
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORDS: &str = r#"{
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null,
        "decoder": null,
        "model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "the": 1, "state": 2, "flows": 9},
                  "unk_token": "[UNK]"}
    }"#;

    fn words() -> Tokenizer {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokenizer.json");
        std::fs::write(&path, WORDS).unwrap();
        Tokenizer::load(&path).unwrap()
    }

    #[test]
    fn bytes_round_trip_and_stream_whole_characters() {
        let text = "aé漢🦀z";
        let ids = Tokenizer::Bytes.encode(text).unwrap();
        assert_eq!(ids.len(), text.len());
        assert_eq!(Tokenizer::Bytes.decode(&ids).unwrap(), text);
        let mut stream = Tokenizer::Bytes.stream();
        let parts: Vec<String> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
        assert_eq!(parts.concat(), text);
        assert!(parts.iter().all(|part| part.chars().count() <= 1 && !part.contains('\u{FFFD}')));
    }

    #[test]
    fn broken_utf8_becomes_replacement_characters() {
        let ids = [0xE6, 0xBC, i64::from(b'x'), 0xFF, 0xF0, 0x9F];
        assert_eq!(Tokenizer::Bytes.decode(&ids).unwrap(), "\u{FFFD}x\u{FFFD}\u{FFFD}");
        assert!(Tokenizer::Bytes.decode(&[256]).is_err() && Tokenizer::Bytes.decode(&[-1]).is_err());
    }

    #[test]
    fn ids_are_numbers_within_the_vocabulary() {
        let ids = Tokenizer::Ids { vocab: 10 };
        assert_eq!(ids.encode("3 9 0").unwrap(), [3, 9, 0]);
        assert_eq!(ids.decode(&[3, 9]).unwrap().trim(), "3 9");
        assert!(ids.encode("10").is_err() && ids.encode("-1").is_err() && ids.encode("x").is_err());
    }

    #[test]
    fn hugging_face_files_encode_decode_and_survive_a_checkpoint() {
        let tokenizer = words();
        assert_eq!(tokenizer.vocab(), 10, "one more than the largest id");
        let json = serde_json::to_string(&tokenizer).unwrap();
        let again: Tokenizer = serde_json::from_str(&json).unwrap();
        for tokenizer in [tokenizer, again] {
            assert_eq!(tokenizer.encode("the state flows away").unwrap(), [1, 2, 9, 0]);
            assert_eq!(tokenizer.decode(&[1, 2, 9]).unwrap(), "the state flows");
        }
    }

    #[test]
    fn files_that_are_no_tokenizer_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.json");
        std::fs::write(&path, &WORDS[..60]).unwrap();
        let error = Tokenizer::load(&path).unwrap_err().to_string();
        assert!(error.contains("tokenizer.json"), "{error}");
        assert!(Tokenizer::load(&dir.path().join("none")).is_err());
    }
}
