//! Attentional bias: the inner loss `ℓ` of a memory on one token, by the residual `r = M(k) - v`.
//!
//! ```text
//! bias               ℓ(r)                                                 u = ∂ℓ/∂M(k)
//! dot_product        -⟨M(k), v⟩                                           -v              (Hebb)
//! l2                 |r|²/2                                               r
//! lp                 Σ_c |r_c|ᵖ/p                                         sign(r) |r|ᵖ⁻¹  (Miras Eq. 24)
//! value_shift        max over |δv| ≤ δ of |r - δv|²/2                     r (1 + δ/|r|)
//! value_less         Σ_c |r_c|                                            sign(r)
//! huber_norm         |r|²/2 if |r| ≤ δ, else δ |r| - δ²/2                 r min(1, δ/|r|)
//! huber_coordinate   the same in every channel                            clamp(r, -δ, δ)
//! huber_mixture      |r|²/2 if |r| ≤ δ, else δ Σ_c ln cosh(ν r_c)/ν       r or δ tanh(ν r)    (Miras Eq. 26)
//! ```
//!
//! Factor convention: losses carry the factor that makes `u = r` near 0 (`u = sign(r) |r|ᵖ⁻¹` for `lp`), so the
//! paper's 2 of `|r|²` and p of `|r|ᵖ` are part of the learning rate η. The mixture jumps where `|r| = δ` (its
//! second branch has norm up to `δ √p`). Outer training needs slopes where the sign and the modulus have none:
//! `sign(z) ≈ tanh(ν z)`, `|z| ≈ sqrt(z² + ε)` (Miras, Remark 5). For p > 2 gradient descent drives large
//! residuals apart, so `lp` first clips them.

use burn::tensor::{Tensor, activation};
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::error::require;

/// ε of the smooth modulus.
pub(crate) const SMOOTH: f64 = 1e-6;

/// The inner loss; see the module's table. `r`, `v`: `[b, h, t, p]`, `δ`: `[b, h, t, 1]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Bias {
    /// Similarity instead of an error: what is written does not depend on what is known.
    DotProduct,
    /// Squared error.
    L2,
    /// The p-th power of the error, channel by channel.
    Lp {
        /// Exponent, at least 1.
        p: f64,
        /// Sharpness of `tanh(ν r) ≈ sign(r)`; `None` for `r (r² + ε)^((p-2)/2)`, which needs no sign.
        #[serde(default)]
        nu: Option<f64>,
        /// Channels of the residual are clipped to ± this.
        #[serde(default = "ten")]
        clip: f64,
    },
    /// Squared error in the worst case over values shifted by up to `δ`.
    ValueShift,
    /// Absolute error: only signs are stored.
    ValueLess {
        /// Sharpness of `tanh(ν r) ≈ sign(r)`.
        #[serde(default = "ten")]
        nu: f64,
    },
    /// Huber on the residual's length: continuous and bounded.
    #[default]
    HuberNorm,
    /// Huber in every channel.
    HuberCoordinate,
    /// The paper's literal choice between squared and absolute error, by the residual's length.
    HuberMixture {
        /// Sharpness of `tanh(ν r) ≈ sign(r)`.
        #[serde(default = "ten")]
        nu: f64,
    },
}

fn ten() -> f64 {
    10.0
}

/// `|r|` over channels, `[b, h, t, 1]`; away from 0, where its derivative is undefined.
fn length(r: Tensor<4>) -> Tensor<4> {
    r.square().sum_dim(3).clamp_min(1e-12).sqrt()
}

/// `sqrt(|r|² + ε)` over channels, `[b, h, t, 1]`.
fn smooth_length(r: Tensor<4>) -> Tensor<4> {
    r.square().sum_dim(3).add_scalar(SMOOTH).sqrt()
}

/// `(z² + ε)^e`, entry by entry.
fn smooth_power(z: Tensor<4>, e: f64) -> Tensor<4> {
    z.square().add_scalar(SMOOTH).log().mul_scalar(e).exp()
}

