//! The kernel on slices: one head at a time, from the first token to the last, vectors in whole blocks of lanes.

use rayon::prelude::*;

use super::Options;
use crate::kernels::lanes::{add_blocks as add, dot_blocks as dot};
use crate::kernels::room::Room;
use crate::kernels::shares::Target;
use crate::kernels::vector::{LANES, Vector, Work, block_by_block, fused, sigmoid, together, vectorised};
use crate::kernels::view::{Head, View};

/// Tokens from one set of sums that the way back starts again from to the next.
const TILE: usize = 32;

/// Numbers of all heads together from which on several threads are worth waking.
const LARGE: usize = 1 << 14;

/// Results of a token: `a`, `c` and `I`.
const RESULTS: usize = 3;

/// What both passes read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inputs<'a, E> {
    /// `[b, h, t, n]`
    pub(super) q: View<'a, E>,
    /// `[b, h, t, n]`
    pub(super) k: View<'a, E>,
    /// `[b, h, 4 n + 1, 1]`
    pub(super) sums: View<'a, E>,
    pub(super) options: &'a Options,
}

/// A block of a vector.
type Lanes<E> = [E; LANES];

/// The sums, or gradients of them: `K`, `Q`, `G`, `T` and `C`.
#[derive(Clone)]
struct Sums<E> {
    vectors: [Vec<Lanes<E>>; 4],
    competition: E,
}

/// One head.
struct Job<'a, E> {
    q: Head<'a, E>,
    k: Head<'a, E>,
    sums: Head<'a, E>,
    eps: E,
    clamp: E,
    head: usize,
    start: usize,
    real: usize,
    time: usize,
    n: usize,
}

/// What one token brings: the vectors, and the same with `ε` added to their numbers.
struct Token<E> {
    q: Vec<Lanes<E>>,
    k: Vec<Lanes<E>>,
    q_up: Vec<Lanes<E>>,
    k_up: Vec<Lanes<E>>,
    /// `ε Σ q̂` and `ε Σ k̂`
    own: [E; 2],
    /// `t`
    count: E,
    valid: bool,
}

/// What a token finds.
#[derive(Clone, Copy)]
struct Found<E> {
    incoming: E,
    outgoing: E,
    allocation: E,
    /// Before its clamp
    conserved: E,
    source: E,
    /// What sources compete with
    all: E,
}

impl<E: Vector> Sums<E> {
    #[inline(always)]
    fn zeros(n: usize) -> Self {
        let vector = || vec![[E::default(); LANES]; n.div_ceil(LANES)];
        Self { vectors: [vector(), vector(), vector(), vector()], competition: E::default() }
    }

    /// Of one head, `[4 n + 1, 1]`.
    fn read(from: Head<'_, E>, n: usize) -> Self {
        let mut all = Self::zeros(n);
        let from = from.turned();
        for (i, vector) in all.vectors.iter_mut().enumerate() {
            from.copy(0, i * n, &mut vector.as_flattened_mut()[..n]);
        }
        let mut last = [E::default()];
        from.copy(0, 4 * n, &mut last);
        all.competition = last[0];
        all
    }

    fn write(&self, to: Target<E>, head: usize, n: usize) {
        for (i, vector) in self.vectors.iter().enumerate() {
            put(to, head, i * n, &vector.as_flattened()[..n]);
        }
        put(to, head, 4 * n, &[self.competition]);
    }
}

#[inline(always)]
#[allow(unsafe_code, reason = "jobs write different rows")]
fn put<E: Vector>(to: Target<E>, row: usize, first: usize, from: &[E]) {
    // SAFETY: what `to` points to is borrowed by the pass, and rows of a head are its job's.
    unsafe { to.row(row, first, from.len()) }.write_copy_of_slice(from);
}

/// `to += factor (x + eps)`
#[inline(always)]
fn add_up<E: Vector, const FUSED: bool>(to: &mut [Lanes<E>], factor: E, x: &[Lanes<E>], eps: E) {
    for (to, x) in to.iter_mut().zip(x) {
        block_by_block();
        for l in 0..LANES {
            to[l] = fused::<E, FUSED>(factor, x[l] + eps, to[l]);
        }
    }
}

impl<E: Vector> Inputs<'_, E> {
    fn job(&self, head: usize) -> Job<'_, E> {
        let ([_, h, time, n], options) = (self.q.dims, self.options);
        Job {
            q: self.q.head(head),
            k: self.k.head(head),
            sums: self.sums.head(head),
            eps: E::of(options.eps),
            clamp: E::of(options.clamp),
            head,
            start: options.starts[head / h],
            real: options.real[head / h],
            time,
            n,
        }
    }

    /// Does all heads' jobs.
    fn for_all(&self, job: impl Fn(usize) + Send + Sync) {
        let [b, h, t, n] = self.q.dims;
        let heads = 0..b * h;
        if b * h * t * n < LARGE {
            heads.for_each(job);
        } else {
            heads.into_par_iter().for_each(job);
        }
    }
}

