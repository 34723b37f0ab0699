//! What tiles of some queries and some keys are made of, and what their scores get besides products.
//!
//! Scores are made turned, keys in rows and queries in columns: `Sᵀ = K Qᵀ` needs one transpose per tile of queries,
//! largest scores and sums are elementwise over rows, and `Pᵀ` is the left factor of all later products as it is.

use rayon::prelude::*;

use super::Weighing;
use super::weights::{Scores, Seen};
use crate::kernels::dense::{ALIGNED, Matrix};
use crate::kernels::vector::Vector;
use crate::kernels::view::{Head, View, read};

/// Queries of a tile.
pub(super) const QUERIES: usize = 64;

/// Keys of a tile.
pub(super) const KEYS: usize = 128;

/// What attention reads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inputs<'a, E> {
    /// `[b, h, t, n]`
    pub(super) q: View<'a, E>,
    /// `[b, h_kv, T, n]`
    pub(super) k: View<'a, E>,
    /// `[b, h_kv, T, p]`
    pub(super) v: View<'a, E>,
    /// Score of nothing, `[h, 1, 1, 1]`
    pub(super) sink: Option<View<'a, E>>,
    /// What each key's scores get, `[b, 1, 1, T]`
    pub(super) offsets: Option<View<'a, E>>,
    /// `log f: [b, h, T, 1]`, of which scores get `Σ_{j < s ≤ i} log f_s`
    pub(super) forget: Option<View<'a, E>>,
    pub(super) weighing: Weighing,
}

impl<E: Vector> Inputs<'_, E> {
    /// Tokens that ask, tokens that are asked, sizes of keys and values.
    pub(super) fn sizes(&self) -> [usize; 4] {
        let ([_, _, t, n], [_, _, total, p]) = (self.q.dims, self.v.dims);
        [t, total, n, p]
    }

    /// Query heads of a key-value head.
    pub(super) fn group(&self) -> usize {
        self.q.dims[1] / self.k.dims[1]
    }

    /// The score of nothing of query head `head` of all `b h`.
    pub(super) fn sink(&self, head: usize) -> Option<f64> {
        let heads = self.q.dims[1];
        self.sink.map(|sink| sink.head(head % heads).column(0, 1).sum())
    }

    /// Keys that a query sees.
    pub(super) fn seen(&self, query: usize) -> std::ops::Range<usize> {
        let Weighing { causal, cached, window, .. } = self.weighing;
        let [_, total, ..] = self.sizes();
        let to = if causal { (cached + query + 1).min(total) } else { total };
        window.map_or(0, |w| (cached + query + 1).saturating_sub(w)).min(to)..to
    }

    /// Keys that queries `first..first + rows` may see, and a few more, so that register tiles are whole.
    pub(super) fn keys(&self, first: usize, rows: usize) -> std::ops::Range<usize> {
        let [_, total, ..] = self.sizes();
        let (from, to) = (self.seen(first).start, self.seen(first + rows - 1).end);
        from / ALIGNED * ALIGNED..to.next_multiple_of(ALIGNED).min(total)
    }
}

/// Keys and values of one head.
pub(super) struct Keys<E> {
    pub(super) k: Matrix<E>,
    pub(super) v: Matrix<E>,
}

impl<E: Vector> Keys<E> {
    fn read(inputs: &Inputs<'_, E>, head: usize) -> Self {
        let [_, total, n, p] = inputs.sizes();
        let (mut k, mut v) = (Matrix::new(total, n), Matrix::new(total, p));
        read(&mut k, inputs.k.head(head), (0, total), n);
        read(&mut v, inputs.v.head(head), (0, total), p);
        Self { k, v }
    }

    /// Of all heads.
    pub(super) fn all(inputs: &Inputs<'_, E>) -> Vec<Self> {
        let heads = inputs.k.dims[0] * inputs.k.dims[1];
        (0..heads).into_par_iter().map(|head| Self::read(inputs, head)).collect()
    }
}

/// A tile of queries: scratch memory of one thread.
pub(super) struct Tile<E> {
    pub(super) q: Matrix<E>,
    pub(super) q_turned: Matrix<E>,
    /// `[keys, queries]`
    pub(super) weights: Matrix<E>,
}

impl<E: Vector> Tile<E> {
    pub(super) fn new([.., n, _]: [usize; 4]) -> Self {
        Self {
            q: Matrix::new(QUERIES, n),
            q_turned: Matrix::new(n, QUERIES),
            weights: Matrix::new(KEYS, QUERIES),
        }
    }

