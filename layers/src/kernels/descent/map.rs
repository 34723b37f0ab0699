//! From what is accumulated to the weights, and back: the maps of `miras::Retention`.
//!
//! ```text
//! same     W = A
//! softmax  see `softmax`
//! normed   W = ν A,   ν = s^(2-q),   s = clamp(|A|_q / size, least, most)
//!          Dν = Σ DW ∘ A,   D|A| = Dν (2-q) ν / |A| within the limits,   DA += ν DW + D|A| z |z|^(q-2),   z = A / |A|_q
//! ```
//!
//! `ν` is that of `A` where `W_c` was set, also for what tokens read until the next time.

use crate::kernels::dense::Matrix;
use crate::kernels::lanes::{part, put_part};
use crate::kernels::vector::{LANES, Vector, Work, vectorised};

/// How weights come from what is accumulated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Map {
    /// They are that.
    Same,
    /// Times a power of its norm.
    Normed {
        /// The norm's exponent
        q: f64,
        /// Limits of the norm over the size that is given
        least: f64,
        most: f64,
    },
    /// Every column a distribution times a size that is given: `softmax`
    Softmax,
}

/// Below, a largest modulus or a sum of powers counts as this: as in `miras::Retention`.
const SMALLEST: f64 = 1e-20;

/// `ν`, and what the way back needs of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Factor {
    pub(super) value: f64,
    norm: f64,
    /// `dν / d|A|`
    slope: f64,
}

impl Factor {
    /// Of `accumulated`.
    pub(super) fn new<E: Vector>([q, least, most]: [f64; 3], accumulated: &Matrix<E>, size: f64) -> Self {
        let norm = norm(accumulated, q);
        let relative = norm / size;
        let value = relative.clamp(least, most).powf(2.0 - q);
        let inside = (least..=most).contains(&relative);
        Self { value, norm, slope: if inside { (2.0 - q) * value / norm } else { 0.0 } }
    }

    /// Adds to the gradient of what it was made of, and returns that of the size it was compared with.
    pub(super) fn back<E: Vector>(
        self,
        q: f64,
        accumulated: &Matrix<E>,
        size: f64,
        d_value: f64,
        to: &mut Matrix<E>,
    ) -> f64 {
        let d_norm = d_value * self.slope;
        if d_norm != 0.0 {
            let power = Power::new(q - 2.0);
            vectorised(AddSlope { x: accumulated, scale: 1.0 / self.norm, power, factor: d_norm, to });
        }
        -d_norm * self.norm / size
    }
}

/// `|A|_q`
fn norm<E: Vector>(x: &Matrix<E>, q: f64) -> f64 {
    let mut largest = 0.0;
    vectorised(Largest(x, &mut largest));
    let (largest, mut sum) = (largest.max(SMALLEST), 0.0);
    vectorised(SumPowers { x, scale: 1.0 / largest, power: Power::new(q), to: &mut sum });
    sum.max(SMALLEST).powf(1.0 / q) * largest
}

/// An exponent: whole ones are products.
#[derive(Clone, Copy)]
enum Power {
    Whole(usize),
    Any(f64),
}

impl Power {
    fn new(exponent: f64) -> Self {
        if exponent.fract() == 0.0 { Self::Whole(exponent as usize) } else { Self::Any(exponent) }
    }

    /// Of a block's moduli.
    #[inline(always)]
    fn of<E: Vector>(self, x: [E; LANES]) -> [E; LANES] {
        let mut found = [E::of(1.0); LANES];
        match self {
            Self::Whole(count) => {
                for _ in 0..count {
                    for i in 0..LANES {
                        found[i] *= x[i];
                    }
                }
                if !count.is_multiple_of(2) {
                    for power in &mut found {
                        *power = if *power < E::default() { -*power } else { *power };
                    }
                }
            }
            Self::Any(exponent) => {
                for i in 0..LANES {
                    found[i] = E::of(x[i].to_f64().abs().powf(exponent));
                }
            }
        }
        found
    }
}

/// The next numbers of a row times a factor, and 0 after its end.
#[inline(always)]
fn block<E: Vector>(row: &[E], first: usize, scale: E) -> [E; LANES] {
    let mut found: [E; LANES] = part(row, first);
    for x in &mut found {
        *x *= scale;
    }
    found
}

/// The largest modulus.
struct Largest<'a, E>(&'a Matrix<E>, &'a mut f64);

impl<E: Vector> Work for Largest<'_, E> {
    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let mut tops = [E::default(); LANES];
        for row in self.0.rows() {
            for first in (0..row.len()).step_by(LANES) {
                let x = block(row, first, E::of(1.0));
                for i in 0..LANES {
                    let size = if x[i] < E::default() { -x[i] } else { x[i] };
                    tops[i] = if size > tops[i] { size } else { tops[i] };
                }
            }
        }
        for top in tops {
            *self.1 = self.1.max(top.to_f64());
        }
    }
}

