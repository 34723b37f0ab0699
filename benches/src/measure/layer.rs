//! One layer of the registry at work.

use std::cell::RefCell;
use std::hint::black_box;
use std::rc::Rc;

use seqzoo_layers::Init;
use seqzoo_layers::system::{Form, Mixer, State};

use super::{PIECE, Work, build, input, open, paper_cost, sync};
use crate::point::{Point, Sizes, Task};
use crate::{Error, Result};

/// Tokens decoded before the state goes back to the point's position.
const DECODED: usize = 16;

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
            let start: Rc<RefCell<State>> = Rc::new(RefCell::new(layer.initial_state(batch)));
            let (reader, begin) = (layer.clone(), start.clone());
            let prepare = move || {
                let (mut state, mut position) = (reader.initial_state(batch), 0);
                while position < time {
                    let piece = PIECE.min(time - position);
                    let x = prompt.clone().narrow(1, position, piece);
                    state = reader.forward(x, state, Form::Auto)?.1;
                    position += piece;
                }
                begin.replace(state);
                Ok(())
            };
            let mut current: Option<State> = None;
            let mut decoded = 0;
            let repeat = move || {
                let state = current.take().filter(|_| !usize::is_multiple_of(decoded, DECODED));
                let state = state.unwrap_or_else(|| start.borrow().clone());
                let (y, next) = layer.step(token.clone(), state)?;
                black_box(y);
                sync(&device)?;
                decoded += 1;
                let bytes = next.bytes() as u64;
                current = Some(next);
                Ok(bytes)
            };
            Ok(Work { prepare: Box::new(prepare), repeat: Box::new(repeat), cost })
        }
        task => Err(Error::Measure(format!("{task} is measured on the machine, not on an architecture"))),
    }
}
