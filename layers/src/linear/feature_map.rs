//! Feature maps of linear attention: `φ(q) · φ(k)` stands for the exponential of softmax.
//!
//! | map | `φ(x)` for a head of `n` channels | features `m` |
//! | --- | --- | --- |
//! | identity, relu, square | `x`, `max(x, 0)`, `x²` | `n` |
//! | elu+1 | `x + 1` above 0, `e^x` below (arXiv 2006.16236) | `n` |
//! | exp | `e^x` | `n` |
//! | T2R | `relu(W x)` (2103.13076) | any |
//! | DPFP | `[r ∘ roll(r, 1), … r ∘ roll(r, ν)]`, `r = [relu(x), relu(-x)]` (2102.11174) | `2νn` |
//! | Taylor | `[1, x n^{-1/4}, x xᵀ / √(2n)]`, so `φ(q)·φ(k) = 1 + s + s²/2`, `s = q·k/√n` (2402.18668) | `1 + n + n(n+1)/2` |
//! | ReBased | `z zᵀ / √n`, `z = γ ∘ norm(x) + β`, so `φ(q)·φ(k) = s²` (2402.10644) | `n(n+1)/2` |
//! | Hedgehog | `softmax[2(Wx+b), -2(Wx+b)]` (2402.04347) | `2n` |
//! | FAVOR+ | `m^{-1/2} (exp(w_j·x̃ - ‖x̃‖²/2) + 1e-4)`, `x̃ = n^{-1/4} x`, orthogonal random `w_j` (2009.14794) | `n ln n` |
//! | cosFormer | `relu(x) ∘ [sin θ_i, cos θ_i]`, `θ_i = π i / 2M` at position `i` (2202.08791) | `2n` |
//!
//! Products `x xᵀ` are symmetric: each pair of channels is kept once, times √2.

use burn::module::Module;
use burn::tensor::{DType, Device, Int, Tensor, TensorData, activation};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use serde::{Deserialize, Serialize};

use crate::error::require;
use crate::nn::{LayerNorm, Linear, elu_plus_one};
use crate::{Init, Result};

/// Exponents of features are kept below this, so that products and sums of them stay finite in `f32`.
const LIMIT: f64 = 30.0;

/// Added to FAVOR+'s exponentials, so that no token is out of sight.
const FAVOR_FLOOR: f64 = 1e-4;

/// `φ`: what stands for the exponential of softmax. See the module's table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum FeatureMap {
    /// `x`; not positive, so not for a division by sums.
    Identity,
    /// `elu(x) + 1`: `x + 1` above 0, `e^x` below.
    #[default]
    EluPlusOne,
    /// `max(x, 0)`
    Relu,
    /// `x²`
    Square,
    /// `e^x`, where `x` above 30 counts as 30.
    Exp,
    /// `relu(W x)` with a learned `W`.
    T2r {
        /// Rows of `W`; `None` for as many as the head has channels.
        features: Option<usize>,
    },
    /// Products of neighbouring channels.
    Dpfp {
        /// `ν`: how many neighbours.
        nu: usize,
    },
    /// The exponential's Taylor polynomial of degree 2 (Based).
    Taylor,
    /// A learned quadratic kernel.
    Rebased,
    /// A learned linear map and exponentials of both signs.
    Hedgehog {
        /// Which exponentials.
        #[serde(default)]
        form: HedgehogForm,
    },
    /// Positive random features (Performer), an unbiased estimate of the exponential.
    Favor {
        /// `m`; `None` for `n ln n`.
        features: Option<usize>,
        /// Draws the projection; the same seed gives the same features.
        #[serde(default)]
        seed: u64,
    },
    /// Rectified, and weighed by `cos(π (i - j) / 2M)` for positions `i` and `j`.
    Cosformer {
        /// `M`: the distance at which tokens are out of sight. Farther ones would count negatively.
        length: usize,
    },
}

/// What Hedgehog makes of `y = W x + b`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HedgehogForm {
    /// `softmax[2y, -2y]`
    #[default]
    Joint,
    /// `[softmax(y), softmax(-y)]`
    Halves,
    /// `[e^y, e^{-y}]`, where exponents above 30 count as 30.
    Exp,
}

