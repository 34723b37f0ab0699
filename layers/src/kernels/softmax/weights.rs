//! What turns scores into weights, on tiles whose rows are keys and whose columns are queries: everything runs along
//! rows, in vector instructions, without sums across a register.
//!
//! Exponentials are powers of two, `2^x = 2^n 2^f` with `n` the nearest integer: in `f32` a polynomial of degree 6 in
//! `f` (coefficients of Cephes' `exp2f`), within 1.5 units in the last place over all `x ≥ -126`, and 0 below; in
//! `f64` the standard library's.

use std::ops::{Div, Neg, Sub};

use crate::kernels::dense::{Matrix, Real};

/// The score of a key that a query does not see.
const HIDDEN: f64 = -1e30;

/// No largest score counts as less, so that the weight of what is hidden is 0 also where nothing is seen.
pub(super) const FLOOR: f64 = -1e29;

/// Largest `|x|` whose `tanh` in `f32` is a polynomial.
const TANH_SMALL: f32 = 0.625;

/// Which columns of a tile are seen at a row: of the queries `first..first + columns` at key `key`, counted from the
/// same token.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    pub(super) causal: bool,
    pub(super) window: Option<usize>,
    /// Position of the tile's first query
    pub(super) query: usize,
    /// Position of the tile's first key
    pub(super) key: usize,
}

impl Seen {
    /// The first column that sees key `row` of the tile, and the one after the last.
    #[inline(always)]
    fn columns(self, row: usize, columns: usize) -> (usize, usize) {
        let key = self.key + row;
        let from = if self.causal { key.saturating_sub(self.query).min(columns) } else { 0 };
        let to = self.window.map_or(columns, |window| (key + window).saturating_sub(self.query).min(columns));
        (from, to.max(from))
    }

    /// Whether every query of the tile sees every key of it.
    fn all(self, rows: usize, columns: usize) -> bool {
        (!self.causal || self.key + rows <= self.query + 1)
            && self.window.is_none_or(|window| self.query + columns <= self.key + window)
    }
}

/// From products to scores, in units of `ln 2`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scores<'a> {
    pub(super) cap: Option<f64>,
    /// One number per key of the tile that its scores get.
    pub(super) offsets: Option<&'a [f64]>,
    pub(super) seen: Seen,
}

/// Of every query so far: the largest score and the sum of powers of scores minus it.
pub(super) struct Running<'a, E> {
    pub(super) top: &'a mut [E],
    pub(super) sum: &'a mut [E],
    /// Factor on what was added up before this tile.
    pub(super) factor: &'a mut [E],
}

/// `f32` or `f64`, and what vector instructions do to tiles of them.
pub(crate) trait Vector:
    Real + PartialOrd + Sub<Output = Self> + Div<Output = Self> + Neg<Output = Self>
{
    /// `2^self`, for numbers that are not large.
    fn power<const FUSED: bool>(self) -> Self;

    /// `tanh self`
    fn bounded<const FUSED: bool>(self) -> Self;

    /// See [`weigh`].
    #[doc(hidden)]
    fn weigh_vectors(tile: &mut Matrix<Self>, scores: Scores<'_>, running: Running<'_, Self>);

    /// See [`weigh_again`].
    #[doc(hidden)]
    fn weigh_again_vectors(
        tile: &mut Matrix<Self>,
        slopes: Option<&mut Matrix<Self>>,
        scores: Scores<'_>,
        log_sum: &[Self],
    );

    /// See [`differentiate`].
    #[doc(hidden)]
    fn differentiate_vectors(
        d_weights: &mut Matrix<Self>,
        weights: &Matrix<Self>,
        slopes: Option<&Matrix<Self>>,
        means: &[Self],
    );
}

/// Makes scores of the products in `tile`, then weights relative to the largest score so far of each query.
pub(super) fn weigh<E: Vector>(tile: &mut Matrix<E>, scores: Scores<'_>, running: Running<'_, E>) {
    E::weigh_vectors(tile, scores, running);
}

/// Makes scores of the products in `tile`, then weights by each query's logarithm of the sum, which is known. Into
/// `slopes` goes what the softcap's derivative is where there is a cap.
pub(super) fn weigh_again<E: Vector>(
    tile: &mut Matrix<E>,
    slopes: Option<&mut Matrix<E>>,
    scores: Scores<'_>,
    log_sum: &[E],
) {
    E::weigh_again_vectors(tile, slopes, scores, log_sum);
}

/// From gradients of weights to gradients of scores: `P (dP - mean) slope`, the mean of `dP` being each query's.
pub(super) fn differentiate<E: Vector>(
    d_weights: &mut Matrix<E>,
    weights: &Matrix<E>,
    slopes: Option<&Matrix<E>>,
    means: &[E],
) {
    E::differentiate_vectors(d_weights, weights, slopes, means);
}

/// Compiles a function for the vectors that the machine turns out to have.
macro_rules! vectors {
    ($real:ty, $name:ident, $body:ident, ($($arg:ident: $type:ty),*)) => {
        #[allow(unsafe_code, reason = "calling functions compiled for vectors that were found")]
        fn $name($($arg: $type),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f")]
                fn widest($($arg: $type),*) {
                    $body::<$real, true>($($arg),*);
                }
                #[target_feature(enable = "avx2,fma")]
                fn wide($($arg: $type),*) {
                    $body::<$real, true>($($arg),*);
                }
                if is_x86_feature_detected!("avx512f") {
                    // SAFETY: the machine has it.
                    return unsafe { widest($($arg),*) };
                }
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    // SAFETY: the machine has both features.
                    return unsafe { wide($($arg),*) };
                }
            }
            $body::<$real, { cfg!(target_arch = "aarch64") }>($($arg),*);
        }
    };
}

