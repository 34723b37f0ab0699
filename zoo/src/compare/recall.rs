//! Recall: training on a mixture of pair counts, accuracy by pair count, and where the layers look.

use std::time::Instant;

use burn::module::Module;

use super::results::{CurvePoint, Entry, PairAccuracy, RecallRun, Results};
use super::{Halt, Lab, Plan, go_on, maps, sizes};
use crate::Result;
use crate::data::{Batch, Batches, Mqar, MqarBatches};
use crate::train::{TrainConfig, Trainer, evaluate};

/// Rows per evaluated batch.
const EVAL_ROWS: usize = 64;

/// Batches in which each pair count has the same number of rows.
struct Mixture(Vec<MqarBatches>);

impl Mixture {
    fn new(plan: &Plan, seed: u64, rows: usize) -> Result<Self> {
        let counts = plan.recall.pairs.len().max(1);
        let streams = plan.recall.pairs.iter().enumerate().map(|(i, &pairs)| {
            let share = (rows / counts + usize::from(i < rows % counts)).max(1);
            // Streams of one seed would hold the same draws.
            task(plan, pairs).batches(seed.wrapping_add(1_000_003 * i as u64), share)
        });
        Ok(Self(streams.collect::<Result<_>>()?))
    }
}

impl Batches for Mixture {
    fn next_batch(&mut self) -> Batch {
        let mut all = Batch { inputs: vec![], labels: vec![], batch: 0, time: 0 };
        for stream in &mut self.0 {
            let part = stream.next_batch();
            all.inputs.extend(part.inputs);
            all.labels.extend(part.labels);
            all.batch += part.batch;
            all.time = part.time;
        }
        all
    }
}

/// The task with `pairs` pairs.
pub(super) fn task(plan: &Plan, pairs: usize) -> Mqar {
    let recall = &plan.recall;
    Mqar { vocab: recall.vocab, length: recall.training.length, pairs, ..Mqar::default() }
}

/// Steps of one measurement.
pub(super) fn units(plan: &Plan) -> usize {
    plan.recall.training.steps
}

/// Trains a model and fills in the entry.
pub(super) fn measure(lab: &mut Lab, results: &Results, entry: &mut Entry) -> Result<String, Halt> {
    let plan = lab.plan;
    let training = &plan.recall.training;
    lab.observer.begin(entry, "recall", units(plan));
    let sizes = &results.recall.model;
    let (config, mut facts) = sizes::model(&entry.name, sizes, plan.recall.vocab, &lab.device)?;
    let model = config.init(lab.seed, &lab.device.clone().autodiff())?;
    let mut batches = Mixture::new(plan, lab.seed, training.batch)?;
    let fresh = |rows| Mixture::new(plan, !lab.seed, rows);
    facts.state_bytes = sizes::state_bytes(&model.valid(), training.length, &lab.device)?;
    entry.recall_model = Some(facts);

    let config = TrainConfig {
        steps: training.steps,
        batch: training.batch,
        time: training.length,
        lr: training.learning_rate,
        warmup: training.steps / 10,
        seed: lab.seed,
        ..TrainConfig::default()
    };
    let every = training.steps.div_ceil(plan.curve_points.max(1)).max(1);
    let mut trainer = Trainer::new(model, config)?;
    let run = entry.recall.insert(RecallRun::default());
    let started = Instant::now();
    while !trainer.finished() {
        let metrics = trainer.step(&batches.next_batch())?;
        run.seconds = metrics.elapsed;
        if metrics.step % every == 0 || trainer.finished() {
            let accuracy = evaluate(trainer.model(), &mut fresh(EVAL_ROWS)?, 1)?.accuracy;
            run.curve.push(CurvePoint { step: metrics.step, value: accuracy });
        }
        let accuracy = run.curve.last().map_or(0.0, |p| p.value);
        let note = format!("loss {:.2}, {:.0} % right", metrics.loss, 100.0 * accuracy);
        go_on(lab.observer.advance(metrics.step, &note))?;
    }
    let model = trainer.into_model();
    for &pairs in &plan.recall.pairs {
        let rows = EVAL_ROWS.min(plan.recall.samples).max(1);
        let mut stream = task(plan, pairs).batches(!lab.seed, rows)?;
        let accuracy = evaluate(&model, &mut stream, plan.recall.samples.div_ceil(rows))?.accuracy;
        run.by_pairs.push(PairAccuracy { pairs, accuracy });
    }
    let all: Vec<String> =
        run.by_pairs.iter().map(|p| format!("{:.0} % at {}", 100.0 * p.accuracy, p.pairs)).collect();
    let summary = format!("recall {} pairs ({:.0} s)", all.join(", "), started.elapsed().as_secs_f64());
    entry.maps = maps::draw(&model, plan, lab.seed, &lab.device)?;
    Ok(summary)
}
