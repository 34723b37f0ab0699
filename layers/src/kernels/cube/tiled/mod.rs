//! Linear recurrences of matrix memories on graphics devices, token by token with the memory in registers.
//!
//! A cube has sixteen values of a head, `[n, 16]` of its memory, and a unit four by four of those. Tokens come in stages
//! through shared memory; what a token reads is summed over units once per stage. There are no tensor cores for `f32`,
//! and without them a block that is quadratic inside costs more than the recurrence itself: per token and head `4 n p`
//! operations for keys and values of `n` and `p` and another `n p` for the decay, against `2 (n + p) C` more in blocks of
//! `C` tokens. Nothing but `e` to the logarithm of one decay is formed, so a reset is exact and one decay per channel
//! costs what one per head does. Rank one needs what a token reads before the next one, so two barriers per token, and
//! no triangular solve.
//!
//! ```text
//! launches          forward                          backward
//! one chunk         1, packing `a` and `b` first: 2  1, and 1 to add slices up
//! several chunks    3: write, pass, forward          4: write, pass, backward, add up
//! ```
//!
//! Chunks run beside each other where heads and slices alone are too few cubes for a large device; each costs a memory
//! written and read twice and its keys and values read twice. With rank one there is one chunk.
//!
//! Floor: memory. Forward `4 (2 n + 2 p)` bytes per token and head once; keys are read once per slice, mostly from cache.
//! While training one memory is kept per 32 tokens. The way back reads it, goes forward again from it to each stage, and
//! holds the memories before the tokens of one stage in registers; gradients of keys are written once per slice.

mod backward;
mod chunks;
mod forward;
mod parts;
mod plan;

use burn_cubecl::tensor::CubeTensor;
use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;

pub(super) use self::parts::head_start;
use self::plan::Plan;
use super::buffer::{ALIGNED, MOST_CUBES, dims, empty, part_of, zeros};

/// Tokens that share one memory kept for the way back.
const SEGMENT: usize = 32;

/// As many cubes as keep a large device busy: eight for each of an H100's 132 multiprocessors.
const CUBES: usize = 1024;

/// Fewest tokens of a chunk where chunks run beside each other.
const SHORTEST: usize = 128;

/// Units of a cube where there is nothing to share.
const UNITS: usize = 64;

/// What a recurrence reads: see [`Recurrence`](crate::kernels::tiled::Recurrence).
#[derive(Clone, Debug)]
pub(crate) struct Inputs {
    pub(crate) q: CubeTensor,
    pub(crate) k: CubeTensor,
    pub(crate) v: CubeTensor,
    /// `[b, h, t, width]`, or `[b, h, t, width + 2 n]` with `a` and `b` beside the logarithms of decays
    pub(crate) extra: CubeTensor,
    pub(crate) memory: CubeTensor,
    pub(crate) rank_one: bool,
}

/// What comes of the forward pass.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    /// `[b, h, t, p]`
    pub(crate) y: CubeTensor,
    /// After the last token, `[b, h, n, p]`
    pub(crate) memory: CubeTensor,
    /// What the way back needs, if that was asked for
    pub(crate) kept: Option<CubeTensor>,
}

/// Sizes, and chunks that run beside each other.
#[derive(Clone, Copy, Debug)]
struct Layout {
    plan: Plan,
    heads: usize,
    t: usize,
    chunk: usize,
}

impl Layout {
    fn chunks(self) -> usize {
        self.t.div_ceil(self.chunk)
    }

    /// Segments of a chunk.
    fn segments(self) -> usize {
        self.chunk.div_ceil(SEGMENT)
    }

    /// Memories kept for the way back, in numbers.
    fn kept(self) -> usize {
        self.heads * self.chunks() * self.segments() * self.plan.n * self.plan.p
    }

    /// One cube per slice, chunk and head.
    fn count(self) -> CubeCount {
        CubeCount::Static(self.plan.slices() as u32, self.chunks() as u32, self.heads as u32)
    }
}

/// Whether a recurrence of these sizes, `[b, h, t, n, p]`, with this many numbers per decay, is for these kernels.
pub(crate) fn fits([b, h, t, n, p]: [usize; 5], width: usize, rank_one: bool) -> bool {
    let plan = Plan { n, p, width, rank_one };
    // The largest buffer has the gradients of keys and decays once per slice.
    let numbers = [b, h, t, plan.slices(), 5 * n + p].into_iter().fold(1, usize::saturating_mul);
    plan.fits() && b.saturating_mul(h) <= MOST_CUBES && numbers < 1 << 30
}

