//! Mixture-of-Head attention (Jin et al., arXiv 2410.11842) over the heads `H_i` of any mixer.
//!
//! ```text
//! y_t = Σ_i g_i(x_t) H_i(t) W_O^i                        (Eq. 4: the rows of W_O that belong to head i)
//! p_r = softmax(W_r x),  p_s = softmax(W_s x),  [a_1, a_2] = softmax(W_h x)
//! g_i = a_1 p_s[i]                                       for the shared heads, the first ones
//! g_i = a_2 p_r[i] if p_r[i] is among the k largest, else 0      for the others, the routed ones (Eq. 5, 6)
//! L_b = Σ_i P_i f_i,   P_i = mean_t p_r[t, i],   f_i = share of tokens that chose i          (Eq. 7)
//! ```
//!
//! Or without parameters (Sec. 4.4): `p_r = softmax(‖q_i‖ / std_j ‖q_j‖)`, gates 1 for shared and chosen heads.
//! Which heads are chosen is a constant for gradients. Every head's state reads every token, chosen or not:
//! later tokens may choose it.
//!
//! | symbol | shape |
//! | --- | --- |
//! | H | `[b, t, h, p]` |
//! | g | `[b, t, h]` |
//! | p_r, p_s | `[b, t, h - shared]`, `[b, t, shared]` |

use burn::module::Module;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::RoutingConfig;
use crate::attention::{Attention, AttentionConfig};
use crate::nn::Linear;
use crate::system::{Cost, Form, HeadMixer, Mixer, Run, State, Terms, Views};
use crate::{Init, Result};

/// MoH over softmax attention. For other mixers see [`RoutingConfig::wrap`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MohConfig {
    /// The heads.
    pub attention: AttentionConfig,
    /// How they are weighed.
    pub routing: RoutingConfig,
}

impl Default for MohConfig {
    fn default() -> Self {
        let attention = AttentionConfig { heads: 8, ..Default::default() };
        Self { attention, routing: RoutingConfig::default() }
    }
}

impl MohConfig {
    /// Checks the values and draws the parameters for width `d_model`.
    ///
    /// # Errors
    /// For an impossible attention, or a number of shared or chosen heads that does not fit.
    pub fn init(&self, d_model: usize, init: &mut Init) -> Result<Moh<Attention>> {
        let attention = self.attention.init(d_model, init)?;
        self.routing.wrap(attention, init)
    }
}

/// A router on the heads of a mixer; see the module's equations. Built by [`MohConfig::init`] or
/// [`RoutingConfig::wrap`].
#[derive(Module, Debug)]
pub struct Moh<M: HeadMixer + Module> {
    /// The heads
    pub mixer: M,
    /// `W_r: [d, h - shared]`
    pub route_proj: Option<Linear>,
    /// `W_s: [d, shared]`; a single shared head needs none
    pub shared_proj: Option<Linear>,
    /// `W_h: [d, 2]`
    pub stage_proj: Option<Linear>,
    #[module(skip)]
    pub(super) routing: RoutingConfig,
}

impl<M: HeadMixer + Module> Mixer for Moh<M> {
    fn d_model(&self) -> usize {
        self.mixer.d_model()
    }

    fn initial_state(&self, batch: usize) -> State {
        self.mixer.initial_state(batch)
    }

    fn run(&self, x: Tensor<3>, state: State, run: Run<'_>) -> Result<(Tensor<3>, State)> {
        let gates = self.route(x.clone()).gates.unsqueeze_dim::<4>(3);
        let (y, state) = self.mixer.run_heads(x, state, run)?;
        Ok((self.mixer.merge_heads(y * gates), state))
    }

    /// The heads' own views and the router's gates.
    fn views(&self, x: Tensor<3>, state: State) -> Result<Views> {
        let views = self.mixer.views(x.clone(), state)?;
        Ok(Views { router: Some(self.route(x).gates), ..views })
    }

    fn terms(&self, x: Tensor<3>, state: State) -> Result<Option<Terms>> {
        self.mixer.terms(x, state)
    }

    /// All heads are computed and then weighed, so nothing is saved by leaving heads out.
    fn cost(&self, batch: usize, time: usize, form: Form) -> Cost {
        let mut cost = self.mixer.cost(batch, time, form);
        let routers = [&self.route_proj, &self.shared_proj, &self.stage_proj];
        let params: usize = routers.into_iter().flatten().map(Linear::num_params).sum();
        cost.params += params;
        cost.bytes += 4.0 * params as f64;
        cost.flops += 2.0 * params as f64 * (batch * time) as f64;
        cost
    }

    fn auxiliary_loss(&self, x: Tensor<3>) -> Result<Option<Tensor<1>>> {
        let weight = self.routing.balance;
        Ok(if weight == 0.0 { None } else { self.load_balance(x).map(|loss| loss.mul_scalar(weight)) })
    }
}

#[cfg(test)]
#[path = "mixture_tests.rs"]
mod tests;
