//! Log-linear attention's memory: a binary tree over the past, of which each token sees `O(log t)` nodes.
//!
//! ```text
//! y_i = Σ_{j ≤ i} λ_i^{ℓ(i, j)} a_i … a_{j+1} (q_i · k_j) v_j,     ℓ(i, j) = number of bits of (i xor j)
//! ```
//!
//! The past of token `i` falls into one bucket per bit that is set in `i`, as in a Fenwick tree: bucket `m` holds
//! `2^m` tokens, which token `i` weighs by `λ_i^{m+1}`; `λ_i^0` weighs itself. When token `i` has been read it
//! joins the buckets of its trailing ones in the bucket of the first zero. Whatever the position, the bucket of a
//! past token `j` after `s` tokens is the highest bit of `j xor s`: that is all a chunk needs to know, so chunks
//! may start anywhere and rows may stand at different positions.

use burn::tensor::{Tensor, TensorData};

#[cfg(feature = "flex")]
use crate::kernels;
use crate::system::scan::{pad, prefix, segment_sums, suffix, unbind};
use crate::system::{Form, Lengths, engine};
use crate::{Error, Result};

/// Bits needed for `x`: the buckets after `x` tokens.
pub(crate) fn bits(x: usize) -> usize {
    (usize::BITS - x.leading_zeros()) as usize
}

/// What the memory is given.
#[derive(Clone)]
pub struct LogLinearInputs {
    /// `[b, h, t, n]`
    pub q: Tensor<4>,
    /// `[b, h, t, n]`
    pub k: Tensor<4>,
    /// `[b, h, t, p]`
    pub v: Tensor<4>,
    /// `log a ≤ 0`: `[b, h, t]`
    pub log_a: Tensor<3>,
    /// `λ`: `[b, h, t, levels]`; the last one also weighs all higher levels.
    pub scales: Tensor<4>,
}

/// Reads tokens into the `buckets`, `[b, h, levels, n, p]`, left by `starts[row]` tokens (`None` for none). Gives
/// `y: [b, h, t, p]` and the buckets after. With `lengths`, a row's later tokens are padding.
///
/// # Errors
/// When the buckets do not fit.
pub fn log_linear(
    inputs: LogLinearInputs,
    buckets: Option<Tensor<5>>,
    starts: &[usize],
    lengths: Option<&Lengths>,
    form: Form,
) -> Result<(Tensor<4>, Option<Tensor<5>>)> {
    let ([b, h, t, n], p) = (inputs.k.dims(), inputs.v.dims()[3]);
    let needed = bits(starts.iter().copied().max().unwrap_or(0));
    let mut buckets = match buckets {
        Some(buckets) if needed > 0 => {
            let [rows, heads, levels, keys, values] = buckets.dims();
            if levels < needed || [rows, heads, keys, values] != [b, h, n, p] {
                let expected = format!("[{b}, {h}, {needed} or more, {n}, {p}]");
                return Err(Error::shape("buckets", expected, &buckets.dims()));
            }
            // Rows that had seen more may have been left out.
            Some(buckets.narrow(2, 0, needed))
        }
        None if needed > 0 => {
            let reason = format!("no buckets after {} tokens", starts.iter().copied().max().unwrap_or(0));
            return Err(Error::State(reason));
        }
        _ => None,
    };
    let mut left: Vec<usize> = match lengths {
        Some(lengths) => lengths.0.iter().map(|&n| n.min(t)).collect(),
        None => vec![t; b],
    };
    let inputs = match lengths {
        Some(lengths) => {
            let valid = lengths.valid(t, &inputs.k.device(), inputs.k.dtype()).unsqueeze_dim::<3>(1);
            LogLinearInputs {
                k: inputs.k * valid.clone().unsqueeze_dim(3),
                log_a: inputs.log_a * valid,
                ..inputs
            }
        }
        None => inputs,
    };
    #[cfg(feature = "flex")]
    if kernels::enabled() && matches!(form, Form::Auto | Form::Chunked { .. }) {
        let ends = starts.iter().zip(&left).map(|(start, real)| start + real);
        let new = bits(ends.max().unwrap_or(0));
        let places =
            kernels::fenwick::Places { starts: starts.to_vec(), real: left.clone(), buckets: [needed, new] };
        if let Some((y, buckets)) = kernels::fenwick::run(&inputs, buckets.as_ref(), &places) {
            return Ok((y, Some(buckets)));
        }
    }
    let size = engine::chunk_size(form, t).unwrap_or(1);
    let mut places = starts.to_vec();
    let mut out = Vec::new();
    for chunk in inputs.chunks(size) {
        let real: Vec<usize> = left.iter().map(|&n| n.min(size)).collect();
        let now = Places { starts: &places, real: &real };
        let (y, next) = if size == 1 { chunk.step(buckets, now) } else { chunk.run(buckets, now) };
        buckets = Some(next);
        out.push(y);
        for ((place, left), real) in places.iter_mut().zip(&mut left).zip(&real) {
            *place += real;
            *left -= real;
        }
    }
    // Where all was padding there is nothing yet.
    let buckets = buckets.filter(|_| places.iter().any(|&place| place > 0));
    Ok((Tensor::cat(out, 2).narrow(2, 0, t), buckets))
}

