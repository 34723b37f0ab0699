//! Runs any [`System`] in any [`Form`]. Written once for all linear-state mixers (dsf.md 3.3 and 3.4).
//!
//! Shapes: batch `b`, heads `h`, time `t`, key size `n`, value size `p`, chunks `c` of `q` tokens.
//! Inside a chunk `G[i, j] = Σ_{j < s ≤ i} log Λ_s`; `S` is the state before the chunk.

use burn::tensor::Tensor;

use super::scan::{self, pad_time, prefix, segment_sums, suffix, unbind};
use super::{Form, Io, System, Transition};
use crate::{Error, Result};

/// Chunk length at which a chunk's quadratic part and its state update cost about the same for the
/// head sizes in use; also the length up to which `Auto` runs a sequence as one chunk.
pub const AUTO_CHUNK: usize = 64;

/// Sub-block length of per-channel decays: pairs inside a sub-block are formed explicitly.
const SUB_BLOCK: usize = 16;

/// Runs `system` from `memory` and returns the outputs `[b, h, t, p]` (`p = n` for [`Io::Direct`]) and the
/// final memory: `[b, h, n, p]` for [`Io::Outer`], `[b, h, n, 1]` for [`Io::Direct`].
///
/// A `Dense` transition always runs token by token.
///
/// # Errors
/// When the memory does not fit, or `Io::Direct` comes with another transition than `Diagonal`.
pub fn run(system: System, memory: Tensor<4>, form: Form) -> Result<(Tensor<4>, Tensor<4>)> {
    let ([b, h, t], n) = system.dims();
    let p = match &system.io {
        Io::Outer { v, .. } => v.dims()[3],
        Io::Direct { .. } => 1,
    };
    if memory.dims() != [b, h, n, p] {
        let expected = format!("[{b}, {h}, {n}, {p}]");
        return Err(Error::shape("memory", expected, &memory.dims()));
    }
    let through = match &system.io {
        Io::Outer { v, .. } => v.clone(),
        Io::Direct { u, .. } => u.clone(),
    };
    if t == 0 {
        return Ok((through, memory)); // no outputs: as empty as the input
    }
    let skip = system.skip.map(|d| d * through);
    let chunk = match form {
        Form::Recurrent => None,
        Form::Parallel => Some(t),
        Form::Chunked { size } => Some(size.max(1).min(t)),
        Form::Auto if t == 1 => None,
        Form::Auto => Some(AUTO_CHUNK.min(t)),
    };
    let (y, memory) = match (system.transition, system.io) {
        (Transition::Diagonal { log_a }, Io::Direct { u, c }) => {
            let h0 = memory.squeeze_dim::<3>(3);
            let (y, last) = match chunk {
                None => scan::direct_recurrent(log_a, u, h0),
                Some(size) if size >= t => scan::direct_parallel(log_a, u, h0),
                Some(size) => scan::direct_chunked(log_a, u, h0, size),
            };
            (if let Some(c) = c { y * c } else { y }, last.unsqueeze_dim(3))
        }
        (_, Io::Direct { .. }) => {
            return Err(Error::State("one state per channel needs a `Diagonal` transition".into()));
        }
        (transition, Io::Outer { q, k, v }) => match (chunk, transition) {
            (None, transition) => recurrent(transition, q, k, v, memory),
            (Some(size), Transition::Identity) => {
                let log_d = Tensor::zeros([b, h, t, 1], (&k.device(), k.dtype()));
                decayed(log_d, q, k, v, memory, size)
            }
            (Some(size), Transition::Scalar { log_a }) => {
                decayed(log_a.unsqueeze_dim(3), q, k, v, memory, size)
            }
            (Some(size), Transition::Diagonal { log_a }) => {
                decayed(log_a, q, k, v, memory, size)
            }
            (Some(size), Transition::Householder { log_d, a, b }) => {
                rank_one(log_d, a, b, q, k, v, memory, size)
            }
            (Some(_), transition @ Transition::Dense { .. }) => {
                recurrent(transition, q, k, v, memory)
            }
        },
    };
    Ok((if let Some(skip) = skip { y + skip } else { y }, memory))
}

