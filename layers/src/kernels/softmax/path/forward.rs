//! Tiles of queries go from their own block to the first.

use rayon::prelude::*;

use super::super::tiles::{Shifts, TileShifts};
use super::super::weights::{FLOOR, Running, weigh};
use super::BLOCK;
use super::flex::{Block, Place, Views};
use crate::kernels::dense::{Matrix, Part};
use crate::kernels::room::Room;
use crate::kernels::shares::Target;
use crate::kernels::vector::Vector;

/// Fills `y: [b, h, t, p]`, and `log_sum: [b, h, t]` with the binary logarithms of the sums over each query's keys. Where a
/// query sees no key, its output is 0.
pub(super) fn forward<E: Vector>(views: &Views<'_, E>, y: &mut Room<E>, log_sum: &mut Room<E>) {
    let ([b, h, t, _], [_, p]) = (views.sizes(), views.widths());
    let count = views.blocks();
    let blocks: Vec<_> = (0..b * h * count)
        .into_par_iter()
        .map(|index| Block::read(views, index / count, index % count))
        .collect();
    let (y, log_sum, shifts) = (Target::new(y, p), Target::new(log_sum, t), views.shifts());
    let places = views.places();
    // Later tiles of a head see more keys: small jobs, so that all threads end together.
    let job = places.len().div_ceil(8 * rayon::current_num_threads());
    places.into_par_iter().with_max_len(job).for_each_init(
        || Forward::new(views),
        |scratch, place| {
            scratch.tile(views, &blocks[place.head * count..][..count], &shifts, place);
            scratch.put(views, place, y, log_sum);
        },
    );
}

struct Forward<E> {
    space: Matrix<E>,
    weights: Matrix<E>,
    q: Matrix<E>,
    /// The queries a block further
    moved: Matrix<E>,
    here: TileShifts<E>,
    y: Matrix<E>,
    top: Vec<E>,
    sum: Vec<E>,
    factor: Vec<E>,
}

impl<E: Vector> Forward<E> {
    fn new(views: &Views<'_, E>) -> Self {
        let [n, p] = views.widths();
        let [top, sum, factor] = [(); 3].map(|()| vec![E::default(); BLOCK]);
        let [q, moved] = [(); 2].map(|()| Matrix::new(n, BLOCK));
        let (space, weights) = (Matrix::new(BLOCK, n.max(BLOCK)), Matrix::new(BLOCK, BLOCK));
        Self { space, weights, q, moved, here: TileShifts::new(), y: Matrix::new(BLOCK, p), top, sum, factor }
    }

    fn tile(&mut self, views: &Views<'_, E>, blocks: &[Block<E>], shifts: &Shifts, place: Place) {
        let Self { space, weights, q, moved, here, y, top, sum, factor } = self;
        let Place { head, block: own, before, rows } = place;
        let (weighing, query) = (views.options.weighing, views.query(place));
        let first = own * BLOCK + before;
        here.set_queries(shifts, head, first, rows);
        // A sink is a key whose value is 0.
        let sink = views.sink(head);
        top.fill(E::of(sink.unwrap_or(FLOOR)));
        sum.fill(E::of(if sink.is_some() { 1.0 } else { 0.0 }));
        y.resize(rows, blocks[own].v.columns());
        y.rows_mut().for_each(|row| row.fill(E::default()));
        views.queries(place, space, weights, q);
        for (index, block) in blocks[..=own].iter().enumerate().rev() {
            if index < own {
                weights.set_turned_product(&block.keys, q, Part::Whole);
            }
            let keys = views.keys(index);
            weights.resize(keys, rows);
            here.set_keys(shifts, head, first, index * BLOCK, keys);
            let scores = here.scores(weighing, query, index * BLOCK);
            weigh(weights, scores, Running { top, sum, factor });
            y.scale_rows(0, factor);
            y.add_turned_product(weights, &block.v, Part::Whole);
            if (1..own).contains(&index) {
                moved.set_turned_product(&block.moves, q, Part::Whole);
                std::mem::swap(q, moved);
            }
        }
    }

    #[allow(unsafe_code, reason = "jobs write different rows")]
    fn put(&mut self, views: &Views<'_, E>, place: Place, y: Target<E>, log_sum: Target<E>) {
        let Place { head, rows, .. } = place;
        let ([_, _, t, _], [_, p], query) = (views.sizes(), views.widths(), views.query(place));
        for (factor, sum) in self.factor.iter_mut().zip(&self.sum) {
            *factor = if *sum > E::default() { E::of(1.0) / *sum } else { E::default() };
        }
        self.y.scale_rows(0, &self.factor);
        for (i, row) in self.y.rows().enumerate() {
            // SAFETY: what they point to is borrowed by `forward`, and these queries are this job's.
            unsafe { y.row(head * t + query + i, 0, p) }.write_copy_of_slice(row);
        }
        // SAFETY: as above.
        let log_sum = unsafe { log_sum.row(head, query, rows) };
        for ((to, sum), top) in log_sum.iter_mut().zip(&self.sum).zip(&self.top) {
            to.write(E::of(top.to_f64() + sum.to_f64().max(f64::MIN_POSITIVE).log2()));
        }
    }
}