/// `Σ |scale x|^power`
struct SumPowers<'a, E> {
    x: &'a Matrix<E>,
    scale: f64,
    power: Power,
    to: &'a mut f64,
}

impl<E: Vector> Work for SumPowers<'_, E> {
    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let mut sums = [0.0; LANES];
        for row in self.x.rows() {
            for first in (0..row.len()).step_by(LANES) {
                let powers = self.power.of(block(row, first, E::of(self.scale)));
                for i in 0..LANES {
                    sums[i] += powers[i].to_f64();
                }
            }
        }
        *self.to += sums.iter().sum::<f64>();
    }
}

/// `to += factor z |z|^power` with `z = scale x`
struct AddSlope<'a, E> {
    x: &'a Matrix<E>,
    scale: f64,
    power: Power,
    factor: f64,
    to: &'a mut Matrix<E>,
}

impl<E: Vector> Work for AddSlope<'_, E> {
    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let factor = E::of(self.factor);
        for (to, x) in self.to.rows_mut().zip(self.x.rows()) {
            for first in (0..x.len()).step_by(LANES) {
                let z = block(x, first, E::of(self.scale));
                let (powers, mut found) = (self.power.of(z), block(to, first, E::of(1.0)));
                for i in 0..LANES {
                    found[i] += factor * z[i] * powers[i];
                }
                put_part(&found, to, first);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Draw;

    fn plain(x: &[f64], q: f64) -> f64 {
        x.iter().map(|x| x.abs().powf(q)).sum::<f64>().powf(1.0 / q)
    }

    /// Norms of any size, rows of any length; slopes by differences.
    #[test]
    fn norms_and_their_slopes_are_those_of_plain_loops() {
        let mut draw = Draw::new(1);
        for (rows, columns) in [(1, 1), (3, 7), (5, 16), (4, 37)] {
            for (q, scale) in [(2.0, 1.0), (2.5, 1e-3), (3.0, 1e15), (4.0, 1e-15), (8.0, 1.0)] {
                let mut numbers = draw.numbers(rows * columns, -scale, scale);
                let mut matrix = Matrix::new(rows, columns);
                matrix.set_rows(&numbers);
                let found = norm(&matrix, q);
                assert!((found / plain(&numbers, q) - 1.0).abs() < 1e-12, "q = {q}: {found:e}");

                let factor = Factor::new([q, 0.0, f64::INFINITY], &matrix, scale);
                let mut slopes = Matrix::new(rows, columns);
                let d_size = factor.back(q, &matrix, scale, 0.7, &mut slopes);
                let value = |numbers: &[f64], size: f64| 0.7 * (plain(numbers, q) / size).powf(2.0 - q);
                let gap = 1e-6 * scale;
                let at = |size| value(&numbers, size);
                let by_size = (at(scale + gap) - at(scale - gap)) / (2.0 * gap);
                assert!(
                    (d_size - by_size).abs() <= 1e-8 * by_size.abs(),
                    "q = {q}: {d_size:e} for {by_size:e}"
                );
                let slopes: Vec<f64> = slopes.rows().flatten().copied().collect();
                for (i, slope) in slopes.iter().enumerate() {
                    let kept = numbers[i];
                    let mut at = |x| {
                        numbers[i] = x;
                        value(&numbers, scale)
                    };
                    let expected = (at(kept + gap) - at(kept - gap)) / (2.0 * gap);
                    numbers[i] = kept;
                    assert!((slope - expected).abs() < 1e-7 / scale, "q = {q}: {slope:e} for {expected:e}");
                }
            }
        }
    }

    #[test]
    fn beyond_its_limits_it_is_constant() {
        let mut matrix = Matrix::new(2, 3);
        matrix.set_rows(&[1.0, 2.0, -3.0, 0.5, 0.0, 1.0]);
        let mut slopes = Matrix::new(2, 3);
        let factor = Factor::new([4.0, 0.25, 2.0], &matrix, 1.0);
        assert_eq!((factor.value, factor.back(4.0, &matrix, 1.0, 1.0, &mut slopes)), (0.25, 0.0));
        assert!(slopes.rows().flatten().all(|&slope| slope == 0.0));
        // Nothing accumulated.
        let factor = Factor::new([4.0, 0.25, 2.0], &Matrix::<f64>::new(2, 3), 1.0);
        assert_eq!((factor.value, factor.back(4.0, &matrix, 1.0, 1.0, &mut slopes)), (16.0, 0.0));
    }
}
