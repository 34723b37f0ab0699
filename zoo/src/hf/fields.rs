//! Typed access to the fields of a `config.json`.

use seqzoo_layers::nn::Llama3Scaling;
use seqzoo_layers::nn::{Activation, RopeConfig};
use serde_json::{Map, Value};

use crate::{Error, Result};

/// The fields of a model's configuration and where they were read.
pub(super) struct Fields {
    map: Map<String, Value>,
    what: String,
}

impl Fields {
    pub(super) fn new(value: Value, what: &str) -> Result<Self> {
        match value {
            Value::Object(map) => Ok(Self { map, what: what.into() }),
            _ => Err(Error::Config { what: what.into(), reason: "not a JSON object".into() }),
        }
    }

    /// An error about this configuration.
    pub(super) fn refuse(&self, reason: impl Into<String>) -> Error {
        Error::Config { what: self.what.clone(), reason: reason.into() }
    }

    fn find(&self, name: &str) -> Option<&Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    fn typed<'a, T>(
        &'a self,
        name: &str,
        kind: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.find(name) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| self.refuse(format!("`{name}` = {value} must be {kind}")))
    }

    fn required<T>(&self, name: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| self.refuse(format!("the field `{name}` is missing")))
    }

    pub(super) fn find_size(&self, name: &str) -> Result<Option<usize>> {
        self.typed(name, "a whole number", |value| value.as_u64().map(|n| n as usize))
    }

    pub(super) fn size(&self, name: &str) -> Result<usize> {
        self.required(name, self.find_size(name)?)
    }

    pub(super) fn size_or(&self, name: &str, default: usize) -> Result<usize> {
        Ok(self.find_size(name)?.unwrap_or(default))
    }

    pub(super) fn number_or(&self, name: &str, default: f64) -> Result<f64> {
        Ok(self.typed(name, "a number", number)?.unwrap_or(default))
    }

    pub(super) fn flag_or(&self, name: &str, default: bool) -> Result<bool> {
        Ok(self.typed(name, "true or false", Value::as_bool)?.unwrap_or(default))
    }

    pub(super) fn find_text(&self, name: &str) -> Result<Option<&str>> {
        self.typed(name, "a text", Value::as_str)
    }

    pub(super) fn text(&self, name: &str) -> Result<&str> {
        self.required(name, self.find_text(name)?)
    }

    pub(super) fn numbers(&self, name: &str) -> Result<Option<Vec<f64>>> {
        self.typed(name, "a list of numbers", |value| value.as_array()?.iter().map(number).collect())
    }

    pub(super) fn texts(&self, name: &str) -> Result<Option<Vec<&str>>> {
        self.typed(name, "a list of texts", |value| value.as_array()?.iter().map(Value::as_str).collect())
    }

    /// Whether `layer_types` makes a layer linear; `otherwise` where there is no such list.
    pub(super) fn linear_layer(&self, layer: usize, otherwise: bool) -> Result<bool> {
        match self.texts("layer_types")?.map(|types| types.get(layer).copied()) {
            None => Ok(otherwise),
            Some(Some("linear_attention")) => Ok(true),
            Some(Some("full_attention")) => Ok(false),
            Some(other) => Err(self.refuse(format!("`layer_types`: layer {layer} is {other:?}"))),
        }
    }

    /// The pointwise function that a field names.
    pub(super) fn activation(&self, name: &str, default: Activation) -> Result<Activation> {
        Ok(match self.find_text(name)? {
            None => default,
            Some("silu" | "swish") => Activation::Silu,
            Some("gelu") => Activation::Gelu,
            Some("gelu_new" | "gelu_pytorch_tanh" | "gelu_fast") => Activation::GeluTanh,
            Some("relu") => Activation::Relu,
            Some(other) => return Err(self.refuse(format!("`{name}` = \"{other}\" is not supported"))),
        })
    }

    /// Rotary positions, from `rope_parameters` or the older `rope_theta` and `rope_scaling`.
    pub(super) fn rope(&self, theta: f64, fraction: f64) -> Result<RopeConfig> {
        let inner = self.find("rope_parameters").or_else(|| self.find("rope_scaling"));
        let inner = match inner {
            None => Self::new(Value::Object(Map::new()), &self.what)?,
            Some(value) => Self::new(value.clone(), &format!("{}, rope_parameters", self.what))?,
        };
        let base = inner.number_or("rope_theta", self.number_or("rope_theta", theta)?)?;
        let fraction =
            inner.number_or("partial_rotary_factor", self.number_or("partial_rotary_factor", fraction)?)?;
        let kind = inner.find_text("rope_type")?.or(inner.find_text("type")?).unwrap_or("default");
        let llama3 = match kind {
            "default" => None,
            "llama3" => {
                let number = |name: &str| inner.required(name, inner.typed(name, "a number", number)?);
                Some(Llama3Scaling {
                    factor: number("factor")?,
                    low_freq_factor: number("low_freq_factor")?,
                    high_freq_factor: number("high_freq_factor")?,
                    original_max_position: number("original_max_position_embeddings")?,
                })
            }
            other => {
                return Err(self.refuse(format!("rotary positions of type \"{other}\" are not supported")));
            }
        };
        Ok(RopeConfig { base, fraction, llama3 })
    }
}

/// A number, also one that JSON cannot hold, as transformers writes it: `{"__float__": "Infinity"}`.
fn number(value: &Value) -> Option<f64> {
    value.as_f64().or_else(|| value.get("__float__")?.as_str()?.parse().ok())
}
