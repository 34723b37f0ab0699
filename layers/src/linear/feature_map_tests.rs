use burn::tensor::Device;

use super::*;
use crate::testing::{Draw, gap, numbers};

fn features(map: FeatureMap, n: usize) -> Features {
    map.init(n, "test", &mut Init::new(0, &Device::flex())).unwrap()
}

fn apply(map: FeatureMap, x: Tensor<4>) -> Tensor<4> {
    let (features, n) = (features(map, x.dims()[3]), x.dims()[3]);
    let y = features.apply(x.clone(), &vec![0; x.dims()[0]]);
    assert_eq!(y.dims()[3], map.size(n), "{map:?}");
    y
}

fn dot(x: Tensor<4>, y: Tensor<4>) -> Tensor<4> {
    (x * y).sum_dim(3)
}

#[test]
fn pointwise_maps_are_what_they_say() {
    let x = Tensor::<4>::from_data([[[[-2.0, -0.5, 0.0, 1.5]]]], &Device::flex());
    let map = |map| numbers(apply(map, x.clone()));
    assert_eq!(map(FeatureMap::Identity), [-2.0, -0.5, 0.0, 1.5]);
    assert_eq!(map(FeatureMap::Relu), [0.0, 0.0, 0.0, 1.5]);
    assert_eq!(map(FeatureMap::Square), [4.0, 0.25, 0.0, 2.25]);
    let close = |found: Vec<f64>, expected: [f64; 4]| {
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{found:?}");
    };
    close(map(FeatureMap::EluPlusOne), [(-2.0_f64).exp(), (-0.5_f64).exp(), 1.0, 2.5]);
    close(map(FeatureMap::Exp), [-2.0, -0.5, 0.0, 1.5].map(f64::exp));
    let far = Tensor::<4>::full([1, 1, 1, 2], 1e4, &Device::flex());
    assert!(numbers(apply(FeatureMap::Exp, far)).iter().all(|y| y.is_finite()));
}

