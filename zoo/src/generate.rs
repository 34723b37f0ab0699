//! Generation: read a prompt at once, then one token at a time, from a state that can be kept.
//!
//! ```text
//! prompt ── forward, in pieces ──> state ──┐
//!            ┌── step(token, state) <──────┘
//!            └─> logits ── temperature, top-k, top-p ──> token ──> …
//! ```

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, TensorData};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use seqzoo_layers::system::Form;
use serde::{Deserialize, Serialize};

use crate::model::{LanguageModel, ModelState};
use crate::{Error, Result};

/// Tokens read at once in a prompt: bounds the memory of the logits.
const PREFILL: usize = 1024;
const FORMAT: &str = "seqzoo-session-1";

/// How the next token is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sampling {
    /// Divides the logits; 0 always takes the most likely token.
    pub temperature: f64,
    /// Chooses among this many most likely tokens.
    pub top_k: Option<usize>,
    /// Chooses among the most likely tokens that together have this probability.
    pub top_p: Option<f64>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 0.8, top_k: None, top_p: Some(0.95) }
    }
}

impl Sampling {
    /// The most likely token, always.
    pub const GREEDY: Self = Self { temperature: 0.0, top_k: None, top_p: None };

    /// Checks the values.
    ///
    /// # Errors
    /// Naming the field that is out of range.
    pub fn validate(&self) -> Result<()> {
        let bad = |field, given: String, expected: &str| {
            Err(seqzoo_layers::Error::config("sampling", field, given, expected).into())
        };
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return bad("temperature", self.temperature.to_string(), "0 (greedy) or a positive number");
        }
        if self.top_k == Some(0) {
            return bad("top_k", "0".into(), "at least 1");
        }
        match self.top_p {
            Some(p) if !(p > 0.0 && p <= 1.0) => bad("top_p", p.to_string(), "a number in (0, 1]"),
            _ => Ok(()),
        }
    }

    /// Draws an index from logits. They must be finite.
    fn draw(&self, logits: &[f64], rng: &mut ChaCha8Rng) -> usize {
        let mut order: Vec<usize> = (0..logits.len()).collect();
        // Ties go to the smaller id, so that the choice does not depend on the sort.
        let by_logit = |a: &usize, b: &usize| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b));
        if self.temperature == 0.0 {
            return order.into_iter().min_by(by_logit).unwrap_or_default();
        }
        if let Some(k) = self.top_k.filter(|&k| k < order.len()) {
            order.select_nth_unstable_by(k, by_logit);
            order.truncate(k);
        }
        if self.top_p.is_some() || self.top_k.is_some() {
            order.sort_unstable_by(by_logit);
        }
        let highest = order.iter().map(|&i| logits[i]).fold(f64::NEG_INFINITY, f64::max);
        let weight = |i: usize| ((logits[i] - highest) / self.temperature).exp();
        if let Some(p) = self.top_p {
            let total: f64 = order.iter().map(|&i| weight(i)).sum();
            let mut sum = 0.0;
            let kept = order.iter().take_while(|&&i| {
                let needed = sum < p * total;
                sum += weight(i);
                needed
            });
            let kept = kept.count();
            order.truncate(kept.max(1));
        }
        let total: f64 = order.iter().map(|&i| weight(i)).sum();
        let mut left = rng.random::<f64>() * total;
        for &i in &order {
            left -= weight(i);
            if left < 0.0 {
                return i;
            }
        }
        // Rounding may leave a crumb: it belongs to the last.
        order.last().copied().unwrap_or_default()
    }
}

/// A sequence in the making: a model, its state, and the tokens it has not read yet.
#[derive(Debug)]
pub struct Generator {
    model: LanguageModel,
    device: Device,
    state: ModelState,
    pending: Vec<i64>,
    rng: ChaCha8Rng,
}

impl Generator {
    /// Starts an empty sequence.
    pub fn new(model: &LanguageModel, seed: u64) -> Self {
        let model = model.valid();
        let device = model.devices().first().cloned().unwrap_or_default();
        let state = model.initial_state(1);
        Self { model, device, state, pending: Vec::new(), rng: ChaCha8Rng::seed_from_u64(seed) }
    }

