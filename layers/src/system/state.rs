//! What a mixer carries from call to call.

use std::collections::BTreeMap;

use burn::tensor::{DType, Device, Tensor, TensorData};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::{Error, Result, Value};

/// Name of the slot in which a linear-state mixer keeps its memory `H`.
pub const MEMORY: &str = "memory";

/// How a slot's size depends on the number of tokens seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Growth {
    /// The same size at every position.
    Fixed,
    /// One entry per token along `axis`: a cache. Its last entry is each row's latest token; a row that has
    /// seen fewer tokens than the cache has entries does not use the first ones.
    PerToken {
        /// The time axis of the tensor.
        axis: usize,
    },
    /// One entry per power of two of tokens seen along `axis`, the smallest first.
    PerDoubling {
        /// The axis of the powers.
        axis: usize,
    },
}

/// Which entries of a cache are dropped.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Oldest,
    Latest,
}

/// Zeros for a state, beside a parameter: on a graphics device one number in every place, for which no kernel has to be
/// started.
pub(crate) fn fresh<const D: usize, const L: usize>(shape: [usize; D], like: &Tensor<L>) -> Tensor<D> {
    let (device, dtype) = (like.device(), like.dtype());
    #[cfg(feature = "cube")]
    if matches!(device.clone().inner().as_dispatch(), burn::backend::DispatchDevice::Cube(_))
        && !shape.contains(&0)
    {
        let zero = TensorData::new(vec![0.0f32], [1; D]);
        return Tensor::<D>::from_data(zero, (&device, dtype)).expand(shape);
    }
    Tensor::zeros(shape, (&device, dtype))
}

#[derive(Clone, Debug)]
struct Slot {
    value: Value,
    growth: Growth,
}

/// What a mixer carries between calls: named tensors whose axis 0 is the batch, and how many tokens
/// each row has seen. Cheap to clone (tensors are shared), so keeping a clone is a snapshot.
#[derive(Clone, Debug)]
pub struct State {
    positions: Vec<usize>,
    slots: BTreeMap<String, Slot>,
}

impl State {
    /// An empty state at position 0.
    pub fn new(batch: usize) -> Self {
        Self { positions: vec![0; batch], slots: BTreeMap::new() }
    }

