//! Softmax attention and its relatives: sinks, forget gates, products of reflections, latents, slots, flows.
//!
//! Where a case has an operator's inputs, the registered layer reads them side by side as channels of one sequence,
//! through maps that pick them out.

use burn::tensor::{Int, Tensor, TensorData};
use seqzoo_layers::attention::{
    AttentionConfig, ForgettingAttentionConfig, MlaConfig, PathAttentionConfig, Sink,
};
use seqzoo_layers::linear::{FlowConfig, SlotAttention, bounded_memory, flow_attention, no_weights};
use seqzoo_layers::nn::{RopeConfig, merge_heads, split_heads};
use seqzoo_layers::params::{self, Named};
use seqzoo_layers::system::{Form, Mixer};
use seqzoo_layers::{Init, Value};

use super::Outputs;
use super::attention::projections;
use crate::golden::{Case, Error, Result};

/// Inputs of an operator side by side, and the maps that pick each out again.
struct Channels {
    x: Tensor<3>,
    parameters: Named,
}

impl Channels {
    /// Each part with the name of the map that is to pick it out; the output map puts `out` channels first.
    fn new(parts: Vec<(&str, Tensor<3>)>, out_map: &str, out: usize) -> Self {
        let total: usize = parts.iter().map(|(_, x)| x.dims()[2]).sum();
        let device = parts[0].1.device();
        let pick = |from: usize, width: usize| {
            let mut values = vec![0.0_f32; total * width];
            (0..width).for_each(|i| values[(from + i) * width + i] = 1.0);
            Tensor::<2>::from_data(TensorData::new(values, [total, width]), &device)
        };
        let (mut parameters, mut from) = (Named::new(), 0);
        for (map, x) in &parts {
            let width = x.dims()[2];
            parameters.insert(format!("{map}.weight"), pick(from, width).into());
            from += width;
        }
        parameters.insert(format!("{out_map}.weight"), pick(0, out).transpose().into());
        Self { x: Tensor::cat(parts.into_iter().map(|(_, x)| x).collect(), 2), parameters }
    }

    fn set(&mut self, name: &str, value: impl Into<Value>) {
        self.parameters.insert(name.into(), value.into());
    }

    fn zero_bias(&mut self, map: &str, width: usize) {
        let zeros = Tensor::<1>::zeros([width], &self.x.device());
        self.set(&format!("{map}.bias"), zeros);
    }
}

/// `[b, t, h, n] -> [b, t, h n]`
fn side_by_side(x: Tensor<4>) -> Tensor<3> {
    let [b, t, h, n] = x.dims();
    x.reshape([b, t, h * n])
}

/// Inputs by the names of the maps that would have made them.
type Parts = Vec<(String, Tensor<3>)>;

/// `q`, `k`, `v` of an operator under attention's maps, and the configuration of their sizes.
fn operator(case: &Case, prefix: &str) -> Result<(Parts, AttentionConfig, usize)> {
    let [q, k, v] = case.inputs(["q", "k", "v"])?;
    let ([.., heads, n], [.., kv, p]) = (q.dims(), v.dims());
    if n != p {
        return Err(Error::Case(format!("values of {p} channels under keys of {n}")));
    }
    let window = case.config()["window"].as_u64().map(|n| n as usize);
    let config = AttentionConfig {
        heads,
        kv_heads: Some(kv),
        head_dim: Some(n),
        rope: None,
        window,
        ..Default::default()
    };
    let parts = [("q", q), ("k", k), ("v", v)];
    let parts = parts.map(|(name, x)| (format!("{prefix}{name}_proj"), side_by_side(x)));
    Ok((parts.into(), config, heads * p))
}

/// Runs a layer on channels; its first `out` ones are the heads' outputs, `[b, t, h, p]`.
fn run<M: Mixer>(layer: &M, x: Tensor<3>, heads: usize, out: usize, form: Form) -> Result<Outputs> {
    let [b, t, _] = x.dims();
    let (y, _) = layer.forward(x, layer.initial_state(b), form)?;
    Ok(vec![("y", y.narrow(2, 0, out).reshape([b, t, heads, out / heads]).into())])
}

/// `x` with `log sigmoid(x) = g`.
fn logit<const D: usize>(g: Tensor<D>) -> Tensor<D> {
    g.clone() - g.exp().neg().log1p()
}

