//! Weights whose columns are distributions, formed for every token: a column of outputs runs over the inputs, so that all
//! goes along rows, some columns of all tokens at a time, without sums across a register.
//!
//! ```text
//! A_t = α_t A_{t-1} - η_t x_t d_tᵀ,   P_t = softmax(A_t) per column,   p_t = c q_t P_t
//! R_t = DA_t + α_{t+1} R_{t+1},       DA_t[i, j] = P_t[i, j] Dp_t[j] (c q_t[i] - p_t[j])
//! Dq_t = c P_t Dp_t,   Dx_t = -η_t R_t d_t,   Dd_t = -η_t R_tᵀ x_t,   Dα_t = Σ R_t ∘ A_{t-1},   Dη_t = -x_t·(R_t d_t)
//! ```
//!
//! Kept for the way back are `p` and the inverse of every column's sum of exponentials: one exponential per weight and
//! token forward, and one back.

use crate::kernels::dense::Matrix;
use crate::kernels::lanes::{add, add_up, dot_in_double, part, put_part, scale};
use crate::kernels::vector::{LANES, Vector, Work, fused, vectorised};

/// Columns at a time.
pub(super) const WIDE: usize = 32;

/// Rows at a time.
const BAND: usize = 32;

/// Some columns of a row; 0 beyond its end.
pub(super) type Block<E> = [E; WIDE];

const _: () = assert!(WIDE == 2 * LANES, "what is added up across columns are two registers that become one");

/// Room for some columns of all rows.
pub(super) struct Space<E> {
    /// `A` before the first token, and after every one
    states: Vec<Block<E>>,
    /// The largest entry of each column after every token
    tops: Vec<Block<E>>,
    /// `R`
    carried: Vec<Block<E>>,
    band: Band<E>,
    /// Sums of `P Dp` and of `R d` of a token
    total: [Vec<E>; 2],
}

/// What there is of some rows at a time, so that it stays in the nearest cache.
struct Band<E> {
    /// `P Dp`
    shares: [Block<E>; BAND],
    /// Sums of `P Dp` and of `R d`, and the transpose of one of them
    sums: [Matrix<E>; 2],
    turned: Matrix<E>,
}

impl<E: Vector> Space<E> {
    pub(super) fn new() -> Self {
        let band = Band {
            shares: [[E::default(); WIDE]; BAND],
            sums: std::array::from_fn(|_| Matrix::new(BAND, LANES)),
            turned: Matrix::new(LANES, BAND),
        };
        Self { states: Vec::new(), tops: Vec::new(), carried: Vec::new(), band, total: Default::default() }
    }
}

/// What one layer does to the tokens of a run, row by row.
#[derive(Clone, Copy)]
pub(super) struct Run<'a, E> {
    /// `α` and `η`
    pub(super) steps: &'a Matrix<E>,
    /// `x`, `d` and `q`
    pub(super) input: &'a Matrix<E>,
    pub(super) error: &'a Matrix<E>,
    pub(super) query: &'a Matrix<E>,
    /// `c`
    pub(super) size: E,
}

/// Per token what its weights make of its query, and the inverse of every column's sum of exponentials below its largest
/// entry.
pub(super) struct Answers<E> {
    pub(super) made: Matrix<E>,
    pub(super) inverse: Matrix<E>,
}

impl<E: Vector> Answers<E> {
    pub(super) fn new(tokens: usize, outputs: usize) -> Self {
        let [made, inverse] = std::array::from_fn(|_| Matrix::new(tokens, outputs));
        Self { made, inverse }
    }

    /// In the order in which they are kept.
    pub(super) fn all(&self) -> [&Matrix<E>; 2] {
        [&self.made, &self.inverse]
    }

    /// In the same order, for so many tokens.
    pub(super) fn all_mut(&mut self, tokens: usize) -> [&mut Matrix<E>; 2] {
        [&mut self.made, &mut self.inverse].map(|matrix| {
            let columns = matrix.columns();
            matrix.resize(tokens, columns);
            matrix
        })
    }
}

/// Reads all tokens and moves `state` to the end of the run.
pub(super) fn read<E: Vector>(
    run: Run<'_, E>,
    state: &mut Matrix<E>,
    answers: &mut Answers<E>,
    space: &mut Space<E>,
) {
    vectorised(Read { run, state, answers, space });
}

struct Read<'a, E> {
    run: Run<'a, E>,
    state: &'a mut Matrix<E>,
    answers: &'a mut Answers<E>,
    space: &'a mut Space<E>,
}

