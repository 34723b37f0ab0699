//! Mixture of heads.

use burn::module::Module;
use burn::tensor::Tensor;
use seqzoo_layers::attention::{AttentionConfig, CosineAttention, CosineAttentionConfig};
use seqzoo_layers::moh::{Moh, MohConfig, RouterKind, RoutingConfig};
use seqzoo_layers::nn::{NormConfig, RopeConfig};
use seqzoo_layers::params::{self, Named};
use seqzoo_layers::system::{Form, HeadMixer, Mixer};
use seqzoo_layers::{Init, Value};

use super::{Output, Outputs, attention::projections};
use crate::golden::{Case, Error, Result};

/// The reference's fused `qkv`, rows `[3, heads, head_dim]`, its output map and its routers.
fn weights(case: &Case) -> Result<Named> {
    let weight = case.get::<2>("w.qkv.weight")?.transpose();
    let width = weight.dims()[1] / 3;
    let mut named = Named::new();
    for (part, name) in ["q_proj", "k_proj", "v_proj"].into_iter().enumerate() {
        named.insert(format!("mixer.{name}.weight"), weight.clone().narrow(1, part * width, width).into());
        if case.has("w.qkv.bias") {
            let bias = case.get::<1>("w.qkv.bias")?.narrow(0, part * width, width);
            named.insert(format!("mixer.{name}.bias"), bias.into());
        }
    }
    named.insert("mixer.out_proj.weight".into(), case.linear("w.proj.weight")?);
    named.insert("mixer.out_proj.bias".into(), case.get::<1>("w.proj.bias")?.into());
    for (ours, theirs) in [("route_proj", "wg"), ("stage_proj", "wg_0"), ("shared_proj", "wg_1")] {
        if case.has(&format!("w.{theirs}.weight")) {
            named.insert(format!("{ours}.weight"), case.linear(&format!("w.{theirs}.weight"))?);
        }
    }
    Ok(named)
}

fn routing(case: &Case, router: RouterKind) -> Result<RoutingConfig> {
    let (shared, top_k) = (case.size("shared_head")?, case.size("routed_head")?);
    Ok(RoutingConfig { shared, top_k, balance: 1.0, router, ..Default::default() })
}

/// The routed heads of each token, by falling probability, as the reference lists them.
fn chosen<M: HeadMixer + Module>(layer: &Moh<M>, x: &Tensor<3>) -> Result<Option<Vec<i64>>> {
    let routing = layer.route(x.clone());
    let (Some(chosen), Some(p)) = (routing.chosen, routing.probabilities) else { return Ok(None) };
    let routed = p.dims()[2];
    let (chosen, p) = (Value::of(chosen).to_f64()?, Value::of(p).to_f64()?);
    let heads = chosen.chunks(routed).zip(p.chunks(routed)).flat_map(|(chosen, p)| {
        let mut heads: Vec<usize> = (0..routed).filter(|&head| chosen[head] == 1.0).collect();
        heads.sort_by(|&a, &b| p[b].total_cmp(&p[a]));
        heads.into_iter().map(|head| head as i64)
    });
    Ok(Some(heads.collect()))
}

/// Output, choices and balance loss.
fn outputs<M: HeadMixer + Module>(layer: &Moh<M>, x: Tensor<3>, form: Form) -> Result<Outputs> {
    let (y, _) = layer.forward(x.clone(), layer.initial_state(x.dims()[0]), form)?;
    let mut outputs: Outputs = vec![("y", y.into())];
    if let Some(heads) = chosen(layer, &x)? {
        outputs.push(("router_indices", Output::Indices(heads)));
    }
    if let Some(p) = layer.route(x.clone()).probabilities {
        outputs.push(("router_gates", p.into()));
    }
    if let Some(loss) = layer.auxiliary_loss(x)? {
        outputs.push(("l_aux", loss.into()));
    }
    Ok(outputs)
}