fn borrowed(parts: &[(String, Tensor<3>)]) -> Vec<(&str, Tensor<3>)> {
    parts.iter().map(|(name, x)| (name.as_str(), x.clone())).collect()
}

/// A window and a sink per head.
pub(super) fn sink(case: &Case, form: Form) -> Result<Outputs> {
    let (parts, config, out) = operator(case, "")?;
    let config = AttentionConfig { sink: case.has("in.sink").then_some(Sink::Learned), ..config };
    let mut channels = Channels::new(borrowed(&parts), "out_proj", out);
    if config.sink.is_some() {
        channels.set("sink", case.get::<1>("in.sink")?);
    }
    let layer = config.init(channels.x.dims()[2], &mut Init::new(0, case.device()))?;
    run(&params::assign(layer, channels.parameters)?, channels.x, config.heads, out, form)
}

/// gpt-oss: sinks, biases, and a window in some layers.
pub(super) fn gpt_oss(case: &Case, form: Form) -> Result<Outputs> {
    let path = case.config()["module_path"].as_str().unwrap_or_default();
    let layer: usize = path.split('.').find_map(|part| part.parse().ok()).unwrap_or(0);
    let sliding = case.config()["layer_types"][layer] == "sliding_attention";
    let base = case.config()["rope_parameters"]["rope_theta"].as_f64().unwrap_or(150_000.0);
    let config = AttentionConfig {
        heads: case.size("num_attention_heads")?,
        kv_heads: Some(case.size("num_key_value_heads")?),
        head_dim: Some(case.size("head_dim")?),
        window: if sliding { Some(case.size("sliding_window")?) } else { None },
        rope: Some(RopeConfig { base, ..Default::default() }),
        qkv_bias: true,
        out_bias: true,
        sink: Some(Sink::Learned),
        ..Default::default()
    };
    let mut named = projections(case)?;
    for (ours, theirs) in [("q", "q"), ("k", "k"), ("v", "v"), ("out", "o")] {
        let bias = case.get::<1>(&format!("w.{theirs}_proj.bias"))?;
        named.insert(format!("{ours}_proj.bias"), bias.into());
    }
    named.insert("sink".into(), case.get::<1>("w.sinks")?.into());
    let x = case.get::<3>("in.hidden_states")?;
    let layer = config.init(x.dims()[2], &mut Init::new(0, case.device()))?;
    let layer = params::assign(layer, named)?;
    let state = layer.initial_state(x.dims()[0]);
    Ok(vec![("y", layer.forward(x, state, form)?.0.into())])
}

/// A forget gate per query head.
pub(super) fn forgetting(case: &Case, form: Form) -> Result<Outputs> {
    let (mut parts, attention, out) = operator(case, "attention.")?;
    let heads = attention.heads;
    parts.push(("forget_proj".into(), logit(case.get::<3>("in.g")?)));
    let mut channels = Channels::new(borrowed(&parts), "attention.out_proj", out);
    channels.zero_bias("forget_proj", heads);
    let config = ForgettingAttentionConfig { attention, ..Default::default() };
    let layer = config.init(channels.x.dims()[2], &mut Init::new(0, case.device()))?;
    run(&params::assign(layer, channels.parameters)?, channels.x, heads, out, form)
}

/// Reflections `I - β w wᵀ`, perhaps with a forget gate. Our layer makes `w` unit vectors, so their length goes
/// into `β`.
pub(super) fn path(case: &Case, form: Form) -> Result<Outputs> {
    let (mut parts, attention, out) = operator(case, "attention.")?;
    let (heads, kv) = (attention.heads, attention.kv_heads.unwrap_or(attention.heads));
    let w = case.get::<4>("in.w")?;
    let square = w.clone().square().sum_dim(3).squeeze_dim::<3>(3).add_scalar(1e-6);
    // β = 2 sigmoid(x)
    let beta = case.get::<3>("in.beta")? * square;
    parts.push(("w_proj".into(), side_by_side(w)));
    parts.push(("beta_proj".into(), logit(beta.mul_scalar(0.5).log())));
    let gated = case.has("in.g");
    if gated {
        // The reference multiplies the gates' logarithms by the scale too.
        let scale = attention.head_dim.map_or(1.0, |n| (n as f64).powf(-0.5));
        parts.push(("forget_proj".into(), logit(case.get::<3>("in.g")?.mul_scalar(scale))));
    }
    let mut channels = Channels::new(borrowed(&parts), "attention.out_proj", out);
    channels.zero_bias("beta_proj", kv);
    if gated {
        channels.zero_bias("forget_proj", heads);
    }
    let config = PathAttentionConfig { attention, rank: None, conv_kernel: 0, forget_gate: gated };
    let layer = config.init(channels.x.dims()[2], &mut Init::new(0, case.device()))?;
    run(&params::assign(layer, channels.parameters)?, channels.x, heads, out, form)
}