/// The reference: one token at a time, multiply and sum, no matrix products.
fn recurrent(
    transition: Transition,
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    mut memory: Tensor<4>,
) -> (Tensor<4>, Tensor<4>) {
    let column = |x: Tensor<4>| x.swap_dims(2, 3); // [b, h, 1, n] -> [b, h, n, 1]
    let (mut log_d, mut a, mut b, mut dense) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    match transition {
        Transition::Identity => {}
        Transition::Scalar { log_a } => log_d = unbind(log_a.unsqueeze_dim(3), 2),
        Transition::Diagonal { log_a } => log_d = unbind(log_a, 2),
        Transition::Householder { log_d: g, a: read, b: write } => {
            (log_d, a, b) = (unbind(g, 2), unbind(read, 2), unbind(write, 2));
        }
        Transition::Dense { lambda } => dense = unbind(lambda, 2),
    }
    let mut out = Vec::with_capacity(q.dims()[2]);
    let steps = unbind(q, 2).into_iter().zip(unbind(k, 2)).zip(unbind(v, 2)).enumerate();
    for (t, ((q, k), v)) in steps {
        let mut next = match log_d.get(t) {
            Some(g) => column(g.clone()).exp() * memory.clone(),
            None => memory.clone(),
        };
        if let Some(lambda) = dense.get(t) {
            next = lambda.clone().squeeze_dim::<4>(2).matmul(memory.clone());
        }
        if let (Some(a), Some(b)) = (a.get(t), b.get(t)) {
            let read = (column(a.clone()) * memory).sum_dim(2); // [b, h, 1, p]
            next = next + column(b.clone()) * read;
        }
        memory = next + column(k) * v;
        out.push((column(q) * memory.clone()).sum_dim(2));
    }
    (Tensor::cat(out, 2), memory)
}

/// `[b, h, t, n] -> [b, h, c, q, n]`, zero-padded to whole chunks.
fn chunks(x: Tensor<4>, size: usize) -> Tensor<5> {
    let [b, h, t, n] = x.dims();
    let count = t.div_ceil(size);
    pad_time(x, count * size).reshape([b, h, count, size, n])
}

/// `[b, h, c, q, p] -> [b, h, t, p]`, dropping the padding.
fn unchunk(x: Tensor<5>, t: usize) -> Tensor<4> {
    let [b, h, c, q, p] = x.dims();
    x.reshape([b, h, c * q, p]).narrow(2, 0, t)
}

/// Log-decays inside chunks in the forms the algorithm needs; none is a difference of longer sums.
struct ChunkDecay {
    /// `[b, h, c, q, w]`, `w` = 1 or `n`
    log_d: Tensor<5>,
    /// Segment sums `[b, h, c, q, q]` when `w = 1`.
    segments: Option<Tensor<5>>,
    /// `exp Σ_{s ≤ t}`
    from_start: Tensor<5>,
    /// `exp Σ_{s > t}`
    to_end: Tensor<5>,
    /// The chunk's total, `[b, h, c, w, 1]`
    log_total: Tensor<5>,
}

impl ChunkDecay {
    fn new(log_d: Tensor<5>) -> Self {
        let [.., size, width] = log_d.dims();
        let sums = prefix(log_d.clone());
        let log_total = sums.clone().narrow(3, size - 1, 1).swap_dims(3, 4);
        Self {
            segments: (width == 1).then(|| segment_sums(log_d.clone())),
            from_start: sums.exp(),
            to_end: suffix(log_d.clone()).exp(),
            log_total,
            log_d,
        }
    }

    /// `A[t, s] = Σ_n x_t[n] y_s[n] exp(G[t, s][n])` for `s ≤ t`, 0 above.
    fn scores(&self, x: Tensor<5>, y: Tensor<5>) -> Tensor<5> {
        match &self.segments {
            Some(segments) => x.matmul(y.swap_dims(3, 4)) * segments.clone().exp(),
            None => diagonal_scores(x, y, self.log_d.clone()),
        }
    }