    /// Adds a fixed-size slot; axis 0 is the batch.
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.put(name, value);
        self
    }

    /// Adds or replaces a fixed-size slot.
    pub fn put(&mut self, name: &str, value: impl Into<Value>) {
        self.put_growing(name, value, Growth::Fixed);
    }

    /// Adds or replaces a cache with one entry per token along `axis`, the latest last.
    pub fn put_cache(&mut self, name: &str, value: impl Into<Value>, axis: usize) {
        self.put_growing(name, value, Growth::PerToken { axis });
    }

    /// Adds or replaces a memory with one entry per power of two of tokens along `axis`.
    pub fn put_doubling(&mut self, name: &str, value: impl Into<Value>, axis: usize) {
        self.put_growing(name, value, Growth::PerDoubling { axis });
    }

    /// Adds or replaces a slot that grows in any way.
    pub fn put_growing(&mut self, name: &str, value: impl Into<Value>, growth: Growth) {
        self.slots.insert(name.to_string(), Slot { value: value.into(), growth });
    }

    /// A slot's tensor.
    ///
    /// # Errors
    /// When there is no such slot: the state belongs to another kind of layer.
    pub fn get<const D: usize>(&self, name: &str) -> Result<Tensor<D>> {
        let slot = self.slots.get(name).ok_or_else(|| {
            let has: Vec<_> = self.slots.keys().map(String::as_str).collect();
            Error::State(format!(
                "no slot `{name}` (it has [{}]); start from this layer's own `initial_state`",
                has.join(", ")
            ))
        })?;
        slot.value.tensor(name)
    }

    /// A slot's tensor, if present.
    pub fn find<const D: usize>(&self, name: &str) -> Result<Option<Tensor<D>>> {
        if self.slots.contains_key(name) { self.get(name).map(Some) } else { Ok(None) }
    }

    /// Takes a slot's tensor out, if present: who holds it alone can change it in place.
    pub(crate) fn take<const D: usize>(&mut self, name: &str) -> Result<Option<Tensor<D>>> {
        self.slots.remove(name).map(|slot| slot.value.tensor(name)).transpose()
    }

    /// Names, tensors and growth of all slots.
    pub fn slots(&self) -> impl Iterator<Item = (&str, &Value, Growth)> {
        self.slots.iter().map(|(name, slot)| (name.as_str(), &slot.value, slot.growth))
    }

    /// Number of rows.
    pub fn batch(&self) -> usize {
        self.positions.len()
    }

    /// Tokens seen by each row.
    pub fn positions(&self) -> &[usize] {
        &self.positions
    }

    /// The common position of all rows, or `None` where rows differ (after ragged padding).
    pub fn position(&self) -> Option<usize> {
        let first = self.positions.first().copied().unwrap_or(0);
        self.positions.iter().all(|&p| p == first).then_some(first)
    }

    /// Counts `tokens` more for each row.
    pub fn advance(&mut self, tokens: &[usize]) {
        for (position, add) in self.positions.iter_mut().zip(tokens) {
            *position += add;
        }
    }

    pub(crate) fn set_positions(&mut self, positions: Vec<usize>) {
        self.positions = positions;
    }

    /// Bytes held by all tensors.
    pub fn bytes(&self) -> usize {
        self.slots.values().map(|slot| slot.value.numel() * slot.value.dtype().size()).sum()
    }

    /// The rows `indices`, in that order; rows may repeat (beam search).
    pub fn select(&self, indices: &[usize]) -> Result<Self> {
        if let Some(bad) = indices.iter().find(|&&i| i >= self.batch()) {
            return Err(Error::State(format!("row {bad} of a state with {} rows", self.batch())));
        }
        let positions: Vec<usize> = indices.iter().map(|&i| self.positions[i]).collect();
        let longest = positions.iter().copied().max().unwrap_or(0);
        let mut out = Self { positions, ..self.map(|value| value.select(0, indices)) };
        out.shorten(|length| length.min(longest), Side::Oldest);
        Ok(out)
    }

    /// Cuts every cache to `keep(length)` entries, dropping it where none is left.
    fn shorten(&mut self, keep: impl Fn(usize) -> usize, side: Side) {
        self.slots.retain(|_, slot| {
            let Growth::PerToken { axis } = slot.growth else { return true };
            let length = slot.value.dims()[axis];
            let kept = keep(length);
            if kept > 0 && kept < length {
                let start = if side == Side::Oldest { length - kept } else { 0 };
                slot.value = slot.value.clone().narrow(axis, start, kept);
            }
            kept > 0
        });
    }

    /// Every row repeated `times` times in a row.
    pub fn repeat(&self, times: usize) -> Result<Self> {
        let rows: Vec<_> = (0..self.batch()).flat_map(|i| vec![i; times]).collect();
        self.select(&rows)
    }

    /// Drops what was cached after the first `position` tokens.
    ///
    /// # Errors
    /// When the state is not a pure cache (a recurrent memory cannot be rewound: keep a clone, see
    /// [`Snapshots`]), when tokens before `position` were already evicted, or when rows are ragged.
    pub fn truncate(&self, position: usize) -> Result<Self> {
        let now = self
            .position()
            .ok_or_else(|| Error::State("rows at different positions cannot be truncated together".into()))?;
        if position == now {
            return Ok(self.clone());
        }
        if position > now {
            return Err(Error::State(format!("cannot truncate to {position}: only {now} seen")));
        }
        for (name, slot) in &self.slots {
            let Growth::PerToken { axis } = slot.growth else {
                return Err(Error::State(format!(
                    "`{name}` is a memory, not a cache, and cannot be rewound; keep a clone or use `Snapshots`"
                )));
            };
            if slot.value.dims()[axis] < now {
                return Err(Error::State(format!("`{name}` already evicted older tokens")));
            }
        }
        let mut out = self.clone();
        out.positions = vec![position; self.batch()];
        out.shorten(|length| length + position - now, Side::Latest);
        Ok(out)
    }

    fn map(&self, f: impl Fn(Value) -> Value) -> Self {
        let slots = self
            .slots
            .iter()
            .map(|(name, slot)| (name.clone(), Slot { value: f(slot.value.clone()), growth: slot.growth }));
        Self { positions: self.positions.clone(), slots: slots.collect() }
    }

    /// Cuts the autodiff graph: truncated back-propagation through time.
    pub fn detach(&self) -> Self {
        self.map(Value::detach)
    }

    /// Moves every tensor to a device.
    pub fn to_device(&self, device: &Device) -> Self {
        self.map(|value| value.to_device(device))
    }

    /// Converts every tensor's element type.
    pub fn cast(&self, dtype: DType) -> Self {
        self.map(|value| value.cast(dtype))
    }

    /// Replaces each slot's tensor, keeping names and growth.
    pub fn replace(&self, mut f: impl FnMut(&str, Value) -> Value) -> Self {
        let mut out = self.clone();
        for (name, slot) in &mut out.slots {
            slot.value = f(name, slot.value.clone());
        }
        out
    }

    /// Serializes to the safetensors format, in the tensors' own element type.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let data = self.slots.iter().map(|(name, slot)| Ok((name, slot.value.to_data()?)));
        self.serialize(&data.collect::<Result<Vec<_>>>()?)
    }

    /// [`State::to_bytes`] without blocking, for a browser.
    pub async fn to_bytes_async(&self) -> Result<Vec<u8>> {
        let mut data = Vec::with_capacity(self.slots.len());
        for (name, slot) in &self.slots {
            data.push((name, slot.value.to_data_async().await?));
        }
        self.serialize(&data)
    }

    fn serialize(&self, data: &[(&String, TensorData)]) -> Result<Vec<u8>> {
        let bad = |e: String| Error::State(format!("could not serialize: {e}"));
        let views = data
            .iter()
            .map(|(name, data)| {
                let dtype = match data.dtype() {
                    DType::F64 => Dtype::F64,
                    DType::F32 => Dtype::F32,
                    DType::F16 => Dtype::F16,
                    DType::BF16 => Dtype::BF16,
                    other => return Err(bad(format!("`{name}` has element type {other:?}"))),
                };
                let view = TensorView::new(dtype, data.shape().to_vec(), data.bytes());
                Ok((name, view.map_err(|e| bad(e.to_string()))?))
            })
            .collect::<Result<Vec<_>>>()?;
        let (mut caches, mut doublings) = (Vec::new(), Vec::new());
        for (name, slot) in &self.slots {
            match slot.growth {
                Growth::Fixed => {}
                Growth::PerToken { axis } => caches.push((name, axis)),
                Growth::PerDoubling { axis } => doublings.push((name, axis)),
            }
        }
        let mut metadata = vec![
            ("format".to_string(), "seqzoo-state-1".to_string()),
            ("positions".to_string(), serde_json::json!(self.positions).to_string()),
            ("caches".to_string(), serde_json::json!(caches).to_string()),
        ];
        if !doublings.is_empty() {
            metadata.push(("doublings".to_string(), serde_json::json!(doublings).to_string()));
        }
        safetensors::serialize(views, Some(metadata.into_iter().collect())).map_err(|e| bad(e.to_string()))
    }

    /// Reads what [`State::to_bytes`] wrote.
    ///
    /// # Errors
    /// When the bytes are truncated, malformed, or not a state.
    pub fn from_bytes(bytes: &[u8], device: &Device) -> Result<Self> {
        let bad = |reason: String| Error::SafeTensors { what: "state".into(), reason };
        let file = SafeTensors::deserialize(bytes).map_err(|e| bad(e.to_string()))?;
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(|e| bad(e.to_string()))?;
        let meta = header.metadata().clone().unwrap_or_default();
        if meta.get("format").map(String::as_str) != Some("seqzoo-state-1") {
            return Err(bad("it holds no seqzoo state".into()));
        }
        let field = |name: &str| meta.get(name).cloned().unwrap_or_default();
        let positions: Vec<usize> =
            serde_json::from_str(&field("positions")).map_err(|e| bad(e.to_string()))?;
        let axes = |name: &str| -> Result<Vec<(String, usize)>> {
            let text = field(name);
            let text = if text.is_empty() && name == "doublings" { "[]" } else { &text };
            serde_json::from_str(text).map_err(|e| bad(e.to_string()))
        };
        let (caches, doublings) = (axes("caches")?, axes("doublings")?);
        let mut state = Self { positions, slots: BTreeMap::new() };
        for (name, view) in file.tensors() {
            let dtype = match view.dtype() {
                Dtype::F64 => DType::F64,
                Dtype::F32 => DType::F32,
                Dtype::F16 => DType::F16,
                Dtype::BF16 => DType::BF16,
                other => return Err(bad(format!("`{name}` has element type {other:?}"))),
            };
            let shape = view.shape().to_vec();
            if shape.first() != Some(&state.batch()) {
                return Err(bad(format!("`{name}` {shape:?} does not have {} rows", state.batch())));
            }
            let data = TensorData::from_bytes_vec(view.data().to_vec(), shape, dtype);
            let value = Value::from_data(data, device)?;
            let axis =
                |list: &[(String, usize)]| list.iter().find(|(slot, _)| *slot == name).map(|&(_, axis)| axis);
            let growth = match (axis(&caches), axis(&doublings)) {
                (None, None) => Growth::Fixed,
                (Some(axis), None) if axis < value.dims().len() => Growth::PerToken { axis },
                (None, Some(axis)) if axis < value.dims().len() => Growth::PerDoubling { axis },
                _ => return Err(bad(format!("`{name}` has no such axis to grow along"))),
            };
            state.put_growing(&name, value, growth);
        }
        Ok(state)
    }
}

/// Keeps clones of a state so that a generation can go back to an earlier position.
#[derive(Clone, Debug)]
pub struct Snapshots {
    every: usize,
    kept: Vec<State>,
}

impl Snapshots {
    /// Keeps a state whenever it is at least `every` tokens past the last kept one.
    pub fn every(every: usize) -> Self {
        Self { every: every.max(1), kept: Vec::new() }
    }

    /// Offers a state to keep.
    pub fn offer(&mut self, state: &State) {
        let Some(position) = state.position() else { return };
        let last = self.kept.last().and_then(State::position);
        if last.is_none_or(|last| position >= last + self.every) {
            self.kept.push(state.clone());
        }
    }

    /// The latest kept state at or before `position`: replay the tokens from there.
    pub fn restore(&self, position: usize) -> Option<&State> {
        self.kept.iter().rev().find(|state| state.position().is_some_and(|p| p <= position))
    }
}
