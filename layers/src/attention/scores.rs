//! What every softmax over tokens shares: scores, what hides them or adds to them, and the weighted sum in
//! blocks of queries.

use burn::tensor::{Int, Tensor, activation};

use super::reflections::Between;
use crate::error::require;
#[cfg(any(feature = "flex", feature = "cube"))]
use crate::kernels;
use crate::system::scan::{NEGATIVE, pad, prefix, suffix};
use crate::system::{Form, Spectrum, SpectrumKind, Views};
use crate::{Error, Result};

/// Queries to a block in `Auto`: the memory of the scores grows with the length, not with its square.
const AUTO_BLOCK: usize = 512;

/// Tokens whose forget gates are summed at a time: a long prefix sum reads everything for every output on
/// graphics adapters.
const SUM_BLOCK: usize = 64;

/// Queries of one call, and the keys and values they may look at.
pub(super) struct Read {
    /// `[b, h, t, n]`
    pub(super) q: Tensor<4>,
    /// `[b, h_kv, T, n]`, the cached ones first
    pub(super) k: Tensor<4>,
    /// `[b, h_kv, T, p]`
    pub(super) v: Tensor<4>,
    /// Number of cached keys, `T - t`.
    pub(super) cached: usize,
    /// `[b, 1, 1, T]`: hugely negative where a row has no such key. `None` when all rows have all.
    pub(super) absent: Option<Tensor<4>>,
    /// What tokens between a key and a query do to the key.
    pub(super) between: Option<Between>,
    /// `log f: [b, h, T, 1]`, of which the scores get `Σ_{j < s ≤ i} log f_s`.
    pub(super) log_forget: Option<Tensor<4>>,
}

/// Causal softmax attention of heads as they are: each query sees its own token and earlier ones, or the `window`
/// latest of them. `q: [b, h, t, n]`, `k: [b, h_kv, T, n]`, `v: [b, h_kv, T, p]` with `h_kv` a divisor of `h` and the
/// last `t` of the `T` tokens those of the queries; products are scaled by `1/√n`. Returns `[b, h, t, p]`.
///
/// `Auto` and `Chunked` run a [kernel](crate::kernels) where there is one, and blocks of queries where there is none;
/// other forms make all scores at once.
///
/// # Errors
/// When the shapes do not fit, or the window is 0.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use seqzoo_layers::attention::attend;
/// use seqzoo_layers::system::Form;
///
/// let x = |heads| Tensor::<4>::ones([1, heads, 5, 8], &Device::flex());
/// let y = attend([x(4), x(2), x(2)], None, Form::Auto)?;
/// assert_eq!(y.dims(), [1, 4, 5, 8]);
/// # Ok::<(), seqzoo_layers::Error>(())
/// ```
pub fn attend([q, k, v]: [Tensor<4>; 3], window: Option<usize>, form: Form) -> Result<Tensor<4>> {
    let ([b, h, t, n], [_, kv, total, p]) = (q.dims(), v.dims());
    if k.dims() != [b, kv, total, n] {
        return Err(Error::shape("keys", format!("[{b}, {kv}, {total}, {n}]"), &k.dims()));
    }
    if v.dims()[0] != b || kv == 0 || !h.is_multiple_of(kv) || total < t {
        let expected = format!("[{b}, a divisor of {h}, at least {t}, {p}]");
        return Err(Error::shape("values", expected, &v.dims()));
    }
    require(window != Some(0), "attention", "window", 0, "must be at least 1")?;
    if t == 0 || b == 0 {
        return Ok(Tensor::zeros([b, h, t, p], (&q.device(), q.dtype()))); // no outputs
    }
    let (absent, between, log_forget) = (None, None, None);
    let read = Read { q, k, v, cached: total - t, absent, between, log_forget };
    let scale = (n as f64).powf(-0.5);
    Ok(Scoring { causal: true, window, scale, softcap: None, sink: None }.attend(&read, form))
}

/// How products become weights.
pub(super) struct Scoring {
    /// Whether a query sees only its own token and earlier ones.
    pub(super) causal: bool,
    /// Each query sees its own token and the `window - 1` before it.
    pub(super) window: Option<usize>,
    /// Factor on the products.
    pub(super) scale: f64,
    /// Bounds the scaled products.
    pub(super) softcap: Option<f64>,
    /// `z: [h]`, one more score per head, of nothing.
    pub(super) sink: Option<Tensor<1>>,
}