/// Where the rows stand.
#[derive(Clone, Copy)]
struct Places<'a> {
    starts: &'a [usize],
    real: &'a [usize],
}

impl Places<'_> {
    /// Start and number of tokens, once where all rows agree, else per row.
    fn rows(&self) -> Vec<(usize, usize)> {
        let all: Vec<_> = self.starts.iter().copied().zip(self.real.iter().copied()).collect();
        if all.iter().all(|row| *row == all[0]) { vec![all[0]] } else { all }
    }

    /// Buckets after the chunk, at least one.
    fn buckets(&self) -> usize {
        self.rows().iter().map(|(start, real)| bits(start + real)).fold(1, usize::max)
    }
}

/// 1 where `holds(row, i, j)`: `[rows, 1, m, n]`.
fn mask(
    rows: &[(usize, usize)],
    [m, n]: [usize; 2],
    like: &Tensor<4>,
    holds: impl Fn((usize, usize), usize, usize) -> bool,
) -> Tensor<4> {
    let places = rows.iter().flat_map(|&row| (0..m).flat_map(move |i| (0..n).map(move |j| (row, i, j))));
    let flags: Vec<f32> = places.map(|(row, i, j)| f32::from(holds(row, i, j))).collect();
    let data = TensorData::new(flags, [rows.len(), 1, m, n]);
    Tensor::from_data(data, (&like.device().inner(), like.dtype()))
}

impl LogLinearInputs {
    /// Chunks of `size` tokens, the last one filled up with tokens that change nothing.
    fn chunks(self, size: usize) -> Vec<Self> {
        let [b, h, t, _] = self.k.dims();
        let whole = t.next_multiple_of(size);
        let split = |x: Tensor<4>| {
            let n = x.dims()[3];
            let parts = unbind(pad(x, 2, whole).reshape([b, h, whole / size, size, n]), 2);
            parts.into_iter().map(|part| part.squeeze_dim::<4>(2))
        };
        let (q, k, v, scales) = (split(self.q), split(self.k), split(self.v), split(self.scales));
        let log_a = split(self.log_a.unsqueeze_dim(3)).map(|log_a| log_a.squeeze_dim(3));
        q.zip(k)
            .zip(v)
            .zip(log_a)
            .zip(scales)
            .map(|((((q, k), v), log_a), scales)| Self { q, k, v, log_a, scales })
            .collect()
    }

    /// `Σ_ℓ λ^ℓ [level(row, i, j) = ℓ]` for each token `i`: `[b, h, t, n]`.
    fn weights(
        &self,
        rows: &[(usize, usize)],
        n: usize,
        level: impl Fn((usize, usize), usize, usize) -> Option<usize>,
    ) -> Tensor<4> {
        let [b, h, t, levels] = self.scales.dims();
        let level = |row, i, j| level(row, i, j).map(|level| level.min(levels - 1));
        let mut used: Vec<usize> = (rows.iter())
            .flat_map(|&row| (0..t).flat_map(move |i| (0..n).map(move |j| (row, i, j))))
            .filter_map(|(row, i, j)| level(row, i, j))
            .collect();
        used.sort_unstable();
        used.dedup();
        let parts = used.into_iter().map(|used| {
            let holds = mask(rows, [t, n], &self.scales, |row, i, j| level(row, i, j) == Some(used));
            self.scales.clone().narrow(3, used, 1) * holds
        });
        let options = (&self.scales.device().inner(), self.scales.dtype());
        parts.reduce(|a, b| a + b).unwrap_or_else(|| Tensor::zeros([b, h, t, n], options))
    }

    /// The weight of each bucket for each token, `[b, h, t, levels]`: a bucket is at its own level until the
    /// position passes a higher power of two.
    fn bucket_weights(&self, rows: &[(usize, usize)], levels: usize) -> Tensor<4> {
        self.weights(rows, levels, |(start, _), i, m| Some((m + 1).max(bits((start + i) ^ start))))
    }

    /// `λ_i^{ℓ(i, j)} a_i … a_{j+1} (q_i · k_j)` for `j ≤ i`, else 0: `[b, h, t, t]`.
    fn scores(&self, rows: &[(usize, usize)]) -> Tensor<4> {
        let t = self.k.dims()[2];
        let levels =
            self.weights(rows, t, |(start, _), i, j| (j <= i).then(|| bits((start + i) ^ (start + j))));
        let decay = segment_sums(self.log_a.clone().unsqueeze_dim::<4>(3)).exp();
        self.q.clone().matmul(self.k.clone().swap_dims(2, 3)) * decay * levels
    }

