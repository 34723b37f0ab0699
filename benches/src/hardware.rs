//! What layers would cost elsewhere: the Kinetics cost model (arXiv 2506.05333) on hardware described in a file.
//!
//! ```text
//! seconds = flops / F + bytes / W       F: operations, W: bytes in a second
//! ```
//!
//! The sum and not the larger one: products of matrices and reads of a state are separate phases. In the paper's
//! words this is `eFLOPs / F` with `eFLOPs = flops + I bytes` and `I = F / W`.
//!
//! Across devices, a sequence of `T` tokens in `N` parts:
//!
//! ```text
//! state passing    compute(T / N) + ⌈log₂ N⌉ (latency + 2 S / link)     S: bytes of the state; decay and state move
//! ring attention   N max(compute(T) / N², latency + KV(T / N) / link)   keys and values go round (arXiv 2310.01889)
//! in turns         compute(T) + (N - 1) (latency + S / link)            a state that is not read linearly waits its turn
//! data parallel    compute(T) + 2 (N - 1) (latency + params / N / link) gradients, once per step
//! ```

use std::path::Path;

use serde::{Deserialize, Serialize};

use seqzoo_layers::Init;
use seqzoo_layers::system::{Cost, Form, MEMORY, Mixer};

use crate::measure::{build, paper_cost};
use crate::point::{Point, Sizes, Task};
use crate::{Error, Result};

/// The descriptions that come with the program.
const EXAMPLES: [(&str, &str); 3] = [
    ("h100.toml", include_str!("../hardware/h100.toml")),
    ("apple_m4.toml", include_str!("../hardware/apple_m4.toml")),
    ("phone.toml", include_str!("../hardware/phone.toml")),
];

/// Layers of the imagined model.
pub const DEPTH: usize = 24;
/// Sizes of its layers: 256 × 256 numbers of memory for each of four heads.
pub const SIZES: Sizes = Sizes { d_model: 2048, state: 4 * 256 * 256 };
/// Bytes of a number in [`Cost`].
const COUNTED: f64 = 4.0;

/// A device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hardware {
    /// Its name.
    pub name: String,
    /// Operations in a second, at best.
    pub flops: f64,
    /// Bytes of memory moved in a second, at best.
    pub bandwidth: f64,
    /// Bytes of memory.
    pub memory: f64,
    /// Bytes of a weight, an activation and a number of state.
    pub bytes_per_number: f64,
    /// The way to other devices, if there is one.
    #[serde(default)]
    pub link: Option<Link>,
    /// Where the numbers are from.
    #[serde(default, rename = "source")]
    pub sources: Vec<Source>,
}

/// A connection between devices.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// Bytes in a second, one way.
    pub bandwidth: f64,
    /// Seconds before the first byte.
    pub latency: f64,
}

/// Where a number is from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Which number.
    pub what: String,
    /// From where.
    #[serde(rename = "where")]
    pub origin: String,
}

impl Hardware {
    /// Reads a description.
    ///
    /// # Errors
    /// When the file cannot be read, is no description, or has a number that cannot be.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        Self::parse(path, &text)
    }

    /// The descriptions that come with the program.
    ///
    /// # Errors
    /// Never, as a test shows.
    pub fn examples() -> Result<Vec<Self>> {
        EXAMPLES.iter().map(|(name, text)| Self::parse(Path::new(name), text)).collect()
    }

    fn parse(path: &Path, text: &str) -> Result<Self> {
        let hardware: Self = toml::from_str(text).map_err(|e| Error::file(path, e.to_string().trim()))?;
        let link = hardware.link.map_or([1.0, 1.0], |link| [link.bandwidth, link.latency]);
        let numbers = [
            ("flops", hardware.flops),
            ("bandwidth", hardware.bandwidth),
            ("memory", hardware.memory),
            ("bytes_per_number", hardware.bytes_per_number),
            ("link.bandwidth", link[0]),
            ("link.latency", link[1]),
        ];
        match numbers.into_iter().find(|(_, x)| !(x.is_finite() && *x > 0.0)) {
            Some((field, x)) => Err(Error::file(path, format!("`{field}` = {x}: must be a positive number"))),
            None => Ok(hardware),
        }
    }

    /// Seconds of a cost.
    pub fn seconds(&self, cost: Cost) -> f64 {
        cost.flops / self.flops + cost.bytes * self.bytes_per_number / COUNTED / self.bandwidth
    }

    /// Whether the weights and the state of a cost fit in memory.
    pub fn holds(&self, cost: Cost) -> bool {
        cost.params as f64 * self.bytes_per_number + self.bytes(cost.state_bytes) <= self.memory
    }

    /// Bytes of a number of counted bytes.
    pub fn bytes(&self, counted: usize) -> f64 {
        counted as f64 * self.bytes_per_number / COUNTED
    }
}

/// An architecture on paper: a layer at [`SIZES`], without its numbers.
pub struct Sketch {
    /// Its name.
    pub name: String,
    layer: seqzoo::registry::AnyMixer,
}

