//! A model that reads a text and shows how.

use std::ops::ControlFlow;

use burn::tensor::{Device, Int, Tensor, TensorData, activation};
use seqzoo::data::Tokenizer;
use seqzoo::generate::{Generator, Sampling};
use seqzoo::model::{LanguageModel, ModelState};
use seqzoo::train::Portable;
use seqzoo::{Error, Result};
use seqzoo_layers::Value;
use seqzoo_layers::system::Mixer;

use crate::info::{json, preset};
use crate::trace::slots;
use crate::words::{decode, encode, vocabulary};
use crate::{Explanation, Kind, LayerTrace, ModelInfo, Prediction, StateSlot, Trace, explain};

/// Longest text, in tokens: the implied attention has one number per pair of tokens and head.
pub const MAX_TOKENS: usize = 512;

/// Likeliest next tokens shown.
const SHOWN: usize = 5;

/// A model on the CPU, and the text it read last.
#[derive(Debug)]
pub struct Model {
    pub(crate) whole: Portable,
    pub(crate) vocabulary: Vec<String>,
    trained: bool,
    reading: Option<Reading>,
}

/// What is kept of a text that was read.
#[derive(Debug)]
pub(crate) struct Reading {
    /// What each layer's mixer read, `[1, t, d]`.
    pub(crate) inputs: Vec<Tensor<3>>,
    /// Before the first token, and after each.
    pub(crate) states: Vec<ModelState>,
    pub(crate) layers: Vec<LayerTrace>,
}

impl Model {
    /// A model of drawn parameters that reads bytes, from an architecture's name, a mixer's configuration in
    /// JSON, or `{"mixer": …, "d_model": 32, "layers": 1}`.
    ///
    /// # Errors
    /// For an unknown architecture or impossible values.
    pub fn preset(config: &str, seed: u64) -> Result<Self> {
        let model = preset(config)?.init(seed, &Device::flex())?;
        Ok(Self::new(Portable { model, tokenizer: Tokenizer::Bytes, task: None }, false))
    }

    /// A model saved by `seqzoo train` (its `model.safetensors`) or in the browser.
    ///
    /// # Errors
    /// When the bytes are damaged or no such model.
    pub fn from_weights(bytes: &[u8]) -> Result<Self> {
        Ok(Self::new(Portable::from_bytes(bytes, "weights", &Device::flex())?, true))
    }

    pub(crate) fn new(whole: Portable, trained: bool) -> Self {
        let vocabulary = vocabulary(&whole.tokenizer, whole.task.is_some());
        Self { whole, vocabulary, trained, reading: None }
    }

    /// Facts about it.
    ///
    /// # Errors
    /// When its configuration cannot be written.
    pub fn info(&self) -> Result<ModelInfo> {
        info(&self.whole, &self.vocabulary, self.trained)
    }

    fn language(&self) -> &LanguageModel {
        &self.whole.model
    }

    /// Reads a whole text from the initial state, and keeps the states for [`Model::state`] and
    /// [`Model::explain`].
    ///
    /// # Errors
    /// For an empty text, one of more than [`MAX_TOKENS`] tokens, or words the model does not know.
    pub fn read(&mut self, text: &str) -> Result<Trace> {
        let ids = encode(&self.whole.tokenizer, &self.vocabulary, text)?;
        if ids.is_empty() || ids.len() > MAX_TOKENS {
            return Err(Error::Data(format!(
                "a text of {} tokens: 1 to {MAX_TOKENS} can be shown",
                ids.len()
            )));
        }
        let model = self.language();
        let (mut states, mut predictions) = (vec![model.initial_state(1)], Vec::new());
        for &id in &ids {
            let token = Tensor::<1, Int>::from_data(TensorData::new(vec![id], [1]), &Device::flex());
            let state = states.last().cloned().unwrap_or_else(|| model.initial_state(1));
            let (logits, state) = model.step(token, state)?;
            predictions.push(self.likeliest(logits)?);
            states.push(state);
        }
        let tokens = TensorData::new(ids.clone(), [1, ids.len()]);
        let inputs = model.mixer_inputs(Tensor::from_data(tokens, &Device::flex()))?;
        let mut layers = Vec::with_capacity(inputs.len());
        for (i, (block, x)) in model.blocks.iter().zip(&inputs).enumerate() {
            let views = block.mixer.views(x.clone(), block.mixer.initial_state(1))?;
            let arch = model.config().mixers().nth(i).map_or("", |mixer| mixer.name());
            let mut layer = LayerTrace::new(arch, views, &states[1..], i)?;
            layer.explains =
                explain::kinds(&layer, block.mixer.terms(x.clone(), block.mixer.initial_state(1))?.as_ref());
            layers.push(layer);
        }
        let words = ids.iter().map(|&id| self.word(id as usize)).collect();
        self.reading = Some(Reading { inputs, states, layers: layers.clone() });
        Ok(Trace { tokens: words, ids, layers, predictions })
    }