impl Inputs {
    /// From `q`, `k`, `v`, the logarithms of decays, the memory, and `a` and `b` if there are any.
    pub(crate) fn new(inputs: &[CubeTensor]) -> Self {
        Self::given(inputs, None)
    }

    /// The same, with the logarithms of decays, `a` and `b` beside each other already, if they are `packed`.
    pub(crate) fn given(inputs: &[CubeTensor], packed: Option<CubeTensor>) -> Self {
        let [q, k, v, log, memory, rank_one @ ..] = inputs else {
            unreachable!("an operation has five or seven")
        };
        let mut new = Self {
            q: q.clone(),
            k: k.clone(),
            v: v.clone(),
            extra: log.clone(),
            memory: memory.clone(),
            rank_one: !rank_one.is_empty(),
        };
        if let [a, b] = rank_one {
            new.extra = packed.unwrap_or_else(|| new.pack([log, a, b]));
        }
        new
    }

    /// Beside each other, so that a kernel has few buffers: devices promise eight.
    fn pack(&self, [log, a, b]: [&CubeTensor; 3]) -> CubeTensor {
        let (shape, width) = (a.meta.shape(), log.meta.shape()[3]);
        let columns = width + 2 * shape[3];
        let to = empty(&self.k, &[shape[0], shape[1], shape[2], columns]);
        let count = shape[0] * shape[1] * shape[2] * columns;
        let dim = CubeDim::new_1d(UNITS as u32);
        chunks::pack::launch(
            &self.k.client,
            calculate_cube_count_elemwise(&self.k.client, count, dim),
            dim,
            log.clone().into_tensor_arg(),
            a.clone().into_tensor_arg(),
            b.clone().into_tensor_arg(),
            to.clone().into_tensor_arg(),
            count,
            width,
            shape[3],
        );
        to
    }

    fn layout(&self, block: Option<usize>) -> Layout {
        let [k, v, extra] = [&self.k, &self.v, &self.extra].map(|x| x.meta.shape());
        let (heads, t, n, p) = (k[0] * k[1], k[2], k[3], v[3]);
        let width = if self.rank_one { extra[3] - 2 * n } else { extra[3] };
        let plan = Plan { n, p, width, rank_one: self.rank_one };
        let chunk = match block {
            // What a token writes depends on what it reads: there is no part of it beforehand.
            _ if self.rank_one => t,
            Some(block) => block.max(t.div_ceil(MOST_CUBES)).min(t),
            None => {
                let chunks = CUBES.div_ceil(heads * plan.slices()).min(t / SHORTEST).max(1);
                t.div_ceil(chunks).next_multiple_of(SEGMENT)
            }
        };
        Layout { plan, heads, t, chunk }
    }

    /// Keeps what the way back needs, if it is to. The outputs are `gain` times what queries find, and `d v` more,
    /// `d: [1, h, 1, p]`.
    pub(crate) fn forward(
        &self,
        block: Option<usize>,
        keep: bool,
        gain: f32,
        d: Option<&CubeTensor>,
    ) -> Outcome {
        let layout @ Layout { plan, heads, t, .. } = self.layout(block);
        let Plan { n, p, .. } = plan;
        let shape = self.k.meta.shape();
        let y = empty(&self.k, &[shape[0], shape[1], t, p]);
        let reads = if self.rank_one { heads * t * p } else { 0 };
        let kept = if keep { layout.kept() + reads } else { 0 };
        let memory_at = kept.next_multiple_of(ALIGNED);
        let beside = empty(&self.k, &[memory_at + heads * n * p]);
        let memory = if layout.chunks() == 1 {
            let mut memory = self.memory.clone();
            memory.meta.insert(2, 1, 0);
            memory
        } else {
            let memory = empty(&self.k, &[shape[0], shape[1], layout.chunks(), n, p]);
            self.pass(layout, [&self.k, &self.v], &self.memory, (&memory, 0), false);
            memory
        };
        forward::forward::launch(
            &self.k.client,
            layout.count(),
            plan.dim(),
            self.q.clone().into_tensor_arg(),
            self.k.clone().into_tensor_arg(),
            self.v.clone().into_tensor_arg(),
            self.extra.clone().into_tensor_arg(),
            memory.into_tensor_arg(),
            // In place of what there is not: it is not read.
            d.unwrap_or(&self.v).clone().into_tensor_arg(),
            beside.clone().into_tensor_arg(),
            y.clone().into_tensor_arg(),
            gain,
            layout.chunk,
            layout.segments(),
            layout.kept(),
            memory_at,
            plan,
            keep,
            d.is_some(),
        );
        let memory = part_of(&beside, memory_at, [shape[0], shape[1], n, p]);
        Outcome { y, memory, kept: keep.then_some(beside) }
    }

