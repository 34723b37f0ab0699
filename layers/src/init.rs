//! Seeded parameter initialisation. The numbers come from the host, so that one seed gives the same
//! model on every backend and in the browser.

use burn::module::Param;
use burn::tensor::{Device, Tensor, TensorData};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use crate::nn::Linear;

/// Draws parameters from one seed onto one device.
#[derive(Clone, Debug)]
pub struct Init {
    rng: ChaCha8Rng,
    device: Device,
    blank: bool,
}

impl Init {
    /// A source of parameters for `device`; use an autodiff device to train.
    pub fn new(seed: u64, device: &Device) -> Self {
        Self { rng: ChaCha8Rng::seed_from_u64(seed), device: device.clone(), blank: false }
    }

    /// Zeros in place of drawn numbers: for a model whose parameters are assigned next.
    pub fn blank(device: &Device) -> Self {
        Self { blank: true, ..Self::new(0, device) }
    }

    /// Where parameters are placed.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// A parameter from explicit numbers, row-major.
    pub fn param<const D: usize>(&self, shape: [usize; D], values: Vec<f32>) -> Param<Tensor<D>> {
        Param::from_tensor(Tensor::from_data(TensorData::new(values, shape), &self.device))
    }

    /// A parameter filled with one number.
    pub fn constant<const D: usize>(&self, shape: [usize; D], value: f32) -> Param<Tensor<D>> {
        self.param(shape, vec![value; shape.iter().product()])
    }

    /// A parameter whose entries are drawn one by one.
    pub fn draw<const D: usize>(
        &mut self,
        shape: [usize; D],
        mut sample: impl FnMut(&mut ChaCha8Rng) -> f32,
    ) -> Param<Tensor<D>> {
        if self.blank {
            return Param::from_tensor(Tensor::zeros(shape, &self.device));
        }
        let values = (0..shape.iter().product()).map(|_| sample(&mut self.rng)).collect();
        self.param(shape, values)
    }

    /// Normal entries of the given standard deviation.
    pub fn normal<const D: usize>(&mut self, shape: [usize; D], std: f64) -> Param<Tensor<D>> {
        self.draw(shape, |rng| {
            let z: f64 = StandardNormal.sample(rng);
            (z * std) as f32
        })
    }

    /// Uniform entries in `[low, high)`.
    pub fn uniform<const D: usize>(&mut self, shape: [usize; D], low: f64, high: f64) -> Param<Tensor<D>> {
        self.draw(shape, |rng| (low + (high - low) * rng.random::<f64>()) as f32)
    }

    /// Logarithms of uniform draws from `[low, high)`, `low > 0`.
    pub fn log_of_uniform<const D: usize>(
        &mut self,
        shape: [usize; D],
        low: f64,
        high: f64,
    ) -> Param<Tensor<D>> {
        self.draw(shape, |rng| (low + (high - low) * rng.random::<f64>()).ln() as f32)
    }

    /// A linear map without bias, `[d_in, d_out]`, entries `N(0, 1/d_in)`.
    pub fn linear(&mut self, d_in: usize, d_out: usize) -> Linear {
        self.linear_std(d_in, d_out, (1.0 / d_in as f64).sqrt(), false)
    }

    /// A linear map with explicit standard deviation, with a zero bias if asked.
    pub fn linear_std(&mut self, d_in: usize, d_out: usize, std: f64, bias: bool) -> Linear {
        Linear { weight: self.normal([d_in, d_out], std), bias: bias.then(|| self.constant([d_out], 0.0)) }
    }

    /// Biases `b` with `softplus(b) = dt`, `dt` log-uniform in `[low, high]`, at least `floor`
    /// (Mamba's step-size initialisation).
    pub fn inverse_softplus_dt(&mut self, size: usize, low: f64, high: f64, floor: f64) -> Param<Tensor<1>> {
        self.draw([size], |rng| {
            let u: f64 = rng.random();
            let dt = (u * (high.ln() - low.ln()) + low.ln()).exp().max(floor);
            (dt + (-(-dt).exp_m1()).ln()) as f32
        })
    }
}
