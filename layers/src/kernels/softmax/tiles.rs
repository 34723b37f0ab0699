//! The arithmetic of the kernel on slices: tiles of some queries and some keys.
//!
//! Scores are made turned, keys in rows and queries in columns: `Sᵀ = K Qᵀ` needs one transpose per tile of queries,
//! largest scores and sums are elementwise over rows, and `Pᵀ` is the left factor of all later products as it is.

use rayon::prelude::*;

use super::Weighing;
use super::weights::{FLOOR, Running, Scores, Seen, differentiate, weigh, weigh_again};
use crate::kernels::dense::{ALIGNED, Matrix, Part, dot};
use crate::kernels::vector::Vector;
use crate::kernels::view::{Head, View, read, write};

/// Queries of a tile.
pub(super) const QUERIES: usize = 64;

/// Keys of a tile.
pub(super) const KEYS: usize = 128;

/// What attention reads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inputs<'a, E> {
    /// `[b, h, t, n]`
    pub(super) q: View<'a, E>,
    /// `[b, h_kv, T, n]`
    pub(super) k: View<'a, E>,
    /// `[b, h_kv, T, p]`
    pub(super) v: View<'a, E>,
    /// Score of nothing, `[h, 1, 1, 1]`
    pub(super) sink: Option<View<'a, E>>,
    /// What each key's scores get, `[b, 1, 1, T]`
    pub(super) offsets: Option<View<'a, E>>,
    pub(super) weighing: Weighing,
}

impl<E: Vector> Gradients<E> {
    pub(super) fn filled(inputs: &Inputs<'_, E>, with: E) -> Self {
        let size = |dims: [usize; 4]| vec![with; dims.iter().product()];
        let sink = vec![with; inputs.sink.map_or(0, |_| inputs.q.dims[1])];
        Self { q: size(inputs.q.dims), k: size(inputs.k.dims), v: size(inputs.v.dims), sink }
    }
}

impl<E: Vector> Inputs<'_, E> {
    /// Tokens that ask, tokens that are asked, sizes of keys and values.
    fn sizes(&self) -> [usize; 4] {
        let ([_, _, t, n], [_, _, total, p]) = (self.q.dims, self.v.dims);
        [t, total, n, p]
    }

    /// Query heads of a key-value head.
    pub(super) fn group(&self) -> usize {
        self.q.dims[1] / self.k.dims[1]
    }

    /// The score of nothing of query head `head` of all `b h`.
    pub(super) fn sink(&self, head: usize) -> Option<f64> {
        let heads = self.q.dims[1];
        self.sink.map(|sink| sink.head(head % heads).column(0, 1).sum())
    }

    /// What each key's scores get in batch row `row`, in units of `ln 2`; empty for nothing.
    pub(super) fn offsets(&self, row: usize) -> Vec<f64> {
        let Some(offsets) = self.offsets else { return Vec::new() };
        let [_, total, ..] = self.sizes();
        let head = offsets.head(row).turned();
        head.column(0, total).map(|x| x * std::f64::consts::LOG2_E).collect()
    }

    /// Keys that a query sees.
    pub(super) fn seen(&self, query: usize) -> std::ops::Range<usize> {
        let Weighing { causal, cached, window, .. } = self.weighing;
        let [_, total, ..] = self.sizes();
        let to = if causal { (cached + query + 1).min(total) } else { total };
        window.map_or(0, |w| (cached + query + 1).saturating_sub(w)).min(to)..to
    }

    /// Keys that queries `first..first + rows` may see, and a few more, so that register tiles are whole.
    fn keys(&self, first: usize, rows: usize) -> std::ops::Range<usize> {
        let [_, total, ..] = self.sizes();
        let (from, to) = (self.seen(first).start, self.seen(first + rows - 1).end);
        from / ALIGNED * ALIGNED..to.next_multiple_of(ALIGNED).min(total)
    }
}

/// Keys and values of one head.
struct Keys<E> {
    k: Matrix<E>,
    v: Matrix<E>,
}

