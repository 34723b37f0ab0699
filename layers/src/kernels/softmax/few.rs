//! A few queries, as in decoding: keys and values are read where they lie, once per query, and nothing is copied or
//! padded. Floor: memory, the cache is read once per head.

use rayon::prelude::*;

use super::tiles::Inputs;
use super::weights::FLOOR;
use crate::kernels::vector::{Vector, fused, vectors};

/// Up to how many queries per head this is faster than tiles.
pub(super) const FEW: usize = 4;

/// Keys whose scores are made before their values are added up.
const KEYS: usize = 128;

/// Products of all queries and keys together from which on several threads are worth waking.
const LARGE: usize = 1 << 20;

/// Partial sums of a product of two rows.
const LANES: usize = 16;

/// As `tiles::forward`.
pub(super) fn forward<E: Vector>(inputs: &Inputs<'_, E>, y: &mut [E], log_sum: &mut [E]) {
    let ([_, heads, t, n], [_, _, total, p]) = (inputs.q.dims, inputs.v.dims);
    let offsets: Vec<Vec<f64>> = (0..inputs.q.dims[0]).map(|row| inputs.offsets(row)).collect();
    let work = log_sum.len() * total * (n + p);
    let run = |(index, (y, log_sum)): (usize, (&mut [E], &mut E))| {
        let (head, query) = (index / t, index % t);
        answer(inputs, head, query, &offsets[head / heads], y, log_sum);
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
        offsets: &[f64],
        y: &mut [E],
        log_sum: &mut E,
    )
}

#[inline(always)]
fn answer_query<E: Vector, const FUSED: bool>(
    inputs: &Inputs<'_, E>,
    head: usize,
    query: usize,
    offsets: &[f64],
    y: &mut [E],
    log_sum: &mut E,
) {
    let [.., n] = inputs.q.dims;
    let kv = head / inputs.group();
    let (k, v) = (inputs.k.head(kv), inputs.v.head(kv));
    let to_bits = inputs.weighing.scale * std::f64::consts::LOG2_E;
    let mut q = vec![E::default(); n];
    inputs.q.head(head).copy(query, 0, &mut q);
    q.iter_mut().for_each(|x| *x *= E::of(to_bits));
    let cap = inputs.weighing.softcap.map(|cap| cap * std::f64::consts::LOG2_E);
    let sink = inputs.sink(head).map(|sink| sink * std::f64::consts::LOG2_E);
    let mut top = E::of(sink.unwrap_or(FLOOR));
    let mut sum = E::of(if sink.is_some() { 1.0 } else { 0.0 });
    let (mut k_space, mut v_space) = (vec![E::default(); n], vec![E::default(); y.len()]);
    let mut weights = [E::default(); KEYS];
    y.fill(E::default());
    let keys = inputs.seen(query);
    for first in keys.clone().step_by(KEYS) {
        let weights = &mut weights[..KEYS.min(keys.end - first)];
        let before = top;
        for (j, weight) in weights.iter_mut().enumerate() {
            let mut score = product::<E, FUSED>(&q, k.some(first + j, 0, n, &mut k_space));
            if let Some(cap) = cap {
                score = (score / E::of(cap)).bounded::<FUSED>() * E::of(cap);
            }
            if !offsets.is_empty() {
                score += E::of(offsets[first + j]);
            }
            *weight = score;
            top = if score > top { score } else { top };
        }
        for weight in weights.iter_mut() {
            *weight = (*weight - top).power::<FUSED>();
        }
        let factor = (before - top).power::<FUSED>();
        sum *= factor;
        y.iter_mut().for_each(|y| *y *= factor);
        for (j, &weight) in weights.iter().enumerate() {
            sum += weight;
            let v = &v.some(first + j, 0, y.len(), &mut v_space)[..y.len()];
            for (i, y) in y.iter_mut().enumerate() {
                *y = fused::<E, FUSED>(weight, v[i], *y);
            }
        }
    }
    *log_sum = E::of(top.to_f64() + sum.to_f64().max(f64::MIN_POSITIVE).log2());
    let inverse = if sum > E::default() { E::of(1.0) / sum } else { E::default() };
    y.iter_mut().for_each(|y| *y *= inverse);
}

/// `Σ x y`, in several sums at a time.
#[inline(always)]
fn product<E: Vector, const FUSED: bool>(x: &[E], y: &[E]) -> E {
    let mut sums = [E::default(); LANES];
    let (x, x_rest) = x.as_chunks::<LANES>();
    let (y, y_rest) = y.as_chunks::<LANES>();
    for (x, y) in x.iter().zip(y) {
        for i in 0..LANES {
            sums[i] = fused::<E, FUSED>(x[i], y[i], sums[i]);
        }
    }
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            sums[i] += sums[i + width];
        }
        width /= 2;
    }
    let mut sum = sums[0];
    for (&x, &y) in x_rest.iter().zip(y_rest) {
        sum = fused::<E, FUSED>(x, y, sum);
    }
    sum
}
