//! Multi-query associative recall (Zoology, arXiv 2312.04927).
//!
//! ```text
//! k1 v1 k2 v2 … kK vK | . k2 . . k1 . . . k2 …      inputs
//!  .  .  .  .     .  .  . v2 . . v1 . . . v2 …      labels
//! ```
//!
//! The first `2·K·passes` tokens are the pairs; then each key returns once, in a slot drawn with
//! probability `∝ a·i^(a-1)` (near slots more likely), and must be answered with its value. Solving it
//! takes a state that holds `K` pairs and is addressed by content.

use rand::RngExt;
use rand::seq::index;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::{Batch, Batches, NOT_SCORED, batch_rng};
use crate::{Error, Result};

/// Parameters of the task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mqar {
    /// Token ids; keys come from the lower half (without 0), values from the upper.
    pub vocab: usize,
    /// Tokens per sequence, even.
    pub length: usize,
    /// Pairs to remember.
    pub pairs: usize,
    /// Exponent `a` of the query positions; smaller asks sooner.
    pub power: f64,
    /// How often the pairs are presented before the questions.
    pub passes: usize,
    /// Fill positions that are neither pair nor query with random tokens instead of 0.
    pub random_non_queries: bool,
}

impl Default for Mqar {
    fn default() -> Self {
        Self { vocab: 8192, length: 64, pairs: 4, power: 0.01, passes: 1, random_non_queries: true }
    }
}

impl Mqar {
    /// Checks that the sequence has room for the pairs and the questions.
    ///
    /// # Errors
    /// Naming the field that does not fit.
    pub fn validate(&self) -> Result<()> {
        let Self { vocab, length, pairs, power, passes, .. } = *self;
        let require = |ok: bool, field: &str, given: String, expected: String| {
            if ok { Ok(()) } else { Err(Error::Data(format!("mqar: `{field}` = {given}: {expected}"))) }
        };
        require(pairs >= 1, "pairs", pairs.to_string(), "at least 1".into())?;
        require(passes >= 1, "passes", passes.to_string(), "at least 1".into())?;
        require(length % 2 == 0, "length", length.to_string(), "an even number".into())?;
        // Pairs take 2·pairs·passes tokens and every question two more.
        let needed = pairs.saturating_mul(passes.saturating_add(1)).saturating_mul(2);
        require(
            needed <= length,
            "length",
            length.to_string(),
            format!("at least {needed} for {pairs} pairs in {passes} passes: lower the pairs or lengthen"),
        )?;
        require(vocab > length, "vocab", vocab.to_string(), format!("more than the length {length}"))?;
        let positive = power.is_finite() && power > 0.0;
        require(positive, "power", power.to_string(), "a positive number".into())
    }

    /// The stream of one seed. Use another seed for evaluation.
    ///
    /// # Errors
    /// When the parameters do not fit together or `batch` is 0.
    pub fn batches(&self, seed: u64, batch: usize) -> Result<MqarBatches> {
        self.validate()?;
        if batch == 0 {
            return Err(Error::Data("a batch needs at least one row".into()));
        }
        Ok(MqarBatches { task: self.clone(), seed, batch, index: 0 })
    }

    /// Accuracy of guessing among the values.
    pub fn chance(&self) -> f64 {
        2.0 / self.vocab as f64
    }

    /// The exact solver: the answer at every position of one sequence, [`NOT_SCORED`] where there is none.
    pub fn oracle(&self, inputs: &[i64]) -> Vec<i64> {
        let context = 2 * self.pairs * self.passes;
        let value_of = |key: i64| {
            inputs[..context].chunks(2).find(|pair| pair[0] == key).map_or(NOT_SCORED, |pair| pair[1])
        };
        let answer = |(t, &key): (usize, &i64)| {
            // Questions stand at even positions only; a random filler may look like a key elsewhere.
            if t >= context && t % 2 == 0 { value_of(key) } else { NOT_SCORED }
        };
        inputs.iter().enumerate().map(answer).collect()
    }

    /// One sequence and its labels.
    fn sample(&self, rng: &mut ChaCha8Rng) -> (Vec<i64>, Vec<i64>) {
        let (half, k) = (self.vocab / 2, self.pairs);
        let keys: Vec<i64> = index::sample(rng, half - 1, k).iter().map(|i| (i + 1) as i64).collect();
        let values: Vec<i64> =
            index::sample(rng, self.vocab - half, k).iter().map(|i| (i + half) as i64).collect();
        let context = 2 * k * self.passes;
        let mut inputs = Vec::with_capacity(self.length);
        for _ in 0..self.passes {
            inputs.extend(keys.iter().zip(&values).flat_map(|(&key, &value)| [key, value]));
        }
        inputs.resize(self.length, 0);
        let mut labels = vec![NOT_SCORED; self.length];
        let slots = self.slots((self.length - context) / 2, rng);
        for ((slot, &key), &value) in slots.into_iter().zip(&keys).zip(&values) {
            inputs[context + 2 * slot] = key;
            labels[context + 2 * slot] = value;
        }
        if self.random_non_queries {
            for token in inputs.iter_mut().filter(|token| **token == 0) {
                *token = rng.random_range(0..self.vocab) as i64;
            }
        }
        (inputs, labels)
    }

    /// One slot for each key, without replacement, in proportion to `i^(a-1)`.
    fn slots(&self, count: usize, rng: &mut ChaCha8Rng) -> Vec<usize> {
        // Sorting log-weights with Gumbel noise draws without replacement, in the order of drawing.
        let mut scores: Vec<(f64, usize)> = (0..count)
            .map(|i| {
                let u = 1.0 - rng.random::<f64>();
                ((self.power - 1.0) * ((i + 1) as f64).ln() - (-u.ln()).ln(), i)
            })
            .collect();
        scores.sort_by(|a, b| b.0.total_cmp(&a.0));
        scores.into_iter().take(self.pairs).map(|(_, slot)| slot).collect()
    }
}

