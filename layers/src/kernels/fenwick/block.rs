//! One block of tokens of one head.

use super::buckets::{Buckets, Move};
use super::flex::Views;
use super::levels::{Products, decays, differentiate, gather, spread};
use crate::kernels::dense::{Matrix, Part};
use crate::kernels::vector::Vector;
use crate::kernels::view::{View, read};
use crate::linear::bits;

/// Tokens of a whole block.
pub(super) const BLOCK: usize = 64;

/// Which tokens a block has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) head: usize,
    /// The first one's number in this call
    pub(super) token: usize,
    /// Positions of the first one and after the last one
    pub(super) by: Move,
}

impl Place {
    pub(super) fn rows(self) -> usize {
        self.by.to - self.by.from
    }

    /// The first token, counted from where a whole block starts.
    fn first(self) -> usize {
        self.by.from % BLOCK
    }

    /// The level that a row sees an old bucket at.
    fn level(self, row: usize, bucket: usize) -> usize {
        (bucket + 1).max(bits((self.by.from + row) ^ self.by.from))
    }
}

/// Blocks of a head with so many tokens from a position on.
pub(super) fn places(head: usize, start: usize, real: usize) -> Vec<Place> {
    let end = start + real;
    let mut all = Vec::new();
    let mut from = start;
    while from < end {
        let to = end.min((from / BLOCK + 1) * BLOCK);
        all.push(Place { head, token: from - start, by: Move { from, to } });
        from = to;
    }
    all
}

/// What a block reads, and room to work.
pub(super) struct Block<E> {
    q: Matrix<E>,
    k: Matrix<E>,
    v: Matrix<E>,
    scales: Matrix<E>,
    /// `Σ log a` up to each token, and after the last one as there
    sums: [f64; BLOCK],
    /// `S = Q Kᵀ`, and scores
    scores: Matrix<E>,
    decays: Matrix<E>,
    weights: Matrix<E>,
    turned: Matrix<E>,
    /// Queries of one level, or keys of one bucket
    some: Matrix<E>,
    pub(super) y: Matrix<E>,
}

impl<E: Vector> Block<E> {
    pub(super) fn new(views: &Views<'_, E>) -> Self {
        let [n, p] = views.widths();
        let [q, k, some] = [(); 3].map(|()| Matrix::new(BLOCK, n));
        let [scores, decays, weights] = [(); 3].map(|()| Matrix::new(BLOCK, BLOCK));
        let (v, y, scales) =
            (Matrix::new(BLOCK, p), Matrix::new(BLOCK, p), Matrix::new(BLOCK, views.levels()));
        let turned = Matrix::new(n, BLOCK);
        Self { q, k, v, scales, sums: [0.0; BLOCK], scores, decays, weights, turned, some, y }
    }

    fn read(&mut self, views: &Views<'_, E>, place: Place) {
        let (Place { head, token, .. }, rows, [n, p]) = (place, place.rows(), views.widths());
        read(&mut self.q, views.q.head(head), (token, rows), n);
        read(&mut self.scales, views.scales.head(head), (token, rows), views.levels());
        self.read_writes(views, place, [n, p]);
        self.decays.resize(rows, rows);
        self.weights.resize(rows, rows);
        decays(&self.sums, &mut self.decays);
        spread(&self.scales, place.first(), &mut self.weights);
        self.turned.set_transpose(&self.k);
        self.scores.set_product(&self.q, &self.turned, Part::Whole);
    }

    fn read_writes(&mut self, views: &Views<'_, E>, place: Place, [n, p]: [usize; 2]) {
        let (Place { head, token, .. }, rows) = (place, place.rows());
        read(&mut self.k, views.k.head(head), (token, rows), n);
        read(&mut self.v, views.v.head(head), (token, rows), p);
        let mut sum = 0.0;
        for (to, log_a) in self.sums.iter_mut().zip(views.log_a.head(head).column(token, rows)) {
            sum += log_a;
            *to = sum;
        }
        self.sums[rows..].fill(sum);
    }

    /// `Σ log a` of the block.
    fn total(&self) -> f64 {
        self.sums[BLOCK - 1]
    }

