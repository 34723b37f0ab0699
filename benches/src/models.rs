//! Small language models that transformers has too: both sides are built from the same `config.json`.

use serde_json::Value;

use crate::{Error, Result};

/// What their names as subjects begin with: `model/llama` is ours.
pub const MODEL: &str = "model/";
/// What they begin with where transformers runs them.
const THEIRS: &str = "transformers/";

/// `config.json` of each, by name.
const MODELS: &str = include_str!("../peers/models.json");

/// The description of a model that a subject names, ours or that of transformers; `None` for every other subject.
///
/// # Errors
/// When a subject of ours names a model that is not described.
pub fn config(subject: &str) -> Result<Option<Value>> {
    let ours = subject.strip_prefix(MODEL);
    let Some(name) = ours.or_else(|| subject.strip_prefix(THEIRS)) else { return Ok(None) };
    let mut all: Value =
        serde_json::from_str(MODELS).map_err(|e| Error::Measure(format!("models.json: {e}")))?;
    let found = all.get_mut(name).map(Value::take);
    if found.is_none() && ours.is_some() {
        return Err(Error::Measure(format!("{subject} is unknown; `seqzoo-bench peers --list` prints all")));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::PEERS;

    #[test]
    fn every_model_beside_a_peer_is_described_and_can_be_built() {
        let mut count = 0;
        for peer in PEERS.iter().filter(|peer| peer.counterpart.starts_with(MODEL)) {
            let ours = config(peer.counterpart).unwrap().unwrap();
            assert_eq!(config(peer.name).unwrap().as_ref(), Some(&ours), "{}", peer.name);
            let model = seqzoo::hf::Architecture::new(ours, peer.name).unwrap();
            assert_eq!((model.config().d_model, model.config().vocab), (crate::WIDTH, 256), "{}", peer.name);
            count += 1;
        }
        assert_eq!(count, 5);
    }

    #[test]
    fn other_subjects_have_no_description() {
        for subject in ["attention", "torch/lstm", "transformers/mamba2_layer", "machine"] {
            assert_eq!(config(subject).unwrap(), None, "{subject}");
        }
        assert!(config("model/abacus").unwrap_err().to_string().contains("model/abacus"));
    }
}