    /// `A[t, s] = Σ_n x_t[n] y_s[n] exp(G[t-1, s][n])` for `s < t`, 0 elsewhere.
    fn scores_before(&self, x: Tensor<5>, y: Tensor<5>) -> Tensor<5> {
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
    fn from_start_before(&self) -> Tensor<5> {
        delay(self.from_start.clone(), 3, 1.0)
    }
}

/// Entry `t` along `axis` becomes entry `t-1`, the first one `fill`.
fn delay<const D: usize>(x: Tensor<D>, axis: usize, fill: f64) -> Tensor<D> {
    let size = x.dims()[axis];
    let first = x.clone().narrow(axis, 0, 1).zeros_like().add_scalar(fill);
    if size == 1 {
        return first;
    }
    Tensor::cat(vec![first, x.narrow(axis, 0, size - 1)], axis)
}

/// Scores under per-channel decay in two levels (dsf.md 3.3): pairs in one sub-block are formed
/// explicitly, pairs in different sub-blocks meet at the boundary before the later one.
fn diagonal_scores(x: Tensor<5>, y: Tensor<5>, log_d: Tensor<5>) -> Tensor<5> {
    let [b, h, c, size, n] = x.dims();
    let sub = SUB_BLOCK.min(size);
    let blocks = size.div_ceil(sub);
    let padded = blocks * sub;
    let (device, dtype) = (x.device(), x.dtype());
    let pad = |z: Tensor<5>| {
        if padded == size {
            return z;
        }
        let zeros = Tensor::zeros([b, h, c, padded - size, n], (&device, dtype));
        Tensor::cat(vec![z, zeros], 3)
    };
    let rows = b * h * c;
    let split = |z: Tensor<5>| pad(z).reshape([rows, blocks, sub, n]);
    let (x, y, g) = (split(x), split(y), split(log_d));

    // Inside a sub-block: exp of explicit segment sums per channel, [rows·blocks, n, sub, sub].
    let columns = g.clone().reshape([rows * blocks, sub, n]).swap_dims(1, 2).unsqueeze_dim::<4>(3);
    let within = segment_sums(columns).exp();
    let by_channel = |z: Tensor<4>| z.reshape([rows * blocks, sub, n]).swap_dims(1, 2);
    let xs = by_channel(x.clone()).unsqueeze_dim::<4>(3);
    let ys = by_channel(y.clone()).unsqueeze_dim::<4>(2);
    let diagonal = (within * xs * ys).sum_dim(1).reshape([rows, blocks, sub, sub]);
    if blocks == 1 {
        return diagonal.reshape([b, h, c, padded, padded]).narrow(3, 0, size).narrow(4, 0, size);
    }

    // Between sub-blocks i > j: x decays from the start of i, y to the end of j, and whole blocks between.
    let x_in = x * prefix(g.clone()).exp();
    let y_out = y * suffix(g.clone()).exp();
    let totals = g.sum_dim(2).squeeze_dim::<3>(2); // [rows, blocks, n]
    let between = segment_sums(totals.swap_dims(1, 2).unsqueeze_dim::<4>(3)); // [rows, n, i, j]: j < m ≤ i
    let between = delay(between, 2, scan::NEGATIVE); // row i now sums j < m < i
    let factor = between.exp().permute([0, 2, 3, 1]); // [rows, i, j, n]
    let keys = factor.unsqueeze_dim::<5>(3) * y_out.unsqueeze_dim::<5>(1); // [rows, i, j, sub, n]
    let keys = keys.reshape([rows, blocks, padded, n]);
    let cross = x_in.matmul(keys.swap_dims(2, 3)).reshape([rows, blocks, sub, blocks, sub]);
    let eye = Tensor::<2>::eye(blocks, &device.inner()).cast(dtype).reshape([1, blocks, 1, blocks, 1]);
    let scores = cross + diagonal.unsqueeze_dim::<5>(3) * eye;
    scores.reshape([b, h, c, padded, padded]).narrow(3, 0, size).narrow(4, 0, size)
}

/// States before every chunk, `[b, h, c, n, p]`, and after the last, for `S ← exp(log_total) ∘ S + local`.
fn chunk_states(log_total: Tensor<5>, local: Tensor<5>, s0: Tensor<4>) -> (Tensor<5>, Tensor<4>) {
    let [b, h, c, n, p] = local.dims();
    let before = s0.clone().unsqueeze_dim::<5>(2);
    if c == 1 {
        let last = log_total.exp() * before.clone() + local;
        return (before, last.squeeze_dim(2));
    }
    let flat = |x: Tensor<5>| x.reshape([b, h, c, n * p]);
    let decay = flat(log_total.expand([b, h, c, n, p]));
    let (after, last) =
        scan::direct_chunked(decay, flat(local), s0.reshape([b, h, n * p]), SUB_BLOCK);
    let after = after.reshape([b, h, c, n, p]).narrow(2, 0, c - 1);
    (Tensor::cat(vec![before, after], 2), last.reshape([b, h, n, p]))
}

/// Scalar or diagonal decay: `Y = (Q Kᵀ ∘ e^G) V + (Q ∘ e^{G₀}) S`, `S ← e^{G} S + (K ∘ e^{G - Gₛ})ᵀ V`.
fn decayed(
    log_d: Tensor<4>,
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    memory: Tensor<4>,
    size: usize,
) -> (Tensor<4>, Tensor<4>) {
    let t = q.dims()[2];
    let decay = ChunkDecay::new(chunks(log_d, size));
    let (q, k, v) = (chunks(q, size), chunks(k, size), chunks(v, size));
    let local = (k.clone() * decay.to_end.clone()).swap_dims(3, 4).matmul(v.clone());
    let (states, last) = chunk_states(decay.log_total.clone(), local, memory);
    let intra = decay.scores(q.clone(), k).matmul(v);
    let inter = (q * decay.from_start).matmul(states);
    (unchunk(intra + inter, t), last)
}

/// Diagonal plus rank one (dsf.md 3.4): `(I - A^{ab}) U = (a ∘ e^{G'}) S + A^{ak} V` gives the reads `U`.
#[allow(clippy::too_many_arguments, reason = "the seven tensors of the recurrence and the chunk size")]
fn rank_one(
    log_d: Tensor<4>,
    a: Tensor<4>,
    b: Tensor<4>,
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    memory: Tensor<4>,
    size: usize,
) -> (Tensor<4>, Tensor<4>) {
    let t = q.dims()[2];
    let decay = ChunkDecay::new(chunks(log_d, size));
    let [a, b, q, k, v] = [a, b, q, k, v].map(|x| chunks(x, size));
    let solve = unit_lower_inverse(decay.scores_before(a.clone(), b.clone()).neg());
    let reads_state = solve.clone().matmul(a.clone() * decay.from_start_before());
    let reads_input = solve.matmul(decay.scores_before(a, k.clone()).matmul(v.clone()));
    let b_end = (b.clone() * decay.to_end.clone()).swap_dims(3, 4);
    let k_end = (k.clone() * decay.to_end.clone()).swap_dims(3, 4);

    // S ← M S + N per chunk, with M = diag(e^G) + b_endᵀ reads_state.
    let [.., n, p] = memory.dims();
    let eye = Tensor::<2>::eye(n, &memory.device().inner()).cast(memory.dtype());
    let diagonal = decay.log_total.clone().exp() * eye.reshape([1, 1, 1, n, n]);
    let carry = diagonal + b_end.clone().matmul(reads_state.clone());
    let local = b_end.matmul(reads_input.clone()) + k_end.matmul(v.clone());
    let mut state = memory.unsqueeze_dim::<5>(2);
    let mut before = Vec::new();
    for (carry, local) in unbind(carry, 2).into_iter().zip(unbind(local, 2)) {
        before.push(state.clone());
        state = carry.matmul(state) + local;
    }
    let states = Tensor::cat(before, 2);

    let reads = reads_state.matmul(states.clone()) + reads_input; // U: [b, h, c, q, p]
    let y = (q.clone() * decay.from_start.clone()).matmul(states)
        + decay.scores(q.clone(), b).matmul(reads)
        + decay.scores(q, k).matmul(v);
    debug_assert_eq!(y.dims()[4], p);
    (unchunk(y, t), state.squeeze_dim(2))
}

/// `(I + L)^{-1}` for strictly lower-triangular `L: [.., q, q]`, by merging diagonal blocks of doubling
/// size: `[[A, 0], [B, C]]^{-1} = [[A^{-1}, 0], [-C^{-1} B A^{-1}, C^{-1}]]`. As stable as forward
/// substitution, unlike the product `(I - L)(I + L²)…`, whose powers can grow before they vanish.
fn unit_lower_inverse(l: Tensor<5>) -> Tensor<5> {
    let size = l.dims()[4];
    let (device, dtype) = (l.device().inner(), l.dtype());
    let eye = Tensor::<2>::eye(size, &device).cast(dtype);
    let mut inverse = eye.reshape([1, 1, 1, size, size]).expand(l.dims());
    let mut block = 1;
    while block < size {
        let mask: Vec<f32> = (0..size * size)
            .map(|e| (e / size, e % size))
            .map(|(i, j)| {
                let pair = i / (2 * block) == j / (2 * block);
                f32::from(pair && i / block % 2 == 1 && j / block % 2 == 0)
            })
            .collect();
        let mask = burn::tensor::TensorData::new(mask, [1, 1, 1, size, size]);
        let lower = l.clone() * Tensor::<5>::from_data(mask, (&device, dtype));
        inverse = if block == 1 {
            inverse - lower
        } else {
            inverse.clone() - inverse.clone().matmul(lower).matmul(inverse)
        };
        block *= 2;
    }
    inverse
}
