//! The inputs of the kernels where they lie, and the shape of what is read from them.

use crate::kernels::dense::{Matrix, Real};

/// A tensor `[b, h, t, n]` where it lies, in any order of its axes.
#[derive(Clone, Copy, Debug)]
pub(super) struct View<'a, E> {
    pub(super) numbers: &'a [E],
    pub(super) start: usize,
    pub(super) dims: [usize; 4],
    pub(super) strides: [isize; 4],
}

/// One head of a [`View`]: `[t, n]`.
#[derive(Clone, Copy)]
pub(super) struct Head<'a, E> {
    numbers: &'a [E],
    start: isize,
    strides: [isize; 2],
    width: usize,
}

impl<'a, E: Real> View<'a, E> {
    /// Head `index` of all `b h`.
    pub(super) fn head(&self, index: usize) -> Head<'a, E> {
        let [_, heads, _, width] = self.dims;
        let [b, h, t, n] = self.strides;
        let start = self.start as isize + (index / heads) as isize * b + (index % heads) as isize * h;
        Head { numbers: self.numbers, start, strides: [t, n], width }
    }
}

impl<E: Real> Head<'_, E> {
    /// Where row `i` starts.
    fn row(&self, i: usize) -> isize {
        self.start + i as isize * self.strides[0]
    }

    /// `to` becomes `rows` rows from `first` on.
    pub(super) fn read(&self, (first, rows): (usize, usize), to: &mut Matrix<E>) {
        to.resize(rows, self.width);
        for (i, row) in to.rows_mut().enumerate() {
            let start = self.row(first + i);
            if self.strides[1] == 1 {
                row.copy_from_slice(&self.numbers[start as usize..][..row.len()]);
            } else {
                let place = |j: usize| (start + j as isize * self.strides[1]) as usize;
                row.iter_mut().enumerate().for_each(|(j, x)| *x = self.numbers[place(j)]);
            }
        }
    }

    /// The first number of `count` rows from `first` on.
    pub(super) fn column(&self, (first, count): (usize, usize)) -> impl Iterator<Item = f64> {
        (first..first + count).map(|i| self.numbers[self.row(i) as usize].to_f64())
    }
}

/// What a recurrence reads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inputs<'a, E> {
    /// `[b, h, t, n]`
    pub(super) q: View<'a, E>,
    /// `[b, h, t, n]`
    pub(super) k: View<'a, E>,
    /// `[b, h, t, p]`
    pub(super) v: View<'a, E>,
    /// `[b, h, t, 1]` or `[b, h, t, n]`
    pub(super) log_d: View<'a, E>,
    /// `[b, h, n, p]`
    pub(super) memory: View<'a, E>,
    /// What a token reads before it writes, and where it adds that: `[b, h, t, n]`
    pub(super) rank_one: Option<[View<'a, E>; 2]>,
}

/// Tokens, sizes of keys and values, numbers per decay, and tokens per block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub(super) t: usize,
    pub(super) n: usize,
    pub(super) p: usize,
    pub(super) width: usize,
    pub(super) block: usize,
}

impl<'a, E: Real> Inputs<'a, E> {
    pub(super) fn sizes(&self, block: usize) -> Sizes {
        let ([_, _, t, n], [.., p], [.., width]) = (self.k.dims, self.v.dims, self.log_d.dims);
        Sizes { t, n, p, width, block: block.clamp(1, t.max(1)) }
    }

    pub(super) fn heads(&self) -> usize {
        self.q.dims[0] * self.q.dims[1]
    }

    /// In the order of the operation's arguments.
    pub(super) fn all(&self) -> Vec<View<'a, E>> {
        let five = [self.q, self.k, self.v, self.log_d, self.memory];
        five.into_iter().chain(self.rank_one.into_iter().flatten()).collect()
    }
}

impl Sizes {
    pub(super) fn blocks(self) -> usize {
        self.t.div_ceil(self.block)
    }

    /// First token of a block and how many it has.
    pub(super) fn range(self, block: usize) -> (usize, usize) {
        let first = block * self.block;
        (first, self.block.min(self.t - first))
    }
}

/// One block of one head.
#[derive(Clone, Copy)]
pub(super) struct Place<'a, E> {
    pub(super) inputs: &'a Inputs<'a, E>,
    pub(super) head: usize,
    /// First token and how many
    pub(super) range: (usize, usize),
}

impl<E: Real> Place<'_, E> {
    /// This block of one of the inputs.
    pub(super) fn read(&self, view: &View<'_, E>, to: &mut Matrix<E>) {
        view.head(self.head).read(self.range, to);
    }

    /// The block's rows in one head's part of a result with `width` numbers per token.
    pub(super) fn part<'n>(&self, numbers: &'n mut [E], width: usize) -> &'n mut [E] {
        &mut numbers[self.range.0 * width..][..self.range.1 * width]
    }
}

/// Copies a matrix to the front of `out`.
pub(super) fn write<E: Real>(from: &Matrix<E>, out: &mut [E]) {
    let columns = from.row(0).len();
    out.chunks_exact_mut(columns).zip(from.rows()).for_each(|(out, row)| out.copy_from_slice(row));
}
