//! The arithmetic of the kernel on slices: one head at a time, block by block.

use rayon::prelude::*;

use super::decay::Decay;
use crate::kernels::dense::{Matrix, Part, Real, dot};

/// A tensor `[b, h, t, n]` where it lies, in any order of its axes.
#[derive(Clone, Copy, Debug)]
pub(in crate::kernels) struct View<'a, E> {
    pub(in crate::kernels) numbers: &'a [E],
    pub(in crate::kernels) start: usize,
    pub(in crate::kernels) dims: [usize; 4],
    pub(in crate::kernels) strides: [isize; 4],
}

/// One head of a [`View`]: `[t, n]`.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct Head<'a, E> {
    numbers: &'a [E],
    start: isize,
    strides: [isize; 2],
}

impl<'a, E: Real> View<'a, E> {
    /// Head `index` of all `b h`.
    pub(in crate::kernels) fn head(&self, index: usize) -> Head<'a, E> {
        let [_, heads, ..] = self.dims;
        let [b, h, t, n] = self.strides;
        let start = self.start as isize + (index / heads) as isize * b + (index % heads) as isize * h;
        Head { numbers: self.numbers, start, strides: [t, n] }
    }
}

impl<'a, E: Real> Head<'a, E> {
    /// Its transpose.
    pub(in crate::kernels) fn turned(self) -> Self {
        Self { strides: [self.strides[1], self.strides[0]], ..self }
    }

    /// Where row `i` starts.
    fn row(&self, i: usize) -> isize {
        self.start + i as isize * self.strides[0]
    }

    /// Copies rows from `first` on into `to`, as many as it has.
    fn read(&self, first: usize, to: &mut Matrix<E>) {
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

    /// `count` numbers of row `i` from column `first` on: where they lie, or copied to `space` where they do not lie
    /// side by side.
    #[inline(always)]
    pub(in crate::kernels) fn some<'b>(
        &self,
        i: usize,
        first: usize,
        count: usize,
        space: &'b mut [E],
    ) -> &'b [E]
    where
        'a: 'b,
    {
        if self.strides[1] == 1 {
            return &self.numbers[self.row(i) as usize + first..][..count];
        }
        self.copy(i, first, &mut space[..count]);
        &space[..count]
    }

    /// Copies numbers of row `i` from column `first` on, as many as fit.
    pub(in crate::kernels) fn copy(&self, i: usize, first: usize, to: &mut [E]) {
        let place = |j: usize| (self.row(i) + (first + j) as isize * self.strides[1]) as usize;
        to.iter_mut().enumerate().for_each(|(j, x)| *x = self.numbers[place(j)]);
    }

    /// The first number of `count` rows from `first` on.
    pub(in crate::kernels) fn column(&self, first: usize, count: usize) -> impl Iterator<Item = f64> {
        (first..first + count).map(|i| self.numbers[self.row(i) as usize].to_f64())
    }
}

/// What the recurrence reads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inputs<'a, E> {
    /// `[b, h, t, n]`
    pub(super) q: View<'a, E>,
    /// `[b, h, t, n]`
    pub(super) k: View<'a, E>,
    /// `[b, h, t, p]`
    pub(super) v: View<'a, E>,
    /// `[b, h, t, 1]`
    pub(super) log_a: View<'a, E>,
    /// `[b, h, n, p]`
    pub(super) memory: View<'a, E>,
}

/// Tokens, sizes of keys and values, and tokens per block.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    t: usize,
    n: usize,
    p: usize,
    block: usize,
}

impl<E: Real> Inputs<'_, E> {
    fn sizes(&self, block: usize) -> Sizes {
        let ([_, _, t, n], [.., p]) = (self.k.dims, self.v.dims);
        Sizes { t, n, p, block: block.clamp(1, t.max(1)) }
    }

    fn heads(&self) -> usize {
        self.q.dims[0] * self.q.dims[1]
    }
}

