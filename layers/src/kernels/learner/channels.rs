//! The arithmetic of the kernel on slices: some channels of one sequence at a time, in blocks of lanes, from the first
//! token to the last. A block has its memory as `n` rows of a lane per channel, so that what all channels share is a number.

use crate::kernels::dense::Matrix;
use crate::kernels::lanes::{add_up, part, put_part};
use crate::kernels::room::Room;
use crate::kernels::shares::{CHANNELS, Share, Target, for_all, shares};
use crate::kernels::vector::{LANES, Vector, block_by_block, dot, fused, vectors};
use crate::kernels::view::{Head, View};

/// Tokens from one memory that the way back starts again from to the next: their memories stay in the second cache.
const TILE: usize = 32;

/// A number of every channel of a block.
type Lanes<E> = [E; LANES];

/// What both passes read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inputs<'a, E> {
    /// `[b, 1, t, E]`
    pub(super) beta: View<'a, E>,
    /// `[b, 1, t, n]`
    pub(super) q: View<'a, E>,
    /// `[b, 1, t, n]`
    pub(super) k: View<'a, E>,
    /// `[b, 1, t, E]`
    pub(super) x: View<'a, E>,
    /// `[b, 1, E, n]`
    pub(super) memory: View<'a, E>,
    /// `[1, 1, 1, E]`
    pub(super) d: View<'a, E>,
}

/// Outputs, contiguous.
#[derive(Debug)]
pub(super) struct Outputs<E> {
    pub(super) y: Room<E>,
    pub(super) last: Room<E>,
}

impl<E: Vector> Outputs<E> {
    pub(super) fn new(inputs: &Inputs<'_, E>) -> Self {
        Self { y: room(&inputs.x), last: room(&inputs.memory) }
    }
}

fn room<E: Vector>(view: &View<'_, E>) -> Room<E> {
    Room::new(view.dims.iter().product())
}

/// Fills the outputs.
pub(super) fn forward<E: Vector>(inputs: &Inputs<'_, E>, to: &mut Outputs<E>) {
    let [.., channels] = inputs.x.dims;
    let n = inputs.k.dims[3];
    let (y, last) = (Target::new(&mut to.y, channels), Target::new(&mut to.last, channels * n));
    for_all(inputs.x.dims, n, |_, share| learn(inputs, [y, last], share));
}

/// The tokens of one job.
struct Job<'a, E> {
    beta: Head<'a, E>,
    q: Head<'a, E>,
    k: Head<'a, E>,
    x: Head<'a, E>,
    d: [E; CHANNELS],
    share: Share,
    /// Tokens
    time: usize,
    /// Numbers of a channel's memory
    n: usize,
}

/// Room for rows that do not lie side by side.
struct Spaces<E> {
    channels: [[E; CHANNELS]; 3],
    keys: [Vec<E>; 2],
}

impl<E: Vector> Spaces<E> {
    #[inline(always)]
    fn new(n: usize) -> Self {
        let key = || vec![E::default(); n];
        Self { channels: [[E::default(); CHANNELS]; 3], keys: [key(), key()] }
    }
}

/// What one token brings.
#[derive(Clone, Copy)]
struct Token<'a, E> {
    beta: &'a [E],
    x: &'a [E],
    q: &'a [E],
    k: &'a [E],
    /// `|k|²`
    norm: E,
}

impl<'a, E: Vector> Job<'a, E> {
    #[inline(always)]
    fn new(inputs: &Inputs<'a, E>, share: Share) -> Self {
        let Share { head, first, count } = share;
        let ([_, _, time, _], n) = (inputs.x.dims, inputs.k.dims[3]);
        let mut d = [E::default(); CHANNELS];
        inputs.d.head(0).copy(0, first, &mut d[..count]);
        let [beta, q, k, x] = [inputs.beta, inputs.q, inputs.k, inputs.x].map(|view| view.head(head));
        Self { beta, q, k, x, d, share, time, n }
    }

    #[inline(always)]
    fn blocks(&self) -> usize {
        self.share.count.div_ceil(LANES)
    }

    /// A memory of this job's channels, `[blocks, n]` of lanes, from `[E, n]`; 0 where there is none.
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