impl<E: Vector> Keys<E> {
    fn read(inputs: &Inputs<'_, E>, head: usize) -> Self {
        let [_, total, n, p] = inputs.sizes();
        let (mut k, mut v) = (Matrix::new(total, n), Matrix::new(total, p));
        read(&mut k, inputs.k.head(head), (0, total), n);
        read(&mut v, inputs.v.head(head), (0, total), p);
        Self { k, v }
    }

    /// Of all heads.
    fn all(inputs: &Inputs<'_, E>) -> Vec<Self> {
        let heads = inputs.k.dims[0] * inputs.k.dims[1];
        (0..heads).into_par_iter().map(|head| Self::read(inputs, head)).collect()
    }
}

/// A tile of queries: scratch memory of one thread.
struct Tile<E> {
    q: Matrix<E>,
    q_turned: Matrix<E>,
    /// `[keys, queries]`
    weights: Matrix<E>,
}

impl<E: Vector> Tile<E> {
    fn new([.., n, _]: [usize; 4]) -> Self {
        Self {
            q: Matrix::new(QUERIES, n),
            q_turned: Matrix::new(n, QUERIES),
            weights: Matrix::new(KEYS, QUERIES),
        }
    }

    /// Reads queries, scaled: the turned ones so that products are scores in units of `ln 2`.
    fn read_queries(&mut self, inputs: &Inputs<'_, E>, head: Head<'_, E>, range: (usize, usize)) {
        let [.., n, _] = inputs.sizes();
        read(&mut self.q, head, range, n);
        self.q.scale(E::of(inputs.weighing.scale));
        self.q_turned.set_transpose(&self.q);
        self.q_turned.scale(E::of(std::f64::consts::LOG2_E));
    }
}

/// How the products of queries from `query` on with keys from `key` on become scores.
fn scores(weighing: Weighing, offsets: &[f64], query: usize, key: usize) -> Scores<'_> {
    let Weighing { causal, cached, window, softcap, .. } = weighing;
    Scores {
        cap: softcap.map(|cap| cap * std::f64::consts::LOG2_E),
        offsets: (!offsets.is_empty()).then(|| &offsets[key..]),
        seen: Seen { causal, window, query: cached + query, key },
    }
}

/// One tile of queries' share of the results.
struct Share<'a, E> {
    head: usize,
    first: usize,
    y: &'a mut [E],
    log_sum: &'a mut [E],
}

/// Fills `y: [b, h, t, p]` with `softmax(scores) v`, and `log_sum: [b, h, t]` with the binary logarithms of the sums
/// over each query's keys. Where a query sees no key, its output is 0.
pub(super) fn forward<E: Vector>(inputs: &Inputs<'_, E>, y: &mut [E], log_sum: &mut [E]) {
    let sizes @ [t, _, _, p] = inputs.sizes();
    let mut shares = Vec::new();
    for (head, (y, log_sum)) in y.chunks_mut(t * p).zip(log_sum.chunks_mut(t)).enumerate() {
        for (tile, (y, log_sum)) in y.chunks_mut(QUERIES * p).zip(log_sum.chunks_mut(QUERIES)).enumerate() {
            shares.push(Share { head, first: tile * QUERIES, y, log_sum });
        }
    }
    let offsets: Vec<Vec<f64>> = (0..inputs.q.dims[0]).map(|row| inputs.offsets(row)).collect();
    let keys = Keys::all(inputs);
    // Later tiles of a head see more keys: small jobs, so that all threads end together.
    let job = shares.len().div_ceil(8 * rayon::current_num_threads());
    let scratch = || Forward::new(sizes);
    shares.into_par_iter().with_max_len(job).for_each_init(scratch, |scratch, share| {
        let (keys, offsets) = (&keys[share.head / inputs.group()], &offsets[share.head / inputs.q.dims[1]]);
        scratch.tile(inputs, keys, offsets, share);
    });
}

struct Forward<E> {
    tile: Tile<E>,
    y: Matrix<E>,
    top: Vec<E>,
    sum: Vec<E>,
    factor: Vec<E>,
}

impl<E: Vector> Forward<E> {
    fn new(sizes: [usize; 4]) -> Self {
        let [top, sum, factor] = [(); 3].map(|()| vec![E::default(); QUERIES]);
        Self { tile: Tile::new(sizes), y: Matrix::new(QUERIES, sizes[3]), top, sum, factor }
    }

