use burn::tensor::Device;

use super::*;
use crate::system::Mixer;
use crate::testing::{Draw, gap, numbers};

#[test]
fn feature_maps_are_what_they_say() {
    let x = Tensor::<1>::from_data([-2.0, -0.5, 0.0, 1.5], &Device::flex());
    let map = |map: FeatureMap| numbers(map.apply(x.clone()));
    assert_eq!(map(FeatureMap::Identity), [-2.0, -0.5, 0.0, 1.5]);
    assert_eq!(map(FeatureMap::Relu), [0.0, 0.0, 0.0, 1.5]);
    assert_eq!(map(FeatureMap::Square), [4.0, 0.25, 0.0, 2.25]);
    let expected = [(-2.0_f64).exp(), (-0.5_f64).exp(), 1.0, 2.5];
    for (a, b) in map(FeatureMap::EluPlusOne).into_iter().zip(expected) {
        assert!((a - b).abs() < 1e-6);
    }
}

#[test]
fn a_sum_over_signed_features_is_refused() {
    let init = |config: LinearAttentionConfig| config.init(8, &mut Init::new(0, &Device::flex()));
    let sum = LinearAttentionConfig { heads: 2, ..Default::default() };
    let signed = LinearAttentionConfig { feature_map: FeatureMap::Identity, ..sum.clone() };
    let message = init(signed.clone()).expect_err("must fail").to_string();
    assert!(message.contains("use another feature map"), "{message}");
    let normed = LinearAttentionConfig { normalizer: Normalizer::HeadNorm { eps: 1e-5 }, ..signed };
    assert!(init(normed).is_ok());
    assert!(init(LinearAttentionConfig { heads: 3, ..sum.clone() }).is_err());
    assert!(init(LinearAttentionConfig { normalizer: Normalizer::Sum { eps: 0.0 }, ..sum.clone() }).is_err());
    assert!(init(LinearAttentionConfig { scale: Some(-1.0), ..sum }).is_err());
}

/// The implied attention of the normalised form has rows that sum to 1, and is what the layer applies.
#[test]
fn the_implied_attention_is_normalised() {
    let config = LinearAttentionConfig { heads: 2, ..Default::default() };
    let layer = config.init(8, &mut Init::new(3, &Device::flex())).unwrap();
    let x = Draw::new(4).tensor([2, 7, 8], -1.0, 1.0);
    let start = Mixer::initial_state(&layer, 2);
    let attention = layer.views(x.clone(), start.clone()).unwrap().attention.unwrap();
    let rows = attention.clone().sum_dim(3);
    assert!(gap(rows.clone(), rows.ones_like()) < 1e-5);
    let v = split_heads(layer.v_proj.forward(x.clone()), 2);
    let y = layer.out_proj.forward(merge_heads(attention.matmul(v)));
    let (expected, state) = layer.forward(x.clone(), start, Form::Recurrent).unwrap();
    assert!(gap(y, expected) < 1e-5);
    // continued from a state, the past keeps its share
    let later = layer.views(x, state).unwrap().attention.unwrap().sum_dim(3);
    assert!(numbers(later).iter().all(|&row| row > 0.0 && row < 0.9));
}
