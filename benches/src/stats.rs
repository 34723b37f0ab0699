//! Medians and what is known of them. Samples come in rounds: those of one round share their process and their
//! moment, so the bootstrap draws rounds first and samples of a drawn round second.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Resamples of a bootstrap where nothing else is said.
pub const RESAMPLES: usize = 1000;

/// The value below which the share `q` of the samples lies, between neighbours where need be; NaN of nothing.
pub fn quantile(samples: &[f64], q: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    of_sorted(&sorted, q)
}

fn of_sorted(sorted: &[f64], q: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let place = q.clamp(0.0, 1.0) * last as f64;
    let (low, high) = (place.floor() as usize, place.ceil() as usize);
    sorted[low] + (sorted[high] - sorted[low]) * (place - low as f64)
}

/// The middle value.
pub fn median(samples: &[f64]) -> f64 {
    quantile(samples, 0.5)
}

/// The rounds of a resample, by index: as many as there are, with repetition.
pub fn draw(rounds: usize, rng: &mut ChaCha8Rng) -> Vec<usize> {
    (0..rounds).map(|_| rng.random_range(0..rounds.max(1))).collect()
}

/// A quantile of a resample: of each drawn round as many of its samples as it has, with repetition.
pub fn resampled(q: f64, rounds: &[Vec<f64>], draw: &[usize], rng: &mut ChaCha8Rng) -> f64 {
    let mut samples: Vec<f64> = Vec::new();
    for round in draw.iter().filter_map(|&i| rounds.get(i)).filter(|round| !round.is_empty()) {
        samples.extend((0..round.len()).map(|_| round[rng.random_range(0..round.len())]));
    }
    samples.sort_by(f64::total_cmp);
    of_sorted(&samples, q)
}

/// The middle `level` of a statistic over `resamples` seeded draws; values that are not finite are left out.
pub fn interval(
    level: f64,
    resamples: usize,
    mut statistic: impl FnMut(&mut ChaCha8Rng) -> f64,
) -> (f64, f64) {
    let mut rng = ChaCha8Rng::seed_from_u64(0x5ca1e);
    let mut values: Vec<f64> =
        (0..resamples).map(|_| statistic(&mut rng)).filter(|v| v.is_finite()).collect();
    values.sort_by(f64::total_cmp);
    let tail = (1.0 - level) / 2.0;
    (of_sorted(&values, tail), of_sorted(&values, 1.0 - tail))
}

/// The median of all samples and its interval.
pub fn median_interval(rounds: &[Vec<f64>], level: f64) -> (f64, (f64, f64)) {
    let all: Vec<f64> = rounds.iter().flatten().copied().collect();
    let interval = interval(level, RESAMPLES, |rng| {
        let draw = draw(rounds.len(), rng);
        resampled(0.5, rounds, &draw, rng)
    });
    (median(&all), interval)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_neighbours() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(quantile(&[0.0, 10.0], 0.95), 9.5);
        assert_eq!(quantile(&[4.0], 0.99), 4.0);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn an_interval_covers_the_spread_between_rounds() {
        // No spread inside a round at all: what is unknown is which rounds a run meets.
        let rounds = [vec![1.0; 9], vec![1.1; 9], vec![1.3; 9]];
        let (middle, (low, high)) = median_interval(&rounds, 0.95);
        assert_eq!((middle, low, high), (1.1, 1.0, 1.3));
        let (_, (low, high)) = median_interval(&[vec![2.0; 3]], 0.95);
        assert_eq!((low, high), (2.0, 2.0));
    }
}
