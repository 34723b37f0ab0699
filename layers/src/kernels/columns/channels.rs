//! The kernel on slices: some columns of one head at a time, in blocks of lanes, from the first token to the last. A block
//! has its memory as `n` rows of a lane per column, so that keys and queries, which all columns share, are numbers.

use std::marker::PhantomData;

use super::rule::{Lanes, Rule};
use crate::kernels::dense::Matrix;
use crate::kernels::lanes::{add_up, part, put_part};
use crate::kernels::room::Room;
use crate::kernels::shares::{CHANNELS, Share, Target, for_all, shares};
use crate::kernels::vector::{LANES, Vector, Work, block_by_block, dot, fused, vectorised};
use crate::kernels::view::{Head, View};

/// Tokens from one memory that the way back starts again from to the next: their memories stay in the second cache.
const TILE: usize = 32;

/// What both passes read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inputs<'a, E> {
    /// What a token brings to a column, `[b, h, t, c]` each: the first is a rate or the logarithm of a decay, the second
    /// what is written
    pub(super) given: [View<'a, E>; 2],
    /// `[b, h, t, n]`
    pub(super) q: View<'a, E>,
    /// `[b, h, t, n]`
    pub(super) k: View<'a, E>,
    /// `[b, h, c, n]`
    pub(super) memory: View<'a, E>,
    /// What passes the memory by, `[1, 1, 1, c]` for all heads
    pub(super) d: Option<View<'a, E>>,
}

impl<E> Inputs<'_, E> {
    /// Of the outputs.
    fn dims(&self) -> [usize; 4] {
        self.given[1].dims
    }
}

/// Outputs, contiguous.
#[derive(Debug)]
pub(super) struct Outputs<E> {
    pub(super) y: Room<E>,
    pub(super) last: Room<E>,
}

impl<E: Vector> Outputs<E> {
    pub(super) fn new(inputs: &Inputs<'_, E>) -> Self {
        Self { y: room(&inputs.given[1]), last: room(&inputs.memory) }
    }
}

fn room<E: Vector>(view: &View<'_, E>) -> Room<E> {
    Room::new(view.dims.iter().product())
}

/// Fills the outputs.
pub(super) fn forward<E: Vector, R: Rule>(inputs: &Inputs<'_, E>, to: &mut Outputs<E>) {
    let ([.., columns], n) = (inputs.dims(), inputs.k.dims[3]);
    let (y, last) = (Target::new(&mut to.y, columns), Target::new(&mut to.last, columns * n));
    for_all(inputs.dims(), n, |_, share| {
        vectorised(Forward { job: Job::new(inputs, share), rule: PhantomData::<R>, y, last })
    });
}

/// One job.
struct Job<'a, 'b, E> {
    inputs: &'b Inputs<'a, E>,
    given: [Head<'a, E>; 2],
    q: Head<'a, E>,
    k: Head<'a, E>,
    share: Share,
    /// Tokens
    time: usize,
    /// Rows of the memory
    n: usize,
}

/// Room for rows that do not lie side by side.
struct Spaces<E> {
    columns: [[E; CHANNELS]; 2],
    keys: [Vec<E>; 2],
}

impl<E: Vector> Spaces<E> {
    #[inline(always)]
    fn new(n: usize) -> Self {
        let key = || vec![E::default(); n];
        Self { columns: [[E::default(); CHANNELS]; 2], keys: [key(), key()] }
    }
}

/// What one token brings.
#[derive(Clone, Copy)]
struct Token<'a, E> {
    given: [&'a [E]; 2],
    q: &'a [E],
    k: &'a [E],
    /// `|k|²`, where the rule asks for it
    norm: E,
}

impl<'a, 'b, E: Vector> Job<'a, 'b, E> {
    fn new(inputs: &'b Inputs<'a, E>, share: Share) -> Self {
        let head = share.head;
        let ([_, _, time, _], n) = (inputs.dims(), inputs.k.dims[3]);
        let given = inputs.given.map(|view| view.head(head));
        Self { inputs, given, q: inputs.q.head(head), k: inputs.k.head(head), share, time, n }
    }

    /// What passes the memory by.
    #[inline(always)]
    fn skip(&self) -> [E; CHANNELS] {
        let mut d = [E::default(); CHANNELS];
        if let Some(view) = &self.inputs.d {
            view.head(0).copy(0, self.share.first, &mut d[..self.share.count]);
        }
        d
    }

    #[inline(always)]
    fn blocks(&self) -> usize {
        self.share.count.div_ceil(LANES)
    }

