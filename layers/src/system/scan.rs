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

/// The same by doubling (Hillis–Steele): `log₂ t` rounds over the whole tensor.
pub(crate) fn direct_parallel(log_a: Tensor<4>, u: Tensor<4>, h0: Tensor<3>) -> (Tensor<4>, Tensor<3>) {
    let t = u.dims()[2];
    let decay = prefix(log_a.clone()).exp();
    let y = inclusive_scan(log_a, u) + decay * h0.unsqueeze_dim::<4>(2);
    let last = y.clone().narrow(2, t - 1, 1).squeeze_dim(2);
    (y, last)
}

/// `y_t = Σ_{s ≤ t} exp(Σ_{s < r ≤ t} log_a_r) u_s` along axis 2.
fn inclusive_scan(mut log_a: Tensor<4>, mut u: Tensor<4>) -> Tensor<4> {
    let t = u.dims()[2];
    let mut reach = 1;
    while reach < t {
        let keep = t - reach;
        let moved = log_a.clone().narrow(2, reach, keep).exp() * u.clone().narrow(2, 0, keep);
        let head = u.clone().narrow(2, 0, reach);
        u = Tensor::cat(vec![head, u.narrow(2, reach, keep) + moved], 2);
        if 2 * reach < t {
            let sums = log_a.clone().narrow(2, reach, keep) + log_a.clone().narrow(2, 0, keep);
            log_a = Tensor::cat(vec![log_a.narrow(2, 0, reach), sums], 2);
        }
        reach *= 2;
    }
    u
}

/// The same in chunks: doubling inside each chunk, then doubling over the chunks' totals.
pub(crate) fn direct_chunked(
    log_a: Tensor<4>,
    u: Tensor<4>,
    h0: Tensor<3>,
    size: usize,
) -> (Tensor<4>, Tensor<3>) {
    let [b, h, t, n] = u.dims();
    if size >= t {
        return direct_parallel(log_a, u, h0);
    }
    let chunks = t.div_ceil(size);
    let split = |x: Tensor<4>| pad_time(x, chunks * size).reshape([b * h, chunks, size, n]);
    let (log_a, u) = (split(log_a), split(u));
    // Chunks become the batch of the inner scan.
    let flat = |x: Tensor<4>| x.reshape([b * h * chunks, 1, size, n]);
    let local = inclusive_scan(flat(log_a.clone()), flat(u)).reshape([b * h, chunks, size, n]);
    let decay = prefix(log_a);
    let totals = decay.clone().narrow(2, size - 1, 1).reshape([b, h, chunks, n]);
    let ends = local.clone().narrow(2, size - 1, 1).reshape([b, h, chunks, n]);
    let (carried, _) = direct_parallel(totals, ends, h0.clone());
    let before = Tensor::cat(vec![h0.unsqueeze_dim::<4>(2), carried.narrow(2, 0, chunks - 1)], 2);
    let before = before.reshape([b * h, chunks, 1, n]);
    let y = (local + decay.exp() * before).reshape([b, h, chunks * size, n]).narrow(2, 0, t);
    let last = y.clone().narrow(2, t - 1, 1).squeeze_dim(2);
    (y, last)
}

/// Appends zeros along axis 2 up to `length`: a token with log-decay 0 and input 0 changes nothing.
pub(crate) fn pad_time(x: Tensor<4>, length: usize) -> Tensor<4> {
    let [b, h, t, n] = x.dims();
    if t == length {
        return x;
    }
    let zeros = Tensor::zeros([b, h, length - t, n], (&x.device(), x.dtype()));
    Tensor::cat(vec![x, zeros], 2)
}
