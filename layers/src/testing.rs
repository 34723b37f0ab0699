//! What this crate's tests share: random numbers and the error measure.

use burn::tensor::{DType, Device, Tensor, TensorData};
use proptest::test_runner::{Config, RngSeed};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// So many cases of a property, the same in every run unless `PROPTEST_RNG_SEED` asks for others.
pub(crate) fn properties(cases: u32) -> Config {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    match config.rng_seed {
        RngSeed::Random => Config { rng_seed: RngSeed::Fixed(1), ..config },
        RngSeed::Fixed(_) => config,
    }
}

/// `‖a - b‖ / max(‖b‖, 0.01 √len)`: the golden files' measure.
pub(crate) fn error(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len(), "different numbers of elements");
    assert!(a.iter().all(|x| x.is_finite()), "a result is not finite");
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let gap = norm(&mut a.iter().zip(b).map(|(a, b)| a - b));
    gap / norm(&mut b.iter().copied()).max(0.01 * (b.len() as f64).sqrt())
}

/// [`error`] between tensors.
pub(crate) fn gap<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> f64 {
    assert_eq!(a.dims(), b.dims());
    error(&numbers(a), &numbers(b))
}

/// A tensor's numbers, row-major.
pub(crate) fn numbers<const D: usize>(x: Tensor<D>) -> Vec<f64> {
    x.try_to_vec_as::<f64>().expect("a readable tensor")
}

/// Graphics devices of this build, where `SEQZOO_VULKAN=1` says that there is a driver.
#[cfg(feature = "cube")]
pub(crate) fn graphics() -> Vec<Device> {
    let names = crate::device::available().into_iter().filter(|name| ["vulkan", "wgpu"].contains(name));
    let open = |name| crate::device::open(name).expect("a graphics device");
    if std::env::var_os("SEQZOO_VULKAN").is_some() { names.map(open).collect() } else { Vec::new() }
}

/// Uniform numbers, the same for the same seed.
pub(crate) struct Draw(ChaCha8Rng);

impl Draw {
    pub(crate) fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    pub(crate) fn numbers(&mut self, count: usize, low: f64, high: f64) -> Vec<f64> {
        (0..count).map(|_| low + (high - low) * self.0.random::<f64>()).collect()
    }

    /// A plain `F32` tensor on the CPU.
    pub(crate) fn tensor<const D: usize>(&mut self, shape: [usize; D], low: f64, high: f64) -> Tensor<D> {
        let values = self.numbers(shape.iter().product(), low, high);
        Tensor::from_data(TensorData::new(values, shape), (&Device::flex(), DType::F32))
    }
}
