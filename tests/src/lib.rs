//! What the project's tests share: golden vectors and their verdicts, and the measures of error.

pub mod golden;

use seqzoo_layers::Value;

fn norm(x: impl Iterator<Item = f64>) -> f64 {
    x.map(|x| x * x).sum::<f64>().sqrt()
}

fn difference(a: &[f64], b: &[f64]) -> f64 {
    norm(a.iter().zip(b).map(|(a, b)| a - b))
}

/// `‖a - b‖ / max(‖b‖, 0.01 √len)`: the golden vectors' metric `rel_l2_floor_rms_0.01`.
pub fn error(a: &[f64], b: &[f64]) -> f64 {
    difference(a, b) / norm(b.iter().copied()).max(0.01 * (b.len() as f64).sqrt())
}

/// `‖a - b‖ / ‖b‖`: how far two ways of computing the same are apart.
///
/// # Panics
/// When the tensors differ in size or cannot be read.
pub fn gap(a: impl Into<Value>, b: impl Into<Value>) -> f64 {
    let [a, b] = [a.into(), b.into()].map(|value| value.to_f64().expect("a readable tensor"));
    assert_eq!(a.len(), b.len(), "different numbers of elements");
    difference(&a, &b) / norm(b.into_iter()).max(1e-30)
}

#[cfg(test)]
mod tests {
    use super::error;

    #[test]
    fn the_metric_is_relative_with_a_floor() {
        assert_eq!(error(&[3.0, 4.0], &[3.0, 4.0]), 0.0);
        assert_eq!(error(&[0.0, 0.0], &[3.0, 4.0]), 1.0);
        // Both numbers are far below 0.01: the floor divides.
        assert!((error(&[1e-4, 0.0, 0.0, 0.0], &[0.0; 4]) - 0.005).abs() < 1e-12);
        assert!(error(&[f64::NAN], &[1.0]).is_nan());
    }
}
