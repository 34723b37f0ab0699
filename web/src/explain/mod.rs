//! Where a shown number comes from: its equation with the terms filled in, computed again from them.

mod linear;
mod softmax;

use seqzoo::Result;
use seqzoo::registry::AnyMixer;
use seqzoo_layers::system::{MEMORY, Mixer, Terms, Transition};
use serde::{Deserialize, Serialize};

use crate::model::{Reading, none};
use crate::{Grid, LayerTrace};
use linear::Recurrence;

/// Which number is asked for, at `[head, row, column]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// What token `row` reads of token `column`.
    Attention,
    /// Entry `[row, column]` of the memory of a head after a token.
    State,
    /// The first gate at token `row`, channel `column`.
    Decay,
    /// Eigenvalue `column` at token `row`.
    Spectrum,
}

/// A number and what it is made of.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Explanation {
    /// What the page shows.
    pub value: f64,
    /// The same, from the terms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recomputed: Option<f64>,
    /// In symbols.
    pub equation: String,
    /// With numbers.
    pub filled: String,
    /// What went in.
    pub terms: Vec<Term>,
    /// Why there is no closed form, or what else to know.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// One term of an equation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Term {
    /// As in the equation.
    pub symbol: String,
    /// In words.
    pub meaning: String,
    /// Its value.
    pub value: TermValue,
}

/// A number or a vector.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum TermValue {
    /// A number.
    Number(f64),
    /// A vector.
    Vector(Vec<f64>),
}

impl Explanation {
    /// An equation without a closed form.
    fn open(value: f64, equation: &str, note: &str) -> Self {
        Self {
            value,
            recomputed: None,
            equation: equation.into(),
            filled: number(value),
            terms: Vec::new(),
            note: Some(note.into()),
        }
    }

    /// An equation whose right side gives `recomputed`.
    fn closed(value: f64, recomputed: f64, equation: &str, right: &str, terms: Vec<Term>) -> Self {
        Self {
            value,
            recomputed: Some(recomputed),
            equation: equation.into(),
            filled: format!("{} = {right}", number(recomputed)),
            terms,
            note: None,
        }
    }
}

impl Term {
    fn number(symbol: &str, meaning: &str, value: f64) -> Self {
        Self { symbol: symbol.into(), meaning: meaning.into(), value: TermValue::Number(value) }
    }

    fn vector(symbol: &str, meaning: &str, value: &[f64]) -> Self {
        Self { symbol: symbol.into(), meaning: meaning.into(), value: TermValue::Vector(value.to_vec()) }
    }
}

/// What can be asked about a layer.
pub(crate) fn kinds(layer: &LayerTrace, terms: Option<&Terms>) -> Vec<Kind> {
    let mut kinds = Vec::new();
    if !layer.attention.is_empty() {
        kinds.push(Kind::Attention);
    }
    if matches!(terms, Some(Terms::Linear(_))) {
        kinds.push(Kind::State);
    }
    if !layer.gates.is_empty() {
        kinds.push(Kind::Decay);
    }
    if !layer.spectrum.is_empty() {
        kinds.push(Kind::Spectrum);
    }
    kinds
}

