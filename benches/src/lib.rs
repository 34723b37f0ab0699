//! The scaling and latency suite: which architecture at which length, batch, state and hardware, measured on the
//! user's own machine. `seqzoo-bench run` sweeps, `report` draws, `compare` finds regressions, `peers` measures other
//! libraries in the same run.
//!
//! A sweep ([`plan`], [`sweep`]) measures every [`point`] in a process of its own ([`child`], [`measure`]) and appends
//! each outcome to a file of JSON lines ([`record`], [`store`]), which [`summary`], [`fit`], [`compare`], [`ratios`] and
//! [`report`] read.
//!
//! The criterion benchmarks (`cargo bench -p seqzoo-bench`; add `-- gated_deltanet` for one architecture) share the
//! functions below; `SEQZOO_BENCH_DEVICE` names another device than `flex`, if it is compiled in.

pub mod child;
pub mod compare;
pub mod core;
mod error;
pub mod fit;
pub mod hardware;
pub mod heap;
pub mod kernels;
pub mod launches;
pub mod measure;
pub mod models;
pub mod peers;
pub mod plan;
pub mod point;
pub mod ratios;
pub mod record;
pub mod report;
pub mod stats;
pub mod store;
pub mod summary;
pub mod sweep;

use burn::tensor::{Device, Tensor, TensorData};
use seqzoo::registry::{AnyMixer, MixerConfig};
use seqzoo_layers::{Error as LayerError, Init, Result as LayerResult, device};

pub use error::{Error, Result};

/// Width of every layer under test.
pub const WIDTH: usize = 128;

/// The device to measure: the one that `SEQZOO_BENCH_DEVICE` names, else Flex.
///
/// # Errors
/// For a name that is unknown or not compiled in.
pub fn open_device() -> LayerResult<Device> {
    seqzoo::heap::keep_freed_memory();
    let name = std::env::var("SEQZOO_BENCH_DEVICE");
    device::open(name.as_deref().unwrap_or("flex"))
}

/// Every architecture of the registry in its default configuration.
///
/// # Errors
/// When a default configuration does not fit [`WIDTH`].
pub fn layers(device: &Device) -> LayerResult<Vec<(&'static str, AnyMixer)>> {
    let config = |name: &'static str| {
        MixerConfig::named(name)
            .ok_or_else(|| LayerError::config("registry", "name", name, "must have a default configuration"))
    };
    (MixerConfig::NAMES.iter())
        .map(|name| Ok((*name, config(name)?.init(WIDTH, &mut Init::new(0, device))?)))
        .collect()
}

/// One sequence of `time` tokens, `[1, time, WIDTH]`.
pub fn tokens(time: usize, device: &Device) -> Tensor<3> {
    let values: Vec<f32> = (0..time * WIDTH).map(|i| (i as f32 * 0.7391).sin()).collect();
    Tensor::from_data(TensorData::new(values, [1, time, WIDTH]), device)
}

/// Waits until the device has done its work, so that a measurement covers it.
///
/// # Panics
/// When the device was lost: there is nothing left to measure.
pub fn finish(device: &Device) {
    device.sync().expect("the device finishes its work");
}

#[cfg(test)]
mod tests {
    use seqzoo_layers::system::{Form, Mixer};

    use super::*;

    #[test]
    fn every_way_of_the_recurrence_gives_the_same_gradients() -> LayerResult<()> {
        let sequence = core::Sequence::new(70, &device::open("flex")?)?;
        let sums = |form, kernels| -> LayerResult<Vec<f32>> {
            let grads = sequence.forward_backward(core::Way { form, kernels })?;
            Ok(grads.into_iter().map(|grad| grad.abs().sum().into_scalar()).collect())
        };
        let expected = sums(Form::Recurrent, false)?;
        for (form, kernels) in [(Form::Auto, true), (Form::Auto, false), (Form::Parallel, false)] {
            for (found, expected) in sums(form, kernels)?.iter().zip(&expected) {
                assert!((found / expected - 1.0).abs() < 1e-4, "{form}: {found} is not {expected}");
            }
        }
        seqzoo_layers::kernels::enable(true);
        Ok(())
    }

    #[test]
    fn every_architecture_can_be_measured() -> LayerResult<()> {
        let device = device::open("flex")?;
        let layers = layers(&device)?;
        assert_eq!(layers.len(), MixerConfig::NAMES.len());
        for (name, layer) in layers {
            let (y, _) = layer.forward(tokens(3, &device), layer.initial_state(1), Form::Auto)?;
            assert_eq!(y.dims(), [1, 3, WIDTH], "{name}");
        }
        Ok(())
    }
}