    /// Memories before every chunk, or their gradients after every chunk, at a place in a buffer, from what is written
    /// and what it begins with.
    fn pass(
        &self,
        layout: Layout,
        [keys, values]: [&CubeTensor; 2],
        outside: &CubeTensor,
        (to, start): (&CubeTensor, usize),
        backwards: bool,
    ) {
        let Layout { plan, heads, .. } = layout;
        let client = &self.k.client;
        let totals = empty(&self.k, &[heads * layout.chunks() * plan.width]);
        chunks::write::launch(
            client,
            layout.count(),
            plan.dim(),
            keys.clone().into_tensor_arg(),
            values.clone().into_tensor_arg(),
            self.extra.clone().into_tensor_arg(),
            to.clone().into_tensor_arg(),
            totals.clone().into_tensor_arg(),
            layout.chunk,
            start,
            plan,
            backwards,
        );
        chunks::pass::launch(
            client,
            CubeCount::Static((plan.n * plan.p).div_ceil(UNITS) as u32, heads as u32, 1),
            CubeDim::new_1d(UNITS as u32),
            outside.clone().into_tensor_arg(),
            totals.into_tensor_arg(),
            to.clone().into_tensor_arg(),
            layout.chunks(),
            start,
            plan,
            backwards,
        );
    }

    /// Gradients of `q`, `k`, `v`, the logarithms of decays if that is wanted, the memory, `a` and `b`, for those of the
    /// outputs and of the last memory, if anything came of it.
    pub(crate) fn backward(
        &self,
        dy: &CubeTensor,
        last: Option<CubeTensor>,
        kept: &CubeTensor,
        block: Option<usize>,
        decay: bool,
    ) -> Vec<Option<CubeTensor>> {
        let layout @ Layout { plan, heads, t, .. } = self.layout(block);
        let Plan { n, p, width, rank_one, .. } = plan;
        let client = &self.k.client;
        let (apart, keys) = ((heads * t * n).next_multiple_of(ALIGNED), if rank_one { 4 } else { 2 });
        let decays = if decay { (heads * t * width).next_multiple_of(ALIGNED) } else { 0 };
        let per_slice = keys * apart + decays;
        let values_at = plan.slices() * per_slice;
        let memory_at = values_at + (heads * t * p).next_multiple_of(ALIGNED);
        let after_at = memory_at + (heads * n * p).next_multiple_of(ALIGNED);
        let after = if layout.chunks() == 1 { 0 } else { heads * layout.chunks() * n * p };
        let grads = empty(&self.k, &[after_at + after]);
        let last = last.unwrap_or_else(|| zeros(&self.memory, dims(&self.memory)));
        if layout.chunks() > 1 {
            self.pass(layout, [&self.q, dy], &last, (&grads, after_at), true);
        }
        backward::backward::launch(
            client,
            layout.count(),
            plan.dim(),
            self.q.clone().into_tensor_arg(),
            self.k.clone().into_tensor_arg(),
            self.v.clone().into_tensor_arg(),
            self.extra.clone().into_tensor_arg(),
            dy.clone().into_tensor_arg(),
            last.into_tensor_arg(),
            kept.clone().into_tensor_arg(),
            grads.clone().into_tensor_arg(),
            layout.chunk,
            layout.segments(),
            layout.kept(),
            apart,
            per_slice,
            values_at,
            memory_at,
            after_at,
            plan,
            decay,
        );
        if plan.slices() > 1 {
            let dim = CubeDim::new_1d(UNITS as u32);
            backward::gather::launch(
                client,
                calculate_cube_count_elemwise(client, per_slice, dim),
                dim,
                grads.clone().into_tensor_arg(),
                per_slice,
                per_slice,
                plan.slices(),
            );
        }
        let shape = self.k.meta.shape();
        let part = |start: usize, dims: [usize; 4]| part_of(&grads, start, dims);
        let (b, h) = (shape[0], shape[1]);
        let key = |which: usize| Some(part(which * apart, [b, h, t, n]));
        let rest = [key(2), key(3)].into_iter().filter(|_| rank_one);
        let decays = decay.then(|| part(keys * apart, [b, h, t, width]));
        let values = Some(part(values_at, [b, h, t, p]));
        let memory = Some(part(memory_at, [b, h, n, p]));
        [key(0), key(1), values, decays, memory].into_iter().chain(rest).collect()
    }
}
