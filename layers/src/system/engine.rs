//! Runs any [`System`] in any [`Form`]. Written once for all linear-state mixers (dsf.md 3.3 and 3.4).
//!
//! Shapes: batch `b`, heads `h`, time `t`, key size `n`, value size `p`, chunks `c` of `q` tokens.
//! Inside a chunk `G[i, j] = Σ_{j < s ≤ i} log Λ_s`; `S` is the state before the chunk.

use burn::tensor::Tensor;

use super::decay::ChunkDecay;
use super::inverse::unit_lower_inverse;
use super::scan::{self, pad, unbind};
use super::{Form, Io, Read, System, Transition};
use crate::nn::add_skip;
use crate::{Error, Result, kernels};

/// Chunk length at which a chunk's quadratic part and its state update cost about the same for the
/// head sizes in use; also the length up to which `Auto` runs a sequence as one chunk.
pub const AUTO_CHUNK: usize = 64;

/// Runs `system` from `memory` and returns the outputs `[b, h, t, p]` (`p = n` for [`Io::Direct`]) and the
/// final memory: `[b, h, n, p]` for [`Io::Outer`], `[b, h, n, 1]` for [`Io::Direct`].
///
/// A `Dense` transition always runs token by token. In `Auto` and `Chunked` form a [kernel](crate::kernels) does the
/// work where there is one.
///
/// # Errors
/// When the memory does not fit, or `Io::Direct` comes with another transition than `Diagonal`, with several
/// steps per token, or reads before writing.
pub fn run(system: System, memory: Tensor<4>, form: Form) -> Result<(Tensor<4>, Tensor<4>)> {
    run_with(system, memory, form, kernels::enabled())
}

/// [`run`], with or without kernels.
pub(crate) fn run_with(
    system: System,
    memory: Tensor<4>,
    form: Form,
    kernels: bool,
) -> Result<(Tensor<4>, Tensor<4>)> {
    let ([b, h, t], n) = system.dims();
    let p = match &system.io {
        Io::Outer { v, .. } => v.dims()[3],
        Io::Direct { .. } => 1,
    };
    if memory.dims() != [b, h, n, p] {
        let expected = format!("[{b}, {h}, {n}, {p}]");
        return Err(Error::shape("memory", expected, &memory.dims()));
    }
    let plain = system.read == Read::After && system.steps == 1;
    let through = match &system.io {
        Io::Outer { v, .. } => last_steps(v.clone(), system.steps),
        Io::Direct { u, .. } if plain => u.clone(),
        Io::Direct { .. } => {
            let reason = "one state per channel takes one step per token and reads after it";
            return Err(Error::State(reason.into()));
        }
    };
    if t == 0 {
        return Ok((through, memory)); // no outputs: as empty as the input
    }
    #[cfg(feature = "cube")]
    if plain
        && kernels
        && let Some(done) = run_on_graphics(&system, &memory, form)
    {
        return Ok(done);
    }
    #[cfg(any(feature = "flex", feature = "cube"))]
    if plain
        && kernels
        && let Some((y, memory)) = run_tiled(&system, &memory, form)
    {
        return Ok((with_skip(y, through, system.skip), memory));
    }
    let system = system.settled();
    let (y, memory) = match system.io {
        Io::Outer { q, k, v } if !plain => {
            let first = (q.clone().narrow(2, 0, 1).swap_dims(2, 3) * memory.clone()).sum_dim(2);
            let early = system.read == Read::Before;
            let q = spread_steps(if early { advance(q) } else { q }, system.steps);
            let inner = System::outer(system.transition, q, k, v);
            let form = match form {
                Form::Chunked { size } => Form::Chunked { size: size * system.steps },
                other => other,
            };
            let (y, last) = run_with(inner, memory, form, kernels)?;
            let y = last_steps(y, system.steps);
            // Each query was asked one token early; the first one asks the memory itself.
            let y = if early && t > 1 {
                Tensor::cat(vec![first, y.narrow(2, 0, t - 1)], 2)
            } else if early {
                first
            } else {
                y
            };
            (y, last)
        }
        io => run_plain(system.transition, io, memory, form, kernels)?,
    };
    Ok((with_skip(y, through, system.skip), memory))
}

/// `y + d v`, where there is a `d`.
fn with_skip(y: Tensor<4>, v: Tensor<4>, d: Option<Tensor<4>>) -> Tensor<4> {
    match d {
        Some(d) => add_skip(y, v, d),
        None => y,
    }
}

/// A recurrence of a matrix that is read after each token's write by its kernel, with its gain.
#[cfg(any(feature = "flex", feature = "cube"))]
fn run_tiled(system: &System, memory: &Tensor<4>, form: Form) -> Option<(Tensor<4>, Tensor<4>)> {
    let block = block(form)?;
    let System { transition, io, gain, .. } = system;
    let recurrence = kernels::tiled::Recurrence::new(transition, io, memory)?.with_gain(*gain);
    (recurrence.tokens() > 1 || recurrence.takes_one_token()).then(|| recurrence.run(block))
}

