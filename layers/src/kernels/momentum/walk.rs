//! The kernel on slices: some columns of one head at a time, in blocks of lanes, from the first token to the last. A block
//! has its memory and, behind it, its momentum as `n` rows each of a lane per column.

use std::ops::Range;

use crate::kernels::dense::Matrix;
use crate::kernels::lanes::{add_up, part, put_part};
use crate::kernels::room::Room;
use crate::kernels::shares::{CHANNELS, Share, Target, for_all, shares};
use crate::kernels::vector::{LANES, Vector, Work, block_by_block, fused, vectorised};
use crate::kernels::view::{Head, View};

/// Tokens from one state that the way back starts again from to the next: their states stay in the second cache.
const TILE: usize = 32;

/// Rows that are added up side by side, so that no sum waits for the one before.
const ROWS: usize = 4;

/// A number of every column of a block.
type Lanes<E> = [E; LANES];

/// What both passes read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inputs<'a, E> {
    /// `q`, `k` and `p`: `[b, h, t, n]`
    pub(super) keys: [View<'a, E>; 3],
    /// `[b, h, t, p]`
    pub(super) v: View<'a, E>,
    /// `log α`, `log μ` and `β`: `[b, h, t, 1]`
    pub(super) scalars: [View<'a, E>; 3],
    /// `[b, h, 2 n, p]`
    pub(super) state: View<'a, E>,
}

impl<E> Inputs<'_, E> {
    /// Numbers of a key.
    pub(super) fn n(&self) -> usize {
        self.keys[0].dims[3]
    }
}

/// Outputs, contiguous.
#[derive(Debug)]
pub(super) struct Outputs<E> {
    pub(super) y: Room<E>,
    pub(super) last: Room<E>,
}

fn room<E: Vector>(view: &View<'_, E>) -> Room<E> {
    Room::new(view.dims.iter().product())
}

impl<E: Vector> Outputs<E> {
    pub(super) fn new(inputs: &Inputs<'_, E>) -> Self {
        Self { y: room(&inputs.v), last: room(&inputs.state) }
    }
}

/// Fills the outputs.
pub(super) fn forward<E: Vector>(inputs: &Inputs<'_, E>, to: &mut Outputs<E>) {
    let columns = inputs.v.dims[3];
    let (y, last) = (Target::new(&mut to.y, columns), Target::new(&mut to.last, columns));
    for_all(inputs.v.dims, 4 * inputs.n(), |_, share| {
        vectorised(Forward { job: Job::new(inputs, share), y, last });
    });
}

/// One job.
struct Job<'a, 'b, E> {
    inputs: &'b Inputs<'a, E>,
    keys: [Head<'a, E>; 3],
    v: Head<'a, E>,
    scalars: [Head<'a, E>; 3],
    share: Share,
    /// Tokens
    time: usize,
    /// Numbers of a key
    n: usize,
}

/// Room for rows that do not lie side by side.
struct Spaces<E> {
    keys: [Vec<E>; 3],
    columns: [E; CHANNELS],
}

impl<E: Vector> Spaces<E> {
    #[inline(always)]
    fn new(n: usize) -> Self {
        let key = || vec![E::default(); n];
        Self { keys: [key(), key(), key()], columns: [E::default(); CHANNELS] }
    }
}

/// What one token brings.
#[derive(Clone, Copy)]
struct Token<'a, E> {
    q: &'a [E],
    k: &'a [E],
    p: &'a [E],
    v: &'a [E],
    alpha: E,
    mu: E,
    beta: E,
}

impl<'a, 'b, E: Vector> Job<'a, 'b, E> {
    fn new(inputs: &'b Inputs<'a, E>, share: Share) -> Self {
        let head = share.head;
        let (keys, scalars) = (inputs.keys.map(|x| x.head(head)), inputs.scalars.map(|x| x.head(head)));
        let (v, time, n) = (inputs.v.head(head), inputs.v.dims[2], inputs.n());
        Self { inputs, keys, v, scalars, share, time, n }
    }

