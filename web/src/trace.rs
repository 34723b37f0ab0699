//! Everything a page draws of a model that reads a text.

use seqzoo::model::ModelState;
use seqzoo_layers::Result;
use seqzoo_layers::system::{Growth, SpectrumKind, State, Views};
use serde::Serialize;

use crate::explain::Kind;
use crate::numbers::floats;
use crate::{Doubles, Floats, Grid};

/// One tensor of a state, without the batch axis.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StateSlot {
    /// The slot's name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its numbers, row-major.
    pub values: Floats,
    /// `fixed`, `time` or `doubling`.
    pub growth: &'static str,
}

/// A named matrix whose rows are tokens.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NamedGrid {
    /// The paper's symbol and meaning.
    pub name: String,
    /// `[tokens, channels]`
    pub grid: Grid,
}

/// Eigenvalues of one head, `[tokens, eigenvalues]`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SpectrumGrid {
    /// Real parts.
    pub re: Grid,
    /// Imaginary parts, where there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub im: Option<Grid>,
}

/// Everything that can be looked at of one layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LayerTrace {
    /// The architecture's name.
    pub arch: &'static str,
    /// Implied attention `[tokens, tokens]` of each head.
    pub attention: Vec<Grid>,
    /// Eigenvalues of the transition, of each head.
    pub spectrum: Vec<SpectrumGrid>,
    /// `exact`, `frozen` or `normaliser`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spectrum_kind: Option<&'static str>,
    /// Tokens after which half is forgotten, `[heads, eigenvalues]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub half_life: Option<Grid>,
    /// Gates and decays.
    pub gates: Vec<NamedGrid>,
    /// Weight of each head `[tokens, heads]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub router: Option<Grid>,
    /// Loss of the inner memory on each token, `[heads, tokens]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_loss: Option<Grid>,
    /// Norm of the memory after each token, `[heads, tokens]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_norm: Option<Grid>,
    /// Bytes of the state after each token.
    pub state_bytes: Doubles,
    /// What can be asked of `explain`.
    pub explains: Vec<Kind>,
    /// Why a view is absent.
    pub notes: Vec<String>,
}

/// A possible next token.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Prediction {
    /// Its id.
    pub token: usize,
    /// Its text.
    pub text: String,
    /// Its probability.
    pub probability: f64,
}

/// A text as a model read it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Trace {
    /// The tokens, as text.
    pub tokens: Vec<String>,
    /// The tokens, as ids.
    pub ids: Vec<i64>,
    /// The layers, from first to last.
    pub layers: Vec<LayerTrace>,
    /// The likeliest next tokens after each token.
    pub predictions: Vec<Vec<Prediction>>,
}

impl LayerTrace {
    /// From a layer's views and its states after each token.
    pub(crate) fn new(arch: &'static str, views: Views, states: &[ModelState], layer: usize) -> Result<Self> {
        let half_life = views.half_life().map(Grid::of).transpose()?;
        let mut notes = Vec::new();
        if views.attention.is_none() {
            notes.push("What a token reads of the past goes through nonlinear steps: no attention matrix is implied.".into());
        }
        if views.spectrum.is_none() {
            notes.push(
                "The update is no matrix acting on the state: there are no eigenvalues to draw.".into(),
            );
        }
        let (mut spectrum, mut spectrum_kind) = (Vec::new(), None);
        if let Some(all) = views.spectrum {
            spectrum_kind = Some(match all.kind {
                SpectrumKind::Exact => "exact",
                SpectrumKind::Frozen => "frozen",
                SpectrumKind::Normaliser => "normaliser",
            });
            let mut im = all.im.map(Grid::per_head).transpose()?.map(Vec::into_iter);
            let re = Grid::per_head(all.re)?.into_iter();
            spectrum = re.map(|re| SpectrumGrid { re, im: im.as_mut().and_then(Iterator::next) }).collect();
        }
        let gates = views.gates.into_iter().map(|gate| {
            let grid = Grid::of(gate.values)?;
            Ok(NamedGrid { name: gate.name, grid })
        });
        let bytes = |state: &ModelState| state.layers.get(layer).map_or(0, State::bytes) as f64;
        Ok(Self {
            arch,
            attention: views.attention.map(Grid::per_head).transpose()?.unwrap_or_default(),
            spectrum,
            spectrum_kind,
            half_life,
            gates: gates.collect::<Result<_>>()?,
            router: views.router.map(Grid::of).transpose()?,
            memory_loss: views.memory_loss.map(Grid::of).transpose()?,
            memory_norm: views.memory_norm.map(Grid::of).transpose()?,
            state_bytes: Doubles(states.iter().map(bytes).collect()),
            explains: Vec::new(),
            notes,
        })
    }
}

/// The tensors of a state of one row.
pub(crate) fn slots(state: &State) -> Result<Vec<StateSlot>> {
    state
        .slots()
        .map(|(name, value, growth)| {
            let growth = match growth {
                Growth::Fixed => "fixed",
                Growth::PerToken { .. } => "time",
                Growth::PerDoubling { .. } => "doubling",
            };
            Ok(StateSlot {
                name: name.into(),
                shape: value.dims().into_iter().skip(1).collect(),
                values: floats(value)?,
                growth,
            })
        })
        .collect()
}
