use burn::tensor::Device;

use super::*;
use crate::attention::{CosineAttention, CosineAttentionConfig};
use crate::moh::{GateScale, RouterKind};
use crate::nn::NormConfig;
use crate::params::{self, Named};
use crate::testing::{Draw, Golden, gap, numbers};

fn init() -> Init {
    Init::new(5, &Device::flex())
}

/// Parts of the reference's fused `qkv` map, rows `[3, heads, head_dim]`.
fn split_qkv(golden: &Golden, bias: bool) -> Named {
    let weight = golden.get::<2>("w.qkv.weight").transpose();
    let [d, width] = weight.dims();
    let width = width / 3;
    let mut named = Named::new();
    for (part, name) in ["q_proj", "k_proj", "v_proj"].into_iter().enumerate() {
        let weight = weight.clone().narrow(1, part * width, width);
        assert_eq!(weight.dims()[0], d);
        named.insert(format!("mixer.{name}.weight"), weight.into());
        if bias {
            let bias = golden.get::<1>("w.qkv.bias").narrow(0, part * width, width);
            named.insert(format!("mixer.{name}.bias"), bias.into());
        }
    }
    named.insert("mixer.out_proj.weight".into(), golden.linear("w.proj.weight"));
    named.insert("mixer.out_proj.bias".into(), golden.get::<1>("w.proj.bias").into());
    named
}

fn insert_router(named: &mut Named, golden: &Golden, maps: &[(&str, &str)]) {
    for (ours, theirs) in maps {
        named.insert(format!("{ours}.weight"), golden.linear(&format!("w.{theirs}.weight")));
    }
}

/// Heads in the order of their gates, as the reference lists them, are those we chose.
fn check_indices<M: HeadMixer + Module>(golden: &Golden, layer: &Moh<M>, x: &Tensor<3>, k: usize) {
    let routing = layer.route(x.clone());
    let chosen = numbers(routing.chosen.unwrap());
    let probabilities = numbers(routing.probabilities.unwrap());
    let routed = layer.mixer.heads() - layer.routing.shared;
    let mut expected = golden.indices("out.router_indices").chunks(k);
    for (chosen, p) in chosen.chunks(routed).zip(probabilities.chunks(routed)) {
        let mut heads: Vec<usize> = (0..routed).filter(|&head| chosen[head] == 1.0).collect();
        heads.sort_by(|&a, &b| p[b].total_cmp(&p[a]));
        assert_eq!(Some(&heads[..]), expected.next());
    }
    assert_eq!(expected.next(), None);
}

const LEARNED: [(&str, &str); 3] = [("route_proj", "wg"), ("stage_proj", "wg_0"), ("shared_proj", "wg_1")];

#[test]
fn learned_router_golden() {
    for (name, heads, shared, top_k, head_dim, qkv_bias) in [
        ("moh_attention__allshared", 4, 4, 0, 6, true),
        ("moh_attention__h6_s0_r3", 6, 0, 3, 4, true),
        ("moh_attention__h8_s2_r4", 8, 2, 4, 4, true),
        ("moh_attention__h8_s4_r2_hd6", 8, 4, 2, 6, false),
    ] {
        let golden = Golden::open(name);
        let x = golden.get::<3>("in.x");
        let normed = shared == 0;
        let attention = AttentionConfig {
            heads,
            head_dim: Some(head_dim),
            rope: None,
            causal: false,
            qkv_bias,
            out_bias: true,
            // timm's default epsilon
            qk_norm: normed.then_some(NormConfig::Layer { eps: 1e-5 }),
            ..Default::default()
        };
        let routing = RoutingConfig { shared, top_k, balance: 1.0, ..Default::default() };
        let mut named = split_qkv(&golden, qkv_bias);
        let maps: &[(&str, &str)] = match (shared, top_k) {
            (0, _) => &LEARNED[..1],
            (_, 0) => &LEARNED[2..],
            _ => &LEARNED,
        };
        insert_router(&mut named, &golden, maps);
        for norm in ["q_norm", "k_norm"].into_iter().filter(|_| normed) {
            for field in ["weight", "bias"] {
                let value = golden.get::<1>(&format!("w.{norm}.{field}"));
                named.insert(format!("mixer.{norm}.{field}"), value.into());
            }
        }
        let layer = MohConfig { attention, routing }.init(x.dims()[2], &mut init()).unwrap();
        let layer = params::assign(layer, named).unwrap();
        let (y, _) = layer.forward(x.clone(), layer.initial_state(x.dims()[0]), Form::Auto).unwrap();
        let mut outputs = vec![("y", y.into())];
        if top_k > 0 {
            check_indices(&golden, &layer, &x, top_k);
            let p = layer.route(x.clone()).probabilities.unwrap();
            outputs.push(("router_gates", p.into()));
            outputs.push(("l_aux", layer.auxiliary_loss(x).unwrap().unwrap().into()));
        } else {
            assert!(layer.auxiliary_loss(x).unwrap().is_none());
        }
        println!("{name}: {:.3} of the limit", golden.verify(&outputs));
    }
}

