//! candle's layers on its CPU, beside ours: the same width and heads.

use std::cell::RefCell;
use std::hint::black_box;
use std::rc::Rc;

use candle_core::{D, DType, Device, Result as CandleResult, Tensor};
use candle_nn::rnn::LSTMState;
use candle_nn::{Linear, Module, RNN, VarBuilder, linear_no_bias, lstm, ops, rotary_emb};

use super::{Work, counterpart_cost, open};
use crate::point::{Point, Sizes, Task};
use crate::{Error, Result};

/// Heads, as in the comparison's attention.
const HEADS: usize = 4;
/// Base of the rotary frequencies.
const BASE: f32 = 10_000.0;

fn error(error: candle_core::Error) -> Error {
    Error::Measure(format!("candle: {error}"))
}

pub(super) fn work(point: &Point, sizes: Sizes) -> Result<Work> {
    if !matches!(point.device.as_str(), "flex" | "ndarray") {
        return Err(Error::Measure("candle is measured on the CPU only".into()));
    }
    let cost = counterpart_cost(point, sizes, &open(point)?);
    let (prepare, repeat) = match point.subject.as_str() {
        "candle/lstm" => lstm_work(point, sizes.d_model).map_err(error)?,
        "candle/attention" => attention_work(point, sizes.d_model).map_err(error)?,
        other => return Err(Error::Measure(format!("{other} is unknown"))),
    };
    let repeat = move || repeat().map_err(error);
    Ok(Work { prepare: Box::new(move || prepare().map_err(error)), repeat: Box::new(repeat), cost })
}

/// What comes before, and what is repeated; returns the bytes of the state.
type Parts = (Box<dyn Fn() -> CandleResult<()>>, Box<dyn Fn() -> CandleResult<u64>>);

fn input(batch: usize, time: usize, width: usize) -> CandleResult<Tensor> {
    let values: Vec<f32> = (0..batch * time * width).map(|i| (i as f32 * 0.7391).sin()).collect();
    Tensor::from_vec(values, (batch, time, width), &Device::Cpu)
}

/// Zeros, which are no variables: nothing is recorded for gradients, and the time does not depend on numbers.
fn weights() -> VarBuilder<'static> {
    VarBuilder::zeros(DType::F32, &Device::Cpu)
}

fn lstm_work(point: &Point, width: usize) -> CandleResult<Parts> {
    let Point { batch, time, task, .. } = *point;
    let layer = Rc::new(lstm(width, width, Default::default(), weights())?);
    let (x, token) = (input(batch, time, width)?, input(batch, 1, width)?.squeeze(1)?);
    let bytes = 2 * 4 * (batch * width) as u64;
    let start: Rc<RefCell<Option<LSTMState>>> = Rc::default();
    let (reader, begin, prompt) = (layer.clone(), start.clone(), x.clone());
    let prepare = move || {
        if task == Task::Decode {
            begin.replace(reader.seq(&prompt)?.pop());
        }
        Ok(())
    };
    let repeat = move || {
        if let (Task::Decode, Some(state)) = (task, &*start.borrow()) {
            black_box(layer.step(&token, state)?);
        } else {
            black_box(layer.states_to_tensor(&layer.seq(&x)?)?);
        }
        Ok(bytes)
    };
    Ok((Box::new(prepare), Box::new(repeat)))
}

struct Attention {
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    width: usize,
}

impl Attention {
    /// Reads `x` from position `start` on, with the keys and values before it: output, keys, values.
    fn read(
        &self,
        x: &Tensor,
        start: usize,
        cache: Option<&(Tensor, Tensor)>,
    ) -> CandleResult<(Tensor, (Tensor, Tensor))> {
        let (batch, time, _) = x.dims3()?;
        let n = self.width / HEADS;
        let heads = |y: Tensor| y.reshape((batch, time, HEADS, n))?.transpose(1, 2)?.contiguous();
        let angles: Vec<f32> = (start..start + time)
            .flat_map(|t| (0..n / 2).map(move |i| t as f32 * BASE.powf(-2.0 * i as f32 / n as f32)))
            .collect();
        let angles = Tensor::from_vec(angles, (time, n / 2), &Device::Cpu)?;
        let (cos, sin) = (angles.cos()?, angles.sin()?);
        let q = rotary_emb::rope(&heads(self.q.forward(x)?)?, &cos, &sin)?;
        let mut k = rotary_emb::rope(&heads(self.k.forward(x)?)?, &cos, &sin)?;
        let mut v = heads(self.v.forward(x)?)?;
        if let Some((keys, values)) = cache {
            (k, v) = (Tensor::cat(&[keys, &k], 2)?, Tensor::cat(&[values, &v], 2)?);
        }
        let scale = (n as f64).powf(-0.5);
        let mut scores = (q.matmul(&k.t()?)? * scale)?;
        if time > 1 {
            let mask: Vec<f32> = (0..time)
                .flat_map(|i| (0..time).map(move |j| if j > i { f32::NEG_INFINITY } else { 0.0 }))
                .collect();
            scores = scores.broadcast_add(&Tensor::from_vec(mask, (time, time), &Device::Cpu)?)?;
        }
        let y = ops::softmax_last_dim(&scores)?.matmul(&v)?;
        let y = y.transpose(1, 2)?.reshape((batch, time, self.width))?;
        debug_assert_eq!(y.dim(D::Minus1)?, self.width);
        Ok((self.out.forward(&y)?, (k, v)))
    }
}

fn attention_work(point: &Point, width: usize) -> CandleResult<Parts> {
    let Point { batch, time, task, .. } = *point;
    let builder = weights();
    let map = |name: &str| linear_no_bias(width, width, builder.pp(name));
    let layer = Rc::new(Attention { q: map("q")?, k: map("k")?, v: map("v")?, out: map("out")?, width });
    let (x, token) = (input(batch, time, width)?, input(batch, 1, width)?);
    let bytes = 2 * 4 * (batch * width) as u64;
    let start: Rc<RefCell<Option<(Tensor, Tensor)>>> = Rc::default();
    let (reader, begin, prompt) = (layer.clone(), start.clone(), x.clone());
    let prepare = move || {
        if task == Task::Decode {
            begin.replace(Some(reader.read(&prompt, 0, None)?.1));
        }
        Ok(())
    };
    let repeat = move || {
        if let (Task::Decode, Some(cache)) = (task, &*start.borrow()) {
            black_box(layer.read(&token, time, Some(cache))?);
            Ok(bytes * (time + 1) as u64)
        } else {
            black_box(layer.read(&x, 0, None)?);
            Ok(bytes * time as u64)
        }
    };
    Ok((Box::new(prepare), Box::new(repeat)))
}