impl Sizes {
    fn blocks(self) -> usize {
        self.t.div_ceil(self.block)
    }

    fn segments(self) -> usize {
        self.blocks().div_ceil(SEGMENT)
    }

    /// First token of a block and how many it has.
    fn range(self, block: usize) -> (usize, usize) {
        let first = block * self.block;
        (first, self.block.min(self.t - first))
    }
}

/// Scratch memory of one thread in either pass.
struct Common<E> {
    k: Matrix<E>,
    v: Matrix<E>,
    state: Matrix<E>,
    decay: Decay<E>,
}

impl<E: Real> Common<E> {
    fn new(Sizes { n, p, block, .. }: Sizes) -> Self {
        let [k, v, state] =
            [(block, n), (block, p), (n, p)].map(|(rows, columns)| Matrix::new(rows, columns));
        Self { k, v, state, decay: Decay::new(block) }
    }
}

/// A matrix for a block's rows, read from `head`.
pub(in crate::kernels) fn read<E: Real>(
    to: &mut Matrix<E>,
    head: Head<'_, E>,
    (first, rows): (usize, usize),
    columns: usize,
) {
    to.resize(rows, columns);
    head.read(first, to);
}

/// `S ← e^{G_m} S + Kᵀ (e^{G_m - G} ∘ V)`; scales `v` on the way.
fn advance<E: Real>(state: &mut Matrix<E>, k: &Matrix<E>, v: &mut Matrix<E>, decay: &Decay<E>) {
    v.scale_rows(&decay.to_end);
    state.scale(decay.total);
    state.add_turned_product(k, v, Part::Whole);
}

/// Blocks that share one memory kept for the backward pass, which recomputes those between: with eight, what is kept
/// is a sixteenth of the keys and values at blocks and heads of 64, and no pass over all blocks is needed to find it.
const SEGMENT: usize = 8;

/// Room for the memories before every segment of [`forward`], `[b, h, segments, n, p]`.
pub(super) fn kept<E: Real>(inputs: &Inputs<'_, E>, block: usize) -> Vec<E> {
    let sizes = inputs.sizes(block);
    vec![E::default(); inputs.heads() * sizes.segments() * sizes.n * sizes.p]
}

/// `H_t = a_t H_{t-1} + k_t v_tᵀ`, `y_t = H_tᵀ q_t`. Fills `out: [b, h, t + n, p]` with the outputs and, below
/// them, the final memory; and `kept`, where it has room, with the memories before every segment.
pub(super) fn forward<E: Real>(inputs: &Inputs<'_, E>, block: usize, out: &mut [E], kept: &mut [E]) {
    let sizes @ Sizes { t, n, p, .. } = inputs.sizes(block);
    let scratch = || Forward::new(sizes);
    let run = |scratch: &mut Forward<E>, head: usize, out: &mut [E], kept: &mut [E]| {
        scratch.head(inputs, head, out, kept);
    };
    let heads = out.par_chunks_mut((t + n) * p).enumerate();
    if kept.is_empty() {
        heads.for_each_init(scratch, |scratch, (head, out)| run(scratch, head, out, &mut []));
    } else {
        let kept = kept.par_chunks_mut(sizes.segments() * n * p);
        heads.zip(kept).for_each_init(scratch, |scratch, ((head, out), kept)| run(scratch, head, out, kept));
    }
}

struct Forward<E> {
    sizes: Sizes,
    common: Common<E>,
    q: Matrix<E>,
    k_turned: Matrix<E>,
    scores: Matrix<E>,
    y: Matrix<E>,
}

impl<E: Real> Forward<E> {
    fn new(sizes: Sizes) -> Self {
        let Sizes { n, p, block, .. } = sizes;
        Self {
            sizes,
            common: Common::new(sizes),
            q: Matrix::new(block, n),
            k_turned: Matrix::new(n, block),
            scores: Matrix::new(block, block),
            y: Matrix::new(block, p),
        }
    }

