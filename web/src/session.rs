//! One layer and what it shows of a text.

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use seqzoo::registry::{AnyMixer, MixerConfig, nearest};
use seqzoo_layers::system::{Form, Mixer};
use seqzoo_layers::{Error, Init, Result};

use crate::Snapshot;

/// Longest text, in tokens: the implied attention has one number per pair of tokens and head.
pub const MAX_TOKENS: usize = 512;

/// Distinct bytes, each with a row in the embedding.
const BYTES: usize = 256;

/// A layer of any registered architecture over a byte-level embedding.
///
/// ```
/// use burn::tensor::Device;
/// use seqzoo_web::Session;
///
/// let session = Session::new(r#"{"arch": "gated_deltanet", "heads": 2}"#, 32, 0, &Device::flex())?;
/// let json = session.json("to be, or not to be")?;
/// assert!(json.contains("\"attention\""));
/// # Ok::<(), seqzoo_layers::Error>(())
/// ```
#[derive(Debug)]
pub struct Session {
    arch: &'static str,
    mixer: AnyMixer,
    embedding: Vec<f32>,
    device: Device,
}

impl Session {
    /// A layer of width `d_model` from a mixer's configuration in JSON, or from just the name of an
    /// architecture, with parameters drawn from `seed`.
    ///
    /// # Errors
    /// For an unknown architecture (the message names the nearest known one) or impossible values.
    pub fn new(config: &str, d_model: usize, seed: u64, device: &Device) -> Result<Self> {
        let config = parse(config)?;
        let mut init = Init::new(seed, device);
        let mixer = config.init(d_model, &mut init)?;
        let embedding = init.normal([BYTES, d_model], 1.0).val();
        let embedding = seqzoo_layers::Value::from(embedding).to_f64()?;
        let embedding = embedding.iter().map(|&v| v as f32).collect();
        Ok(Self { arch: config.name(), mixer, embedding, device: device.clone() })
    }

    /// Names of all architectures.
    pub fn architectures() -> &'static [&'static str] {
        MixerConfig::NAMES
    }

    /// What the layer shows while it reads `text` from its initial state.
    ///
    /// # Errors
    /// For an empty text or one of more than [`MAX_TOKENS`] bytes.
    pub fn read(&self, text: &str) -> Result<Snapshot> {
        let bytes = text.as_bytes();
        if bytes.is_empty() || bytes.len() > MAX_TOKENS {
            let expected = format!("1 to {MAX_TOKENS} bytes");
            return Err(Error::shape("text", expected, &[bytes.len()]));
        }
        let x = self.embed(bytes);
        let (_, state) = self.mixer.forward(x.clone(), self.mixer.initial_state(1), Form::Auto)?;
        let snapshot = Snapshot {
            arch: self.arch,
            tokens: bytes.iter().map(|&byte| label(byte)).collect(),
            params: self.mixer.num_params(),
            state_bytes: state.bytes(),
            attention: Vec::new(),
            spectrum: Vec::new(),
            spectrum_kind: None,
            half_life: None,
            gates: Vec::new(),
            router: None,
            memory_loss: None,
            memory_norm: None,
        };
        snapshot.with_views(self.mixer.views(x, self.mixer.initial_state(1))?)
    }

    /// [`Session::read`] as JSON.
    ///
    /// # Errors
    /// As [`Session::read`].
    pub fn json(&self, text: &str) -> Result<String> {
        serde_json::to_string(&self.read(text)?).map_err(|e| Error::State(format!("as JSON: {e}")))
    }

    /// `[1, tokens, d_model]`
    fn embed(&self, bytes: &[u8]) -> Tensor<3> {
        let d = self.mixer.d_model();
        let rows = bytes.iter().flat_map(|&byte| {
            let start = usize::from(byte) * d;
            &self.embedding[start..start + d]
        });
        let values: Vec<f32> = rows.copied().collect();
        Tensor::from_data(TensorData::new(values, [1, bytes.len(), d]), &self.device)
    }
}

/// A byte as a page prints it; `·xx` in hexadecimal where it is no printable ASCII.
fn label(byte: u8) -> String {
    match byte {
        b' '..=b'~' => char::from(byte).to_string(),
        _ => format!("·{byte:02x}"),
    }
}