    /// A memory of this job's columns, `[blocks, n]` of lanes, from `[c, n]`; 0 where there is none.
    #[inline(always)]
    fn memory(&self, from: Option<&View<'_, E>>) -> Vec<Lanes<E>> {
        let Share { head, first, count } = self.share;
        let mut all = vec![[E::default(); LANES]; self.blocks() * self.n];
        if let Some(from) = from {
            let from = from.head(head);
            let mut row = vec![E::default(); self.n];
            for c in 0..count {
                from.copy(first + c, 0, &mut row);
                let block = &mut all[c / LANES * self.n..];
                row.iter().zip(block).for_each(|(&h, lanes)| lanes[c % LANES] = h);
            }
        }
        all
    }

    /// Writes a memory as `[c, n]`.
    #[inline(always)]
    #[allow(unsafe_code, reason = "jobs write different channels of the same rows")]
    fn put_memory(&self, all: &[Lanes<E>], to: Target<E>) {
        let Share { head, first, count } = self.share;
        for c in 0..count {
            // SAFETY: `to` is borrowed by the pass, and this job's channels are its own.
            let row = unsafe { to.row(head, (first + c) * self.n, self.n) };
            let block = &all[c / LANES * self.n..];
            row.iter_mut().zip(block).for_each(|(h, lanes)| {
                h.write(lanes[c % LANES]);
            });
        }
    }

    #[inline(always)]
    fn token<'s, R: Rule, const FUSED: bool>(&self, i: usize, spaces: &'s mut Spaces<E>) -> Token<'s, E>
    where
        'a: 's,
    {
        let Share { first, count, .. } = self.share;
        let Spaces { columns: [one, other], keys: [q, k] } = spaces;
        let given = [self.given[0].some(i, first, count, one), self.given[1].some(i, first, count, other)];
        let (q, k) = (self.q.some(i, 0, self.n, q), self.k.some(i, 0, self.n, k));
        let norm = if R::NORMED { dot::<E, FUSED>(k, k) } else { E::default() };
        Token { given, q, k, norm }
    }
}

impl<E: Vector> Token<'_, E> {
    #[inline(always)]
    fn given(&self, first: usize) -> [Lanes<E>; 2] {
        [part(self.given[0], first), part(self.given[1], first)]
    }
}

struct Forward<'a, 'b, E, R> {
    job: Job<'a, 'b, E>,
    rule: PhantomData<R>,
    y: Target<E>,
    last: Target<E>,
}

impl<E: Vector, R: Rule> Work for Forward<'_, '_, E, R> {
    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        walk::<E, R, FUSED>(self);
    }
}

#[inline(always)]
#[allow(unsafe_code, reason = "jobs write different channels of the same rows")]
fn walk<E: Vector, R: Rule, const FUSED: bool>(Forward { job, y: to, last, .. }: Forward<'_, '_, E, R>) {
    let Share { head, first, count } = job.share;
    let (mut h, d) = (job.memory(Some(&job.inputs.memory)), job.skip());
    let (mut spaces, mut y) = (Spaces::new(job.n), [E::default(); CHANNELS]);
    for i in 0..job.time {
        let token = job.token::<R, FUSED>(i, &mut spaces);
        for (b, h) in h.chunks_exact_mut(job.n).enumerate() {
            let given = token.given(b * LANES);
            let lanes = R::lanes::<E, FUSED>(&given, token.norm);
            let mut found: Lanes<E> = part(&d, b * LANES);
            for l in 0..LANES {
                found[l] *= given[1][l];
            }
            for ((h, &k), &q) in h.iter_mut().zip(token.k).zip(token.q) {
                block_by_block();
                let mut now = *h;
                R::step::<E, FUSED>(&mut now, k, &lanes);
                for l in 0..LANES {
                    found[l] = fused::<E, FUSED>(q, now[l], found[l]);
                }
                *h = now;
            }
            put_part(&found, &mut y, b * LANES);
        }
        // SAFETY: `to` is borrowed by `forward`, and this job's columns are its own.
        unsafe { to.row(head * job.time + i, first, count) }.write_copy_of_slice(&y[..count]);
    }
    job.put_memory(&h, last);
}

/// Gradients, contiguous.
#[derive(Debug)]
pub(super) struct Gradients<E> {
    pub(super) given: [Room<E>; 2],
    pub(super) memory: Room<E>,
    /// `[b, h, parts, t, n]`: of every job's columns
    pub(super) q: Room<E>,
    /// The same
    pub(super) k: Room<E>,
    /// `[b, h, c]`
    pub(super) d: Room<E>,
    /// Jobs of a head
    pub(super) parts: usize,
}

