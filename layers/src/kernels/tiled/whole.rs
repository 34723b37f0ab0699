//! Mild decays per channel: `e^{G_t - G_s} = e^{G_t} / e^{G_s}`, so that all pairs of a block are one product of queries and
//! keys that have one of both factors each. Single terms lose no digits by that, however large the quotients are.
//!
//! What crosses a token's decay is what crosses the next one's, without what the token wrote and with what it read: a
//! difference of numbers of about the same size, as long as a few tokens forget little of what came before.

use super::channels::{Decays, Early, Scaled};
use super::decay::{Side, SideBack, When};
use super::inputs::Sizes;
use crate::kernels::dense::{Matrix, Part, Real};
use crate::kernels::lanes::{add, add_products, multiply};
use crate::kernels::vector::{Vector, Work, add_scaled, vectorised};

/// Largest sum of a block's logarithms whose quotients are formed; `f32` ends at `e^88`.
pub(super) const MILD: f64 = 32.0;

/// Quotients of a block, and scratch memory; all `[m, n]`.
pub(super) struct Whole<E> {
    /// `e^{-G_t}`
    inverse: Matrix<E>,
    late: Matrix<E>,
    d_late: Matrix<E>,
    d_early: Matrix<E>,
    /// `y_s ∘ dy_s` of all sides
    writes: Matrix<E>,
    /// `[n]`
    row: Vec<E>,
}

impl<E: Vector> Whole<E> {
    pub(super) fn new(sizes: Sizes) -> Self {
        let key = || Matrix::new(sizes.block, sizes.n);
        let row = vec![E::default(); sizes.n];
        Self { inverse: key(), late: key(), d_late: key(), d_early: key(), writes: key(), row }
    }

    /// Makes them for a block of these decays.
    pub(super) fn set(&mut self, Decays { from_start, .. }: &Decays<E>) {
        self.inverse.resize(from_start.rows().count(), from_start.columns());
        vectorised(Inverse(from_start, &mut self.inverse));
    }

    /// As [`Decay::keys`](super::decay::Decay::keys).
    pub(super) fn keys(&self, y: &Matrix<E>, to: &mut Early<E>) {
        to.set(y, &self.inverse, 0, y.rows().count());
    }

    /// Queries with their decay from the start.
    fn set_late(&mut self, when: When, x: &Matrix<E>, from_start: &Matrix<E>) {
        self.late.resize(x.rows().count(), x.columns());
        vectorised(Scaled { x, factors: from_start, first: 0, skip: when.first(), to: &mut self.late });
    }

    /// As [`Decay::scores`](super::decay::Decay::scores).
    pub(super) fn scores<const N: usize>(
        &mut self,
        Decays { from_start, .. }: &Decays<E>,
        when: When,
        x: &Matrix<E>,
        sides: [Side<'_, E, Early<E>>; N],
    ) {
        self.set_late(when, x, from_start);
        for Side { keys, scores, .. } in sides {
            scores.set_product(&self.late, &keys.turned, Part::Lower);
            scores.clear_upper(when == When::After);
        }
    }

    /// As [`Decay::scores_back`](super::decay::Decay::scores_back).
    pub(super) fn back<const N: usize>(
        &mut self,
        Decays { from_start, .. }: &Decays<E>,
        when: When,
        (x, dx): (&Matrix<E>, &mut Matrix<E>),
        sides: [SideBack<'_, E, Early<E>>; N],
        pairs: &mut [E],
    ) {
        self.set_late(when, x, from_start);
        let Self { inverse, late, d_late, d_early, writes, row } = self;
        let (m, n) = (x.rows().count(), x.columns());
        d_late.resize(m, n);
        writes.resize(m, n);
        let wanted = !pairs.is_empty();
        for (side, SideBack { keys, d_scores, dy, .. }) in sides.into_iter().enumerate() {
            d_scores.clear_upper(when == When::After);
            match side {
                0 => d_late.set_product(d_scores, &keys.rows, Part::LeftLower),
                _ => d_late.add_product(d_scores, &keys.rows, Part::LeftLower),
            }
            d_early.set_turned_product(d_scores, late, Part::LeftLower);
            let writes = wanted.then_some((&mut *writes, side == 0));
            vectorised(EarlyBack { early: &keys.rows, d_early, inverse, dy, writes });
        }
        vectorised(LateBack { when, late, d_late, from_start, dx, writes, pairs, row });
    }
}

/// `1 / x`
struct Inverse<'a, E>(&'a Matrix<E>, &'a mut Matrix<E>);

impl<E: Vector> Work for Inverse<'_, E> {
    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let Self(x, to) = self;
        for i in 0..x.rows().count() {
            let (x, to) = (x.row(i), to.row_mut(i));
            let x = &x[..to.len()];
            for c in 0..to.len() {
                to[c] = E::of(1.0) / x[c];
            }
        }
    }
}

/// The way back through the keys: `dy` grows.
struct EarlyBack<'a, E> {
    early: &'a Matrix<E>,
    d_early: &'a Matrix<E>,
    inverse: &'a Matrix<E>,
    dy: &'a mut Matrix<E>,
    /// What is noted if decays have a gradient, and whether this is the first of it
    writes: Option<(&'a mut Matrix<E>, bool)>,
}

impl<E: Real> Work for EarlyBack<'_, E> {
    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let Self { early, d_early, inverse, dy, mut writes } = self;
        for s in 0..d_early.rows().count() {
            add_products::<E, FUSED>(dy.row_mut(s), d_early.row(s), inverse.row(s));
            match &mut writes {
                Some((writes, true)) => multiply(writes.row_mut(s), early.row(s), d_early.row(s)),
                Some((writes, false)) => {
                    add_products::<E, FUSED>(writes.row_mut(s), early.row(s), d_early.row(s));
                }
                None => {}
            }
        }
    }
}

/// The way back through the queries: `dx` grows, and so does what crosses each decay, if that is wanted.
struct LateBack<'a, E> {
    when: When,
    late: &'a Matrix<E>,
    d_late: &'a Matrix<E>,
    from_start: &'a Matrix<E>,
    dx: &'a mut Matrix<E>,
    writes: &'a Matrix<E>,
    pairs: &'a mut [E],
    row: &'a mut [E],
}

impl<E: Real> Work for LateBack<'_, E> {
    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let Self { when, late, d_late, from_start, dx, writes, pairs, row } = self;
        let (m, n) = (late.rows().count(), row.len());
        for t in 0..m {
            match t.checked_sub(when.first()) {
                Some(decay) => add_products::<E, FUSED>(dx.row_mut(t), d_late.row(t), from_start.row(decay)),
                None => add(dx.row_mut(t), d_late.row(t)),
            }
        }
        if pairs.is_empty() {
            return;
        }
        row.fill(E::default());
        // The decay after the one before which something was written last.
        for s in (1..m - when.first()).rev() {
            let read = s + when.first();
            add_products::<E, FUSED>(row, late.row(read), d_late.row(read));
            add_scaled::<E, FUSED, 1>(row, [E::of(-1.0)], [writes.row(s)]);
            add(&mut pairs[s * n..][..n], row);
        }
    }
}