/// `ln cosh(ν z)/ν`, entry by entry: its derivative is `tanh(ν z)`.
fn soft_modulus(z: Tensor<4>, nu: f64) -> Tensor<4> {
    let size = z.abs();
    // ln cosh(z) = |z| + ln(1 + e^{-2|z|}) - ln 2
    let soft = size.clone().mul_scalar(-2.0 * nu).exp().log1p();
    // Not div_scalar: Burn rounds the divisor's reciprocal to f32 in its derivative.
    size + soft.sub_scalar(std::f64::consts::LN_2).mul_scalar(1.0 / nu)
}

/// `max(0, z)`
fn positive(z: Tensor<4>) -> Tensor<4> {
    activation::relu(z)
}

impl Bias {
    /// Checks the values.
    pub(crate) fn validate(self, mixer: &'static str) -> Result<()> {
        let positive = |x: f64| x > 0.0 && x.is_finite();
        match self {
            Bias::HuberMixture { nu } | Bias::ValueLess { nu } => {
                require(positive(nu), mixer, "bias.nu", nu, "must be positive")
            }
            Bias::Lp { p, nu, clip } => {
                let expected = "must be 1 to 8 (below 1 the loss has no minimum to descend to)";
                require((1.0..=8.0).contains(&p), mixer, "bias.p", p, expected)?;
                let nu = nu.unwrap_or(1.0);
                require(positive(nu), mixer, "bias.nu", nu, "must be positive, or null")?;
                require(positive(clip), mixer, "bias.clip", clip, "must be positive and finite")
            }
            _ => Ok(()),
        }
    }

    /// Whether it has a threshold `δ`.
    pub fn has_threshold(self) -> bool {
        use Bias::{HuberCoordinate, HuberMixture, HuberNorm, ValueShift};
        matches!(self, HuberNorm | HuberCoordinate | HuberMixture { .. } | ValueShift)
    }

