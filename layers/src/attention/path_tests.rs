use burn::module::Param;
use burn::tensor::{DType, Device};

use super::*;
use crate::testing::{Draw, error, gap, numbers};

fn build(config: &PathAttentionConfig) -> PathAttention {
    config.init(16, &mut Init::new(3, &Device::flex())).unwrap()
}

fn small() -> PathAttentionConfig {
    let attention = AttentionConfig { heads: 4, kv_heads: Some(2), rope: None, ..Default::default() };
    PathAttentionConfig { attention, rank: Some(3), ..Default::default() }
}

/// The products against a loop that applies one matrix at a time.
#[test]
fn products_are_those_of_one_matrix_after_another() {
    const N: usize = 4;
    for (total, t) in [(1, 1), (7, 7), (7, 1), (13, 5), (16, 8), (9, 6)] {
        let mut draw = Draw::new(total as u64);
        let mut tensor = |rows, width| draw.tensor::<4>([1, 1, rows, width], -1.0, 1.0).cast(DType::F64);
        let (q, k, w) = (tensor(t, N), tensor(total, N), l2_normalize(tensor(total, N), 1e-6));
        let beta = tensor(total, 1).add_scalar(1.0);
        let [qs, ks, ws, betas] = [&q, &k, &w, &beta].map(|x| numbers(x.clone()));
        let row = |x: &[f64], i: usize| x[i * N..(i + 1) * N].to_vec();
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let mut expected = Vec::new();
        for i in 0..t {
            let at = total - t + i;
            for j in 0..=at {
                let mut key = row(&ks, j);
                for s in j + 1..=at {
                    let w = row(&ws, s);
                    let read = betas[s] * dot(&w, &key);
                    key.iter_mut().zip(&w).for_each(|(k, w)| *k -= read * w);
                }
                expected.push(dot(&row(&qs, i), &key));
            }
        }
        for size in [1, 3, 4, 5, 64] {
            let size = size.min(total);
            let found = products(q.clone(), k.clone(), w.clone(), beta.clone(), size);
            assert_eq!(found.dims(), [1, 1, t, total]);
            let found = numbers(found);
            let found: Vec<f64> =
                (0..t).flat_map(|i| found[i * total..][..=total - t + i].to_vec()).collect();
            assert!(error(&found, &expected) < 1e-12, "{t} of {total} tokens, blocks of {size}");
        }
    }
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

/// A token with `β = 1` and `w` along a key takes that key out of sight of all later queries.
#[test]
fn a_projection_erases_a_key() {
    let mut draw = Draw::new(2);
    let [q, k, w] = [0, 1, 2].map(|_| draw.tensor::<4>([1, 1, 5, 4], -1.0, 1.0));
    let key = l2_normalize(k.clone().narrow(2, 1, 1), 0.0);
    let w = Tensor::cat(vec![w.clone().narrow(2, 0, 2), key, w.narrow(2, 3, 2)], 2);
    let beta = Tensor::<4>::zeros([1, 1, 5, 1], &Device::flex()).slice_fill([0..1, 0..1, 2..3], 1.0);
    let found = products(q, k, w, beta, 2);
    let later = numbers(found.clone().narrow(2, 2, 3).narrow(3, 1, 1));
    assert!(later.iter().all(|x| x.abs() < 1e-6), "{later:?}");
    assert!(numbers(found.narrow(2, 1, 1).narrow(3, 1, 1))[0].abs() > 1e-3);
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
