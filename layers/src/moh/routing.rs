//! How MoH weighs heads; see [`super::Moh`] for the equations.

use burn::module::Module;
use burn::tensor::{Tensor, activation};
use serde::{Deserialize, Serialize};

use super::Moh;
use crate::error::require;
use crate::nn::Linear;
use crate::system::HeadMixer;
use crate::system::scan::tril_ones;
use crate::{Init, Result};

const NAME: &str = "moh";

/// What decides which routed heads a token uses.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum RouterKind {
    /// Linear maps of the token; gates are their softmax.
    Learned,
    /// No parameters: the norms of the token's queries; gates are 0 or 1 (continue-tuned LLaMA3).
    QueryNorm {
        /// Hand the gradient of each 0/1 gate to the probability behind it; otherwise gates have none.
        straight_through: bool,
    },
}

/// Size of learned gates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GateScale {
    /// Probabilities as they are (the paper's equations).
    Paper,
    /// Chosen probabilities sum to `top_k`, shared ones to `shared`, the two stages to 2, so that an even
    /// router gates every head by 1 (the released code and checkpoints).
    #[default]
    Unit,
}

/// Which heads a token uses and how they are weighed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RoutingConfig {
    /// The first `shared` heads serve every token.
    pub shared: usize,
    /// Routed heads a token uses, of all heads that are not shared.
    pub top_k: usize,
    /// What decides.
    pub router: RouterKind,
    /// Size of learned gates.
    pub scale: GateScale,
    /// Factor on the load-balance loss; 0 for none.
    pub balance: f64,
}

impl Default for RoutingConfig {
    /// Three quarters of eight heads.
    fn default() -> Self {
        Self { shared: 4, top_k: 2, router: RouterKind::Learned, scale: GateScale::Unit, balance: 0.01 }
    }
}

/// A token's use of heads.
#[derive(Clone, Debug)]
pub struct Routing {
    /// `g`: weight of each head, `[b, t, heads]`; 0 where it is left out.
    pub gates: Tensor<3>,
    /// `p_r`: probabilities of the routed heads before the choice, `[b, t, routed]`; `None` without routed heads.
    pub probabilities: Option<Tensor<3>>,
    /// 1 for chosen routed heads, 0 for others, `[b, t, routed]`; a constant for gradients.
    pub chosen: Option<Tensor<3>>,
}

impl RoutingConfig {
    /// Puts a router on the heads of `mixer`.
    ///
    /// # Errors
    /// When there are more shared heads than heads, or `top_k` does not fit the routed ones.
    pub fn wrap<M: HeadMixer + Module>(&self, mixer: M, init: &mut Init) -> Result<Moh<M>> {
        let (heads, d) = (mixer.heads(), mixer.d_model());
        let shared_fit = self.shared <= heads;
        require(shared_fit, NAME, "shared", self.shared, &format!("must not exceed the {heads} heads"))?;
        let routed = heads - self.shared;
        let expected = match routed {
            0 => "must be 0 where every head is shared".to_string(),
            _ => format!("must be 1 to {routed}, the heads that are not shared"),
        };
        let fits = self.top_k <= routed && (self.top_k > 0) == (routed > 0);
        require(fits, NAME, "top_k", self.top_k, &expected)?;
        let balance_ok = self.balance >= 0.0 && self.balance.is_finite();
        require(balance_ok, NAME, "balance", self.balance, "must be finite and not negative")?;
        let learned = self.router == RouterKind::Learned;
        let mut map = |wanted: bool, outputs: usize| (learned && wanted).then(|| init.linear(d, outputs));
        Ok(Moh {
            route_proj: map(routed > 0, routed),
            shared_proj: map(self.shared > 1, self.shared),
            stage_proj: map(self.shared > 0 && routed > 0, 2),
            mixer,
            routing: self.clone(),
        })
    }
}

/// Marks the `k` largest entries of the last axis by 1, others by 0; of equal ones the first. By counting the
/// entries that rank before each: sorting would read the numbers back to the host on some devices.
fn top_k(scores: Tensor<3>, k: usize) -> Tensor<3> {
    let ([b, t, size], dtype) = (scores.dims(), scores.dtype());
    let scores = scores.inner();
    let earlier = tril_ones(size, -1, &scores.device(), dtype).reshape([1, 1, size, size]);
    let own = scores.clone().unsqueeze_dim::<4>(3).expand([b, t, size, size]);
    let other = scores.unsqueeze_dim::<4>(2).expand([b, t, size, size]);
    let larger = other.clone().greater(own.clone()).float().cast(dtype);
    let equal = other.equal(own).float().cast(dtype) * earlier;
    let rank = (larger + equal).sum_dim(3).squeeze_dim::<3>(3);
    rank.lower_elem(k as f64 - 0.5).float().cast(dtype)
}