impl FeatureMap {
    /// Number of features `m` for heads of `n` channels.
    pub fn size(self, n: usize) -> usize {
        match self {
            Self::Identity | Self::EluPlusOne | Self::Relu | Self::Square | Self::Exp => n,
            Self::T2r { features } => features.unwrap_or(n),
            Self::Dpfp { nu } => 2 * nu * n,
            Self::Taylor => 1 + n + n * (n + 1) / 2,
            Self::Rebased => n * (n + 1) / 2,
            Self::Hedgehog { .. } | Self::Cosformer { .. } => 2 * n,
            Self::Favor { features, .. } => {
                features.unwrap_or(((n as f64) * (n as f64).ln()).floor().max(1.0) as usize)
            }
        }
    }

    /// Whether scores can be negative, so that their sum can be 0.
    pub fn is_signed(self) -> bool {
        self == Self::Identity
    }

    /// Whether `1/√n` is part of the map.
    pub fn is_scaled(self) -> bool {
        matches!(self, Self::Taylor | Self::Rebased | Self::Favor { .. })
    }

    /// Checks the values and draws the parameters for heads of `n` channels, in the mixer `name`.
    ///
    /// # Errors
    /// For no features, or DPFP with more neighbours than there are.
    pub fn init(self, n: usize, name: &'static str, init: &mut Init) -> Result<Features> {
        require(n > 0, name, "key_dim", n, "must be positive")?;
        let m = self.size(n);
        require(m > 0, name, "feature_map.features", m, "must be positive")?;
        if let Self::Dpfp { nu } = self {
            let expected =
                format!("must be from 1 to {}, one less than twice the head's channels", 2 * n - 1);
            require((1..2 * n).contains(&nu), name, "feature_map.nu", nu, &expected)?;
        }
        if let Self::Cosformer { length } = self {
            require(length > 0, name, "feature_map.length", length, "must be positive")?;
        }
        let linear = match self {
            Self::T2r { .. } => Some(init.linear(n, m)),
            Self::Hedgehog { .. } => {
                let identity = (0..n * n).map(|i| if i.is_multiple_of(n + 1) { 1.0 } else { 0.0 }).collect();
                let (weight, bias) = (init.param([n, n], identity), init.constant([n], 0.0));
                Some(Linear { weight, bias: Some(bias) })
            }
            _ => None,
        };
        let projection = match self {
            Self::Favor { seed, .. } => orthogonal_rows(m, n, seed),
            _ => Vec::new(),
        };
        let norm = (self == Self::Rebased).then(|| LayerNorm::new(n, 1e-5, true, init));
        Ok(Features { linear, norm, map: self, projection, size: m })
    }
}

/// A feature map with its parameters. Built by [`FeatureMap::init`].
#[derive(Module, Debug)]
pub struct Features {
    /// `W: [n, m]` of T2R and Hedgehog, the same for all heads
    pub linear: Option<Linear>,
    /// `γ` and `β` of ReBased
    pub norm: Option<LayerNorm>,
    #[module(skip)]
    map: FeatureMap,
    #[module(skip)]
    projection: Vec<f64>,
    #[module(skip)]
    size: usize,
}

