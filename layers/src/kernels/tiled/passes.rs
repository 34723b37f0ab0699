//! Both passes over the blocks, the same for every kind of recurrence: one head at a time, one thread per head.

use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::inputs::{Inputs, Place, Sizes};
use crate::kernels::dense::{Matrix, Real};
use crate::kernels::view::{Head, Room, View, put, read, streamed_all};

/// One block of a kind of recurrence, with the scratch memory for it.
pub(super) trait Rule<E: Real> {
    /// Scratch memory of the forward pass, or of both.
    fn new(sizes: Sizes, backward: bool) -> Self;

    /// Blocks from this token on come next, whatever came before.
    fn start(&mut self, _token: usize) {}

    /// Outputs of a block, `[m, p]`, from the memory before it, which becomes the memory after it.
    fn forward(&mut self, at: Place<'_, E>, state: &mut Matrix<E>, y: &mut [MaybeUninit<E>]);

    /// Only the memory. Called in order of the blocks, and for some of them a second time.
    fn advance(&mut self, at: Place<'_, E>, state: &mut Matrix<E>);

    /// Gradients of a block from the memory before it and the gradient of the memory after it, which becomes that of
    /// the memory before.
    fn backward(
        &mut self,
        at: Place<'_, E>,
        dy: Head<'_, E>,
        state: &Matrix<E>,
        d_state: &mut Matrix<E>,
        to: &mut HeadGradients<'_, E>,
    );
}

/// Blocks that share one memory kept for the way back, which recomputes those between: no pass over all blocks is
/// needed to find it, and little is kept beside the keys and values of as many blocks.
const SEGMENT: usize = 16;

/// Segments of one head.
fn segments(sizes: Sizes) -> usize {
    sizes.blocks().div_ceil(SEGMENT)
}

/// Room for the memories before every segment, `[b, h, segments, n, p]`.
pub(super) fn kept<E: Real>(inputs: &Inputs<'_, E>, block: usize) -> Room<E> {
    let sizes = inputs.sizes(block);
    Room::new(inputs.heads() * segments(sizes) * sizes.n * sizes.p)
}

/// Fills `out: [b, h, t + n, p]` with the outputs and, below them, the final memory; and `kept`, where it has room,
/// with the memories before every segment.
pub(super) fn forward<E: Real, R: Rule<E>>(
    inputs: &Inputs<'_, E>,
    block: usize,
    out: &mut [MaybeUninit<E>],
    kept: &mut [MaybeUninit<E>],
) {
    let sizes @ Sizes { t, n, p, .. } = inputs.sizes(block);
    let mut kept = kept.chunks_exact_mut(segments(sizes) * n * p);
    let heads: Vec<_> =
        out.chunks_exact_mut((t + n) * p).map(|out| (out, kept.next().unwrap_or_default())).collect();
    let scratch = || (R::new(sizes, false), Matrix::new(n, p));
    heads.into_par_iter().enumerate().for_each_init(scratch, |(rule, state), (head, (out, kept))| {
        let (y, last) = out.split_at_mut(t * p);
        let mut kept = kept.chunks_exact_mut(n * p);
        read(state, inputs.memory.head(head), (0, n), p);
        rule.start(0);
        for block in 0..sizes.blocks() {
            if block % SEGMENT == 0
                && let Some(kept) = kept.next()
            {
                put(state, kept, sizes.streamed);
            }
            let at = Place { inputs, head, range: sizes.range(block) };
            if block + 1 < sizes.blocks() {
                Place { range: sizes.range(block + 1), ..at }.prefetch();
            }
            rule.forward(at, state, at.part(y, p));
        }
        put(state, last, false);
        streamed_all();
    });
}

/// Gradients of [`Inputs`], contiguous.
#[derive(Debug)]
pub(super) struct Gradients<E> {
    q: Room<E>,
    k: Room<E>,
    v: Room<E>,
    /// Zeros where it is not wanted
    log_d: Vec<E>,
    memory: Room<E>,
    /// Empty where there is no rank one
    a: Room<E>,
    b: Room<E>,
}

impl<E: Real> Gradients<E> {
    pub(super) fn new(inputs: &Inputs<'_, E>) -> Self {
        let count = |view: &View<'_, E>| view.dims.iter().product();
        let room = |view: &View<'_, E>| Room::new(count(view));
        let [a, b] =
            inputs.rank_one.map_or_else(|| [Room::new(0), Room::new(0)], |two| two.each_ref().map(room));
        let log_d = vec![E::default(); count(&inputs.log_d)];
        let [q, k, v, memory] = [&inputs.q, &inputs.k, &inputs.v, &inputs.memory].map(room);
        Self { q, k, v, log_d, memory, a, b }
    }

    /// In the order of [`Inputs::all`].
    ///
    /// # Safety
    ///
    /// [`backward`] has filled them.
    #[allow(unsafe_code, reason = "see there")]
    pub(super) unsafe fn all(self) -> [Vec<E>; 7] {
        // SAFETY: as the caller says.
        let [q, k, v, memory, a, b] =
            [self.q, self.k, self.v, self.memory, self.a, self.b].map(|room| unsafe { room.written() });
        [q, k, v, self.log_d, memory, a, b]
    }
}

/// One head's share of [`Gradients`].
pub(super) struct HeadGradients<'a, E> {
    pub(super) q: &'a mut [MaybeUninit<E>],
    pub(super) k: &'a mut [MaybeUninit<E>],
    pub(super) v: &'a mut [MaybeUninit<E>],
    pub(super) log_d: Option<&'a mut [E]>,
    pub(super) memory: &'a mut [MaybeUninit<E>],
    pub(super) a: &'a mut [MaybeUninit<E>],
    pub(super) b: &'a mut [MaybeUninit<E>],
}

/// Fills `to` with the gradients for `out: [b, h, t + n, p]`, the gradient of what [`forward`] filled; that of the
/// decay only where it is wanted.
///
/// Goes through the segments from the last to the first, recomputes the memories inside from the one `kept`, and has
/// both a block's memory `S` and its gradient `dS` at hand (arXiv 2401.04658 keeps nothing and goes over everything
/// twice; with both, scores are made once and the decay's gradient needs no sums over the whole sequence).
pub(super) fn backward<E: Real, R: Rule<E>>(
    inputs: &Inputs<'_, E>,
    out: View<'_, E>,
    kept: &[E],
    block: usize,
    decay: bool,
    to: &mut Gradients<E>,
) {
    let sizes @ Sizes { t, n, p, width, .. } = inputs.sizes(block);
    debug_assert_eq!(out.dims[0] * out.dims[1], inputs.heads());
    let [mut q, mut k, mut a, mut b] =
        [&mut to.q, &mut to.k, &mut to.a, &mut to.b].map(|x| x.numbers().chunks_exact_mut(t * n));
    let mut v = to.v.numbers().chunks_exact_mut(t * p);
    let mut log_d = to.log_d.chunks_exact_mut(t * width);
    let heads = to.memory.numbers().chunks_exact_mut(n * p).map(|memory| HeadGradients {
        q: q.next().unwrap_or_default(),
        k: k.next().unwrap_or_default(),
        v: v.next().unwrap_or_default(),
        log_d: log_d.next().filter(|_| decay),
        memory,
        a: a.next().unwrap_or_default(),
        b: b.next().unwrap_or_default(),
    });
    let heads: Vec<_> = heads.collect();
    let per_head = segments(sizes) * n * p;
    let scratch = || Backward::<E, R>::new(sizes);
    heads.into_par_iter().enumerate().for_each_init(scratch, |scratch, (head, to)| {
        scratch.head(inputs, head, out.head(head), &kept[head * per_head..][..per_head], to);
    });
}

/// Scratch memory of one thread.
struct Backward<E, R> {
    sizes: Sizes,
    rule: R,
    state: Matrix<E>,
    d_state: Matrix<E>,
    /// Before every block of a segment
    states: Vec<Matrix<E>>,
}

impl<E: Real, R: Rule<E>> Backward<E, R> {
    fn new(sizes: Sizes) -> Self {
        let state = Matrix::new(sizes.n, sizes.p);
        Self {
            sizes,
            rule: R::new(sizes, true),
            states: vec![state.clone(); SEGMENT.min(sizes.blocks())],
            d_state: state.clone(),
            state,
        }
    }

    fn head(
        &mut self,
        inputs: &Inputs<'_, E>,
        head: usize,
        out: Head<'_, E>,
        kept: &[E],
        mut to: HeadGradients<'_, E>,
    ) {
        let Self { sizes, rule, state, d_state, states } = self;
        let Sizes { t, n, p, .. } = *sizes;
        let place = |block| Place { inputs, head, range: sizes.range(block) };
        read(d_state, out, (t, n), p);
        for (segment, kept) in kept.chunks_exact(n * p).enumerate().rev() {
            let first = segment * SEGMENT;
            let last = (first + SEGMENT).min(sizes.blocks());
            state.set_rows(kept);
            rule.start(sizes.range(first).0);
            for block in first..last {
                states[block - first].copy_from(state);
                if block + 1 < last {
                    place(block + 1).prefetch();
                    rule.advance(place(block), state);
                }
            }
            for block in (first..last).rev() {
                if let Some(next) = block.checked_sub(1) {
                    let (start, count) = sizes.range(next);
                    out.prefetch(start, count, p);
                    place(next).prefetch();
                }
                rule.backward(place(block), out, &states[block - first], d_state, &mut to);
            }
        }
        put(d_state, to.memory, false);
        streamed_all();
    }
}
