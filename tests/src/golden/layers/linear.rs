//! Linear attention with feature maps, and its decayed relatives.

use burn::module::Module;
use burn::tensor::{Int, Tensor, TensorData};
use seqzoo_layers::linear::{
    FavorShift, FeatureMap, GlaConfig, Hgrn2Config, LinearAttentionConfig, Normalizer, RetNetConfig,
    bidirectional, favor_features, normalize, quadratic_features, taylor_features, with_normalizer,
};
use seqzoo_layers::params::{self, Named};
use seqzoo_layers::system::{Form, Mixer, System, Transition, engine};
use seqzoo_layers::{Init, Value};

use super::Outputs;
use super::attention::projections;
use crate::golden::{Case, Result};

/// `Σ φ(q)·φ(k) v / (φ(q)·(start + Σ φ(k)) + eps)` over the tokens so far.
fn normalized([q, k, v]: [Tensor<4>; 3], start: f64, eps: f64, form: Form) -> Result<Tensor<4>> {
    let ([b, h, _, m], p, device) = (k.dims(), v.dims()[3], v.device().inner());
    let memory = Tensor::<4>::zeros([b, h, m, p], &device);
    let memory = Tensor::cat(vec![memory, Tensor::full([b, h, m, 1], start, &device)], 3);
    let system = System::outer(Transition::Identity, q, k, with_normalizer(v));
    Ok(normalize(engine::run(system, memory, form)?.0, eps))
}

/// Based: the exponential's Taylor polynomial.
pub(super) fn based(case: &Case, form: Form) -> Result<Outputs> {
    let [q, k, v] = case.inputs(["q", "k", "v"])?;
    let y = normalized([taylor_features(q), taylor_features(k), v], 0.0, 1e-6, form)?;
    Ok(vec![("y", y.into())])
}

/// ReBased: squared scores.
pub(super) fn rebased(case: &Case, form: Form) -> Result<Outputs> {
    let [q, k, v] = case.inputs(["q", "k", "v"])?;
    let y = normalized([quadratic_features(q), quadratic_features(k), v], 0.0, 1e-6, form)?;
    Ok(vec![("y", y.into())])
}

/// FAVOR+ with a given projection. The reference shifts the keys of a head by the largest of all, and
/// its causal sum of keys starts at 1e-6.
pub(super) fn performer(case: &Case, form: Form) -> Result<Outputs> {
    let [q, k, v] = case.inputs(["q", "k", "v"])?;
    let projection = case.get::<2>("in.projection")?;
    let q = favor_features(q, projection.clone(), FavorShift::Token);
    let k = favor_features(k, projection, FavorShift::Head);
    let y = if case.flag("causal") {
        normalized([q.clone(), k.clone(), v], 1e-6, 0.0, form)?
    } else {
        normalize(bidirectional(q.clone(), k.clone(), with_normalizer(v)), 0.0)
    };
    Ok(vec![("y", y.into()), ("q_features", q.into()), ("k_features", k.into())])
}

/// Runs a layer on `in.x: [b, t, d]`.
fn run<M: Mixer + Module>(case: &Case, layer: M, named: Named, form: Form) -> Result<Outputs> {
    let layer = params::assign(layer, named)?;
    let x = case.get::<3>("in.x")?;
    let state = layer.initial_state(x.dims()[0]);
    Ok(vec![("y", layer.forward(x, state, form)?.0.into())])
}

/// cosFormer's layer on `[t, b, d]`.
pub(super) fn cosformer(case: &Case, form: Form) -> Result<Outputs> {
    let config = LinearAttentionConfig {
        heads: case.size("num_heads")?,
        feature_map: FeatureMap::Cosformer { length: case.size("seq_len")? },
        normalizer: Normalizer::SumAtLeast { eps: case.number("eps").unwrap_or(1e-6) },
        scale: Some(1.0),
        qkv_bias: true,
        out_bias: true,
        ..Default::default()
    };
    let mut named = Named::new();
    for name in ["q_proj", "k_proj", "v_proj", "out_proj"] {
        named.insert(format!("{name}.weight"), case.linear(&format!("w.{name}.weight"))?);
        named.insert(format!("{name}.bias"), case.get::<1>(&format!("w.{name}.bias"))?.into());
    }
    let layer = config.init(case.size("embed_dim")?, &mut Init::new(0, case.device()))?;
    let layer = params::assign(layer, named)?;
    let x = case.get::<3>("in.x")?.swap_dims(0, 1);
    let y = if case.flag("causal") {
        let state = Mixer::initial_state(&layer, x.dims()[0]);
        layer.forward(x, state, form)?.0
    } else {
        layer.forward_bidirectional(x)?
    };
    Ok(vec![("y", y.swap_dims(0, 1).into())])
}

