use burn::module::Param;
use burn::tensor::Device;

use super::*;
use crate::testing::{Draw, gap};

fn build(config: &PathAttentionConfig) -> PathAttention {
    config.init(16, &mut Init::new(3, &Device::flex())).unwrap()
}

fn small() -> PathAttentionConfig {
    let attention = AttentionConfig { heads: 4, kv_heads: Some(2), rope: None, ..Default::default() };
    PathAttentionConfig { attention, rank: Some(3), ..Default::default() }
}

#[test]
fn without_reflections_it_is_attention_without_positions() {
    let mut layer = build(&small());
    // sigmoid(-60) is 0 beside 1 in single precision
    let zero = layer.beta_proj.weight.val().zeros_like();
    layer.beta_proj.weight = Param::from_tensor(zero);
    let bias = layer.beta_proj.bias.as_ref().unwrap().val().zeros_like().sub_scalar(60.0);
    layer.beta_proj.bias = Some(Param::from_tensor(bias));
    let x = Draw::new(1).tensor::<3>([2, 70, 16], -1.0, 1.0);
    let (y, _) = layer.forward(x.clone(), layer.initial_state(2), Form::Auto).unwrap();
    let (expected, _) = layer.attention.forward(x, layer.attention.initial_state(2), Form::Auto).unwrap();
    assert!(gap(y, expected) < 1e-6);
}

#[test]
fn rows_of_different_lengths_continue_as_if_alone() {
    use crate::system::Mask;
    let mut draw = Draw::new(4);
    let (first, second) = (draw.tensor([3, 8, 16], -1.0, 1.0), draw.tensor::<3>([3, 5, 16], -1.0, 1.0));
    let layer = build(&PathAttentionConfig { forget_gate: true, ..small() });
    let lengths = [2, 8, 0];
    let mask = Mask::from_lengths(&lengths, 8);
    for form in [Form::Recurrent, Form::Auto, Form::Chunked { size: 3 }] {
        let (_, state) = layer.forward_masked(first.clone(), layer.initial_state(3), form, &mask).unwrap();
        let (y, _) = layer.forward(second.clone(), state, form).unwrap();
        for (row, length) in lengths.into_iter().enumerate() {
            let own = |x: &Tensor<3>| x.clone().narrow(0, row, 1);
            let mut state = layer.initial_state(1);
            if length > 0 {
                state = layer.forward(own(&first).narrow(1, 0, length), state, Form::Auto).unwrap().1;
            }
            let (alone, _) = layer.forward(own(&second), state, Form::Auto).unwrap();
            assert!(gap(own(&y), alone) < 1e-5, "{form}, row {row}");
        }
    }
}

#[test]
fn other_positions_are_refused() {
    let refused = |attention: AttentionConfig| {
        let config = PathAttentionConfig { attention, ..small() };
        config.init(16, &mut Init::new(0, &Device::flex())).unwrap_err().to_string()
    };
    assert!(refused(AttentionConfig::default()).contains("rope"));
    let inner = small().attention;
    assert!(refused(AttentionConfig { window: Some(4), ..inner.clone() }).contains("window"));
    assert!(refused(AttentionConfig { causal: false, ..inner }).contains("causal"));
    let rank = PathAttentionConfig { rank: Some(0), ..small() };
    assert!(rank.init(16, &mut Init::new(0, &Device::flex())).is_err());
}
