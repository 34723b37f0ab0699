//! Functions of single numbers that the compiler turns into vector instructions, and how functions are compiled for the
//! vectors that the machine turns out to have.
//!
//! In `f32` exponentials are `2^n` times a polynomial of degree 6 (coefficients of Cephes' `exp2f` and `expf`), within a
//! unit in the last place above `2^-126` and 0 below; in `f64` the standard library's. The error function in `f32` is
//! N. Juffa's (StackOverflow 35148198), within two units in the last place; in `f64` that of libm.

use std::ops::{Div, Neg, Sub};

use super::dense::Real;

/// Adding it to a small number rounds that to an integer, which is then in the last bits: 1.5 · 2²³.
const ROUND: f32 = 12_582_912.0;

/// Powers of two below have no normal number.
const LEAST: f32 = -126.0;

/// Largest `|x|` whose `tanh` in `f32` is a polynomial.
const TANH_SMALL: f32 = 0.625;

/// Largest `|x|` whose error function in `f32` is a polynomial.
const ERF_SMALL: f32 = 475.0 / 512.0;

/// `f32` or `f64`.
pub(crate) trait Vector:
    Real + PartialOrd + Sub<Output = Self> + Div<Output = Self> + Neg<Output = Self>
{
    /// `2^self`, for numbers below 127.
    fn power<const FUSED: bool>(self) -> Self;

    /// `e^self`, for numbers below 87.
    fn exponential<const FUSED: bool>(self) -> Self;

    /// `tanh self`
    fn bounded<const FUSED: bool>(self) -> Self;

    /// `erf self`
    fn error_function<const FUSED: bool>(self) -> Self;
}

/// Defines a function that runs another one, generic over `E: Vector` and whether products are fused, compiled for the
/// vectors that the machine turns out to have.
macro_rules! vectors {
    ($(#[$doc:meta])* $visible:vis fn $name:ident = $body:ident($($arg:ident: $type:ty),* $(,)?)) => {
        $(#[$doc])*
        #[allow(unsafe_code, reason = "calling functions compiled for vectors that were found")]
        #[allow(clippy::too_many_arguments, reason = "those of the function that it runs")]
        $visible fn $name<E: crate::kernels::vector::Vector>($($arg: $type),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f")]
                fn widest<E: crate::kernels::vector::Vector>($($arg: $type),*) {
                    $body::<E, true>($($arg),*);
                }
                #[target_feature(enable = "avx2,fma")]
                fn wide<E: crate::kernels::vector::Vector>($($arg: $type),*) {
                    $body::<E, true>($($arg),*);
                }
                if is_x86_feature_detected!("avx512f") {
                    // SAFETY: the machine has it.
                    return unsafe { widest::<E>($($arg),*) };
                }
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    // SAFETY: the machine has both features.
                    return unsafe { wide::<E>($($arg),*) };
                }
            }
            // Fused products are a library call where the target does not have them for sure.
            $body::<E, { cfg!(target_arch = "aarch64") }>($($arg),*);
        }
    };
}

pub(crate) use vectors;

/// `a b + c`
#[inline(always)]
pub(crate) fn fused<E: Real, const FUSED: bool>(a: E, b: E, c: E) -> E {
    if FUSED { a.fused(b, c) } else { a * b + c }
}

#[inline(always)]
fn polynomial<const FUSED: bool, const N: usize>(x: f32, coefficients: [f32; N]) -> f32 {
    let mut sum = coefficients[0];
    let mut i = 1;
    while i < N {
        sum = fused::<f32, FUSED>(sum, x, coefficients[i]);
        i += 1;
    }
    sum
}

impl Vector for f32 {
    #[inline(always)]
    #[allow(clippy::excessive_precision, clippy::approx_constant, reason = "coefficients as published")]
    fn power<const FUSED: bool>(self) -> Self {
        let x = if self < LEAST { LEAST } else { self };
        let shifted = x + ROUND;
        let f = x - (shifted - ROUND);
        let fraction = polynomial::<FUSED, 7>(
            f,
            [
                1.535_336_188_319_500e-4,
                1.339_887_440_266_574e-3,
                9.618_437_357_674_640e-3,
                5.550_332_471_162_809e-2,
                2.402_264_791_363_012e-1,
                6.931_472_028_550_421e-1,
                1.0,
            ],
        );
        let whole = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
        if self < LEAST { 0.0 } else { fraction * whole }
    }

