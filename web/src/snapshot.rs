//! Views as plain numbers.

use burn::tensor::Tensor;
use seqzoo_layers::system::{SpectrumKind, Views};
use seqzoo_layers::{Result, Value};
use serde::Serialize;

/// A matrix, row-major.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Grid {
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub columns: usize,
    /// `rows × columns` numbers.
    pub values: Vec<f32>,
}

/// A named matrix whose rows are tokens.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NamedRows {
    /// The paper's symbol and meaning.
    pub name: String,
    /// `[tokens, channels]`
    pub grid: Grid,
}

/// Everything a page can draw of one layer on one text; what an architecture lacks is left out.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Snapshot {
    /// The architecture's name in the registry.
    pub arch: &'static str,
    /// The tokens, as text.
    pub tokens: Vec<String>,
    /// Trainable numbers of the layer.
    pub params: usize,
    /// Bytes of the state after the text.
    pub state_bytes: usize,
    /// Implied attention `[tokens, tokens]` of each head: row `i` is what token `i` reads.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub attention: Vec<Grid>,
    /// Moduli of the transition's eigenvalues `[tokens, eigenvalues]`, of each head.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub spectrum: Vec<Grid>,
    /// What the eigenvalues belong to: `exact`, `frozen` or `normaliser`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spectrum_kind: Option<&'static str>,
    /// Tokens after which half is forgotten, `[heads, eigenvalues]`; 1e9 stands for never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub half_life: Option<Grid>,
    /// Gates and decays.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gates: Vec<NamedRows>,
    /// Weight of each head `[tokens, heads]`; 0 where a router left it out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub router: Option<Grid>,
    /// Loss of the inner memory on each token before it is written, `[heads, tokens]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_loss: Option<Grid>,
    /// Norm of the memory after each token, `[heads, tokens]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_norm: Option<Grid>,
}

impl Snapshot {
    /// Fills in the views; the batch must be one sequence.
    pub(crate) fn with_views(mut self, views: Views) -> Result<Self> {
        self.half_life = views.half_life().map(grid).transpose()?;
        if let Some(attention) = views.attention {
            self.attention = heads(attention)?;
        }
        if let Some(spectrum) = views.spectrum {
            self.spectrum_kind = Some(match spectrum.kind {
                SpectrumKind::Exact => "exact",
                SpectrumKind::Frozen => "frozen",
                SpectrumKind::Normaliser => "normaliser",
            });
            self.spectrum = heads(spectrum.modulus())?;
        }
        for gate in views.gates {
            self.gates.push(NamedRows { name: gate.name, grid: grid(gate.values)? });
        }
        self.router = views.router.map(grid).transpose()?;
        self.memory_loss = views.memory_loss.map(grid).transpose()?;
        self.memory_norm = views.memory_norm.map(grid).transpose()?;
        Ok(self)
    }
}

/// `[1, rows, columns]`
fn grid(tensor: Tensor<3>) -> Result<Grid> {
    let [_, rows, columns] = tensor.dims();
    let values = Value::from(tensor).to_f64()?;
    Ok(Grid { rows, columns, values: values.iter().map(|&v| v as f32).collect() })
}

/// `[1, heads, rows, columns]`, one grid per head.
fn heads(tensor: Tensor<4>) -> Result<Vec<Grid>> {
    let [_, heads, rows, columns] = tensor.dims();
    let all = grid(tensor.reshape([1, heads * rows, columns]))?;
    let size = rows * columns;
    Ok((0..heads)
        .map(|h| Grid { rows, columns, values: all.values[h * size..(h + 1) * size].to_vec() })
        .collect())
}
