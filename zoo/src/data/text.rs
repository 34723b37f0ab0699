//! Real text as windows of tokens: the label of each token is the next one.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use rand::RngExt;

use super::documents::{own_sources, read_documents};
use super::{Batch, Batches, Tokenizer, batch_rng};
use crate::{Error, Result};

/// A text in tokens, cut into a part to learn from and the last tenth to be judged on.
#[derive(Clone, Debug)]
pub struct TextData {
    /// The first nine tenths.
    pub train: Text,
    /// The last tenth.
    pub validation: Text,
}

impl TextData {
    /// Reads a UTF-8 file, or all text files of a folder in the order of their paths.
    ///
    /// # Errors
    /// When it is missing, empty or not UTF-8 (with the byte at which it stops being so).
    pub fn load(path: &Path, tokenizer: &Tokenizer) -> Result<Self> {
        let documents = read_documents(path)?;
        if documents.iter().all(String::is_empty) {
            return Err(Error::EmptyText { path: path.to_path_buf() });
        }
        Self::of(&documents, tokenizer)
    }

    /// The sources of this workspace: text that every clone has.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn own_sources(tokenizer: &Tokenizer) -> Result<Self> {
        Self::of(&own_sources(), tokenizer)
    }

    /// Tokenizes documents and joins them.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn of(documents: &[String], tokenizer: &Tokenizer) -> Result<Self> {
        let mut tokens = Vec::new();
        for document in documents {
            // Ids fit 32 bits in every tokenizer; half the memory matters for large texts.
            tokens.extend(tokenizer.encode(document)?.into_iter().map(|id| id as u32));
        }
        let tokens: Arc<[u32]> = tokens.into();
        let cut = tokens.len() - tokens.len() / 10;
        let part = |range| Text { tokens: tokens.clone(), range };
        Ok(Self { train: part(0..cut), validation: part(cut..tokens.len()) })
    }

    /// A number that changes when the text does (FNV-1a over the tokens).
    pub(super) fn fingerprint(&self) -> u64 {
        let bytes = self.train.tokens.iter().flat_map(|id| id.to_le_bytes());
        bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
    }
}

/// A stretch of tokens. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Text {
    tokens: Arc<[u32]>,
    range: Range<usize>,
}

impl Text {
    /// All of a sequence of token ids.
    pub fn from_tokens(tokens: &[i64]) -> Self {
        let tokens: Arc<[u32]> = tokens.iter().map(|&id| id as u32).collect();
        Self { range: 0..tokens.len(), tokens }
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// Whether there is nothing to read.
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// Random windows of `time` tokens, the stream of one seed.
    ///
    /// # Errors
    /// When the text is shorter than one window or a size is 0.
    pub fn batches(&self, seed: u64, batch: usize, time: usize) -> Result<TextBatches> {
        if batch == 0 || time == 0 {
            return Err(Error::Data(format!("a batch of {batch} rows of {time} tokens holds nothing")));
        }
        // A window needs one token more than it reads, to be the last label.
        if self.len() <= time {
            return Err(Error::Data(format!(
                "windows of {time} tokens need a text of at least {}, this one has {}; \
                 use a longer text or a smaller `time`",
                time.saturating_add(1),
                self.len()
            )));
        }
        Ok(TextBatches { text: self.clone(), seed, batch, time, index: 0 })
    }
}

/// Stream of random windows of a [`Text`].
#[derive(Clone, Debug)]
pub struct TextBatches {
    text: Text,
    seed: u64,
    batch: usize,
    time: usize,
    index: u64,
}

impl Batches for TextBatches {
    fn next_batch(&mut self) -> Batch {
        let mut rng = batch_rng(self.seed, self.index);
        self.index += 1;
        let tokens = &self.text.tokens[self.text.range.clone()];
        let size = self.batch * self.time;
        let (mut inputs, mut labels) = (Vec::with_capacity(size), Vec::with_capacity(size));
        for _ in 0..self.batch {
            let start = rng.random_range(0..tokens.len() - self.time);
            let window = &tokens[start..=start + self.time];
            inputs.extend(window[..self.time].iter().map(|&id| i64::from(id)));
            labels.extend(window[1..].iter().map(|&id| i64::from(id)));
        }
        Batch { inputs, labels, batch: self.batch, time: self.time }
    }

    fn skip(&mut self, batches: usize) {
        self.index += batches as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counting(n: usize) -> TextData {
        let text = (0..n).map(|i| i.to_string()).collect::<Vec<_>>().join(" ");
        TextData::of(&[text], &Tokenizer::Ids { vocab: n }).unwrap()
    }

    #[test]
    fn the_last_tenth_is_kept_apart() {
        let data = counting(105);
        assert_eq!((data.train.len(), data.validation.len()), (95, 10));
        let batch = data.validation.batches(0, 50, 9).unwrap().next_batch();
        assert!(batch.inputs.iter().all(|&id| id >= 95));
        let batch = data.train.batches(0, 200, 5).unwrap().next_batch();
        assert!(batch.labels.iter().all(|&id| id < 95));
        assert!(batch.labels.contains(&94), "the last token is reachable as a label");
        assert!(batch.inputs.contains(&0), "the first token is reachable");
    }

    #[test]
    fn labels_are_the_next_tokens_and_the_seed_decides() {
        let data = counting(300);
        let mut stream = data.train.batches(1, 3, 16).unwrap();
        let first = stream.next_batch();
        assert_eq!((first.inputs.len(), first.scored()), (48, 48));
        assert!(first.inputs.iter().zip(&first.labels).all(|(i, l)| i + 1 == *l));
        let mut again = data.train.batches(1, 3, 16).unwrap();
        again.skip(1);
        assert_eq!(stream.next_batch(), again.next_batch());
        assert_ne!(first, data.train.batches(2, 3, 16).unwrap().next_batch());
    }

    #[test]
    fn a_short_text_says_how_much_it_lacks() {
        let data = counting(40);
        let error = data.validation.batches(0, 1, 4).unwrap_err().to_string();
        assert!(error.contains("at least 5") && error.contains("has 4"), "{error}");
        assert!(data.validation.batches(0, 1, 3).is_ok());
        assert!(data.train.batches(0, 0, 3).is_err() && data.train.batches(0, 1, 0).is_err());
    }

    #[test]
    fn missing_and_empty_files_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("empty.txt");
        std::fs::write(&path, "").unwrap();
        let load = |path: &Path| TextData::load(path, &Tokenizer::Bytes).unwrap_err();
        assert!(matches!(load(&path), Error::EmptyText { .. }));
        assert!(matches!(load(&dir.path().join("none.txt")), Error::Io { .. }));
        assert!(matches!(load(&dir.path().join("empty.txt/x")), Error::Io { .. }));
    }
}