    /// Leaves the outputs in `y`, and the buckets after the block.
    pub(super) fn forward(&mut self, views: &Views<'_, E>, place: Place, buckets: &mut Buckets<E>) {
        self.read(views, place);
        self.scores.multiply_lower(&self.decays, true);
        self.scores.multiply_lower(&self.weights, true);
        self.y.set_product(&self.scores, &self.v, Part::LeftLower);
        for (index, bucket) in buckets.all() {
            self.some.copy_from(&self.q);
            self.some.scale_rows(0, &self.factors(place, index));
            self.y.add_product(&self.some, bucket, Part::Whole);
        }
        self.write(place, buckets, views.widths());
    }

    /// The buckets after a block.
    pub(super) fn advance(&mut self, views: &Views<'_, E>, place: Place, buckets: &mut Buckets<E>) {
        self.read_writes(views, place, views.widths());
        self.write(place, buckets, views.widths());
    }

    /// What rows weigh an old bucket by, decay included.
    fn factors(&self, place: Place, bucket: usize) -> Vec<E> {
        let last = self.scales.columns() - 1;
        let rows = self.scales.rows().zip(&self.sums).enumerate();
        rows.map(|(i, (scales, sum))| E::of(sum.exp()) * scales[place.level(i, bucket).min(last)]).collect()
    }

    /// Keys of the tokens that go into one bucket, faded as that is after the block; 0 for others.
    fn keys(&mut self, rows: &std::ops::Range<usize>) {
        self.some.copy_from(&self.k);
        let total = self.total();
        let fade = |(i, sum): (usize, &f64)| {
            if rows.contains(&i) { E::of((total - sum).exp()) } else { E::default() }
        };
        let fades: Vec<E> = self.sums.iter().enumerate().map(fade).collect();
        self.some.scale_rows(0, &fades);
    }

    fn write(&mut self, place: Place, buckets: &mut Buckets<E>, widths: [usize; 2]) {
        buckets.advance(place.by, E::of(self.total().exp()));
        for (bucket, rows) in place.by.tokens() {
            self.keys(&rows);
            buckets.bucket(bucket, widths).add_turned_product(&self.some, &self.v, Part::Whole);
        }
    }
}

/// Gradients of one block.
pub(super) struct Backward<E> {
    block: Block<E>,
    dy: Matrix<E>,
    pub(super) q: Matrix<E>,
    pub(super) k: Matrix<E>,
    pub(super) v: Matrix<E>,
    pub(super) scales: Matrix<E>,
    /// Of `log a`
    pub(super) log_a: [f64; BLOCK],
    /// Of scores, and of products
    scores: Matrix<E>,
    /// Of queries of one level, or keys of one bucket
    some: Matrix<E>,
    turned: Matrix<E>,
}

impl<E: Vector> Backward<E> {
    pub(super) fn new(views: &Views<'_, E>) -> Self {
        let [n, p] = views.widths();
        let [q, k, some] = [(); 3].map(|()| Matrix::new(BLOCK, n));
        let [dy, v] = [(); 2].map(|()| Matrix::new(BLOCK, p));
        Self {
            block: Block::new(views),
            dy,
            q,
            k,
            v,
            scales: Matrix::new(BLOCK, views.levels()),
            log_a: [0.0; BLOCK],
            scores: Matrix::new(BLOCK, BLOCK),
            some,
            turned: Matrix::new(p, BLOCK.max(n)),
        }
    }

    /// The buckets after a block; see [`Block::advance`].
    pub(super) fn advance(&mut self, views: &Views<'_, E>, place: Place, buckets: &mut Buckets<E>) {
        self.block.advance(views, place, buckets);
    }