/// Multi-head latent attention, with rotary positions where the case's model has them.
pub(super) fn latent(case: &Case, form: Form) -> Result<Outputs> {
    let rotary = case.config().get("rope_parameters").is_some();
    let (heads, rank) = (case.size("num_attention_heads")?, case.size("kv_lora_rank")?);
    let (n, r) = (case.size("qk_nope_head_dim")?, case.size("qk_rope_head_dim")?);
    let config = MlaConfig {
        heads,
        head_dim: Some(n),
        rope_dim: r,
        value_dim: Some(case.size("v_head_dim")?),
        kv_rank: rank,
        q_rank: case.config()["q_lora_rank"].as_u64().map(|rank| rank as usize),
        rope: rotary.then(RopeConfig::default),
        ..Default::default()
    };
    // The reference rotates pairs of neighbours, we channels half a head apart: reorder what rotates.
    let turned = |start: usize| {
        let pairs = (0..r).map(move |i| start + if i < r / 2 { 2 * i } else { 2 * i + 1 - r });
        let plain = (0..r).map(move |i| start + i);
        if rotary { pairs.collect::<Vec<_>>() } else { plain.collect() }
    };
    let reordered = |name: &str, order: Vec<usize>| -> Result<Value> {
        let weight = case.get::<2>(name)?;
        let index: Vec<i64> = order.into_iter().map(|i| i as i64).collect();
        let length = index.len();
        let index = Tensor::<1, Int>::from_data(TensorData::new(index, [length]), &weight.device().inner());
        Ok(weight.select(0, index).transpose().into())
    };
    let query = (0..heads).flat_map(|head| {
        let start = head * (n + r);
        (start..start + n).chain(turned(start + n))
    });
    let mut named = Named::new();
    match config.q_rank {
        Some(_) => {
            named.insert("q_down.weight".into(), case.linear("w.q_a_proj.weight")?);
            named.insert("q_norm.weight".into(), case.get::<1>("w.q_a_layernorm.weight")?.into());
            named.insert("q_proj.weight".into(), reordered("w.q_b_proj.weight", query.collect())?);
        }
        None => {
            named.insert("q_proj.weight".into(), reordered("w.q_proj.weight", query.collect())?);
        }
    }
    let down = (0..rank).chain(turned(rank)).collect();
    named.insert("kv_down.weight".into(), reordered("w.kv_a_proj_with_mqa.weight", down)?);
    named.insert("kv_norm.weight".into(), case.get::<1>("w.kv_a_layernorm.weight")?.into());
    named.insert("kv_up.weight".into(), case.linear("w.kv_b_proj.weight")?);
    named.insert("out_proj.weight".into(), case.linear("w.o_proj.weight")?);
    let x = case.get::<3>("in.hidden_states")?;
    let layer = config.init(x.dims()[2], &mut Init::new(0, case.device()))?;
    let layer = params::assign(layer, named)?;
    let state = layer.initial_state(x.dims()[0]);
    Ok(vec![("y", layer.forward(x, state, form)?.0.into())])
}

/// Gated slots; the reference keeps keys as `[b, h, n, m]`.
pub(super) fn gated_slots(case: &Case, form: Form) -> Result<Outputs> {
    let [q, k, v, write, log_keep] = case.inputs(["q", "k", "v", "s", "g"])?.map(|x| x.swap_dims(1, 2));
    let q = q.mul_scalar((k.dims()[3] as f64).powf(-0.5));
    let [keys, values] = case.inputs(["hk0", "hv0"])?;
    let memory = SlotAttention { q, k, v, write, log_keep };
    let (y, [keys, values]) = memory.run(keys.swap_dims(2, 3), values, form, None)?;
    Ok(vec![
        ("y", y.swap_dims(1, 2).into()),
        ("final_hk", keys.swap_dims(2, 3).into()),
        ("final_hv", values.into()),
    ])
}

