//! Weights are made again, tile by tile, and with them all gradients: queries go to the first block, and their gradients
//! come back.

use rayon::prelude::*;

use super::super::tiles::{Shifts, TileShifts};
use super::super::weights::{Sums, differentiate, weigh_again};
use super::BLOCK;
use super::flex::{Block, Place, Views};
use crate::kernels::dense::{Matrix, Part};
use crate::kernels::vector::Vector;
use crate::kernels::view::{View, read, write};

/// Gradients of what [`Views`] has, contiguous; of a sink and of gates that are not there, none.
#[derive(Debug)]
pub(super) struct Gradients<E> {
    pub(super) reads: Vec<E>,
    pub(super) ends: Vec<E>,
    pub(super) v: Vec<E>,
    /// `[h]`
    pub(super) sink: Vec<E>,
    /// `[b, h, T]`
    pub(super) forget: Vec<E>,
}

/// What the forward pass left and what came back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outcome<'a, E> {
    /// `[b, h, t, p]`
    pub(super) y: View<'a, E>,
    /// `[b, h, t]`
    pub(super) log_sum: &'a [E],
    /// Gradient of `y`
    pub(super) dy: View<'a, E>,
}

/// Gradients of everything from that of the outputs. `dS = P ∘ (dP - y · dy)`, `dP = dY Vᵀ`, and with the queries `q` at a
/// block's end, the keys `K` there, and the gradient `g` of the queries at its start
///
/// ```text
/// dK += dSᵀ q      dM += qᵀ g      g ← dS K + g Mᵀ      dV += Pᵀ dY
/// ```
///
/// A job is some tiles of queries of one head, so that nothing is shared between jobs but what they read. With fewer heads
/// than threads there are several jobs to a head, whose gradients of blocks are added up at the end.
pub(super) fn backward<E: Vector>(views: &Views<'_, E>, outcome: Outcome<'_, E>) -> Gradients<E> {
    let ([b, h, _, total], [n, p], count) = (views.sizes(), views.widths(), views.blocks());
    let heads = b * h;
    let threads = rayon::current_num_threads();
    // As few as give every thread as much.
    let even = |parts: &usize| (heads * parts).is_multiple_of(threads) || heads * parts >= 4 * threads;
    let places = views.places();
    let parts = (1..).find(even).unwrap_or(1).min(places.len() / heads);

    let mut jobs: Vec<Job<'_, E>> = (0..heads * parts).map(|_| Job::default()).collect();
    let width = BLOCK + n;
    let mut reads = vec![E::default(); heads * count * BLOCK * width];
    let mut tiles: Vec<_> = reads.chunks_mut(BLOCK * width).map(Some).collect();
    for place in places {
        let tile = tiles[place.head * count + place.block].take().expect("one place for a block");
        jobs[place.head * parts + place.block % parts].tiles.push((place, tile));
    }
    let blocks: Vec<_> = (0..heads * count)
        .into_par_iter()
        .map(|index| Turned::read(views, index / count, index % count))
        .collect();
    let shifts = views.shifts();
    jobs.par_iter_mut().enumerate().for_each(|(index, job)| {
        let blocks = &blocks[index / parts * count..][..count];
        job.grads = blocks.iter().map(|block| Block::zeros(&block.block)).collect();
        job.fades = vec![0.0; if views.forget.is_some() { total } else { 0 }];
        let mut scratch = Backward::new(views);
        for (place, tile) in std::mem::take(&mut job.tiles) {
            scratch.tile(views, outcome, blocks, &shifts, place, job);
            scratch.put(views, place, tile);
        }
    });

    let mut sink = vec![0.0; h];
    let mut forget = Vec::with_capacity(if views.forget.is_some() { heads * total } else { 0 });
    for (head, jobs) in jobs.chunks(parts).enumerate() {
        sink[head % h] += jobs.iter().map(|job| job.sink).sum::<f64>();
        // `log f_s` is in the sums of all tokens from `s` on.
        let mut sum = 0.0;
        let later = (0..jobs[0].fades.len()).rev().map(|token| {
            sum += jobs.iter().map(|job| job.fades[token]).sum::<f64>();
            E::of(sum)
        });
        let start = forget.len();
        forget.extend(later);
        forget[start..].reverse();
    }
    let mut ends = vec![E::default(); heads * count * n * width];
    let mut v = vec![E::default(); heads * total * p];
    ends.par_chunks_mut(count * n * width)
        .zip(v.par_chunks_mut(total * p))
        .zip(jobs.par_chunks_mut(parts))
        .for_each(|((ends, v), jobs)| {
            let (sum, rest) = jobs.split_at_mut(1);
            let tiles = ends.chunks_mut(n * width).zip(v.chunks_mut(BLOCK * p));
            for (index, (block, (ends, v))) in sum[0].grads.iter_mut().zip(tiles).enumerate() {
                rest.iter().for_each(|job| block.add(&job.grads[index]));
                // Queries are in units of `ln 2`.
                block.keys.scale(E::of(std::f64::consts::LN_2));
                block.moves.scale(E::of(std::f64::consts::LN_2));
                for ((i, row), moves) in ends.chunks_mut(width).enumerate().zip(block.moves.rows()) {
                    let (keys, to_moves) = row.split_at_mut(BLOCK);
                    block.keys.rows().zip(keys).for_each(|(key, to)| *to = key[i]);
                    to_moves.copy_from_slice(moves);
                }
                write(&block.v, v);
            }
        });
    let sink = views.sink.map_or(Vec::new(), |_| sink.into_iter().map(E::of).collect());
    Gradients { reads, ends, v, sink, forget }
}