    pub(crate) fn reading(&self) -> Result<&Reading> {
        self.reading.as_ref().ok_or_else(|| Error::Data("nothing was read yet: call `read` first".into()))
    }

    /// A layer's state after a token of the text read last, counted from 0.
    ///
    /// # Errors
    /// When nothing was read, or there is no such layer or token.
    pub fn state(&self, layer: usize, token: usize) -> Result<Vec<StateSlot>> {
        let states = &self.reading()?.states;
        let after = states.get(token + 1).ok_or_else(|| none("token", token, states.len() - 1))?;
        let state = after.layers.get(layer).ok_or_else(|| none("layer", layer, after.layers.len()))?;
        Ok(slots(state)?)
    }

    /// A layer's states after every token of the text read last.
    ///
    /// # Errors
    /// As [`Model::state`].
    pub fn states(&self, layer: usize) -> Result<Vec<Vec<StateSlot>>> {
        (0..self.reading()?.states.len() - 1).map(|token| self.state(layer, token)).collect()
    }

    /// Where a shown number comes from, at `[head, row, column]`; see [`Kind`].
    ///
    /// # Errors
    /// When nothing was read, or there is no such number.
    pub fn explain(
        &self,
        layer: usize,
        kind: Kind,
        at: [usize; 3],
        token: Option<usize>,
    ) -> Result<Explanation> {
        let reading = self.reading()?;
        let blocks = &self.language().blocks;
        let block = blocks.get(layer).ok_or_else(|| none("layer", layer, blocks.len()))?;
        explain::explain(&block.mixer, reading, layer, kind, at, token)
    }

    /// Continues a prompt.
    ///
    /// # Errors
    /// For an empty prompt, words the model does not know, or a temperature that is negative.
    pub fn generate(&self, prompt: &str, tokens: usize, seed: u64, temperature: f64) -> Result<String> {
        let ids = encode(&self.whole.tokenizer, &self.vocabulary, prompt)?;
        let mut generator = Generator::new(self.language(), seed);
        generator.feed(&ids)?;
        let sampling = Sampling { temperature, top_k: None, top_p: Some(0.95) };
        let drawn = generator.generate(tokens, &sampling, &mut |_| ControlFlow::Continue(()))?;
        decode(&self.whole.tokenizer, &self.vocabulary, &drawn)
    }

    pub(crate) fn word(&self, id: usize) -> String {
        self.vocabulary.get(id).cloned().unwrap_or_else(|| format!("#{id}"))
    }

    /// Of every next token, from logits `[1, vocab]`.
    pub(crate) fn probabilities(&self, logits: Tensor<2>) -> Result<Vec<f64>> {
        Ok(Value::from(activation::softmax(logits, 1)).to_f64()?)
    }

    /// The most likely next tokens, from logits `[1, vocab]`.
    pub(crate) fn likeliest(&self, logits: Tensor<2>) -> Result<Vec<Prediction>> {
        let probabilities = self.probabilities(logits)?;
        let mut order: Vec<usize> = (0..probabilities.len()).collect();
        order.sort_by(|&a, &b| probabilities[b].total_cmp(&probabilities[a]).then(a.cmp(&b)));
        let shown = order.into_iter().take(SHOWN);
        Ok(shown
            .map(|token| Prediction { token, text: self.word(token), probability: probabilities[token] })
            .collect())
    }
}

pub(crate) fn info(whole: &Portable, vocabulary: &[String], trained: bool) -> Result<ModelInfo> {
    let config = whole.model.config();
    let note = whole
        .task
        .as_ref()
        .map(|task| format!("Trained to recall {} pairs in {} tokens.", task.pairs, task.length));
    Ok(ModelInfo {
        arch: config.mixers().next().map_or("", |mixer| mixer.name()),
        params: whole.model.num_params(),
        layers: whole.model.blocks.len(),
        d_model: config.d_model,
        vocab: vocabulary.to_vec(),
        tokenizer: if matches!(whole.tokenizer, Tokenizer::Bytes) { "bytes" } else { "ids" },
        trained,
        config: json(config)?,
        note: note.filter(|_| trained),
    })
}

pub(crate) fn none(what: &str, given: usize, there_are: usize) -> Error {
    Error::Data(format!("there is no {what} {given}: the last is {}", there_are.saturating_sub(1)))
}
