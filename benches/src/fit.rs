//! Scaling: `seconds = a + b · T^c`, fitted to the medians at each length by relative error.

use crate::stats::{draw, interval, median, resampled};

/// Resamples of the interval on the exponent.
const RESAMPLES: usize = 200;
/// The exponents that are looked at.
const EXPONENTS: (f64, f64) = (0.0, 4.0);
/// Width of the interval above which an exponent says nothing.
const CERTAIN: f64 = 1.0;
/// Growth below which no exponent can be told from noise: it is 0.
const FLAT: f64 = 1.1;
/// Steps of the coarse search, and of each finer one around its best.
const STEPS: usize = 40;

/// A fitted law.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fit {
    /// Seconds at length 0, not negative.
    pub a: f64,
    /// Seconds at length 1 above that.
    pub b: f64,
    /// The exponent.
    pub c: f64,
    /// Middle 95 % of the exponent over resamples.
    pub interval: (f64, f64),
    /// Slope between the last two lengths, in logarithms: what is left of the exponent's uncertainty by `a`.
    pub slope: f64,
}

impl Fit {
    /// Whether the exponent is known well enough to be worth telling.
    pub fn certain(&self) -> bool {
        self.interval.1 - self.interval.0 <= CERTAIN
    }

    /// Seconds at a length.
    pub fn at(&self, length: f64) -> f64 {
        self.a + self.b * length.powf(self.c)
    }
}

/// Samples at one length, by round.
pub type AtLength = (f64, Vec<Vec<f64>>);

/// Fits the law; `None` with fewer than three lengths, where any exponent would do.
pub fn fit(lengths: &[AtLength]) -> Option<Fit> {
    let whole: Vec<(f64, f64)> = (lengths.iter())
        .map(|(length, rounds)| (*length, median(&rounds.iter().flatten().copied().collect::<Vec<_>>())))
        .filter(|(length, seconds)| *length > 0.0 && *seconds > 0.0)
        .collect();
    let (a, b, c) = law(&whole)?;
    let rounds = lengths.iter().map(|(_, rounds)| rounds.len()).max().unwrap_or(0);
    let interval = interval(0.95, RESAMPLES, |rng| {
        // The same rounds at every length: a slow moment slows them all.
        let draw = draw(rounds, rng);
        let points: Vec<(f64, f64)> =
            lengths.iter().map(|(length, rounds)| (*length, resampled(0.5, rounds, &draw, rng))).collect();
        let known: Vec<_> = points.into_iter().filter(|(_, seconds)| seconds.is_finite()).collect();
        law(&known).map_or(f64::NAN, |(_, _, c)| c)
    });
    let [.., (t1, y1), (t2, y2)] = whole.as_slice() else { return None };
    Some(Fit { a, b, c, interval, slope: (y2 / y1).ln() / (t2 / t1).ln() })
}

/// The best `(a, b, c)`: a search over exponents, each with its own best `a` and `b`.
fn law(points: &[(f64, f64)]) -> Option<(f64, f64, f64)> {
    if points.len() < 3 {
        return None;
    }
    let seconds = || points.iter().map(|p| p.1);
    let (least, most) = (seconds().fold(f64::INFINITY, f64::min), seconds().fold(0.0, f64::max));
    if most < FLAT * least {
        return Some((seconds().sum::<f64>() / points.len() as f64, 0.0, 0.0));
    }
    let (mut low, mut high) = EXPONENTS;
    let mut best = (f64::INFINITY, 0.0, 0.0, 0.0);
    for _ in 0..4 {
        let step = (high - low) / STEPS as f64;
        for i in 0..=STEPS {
            let c = low + i as f64 * step;
            let (error, a, b) = line(points, c);
            if error < best.0 {
                best = (error, a, b, c);
            }
        }
        (low, high) = ((best.3 - step).max(EXPONENTS.0), (best.3 + step).min(EXPONENTS.1));
    }
    best.0.is_finite().then_some((best.1, best.2, best.3))
}

