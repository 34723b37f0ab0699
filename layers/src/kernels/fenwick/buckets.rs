//! The buckets of one head.

use std::ops::Range;

use super::flex::Views;
use crate::kernels::dense::Matrix;
use crate::kernels::vector::Vector;
use crate::kernels::view::{View, read, write};
use crate::linear::bits;

/// One bucket per bit of the position, `[n, p]` each; of bits that are not set, mostly none.
#[derive(Clone, Debug)]
pub(super) struct Buckets<E>(Vec<Option<Matrix<E>>>);

/// What becomes of buckets between two positions.
#[derive(Clone, Copy, Debug)]
pub(super) struct Move {
    pub(super) from: usize,
    pub(super) to: usize,
}

impl Move {
    /// Into which bucket an old one goes.
    pub(super) fn bucket(self, old: usize) -> usize {
        (old + 1).max(bits(self.from ^ self.to)) - 1
    }

    /// The tokens of each bucket that new ones go into, as rows from the first new one on.
    pub(super) fn tokens(self) -> impl Iterator<Item = (usize, Range<usize>)> {
        let Self { from, to } = self;
        // As a row at `to` sees them: a bucket for every bit of `to` that is set.
        (0..bits(from ^ to)).filter(move |bit| to >> bit & 1 == 1).map(move |bit| {
            let start = (to >> (bit + 1)) << (bit + 1);
            (bit, start.max(from) - from..start + (1 << bit) - from)
        })
    }
}

impl<E: Vector> Buckets<E> {
    /// All of `view: [b, h, buckets n, p]`, also of bits that are not set: those are 0 in a state, but may have gradients.
    pub(super) fn read(view: Option<View<'_, E>>, head: usize, n: usize) -> Self {
        let Some(view) = view else { return Self(Vec::new()) };
        let [.., rows, p] = view.dims;
        let bucket = |index: usize| {
            let mut bucket = Matrix::new(n, p);
            read(&mut bucket, view.head(head), (index * n, n), p);
            Some(bucket)
        };
        Self((0..rows / n).map(bucket).collect())
    }

    /// Without those that are 0, which nobody has to read.
    pub(super) fn without_empty(self) -> Self {
        let zero = E::default();
        let full = |bucket: &Matrix<E>| bucket.rows().flatten().any(|&x| x != zero);
        Self(self.0.into_iter().map(|bucket| bucket.filter(full)).collect())
    }

    /// As many that are not there.
    pub(super) fn none(count: usize) -> Self {
        Self((0..count).map(|_| None).collect())
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (usize, &Matrix<E>)> {
        self.0.iter().enumerate().filter_map(|(index, bucket)| bucket.as_ref().map(|bucket| (index, bucket)))
    }

    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    /// A bucket, of zeros where there was none.
    pub(super) fn bucket(&mut self, index: usize, [n, p]: [usize; 2]) -> &mut Matrix<E> {
        if self.0.len() <= index {
            self.0.resize_with(index + 1, || None);
        }
        self.0[index].get_or_insert_with(|| Matrix::new(n, p))
    }

    /// A bucket, if it is there.
    pub(super) fn get(&self, index: usize) -> Option<&Matrix<E>> {
        self.0.get(index)?.as_ref()
    }

    /// Fades them all, and joins those that a move joins.
    pub(super) fn advance(&mut self, by: Move, fade: E) {
        let mut moved = Self(Vec::new());
        for (index, bucket) in self.0.iter_mut().enumerate() {
            let Some(mut bucket) = bucket.take() else { continue };
            bucket.scale(fade);
            let to = by.bucket(index);
            moved.0.resize_with(moved.0.len().max(to + 1), || None);
            match &mut moved.0[to] {
                Some(other) => other.add(&bucket),
                empty => *empty = Some(bucket),
            }
        }
        *self = moved;
    }

    /// Writes them to `to: [buckets, n, p]`, zeros for those that are not there.
    pub(super) fn write(&self, to: &mut [E], [n, p]: [usize; 2]) {
        for (index, to) in to.chunks_exact_mut(n * p).enumerate() {
            match self.get(index) {
                Some(bucket) => write(bucket, to),
                None => to.fill(E::default()),
            }
        }
    }
}

impl<E: Vector> Views<'_, E> {
    /// Buckets before the first token of a head.
    pub(super) fn buckets(&self, head: usize) -> Buckets<E> {
        let [n, _] = self.widths();
        Buckets::read(self.buckets, head, n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every token and every bucket goes where a token at the end finds it.
    #[test]
    fn what_moves_is_where_the_end_finds_it() {
        for from in 0..70usize {
            for to in from + 1..from + 66 {
                let by = Move { from, to };
                let mut found = vec![None; to - from];
                for (bucket, rows) in by.tokens() {
                    rows.for_each(|row| assert!(found[row].replace(bucket).is_none()));
                }
                let expected = (from..to).map(|token| Some(bits(token ^ to) - 1));
                assert!(found.into_iter().eq(expected), "from {from} to {to}");
                for old in (0..bits(from)).filter(|bit| from >> bit & 1 == 1) {
                    // Any token of it.
                    let token = (from >> (old + 1)) << (old + 1);
                    assert_eq!(by.bucket(old), bits(token ^ to) - 1);
                }
            }
        }
    }
}