impl Sketch {
    /// The layer of an architecture; `None` where it cannot have these sizes.
    pub fn new(name: &str) -> Option<Self> {
        let device = seqzoo_layers::device::open("flex").ok()?;
        let layer = build(name, SIZES, &mut Init::blank(&device)).ok()?;
        Some(Self { name: name.into(), layer })
    }

    /// Cost of all layers at a task, for one sequence.
    pub fn cost(&self, task: Task, time: usize) -> Cost {
        let subject = self.name.clone();
        let point = Point { subject, task, form: Form::Auto, device: String::new(), batch: 1, time };
        let one = paper_cost(self.layer.as_mixer(), &point);
        Cost {
            flops: one.flops * DEPTH as f64,
            bytes: one.bytes * DEPTH as f64,
            params: one.params * DEPTH,
            state_bytes: one.state_bytes * DEPTH,
        }
    }

    /// Whether the mixer is linear in its state, so that parts of a sequence can be read before the state at their
    /// start is known.
    pub fn is_linear(&self) -> bool {
        self.layer.initial_state(1).slots().any(|(name, ..)| name == MEMORY)
    }

    /// Whether the state grows with the text.
    pub fn grows(&self) -> bool {
        let state = |time| self.layer.cost(1, time, Form::Auto).state_bytes;
        state(4096) > state(1024)
    }
}

/// Seconds to read a sequence in parts on several devices.
pub fn sequence_parallel(
    hardware: &Hardware,
    link: Link,
    sketch: &Sketch,
    time: usize,
    devices: usize,
) -> f64 {
    let n = devices.max(1) as f64;
    let part = time / devices.max(1);
    // Every layer sends its own.
    let message = |bytes: f64| DEPTH as f64 * link.latency + bytes / link.bandwidth;
    if sketch.grows() {
        let all = hardware.seconds(sketch.cost(Task::Prefill, time));
        let keys = hardware.bytes(sketch.cost(Task::Prefill, part).state_bytes);
        let step = if devices > 1 { message(keys) } else { 0.0 };
        n * f64::max(all / (n * n), step)
    } else if !sketch.is_linear() {
        let cost = sketch.cost(Task::Prefill, time);
        hardware.seconds(cost) + (n - 1.0) * message(hardware.bytes(cost.state_bytes))
    } else {
        let cost = sketch.cost(Task::Prefill, part);
        let rounds = n.log2().ceil();
        hardware.seconds(cost) + rounds * message(2.0 * hardware.bytes(cost.state_bytes))
    }
}

/// Seconds of a training step of one sequence per device, gradients summed over all devices.
pub fn data_parallel(hardware: &Hardware, link: Link, sketch: &Sketch, time: usize, devices: usize) -> f64 {
    let n = devices.max(1) as f64;
    let cost = sketch.cost(Task::Train, time);
    let gradients = cost.params as f64 * hardware.bytes_per_number;
    hardware.seconds(cost) + 2.0 * (n - 1.0) * (link.latency + gradients / n / link.bandwidth)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_are_valid_and_say_where_they_are_from() {
        for hardware in Hardware::examples().unwrap() {
            assert!(!hardware.sources.is_empty(), "{}", hardware.name);
        }
    }

    #[test]
    fn impossible_hardware_is_refused() {
        let text = EXAMPLES[0].1;
        let refused = |text: &str| Hardware::parse(Path::new("mine.toml"), text).unwrap_err().to_string();
        let bad = refused(&text.replace("989.4e12", "-1.0"));
        assert!(bad.contains("mine.toml") && bad.contains("flops"), "{bad}");
        assert!(refused(&text.replace("memory", "memry")).contains("memry"));
        assert!(refused("name = ").contains("mine.toml"));
    }

    #[test]
    fn a_cache_is_slow_to_decode_from_and_passes_more_than_a_state() {
        let hardware = &Hardware::examples().unwrap()[0];
        let (softmax, linear) = (Sketch::new("attention").unwrap(), Sketch::new("linear_attention").unwrap());
        assert!(softmax.grows() && !linear.grows());
        let decode = |sketch: &Sketch, time| hardware.seconds(sketch.cost(Task::Decode, time));
        assert!(decode(&softmax, 1 << 20) > 50.0 * decode(&softmax, 1 << 10));
        assert_eq!(decode(&linear, 1 << 20), decode(&linear, 1 << 10));
        let link = hardware.link.unwrap();
        let parallel = |sketch: &Sketch, n| sequence_parallel(hardware, link, sketch, 1 << 20, n);
        let lstm = Sketch::new("lstm").unwrap();
        for sketch in [&softmax, &linear, &lstm] {
            // One device needs no messages, and only a linear state or a cache gains by more.
            let alone = hardware.seconds(sketch.cost(Task::Prefill, 1 << 20));
            assert!((parallel(sketch, 1) / alone - 1.0).abs() < 1e-9);
            assert_eq!(parallel(sketch, 8) < alone / 6.0, sketch.name != "lstm");
        }
        assert!(
            data_parallel(hardware, link, &linear, 4096, 64)
                > data_parallel(hardware, link, &linear, 4096, 1)
        );
    }
}
