//! Cross entropy, and how well a model does on data it was not trained on.

use burn::module::Module;
use burn::tensor::{Int, Tensor, activation};
use futures_lite::future::block_on;
use seqzoo_layers::Value;
use seqzoo_layers::system::Form;
use serde::Serialize;

use crate::Result;
use crate::data::Batches;
use crate::model::LanguageModel;

/// Mean cross entropy in nats over the positions whose label is not negative (`-100`), of shape `[1]`.
///
/// `logits: [b, t, v]`, `labels: [b, t]`. Zero if nothing is scored. Nothing is read back to the host.
pub fn loss(logits: Tensor<3>, labels: Tensor<2, Int>) -> Tensor<1> {
    let [b, t, v] = logits.dims();
    let labels = labels.reshape([b * t, 1]);
    let scored = labels.clone().greater_equal_elem(0);
    let log_p = activation::log_softmax(logits.reshape([b * t, v]), 1);
    let log_p = log_p.gather(1, labels.clamp_min(0));
    let count = scored.clone().float().sum().clamp_min(1.0).cast(log_p.dtype());
    log_p.mask_fill(scored.bool_not(), 0.0).sum().neg() / count
}

/// Result of an evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct EvalMetrics {
    /// Mean cross entropy per scored position, in nats.
    pub loss: f64,
    /// Fraction of scored positions whose most likely token is right.
    pub accuracy: f64,
}

/// Loss and accuracy over `n` batches, without training.
///
/// # Errors
/// When the model fails or its loss is not finite.
pub fn evaluate(model: &LanguageModel, batches: &mut dyn Batches, n: usize) -> Result<EvalMetrics> {
    block_on(evaluate_async(model, batches, n))
}

/// [`evaluate`] without blocking, for a browser.
///
/// # Errors
/// As [`evaluate`].
pub async fn evaluate_async(
    model: &LanguageModel,
    batches: &mut dyn Batches,
    n: usize,
) -> Result<EvalMetrics> {
    let model = model.valid();
    let device = model.devices().first().cloned().unwrap_or_default();
    let (mut nats, mut right, mut scored) = (0.0, 0.0, 0.0);
    for _ in 0..n {
        let batch = batches.next_batch();
        let count = batch.scored() as f64;
        let (inputs, labels) = batch.tensors(&device);
        let logits = model.forward(inputs, model.initial_state(batch.batch), Form::Auto)?.logits;
        // Labels that are not scored are negative, so no prediction equals them.
        let hits = logits.clone().argmax(2).squeeze_dim::<2>(2).equal(labels.clone());
        let hits = hits.float().sum().cast(logits.dtype());
        let both = Tensor::cat(vec![loss(logits, labels), hits], 0);
        let both = Value::from(both).to_f64_async().await?;
        nats += both[0] * count;
        right += both[1];
        scored += count;
    }
    let scored = scored.max(1.0);
    Ok(EvalMetrics { loss: nats / scored, accuracy: right / scored })
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};

    use super::*;

    fn logits(values: Vec<f64>, shape: [usize; 3]) -> Tensor<3> {
        let options = (&Device::flex(), burn::tensor::DType::F64);
        Tensor::from_data(TensorData::new(values, shape), options)
    }

    fn ids(values: Vec<i64>, shape: [usize; 2]) -> Tensor<2, Int> {
        Tensor::from_data(TensorData::new(values, shape), &Device::flex())
    }

    #[test]
    fn only_scored_positions_count() {
        let (a, b) = ([0.3, -1.0, 2.0], [5.0, 5.0, -3.0]);
        let x = logits([a, b, a, b].concat(), [2, 2, 3]);
        let nll = |row: [f64; 3], k: usize| row.iter().map(|x| x.exp()).sum::<f64>().ln() - row[k];
        let got = loss(x, ids(vec![2, -100, 0, 1], [2, 2])).into_scalar::<f64>();
        let expected = (nll(a, 2) + nll(a, 0) + nll(b, 1)) / 3.0;
        assert!((got - expected).abs() < 1e-12, "{got} {expected}");
    }

    #[test]
    fn nothing_scored_is_zero_and_huge_logits_stay_finite() {
        let x = logits(vec![1e300, -1e300, 0.0], [1, 1, 3]);
        assert_eq!(loss(x.clone(), ids(vec![-100], [1, 1])).into_scalar::<f64>(), 0.0);
        assert_eq!(loss(x, ids(vec![0], [1, 1])).into_scalar::<f64>(), 0.0);
    }

    #[test]
    fn its_gradient_is_probability_minus_target() {
        let device = Device::flex().autodiff();
        let values = vec![0.5f64, -0.5, 1.0, 0.0, 2.0, -1.0];
        let options = (&device, burn::tensor::DType::F64);
        let x = Tensor::<3>::from_data(TensorData::new(values.clone(), [1, 2, 3]), options).require_grad();
        let labels = Tensor::from_data(TensorData::new(vec![-100i64, 1], [1, 2]), &device);
        let grads = loss(x.clone(), labels).backward();
        let got = x.grad(&grads).unwrap().try_to_vec_as::<f64>().unwrap();
        let total: f64 = values[3..].iter().map(|x| x.exp()).sum();
        for (k, g) in got.iter().enumerate() {
            let p = if k < 3 { 0.0 } else { values[k].exp() / total - f64::from(k == 4) };
            assert!((g - p).abs() < 1e-12);
        }
    }
}