    /// Rows of a block's state.
    #[inline(always)]
    fn rows(&self) -> usize {
        2 * self.n
    }

    #[inline(always)]
    fn blocks(&self) -> usize {
        self.share.count.div_ceil(LANES)
    }

    /// A state of this job's columns, `[blocks, 2 n]` of lanes, from `[2 n, p]`; 0 where there is none.
    #[inline(always)]
    fn state(&self, from: Option<&View<'_, E>>) -> Vec<Lanes<E>> {
        let Share { head, first, count } = self.share;
        let mut all = vec![[E::default(); LANES]; self.blocks() * self.rows()];
        let mut row = [E::default(); CHANNELS];
        for (i, from) in from.iter().flat_map(|from| (0..self.rows()).map(move |i| (i, from.head(head)))) {
            from.copy(i, first, &mut row[..count]);
            for (b, block) in all.chunks_exact_mut(self.rows()).enumerate() {
                block[i] = part(&row[..count], b * LANES);
            }
        }
        all
    }

    /// Writes a state as `[2 n, p]`.
    #[inline(always)]
    #[allow(unsafe_code, reason = "jobs write different columns of the same rows")]
    fn put_state(&self, all: &[Lanes<E>], to: Target<E>) {
        let Share { head, first, count } = self.share;
        let mut row = [E::default(); CHANNELS];
        for i in 0..self.rows() {
            for (b, block) in all.chunks_exact(self.rows()).enumerate() {
                put_part(&block[i], &mut row[..count], b * LANES);
            }
            // SAFETY: `to` is borrowed by the pass, and this job's columns are its own.
            unsafe { to.row(head * self.rows() + i, first, count) }.write_copy_of_slice(&row[..count]);
        }
    }

    #[inline(always)]
    fn token<'s, const FUSED: bool>(&self, i: usize, spaces: &'s mut Spaces<E>) -> Token<'s, E>
    where
        'a: 's,
    {
        let Share { first, count, .. } = self.share;
        let Spaces { keys: [q, k, p], columns } = spaces;
        let [from_q, from_k, from_p] = &self.keys;
        let [mut alpha, mut mu, mut beta] = [[E::default()]; 3];
        for (from, to) in self.scalars.iter().zip([&mut alpha, &mut mu, &mut beta]) {
            from.copy(i, 0, to);
        }
        Token {
            q: from_q.some(i, 0, self.n, q),
            k: from_k.some(i, 0, self.n, k),
            p: from_p.some(i, 0, self.n, p),
            v: self.v.some(i, first, count, columns),
            alpha: alpha[0].exponential::<FUSED>(),
            mu: mu[0].exponential::<FUSED>(),
            beta: beta[0],
        }
    }

    /// Some tokens of all blocks, which nobody asks, with every state before a token told.
    #[inline(always)]
    fn advance<const FUSED: bool>(
        &self,
        tokens: Range<usize>,
        state: &mut [Lanes<E>],
        spaces: &mut Spaces<E>,
        mut tell: impl FnMut(usize, &[Lanes<E>]),
    ) {
        for i in tokens {
            tell(i, state);
            let token = self.token::<FUSED>(i, spaces);
            for (b, block) in state.chunks_exact_mut(self.rows()).enumerate() {
                step::<E, FUSED>(block, &token, &part(token.v, b * LANES));
            }
        }
    }
}