/// The columns of each head in the order that pairs channel `i` with `i + n/2` where the reference pairs `2i` with
/// `2i + 1`: scores do not change when queries and keys are reordered alike.
fn halves_of_pairs(weight: Tensor<2>, heads: usize) -> Tensor<2> {
    let width = weight.dims()[1];
    let n = width / heads;
    let order: Vec<i64> = (0..width)
        .map(|column| {
            let (head, i) = (column / n, column % n);
            (head * n + if i < n / 2 { 2 * i } else { 2 * (i - n / 2) + 1 }) as i64
        })
        .collect();
    let order = TensorData::new(order, [width]);
    weight.clone().select(1, Tensor::<1, Int>::from_data(order, &weight.device().inner()))
}

/// The authors' multi-scale retention.
pub(super) fn retnet(case: &Case, form: Form) -> Result<Outputs> {
    let (heads, d) = (case.size("num_heads")?, case.size("embed_dim")?);
    let config = RetNetConfig {
        heads,
        value_dim: Some(case.size("value_dim")? / heads),
        score_norm: true,
        norm_eps: case.number("layernorm_eps").unwrap_or(1e-6),
        ..Default::default()
    };
    let weight = |name: &str| -> Result<Tensor<2>> {
        Ok(case.get::<2>(&format!("w.r.{name}_proj.weight"))?.transpose())
    };
    let named: [(&str, Value); 5] = [
        ("qkv.q_proj", halves_of_pairs(weight("q")?, heads).into()),
        ("qkv.k_proj", halves_of_pairs(weight("k")?, heads).into()),
        ("qkv.v_proj", weight("v")?.into()),
        ("readout.gate_proj", weight("g")?.into()),
        ("readout.out_proj", weight("out")?.into()),
    ];
    let named = named.map(|(name, value)| (format!("{name}.weight"), value)).into();
    run(case, config.init(d, &mut Init::new(0, case.device()))?, named, form)
}

/// fla's layer of gated linear attention.
pub(super) fn gla(case: &Case, form: Form) -> Result<Outputs> {
    let conv = case.flag("use_short_conv");
    let config = GlaConfig {
        heads: case.size("num_heads")?,
        conv_kernel: if conv { case.size("conv_size")? } else { 0 },
        ..Default::default()
    };
    let mut named = Named::new();
    for (name, value) in projections(case)? {
        let part = if name.starts_with("out") { "readout" } else { "qkv" };
        named.insert(format!("{part}.{name}"), value);
    }
    for name in ["q", "k", "v"].into_iter().filter(|_| conv) {
        let weight = case.get::<3>(&format!("w.{name}_conv1d.weight"))?.squeeze_dim::<2>(1);
        named.insert(format!("qkv.conv_{name}.weight"), weight.into());
    }
    named.insert("readout.gate_proj.weight".into(), case.linear("w.g_proj.weight")?);
    named.insert("readout.norm.weight".into(), case.get::<1>("w.g_norm_swish_gate.weight")?.into());
    named.insert("decay_down.weight".into(), case.linear("w.gk_proj.0.weight")?);
    named.insert("decay_up.weight".into(), case.linear("w.gk_proj.1.weight")?);
    named.insert("decay_up.bias".into(), case.get::<1>("w.gk_proj.1.bias")?.into());
    let layer = config.init(case.size("hidden_size")?, &mut Init::new(0, case.device()))?;
    run(case, layer, named, form)
}

/// fla's layer of HGRN2.
pub(super) fn hgrn2(case: &Case, form: Form) -> Result<Outputs> {
    let config = Hgrn2Config {
        heads: case.size("num_heads")?,
        key_dim: Some(case.size("expand_ratio")?),
        ..Default::default()
    };
    let mut named = Named::new();
    for (ours, theirs) in
        [("q_proj", "q_proj"), ("f_proj", "f_proj"), ("i_proj", "i_proj"), ("out_proj", "o_proj")]
    {
        named.insert(format!("{ours}.weight"), case.linear(&format!("w.{theirs}.weight"))?);
    }
    named.insert("norm.weight".into(), case.get::<1>("w.g_norm.weight")?.into());
    let layer = config.init(case.size("hidden_size")?, &mut Init::new(0, case.device()))?;
    run(case, layer, named, form)
}
