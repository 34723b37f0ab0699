//! Both passes over the blocks, the same for every kind of recurrence: one head at a time, one thread per head.

use rayon::prelude::*;

use super::LOG_D;
use super::inputs::{Inputs, Place, Sizes};
use crate::kernels::dense::{Matrix, Real};
use crate::kernels::room::{HeadRoom, Room, put, streamed_all};
use crate::kernels::view::{Head, View, read};

/// One block of a kind of recurrence, with the scratch memory for it.
pub(super) trait Rule<E: Real> {
    /// Scratch memory of the forward pass, or of both.
    fn new(sizes: Sizes, backward: bool) -> Self;

    /// Blocks from this token on come next, whatever came before.
    fn start(&mut self, _token: usize) {}

    /// Outputs of a block, `[m, p]`, from the memory before it, which becomes the memory after it.
    fn forward(&mut self, at: Place<'_, E>, state: &mut Matrix<E>, y: &mut HeadRoom<'_, E>);

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

/// Fills `y: [b, h, t, p]`, which lies as `v` does, with the outputs, `last: [b, h, n, p]` with the final memory, and
/// `kept`, where it has room, with the memories before every segment.
pub(super) fn forward<E: Real, R: Rule<E>>(
    inputs: &Inputs<'_, E>,
    block: usize,
    [y, last, kept]: [&mut Room<E>; 3],
) {
    let sizes @ Sizes { n, p, .. } = inputs.sizes(block);
    let mut kept = kept.numbers().chunks_exact_mut(segments(sizes) * n * p);
    let mut last = last.numbers().chunks_exact_mut(n * p);
    let y = y.heads(inputs.v.dims, inputs.v.order()).into_iter();
    let heads: Vec<_> =
        y.map(|y| (y, last.next().unwrap_or_default(), kept.next().unwrap_or_default())).collect();
    let scratch = || (R::new(sizes, false), Matrix::new(n, p));
    heads.into_par_iter().enumerate().for_each_init(scratch, |(rule, state), (head, (mut y, last, kept))| {
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
            rule.forward(at, state, &mut y);
        }
        put(state, last, false);
        streamed_all();
    });
}

/// Gradients of [`Inputs`], in their order; each lies as its input does.
pub(super) struct Gradients<E>(Vec<Option<Room<E>>>);

impl<E: Real> Gradients<E> {
    /// With one of the decays if that is wanted.
    pub(super) fn new(inputs: &Inputs<'_, E>, decay: bool) -> Self {
        let room = |view: View<'_, E>| Room::new(view.dims.iter().product());
        let all = inputs.all().into_iter().enumerate();
        Self(all.map(|(i, view)| (i != LOG_D || decay).then(|| room(view))).collect())
    }

    /// The numbers.
    ///
    /// # Safety
    ///
    /// [`backward`] has filled them.
    #[allow(unsafe_code, reason = "see there")]
    pub(super) unsafe fn all(self) -> impl Iterator<Item = Option<Vec<E>>> {
        // SAFETY: as the caller says.
        self.0.into_iter().map(|room| room.map(|room| unsafe { room.written() }))
    }
}

/// One head's share of [`Gradients`].
pub(super) struct HeadGradients<'a, E> {
    pub(super) q: HeadRoom<'a, E>,
    pub(super) k: HeadRoom<'a, E>,
    pub(super) v: HeadRoom<'a, E>,
    pub(super) log_d: Option<HeadRoom<'a, E>>,
    pub(super) memory: HeadRoom<'a, E>,
    pub(super) rank_one: Option<[HeadRoom<'a, E>; 2]>,
}

/// Every head's share.
fn shares<'a, E: Real>(inputs: &Inputs<'_, E>, to: &'a mut Gradients<E>) -> Vec<HeadGradients<'a, E>> {
    let rooms = to.0.iter_mut().zip(inputs.all());
    let mut all: Vec<_> = rooms
        .map(|(room, view)| room.as_mut().map(|room| room.heads(view.dims, view.order()).into_iter()))
        .collect();
    let share = |_| {
        let mut next = all.iter_mut().map(|heads| heads.as_mut().and_then(Iterator::next));
        let mut one = || next.next().flatten();
        let (q, k, v, log_d, memory) = (one()?, one()?, one()?, one(), one()?);
        let rank_one = one().zip(one()).map(|(a, b)| [a, b]);
        Some(HeadGradients { q, k, v, log_d, memory, rank_one })
    };
    (0..inputs.heads()).map_while(share).collect()
}

/// Fills `to` with the gradients for those of what [`forward`] filled: `dy: [b, h, t, p]` and, of the final memory, if
/// anything came of it, `last: [b, h, n, p]`.
///
/// Goes through the segments from the last to the first, recomputes the memories inside from the one `kept`, and has
/// both a block's memory `S` and its gradient `dS` at hand (arXiv 2401.04658 keeps nothing and goes over everything
/// twice; with both, scores are made once and the decay's gradient needs no sums over the whole sequence).
pub(super) fn backward<E: Real, R: Rule<E>>(
    inputs: &Inputs<'_, E>,
    (dy, last): (View<'_, E>, Option<View<'_, E>>),
    kept: &[E],
    block: usize,
    to: &mut Gradients<E>,
) {
    let sizes @ Sizes { n, p, .. } = inputs.sizes(block);
    debug_assert_eq!(dy.dims[0] * dy.dims[1], inputs.heads());
    let per_head = segments(sizes) * n * p;
    let scratch = || Backward::<E, R>::new(sizes);
    shares(inputs, to).into_par_iter().enumerate().for_each_init(scratch, |scratch, (head, to)| {
        match &last {
            Some(last) => read(&mut scratch.d_state, last.head(head), (0, n), p),
            None => scratch.d_state.rows_mut().for_each(|row| row.fill(E::default())),
        }
        scratch.head(inputs, head, dy.head(head), &kept[head * per_head..][..per_head], to);
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

    /// With the final memory's gradient in `d_state`.
    fn head(
        &mut self,
        inputs: &Inputs<'_, E>,
        head: usize,
        dy: Head<'_, E>,
        kept: &[E],
        mut to: HeadGradients<'_, E>,
    ) {
        let Self { sizes, rule, state, d_state, states } = self;
        let Sizes { n, p, .. } = *sizes;
        let place = |block| Place { inputs, head, range: sizes.range(block) };
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
                    dy.prefetch(start, count, p);
                    place(next).prefetch();
                }
                rule.backward(place(block), dy, &states[block - first], d_state, &mut to);
            }
        }
        to.memory.put(0, d_state.rows(), false);
        streamed_all();
    }
}
