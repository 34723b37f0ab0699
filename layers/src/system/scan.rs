//! Prefix sums of logarithms and the elementwise linear recurrence `h_t = a_t h_{t-1} + u_t`.
//!
//! Decays stay logarithms; only `exp` of sums of non-positive numbers is formed, and such sums are
//! never differences of longer sums, so nothing overflows and nothing cancels.

use burn::tensor::{DType, Device, Tensor};

/// Lower-triangular ones `[n, n]`; `diagonal = 0` includes the diagonal, `-1` excludes it.
pub(crate) fn tril_ones(n: usize, diagonal: i64, device: &Device, dtype: DType) -> Tensor<2> {
    Tensor::<2>::ones([n, n], (&device.clone().inner(), dtype)).tril(diagonal)
}

/// Splits `axis` into its entries, each keeping the axis with size 1.
///
/// Halving instead of slicing one by one: the backward of a slice fills a tensor of the full size, so
/// `t` slices would cost `O(t²)` where this costs `O(t log t)`.
pub(crate) fn unbind<const D: usize>(tensor: Tensor<D>, axis: usize) -> Vec<Tensor<D>> {
    fn halve<const D: usize>(tensor: Tensor<D>, axis: usize, out: &mut Vec<Tensor<D>>) {
        match tensor.dims()[axis] {
            0 => {}
            1 => out.push(tensor),
            n => {
                let half = n / 2;
                halve(tensor.clone().narrow(axis, 0, half), axis, out);
                halve(tensor.narrow(axis, half, n - half), axis, out);
            }
        }
    }
    let mut out = Vec::with_capacity(tensor.dims()[axis]);
    halve(tensor, axis, &mut out);
    out
}

/// Inclusive prefix sum along the last axis but one: `[.., t, n] -> [.., t, n]`.
pub(crate) fn prefix<const D: usize>(g: Tensor<D>) -> Tensor<D> {
    g.cumsum(D - 2)
}

/// Sum of everything strictly after each entry along the last axis but one.
pub(crate) fn suffix<const D: usize>(g: Tensor<D>) -> Tensor<D> {
    let t = g.dims()[D - 2];
    if t <= 1 {
        return g.zeros_like();
    }
    let axis = (D - 2) as isize;
    let later = g.narrow(D - 2, 1, t - 1).flip([axis]).cumsum(D - 2).flip([axis]);
    let zero = later.clone().narrow(D - 2, 0, 1).zeros_like();
    Tensor::cat(vec![later, zero], D - 2)
}

/// Segment sums `S[i, j] = Σ_{j < s ≤ i} g_s` for `i ≥ j`, and a large negative number above the diagonal
/// (dsf.md 3.2). `g: [.., t]` as `[.., t, 1]` gives `[.., t, t]`.
pub(crate) fn segment_sums<const D: usize>(g: Tensor<D>) -> Tensor<D> {
    let dims = g.dims();
    let (t, device, dtype) = (dims[D - 2], g.device(), g.dtype());
    debug_assert_eq!(dims[D - 1], 1, "segment_sums expects a column");
    let strict = tril_ones(t, -1, &device, dtype).unsqueeze::<D>();
    let above = tril_ones(t, 0, &device, dtype).sub_scalar(1.0).mul_scalar(-NEGATIVE);
    (g * strict).cumsum(D - 2) + above.unsqueeze::<D>()
}

/// Stands for −∞ where `exp` must give 0; finite, so that no shader literal is infinite.
pub(crate) const NEGATIVE: f64 = -1e30;

/// `h_t = exp(log_a_t) ∘ h_{t-1} + u_t`, one token at a time. `log_a`, `u`: `[b, h, t, n]`, `h0`: `[b, h, n]`.
pub(crate) fn direct_recurrent(log_a: Tensor<4>, u: Tensor<4>, h0: Tensor<3>) -> (Tensor<4>, Tensor<3>) {
    let mut h = h0.unsqueeze_dim::<4>(2);
    let mut out = Vec::with_capacity(u.dims()[2]);
    for (log_a, u) in unbind(log_a, 2).into_iter().zip(unbind(u, 2)) {
        h = log_a.exp() * h + u;
        out.push(h.clone());
    }
    (Tensor::cat(out, 2), h.squeeze_dim(2))
}

/// The same for all tokens at once.
pub(crate) fn direct_parallel(log_a: Tensor<4>, u: Tensor<4>, h0: Tensor<3>) -> (Tensor<4>, Tensor<3>) {
    let [b, h, t, n] = u.dims();
    // The start enters with the first token.
    let first = |x: &Tensor<4>| x.clone().narrow(2, 0, 1);
    let start = first(&u) + first(&log_a).exp() * h0.unsqueeze_dim::<4>(2);
    let u = if t == 1 { start } else { Tensor::cat(vec![start, u.narrow(2, 1, t - 1)], 2) };
    let flat = |x: Tensor<4>| x.reshape([b * h, t, n]);
    let y = inclusive_scan(flat(log_a), flat(u)).reshape([b, h, t, n]);
    let last = y.clone().narrow(2, t - 1, 1).squeeze_dim(2);
    (y, last)
}

/// Tokens a block of [`inclusive_scan`] steps through.
const RADIX: usize = 8;

