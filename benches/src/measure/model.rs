//! A whole small language model at work: embedding, blocks, norm and head.

use std::hint::black_box;
use std::rc::Rc;

use burn::tensor::{Int, Tensor};
use seqzoo::compare::step_cost;
use seqzoo::hf::Architecture;
use seqzoo::model::ModelState;
use seqzoo_layers::system::Form;

use super::{Work, decoding, open, pieces, sync};
use crate::point::{Point, Task};
use crate::{Error, Result, models};

pub(super) fn work(point: &Point) -> Result<Work> {
    let Point { batch, time, .. } = *point;
    let described = models::config(&point.subject)?.filter(|_| point.task == Task::Decode);
    let described = described.ok_or_else(|| Error::Measure(format!("{} only decodes", point.subject)))?;
    let device = open(point)?;
    let config = Architecture::new(described, &point.subject)?.config().clone();
    let model = Rc::new(config.init(0, &device)?);
    let of = |time| model.cost(batch, time, Form::Recurrent);
    let cost = step_cost(of(1), of(time.max(1)), time, batch * (config.d_model + config.vocab));
    let row: Vec<u32> = (0..time.max(1)).map(|i| (i % config.vocab) as u32).collect();
    let prompt: Tensor<2, Int> = model.tokens(&vec![row; batch])?;
    let token = prompt.clone().narrow(1, 0, 1).squeeze_dim::<1>(1);
    let reader = model.clone();
    let read = move || {
        pieces(time).try_fold(reader.initial_state(batch), |state, (start, length)| {
            Ok(reader.forward(prompt.clone().narrow(1, start, length), state, Form::Auto)?.state)
        })
    };
    let step = move |state: ModelState| {
        let (logits, next) = model.step(token.clone(), state)?;
        black_box(logits);
        sync(&device)?;
        let bytes = next.bytes() as u64;
        Ok((next, bytes))
    };
    Ok(decoding(cost, read, step))
}