/// `Sᵀ x - v`
#[inline(always)]
fn miss<E: Vector, const FUSED: bool>(memory: &[Lanes<E>], x: &[E], v: &Lanes<E>) -> Lanes<E> {
    let mut sums = [[E::default(); LANES]; ROWS];
    let (rows, rest) = memory.as_chunks::<ROWS>();
    let (numbers, last) = x[..memory.len()].as_chunks::<ROWS>();
    for (rows, x) in rows.iter().zip(numbers) {
        block_by_block();
        for (sum, (row, &x)) in sums.iter_mut().zip(rows.iter().zip(x)) {
            for l in 0..LANES {
                sum[l] = fused::<E, FUSED>(x, row[l], sum[l]);
            }
        }
    }
    for (row, &x) in rest.iter().zip(last) {
        block_by_block();
        for l in 0..LANES {
            sums[0][l] = fused::<E, FUSED>(x, row[l], sums[0][l]);
        }
    }
    let mut found = [E::default(); LANES];
    for l in 0..LANES {
        found[l] = (sums[0][l] + sums[1][l]) + (sums[2][l] + sums[3][l]) - v[l];
    }
    found
}

/// One token of a block; what its query finds.
#[inline(always)]
fn step<E: Vector, const FUSED: bool>(
    state: &mut [Lanes<E>],
    token: &Token<'_, E>,
    v: &Lanes<E>,
) -> Lanes<E> {
    let n = token.k.len();
    let (memory, momentum) = state.split_at_mut(n);
    let miss = miss::<E, FUSED>(memory, token.p, v);
    let mut y = [E::default(); LANES];
    for i in 0..n {
        block_by_block();
        let (mut s, mut m) = (memory[i], momentum[i]);
        for l in 0..LANES {
            m[l] = fused::<E, FUSED>(token.k[i], miss[l], token.mu * m[l]);
            s[l] = fused::<E, FUSED>(-token.beta, m[l], token.alpha * s[l]);
            y[l] = fused::<E, FUSED>(token.q[i], s[l], y[l]);
        }
        (memory[i], momentum[i]) = (s, m);
    }
    y
}

struct Forward<'a, 'b, E> {
    job: Job<'a, 'b, E>,
    y: Target<E>,
    last: Target<E>,
}

impl<E: Vector> Work for Forward<'_, '_, E> {
    #[inline(always)]
    #[allow(unsafe_code, reason = "jobs write different columns of the same rows")]
    fn run<const FUSED: bool>(self) {
        let Self { job, y: to, last } = self;
        let Share { head, first, count } = job.share;
        let mut state = job.state(Some(&job.inputs.state));
        let (mut spaces, mut y) = (Spaces::new(job.n), [E::default(); CHANNELS]);
        for i in 0..job.time {
            let token = job.token::<FUSED>(i, &mut spaces);
            for (b, block) in state.chunks_exact_mut(job.rows()).enumerate() {
                let found = step::<E, FUSED>(block, &token, &part(token.v, b * LANES));
                put_part(&found, &mut y, b * LANES);
            }
            // SAFETY: `to` is borrowed by `forward`, and this job's columns are its own.
            unsafe { to.row(head * job.time + i, first, count) }.write_copy_of_slice(&y[..count]);
        }
        job.put_state(&state, last);
    }
}

/// Gradients, contiguous.
#[derive(Debug)]
pub(super) struct Gradients<E> {
    pub(super) v: Room<E>,
    pub(super) state: Room<E>,
    /// Those of `q`, `k`, `p` and the scalars, beside each other, of every job's columns: `[b, h, parts, t, 3 n + 3]`
    pub(super) shared: Room<E>,
    /// Jobs of a head
    pub(super) parts: usize,
}

impl<E: Vector> Gradients<E> {
    pub(super) fn new(inputs: &Inputs<'_, E>) -> Self {
        let dims @ [b, h, t, _] = inputs.v.dims;
        let jobs = shares(dims).len();
        let shared = Room::new(jobs * t * (3 * inputs.n() + 3));
        Self { v: room(&inputs.v), state: room(&inputs.state), shared, parts: jobs / (b * h) }
    }
}