    fn tile(
        &mut self,
        inputs: &Inputs<'_, E>,
        Keys { k, v }: &Keys<E>,
        offsets: &[f64],
        share: Share<'_, E>,
    ) {
        let Self { tile, y, top, sum, factor } = self;
        let Share { head, first, y: out, log_sum } = share;
        let rows = log_sum.len();
        tile.read_queries(inputs, inputs.q.head(head), (first, rows));
        // A sink is a key whose value is 0.
        let sink = inputs.sink(head);
        top.fill(E::of(sink.map_or(FLOOR, |sink| sink * std::f64::consts::LOG2_E)));
        sum.fill(E::of(if sink.is_some() { 1.0 } else { 0.0 }));
        y.resize(rows, inputs.v.dims[3]);
        y.rows_mut().for_each(|row| row.fill(E::default()));
        let keys = inputs.keys(first, rows);
        for key in keys.clone().step_by(KEYS) {
            let count = KEYS.min(keys.end - key);
            tile.weights.set_product_of_rows(k.some(key, count), &tile.q_turned, Part::Whole);
            let running = Running { top, sum, factor };
            weigh(&mut tile.weights, scores(inputs.weighing, offsets, first, key), running);
            y.scale_rows(factor);
            y.add_turned_product_of_rows(&tile.weights, v.some(key, count), Part::Whole);
        }
        for ((log_sum, &sum), &top) in log_sum.iter_mut().zip(&*sum).zip(&*top) {
            *log_sum = E::of(top.to_f64() + sum.to_f64().max(f64::MIN_POSITIVE).log2());
        }
        if keys.is_empty() {
            out.fill(E::default());
            return;
        }
        for (factor, sum) in factor.iter_mut().zip(&*sum) {
            *factor = if *sum > E::default() { E::of(1.0) / *sum } else { E::default() };
        }
        y.scale_rows(factor);
        write(y, out);
    }
}

/// Gradients of [`Inputs`], contiguous.
#[derive(Debug)]
pub(super) struct Gradients<E> {
    pub(super) q: Vec<E>,
    pub(super) k: Vec<E>,
    pub(super) v: Vec<E>,
    /// `[h]`, empty without a sink
    pub(super) sink: Vec<E>,
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

/// Fills `to` with the gradients of everything from that of the outputs. Weights are made again from the sums that [`forward`] left;
/// `dS = P ∘ (dP - y · dy)`, `dP = dY Vᵀ`, and
///
/// ```text
/// dQ = scale dS K      dK = scale dSᵀ Q      dV = Pᵀ dY
/// ```
///
/// A job is some tiles of queries of all heads that share keys, so that nothing is shared between jobs but what they
/// read. With fewer such groups than threads there are several jobs to a group, with gradients of keys and values of
/// their own that are added up at the end.
pub(super) fn backward<E: Vector>(inputs: &Inputs<'_, E>, outcome: Outcome<'_, E>, to: &mut Gradients<E>) {
    let sizes @ [t, total, n, p] = inputs.sizes();
    let [b, heads, ..] = inputs.q.dims;
    let groups = b * inputs.k.dims[1];
    let parts = rayon::current_num_threads().div_ceil(groups).min(t.div_ceil(QUERIES));
    let offsets: Vec<Vec<f64>> = (0..b).map(|row| inputs.offsets(row)).collect();

    let mut jobs: Vec<Job<'_, E>> = (0..groups * parts).map(|_| Job::new(sizes)).collect();
    for (head, q) in to.q.chunks_mut(t * n).enumerate() {
        for (tile, dq) in q.chunks_mut(QUERIES * n).enumerate() {
            let job = head / inputs.group() * parts + tile % parts;
            jobs[job].tiles.push(QueryTile { head, first: tile * QUERIES, dq });
        }
    }
    let keys = Keys::all(inputs);
    jobs.par_iter_mut().enumerate().for_each(|(index, job)| {
        let keys = &keys[index / parts];
        let mut scratch = Backward::new(sizes, inputs.weighing.softcap.is_some());
        for tile in std::mem::take(&mut job.tiles) {
            let (head, row) = (tile.head, tile.head / heads);
            let sink = scratch.tile(inputs, outcome, keys, &offsets[row], tile, job);
            job.sink.push((head % heads, sink));
        }
    });

    let mut sink = vec![0.0; heads];
    for &(head, gradient) in jobs.iter().flat_map(|job| &job.sink) {
        sink[head] += gradient;
    }
    to.sink.iter_mut().zip(sink).for_each(|(to, sum)| *to = E::of(sum));
    let shares = to.k.par_chunks_mut(total * n).zip(to.v.par_chunks_mut(total * p));
    shares.zip(jobs.par_chunks_mut(parts)).for_each(|((k, v), jobs)| {
        let (sum, rest) = jobs.split_at_mut(1);
        for job in rest {
            sum[0].k.add(&job.k);
            sum[0].v.add(&job.v);
        }
        write(&sum[0].k, k);
        write(&sum[0].v, v);
    });
}

/// Tiles of queries on the same keys, and the gradients that they have in common.
struct Job<'a, E> {
    tiles: Vec<QueryTile<'a, E>>,
    k: Matrix<E>,
    v: Matrix<E>,
    /// Heads and gradients of their sinks
    sink: Vec<(usize, f64)>,
}

