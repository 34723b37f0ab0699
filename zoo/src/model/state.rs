//! The state of a whole model.

use std::path::Path;

use burn::tensor::{Device, Tensor};
use seqzoo_layers::system::State;
use seqzoo_layers::{Error, Value};

use crate::{Result, files};

/// What a model carries between calls: one [`State`] per block. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ModelState {
    /// The blocks' states, in order.
    pub layers: Vec<State>,
}

/// Slot of a saved state that holds the number of blocks: a fresh cache has no slots to count.
const DEPTH: &str = "depth";

/// More blocks than any model has: a file that claims more is damaged.
const MAX_DEPTH: usize = 1 << 16;

impl ModelState {
    /// Number of rows.
    pub fn batch(&self) -> usize {
        self.layers.first().map_or(0, State::batch)
    }

    /// The common position of all rows, or `None` where rows differ (after ragged padding).
    pub fn position(&self) -> Option<usize> {
        self.layers.first().map_or(Some(0), State::position)
    }

    /// Tokens seen by each row.
    pub fn positions(&self) -> &[usize] {
        self.layers.first().map_or(&[], State::positions)
    }

    /// Bytes held by all tensors.
    pub fn bytes(&self) -> usize {
        self.layers.iter().map(State::bytes).sum()
    }

    fn try_map(&self, f: impl Fn(&State) -> seqzoo_layers::Result<State>) -> Result<Self> {
        Ok(Self { layers: self.layers.iter().map(f).collect::<seqzoo_layers::Result<_>>()? })
    }

    /// The rows `indices`, in that order; rows may repeat (beam search).
    pub fn select(&self, indices: &[usize]) -> Result<Self> {
        self.try_map(|state| state.select(indices))
    }

    /// Every row repeated `times` times in a row.
    pub fn repeat(&self, times: usize) -> Result<Self> {
        self.try_map(|state| state.repeat(times))
    }

    /// Drops what was cached after the first `position` tokens; see [`State::truncate`].
    pub fn truncate(&self, position: usize) -> Result<Self> {
        self.try_map(|state| state.truncate(position))
    }

    /// Cuts the autodiff graph: truncated back-propagation through time.
    pub fn detach(&self) -> Self {
        Self { layers: self.layers.iter().map(State::detach).collect() }
    }

    /// Moves every tensor to a device.
    pub fn to_device(&self, device: &Device) -> Self {
        Self { layers: self.layers.iter().map(|state| state.to_device(device)).collect() }
    }

    /// Serializes to the safetensors format: slot `memory` of block 2 is named `2.memory`.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let batch = self.batch();
        let mut all = State::new(batch);
        all.advance(self.positions());
        let mut device = None;
        for (i, layer) in self.layers.iter().enumerate() {
            for (name, value, growth) in layer.slots() {
                device = Some(value.device());
                all.put_growing(&format!("{i}.{name}"), value.clone(), growth);
            }
        }
        all.put(
            DEPTH,
            Tensor::<2>::full([batch, 1], self.layers.len() as f32, &device.unwrap_or_default().inner()),
        );
        Ok(all.to_bytes()?)
    }

    /// Reads what [`ModelState::to_bytes`] wrote.
    ///
    /// # Errors
    /// When the bytes are truncated, malformed, or not a model's state.
    pub fn from_bytes(bytes: &[u8], device: &Device) -> Result<Self> {
        let bad = |reason: &str| Error::SafeTensors { what: "state".into(), reason: reason.into() };
        let all = State::from_bytes(bytes, device)?;
        let depth = all.find::<2>(DEPTH)?.ok_or_else(|| bad("it holds no model's state"))?;
        let depth = Value::from(depth).to_f64()?.first().map_or(0, |&depth| depth as usize);
        if depth > MAX_DEPTH {
            return Err(bad("its number of blocks is not credible").into());
        }
        let mut empty = State::new(all.batch());
        empty.advance(all.positions());
        let mut layers = vec![empty; depth];
        for (name, value, growth) in all.slots().filter(|(name, ..)| *name != DEPTH) {
            let (layer, name) = name.split_once('.').ok_or_else(|| bad("a slot has no block number"))?;
            let layer = layer.parse().ok().and_then(|i: usize| layers.get_mut(i));
            let layer = layer.ok_or_else(|| bad("a slot belongs to no block"))?;
            layer.put_growing(name, value.clone(), growth);
        }
        Ok(Self { layers })
    }

    /// Writes a file; one that is already there is replaced only when all is written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        files::replace(path.as_ref(), &self.to_bytes()?)
    }

    /// Reads what [`ModelState::save`] wrote.
    pub fn load(path: impl AsRef<Path>, device: &Device) -> Result<Self> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(|e| crate::Error::io(path, e))?;
        Self::from_bytes(&bytes, device)
    }
}