/// The same router over another mixer: TransNeXt's cosine attention.
#[test]
fn vision_golden() {
    for (name, heads, shared, grid) in
        [("moh_vit_attention__h4_s1_r2", 4, 1, [4, 4]), ("moh_vit_attention__h6_s2_r2", 6, 2, [3, 5])]
    {
        let golden = Golden::open(name);
        let x = golden.get::<3>("in.x");
        let mixer = CosineAttentionConfig { heads, grid, ..Default::default() };
        let mixer = mixer.init(x.dims()[2], &mut init()).unwrap();
        let coordinates = golden.get::<2>("in.relative_coords_table");
        let index = golden.indices("in.relative_pos_index").to_vec();
        let mixer = mixer.with_coordinates(coordinates.clone(), index).unwrap();
        let routing = RoutingConfig { shared, top_k: 2, balance: 1.0, ..Default::default() };
        let layer: Moh<CosineAttention> = routing.wrap(mixer, &mut init()).unwrap();

        let mut named = split_qkv(&golden, true);
        insert_router(&mut named, &golden, if shared == 1 { &LEARNED[..2] } else { &LEARNED });
        for (ours, theirs) in [("position_in", "cpb_fc1"), ("position_out", "cpb_fc2")] {
            named.insert(format!("mixer.{ours}.weight"), golden.linear(&format!("w.{theirs}.weight")));
            let bias = golden.get::<1>(&format!("w.{theirs}.bias"));
            named.insert(format!("mixer.{ours}.bias"), bias.into());
        }
        named.insert("mixer.coordinates".into(), coordinates.into());
        let embedding = golden.get::<3>("w.query_embedding").squeeze_dim::<2>(1);
        named.insert("mixer.query_embedding".into(), embedding.into());
        let temperature = golden.get::<3>("w.temperature").reshape([heads]);
        named.insert("mixer.temperature".into(), temperature.into());
        let layer = params::assign(layer, named).unwrap();

        check_indices(&golden, &layer, &x, 2);
        let (y, _) = layer.forward(x.clone(), layer.initial_state(x.dims()[0]), Form::Auto).unwrap();
        let balance = layer.auxiliary_loss(x).unwrap().unwrap();
        println!("{name}: {:.3} of the limit", golden.verify(&[("y", y.into()), ("l_aux", balance.into())]));
    }
}

#[test]
fn query_norm_golden() {
    let golden = Golden::open("moh_llama_attention__h8_kv4");
    let attention = AttentionConfig { heads: 8, kv_heads: Some(4), ..Default::default() };
    let router = RouterKind::QueryNorm { straight_through: false };
    let routing = RoutingConfig { shared: 4, top_k: 2, router, ..Default::default() };
    let mut named = Named::new();
    for (ours, theirs) in [("q", "q"), ("k", "k"), ("v", "v"), ("out", "o")] {
        let weight = golden.linear(&format!("w.{theirs}_proj.weight"));
        named.insert(format!("mixer.{ours}_proj.weight"), weight);
    }
    let layer = MohConfig { attention, routing }.init(64, &mut init()).unwrap();
    let layer = params::assign(layer, named).unwrap();
    let x = golden.get::<3>("in.x");
    let (y, _) = layer.forward(x, layer.initial_state(2), Form::Auto).unwrap();
    println!("{:.3} of the limit", golden.verify(&[("y", y.into())]));
}