fn parse(config: &str) -> Result<MixerConfig> {
    let config = config.trim();
    let bad = |given: &str, expected: String| Err(Error::config("session", "arch", given, expected));
    let unknown = |name: &str| {
        let hint = nearest(name).map(|known| format!(", perhaps `{known}`")).unwrap_or_default();
        bad(name, format!("must be one of {}{hint}", MixerConfig::NAMES.join(", ")))
    };
    if !config.starts_with('{') {
        return MixerConfig::named(config).map_or_else(|| unknown(config), Ok);
    }
    let value: serde_json::Value = match serde_json::from_str(config) {
        Ok(value) => value,
        Err(error) => return bad(config, format!("must be a name or JSON: {error}")),
    };
    match value.get("arch").and_then(serde_json::Value::as_str) {
        Some(name) if !MixerConfig::NAMES.contains(&name) => unknown(name),
        Some(name) => {
            let name = name.to_string();
            serde_json::from_value(value).or_else(|error| bad(&name, error.to_string()))
        }
        None => bad(config, "must have a field `arch` with an architecture's name".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(config: &str) -> Result<Session> {
        Session::new(config, 32, 0, &seqzoo_layers::device::open("flex")?)
    }

    #[test]
    fn every_architecture_shows_itself() -> Result<()> {
        let text = "abcabc";
        for arch in Session::architectures() {
            let snapshot = session(arch)?.read(text)?;
            assert_eq!(snapshot.tokens, ["a", "b", "c", "a", "b", "c"]);
            assert!(snapshot.params > 0 && snapshot.state_bytes > 0, "{arch}");
            for grid in &snapshot.attention {
                assert_eq!([grid.rows, grid.columns, grid.values.len()], [6, 6, 36], "{arch}");
                let above = (0..6).flat_map(|i| (i + 1..6).map(move |j| grid.values[i * 6 + j]));
                assert!(above.into_iter().all(|v| v == 0.0), "{arch} reads the future");
            }
            for gate in &snapshot.gates {
                assert_eq!(gate.grid.rows, 6, "{arch}: {}", gate.name);
            }
            let json = serde_json::to_string(&snapshot).expect("a snapshot is JSON");
            let parsed: serde_json::Value = serde_json::from_str(&json).expect("it parses");
            assert_eq!(parsed["arch"], *arch);
            assert!(!json.contains("null"), "{arch}: a number is not finite: {json}");
        }
        Ok(())
    }

    #[test]
    fn softmax_rows_sum_to_one() -> Result<()> {
        let snapshot = session("attention")?.read("hello")?;
        assert_eq!(snapshot.attention.len(), 4);
        for row in snapshot.attention.iter().flat_map(|grid| grid.values.chunks(5)) {
            assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-5);
        }
        Ok(())
    }

    #[test]
    fn the_seed_decides() -> Result<()> {
        let json = |seed| Session::new("attention", 32, seed, &Device::flex())?.json("same");
        assert_eq!(json(1)?, json(1)?);
        assert_ne!(json(1)?, json(2)?);
        Ok(())
    }

    #[test]
    fn bad_input_is_answered() -> Result<()> {
        let message = |config: &str| session(config).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(message("gated_deltnet").contains("perhaps `gated_deltanet`"));
        assert!(message(r#"{"arch": "gated_deltnet"}"#).contains("perhaps `gated_deltanet`"));
        assert!(message(r#"{"arch": "attention", "heads": 5}"#).contains("heads"));
        assert!(message(r#"{"arch": "attention", "hats": 5}"#).contains("hats"));
        assert!(message("{").contains("JSON"));
        assert!(message("{}").contains("arch"));
        let session = session("attention")?;
        assert!(session.read("").is_err());
        assert!(session.read(&"a".repeat(MAX_TOKENS + 1)).is_err());
        Ok(())
    }

    #[test]
    fn bytes_that_cannot_be_printed_are_labelled() {
        assert_eq!(label(b'a'), "a");
        assert_eq!(label(b'\n'), "·0a");
    }
}
