//! One model, its optimizer, and the step that moves both.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use futures_lite::future::block_on;
use seqzoo_layers::system::Form;
use seqzoo_layers::{Value, params};
use serde::{Deserialize, Serialize};
use web_time::Instant;

use super::optimizer::{AdamW, Grads};
use super::{TrainConfig, loss};
use crate::data::Batch;
use crate::model::LanguageModel;
use crate::{Error, Result};

/// What one training step did.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    /// The step, counted from 1.
    pub step: usize,
    /// Cross entropy in nats before the update, without the layers' own losses.
    pub loss: f64,
    /// Learning rate of the update.
    pub lr: f64,
    /// Length of the gradient before clipping.
    pub grad_norm: f64,
    /// Tokens read per second in this step.
    pub tokens_per_second: f64,
    /// Seconds of training so far, over all resumed runs.
    pub elapsed: f64,
}

/// A model in training.
#[derive(Debug)]
pub struct Trainer {
    pub(super) model: LanguageModel,
    pub(super) optimizer: AdamW,
    pub(super) config: TrainConfig,
    pub(super) step: usize,
    pub(super) elapsed: f64,
    device: Device,
}

impl Trainer {
    /// Starts training a model.
    ///
    /// # Errors
    /// When the configuration is impossible.
    pub fn new(model: LanguageModel, config: TrainConfig) -> Result<Self> {
        Self::resumed(model, AdamW::default(), config, 0, 0.0)
    }

    pub(super) fn resumed(
        model: LanguageModel,
        optimizer: AdamW,
        config: TrainConfig,
        step: usize,
        elapsed: f64,
    ) -> Result<Self> {
        config.validate()?;
        let model = model.train();
        let device = model.devices().first().cloned().unwrap_or_default();
        Ok(Self { model, optimizer, config, step, elapsed, device })
    }

    /// Steps done.
    pub fn steps_done(&self) -> usize {
        self.step
    }

    /// Whether the configured number of steps is reached.
    pub fn finished(&self) -> bool {
        self.step >= self.config.steps
    }

    /// The settings.
    pub fn config(&self) -> &TrainConfig {
        &self.config
    }

    /// The model as it is now.
    pub fn model(&self) -> &LanguageModel {
        &self.model
    }

    /// The model, ready for inference.
    pub fn into_model(self) -> LanguageModel {
        self.model.valid()
    }

    /// Learns from one batch.
    ///
    /// # Errors
    /// When the loss or a gradient is not finite: the model then stays as it was before the step.
    pub fn step(&mut self, batch: &Batch) -> Result<StepMetrics> {
        block_on(self.step_async(batch))
    }

    /// [`Trainer::step`] without blocking, for a browser.
    ///
    /// # Errors
    /// As [`Trainer::step`].
    pub async fn step_async(&mut self, batch: &Batch) -> Result<StepMetrics> {
        let started = Instant::now();
        let step = self.step + 1;
        let (inputs, labels) = batch.tensors(&self.device);
        let state = self.model.initial_state(batch.batch);
        let output = self.model.forward_with_auxiliary(inputs, state, Form::Auto)?;
        let nats = loss(output.logits, labels);
        let total = match output.auxiliary {
            Some(auxiliary) => nats.clone() + auxiliary.mul_scalar(self.config.auxiliary_weight),
            None => nats.clone(),
        };
        let grads = Grads::of(&self.model, &total.backward());
        let squares = grads.square_norm()?.ok_or_else(|| {
            Error::Data("the loss reaches no parameter: create the model on an autodiff device".into())
        })?;
        // The only read of a step: loss and gradient length together.
        let read = Tensor::cat(vec![nats.inner(), total.inner(), squares], 0);
        let read = Value::from(read).to_f64_async().await?;
        let (nats, total, grad_norm) = (read[0], read[1], read[2].sqrt());
        if !(total.is_finite() && grad_norm.is_finite()) {
            let tensor = self.first_not_finite(total, &grads).await?;
            return Err(Error::NotFinite { step, tensor, checkpoint: None });
        }
        let lr = self.config.lr_at(step);
        let scale = (self.config.grad_clip / (grad_norm + 1e-6)).min(1.0);
        self.model = self.optimizer.update(self.model.clone(), &grads, scale, lr, &self.config)?;
        self.step = step;
        let seconds = started.elapsed().as_secs_f64();
        self.elapsed += seconds;
        let tokens_per_second = batch.inputs.len() as f64 / seconds.max(1e-9);
        Ok(StepMetrics { step, loss: nats, lr, grad_norm, tokens_per_second, elapsed: self.elapsed })
    }

    /// Where the numbers went wrong: a parameter, else the loss itself, else a gradient.
    async fn first_not_finite(&self, total: f64, grads: &Grads) -> Result<String> {
        if let Some(name) = not_finite_async(&params::parameters(&self.model)).await? {
            return Ok(name);
        }
        if !total.is_finite() {
            return Ok("loss".into());
        }
        // The squares may overflow where no gradient does.
        let name = not_finite_async(grads.by_name()).await?;
        Ok(name.map_or_else(|| "gradient norm".into(), |name| format!("gradient of {name}")))
    }
}

/// Name of the first tensor with an entry that is not a finite number.
pub(super) fn not_finite(named: &params::Named) -> Result<Option<String>> {
    block_on(not_finite_async(named))
}

async fn not_finite_async(named: &params::Named) -> Result<Option<String>> {
    for (name, value) in named {
        if value.to_f64_async().await?.iter().any(|x| !x.is_finite()) {
            return Ok(Some(name.clone()));
        }
    }
    Ok(None)
}
