//! How a model is trained.

use serde::{Deserialize, Serialize};

use crate::Result;

/// Settings of a training run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// Updates in all.
    pub steps: usize,
    /// Rows per batch.
    pub batch: usize,
    /// Tokens per row.
    pub time: usize,
    /// Highest learning rate, reached after the warmup.
    pub lr: f64,
    /// Steps over which the learning rate rises from 0.
    pub warmup: usize,
    /// The cosine falls to this fraction of `lr` at the last step.
    pub min_lr_ratio: f64,
    /// Decoupled weight decay of matrices; vectors (norms, biases, decays) have none.
    pub weight_decay: f64,
    /// Memory of the first and second moment.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Longest gradient, over all parameters together.
    pub grad_clip: f64,
    /// Seed of the data's order.
    pub seed: u64,
    /// Steps between evaluations; 0 for the end only.
    pub eval_every: usize,
    /// Batches per evaluation.
    pub eval_batches: usize,
    /// Steps between checkpoints; 0 for the end only.
    pub save_every: usize,
    /// Weight of the layers' own losses (a router's balance).
    pub auxiliary_weight: f64,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            steps: 500,
            batch: 16,
            time: 128,
            lr: 2e-3,
            warmup: 50,
            min_lr_ratio: 0.1,
            weight_decay: 0.1,
            betas: [0.9, 0.95],
            eps: 1e-8,
            grad_clip: 1.0,
            seed: 0,
            eval_every: 100,
            eval_batches: 8,
            save_every: 100,
            auxiliary_weight: 0.01,
        }
    }
}

impl TrainConfig {
    /// Checks every value.
    ///
    /// # Errors
    /// Naming the field, its value and what is accepted.
    pub fn validate(&self) -> Result<()> {
        let positive = |x: f64| x.is_finite() && x > 0.0;
        let fraction = |x: f64| (0.0..1.0).contains(&x);
        let checks: [(bool, &'static str, String, &str); 11] = [
            (self.batch > 0, "batch", self.batch.to_string(), "at least 1"),
            (self.time > 0, "time", self.time.to_string(), "at least 1"),
            (positive(self.lr), "lr", self.lr.to_string(), "a positive number"),
            (
                (0.0..=1.0).contains(&self.min_lr_ratio),
                "min_lr_ratio",
                self.min_lr_ratio.to_string(),
                "a number from 0 to 1",
            ),
            (
                self.weight_decay.is_finite() && self.weight_decay >= 0.0,
                "weight_decay",
                self.weight_decay.to_string(),
                "0 or a positive number",
            ),
            (fraction(self.betas[0]), "betas[0]", self.betas[0].to_string(), "a number in [0, 1)"),
            (fraction(self.betas[1]), "betas[1]", self.betas[1].to_string(), "a number in [0, 1)"),
            (positive(self.eps), "eps", self.eps.to_string(), "a positive number"),
            (positive(self.grad_clip), "grad_clip", self.grad_clip.to_string(), "a positive number"),
            (self.eval_batches > 0, "eval_batches", self.eval_batches.to_string(), "at least 1"),
            (
                self.auxiliary_weight.is_finite() && self.auxiliary_weight >= 0.0,
                "auxiliary_weight",
                self.auxiliary_weight.to_string(),
                "0 or a positive number",
            ),
        ];
        match checks.into_iter().find(|(ok, ..)| !ok) {
            None => Ok(()),
            Some((_, field, given, expected)) => {
                Err(seqzoo_layers::Error::config("train", field, given, expected).into())
            }
        }
    }

    /// Learning rate of a step, counted from 1: linear warmup, then half a cosine.
    pub fn lr_at(&self, step: usize) -> f64 {
        if step < self.warmup {
            return self.lr * step as f64 / self.warmup as f64;
        }
        let span = self.steps.saturating_sub(self.warmup).max(1);
        let done = ((step - self.warmup) as f64 / span as f64).min(1.0);
        let cosine = 0.5 * (1.0 + (std::f64::consts::PI * done).cos());
        self.lr * (self.min_lr_ratio + (1.0 - self.min_lr_ratio) * cosine)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_peaks_and_falls_to_its_floor() {
        let config = TrainConfig { steps: 100, warmup: 10, lr: 1.0, min_lr_ratio: 0.2, ..Default::default() };
        assert_eq!(config.lr_at(5), 0.5);
        assert_eq!(config.lr_at(10), 1.0);
        assert!((config.lr_at(55) - 0.6).abs() < 1e-12);
        assert!((config.lr_at(100) - 0.2).abs() < 1e-12);
        assert!((config.lr_at(1000) - 0.2).abs() < 1e-12);
        let no_warmup = TrainConfig { warmup: 0, steps: 0, ..config };
        assert!(no_warmup.lr_at(1).is_finite());
    }

    #[test]
    fn impossible_values_name_their_field() {
        let base = TrainConfig::default();
        assert!(base.validate().is_ok());
        for (config, field) in [
            (TrainConfig { lr: f64::NAN, ..base.clone() }, "lr"),
            (TrainConfig { lr: -1.0, ..base.clone() }, "lr"),
            (TrainConfig { betas: [0.9, 1.0], ..base.clone() }, "betas[1]"),
            (TrainConfig { weight_decay: -0.1, ..base.clone() }, "weight_decay"),
            (TrainConfig { batch: 0, ..base.clone() }, "batch"),
        ] {
            let error = config.validate().unwrap_err().to_string();
            assert!(error.contains(&format!("`{field}`")), "{error}");
        }
    }
}
