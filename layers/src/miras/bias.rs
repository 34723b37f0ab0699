//! Attentional bias: the inner loss `ℓ(r)` of a memory on one token, by the residual `r = M(k) - v`.
//!
//! ```text
//! bias               ℓ(r)                                                 u = ∂ℓ/∂M(k)
//! l2                 |r|²/2                                               r
//! huber_norm         |r|²/2 if |r| ≤ δ, else δ |r| - δ²/2                 r min(1, δ/|r|)
//! huber_coordinate   the same in every channel                            clamp(r, -δ, δ)
//! huber_mixture      |r|²/2 if |r| ≤ δ, else δ Σ_c ln cosh(ν r_c)/ν       r or δ tanh(ν r)    (Miras Eq. 26)
//! ```
//!
//! Factor convention: losses carry the factor that makes `u = r` near 0, so the paper's 2 of `|r|²` is part of
//! the learning rate η. The mixture jumps where `|r| = δ` (its second branch has norm up to `δ √p`).

use burn::tensor::{Tensor, activation};
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::error::require;

/// The inner loss; see the module's table. `r`: `[b, h, t, p]`, `δ`: `[b, h, t, 1]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Bias {
    /// Squared error.
    L2,
    /// Huber on the residual's length: continuous and bounded.
    #[default]
    HuberNorm,
    /// Huber in every channel.
    HuberCoordinate,
    /// The paper's literal choice between squared and absolute error, by the residual's length.
    HuberMixture {
        /// Sharpness of `tanh(ν r) ≈ sign(r)`.
        #[serde(default = "sharp")]
        nu: f64,
    },
}

fn sharp() -> f64 {
    10.0
}

/// `|r|` over channels, `[b, h, t, 1]`; away from 0, where its derivative is undefined.
fn length(r: Tensor<4>) -> Tensor<4> {
    r.square().sum_dim(3).clamp_min(1e-12).sqrt()
}

/// `max(0, z)`
fn positive(z: Tensor<4>) -> Tensor<4> {
    activation::relu(z)
}

impl Bias {
    /// Checks the values.
    pub(crate) fn validate(self, mixer: &'static str) -> Result<()> {
        match self {
            Bias::HuberMixture { nu } => require(nu > 0.0, mixer, "nu", nu, "must be positive"),
            _ => Ok(()),
        }
    }

    /// Whether it has a threshold `δ`.
    pub fn has_threshold(self) -> bool {
        self != Bias::L2
    }

    /// `u = ∂ℓ/∂M(k)`, `[b, h, t, p]`.
    pub(crate) fn gradient(self, r: Tensor<4>, delta: Tensor<4>) -> Tensor<4> {
        match self {
            Bias::L2 => r,
            Bias::HuberNorm => r.clone() * shrink(r, delta),
            Bias::HuberCoordinate => {
                let above = positive(r.clone() - delta.clone());
                let below = positive(r.clone().neg() - delta);
                r - above + below
            }
            Bias::HuberMixture { nu } => {
                let near = inside(&r, &delta);
                let far = near.clone().neg().add_scalar(1.0);
                r.clone() * near + r.mul_scalar(nu).tanh() * delta * far
            }
        }
    }

    /// `ℓ`, `[b, h, t, 1]`.
    pub(crate) fn loss(self, r: Tensor<4>, delta: Tensor<4>) -> Tensor<4> {
        let half_square = |z: Tensor<4>| z.square().mul_scalar(0.5);
        match self {
            Bias::L2 => half_square(r).sum_dim(3),
            Bias::HuberNorm => {
                let length = length(r);
                half_square(length.clone()) - half_square(positive(length - delta))
            }
            Bias::HuberCoordinate => {
                let excess = positive(r.clone().abs() - delta);
                (half_square(r) - half_square(excess)).sum_dim(3)
            }
            Bias::HuberMixture { nu } => {
                let near = inside(&r, &delta);
                let far = near.clone().neg().add_scalar(1.0);
                let size = r.clone().abs();
                // ln cosh(z) = |z| + ln(1 + e^{-2|z|}) - ln 2
                let soft = size.clone().mul_scalar(-2.0 * nu).exp().log1p();
                // Not div_scalar: Burn rounds the divisor's reciprocal to f32 in its derivative.
                let absolute = size + soft.sub_scalar(std::f64::consts::LN_2).mul_scalar(1.0 / nu);
                half_square(r).sum_dim(3) * near + absolute.sum_dim(3) * delta * far
            }
        }
    }

