//! The parity matrix, row by row, on whatever device the page runs.

use burn::tensor::Device;
use seqzoo::Result;
use seqzoo::registry::{MixerConfig, nearest};
use seqzoo::verify::{Check, Options, Outcome, PROMISES, check, subjects};
use serde::Serialize;

/// One promise of one configuration.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ParityRow {
    /// The architecture.
    pub arch: &'static str,
    /// The configuration under test.
    pub subject: String,
    /// The promise.
    pub check: &'static str,
    /// Relative L2 error.
    pub error: f64,
    /// Largest error allowed.
    pub limit: f64,
    /// Whether the promise is kept, or could not be checked here.
    pub ok: bool,
    /// Where the largest error was, or why there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// Runs the checks of `seqzoo verify` on some architectures (none: all).
///
/// # Errors
/// For an unknown name.
pub async fn parity(names: &[String], device: &Device, on_row: &mut dyn FnMut(ParityRow)) -> Result<()> {
    if let Some(name) = names.iter().find(|name| !MixerConfig::NAMES.contains(&name.as_str())) {
        return Err(seqzoo::Error::UnknownMixer { name: name.clone(), nearest: nearest(name) });
    }
    let wanted = |name: &str| names.is_empty() || names.iter().any(|wanted| wanted == name);
    for subject in subjects(None).into_iter().filter(|subject| wanted(subject.config.name())) {
        for promise in PROMISES {
            let row = check(promise, &subject, device, Options::default()).await;
            on_row(line(subject.config.name(), subject.name.clone(), row));
        }
    }
    Ok(())
}

fn line(arch: &'static str, subject: String, check: Check) -> ParityRow {
    let ok = check.passed();
    let (error, limit, note) = match check.outcome {
        Outcome::Measured { error, tolerance, worst } => (error, tolerance, Some(worst)),
        Outcome::Skipped(why) => (0.0, 0.0, Some(format!("skipped: {why}"))),
        Outcome::Failed(why) => (f64::INFINITY, 0.0, Some(why)),
    };
    ParityRow { arch, subject, check: check.promise, error, limit, ok, note }
}

#[cfg(test)]
mod tests {
    use futures_lite::future::block_on;

    use super::*;

    #[test]
    fn rows_are_those_of_verify() {
        let mut rows = Vec::new();
        let names = ["simple_gla".to_string()];
        block_on(parity(&names, &Device::flex(), &mut |row| rows.push(row))).unwrap();
        let expected = subjects(Some("simple_gla")).len() * PROMISES.len();
        assert_eq!(rows.len(), expected);
        assert!(rows.iter().all(|row| row.ok && row.error <= row.limit), "{rows:?}");
        let unknown = block_on(parity(&["gla2".into()], &Device::flex(), &mut |_| {})).unwrap_err();
        assert!(unknown.to_string().contains("`gla`"), "{unknown}");
    }
}