impl<E: Vector> Work for Read<'_, E> {
    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let Self { run: Run { steps, input, error, query, size }, state, answers, space } = self;
        let tokens = input.rows().count();
        let [made, inverse] = answers.all_mut(tokens);
        let (rows, columns) = (input.columns(), error.columns());
        let Space { states: block, .. } = space;
        block.resize(rows, [E::default(); WIDE]);
        for first in (0..columns).step_by(WIDE) {
            for (i, block) in block.iter_mut().enumerate() {
                *block = part(state.row(i), first);
            }
            for t in 0..tokens {
                let (alpha, eta) = (steps.row(0)[t], steps.row(1)[t]);
                let d = part(error.row(t), first);
                let top = step::<E, FUSED>(block, [alpha, eta], input.row(t), &d);
                let (sum, found) = average::<E, FUSED>(block, &top, query.row(t));
                let (mut one, mut answer) = ([E::default(); WIDE], found);
                for j in 0..WIDE {
                    one[j] = E::of(1.0) / sum[j];
                    answer[j] *= size * one[j];
                }
                put_part(&answer, made.row_mut(t), first);
                put_part(&one, inverse.row_mut(t), first);
            }
            for (i, block) in block.iter().enumerate() {
                put_part(block, state.row_mut(i), first);
            }
        }
    }
}

/// `A ← α A - η x dᵀ`; the largest entry of each column.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "fixed bounds, so that each block is in registers")]
fn step<E: Vector, const FUSED: bool>(
    block: &mut [Block<E>],
    [alpha, eta]: [E; 2],
    x: &[E],
    d: &Block<E>,
) -> Block<E> {
    let mut change = *d;
    for j in 0..WIDE {
        change[j] = -(eta * change[j]);
    }
    let mut top = [E::of(f64::NEG_INFINITY); WIDE];
    let x = &x[..block.len()];
    for i in 0..block.len() {
        let (mut a, x) = (block[i], x[i]);
        for j in 0..WIDE {
            a[j] = fused::<E, FUSED>(x, change[j], alpha * a[j]);
            top[j] = if a[j] > top[j] { a[j] } else { top[j] };
        }
        block[i] = a;
    }
    top
}

/// `Σ_i e^(A[i] - top)` and `Σ_i q[i] e^(A[i] - top)` of each column.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "fixed bounds, so that each block is in registers")]
fn average<E: Vector, const FUSED: bool>(
    block: &[Block<E>],
    top: &Block<E>,
    q: &[E],
) -> (Block<E>, Block<E>) {
    let (mut sum, mut found) = ([E::default(); WIDE], [E::default(); WIDE]);
    let (top, q) = (*top, &q[..block.len()]);
    for i in 0..block.len() {
        let (a, q) = (block[i], q[i]);
        for j in 0..WIDE {
            let weight = (a[j] - top[j]).exponential::<FUSED>();
            sum[j] += weight;
            found[j] = fused::<E, FUSED>(q, weight, found[j]);
        }
    }
    (sum, found)
}

/// What the way back through a run goes on with, and what it adds to.
pub(super) struct Back<'a, E> {
    /// Of `p`
    pub(super) made: &'a Matrix<E>,
    /// `A` before the run
    pub(super) state: &'a Matrix<E>,
    /// Of `A` after it, then before it
    pub(super) d_state: &'a mut Matrix<E>,
    /// Of `q`, `x` and `d`
    pub(super) query: &'a mut Matrix<E>,
    pub(super) input: &'a mut Matrix<E>,
    pub(super) error: &'a mut Matrix<E>,
    /// Of `α` and `η`
    pub(super) steps: &'a mut Matrix<E>,
}

/// Goes back through all reads and writes of a run; returns the gradient of `c`.
pub(super) fn back<E: Vector>(
    run: Run<'_, E>,
    answers: &Answers<E>,
    back: Back<'_, E>,
    space: &mut Space<E>,
) -> f64 {
    let size = back.made.dot(&answers.made) / run.size.to_f64();
    vectorised(GoBack { run, answers, back, space });
    size
}

struct GoBack<'a, E> {
    run: Run<'a, E>,
    answers: &'a Answers<E>,
    back: Back<'a, E>,
    space: &'a mut Space<E>,
}

