//! Takes one measurement in this process. Normally that is a process of its own: see [`crate::child`].

mod burn_nn;
#[cfg(feature = "candle")]
mod candle;
mod kernel;
mod layer;
mod machine;
mod model;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Instant;

use burn::tensor::{Device, Tensor, TensorData};
use seqzoo::compare::{ModelSizes, decode_cost, mixer, train_cost};
use seqzoo::registry::AnyMixer;
use seqzoo_layers::system::{Cost, Mixer};
use seqzoo_layers::{Init, device};

use crate::kernels::KERNEL;
use crate::models::MODEL;
use crate::peers;
use crate::plan::Effort;
use crate::point::{MACHINE, Point, Sizes, Task};
use crate::record::{Counted, Measurement};
use crate::{Error, Result, heap, launches};

/// Longest piece of a prompt: no architecture needs memory for all of it times itself before decoding.
const PIECE: usize = 512;

/// What is repeated; returns the bytes of its state.
struct Work {
    /// Before the first repetition, once: reads the prompt.
    prepare: Box<dyn FnMut() -> Result<()>>,
    repeat: Box<dyn FnMut() -> Result<u64>>,
    cost: Cost,
}

impl Work {
    /// Work that needs nothing before it.
    fn new(cost: Cost, repeat: impl FnMut() -> Result<u64> + 'static) -> Self {
        Self { prepare: Box::new(|| Ok(())), repeat: Box::new(repeat), cost }
    }
}

/// Tokens decoded before the state goes back to the point's position.
const DECODED: usize = 16;

/// One token after another from where `read` leaves its state; `step` gives the next state and its bytes.
fn decoding<S: Clone + 'static>(
    cost: Cost,
    mut read: impl FnMut() -> Result<S> + 'static,
    mut step: impl FnMut(S) -> Result<(S, u64)> + 'static,
) -> Work {
    let start: Rc<RefCell<Option<S>>> = Rc::default();
    let begin = start.clone();
    let prepare = move || {
        begin.replace(Some(read()?));
        Ok(())
    };
    let mut current: Option<S> = None;
    let mut decoded = 0;
    let repeat = move || {
        let going = current.take().filter(|_| !usize::is_multiple_of(decoded, DECODED));
        let state = going.or_else(|| start.borrow().clone());
        let state = state.ok_or_else(|| Error::Measure("the prompt was not read".into()))?;
        let (next, bytes) = step(state)?;
        decoded += 1;
        current = Some(next);
        Ok(bytes)
    };
    Work { prepare: Box::new(prepare), repeat: Box::new(repeat), cost }
}

/// Lengths of the pieces that a prompt of `time` tokens is read in, each with its beginning.
fn pieces(time: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..time).step_by(PIECE).map(move |start| (start, PIECE.min(time - start)))
}

/// Measures a point: once cold, once to warm up, then as often as the effort says, each time after its `turn` has come.
///
/// # Errors
/// When the subject is unknown, does not offer the task, or fails.
pub fn measure(
    point: &Point,
    sizes: Sizes,
    effort: Effort,
    turn: &mut dyn FnMut() -> Result<()>,
) -> Result<Measurement> {
    let work = match peers::library(&point.subject) {
        None if point.subject == MACHINE => machine::work(point),
        None if point.subject.starts_with(MODEL) => model::work(point),
        None if point.subject.starts_with(KERNEL) => kernel::work(point),
        None => layer::work(point, sizes),
        Some("tensors" | "steps") => kernel::work(point),
        Some("burn") => burn_nn::work(point, sizes),
        #[cfg(feature = "candle")]
        Some("candle") => candle::work(point, sizes),
        Some(other) => Err(Error::Measure(format!("{other} is not part of this build"))),
    };
    let Work { mut prepare, mut repeat, cost } = work?;
    let started = Instant::now();
    prepare()?;
    repeat()?;
    let first_seconds = started.elapsed().as_secs_f64();

    // The least of all repetitions: threads make their buffers whenever they first come to work.
    let mut allocated_bytes = u64::MAX;
    let mut repeat = || {
        let before = heap::allocated();
        let state_bytes = repeat()?;
        allocated_bytes = allocated_bytes.min(heap::allocated() - before);
        Ok::<u64, Error>(state_bytes)
    };
    let (state_bytes, launches) = launches::count(&mut repeat)?;
    let (mut seconds, mut spent) = (Vec::with_capacity(effort.most), 0.0);
    while seconds.len() < effort.most && (seconds.len() < effort.least || spent < effort.seconds) {
        turn()?;
        let start = Instant::now();
        repeat()?;
        let planned = start.elapsed().mul_f64(effort.stretch.max(1.0));
        while start.elapsed() < planned {
            std::hint::spin_loop();
        }
        let took = start.elapsed().as_secs_f64();
        seconds.push(took);
        spent += took;
    }
    let counted = Counted {
        flops: cost.flops,
        bytes: cost.bytes,
        params: cost.params as u64,
        state_bytes,
        allocated_bytes,
        launches,
    };
    Ok(Measurement { first_seconds, seconds, peak_bytes: heap::peak(), counted })
}

/// The layer of an architecture at these sizes.
///
/// # Errors
/// When the name is unknown or the sizes are impossible for it.
pub fn build(name: &str, sizes: Sizes, init: &mut Init) -> Result<AnyMixer> {
    let given = ModelSizes { d_model: sizes.d_model, state: sizes.state, depth: 1, ..ModelSizes::default() };
    Ok(mixer(name, &given)?.at_layer(0, 1).init(sizes.d_model, init)?)
}

