//! A few queries, as in decoding: keys and values are read where they lie, once per query, and nothing is copied or
//! padded. Floor: memory, the cache is read once per head.

use rayon::prelude::*;

use super::tiles::{Inputs, Shifts};
use super::weights::FLOOR;
use crate::kernels::lanes::scale;
use crate::kernels::vector::{Vector, add_scaled, dots, fused, largest, sum as total, vectors};
use crate::kernels::view::Head;

/// Up to how many queries per head this is faster than tiles.
pub(super) const FEW: usize = 4;

/// Keys whose scores are made before their values are added up.
const KEYS: usize = 128;

/// Products of all queries and keys together from which on several threads are worth waking.
const LARGE: usize = 1 << 18;

/// Keys taken together, so that their sums do not wait for one another.
const BLOCK: usize = 4;

/// As `forward::forward`.
pub(super) fn forward<E: Vector>(inputs: &Inputs<'_, E>, y: &mut [E], log_sum: &mut [E]) {
    let ([_, _, t, n], [_, _, total, p]) = (inputs.q.dims, inputs.v.dims);
    let shifts = Shifts::new(inputs);
    let work = log_sum.len() * total * (n + p);
    let run = |(index, (y, log_sum)): (usize, (&mut [E], &mut E))| {
        let (head, query) = (index / t, index % t);
        answer(inputs, head, query, &shifts, y, log_sum);
    };
    if work >= LARGE {
        y.par_chunks_mut(p).zip(log_sum.par_iter_mut()).enumerate().for_each(run);
    } else {
        y.chunks_mut(p).zip(log_sum.iter_mut()).enumerate().for_each(run);
    }
}

vectors! {
    fn answer = answer_query(
        inputs: &Inputs<'_, E>,
        head: usize,
        query: usize,
        shifts: &Shifts,
        y: &mut [E],
        log_sum: &mut E,
    )
}

#[inline(always)]
fn answer_query<E: Vector, const FUSED: bool>(
    inputs: &Inputs<'_, E>,
    head: usize,
    query: usize,
    shifts: &Shifts,
    y: &mut [E],
    log_sum: &mut E,
) {
    let [.., n] = inputs.q.dims;
    let kv = head / inputs.group();
    let (k, v) = (inputs.k.head(kv), inputs.v.head(kv));
    let to_bits = inputs.weighing.scale * std::f64::consts::LOG2_E;
    let mut q = vec![E::default(); n];
    inputs.q.head(head).copy(query, 0, &mut q);
    scale(&mut q, E::of(to_bits));
    let cap = inputs.weighing.softcap.map(|cap| cap * std::f64::consts::LOG2_E);
    let sink = inputs.sink(head).map(|sink| sink * std::f64::consts::LOG2_E);
    let mut top = E::of(sink.unwrap_or(FLOOR));
    let mut sum = E::of(if sink.is_some() { 1.0 } else { 0.0 });
    let mut space = vec![E::default(); BLOCK * n.max(y.len())];
    let mut weights = [E::default(); KEYS];
    y.fill(E::default());
    let (keys, own) = (inputs.seen(query), inputs.weighing.cached + query);
    for first in keys.clone().step_by(KEYS) {
        let weights = &mut weights[..KEYS.min(keys.end - first)];
        let last = first + weights.len() - 1;
        for (j, weights) in weights.chunks_mut(BLOCK).enumerate() {
            let found = dots::<E, FUSED, BLOCK>(&q, rows(k, first + j * BLOCK, last, n, &mut space));
            for (i, weight) in weights.iter_mut().enumerate() {
                *weight = found[i];
            }
        }
        if let Some(cap) = cap {
            for score in weights.iter_mut() {
                *score = (*score / E::of(cap)).bounded::<FUSED>() * E::of(cap);
            }
        }
        if shifts.any() {
            for (j, score) in weights.iter_mut().enumerate() {
                *score += E::of(shifts.at(head, own, first + j));
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
        for (j, weights) in weights.chunks(BLOCK).enumerate() {
            let mut four = [E::default(); BLOCK];
            for (i, &weight) in weights.iter().enumerate() {
                four[i] = weight;
            }
            add_scaled::<E, FUSED, BLOCK>(y, four, rows(v, first + j * BLOCK, last, y.len(), &mut space));
        }
    }
    *log_sum = E::of(top.to_f64() + sum.to_f64().max(f64::MIN_POSITIVE).log2());
    let inverse = if sum > E::default() { E::of(1.0) / sum } else { E::default() };
    scale(y, inverse);
}

/// Rows from `first` on, `width` numbers of each; the `last` one stands for those after it.
#[inline(always)]
fn rows<'a, E: Vector>(
    head: Head<'a, E>,
    first: usize,
    last: usize,
    width: usize,
    space: &'a mut [E],
) -> [&'a [E]; BLOCK] {
    let mut rows: [&[E]; BLOCK] = [&[]; BLOCK];
    let mut spaces = space;
    for (i, row) in rows.iter_mut().enumerate() {
        let (space, rest) = spaces.split_at_mut(width);
        *row = &head.some((first + i).min(last), 0, width, space)[..width];
        spaces = rest;
    }
    rows
}
