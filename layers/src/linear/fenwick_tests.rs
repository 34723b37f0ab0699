use burn::tensor::Device;

use super::*;
use crate::system::{System, Transition};
use crate::testing::{Draw, gap};

fn inputs(b: usize, t: usize, levels: usize) -> LogLinearInputs {
    let mut draw = Draw::new(t as u64);
    LogLinearInputs {
        q: draw.tensor([b, 2, t, 3], -1.0, 1.0),
        k: draw.tensor([b, 2, t, 3], -1.0, 1.0),
        v: draw.tensor([b, 2, t, 5], -1.0, 1.0),
        log_a: draw.tensor([b, 2, t], -0.2, 0.0),
        scales: draw.tensor([b, 2, t, levels], 0.1, 2.0),
    }
}

fn part(inputs: &LogLinearInputs, start: usize, length: usize) -> LogLinearInputs {
    let cut = |x: &Tensor<4>| x.clone().narrow(2, start, length);
    let LogLinearInputs { q, k, v, log_a, scales } = inputs;
    let log_a = log_a.clone().narrow(2, start, length);
    LogLinearInputs { q: cut(q), k: cut(k), v: cut(v), log_a, scales: cut(scales) }
}

/// With all weights 1 the tree does not matter.
#[test]
fn equal_weights_are_gated_linear_attention() {
    let mut inputs = inputs(2, 37, 4);
    inputs.scales = inputs.scales.ones_like();
    let transition = Transition::Scalar { log_a: inputs.log_a.clone() };
    let system = System::outer(transition, inputs.q.clone(), inputs.k.clone(), inputs.v.clone());
    let zero = Tensor::zeros([2, 2, 3, 5], &Device::flex());
    let (expected, memory) = engine::run(system, zero, Form::Recurrent).unwrap();
    for form in [Form::Recurrent, Form::Chunked { size: 8 }, Form::Chunked { size: 5 }, Form::Parallel] {
        let (y, buckets) = log_linear(inputs.clone(), None, &[0, 0], None, form).unwrap();
        assert!(gap(y, expected.clone()) < 1e-5, "{form}");
        assert!(gap(buckets.unwrap().sum_dim(2).squeeze_dim::<4>(2), memory.clone()) < 1e-5, "{form}");
    }
}

/// The tree as the paper draws it: the past of a token in buckets from the recent to the distant.
#[test]
fn levels_are_those_of_a_fenwick_tree() {
    let level = |i: usize, j: usize| bits(i ^ j);
    let row = |i: usize| (0..=i).map(|j| level(i, j)).collect::<Vec<_>>();
    assert_eq!(row(0), [0]);
    assert_eq!(row(1), [1, 0]);
    assert_eq!(row(6), [3, 3, 3, 3, 2, 2, 0]);
    assert_eq!(row(7), [3, 3, 3, 3, 2, 2, 1, 0]);
    assert_eq!(row(8), [4, 4, 4, 4, 4, 4, 4, 4, 0]);
}

/// Chunks may start anywhere, and rows at different places of their trees.
#[test]
fn rows_at_different_positions_are_independent() {
    let inputs = inputs(2, 29, 3);
    let row = |x: &LogLinearInputs, r: usize| {
        let cut = |x: &Tensor<4>| x.clone().narrow(0, r, 1);
        let LogLinearInputs { q, k, v, log_a, scales } = x;
        let log_a = log_a.clone().narrow(0, r, 1);
        LogLinearInputs { q: cut(q), k: cut(k), v: cut(v), log_a, scales: cut(scales) }
    };
    // Row 0 reads 3 tokens, row 1 reads 11; then both read on.
    let head = part(&inputs, 0, 11);
    let lengths = Lengths(vec![3, 11]);
    for form in [Form::Recurrent, Form::Chunked { size: 4 }, Form::Parallel] {
        let (_, buckets) = log_linear(head.clone(), None, &[0, 0], Some(&lengths), form).unwrap();
        let (y, end) = log_linear(part(&inputs, 11, 18), buckets, &[3, 11], None, form).unwrap();
        for (r, seen) in [(0, 3), (1, 11)] {
            let one = row(&inputs, r);
            let (_, alone) = log_linear(part(&one, 0, seen), None, &[0], None, Form::Recurrent).unwrap();
            let tail = part(&one, 11, 18);
            let (expected, last) = log_linear(tail, alone, &[seen], None, Form::Recurrent).unwrap();
            assert!(gap(y.clone().narrow(0, r, 1), expected) < 1e-5, "{form}, row {r}");
            let last = last.unwrap();
            let levels = last.dims()[2];
            let ours = end.clone().unwrap().narrow(0, r, 1).narrow(2, 0, levels);
            assert!(gap(ours, last) < 1e-5, "{form}, row {r}");
        }
    }
}