/// Fills `to` with the gradients for `dy`, and `last` of the state where there is one.
pub(super) fn backward<E: Vector>(
    inputs: &Inputs<'_, E>,
    dy: View<'_, E>,
    last: Option<View<'_, E>>,
    to: &mut Gradients<E>,
) {
    let (columns, n) = (inputs.v.dims[3], inputs.n());
    let out = [
        Target::new(&mut to.v, columns),
        Target::new(&mut to.state, columns),
        Target::new(&mut to.shared, 3 * n + 3),
    ];
    for_all(inputs.v.dims, 12 * n, |index, share| {
        vectorised(Backward { job: Job::new(inputs, share), dy, last, out, index });
    });
}

struct Backward<'a, 'b, E> {
    job: Job<'a, 'b, E>,
    dy: View<'a, E>,
    last: Option<View<'a, E>>,
    /// Of `v`, the state, and what columns share
    out: [Target<E>; 3],
    /// Of the job
    index: usize,
}

impl<E: Vector> Work for Backward<'_, '_, E> {
    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        walk_back::<E, FUSED>(self);
    }
}

#[inline(always)]
#[allow(unsafe_code, reason = "jobs write different columns of the same rows")]
fn walk_back<E: Vector, const FUSED: bool>(work: Backward<'_, '_, E>) {
    let Backward { job, dy, last, out: [to_v, to_state, to_shared], index } = work;
    let Share { head, first, count } = job.share;
    let (n, size, dy) = (job.n, job.blocks() * job.rows(), dy.head(head));
    let (mut spaces, mut dy_space) = (Spaces::new(n), [E::default(); CHANNELS]);
    // The state before every tile, and those before every token of one.
    let mut starts = Vec::with_capacity(job.time.div_ceil(TILE) * size);
    let mut state = job.state(Some(&job.inputs.state));
    job.advance::<FUSED>(0..(job.time - 1) / TILE * TILE + 1, &mut state, &mut spaces, |i, state| {
        if i % TILE == 0 {
            starts.extend_from_slice(state);
        }
    });
    let mut before = vec![[E::default(); LANES]; TILE * size];
    let mut gradient = job.state(last.as_ref());
    let mut shared = Shared::new(n);
    let mut dv = [E::default(); CHANNELS];
    for tile in (0..job.time.div_ceil(TILE)).rev() {
        let tokens = tile * TILE..job.time.min((tile + 1) * TILE);
        state.copy_from_slice(&starts[tile * size..][..size]);
        job.advance::<FUSED>(tokens.clone(), &mut state, &mut spaces, |i, state| {
            before[(i - tokens.start) * size..][..size].copy_from_slice(state);
        });
        for i in tokens.clone().rev() {
            let token = job.token::<FUSED>(i, &mut spaces);
            let dy = dy.some(i, first, count, &mut dy_space);
            shared.clear();
            let before = before[(i - tokens.start) * size..][..size].chunks_exact(job.rows());
            for (b, (gradient, before)) in gradient.chunks_exact_mut(job.rows()).zip(before).enumerate() {
                let at = b * LANES;
                let (v, dy) = (part(token.v, at), part(dy, at));
                put_part(&shared.step_back::<FUSED>(gradient, before, &token, &v, &dy), &mut dv, at);
            }
            let row = shared.add_up(&token);
            // SAFETY: what they point to is borrowed by `backward`; columns, and rows of what is shared, are the job's own.
            unsafe {
                to_v.row(head * job.time + i, first, count).write_copy_of_slice(&dv[..count]);
                to_shared.row(index * job.time + i, 0, row.len()).write_copy_of_slice(row);
            }
        }
    }
    job.put_state(&gradient, to_state);
}

/// Gradients of one token that all columns share, added up over blocks, and then over lanes: of `q`, `k`, `p`, `α`, `μ` and
/// `β`.
struct Shared<E> {
    n: usize,
    sums: Matrix<E>,
    turned: Matrix<E>,
    total: Vec<E>,
}

