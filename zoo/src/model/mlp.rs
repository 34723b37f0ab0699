//! The part of a block that mixes channels: `W_down (act(W_gate x) ∘ W_up x)`, or without the gate
//! `W_down act(W_up x)` (GLU variants, arXiv 2002.05202).

use burn::module::Module;
use burn::tensor::Tensor;
use seqzoo_layers::nn::{Activation, Linear};
use seqzoo_layers::rwkv::{ChannelMix, ChannelMixConfig};
use seqzoo_layers::system::{Mask, State};
use seqzoo_layers::{Error, Init};
use serde::{Deserialize, Serialize};

use super::moe::{Moe, SharedExpert};
use crate::Result;

/// Which MLP a block has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum MlpConfig {
    /// [`DenseMlp`]
    Dense {
        /// Inner width.
        hidden: usize,
        /// Applied to the gate, or to the inner layer where there is no gate.
        #[serde(default)]
        activation: Activation,
        /// Multiply the inner layer by an activated gate.
        #[serde(default = "yes")]
        gated: bool,
        /// Bias of all maps.
        #[serde(default)]
        bias: bool,
    },
    /// [`Moe`]
    Moe {
        /// Number of routed experts.
        experts: usize,
        /// Experts per token.
        top_k: usize,
        /// Inner width of an expert.
        hidden: usize,
        /// Applied to an expert's gate.
        #[serde(default)]
        activation: Activation,
        /// Let the weights of the chosen experts sum to 1.
        #[serde(default = "yes")]
        norm_topk: bool,
        /// An expert that reads every token.
        #[serde(default)]
        shared: Option<SharedExpert>,
    },
    /// [`ChannelMix`] of RWKV, which also reads the token before.
    ChannelMix {
        /// Inner width.
        hidden: usize,
        /// Multiply the output by a gate.
        #[serde(default = "yes")]
        receptance: bool,
    },
}

fn yes() -> bool {
    true
}

impl MlpConfig {
    /// SwiGLU without biases.
    pub fn swiglu(hidden: usize) -> Self {
        Self::Dense { hidden, activation: Activation::Silu, gated: true, bias: false }
    }

    /// SGLU, a gated MLP without an activation (TransNormerLLM, arXiv 2307.14995): `W_down (W_gate x ∘ W_up x)`.
    pub fn sglu(hidden: usize) -> Self {
        Self::Dense { hidden, activation: Activation::Identity, gated: true, bias: false }
    }

    /// Checks the values.
    ///
    /// # Errors
    /// For zero widths, and for more chosen experts than there are.
    pub fn validate(&self) -> Result<()> {
        let positive = |field, value: usize| match value {
            0 => Err(Error::config("mlp", field, value, "must be positive")),
            _ => Ok(()),
        };
        match self {
            Self::Dense { hidden, .. } | Self::ChannelMix { hidden, .. } => positive("hidden", *hidden)?,
            Self::Moe { experts, top_k, hidden, shared, .. } => {
                positive("hidden", *hidden)?;
                positive("experts", *experts)?;
                positive("top_k", *top_k)?;
                if let Some(shared) = shared {
                    positive("shared.hidden", shared.hidden)?;
                }
                if top_k > experts {
                    let expected = format!("must be at most `experts` = {experts}");
                    return Err(Error::config("mlp", "top_k", top_k, expected).into());
                }
            }
        }
        Ok(())
    }

    /// Draws the parameters for width `d_model`.
    pub fn init(&self, d_model: usize, init: &mut Init) -> Result<Mlp> {
        self.validate()?;
        Ok(match *self {
            Self::Dense { hidden, activation, gated, bias } => {
                Mlp::Dense(DenseMlp::new(d_model, hidden, activation, gated, bias, init))
            }
            Self::Moe { experts, top_k, hidden, activation, norm_topk, shared } => {
                let shared = shared.map(|s| {
                    let expert = DenseMlp::new(d_model, s.hidden, activation, true, false, init);
                    (expert, s.gated.then(|| init.linear(d_model, 1)))
                });
                Mlp::Moe(Moe::new(d_model, experts, top_k, hidden, activation, norm_topk, shared, init))
            }
            Self::ChannelMix { hidden, receptance } => {
                Mlp::ChannelMix(ChannelMixConfig { hidden, receptance }.init(d_model, init)?)
            }
        })
    }
}

/// `W_down (act(W_gate x) ∘ W_up x)`
#[derive(Module, Debug)]
pub struct DenseMlp {
    /// `[d, hidden]`
    pub gate: Option<Linear>,
    /// `[d, hidden]`
    pub up: Linear,
    /// `[hidden, d]`
    pub down: Linear,
    #[module(skip)]
    activation: Activation,
}

impl DenseMlp {
    fn new(
        d_model: usize,
        hidden: usize,
        activation: Activation,
        gated: bool,
        bias: bool,
        init: &mut Init,
    ) -> Self {
        let mut map = |d_in: usize, d_out| init.linear_std(d_in, d_out, (1.0 / d_in as f64).sqrt(), bias);
        Self {
            gate: gated.then(|| map(d_model, hidden)),
            up: map(d_model, hidden),
            down: map(hidden, d_model),
            activation,
        }
    }

    /// `x: [.., d] -> [.., d]`
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let up = self.up.forward(x.clone());
        self.down.forward(match &self.gate {
            Some(gate) => self.activation.apply(gate.forward(x)) * up,
            None => self.activation.apply(up),
        })
    }
}

/// Any MLP.
#[derive(Module, Debug)]
pub enum Mlp {
    /// One for all tokens.
    Dense(DenseMlp),
    /// A few of many, chosen per token.
    Moe(Moe),
    /// One that also reads the token before.
    ChannelMix(ChannelMix),
}

/// Slot of the last token a channel mix has read, beside the mixer's own.
const SHIFT: &str = "mlp_shift";

impl Mlp {
    /// Adds what it carries from call to call to a fresh state.
    pub(super) fn initial_state(&self, state: State) -> State {
        match self {
            Mlp::Dense(_) | Mlp::Moe(_) => state,
            Mlp::ChannelMix(mlp) => {
                let last = mlp.initial_state(state.batch());
                state.with(SHIFT, last)
            }
        }
    }

    /// `x: [b, t, d] -> [b, t, d]`; moves on what it has in the state.
    ///
    /// # Errors
    /// When the state belongs to another block.
    pub fn forward(&self, x: Tensor<3>, state: &mut State, mask: Option<&Mask>) -> Result<Tensor<3>> {
        Ok(match self {
            Mlp::Dense(mlp) => mlp.forward(x),
            Mlp::Moe(mlp) => mlp.forward(x),
            Mlp::ChannelMix(mlp) => {
                let last = state.get(SHIFT)?;
                let (y, last) = match mask {
                    Some(mask) => {
                        let (y, last) = mlp.forward(mask.compact(x), last, Some(&mask.lengths()))?;
                        (mask.spread(y), last)
                    }
                    None => mlp.forward(x, last, None)?,
                };
                state.put(SHIFT, last);
                y
            }
        })
    }
}
