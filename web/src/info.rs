//! What a page says about an architecture and a model.

use burn::tensor::{Device, Tensor};
use seqzoo::model::LanguageModelConfig;
use seqzoo::registry::{Architecture, Family, MixerConfig, architecture, families, nearest};
use seqzoo::{Error, Result};
use seqzoo_layers::Init;
use seqzoo_layers::system::{Form, Growth, Mixer, State, Terms, Transition};
use serde::Serialize;
use serde_json::Value;

/// Width at which an architecture is tried out to describe it.
const WIDTH: usize = 32;

/// Facts about an architecture.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ArchInfo {
    /// Name in the registry.
    pub name: &'static str,
    /// Full name.
    pub title: &'static str,
    /// What it has in common with its like.
    pub family: String,
    /// One sentence.
    pub summary: String,
    /// Where it is from.
    pub paper: String,
    /// arXiv id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arxiv: Option<&'static str>,
    /// Year of the paper.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub year: Option<u32>,
    /// The recurrence, one line each.
    pub equations: Vec<String>,
    /// What is carried between tokens.
    pub state: &'static str,
    /// How that grows: `fixed`, `per_token` or `per_doubling`.
    pub grows: &'static str,
    /// Its configuration as JSON.
    pub config: String,
    /// Structure of the state transition, where the update is linear in the state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transition: Option<&'static str>,
}

/// Facts about a model.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ModelInfo {
    /// Architecture of the first block.
    pub arch: &'static str,
    /// Trainable numbers.
    pub params: usize,
    /// Blocks.
    pub layers: usize,
    /// Width.
    pub d_model: usize,
    /// Text of each token id.
    pub vocab: Vec<String>,
    /// `bytes` or `ids`.
    pub tokenizer: &'static str,
    /// Whether its parameters were learned.
    pub trained: bool,
    /// Its configuration as JSON.
    pub config: String,
    /// What else is worth knowing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// Every architecture in its default configuration.
///
/// # Errors
/// When one cannot be built.
pub fn architectures() -> Result<Vec<ArchInfo>> {
    MixerConfig::NAMES.iter().map(|name| describe(name)).collect()
}

/// One architecture, by its name or by a configuration in JSON.
///
/// # Errors
/// For an unknown name (the message has the nearest known one) or impossible values.
pub fn describe(config: &str) -> Result<ArchInfo> {
    let mixer = mixer(config)?;
    let name = mixer.name();
    let known = architecture(name).ok_or_else(|| unknown(name))?;
    let family = families().iter().find(|family| family.members.iter().any(|a| a.name == name));
    let (family, summary) = headline(family, known);
    let (grows, transition) = behaviour(&mixer)?;
    let arxiv = known.paper.split_once('.').filter(|(month, _)| month.len() == 4).map(|_| known.paper);
    Ok(ArchInfo {
        name,
        title: known.title,
        family,
        summary,
        paper: arxiv.map_or_else(|| known.paper.to_string(), |id| format!("arXiv:{id}")),
        arxiv,
        year: arxiv.and_then(|id| id.get(..2)?.parse::<u32>().ok()).map(|year| 2000 + year),
        equations: known.equations.split(",  ").map(|line| line.trim().to_string()).collect(),
        state: known.state,
        grows,
        config: json(&mixer)?,
        transition,
    })
}

fn headline(family: Option<&Family>, known: &Architecture) -> (String, String) {
    let title = family.map_or("", |family| family.title);
    let (family, idea) = title.split_once(": ").unwrap_or((title, title));
    (family.to_string(), format!("{}: {idea}.", known.title))
}

/// How the state grows and how it moves, seen on two tokens.
fn behaviour(config: &MixerConfig) -> Result<(&'static str, Option<&'static str>)> {
    let device = Device::flex();
    // Nothing is drawn: only structure and sizes are looked at.
    let layer = config.init(WIDTH, &mut Init::blank(&device))?;
    let x = Tensor::<3>::ones([1, 2, WIDTH], &device);
    let (_, state) = layer.forward(x.clone(), layer.initial_state(1), Form::Recurrent)?;
    let transition = match layer.terms(x, layer.initial_state(1))? {
        Some(Terms::Linear(system)) => Some(match system.transition {
            Transition::Identity => "identity",
            Transition::Scalar { .. } => "scalar",
            Transition::Diagonal { .. } => "diagonal",
            Transition::Householder { .. } => "householder",
            Transition::Dense { .. } => "dense",
        }),
        _ => None,
    };
    Ok((grows(&state), transition))
}