impl<E: Vector> Job<'_, E> {
    fn new([_, total, n, p]: [usize; 4]) -> Self {
        let (k, v) = (Matrix::new(total, n), Matrix::new(total, p));
        Self { tiles: Vec::new(), k, v, sink: Vec::new() }
    }
}

struct QueryTile<'a, E> {
    head: usize,
    first: usize,
    dq: &'a mut [E],
}

struct Backward<E> {
    tile: Tile<E>,
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
        offsets: &[f64],
        queries: QueryTile<'_, E>,
        job: &mut Job<'_, E>,
    ) -> f64 {
        let Self { tile, y, dy, dy_turned, d_weights, slopes, dq, means } = self;
        let QueryTile { head, first, dq: dq_out } = queries;
        let [t, _, n, p] = inputs.sizes();
        let rows = dq_out.len() / n;
        tile.read_queries(inputs, inputs.q.head(head), (first, rows));
        read(y, outcome.y.head(head), (first, rows), p);
        read(dy, outcome.dy.head(head), (first, rows), p);
        dy_turned.set_transpose(dy);
        means.clear();
        means.extend(y.rows().zip(dy.rows()).map(|(y, dy)| E::of(dot(y, dy))));
        let log_sum = &outcome.log_sum[head * t + first..][..rows];

        dq.resize(rows, n);
        dq.rows_mut().for_each(|row| row.fill(E::default()));
        let keys = inputs.keys(first, rows);
        for key in keys.clone().step_by(KEYS) {
            let count = KEYS.min(keys.end - key);
            tile.weights.set_product_of_rows(k.some(key, count), &tile.q_turned, Part::Whole);
            if let Some(slopes) = slopes {
                slopes.resize(count, rows);
            }
            let scores = scores(inputs.weighing, offsets, first, key);
            weigh_again(&mut tile.weights, slopes.as_mut(), scores, log_sum);
            job.v.some_mut(key, count).add_product(&tile.weights, dy, Part::Whole);
            d_weights.set_product_of_rows(v.some(key, count), dy_turned, Part::Whole);
            differentiate(d_weights, &tile.weights, slopes.as_ref(), means);
            job.k.some_mut(key, count).add_product(d_weights, &tile.q, Part::Whole);
            dq.add_turned_product_of_rows(d_weights, k.some(key, count), Part::Whole);
        }
        dq.scale(E::of(inputs.weighing.scale));
        write(dq, dq_out);
        let sink = inputs.sink(head).map(|sink| sink * std::f64::consts::LOG2_E);
        let share = |(log_sum, mean): (&E, &E)| sink.map(|z| -(z - log_sum.to_f64()).exp2() * mean.to_f64());
        log_sum.iter().zip(&*means).filter_map(share).sum()
    }
}
