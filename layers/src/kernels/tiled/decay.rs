//! What decays inside a block do to scores, to reads and writes of the memory, and to their own gradient.

use super::inputs::Sizes;
use crate::kernels::dense::{Matrix, Part, Real};
use crate::kernels::lanes::scale;
use crate::kernels::vector::{self, Work, fused, vectorised};
use crate::kernels::view::Head;

/// Whether a token sees its own decay and what it wrote itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum When {
    /// A query: `e^{G_t - G_s}` for `s ≤ t`.
    After,
    /// What is read before writing: `e^{G_{t-1} - G_s}` for `s < t`.
    Before,
}

impl When {
    /// The first token that sees anything of the block.
    pub(super) fn first(self) -> usize {
        usize::from(self == Self::Before)
    }
}

/// Keys in the form that scores need, and what was found or is wanted for them.
pub(super) struct Side<'a, E, K> {
    /// `y: [m, n]`
    pub(super) y: &'a Matrix<E>,
    pub(super) keys: &'a K,
    /// `A: [m, m]` with `A_ts = Σ_n x_t[n] y_s[n] e^{G_t - G_s}[n]`, 0 where nothing is seen
    pub(super) scores: &'a mut Matrix<E>,
}

/// A [`Side`] on the way back.
pub(super) struct SideBack<'a, E, K> {
    pub(super) y: &'a Matrix<E>,
    pub(super) keys: &'a K,
    pub(super) scores: &'a Matrix<E>,
    /// The gradient of `A` where `A` is not 0; undefined elsewhere, and in the end everywhere
    pub(super) d_scores: &'a mut Matrix<E>,
    /// The gradient of `y` grows by its part
    pub(super) dy: &'a mut Matrix<E>,
}

impl<'a, E, K> Side<'a, E, K> {
    /// The same with a part of the keys.
    pub(super) fn with<L>(self, part: impl FnOnce(&'a K) -> &'a L) -> Side<'a, E, L> {
        let Self { y, keys, scores } = self;
        Side { y, keys: part(keys), scores }
    }
}

impl<'a, E, K> SideBack<'a, E, K> {
    /// The same with a part of the keys.
    pub(super) fn with<L>(self, part: impl FnOnce(&'a K) -> &'a L) -> SideBack<'a, E, L> {
        let Self { y, keys, scores, d_scores, dy } = self;
        SideBack { y, keys: part(keys), scores, d_scores, dy }
    }
}

/// Decays inside a block, `G_i = Σ_{s ≤ i} log d_s`, one per head or one per channel. Only `e` to non-positive numbers
/// is formed where they may be strong: there is no difference of sums to cancel, and no quotient to overflow.
pub(super) trait Decay<E: Real> {
    /// Keys in the form that scores need.
    type Keys;

    fn new(sizes: Sizes) -> Self;

    fn new_keys(sizes: Sizes) -> Self::Keys;

