//! Rotary position embedding (RoFormer, arXiv 2104.09864).

use burn::tensor::{Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::error::require;
use crate::{Error, Result};

/// Rotates pairs of channels by `position · base^(-2i/dim)`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RopeConfig {
    /// θ: the base of the frequencies.
    pub base: f64,
    /// Share of a head's channels that rotates; the rest passes through.
    pub fraction: f64,
    /// Llama-3 frequency scaling.
    pub llama3: Option<Llama3Scaling>,
}

/// Llama-3's stretch of low frequencies for longer contexts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Llama3Scaling {
    /// How much low frequencies are slowed.
    pub factor: f64,
    /// Wavelengths above `original / low` are slowed fully.
    pub low_freq_factor: f64,
    /// Wavelengths below `original / high` are kept.
    pub high_freq_factor: f64,
    /// The context the frequencies were trained for.
    pub original_max_position: f64,
}

impl Default for RopeConfig {
    fn default() -> Self {
        Self { base: 10_000.0, fraction: 1.0, llama3: None }
    }
}

/// Frequencies for one head size.
#[derive(Clone, Debug)]
pub struct Rope {
    frequencies: Vec<f64>,
}

impl RopeConfig {
    /// Builds it for heads of `head_dim` channels.
    pub fn init(&self, head_dim: usize) -> Result<Rope> {
        require(self.base > 0.0, "rope", "base", self.base, "must be positive")?;
        let fraction_ok = self.fraction > 0.0 && self.fraction <= 1.0;
        require(fraction_ok, "rope", "fraction", self.fraction, "must be in (0, 1]")?;
        let dim = (head_dim as f64 * self.fraction) as usize;
        if !dim.is_multiple_of(2) || dim == 0 {
            let expected = format!("must leave an even number of the {head_dim} channels, not {dim}");
            return Err(Error::config("rope", "fraction", self.fraction, expected));
        }
        let frequency = |i: usize| self.base.powf(-2.0 * i as f64 / dim as f64);
        let scale = |f: f64| match &self.llama3 {
            None => f,
            Some(s) => {
                let wavelength = 2.0 * std::f64::consts::PI / f;
                let ratio = s.original_max_position / wavelength;
                let blend = (ratio - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor);
                let blend = blend.clamp(0.0, 1.0);
                f / s.factor * (1.0 - blend) + f * blend
            }
        };
        Ok(Rope { frequencies: (0..dim / 2).map(|i| scale(frequency(i))).collect() })
    }
}

impl Rope {
    /// With explicit frequencies, one per pair of channels.
    pub fn with_frequencies(frequencies: Vec<f64>) -> Self {
        Self { frequencies }
    }

    /// Rotates `x: [b, h, t, n]`, whose row `r` starts at position `starts[r]`; channel `i` is paired with
    /// `i + dim/2`.
    pub fn apply(&self, x: Tensor<4>, starts: &[usize]) -> Tensor<4> {
        self.rotate(x, starts, |position| position)
    }

    /// The same with positions that start again after every `period` tokens.
    pub fn apply_periodic(&self, x: Tensor<4>, starts: &[usize], period: usize) -> Tensor<4> {
        self.rotate(x, starts, |position| position % period)
    }

    fn rotate(&self, x: Tensor<4>, starts: &[usize], place: impl Fn(usize) -> usize) -> Tensor<4> {
        let [b, _, t, n] = x.dims();
        let half = self.frequencies.len();
        let uniform = starts.iter().all(|&s| s == starts[0]);
        let rows = if uniform { 1 } else { b };
        let table = |f: fn(f64) -> f64| {
            let mut values = Vec::with_capacity(rows * t * half);
            for &start in &starts[..rows] {
                for position in start..start + t {
                    values.extend(self.frequencies.iter().map(|w| f(place(position) as f64 * w) as f32));
                }
            }
            let data = TensorData::new(values, [rows, 1, t, half]);
            Tensor::<4>::from_data(data, (&x.device().inner(), x.dtype()))
        };
        let (cos, sin) = (table(f64::cos), table(f64::sin));
        let first = x.clone().narrow(3, 0, half);
        let second = x.clone().narrow(3, half, half);
        let mut parts =
            vec![first.clone() * cos.clone() - second.clone() * sin.clone(), second * cos + first * sin];
        if 2 * half < n {
            parts.push(x.narrow(3, 2 * half, n - 2 * half));
        }
        Tensor::cat(parts, 3)
    }
}