    /// `c` with `u = c r`, `[b, h, t, 1]`, where one number serves all channels.
    pub(crate) fn weight(self, r: Tensor<4>, delta: Tensor<4>) -> Option<Tensor<4>> {
        match self {
            Bias::L2 => Some(delta.ones_like()),
            Bias::HuberNorm => Some(shrink(r, delta)),
            Bias::HuberCoordinate | Bias::HuberMixture { .. } => None,
        }
    }
}

/// `min(1, δ/|r|)`, as `δ / (δ + max(0, |r| - δ))`: differentiable in both.
fn shrink(r: Tensor<4>, delta: Tensor<4>) -> Tensor<4> {
    let excess = positive(length(r) - delta.clone());
    delta.clone() / (delta + excess)
}

/// 1 where `|r| ≤ δ`, else 0; no gradient.
fn inside(r: &Tensor<4>, delta: &Tensor<4>) -> Tensor<4> {
    let dtype = r.dtype();
    let over = length(r.clone().detach()).greater(delta.clone().detach());
    over.float().cast(dtype).neg().add_scalar(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Value;
    use burn::tensor::Device;

    fn row(values: &[f32]) -> Tensor<4> {
        Tensor::<1>::from_floats(values, &Device::flex()).reshape([1, 1, 1, values.len()])
    }

    fn numbers(x: Tensor<4>) -> Vec<f64> {
        Value::from(x).to_f64().unwrap()
    }

    fn close(a: &[f64], b: &[f64]) {
        let worst = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(a.len() == b.len() && worst < 1e-5, "{a:?} is not {b:?}");
    }

    #[test]
    fn gradients_match_the_table_inside_and_outside_the_threshold() {
        let r = || row(&[3.0, -4.0, 0.0]); // |r| = 5
        let u = |bias: Bias, delta: f32| numbers(bias.gradient(r(), row(&[delta])));
        let literal = Bias::HuberMixture { nu: 10.0 };
        for bias in [Bias::L2, Bias::HuberNorm, Bias::HuberCoordinate, literal] {
            close(&u(bias, 6.0), &[3.0, -4.0, 0.0]);
        }
        close(&u(Bias::HuberNorm, 1.0), &[0.6, -0.8, 0.0]);
        close(&u(Bias::HuberCoordinate, 3.5), &[3.0, -3.5, 0.0]);
        close(&u(literal, 4.0), &[4.0, -4.0, 0.0]);
    }

    #[test]
    fn losses_match_the_table() {
        let l = |bias: Bias, delta: f32| numbers(bias.loss(row(&[3.0, -4.0]), row(&[delta])));
        close(&l(Bias::L2, 1.0), &[12.5]);
        close(&l(Bias::HuberNorm, 1.0), &[4.5]);
        close(&l(Bias::HuberNorm, 6.0), &[12.5]);
        close(&l(Bias::HuberCoordinate, 2.0), &[4.0 + 6.0]);
        let ln2 = 2.0 * std::f64::consts::LN_2 / 10.0;
        close(&l(Bias::HuberMixture { nu: 10.0 }, 2.0), &[2.0 * (7.0 - ln2)]);
    }

    #[test]
    fn a_zero_residual_has_finite_gradients() {
        let device = Device::flex().autodiff();
        let r = Tensor::<4>::zeros([1, 1, 1, 3], &device).require_grad();
        for bias in [Bias::L2, Bias::HuberNorm, Bias::HuberCoordinate, Bias::HuberMixture { nu: 10.0 }] {
            let delta = Tensor::<4>::ones([1, 1, 1, 1], &device.clone().inner());
            let grads = bias.gradient(r.clone(), delta).sum().backward();
            close(&numbers(r.grad(&grads).unwrap()), &[1.0; 3]);
        }
    }
}