    /// Starts the random numbers anew.
    pub fn reseed(&mut self, seed: u64) {
        self.rng = ChaCha8Rng::seed_from_u64(seed);
    }

    /// The model's state, which has read all but the last token.
    pub fn state(&self) -> &ModelState {
        &self.state
    }

    /// Appends tokens to the sequence; they are read when the next one is wanted.
    ///
    /// # Errors
    /// When an id is not in the model's vocabulary.
    pub fn feed(&mut self, tokens: &[i64]) -> Result<()> {
        let vocab = self.model.config().vocab;
        if let Some(id) = tokens.iter().find(|&&id| id < 0 || id as usize >= vocab) {
            return Err(Error::Data(format!("token {id} is not below the model's vocabulary of {vocab}")));
        }
        self.pending.extend_from_slice(tokens);
        Ok(())
    }

    /// Draws the next token and appends it.
    ///
    /// # Errors
    /// When the sequence is empty, or the model's logits are not finite.
    pub fn next_token(&mut self, sampling: &Sampling) -> Result<i64> {
        sampling.validate()?;
        let logits = self.read_pending()?;
        let token = sampling.draw(&logits, &mut self.rng) as i64;
        self.pending = vec![token];
        Ok(token)
    }

    /// Draws `n` tokens, handing each to `on_token` at once; it may break off.
    ///
    /// # Errors
    /// As [`Generator::next_token`].
    pub fn generate(
        &mut self,
        n: usize,
        sampling: &Sampling,
        on_token: &mut dyn FnMut(i64) -> ControlFlow<()>,
    ) -> Result<Vec<i64>> {
        let mut tokens = Vec::new();
        for _ in 0..n {
            let token = self.next_token(sampling)?;
            tokens.push(token);
            if on_token(token).is_break() {
                break;
            }
        }
        Ok(tokens)
    }

    /// Reads the pending tokens; the logits after the last.
    fn read_pending(&mut self) -> Result<Vec<f64>> {
        if self.pending.is_empty() {
            return Err(Error::Data("nothing to continue: the prompt is empty".into()));
        }
        let ids = |ids: &[i64]| TensorData::new(ids.to_vec(), [ids.len()]);
        let mut logits = None;
        // The state is only replaced once all is read, so that an error leaves the sequence whole.
        let mut state = self.state.clone();
        if let [token] = self.pending[..] {
            let token = Tensor::<1, Int>::from_data(ids(&[token]), &self.device);
            let (row, next) = self.model.step(token, state)?;
            (logits, state) = (Some(row), next);
        } else {
            for piece in self.pending.chunks(PREFILL) {
                let tokens = Tensor::<1, Int>::from_data(ids(piece), &self.device).unsqueeze_dim(0);
                let output = self.model.forward(tokens, state, Form::Auto)?;
                logits = Some(output.logits.narrow(1, piece.len() - 1, 1).squeeze_dim::<2>(1));
                state = output.state;
            }
        }
        let logits = logits.map(|row| row.try_into_vec_as::<f64>()).transpose();
        let logits = logits.map_err(|e| Error::Data(e.to_string()))?.unwrap_or_default();
        if logits.iter().any(|x| !x.is_finite()) {
            let step = state.position().unwrap_or_default();
            return Err(Error::NotFinite { step, tensor: "logits".into(), checkpoint: None });
        }
        self.state = state;
        Ok(logits)
    }

    /// Writes the sequence's state, last token and random numbers to a file.
    ///
    /// # Errors
    /// When writing fails; an existing file then stays as it was.
    pub fn save(&self, path: &Path) -> Result<()> {
        let bad = |reason: String| Error::Data(format!("saving the state: {reason}"));
        let state = self.state.to_bytes()?;
        let pending: Vec<u8> = self.pending.iter().flat_map(|id| id.to_le_bytes()).collect();
        let view = |dtype, shape: usize, bytes| TensorView::new(dtype, vec![shape], bytes);
        let tensors = [
            ("state", view(Dtype::U8, state.len(), &state).map_err(|e| bad(e.to_string()))?),
            ("pending", view(Dtype::I64, self.pending.len(), &pending).map_err(|e| bad(e.to_string()))?),
        ];
        let json = |value: serde_json::Result<String>| value.map_err(|e| bad(e.to_string()));
        let metadata = [
            ("format".to_string(), FORMAT.to_string()),
            ("config".to_string(), json(serde_json::to_string(self.model.config()))?),
            ("rng".to_string(), json(serde_json::to_string(&self.rng))?),
        ];
        let bytes = safetensors::serialize(tensors, Some(metadata.into_iter().collect()));
        crate::files::replace(path, &bytes.map_err(|e| bad(e.to_string()))?)
    }