    /// Writes a memory as `[E, n]`.
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
    fn token<'b, const FUSED: bool>(
        &self,
        i: usize,
        [beta_space, x_space]: [&'b mut [E; CHANNELS]; 2],
        [q_space, k_space]: &'b mut [Vec<E>; 2],
    ) -> Token<'b, E>
    where
        'a: 'b,
    {
        let Share { first, count, .. } = self.share;
        let beta = self.beta.some(i, first, count, beta_space);
        let x = self.x.some(i, first, count, x_space);
        let q = self.q.some(i, 0, self.n, q_space);
        let k = self.k.some(i, 0, self.n, k_space);
        Token { beta, x, q, k, norm: dot::<E, FUSED>(k, k) }
    }
}

/// A block's rates `e` and inputs.
#[inline(always)]
fn rates<E: Vector, const FUSED: bool>(token: &Token<'_, E>, first: usize) -> [Lanes<E>; 2] {
    let (mut e, x): (Lanes<E>, Lanes<E>) = (part(token.beta, first), part(token.x, first));
    for e in &mut e {
        *e = *e / fused::<E, FUSED>(*e, token.norm, E::of(1.0));
    }
    [e, x]
}

/// One token of a block: its memory `h` moves on, and `y` is what is added to.
#[inline(always)]
fn step<E: Vector, const FUSED: bool>(
    h: &mut [Lanes<E>],
    token: &Token<'_, E>,
    [e, x]: &[Lanes<E>; 2],
    y: &mut Lanes<E>,
) {
    let mut write = *x;
    for l in 0..LANES {
        write[l] *= e[l];
    }
    for ((h, &k), &q) in h.iter_mut().zip(token.k).zip(token.q) {
        block_by_block();
        let mut now = *h;
        for l in 0..LANES {
            let error = fused::<E, FUSED>(-e[l], k * now[l], write[l]);
            now[l] = fused::<E, FUSED>(k, error, now[l]);
            y[l] = fused::<E, FUSED>(q, now[l], y[l]);
        }
        *h = now;
    }
}

