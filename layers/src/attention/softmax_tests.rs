use burn::tensor::Device;

use super::*;
use crate::Value;
use crate::nn::{Activation, LayerNorm};
use crate::params::{self, Named};
use crate::system::{Lengths, Mask};
use crate::testing::{Draw, Golden, gap};

const FORMS: [Form; 5] =
    [Form::Recurrent, Form::Chunked { size: 1 }, Form::Chunked { size: 5 }, Form::Parallel, Form::Auto];

fn build(config: &AttentionConfig, d_model: usize) -> Attention {
    config.init(d_model, &mut Init::new(3, &Device::flex())).unwrap()
}

/// The maps of a reference whose parameters are called `{prefix}{q,k,v,o}_proj`.
fn projections(golden: &Golden, prefix: &str, bias: &[&str]) -> Named {
    let mut named = Named::new();
    for (ours, theirs) in [("q", "q"), ("k", "k"), ("v", "v"), ("out", "o")] {
        let weight = golden.linear(&format!("w.{prefix}{theirs}_proj.weight"));
        named.insert(format!("{ours}_proj.weight"), weight);
        if bias.contains(&theirs) {
            let bias = golden.get::<1>(&format!("w.{prefix}{theirs}_proj.bias"));
            named.insert(format!("{ours}_proj.bias"), bias.into());
        }
    }
    named
}

fn verify(golden: &Golden, config: &AttentionConfig, named: &Named) {
    let x = golden.get::<3>("in.hidden_states");
    let layer = params::assign(build(config, x.dims()[2]), named.clone()).unwrap();
    // The rearranged weights can be differentiated once; the parity matrix holds the other forms to this one.
    let (y, _) = layer.forward(x.clone(), layer.initial_state(x.dims()[0]), Form::Auto).unwrap();
    println!("{:.3} of the limit", golden.verify(&[("y", y.into())]));
}

fn grouped() -> AttentionConfig {
    AttentionConfig { heads: 4, kv_heads: Some(2), ..Default::default() }
}

#[test]
fn llama_golden() {
    let golden = Golden::open("llama_attention__gqa");
    verify(&golden, &grouped(), &projections(&golden, "", &[]));
    let golden = Golden::open("llama_attention__mha_bias");
    let rope = Some(RopeConfig { base: 500_000.0, ..Default::default() });
    let config = AttentionConfig { rope, qkv_bias: true, out_bias: true, ..Default::default() };
    verify(&golden, &config, &projections(&golden, "", &["q", "k", "v", "o"]));
}

#[test]
fn qwen_golden() {
    let golden = Golden::open("qwen2_attention__qkvbias");
    let config = AttentionConfig { qkv_bias: true, ..grouped() };
    verify(&golden, &config, &projections(&golden, "", &["q", "k", "v"]));

    let golden = Golden::open("qwen3_attention__qknorm");
    let qk_norm = Some(NormConfig::Rms { eps: 1e-6, unit_offset: false });
    let config = AttentionConfig { head_dim: Some(16), qk_norm, ..grouped() };
    let mut named = projections(&golden, "", &[]);
    for norm in ["q_norm.weight", "k_norm.weight"] {
        named.insert(norm.into(), golden.get::<1>(&format!("w.{norm}")).into());
    }
    verify(&golden, &config, &named);
}