    #[inline(always)]
    #[allow(clippy::excessive_precision, reason = "coefficients as published")]
    fn exponential<const FUSED: bool>(self) -> Self {
        // ln 2 in two parts, the first with so few digits that its multiples are exact.
        const LN_2: [f32; 2] = [0.693_359_375, -2.121_944_40e-4];
        let least = LEAST * std::f32::consts::LN_2;
        let x = if self < least { least } else { self };
        let shifted = fused::<f32, FUSED>(x, std::f32::consts::LOG2_E, ROUND);
        let whole = shifted - ROUND;
        let f = fused::<f32, FUSED>(-whole, LN_2[1], fused::<f32, FUSED>(-whole, LN_2[0], x));
        let tail = polynomial::<FUSED, 6>(
            f,
            [
                1.987_569_150_0e-4,
                1.398_199_950_7e-3,
                8.333_451_907_3e-3,
                4.166_579_589_4e-2,
                1.666_666_545_9e-1,
                5.000_000_120_1e-1,
            ],
        );
        let fraction = fused::<f32, FUSED>(tail * f, f, f) + 1.0;
        let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
        if self < least { 0.0 } else { fraction * scale }
    }

    #[inline(always)]
    #[allow(clippy::excessive_precision, reason = "coefficients as published")]
    fn bounded<const FUSED: bool>(self) -> Self {
        let square = self * self;
        // Near 0 the quotient below would lose digits.
        let small = polynomial::<FUSED, 5>(
            square,
            [
                -5.704_988_727_45e-3,
                2.063_908_879_54e-2,
                -5.373_971_555_31e-2,
                1.333_144_220_36e-1,
                -3.333_328_194_22e-1,
            ],
        );
        let small = fused::<f32, FUSED>(small * square, self, self);
        let power = (self.abs() * (-2.0 * std::f32::consts::LOG2_E)).power::<FUSED>();
        let large = ((1.0 - power) / (1.0 + power)).copysign(self);
        if self.abs() < TANH_SMALL { small } else { large }
    }

    #[inline(always)]
    #[allow(clippy::excessive_precision, reason = "coefficients as published")]
    fn error_function<const FUSED: bool>(self) -> Self {
        let (size, square) = (self.abs(), self * self);
        let small = polynomial::<FUSED, 6>(
            square,
            [
                -5.967_617_03e-4,
                4.991_194_23e-3,
                -2.676_813_49e-2,
                1.128_199_25e-1,
                -3.761_253_36e-1,
                1.283_791_66e-1,
            ],
        );
        let small = fused::<f32, FUSED>(small, self, self);
        // ln(1 - erf |x|)
        let logarithm = polynomial::<FUSED, 7>(
            size,
            [
                -1.728_534_70e-5,
                3.831_971_26e-4,
                -3.883_964_38e-3,
                2.425_462_19e-2,
                -1.067_778_77e-1,
                -6.348_466_87e-1,
                -1.287_175_12e-1,
            ],
        );
        let logarithm = fused::<f32, FUSED>(logarithm, size, -size);
        let large = (1.0 - logarithm.exponential::<FUSED>()).copysign(self);
        if size > ERF_SMALL { large } else { small }
    }
}

impl Vector for f64 {
    #[inline(always)]
    fn power<const FUSED: bool>(self) -> Self {
        self.exp2()
    }

    #[inline(always)]
    #[allow(clippy::excessive_precision, reason = "ln 2 in two parts, as published")]
    fn exponential<const FUSED: bool>(self) -> Self {
        const LN_2: [f64; 2] = [6.931_471_803_691_238_164_90e-1, 1.908_214_929_270_587_700_02e-10];
        const ROUND: f64 = 6_755_399_441_055_744.0; // 1.5 · 2^52: adding it rounds to whole numbers
        const LEAST: f64 = -708.0;
        let x = if self < LEAST { LEAST } else { self };
        let shifted = fused::<f64, FUSED>(x, std::f64::consts::LOG2_E, ROUND);
        let whole = shifted - ROUND;
        let f = fused::<f64, FUSED>(-whole, LN_2[1], fused::<f64, FUSED>(-whole, LN_2[0], x));
        // Taylor's series up to f^13: the rest is below half a unit in the last place for |f| ≤ ln 2 / 2.
        let mut sum = 1.0 / 6_227_020_800.0;
        for factorial in [
            479_001_600.0,
            39_916_800.0,
            3_628_800.0,
            362_880.0,
            40_320.0,
            5_040.0,
            720.0,
            120.0,
            24.0,
            6.0,
            2.0,
            1.0,
            1.0,
        ] {
            sum = fused::<f64, FUSED>(sum, f, 1.0 / factorial);
        }
        let scale = f64::from_bits((shifted.to_bits() << 52).wrapping_add(1023 << 52));
        if self < LEAST { 0.0 } else { sum * scale }
    }

