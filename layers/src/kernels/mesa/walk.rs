//! The kernel on slices: one head at a time, from the first token to the last.

use std::ops::Range;

use rayon::prelude::*;

use super::Options;
use super::solve::{Lanes, Solver, System};
use crate::kernels::dense::Matrix;
use crate::kernels::lanes::scale;
use crate::kernels::room::Room;
use crate::kernels::shares::Target;
use crate::kernels::vector::{LANES, Vector, Work, add_scaled, block_by_block, dot, fused, vectorised};
use crate::kernels::view::{Head, View};

/// Tokens from one `G` that the way back starts again from to the next: theirs stay in the second cache.
const TILE: usize = 32;

/// Operations of all heads together from which on several threads are worth waking.
const LARGE: usize = 1 << 17;

/// What both passes read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inputs<'a, E> {
    /// `[b, h, t, n]`
    pub(super) q: View<'a, E>,
    /// `[b, h, t, n]`
    pub(super) k: View<'a, E>,
    /// `log γ: [b, h, t, 1]`
    pub(super) log_a: View<'a, E>,
    /// `[b, h, t, 1]`
    pub(super) beta: View<'a, E>,
    /// `[1, h, 1, n]`
    pub(super) lambda: View<'a, E>,
    /// `[b, h, n, n]`
    pub(super) g: View<'a, E>,
    pub(super) options: Options,
}

/// One head.
struct Job<'a, E> {
    q: Head<'a, E>,
    k: Head<'a, E>,
    scalars: [Head<'a, E>; 2],
    g: Head<'a, E>,
    ridge: Vec<Lanes<E>>,
    options: Options,
    head: usize,
    /// Tokens
    time: usize,
    n: usize,
    /// Blocks of a vector
    blocks: usize,
}

/// What one token brings.
struct Token<E> {
    gamma: E,
    beta: E,
    k: Vec<Lanes<E>>,
}

impl<E: Vector> Inputs<'_, E> {
    fn job(&self, head: usize) -> Job<'_, E> {
        let [_, h, time, n] = self.k.dims;
        let blocks = n.div_ceil(LANES);
        let mut ridge = vec![[E::default(); LANES]; blocks];
        self.lambda.head(head % h).copy(0, 0, &mut ridge.as_flattened_mut()[..n]);
        let scalars = [self.log_a.head(head), self.beta.head(head)];
        let (q, k, g) = (self.q.head(head), self.k.head(head), self.g.head(head));
        Job { q, k, scalars, g, ridge, options: self.options, head, time, n, blocks }
    }

    /// Does all heads' jobs.
    fn for_all(&self, job: impl Fn(usize) + Send + Sync) {
        let [b, h, t, n] = self.k.dims;
        let heads = 0..b * h;
        if b * h * t * n * n * self.options.steps < LARGE {
            heads.for_each(job);
        } else {
            heads.into_par_iter().for_each(job);
        }
    }
}

impl<E: Vector> Job<'_, E> {
    /// `[n, blocks]` of lanes.
    #[inline(always)]
    fn matrix(&self, from: Head<'_, E>) -> Vec<Lanes<E>> {
        let mut all = vec![[E::default(); LANES]; self.n * self.blocks];
        for (i, row) in all.chunks_exact_mut(self.blocks).enumerate() {
            from.copy(i, 0, &mut row.as_flattened_mut()[..self.n]);
        }
        all
    }

    #[inline(always)]
    fn vector(&self) -> Vec<Lanes<E>> {
        vec![[E::default(); LANES]; self.blocks]
    }

    #[inline(always)]
    fn read(&self, from: Head<'_, E>, i: usize, to: &mut [Lanes<E>]) {
        from.copy(i, 0, &mut to.as_flattened_mut()[..self.n]);
    }

    fn token(&self) -> Token<E> {
        Token { gamma: E::default(), beta: E::default(), k: self.vector() }
    }

    #[inline(always)]
    fn read_token<const FUSED: bool>(&self, i: usize, to: &mut Token<E>) {
        let mut scalars = [[E::default()]; 2];
        for (to, from) in scalars.iter_mut().zip(&self.scalars) {
            from.copy(i, 0, to);
        }
        let [[log_a], [beta]] = scalars;
        (to.gamma, to.beta) = (log_a.exponential::<FUSED>(), beta);
        self.read(self.k, i, &mut to.k);
    }

    /// `G ← γ G + β k kᵀ`
    #[inline(always)]
    fn advance<const FUSED: bool>(&self, g: &mut [Lanes<E>], token: &Token<E>) {
        for (row, &k) in g.chunks_exact_mut(self.blocks).zip(token.k.as_flattened()) {
            let factor = token.beta * k;
            for (g, k) in row.iter_mut().zip(&token.k) {
                block_by_block();
                for l in 0..LANES {
                    g[l] = fused::<E, FUSED>(factor, k[l], token.gamma * g[l]);
                }
            }
        }
    }

    /// Some tokens, with every `G` before a token told.
    #[inline(always)]
    fn walk<const FUSED: bool>(
        &self,
        tokens: Range<usize>,
        g: &mut [Lanes<E>],
        token: &mut Token<E>,
        mut tell: impl FnMut(usize, &[Lanes<E>]),
    ) {
        for i in tokens {
            tell(i, g);
            self.read_token::<FUSED>(i, token);
            self.advance::<FUSED>(g, token);
        }
    }
}

