//! Tiles of keys pass by each tile of queries.

use rayon::prelude::*;

use super::tiles::{Inputs, KEYS, Keys, QUERIES, Shifts, Tile, TileShifts};
use super::weights::{FLOOR, Running, weigh};
use crate::kernels::dense::{Matrix, Part};
use crate::kernels::room::{HeadRoom, Room};
use crate::kernels::vector::Vector;

/// One tile of queries' share of the results.
struct Share<'a, E> {
    head: usize,
    first: usize,
    y: HeadRoom<'a, E>,
    log_sum: &'a mut [E],
}

/// Fills `y: [b, h, t, p]`, which lies as `v` does, with `softmax(scores) v`, and `log_sum: [b, h, t]` with the binary logarithms of the sums
/// over each query's keys. Where a query sees no key, its output is 0.
pub(super) fn forward<E: Vector>(inputs: &Inputs<'_, E>, y: &mut Room<E>, log_sum: &mut [E]) {
    let sizes @ [t, _, _, p] = inputs.sizes();
    let [b, h, ..] = inputs.q.dims;
    let mut shares = Vec::new();
    let heads = y.heads([b, h, t, p], inputs.v.order());
    for (head, (y, log_sum)) in heads.into_iter().zip(log_sum.chunks_mut(t)).enumerate() {
        for (tile, (y, log_sum)) in y.tiles(QUERIES).zip(log_sum.chunks_mut(QUERIES)).enumerate() {
            shares.push(Share { head, first: tile * QUERIES, y, log_sum });
        }
    }
    let (shifts, keys) = (Shifts::new(inputs), Keys::all(inputs));
    // Later tiles of a head see more keys: small jobs, so that all threads end together.
    let job = shares.len().div_ceil(8 * rayon::current_num_threads());
    let scratch = || Forward::new(sizes);
    shares.into_par_iter().with_max_len(job).for_each_init(scratch, |scratch, share| {
        scratch.tile(inputs, &keys[share.head / inputs.group()], &shifts, share);
    });
}

struct Forward<E> {
    tile: Tile<E>,
    here: TileShifts<E>,
    y: Matrix<E>,
    top: Vec<E>,
    sum: Vec<E>,
    factor: Vec<E>,
}

impl<E: Vector> Forward<E> {
    fn new(sizes: [usize; 4]) -> Self {
        let [top, sum, factor] = [(); 3].map(|()| vec![E::default(); QUERIES]);
        let (tile, here) = (Tile::new(sizes), TileShifts::new());
        Self { tile, here, y: Matrix::new(QUERIES, sizes[3]), top, sum, factor }
    }

    fn tile(
        &mut self,
        inputs: &Inputs<'_, E>,
        Keys { k, v }: &Keys<E>,
        shifts: &Shifts,
        share: Share<'_, E>,
    ) {
        let Self { tile, here, y, top, sum, factor } = self;
        let Share { head, first, y: mut out, log_sum } = share;
        let rows = log_sum.len();
        tile.read_queries(inputs, inputs.q.head(head), (first, rows));
        let own = inputs.weighing.cached + first;
        here.set_queries(shifts, head, own, rows);
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
            here.set_keys(shifts, head, own, key, count);
            let running = Running { top, sum, factor };
            weigh(&mut tile.weights, here.scores(inputs.weighing, first, key), running);
            y.scale_rows(0, factor);
            y.add_turned_product_of_rows(&tile.weights, v.some(key, count), Part::Whole);
        }
        for ((log_sum, &sum), &top) in log_sum.iter_mut().zip(&*sum).zip(&*top) {
            *log_sum = E::of(top.to_f64() + sum.to_f64().max(f64::MIN_POSITIVE).log2());
        }
        for (factor, sum) in factor.iter_mut().zip(&*sum) {
            *factor = if *sum > E::default() { E::of(1.0) / *sum } else { E::default() };
        }
        y.scale_rows(0, factor);
        out.put(0, y.rows(), false);
    }
}