impl Scoring {
    /// Scores before the softmax of queries `start..start + len` with keys `from..to`, the hidden ones hugely
    /// negative: `[b, h, len, to - from]`.
    pub(super) fn scores(&self, read: &Read, start: usize, len: usize, from: usize, to: usize) -> Tensor<4> {
        let [b, h, _, n] = read.q.dims();
        let kv = read.k.dims()[1];
        let mut scores = match &read.between {
            Some(between) => {
                let q = part(&read.q, start, len).mul_scalar(self.scale);
                let all = between.reflections(&read.k, h).products(q, read.cached + start);
                if (from, to) == (0, all.dims()[3]) { all } else { all.narrow(3, from, to - from) }
            }
            None => {
                // The queries that share a key-value head become rows of one product: keys are not repeated.
                let q = part(&read.q, start, len).mul_scalar(self.scale).reshape([b, kv, h / kv * len, n]);
                let keys = part(&read.k, from, to - from);
                q.matmul(keys.swap_dims(2, 3)).reshape([b, h, len, to - from])
            }
        };
        if let Some(cap) = self.softcap {
            scores = scores.div_scalar(cap).tanh().mul_scalar(cap);
        }
        let first = read.cached + start;
        if let Some(log_forget) = &read.log_forget {
            scores = scores + forgotten(part(log_forget, from, to - from), first - from, len);
        }
        if let Some(absent) = &read.absent {
            scores = scores + absent.clone().narrow(3, from, to - from);
        }
        let future = self.causal && first + 1 < to;
        let old = self.window.filter(|w| first + len > from + w);
        if !future && old.is_none() {
            return scores;
        }
        let (device, dtype) = (scores.device().inner(), scores.dtype());
        let index = |from: usize, to: usize| Tensor::<1, Int>::arange(from as i64..to as i64, &device);
        let behind = index(first, first + len).reshape([len, 1]) - index(from, to).reshape([1, to - from]);
        let mut unseen = behind.clone().lower_elem(0);
        if let Some(window) = old {
            unseen = unseen.bool_or(behind.greater_equal_elem(window as i64));
        }
        scores + unseen.float().cast(dtype).mul_scalar(NEGATIVE).unsqueeze::<4>()
    }

    /// The scores and, behind them, that of the sink.
    fn with_sink(&self, scores: Tensor<4>) -> Tensor<4> {
        let Some(sink) = &self.sink else { return scores };
        let [b, h, len, _] = scores.dims();
        let sink = sink.clone().reshape([1, h, 1, 1]).expand([b, h, len, 1]);
        Tensor::cat(vec![scores, sink], 3)
    }

    fn weights(&self, scores: Tensor<4>) -> Tensor<4> {
        let keys = scores.dims()[3];
        let weights = activation::softmax(self.with_sink(scores), 3);
        if self.sink.is_some() { weights.narrow(3, 0, keys) } else { weights }
    }

    /// `softmax(scores) v` in blocks of queries, so that the scores of a long sequence are never all in memory:
    /// `[b, h, t, p]`.
    ///
    /// In `Auto` and `Chunked` form a [kernel](crate::kernels) does the work where there is one.
    pub(super) fn attend(&self, read: &Read, form: Form) -> Tensor<4> {
        #[cfg(any(feature = "flex", feature = "cube"))]
        if kernels::enabled()
            && matches!(form, Form::Auto | Form::Chunked { .. })
            && let Some(y) = self.fused(read)
        {
            return y;
        }
        self.attend_in_blocks(read, form)
    }

    /// [`Scoring::attend`] by a kernel, where one can do it.
    #[cfg(any(feature = "flex", feature = "cube"))]
    fn fused(&self, read: &Read) -> Option<Tensor<4>> {
        let Read { q, k, v, cached, absent, between, log_forget } = read;
        let Self { causal, window, scale, softcap, .. } = *self;
        let weighing = kernels::softmax::Weighing { causal, cached: *cached, window, scale, softcap };
        let [q, k, v] = [q, k, v].map(Clone::clone);
        let (sink, forget, offsets) = (self.sink.clone(), log_forget.clone(), absent.clone());
        if let Some(between) = between {
            #[cfg(feature = "flex")]
            {
                let (w, beta) = (between.w.clone(), between.beta.clone());
                let inputs =
                    kernels::softmax::path::Inputs { q, k, v, w, beta, sink, forget, offsets, weighing };
                return inputs.run();
            }
            #[cfg(not(feature = "flex"))]
            return None;
        }
        let runs = kernels::softmax::applies(&q, &k, &v);
        runs.then(|| kernels::softmax::run([q, k, v], sink, forget, offsets, weighing))
    }

    fn attend_in_blocks(&self, read: &Read, form: Form) -> Tensor<4> {
        let [b, h, t, _] = read.q.dims();
        let [_, kv, total, p] = read.v.dims();
        let size = match form {
            Form::Chunked { size } => size.clamp(1, t),
            Form::Auto => t.min(AUTO_BLOCK),
            Form::Parallel | Form::Recurrent => t,
        };
        let blocks = (0..t).step_by(size).map(|start| {
            let len = size.min(t - start);
            let to = if self.causal { read.cached + start + len } else { total };
            let from = self.window.map_or(0, |w| (read.cached + start + 1).saturating_sub(w));
            let weights = self.weights(self.scores(read, start, len, from, to));
            let weights = weights.reshape([b, kv, h / kv * len, to - from]);
            weights.matmul(part(&read.v, from, to - from)).reshape([b, h, len, p])
        });
        let mut blocks: Vec<_> = blocks.collect();
        if blocks.len() == 1 { blocks.remove(0) } else { Tensor::cat(blocks, 2) }
    }

