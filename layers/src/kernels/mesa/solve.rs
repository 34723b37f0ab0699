//! Conjugate gradients for one system, and the way back through them, on vectors and matrices of whole blocks of lanes. As
//! MesaNet's tensor form, residuals `r` and directions `p` are kept at length 1 with their `size` beside them:
//!
//! ```text
//! a = A p,   α = 1 / max(p·a, least / 2),   x += size α p
//! u = r - α a,   ρ = |u|,   r ← u / ρ,   p ← r + ρ p,   size ← ρ size
//! ```

use super::Options;
use crate::kernels::dense::{Matrix, Part};
use crate::kernels::lanes::{add_blocks as add, dot_blocks as dot};
use crate::kernels::vector::{LANES, Vector, block_by_block, fused};

/// A block of a vector.
pub(super) type Lanes<E> = [E; LANES];

/// Rows that are added up side by side, so that no sum waits for the one before.
const ROWS: usize = 4;

/// What is added to squares of lengths, as in the tensor form, so that nothing is divided by 0.
const TINY: f64 = 1e-30;

/// A symmetric matrix, `[n, blocks]` of lanes, and what is added to its diagonal.
#[derive(Clone, Copy)]
pub(super) struct System<'a, E> {
    pub(super) g: &'a [Lanes<E>],
    pub(super) ridge: &'a [Lanes<E>],
}

/// `to = x + factor y`
#[inline(always)]
fn sum<E: Vector, const FUSED: bool>(to: &mut [Lanes<E>], x: &[Lanes<E>], factor: E, y: &[Lanes<E>]) {
    for ((to, x), y) in to.iter_mut().zip(x).zip(y) {
        block_by_block();
        for l in 0..LANES {
            to[l] = fused::<E, FUSED>(factor, y[l], x[l]);
        }
    }
}

#[inline(always)]
fn scale<E: Vector>(to: &mut [Lanes<E>], factor: E) {
    for to in to {
        block_by_block();
        for x in to {
            *x *= factor;
        }
    }
}

impl<E: Vector> System<'_, E> {
    /// `to = A p`
    #[inline(always)]
    fn product<const FUSED: bool>(&self, p: &[Lanes<E>], to: &mut [Lanes<E>]) {
        let blocks = p.len();
        let (numbers, n) = (p.as_flattened(), self.g.len() / blocks);
        for (b, to) in to.iter_mut().enumerate() {
            let mut sums = [[E::default(); LANES]; ROWS];
            let mut rows = self.g.chunks_exact(ROWS * blocks);
            for (rows, p) in rows.by_ref().zip(numbers.as_chunks::<ROWS>().0) {
                block_by_block();
                for r in 0..ROWS {
                    let row = &rows[r * blocks + b];
                    for l in 0..LANES {
                        sums[r][l] = fused::<E, FUSED>(p[r], row[l], sums[r][l]);
                    }
                }
            }
            for (row, &p) in rows.remainder().chunks_exact(blocks).zip(&numbers[n / ROWS * ROWS..n]) {
                block_by_block();
                for l in 0..LANES {
                    sums[0][l] = fused::<E, FUSED>(p, row[b][l], sums[0][l]);
                }
            }
            let (ridge, p) = (&self.ridge[b], &p[b]);
            for l in 0..LANES {
                let sum = (sums[0][l] + sums[1][l]) + (sums[2][l] + sums[3][l]);
                to[l] = fused::<E, FUSED>(ridge[l], p[l], sum);
            }
        }
    }
}

/// Scalars of one step.
#[derive(Clone, Copy, Default)]
struct Step<E> {
    alpha: E,
    /// `p·a`, or less than 0 where it was bounded
    curvature: E,
    /// `ρ`
    ratio: E,
    size: E,
}

/// Room for one solve; with everything that its steps made, for the way back.
pub(super) struct Solver<E> {
    blocks: usize,
    steps: Vec<Step<E>>,
    /// Directions, `A p` and residuals before every step: `[steps, blocks]`
    p: Vec<Lanes<E>>,
    a: Vec<Lanes<E>>,
    r: Vec<Lanes<E>>,
    pub(super) x: Vec<Lanes<E>>,
    /// Gradients of `p` and `r`
    by_p: Vec<Lanes<E>>,
    by_r: Vec<Lanes<E>>,
    space: Vec<Lanes<E>>,
    /// Directions and gradients of `A p`, whose products are the gradient of `A`: `[steps, n]`
    directions: Matrix<E>,
    changes: Matrix<E>,
    least: E,
}

impl<E: Vector> Solver<E> {
    /// For `n` numbers; room for all steps if they are to be `kept`.
    pub(super) fn new(n: usize, Options { steps, least }: Options, kept: bool) -> Self {
        let blocks = n.div_ceil(LANES);
        let room = |count: usize| vec![[E::default(); LANES]; count * blocks];
        let all = if kept { steps } else { 1 };
        let matrix = || Matrix::new(if kept { steps } else { 1 }, n);
        Self {
            blocks,
            steps: vec![Step::default(); steps],
            p: room(all),
            a: room(all),
            r: room(all),
            x: room(1),
            by_p: room(1),
            by_r: room(1),
            space: room(1),
            directions: matrix(),
            changes: matrix(),
            least: E::of(0.5 * least),
        }
    }

