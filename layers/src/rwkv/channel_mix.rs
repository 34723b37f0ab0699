//! RWKV's channel mix: an MLP that also sees the token before.
//!
//! ```text
//! x'_t = x_{t-1},   x_* = x ∘ μ_* + x' ∘ (1 - μ_*)
//! y = sigmoid(W_r x_r) ∘ W_v relu(W_k x_k)²        (without the receptance: RWKV-7)
//! ```

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::shift::{by_channel, no_token, token_shift};
use crate::error::require;
use crate::nn::{Activation, Linear, gated, lerp, squared_relu};
use crate::system::Lengths;
use crate::{Init, Result};

const NAME: &str = "channel_mix";

/// Sizes of [`ChannelMix`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChannelMixConfig {
    /// Inner width.
    pub hidden: usize,
    /// Whether the output passes a gate.
    pub receptance: bool,
}

impl ChannelMixConfig {
    /// Checks the values and draws the parameters for width `d_model`.
    ///
    /// # Errors
    /// For zero sizes.
    pub fn init(self, d_model: usize, init: &mut Init) -> Result<ChannelMix> {
        require(d_model > 0, NAME, "d_model", d_model, "must be positive")?;
        require(self.hidden > 0, NAME, "hidden", self.hidden, "must be positive")?;
        let mix = |init: &Init| by_channel(d_model, init, |c| c as f64 / d_model as f64);
        Ok(ChannelMix {
            mix_k: mix(init),
            mix_r: self.receptance.then(|| mix(init)),
            key: init.linear(d_model, self.hidden),
            value: init.linear(self.hidden, d_model),
            receptance: self.receptance.then(|| init.linear(d_model, d_model)),
        })
    }
}

/// See the module's equations. Built by [`ChannelMixConfig::init`].
#[derive(Module, Debug)]
pub struct ChannelMix {
    /// `μ_k: [d]`
    pub mix_k: Param<Tensor<1>>,
    /// `μ_r: [d]`
    pub mix_r: Option<Param<Tensor<1>>>,
    /// `W_k: [d, hidden]`
    pub key: Linear,
    /// `W_v: [hidden, d]`
    pub value: Linear,
    /// `W_r: [d, d]`
    pub receptance: Option<Linear>,
}

impl ChannelMix {
    /// The last token before any token: zeros, `[b, 1, d]`.
    pub fn initial_state(&self, batch: usize) -> Tensor<3> {
        let mix = self.mix_k.val();
        no_token(batch, mix.dims()[0], &mix)
    }

    /// Reads `x: [b, t, d]` after the token `last: [b, 1, d]`; gives `y: [b, t, d]` and the new last token. With
    /// `lengths`, the one before the padding.
    ///
    /// # Errors
    /// When `last` has another shape.
    pub fn forward(
        &self,
        x: Tensor<3>,
        last: Tensor<3>,
        lengths: Option<&Lengths>,
    ) -> Result<(Tensor<3>, Tensor<3>)> {
        let (before, last) = token_shift(x.clone(), last, lengths)?;
        let key = self.key.forward(lerp(before.clone(), x.clone(), self.mix_k.val()));
        let y = self.value.forward(squared_relu(key));
        let y = match (&self.mix_r, &self.receptance) {
            (Some(mix), Some(map)) => gated(y, map.forward(lerp(before, x, mix.val())), Activation::Sigmoid),
            _ => y,
        };
        Ok((y, last))
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::testing::{Draw, gap};

    #[test]
    fn it_can_be_cut_anywhere_and_padding_changes_nothing() {
        for receptance in [true, false] {
            let config = ChannelMixConfig { hidden: 12, receptance };
            let layer = config.init(4, &mut Init::new(0, &Device::flex())).unwrap();
            let x = Draw::new(1).tensor([2, 5, 4], -1.0, 1.0);
            let (whole, end) = layer.forward(x.clone(), layer.initial_state(2), None).unwrap();
            let head = layer.forward(x.clone().narrow(1, 0, 2), layer.initial_state(2), None).unwrap();
            let tail = layer.forward(x.clone().narrow(1, 2, 3), head.1, None).unwrap();
            assert!(gap(Tensor::cat(vec![head.0, tail.0], 1), whole) < 1e-6);
            assert!(gap(tail.1, end.clone()) < 1e-6);
            let lengths = Lengths(vec![3, 5]);
            let (_, last) = layer.forward(x.clone(), layer.initial_state(2), Some(&lengths)).unwrap();
            let first = x.clone().narrow(0, 0, 1).narrow(1, 2, 1);
            assert!(gap(last, Tensor::cat(vec![first, end.narrow(0, 1, 1)], 0)) < 1e-6);
            assert!(layer.forward(x, layer.initial_state(1), None).is_err());
        }
        let none = ChannelMixConfig { hidden: 0, receptance: true };
        assert!(none.init(4, &mut Init::new(0, &Device::flex())).is_err());
    }
}
