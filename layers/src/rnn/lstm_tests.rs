use burn::tensor::{DType, Device};

use super::*;
use crate::params;
use crate::system::Mask;
use crate::testing::{Draw, gap, numbers};

fn stack(config: LstmStackConfig) -> LstmStack {
    config.init(&mut Init::new(4, &Device::flex())).unwrap()
}

fn layer(config: &LstmConfig, d_model: usize) -> Lstm {
    config.init(d_model, &mut Init::new(6, &Device::flex().autodiff())).unwrap()
}

#[test]
fn the_jacobian_is_that_of_automatic_differentiation() {
    let (n, d) = (5, 3);
    let stack = LstmStackConfig {
        input: d,
        hidden: n,
        layers: 1,
        bias: true,
        forget_bias: None,
        bidirectional: false,
    };
    let device = Device::flex().autodiff();
    let cell = stack.init(&mut Init::new(1, &device)).unwrap().cells.remove(0);
    let cell = params::cast(cell, DType::F64);
    let mut draw = Draw::new(9);
    let mut leaf = |size| draw.tensor::<2>([2, size], -2.0, 2.0).cast(DType::F64).autodiff().require_grad();
    let (x, h, c) = (leaf(d), leaf(n), leaf(n));
    let exact = cell.jacobian(x.clone(), h.clone(), c.clone());
    for unit in 0..n {
        for (output, by_h, by_c) in [(0, &exact.dh_dh, &exact.dh_dc), (1, &exact.dc_dh, &exact.dc_dc)] {
            let step = |x: &Tensor<2>| x.clone().unsqueeze_dim::<3>(1);
            let (_, next_h, next_c) = cell.run(step(&x), step(&h), step(&c), None, false);
            let next = if output == 0 { next_h } else { next_c };
            let grads = next.narrow(2, unit, 1).sum().backward();
            for (leaf, block) in [(&h, by_h), (&c, by_c)] {
                let row = block.clone().narrow(1, unit, 1).squeeze_dim::<2>(1).inner();
                assert!(gap(row, leaf.grad(&grads).unwrap()) < 1e-12);
            }
        }
    }
}

#[test]
fn padding_leaves_both_directions_alone() {
    let config = LstmStackConfig {
        input: 4,
        hidden: 3,
        layers: 2,
        bias: true,
        forget_bias: Some(1.0),
        bidirectional: true,
    };
    let stack = stack(config);
    let mut draw = Draw::new(3);
    let x = draw.tensor::<3>([3, 6, 4], -1.0, 1.0);
    let h = draw.tensor::<3>([3, 4, 3], -1.0, 1.0);
    let c = draw.tensor::<3>([3, 4, 3], -1.0, 1.0);
    let lengths = Lengths(vec![2, 6, 0]);
    let (y, end_h, end_c) = stack.forward(x.clone(), h.clone(), c.clone(), Some(&lengths)).unwrap();
    let row = |x: &Tensor<3>, row| x.clone().narrow(0, row, 1);
    for (index, &length) in lengths.0.iter().enumerate().take(2) {
        let x = row(&x, index).narrow(1, 0, length);
        let (alone, h, c) = stack.forward(x, row(&h, index), row(&c, index), None).unwrap();
        assert!(gap(row(&y, index).narrow(1, 0, length), alone) < 1e-6);
        assert!(gap(row(&end_h, index), h) < 1e-6);
        assert!(gap(row(&end_c, index), c) < 1e-6);
    }
    assert_eq!(numbers(row(&end_h, 2)), numbers(row(&h, 2)));
    assert_eq!(numbers(row(&end_c, 2)), numbers(row(&c, 2)));
}