impl<E: Vector> Work for GoBack<'_, E> {
    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let Self { run: Run { steps, input, error, query, size }, answers, back, space } = self;
        let Back { made, state, d_state, query: d_query, input: d_input, error: d_error, steps: d_steps } =
            back;
        let (tokens, rows, columns) = (input.rows().count(), input.columns(), error.columns());
        let Space { states, tops, carried, band, total } = space;
        states.resize((tokens + 1) * rows, [E::default(); WIDE]);
        tops.resize(tokens, [E::default(); WIDE]);
        carried.resize(rows, [E::default(); WIDE]);
        for total in &mut *total {
            total.resize(rows, E::default());
        }
        for first in (0..columns).step_by(WIDE) {
            for i in 0..rows {
                states[i] = part(state.row(i), first);
                carried[i] = part(d_state.row(i), first);
            }
            for t in 0..tokens {
                let (alpha, eta) = (steps.row(0)[t], steps.row(1)[t]);
                let d = part(error.row(t), first);
                let (before, after) = states.split_at_mut((t + 1) * rows);
                let after = &mut after[..rows];
                after.copy_from_slice(&before[t * rows..]);
                tops[t] = step::<E, FUSED>(after, [alpha, eta], input.row(t), &d);
            }
            for t in (0..tokens).rev() {
                let (alpha, eta) = (steps.row(0)[t], steps.row(1)[t]);
                let columns = Columns {
                    top: tops[t],
                    inverse: part(answers.inverse.row(t), first),
                    made: part(answers.made.row(t), first),
                    d_made: part(made.row(t), first),
                    error: part(error.row(t), first),
                };
                let states = &states[t * rows..][..2 * rows];
                let inputs = [input.row(t), query.row(t)];
                let (mut d_row, kept) =
                    token::<E, FUSED>(&columns, [size, alpha], inputs, states, carried, band, total);
                for d in &mut d_row {
                    *d = -(eta * *d);
                }
                let mut found: Block<E> = part(d_error.row(t), first);
                let mut d_alpha = E::default();
                for j in 0..WIDE {
                    found[j] += d_row[j];
                    d_alpha += kept[j];
                }
                put_part(&found, d_error.row_mut(t), first);
                d_steps.row_mut(0)[t] += d_alpha;
                let [weighed, along] = &mut *total;
                scale(weighed, size);
                add(d_query.row_mut(t), weighed);
                d_steps.row_mut(1)[t] += E::of(-dot_in_double::<E, FUSED>(input.row(t), along));
                scale(along, -eta);
                add(d_input.row_mut(t), along);
            }
            for (i, block) in carried.iter().enumerate() {
                put_part(block, d_state.row_mut(i), first);
            }
        }
    }
}

/// Some columns of what one token has.
struct Columns<E> {
    top: Block<E>,
    inverse: Block<E>,
    made: Block<E>,
    d_made: Block<E>,
    error: Block<E>,
}

/// Back through one token: `R` becomes what comes to `A_{t-1}`. Returns `Rᵀ x` and the sums of `R ∘ A_{t-1}`, and fills
/// `total` with the sums of `P Dp` and of `R d`.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "fixed bounds, so that each block is in registers")]
fn token<E: Vector, const FUSED: bool>(
    columns: &Columns<E>,
    [size, alpha]: [E; 2],
    [x, q]: [&[E]; 2],
    states: &[Block<E>],
    carried: &mut [Block<E>],
    band: &mut Band<E>,
    total: &mut [Vec<E>; 2],
) -> (Block<E>, Block<E>) {
    let rows = carried.len();
    let Columns { top, inverse, made, d_made, error } = *columns;
    let mut scaled = d_made;
    for j in 0..WIDE {
        scaled[j] *= inverse[j];
    }
    let (mut to_error, mut to_alpha) = ([E::default(); WIDE], [E::default(); WIDE]);
    for first in (0..rows).step_by(BAND) {
        let count = BAND.min(rows - first);
        let (before, after) = (&states[first..][..count], &states[rows + first..][..count]);
        let (x, q, carried) = (&x[first..][..count], &q[first..][..count], &mut carried[first..][..count]);
        // Exponentials by themselves: with all that follows they do not fit the registers.
        let shares = &mut band.shares[..count];
        for i in 0..count {
            let (a, mut share) = (after[i], scaled);
            for j in 0..WIDE {
                share[j] *= (a[j] - top[j]).exponential::<FUSED>();
            }
            shares[i] = share;
        }
        let [weighed_sums, along_sums] = band.sums.each_mut().map(|sums| {
            sums.resize(count, LANES);
            sums.blocks_mut()
        });
        for i in 0..count {
            let (share, old, mut r) = (shares[i], before[i], carried[i]);
            let (mut weighed, mut along) = ([E::default(); LANES], [E::default(); LANES]);
            let (x, cq) = (x[i], size * q[i]);
            for j in 0..WIDE {
                r[j] = fused::<E, FUSED>(share[j], cq - made[j], r[j]);
                to_error[j] = fused::<E, FUSED>(r[j], x, to_error[j]);
                to_alpha[j] = fused::<E, FUSED>(r[j], old[j], to_alpha[j]);
            }
            for j in 0..LANES {
                weighed[j] = share[j] + share[LANES + j];
                along[j] = fused::<E, FUSED>(r[j], error[j], r[LANES + j] * error[LANES + j]);
            }
            for j in 0..WIDE {
                r[j] *= alpha;
            }
            carried[i] = r;
            (weighed_sums[i], along_sums[i]) = (weighed, along);
        }
        for (sums, total) in band.sums.iter().zip(&mut *total) {
            add_up(sums, &mut band.turned, &mut total[first..][..count]);
        }
    }
    (to_error, to_alpha)
}
