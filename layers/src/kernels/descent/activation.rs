//! The non-linearity between a memory's layers, with both its derivatives.

use crate::kernels::dense::Matrix;
use crate::kernels::vector::{Vector, vectors};
use crate::miras::Gelu;

vectors! {
    /// Fills the front of `value`'s rows with `gelu(x)`, and `slope` and `curve` with its first and second derivative.
    pub(super) fn activate = fill(
        gelu: Gelu,
        x: &Matrix<E>,
        value: &mut Matrix<E>,
        slope: &mut Matrix<E>,
        curve: &mut Matrix<E>,
    )
}

#[inline(always)]
fn fill<E: Vector, const FUSED: bool>(
    gelu: Gelu,
    x: &Matrix<E>,
    value: &mut Matrix<E>,
    slope: &mut Matrix<E>,
    curve: &mut Matrix<E>,
) {
    for (t, x) in x.rows().enumerate() {
        let n = x.len();
        let rows = [&mut value.row_mut(t)[..n], &mut slope.row_mut(t)[..n], &mut curve.row_mut(t)[..n]];
        match gelu {
            Gelu::Exact => fill_row(x, rows, exact::<E, FUSED>),
            Gelu::Tanh => fill_row(x, rows, tanh::<E, FUSED>),
        }
    }
}

#[inline(always)]
fn fill_row<E: Vector>(x: &[E], [value, slope, curve]: [&mut [E]; 3], f: impl Fn(E) -> [E; 3]) {
    for i in 0..x.len() {
        [value[i], slope[i], curve[i]] = f(x[i]);
    }
}

/// `x Φ(x)`, `Φ(x) + x φ(x)`, `φ(x) (2 - x²)`
#[inline(always)]
fn exact<E: Vector, const FUSED: bool>(x: E) -> [E; 3] {
    let (half, square) = (E::of(0.5), x * x);
    let cdf = half + half * (x * E::of(std::f64::consts::FRAC_1_SQRT_2)).error_function::<FUSED>();
    let density =
        E::of(1.0 / (2.0 * std::f64::consts::PI).sqrt()) * (-(half * square)).exponential::<FUSED>();
    [x * cdf, cdf + x * density, density * (E::of(2.0) - square)]
}

/// With `h = √(2/π) (x + 0.044715 x³)`, `τ = tanh h` and `σ = 1 - τ²`: `x (1 + τ) / 2`, `(1 + τ + x σ h') / 2`,
/// `σ h' + x σ (h'' - 2 τ h'²) / 2`
#[inline(always)]
fn tanh<E: Vector, const FUSED: bool>(x: E) -> [E; 3] {
    const CUBE: f64 = 0.044715;
    let scale = (2.0 / std::f64::consts::PI).sqrt();
    let (half, one, square) = (E::of(0.5), E::of(1.0), x * x);
    let tau = (E::of(scale) * x * (one + E::of(CUBE) * square)).bounded::<FUSED>();
    let sigma = one - tau * tau;
    let first = E::of(scale) * (one + E::of(3.0 * CUBE) * square);
    let second = E::of(6.0 * CUBE * scale) * x;
    let sum = half * (one + tau);
    [
        x * sum,
        sum + half * x * sigma * first,
        sigma * first + half * x * sigma * (second - E::of(2.0) * tau * first * first),
    ]
}