    fn head(&mut self, inputs: &Inputs<'_, E>, head: usize, out: &mut [E], kept: &mut [E]) {
        let Self { sizes, common: Common { k, v, state, decay }, q, k_turned, scores, y } = self;
        let Sizes { t, n, p, .. } = *sizes;
        let (y_out, state_out) = out.split_at_mut(t * p);
        read(state, inputs.memory.head(head), (0, n), p);
        for block in 0..sizes.blocks() {
            let (first, rows) = sizes.range(block);
            if block % SEGMENT == 0 && !kept.is_empty() {
                write(state, &mut kept[block / SEGMENT * n * p..]);
            }
            read(q, inputs.q.head(head), (first, rows), n);
            read(k, inputs.k.head(head), (first, rows), n);
            read(v, inputs.v.head(head), (first, rows), p);
            decay.set(inputs.log_a.head(head).column(first, rows));
            k_turned.set_transpose(k);
            scores.set_product(q, k_turned, Part::Lower);
            decay.apply(scores);
            y.set_product(scores, v, Part::LeftLower);
            q.scale_rows(&decay.from_start);
            y.add_product(q, state, Part::Whole);
            write(y, &mut y_out[first * p..]);
            advance(state, k, v, decay);
        }
        write(state, state_out);
    }
}

/// Copies a matrix to the front of `out`.
pub(in crate::kernels) fn write<E: Real>(from: &Matrix<E>, out: &mut [E]) {
    let columns = from.row(0).len();
    out.chunks_exact_mut(columns).zip(from.rows()).for_each(|(out, row)| out.copy_from_slice(row));
}

/// Gradients of [`Inputs`], contiguous.
#[derive(Debug)]
pub(super) struct Gradients<E> {
    pub(super) q: Vec<E>,
    pub(super) k: Vec<E>,
    pub(super) v: Vec<E>,
    pub(super) log_a: Vec<E>,
    pub(super) memory: Vec<E>,
}

impl<E: Real> Gradients<E> {
    pub(super) fn filled(inputs: &Inputs<'_, E>, with: E) -> Self {
        let size = |view: &View<'_, E>| vec![with; view.dims.iter().product()];
        Self {
            q: size(&inputs.q),
            k: size(&inputs.k),
            v: size(&inputs.v),
            log_a: size(&inputs.log_a),
            memory: size(&inputs.memory),
        }
    }
}

/// Fills `to` with the gradients for `out: [b, h, t + n, p]`, the gradient of what [`forward`] filled.
///
/// Goes through the segments from the last to the first, recomputes the memories inside from the one `kept`, and
/// has both a block's memory `S` and its gradient `dS` at hand (arXiv 2401.04658 keeps nothing and goes over
/// everything twice; with both, scores are made once and the decay's gradient needs no sums over the whole
/// sequence).
pub(super) fn backward<E: Real>(
    inputs: &Inputs<'_, E>,
    out: View<'_, E>,
    kept: &[E],
    block: usize,
    decay: bool,
    to: &mut Gradients<E>,
) {
    let sizes @ Sizes { t, n, p, .. } = inputs.sizes(block);
    let heads = (
        to.q.par_chunks_mut(t * n),
        to.k.par_chunks_mut(t * n),
        to.v.par_chunks_mut(t * p),
        to.log_a.par_chunks_mut(t),
        to.memory.par_chunks_mut(n * p),
    );
    debug_assert_eq!(out.dims[0] * out.dims[1], inputs.heads());
    let per_head = sizes.segments() * n * p;
    let scratch = || Backward::new(sizes);
    heads.into_par_iter().enumerate().for_each_init(scratch, |scratch, (head, (q, k, v, log_a, memory))| {
        let to = HeadGradients { q, k, v, log_a: decay.then_some(log_a), memory };
        scratch.head(inputs, head, out.head(head), &kept[head * per_head..][..per_head], to);
    });
}