    /// Makes them for a block of these logarithms.
    fn set(&mut self, log: Head<'_, E>, range: (usize, usize));

    fn keys(&self, y: &Matrix<E>, to: &mut Self::Keys);

    /// Scores of `x: [m, n]` against some keys.
    fn scores<const N: usize>(&mut self, when: When, x: &Matrix<E>, sides: [Side<'_, E, Self::Keys>; N]);

    /// The way back from scores to both factors and the decays.
    fn scores_back<const N: usize>(
        &mut self,
        when: When,
        x: &Matrix<E>,
        dx: &mut Matrix<E>,
        sides: [SideBack<'_, E, Self::Keys>; N],
        ledger: &mut Ledger<E>,
    );

    /// `x_t ∘ e^{G_t}`, or `e^{G_{t-1}}`
    fn since_start(&self, when: When, x: &mut Matrix<E>);

    /// `y_t ∘ e^{G_m - G_t}`
    fn to_end(&self, y: &mut Matrix<E>);

    /// `e^{G_m} ∘ S`
    fn total(&self, state: &mut Matrix<E>);

    /// `x` was read with the decay from the start on, and `dx` is its gradient's part through the memory.
    fn note_reads(&self, when: When, x: &Matrix<E>, dx: &Matrix<E>, ledger: &mut Ledger<E>);

    /// `y` was written with the decay to the end, and `dy` is its gradient's part through the memory.
    fn note_writes(&self, y: &Matrix<E>, dy: &Matrix<E>, ledger: &mut Ledger<E>);

    /// The memory went through, and `d_state` is the gradient of the memory after.
    fn note_memory(&self, state: &Matrix<E>, d_state: &Matrix<E>, ledger: &mut Ledger<E>);
}

/// Adds up the gradient of a block's decays. Token `s`'s is on the way of all reads of the memory from it on, of all
/// writes before it, of scores across it, and of the rest of the memory. Nothing is subtracted where they may be strong, so
/// that they lose no digits to what they do not touch.
#[derive(Debug, Default)]
pub(super) struct Ledger<E> {
    /// Numbers per token; 0 if no gradient is wanted.
    width: usize,
    /// `[m, width]`: of scores across a token, of reads at it, of writes at it. What is read before writing crosses the
    /// decays before its own, so it belongs to the token before.
    pub(super) pairs: Vec<E>,
    pub(super) reads: Vec<E>,
    pub(super) writes: Vec<E>,
    /// `[width]`
    pub(super) memory: Vec<E>,
}

impl<E: Real> Ledger<E> {
    /// Starts a block of `m` tokens.
    pub(super) fn clear(&mut self, wanted: bool, m: usize, width: usize) {
        self.width = if wanted { width } else { 0 };
        for (numbers, rows) in
            [(&mut self.pairs, m), (&mut self.reads, m), (&mut self.writes, m), (&mut self.memory, 1)]
        {
            numbers.clear();
            numbers.resize(rows * self.width, E::default());
        }
    }

    pub(super) fn wanted(&self) -> bool {
        self.width > 0
    }

    /// The gradient's rows, `[m, width]`.
    pub(super) fn finish(&mut self) -> impl Iterator<Item = &[E]> {
        let Self { width, pairs, reads, writes, memory } = self;
        let width = *width;
        for t in (1..reads.len() / width).rev() {
            let (before, later) = reads.split_at_mut(t * width);
            before[(t - 1) * width..].iter_mut().zip(later).for_each(|(x, y)| *x += *y);
        }
        let rows = reads.chunks_exact(width).zip(writes.chunks_exact(width));
        for (pairs, (reads, writes)) in pairs.chunks_exact_mut(width).zip(rows) {
            for i in 0..width {
                pairs[i] = pairs[i] + reads[i] + memory[i];
                memory[i] += writes[i];
            }
        }
        pairs.chunks_exact(width)
    }
}

/// One decay per head. Made in `f64`.
pub(super) struct HeadDecay<E> {
    /// The logarithms it was made from: a constant decay makes it once.
    log: Vec<f64>,
    next: Vec<f64>,
    row: Vec<f64>,
    /// `e^{G_i - G_j}` for `j ≤ i`
    between: Matrix<E>,
    /// `e^{G_i}`
    from_start: Vec<E>,
    /// `e^{G_m - G_i}`
    to_end: Vec<E>,
    /// `e^{G_m}`
    total: E,
    columns: Vec<E>,
}

impl<E: Real> Decay<E> for HeadDecay<E> {
    /// Transposed.
    type Keys = Matrix<E>;

    fn new(sizes: Sizes) -> Self {
        Self {
            log: Vec::new(),
            next: Vec::new(),
            row: Vec::new(),
            between: Matrix::new(sizes.block, sizes.block),
            from_start: Vec::new(),
            to_end: Vec::new(),
            total: E::of(1.0),
            columns: Vec::new(),
        }
    }

    fn new_keys(sizes: Sizes) -> Matrix<E> {
        Matrix::new(sizes.n, sizes.block)
    }

    fn set(&mut self, log: Head<'_, E>, range: (usize, usize)) {
        self.next.clear();
        self.next.extend(log.column(range.0, range.1));
        if self.next == self.log {
            return;
        }
        std::mem::swap(&mut self.log, &mut self.next);
        let m = self.log.len();
        self.between.resize(m, m);
        self.row.clear();
        self.row.resize(m, 0.0);
        self.from_start.clear();
        self.from_start.resize(m, E::default());
        let Self { log, row, between, from_start, .. } = self;
        vectorised(Between { log, row, between, from_start });
        self.to_end.clear();
        self.to_end.extend(self.row.iter().map(|&x| E::of(x)));
        self.total = self.from_start.last().copied().unwrap_or(E::of(1.0));
    }

    fn keys(&self, y: &Matrix<E>, to: &mut Matrix<E>) {
        to.set_transpose(y);
    }

    fn scores<const N: usize>(&mut self, when: When, x: &Matrix<E>, sides: [Side<'_, E, Matrix<E>>; N]) {
        for Side { keys, scores, .. } in sides {
            scores.set_product(x, keys, Part::Lower);
            scores.multiply_lower(&self.between, when == When::After);
        }
    }

    fn scores_back<const N: usize>(
        &mut self,
        when: When,
        x: &Matrix<E>,
        dx: &mut Matrix<E>,
        sides: [SideBack<'_, E, Matrix<E>>; N],
        ledger: &mut Ledger<E>,
    ) {
        for SideBack { y, scores, d_scores, dy, .. } in sides {
            if ledger.wanted() {
                let columns = &mut self.columns;
                columns.clear();
                columns.resize(d_scores.row(0).len(), E::default());
                vectorised(Crossings { when, scores, d_scores, columns, out: &mut ledger.pairs });
            }
            d_scores.multiply_lower(&self.between, when == When::After);
            dx.add_product(d_scores, y, Part::LeftLower);
            dy.add_turned_product(d_scores, x, Part::LeftLower);
        }
    }

    fn since_start(&self, when: When, x: &mut Matrix<E>) {
        x.scale_rows(when.first(), &self.from_start);
    }

    fn to_end(&self, y: &mut Matrix<E>) {
        y.scale_rows(0, &self.to_end);
    }

    fn total(&self, state: &mut Matrix<E>) {
        state.scale(self.total);
    }

    fn note_reads(&self, when: When, x: &Matrix<E>, dx: &Matrix<E>, ledger: &mut Ledger<E>) {
        x.add_row_dots(dx, when.first(), &mut ledger.reads);
    }

    fn note_writes(&self, y: &Matrix<E>, dy: &Matrix<E>, ledger: &mut Ledger<E>) {
        y.add_row_dots(dy, 0, &mut ledger.writes);
    }

    fn note_memory(&self, state: &Matrix<E>, d_state: &Matrix<E>, ledger: &mut Ledger<E>) {
        ledger.memory[0] = E::of(self.total.to_f64() * state.dot(d_state));
    }
}

/// Products of decays: from every token to every later one, a row at a time, and from the start.
struct Between<'a, E> {
    log: &'a [f64],
    /// The last row, in full precision
    row: &'a mut [f64],
    between: &'a mut Matrix<E>,
    from_start: &'a mut [E],
}

impl<E: Real> Work for Between<'_, E> {
    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let Self { log, row, between, from_start } = self;
        let mut total = 1.0;
        for (i, log) in log.iter().enumerate() {
            let decay = log.exp();
            total *= decay;
            from_start[i] = E::of(total);
            let (row, out) = (&mut row[..=i], &mut between.row_mut(i)[..=i]);
            scale(&mut row[..i], decay);
            row[i] = 1.0;
            for (out, &x) in out.iter_mut().zip(&*row) {
                *out = E::of(x);
            }
        }
    }
}

/// `Σ_{i ≥ s > j} P_ij D_ij` for every `s`, or of `i - 1` where that is what counts.
struct Crossings<'a, E> {
    when: When,
    scores: &'a Matrix<E>,
    d_scores: &'a Matrix<E>,
    /// By column, of the rows so far: 0 at first.
    columns: &'a mut [E],
    out: &'a mut [E],
}

impl<E: Real> Work for Crossings<'_, E> {
    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let Self { when, scores, d_scores, columns, out } = self;
        for s in (1..columns.len()).rev() {
            if when == When::Before {
                out[s] += vector::sum(&columns[..s]);
            }
            let (p, d, columns) = (&scores.row(s)[..s], &d_scores.row(s)[..s], &mut columns[..s]);
            for j in 0..s {
                columns[j] = fused::<E, FUSED>(p[j], d[j], columns[j]);
            }
            if when == When::After {
                out[s] += vector::sum(columns);
            }
        }
    }
}