/// The number at `[head, row, column]` of what was read.
pub(crate) fn explain(
    mixer: &AnyMixer,
    reading: &Reading,
    layer: usize,
    kind: Kind,
    at: [usize; 3],
    token: Option<usize>,
) -> Result<Explanation> {
    let [head, row, column] = at;
    let (shown, x) = (&reading.layers[layer], reading.inputs[layer].clone());
    let terms = mixer.terms(x, mixer.initial_state(1))?;
    let linear = match &terms {
        Some(Terms::Linear(system)) => Some(Recurrence::read(system)?),
        _ => None,
    };
    match kind {
        Kind::Attention => {
            let grid = shown.attention.get(head).ok_or_else(|| none("head", head, shown.attention.len()))?;
            let value = at_grid(grid, row, column)?;
            if column > row {
                let note = "A token reads only itself and what came before.";
                return Ok(Explanation::open(value, "M_ij = 0 for j > i", note));
            }
            match (&terms, linear) {
                (Some(Terms::Softmax { q, k, scale }), _) => {
                    softmax::weight(q, k, *scale, value, [head, row, column])
                }
                (_, Some(recurrence)) => Ok(recurrence.attention(grid, value, [head, row, column])),
                _ => Ok(Explanation::open(
                    value,
                    "M_ij as the layer's own view computes it",
                    "This layer's update is not linear in its state, or divides it by more than one number per \
                     token, so that no single product gives this entry.",
                )),
            }
        }
        Kind::State => {
            let token = token.unwrap_or(reading.states.len() - 2);
            let after = reading.states.get(token + 1);
            let after = after.ok_or_else(|| none("token", token, reading.states.len() - 1))?;
            let Some(recurrence) = linear else {
                return Err(seqzoo::Error::Data(
                    "this layer's state is not updated by a linear equation".into(),
                ));
            };
            let memory = |state: &seqzoo::model::ModelState| -> Result<(Vec<f64>, [usize; 4])> {
                let memory = state.layers[layer].get::<4>(MEMORY)?;
                Ok((seqzoo_layers::Value::from(memory.clone()).to_f64()?, memory.dims()))
            };
            let ((new, dims), (old, _)) = (memory(after)?, memory(&reading.states[token])?);
            let [_, heads, n, p] = dims;
            for (what, given, there_are) in [("head", head, heads), ("row", row, n), ("column", column, p)] {
                if given >= there_are {
                    return Err(none(what, given, there_are));
                }
            }
            let size = n * p;
            let head_of = |all: &[f64]| all[head * size..(head + 1) * size].to_vec();
            Ok(recurrence.state(&head_of(&old), &head_of(&new), p, [head, row, column], token))
        }
        Kind::Decay => {
            let gate = shown.gates.first().ok_or_else(|| none("gate", 0, 0))?;
            let value = at_grid(&gate.grid, row, column)?;
            match linear.filter(|_| gate.name.starts_with('Λ')) {
                Some(recurrence) => Ok(recurrence.decay(value, row, column)),
                None => Ok(Explanation::open(
                    value,
                    &gate.name,
                    "A gate: its own map of the token, computed before the memory is touched.",
                )),
            }
        }
        Kind::Spectrum => {
            let grids = &shown.spectrum;
            let grid = grids.get(head).ok_or_else(|| none("head", head, grids.len()))?;
            let value = at_grid(&grid.re, row, column)?;
            let complex = grid.im.is_some();
            let closed = linear.filter(|_| !complex).and_then(|r| r.eigenvalue(value, [head, row, column]));
            Ok(closed.unwrap_or_else(|| {
                let (equation, note) = match (&terms, complex) {
                    (Some(Terms::Softmax { .. }), _) => (
                        "λ_t = Z_{t-1} / Z_t",
                        "Softmax seen as a system: the ratio of the normalisers before and after the token.",
                    ),
                    (Some(Terms::Linear(system)), _)
                        if matches!(system.transition, Transition::Dense { .. }) =>
                    {
                        ("det(Λ_t - λ I) = 0", "Found numerically from the whole transition matrix.")
                    }
                    (Some(Terms::Linear(_)), true) => (
                        "det(Λ_t - λ I) = 0",
                        "The real part of an eigenvalue that was found numerically, or of a rotation.",
                    ),
                    _ => (
                        "λ of ∂h_t/∂h_{t-1} with the gates held fixed",
                        "The update is not linear; these are the eigenvalues along this text.",
                    ),
                };
                Explanation::open(value, equation, note)
            }))
        }
    }
}

fn at_grid(grid: &Grid, row: usize, column: usize) -> Result<f64> {
    let value = grid.at(row, column).map(f64::from);
    value.ok_or_else(|| {
        seqzoo::Error::Data(format!("no entry [{row}, {column}] in {} × {}", grid.rows, grid.columns))
    })
}

/// Four significant digits.
fn number(x: f64) -> String {
    match x.abs() {
        0.0 => "0".into(),
        a if (1e-3..1e4).contains(&a) => {
            let digits = (3 - a.log10().floor() as i32).clamp(0, 6) as usize;
            format!("{x:.digits$}")
        }
        _ => format!("{x:.3e}"),
    }
}

/// The first numbers of a vector.
fn list(x: &[f64]) -> String {
    let shown: Vec<String> = x.iter().take(3).map(|&v| number(v)).collect();
    format!("[{}{}]", shown.join(", "), if x.len() > 3 { ", …" } else { "" })
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