impl<E: Vector> Gradients<E> {
    pub(super) fn new(inputs: &Inputs<'_, E>) -> Self {
        let [b, h, t, columns] = inputs.dims();
        let parts = shares(inputs.dims()).len() / (b * h);
        let keys = || Room::new(b * h * parts * t * inputs.k.dims[3]);
        Self {
            given: inputs.given.each_ref().map(room),
            memory: room(&inputs.memory),
            q: keys(),
            k: keys(),
            d: Room::new(b * h * columns),
            parts,
        }
    }
}

/// Where a job of the way back writes.
struct Back<E> {
    given: [Target<E>; 2],
    memory: Target<E>,
    q: Target<E>,
    k: Target<E>,
    d: Target<E>,
}

impl<E> Clone for Back<E> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<E> Copy for Back<E> {}

/// Fills `to` with the gradients for `dy`, and `last` of the memory where there is one.
pub(super) fn backward<E: Vector, R: Rule>(
    inputs: &Inputs<'_, E>,
    dy: View<'_, E>,
    last: Option<View<'_, E>>,
    to: &mut Gradients<E>,
) {
    let ([.., columns], n) = (inputs.dims(), inputs.k.dims[3]);
    let out = Back {
        given: to.given.each_mut().map(|room| Target::new(room, columns)),
        memory: Target::new(&mut to.memory, columns * n),
        q: Target::new(&mut to.q, n),
        k: Target::new(&mut to.k, n),
        d: Target::new(&mut to.d, columns),
    };
    for_all(inputs.dims(), 3 * n, |index, share| {
        vectorised(Backward { job: Job::new(inputs, share), rule: PhantomData::<R>, dy, last, out, index });
    });
}

struct Backward<'a, 'b, E, R> {
    job: Job<'a, 'b, E>,
    rule: PhantomData<R>,
    dy: View<'a, E>,
    last: Option<View<'a, E>>,
    out: Back<E>,
    /// Of the job
    index: usize,
}

impl<E: Vector, R: Rule> Work for Backward<'_, '_, E, R> {
    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        walk_back::<E, R, FUSED>(self);
    }
}

#[inline(always)]
#[allow(unsafe_code, reason = "jobs write different channels of the same rows")]
fn walk_back<E: Vector, R: Rule, const FUSED: bool>(work: Backward<'_, '_, E, R>) {
    let Backward { job, dy, last, out, index, .. } = work;
    let Share { head, first, count } = job.share;
    let (n, size, dy, d) = (job.n, job.blocks() * job.n, dy.head(head), job.skip());
    let (mut spaces, mut dy_space) = (Spaces::new(n), [E::default(); CHANNELS]);
    // The memory before every tile, and those before every token of one.
    let mut starts = job.memory(Some(&job.inputs.memory));
    starts.reserve((job.time - 1) / TILE * size);
    let mut h = starts.clone();
    for i in 0..(job.time - 1) / TILE * TILE {
        advance::<E, R, FUSED>(&mut h, &job.token::<R, FUSED>(i, &mut spaces), n);
        if (i + 1) % TILE == 0 {
            starts.extend_from_slice(&h);
        }
    }
    let mut before = vec![[E::default(); LANES]; TILE * size];
    let mut dh = job.memory(last.as_ref());
    let mut shared = Shared::new(n);
    let [mut one, mut other, mut by_d] = [[E::default(); CHANNELS]; 3];
    for tile in (0..job.time.div_ceil(TILE)).rev() {
        let tokens = tile * TILE..job.time.min((tile + 1) * TILE);
        h.copy_from_slice(&starts[tile * size..][..size]);
        for i in tokens.clone() {
            before[(i - tokens.start) * size..][..size].copy_from_slice(&h);
            if i + 1 < tokens.end {
                advance::<E, R, FUSED>(&mut h, &job.token::<R, FUSED>(i, &mut spaces), n);
            }
        }
        for i in tokens.clone().rev() {
            let token = job.token::<R, FUSED>(i, &mut spaces);
            let dy = dy.some(i, first, count, &mut dy_space);
            shared.clear();
            let before = &before[(i - tokens.start) * size..][..size];
            for (b, (dh, before)) in dh.chunks_exact_mut(n).zip(before.chunks_exact(n)).enumerate() {
                let at = b * LANES;
                let (given, dy): (_, Lanes<E>) = (token.given(at), part(dy, at));
                let [by_one, mut by_other] =
                    token_back::<E, R, FUSED>(dh, before, &token, &given, &dy, &mut shared);
                let (skip, mut to_d): (Lanes<E>, Lanes<E>) = (part(&d, at), part(&by_d, at));
                for l in 0..LANES {
                    by_other[l] = fused::<E, FUSED>(skip[l], dy[l], by_other[l]);
                    to_d[l] = fused::<E, FUSED>(dy[l], given[1][l], to_d[l]);
                }
                put_part(&by_one, &mut one, at);
                put_part(&by_other, &mut other, at);
                put_part(&to_d, &mut by_d, at);
            }
            shared.add_up(token.k);
            let (row, key) = (head * job.time + i, index * job.time + i);
            // SAFETY: what they point to is borrowed by `backward`; columns, and rows of `q` and `k`, are the job's own.
            unsafe {
                out.given[0].row(row, first, count).write_copy_of_slice(&one[..count]);
                out.given[1].row(row, first, count).write_copy_of_slice(&other[..count]);
                out.q.row(key, 0, n).write_copy_of_slice(&shared.total[..n]);
                out.k.row(key, 0, n).write_copy_of_slice(&shared.total[n..2 * n]);
            }
        }
    }
    job.put_memory(&dh, out.memory);
    // SAFETY: as above.
    unsafe { out.d.row(head, first, count) }.write_copy_of_slice(&by_d[..count]);
}