vectors! {
    fn learn = learn_channels(inputs: &Inputs<'_, E>, to: [Target<E>; 2], share: Share)
}

#[inline(always)]
#[allow(unsafe_code, reason = "jobs write different channels of the same rows")]
fn learn_channels<E: Vector, const FUSED: bool>(
    inputs: &Inputs<'_, E>,
    [y_out, last_out]: [Target<E>; 2],
    share: Share,
) {
    let job = Job::new(inputs, share);
    let Share { head, first, count } = share;
    let mut h = job.memory(Some(&inputs.memory));
    let Spaces { channels: [mut beta_space, mut x_space, mut y], mut keys } = Spaces::new(job.n);
    for i in 0..job.time {
        let token = job.token::<FUSED>(i, [&mut beta_space, &mut x_space], &mut keys);
        for (b, h) in h.chunks_exact_mut(job.n).enumerate() {
            let rates @ [_, x] = rates::<E, FUSED>(&token, b * LANES);
            let mut found: Lanes<E> = part(&job.d, b * LANES);
            for l in 0..LANES {
                found[l] *= x[l];
            }
            step::<E, FUSED>(h, &token, &rates, &mut found);
            put_part(&found, &mut y, b * LANES);
        }
        // SAFETY: `y` is borrowed by `forward`, and this job's channels are its own.
        unsafe { y_out.row(head * job.time + i, first, count) }.write_copy_of_slice(&y[..count]);
    }
    job.put_memory(&h, last_out);
}

/// Gradients, contiguous.
#[derive(Debug)]
pub(super) struct Gradients<E> {
    pub(super) beta: Room<E>,
    pub(super) x: Room<E>,
    pub(super) memory: Room<E>,
    /// `[b, parts, t, n]`: of every job's channels
    pub(super) q: Room<E>,
    /// The same
    pub(super) k: Room<E>,
    /// `[b, E]`
    pub(super) d: Room<E>,
    /// Jobs of a sequence
    pub(super) parts: usize,
}

impl<E: Vector> Gradients<E> {
    pub(super) fn new(inputs: &Inputs<'_, E>) -> Self {
        let [b, _, t, channels] = inputs.x.dims;
        let parts = shares(inputs.x.dims).len() / b;
        let keys = || Room::new(b * parts * t * inputs.k.dims[3]);
        Self {
            beta: room(&inputs.x),
            x: room(&inputs.x),
            memory: room(&inputs.memory),
            q: keys(),
            k: keys(),
            d: Room::new(b * channels),
            parts,
        }
    }
}

/// Where a job of the way back writes.
struct Back<E> {
    beta: Target<E>,
    x: Target<E>,
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
pub(super) fn backward<E: Vector>(
    inputs: &Inputs<'_, E>,
    dy: View<'_, E>,
    last: Option<View<'_, E>>,
    to: &mut Gradients<E>,
) {
    let [.., channels] = inputs.x.dims;
    let n = inputs.k.dims[3];
    let out = Back {
        beta: Target::new(&mut to.beta, channels),
        x: Target::new(&mut to.x, channels),
        memory: Target::new(&mut to.memory, channels * n),
        q: Target::new(&mut to.q, n),
        k: Target::new(&mut to.k, n),
        d: Target::new(&mut to.d, channels),
    };
    for_all(inputs.x.dims, 3 * n, |index, share| {
        learn_back(inputs, dy, last.as_ref(), out, index, share);
    });
}

vectors! {
    fn learn_back = learn_channels_back(
        inputs: &Inputs<'_, E>,
        dy: View<'_, E>,
        last: Option<&View<'_, E>>,
        out: Back<E>,
        index: usize,
        share: Share,
    )
}

#[inline(always)]
#[allow(unsafe_code, reason = "jobs write different channels of the same rows")]
fn learn_channels_back<E: Vector, const FUSED: bool>(
    inputs: &Inputs<'_, E>,
    dy: View<'_, E>,
    last: Option<&View<'_, E>>,
    out: Back<E>,
    index: usize,
    share: Share,
) {
    let job = Job::new(inputs, share);
    let Share { head, first, count } = share;
    let (n, size, dy) = (job.n, job.blocks() * job.n, dy.head(head));
    let Spaces { channels: [mut beta_space, mut x_space, mut dy_space], mut keys } = Spaces::new(n);
    // The memory before every tile, and those before every token of one.
    let mut starts = job.memory(Some(&inputs.memory));
    starts.reserve((job.time - 1) / TILE * size);
    let mut h = starts.clone();
    for i in 0..(job.time - 1) / TILE * TILE {
        let token = job.token::<FUSED>(i, [&mut beta_space, &mut x_space], &mut keys);
        advance::<E, FUSED>(&mut h, &token, n);
        if (i + 1) % TILE == 0 {
            starts.extend_from_slice(&h);
        }
    }
    let mut before = vec![[E::default(); LANES]; TILE * size];
    let mut dh = job.memory(last);
    let mut shared = Shared::new(n);
    let (mut d_beta, mut d_x) = ([E::default(); CHANNELS], [E::default(); CHANNELS]);
    let mut d_d = [E::default(); CHANNELS];
    for tile in (0..job.time.div_ceil(TILE)).rev() {
        let tokens = tile * TILE..job.time.min((tile + 1) * TILE);
        h.copy_from_slice(&starts[tile * size..][..size]);
        for i in tokens.clone() {
            before[(i - tokens.start) * size..][..size].copy_from_slice(&h);
            if i + 1 < tokens.end {
                let token = job.token::<FUSED>(i, [&mut beta_space, &mut x_space], &mut keys);
                advance::<E, FUSED>(&mut h, &token, n);
            }
        }
        for i in tokens.clone().rev() {
            let token = job.token::<FUSED>(i, [&mut beta_space, &mut x_space], &mut keys);
            let dy = dy.some(i, first, count, &mut dy_space);
            shared.clear();
            let before = &before[(i - tokens.start) * size..][..size];
            for (b, (dh, before)) in dh.chunks_exact_mut(n).zip(before.chunks_exact(n)).enumerate() {
                let at = b * LANES;
                let rates @ [e, x] = rates::<E, FUSED>(&token, at);
                let dy: Lanes<E> = part(dy, at);
                let [de, sum] = step_back::<E, FUSED>(dh, before, &token, &rates, &dy, &mut shared);
                let (mut to_beta, mut to_x): (Lanes<E>, Lanes<E>) = (part(token.beta, at), part(&job.d, at));
                let mut to_d: Lanes<E> = part(&d_d, at);
                for l in 0..LANES {
                    let open = E::of(1.0) / fused::<E, FUSED>(to_beta[l], token.norm, E::of(1.0));
                    to_beta[l] = de[l] * open * open;
                    to_x[l] = fused::<E, FUSED>(e[l], sum[l], to_x[l] * dy[l]);
                    to_d[l] = fused::<E, FUSED>(dy[l], x[l], to_d[l]);
                }
                put_part(&to_beta, &mut d_beta, at);
                put_part(&to_x, &mut d_x, at);
                put_part(&to_d, &mut d_d, at);
            }
            shared.add_up(token.k);
            let (row, key) = (head * job.time + i, index * job.time + i);
            // SAFETY: what they point to is borrowed by `backward`; channels, and rows of `q` and `k`, are the job's own.
            unsafe {
                out.beta.row(row, first, count).write_copy_of_slice(&d_beta[..count]);
                out.x.row(row, first, count).write_copy_of_slice(&d_x[..count]);
                out.q.row(key, 0, n).write_copy_of_slice(&shared.total[..n]);
                out.k.row(key, 0, n).write_copy_of_slice(&shared.total[n..2 * n]);
            }
        }
    }
    job.put_memory(&dh, out.memory);
    // SAFETY: as above.
    unsafe { out.d.row(head, first, count) }.write_copy_of_slice(&d_d[..count]);
}

/// One token of all blocks, which nobody asks.
#[inline(always)]
fn advance<E: Vector, const FUSED: bool>(h: &mut [Lanes<E>], token: &Token<'_, E>, n: usize) {
    for (b, h) in h.chunks_exact_mut(n).enumerate() {
        let rates = rates::<E, FUSED>(token, b * LANES);
        step::<E, FUSED>(h, token, &rates, &mut [E::default(); LANES]);
    }
}

/// Gradients of one token that all channels share, added up over blocks, and then over lanes: `n` of the query, `n` of the
/// key, and `-Σ e² de`.
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

/// One token of a block back: `dh` becomes the gradient of the memory `before` it. Gives `de` and `g·k`.
#[inline(always)]
fn step_back<E: Vector, const FUSED: bool>(
    dh: &mut [Lanes<E>],
    before: &[Lanes<E>],
    token: &Token<'_, E>,
    [e, x]: &[Lanes<E>; 2],
    dy: &Lanes<E>,
    shared: &mut Shared<E>,
) -> [Lanes<E>; 2] {
    let n = token.k.len();
    let (to_q, rest) = shared.sums.blocks_mut().split_at_mut(n);
    let (to_k, to_norm) = rest.split_at_mut(n);
    let (mut de, mut sum) = ([E::default(); LANES], [E::default(); LANES]);
    for i in 0..n {
        block_by_block();
        let (k, q) = (token.k[i], token.q[i]);
        let (h, mut g, mut dq, mut dk) = (before[i], dh[i], to_q[i], to_k[i]);
        for l in 0..LANES {
            let found = k * h[l];
            let error = x[l] - found;
            let after = fused::<E, FUSED>(k * e[l], error, h[l]);
            g[l] = fused::<E, FUSED>(q, dy[l], g[l]);
            dq[l] = fused::<E, FUSED>(after, dy[l], dq[l]);
            dk[l] = fused::<E, FUSED>(e[l] * g[l], error - found, dk[l]);
            let along = k * g[l];
            de[l] = fused::<E, FUSED>(along, error, de[l]);
            sum[l] += along;
            g[l] = fused::<E, FUSED>(-(k * e[l]), along, g[l]);
        }
        (dh[i], to_q[i], to_k[i]) = (g, dq, dk);
    }
    for l in 0..LANES {
        to_norm[0][l] = fused::<E, FUSED>(-(e[l] * e[l]), de[l], to_norm[0][l]);
    }
    [de, sum]
}