    /// Gradients of what the block is given; those of the buckets after it, `gradients`, become those of the buckets before
    /// it.
    pub(super) fn run(
        &mut self,
        views: &Views<'_, E>,
        place: Place,
        dy: View<'_, E>,
        before: &Buckets<E>,
        gradients: &mut Buckets<E>,
    ) {
        let (rows, [n, p], first) = (place.rows(), views.widths(), place.first());
        self.block.read(views, place);
        read(&mut self.dy, dy.head(place.head), (place.token, rows), p);
        for (matrix, columns) in [(&mut self.k, n), (&mut self.v, p), (&mut self.scales, views.levels())] {
            matrix.resize(rows, columns);
            matrix.rows_mut().for_each(|row| row.fill(E::default()));
        }
        self.log_a.fill(0.0);

        // Inside the block.
        self.turned.set_transpose(&self.block.v);
        self.scores.set_product(&self.dy, &self.turned, Part::Whole);
        let Block { scores, decays, weights, .. } = &mut self.block;
        differentiate(Products { scores: &mut *scores, gradients: &mut self.scores, decays, weights });
        gather(decays, first, &mut self.scales);
        for (i, row) in weights.rows().enumerate() {
            for (j, x) in row[..i].iter().enumerate() {
                self.log_a[i] += x.to_f64();
                self.log_a[j] -= x.to_f64();
            }
        }
        self.v.add_turned_product(scores, &self.dy, Part::LeftLower);
        self.q.set_product(&self.scores, &self.block.k, Part::LeftLower);
        self.k.add_turned_product(&self.scores, &self.block.q, Part::LeftLower);

        self.written(place, gradients);
        self.read_buckets(place, before, gradients, [n, p]);

        // `log a_s` is in the sums of all tokens from `s` on.
        let mut sum = 0.0;
        for to in self.log_a[..rows].iter_mut().rev() {
            sum += *to;
            *to = sum;
        }
    }

    /// What the tokens wrote.
    fn written(&mut self, place: Place, gradients: &Buckets<E>) {
        let last = place.rows() - 1;
        let total = self.block.total();
        for (bucket, rows) in place.by.tokens() {
            let Some(gradient) = gradients.get(bucket) else { continue };
            self.block.keys(&rows);
            self.v.add_product(&self.block.some, gradient, Part::Whole);
            self.turned.set_transpose(gradient);
            self.some.set_product(&self.block.v, &self.turned, Part::Whole);
            for i in rows {
                let fade = (total - self.block.sums[i]).exp();
                let mut along = 0.0;
                let row = self.some.row(i).iter().zip(self.block.k.row(i)).zip(self.k.row_mut(i));
                for ((&by, key), to) in row {
                    along += by.to_f64() * key.to_f64();
                    *to += E::of(fade) * by;
                }
                self.log_a[last] += fade * along;
                self.log_a[i] -= fade * along;
            }
        }
    }

    /// What was read of old buckets, and those buckets.
    fn read_buckets(
        &mut self,
        place: Place,
        before: &Buckets<E>,
        gradients: &mut Buckets<E>,
        widths: [usize; 2],
    ) {
        let (last, levels) = (place.rows() - 1, self.scales.columns());
        let fade = E::of(self.block.total().exp());
        let after = std::mem::replace(gradients, Buckets::none(before.count()));
        for (index, bucket) in before.all() {
            let factors = self.block.factors(place, index);
            self.turned.set_transpose(bucket);
            self.some.set_product(&self.dy, &self.turned, Part::Whole);
            for (i, &factor) in factors.iter().enumerate() {
                let mut along = 0.0;
                let row = self.some.row(i).iter().zip(self.block.q.row(i)).zip(self.q.row_mut(i));
                for ((&by, query), to) in row {
                    along += by.to_f64() * query.to_f64();
                    *to += factor * by;
                }
                let decay = self.block.sums[i].exp();
                self.scales.row_mut(i)[place.level(i, index).min(levels - 1)] += E::of(along * decay);
                self.log_a[i] += along * factor.to_f64();
            }
            let to = gradients.bucket(index, widths);
            self.block.some.copy_from(&self.block.q);
            self.block.some.scale_rows(0, &factors);
            to.add_turned_product(&self.block.some, &self.dy, Part::Whole);
            if let Some(after) = after.get(place.by.bucket(index)) {
                self.log_a[last] += fade.to_f64() * bucket.dot(after);
                let mut kept = after.clone();
                kept.scale(fade);
                to.add(&kept);
            }
        }
    }
}