/// One token of all blocks, which nobody asks.
#[inline(always)]
fn advance<E: Vector, R: Rule, const FUSED: bool>(h: &mut [Lanes<E>], token: &Token<'_, E>, n: usize) {
    for (b, h) in h.chunks_exact_mut(n).enumerate() {
        let lanes = R::lanes::<E, FUSED>(&token.given(b * LANES), token.norm);
        for (h, &k) in h.iter_mut().zip(token.k) {
            block_by_block();
            let mut now = *h;
            R::step::<E, FUSED>(&mut now, k, &lanes);
            *h = now;
        }
    }
}

/// Gradients of one token that all columns share, added up over blocks, and then over lanes: `n` of the query, `n` of the
/// key, and that of `|k|²`.
struct Shared<E> {
    sums: Matrix<E>,
    turned: Matrix<E>,
    total: Vec<E>,
}

impl<E: Vector> Shared<E> {
    #[inline(always)]
    fn new(n: usize) -> Self {
        let count = 2 * n + 1;
        let (sums, turned) = (Matrix::new(count, LANES), Matrix::new(LANES, count));
        Self { sums, turned, total: vec![E::default(); count] }
    }

    #[inline(always)]
    fn clear(&mut self) {
        self.sums.blocks_mut().fill([E::default(); LANES]);
    }

    #[inline(always)]
    fn add_up(&mut self, k: &[E]) {
        add_up(&self.sums, &mut self.turned, &mut self.total);
        let (keys, norm) = self.total[k.len()..].split_at_mut(k.len());
        for (dk, &k) in keys.iter_mut().zip(k) {
            *dk += E::of(2.0) * k * norm[0];
        }
    }
}

/// One token of a block back: `dh` becomes the gradient of the memory `before` it. Gives the gradients of what is given.
#[inline(always)]
fn token_back<E: Vector, R: Rule, const FUSED: bool>(
    dh: &mut [Lanes<E>],
    before: &[Lanes<E>],
    token: &Token<'_, E>,
    given: &[Lanes<E>; 2],
    dy: &Lanes<E>,
    shared: &mut Shared<E>,
) -> [Lanes<E>; 2] {
    let n = token.k.len();
    let lanes = R::lanes::<E, FUSED>(given, token.norm);
    let (to_q, rest) = shared.sums.blocks_mut().split_at_mut(n);
    let (to_k, by_norm) = rest.split_at_mut(n);
    let mut sums = [[E::default(); LANES]; 2];
    for i in 0..n {
        block_by_block();
        let (h, mut g, mut dq, mut dk) = (before[i], dh[i], to_q[i], to_k[i]);
        for l in 0..LANES {
            g[l] = fused::<E, FUSED>(token.q[i], dy[l], g[l]);
        }
        let after = R::step_back::<E, FUSED>(&h, &mut g, token.k[i], &lanes, &mut sums, &mut dk);
        for l in 0..LANES {
            dq[l] = fused::<E, FUSED>(after[l], dy[l], dq[l]);
        }
        (dh[i], to_q[i], to_k[i]) = (g, dq, dk);
    }
    R::gradients::<E, FUSED>(given, token.norm, &lanes, &sums, &mut by_norm[0])
}