impl<E: Vector> Job<'_, E> {
    fn token(&self) -> Token<E> {
        let vector = || vec![[E::default(); LANES]; self.n.div_ceil(LANES)];
        let (q, k, q_up, k_up) = (vector(), vector(), vector(), vector());
        Token { q, k, q_up, k_up, own: [E::default(); 2], count: E::default(), valid: false }
    }

    #[inline(always)]
    fn read(&self, i: usize, to: &mut Token<E>) {
        let Token { q, k, q_up, k_up, own, .. } = to;
        let vectors = [(self.q, q, q_up), (self.k, k, k_up)];
        for ((from, plain, up), own) in vectors.into_iter().zip(own) {
            let plain = &mut plain.as_flattened_mut()[..self.n];
            from.copy(i, 0, plain);
            let shifted = up.as_flattened_mut()[..self.n].iter_mut().zip(plain);
            shifted.for_each(|(up, plain)| *up = *plain + self.eps);
            let mut sum = [E::default(); LANES];
            for up in up.iter() {
                block_by_block();
                for l in 0..LANES {
                    sum[l] += up[l];
                }
            }
            *own = together(sum) * self.eps;
        }
        to.count = E::of((self.start + i + 1) as f64);
        to.valid = i < self.real;
    }

    /// One token: the sums after it, and what it finds.
    #[inline(always)]
    fn step<const FUSED: bool>(&self, token: &Token<E>, sums: &mut Sums<E>) -> Found<E> {
        let Token { q, k, q_up, k_up, own: [own_q, own_k], count, valid } = token;
        let one = E::of(1.0);
        let [keys, queries, given, taken] = &mut sums.vectors;
        if *valid {
            add::<E, FUSED>(keys, one, k);
            add::<E, FUSED>(queries, one, q);
        }
        let incoming = one / (dot::<E, FUSED>(q_up, keys) + *own_q);
        let outgoing = one / (dot::<E, FUSED>(k_up, queries) + *own_k);
        if *valid {
            add::<E, FUSED>(given, *count * outgoing, k);
            add::<E, FUSED>(taken, *count * incoming, q);
        }
        let allocation = sigmoid::<E, FUSED>((dot::<E, FUSED>(q_up, given) + *own_q) / *count);
        let conserved = (dot::<E, FUSED>(k_up, taken) + *own_k) / *count;
        let above = if conserved > self.clamp { self.clamp } else { conserved };
        let source = if above < -self.clamp { -self.clamp } else { above }.exponential::<FUSED>();
        let all = if *valid {
            sums.competition += source;
            sums.competition
        } else {
            sums.competition + one
        };
        Found { incoming, outgoing, allocation, conserved, source, all }
    }
}

/// Fills the outputs, `[b, h, t, 3]`, and the last sums.
pub(super) fn forward<E: Vector>(inputs: &Inputs<'_, E>, to: &mut [Room<E>; 2]) {
    let [y, last] = to.each_mut();
    let n = inputs.q.dims[3];
    let (y, last) = (Target::new(y, RESULTS), Target::new(last, 4 * n + 1));
    inputs.for_all(|head| vectorised(Forward { job: inputs.job(head), y, last }));
}

struct Forward<'a, E> {
    job: Job<'a, E>,
    y: Target<E>,
    last: Target<E>,
}

impl<E: Vector> Work for Forward<'_, E> {
    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let Self { job, y, last } = self;
        let (mut sums, mut token) = (Sums::read(job.sums, job.n), job.token());
        for i in 0..job.time {
            job.read(i, &mut token);
            let Found { incoming, allocation, source, all, .. } = job.step::<FUSED>(&token, &mut sums);
            put(y, job.head * job.time + i, 0, &[allocation, source * token.count / all, incoming]);
        }
        sums.write(last, job.head, job.n);
    }
}

/// Fills `to` with the gradients of `q`, `k` and the sums for `dy`, and `last` of the last sums where there is one.
pub(super) fn backward<E: Vector>(
    inputs: &Inputs<'_, E>,
    dy: View<'_, E>,
    last: Option<View<'_, E>>,
    to: &mut [Room<E>; 3],
) {
    let n = inputs.q.dims[3];
    let [q, k, sums] = to.each_mut();
    let out = [Target::new(q, n), Target::new(k, n), Target::new(sums, 4 * n + 1)];
    inputs.for_all(|head| {
        let last = last.map(|last| last.head(head));
        vectorised(Backward { job: inputs.job(head), dy: dy.head(head), last, out });
    });
}