impl Features {
    /// `[b, h, t, n] -> [b, h, t, m]`; row `r` starts at position `starts[r]`.
    pub fn apply(&self, x: Tensor<4>, starts: &[usize]) -> Tensor<4> {
        let x = match &self.linear {
            Some(linear) => rows(x, |x| linear.forward(x)),
            None => x,
        };
        let x = match &self.norm {
            Some(norm) => norm.forward(x),
            None => x,
        };
        match self.map {
            FeatureMap::Identity => x,
            FeatureMap::EluPlusOne => elu_plus_one(x, 1.0),
            FeatureMap::Relu | FeatureMap::T2r { .. } => activation::relu(x),
            FeatureMap::Square => x.square(),
            FeatureMap::Exp => bounded_exp(x),
            FeatureMap::Dpfp { nu } => neighbour_products(x, nu),
            FeatureMap::Taylor => taylor_features(x),
            FeatureMap::Rebased => quadratic_features(x),
            FeatureMap::Hedgehog { form } => match form {
                HedgehogForm::Joint => activation::softmax(both_signs(x.mul_scalar(2.0)), 3),
                HedgehogForm::Halves => {
                    let (plus, minus) = (x.clone(), x.neg());
                    Tensor::cat(vec![activation::softmax(plus, 3), activation::softmax(minus, 3)], 3)
                }
                HedgehogForm::Exp => bounded_exp(both_signs(x)),
            },
            FeatureMap::Favor { .. } => {
                let projection = self.projection(&x.device(), x.dtype());
                favor_features(x, projection, FavorShift::None)
            }
            FeatureMap::Cosformer { length } => {
                let angle =
                    |position: usize| (position + 1) as f64 * std::f64::consts::FRAC_PI_2 / length as f64;
                let sin = table(&x, starts, |position| angle(position).sin());
                let cos = table(&x, starts, |position| angle(position).cos());
                let x = activation::relu(x);
                Tensor::cat(vec![x.clone() * sin, x * cos], 3)
            }
        }
    }

    /// `scale` times what [`Features::apply`] gives.
    pub(super) fn apply_scaled(&self, x: Tensor<4>, starts: &[usize], scale: f64) -> Tensor<4> {
        match self {
            Self { map: FeatureMap::EluPlusOne, linear: None, norm: None, .. } => elu_plus_one(x, scale),
            _ => self.apply(x, starts).mul_scalar(scale),
        }
    }

    /// Number of features `m`.
    pub fn size(&self) -> usize {
        self.size
    }

    /// FAVOR+'s `W: [m, n]`; no rows for other maps.
    pub fn projection(&self, device: &Device, dtype: DType) -> Tensor<2> {
        let n = self.projection.len() / self.size;
        let data = TensorData::new(self.projection.clone(), [if n == 0 { 0 } else { self.size }, n]);
        Tensor::from_data(data, (&device.clone().inner(), dtype))
    }
}

/// Applies a map of vectors to `[b, h, t, n]`, all at once.
fn rows(x: Tensor<4>, map: impl Fn(Tensor<2>) -> Tensor<2>) -> Tensor<4> {
    let [b, h, t, n] = x.dims();
    let y = map(x.reshape([b * h * t, n]));
    let m = y.dims()[1];
    y.reshape([b, h, t, m])
}

/// A number per position, `[b or 1, 1, t, 1]`.
fn table(x: &Tensor<4>, starts: &[usize], f: impl Fn(usize) -> f64) -> Tensor<4> {
    let [_, _, t, _] = x.dims();
    let uniform = starts.iter().all(|&start| start == starts[0]);
    let starts = if uniform { &starts[..1] } else { starts };
    let values: Vec<f64> = starts.iter().flat_map(|&start| (start..start + t).map(&f)).collect();
    Tensor::from_data(TensorData::new(values, [starts.len(), 1, t, 1]), (&x.device().inner(), x.dtype()))
}

fn bounded_exp(x: Tensor<4>) -> Tensor<4> {
    x.clamp_max(LIMIT).exp()
}

/// `[x, -x]`
fn both_signs(x: Tensor<4>) -> Tensor<4> {
    Tensor::cat(vec![x.clone(), x.neg()], 3)
}

/// DPFP: `r ∘ roll(r, j)` for `j = 1 … ν`.
fn neighbour_products(x: Tensor<4>, nu: usize) -> Tensor<4> {
    let r = activation::relu(both_signs(x));
    let m = r.dims()[3];
    let roll = |j| Tensor::cat(vec![r.clone().narrow(3, m - j, j), r.clone().narrow(3, 0, m - j)], 3);
    Tensor::cat((1..=nu).map(|j| r.clone() * roll(j)).collect(), 3)
}

