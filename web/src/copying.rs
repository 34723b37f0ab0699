//! A text to be said again.

use burn::tensor::{Device, Int, Tensor, TensorData};
use seqzoo::data::Tokenizer;
use seqzoo::{Error, Result};
use seqzoo_layers::system::Form;
use serde::Serialize;

use crate::{MAX_TOKENS, Model};

/// Stands between a text and its repetition in what copying models learn from, one pair a line: `abc=abc`.
pub const MARK: char = '=';

/// How well a model says a text again.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CopyAnswer {
    /// What it says, as many tokens as the text has; each is what it goes on from.
    pub said: Vec<String>,
    /// The text in tokens.
    pub wanted: Vec<String>,
    /// Probability of the right token at each place.
    pub sure: Vec<f64>,
    /// Bytes of all layers' states once the text is read.
    pub state_bytes: usize,
}

impl CopyAnswer {
    /// Share of right tokens.
    pub fn right(&self) -> f64 {
        let right = self.said.iter().zip(&self.wanted).filter(|(said, wanted)| said == wanted).count();
        right as f64 / self.wanted.len() as f64
    }
}

impl Model {
    /// Reads a text and [`MARK`], then goes on by itself for as long as the text is.
    ///
    /// # Errors
    /// For an empty text, one of more than half of [`MAX_TOKENS`] bytes, or a model that does not read bytes.
    pub fn copy(&self, text: &str) -> Result<CopyAnswer> {
        let Tokenizer::Bytes = self.whole.tokenizer else {
            return Err(Error::Data("this model reads words, not letters: it cannot copy a text".into()));
        };
        let ids = self.whole.tokenizer.encode(text)?;
        if ids.is_empty() || 2 * ids.len() > MAX_TOKENS {
            return Err(Error::Data(format!(
                "a text of {} bytes: 1 to {} can be copied",
                ids.len(),
                MAX_TOKENS / 2
            )));
        }
        let model = &self.whole.model;
        let prompt = self.whole.tokenizer.encode(&format!("\n{text}{MARK}"))?;
        let time = prompt.len();
        let input = Tensor::<2, Int>::from_data(TensorData::new(prompt, [1, time]), &Device::flex());
        let read = model.forward(input, model.initial_state(1), Form::Auto)?;
        let (mut logits, mut state) = (read.logits.narrow(1, time - 1, 1).squeeze_dim::<2>(1), read.state);
        let state_bytes = state.bytes();
        let (mut said, mut sure) = (Vec::with_capacity(ids.len()), Vec::with_capacity(ids.len()));
        for &wanted in &ids {
            let chances = self.probabilities(logits)?;
            let best =
                (0..chances.len()).max_by(|&a, &b| chances[a].total_cmp(&chances[b])).unwrap_or_default();
            sure.push(chances[wanted as usize]);
            said.push(self.word(best));
            let token = Tensor::<1, Int>::from_data(TensorData::new(vec![best as i64], [1]), &Device::flex());
            (logits, state) = model.step(token, state)?;
        }
        let wanted = ids.iter().map(|&id| self.word(id as usize)).collect();
        Ok(CopyAnswer { said, wanted, sure, state_bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_goes_on_from_what_it_said() {
        let model = Model::preset("attention", 1).unwrap();
        let answer = model.copy("abca").unwrap();
        assert_eq!(answer.wanted, ["a", "b", "c", "a"]);
        let greedy = model.generate("\nabca=", 4, 0, 0.0).unwrap();
        let said: Vec<String> = model
            .whole
            .tokenizer
            .encode(&greedy)
            .unwrap()
            .iter()
            .map(|&id| model.word(id as usize))
            .collect();
        assert_eq!(answer.said, said);
        assert!(answer.sure.iter().all(|p| (0.0..=1.0).contains(p)));
        let longer = model.copy("abcaabca").unwrap();
        assert_eq!(longer.state_bytes * (4 + 2), answer.state_bytes * (8 + 2), "the cache of the text alone");
        assert!((0.0..=1.0).contains(&longer.right()));
    }

    #[test]
    fn what_cannot_be_copied_is_said() {
        let model = Model::preset("attention", 1).unwrap();
        assert!(model.copy("").unwrap_err().to_string().contains("0 bytes"));
        assert!(model.copy(&"a".repeat(257)).unwrap_err().to_string().contains("256"));
    }
}
