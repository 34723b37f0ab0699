//! What the checks share: a layer, its inputs, and the error measure.

use burn::tensor::{DType, Device, Tensor, TensorData};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use seqzoo_layers::system::{Form, Mixer, State};
use seqzoo_layers::{Init, Result, Value};

use super::{Options, Outcome, Subject};
use crate::registry::AnyMixer;

/// Rows of every test batch.
pub(super) const BATCH: usize = 2;

/// A layer and a source of inputs.
pub(super) struct Probe {
    pub(super) layer: AnyMixer,
    pub(super) device: Device,
    d_model: usize,
    rng: ChaCha8Rng,
}

impl Probe {
    pub(super) fn new(subject: &Subject, device: &Device, options: Options) -> Result<Self> {
        let layer = subject.config.init(subject.d_model, &mut Init::new(options.seed, device))?;
        let rng = ChaCha8Rng::seed_from_u64(options.seed ^ 0x5eed);
        Ok(Self { layer, device: device.clone(), d_model: subject.d_model, rng })
    }

    /// Standard normal numbers.
    pub(super) fn numbers(&mut self, count: usize) -> Vec<f64> {
        (0..count).map(|_| StandardNormal.sample(&mut self.rng)).collect()
    }

    /// A random value of a shape.
    pub(super) fn value(&mut self, shape: Vec<usize>, dtype: DType) -> Result<Value> {
        let numbers = self.numbers(shape.iter().product());
        let data = TensorData::new(numbers, shape).convert_dtype(dtype);
        Value::from_data(data, &self.device)
    }

    /// A random input `[batch, time, d_model]`.
    pub(super) fn input(&mut self, batch: usize, time: usize) -> Result<Tensor<3>> {
        self.value(vec![batch, time, self.d_model], DType::F32)?.tensor("input")
    }

    /// A state that has already seen a few tokens, so that nothing in it is zero.
    pub(super) fn warm_state(&mut self, batch: usize) -> Result<State> {
        let prefix = self.input(batch, 5)?;
        let state = self.layer.initial_state(batch);
        Ok(self.layer.forward(prefix, state, Form::Recurrent)?.1.detach())
    }

    pub(super) fn run(&self, x: &Tensor<3>, state: &State, form: Form) -> Result<(Tensor<3>, State)> {
        self.layer.forward(x.clone(), state.clone(), form)
    }
}

/// The largest error seen and where.
pub(super) struct Worst {
    error: f64,
    place: String,
    tolerance: f64,
}

impl Worst {
    pub(super) fn new(tolerance: f64) -> Self {
        Self { error: 0.0, place: "-".into(), tolerance }
    }

    /// Compares two tensors: `‖a - b‖ / max(‖b‖, 0.01 √numel)`; NaN and shape differences are infinite.
    pub(super) async fn compare(&mut self, place: &str, a: &Value, b: &Value) -> Result<()> {
        let error = match a.dims() == b.dims() {
            true => relative_error(&a.to_f64_async().await?, &b.to_f64_async().await?),
            false => f64::INFINITY,
        };
        self.record(place, error);
        Ok(())
    }

    pub(super) fn record(&mut self, place: &str, error: f64) {
        if error.is_nan() || error > self.error || self.place == "-" {
            self.error = if error.is_nan() { f64::INFINITY } else { error.max(self.error) };
            self.place = place.into();
        }
    }

    /// Compares positions and every slot of two states.
    pub(super) async fn states(&mut self, place: &str, a: &State, b: &State) -> Result<()> {
        let (ours, theirs): (Vec<_>, Vec<_>) = (a.slots().collect(), b.slots().collect());
        let same = ours.len() == theirs.len() && a.positions() == b.positions();
        self.record(&format!("{place}: slots and positions"), if same { 0.0 } else { f64::INFINITY });
        for ((name, a, _), (other, b, _)) in ours.into_iter().zip(theirs) {
            let place = format!("{place}: state {name}");
            if name == other {
                self.compare(&place, a, b).await?;
            } else {
                self.record(&place, f64::INFINITY);
            }
        }
        Ok(())
    }

    pub(super) fn outcome(self) -> Outcome {
        Outcome::Measured { error: self.error, tolerance: self.tolerance, worst: self.place }
    }
}

/// `‖a - b‖₂ / max(‖b‖₂, 0.01 √numel)`
pub(super) fn relative_error(a: &[f64], b: &[f64]) -> f64 {
    if b.is_empty() {
        return 0.0;
    }
    let gap: f64 = a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
    let norm: f64 = b.iter().map(|b| b * b).sum::<f64>().sqrt();
    gap / norm.max(0.01 * (b.len() as f64).sqrt())
}

#[cfg(test)]
mod tests {
    use futures_lite::future::block_on;

    use super::*;
    use crate::verify::{VALUE_TOLERANCE, subjects};

    /// Rows are there to find mistakes: one that makes more of a rounding than two forms may differ by would find
    /// roundings.
    #[test]
    fn no_row_amplifies_roundings() {
        let device = Device::flex();
        for subject in subjects(None) {
            let mut probe = Probe::new(&subject, &device, Options::default()).unwrap();
            let x = probe.input(BATCH, Options::default().time).unwrap();
            let start = probe.warm_state(BATCH).unwrap();
            let (y, end) = probe.run(&x, &start, Form::Recurrent).unwrap();
            let mut worst = Worst::new(VALUE_TOLERANCE);
            for _ in 0..3 {
                // Up or down by the last bit.
                let signs = probe.input(BATCH, Options::default().time).unwrap().sign();
                let moved = x.clone() * (signs.mul_scalar(f64::from(f32::EPSILON)).add_scalar(1.0));
                let (other, other_end) = probe.run(&moved, &start, Form::Recurrent).unwrap();
                block_on(worst.compare("output", &other.into(), &y.clone().into())).unwrap();
                block_on(worst.states("end", &other_end, &end)).unwrap();
            }
            assert!(
                worst.error < VALUE_TOLERANCE / 5.0,
                "{}: {:e} of {}",
                subject.name,
                worst.error,
                worst.place
            );
        }
    }
}