/// All products of two channels, `[.., n] -> [.., n(n+1)/2]`, such that the result's dot product is the square
/// of the input's.
fn symmetric_square(x: Tensor<4>) -> Tensor<4> {
    let n = x.dims()[3];
    let pairs: Vec<(usize, usize)> = (0..n).flat_map(|i| (i..n).map(move |j| (i, j))).collect();
    let count = pairs.len();
    let device = x.device().inner();
    let index = |pick: fn(&(usize, usize)) -> usize| {
        let places: Vec<i64> = pairs.iter().map(|pair| pick(pair) as i64).collect();
        Tensor::<1, Int>::from_data(TensorData::new(places, [count]), &device)
    };
    let factor = |&(i, j): &(usize, usize)| if i == j { 1.0 } else { std::f64::consts::SQRT_2 };
    let factors: Vec<f64> = pairs.iter().map(factor).collect();
    let factors = TensorData::new(factors, [1, 1, 1, count]);
    let factors = Tensor::<4>::from_data(factors, (&device, x.dtype()));
    x.clone().select(3, index(|pair| pair.0)) * x.select(3, index(|pair| pair.1)) * factors
}

/// ReBased's kernel without its norm: `φ(x)·φ(y) = (x·y)²/n`.
pub fn quadratic_features(x: Tensor<4>) -> Tensor<4> {
    let n = x.dims()[3] as f64;
    symmetric_square(x).mul_scalar(n.powf(-0.5))
}

/// Based's kernel: `φ(x)·φ(y) = 1 + s + s²/2`, `s = x·y/√n`.
pub fn taylor_features(x: Tensor<4>) -> Tensor<4> {
    let n = x.dims()[3] as f64;
    let one = x.clone().narrow(3, 0, 1).ones_like();
    let linear = x.clone().mul_scalar(n.powf(-0.25));
    Tensor::cat(vec![one, linear, symmetric_square(x).mul_scalar((2.0 * n).powf(-0.5))], 3)
}

/// What is subtracted from FAVOR+'s exponents, a constant for the gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FavorShift {
    /// Nothing; exponents above 30 count as 30. They are at most `‖w_j‖²/2`, and near that only for an `x̃` close
    /// to `w_j`.
    None,
    /// The largest `w_j·x̃` of each token: for queries, whose scale the division by the sum undoes.
    Token,
    /// The largest of all tokens of a head: for keys, but later tokens change earlier ones, so not for causal use.
    Head,
}

/// `m^{-1/2} (exp(w_j·x̃ - ‖x̃‖²/2 - c) + 1e-4)`, `x̃ = n^{-1/4} x`: `[b, h, t, n] -> [b, h, t, m]` for the
/// rows `w_j` of `projection: [m, n]`.
pub fn favor_features(x: Tensor<4>, projection: Tensor<2>, shift: FavorShift) -> Tensor<4> {
    let [m, n] = projection.dims();
    let x = x.mul_scalar((n as f64).powf(-0.25));
    let half_square = x.clone().square().sum_dim(3).mul_scalar(0.5);
    let w = projection.transpose();
    let projected = rows(x, |x| x.matmul(w.clone()));
    let exponent = projected.clone() - half_square;
    let exponent = match shift {
        FavorShift::None => exponent,
        FavorShift::Token => exponent - projected.detach().max_dim(3),
        FavorShift::Head => exponent - projected.detach().max_dim(3).max_dim(2),
    };
    bounded_exp(exponent).add_scalar(FAVOR_FLOOR).mul_scalar((m as f64).powf(-0.5))
}

/// `m` random rows of `n` entries, orthogonal within blocks of `n`, each as long as a standard normal vector:
/// every row by itself is standard normal, which makes FAVOR+ unbiased.
fn orthogonal_rows(m: usize, n: usize, seed: u64) -> Vec<f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut normal = move || -> f64 { StandardNormal.sample(&mut rng) };
    let mut entries = Vec::with_capacity(m * n);
    while entries.len() < m * n {
        let qr = nalgebra::DMatrix::from_fn(n, n, |_, _| normal()).qr();
        let (q, r) = (qr.q(), qr.r());
        for row in 0..n.min(m - entries.len() / n) {
            let length = (0..n).map(|_| normal().powi(2)).sum::<f64>().sqrt();
            // The sign of the diagonal makes the directions uniform.
            let factor = length * r[(row, row)].signum();
            entries.extend((0..n).map(|i| factor * q[(i, row)]));
        }
    }
    entries
}

#[cfg(test)]
#[path = "feature_map_tests.rs"]
mod tests;
