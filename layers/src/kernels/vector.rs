//! Loops over numbers, compiled for the widest vectors that the machine has.

use super::dense::Real;

/// A loop. Its `run` and all that it calls must be `inline(always)`, or they are compiled for the narrowest vectors.
pub(super) trait Work {
    /// `FUSED`: whether a fused product is one instruction.
    fn run<const FUSED: bool>(self);
}

/// Does the work.
#[allow(unsafe_code, reason = "calling a function compiled for vectors that were found")]
pub(super) fn vectorised<W: Work>(work: W) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2,fma")]
        fn wide<W: Work>(work: W) {
            work.run::<true>();
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the machine has both features.
            return unsafe { wide(work) };
        }
    }
    if cfg!(target_arch = "aarch64") { work.run::<true>() } else { work.run::<false>() }
}

/// `x y + z`, rounded once where that is as fast.
#[inline(always)]
pub(super) fn fused<E: Real, const FUSED: bool>(x: E, y: E, z: E) -> E {
    if FUSED { x.fused(y, z) } else { x * y + z }
}

/// Lanes of the sums of [`dot`].
const LANES: usize = 16;

/// `Σ x y`
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "fixed bounds, so that the sums stay in registers")]
pub(super) fn dot<E: Real, const FUSED: bool>(x: &[E], y: &[E]) -> E {
    let mut sums = [E::default(); LANES];
    let (x, x_rest) = x.as_chunks::<LANES>();
    let (y, y_rest) = y.as_chunks::<LANES>();
    for (x, y) in x.iter().zip(y) {
        for i in 0..LANES {
            sums[i] = fused::<E, FUSED>(x[i], y[i], sums[i]);
        }
    }
    let mut sum = together(sums);
    for (x, y) in x_rest.iter().zip(y_rest) {
        sum += *x * *y;
    }
    sum
}

/// `Σ x`
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "fixed bounds, so that the sums stay in registers")]
pub(super) fn sum<E: Real>(x: &[E]) -> E {
    let mut sums = [E::default(); LANES];
    let (x, rest) = x.as_chunks::<LANES>();
    for x in x {
        for i in 0..LANES {
            sums[i] += x[i];
        }
    }
    let mut sum = together(sums);
    for x in rest {
        sum += *x;
    }
    sum
}

#[inline(always)]
fn together<E: Real>(mut sums: [E; LANES]) -> E {
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for i in 0..width {
            sums[i] = sums[i] + sums[i + width];
        }
    }
    sums[0]
}