    /// `u = ∂ℓ/∂M(k)`, `[b, h, t, p]`.
    pub(crate) fn gradient(self, r: Tensor<4>, v: Tensor<4>, delta: Tensor<4>) -> Tensor<4> {
        match self {
            Bias::DotProduct => v.neg(),
            Bias::L2 => r,
            Bias::Lp { p, nu, clip } => {
                let r = r.clamp(-clip, clip);
                match nu {
                    Some(nu) => r.clone().mul_scalar(nu).tanh() * smooth_power(r, 0.5 * (p - 1.0)),
                    None => r.clone() * smooth_power(r, 0.5 * (p - 2.0)),
                }
            }
            Bias::ValueShift => {
                let length = smooth_length(r.clone());
                r * (delta / length).add_scalar(1.0)
            }
            Bias::ValueLess { nu } => r.mul_scalar(nu).tanh(),
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

    /// `ℓ`, `[b, h, t, 1]`; without the clipping of `lp`, and with the true modulus where its sign is smooth.
    pub(crate) fn loss(self, r: Tensor<4>, v: Tensor<4>, delta: Tensor<4>) -> Tensor<4> {
        let half_square = |z: Tensor<4>| z.square().mul_scalar(0.5);
        match self {
            Bias::DotProduct => ((r + v.clone()) * v).sum_dim(3).neg(),
            Bias::L2 => half_square(r).sum_dim(3),
            Bias::Lp { p, .. } => smooth_power(r, 0.5 * p).sum_dim(3).mul_scalar(1.0 / p),
            Bias::ValueShift => half_square(r.clone()).sum_dim(3) + smooth_length(r) * delta,
            Bias::ValueLess { nu } => soft_modulus(r, nu).sum_dim(3),
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
                let absolute = soft_modulus(r.clone(), nu).sum_dim(3);
                half_square(r).sum_dim(3) * near + absolute * delta * far
            }
        }
    }

    /// `c` with `u = c r`, `[b, h, t, 1]`, where one number serves all channels.
    pub(crate) fn weight(self, r: Tensor<4>, delta: Tensor<4>) -> Option<Tensor<4>> {
        match self {
            // Its `u` is linear in the values by itself.
            Bias::DotProduct | Bias::L2 => Some(delta.ones_like()),
            Bias::HuberNorm => Some(shrink(r, delta)),
            Bias::ValueShift => Some((delta / smooth_length(r)).add_scalar(1.0)),
            Bias::Lp { .. } | Bias::ValueLess { .. } | Bias::HuberCoordinate | Bias::HuberMixture { .. } => {
                None
            }
        }
    }

    /// `u` as a linear function of the values, with the weight `c` of [`Bias::weight`] frozen.
    pub(crate) fn frozen(self, r: Tensor<4>, v: Tensor<4>, weight: Tensor<4>) -> Tensor<4> {
        match self {
            Bias::DotProduct => v.neg(),
            _ => r * weight,
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
        let u = |bias: Bias, delta: f32| numbers(bias.gradient(r(), r(), row(&[delta])));
        let literal = Bias::HuberMixture { nu: 10.0 };
        for bias in [Bias::L2, Bias::HuberNorm, Bias::HuberCoordinate, literal] {
            close(&u(bias, 6.0), &[3.0, -4.0, 0.0]);
        }
        close(&u(Bias::HuberNorm, 1.0), &[0.6, -0.8, 0.0]);
        close(&u(Bias::HuberCoordinate, 3.5), &[3.0, -3.5, 0.0]);
        close(&u(literal, 4.0), &[4.0, -4.0, 0.0]);
        close(&u(Bias::DotProduct, 1.0), &[-3.0, 4.0, 0.0]);
        close(&u(Bias::ValueShift, 2.5), &[4.5, -6.0, 0.0]);
        close(&u(Bias::ValueLess { nu: 10.0 }, 1.0), &[1.0, -1.0, 0.0]);
        for nu in [None, Some(10.0)] {
            let lp = |p, clip| Bias::Lp { p, nu, clip };
            close(&u(lp(3.0, 10.0), 1.0), &[9.0, -16.0, 0.0]);
            close(&u(lp(3.0, 2.0), 1.0), &[4.0, -4.0, 0.0]);
            close(&u(lp(2.0, 10.0), 1.0), &[3.0, -4.0, 0.0]);
            close(&u(lp(1.0, 10.0), 1.0), &[1.0, -1.0, 0.0]);
        }
    }

    #[test]
    fn losses_match_the_table() {
        let l =
            |bias: Bias, delta: f32| numbers(bias.loss(row(&[3.0, -4.0]), row(&[2.0, 1.0]), row(&[delta])));
        close(&l(Bias::L2, 1.0), &[12.5]);
        close(&l(Bias::HuberNorm, 1.0), &[4.5]);
        close(&l(Bias::HuberNorm, 6.0), &[12.5]);
        close(&l(Bias::HuberCoordinate, 2.0), &[4.0 + 6.0]);
        close(&l(Bias::DotProduct, 2.0), &[-(5.0 * 2.0 - 3.0)]);
        close(&l(Bias::ValueShift, 2.0), &[12.5 + 10.0]);
        close(&l(Bias::Lp { p: 1.5, nu: None, clip: 10.0 }, 2.0), &[(3f64.powf(1.5) + 8.0) / 1.5]);
        let ln2 = 2.0 * std::f64::consts::LN_2 / 10.0;
        close(&l(Bias::HuberMixture { nu: 10.0 }, 2.0), &[2.0 * (7.0 - ln2)]);
    }

    #[test]
    fn a_zero_residual_has_finite_gradients() {
        let device = Device::flex().autodiff();
        let r = Tensor::<4>::zeros([1, 1, 1, 3], &device).require_grad();
        for bias in [Bias::L2, Bias::HuberNorm, Bias::HuberCoordinate, Bias::HuberMixture { nu: 10.0 }] {
            let delta = Tensor::<4>::ones([1, 1, 1, 1], &device.clone().inner());
            let grads = bias.gradient(r.clone(), r.clone(), delta).sum().backward();
            close(&numbers(r.grad(&grads).unwrap()), &[1.0; 3]);
        }
        let lp = |p, nu| Bias::Lp { p, nu, clip: 10.0 };
        for bias in [lp(1.0, None), lp(3.0, Some(10.0)), Bias::ValueShift, Bias::ValueLess { nu: 10.0 }] {
            let delta = Tensor::<4>::ones([1, 1, 1, 1], &device.clone().inner());
            let grads = bias.gradient(r.clone(), r.clone(), delta).sum().backward();
            assert!(numbers(r.grad(&grads).unwrap()).iter().all(|g| g.is_finite() && *g < 2e3), "{bias:?}");
        }
    }
}