/// Outputs, contiguous.
#[derive(Debug)]
pub(super) struct Outputs<E> {
    pub(super) x: Room<E>,
    pub(super) last: Room<E>,
}

fn room<E: Vector>(view: &View<'_, E>) -> Room<E> {
    Room::new(view.dims.iter().product())
}

impl<E: Vector> Outputs<E> {
    pub(super) fn new(inputs: &Inputs<'_, E>) -> Self {
        Self { x: room(&inputs.q), last: room(&inputs.g) }
    }
}

/// Fills the outputs.
pub(super) fn forward<E: Vector>(inputs: &Inputs<'_, E>, to: &mut Outputs<E>) {
    let n = inputs.k.dims[3];
    let (x, last) = (Target::new(&mut to.x, n), Target::new(&mut to.last, n));
    inputs.for_all(|head| vectorised(Forward { job: inputs.job(head), x, last }));
}

struct Forward<'a, E> {
    job: Job<'a, E>,
    x: Target<E>,
    last: Target<E>,
}

impl<E: Vector> Work for Forward<'_, E> {
    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let Self { job, x, last } = self;
        let (mut g, mut token, mut q) = (job.matrix(job.g), job.token(), job.vector());
        let mut solver = Solver::new(job.n, job.options, false);
        for i in 0..job.time {
            job.read_token::<FUSED>(i, &mut token);
            job.advance::<FUSED>(&mut g, &token);
            job.read(job.q, i, &mut q);
            solver.run::<FUSED>(System { g: &g, ridge: &job.ridge }, &q);
            put(x, job.head * job.time + i, &solver.x.as_flattened()[..job.n]);
        }
        for (i, row) in g.chunks_exact(job.blocks).enumerate() {
            put(last, job.head * job.n + i, &row.as_flattened()[..job.n]);
        }
    }
}

#[inline(always)]
#[allow(unsafe_code, reason = "jobs write different rows")]
fn put<E: Vector>(to: Target<E>, row: usize, from: &[E]) {
    // SAFETY: what `to` points to is borrowed by the pass, and rows of a head are its job's.
    unsafe { to.row(row, 0, from.len()) }.write_copy_of_slice(from);
}

/// Gradients, contiguous.
#[derive(Debug)]
pub(super) struct Gradients<E> {
    pub(super) q: Room<E>,
    pub(super) k: Room<E>,
    pub(super) log_a: Room<E>,
    pub(super) beta: Room<E>,
    /// Of every head, `[b, h, n]`
    pub(super) lambda: Room<E>,
    pub(super) g: Room<E>,
}

impl<E: Vector> Gradients<E> {
    pub(super) fn new(inputs: &Inputs<'_, E>) -> Self {
        let [b, h, _, n] = inputs.k.dims;
        Self {
            q: room(&inputs.q),
            k: room(&inputs.k),
            log_a: room(&inputs.log_a),
            beta: room(&inputs.beta),
            lambda: Room::new(b * h * n),
            g: room(&inputs.g),
        }
    }
}

/// Fills `to` with the gradients for `dx`, and `last` of the last `G` where there is one.
pub(super) fn backward<E: Vector>(
    inputs: &Inputs<'_, E>,
    dx: View<'_, E>,
    last: Option<View<'_, E>>,
    to: &mut Gradients<E>,
) {
    let n = inputs.k.dims[3];
    let keys = [&mut to.q, &mut to.k, &mut to.lambda, &mut to.g].map(|room| Target::new(room, n));
    let scalars = [&mut to.log_a, &mut to.beta].map(|room| Target::new(room, 1));
    inputs.for_all(|head| {
        let last = last.map(|last| last.head(head));
        vectorised(Backward { job: inputs.job(head), dx: dx.head(head), last, keys, scalars });
    });
}