#[test]
fn neighbour_products_are_those_of_the_paper() {
    let x = Tensor::<4>::from_data([[[[2.0, -3.0]]]], &Device::flex());
    // r = [2, 0, 0, 3]; rolled by one [3, 2, 0, 0], by two [0, 3, 2, 0]
    let expected = [6.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
    assert_eq!(numbers(apply(FeatureMap::Dpfp { nu: 2 }, x)), expected);
}

/// The second-order features are the Taylor polynomial of the exponential: exact as a polynomial, and off by
/// the third order from the exponential itself.
#[test]
fn taylor_features_approximate_the_exponential() {
    let mut draw = Draw::new(3);
    let (q, k) = (draw.tensor([2, 2, 5, 6], -1.0, 1.0), draw.tensor([2, 2, 5, 6], -1.0, 1.0));
    for size in [1.0, 0.3, 0.1] {
        let q = q.clone().mul_scalar(size);
        let s = dot(q.clone(), k.clone()).mul_scalar(6.0_f64.powf(-0.5));
        let found = dot(apply(FeatureMap::Taylor, q), apply(FeatureMap::Taylor, k.clone()));
        let polynomial = s.clone().square().mul_scalar(0.5) + s.clone() + 1.0;
        assert!(gap(found.clone(), polynomial) < 1e-6);
        let cubic = numbers(s.clone()).into_iter().map(|s| s.abs().powi(3)).fold(0.0, f64::max);
        let off = numbers((found - s.exp()).abs()).into_iter().fold(0.0, f64::max);
        assert!(off < 0.3 * cubic + 1e-6, "{off} for third powers up to {cubic}");
    }
    let square = dot(quadratic_features(q.clone()), quadratic_features(k.clone()));
    assert!(gap(square, dot(q, k).square().mul_scalar(1.0 / 6.0)) < 1e-6);
}

/// Rectified scores times the cosine of the distance, wherever the two tokens stand.
#[test]
fn cosformer_weighs_scores_by_the_cosine_of_the_distance() {
    let mut draw = Draw::new(4);
    let (q, k) = (draw.tensor::<4>([2, 2, 7, 3], -1.0, 1.0), draw.tensor::<4>([2, 2, 7, 3], -1.0, 1.0));
    let map = features(FeatureMap::Cosformer { length: 9 }, 3);
    for starts in [[0, 0], [5, 5], [2, 6]] {
        let scores = map.apply(q.clone(), &starts);
        let scores = scores.matmul(map.apply(k.clone(), &starts).swap_dims(2, 3));
        let cosines: Vec<f64> = (0..49)
            .map(|at| (std::f64::consts::FRAC_PI_2 * ((at / 7) as f64 - (at % 7) as f64) / 9.0).cos())
            .collect();
        let cosines = Tensor::<4>::from_data(TensorData::new(cosines, [1, 1, 7, 7]), &Device::flex());
        let plain = activation::relu(q.clone()).matmul(activation::relu(k.clone()).swap_dims(2, 3));
        assert!(gap(scores, plain * cosines) < 1e-6);
    }
}

#[test]
fn hedgehog_features_are_a_distribution() {
    let x = Draw::new(5).tensor::<4>([1, 2, 4, 3], -3.0, 3.0);
    let total = |form, of: usize| {
        let y = apply(FeatureMap::Hedgehog { form }, x.clone());
        assert!(numbers(y.clone()).iter().all(|&y| y > 0.0));
        numbers(y.narrow(3, 0, of).sum_dim(3))
    };
    assert!(total(HedgehogForm::Joint, 6).iter().all(|sum| (sum - 1.0).abs() < 1e-6));
    assert!(total(HedgehogForm::Halves, 3).iter().all(|sum| (sum - 1.0).abs() < 1e-6));
    // W starts as the identity: e^x e^{-x} = 1
    let y = apply(FeatureMap::Hedgehog { form: HedgehogForm::Exp }, x);
    let product = numbers(y.clone().narrow(3, 0, 3) * y.narrow(3, 3, 3));
    assert!(product.iter().all(|p| (p - 1.0).abs() < 1e-5));
}

#[test]
fn random_projections_are_orthogonal_in_blocks_and_repeat_with_their_seed() {
    let (m, n) = (11, 4);
    let rows = orthogonal_rows(m, n, 7);
    assert_eq!(rows, orthogonal_rows(m, n, 7));
    assert_ne!(rows, orthogonal_rows(m, n, 8));
    let product = |i: usize, j: usize| (0..n).map(|c| rows[i * n + c] * rows[j * n + c]).sum::<f64>();
    for block in [0..4, 4..8, 8..11] {
        for i in block.clone() {
            assert!(block.clone().all(|j| i == j || product(i, j).abs() < 1e-12));
        }
    }
    // squared lengths have the mean n of a standard normal vector
    let many = orthogonal_rows(4000, n, 1);
    let mean = many.iter().map(|x| x * x).sum::<f64>() / 4000.0;
    assert!((mean - 4.0).abs() < 0.2, "{mean}");
}

/// More features, a better estimate of the exponential: the error falls like `1/√m`.
#[test]
fn random_features_estimate_the_exponential_kernel() {
    let mut draw = Draw::new(6);
    let (q, k) = (draw.tensor::<4>([1, 1, 8, 4], -1.0, 1.0), draw.tensor::<4>([1, 1, 8, 4], -1.0, 1.0));
    let exact = q.clone().matmul(k.clone().swap_dims(2, 3)).mul_scalar(0.5).exp();
    let error = |m: usize| {
        let errors = (0..4).map(|seed| {
            let map = features(FeatureMap::Favor { features: Some(m), seed }, 4);
            let projection = map.projection(&Device::flex(), DType::F32);
            let phi = |x: &Tensor<4>| favor_features(x.clone(), projection.clone(), FavorShift::None);
            gap(phi(&q).matmul(phi(&k).swap_dims(2, 3)), exact.clone())
        });
        errors.sum::<f64>() / 4.0
    };
    let (few, many) = (error(16), error(4096));
    assert!(many < 0.03 && many < few / 4.0, "{few} with few features, {many} with many");
}

#[test]
fn impossible_maps_are_refused() {
    let refused = |map: FeatureMap| {
        let error = map.init(2, "test", &mut Init::new(0, &Device::flex())).unwrap_err().to_string();
        assert!(error.contains("feature_map."), "{error}");
    };
    refused(FeatureMap::Dpfp { nu: 0 });
    refused(FeatureMap::Dpfp { nu: 4 });
    refused(FeatureMap::T2r { features: Some(0) });
    refused(FeatureMap::Favor { features: Some(0), seed: 0 });
    refused(FeatureMap::Cosformer { length: 0 });
}