    /// The implied attention of tokens that start at these positions, `[b, h, t, t]`.
    pub(super) fn attention(&self, starts: &[usize]) -> Tensor<4> {
        let rows: Vec<_> = starts.iter().map(|&start| (start, 0)).collect();
        self.scores(&rows)
    }

    /// Into which bucket the tokens (`[rows, 1, t, levels]`) and the old buckets (`[rows, 1, levels, old]`) go.
    fn moves(&self, rows: &[(usize, usize)], levels: usize, old: usize) -> (Tensor<4>, Tensor<4>) {
        let t = self.k.dims()[2];
        let tokens = mask(rows, [t, levels], &self.k, |(start, real), i, m| {
            i < real && bits((start + i) ^ (start + real)) == m + 1
        });
        let buckets = mask(rows, [levels, old], &self.k, |(start, real), m, old| {
            (old + 1).max(bits(start ^ (start + real))) == m + 1
        });
        (tokens, buckets)
    }

    /// All tokens at once. Level by level a query and a key are one entry each, so that the buckets are read
    /// and written by one product.
    fn run(&self, old: Option<Tensor<5>>, places: Places<'_>) -> (Tensor<4>, Tensor<5>) {
        let ([b, h, t, n], p) = (self.k.dims(), self.v.dims()[3]);
        let (rows, levels) = (places.rows(), places.buckets());
        let column = self.log_a.clone().unsqueeze_dim::<4>(3);
        let sums = prefix(column.clone());
        let at_levels = |x: Tensor<4>, weights: Tensor<4>| {
            let count = weights.dims()[3];
            (x.unsqueeze_dim::<5>(3) * weights.unsqueeze_dim::<5>(4)).reshape([b, h, t, count * n])
        };
        let mut y = self.scores(&rows).matmul(self.v.clone());
        let old_levels = old.as_ref().map_or(0, |old| old.dims()[2]);
        let (tokens, buckets) = self.moves(&rows, levels, old_levels);
        let written = at_levels(self.k.clone() * suffix(column).exp(), tokens);
        let mut new = written.swap_dims(2, 3).matmul(self.v.clone()).reshape([b, h, levels, n, p]);
        if let Some(old) = old {
            let weights = self.bucket_weights(&rows, old_levels);
            let read = at_levels(self.q.clone() * sums.clone().exp(), weights);
            y = y + read.matmul(old.clone().reshape([b, h, old_levels * n, p]));
            let total = sums.narrow(2, t - 1, 1).exp();
            let kept = buckets.expand([b, h, levels, old_levels]) * total;
            new = new + kept.matmul(old.reshape([b, h, old_levels, n * p])).reshape([b, h, levels, n, p]);
        }
        (y, new)
    }

    /// One token, multiply and sum: the reference.
    fn step(&self, old: Option<Tensor<5>>, places: Places<'_>) -> (Tensor<4>, Tensor<5>) {
        let (rows, levels) = (places.rows(), places.buckets());
        let own = self.scales.clone().narrow(3, 0, 1);
        let mut y = (self.q.clone() * self.k.clone()).sum_dim(3) * own * self.v.clone();
        let old_levels = old.as_ref().map_or(0, |old| old.dims()[2]);
        let (tokens, buckets) = self.moves(&rows, levels, old_levels);
        // [b, h, 1, n] -> [b, h, 1, n, 1], and a factor per level
        let column = |x: &Tensor<4>| x.clone().swap_dims(2, 3).unsqueeze_dim::<5>(2);
        let at_levels = |x: Tensor<4>| x.swap_dims(2, 3).unsqueeze_dim::<5>(4);
        let outer = column(&self.k) * self.v.clone().unsqueeze_dim::<5>(3);
        let mut new = outer * at_levels(tokens);
        if let Some(old) = old {
            let decay = self.log_a.clone().exp().unsqueeze_dim::<4>(3).unsqueeze_dim::<5>(4);
            let old = old * decay;
            let read = (old.clone() * column(&self.q)).sum_dim(3)
                * at_levels(self.bucket_weights(&rows, old_levels));
            y = y + read.sum_dim(2).squeeze_dim::<4>(2);
            for (m, bucket) in unbind(old, 2).into_iter().enumerate() {
                new = new + bucket * at_levels(buckets.clone().narrow(3, m, 1).swap_dims(2, 3));
            }
        }
        (y, new)
    }
}

#[cfg(test)]
#[path = "fenwick_tests.rs"]
mod tests;