/// One head's share of [`Gradients`].
struct HeadGradients<'a, E> {
    q: &'a mut [E],
    k: &'a mut [E],
    v: &'a mut [E],
    log_a: Option<&'a mut [E]>,
    memory: &'a mut [E],
}

struct Backward<E> {
    sizes: Sizes,
    common: Common<E>,
    /// Before every block of a segment
    states: Vec<Matrix<E>>,
    d_state: Matrix<E>,
    rows: BlockRows<E>,
}

/// What a block needs besides its keys and values.
struct BlockRows<E> {
    q: Matrix<E>,
    dy: Matrix<E>,
    scores: Matrix<E>,
    d_scores: Matrix<E>,
    /// Gradients, and their parts through the memory
    d_qk: Matrix<E>,
    d_qk_state: Matrix<E>,
    d_v: Matrix<E>,
    /// Transposes
    k_turned: Matrix<E>,
    v_turned: Matrix<E>,
    state_turned: Matrix<E>,
    /// `Σ_{i ≥ s > j}` over pairs, what rows read of the memory, what they leave in it
    pairs: Vec<f64>,
    reads: Vec<f64>,
    writes: Vec<f64>,
}

impl<E: Real> Backward<E> {
    fn new(sizes: Sizes) -> Self {
        let Sizes { n, p, block, .. } = sizes;
        Self {
            sizes,
            common: Common::new(sizes),
            states: vec![Matrix::new(n, p); SEGMENT.min(sizes.blocks())],
            d_state: Matrix::new(n, p),
            rows: BlockRows {
                q: Matrix::new(block, n),
                dy: Matrix::new(block, p),
                scores: Matrix::new(block, block),
                d_scores: Matrix::new(block, block),
                d_qk: Matrix::new(block, n),
                d_qk_state: Matrix::new(block, n),
                d_v: Matrix::new(block, p),
                k_turned: Matrix::new(n, block),
                v_turned: Matrix::new(p, block),
                state_turned: Matrix::new(p, n),
                pairs: Vec::new(),
                reads: Vec::new(),
                writes: Vec::new(),
            },
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
        let Sizes { t, n, p, .. } = self.sizes;
        read(&mut self.d_state, out, (t, n), p);
        for (segment, kept) in kept.chunks_exact(n * p).enumerate().rev() {
            let first = segment * SEGMENT;
            let last = (first + SEGMENT).min(self.sizes.blocks());
            self.common.state.set_rows(kept);
            for block in first..last {
                self.states[block - first].copy_from(&self.common.state);
                if block + 1 < last {
                    self.read(inputs, head, block);
                    let Common { k, v, state, decay } = &mut self.common;
                    advance(state, k, v, decay);
                }
            }
            for block in (first..last).rev() {
                self.read(inputs, head, block);
                let range = self.sizes.range(block);
                read(&mut self.rows.q, inputs.q.head(head), range, n);
                read(&mut self.rows.dy, out, range, p);
                let state = &self.states[block - first];
                self.rows.block(&mut self.common, state, &mut self.d_state, range.0, &mut to);
            }
        }
        write(&self.d_state, to.memory);
    }

    /// Reads a block's keys, values and decays.
    fn read(&mut self, inputs: &Inputs<'_, E>, head: usize, block: usize) {
        let Common { k, v, decay, .. } = &mut self.common;
        let (first, rows) = self.sizes.range(block);
        read(k, inputs.k.head(head), (first, rows), self.sizes.n);
        read(v, inputs.v.head(head), (first, rows), self.sizes.p);
        decay.set(inputs.log_a.head(head).column(first, rows));
    }
}

impl<E: Real> BlockRows<E> {
    /// Gradients of one block from the memory before it and the gradient of the memory after it, which becomes
    /// that of the memory before. With `M` for the decays between, `P = (Q Kᵀ) ∘ M` and `D = (dY Vᵀ) ∘ M`:
    ///
    /// ```text
    /// dQ = D K + e^G ∘ (dY Sᵀ)           dV = Pᵀ dY + e^{G_m - G} ∘ (K dS)
    /// dK = Dᵀ Q + e^{G_m - G} ∘ (V dSᵀ)  dS ← e^{G_m} dS + Qᵀ (e^G ∘ dY)
    /// ```
    fn block(
        &mut self,
        common: &mut Common<E>,
        state: &Matrix<E>,
        d_state: &mut Matrix<E>,
        first: usize,
        to: &mut HeadGradients<'_, E>,
    ) {
        let Common { k, v, decay, .. } = common;
        let Self { q, dy, scores, d_scores, d_qk, d_qk_state, d_v, k_turned, v_turned, state_turned, .. } =
            self;
        let ([n, p], wanted) = ([k.row(0).len(), v.row(0).len()], to.log_a.is_some());

        k_turned.set_transpose(k);
        scores.set_product(q, k_turned, Part::Lower);
        decay.apply(scores);
        v_turned.set_transpose(v);
        d_scores.set_product(dy, v_turned, Part::Lower);
        if wanted {
            crossings(scores, d_scores, &mut self.pairs);
        }
        decay.apply(d_scores);

        d_v.set_turned_product(scores, dy, Part::LeftLower);
        d_qk.set_product(d_scores, k, Part::LeftLower);
        dy.scale_rows(&decay.from_start);
        state_turned.set_transpose(state);
        d_qk_state.set_product(dy, state_turned, Part::Whole);
        if wanted {
            row_dots(q, d_qk_state, &mut self.reads);
        }
        d_qk.add(d_qk_state);
        write(d_qk, &mut to.q[first * n..]);

        d_qk.set_turned_product(d_scores, q, Part::LeftLower);
        v.scale_rows(&decay.to_end);
        state_turned.set_transpose(d_state);
        d_qk_state.set_product(v, state_turned, Part::Whole);
        if wanted {
            row_dots(k, d_qk_state, &mut self.writes);
        }
        d_qk.add(d_qk_state);
        write(d_qk, &mut to.k[first * n..]);

        k.scale_rows(&decay.to_end);
        d_v.add_product(k, d_state, Part::Whole);
        write(d_v, &mut to.v[first * p..]);

        if let Some(log_a) = &mut to.log_a {
            let through =
                decay.total.to_f64() * state.rows().zip(d_state.rows()).map(|(x, y)| dot(x, y)).sum::<f64>();
            // A token's decay is on the way of all reads from it on, of all writes before it, and of the rest.
            let reads: f64 = self.reads.iter().sum();
            let mut sum = reads + through;
            let out = log_a[first..].iter_mut().zip(&self.pairs).zip(&self.reads).zip(&self.writes);
            for (((out, pairs), read), write) in out {
                *out = E::of(sum + pairs);
                sum += write - read;
            }
        }
        d_state.scale(decay.total);
        d_state.add_turned_product(q, dy, Part::Whole);
    }
}

/// `Σ_{i ≥ s > j} P_{ij} D_{ij}` for every `s`, by sums along the rows: nothing is subtracted, so strong decays lose
/// no digits to the diagonal.
fn crossings<E: Real>(scores: &Matrix<E>, d_scores: &Matrix<E>, out: &mut Vec<f64>) {
    out.clear();
    out.resize(scores.rows().count(), 0.0);
    for (i, (p, d)) in scores.rows().zip(d_scores.rows()).enumerate() {
        // Row i crosses every s in (j, i].
        let mut sum = 0.0;
        for (j, (p, d)) in p[..i].iter().zip(d).enumerate() {
            sum += p.to_f64() * d.to_f64();
            out[j + 1] += sum;
        }
    }
}

/// `x_i · y_i` for every row.
fn row_dots<E: Real>(x: &Matrix<E>, y: &Matrix<E>, out: &mut Vec<f64>) {
    out.clear();
    out.extend(x.rows().zip(y.rows()).map(|(x, y)| dot(x, y)));
}