impl<E: Vector> Shared<E> {
    #[inline(always)]
    fn new(n: usize) -> Self {
        let count = 3 * n + 3;
        let (sums, turned) = (Matrix::new(count, LANES), Matrix::new(LANES, count));
        Self { n, sums, turned, total: vec![E::default(); count] }
    }

    #[inline(always)]
    fn clear(&mut self) {
        self.sums.blocks_mut().fill([E::default(); LANES]);
    }

    /// One token of a block back: `gradient` becomes that of the state `before` it. Gives the gradient of `v`.
    #[inline(always)]
    fn step_back<const FUSED: bool>(
        &mut self,
        gradient: &mut [Lanes<E>],
        before: &[Lanes<E>],
        token: &Token<'_, E>,
        v: &Lanes<E>,
        dy: &Lanes<E>,
    ) -> Lanes<E> {
        let n = self.n;
        let (memory, momentum) = before.split_at(n);
        let (by_memory, by_momentum) = gradient.split_at_mut(n);
        let (to_q, rest) = self.sums.blocks_mut().split_at_mut(n);
        let (to_k, rest) = rest.split_at_mut(n);
        let (to_p, scalars) = rest.split_at_mut(n);
        let miss = miss::<E, FUSED>(memory, token.p, v);
        let Token { alpha, mu, beta, .. } = *token;
        let [mut by_miss, mut by_alpha, mut by_mu, mut by_beta] = [[E::default(); LANES]; 4];
        for i in 0..n {
            block_by_block();
            let (s_before, m_before, mut s, mut m) = (memory[i], momentum[i], by_memory[i], by_momentum[i]);
            let (mut dq, mut dk) = (to_q[i], to_k[i]);
            for l in 0..LANES {
                let m_after = fused::<E, FUSED>(token.k[i], miss[l], mu * m_before[l]);
                let s_after = fused::<E, FUSED>(-beta, m_after, alpha * s_before[l]);
                s[l] = fused::<E, FUSED>(token.q[i], dy[l], s[l]);
                dq[l] = fused::<E, FUSED>(s_after, dy[l], dq[l]);
                by_alpha[l] = fused::<E, FUSED>(s[l], s_before[l], by_alpha[l]);
                by_beta[l] = fused::<E, FUSED>(-s[l], m_after, by_beta[l]);
                m[l] = fused::<E, FUSED>(-beta, s[l], m[l]);
                by_mu[l] = fused::<E, FUSED>(m[l], m_before[l], by_mu[l]);
                dk[l] = fused::<E, FUSED>(m[l], miss[l], dk[l]);
                by_miss[l] = fused::<E, FUSED>(token.k[i], m[l], by_miss[l]);
                s[l] *= alpha;
                m[l] *= mu;
            }
            (by_memory[i], by_momentum[i], to_q[i], to_k[i]) = (s, m, dq, dk);
        }
        for i in 0..n {
            block_by_block();
            let (s_before, mut s, mut dp) = (memory[i], by_memory[i], to_p[i]);
            for l in 0..LANES {
                dp[l] = fused::<E, FUSED>(s_before[l], by_miss[l], dp[l]);
                s[l] = fused::<E, FUSED>(token.p[i], by_miss[l], s[l]);
            }
            (by_memory[i], to_p[i]) = (s, dp);
        }
        for (to, by) in scalars.iter_mut().zip([by_alpha, by_mu, by_beta]) {
            for l in 0..LANES {
                to[l] += by[l];
            }
        }
        let mut by_v = by_miss;
        for x in &mut by_v {
            *x = -*x;
        }
        by_v
    }

    /// Everything, with gradients of the decays' logarithms.
    #[inline(always)]
    fn add_up(&mut self, token: &Token<'_, E>) -> &[E] {
        add_up(&self.sums, &mut self.turned, &mut self.total);
        self.total[3 * self.n] *= token.alpha;
        self.total[3 * self.n + 1] *= token.mu;
        &self.total
    }
}