fn grows(state: &State) -> &'static str {
    let growths: Vec<Growth> = state.slots().map(|(.., growth)| growth).collect();
    let has = |wanted: fn(&Growth) -> bool| growths.iter().any(wanted);
    if has(|g| matches!(g, Growth::PerToken { .. })) {
        "per_token"
    } else if has(|g| matches!(g, Growth::PerDoubling { .. })) {
        "per_doubling"
    } else {
        "fixed"
    }
}

/// A mixer from its name or from its configuration in JSON.
pub(crate) fn mixer(config: &str) -> Result<MixerConfig> {
    let config = config.trim();
    if config.starts_with(['{', '"']) {
        let value = serde_json::from_str(config).map_err(|e| bad(format!("neither a name nor JSON: {e}")))?;
        return mixer_of(value);
    }
    MixerConfig::named(config).ok_or_else(|| unknown(config))
}

/// A mixer from a JSON string (its name) or object (with the field `arch`).
pub(crate) fn mixer_of(value: Value) -> Result<MixerConfig> {
    if let Value::String(name) = &value {
        return MixerConfig::named(name).ok_or_else(|| unknown(name));
    }
    match value.get("arch").and_then(Value::as_str) {
        Some(name) if !MixerConfig::NAMES.contains(&name) => Err(unknown(name)),
        Some(name) => {
            let name = name.to_string();
            serde_json::from_value(value).map_err(|e| bad(format!("`{name}`: {e}")))
        }
        None => Err(bad("lacks the field `arch` with an architecture's name".into())),
    }
}

/// `{"mixer": …, "d_model": …, "layers": …}`, or just a mixer.
pub(crate) fn preset(config: &str) -> Result<LanguageModelConfig> {
    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Preset {
        mixer: Value,
        #[serde(default = "width")]
        d_model: usize,
        #[serde(default = "one")]
        layers: usize,
    }
    fn width() -> usize {
        WIDTH
    }
    fn one() -> usize {
        1
    }
    let whole: Option<Value> = serde_json::from_str(config).ok();
    let (mixer, d_model, layers) = match whole {
        Some(value) if value.get("mixer").is_some() => {
            let preset: Preset = serde_json::from_value(value).map_err(|e| bad(e.to_string()))?;
            (mixer_of(preset.mixer)?, preset.d_model, preset.layers)
        }
        _ => (mixer(config)?, width(), one()),
    };
    Ok(LanguageModelConfig::small(mixer, 256, d_model, layers))
}

pub(crate) fn json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|e| Error::Data(format!("writing JSON: {e}")))
}

pub(crate) fn bad(reason: String) -> Error {
    Error::Config { what: "configuration".into(), reason }
}

fn unknown(name: &str) -> Error {
    Error::UnknownMixer { name: name.into(), nearest: nearest(name) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_architecture_says_what_it_is() {
        let all = architectures().unwrap();
        assert_eq!(all.len(), MixerConfig::NAMES.len());
        for arch in &all {
            assert!(!arch.equations.is_empty() && !arch.family.is_empty(), "{}", arch.name);
            assert_eq!(mixer(&arch.config).unwrap().name(), arch.name);
        }
        let find = |name: &str| all.iter().find(|arch| arch.name == name).unwrap();
        assert_eq!((find("attention").grows, find("attention").transition), ("per_token", None));
        assert_eq!((find("mamba2").grows, find("mamba2").transition), ("fixed", Some("scalar")));
        assert_eq!(find("gated_deltanet").transition, Some("householder"));
        assert_eq!(find("log_linear_attention").grows, "per_doubling");
        assert_eq!((find("mamba2").arxiv, find("mamba2").year), (Some("2405.21060"), Some(2024)));
    }

    #[test]
    fn bad_input_is_answered() {
        let message = |config: &str| preset(config).and_then(|c| c.init(0, &Device::flex())).map(|_| ());
        let message = |config: &str| message(config).unwrap_err().to_string();
        assert!(message("gated_deltnet").contains("did you mean `gated_deltanet`"));
        assert!(message(r#"{"arch": "gated_deltnet"}"#).contains("did you mean `gated_deltanet`"));
        assert!(message(r#"{"mixer": "gated_deltnet"}"#).contains("did you mean `gated_deltanet`"));
        assert!(message(r#"{"arch": "attention", "heads": 5}"#).contains("heads"));
        assert!(message(r#"{"arch": "attention", "hats": 5}"#).contains("hats"));
        assert!(message(r#"{"mixer": "attention", "layers": 0}"#).contains("depth"));
        assert!(message(r#"{"mixer": "attention", "depth": 1}"#).contains("depth"));
        assert!(message("{").contains("JSON"));
        assert!(message("{}").contains("arch"));
    }
}