struct Backward<'a, E> {
    job: Job<'a, E>,
    dy: Head<'a, E>,
    last: Option<Head<'a, E>>,
    /// Of `q`, `k` and the sums
    out: [Target<E>; 3],
}

impl<E: Vector> Work for Backward<'_, E> {
    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let Self { job, dy, last, out: [to_q, to_k, to_sums] } = self;
        let (mut sums, mut token) = (Sums::read(job.sums, job.n), job.token());
        let mut starts = Vec::with_capacity(job.time.div_ceil(TILE));
        for i in 0..job.time {
            if i % TILE == 0 {
                starts.push(sums.clone());
            }
            job.read(i, &mut token);
            job.step::<FUSED>(&token, &mut sums);
        }
        let mut gradient = match last {
            Some(last) => Sums::read(last, job.n),
            None => Sums::zeros(job.n),
        };
        let mut after: Vec<Sums<E>> = (0..TILE).map(|_| Sums::zeros(job.n)).collect();
        let mut found = Vec::with_capacity(TILE);
        let [mut dq, mut dk] = [(); 2].map(|()| vec![[E::default(); LANES]; job.n.div_ceil(LANES)]);
        for (tile, start) in starts.into_iter().enumerate().rev() {
            let tokens = tile * TILE..job.time.min((tile + 1) * TILE);
            sums = start;
            found.clear();
            for (i, after) in tokens.clone().zip(&mut after) {
                job.read(i, &mut token);
                found.push(job.step::<FUSED>(&token, &mut sums));
                after.clone_from(&sums);
            }
            for (i, (after, found)) in tokens.zip(after.iter().zip(&found)).rev() {
                job.read(i, &mut token);
                let mut by = [E::default(); RESULTS];
                dy.copy(i, 0, &mut by);
                step_back::<E, FUSED>(&job, &token, after, found, by, &mut gradient, [&mut dq, &mut dk]);
                let row = job.head * job.time + i;
                put(to_q, row, 0, &dq.as_flattened()[..job.n]);
                put(to_k, row, 0, &dk.as_flattened()[..job.n]);
            }
        }
        gradient.write(to_sums, job.head, job.n);
    }
}

/// One token back, from the sums `after` it: their gradient becomes that of the sums before it.
#[inline(always)]
fn step_back<E: Vector, const FUSED: bool>(
    job: &Job<'_, E>,
    token: &Token<E>,
    after: &Sums<E>,
    found: &Found<E>,
    [by_allocation, by_competition, mut by_incoming]: [E; RESULTS],
    gradient: &mut Sums<E>,
    [dq, dk]: [&mut [Lanes<E>]; 2],
) {
    let Token { q, k, q_up, k_up, count, valid, .. } = token;
    let Found { incoming, outgoing, allocation, conserved, source, all } = *found;
    let [keys, queries, given, taken] = &after.vectors;
    let [by_keys, by_queries, by_given, by_taken] = &mut gradient.vectors;
    let (one, eps) = (E::of(1.0), job.eps);
    dq.fill([E::default(); LANES]);
    dk.fill([E::default(); LANES]);

    let share = by_competition * *count / all;
    let mut by_source = share;
    gradient.competition += -(share * source / all);
    if *valid {
        by_source += gradient.competition;
    }
    let clamped = conserved > job.clamp || conserved < -job.clamp;
    let by_conserved = if clamped { E::default() } else { by_source * source / *count };
    let by_allocated = by_allocation * allocation * (one - allocation) / *count;
    add_up::<E, FUSED>(dk, by_conserved, taken, eps);
    add::<E, FUSED>(by_taken, by_conserved, k_up);
    add_up::<E, FUSED>(dq, by_allocated, given, eps);
    add::<E, FUSED>(by_given, by_allocated, q_up);

    let mut by_outgoing = E::default();
    if *valid {
        by_incoming = fused::<E, FUSED>(*count, dot::<E, FUSED>(q, by_taken), by_incoming);
        by_outgoing = *count * dot::<E, FUSED>(k, by_given);
        add::<E, FUSED>(dq, *count * incoming, by_taken);
        add::<E, FUSED>(dk, *count * outgoing, by_given);
    }
    let (to_incoming, to_outgoing) =
        (-(by_incoming * incoming * incoming), -(by_outgoing * outgoing * outgoing));
    add_up::<E, FUSED>(dq, to_incoming, keys, eps);
    add::<E, FUSED>(by_keys, to_incoming, q_up);
    add_up::<E, FUSED>(dk, to_outgoing, queries, eps);
    add::<E, FUSED>(by_queries, to_outgoing, k_up);
    if *valid {
        add::<E, FUSED>(dk, one, by_keys);
        add::<E, FUSED>(dq, one, by_queries);
    }
}
