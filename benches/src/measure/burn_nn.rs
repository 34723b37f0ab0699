//! Burn's own modules, beside ours: the same width, and as little around them as Burn offers.

use std::cell::RefCell;
use std::hint::black_box;
use std::rc::Rc;

use burn::nn::attention::{MhaInput, MultiHeadAttentionConfig, generate_autoregressive_mask};
use burn::nn::{Lstm, LstmConfig, LstmState};
use burn::tensor::Device;

use super::{Work, counterpart_cost, input, open, sync};
use crate::point::{Point, Sizes, Task};
use crate::{Error, Result};

/// Heads, as in the comparison's attention.
const HEADS: usize = 4;

pub(super) fn work(point: &Point, sizes: Sizes) -> Result<Work> {
    let plain = open(point)?;
    let device = if point.task == Task::Train { plain.clone().autodiff() } else { plain.clone() };
    match point.subject.as_str() {
        "burn/lstm" => lstm(point, sizes, device, plain),
        "burn/attention" => attention(point, sizes, device, plain),
        other => Err(Error::Measure(format!("{other} is unknown; `seqzoo-bench peers --list` prints all"))),
    }
}

fn lstm(point: &Point, sizes: Sizes, device: Device, plain: Device) -> Result<Work> {
    let Point { batch, time, task, .. } = *point;
    let layer: Lstm = LstmConfig::new(sizes.d_model, sizes.d_model, true).init(&device);
    let cost = counterpart_cost(point, sizes, &plain);
    let state_bytes = 2 * 4 * (batch * sizes.d_model) as u64;
    let x = input(batch, time, sizes.d_model, &device);
    if task != Task::Decode {
        return Ok(Work::new(cost, move || {
            let (y, state) = layer.forward(x.clone(), None);
            black_box(state);
            if task == Task::Train {
                black_box((y.clone() * y).mean().backward());
            } else {
                black_box(y);
            }
            sync(&plain)?;
            Ok(state_bytes)
        }));
    }
    let token = input(batch, 1, sizes.d_model, &device);
    let layer = Rc::new(layer);
    let start: Rc<RefCell<Option<LstmState<2>>>> = Rc::default();
    let (reader, begin) = (layer.clone(), start.clone());
    let prepare = move || {
        begin.replace(Some(reader.forward(x.clone(), None).1));
        Ok(())
    };
    let repeat = move || {
        black_box(layer.forward(token.clone(), start.borrow().clone()));
        sync(&plain)?;
        Ok(state_bytes)
    };
    Ok(Work { prepare: Box::new(prepare), repeat: Box::new(repeat), cost })
}

fn attention(point: &Point, sizes: Sizes, device: Device, plain: Device) -> Result<Work> {
    let Point { batch, time, task, .. } = *point;
    let config = MultiHeadAttentionConfig::new(sizes.d_model, HEADS).with_dropout(0.0);
    let layer = config.init(&device);
    let mask = generate_autoregressive_mask(batch, time, &plain);
    let x = input(batch, time, sizes.d_model, &device);
    let cost = counterpart_cost(point, sizes, &plain);
    Ok(Work::new(cost, move || {
        let y = layer.forward(MhaInput::self_attn(x.clone()).mask_attn(mask.clone())).context;
        if task == Task::Train {
            black_box((y.clone() * y).mean().backward());
        } else {
            black_box(y);
        }
        sync(&plain)?;
        Ok(0)
    }))
}
