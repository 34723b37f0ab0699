//! Speed and memory of a layer on the visitor's own device.

use burn::tensor::{Device, Tensor, TensorData};
use seqzoo::compare::{ModelSizes, decode_cost, mixer as sized, train_cost};
use seqzoo::registry::{AnyMixer, MixerConfig};
use seqzoo::{Error, Result};
use seqzoo_layers::system::{Cost, Form, Mixer, State};
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

/// Tokens decoded before the state goes back to where the prompt ended.
const DECODED: usize = 16;

/// What to measure.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BenchConfig {
    /// Architectures: a name stands for the sizes of the scaling suite, a configuration for itself.
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
    /// Numbers of state, where the architecture lets one choose.
    #[serde(default = "state")]
    pub state: usize,
    /// Timed runs after one warm-up.
    #[serde(default = "repeats")]
    pub repeats: usize,
}

fn width() -> usize {
    128
}

fn state() -> usize {
    4096
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
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BenchPoint {
    /// The architecture.
    pub arch: String,
    /// Tokens.
    pub length: usize,
    /// Median over the runs.
    pub seconds: f64,
    /// The very first run, with what it compiles, and for decoding with its prompt.
    pub first: f64,
    /// Each run after the warm-up.
    pub runs: Vec<f64>,
    /// Bytes of the state after the first run.
    pub state_bytes: usize,
    /// Floating-point operations of a run, on paper.
    pub flops: f64,
    /// Bytes that a run must move at least, on paper.
    pub bytes: f64,
    /// Trainable numbers.
    pub params: usize,
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
        let mixer = config.mixer(arch)?;
        let layer = mixer.init(config.d_model, &mut Init::new(0, &device))?;
        for &length in &lengths {
            let measured = measure(&layer, length, config, &device).await;
            let named = BenchPoint { arch: mixer.name().into(), length, ..BenchPoint::default() };
            let failed = measured.is_err();
            on_point(match measured {
                Ok(point) => BenchPoint { arch: named.arch, length, ..point },
                Err(error) => BenchPoint { error: Some(error.to_string()), ..named },
            });
            if failed {
                break;
            }
        }
    }
    Ok(())
}

impl BenchConfig {
    fn mixer(&self, arch: &str) -> Result<MixerConfig> {
        if MixerConfig::NAMES.contains(&arch) {
            let sizes =
                ModelSizes { d_model: self.d_model, state: self.state, depth: 1, ..ModelSizes::default() };
            return Ok(sized(arch, &sizes)?.at_layer(0, 1));
        }
        mixer(arch)
    }
}

/// The layer's own part of a point.
async fn measure(
    layer: &AnyMixer,
    length: usize,
    config: &BenchConfig,
    device: &Device,
) -> Result<BenchPoint> {
    let cost = cost(layer.as_mixer(), length, config.mode);
    let x = input(length, config.d_model, device);
    let mut started = Instant::now();
    let mut work = Work::new(layer, x, config.mode)?;
    let (mut first, mut state_bytes, mut runs) = (0.0, 0, Vec::with_capacity(config.repeats));
    // The first run compiles kernels and takes memory, the second one still finds some of it cold.
    for run in 0..config.repeats + 2 {
        settle(work.run()?).await?;
        let seconds = started.elapsed().as_secs_f64();
        match run {
            0 => (first, state_bytes) = (seconds, work.state.bytes()),
            1 => {}
            _ => runs.push(seconds),
        }
        started = Instant::now();
    }
    let mut sorted = runs.clone();
    sorted.sort_by(f64::total_cmp);
    Ok(BenchPoint {
        seconds: sorted[sorted.len() / 2],
        first,
        runs,
        state_bytes,
        flops: cost.flops,
        bytes: cost.bytes,
        params: cost.params,
        ..BenchPoint::default()
    })
}