/// Least squares of `(a + b T^c) / y - 1` with `a ≥ 0`, `b ≥ 0`: error, `a`, `b`.
fn line(points: &[(f64, f64)], c: f64) -> (f64, f64, f64) {
    // In units of the longest length, so that no power overflows.
    let longest = points.iter().map(|p| p.0).fold(0.0, f64::max);
    let columns: Vec<(f64, f64)> =
        points.iter().map(|&(t, y)| (1.0 / y, (t / longest).powf(c) / y)).collect();
    let sum = |f: fn(&(f64, f64)) -> f64| columns.iter().map(f).sum::<f64>();
    let (uu, uv, vv) = (sum(|p| p.0 * p.0), sum(|p| p.0 * p.1), sum(|p| p.1 * p.1));
    let (u, v) = (sum(|p| p.0), sum(|p| p.1));
    let determinant = uu * vv - uv * uv;
    let (a, b) = ((u * vv - v * uv) / determinant, (v * uu - u * uv) / determinant);
    let (a, b) = match (a >= 0.0, b >= 0.0) {
        (true, true) => (a, b),
        (false, _) => (0.0, v / vv),
        _ => (u / uu, 0.0),
    };
    let error = columns.iter().map(|p| (a * p.0 + b * p.1 - 1.0).powi(2)).sum::<f64>();
    if error.is_finite() { (error, a, b / longest.powf(c)) } else { (f64::INFINITY, 0.0, 0.0) }
}

/// The length from which `rising` lies above `other`, between measured points in logarithms. `None` where they do not
/// cross.
pub fn crossover(rising: &[(f64, f64)], other: &[(f64, f64)]) -> Option<f64> {
    let gaps: Vec<(f64, f64)> = (rising.iter())
        .filter_map(|&(t, y)| other.iter().find(|o| o.0 == t).map(|o| (t.ln(), (y / o.1).ln())))
        .collect();
    let crossing = gaps.windows(2).rev().find(|w| w[0].1 <= 0.0 && w[1].1 > 0.0)?;
    let [(t1, g1), (t2, g2)] = [crossing[0], crossing[1]];
    Some((t1 + (t2 - t1) * -g1 / (g2 - g1)).exp())
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn curve(law: impl Fn(f64) -> f64, noise: f64) -> Vec<AtLength> {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut round = |t: f64| (0..7).map(|_| law(t) * (1.0 + noise * rng.random::<f64>())).collect();
        [128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0]
            .map(|t| (t, (0..3).map(|_| round(t)).collect::<Vec<Vec<f64>>>()))
            .to_vec()
    }

    #[test]
    fn known_exponents_are_found_again() {
        for c in [0.0, 0.5, 1.0, 1.7, 2.0] {
            for a in [0.0, 1e-4] {
                let fit = fit(&curve(|t| a + 2e-6 * t.powf(c), 0.0)).unwrap();
                if c == 0.0 {
                    assert_eq!(fit.c, 0.0, "{fit:?}");
                } else {
                    assert!((fit.c - c).abs() < 0.02, "{c}: {fit:?}");
                    assert!((fit.at(700.0) / (a + 2e-6 * 700f64.powf(c)) - 1.0).abs() < 1e-3, "{fit:?}");
                }
            }
        }
    }

    #[test]
    fn the_interval_holds_the_exponent_under_noise() {
        for c in [1.0, 2.0] {
            let fit = fit(&curve(|t| 1e-4 + 1e-7 * t.powf(c), 0.05)).unwrap();
            assert!(fit.interval.0 - 0.02 <= c && c <= fit.interval.1 + 0.02, "{c}: {fit:?}");
            assert!(fit.certain() && fit.interval.1 - fit.interval.0 < 0.3, "{fit:?}");
        }
    }

    #[test]
    fn noise_alone_has_no_certain_exponent() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let mut round = || (0..3).map(|_| 1e-3 * (1.0 + rng.random::<f64>())).collect::<Vec<f64>>();
        let lengths: Vec<AtLength> =
            [128.0, 512.0, 2048.0].map(|t| (t, (0..3).map(|_| round()).collect())).to_vec();
        let fit = fit(&lengths).unwrap();
        assert!(!fit.certain(), "{fit:?}");
    }

    #[test]
    fn too_few_lengths_make_no_law() {
        assert!(fit(&curve(|t| t, 0.0)[..2]).is_none());
        assert!(fit(&[]).is_none());
    }

    #[test]
    fn curves_cross_where_they_are_equal() {
        let lengths = [64.0, 256.0, 1024.0, 4096.0];
        let linear = lengths.map(|t| (t, 100.0 * t));
        let square = lengths.map(|t| (t, t * t / 4.0));
        let at = crossover(&square, &linear).unwrap();
        assert!((at / 400.0 - 1.0).abs() < 1e-9, "{at}");
        assert!(crossover(&linear, &square).is_none());
    }
}