#[test]
fn qwen3next_golden() {
    let golden = Golden::open("qwen3next_gated_attention__default");
    let qk_norm = Some(NormConfig::Rms { eps: 1e-6, unit_offset: true });
    let rope = Some(RopeConfig { fraction: 0.25, ..Default::default() });
    let config = AttentionConfig { head_dim: Some(16), qk_norm, rope, output_gate: true, ..grouped() };
    let mut named = Named::new();
    // Each head's rows of `q_proj` are its query's and then its gate's.
    let both = golden.get::<2>("w.q_proj.weight").transpose().reshape([32, 4, 2, 16]);
    for (part, name) in ["q_proj", "gate_proj"].into_iter().enumerate() {
        let weight = both.clone().narrow(2, part, 1).reshape([32, 64]);
        named.insert(format!("{name}.weight"), weight.into());
    }
    for (ours, theirs) in [("k_proj", "k_proj"), ("v_proj", "v_proj"), ("out_proj", "o_proj")] {
        named.insert(format!("{ours}.weight"), golden.linear(&format!("w.{theirs}.weight")));
    }
    for norm in ["q_norm.weight", "k_norm.weight"] {
        named.insert(norm.into(), golden.get::<1>(&format!("w.{norm}")).into());
    }
    verify(&golden, &config, &named);
}

#[test]
fn windows_golden() {
    let golden = Golden::open("mistral_attention__win5");
    let config = AttentionConfig { window: Some(5), ..grouped() };
    verify(&golden, &config, &projections(&golden, "", &[]));

    let golden = Golden::open("recurrentgemma_local_attention__win8");
    let rope = Some(RopeConfig { fraction: 0.5, ..Default::default() });
    let config =
        AttentionConfig { kv_heads: Some(1), window: Some(8), rope, out_bias: true, ..Default::default() };
    verify(&golden, &config, &projections(&golden, "", &["o"]));
}

#[test]
fn gemma_golden() {
    let gemma = AttentionConfig { window: Some(6), scale: Some(0.25), ..grouped() };
    let golden = Golden::open("gemma2_attention__softcap_sliding");
    let config = AttentionConfig { softcap: Some(20.0), ..gemma.clone() };
    verify(&golden, &config, &projections(&golden, "", &[]));

    let golden = Golden::open("gemma3_attention__qknorm_sliding");
    let qk_norm = Some(NormConfig::Rms { eps: 1e-6, unit_offset: true });
    let mut named = projections(&golden, "", &[]);
    for norm in ["q_norm.weight", "k_norm.weight"] {
        named.insert(norm.into(), golden.get::<1>(&format!("w.{norm}")).into());
    }
    verify(&golden, &AttentionConfig { qk_norm, ..gemma }, &named);
}

/// The whole block, because the file has only its output: norms and MLP around our attention.
#[test]
fn gpt2_golden() {
    let golden = Golden::open("gpt2_block__default");
    let x = golden.get::<3>("in.hidden_states");
    let config = AttentionConfig { rope: None, qkv_bias: true, out_bias: true, ..Default::default() };
    let mut named = Named::new();
    let weight = golden.get::<2>("w.attn.c_attn.weight");
    let bias = golden.get::<1>("w.attn.c_attn.bias");
    for (part, name) in ["q_proj", "k_proj", "v_proj"].into_iter().enumerate() {
        named.insert(format!("{name}.weight"), weight.clone().narrow(1, 32 * part, 32).into());
        named.insert(format!("{name}.bias"), bias.clone().narrow(0, 32 * part, 32).into());
    }
    named.insert("out_proj.weight".into(), golden.get::<2>("w.attn.c_proj.weight").into());
    named.insert("out_proj.bias".into(), golden.get::<1>("w.attn.c_proj.bias").into());
    let attention = params::assign(build(&config, 32), named).unwrap();
    let norm = |name: &str| {
        let part = |field: &str| (field.to_string(), golden.get::<1>(&format!("w.{name}.{field}")).into());
        let layer = LayerNorm::new(32, 1e-5, true, &Init::new(0, &Device::flex()));
        params::assign(layer, ["weight", "bias"].map(part).into()).unwrap()
    };
    let linear = |x: Tensor<3>, name: &str| {
        let weight = golden.get::<2>(&format!("w.mlp.{name}.weight"));
        x.matmul(weight.unsqueeze()) + golden.get::<1>(&format!("w.mlp.{name}.bias")).unsqueeze()
    };
    let normed = norm("ln_1").forward(x.clone());
    let (y, _) = attention.forward(normed, attention.initial_state(2), Form::Auto).unwrap();
    let x = x + y;
    let inner = Activation::GeluTanh.apply(linear(norm("ln_2").forward(x.clone()), "c_fc"));
    golden.verify(&[("y", (x + linear(inner, "c_proj")).into())]);
}