/// The same with all that stands around its memory in one kernel, on a graphics device without gradients.
#[cfg(feature = "cube")]
fn run_on_graphics(system: &System, memory: &Tensor<4>, form: Form) -> Option<(Tensor<4>, Tensor<4>)> {
    let block = block(form).filter(|_| kernels::linear::on_graphics(memory))?;
    let System { transition, io, skip, gain, packed, .. } = system;
    let recurrence = kernels::tiled::Recurrence::new(transition, io, memory)?.with_gain(*gain);
    recurrence.run_on_graphics(block, kernels::tiled::Around { skip: skip.as_ref(), packed: packed.as_ref() })
}

/// Tokens of a block of a kernel, or as many as are fastest, for the forms that kernels have.
#[cfg(any(feature = "flex", feature = "cube"))]
fn block(form: Form) -> Option<Option<usize>> {
    match form {
        Form::Auto => Some(None),
        Form::Chunked { size } => Some(Some(size.max(1))),
        Form::Recurrent | Form::Parallel => None,
    }
}

/// Entry `t` becomes entry `t+1`'s, the last one 0: `[b, h, t, n]`.
fn advance(q: Tensor<4>) -> Tensor<4> {
    let t = q.dims()[2];
    let zero = q.clone().narrow(2, 0, 1).zeros_like();
    if t == 1 { zero } else { Tensor::cat(vec![q.narrow(2, 1, t - 1), zero], 2) }
}

/// Each token's last of `m` steps: `[b, h, t m, p] -> [b, h, t, p]`.
fn last_steps(x: Tensor<4>, m: usize) -> Tensor<4> {
    if m == 1 {
        return x;
    }
    let [b, h, t, p] = x.dims();
    x.reshape([b, h, t / m, m, p]).narrow(3, m - 1, 1).squeeze_dim(3)
}

/// Zeros before each entry, so that it is the last of `m` steps: `[b, h, t, n] -> [b, h, t m, n]`.
fn spread_steps(q: Tensor<4>, m: usize) -> Tensor<4> {
    if m == 1 {
        return q;
    }
    let [b, h, t, n] = q.dims();
    let zeros = Tensor::zeros([b, h, t, m - 1, n], (&q.device(), q.dtype()));
    Tensor::cat(vec![zeros, q.unsqueeze_dim::<5>(3)], 3).reshape([b, h, t * m, n])
}

/// Tokens per chunk in which `t` tokens are run, `None` for one at a time.
pub(crate) fn chunk_size(form: Form, t: usize) -> Option<usize> {
    match form {
        Form::Recurrent => None,
        Form::Parallel => Some(t),
        Form::Chunked { size } => Some(size.max(1).min(t)),
        Form::Auto if t == 1 => None,
        Form::Auto => Some(AUTO_CHUNK.min(t)),
    }
}

/// [`run`] with one step per token and the read after it.
#[cfg_attr(
    not(any(feature = "flex", feature = "cube")),
    allow(unused_variables, reason = "there are no kernels without a backend")
)]
fn run_plain(
    transition: Transition,
    io: Io,
    memory: Tensor<4>,
    form: Form,
    kernels: bool,
) -> Result<(Tensor<4>, Tensor<4>)> {
    let t = match &io {
        Io::Outer { k, .. } => k.dims()[2],
        Io::Direct { u, .. } => u.dims()[2],
    };
    let chunk = chunk_size(form, t);
    #[cfg(feature = "flex")]
    if let Io::Outer { q, k, v } = &io
        && kernels
        && t == 1
        && matches!(form, Form::Auto | Form::Chunked { .. })
        && let Some(done) = kernels::token::step(&transition, [q, k, v], &memory)
    {
        return Ok(done);
    }
    Ok(match (transition, io) {
        #[cfg(any(feature = "flex", feature = "cube"))]
        (Transition::Diagonal { log_a }, Io::Direct { u, c })
            if kernels
                && form != Form::Parallel
                && (chunk.is_some() || form == Form::Auto && kernels::scan::takes_one_token(&u))
                && kernels::scan::applies(&log_a, &u, &memory) =>
        {
            let (y, last) = kernels::scan::run(log_a, u, memory);
            (if let Some(c) = c { y * c } else { y }, last)
        }
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
                // the same for all chunks of all heads
                let zeros = Tensor::zeros([1, 1, 1, size, 1], (&k.device().inner(), k.dtype()));
                decayed(ChunkDecay::new(zeros), q, k, v, memory, size)
            }
            (Some(size), Transition::Scalar { log_a }) => {
                let decay = ChunkDecay::new(chunks(log_a.unsqueeze_dim(3), size));
                decayed(decay, q, k, v, memory, size)
            }
            (Some(size), Transition::Diagonal { log_a }) => {
                decayed(ChunkDecay::new(chunks(log_a, size)), q, k, v, memory, size)
            }
            (Some(size), Transition::Householder { log_d, a, b }) => {
                rank_one(log_d, a, b, q, k, v, memory, size)
            }
            (Some(_), transition @ Transition::Dense { .. }) => recurrent(transition, q, k, v, memory),
        },
    })
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
pub(crate) fn chunks(x: Tensor<4>, size: usize) -> Tensor<5> {
    let [b, h, t, n] = x.dims();
    let count = t.div_ceil(size);
    pad(x, 2, count * size).reshape([b, h, count, size, n])
}

