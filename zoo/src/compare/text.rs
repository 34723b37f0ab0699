//! Text: training byte by byte, bits per byte of held-out text, then the model's speed and memory.

use burn::module::Module;

use super::results::{CurvePoint, Entry, Results, TextRun};
use super::{Halt, Lab, Plan, go_on, sizes, speed};
use crate::Result;
use crate::data::{Batches, TextData};
use crate::train::{TrainConfig, Trainer, evaluate};

/// Bytes.
pub(super) const VOCAB: usize = 256;

/// Points on the loss curve.
const CURVE_POINTS: usize = 60;

/// Whether the text is long enough for the plan.
pub(super) fn check(text: &TextData, plan: &Plan) -> Result<()> {
    let training = &plan.text.training;
    text.train.batches(0, training.batch, training.length)?;
    validation(text, plan, 0).map(|_| ())
}

/// Held-out batches; of a short text in shorter windows.
fn validation(text: &TextData, plan: &Plan, seed: u64) -> Result<impl Batches> {
    let training = &plan.text.training;
    let time = training.length.min(text.validation.len().saturating_sub(1)).max(1);
    text.validation.batches(!seed, training.batch, time)
}

/// Steps of one measurement.
pub(super) fn units(plan: &Plan) -> usize {
    plan.text.training.steps + speed::units(plan)
}

/// Trains a model, times it and fills in the entry.
pub(super) fn measure(lab: &mut Lab, results: &Results, entry: &mut Entry) -> Result<String, Halt> {
    let plan = lab.plan;
    let training = &plan.text.training;
    lab.observer.begin(entry, "text", units(plan));
    let (config, mut facts) = sizes::model(&entry.name, &results.text.model, VOCAB, &lab.device)?;
    let model = config.init(lab.seed, &lab.device.clone().autodiff())?;
    facts.state_bytes = sizes::state_bytes(&model.valid(), training.length, &lab.device)?;
    entry.text_model = Some(facts);

    let mut batches = lab.text.train.batches(lab.seed, training.batch, training.length)?;
    let config = TrainConfig {
        steps: training.steps,
        batch: training.batch,
        time: training.length,
        lr: training.learning_rate,
        warmup: training.steps / 10,
        seed: lab.seed,
        ..TrainConfig::default()
    };
    let every = training.steps.div_ceil(CURVE_POINTS).max(1);
    let mut trainer = Trainer::new(model, config)?;
    let run = entry.text.insert(TextRun::default());
    let bits = |nats: f64| nats / std::f64::consts::LN_2;
    let mut since = Vec::new();
    while !trainer.finished() {
        let metrics = trainer.step(&batches.next_batch())?;
        run.seconds = metrics.elapsed;
        since.push(bits(metrics.loss));
        if since.len() == every || trainer.finished() {
            let value = since.iter().sum::<f64>() / since.len() as f64;
            run.curve.push(CurvePoint { step: metrics.step, value });
            since.clear();
        }
        let note = format!("{:.2} bits/byte", bits(metrics.loss));
        go_on(lab.observer.advance(metrics.step, &note))?;
    }
    let seconds = run.seconds;
    let model = trainer.into_model();
    let held_out = evaluate(&model, &mut validation(&lab.text, plan, lab.seed)?, plan.text_batches)?;
    run.bits_per_byte = Some(bits(held_out.loss));
    let summary = format!("text {:.3} bits/byte ({seconds:.0} s)", bits(held_out.loss));
    let timing = speed::measure(lab, &model, &mut entry.speed)?;
    Ok(format!("{summary}, {timing}"))
}