    /// Leaves the solution for `q` in `x`.
    #[inline(always)]
    pub(super) fn run<const FUSED: bool>(&mut self, system: System<'_, E>, q: &[Lanes<E>]) {
        let blocks = self.blocks;
        let kept = self.p.len() > blocks;
        let square = dot::<E, FUSED>(q, q) + E::of(TINY);
        let mut size = E::of(square.to_f64().sqrt());
        // 1, or 0 where nothing is left to solve.
        let mut rest = (square - E::of(TINY)) / square;
        for (r, q) in self.r.iter_mut().zip(q) {
            for l in 0..LANES {
                r[l] = q[l] / size;
            }
        }
        self.p[..blocks].copy_from_slice(&self.r[..blocks]);
        self.x.fill([E::default(); LANES]);
        let count = self.steps.len();
        for index in 0..count {
            let (at, next) = if kept { (index * blocks, (index + 1) * blocks) } else { (0, 0) };
            let a = &mut self.a[at..at + blocks];
            system.product::<FUSED>(&self.p[at..at + blocks], a);
            let found = dot::<E, FUSED>(&self.p[at..at + blocks], a);
            let bounded = found < self.least;
            let curvature = if bounded { self.least } else { found };
            let alpha = rest / curvature;
            add::<E, FUSED>(&mut self.x, alpha * size, &self.p[at..at + blocks]);
            let step = &mut self.steps[index];
            *step = Step {
                alpha,
                curvature: if bounded { E::of(-1.0) } else { curvature },
                ratio: E::default(),
                size,
            };
            if index + 1 == count {
                break;
            }
            sum::<E, FUSED>(&mut self.space, &self.r[at..at + blocks], -alpha, a);
            let found = dot::<E, FUSED>(&self.space, &self.space);
            let square = found + E::of(TINY);
            let ratio = E::of(square.to_f64().sqrt());
            rest = found / square;
            step.ratio = ratio;
            let inverse = E::of(1.0) / ratio;
            for (r, u) in self.r[next..next + blocks].iter_mut().zip(&self.space) {
                for l in 0..LANES {
                    r[l] = u[l] * inverse;
                }
            }
            self.space.copy_from_slice(&self.p[at..at + blocks]);
            sum::<E, FUSED>(
                &mut self.p[next..next + blocks],
                &self.r[next..next + blocks],
                ratio,
                &self.space,
            );
            size *= ratio;
        }
    }

    /// From the gradient `dx` of the solution that was just [run](Self::run): that of `q` is left in `dq`, and those of `A`
    /// and its diagonal are added to, of `A` not symmetric.
    #[inline(always)]
    pub(super) fn back<const FUSED: bool>(
        &mut self,
        system: System<'_, E>,
        dx: &[Lanes<E>],
        dq: &mut [Lanes<E>],
        to_g: &mut Matrix<E>,
        to_ridge: &mut [Lanes<E>],
    ) {
        let (blocks, count) = (self.blocks, self.steps.len());
        let n = self.directions.columns();
        self.by_p.fill([E::default(); LANES]);
        self.by_r.fill([E::default(); LANES]);
        let mut by_size = E::default();
        for index in (0..count).rev() {
            let at = index * blocks;
            let Step { alpha, curvature, ratio, size } = self.steps[index];
            let (p, a) = (&self.p[at..at + blocks], &self.a[at..at + blocks]);
            let mut by_alpha = E::default();
            // Gradients of `A p`, in `space`.
            self.space.fill([E::default(); LANES]);
            if index + 1 < count {
                let next = &self.r[at + blocks..at + 2 * blocks];
                let mut by_ratio = fused::<E, FUSED>(by_size, size, dot::<E, FUSED>(&self.by_p, p));
                by_size *= ratio;
                add::<E, FUSED>(&mut self.by_r, E::of(1.0), &self.by_p);
                scale(&mut self.by_p, ratio);
                let inverse = E::of(1.0) / ratio;
                by_ratio += -(dot::<E, FUSED>(&self.by_r, next) * inverse);
                scale(&mut self.by_r, inverse);
                // Now that of `u`, which is that of the residual before.
                add::<E, FUSED>(&mut self.by_r, by_ratio, next);
                by_alpha = -dot::<E, FUSED>(&self.by_r, a);
                add::<E, FUSED>(&mut self.space, -alpha, &self.by_r);
            }
            let along = dot::<E, FUSED>(dx, p);
            by_alpha = fused::<E, FUSED>(along, size, by_alpha);
            by_size = fused::<E, FUSED>(along, alpha, by_size);
            add::<E, FUSED>(&mut self.by_p, alpha * size, dx);
            if curvature > E::default() {
                let by_curvature = -(by_alpha * alpha / curvature);
                add::<E, FUSED>(&mut self.by_p, by_curvature, a);
                add::<E, FUSED>(&mut self.space, by_curvature, p);
            }
            for ((to, by), p) in to_ridge.iter_mut().zip(&self.space).zip(p) {
                for l in 0..LANES {
                    to[l] = fused::<E, FUSED>(by[l], p[l], to[l]);
                }
            }
            self.directions.row_mut(index).copy_from_slice(&p.as_flattened()[..n]);
            self.changes.row_mut(index).copy_from_slice(&self.space.as_flattened()[..n]);
            system.product::<FUSED>(&self.space, dq);
            add::<E, FUSED>(&mut self.by_p, E::of(1.0), dq);
        }
        to_g.add_turned_product(&self.directions, &self.changes, Part::Whole);
        // The first direction is the first residual, `q / size`.
        add::<E, FUSED>(&mut self.by_r, E::of(1.0), &self.by_p);
        let first = &self.r[..blocks];
        let size = self.steps[0].size;
        let inverse = E::of(1.0) / size;
        let rest = by_size - dot::<E, FUSED>(&self.by_r, first) * inverse;
        for ((to, by), r) in dq.iter_mut().zip(&self.by_r).zip(first) {
            for l in 0..LANES {
                to[l] = fused::<E, FUSED>(rest, r[l], by[l] * inverse);
            }
        }
    }
}