/// The learned two-stage router over softmax attention.
pub(super) fn attention(case: &Case, form: Form) -> Result<Outputs> {
    let normed = case.flag("qk_norm");
    let config = AttentionConfig {
        heads: case.size("num_heads")?,
        head_dim: Some(case.size("head_dim")?),
        rope: None,
        causal: case.flag("causal"),
        qkv_bias: case.flag("qkv_bias"),
        out_bias: true,
        // timm's default epsilon
        qk_norm: normed.then_some(NormConfig::Layer { eps: 1e-5 }),
        ..Default::default()
    };
    let mut named = weights(case)?;
    for norm in ["q_norm", "k_norm"].into_iter().filter(|_| normed) {
        for field in ["weight", "bias"] {
            let value = case.get::<1>(&format!("w.{norm}.{field}"))?;
            named.insert(format!("mixer.{norm}.{field}"), value.into());
        }
    }
    let config = MohConfig { attention: config, routing: routing(case, RouterKind::Learned)? };
    let layer = config.init(case.size("dim")?, &mut Init::new(0, case.device()))?;
    outputs(&params::assign(layer, named)?, case.get("in.x")?, form)
}

/// The parameter-free router over Llama's attention.
pub(super) fn query_norm(case: &Case, form: Form) -> Result<Outputs> {
    let config = AttentionConfig {
        heads: case.size("num_heads")?,
        kv_heads: Some(case.size("num_kv_heads")?),
        rope: Some(RopeConfig { base: case.number("rope_theta").unwrap_or(1e4), ..Default::default() }),
        causal: case.flag("causal"),
        ..Default::default()
    };
    let routing = routing(case, RouterKind::QueryNorm { straight_through: false })?;
    let layer = MohConfig { attention: config, routing };
    let layer = layer.init(case.size("hidden_size")?, &mut Init::new(0, case.device()))?;
    let named = projections(case)?.into_iter().map(|(name, value)| (format!("mixer.{name}"), value));
    outputs(&params::assign(layer, named.collect())?, case.get("in.x")?, form)
}

/// The learned router over another mixer: TransNeXt's cosine attention.
pub(super) fn vision(case: &Case, form: Form) -> Result<Outputs> {
    let heads = case.size("num_heads")?;
    let grid: Vec<usize> = serde_json::from_value(case.config()["input_resolution"].clone())
        .map_err(|e| Error::Case(format!("`input_resolution`: {e}")))?;
    let [rows, columns] = grid[..] else {
        return Err(Error::Case("`input_resolution` must be two numbers".into()));
    };
    let config = CosineAttentionConfig { heads, grid: [rows, columns], ..Default::default() };
    let mut init = Init::new(0, case.device());
    let mixer = config.init(case.size("dim")?, &mut init)?;
    let coordinates = case.get::<2>("in.relative_coords_table")?;
    let index = case.indices("in.relative_pos_index")?.iter().map(|&i| i as usize).collect();
    let mixer = mixer.with_coordinates(coordinates.clone(), index)?;
    let layer: Moh<CosineAttention> = routing(case, RouterKind::Learned)?.wrap(mixer, &mut init)?;

    let mut named = weights(case)?;
    for (ours, theirs) in [("position_in", "cpb_fc1"), ("position_out", "cpb_fc2")] {
        named.insert(format!("mixer.{ours}.weight"), case.linear(&format!("w.{theirs}.weight"))?);
        named.insert(format!("mixer.{ours}.bias"), case.get::<1>(&format!("w.{theirs}.bias"))?.into());
    }
    named.insert("mixer.coordinates".into(), coordinates.into());
    let embedding = case.get::<3>("w.query_embedding")?.squeeze_dim::<2>(1);
    named.insert("mixer.query_embedding".into(), embedding.into());
    named.insert("mixer.temperature".into(), case.get::<3>("w.temperature")?.reshape([heads]).into());
    outputs(&params::assign(layer, named)?, case.get("in.x")?, form)
}