/// Stream of [`Mqar`] batches.
#[derive(Clone, Debug)]
pub struct MqarBatches {
    task: Mqar,
    seed: u64,
    batch: usize,
    index: u64,
}

impl Batches for MqarBatches {
    fn next_batch(&mut self) -> Batch {
        let mut rng = batch_rng(self.seed, self.index);
        self.index += 1;
        let (mut inputs, mut labels) = (Vec::new(), Vec::new());
        for _ in 0..self.batch {
            let (row, answers) = self.task.sample(&mut rng);
            inputs.extend(row);
            labels.extend(answers);
        }
        Batch { inputs, labels, batch: self.batch, time: self.task.length }
    }

    fn skip(&mut self, batches: usize) {
        self.index += batches as u64;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn rows(batch: &Batch) -> impl Iterator<Item = (&[i64], &[i64])> {
        batch.inputs.chunks(batch.time).zip(batch.labels.chunks(batch.time))
    }

    #[test]
    fn the_oracle_answers_every_question() {
        for (length, pairs, passes, random_non_queries) in
            [(16, 4, 1, true), (64, 16, 1, false), (64, 8, 3, true), (4, 1, 1, true)]
        {
            let task = Mqar { vocab: 8192, length, pairs, passes, random_non_queries, ..Default::default() };
            let batch = task.batches(3, 20).unwrap().next_batch();
            for (inputs, labels) in rows(&batch) {
                let answers = task.oracle(inputs);
                let right = labels.iter().zip(&answers).filter(|(l, a)| **l != NOT_SCORED && l == a);
                assert_eq!(right.count(), pairs);
            }
        }
    }

    #[test]
    fn sequences_have_the_prescribed_layout() {
        let task = Mqar { vocab: 40, length: 32, pairs: 5, passes: 2, ..Default::default() };
        let batch = task.batches(7, 200).unwrap().next_batch();
        assert_eq!(batch.scored(), 200 * 5);
        for (inputs, labels) in rows(&batch) {
            let keys: BTreeSet<i64> = inputs[..10].iter().step_by(2).copied().collect();
            let values: BTreeSet<i64> = inputs[1..10].iter().step_by(2).copied().collect();
            assert!(keys.len() == 5 && keys.iter().all(|k| (1..20).contains(k)));
            assert!(values.len() == 5 && values.iter().all(|v| (20..40).contains(v)));
            assert_eq!(inputs[..10], inputs[10..20], "the second pass repeats the first");
            for (t, &label) in labels.iter().enumerate().filter(|(_, l)| **l != NOT_SCORED) {
                assert!(t >= 20 && t % 2 == 0 && keys.contains(&inputs[t]) && values.contains(&label));
            }
        }
    }

    #[test]
    fn without_random_fillers_the_rest_is_zero() {
        let task = Mqar { length: 32, pairs: 4, random_non_queries: false, ..Default::default() };
        let batch = task.batches(1, 10).unwrap().next_batch();
        for (inputs, labels) in rows(&batch) {
            let zeros = inputs.iter().filter(|&&token| token == 0).count();
            assert_eq!(zeros, 32 - 8 - 4);
            assert!(inputs.iter().zip(labels).skip(8).all(|(i, l)| (*i == 0) == (*l == NOT_SCORED)));
        }
    }

    #[test]
    fn near_slots_are_drawn_more_often_in_the_prescribed_proportion() {
        // The first of K draws follows p_i = a·i^(a-1)/Σ itself.
        let task = Mqar { length: 20, pairs: 1, power: 0.5, ..Default::default() };
        let (draws, mut rng) = (40_000, batch_rng(5, 0));
        let mut counts = [0usize; 9];
        for _ in 0..draws {
            counts[task.slots(9, &mut rng)[0]] += 1;
        }
        let weights: Vec<f64> = (1..=9).map(|i| f64::from(i).powf(-0.5)).collect();
        let total: f64 = weights.iter().sum();
        for (count, weight) in counts.iter().zip(&weights) {
            let (p, found) = (weight / total, *count as f64 / f64::from(draws));
            assert!((found - p).abs() < 5.0 * (p / f64::from(draws)).sqrt(), "{found} for {p}");
        }
    }

    #[test]
    fn one_seed_gives_one_stream_and_skipping_is_drawing() {
        let task = Mqar::default();
        let mut a = task.batches(9, 4).unwrap();
        let mut b = task.batches(9, 4).unwrap();
        let first = a.next_batch();
        assert_eq!(first, b.next_batch());
        a.skip(2);
        b.next_batch();
        b.next_batch();
        assert_eq!(a.next_batch(), b.next_batch());
        assert_ne!(first, task.batches(10, 4).unwrap().next_batch());
    }

    #[test]
    fn impossible_tasks_are_refused_with_the_field() {
        let base = Mqar::default();
        for (task, field) in [
            (Mqar { length: 63, ..base.clone() }, "length"),
            (Mqar { pairs: 17, ..base.clone() }, "length"),
            (Mqar { pairs: 8, passes: 4, ..base.clone() }, "length"),
            (Mqar { vocab: 64, ..base.clone() }, "vocab"),
            (Mqar { pairs: 0, ..base.clone() }, "pairs"),
            (Mqar { pairs: usize::MAX, ..base.clone() }, "length"),
            (Mqar { power: f64::NAN, ..base.clone() }, "power"),
        ] {
            let error = task.batches(0, 1).unwrap_err().to_string();
            assert!(error.contains(&format!("`{field}`")), "{error}");
        }
        assert!(base.batches(0, 0).is_err());
    }
}
