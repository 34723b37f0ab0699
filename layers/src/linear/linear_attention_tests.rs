use burn::tensor::Device;

use super::*;
use crate::testing::{Draw, gap, numbers};

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
    assert!(init(LinearAttentionConfig { scale: Some(-1.0), ..sum.clone() }).is_err());
    assert!(init(LinearAttentionConfig { key_dim: Some(0), ..sum }).is_err());
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

/// Performer's promise: with enough random features the layer is softmax attention.
#[test]
fn performer_approaches_softmax_attention_as_features_grow() {
    let x = Draw::new(8).tensor::<3>([1, 12, 8], -1.0, 1.0);
    let error = |m| {
        let errors = (0..3).map(|seed| {
            let feature_map = FeatureMap::Favor { features: Some(m), seed };
            let config = LinearAttentionConfig { heads: 2, feature_map, ..Default::default() };
            let layer = config.init(8, &mut Init::new(5, &Device::flex())).unwrap();
            let heads = |map: &Linear| split_heads(map.forward(x.clone()), 2);
            let scores = heads(&layer.q_proj).matmul(heads(&layer.k_proj).swap_dims(2, 3)).mul_scalar(0.5);
            let weights = scores.exp().tril(0);
            let weights = weights.clone() / weights.sum_dim(3);
            let exact = layer.out_proj.forward(merge_heads(weights.matmul(heads(&layer.v_proj))));
            let (y, _) = layer.forward(x.clone(), Mixer::initial_state(&layer, 1), Form::Auto).unwrap();
            gap(y, exact)
        });
        errors.sum::<f64>() / 3.0
    };
    let (few, many) = (error(8), error(2048));
    assert!(many < 0.08 && many < few / 3.0, "{few} with 8 features, {many} with 2048");
}

/// The bidirectional layer's last token sees what the causal layer's last token sees.
#[test]
fn the_bidirectional_form_agrees_with_the_causal_one_on_the_last_token() {
    let maps = [FeatureMap::EluPlusOne, FeatureMap::Taylor, FeatureMap::Cosformer { length: 9 }];
    for feature_map in maps {
        let config = LinearAttentionConfig { heads: 2, feature_map, ..Default::default() };
        let layer = config.init(8, &mut Init::new(6, &Device::flex())).unwrap();
        let x = Draw::new(9).tensor::<3>([2, 9, 8], -1.0, 1.0);
        let whole = layer.forward_bidirectional(x.clone()).unwrap();
        let (causal, _) = layer.forward(x.clone(), Mixer::initial_state(&layer, 2), Form::Auto).unwrap();
        assert!(gap(whole.clone().narrow(1, 8, 1), causal.clone().narrow(1, 8, 1)) < 1e-5);
        assert!(gap(whole.narrow(1, 0, 1), causal.narrow(1, 0, 1)) > 1e-2);
        assert!(layer.forward_bidirectional(x.narrow(2, 0, 7)).is_err());
    }
}
