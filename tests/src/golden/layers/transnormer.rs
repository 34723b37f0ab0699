//! TransNormerLLM's block, as the whole model builds it.

use seqzoo::model::{LanguageModelConfig, MlpConfig};
use seqzoo::registry::MixerConfig;
use seqzoo_layers::lightning::LrpeLayers;
use seqzoo_layers::params::{self, Named};
use seqzoo_layers::system::Form;

use super::Outputs;
use crate::golden::{Case, Error, Result};

/// The block of the case's layer.
pub(super) fn block(case: &Case, form: Form) -> Result<Outputs> {
    let (layer, layers, heads) = (case.size("layer")?, case.size("n_layer")?, case.size("n_head")?);
    let mut config = LanguageModelConfig::transnormer(2, case.size("n_embd")?, layers);
    let up = case.get::<2>("w.channel_mixer.l2.weight")?;
    for part in &mut config.pattern {
        part.mlp = Some(MlpConfig::sglu(up.dims()[0]));
        let MixerConfig::Lightning(mixer) = &mut part.mixer else {
            return Err(Error::Case("the preset has no lightning attention".into()));
        };
        mixer.heads = heads;
        mixer.lrpe = if case.flag("use_lrpe") { LrpeLayers::All } else { LrpeLayers::None };
    }
    let blocks = config.init(0, case.device())?.blocks;
    let block = blocks.into_iter().nth(layer);
    let block = block.ok_or_else(|| Error::Case(format!("there is no layer {layer} of {layers}")))?;

    let mut named = Named::new();
    // Rows of the fused map: queries, keys, values, gate.
    let fused = case.get::<2>("w.token_mixer.qkvu_proj.weight")?.transpose();
    let width = fused.dims()[1] / 4;
    for (part, name) in ["q", "k", "v", "gate"].into_iter().enumerate() {
        let weight = fused.clone().narrow(1, part * width, width);
        named.insert(format!("mixer.{name}_proj.weight"), weight.into());
    }
    named.insert("mixer.out_proj.weight".into(), case.linear("w.token_mixer.out_proj.weight")?);
    if case.has("w.token_mixer.lrpe.theta") {
        let theta = case.get::<3>("w.token_mixer.lrpe.theta")?.squeeze_dim::<2>(1);
        named.insert("mixer.lrpe.theta".into(), theta.into());
    }
    for (ours, theirs) in [("gate", "l1"), ("up", "l2"), ("down", "l3")] {
        let weight = case.linear(&format!("w.channel_mixer.{theirs}.weight"))?;
        named.insert(format!("mlp.{ours}.weight"), weight);
    }
    let block = params::assign(block, named)?;
    let x = case.get::<3>("in.x")?;
    let state = block.initial_state(x.dims()[0]);
    Ok(vec![("y", block.forward(x, state, form, None, false)?.0.into())])
}