struct Backward<'a, E> {
    job: Job<'a, E>,
    dx: Head<'a, E>,
    last: Option<Head<'a, E>>,
    /// Of `q`, `k`, `λ` and `G`
    keys: [Target<E>; 4],
    /// Of `log γ` and `β`
    scalars: [Target<E>; 2],
}

impl<E: Vector> Work for Backward<'_, E> {
    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let Self { job, dx: from, last, keys: [to_q, to_k, to_lambda, to_g], scalars: [to_log_a, to_beta] } =
            self;
        let (n, size) = (job.n, job.n * job.blocks);
        let mut token = job.token();
        let mut starts = Vec::with_capacity(job.time.div_ceil(TILE) * size);
        let mut g = job.matrix(job.g);
        job.walk::<FUSED>(0..(job.time - 1) / TILE * TILE + 1, &mut g, &mut token, |i, g| {
            if i % TILE == 0 {
                starts.extend_from_slice(g);
            }
        });
        let mut before = vec![[E::default(); LANES]; TILE * size];
        let mut by_g = Matrix::new(n, n);
        if let Some(last) = last {
            by_g.rows_mut().enumerate().for_each(|(i, row)| last.copy(i, 0, row));
        }
        let (mut q, mut dx, mut dq, mut by_ridge) = (job.vector(), job.vector(), job.vector(), job.vector());
        let mut dk = vec![E::default(); n];
        let mut solver = Solver::new(n, job.options, true);
        for tile in (0..job.time.div_ceil(TILE)).rev() {
            let tokens = tile * TILE..job.time.min((tile + 1) * TILE);
            g.copy_from_slice(&starts[tile * size..][..size]);
            job.walk::<FUSED>(tokens.clone(), &mut g, &mut token, |i, g| {
                before[(i - tokens.start) * size..][..size].copy_from_slice(g);
            });
            for i in tokens.clone().rev() {
                let before = &before[(i - tokens.start) * size..][..size];
                g.copy_from_slice(before);
                job.read_token::<FUSED>(i, &mut token);
                job.advance::<FUSED>(&mut g, &token);
                job.read(job.q, i, &mut q);
                job.read(from, i, &mut dx);
                let system = System { g: &g, ridge: &job.ridge };
                solver.run::<FUSED>(system, &q);
                solver.back::<FUSED>(system, &dx, &mut dq, &mut by_g, &mut by_ridge);
                let row = job.head * job.time + i;
                put(to_q, row, &dq.as_flattened()[..n]);
                let [by_gamma, by_beta] = token_back::<E, FUSED>(&job, &token, before, &mut by_g, &mut dk);
                put(to_k, row, &dk);
                put(to_log_a, row, &[by_gamma * token.gamma]);
                put(to_beta, row, &[by_beta]);
            }
        }
        put(to_lambda, job.head, &by_ridge.as_flattened()[..n]);
        for (i, row) in by_g.rows().enumerate() {
            put(to_g, job.head * n + i, row);
        }
    }
}

/// Back through `G ← γ G + β k kᵀ`: `by_g` becomes the gradient of the `G` before the token. Gives those of `γ` and `β`.
#[inline(always)]
fn token_back<E: Vector, const FUSED: bool>(
    job: &Job<'_, E>,
    token: &Token<E>,
    before: &[Lanes<E>],
    by_g: &mut Matrix<E>,
    dk: &mut [E],
) -> [E; 2] {
    let k = &token.k.as_flattened()[..job.n];
    let (mut by_gamma, mut by_beta) = (0.0, E::default());
    // `(dG + dGᵀ) k`: what rows find of `k`, and the rows themselves.
    dk.fill(E::default());
    for (i, (row, before)) in by_g.rows_mut().zip(before.chunks_exact(job.blocks)).enumerate() {
        let before = &before.as_flattened()[..row.len()];
        by_gamma += dot::<E, FUSED>(row, before).to_f64();
        let found = dot::<E, FUSED>(row, k);
        by_beta = fused::<E, FUSED>(found, k[i], by_beta);
        add_scaled::<E, FUSED, 1>(dk, [token.beta * k[i]], [row]);
        dk[i] = fused::<E, FUSED>(token.beta, found, dk[i]);
        scale(row, token.gamma);
    }
    [E::of(by_gamma), by_beta]
}
