//! Weights are made again, tile by tile, and with them all gradients.

use rayon::prelude::*;

use super::tiles::{Inputs, KEYS, Keys, QUERIES, Shifts, Tile, TileShifts};
use super::weights::{Sums, differentiate, weigh_again};
use crate::kernels::dense::{Matrix, Part};
use crate::kernels::room::{HeadRoom, Room};
use crate::kernels::vector::Vector;
use crate::kernels::view::{View, read};

/// Gradients of [`Inputs`]; those of `q`, `k` and `v` lie as these do.
#[derive(Debug)]
pub(super) struct Gradients<E> {
    pub(super) q: Room<E>,
    pub(super) k: Room<E>,
    pub(super) v: Room<E>,
    /// `[h]`, empty without a sink
    pub(super) sink: Vec<E>,
    /// `[b, h, T, 1]`, empty without forgetting
    pub(super) forget: Vec<E>,
}

impl<E: Vector> Gradients<E> {
    pub(super) fn new(inputs: &Inputs<'_, E>) -> Self {
        let room = |view: &View<'_, E>| Room::new(view.dims.iter().product());
        let sink = vec![E::default(); inputs.sink.map_or(0, |_| inputs.q.dims[1])];
        let forget = inputs.forget.map_or(0, |forget| forget.dims.iter().product());
        Self {
            q: room(&inputs.q),
            k: room(&inputs.k),
            v: room(&inputs.v),
            sink,
            forget: vec![E::default(); forget],
        }
    }
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

/// Fills `to` with the gradients of everything from that of the outputs. Weights are made again from the sums that
/// the forward pass left; `dS = P ∘ (dP - y · dy)`, `dP = dY Vᵀ`, and
///
/// ```text
/// dQ = scale dS K      dK = scale dSᵀ Q      dV = Pᵀ dY
/// ```
///
/// A job is some tiles of queries of all heads that share keys, so that nothing is shared between jobs but what they
/// read. With fewer such groups than threads there are several jobs to a group, with gradients of keys and values of
/// their own that are added up at the end.
pub(super) fn backward<E: Vector>(inputs: &Inputs<'_, E>, outcome: Outcome<'_, E>, to: &mut Gradients<E>) {
    let sizes @ [t, total, ..] = inputs.sizes();
    let [b, heads, ..] = inputs.q.dims;
    let groups = b * inputs.k.dims[1];
    let threads = rayon::current_num_threads();
    // As few as give every thread as much.
    let even = |parts: &usize| (groups * parts).is_multiple_of(threads) || groups * parts >= 4 * threads;
    let parts = (1..).find(even).unwrap_or(1).min(t.div_ceil(QUERIES));

    let faded = if inputs.forget.is_some() { inputs.group() } else { 0 };
    let mut jobs: Vec<Job<'_, E>> = (0..groups * parts).map(|_| Job::new(sizes, faded)).collect();
    for (head, q) in to.q.heads(inputs.q.dims, inputs.q.order()).into_iter().enumerate() {
        for (tile, dq) in q.tiles(QUERIES).enumerate() {
            let job = head / inputs.group() * parts + tile % parts;
            jobs[job].tiles.push(QueryTile { head, first: tile * QUERIES, dq });
        }
    }
    let (shifts, keys) = (Shifts::new(inputs), Keys::all(inputs));
    jobs.par_iter_mut().enumerate().for_each(|(index, job)| {
        let keys = &keys[index / parts];
        let mut scratch = Backward::new(sizes, inputs.weighing.softcap.is_some());
        for tile in std::mem::take(&mut job.tiles) {
            let head = tile.head % heads;
            let sink = scratch.tile(inputs, outcome, keys, &shifts, tile, job);
            job.sink.push((head, sink));
        }
    });

    let mut sink = vec![0.0; heads];
    for &(head, gradient) in jobs.iter().flat_map(|job| &job.sink) {
        sink[head] += gradient;
    }
    to.sink.iter_mut().zip(sink).for_each(|(to, sum)| *to = E::of(sum));
    for (head, forget) in to.forget.chunks_mut(total).enumerate() {
        let (group, member) = (head / inputs.group(), head % inputs.group());
        // `log f_s` is in the sums of all tokens from `s` on.
        let mut sum = 0.0;
        for (token, to) in forget.iter_mut().enumerate().rev() {
            sum += jobs[group * parts..][..parts].iter().map(|job| job.fades[member][token]).sum::<f64>();
            *to = E::of(sum);
        }
    }
    let k = to.k.heads(inputs.k.dims, inputs.k.order()).into_par_iter();
    let v = to.v.heads(inputs.v.dims, inputs.v.order()).into_par_iter();
    k.zip(v).zip(jobs.par_chunks_mut(parts)).for_each(|((mut k, mut v), jobs)| {
        let (sum, rest) = jobs.split_at_mut(1);
        for job in rest {
            sum[0].k.add(&job.k);
            sum[0].v.add(&job.v);
        }
        k.put(0, sum[0].k.rows(), false);
        v.put(0, sum[0].v.rows(), false);
    });
}

/// Tiles of queries on the same keys, and the gradients that they have in common.
struct Job<'a, E> {
    tiles: Vec<QueryTile<'a, E>>,
    k: Matrix<E>,
    v: Matrix<E>,
    /// Heads and gradients of their sinks
    sink: Vec<(usize, f64)>,
    /// Gradients of each head's sums of `log f`, `[T]`
    fades: Vec<Vec<f64>>,
}

