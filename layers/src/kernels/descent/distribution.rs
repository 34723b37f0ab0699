//! Weights whose columns are distributions, where `W_c` is set: `W = c softmax(A)` per column of outputs, and back.
//!
//! ```text
//! DA = W ∘ (DW - Σ_i W DW / c),   Dc = Σ W ∘ DW / c
//! ```

use crate::kernels::dense::Matrix;
use crate::kernels::lanes::{part, put_part};
use crate::kernels::vector::{Vector, Work, fused, vectorised};

use super::softmax::WIDE;

/// `W = c softmax(A)` per column.
pub(super) fn set_weights<E: Vector>(accumulated: &Matrix<E>, size: E, weights: &mut Matrix<E>) {
    vectorised(SetWeights { accumulated, size, weights });
}

struct SetWeights<'a, E> {
    accumulated: &'a Matrix<E>,
    size: E,
    weights: &'a mut Matrix<E>,
}

impl<E: Vector> Work for SetWeights<'_, E> {
    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let Self { accumulated, size, weights } = self;
        for first in (0..accumulated.columns()).step_by(WIDE) {
            let mut top = [E::of(f64::NEG_INFINITY); WIDE];
            for row in accumulated.rows() {
                let a = part::<E, WIDE>(row, first);
                for j in 0..WIDE {
                    top[j] = if a[j] > top[j] { a[j] } else { top[j] };
                }
            }
            let mut sum = [E::default(); WIDE];
            for (row, to) in accumulated.rows().zip(weights.rows_mut()) {
                let mut a = part::<E, WIDE>(row, first);
                for j in 0..WIDE {
                    a[j] = (a[j] - top[j]).exponential::<FUSED>();
                    sum[j] += a[j];
                }
                put_part(&a, to, first);
            }
            for sum in &mut sum {
                *sum = size / *sum;
            }
            for to in weights.rows_mut() {
                let mut w = part::<E, WIDE>(to, first);
                for j in 0..WIDE {
                    w[j] *= sum[j];
                }
                put_part(&w, to, first);
            }
        }
    }
}

/// Adds to the gradient of `A`, from that of `W`, which it clears; returns the gradient of `c`.
pub(super) fn weights_back<E: Vector>(
    weights: &Matrix<E>,
    size: E,
    d_weights: &mut Matrix<E>,
    to: &mut Matrix<E>,
) -> f64 {
    let d_size = weights.dot(d_weights) / size.to_f64();
    vectorised(WeightsBack { weights, size, d_weights, to });
    d_size
}

struct WeightsBack<'a, E> {
    weights: &'a Matrix<E>,
    size: E,
    d_weights: &'a mut Matrix<E>,
    to: &'a mut Matrix<E>,
}

impl<E: Vector> Work for WeightsBack<'_, E> {
    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let Self { weights, size, d_weights, to } = self;
        for first in (0..weights.columns()).step_by(WIDE) {
            let mut mean = [E::default(); WIDE];
            for (w, d) in weights.rows().zip(d_weights.rows()) {
                let (w, d) = (part::<E, WIDE>(w, first), part::<E, WIDE>(d, first));
                for j in 0..WIDE {
                    mean[j] = fused::<E, FUSED>(w[j], d[j], mean[j]);
                }
            }
            for mean in &mut mean {
                *mean = *mean / size;
            }
            for ((w, d), to) in weights.rows().zip(d_weights.rows_mut()).zip(to.rows_mut()) {
                let (w, slope, mut found) =
                    (part::<E, WIDE>(w, first), part::<E, WIDE>(d, first), part::<E, WIDE>(to, first));
                for j in 0..WIDE {
                    found[j] = fused::<E, FUSED>(w[j], slope[j] - mean[j], found[j]);
                }
                put_part(&found, to, first);
                put_part(&[E::default(); WIDE], d, first);
            }
        }
    }
}
