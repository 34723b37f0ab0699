//! Attention layers that no whole model here uses.

use seqzoo_layers::attention::AttentionConfig;
use seqzoo_layers::lightning::{LightningConfig, LightningGate, LightningNorm};
use seqzoo_layers::nn::{Activation, NormConfig, RopeConfig};
use seqzoo_layers::params::{self, Named};
use seqzoo_layers::system::{Form, Mixer};
use seqzoo_layers::{Init, Value};

use super::Outputs;
use crate::golden::{Case, Error, Result};

/// Attention's four projections in a reference that calls them `{q,k,v,o}_proj`, and norms of the heads.
pub(super) fn projections(case: &Case) -> Result<Named> {
    let mut named = Named::new();
    for (ours, theirs) in [("q", "q"), ("k", "k"), ("v", "v"), ("out", "o")] {
        named.insert(format!("{ours}_proj.weight"), case.linear(&format!("w.{theirs}_proj.weight"))?);
    }
    for name in ["q_norm.weight", "k_norm.weight"] {
        if case.has(&format!("w.{name}")) {
            named.insert(name.into(), case.get::<1>(&format!("w.{name}"))?.into());
        }
    }
    Ok(named)
}

/// Gemma 2 and 3: bounded scores or normalised heads, and a window in some layers.
pub(super) fn gemma(case: &Case, form: Form) -> Result<Outputs> {
    let normed = case.has("w.q_norm.weight");
    let path = case.config()["module_path"].as_str().unwrap_or_default();
    let layer: usize = path.split('.').find_map(|part| part.parse().ok()).unwrap_or(0);
    let sliding = case.config()["layer_types"][layer] == "sliding_attention";
    let base = if normed && !sliding { 1e6 } else { 1e4 };
    let config = AttentionConfig {
        heads: case.size("num_attention_heads")?,
        kv_heads: Some(case.size("num_key_value_heads")?),
        head_dim: Some(case.size("head_dim")?),
        window: if sliding { Some(case.size("sliding_window")?) } else { None },
        scale: case.number("query_pre_attn_scalar").map(|scalar| scalar.powf(-0.5)),
        softcap: case.number("attn_logit_softcapping"),
        qk_norm: normed.then_some(NormConfig::Rms { eps: 1e-6, unit_offset: true }),
        rope: Some(RopeConfig { base, ..Default::default() }),
        ..Default::default()
    };
    let x = case.get::<3>("in.hidden_states")?;
    let layer = config.init(x.dims()[2], &mut Init::new(0, case.device()))?;
    let layer = params::assign(layer, projections(case)?)?;
    let state = layer.initial_state(x.dims()[0]);
    Ok(vec![("y", layer.forward(x, state, form)?.0.into())])
}

/// The example layer of the lightning-attention repository.
pub(super) fn transnormer(case: &Case, form: Form) -> Result<Outputs> {
    if case.flag("bias") {
        return Err(Error::Case("projections with a bias are not supported".into()));
    }
    let down = case.get::<2>("w.output_gate.0.weight")?;
    let config = LightningConfig {
        layer: Some(case.size("layer_idx")?),
        layers: Some(case.size("num_layers")?),
        value_activation: Activation::Silu,
        norm: LightningNorm::Layer { eps: 1e-5 },
        gate: LightningGate::LowRank { rank: down.dims()[0] },
        ..LightningConfig::tnl(case.size("num_heads")?)
    };
    let mut named = projections(case)?;
    named.insert("gate_down.weight".into(), down.transpose().into());
    named.insert("gate_proj.weight".into(), case.linear("w.output_gate.1.weight")?);
    for field in ["weight", "bias"] {
        let value: Value = case.get::<1>(&format!("w.norm.{field}"))?.into();
        named.insert(format!("norm.{field}"), value);
    }
    let layer = config.init(case.size("embed_dim")?, &mut Init::new(0, case.device()))?;
    let layer = params::assign(layer, named)?;
    let x = case.get::<3>("in.x")?;
    let state = Mixer::initial_state(&layer, x.dims()[0]);
    Ok(vec![("y", layer.forward(x, state, form)?.0.into())])
}
