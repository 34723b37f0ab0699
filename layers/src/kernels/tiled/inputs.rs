//! What a recurrence reads, and in which blocks.

use crate::kernels::dense::{Matrix, Real};
use crate::kernels::view::{View, read};

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
    /// Multiplies what queries find
    pub(super) gain: E,
}

/// Tokens, sizes of keys and values, numbers per decay, and tokens per block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub(super) t: usize,
    pub(super) n: usize,
    pub(super) p: usize,
    pub(super) width: usize,
    pub(super) block: usize,
    /// Results are too large for caches to hold until someone reads them.
    pub(super) streamed: bool,
}

/// Bytes of a result from which on it is streamed.
const STREAMED: usize = 16 << 20;

impl<'a, E: Real> Inputs<'a, E> {
    pub(super) fn sizes(&self, block: usize) -> Sizes {
        let ([_, _, t, n], [.., p], [.., width]) = (self.k.dims, self.v.dims, self.log_d.dims);
        let streamed = self.heads() * t * n.min(p) * size_of::<E>() >= STREAMED;
        Sizes { t, n, p, width, block: block.clamp(1, t.max(1)), streamed }
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
        read(to, view.head(self.head), self.range, view.dims[3]);
    }

    /// Has the inputs of this block brought near while another one is computed.
    pub(super) fn prefetch(&self) {
        let Inputs { q, k, v, log_d, rank_one, .. } = self.inputs;
        for view in [q, k, v, log_d].into_iter().chain(rank_one.iter().flatten()) {
            view.head(self.head).prefetch(self.range.0, self.range.1, view.dims[3]);
        }
    }
}