fn variants() -> Vec<AttentionConfig> {
    vec![
        AttentionConfig { heads: 2, ..Default::default() },
        AttentionConfig { window: Some(1), ..grouped() },
        AttentionConfig { window: Some(4), output_gate: true, ..grouped() },
        AttentionConfig { window: Some(64), softcap: Some(3.0), ..grouped() },
    ]
}

#[test]
fn blocks_of_queries_change_nothing() {
    let x = Draw::new(1).tensor::<3>([2, 600, 16], -1.0, 1.0);
    for config in variants() {
        let layer = build(&config, 16);
        let read = |form| layer.forward(x.clone(), layer.initial_state(2), form).unwrap().0;
        let whole = read(Form::Parallel);
        for form in [Form::Auto, Form::Chunked { size: 7 }] {
            assert!(gap(read(form), whole.clone()) < 1e-5, "{form} {config:?}");
        }
    }
}

/// Rows of different lengths continue from one cache as each would from its own.
#[test]
fn ragged_rows_continue_as_if_alone() {
    let lengths = [3, 9, 0, 1];
    let mut draw = Draw::new(2);
    let first = draw.tensor::<3>([4, 9, 16], -1.0, 1.0);
    let second = draw.tensor::<3>([4, 6, 16], -1.0, 1.0);
    let mask = Mask::from_lengths(&lengths, 9);
    let later = Mask::from_lengths(&[6, 2, 5, 0], 6);
    for config in variants() {
        let layer = build(&config, 16);
        for form in FORMS {
            let start = layer.initial_state(4);
            let (_, state) = layer.forward_masked(first.clone(), start, form, &mask).unwrap();
            let (second_y, end) = layer.forward_masked(second.clone(), state, form, &later).unwrap();
            assert_eq!(end.positions(), [9, 11, 5, 1]);
            let (third, end) = layer.step(second.clone().narrow(1, 0, 1).squeeze_dim(1), end).unwrap();
            for (row, &length) in lengths.iter().enumerate() {
                let own = |x: &Tensor<3>, length| x.clone().narrow(0, row, 1).narrow(1, 0, length);
                let mut state = layer.initial_state(1);
                if length > 0 {
                    state = layer.forward(own(&first, length), state, Form::Parallel).unwrap().1;
                }
                let length = later.lengths().0[row];
                if length > 0 {
                    let (y, next) = layer.forward(own(&second, length), state, Form::Parallel).unwrap();
                    assert!(gap(own(&second_y, length), y) < 1e-5, "{form}, row {row}, {config:?}");
                    state = next;
                }
                let (y, alone) = layer.step(own(&second, 1).squeeze_dim(1), state).unwrap();
                assert!(gap(third.clone().narrow(0, row, 1), y) < 1e-5, "{form}, row {row}, {config:?}");
                same(&end.select(&[row]).unwrap(), &alone);
            }
        }
    }
}

fn same(a: &State, b: &State) {
    assert_eq!((a.positions(), a.slots().count()), (b.positions(), b.slots().count()));
    for ((name, a, _), (_, b, _)) in a.slots().zip(b.slots()) {
        let (a, b): (Tensor<4>, Tensor<4>) = (a.tensor(name).unwrap(), b.tensor(name).unwrap());
        assert!(gap(a, b) < 1e-5, "{name}");
    }
}

