//! The main job: every architecture at equal parameters and, where it has one, equal state, trained on text and
//! on recall, timed at growing lengths, and drawn by [`crate::report`].
//!
//! [`run`] takes the measurements in an order that makes a partial report useful: recall and maps of all
//! architectures first, then text and speed. After each one an [`Observer`] gets all results so far.

mod cost;
mod machine;
mod maps;
mod plan;
mod recall;
mod results;
mod sizes;
mod speed;
mod text;

use std::ops::ControlFlow;
use web_time::Instant;

use burn::tensor::Device;

use crate::data::{TextData, Tokenizer};
use crate::registry::{architecture, nearest};
use crate::{Error, Result};

pub use cost::{decode_cost, step_cost, train_cost};
pub use machine::{Machine, now};
pub use plan::{Options, Plan, REPRESENTATIVES};
pub use results::*;
pub use sizes::mixer;

/// Watches a comparison and may stop it.
pub trait Observer {
    /// A measurement of `units` steps begins.
    fn begin(&mut self, entry: &Entry, what: &'static str, units: usize);

    /// Steps done so far in this measurement, and how it goes; `Break` stops the comparison.
    fn advance(&mut self, done: usize, note: &str) -> ControlFlow<()>;

    /// A measurement ended, with a line that sums it up; the results hold what is known now.
    ///
    /// # Errors
    /// When the results cannot be kept: ends the comparison.
    fn keep(&mut self, results: &Results, summary: &str) -> Result<()>;
}

/// Fills in its part of an entry and sums it up in a line.
type Measure = fn(&mut Lab, &Results, &mut Entry) -> Result<String, Halt>;

/// Why a measurement did not end.
enum Halt {
    Stopped,
    Failed(Error),
}

impl<E: Into<Error>> From<E> for Halt {
    fn from(error: E) -> Self {
        Halt::Failed(error.into())
    }
}

/// Passes on the observer's wish to stop.
fn go_on(flow: ControlFlow<()>) -> Result<(), Halt> {
    if flow.is_break() { Err(Halt::Stopped) } else { Ok(()) }
}

/// What all measurements share.
struct Lab<'a> {
    plan: &'a Plan,
    seed: u64,
    device: Device,
    text: TextData,
    observer: &'a mut dyn Observer,
}

/// Takes all measurements.
///
/// A measurement that fails is noted in its entry and the comparison goes on.
///
/// # Errors
/// When the options are impossible (an unknown name, unreadable text, no such device) or results cannot be kept.
pub fn run(options: &Options, plan: &Plan, observer: &mut dyn Observer) -> Result<Results> {
    let started = Instant::now();
    let device = seqzoo_layers::device::open(&options.device)?;
    let text = match &options.text {
        Some(path) => TextData::load(path, &Tokenizer::Bytes)?,
        None => TextData::own_sources(&Tokenizer::Bytes)?,
    };
    // Fails now rather than after minutes of training.
    text::check(&text, plan)?;
    let mut results = blank(options, plan, &text)?;
    let recall_params = sizes::reference(&plan.recall.model, plan.recall.vocab, &device)?;
    let text_params = sizes::reference(&plan.text.model, text::VOCAB, &device)?;
    results.recall.model.params = recall_params;
    results.text.model.params = text_params;
    let mut lab = Lab { plan, seed: options.seed, device, text, observer };

    for measure in [recall::measure as Measure, text::measure] {
        for i in 0..results.entries.len() {
            let mut entry = results.entries[i].clone();
            let ended = measure(&mut lab, &results, &mut entry);
            let summary = match &ended {
                Ok(summary) => summary.clone(),
                Err(Halt::Stopped) => "stopped".into(),
                Err(Halt::Failed(error)) => {
                    entry.failures.push(error.to_string());
                    format!("failed: {error}")
                }
            };
            let summary = format!("{}: {summary}", entry.name);
            results.entries[i] = entry;
            results.seconds = started.elapsed().as_secs_f64();
            if matches!(ended, Err(Halt::Stopped)) {
                results.status = Status::Interrupted;
                lab.observer.keep(&results, &summary)?;
                return Ok(results);
            }
            lab.observer.keep(&results, &summary)?;
        }
    }
    results.status = Status::Finished;
    results.seconds = started.elapsed().as_secs_f64();
    lab.observer.keep(&results, "finished")?;
    Ok(results)
}

/// Units of work of a whole comparison, in the sense of [`Observer::begin`].
pub fn units(options: &Options, plan: &Plan) -> usize {
    options.architectures.len() * (recall::units(plan) + text::units(plan))
}

/// Results before any measurement.
fn blank(options: &Options, plan: &Plan, text: &TextData) -> Result<Results> {
    let mut entries: Vec<Entry> = Vec::new();
    for name in &options.architectures {
        let known = architecture(name)
            .ok_or_else(|| Error::UnknownMixer { name: name.clone(), nearest: nearest(name) })?;
        if entries.iter().any(|e| e.name == known.name) {
            return Err(Error::Data(format!("`{name}` is named twice: name each architecture once")));
        }
        entries.push(Entry {
            name: known.name.into(),
            title: known.title.into(),
            state: known.state.into(),
            ..Entry::default()
        });
    }
    if entries.is_empty() {
        return Err(Error::Data("no architecture to compare: name at least one".into()));
    }
    let source = match &options.text {
        Some(path) => path.display().to_string(),
        None => "the source code of seqzoo".into(),
    };
    Ok(Results {
        schema: SCHEMA,
        version: env!("CARGO_PKG_VERSION").into(),
        command: options.command.clone(),
        seed: options.seed,
        started: now(),
        machine: Machine::here(&options.device),
        text: TextTask {
            source,
            bytes: text.train.len() + text.validation.len(),
            held_out: text.validation.len(),
            ..plan.text.clone()
        },
        recall: RecallTask { chance: 2.0 / plan.recall.vocab as f64, ..plan.recall.clone() },
        lengths: plan.lengths.clone(),
        entries,
        ..Results::default()
    })
}

#[cfg(test)]
mod tests;
