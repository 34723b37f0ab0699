//! The gradient `u = ∂ℓ/∂M(k)` of the inner loss on one token, and the way back through it: the formulas of [`Bias`],
//! in double precision.

use crate::kernels::dense::Real;
use crate::kernels::lanes::dot;
use crate::miras::{Bias, SMOOTH};

/// Below, a length counts as this: as in [`Bias`].
const SHORTEST: f64 = 1e-6;

fn length<E: Real>(r: &[E]) -> f64 {
    dot(r, r).sqrt().max(SHORTEST)
}

fn smooth_length<E: Real>(r: &[E]) -> f64 {
    (dot(r, r) + SMOOTH).sqrt()
}

/// `f` of every entry.
fn each<E: Real>(from: &[E], to: &mut [E], f: impl Fn(f64) -> f64) {
    to.iter_mut().zip(from).for_each(|(to, &x)| *to = E::of(f(x.to_f64())));
}

/// The clipped power of `lp` and its derivative.
fn power(r: f64, p: f64, nu: Option<f64>, clip: f64) -> [f64; 2] {
    let inside = f64::from(r.abs() <= clip);
    let r = r.clamp(-clip, clip);
    let base = r * r + SMOOTH;
    let (sign, sign_slope, exponent) = match nu {
        Some(nu) => {
            let sign = (nu * r).tanh();
            (sign, tanh_slope(nu, sign), 0.5 * (p - 1.0))
        }
        None => (r, 1.0, 0.5 * (p - 2.0)),
    };
    // Moneta's, which needs no power.
    let size = if exponent == 1.0 { base } else { base.powf(exponent) };
    [sign * size, inside * (sign_slope * size + sign * 2.0 * exponent * r * size / base)]
}

/// `d tanh(ν r) / dr` from the tanh.
fn tanh_slope(nu: f64, tanh: f64) -> f64 {
    nu * (1.0 - tanh * tanh)
}

/// Fills `u`.
pub(super) fn gradient<E: Real>(bias: Bias, r: &[E], v: &[E], delta: f64, u: &mut [E]) {
    match bias {
        Bias::DotProduct => each(v, u, |v| -v),
        Bias::L2 => u.copy_from_slice(r),
        Bias::Lp { p, nu, clip } => each(r, u, |r| power(r, p, nu, clip)[0]),
        Bias::ValueShift => {
            let factor = 1.0 + delta / smooth_length(r);
            each(r, u, |r| r * factor);
        }
        Bias::ValueLess { nu } => each(r, u, |r| (nu * r).tanh()),
        Bias::HuberNorm => {
            let factor = (delta / length(r)).min(1.0);
            each(r, u, |r| r * factor);
        }
        Bias::HuberCoordinate => each(r, u, |r| r.max(-delta).min(delta)),
        Bias::HuberMixture { nu } => match length(r) > delta {
            true => each(r, u, |r| delta * (nu * r).tanh()),
            false => u.copy_from_slice(r),
        },
    }
}

/// Fills `dr`, adds to `dv` and returns `dδ`, from `du`.
pub(super) fn back<E: Real>(bias: Bias, r: &[E], delta: f64, du: &[E], dr: &mut [E], dv: &mut [E]) -> f64 {
    let scaled = |dr: &mut [E], slope: &dyn Fn(f64) -> f64| {
        for (i, dr) in dr.iter_mut().enumerate() {
            *dr = E::of(du[i].to_f64() * slope(r[i].to_f64()));
        }
    };
    // Of `u = c r` where `c` depends on the length of `r`: `dr = c du - along r`.
    let along_r = |dr: &mut [E], c: f64, along: f64| {
        for (i, dr) in dr.iter_mut().enumerate() {
            *dr = E::of(c * du[i].to_f64() - along * r[i].to_f64());
        }
    };
    match bias {
        Bias::DotProduct => {
            dr.fill(E::default());
            dv.iter_mut().zip(du).for_each(|(dv, du)| *dv += E::of(-du.to_f64()));
        }
        Bias::L2 => dr.copy_from_slice(du),
        Bias::Lp { p, nu, clip } => scaled(dr, &|r| power(r, p, nu, clip)[1]),
        Bias::ValueShift => {
            let (length, both) = (smooth_length(r), dot(du, r));
            along_r(dr, 1.0 + delta / length, delta * both / length.powi(3));
            return both / length;
        }
        Bias::ValueLess { nu } => scaled(dr, &|r| tanh_slope(nu, (nu * r).tanh())),
        Bias::HuberNorm => {
            let length = length(r);
            if length <= delta {
                dr.copy_from_slice(du);
                return 0.0;
            }
            let both = dot(du, r);
            along_r(dr, delta / length, delta * both / length.powi(3));
            return both / length;
        }
        Bias::HuberCoordinate => {
            scaled(dr, &|r| f64::from(r.abs() <= delta));
            let pairs = r.iter().zip(du).filter(|(r, _)| r.to_f64().abs() > delta);
            return pairs.map(|(r, du)| r.to_f64().signum() * du.to_f64()).sum();
        }
        Bias::HuberMixture { nu } => {
            if length(r) <= delta {
                dr.copy_from_slice(du);
                return 0.0;
            }
            scaled(dr, &|r| delta * tanh_slope(nu, (nu * r).tanh()));
            return r.iter().zip(du).map(|(r, du)| (nu * r.to_f64()).tanh() * du.to_f64()).sum();
        }
    }
    0.0
}
