//! One query at a time goes from key to key, as in decoding: nothing is made of blocks. Floor: memory, keys, values and
//! what changes queries are read once per head.

use burn::backend::{DispatchDevice, Flex};
use burn::tensor::{DType, Tensor};
use rayon::prelude::*;

use super::super::few::FEW;
use super::super::tiles::Shifts;
use super::super::weights::FLOOR;
use super::{Inputs, Weighing};
use crate::kernels::lanes::scale;
use crate::kernels::vector::{Vector, add_scaled, dots, fused, largest, sum as total, vectors};
use crate::kernels::view::{Double, Number, View, view};

/// Keys whose scores are made before their values are added up.
const KEYS: usize = 128;

/// Products of all queries and keys together from which on several threads are worth waking.
const LARGE: usize = 1 << 16;

/// [`Inputs::run`] of a few queries without gradients; `None` where there are more.
pub(super) fn run(inputs: &Inputs) -> Option<Tensor<4>> {
    let Inputs { q, k, v, w, beta, sink, forget, offsets, .. } = inputs;
    let sink = sink.as_ref().map(|sink| sink.clone().reshape([-1, 1, 1, 1]));
    let all =
        [Some(q), Some(k), Some(v), Some(w), Some(beta), sink.as_ref(), forget.as_ref(), offsets.as_ref()];
    let here = |x: &&Tensor<4>| matches!(x.device().as_dispatch(), DispatchDevice::Flex(_));
    if q.dims()[2] > FEW || !all.iter().flatten().all(here) {
        return None;
    }
    match q.dtype() {
        DType::F64 => run_in::<Double>(all, inputs.weighing),
        _ => run_in::<f32>(all, inputs.weighing),
    }
}

fn run_in<E: Number + Vector>(all: [Option<&Tensor<4>>; 8], weighing: Weighing) -> Option<Tensor<4>> {
    let dtype = all[0].map(Tensor::dtype)?;
    let mut found = Vec::with_capacity(all.len());
    for x in all {
        found.push(match x {
            Some(x) => Some(x.clone().cast(dtype).try_into_primitive::<Flex>().ok()?),
            None => None,
        });
    }
    let mut views = found.iter().map(|x| x.as_ref().map(view::<E>));
    let mut next = || views.next().flatten();
    let (q, k, v, w, beta) = (next()?, next()?, next()?, next()?, next()?);
    let (sink, forget, offsets) = (next(), next(), next());
    let ([b, h, t, n], [_, _, total, p]) = (q.dims, v.dims);
    let shifts = Shifts::of([b, h, total], offsets, forget);
    let few =
        Few { q, k, v, w, beta, sink, cached: weighing.cached, scale: weighing.scale, cap: weighing.softcap };
    let mut y = vec![E::default(); b * h * t * p];
    let job = |(index, y): (usize, &mut [E])| answer(few, &shifts, index / t, index % t, y);
    if b * h * t * total * (n + p) >= LARGE {
        y.par_chunks_mut(p).enumerate().for_each(job);
    } else {
        y.chunks_mut(p).enumerate().for_each(job);
    }
    Some(Tensor::from_primitive::<Flex>(E::tensor(y, &[b, h, t, p])))
}

#[derive(Clone, Copy)]
struct Few<'a, E> {
    q: View<'a, E>,
    k: View<'a, E>,
    v: View<'a, E>,
    w: View<'a, E>,
    beta: View<'a, E>,
    sink: Option<View<'a, E>>,
    /// Keys before the first query's own
    cached: usize,
    scale: f64,
    cap: Option<f64>,
}

vectors! {
    fn answer = answer_query(few: Few<'_, E>, shifts: &Shifts, head: usize, query: usize, y: &mut [E])
}

#[inline(always)]
fn answer_query<E: Vector, const FUSED: bool>(
    few: Few<'_, E>,
    shifts: &Shifts,
    head: usize,
    query: usize,
    y: &mut [E],
) {
    let ([_, h, _, n], [_, kv, ..]) = (few.q.dims, few.v.dims);
    let from = head / (h / kv);
    let (k, v, w, beta) = (few.k.head(from), few.v.head(from), few.w.head(from), few.beta.head(from));
    let bits = std::f64::consts::LOG2_E;
    let mut q = vec![E::default(); n];
    few.q.head(head).copy(query, 0, &mut q);
    scale(&mut q, E::of(few.scale * bits));
    let sink = few.sink.map(|sink| sink.head(head % h).column(0, 1).sum::<f64>() * bits);
    let mut top = E::of(sink.unwrap_or(FLOOR));
    let mut sum = E::of(if sink.is_some() { 1.0 } else { 0.0 });
    let (mut one, mut other) = (vec![E::default(); n.max(y.len())], vec![E::default(); n]);
    let mut weights = [E::default(); KEYS];
    y.fill(E::default());
    let own = few.cached + query;
    let mut to = own + 1;
    while to > 0 {
        let first = to.saturating_sub(KEYS);
        let weights = &mut weights[..to - first];
        for (i, weight) in weights.iter_mut().enumerate().rev() {
            let key = first + i;
            let (k, w) = (k.some(key, 0, n, &mut one), w.some(key, 0, n, &mut other));
            let [score, read] = dots::<E, FUSED, 2>(&q, [k, w]);
            *weight = score;
            let step = E::of(beta.column(key, 1).sum::<f64>());
            add_scaled::<E, FUSED, 1>(&mut q, [-(step * read)], [w]);
        }
        if let Some(cap) = few.cap {
            let cap = E::of(cap * bits);
            for score in weights.iter_mut() {
                *score = (*score / cap).bounded::<FUSED>() * cap;
            }
        }
        if shifts.any() {
            for (i, score) in weights.iter_mut().enumerate() {
                *score += E::of(shifts.at(head, own, first + i));
            }
        }
        let before = top;
        top = largest(weights, top);
        for weight in weights.iter_mut() {
            *weight = (*weight - top).power::<FUSED>();
        }
        let factor = (before - top).power::<FUSED>();
        sum = fused::<E, FUSED>(sum, factor, total(weights));
        scale(y, factor);
        for (i, &weight) in weights.iter().enumerate() {
            let count = y.len();
            add_scaled::<E, FUSED, 1>(y, [weight], [v.some(first + i, 0, count, &mut one)]);
        }
        to = first;
    }
    let inverse = if sum > E::default() { E::of(1.0) / sum } else { E::default() };
    scale(y, inverse);
}
