//! Pairs planted by hand, and a question.

use burn::tensor::{Device, Int, Tensor, TensorData};
use seqzoo::{Error, Result};
use seqzoo_layers::system::Form;
use serde::Serialize;

use crate::words::id_of;
use crate::{Model, Prediction};

/// What a model remembers.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RecallAnswer {
    /// The likeliest answers.
    pub answer: Vec<Prediction>,
    /// Bytes of all layers' states after the question.
    pub state_bytes: usize,
    /// Floating-point operations of reading the question.
    pub read_flops: f64,
    /// The words that were read, the question last.
    pub tokens: Vec<String>,
}

impl Model {
    /// Reads keys with their values, then a key, and says what value the model expects.
    ///
    /// # Errors
    /// For words the model does not know, or a model that was not trained on recall.
    pub fn recall(&self, pairs: &[(String, String)], ask: &str) -> Result<RecallAnswer> {
        if self.whole.task.is_none() {
            return Err(Error::Data("this model was not trained to recall pairs".into()));
        }
        let words = pairs.iter().flat_map(|(key, value)| [key.as_str(), value.as_str()]).chain([ask]);
        let ids = words.map(|word| id_of(&self.vocabulary, word)).collect::<Result<Vec<i64>>>()?;
        let model = &self.whole.model;
        let time = ids.len();
        let tokens = ids.iter().map(|&id| self.word(id as usize)).collect();
        let input = Tensor::<2, Int>::from_data(TensorData::new(ids, [1, time]), &Device::flex());
        let output = model.forward(input, model.initial_state(1), Form::Auto)?;
        Ok(RecallAnswer {
            answer: self.likeliest(output.logits.narrow(1, time - 1, 1).squeeze_dim(1))?,
            state_bytes: output.state.bytes(),
            read_flops: model.cost(1, time, Form::Recurrent).flops / time as f64,
            tokens,
        })
    }
}