    #[inline(always)]
    fn bounded<const FUSED: bool>(self) -> Self {
        self.tanh()
    }

    #[inline(always)]
    fn error_function<const FUSED: bool>(self) -> Self {
        libm::erf(self)
    }
}

/// A loop, for those that need more generics than [`vectors`] has. Its `run` and all that it calls must be
/// `inline(always)`, or they are compiled for the narrowest vectors.
pub(super) trait Work {
    /// `FUSED`: whether a fused product is one instruction.
    fn run<const FUSED: bool>(self);
}

/// Does the work in the widest vectors that the machine has.
#[allow(unsafe_code, reason = "calling functions compiled for vectors that were found")]
pub(super) fn vectorised<W: Work>(work: W) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f")]
        fn widest<W: Work>(work: W) {
            work.run::<true>();
        }
        #[target_feature(enable = "avx2,fma")]
        fn wide<W: Work>(work: W) {
            work.run::<true>();
        }
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the machine has it.
            return unsafe { widest(work) };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the machine has both features.
            return unsafe { wide(work) };
        }
    }
    // Fused products are a library call where the target does not have them for sure.
    work.run::<{ cfg!(target_arch = "aarch64") }>();
}

/// `1 / (1 + e^{-z})`, by the exponential of what is not positive.
#[inline(always)]
pub(super) fn sigmoid<E: Vector, const FUSED: bool>(z: E) -> E {
    let (zero, one) = (E::default(), E::of(1.0));
    let power = (if z > zero { -z } else { z }).exponential::<FUSED>();
    (if z > zero { one } else { power }) / (one + power)
}

/// `log(1 + y)` for `0 ≤ y ≤ 1`, as `2 artanh(y / (2 + y))` by its series, whose square is at most a ninth.
#[inline(always)]
pub(super) fn log_1p<E: Vector, const FUSED: bool>(y: E) -> E {
    let terms = if size_of::<E>() == 4 { 9 } else { 18 };
    let s = y / (y + E::of(2.0));
    let square = s * s;
    let mut sum = E::default();
    let mut k = terms;
    while k > 0 {
        sum = fused::<E, FUSED>(sum, square, E::of(2.0 / (2 * k - 1) as f64));
        k -= 1;
    }
    s * sum
}

/// Numbers of a block of a row, and lanes of sums.
pub(super) const LANES: usize = 16;

/// Keeps a loop over blocks of lanes one block at a time. The compiler would rather have sixteen blocks side by side, and
/// gather their first numbers, their second ones and so on, which is several times slower; no loop is turned into
/// vectors with an assembler's line in it, and this one is empty.
#[inline(always)]
#[allow(unsafe_code, reason = "assembler of no instruction")]
pub(super) fn block_by_block() {
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    // SAFETY: it does nothing.
    unsafe {
        std::arch::asm!("", options(nomem, nostack, preserves_flags));
    }
}