    /// Continues what [`Generator::save`] wrote: the same tokens follow as without the interruption.
    ///
    /// # Errors
    /// When the file is missing or damaged, or was written by a model of another architecture.
    pub fn load(path: &Path, model: &LanguageModel) -> Result<Self> {
        let mut generator = Self::new(model, 0);
        let bytes = fs::read(path).map_err(|e| Error::io(path, e))?;
        let bad = |reason: String| {
            let what = path.display().to_string();
            Error::Layers(seqzoo_layers::Error::SafeTensors { what, reason })
        };
        let file = SafeTensors::deserialize(&bytes).map_err(|e| bad(e.to_string()))?;
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| bad(e.to_string()))?;
        let meta = header.metadata().clone().unwrap_or_default();
        let field = |name: &str| meta.get(name).map(String::as_str).unwrap_or_default();
        if field("format") != FORMAT {
            return Err(bad("it holds no saved generation".into()));
        }
        let mismatch = |reason: String| Error::Checkpoint { path: path.to_path_buf(), reason };
        let config = serde_json::from_str(field("config")).map_err(|e| bad(e.to_string()))?;
        if *generator.model.config() != config {
            let reason = format!("this state is of another architecture: {}", field("config"));
            return Err(mismatch(reason));
        }
        generator.rng = serde_json::from_str(field("rng")).map_err(|e| bad(e.to_string()))?;
        let tensor = |name: &str| file.tensor(name).map_err(|e| bad(e.to_string()));
        generator.state = ModelState::from_bytes(tensor("state")?.data(), &generator.device)?;
        let pending = tensor("pending")?;
        let ids =
            pending.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap_or_default()));
        generator.feed(&ids.collect::<Vec<_>>())?;
        Ok(generator)
    }
}

#[cfg(test)]
mod tests {
    use seqzoo_layers::delta::GatedDeltaNetConfig;

    use super::*;
    use crate::model::LanguageModelConfig;
    use crate::registry::MixerConfig;

    fn config(heads: usize) -> LanguageModelConfig {
        let mixer = GatedDeltaNetConfig { heads, ..Default::default() };
        LanguageModelConfig::small(MixerConfig::GatedDeltaNet(mixer), 50, 16, 2)
    }

    fn model() -> LanguageModel {
        config(2).init(5, &Device::flex()).unwrap()
    }

    fn go_on(_: i64) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    #[test]
    fn draws_follow_temperature_top_k_and_top_p() {
        let logits = [0.0, 2.0, 1.0, -1.0];
        let count = |sampling: Sampling| {
            let mut rng = ChaCha8Rng::seed_from_u64(1);
            let mut counts = [0.0; 4];
            (0..20_000).for_each(|_| counts[sampling.draw(&logits, &mut rng)] += 1.0 / 20_000.0);
            counts
        };
        let softmax = |temperature: f64, kept: &[usize]| {
            let weight = |i: &usize| (logits[*i] / temperature).exp();
            let total: f64 = kept.iter().map(weight).sum();
            let mut p = [0.0; 4];
            kept.iter().for_each(|i| p[*i] = weight(i) / total);
            p
        };
        let base = Sampling { temperature: 1.0, top_k: None, top_p: None };
        for (sampling, expected) in [
            (base, softmax(1.0, &[0, 1, 2, 3])),
            (Sampling { temperature: 0.5, ..base }, softmax(0.5, &[0, 1, 2, 3])),
            (Sampling { top_k: Some(2), ..base }, softmax(1.0, &[1, 2])),
            (Sampling { top_k: Some(9), ..base }, softmax(1.0, &[0, 1, 2, 3])),
            // Probabilities are 0.64, 0.24, 0.09, 0.03: two of them make 0.8.
            (Sampling { top_p: Some(0.8), ..base }, softmax(1.0, &[1, 2])),
            (Sampling { top_p: Some(1e-9), ..base }, softmax(1.0, &[1])),
            (Sampling { top_k: Some(3), top_p: Some(1.0), ..base }, softmax(1.0, &[0, 1, 2])),
            (Sampling::GREEDY, softmax(1.0, &[1])),
        ] {
            for (found, p) in count(sampling).iter().zip(expected) {
                assert!((found - p).abs() < 0.02, "{sampling:?}: {found} for {p}");
            }
        }
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        let base = Sampling::default();
        assert!(base.validate().is_ok());
        for (sampling, field) in [
            (Sampling { temperature: -1.0, ..base }, "temperature"),
            (Sampling { temperature: f64::NAN, ..base }, "temperature"),
            (Sampling { top_k: Some(0), ..base }, "top_k"),
            (Sampling { top_p: Some(0.0), ..base }, "top_p"),
            (Sampling { top_p: Some(1.5), ..base }, "top_p"),
        ] {
            let error = sampling.validate().unwrap_err().to_string();
            assert!(error.contains(&format!("`{field}`")), "{error}");
        }
    }