/// A block with what the way back needs of it turned.
struct Turned<E> {
    block: Block<E>,
    /// `[C, n]`
    keys: Matrix<E>,
    moves: Matrix<E>,
}

impl<E: Vector> Turned<E> {
    fn read(views: &Views<'_, E>, head: usize, block: usize) -> Self {
        let block = Block::read(views, head, block);
        let n = block.moves.columns();
        let (mut keys, mut moves) = (Matrix::new(BLOCK, n), Matrix::new(n, n));
        keys.set_transpose(&block.keys);
        moves.set_transpose(&block.moves);
        Self { block, keys, moves }
    }
}

impl<E: Vector> Block<E> {
    /// Gradients of a block like `other`: of its keys turned, `[C, n]`.
    fn zeros(other: &Self) -> Self {
        let (n, p) = (other.moves.columns(), other.v.columns());
        let rows = other.v.rows().count();
        Self { keys: Matrix::new(BLOCK, n), moves: Matrix::new(n, n), v: Matrix::new(rows, p) }
    }

    fn add(&mut self, other: &Self) {
        self.keys.add(&other.keys);
        self.moves.add(&other.moves);
        self.v.add(&other.v);
    }
}

/// Tiles of queries of one head, and the gradients that they have in common.
struct Job<'a, E> {
    tiles: Vec<(Place, &'a mut [E])>,
    grads: Vec<Block<E>>,
    /// Gradients of the sums of `log f`, `[T]`
    fades: Vec<f64>,
    sink: f64,
}

impl<E> Default for Job<'_, E> {
    fn default() -> Self {
        Self { tiles: Vec::new(), grads: Vec::new(), fades: Vec::new(), sink: 0.0 }
    }
}

struct Backward<E> {
    space: Matrix<E>,
    /// Of the own block
    scores: Matrix<E>,
    weights: Matrix<E>,
    /// The queries at the end of every block before their own, turned
    q: Vec<Matrix<E>>,
    /// The same of one block, not turned
    rows: Matrix<E>,
    here: TileShifts<E>,
    /// Sums of a tile's gradients of scores
    sums: [Vec<E>; 2],
    y: Matrix<E>,
    dy: Matrix<E>,
    dy_turned: Matrix<E>,
    d_weights: Matrix<E>,
    /// Derivatives of the softcap
    slopes: Option<Matrix<E>>,
    /// Gradients of queries at the start of a block
    dq: Matrix<E>,
    moved: Matrix<E>,
    means: Vec<E>,
}

impl<E: Vector> Backward<E> {
    fn new(views: &Views<'_, E>) -> Self {
        let [n, p] = views.widths();
        let square = || Matrix::new(BLOCK, BLOCK);
        let [rows, dq, moved] = [(); 3].map(|()| Matrix::new(BLOCK, n));
        Self {
            space: Matrix::new(BLOCK, n.max(BLOCK)),
            scores: square(),
            weights: square(),
            q: (1..views.blocks().max(2)).map(|_| Matrix::new(n, BLOCK)).collect(),
            rows,
            here: TileShifts::new(),
            sums: [(); 2].map(|()| vec![E::default(); BLOCK]),
            y: Matrix::new(BLOCK, p),
            dy: Matrix::new(BLOCK, p),
            dy_turned: Matrix::new(p, BLOCK),
            d_weights: square(),
            slopes: views.options.weighing.softcap.map(|_| square()),
            dq,
            moved,
            means: Vec::new(),
        }
    }