/// `Σ x y`
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "fixed bounds, so that the sums stay in registers")]
pub(super) fn dot<E: Real, const FUSED: bool>(x: &[E], y: &[E]) -> E {
    let mut sums = [E::default(); LANES];
    let (x, x_rest) = x.as_chunks::<LANES>();
    let (y, y_rest) = y.as_chunks::<LANES>();
    for (x, y) in x.iter().zip(y) {
        block_by_block();
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

/// `Σ x y` with each of `N` rows as long as `x`.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "fixed bounds, so that the sums stay in registers")]
pub(super) fn dots<E: Real, const FUSED: bool, const N: usize>(x: &[E], rows: [&[E]; N]) -> [E; N] {
    let mut sums = [[E::default(); LANES]; N];
    let (parts, rest) = x.as_chunks::<LANES>();
    for (k, part) in parts.iter().enumerate() {
        block_by_block();
        for r in 0..N {
            let row: &[E; LANES] = rows[r][k * LANES..].first_chunk().expect("rows are as long as `x`");
            for i in 0..LANES {
                sums[r][i] = fused::<E, FUSED>(part[i], row[i], sums[r][i]);
            }
        }
    }
    let mut found = [E::default(); N];
    for r in 0..N {
        found[r] = together(sums[r]);
    }
    let done = x.len() - rest.len();
    for (i, &x) in rest.iter().enumerate() {
        for r in 0..N {
            found[r] += x * rows[r][done + i];
        }
    }
    found
}

/// `Σ x`
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "fixed bounds, so that the sums stay in registers")]
pub(super) fn sum<E: Real>(x: &[E]) -> E {
    let mut sums = [E::default(); LANES];
    let (x, rest) = x.as_chunks::<LANES>();
    for x in x {
        block_by_block();
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

/// `Σ sums`. They go through memory, or the compiler lays them out by pairs, as the last addition has them, where they are
/// made; bounds are fixed, so that the rest stays in registers.
#[inline(always)]
pub(super) fn together<E: Real>(sums: [E; LANES]) -> E {
    let sums = std::hint::black_box(sums);
    let (mut eight, mut four, mut two) = ([E::default(); 8], [E::default(); 4], [E::default(); 2]);
    for i in 0..8 {
        eight[i] = sums[i] + sums[i + 8];
    }
    for i in 0..4 {
        four[i] = eight[i] + eight[i + 4];
    }
    for i in 0..2 {
        two[i] = four[i] + four[i + 2];
    }
    two[0] + two[1]
}

/// `to += Σ factors[i] rows[i]`, all as long as `to`, in blocks of lanes: the compiler runs short rows number by number.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "fixed bounds, so that each block is a register")]
pub(super) fn add_scaled<E: Real, const FUSED: bool, const N: usize>(
    to: &mut [E],
    factors: [E; N],
    rows: [&[E]; N],
) {
    let (blocks, rest) = to.as_chunks_mut::<LANES>();
    let done = blocks.len() * LANES;
    for (k, block) in blocks.iter_mut().enumerate() {
        block_by_block();
        let mut sums = *block;
        for r in 0..N {
            let row: &[E; LANES] = rows[r][k * LANES..].first_chunk().expect("rows are as long as `to`");
            for i in 0..LANES {
                sums[i] = fused::<E, FUSED>(factors[r], row[i], sums[i]);
            }
        }
        *block = sums;
    }
    for (i, to) in rest.iter_mut().enumerate() {
        for r in 0..N {
            *to = fused::<E, FUSED>(factors[r], rows[r][done + i], *to);
        }
    }
}

/// The largest of `x` and `least`.
#[inline(always)]
pub(super) fn largest<E: Vector>(x: &[E], least: E) -> E {
    let mut tops = [least; LANES];
    let (blocks, rest) = x.as_chunks::<LANES>();
    for block in blocks {
        block_by_block();
        for i in 0..LANES {
            tops[i] = if block[i] > tops[i] { block[i] } else { tops[i] };
        }
    }
    let mut top = least;
    for &x in tops.iter().chain(rest) {
        top = if x > top { x } else { top };
    }
    top
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The largest relative error over `from..to`.
    fn worst(from: f64, to: f64, found: impl Fn(f32) -> f32, expected: impl Fn(f64) -> f64) -> f64 {
        let count = 1_000_000;
        let points = (0..=count).map(|i| (from + (to - from) * f64::from(i) / f64::from(count)) as f32);
        let off = |x: f32| (f64::from(found(x)) / expected(f64::from(x)) - 1.0).abs();
        points.filter(|&x| x != 0.0).map(off).fold(0.0, f64::max)
    }

    #[test]
    fn single_precision_is_precise() {
        const ULP: f64 = f32::EPSILON as f64;
        assert!(worst(-126.0, 1.0, |x| x.power::<true>(), f64::exp2) < ULP);
        assert!(worst(-126.0, 1.0, |x| x.power::<false>(), f64::exp2) < 1.5 * ULP);
        assert!(worst(-87.3, 1.0, |x| x.exponential::<true>(), f64::exp) < ULP);
        assert!(worst(-87.3, 1.0, |x| x.exponential::<false>(), f64::exp) < 1.5 * ULP);
        for small in [1e-6, 1.0, 20.0] {
            assert!(worst(-small, small, |x| x.bounded::<true>(), f64::tanh) < 2.0 * ULP);
            assert!(worst(-small, small, |x| x.error_function::<true>(), libm::erf) < 2.0 * ULP);
        }
    }

    #[test]
    fn what_has_no_number_is_nothing() {
        for x in [-127.0f32, -1e30, f32::NEG_INFINITY] {
            assert_eq!((x.power::<true>(), x.exponential::<true>()), (0.0, 0.0));
        }
        assert!(f32::NAN.power::<true>().is_nan() && f32::NAN.exponential::<true>().is_nan());
        assert_eq!((0.0f32.power::<true>(), 0.0f32.exponential::<true>()), (1.0, 1.0));
    }
}