impl<E: Vector> Job<'_, E> {
    fn new([_, total, n, p]: [usize; 4], faded: usize) -> Self {
        let (k, v) = (Matrix::new(total, n), Matrix::new(total, p));
        Self { tiles: Vec::new(), k, v, sink: Vec::new(), fades: vec![vec![0.0; total]; faded] }
    }
}

struct QueryTile<'a, E> {
    head: usize,
    first: usize,
    dq: HeadRoom<'a, E>,
}

struct Backward<E> {
    tile: Tile<E>,
    here: TileShifts<E>,
    /// Sums of a tile's gradients of scores
    sums: [Vec<E>; 2],
    y: Matrix<E>,
    dy: Matrix<E>,
    dy_turned: Matrix<E>,
    d_weights: Matrix<E>,
    /// Derivatives of the softcap
    slopes: Option<Matrix<E>>,
    dq: Matrix<E>,
    means: Vec<E>,
}

impl<E: Vector> Backward<E> {
    fn new(sizes @ [.., n, p]: [usize; 4], capped: bool) -> Self {
        Self {
            tile: Tile::new(sizes),
            here: TileShifts::new(),
            sums: [vec![E::default(); QUERIES], vec![E::default(); KEYS]],
            y: Matrix::new(QUERIES, p),
            dy: Matrix::new(QUERIES, p),
            dy_turned: Matrix::new(p, QUERIES),
            d_weights: Matrix::new(KEYS, QUERIES),
            slopes: capped.then(|| Matrix::new(KEYS, QUERIES)),
            dq: Matrix::new(QUERIES, n),
            means: Vec::new(),
        }
    }

    /// Fills the tile's `dq`, adds to the job's other gradients, and returns that of the sink.
    fn tile(
        &mut self,
        inputs: &Inputs<'_, E>,
        outcome: Outcome<'_, E>,
        Keys { k, v }: &Keys<E>,
        shifts: &Shifts,
        queries: QueryTile<'_, E>,
        job: &mut Job<'_, E>,
    ) -> f64 {
        let Self { tile, here, sums, y, dy, dy_turned, d_weights, slopes, dq, means } = self;
        let [query_sums, key_sums] = sums;
        let QueryTile { head, first, dq: mut dq_out } = queries;
        let [t, _, n, p] = inputs.sizes();
        let rows = dq_out.rows();
        tile.read_queries(inputs, inputs.q.head(head), (first, rows));
        read(y, outcome.y.head(head), (first, rows), p);
        read(dy, outcome.dy.head(head), (first, rows), p);
        dy_turned.set_transpose(dy);
        means.clear();
        means.resize(rows, E::default());
        y.add_row_dots(dy, 0, means);
        let log_sum = &outcome.log_sum[head * t + first..][..rows];

        let own = inputs.weighing.cached + first;
        here.set_queries(shifts, head, own, rows);
        query_sums.fill(E::default());
        let member = head % inputs.group();
        dq.resize(rows, n);
        dq.rows_mut().for_each(|row| row.fill(E::default()));
        let keys = inputs.keys(first, rows);
        for key in keys.clone().step_by(KEYS) {
            let count = KEYS.min(keys.end - key);
            tile.weights.set_product_of_rows(k.some(key, count), &tile.q_turned, Part::Whole);
            if let Some(slopes) = slopes {
                slopes.resize(count, rows);
            }
            here.set_keys(shifts, head, own, key, count);
            let scores = here.scores(inputs.weighing, first, key);
            weigh_again(&mut tile.weights, slopes.as_mut(), scores, log_sum);
            job.v.some_mut(key, count).add_product(&tile.weights, dy, Part::Whole);
            d_weights.set_product_of_rows(v.some(key, count), dy_turned, Part::Whole);
            let wanted = !job.fades.is_empty();
            let sums = wanted.then_some(Sums { queries: query_sums, keys: key_sums });
            differentiate(d_weights, &tile.weights, slopes.as_ref(), means, sums);
            if let Some(fades) = job.fades.get_mut(member) {
                fades[key..key + count].iter_mut().zip(&*key_sums).for_each(|(to, sum)| *to -= sum.to_f64());
            }
            job.k.some_mut(key, count).add_product(d_weights, &tile.q, Part::Whole);
            dq.add_turned_product_of_rows(d_weights, k.some(key, count), Part::Whole);
        }
        if let Some(fades) = job.fades.get_mut(member) {
            fades[own..own + rows].iter_mut().zip(&*query_sums).for_each(|(to, sum)| *to += sum.to_f64());
        }
        dq.scale(E::of(inputs.weighing.scale));
        dq_out.put(0, dq.rows(), false);
        let sink = inputs.sink(head).map(|sink| sink * std::f64::consts::LOG2_E);
        let share = |(log_sum, mean): (&E, &E)| sink.map(|z| -(z - log_sum.to_f64()).exp2() * mean.to_f64());
        log_sum.iter().zip(&*means).filter_map(share).sum()
    }
}