    /// Weights of the call's tokens on each other, and the ratios of normalisers.
    pub(super) fn views(&self, read: &Read) -> Views {
        let (t, cached) = (read.q.dims()[2], read.cached);
        let scores = self.scores(read, 0, t, 0, cached + t);
        let weights = self.weights(scores.clone());
        let scores = self.with_sink(scores);
        // Λ_i = exp(l_{i-1} - l_i); the first token has nothing to forget.
        let top = scores.clone().max_dim(3);
        let l = (scores - top.clone()).exp().sum_dim(3).log() + top;
        let re = if t == 1 {
            l.zeros_like()
        } else {
            let ratio = (l.clone().narrow(2, 0, t - 1) - l.clone().narrow(2, 1, t - 1)).exp();
            Tensor::cat(vec![l.narrow(2, 0, 1).zeros_like(), ratio], 2)
        };
        Views {
            attention: Some(weights.narrow(3, cached, t)),
            spectrum: Some(Spectrum { re, im: None, kind: SpectrumKind::Normaliser }),
            ..Views::default()
        }
    }
}

/// `len` entries of axis 2 from `start`; no slicing where that is all of them.
pub(super) fn part(x: &Tensor<4>, start: usize, len: usize) -> Tensor<4> {
    if len == x.dims()[2] { x.clone() } else { x.clone().narrow(2, start, len) }
}

/// `Σ_{j < s ≤ i} log f_s` for the `len` queries `i` from key `first` on and all keys `j`: `[b, h, keys, 1] ->
/// [b, h, len, keys]`. Sums start at the first query, so that none is the difference of two long ones.
fn forgotten(log_f: Tensor<4>, first: usize, len: usize) -> Tensor<4> {
    let rows = prefix(part(&log_f, first, len));
    let later = log_f.dims()[2] - first;
    let mut columns = vec![prefix(log_f.clone().narrow(2, first, later)).neg()];
    // The first query has passed its own gate.
    if first > 0 {
        columns.insert(0, sums_after(log_f.narrow(2, 0, first)));
    }
    rows + Tensor::cat(columns, 2).swap_dims(2, 3)
}

/// Sum of everything strictly after each entry: `[b, h, m, 1]`.
fn sums_after(x: Tensor<4>) -> Tensor<4> {
    let [b, h, m, _] = x.dims();
    if m <= SUM_BLOCK {
        return suffix(x);
    }
    let blocks = m.div_ceil(SUM_BLOCK);
    let x = pad(x, 2, blocks * SUM_BLOCK).reshape([b, h, blocks, SUM_BLOCK, 1]);
    let later = sums_after(x.clone().sum_dim(3).squeeze_dim::<4>(3)).unsqueeze_dim::<5>(3);
    (suffix(x) + later).reshape([b, h, blocks * SUM_BLOCK, 1]).narrow(2, 0, m)
}

#[cfg(test)]
mod tests {
    use burn::tensor::DType;

    use super::*;
    use crate::testing::{Draw, error, numbers};

    #[test]
    fn heads_that_do_not_fit_are_refused() {
        let x = |dims: [usize; 4]| Draw::new(1).tensor::<4>(dims, -1.0, 1.0);
        let run = |q, k, v, window| attend([x(q), x(k), x(v)], window, Form::Auto);
        let y = run([2, 4, 3, 8], [2, 2, 5, 8], [2, 2, 5, 6], Some(2)).unwrap();
        assert_eq!(y.dims(), [2, 4, 3, 6]);
        assert_eq!(run([1, 2, 0, 8], [1, 2, 3, 8], [1, 2, 3, 6], None).unwrap().dims(), [1, 2, 0, 6]);
        assert!(run([2, 4, 3, 8], [2, 2, 5, 8], [2, 2, 5, 6], Some(0)).is_err());
        assert!(run([2, 4, 3, 8], [2, 2, 5, 7], [2, 2, 5, 6], None).is_err());
        assert!(run([2, 4, 3, 8], [2, 3, 5, 8], [2, 3, 5, 6], None).is_err());
        assert!(run([2, 4, 3, 8], [2, 2, 2, 8], [2, 2, 2, 6], None).is_err());
    }

    #[test]
    fn what_is_forgotten_is_summed_from_key_to_query() {
        for (keys, first) in [(1, 0), (5, 0), (9, 4), (300, 297), (200, 64)] {
            let log_f = Draw::new(7).tensor::<4>([1, 1, keys, 1], -1.0, 0.0).cast(DType::F64);
            let gates = numbers(log_f.clone());
            let found = numbers(forgotten(log_f, first, keys - first));
            let expected: Vec<f64> = (first..keys)
                .flat_map(|i| (0..keys).map(move |j| (i, j)))
                .map(|(i, j)| {
                    let between = |a: usize, b: usize| gates[a + 1..=b].iter().sum::<f64>();
                    if j <= i { between(j, i) } else { -between(i, j) }
                })
                .collect();
            assert!(error(&found, &expected) < 1e-12, "{keys} keys, first query {first}");
        }
    }
}