/// `y_t = Σ_{s ≤ t} exp(Σ_{s < r ≤ t} log_a_r) u_s` along axis 1: all blocks of [`RADIX`] tokens step through
/// their tokens together, then the same over the blocks' ends. `O(t)` work where doubling takes
/// `O(t log t)`.
fn inclusive_scan(log_a: Tensor<3>, u: Tensor<3>) -> Tensor<3> {
    let [rows, t, n] = u.dims();
    if t <= RADIX {
        return stepped(log_a, u);
    }
    let blocks = t.div_ceil(RADIX);
    let split = |x: Tensor<3>| pad(x, 1, blocks * RADIX).reshape([rows * blocks, RADIX, n]);
    let (log_a, u) = (split(log_a), split(u));
    let local = stepped(log_a.clone(), u);
    let sums = prefix(log_a);
    let ends = |x: &Tensor<3>| x.clone().narrow(1, RADIX - 1, 1).reshape([rows, blocks, n]);
    let before = delay(inclusive_scan(ends(&sums), ends(&local)), 1, 0.0);
    let y = local + sums.exp() * before.reshape([rows * blocks, 1, n]);
    y.reshape([rows, blocks * RADIX, n]).narrow(1, 0, t)
}

/// [`inclusive_scan`] one token at a time.
fn stepped(log_a: Tensor<3>, u: Tensor<3>) -> Tensor<3> {
    let mut out: Vec<Tensor<3>> = Vec::with_capacity(u.dims()[1]);
    for (a, u) in unbind(log_a.exp(), 1).into_iter().zip(unbind(u, 1)) {
        out.push(if let Some(h) = out.last() { a * h.clone() + u } else { u });
    }
    Tensor::cat(out, 1)
}

/// Entries [`shared_scan`] handles by one matrix product.
const SCAN_BLOCK: usize = 64;

/// `S_i = exp(log_i) S_{i-1} + u_i` for wide `S` with one decay per row, and `S_0` first:
/// `log: [r, c, 1]`, `u: [r, c, m]`, `s0: [r, 1, m]` -> `[r, c+1, m]`. The decays between all pairs are a
/// matrix, so up to [`SCAN_BLOCK`] entries are one product; longer ones go by blocks.
pub(crate) fn shared_scan(log: Tensor<3>, u: Tensor<3>, s0: Tensor<3>) -> Tensor<3> {
    let [rows, c, m] = u.dims();
    if c <= SCAN_BLOCK {
        let log = Tensor::cat(vec![log.clone().narrow(1, 0, 1).zeros_like(), log], 1);
        return segment_sums(log).exp().matmul(Tensor::cat(vec![s0, u], 1));
    }
    let blocks = c.div_ceil(SCAN_BLOCK);
    let split = |x: Tensor<3>| {
        let width = x.dims()[2];
        pad(x, 1, blocks * SCAN_BLOCK).reshape([rows * blocks, SCAN_BLOCK, width])
    };
    let (log, u) = (split(log), split(u));
    let local = segment_sums(log.clone()).exp().matmul(u);
    let sums = prefix(log);
    let last = |x: &Tensor<3>| {
        let width = x.dims()[2];
        x.clone().narrow(1, SCAN_BLOCK - 1, 1).reshape([rows, blocks, width])
    };
    let before = shared_scan(last(&sums), last(&local), s0.clone()).narrow(1, 0, blocks);
    let states = local + sums.exp() * before.reshape([rows * blocks, 1, m]);
    Tensor::cat(vec![s0, states.reshape([rows, blocks * SCAN_BLOCK, m]).narrow(1, 0, c)], 1)
}

/// The same in chunks: all at once inside each chunk, then over the chunks' ends.
pub(crate) fn direct_chunked(
    log_a: Tensor<4>,
    u: Tensor<4>,
    h0: Tensor<3>,
    size: usize,
) -> (Tensor<4>, Tensor<3>) {
    let [b, h, t, n] = u.dims();
    let chunks = t.div_ceil(size);
    let split = |x: Tensor<4>| pad(x, 2, chunks * size).reshape([b * h * chunks, size, n]);
    let (log_a, u) = (split(log_a), split(u));
    let local = inclusive_scan(log_a.clone(), u);
    let sums = prefix(log_a);
    let ends = |x: &Tensor<3>| x.clone().narrow(1, size - 1, 1).reshape([b, h, chunks, n]);
    let (carried, _) = direct_parallel(ends(&sums), ends(&local), h0.clone());
    let before = match chunks {
        1 => h0.unsqueeze_dim::<4>(2),
        _ => Tensor::cat(vec![h0.unsqueeze_dim::<4>(2), carried.narrow(2, 0, chunks - 1)], 2),
    };
    let y = local + sums.exp() * before.reshape([b * h * chunks, 1, n]);
    let y = y.reshape([b, h, chunks * size, n]).narrow(2, 0, t);
    let last = y.clone().narrow(2, t - 1, 1).squeeze_dim(2);
    (y, last)
}

/// Appends zeros along an axis up to `length`: a token with log-decay 0 and input 0 changes nothing.
pub(crate) fn pad<const D: usize>(x: Tensor<D>, axis: usize, length: usize) -> Tensor<D> {
    let mut dims = x.dims();
    if dims[axis] == length {
        return x;
    }
    dims[axis] = length - dims[axis];
    let zeros = Tensor::zeros(dims, (&x.device(), x.dtype()));
    Tensor::cat(vec![x, zeros], axis)
}

/// Entry `t` along `axis` becomes entry `t-1`, the first one `fill`.
pub(crate) fn delay<const D: usize>(x: Tensor<D>, axis: usize, fill: f64) -> Tensor<D> {
    let size = x.dims()[axis];
    let first = x.clone().narrow(axis, 0, 1).zeros_like().add_scalar(fill);
    if size == 1 {
        return first;
    }
    Tensor::cat(vec![first, x.narrow(axis, 0, size - 1)], axis)
}
