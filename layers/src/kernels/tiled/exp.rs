//! `e` to many numbers that are not positive.

use crate::kernels::dense::Real;
use crate::kernels::vector::{Work, vectorised};

/// Numbers with an exponential function that vectors can compute.
pub(super) trait Exp: Real {
    /// `e^x` for `x ≤ 0`, to the last place or two; NaN of NaN.
    fn exp<const FUSED: bool>(self) -> Self;
}

impl Exp for f64 {
    #[inline(always)]
    fn exp<const FUSED: bool>(self) -> Self {
        Self::exp(self)
    }
}

impl Exp for f32 {
    /// `2^k e^r` with `|r| ≤ ln 2 / 2` and the first terms of the series, of which the first one left out is below
    /// half of the last place.
    #[inline(always)]
    #[allow(clippy::excessive_precision, reason = "the digits of the constants in double precision")]
    fn exp<const FUSED: bool>(self) -> Self {
        /// Adding it leaves the nearest whole number in the last bits.
        const ROUND: f32 = 12_582_912.0;
        // ln 2, in two parts of which the first has few digits.
        const HIGH: f32 = 0.693_359_375;
        const LOW: f32 = -2.121_944_4e-4;
        let multiply_add = |x: f32, y: f32, z: f32| if FUSED { x.mul_add(y, z) } else { x * y + z };
        let shifted = multiply_add(self, std::f32::consts::LOG2_E, ROUND);
        let whole = shifted - ROUND;
        let r = multiply_add(whole, -LOW, multiply_add(whole, -HIGH, self));
        let mut sum = 1.0 / 5040.0;
        for factor in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
            sum = multiply_add(sum, r, factor);
        }
        let power = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
        // Below, results have less than all their digits.
        if self < -87.0 { 0.0 } else { sum * power }
    }
}

/// Replaces all.
pub(super) fn exp_each<E: Exp>(numbers: &mut [E]) {
    vectorised(Each(numbers));
}

struct Each<'a, E>(&'a mut [E]);

impl<E: Exp> Work for Each<'_, E> {
    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        for x in self.0 {
            *x = x.exp::<FUSED>();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_exponential_function() {
        let exact = |x: f32| f64::from(x).exp();
        let mut worst: f64 = 0.0;
        for i in 0..200_000 {
            let x = -87.0 * (i as f32 / 200_000.0).powi(3);
            let [mut found] = [[x]];
            exp_each(&mut found);
            worst = worst.max((f64::from(found[0]) / exact(x) - 1.0).abs());
        }
        assert!(worst < 1.5e-7, "off by {worst:e}");
        let mut ends = [0.0, -0.0, -87.5, -1e30, f32::NEG_INFINITY, f32::NAN, f32::MIN_POSITIVE];
        exp_each(&mut ends);
        assert_eq!(ends[..5], [1.0, 1.0, 0.0, 0.0, 0.0]);
        assert!(ends[5].is_nan());
        assert_eq!(ends[6], 1.0);
        let mut double = [-1.5f64, -800.0];
        exp_each(&mut double);
        assert_eq!(double, [(-1.5f64).exp(), 0.0]);
    }
}
