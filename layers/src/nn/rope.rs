//! Rotary position embedding (RoFormer, arXiv 2104.09864).

use burn::tensor::{Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::error::require;
use crate::{Error, Result, kernels};

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
        let [x] = self.apply_all([x], starts);
        x
    }

    /// The same for several tensors of as many tokens at the same positions.
    pub fn apply_all<const N: usize>(&self, all: [Tensor<4>; N], starts: &[usize]) -> [Tensor<4>; N] {
        self.rotate(all, starts, |position| position)
    }

    /// The same with positions that start again after every `period` tokens.
    pub fn apply_periodic(&self, x: Tensor<4>, starts: &[usize], period: usize) -> Tensor<4> {
        let [x] = self.rotate([x], starts, |position| position % period);
        x
    }

    /// Queries and keys rotated, in one kernel with what `turn` says, where there is one: without gradients on a graphics
    /// device. Positions start again after every `period` tokens, if at all.
    #[cfg(feature = "cube")]
    pub(crate) fn two_on_graphics(
        rope: Option<&Self>,
        [q, k]: [&Tensor<4>; 2],
        starts: &[usize],
        period: Option<usize>,
        turn: kernels::rotary::Turn,
    ) -> Option<[Tensor<4>; 2]> {
        if !kernels::enabled() || !kernels::linear::on_graphics(q) {
            return None;
        }
        let place = |position: usize| period.map_or(position, |period| position % period);
        let table = rope.map(|rope| rope.table(q, starts, place));
        kernels::rotary::run_two(q, k, table.as_ref(), turn)
    }

    fn rotate<const N: usize>(
        &self,
        all: [Tensor<4>; N],
        starts: &[usize],
        place: impl Fn(usize) -> usize,
    ) -> [Tensor<4>; N] {
        let Some(first) = all.first() else { return all };
        let table = self.table(first, starts, place);
        #[cfg(feature = "cube")]
        if let [x, z] = &all[..]
            && kernels::enabled()
            && let Some(both) = kernels::rotary::run_two(x, z, Some(&table), kernels::rotary::Turn::default())
        {
            return std::array::from_fn(|i| both[i].clone());
        }
        all.map(|x| turn(x, table.clone(), kernels::enabled()))
    }

    /// Cosines and sines of all angles, `[1 or b, 1, t, dim]`.
    fn table(&self, like: &Tensor<4>, starts: &[usize], place: impl Fn(usize) -> usize) -> Tensor<4> {
        let [b, _, t, _] = like.dims();
        let uniform = starts.iter().all(|&s| s == starts[0]);
        let rows = if uniform { 1 } else { b };
        let mut values = Vec::with_capacity(2 * rows * t * self.frequencies.len());
        for &start in &starts[..rows] {
            for position in (start..start + t).map(&place) {
                let angles = self.frequencies.iter().map(|w| position as f64 * w);
                values.extend(angles.clone().map(|angle| angle.cos() as f32));
                values.extend(angles.map(|angle| angle.sin() as f32));
            }
        }
        let data = TensorData::new(values, [rows, 1, t, 2 * self.frequencies.len()]);
        Tensor::from_data(data, (&like.device().inner(), like.dtype()))
    }
}

/// `x: [b, h, t, n]` turned by `table: [1 or b, 1, t, dim]`, with or without kernels.
#[cfg_attr(
    not(any(feature = "flex", feature = "cube")),
    allow(unused_variables, reason = "there are no kernels without a backend")
)]
fn turn(x: Tensor<4>, table: Tensor<4>, kernels: bool) -> Tensor<4> {
    #[cfg(any(feature = "flex", feature = "cube"))]
    if kernels && kernels::rotary::applies(&x, &table) {
        return kernels::rotary::run(x, table);
    }
    let (n, half) = (x.dims()[3], table.dims()[3] / 2);
    let (cos, sin) = (table.clone().narrow(3, 0, half), table.narrow(3, half, half));
    let first = x.clone().narrow(3, 0, half);
    let second = x.clone().narrow(3, half, half);
    let mut parts =
        vec![first.clone() * cos.clone() - second.clone() * sin.clone(), second * cos + first * sin];
    if 2 * half < n {
        parts.push(x.narrow(3, 2 * half, n - 2 * half));
    }
    Tensor::cat(parts, 3)
}
