//! One block: a mixer over time and an MLP over channels, each behind a norm and beside a residual.

use burn::module::Module;
use burn::tensor::Tensor;
use seqzoo_layers::nn::{CausalConv, Norm};
use seqzoo_layers::system::{Form, Mask, Mixer, State};
use serde::{Deserialize, Serialize};

use super::mlp::Mlp;
use crate::Result;
use crate::registry::AnyMixer;

/// How a block adds its parts to the stream `x`, with `n = norm(x)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Residual {
    /// `x + f(n)`
    #[default]
    PreNorm,
    /// `α n + β f(n)`: the normalised stream is the residual (MiniMax-Text-01).
    Normalized {
        /// α around the mixer.
        mixer_alpha: f64,
        /// β of the mixer.
        mixer_beta: f64,
        /// α around the MLP.
        mlp_alpha: f64,
        /// β of the MLP.
        mlp_beta: f64,
    },
}

/// One block; without an MLP it is a Mamba-style block.
#[derive(Module, Debug)]
pub struct Block {
    /// Before the mixer
    pub norm: Norm,
    /// On the mixer's input
    pub conv: Option<CausalConv>,
    /// Over time
    pub mixer: AnyMixer,
    /// Before the MLP
    pub mlp_norm: Option<Norm>,
    /// Over channels
    pub mlp: Option<Mlp>,
    #[module(skip)]
    pub(super) residual: Residual,
}

/// Slot of the convolution's last inputs, beside the mixer's own.
const CONV: &str = "block_conv";

impl Block {
    /// The state before any token: the mixer's, and what the convolution and the MLP look back at.
    pub fn initial_state(&self, batch: usize) -> State {
        let state = self.mixer.initial_state(batch);
        let state = match &self.conv {
            Some(conv) => state.with(CONV, conv.initial_state(batch)),
            None => state,
        };
        match &self.mlp {
            Some(mlp) => mlp.initial_state(state),
            None => state,
        }
    }

    /// What the mixer reads when the block reads `x: [b, t, d]` from `state`.
    pub fn mixer_input(&self, x: Tensor<3>, state: &State) -> Result<Tensor<3>> {
        Ok(self.convolve(self.norm.forward(x), state, None)?.0)
    }

    /// The mixer's input: `n + conv(n)`, or `n`. Also the convolution's new tail.
    fn convolve(
        &self,
        n: Tensor<3>,
        state: &State,
        mask: Option<&Mask>,
    ) -> Result<(Tensor<3>, Option<Tensor<3>>)> {
        let Some(conv) = &self.conv else { return Ok((n, None)) };
        let tail = state.get(CONV)?;
        let (y, tail) = match mask {
            Some(mask) => {
                let (y, tail) = conv.forward(mask.compact(n.clone()), tail, Some(&mask.lengths()));
                (mask.spread(y), tail)
            }
            None => conv.forward(n.clone(), tail, None),
        };
        Ok((n + y, Some(tail)))
    }

    /// `x: [b, t, d]` through both parts. With `auxiliary`, also the loss the mixer asks for.
    pub fn forward(
        &self,
        x: Tensor<3>,
        state: State,
        form: Form,
        mask: Option<&Mask>,
        auxiliary: bool,
    ) -> Result<(Tensor<3>, State, Option<Tensor<1>>)> {
        let n = self.norm.forward(x.clone());
        let (u, tail) = self.convolve(n.clone(), &state, mask)?;
        let loss = if auxiliary { self.mixer.auxiliary_loss(u.clone())? } else { None };
        let (y, mut state) = match mask {
            Some(mask) => self.mixer.forward_masked(u, state, form, mask)?,
            None => self.mixer.forward(u, state, form)?,
        };
        if let Some(tail) = tail {
            state.put(CONV, tail);
        }
        let mut x = match self.residual {
            Residual::PreNorm => x + y,
            Residual::Normalized { mixer_alpha: a, mixer_beta: b, .. } => n * a + y * b,
        };
        if let (Some(norm), Some(mlp)) = (&self.mlp_norm, &self.mlp) {
            let n = norm.forward(x.clone());
            let y = mlp.forward(n.clone(), &mut state, mask)?;
            x = match self.residual {
                Residual::PreNorm => x + y,
                Residual::Normalized { mlp_alpha: a, mlp_beta: b, .. } => n * a + y * b,
            };
        }
        Ok((x, state, loss))
    }

    /// Floating-point operations of the MLP per token.
    pub(super) fn mlp_flops(&self) -> usize {
        match &self.mlp {
            None => 0,
            Some(Mlp::Dense(mlp)) => 2 * mlp.num_params(),
            Some(Mlp::ChannelMix(mlp)) => 2 * mlp.num_params(),
            Some(Mlp::Moe(mlp)) => {
                let shared = mlp.shared.as_ref().map_or(0, |shared| 2 * shared.num_params());
                mlp.flops() + shared
            }
        }
    }
}
