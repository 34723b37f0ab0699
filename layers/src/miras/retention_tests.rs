use super::*;
use crate::testing::{Draw, error, gap, numbers};
use burn::tensor::{DType, Device};

fn random(seed: u64, low: f64, high: f64) -> Tensor<4> {
    Draw::new(seed).tensor([2, 2, 3, 5], low, high).cast(DType::F64)
}

fn map(retention: Retention, start: &[Tensor<4>]) -> Map {
    let sums = vec![Tensor::ones([1, 2, 1, 1], (&Device::flex(), DType::F64)).mul_scalar(0.7)];
    Map::new(retention, start, sums)
}

fn fast(running: Tensor<4>, anchor: Tensor<4>) -> Fast {
    Fast { running: vec![running], anchor: vec![anchor], momentum: Vec::new() }
}

#[test]
fn divergences_keep_rows_and_satisfy_their_optimality_conditions() {
    let a = random(1, -1.5, 1.5);
    for divergence in [Divergence::ChiSquare, Divergence::ReverseKl] {
        let kept = map(Retention::FDivergence { divergence }, &[]);
        let from = random(2, 0.1, 1.0);
        let w = kept.weights(0, a.clone(), &from);
        assert!(numbers(w.clone()).iter().all(|w| *w >= 0.0), "{divergence:?}");
        assert!(gap(w.clone().sum_dim(3), from.clone().sum_dim(3)) < 1e-12, "{divergence:?}");
        // f'(W/W_c) - A is one number per row, and no less where the weight is 0.
        let (w, from, a) = (numbers(w), numbers(from), numbers(a.clone()));
        for row in 0..12 {
            let at = |i: usize| row * 5 + i;
            let multiplier = |i: usize| {
                let ratio = w[at(i)] / from[at(i)];
                let slope = if divergence == Divergence::ChiSquare { ratio - 1.0 } else { -1.0 / ratio };
                slope - a[at(i)]
            };
            let inner: Vec<usize> = (0..5).filter(|i| w[at(*i)] > 0.0).collect();
            for i in 0..5 {
                let gap = multiplier(i) - multiplier(inner[0]);
                assert!(if inner.contains(&i) { gap.abs() < 1e-9 } else { gap > -1e-9 }, "{gap}");
            }
        }
        // No gradients, no change.
        let from = random(2, 0.1, 1.0);
        assert!(gap(kept.weights(0, from.zeros_like(), &from), from) < 1e-12);
    }
    // Hard zeros occur.
    let chi = map(Retention::FDivergence { divergence: Divergence::ChiSquare }, &[]);
    let w = chi.weights(0, a.mul_scalar(4.0), &random(2, 0.1, 1.0));
    assert!(numbers(w).contains(&0.0));
}

#[test]
fn a_divergence_starts_each_chunk_from_its_weights() {
    let kept = map(Retention::FDivergence { divergence: Divergence::ReverseKl }, &[]);
    let next = kept.boundary(&fast(random(1, -0.5, 0.5), random(2, 0.1, 1.0)));
    assert!(numbers(next.running[0].clone()).iter().all(|a| *a == 0.0));
    let expected = kept.weights(0, random(1, -0.5, 0.5), &random(2, 0.1, 1.0));
    assert!(gap(next.anchor[0].clone(), expected) < 1e-12);
    let start = kept.start(vec![random(3, -1.0, 1.0)]);
    assert!(error(&numbers(start.anchor[0].clone().sum_dim(3)), &[0.7; 12]) < 1e-12);
}

#[test]
fn accumulated_logarithms_are_the_iterated_softmax() {
    let kept = map(Retention::Kl, &[]);
    let mut running = random(4, -1.0, 1.0);
    let mut w = kept.weights(0, running.clone(), &running);
    for (t, alpha) in [0.9, 1.0, 0.5, 0.99].into_iter().enumerate() {
        let g = random(5 + t as u64, -1.0, 1.0);
        let logits = (w / kept.sums[0].clone()).log().mul_scalar(alpha) - g.clone();
        w = activation::softmax(logits, 3) * kept.sums[0].clone();
        running = running.mul_scalar(alpha) - g;
        assert!(gap(kept.weights(0, running.clone(), &running), w.clone()) < 1e-12);
    }
}