#[test]
fn a_cache_can_be_cut_back_while_nothing_was_evicted() {
    let x = Draw::new(4).tensor::<3>([2, 12, 16], -1.0, 1.0);
    let layer = build(&grouped(), 16);
    let read =
        |from, to, state| layer.forward(x.clone().narrow(1, from, to - from), state, Form::Auto).unwrap();
    let (_, state) = read(0, 12, layer.initial_state(2));
    same(&state.truncate(5).unwrap(), &read(0, 5, layer.initial_state(2)).1);
    let nothing = state.truncate(0).unwrap();
    assert_eq!((nothing.bytes(), nothing.positions()), (0, &[0, 0][..]));
    assert!(state.truncate(13).is_err());
    // A cache longer than a row's history: the short row is cut at its own end.
    let lengths = Lengths(vec![4, 12]);
    let run = Run { form: Form::Auto, lengths: Some(&lengths) };
    let (_, mut ragged) = layer.run(x.clone(), layer.initial_state(2), run).unwrap();
    ragged.advance(&lengths.0);
    assert!(ragged.truncate(3).is_err());
    let short = ragged.select(&[0]).unwrap().truncate(3).unwrap();
    same(&short, &read(0, 3, layer.initial_state(2)).1.select(&[0]).unwrap());

    let windowed = build(&AttentionConfig { window: Some(4), ..grouped() }, 16);
    let (_, state) = windowed.forward(x.clone(), windowed.initial_state(2), Form::Auto).unwrap();
    assert!(state.truncate(11).is_err());
    assert_eq!(state.slots().map(|(_, k, _)| k.dims()[2]).collect::<Vec<_>>(), [3, 3]);
    let (_, state) =
        windowed.forward(x.clone().narrow(1, 0, 3), windowed.initial_state(2), Form::Auto).unwrap();
    assert!(state.truncate(2).is_ok());
}

#[test]
fn without_causality_every_token_sees_every_token_once() {
    let x = Draw::new(5).tensor::<3>([2, 7, 16], -1.0, 1.0);
    let layer = build(&AttentionConfig { causal: false, ..grouped() }, 16);
    let (y, state) = layer.forward(x.clone(), layer.initial_state(2), Form::Parallel).unwrap();
    for form in FORMS {
        let (other, _) = layer.forward(x.clone(), layer.initial_state(2), form).unwrap();
        assert!(gap(other, y.clone()) < 1e-5, "{form}");
    }
    let views = layer.views(x.clone(), layer.initial_state(2)).unwrap();
    assert!(views.attention.unwrap().min().into_scalar::<f32>() > 0.0);
    // It cannot continue, and padding is not seen.
    assert!(layer.forward(x.clone(), state, Form::Parallel).is_err());
    let mask = Mask::from_lengths(&[4, 7], 7);
    let (padded, _) = layer.forward_masked(x.clone(), layer.initial_state(2), Form::Auto, &mask).unwrap();
    let row = |y: Tensor<3>| y.narrow(0, 0, 1).narrow(1, 0, 4);
    let (alone, _) = layer.forward(row(x), layer.initial_state(1), Form::Auto).unwrap();
    assert!(gap(row(padded), alone) < 1e-5);
    let refused = AttentionConfig { causal: false, window: Some(3), ..grouped() };
    assert!(refused.init(16, &mut Init::new(0, &Device::flex())).is_err());
}

#[test]
fn gradients_reach_the_cache() {
    let device = Device::flex().autodiff();
    let layer = grouped().init(16, &mut Init::new(3, &device)).unwrap();
    let x = Draw::new(6).tensor::<3>([1, 6, 16], -1.0, 1.0);
    let (_, state) = layer.forward(x.clone(), layer.initial_state(1), Form::Auto).unwrap();
    let state = state.detach().replace(|_, value| value.require_grad());
    let (y, _) = layer.forward(x, state.clone(), Form::Auto).unwrap();
    let grads = y.sum().backward();
    for (name, value, _) in state.slots() {
        let grad: Value = value.grad(&grads).unwrap_or_else(|| panic!("no gradient of {name}"));
        assert!(grad.to_f64().unwrap().iter().any(|g| g.abs() > 1e-6), "{name}");
    }
}