macro_rules! tiles {
    ($real:ty) => {
        vectors!(
            $real,
            weigh_vectors,
            weigh_tile,
            (tile: &mut Matrix<$real>, scores: Scores<'_>, running: Running<'_, $real>)
        );
        vectors!(
            $real,
            weigh_again_vectors,
            weigh_tile_again,
            (
                tile: &mut Matrix<$real>,
                slopes: Option<&mut Matrix<$real>>,
                scores: Scores<'_>,
                log_sum: &[$real]
            )
        );
        vectors!(
            $real,
            differentiate_vectors,
            differentiate_tile,
            (
                d_weights: &mut Matrix<$real>,
                weights: &Matrix<$real>,
                slopes: Option<&Matrix<$real>>,
                means: &[$real]
            )
        );
    };
}

#[inline(always)]
fn fused<E: Real, const FUSED: bool>(a: E, b: E, c: E) -> E {
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
        // Adding 1.5 · 2²³ rounds to an integer, which is then in the last bits.
        const ROUND: f32 = 12_582_912.0;
        const LEAST: f32 = -126.0;
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

    tiles!(f32);
}

impl Vector for f64 {
    #[inline(always)]
    fn power<const FUSED: bool>(self) -> Self {
        self.exp2()
    }

    #[inline(always)]
    fn bounded<const FUSED: bool>(self) -> Self {
        self.tanh()
    }

    tiles!(f64);
}

/// Scores of a row's products; hidden ones are very negative. With a cap, `slopes` gets its derivative.
#[inline(always)]
fn score_row<E: Vector, const FUSED: bool>(
    row: &mut [E],
    slopes: Option<&mut [E]>,
    key: usize,
    scores: Scores<'_>,
    all: bool,
) {
    if let Some(cap) = scores.cap {
        let (cap, inverse, one) = (E::of(cap), E::of(1.0 / cap), E::of(1.0));
        if let Some(slopes) = slopes {
            let slopes = &mut slopes[..row.len()];
            for i in 0..row.len() {
                let bounded = (row[i] * inverse).bounded::<FUSED>();
                slopes[i] = one - bounded * bounded;
                row[i] = bounded * cap;
            }
        } else {
            for x in row.iter_mut() {
                *x = (*x * inverse).bounded::<FUSED>() * cap;
            }
        }
    }
    if let Some(offsets) = scores.offsets {
        let offset = E::of(offsets[key]);
        if offset < E::of(0.0) || offset > E::of(0.0) {
            for x in row.iter_mut() {
                *x += offset;
            }
        }
    }
    if !all {
        let (from, to) = scores.seen.columns(key, row.len());
        row[..from].fill(E::of(HIDDEN));
        row[to..].fill(E::of(HIDDEN));
    }
}

#[inline(always)]
fn weigh_tile<E: Vector, const FUSED: bool>(
    tile: &mut Matrix<E>,
    scores: Scores<'_>,
    running: Running<'_, E>,
) {
    let columns = tile.row(0).len();
    let all = scores.seen.all(tile.rows().count(), columns);
    let Running { top, sum, factor } = running;
    let (top, sum, factor) = (&mut top[..columns], &mut sum[..columns], &mut factor[..columns]);
    factor.copy_from_slice(top);
    for (key, row) in tile.rows_mut().enumerate() {
        let row = &mut row[..columns];
        score_row::<E, FUSED>(row, None, key, scores, all);
        for i in 0..columns {
            top[i] = if row[i] > top[i] { row[i] } else { top[i] };
        }
    }
    for i in 0..columns {
        factor[i] = (factor[i] - top[i]).power::<FUSED>();
        sum[i] = sum[i] * factor[i];
    }
    for row in tile.rows_mut() {
        let row = &mut row[..columns];
        for i in 0..columns {
            row[i] = (row[i] - top[i]).power::<FUSED>();
            sum[i] += row[i];
        }
    }
}

#[inline(always)]
fn weigh_tile_again<E: Vector, const FUSED: bool>(
    tile: &mut Matrix<E>,
    mut slopes: Option<&mut Matrix<E>>,
    scores: Scores<'_>,
    log_sum: &[E],
) {
    let columns = tile.row(0).len();
    let all = scores.seen.all(tile.rows().count(), columns);
    let log_sum = &log_sum[..columns];
    for (key, row) in tile.rows_mut().enumerate() {
        let row = &mut row[..columns];
        let slopes = slopes.as_deref_mut().map(|slopes| slopes.row_mut(key));
        score_row::<E, FUSED>(row, slopes, key, scores, all);
        for i in 0..columns {
            row[i] = (row[i] - log_sum[i]).power::<FUSED>();
        }
    }
}

#[inline(always)]
fn differentiate_tile<E: Vector, const FUSED: bool>(
    d_weights: &mut Matrix<E>,
    weights: &Matrix<E>,
    slopes: Option<&Matrix<E>>,
    means: &[E],
) {
    let columns = weights.row(0).len();
    let means = &means[..columns];
    for (key, (row, weights)) in d_weights.rows_mut().zip(weights.rows()).enumerate() {
        let (row, weights) = (&mut row[..columns], &weights[..columns]);
        for i in 0..columns {
            row[i] = weights[i] * (row[i] - means[i]);
        }
        if let Some(slopes) = slopes {
            let slopes = &slopes.row(key)[..columns];
            for i in 0..columns {
                row[i] *= slopes[i];
            }
        }
    }
}