impl<M: HeadMixer + Module> Moh<M> {
    /// The weights that the router gives the heads for the tokens `x: [b, t, d]`.
    pub fn route(&self, x: Tensor<3>) -> Routing {
        match self.routing.router {
            RouterKind::Learned => self.route_learned(x),
            RouterKind::QueryNorm { straight_through } => self.route_by_norm(x, straight_through),
        }
    }

    fn route_learned(&self, x: Tensor<3>) -> Routing {
        let RoutingConfig { shared, top_k: k, scale, .. } = self.routing;
        let unit = scale == GateScale::Unit;
        let softmax = |map: &Linear| activation::softmax(map.forward(x.clone()), 2);
        let scaled = |p: Tensor<3>, size: usize| if unit { p.mul_scalar(size as f64) } else { p };

        let probabilities = self.route_proj.as_ref().map(softmax);
        let chosen = probabilities.clone().map(|p| top_k(p, k));
        let routed_gates = probabilities.clone().zip(chosen.clone()).map(|(p, chosen)| {
            let gates = p * chosen;
            if !unit {
                return gates;
            }
            let sum = gates.clone().sum_dim(2).clamp_min(f32::EPSILON);
            (gates / sum).mul_scalar(k as f64)
        });
        let shared_gates = (shared > 0).then(|| match &self.shared_proj {
            Some(map) => scaled(softmax(map), shared),
            // The softmax of a single head.
            None => Tensor::ones([x.dims()[0], x.dims()[1], 1], (&x.device().inner(), x.dtype())),
        });
        let stages = self.stage_proj.as_ref().map(|map| scaled(softmax(map), 2));
        let gates = match (shared_gates, routed_gates, stages) {
            (Some(shared), Some(routed), Some(stages)) => {
                let stage = |i| stages.clone().narrow(2, i, 1);
                Tensor::cat(vec![shared * stage(0), routed * stage(1)], 2)
            }
            (Some(gates), ..) | (None, Some(gates), _) => gates,
            (None, None, _) => x.ones_like().narrow(2, 0, 1), // no head is left out: a mixer has at least one
        };
        Routing { gates, probabilities, chosen }
    }

    fn route_by_norm(&self, x: Tensor<3>, straight_through: bool) -> Routing {
        let RoutingConfig { shared, top_k: k, .. } = self.routing;
        let norms = self.mixer.query_norms(x);
        let [b, t, heads] = norms.dims();
        let routed = heads - shared;
        if routed == 0 {
            let gates = norms.inner().ones_like();
            return Routing { gates, probabilities: None, chosen: None };
        }
        let norms = norms.narrow(2, shared, routed);
        // One head has no spread.
        let spread = (routed > 1).then(|| {
            let centred = norms.clone() - norms.clone().mean_dim(2);
            let variance = centred.square().sum_dim(2).div_scalar((routed - 1) as f64);
            variance.clamp_min(1e-12).sqrt()
        });
        let probabilities = match spread {
            Some(spread) => activation::softmax(norms / spread, 2),
            None => activation::softmax(norms, 2),
        };
        let chosen = top_k(probabilities.clone(), k);
        let mut gates = chosen.clone();
        if straight_through {
            // The value of `chosen`, the gradient of the probabilities.
            gates = probabilities.clone() + (chosen.clone() - probabilities.clone().inner());
        }
        if shared > 0 {
            let ones = Tensor::ones([b, t, shared], (&gates.device(), gates.dtype()));
            gates = Tensor::cat(vec![ones, gates], 2);
        }
        Routing { gates, probabilities: Some(probabilities), chosen: Some(chosen) }
    }

    /// `Σ_i P_i f_i` over routed heads (times their number in [`GateScale::Unit`]), `[1]`, where `P` is the mean
    /// probability and `f` the share of tokens that chose the head; smallest when all are used alike. `None`
    /// without routed heads.
    pub fn load_balance(&self, x: Tensor<3>) -> Option<Tensor<1>> {
        let routing = self.route(x);
        let (probabilities, chosen) = (routing.probabilities?, routing.chosen?);
        let [b, t, routed] = chosen.dims();
        let mean = |x: Tensor<3>| x.reshape([b * t, routed]).mean_dim(0);
        let loss = (mean(probabilities) * mean(chosen)).sum();
        Some(match self.routing.scale {
            GateScale::Paper => loss,
            GateScale::Unit => loss.mul_scalar(routed as f64),
        })
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::testing::numbers;

    #[test]
    fn exactly_k_are_chosen_even_among_equals() {
        let device = Device::flex();
        let scores = [[[0.1f32, 0.4, 0.4, 0.1], [0.25, 0.25, 0.25, 0.25], [0.0, 0.1, 0.2, 0.7]]];
        let scores = Tensor::<3>::from_data(scores, &device);
        let expected = [[0., 1., 1., 0.], [1., 1., 0., 0.], [0., 0., 1., 1.]];
        assert_eq!(numbers(top_k(scores.clone(), 2)), expected.concat());
        assert_eq!(numbers(top_k(scores, 3).sum_dim(2)), [3.0; 3]);
    }
}
