//! Mixture of experts (Mixtral, arXiv 2401.04088; with a gated shared expert as in Qwen3-Next).
//!
//! ```text
//! p = softmax(W_r x),   w_e = p_e for the top k experts, else 0        (optionally w / Σ w)
//! y = Σ_e w_e expert_e(x)  (+ sigmoid(w_s·x) shared(x))
//! ```
//!
//! Every expert reads every token and unchosen ones get weight 0: `experts / top_k` times the needed
//! arithmetic, in exchange for plain batched products that every backend differentiates.

use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor, activation};
use seqzoo_layers::Init;
use seqzoo_layers::nn::{Activation, Linear};
use serde::{Deserialize, Serialize};

use super::mlp::DenseMlp;

/// An expert that reads every token.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SharedExpert {
    /// Inner width.
    pub hidden: usize,
    /// Weigh it by the sigmoid of a linear map of the token.
    #[serde(default)]
    pub gated: bool,
}

/// See the module's equations.
#[derive(Module, Debug)]
pub struct Moe {
    /// `W_r: [d, experts]`
    pub router: Linear,
    /// `[experts, d, hidden]`
    pub gate: Param<Tensor<3>>,
    /// `[experts, d, hidden]`
    pub up: Param<Tensor<3>>,
    /// `[experts, hidden, d]`
    pub down: Param<Tensor<3>>,
    /// Reads every token
    pub shared: Option<DenseMlp>,
    /// `[d, 1]`
    pub shared_gate: Option<Linear>,
    #[module(skip)]
    activation: Activation,
    #[module(skip)]
    top_k: usize,
    #[module(skip)]
    norm_topk: bool,
}

impl Moe {
    #[allow(clippy::too_many_arguments, reason = "the fields of its configuration")]
    pub(super) fn new(
        d_model: usize,
        experts: usize,
        top_k: usize,
        hidden: usize,
        activation: Activation,
        norm_topk: bool,
        shared: Option<(DenseMlp, Option<Linear>)>,
        init: &mut Init,
    ) -> Self {
        let std = |d_in: usize| (1.0 / d_in as f64).sqrt();
        let (shared, shared_gate) = match shared {
            Some((expert, gate)) => (Some(expert), gate),
            None => (None, None),
        };
        Self {
            router: init.linear(d_model, experts),
            gate: init.normal([experts, d_model, hidden], std(d_model)),
            up: init.normal([experts, d_model, hidden], std(d_model)),
            down: init.normal([experts, hidden, d_model], std(hidden)),
            shared,
            shared_gate,
            activation,
            top_k,
            norm_topk,
        }
    }

    /// Weight of each expert for each token, `[tokens, experts]`, 0 where not chosen.
    fn weights(&self, x: Tensor<2>) -> Tensor<2> {
        let p = activation::softmax(self.router.forward(x), 1);
        let w = p.clone() * top_k_mask(p, self.top_k);
        if self.norm_topk { w.clone() / w.sum_dim(1) } else { w }
    }

    /// `x: [b, t, d] -> [b, t, d]`
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let [b, t, d] = x.dims();
        let x = x.reshape([b * t, d]);
        let weights = self.weights(x.clone()).swap_dims(0, 1).unsqueeze_dim::<3>(2); // [experts, tokens, 1]
        let every = x.clone().unsqueeze_dim::<3>(0).expand([weights.dims()[0], b * t, d]);
        let gate = self.activation.apply(every.clone().matmul(self.gate.val()));
        let inner = gate * every.matmul(self.up.val()) * weights;
        let mut y = inner.matmul(self.down.val()).sum_dim(0).squeeze_dim::<2>(0);
        if let Some(shared) = &self.shared {
            let mut extra = shared.forward(x.clone());
            if let Some(gate) = &self.shared_gate {
                extra = extra * activation::sigmoid(gate.forward(x));
            }
            y = y + extra;
        }
        y.reshape([b, t, d])
    }

    /// Floating-point operations per token.
    pub(super) fn flops(&self) -> usize {
        let [experts, d, hidden] = self.up.dims();
        2 * d * experts + 6 * d * hidden * experts
    }
}

/// 1 at the `k` largest entries of each row, 0 elsewhere; the first of equal ones wins. A constant.
fn top_k_mask(p: Tensor<2>, k: usize) -> Tensor<2> {
    let p = p.detach();
    let [_, n] = p.dims();
    let columns = Tensor::<1, Int>::arange(0..n as i64, &p.device().inner()).unsqueeze::<2>();
    let mut left = p.clone();
    let mut mask = p.zeros_like();
    for _ in 0..k {
        let hit = left.clone().argmax(1).equal(columns.clone());
        mask = mask.mask_fill(hit.clone(), 1.0);
        // Probabilities are not negative, so a taken one never wins again.
        left = left.mask_fill(hit, -1.0);
    }
    mask
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    #[test]
    fn the_mask_marks_the_largest_and_the_first_of_equals() {
        let p = Tensor::<2>::from_data([[0.1, 0.4, 0.2, 0.3], [0.25, 0.25, 0.25, 0.25]], &Device::flex());
        let mask = top_k_mask(p, 2).into_data();
        mask.assert_eq(&[[0.0, 1.0, 0.0, 1.0], [1.0, 1.0, 0.0, 0.0]].into(), false);
    }
}