/// Slots that weigh tokens by a softmax.
pub(super) fn bounded_slots(case: &Case, form: Form) -> Result<Outputs> {
    let [q, k, v, wants] = case.inputs(["q", "k", "v", "s"])?;
    let ([b, h, _, n], p, m) = (k.dims(), v.dims()[3], wants.dims()[3]);
    let q = q.mul_scalar((n as f64).powf(-0.5));
    let device = case.device().clone();
    let z = no_weights(b, h, m, &Tensor::zeros([1, 1], &device));
    let (memory, _) = bounded_memory(q, k, v, wants, z);
    let empty = |width| Tensor::zeros([b, h, m, width], &device);
    let (y, _) = memory.run(empty(n), empty(p), form, None)?;
    Ok(vec![("y", y.into())])
}

/// Flow-Attention between any sinks and sources.
pub(super) fn flow(case: &Case, _form: Form) -> Result<Outputs> {
    let heads = case.size("n_heads")?;
    let map = |input: &str, map: &str| -> Result<Tensor<3>> {
        let weight = case.get::<2>(&format!("w.{map}.weight"))?.transpose();
        let bias = case.get::<1>(&format!("w.{map}.bias"))?;
        Ok(case.get::<3>(input)?.matmul(weight.unsqueeze()) + bias.unsqueeze())
    };
    let q = split_heads(map("in.queries", "query_projection")?, heads);
    let k = split_heads(map("in.keys", "key_projection")?, heads);
    let v = split_heads(map("in.values", "value_projection")?, heads);
    let y = merge_heads(flow_attention(q, k, v, 1.0, case.number("eps").unwrap_or(1e-6))?);
    let weight = case.get::<2>("w.out_projection.weight")?.transpose();
    let y = y.matmul(weight.unsqueeze()) + case.get::<1>("w.out_projection.bias")?.unsqueeze();
    Ok(vec![("y", y.into())])
}

/// Causal Flow-Attention. Queries, keys and values are maps of three inputs, ours of one: their channels lie side
/// by side and each map has zeros for the others'.
pub(super) fn flow_causal(case: &Case, form: Form) -> Result<Outputs> {
    let inputs = ["in.queries", "in.keys", "in.values"].map(|name| case.get::<3>(name));
    let [q, k, v] = inputs;
    let (x, width) = (Tensor::cat(vec![q?, k?, v?], 2), case.size("d_input")?);
    let device = case.device().clone();
    let mut named = Named::new();
    let maps = [("q_proj", "query_projection"), ("k_proj", "key_projection"), ("v_proj", "value_projection")];
    for (place, (ours, theirs)) in maps.into_iter().enumerate() {
        let weight = case.get::<2>(&format!("w.{theirs}.weight"))?.transpose();
        let others = || Tensor::<2>::zeros([width, weight.dims()[1]], &device);
        let rows = (0..3).map(|i| if i == place { weight.clone() } else { others() }).collect();
        named.insert(format!("{ours}.weight"), Tensor::cat(rows, 0).into());
        named.insert(format!("{ours}.bias"), case.get::<1>(&format!("w.{theirs}.bias"))?.into());
    }
    let (out, total) = (case.size("d_output")?, x.dims()[2]);
    let weight = case.get::<2>("w.out_projection.weight")?.transpose();
    let (inner, spare) = (weight.dims()[0], total - out);
    let weight = Tensor::cat(vec![weight, Tensor::zeros([inner, spare], &device)], 1);
    let bias = Tensor::cat(vec![case.get("w.out_projection.bias")?, Tensor::<1>::zeros([spare], &device)], 0);
    named.insert("out_proj.weight".into(), weight.into());
    named.insert("out_proj.bias".into(), bias.into());
    let heads = case.size("n_heads")?;
    let config = FlowConfig {
        heads,
        head_dim: Some(case.size("d_model")? / heads),
        eps: case.number("eps").unwrap_or(1e-6),
        ..Default::default()
    };
    let layer = params::assign(config.init(total, &mut Init::new(0, &device))?, named)?;
    let state = Mixer::initial_state(&layer, x.dims()[0]);
    let (y, _) = layer.forward(x, state, form)?;
    Ok(vec![("y", y.narrow(2, 0, out).into())])
}
