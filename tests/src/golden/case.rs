//! One file of golden vectors.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::{DType, Device, Tensor, TensorData};
use safetensors::tensor::{Dtype, SafeTensors};
use seqzoo_layers::Value;
use seqzoo_layers::params::Named;
use serde_json::Value as Json;

use super::{Error, Findings, Result};
use crate::error;

/// What a layer made of a case.
#[derive(Clone, Debug)]
pub enum Output {
    /// Numbers, compared within a tolerance.
    Float(Value),
    /// Choices, compared exactly.
    Indices(Vec<i64>),
}

impl<V: Into<Value>> From<V> for Output {
    fn from(value: V) -> Self {
        Self::Float(value.into())
    }
}

/// A file of named tensors. Float tensors that can get a gradient are leaves of the autodiff graph.
#[derive(Debug)]
pub struct Case {
    tensors: Named,
    integers: BTreeMap<String, Vec<i64>>,
    metadata: BTreeMap<String, String>,
    config: Json,
    tolerance: Json,
    device: Device,
}

impl Case {
    /// Reads a file onto a device, with autodiff.
    ///
    /// # Errors
    /// When it is missing, damaged, or has no metadata.
    pub fn open(path: &Path, device: &Device) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|source| Error::Io { path: path.into(), source })?;
        let bad = |reason: String| Error::Case(format!("{}: {reason}", path.display()));
        let file = SafeTensors::deserialize(&bytes).map_err(|e| bad(e.to_string()))?;
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| bad(e.to_string()))?;
        let metadata: BTreeMap<String, String> =
            header.metadata().clone().ok_or_else(|| bad("it has no metadata".into()))?.into_iter().collect();
        let json = |key: &str| -> Result<Json> {
            let text = metadata.get(key).ok_or_else(|| bad(format!("its metadata has no `{key}`")))?;
            serde_json::from_str(text).map_err(|e| bad(format!("`{key}`: {e}")))
        };
        let device = device.clone().autodiff();
        let (mut tensors, mut integers) = (Named::new(), BTreeMap::new());
        for (name, view) in file.tensors() {
            // A single number is a vector of one.
            let shape = if view.shape().is_empty() { vec![1] } else { view.shape().to_vec() };
            let float = |dtype| TensorData::from_bytes_vec(view.data().to_vec(), shape, dtype);
            match view.dtype() {
                Dtype::F32 => {
                    let value = Value::from_data(float(DType::F32), &device)?;
                    tensors.insert(name, value.require_grad());
                }
                Dtype::I64 => {
                    let (numbers, _) = view.data().as_chunks();
                    integers.insert(name, numbers.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect());
                }
                Dtype::U8 => {
                    integers.insert(name, view.data().iter().map(|&flag| i64::from(flag)).collect());
                }
                other => return Err(bad(format!("`{name}` has element type {other:?}"))),
            }
        }
        let (config, tolerance) = (json("config")?, json("tolerance")?);
        Ok(Self { tensors, integers, config, tolerance, metadata, device })
    }

    /// The architecture a file says it is of, without reading its tensors.
    pub fn architecture(path: &Path) -> Result<String> {
        let bytes = std::fs::read(path).map_err(|source| Error::Io { path: path.into(), source })?;
        let bad = |reason: String| Error::Case(format!("{}: {reason}", path.display()));
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| bad(e.to_string()))?;
        let name = header.metadata().as_ref().and_then(|metadata| metadata.get("architecture"));
        name.cloned().ok_or_else(|| bad("its metadata names no `architecture`".into()))
    }

    /// The configuration of the reference.
    pub fn config(&self) -> &Json {
        &self.config
    }

    /// A whole number of the configuration.
    pub fn size(&self, field: &str) -> Result<usize> {
        let value = self.config[field].as_u64().map(|n| n as usize);
        value.ok_or_else(|| Error::Case(format!("the configuration has no whole number `{field}`")))
    }

    /// A number of the configuration.
    pub fn number(&self, field: &str) -> Option<f64> {
        self.config[field].as_f64()
    }

    /// A switch of the configuration; off where it is left out.
    pub fn flag(&self, field: &str) -> bool {
        self.config[field].as_bool().unwrap_or(false)
    }

    /// A text of the metadata.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str)
    }

    /// Where its tensors are.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Whether it has this float tensor.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// A float tensor, a leaf.
    pub fn get<const D: usize>(&self, name: &str) -> Result<Tensor<D>> {
        Ok(self.value(name)?.tensor(name)?)
    }

    /// A float tensor of any rank.
    pub fn value(&self, name: &str) -> Result<&Value> {
        self.tensors.get(name).ok_or_else(|| Error::Case(format!("the case has no tensor `{name}`")))
    }

    /// Names of the tensors whose gradient it has.
    pub fn gradients(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().filter_map(|name| name.strip_prefix("grad."))
    }

    /// Tensors of rank 4 below `in.`, as in `q`, `k`, `v`.
    pub fn inputs<const N: usize>(&self, names: [&str; N]) -> Result<[Tensor<4>; N]> {
        let all =
            names.iter().map(|name| self.get::<4>(&format!("in.{name}"))).collect::<Result<Vec<_>>>()?;
        all.try_into().map_err(|_| Error::Case("wrong number of inputs".into()))
    }

    /// A linear weight `[out, in]` of the reference as our `[in, out]`.
    pub fn linear(&self, name: &str) -> Result<Value> {
        Ok(self.get::<2>(name)?.transpose().into())
    }

    /// The numbers of an integer tensor.
    pub fn indices(&self, name: &str) -> Result<&[i64]> {
        let found = self.integers.get(name).map(Vec::as_slice);
        found.ok_or_else(|| Error::Case(format!("the case has no indices `{name}`")))
    }

    /// The weights (`w.*`) without their prefix.
    pub fn weights(&self) -> Named {
        let weights = self.tensors.iter();
        let weights = weights.filter_map(|(name, value)| Some((name.strip_prefix("w.")?, value)));
        weights.map(|(name, value)| (name.to_string(), value.clone())).collect()
    }

    /// How far a tensor may be off.
    fn limit(&self, name: &str) -> f64 {
        let own = self.tolerance["overrides"][name].as_f64();
        own.or(self.tolerance["default"].as_f64()).unwrap_or(1e-5)
    }

    /// Compares every output of the case with ours, and every gradient of the case's own loss.
    pub(super) fn judge(
        &self,
        outputs: &[(&str, Output)],
        form: &str,
        findings: &mut Findings,
    ) -> Result<()> {
        let mut loss: Option<Tensor<1>> = None;
        let expected = self.tensors.keys().chain(self.integers.keys());
        for name in expected.filter_map(|name| name.strip_prefix("out.")) {
            let ours = outputs.iter().find(|(ours, _)| *ours == name).map(|(_, output)| output);
            let ours = ours.ok_or_else(|| Error::Case(format!("our layer gives no output `{name}`")))?;
            match ours {
                Output::Float(ours) => {
                    self.compare(&format!("out.{name}"), ours, form, findings)?;
                    if let Some(cotangent) = self.tensors.get(&format!("cot.{name}")) {
                        let term = ours.clone().dot(cotangent.clone().detach(), name)?;
                        loss = Some(if let Some(loss) = loss { loss + term } else { term });
                    }
                }
                Output::Indices(ours) => {
                    let same = ours[..] == *self.indices(&format!("out.{name}"))?;
                    let error = if same { 0.0 } else { f64::INFINITY };
                    findings.add(format!("out.{name} ({form})"), error, 0.0);
                }
            }
        }
        let Some(loss) = loss else { return Ok(()) };
        let grads = loss.backward();
        for (name, expected) in &self.tensors {
            let Some(leaf) = name.strip_prefix("grad.") else { continue };
            let leaf = self.tensors.get(leaf);
            let leaf = leaf.ok_or_else(|| Error::Case(format!("`{name}` is of no tensor of the case")))?;
            match leaf.grad(&grads) {
                Some(grad) => self.compare(name, &grad, form, findings)?,
                // It took no part in the loss: its gradient is 0.
                None => {
                    let expected = expected.to_f64()?;
                    let error = error(&vec![0.0; expected.len()], &expected);
                    findings.add(format!("{name} ({form})"), error, self.limit(name));
                }
            }
        }
        Ok(())
    }

    fn compare(&self, name: &str, ours: &Value, form: &str, findings: &mut Findings) -> Result<()> {
        let expected = &self.tensors[name];
        if ours.dims() != expected.dims() {
            let (ours, expected) = (ours.dims(), expected.dims());
            return Err(Error::Case(format!("`{name}` has shape {ours:?} here, {expected:?} in the case")));
        }
        let error = error(&ours.to_f64()?, &expected.to_f64()?);
        findings.add(format!("{name} ({form})"), error, self.limit(name));
        Ok(())
    }
}