    /// Reads queries, scaled: the turned ones so that products are scores in units of `ln 2`.
    pub(super) fn read_queries(&mut self, inputs: &Inputs<'_, E>, head: Head<'_, E>, range: (usize, usize)) {
        let [.., n, _] = inputs.sizes();
        read(&mut self.q, head, range, n);
        self.q.scale(E::of(inputs.weighing.scale));
        self.q_turned.set_transpose(&self.q);
        self.q_turned.scale(E::of(std::f64::consts::LOG2_E));
    }
}

/// What scores get besides products, in units of `ln 2`.
pub(super) struct Shifts {
    heads: usize,
    /// Of every batch row and key, if there are any
    offsets: Vec<Vec<f64>>,
    /// Of every head and key `j`, `Σ_{s ≤ j} log f_s`, if anything is forgotten. Differences of such sums lose nothing
    /// that matters in `f64`.
    fades: Vec<Vec<f64>>,
}

impl Shifts {
    pub(super) fn new<E: Vector>(inputs: &Inputs<'_, E>) -> Self {
        let ([b, heads, ..], [_, total, ..]) = (inputs.q.dims, inputs.sizes());
        Self::of([b, heads, total], inputs.offsets, inputs.forget)
    }

    /// Of `offsets: [b, 1, 1, T]` and `forget: [b, h, T, 1]`, as in [`Inputs`].
    pub(super) fn of<E: Vector>(
        [b, heads, total]: [usize; 3],
        offsets: Option<View<'_, E>>,
        forget: Option<View<'_, E>>,
    ) -> Self {
        let bits = |x: f64| x * std::f64::consts::LOG2_E;
        let offsets = offsets.map_or(Vec::new(), |offsets| {
            (0..b).map(|row| offsets.head(row).turned().column(0, total).map(bits).collect()).collect()
        });
        let fades = forget.map_or(Vec::new(), |forget| {
            let sums = |head| {
                let mut sum = 0.0;
                let add = |log_f| {
                    sum += bits(log_f);
                    sum
                };
                forget.head(head).column(0, total).map(add).collect()
            };
            (0..b * heads).map(sums).collect()
        });
        Self { heads, offsets, fades }
    }

    /// Whether any score gets anything.
    pub(super) fn any(&self) -> bool {
        !self.offsets.is_empty() || !self.fades.is_empty()
    }

    /// What a head's scores of key `key` get at the query whose own key is `own`.
    pub(super) fn at(&self, head: usize, own: usize, key: usize) -> f64 {
        let offset = self.offsets.get(head / self.heads).map_or(0.0, |offsets| offsets[key]);
        self.fades.get(head).map_or(offset, |fades| offset + fades[own] - fades[key])
    }
}

/// [`Shifts`] of a tile: a number per key and one per query.
pub(super) struct TileShifts<E> {
    keys: Vec<E>,
    queries: Vec<E>,
}

impl<E: Vector> TileShifts<E> {
    pub(super) fn new() -> Self {
        Self { keys: Vec::new(), queries: Vec::new() }
    }

    /// For queries whose own keys are from `own` on.
    pub(super) fn set_queries(&mut self, shifts: &Shifts, head: usize, own: usize, rows: usize) {
        self.queries.clear();
        if let Some(fades) = shifts.fades.get(head) {
            self.queries.extend(fades[own..own + rows].iter().map(|fade| E::of(fade - fades[own])));
        }
    }

    /// For keys from `key` on, up to the first query.
    pub(super) fn set_keys(&mut self, shifts: &Shifts, head: usize, own: usize, key: usize, count: usize) {
        self.keys.clear();
        if shifts.any() {
            self.keys.extend((key..key + count).map(|key| E::of(shifts.at(head, own, key))));
        }
    }

    /// How the products of queries from `query` on with keys from `key` on become scores.
    pub(super) fn scores(&self, weighing: Weighing, query: usize, key: usize) -> Scores<'_, E> {
        let Weighing { causal, cached, window, softcap, .. } = weighing;
        Scores {
            cap: softcap.map(|cap| cap * std::f64::consts::LOG2_E),
            keys: (!self.keys.is_empty()).then_some(&self.keys),
            queries: (!self.queries.is_empty()).then_some(&self.queries),
            seen: Seen { causal, window, query: cached + query, key },
        }
    }
}