fn cost(layer: &dyn Mixer, length: usize, mode: Mode) -> Cost {
    match mode {
        Mode::Prefill => layer.cost(1, length, Form::Auto),
        Mode::Train => train_cost(layer, 1, length, Form::Auto),
        Mode::Decode => decode_cost(layer, 1, length),
    }
}

/// `[1, length, width]`, the same numbers as in the scaling suite.
fn input(length: usize, width: usize, device: &Device) -> Tensor<3> {
    let values: Vec<f32> = (0..length * width).map(|i| (i as f32 * 0.7391).sin()).collect();
    Tensor::from_data(TensorData::new(values, [1, length, width]), device)
}

/// What is repeated.
struct Work<'a> {
    layer: &'a AnyMixer,
    /// `[1, length, width]`
    x: Tensor<3>,
    mode: Mode,
    /// After the prompt; the initial one where nothing is decoded.
    start: State,
    /// After the last run.
    state: State,
    done: usize,
}

impl<'a> Work<'a> {
    /// Reads the prompt, if there is one.
    fn new(layer: &'a AnyMixer, x: Tensor<3>, mode: Mode) -> Result<Self> {
        let start = match mode {
            Mode::Decode => layer.forward(x.clone(), layer.initial_state(1), Form::Auto)?.1,
            Mode::Prefill | Mode::Train => layer.initial_state(1),
        };
        Ok(Self { layer, x, mode, state: start.clone(), start, done: 0 })
    }

    /// Once more; gives something small that is there only once everything is.
    fn run(&mut self) -> Result<Tensor<3>> {
        let length = self.x.dims()[1];
        match self.mode {
            Mode::Prefill => {
                let (y, state) = self.layer.forward(self.x.clone(), self.start.clone(), Form::Auto)?;
                self.state = state;
                Ok(y.narrow(1, length - 1, 1))
            }
            Mode::Train => {
                let (y, state) = self.layer.forward(self.x.clone(), self.start.clone(), Form::Auto)?;
                self.state = state;
                let read = y.clone().detach().narrow(1, length - 1, 1);
                // Queues run in order: what is read after the gradients waits for them.
                drop((y.clone() * y).mean().backward());
                Ok(read)
            }
            Mode::Decode => {
                if self.done.is_multiple_of(DECODED) {
                    self.state = self.start.clone();
                }
                self.done += 1;
                let token = self.x.clone().narrow(1, length - 1, 1).squeeze_dim(1);
                let (y, state) = self.layer.step(token, self.state.clone())?;
                self.state = state;
                Ok(y.unsqueeze_dim(1))
            }
        }
    }
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
    fn a_name_has_the_sizes_of_the_suite_and_a_configuration_its_own() {
        let measured = |arch: &str| {
            let archs = serde_json::to_string(&[arch]).unwrap();
            let json = format!(r#"{{"archs": {archs}, "lengths": [2], "mode": "prefill", "repeats": 1}}"#);
            let mut points = Vec::new();
            let config = BenchConfig::from_json(&json).unwrap();
            block_on(bench(&config, &Device::flex(), &mut |point| points.push(point))).unwrap();
            points.remove(0).state_bytes
        };
        let numbers = measured("linear_attention") / 4;
        assert!((4096..5000).contains(&numbers), "{numbers} numbers of state");
        assert!(measured(r#"{"arch": "linear_attention", "heads": 2, "head_dim": 8, "key_dim": 8}"#) < 2000);
    }

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
            for p in &points {
                assert!(p.seconds > 0.0 && p.first > 0.0 && p.error.is_none(), "{p:?}");
                assert!(p.runs == [p.seconds] && p.flops > 0.0 && p.bytes > 0.0 && p.params > 0, "{p:?}");
            }
            // A decoded token is kept too.
            let more = usize::from(mode == "decode");
            assert_eq!(points[0].state_bytes * (32 + more), points[1].state_bytes * (8 + more));
            assert_eq!(points[3].state_bytes, points[2].state_bytes);
        }
        assert!(BenchConfig::from_json(r#"{"archs": [], "lengths": [0], "mode": "decode"}"#).is_err());
    }
}
