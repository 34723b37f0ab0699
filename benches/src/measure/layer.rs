//! One layer of the registry at work.

use std::hint::black_box;
use std::rc::Rc;

use seqzoo_layers::Init;
use seqzoo_layers::system::{Form, Mixer, State};

use super::{Work, build, decoding, input, open, paper_cost, pieces, sync};
use crate::point::{Point, Sizes, Task};
use crate::{Error, Result};

pub(super) fn work(point: &Point, sizes: Sizes) -> Result<Work> {
    let Point { batch, time, form, .. } = *point;
    let plain = open(point)?;
    let device = if point.task == Task::Train { plain.clone().autodiff() } else { plain.clone() };
    let layer = build(&point.subject, sizes, &mut Init::new(0, &device))?;
    let cost = paper_cost(layer.as_mixer(), point);
    match point.task {
        Task::Prefill => {
            let x = input(batch, time, sizes.d_model, &device);
            Ok(Work::new(cost, move || {
                let (y, state) = layer.forward(x.clone(), layer.initial_state(batch), form)?;
                black_box(y);
                sync(&device)?;
                Ok(state.bytes() as u64)
            }))
        }
        Task::Train => {
            let x = input(batch, time, sizes.d_model, &device);
            Ok(Work::new(cost, move || {
                let (y, state) = layer.forward(x.clone(), layer.initial_state(batch), form)?;
                black_box((y.clone() * y).mean().backward());
                sync(&plain)?;
                Ok(state.bytes() as u64)
            }))
        }
        Task::Decode => {
            let prompt = input(batch, time, sizes.d_model, &device);
            let token = input(batch, 1, sizes.d_model, &device).squeeze_dim::<2>(1);
            let layer = Rc::new(layer);
            let reader = layer.clone();
            let read = move || {
                pieces(time).try_fold(reader.initial_state(batch), |state, (start, length)| {
                    let x = prompt.clone().narrow(1, start, length);
                    Ok(reader.forward(x, state, Form::Auto)?.1)
                })
            };
            let step = move |state: State| {
                let (y, next) = layer.step(token.clone(), state)?;
                black_box(y);
                sync(&device)?;
                let bytes = next.bytes() as u64;
                Ok((next, bytes))
            };
            Ok(decoding(cost, read, step))
        }
        task => Err(Error::Measure(format!("{task} is measured on the machine, not on an architecture"))),
    }
}