#[test]
fn a_sequence_can_be_split_and_padded() {
    let layer = layer(&LstmConfig { hidden: Some(5), layers: 2, ..Default::default() }, 4);
    assert!(layer.out_proj.is_some());
    let x = Draw::new(2).tensor::<3>([2, 9, 4], -1.0, 1.0);
    let (whole, end) = layer.forward(x.clone(), layer.initial_state(2), Form::Auto).unwrap();
    let (first, state) =
        layer.forward(x.clone().narrow(1, 0, 4), layer.initial_state(2), Form::Auto).unwrap();
    let (second, state) = layer.forward(x.clone().narrow(1, 4, 5), state, Form::Parallel).unwrap();
    assert!(gap(Tensor::cat(vec![first, second], 1), whole.clone()) < 1e-6);
    for slot in ["h", "c"] {
        assert_eq!(end.get::<3>(slot).unwrap().dims(), [2, 2, 5]);
        assert!(gap(state.get::<3>(slot).unwrap(), end.get(slot).unwrap()) < 1e-6);
    }
    let mask = Mask::from_lengths(&[4, 9], 9);
    let (padded, _) = layer.forward_masked(x, layer.initial_state(2), Form::Auto, &mask).unwrap();
    assert!(gap(padded.clone().narrow(1, 0, 4), whole.narrow(1, 0, 4)) < 1e-6);
    assert_eq!(padded.narrow(0, 0, 1).narrow(1, 4, 5).abs().max().into_scalar::<f32>(), 0.0);
}

/// The frozen system is the cell's: running it on the gates gives the cells back.
#[test]
fn the_views_are_of_the_frozen_cell_path() {
    let (d, t) = (6, 8);
    let layer = layer(&LstmConfig { layers: 2, ..Default::default() }, d);
    let x = Draw::new(8).tensor::<3>([2, t, d], -1.0, 1.0);
    let (_, warm) = layer.forward(x.clone(), layer.initial_state(2), Form::Auto).unwrap();
    let views = layer.views(x.clone(), warm.clone()).unwrap();
    let spectrum = views.spectrum.unwrap();
    assert_eq!(spectrum.kind, SpectrumKind::Frozen);
    assert_eq!(spectrum.re.dims(), [2, 2, t, d]);
    let names: Vec<_> = views.gates.iter().map(|gate| gate.name.as_str()).collect();
    assert_eq!(names[..2], ["i (input), layer 1", "f (forget), layer 1"]);
    assert_eq!(names[7], "o (output), layer 2");
    let forget = views.gates[5].values.clone();
    assert!(gap(spectrum.re.narrow(1, 1, 1).squeeze_dim::<3>(1), forget.clone()) < 1e-6);
    // c by hand in the second layer, whose norm the views show.
    let mut c = warm.get::<3>("c").unwrap().narrow(1, 1, 1);
    let written = views.gates[4].values.clone() * views.gates[6].values.clone();
    for t in 0..t {
        c = forget.clone().narrow(1, t, 1) * c + written.clone().narrow(1, t, 1);
        let norm = c.clone().square().sum_dim(2).sqrt().squeeze_dim::<2>(2);
        let shown = views.memory_norm.clone().unwrap().narrow(1, 1, 1).narrow(2, t, 1).squeeze_dim::<2>(2);
        assert!(gap(norm, shown) < 1e-6);
    }
    let attention = views.attention.unwrap();
    assert_eq!(attention.dims(), [2, 2, t, t]);
    let expected = (forget.clone().narrow(1, 2, 1) * forget.narrow(1, 3, 1)).mean_dim(2).squeeze_dim::<2>(2);
    let shown = attention.narrow(1, 1, 1).narrow(2, 3, 1).narrow(3, 1, 1).reshape([2, 1]);
    assert!(gap(shown, expected) < 1e-6);
}

#[test]
fn the_forget_bias_is_what_was_asked_for() {
    let layer = layer(&LstmConfig { forget_bias: Some(2.5), ..Default::default() }, 3);
    let cell = &layer.stack.cells[0];
    let bias = |map: &Linear| numbers(map.bias.as_ref().unwrap().val());
    let (b, b2) = (bias(&cell.input), bias(&cell.recurrent));
    assert_eq!((&b[3..6], &b2[3..6]), (&[2.5; 3][..], &[0.0; 3][..]));
    assert!(b.iter().zip(&b2).all(|(a, b)| *a != 0.0 && (a.abs() <= 0.58 || *a == 2.5) && b.abs() <= 0.58));
    assert!(
        LstmConfig { bias: false, ..Default::default() }.init(3, &mut Init::new(0, &Device::flex())).is_err()
    );
}