/// `[b, h, c, q, p] -> [b, h, t, p]`, dropping the padding.
pub(crate) fn unchunk(x: Tensor<5>, t: usize) -> Tensor<4> {
    let [b, h, c, q, p] = x.dims();
    x.reshape([b, h, c * q, p]).narrow(2, 0, t)
}

/// States before every chunk, `[b, h, c, n, p]`, and after the last, for `S ← exp(log_total) ∘ S + local`.
fn chunk_states(log_total: Tensor<5>, local: Tensor<5>, s0: Tensor<4>) -> (Tensor<5>, Tensor<4>) {
    let [b, h, c, n, p] = local.dims();
    if c == 1 {
        let before = s0.unsqueeze_dim::<5>(2);
        let last = log_total.exp() * before.clone() + local;
        return (before, last.squeeze_dim(2));
    }
    // Rows that share a decay become one row of the scan: all of them, or one per channel.
    let width = log_total.dims()[3];
    let (rows, m) = (b * h * width, n / width * p);
    let turn = |x: Tensor<5>| x.swap_dims(2, 3);
    let log = turn(log_total.expand([b, h, c, width, 1])).reshape([rows, c, 1]);
    let local = turn(local.reshape([b, h, c, width, m])).reshape([rows, c, m]);
    let states = scan::shared_scan(log, local, s0.reshape([rows, 1, m])).reshape([b, h, width, c + 1, m]);
    let before = turn(states.clone().narrow(3, 0, c)).reshape([b, h, c, n, p]);
    (before, states.narrow(3, c, 1).reshape([b, h, n, p]))
}

/// A memory with scalar or diagonal decay on one input, kept in chunks so that it can be read more than once:
/// `Y = (Q Kᵀ ∘ e^G) V + (Q ∘ e^{G₀}) S`, `S ← e^{G} S + (K ∘ e^{G - Gₛ})ᵀ V`.
pub(crate) struct Decayed {
    decay: ChunkDecay,
    k: Tensor<5>,
    v: Tensor<5>,
    states: Tensor<5>,
    time: usize,
    size: usize,
}

impl Decayed {
    /// Writes `k`, `v`: `[b, h, t, n]` in chunks of `size` and gives the final memory.
    fn new(
        decay: ChunkDecay,
        k: Tensor<4>,
        v: Tensor<4>,
        memory: Tensor<4>,
        size: usize,
    ) -> (Self, Tensor<4>) {
        let time = k.dims()[2];
        let (k, v) = (chunks(k, size), chunks(v, size));
        let local = (k.clone() * decay.to_end.clone()).swap_dims(3, 4).matmul(v.clone());
        let (states, last) = chunk_states(decay.log_total.clone(), local, memory);
        (Self { decay, k, v, states, time, size }, last)
    }

    /// The same with one decay per head, `[b, h, t]`.
    pub(crate) fn scalar(
        log_a: Tensor<3>,
        k: Tensor<4>,
        v: Tensor<4>,
        memory: Tensor<4>,
        size: usize,
    ) -> (Self, Tensor<4>) {
        Self::new(ChunkDecay::new(chunks(log_a.unsqueeze_dim(3), size)), k, v, memory, size)
    }

    /// What each token finds at its query after writing: `[b, h, t, n] -> [b, h, t, p]`.
    pub(crate) fn read(&self, q: Tensor<4>) -> Tensor<4> {
        let q = chunks(q, self.size);
        let intra = self.decay.scores(q.clone(), self.k.clone()).matmul(self.v.clone());
        let inter = (q * self.decay.from_start.clone()).matmul(self.states.clone());
        unchunk(intra + inter, self.time)
    }
}

/// One read of a [`Decayed`] memory.
fn decayed(
    decay: ChunkDecay,
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    memory: Tensor<4>,
    size: usize,
) -> (Tensor<4>, Tensor<4>) {
    let (written, last) = Decayed::new(decay, k, v, memory, size);
    (written.read(q), last)
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
    let reads_state = solve.clone().matmul(a.clone() * decay.until_before());
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
