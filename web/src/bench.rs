//! Speed and memory of a layer on the visitor's own device.

use burn::tensor::{Device, Distribution, Tensor};
use seqzoo::registry::AnyMixer;
use seqzoo::{Error, Result};
use seqzoo_layers::system::{Form, Mixer};
use seqzoo_layers::{Init, Value};
use serde::{Deserialize, Serialize};
use web_time::Instant;

use crate::info::{bad, mixer};

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Reading `length` tokens at once.
    Prefill,
    /// One token after `length` others.
    Decode,
    /// Reading `length` tokens, and the gradients of all parameters.
    Train,
}

/// What to measure.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BenchConfig {
    /// Architectures, by name or configuration.
    pub archs: Vec<String>,
    /// Tokens.
    pub lengths: Vec<usize>,
    /// What is timed.
    pub mode: Mode,
    /// Where; chosen by who opens the device.
    #[serde(default)]
    pub backend: Option<String>,
    /// Width of the layer.
    #[serde(default = "width")]
    pub d_model: usize,
    /// Timed runs after one warm-up.
    #[serde(default = "repeats")]
    pub repeats: usize,
}

fn width() -> usize {
    64
}

fn repeats() -> usize {
    3
}

impl BenchConfig {
    /// From JSON.
    ///
    /// # Errors
    /// Naming the field that is wrong.
    pub fn from_json(json: &str) -> Result<Self> {
        let config: Self = serde_json::from_str(json).map_err(|e| bad(e.to_string()))?;
        if config.lengths.contains(&0) || config.repeats == 0 {
            return Err(bad("`lengths` and `repeats` must be positive".into()));
        }
        Ok(config)
    }
}

/// One measurement.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BenchPoint {
    /// The architecture.
    pub arch: String,
    /// Tokens.
    pub length: usize,
    /// Median over the runs.
    pub seconds: f64,
    /// Bytes of the state after `length` tokens.
    pub state_bytes: usize,
    /// Why there is no time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Measures every length of every architecture, the shortest first; after each point `on_point` is called.
///
/// # Errors
/// For an unknown architecture or impossible values. A point that fails is reported and ends its architecture.
pub async fn bench(
    config: &BenchConfig,
    device: &Device,
    on_point: &mut dyn FnMut(BenchPoint),
) -> Result<()> {
    let mut lengths = config.lengths.clone();
    lengths.sort_unstable();
    let device = match config.mode {
        Mode::Train => device.clone().autodiff(),
        Mode::Prefill | Mode::Decode => device.clone(),
    };
    for arch in &config.archs {
        let mixer = mixer(arch)?;
        let layer = mixer.init(config.d_model, &mut Init::new(0, &device))?;
        for &length in &lengths {
            let mut point =
                BenchPoint { arch: mixer.name().into(), length, seconds: 0.0, state_bytes: 0, error: None };
            match measure(&layer, length, config, &device).await {
                Ok((seconds, bytes)) => (point.seconds, point.state_bytes) = (seconds, bytes),
                Err(error) => point.error = Some(error.to_string()),
            }
            let failed = point.error.is_some();
            on_point(point);
            if failed {
                break;
            }
        }
    }
    Ok(())
}

async fn measure(
    layer: &AnyMixer,
    length: usize,
    config: &BenchConfig,
    device: &Device,
) -> Result<(f64, usize)> {
    let x = Tensor::<3>::random([1, length, config.d_model], Distribution::Default, &device.clone().inner());
    let (y, state) = layer.forward(x.clone(), layer.initial_state(1), Form::Auto)?;
    settle(y.narrow(1, length - 1, 1)).await?;
    let token = x.clone().narrow(1, length - 1, 1);
    let mut times = Vec::with_capacity(config.repeats);
    for run in 0..=config.repeats {
        let started = Instant::now();
        let read = match config.mode {
            Mode::Prefill => {
                layer.forward(x.clone(), layer.initial_state(1), Form::Auto)?.0.narrow(1, length - 1, 1)
            }
            Mode::Decode => layer.forward(token.clone(), state.clone(), Form::Recurrent)?.0,
            Mode::Train => {
                let input = x.clone().autodiff().require_grad();
                let (y, _) = layer.forward(input.clone(), layer.initial_state(1), Form::Auto)?;
                let grads = y.square().sum().backward();
                let grad = input.grad(&grads);
                let grad = grad.ok_or_else(|| Error::Data("no gradient reached the input".into()))?;
                grad.narrow(1, 0, 1)
            }
        };
        settle(read).await?;
        // The first run warms up: kernels are compiled and memory is taken.
        if run > 0 {
            times.push(started.elapsed().as_secs_f64());
        }
    }
    times.sort_by(f64::total_cmp);
    Ok((times[times.len() / 2], state.bytes()))
}

/// Waits until a tensor is computed.
async fn settle(x: Tensor<3>) -> Result<()> {
    let numbers = Value::from(x.detach()).to_f64_async().await?;
    match numbers.iter().all(|x| x.is_finite()) {
        true => Ok(()),
        false => Err(Error::Data("the result is not finite".into())),
    }
}

#[cfg(test)]
mod tests {
    use futures_lite::future::block_on;

    use super::*;

    #[test]
    fn every_mode_is_measured_and_a_cache_grows() {
        for mode in ["prefill", "decode", "train"] {
            let json = format!(
                r#"{{"archs": ["attention", "linear_attention"], "lengths": [32, 8], "mode": "{mode}", "repeats": 1}}"#
            );
            let config = BenchConfig::from_json(&json).unwrap();
            let mut points = Vec::new();
            block_on(bench(&config, &Device::flex(), &mut |point| points.push(point))).unwrap();
            let seen: Vec<_> = points.iter().map(|p| (p.arch.as_str(), p.length)).collect();
            assert_eq!(
                seen,
                [("attention", 8), ("attention", 32), ("linear_attention", 8), ("linear_attention", 32)]
            );
            assert!(points.iter().all(|p| p.seconds > 0.0 && p.error.is_none()), "{points:?}");
            assert_eq!(points[1].state_bytes, 4 * points[0].state_bytes);
            assert_eq!(points[3].state_bytes, points[2].state_bytes);
        }
        assert!(BenchConfig::from_json(r#"{"archs": [], "lengths": [0], "mode": "decode"}"#).is_err());
    }
}