/// What one repetition costs on paper.
pub fn paper_cost(layer: &dyn Mixer, point: &Point) -> Cost {
    let Point { batch, time, form, .. } = *point;
    match point.task {
        Task::Train => train_cost(layer, batch, time, form),
        Task::Decode => decode_cost(layer, batch, time),
        _ => layer.cost(batch, time, form),
    }
}

/// The cost of the architecture that a peer stands beside, where it is in the registry.
fn counterpart_cost(point: &Point, sizes: Sizes, device: &Device) -> Cost {
    let name = peers::peer(&point.subject).map_or("", |peer| peer.counterpart);
    let blank = build(name, sizes, &mut Init::blank(device));
    blank.map_or(Cost::default(), |layer| paper_cost(layer.as_mixer(), point))
}

/// Opens a point's device.
fn open(point: &Point) -> Result<Device> {
    Ok(device::open(&point.device)?)
}

/// `[batch, time, width]`, the same numbers every time.
fn input(batch: usize, time: usize, width: usize, device: &Device) -> Tensor<3> {
    let values: Vec<f32> = (0..batch * time * width).map(|i| (i as f32 * 0.7391).sin()).collect();
    Tensor::from_data(TensorData::new(values, [batch, time, width]), device)
}

/// Waits for the device, so that a measurement covers its work.
fn sync(device: &Device) -> Result<()> {
    device.sync().map_err(|e| Error::Measure(format!("the device was lost: {e:?}")))
}

#[cfg(test)]
mod tests {
    use seqzoo_layers::system::Form;

    use super::*;

    #[test]
    fn every_task_gives_numbers() {
        let effort = Effort { seconds: 0.0, least: 2, most: 3, stretch: 1.0 };
        let sizes = Sizes { d_model: 16, state: 64 };
        for (subject, task) in [
            ("linear_attention", Task::Prefill),
            ("attention", Task::Train),
            ("attention", Task::Decode),
            ("model/llama", Task::Decode),
            ("model/mamba2", Task::Decode),
            ("kernel/scan", Task::Prefill),
            ("kernel/delta", Task::Train),
            ("burn/lstm", Task::Prefill),
            ("burn/lstm", Task::Decode),
            ("burn/attention", Task::Train),
            (MACHINE, Task::Matmul),
            (MACHINE, Task::Copy),
        ] {
            let form = Form::Auto;
            let point =
                Point { subject: subject.into(), task, form, device: "flex".into(), batch: 2, time: 8 };
            let m = measure(&point, sizes, effort, &mut || Ok(())).unwrap();
            assert!(m.seconds.len() >= 2 && m.seconds.iter().all(|&s| s > 0.0), "{point}");
            assert!(m.first_seconds > 0.0 && m.peak_bytes > 0, "{point}");
            assert!(m.counted.flops > 0.0 && m.counted.bytes > 0.0, "{point}");
            assert!(m.counted.allocated_bytes > 0, "{point}");
        }
    }

    #[test]
    fn decoding_costs_more_with_a_cache_that_has_grown() {
        let sizes = Sizes { d_model: 16, state: 64 };
        let cost = |name: &str, time| {
            let layer = build(name, sizes, &mut Init::blank(&Device::flex())).unwrap();
            let (subject, form) = (name.to_string(), Form::Auto);
            let point = Point { subject, task: Task::Decode, form, device: "flex".into(), batch: 1, time };
            paper_cost(layer.as_mixer(), &point)
        };
        assert!(cost("attention", 1000).bytes > 10.0 * cost("attention", 10).bytes);
        assert_eq!(cost("linear_attention", 1000), cost("linear_attention", 10));
    }

    #[test]
    fn a_decoded_token_costs_the_same_wherever_it_comes_from() {
        let mut seen = Vec::new();
        let read = || Ok(100u64);
        let mut work = decoding(Cost::default(), read, |state: u64| Ok((state + 1, state)));
        assert!((work.repeat)().is_err(), "no prompt");
        (work.prepare)().unwrap();
        for _ in 0..DECODED + 3 {
            seen.push((work.repeat)().unwrap());
        }
        let expected: Vec<u64> = (0..DECODED as u64).chain(0..3).map(|i| 100 + i).collect();
        assert_eq!(seen, expected);
        assert_eq!(pieces(PIECE + 3).collect::<Vec<_>>(), [(0, PIECE), (PIECE, 3)]);
        assert_eq!(pieces(0).count(), 0);
    }

    #[test]
    fn what_is_not_offered_is_said() {
        let point = Point {
            subject: "abacus/lstm".into(),
            task: Task::Prefill,
            form: Form::Auto,
            device: "flex".into(),
            batch: 1,
            time: 1,
        };
        let effort = Effort { seconds: 0.0, least: 1, most: 1, stretch: 1.0 };
        let error = measure(&point, Sizes::default(), effort, &mut || Ok(())).unwrap_err().to_string();
        assert!(error.contains("abacus"), "{error}");
        let typo = Point { subject: "gated_deltnet".into(), ..point };
        let error = measure(&typo, Sizes::default(), effort, &mut || Ok(())).unwrap_err().to_string();
        assert!(error.contains("did you mean `gated_deltanet`?"), "{error}");
    }
}