    /// Leaves the gradients of scores of the own block in `d_weights`, turned, those of queries at its start in `dq`, and adds
    /// to the job's.
    fn tile(
        &mut self,
        views: &Views<'_, E>,
        outcome: Outcome<'_, E>,
        blocks: &[Turned<E>],
        shifts: &Shifts,
        place: Place,
        job: &mut Job<'_, E>,
    ) {
        let Self { space, scores, weights, q, rows: asked, here, sums, y, dy, dy_turned, d_weights, .. } =
            self;
        let (slopes, dq, moved, means) = (&mut self.slopes, &mut self.dq, &mut self.moved, &mut self.means);
        let [query_sums, key_sums] = sums;
        let Place { head, block: own, before, rows } = place;
        let ([_, _, t, _], [n, p], weighing) = (views.sizes(), views.widths(), views.options.weighing);
        let (query, first) = (views.query(place), own * BLOCK + before);
        read(y, outcome.y.head(head), (query, rows), p);
        read(dy, outcome.dy.head(head), (query, rows), p);
        dy_turned.set_transpose(dy);
        means.clear();
        means.resize(rows, E::default());
        y.add_row_dots(dy, 0, means);
        let log_sum = &outcome.log_sum[head * t + query..][..rows];
        here.set_queries(shifts, head, first, rows);
        query_sums.fill(E::default());
        dq.resize(rows, n);
        dq.rows_mut().for_each(|row| row.fill(E::default()));

        views.queries(place, space, scores, &mut q[own.saturating_sub(1)]);
        for index in (1..own).rev() {
            let (to, from) = q.split_at_mut(index);
            to[index - 1].set_turned_product(&blocks[index].block.moves, &from[0], Part::Whole);
        }
        for (index, Turned { block, keys, moves }) in blocks[..=own].iter().enumerate() {
            let count = views.keys(index);
            let weights = if index < own {
                weights.set_turned_product(&block.keys, &q[index], Part::Whole);
                &mut *weights
            } else {
                scores.resize(count, rows);
                &mut *scores
            };
            if let Some(slopes) = slopes {
                slopes.resize(count, rows);
            }
            here.set_keys(shifts, head, first, index * BLOCK, count);
            let seen = here.scores(weighing, query, index * BLOCK);
            weigh_again(weights, slopes.as_mut(), seen, log_sum);
            let grads = &mut job.grads[index];
            grads.v.add_product(weights, dy, Part::Whole);
            d_weights.set_product(&block.v, dy_turned, Part::Whole);
            let wanted = !job.fades.is_empty();
            let sums = wanted.then_some(Sums { queries: query_sums, keys: key_sums });
            differentiate(d_weights, weights, slopes.as_ref(), means, sums);
            if wanted {
                let fades = job.fades[index * BLOCK..].iter_mut().take(count);
                fades.zip(&*key_sums).for_each(|(to, sum)| *to -= sum.to_f64());
            }
            if index == own {
                break;
            }
            asked.set_transpose(&q[index]);
            grads.keys.add_product(d_weights, asked, Part::Whole);
            if index > 0 {
                grads.moves.add_turned_product(asked, dq, Part::Whole);
                moved.set_product(dq, moves, Part::Whole);
                std::mem::swap(dq, moved);
            }
            dq.add_turned_product(d_weights, keys, Part::Whole);
        }
        if !job.fades.is_empty() {
            let fades = job.fades[first..].iter_mut().take(rows);
            fades.zip(&*query_sums).for_each(|(to, sum)| *to += sum.to_f64());
        }
        let share = |(log_sum, mean): (&E, &E)| {
            views.sink(head).map(|sink| -(sink - log_sum.to_f64()).exp2() * mean.to_f64())
        };
        job.sink += log_sum.iter().zip(&*means).filter_map(share).sum::<f64>();
    }

    /// Writes the gradients of what a block's queries read, `[C, C + n]`, which is 0.
    fn put(&mut self, views: &Views<'_, E>, place: Place, to: &mut [E]) {
        let scale = E::of(views.options.weighing.scale);
        self.d_weights.scale(scale);
        self.dq.scale(scale);
        self.space.set_transpose(&self.d_weights);
        let rows = to.chunks_mut(BLOCK + self.dq.columns()).skip(place.before);
        for ((to, scores), q) in rows.zip(self.space.rows()).zip(self.dq.rows()) {
            let (to_scores, to_q) = to.split_at_mut(BLOCK);
            to_scores[..scores.len()].copy_from_slice(scores);
            to_q.copy_from_slice(q);
        }
    }
}
