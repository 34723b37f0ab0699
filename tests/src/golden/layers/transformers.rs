//! Parts of models of transformers: built and loaded as the whole models are.

use seqzoo::hf::{Architecture, Part};
use seqzoo_layers::system::{Form, Mixer};

use super::Outputs;
use crate::golden::{Case, Error, Result};

/// The `model_type` behind an architecture's name.
const MODEL_TYPES: &[(&str, &str)] = &[
    ("llama", "llama"),
    ("mistral", "mistral"),
    ("mixtral", "mixtral"),
    ("qwen2", "qwen2"),
    ("qwen3", "qwen3"),
    ("gpt2", "gpt2"),
    ("mamba2", "mamba2"),
    ("minimax", "minimax"),
    ("recurrentgemma", "recurrent_gemma"),
    ("qwen3next", "qwen3_next"),
    ("rwkv4", "rwkv"),
];

/// A block, mixer or MLP, as `module_path` says.
pub(super) fn part(case: &Case, form: Form) -> Result<Outputs> {
    let name = case.metadata("architecture").unwrap_or_default();
    let family = name.split('_').next().unwrap_or_default();
    let model_type = MODEL_TYPES.iter().find(|(prefix, _)| *prefix == family).map(|(_, kind)| *kind);
    let mut config = case.config().clone();
    config["model_type"] = model_type.into();
    let architecture = Architecture::new(config, "the case's config")?;
    let path = case.config()["module_path"].as_str().unwrap_or_default();
    let part = architecture.part(path);
    let part = part.ok_or_else(|| Error::Case(format!("`{path}` is no part of a {model_type:?}")))?;
    let block = architecture.block(part, &case.weights(), case.device())?;
    let x = case.get::<3>(if case.has("in.hidden") { "in.hidden" } else { "in.hidden_states" })?;
    let mut state = block.initial_state(x.dims()[0]);
    let y = match part {
        Part::Block(_) => block.forward(x, state, form, None, false)?.0,
        Part::Mixer(_) => block.mixer.forward(x, state, form)?.0,
        Part::Mlp(_) => {
            let mlp = block.mlp.ok_or_else(|| Error::Case("the block has no MLP".into()))?;
            mlp.forward(x, &mut state, None)?
        }
    };
    Ok(vec![("y", y.into())])
}
