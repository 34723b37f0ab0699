//! Decays inside chunks. Every factor is the exponential of a sum of non-positive numbers that was summed
//! for itself, never of a difference of longer sums: nothing overflows, nothing cancels.

use burn::tensor::Tensor;

use super::scan::{NEGATIVE, delay, pad, prefix, segment_sums, suffix, tril_ones};

/// Chunks of per-channel decays are halved down to this size; pairs inside are formed explicitly.
const PAIRS: usize = 4;

/// Decays of all chunks, in the forms the chunk algorithm needs. `w` = 1 for one decay per head, else `n`.
pub(super) struct ChunkDecay {
    /// `exp Σ_{s ≤ t}`, `[b, h, c, q, w]`
    pub(super) from_start: Tensor<5>,
    /// `exp Σ_{s > t}`, `[b, h, c, q, w]`
    pub(super) to_end: Tensor<5>,
    /// The chunk's total, `[b, h, c, w, 1]`
    pub(super) log_total: Tensor<5>,
    between: Between,
}

/// `exp Σ_{j < s ≤ i}` between the tokens of a chunk.
enum Between {
    /// One decay per head: `[b, h, c, q, q]`, 0 above the diagonal.
    Head(Tensor<5>),
    /// One per channel, which would make `[b, h, c, q, q, n]`.
    Channel(Halves),
}

impl ChunkDecay {
    /// From `[b, h, c, q, w]`; axes that do not matter may have size 1.
    pub(super) fn new(log_d: Tensor<5>) -> Self {
        let [b, h, c, size, width] = log_d.dims();
        let sums = prefix(log_d.clone());
        let between = match width {
            1 => Between::Head(segment_sums(log_d.clone()).exp()),
            _ => Between::Channel(Halves::new(log_d.clone().reshape([b * h * c, size, width]))),
        };
        Self {
            log_total: sums.clone().narrow(3, size - 1, 1).swap_dims(3, 4),
            from_start: sums.exp(),
            to_end: suffix(log_d).exp(),
            between,
        }
    }

    /// `A[t, s] = Σ_n x_t[n] y_s[n] exp(G[t, s][n])` for `s ≤ t`, 0 above.
    pub(super) fn scores(&self, x: Tensor<5>, y: Tensor<5>) -> Tensor<5> {
        match &self.between {
            Between::Head(factor) => x.matmul(y.swap_dims(3, 4)) * factor.clone(),
            Between::Channel(halves) => {
                let [b, h, c, size, n] = x.dims();
                let flat = |z: Tensor<5>| z.reshape([b * h * c, size, n]);
                halves.scores(flat(x), flat(y), 0).reshape([b, h, c, size, size])
            }
        }
    }

    /// `A[t, s] = Σ_n x_t[n] y_s[n] exp(G[t-1, s][n])` for `s < t`, 0 elsewhere.
    pub(super) fn scores_before(&self, x: Tensor<5>, y: Tensor<5>) -> Tensor<5> {
        let size = x.dims()[3];
        if size == 1 {
            let [b, h, c, ..] = x.dims();
            return Tensor::zeros([b, h, c, 1, 1], (&x.device(), x.dtype()));
        }
        // Row t uses the decay up to t-1: score x shifted up by one row, then shift the rows down again.
        let zero = x.clone().narrow(3, 0, 1).zeros_like();
        let early = Tensor::cat(vec![x.narrow(3, 1, size - 1), zero], 3);
        delay(self.scores(early, y), 3, 0.0)
    }

    /// `exp Σ_{s < t}`
    pub(super) fn until_before(&self) -> Tensor<5> {
        delay(self.from_start.clone(), 3, 1.0)
    }
}

/// Per-channel decays by halving: a row of the later half meets a key of the earlier half at the boundary
/// between them, where both factors are at most 1; each half is halved again.
struct Halves {
    /// From the whole chunk down; rows `r` double from level to level.
    levels: Vec<Half>,
    /// Explicit pairs at the bottom, `[r, i, j, n]`, 0 for `j > i`.
    pairs: Tensor<4>,
}

struct Half {
    /// From the boundary to each later token, `[r, m, n]`
    later: Tensor<3>,
    /// From each earlier token to the boundary, `[r, m, n]`
    earlier: Tensor<3>,
}

/// `[r, q, n]` as its halves, `[r, 2, m, n]`, with zeros appended to an odd `q`.
fn halve(x: Tensor<3>) -> Tensor<4> {
    let [rows, size, n] = x.dims();
    let m = size.div_ceil(2);
    pad(x, 1, 2 * m).reshape([rows, 2, m, n])
}

impl Halves {
    fn new(mut log_d: Tensor<3>) -> Self {
        let mut levels = Vec::new();
        while log_d.dims()[1] > PAIRS {
            let halves = halve(log_d);
            let [rows, _, m, n] = halves.dims();
            let half = |i: usize| halves.clone().narrow(1, i, 1).squeeze_dim::<3>(1);
            levels.push(Half { later: prefix(half(1)).exp(), earlier: suffix(half(0)).exp() });
            log_d = halves.reshape([2 * rows, m, n]);
        }
        let (size, device, dtype) = (log_d.dims()[1], log_d.device(), log_d.dtype());
        let lower = |diagonal| tril_ones(size, diagonal, &device, dtype).reshape([1, size, size, 1]);
        let above = lower(0).sub_scalar(1.0).mul_scalar(-NEGATIVE);
        let sums = (log_d.unsqueeze_dim::<4>(2) * lower(-1)).cumsum(1) + above;
        Self { levels, pairs: sums.exp() }
    }

    /// Scores of `[r, q, n]` against `[r, q, n]` at a level: `[r, q, q]`.
    fn scores(&self, x: Tensor<3>, y: Tensor<3>, level: usize) -> Tensor<3> {
        let Some(Half { later, earlier }) = self.levels.get(level) else {
            let products = x.unsqueeze_dim::<4>(2) * y.unsqueeze_dim::<4>(1);
            return (products * self.pairs.clone()).sum_dim(3).squeeze_dim(3);
        };
        let size = x.dims()[1];
        let (x, y) = (halve(x), halve(y));
        let [rows, _, m, n] = x.dims();
        let late = x.clone().narrow(1, 1, 1).squeeze_dim::<3>(1) * later.clone();
        let early = y.clone().narrow(1, 0, 1).squeeze_dim::<3>(1) * earlier.clone();
        let cross = late.matmul(early.swap_dims(1, 2));
        let flat = |z: Tensor<4>| z.reshape([2 * rows, m, n]);
        let inner = self.scores(flat(x), flat(y), level + 1).reshape([rows, 2, m, m]);
        let inner = |i: usize| inner.clone().narrow(1, i, 1).squeeze_dim::<3>(1);
        let upper = Tensor::cat(vec![inner(0), cross.zeros_like()], 2);
        let lower = Tensor::cat(vec![cross, inner(1)], 2);
        Tensor::cat(vec![upper, lower], 1).narrow(1, 0, size).narrow(2, 0, size)
    }
}