#[test]
fn normalisers_agree_up_to_a_constant_and_start_from_the_learned_weights() {
    let start = random(6, -1.0, 1.0);
    let lq = |map| Retention::Lq { q: 4.0, map };
    let literal = map(lq(LqMap::Literal { floor: 1e-9 }), std::slice::from_ref(&start));
    let rescaled = map(lq(LqMap::Rescaled { clamp: 4.0 }), std::slice::from_ref(&start));
    for kept in [&literal, &rescaled] {
        let first = kept.start(vec![start.clone()]);
        assert!(gap(kept.at_anchor(&first.anchor)[0].clone(), start.clone()) < 1e-10);
    }
    // The printed rule: W = A / |A|_4².
    let a = random(7, -1.0, 1.0);
    let fourth = a.clone().square().square().sum_dim(3).sum_dim(2).sqrt();
    assert!(gap(literal.weights(0, a.clone(), &a), a.clone() / fourth.clone()) < 1e-10);
    let ratio = rescaled.weights(0, a.clone(), &a) * fourth / a.clone();
    let first = |x: &Tensor<4>| x.clone().narrow(3, 0, 1).narrow(2, 0, 1);
    assert!(gap(ratio.clone(), first(&ratio).expand([2, 2, 3, 5])) < 1e-9);
    // Far from the start the literal map explodes, the rescaled one does not.
    let faded = a.clone().mul_scalar(0.99f64.powi(1000));
    let size = |w: Tensor<4>| numbers(w.abs().max())[0];
    assert!(size(literal.weights(0, faded.clone(), &faded)) > 1e3);
    assert!(size(rescaled.weights(0, faded.clone(), &faded)) < 20.0);
    let zero = a.zeros_like();
    assert!(size(rescaled.weights(0, zero.clone(), &zero)) == 0.0);
}

#[test]
fn the_exact_link_is_the_gradient_of_half_the_squared_norm() {
    let a = random(8, -1.0, 1.0);
    let link = |q: f64| map(Retention::Lq { q, map: LqMap::ExactLink { scale: 1.0 } }, &[]);
    assert!(gap(link(2.0).weights(0, a.clone(), &a), a.clone()) < 1e-12);
    for q in [2.5, 3.0, 4.0] {
        let w = link(q).weights(0, a.clone(), &a);
        let squared = numbers(norm(&a, q).square());
        // ⟨W, A⟩ = |A|_q², and the dual norm of W is |A|_q.
        assert!(error(&numbers((w.clone() * a.clone()).sum_dim(3).sum_dim(2)), &squared) < 1e-10, "{q}");
        assert!(error(&numbers(norm(&w, q / (q - 1.0)).square()), &squared) < 1e-10, "{q}");
    }
}

#[test]
fn norms_of_tiny_and_of_no_weights_are_finite() {
    let device = Device::flex().autodiff();
    for size in [0.0, 1e-15, 1e15] {
        let a = Tensor::<4>::ones([1, 1, 2, 2], &device).mul_scalar(size).require_grad();
        let value = norm(&a, 4.0);
        let grads = value.clone().sum().backward();
        assert!(error(&numbers(value.mul_scalar(1.0 / f64::max(size, 1.0))), &[0.0]).is_finite());
        assert!(numbers(a.grad(&grads).unwrap()).iter().all(|g| g.is_finite()), "{size}");
    }
}

#[test]
fn small_weights_become_zero_once_per_chunk() {
    let z = random(9, -1.0, 1.0);
    let expected: Vec<f64> =
        numbers(z.clone()).iter().map(|z| z.signum() * (z.abs() - 0.4).max(0.0)).collect();
    for dual in [false, true] {
        let kept = map(Retention::ElasticNet { threshold: 0.4, dual }, &[]);
        assert!(error(&numbers(kept.weights(0, z.clone(), &z)), &expected) < 1e-12);
        let next = kept.boundary(&fast(z.clone(), z.clone()));
        let carried = if dual { numbers(z.clone()) } else { expected.clone() };
        assert!(error(&numbers(next.running[0].clone()), &carried) < 1e-12);
        // Either way the chunk begins at the same weights.
        assert!(error(&numbers(kept.at_anchor(&next.anchor)[0].clone()), &expected) < 1e-12);
    }
}
