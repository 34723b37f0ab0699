//! Speed and memory of a trained model for one sequence: reading, writing and state at growing lengths.

use web_time::Instant;

use burn::tensor::{Device, Int, Tensor, TensorData};
use seqzoo_layers::system::Form;

use super::results::Speed;
use super::{Halt, Lab, Plan, go_on};
use crate::data::Batches;
use crate::model::{LanguageModel, ModelState};
use crate::{Error, Result};

/// Longest piece read at once: no architecture needs memory for the whole text times itself.
const PIECE: usize = 512;
/// Tokens read and written before the clock starts.
const WARM_UP: usize = 64;

/// Steps of one measurement: each doubling of the length takes twice as long.
pub(super) fn units(plan: &Plan) -> usize {
    plan.lengths.last().map_or(0, |l| l / PIECE) + plan.lengths.len()
}

/// Measures at every length of the plan in one pass: read up to it, note the time, write a little from a copy of
/// the state, read on.
pub(super) fn measure(lab: &mut Lab, model: &LanguageModel, out: &mut Vec<Speed>) -> Result<String, Halt> {
    let plan = lab.plan;
    let longest = plan.lengths.iter().copied().max().unwrap_or(0);
    let tokens = tokens(lab, longest + plan.decode_steps)?;
    let device = lab.device.clone();
    let (_, state) = read(model, &tokens[..WARM_UP.min(longest)], model.initial_state(1), &device)?;
    write(model, &tokens[..4.min(longest)], state, &device)?;

    let base = plan.text.training.steps;
    let (mut state, mut position, mut reading) = (model.initial_state(1), 0, 0.0);
    for (i, &length) in plan.lengths.iter().enumerate() {
        while position < length {
            let end = length.min(position + PIECE);
            let (seconds, next) = read(model, &tokens[position..end], state, &device)?;
            (state, position) = (next, end);
            reading += seconds;
            let note = format!("reading {position} tokens");
            go_on(lab.observer.advance(base + position / PIECE + i, &note))?;
        }
        let next = &tokens[length..length + plan.decode_steps];
        let mut times = write(model, next, state.clone(), &device)?;
        times.sort_by(f64::total_cmp);
        out.push(Speed {
            length,
            prefill: length as f64 / reading,
            decode_ms: 1e3 * times.get(times.len() / 2).copied().unwrap_or(0.0),
            state_bytes: state.bytes(),
        });
    }
    Ok(out.last().map_or(String::new(), |s| {
        format!("{:.0} tokens/s and {:.2} ms/token at {}", s.prefill, s.decode_ms, s.length)
    }))
}

/// Stretches of the text, as many as needed.
fn tokens(lab: &Lab, count: usize) -> Result<Vec<i64>> {
    let mut batches = lab.text.train.batches(lab.seed, 1, lab.plan.text.training.length)?;
    let mut tokens = Vec::with_capacity(count);
    while tokens.len() < count {
        tokens.extend(batches.next_batch().inputs);
    }
    tokens.truncate(count);
    Ok(tokens)
}

/// Reads tokens at once; seconds until the last logits are on the host.
fn read(
    model: &LanguageModel,
    tokens: &[i64],
    state: ModelState,
    device: &Device,
) -> Result<(f64, ModelState)> {
    let data = TensorData::new(tokens.to_vec(), [1, tokens.len()]);
    let input = Tensor::<2, Int>::from_data(data, device);
    let started = Instant::now();
    let output = model.forward(input, state, Form::Auto)?;
    let [_, time, vocab] = output.logits.dims();
    finish(output.logits.slice([0..1, time - 1..time, 0..vocab]))?;
    Ok((started.elapsed().as_secs_f64(), output.state))
}

/// Writes tokens one at a time; seconds for each.
fn write(model: &LanguageModel, tokens: &[i64], mut state: ModelState, device: &Device) -> Result<Vec<f64>> {
    let mut times = Vec::with_capacity(tokens.len());
    for &token in tokens {
        let input = Tensor::<1, Int>::from_data(TensorData::new(vec![token], [1]), device);
        let started = Instant::now();
        let (logits, next) = model.step(input, state)?;
        finish(logits)?;
        times.push(started.elapsed().as_secs_f64());
        state = next;
    }
    Ok(times)
}

/// Waits for a tensor's numbers: devices may compute them later than asked.
fn finish<const D: usize>(tensor: Tensor<D>) -> Result<()> {
    tensor.try_into_vec_as::<f32>().map(|_| ()).map_err(|e| Error::Data(e.to_string()))
}