    #[test]
    fn a_prompt_read_at_once_equals_one_read_token_by_token() {
        let model = model();
        // More than one piece of the prefill, with a ragged end.
        let prompt: Vec<i64> = (0..PREFILL as i64 + 37).map(|i| (i * i) % 50).collect();
        let mut at_once = Generator::new(&model, 0);
        at_once.feed(&prompt).unwrap();
        let logits = at_once.read_pending().unwrap();
        let mut one_by_one = Generator::new(&model, 0);
        let mut last = Vec::new();
        for &id in &prompt {
            one_by_one.pending = vec![id];
            last = one_by_one.read_pending().unwrap();
        }
        let gap: f64 = logits.iter().zip(&last).map(|(a, b)| (a - b).powi(2)).sum();
        let norm: f64 = last.iter().map(|x| x * x).sum();
        assert!((gap / norm).sqrt() < 1e-5, "{}", (gap / norm).sqrt());
    }

    #[test]
    fn a_saved_state_continues_as_if_nothing_had_happened() {
        let (model, sampling) = (model(), Sampling { temperature: 1.0, ..Default::default() });
        let start = || {
            let mut generator = Generator::new(&model, 7);
            generator.feed(&[3, 1, 4]).unwrap();
            generator
        };
        let expected = start().generate(12, &sampling, &mut go_on).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let mut first = start();
        let mut tokens = first.generate(5, &sampling, &mut go_on).unwrap();
        first.save(&path).unwrap();
        let mut second = Generator::load(&path, &model).unwrap();
        tokens.extend(second.generate(7, &sampling, &mut go_on).unwrap());
        assert_eq!(tokens, expected);

        let other = config(4).init(5, &Device::flex()).unwrap();
        let error = Generator::load(&path, &other).unwrap_err().to_string();
        assert!(error.contains("another architecture"), "{error}");
        let bytes = fs::read(&path).unwrap();
        for length in [0, 7, bytes.len() / 2, bytes.len() - 1] {
            fs::write(&path, &bytes[..length]).unwrap();
            assert!(Generator::load(&path, &model).is_err());
        }
        assert!(Generator::load(&dir.path().join("none"), &model).is_err());
    }

    #[test]
    fn the_seed_decides_and_the_caller_can_break_off() {
        let (model, sampling) = (model(), Sampling { temperature: 2.0, top_k: None, top_p: None });
        let tokens = |seed| {
            let mut generator = Generator::new(&model, seed);
            generator.feed(&[1]).unwrap();
            generator.generate(20, &sampling, &mut go_on).unwrap()
        };
        assert_eq!(tokens(1), tokens(1));
        assert_ne!(tokens(1), tokens(2));
        let mut generator = Generator::new(&model, 0);
        assert!(generator.next_token(&sampling).is_err(), "nothing to continue");
        assert!(generator.feed(&[50]).is_err() && generator.feed(&[-1]).is_err());
        generator.feed(&[1]).unwrap();
        let stop = &mut |_: i64| ControlFlow::Break(());
        assert_eq!(generator.generate(9, &sampling, stop).unwrap().len(), 1);
    }
}