fn small(routing: RoutingConfig) -> Moh<Attention> {
    let attention = AttentionConfig { heads: 4, ..Default::default() };
    MohConfig { attention, routing }.init(16, &mut Init::new(2, &Device::flex().autodiff())).unwrap()
}

/// With the router's maps at zero.
fn even(routing: RoutingConfig) -> Moh<Attention> {
    let layer = small(routing);
    let zero = |(name, value): (String, crate::Value)| {
        let routed = !name.starts_with("mixer.");
        let value = if routed { value.tensor::<2>(&name).unwrap().zeros_like().into() } else { value };
        (name, value)
    };
    let named = params::parameters(&layer).into_iter().map(zero).collect();
    params::assign(layer, named).unwrap()
}

#[test]
fn an_even_router_gates_by_one_and_balances_at_k() {
    let x = Draw::new(1).tensor::<3>([2, 5, 16], -1.0, 1.0);
    let routing = RoutingConfig { shared: 1, top_k: 2, balance: 0.5, ..Default::default() };
    let layer = even(routing.clone());
    // Of equal heads, the first are chosen.
    let gates = numbers(layer.route(x.clone()).gates);
    assert!(gates.chunks(4).all(|g| g.iter().zip([1.0, 1.0, 1.0, 0.0]).all(|(a, b)| (a - b).abs() < 1e-6)));
    let loss = |layer: &Moh<Attention>| numbers(layer.auxiliary_loss(x.clone()).unwrap().unwrap())[0];
    assert!((loss(&layer) - 0.5 * 2.0).abs() < 1e-6);
    let layer = even(RoutingConfig { scale: GateScale::Paper, ..routing });
    assert!((loss(&layer) - 0.5 * 2.0 / 3.0).abs() < 1e-6);
    let gates = numbers(layer.route(x.clone()).gates);
    let expected = [0.5, 0.5 / 3.0, 0.5 / 3.0, 0.0];
    assert!(gates.chunks(4).all(|g| g.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6)));
}

/// `y = Σ_i g_i H_i W_O^i`, by heads computed one at a time.
#[test]
fn the_output_is_the_weighted_sum_of_heads() {
    let x = Draw::new(3).tensor::<3>([2, 6, 16], -1.0, 1.0);
    let layer = small(RoutingConfig { shared: 2, top_k: 1, ..Default::default() });
    let (y, state) = layer.forward(x.clone(), layer.initial_state(2), Form::Auto).unwrap();
    let run = Run { form: Form::Auto, lengths: None };
    let (heads, _) = layer.mixer.run_heads(x.clone(), layer.initial_state(2), run).unwrap();
    let gates = layer.views(x.clone(), layer.initial_state(2)).unwrap().router.unwrap();
    let weight = layer.mixer.out_proj.weight.val();
    let mut sum = y.zeros_like();
    for head in 0..4 {
        let values = heads.clone().narrow(2, head, 1).squeeze_dim::<3>(2);
        let rows = weight.clone().narrow(0, 4 * head, 4).unsqueeze::<3>();
        sum = sum + values.matmul(rows) * gates.clone().narrow(2, head, 1);
    }
    assert!(gap(sum, y) < 1e-6);
    // Three heads at most, yet the state is attention's own, of all heads.
    assert!(numbers(gates).chunks(4).all(|g| g.iter().filter(|&&g| g != 0.0).count() == 3));
    let (_, plain) = layer.mixer.forward(x, layer.initial_state(2), Form::Auto).unwrap();
    assert_eq!(state.bytes(), plain.bytes());
}

#[test]
fn impossible_routings_are_refused() {
    let attention = AttentionConfig { heads: 4, ..Default::default() };
    for (shared, top_k) in [(5, 0), (2, 3), (2, 0), (4, 1)] {
        let routing = RoutingConfig { shared, top_k, ..Default::default() };
        let config = MohConfig { attention: attention.clone(), routing };
        let error = config.init(16, &mut init()).unwrap_err().to_string();
        assert!(error.contains(if shared > 4 { "`shared` = 5" } else { "`top_k`" }), "{error}");
    }
}
