//! The memory's layer norm on rows, with sums in double precision.
//!
//! ```text
//! ẑ = (z - mean z) ρ,   ρ = 1/sqrt(var z + ε)
//! P w = ρ (w - mean(w) - ẑ mean(w ∘ ẑ))                   ∂ℓ/∂z from w = ∂ℓ/∂ẑ; symmetric in w
//! ```

use crate::kernels::dense::Real;
use crate::kernels::lanes::dot;

fn mean<E: Real>(x: &[E]) -> f64 {
    x.iter().map(|x| x.to_f64()).sum::<f64>() / x.len() as f64
}

/// `mean(x ∘ y)`
pub(super) fn mean_product<E: Real>(x: &[E], y: &[E]) -> f64 {
    dot(x, y) / x.len() as f64
}

/// Fills `normal` with `ẑ` and returns `ρ`.
pub(super) fn standardize<E: Real>(z: &[E], eps: f64, normal: &mut [E]) -> f64 {
    let mean = mean(z);
    let squares: f64 = z.iter().map(|z| (z.to_f64() - mean).powi(2)).sum();
    let rate = 1.0 / (squares / z.len() as f64 + eps).sqrt();
    normal.iter_mut().zip(z).for_each(|(to, z)| *to = E::of((z.to_f64() - mean) * rate));
    rate
}

/// Makes `w` into `P w`.
pub(super) fn project<E: Real>(w: &mut [E], normal: &[E], rate: f64) {
    let (mean, along) = (mean(w), mean_product(w, normal));
    for (w, z) in w.iter_mut().zip(normal) {
        *w = E::of((w.to_f64() - mean - z.to_f64() * along) * rate);
    }
}
