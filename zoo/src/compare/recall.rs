//! Recall: training on growing numbers of pairs, accuracy by number, and where the layers look.

use web_time::Instant;

use burn::module::Module;

use super::results::{CurvePoint, Entry, PairAccuracy, RecallRun, Results};
use super::{Halt, Lab, Plan, go_on, maps, sizes};
use crate::Result;
use crate::data::{Batch, Batches, Mqar, MqarBatches};
use crate::model::LanguageModel;
use crate::train::{TrainConfig, Trainer, evaluate};

/// Sequences per number of pairs at a point of the training curve.
const CURVE_ROWS: usize = 16;

/// Easy sequences first: training has as many stages as there are numbers of pairs, and stage `i` goes round
/// the first `i + 1` of them. Every batch has the same number of tokens.
struct Curriculum {
    streams: Vec<MqarBatches>,
    stage_steps: usize,
    step: usize,
}

impl Curriculum {
    fn new(plan: &Plan, seed: u64) -> Result<Self> {
        let training = &plan.recall.training;
        let tokens = training.batch * training.length;
        let streams = plan.recall.pairs.iter().enumerate().map(|(i, &pairs)| {
            let task = task(plan, pairs);
            // Streams of one seed would hold the same draws.
            task.batches(seed.wrapping_add(1_000_003 * i as u64), (tokens / task.length).max(1))
        });
        let streams: Vec<_> = streams.collect::<Result<_>>()?;
        let stage_steps = training.steps.div_ceil(streams.len().max(1)).max(1);
        Ok(Self { streams, stage_steps, step: 0 })
    }
}

impl Batches for Curriculum {
    fn next_batch(&mut self) -> Batch {
        let stage = (self.step / self.stage_steps).min(self.streams.len() - 1);
        let turn = stage - self.step % (stage + 1);
        self.step += 1;
        self.streams[turn].next_batch()
    }
}

/// The task with `pairs` pairs, every slot a question: as many scored tokens as there can be.
pub(super) fn task(plan: &Plan, pairs: usize) -> Mqar {
    Mqar { vocab: plan.recall.vocab, length: 4 * pairs, pairs, ..Mqar::default() }
}

/// Accuracy by number of pairs on `rows` sequences that training has not seen.
fn by_pairs(model: &LanguageModel, plan: &Plan, seed: u64, rows: usize) -> Result<Vec<PairAccuracy>> {
    let accuracy = |&pairs: &usize| {
        let mut stream = task(plan, pairs).batches(!seed, rows.max(1))?;
        Ok(PairAccuracy { pairs, accuracy: evaluate(model, &mut stream, 1)?.accuracy })
    };
    plan.recall.pairs.iter().map(accuracy).collect()
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
    let mut batches = Curriculum::new(plan, lab.seed)?;
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
            let points = by_pairs(trainer.model(), plan, lab.seed, CURVE_ROWS)?;
            let mean = points.iter().map(|p| p.accuracy).sum::<f64>() / points.len().max(1) as f64;
            run.curve.push(CurvePoint { step: metrics.step, value: mean });
        }
        let accuracy = run.curve.last().map_or(0.0, |p| p.value);
        let note = format!("loss {:.2}, {:.0} % right", metrics.loss, 100.0 * accuracy);
        go_on(lab.observer.advance(metrics.step, &note))?;
    }
    let model = trainer.into_model();
    run.by_pairs = by_pairs(&model, plan, lab.seed, plan.recall.samples)?;
    let all: Vec<String> =
        run.by_pairs.iter().map(|p| format!("{:.0} % at {}", 100.0 * p.accuracy, p.pairs)).collect();
    let summary = format!("recall {} pairs ({:.0} s)", all.join(", "), started.elapsed().as_secs_f64());
    entry.maps = maps::draw(&model, plan, lab.seed, &lab.device)?;
    Ok(summary)
}
