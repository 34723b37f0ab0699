//! What a column of a memory does with one token, and how it goes back, for the columns of a block of lanes at once.
//!
//! `h` is the column's number in the row whose key is `k`; `given` are what the token brings to the column, and `lanes`
//! what [`Rule::lanes`] makes of that.

use crate::kernels::vector::{LANES, Vector, fused};

/// A number of every column of a block.
pub(super) type Lanes<E> = [E; LANES];

/// How memories change.
pub(super) trait Rule {
    /// Whether `|k|²` matters.
    const NORMED: bool;

    /// What all rows need, with `|k|²`.
    fn lanes<E: Vector, const FUSED: bool>(given: &[Lanes<E>; 2], norm: E) -> [Lanes<E>; 2];

    /// One row forward.
    fn step<E: Vector, const FUSED: bool>(h: &mut Lanes<E>, k: E, lanes: &[Lanes<E>; 2]);

    /// One row back, from `h` before the token: the gradient `g` of the row becomes that before it, `dk` is added to, and so
    /// are sums over rows. Gives `h` after the token.
    fn step_back<E: Vector, const FUSED: bool>(
        h: &Lanes<E>,
        g: &mut Lanes<E>,
        k: E,
        lanes: &[Lanes<E>; 2],
        sums: &mut [Lanes<E>; 2],
        dk: &mut Lanes<E>,
    ) -> Lanes<E>;

    /// Gradients of what is given, from the sums; that of `|k|²` is added to.
    fn gradients<E: Vector, const FUSED: bool>(
        given: &[Lanes<E>; 2],
        norm: E,
        lanes: &[Lanes<E>; 2],
        sums: &[Lanes<E>; 2],
        by_norm: &mut Lanes<E>,
    ) -> [Lanes<E>; 2];
}

/// `h ← (1 - e k²) h + e x k`, `e = β / (1 + β |k|²)`, given `β` and `x`; lanes are `e` and `x`, sums `de` and `g·k`.
pub(super) struct Learner;

impl Rule for Learner {
    const NORMED: bool = true;

    #[inline(always)]
    fn lanes<E: Vector, const FUSED: bool>([beta, x]: &[Lanes<E>; 2], norm: E) -> [Lanes<E>; 2] {
        let mut e = *beta;
        for e in &mut e {
            *e = *e / fused::<E, FUSED>(*e, norm, E::of(1.0));
        }
        [e, *x]
    }

    #[inline(always)]
    fn step<E: Vector, const FUSED: bool>(h: &mut Lanes<E>, k: E, [e, x]: &[Lanes<E>; 2]) {
        for l in 0..LANES {
            let error = fused::<E, FUSED>(-k, h[l], x[l]);
            h[l] = fused::<E, FUSED>(k * e[l], error, h[l]);
        }
    }

    #[inline(always)]
    fn step_back<E: Vector, const FUSED: bool>(
        h: &Lanes<E>,
        g: &mut Lanes<E>,
        k: E,
        [e, x]: &[Lanes<E>; 2],
        [de, sum]: &mut [Lanes<E>; 2],
        dk: &mut Lanes<E>,
    ) -> Lanes<E> {
        let mut after = *h;
        for l in 0..LANES {
            let found = k * h[l];
            let error = x[l] - found;
            after[l] = fused::<E, FUSED>(k * e[l], error, h[l]);
            dk[l] = fused::<E, FUSED>(e[l] * g[l], error - found, dk[l]);
            let along = k * g[l];
            de[l] = fused::<E, FUSED>(along, error, de[l]);
            sum[l] += along;
            g[l] = fused::<E, FUSED>(-(k * e[l]), along, g[l]);
        }
        after
    }

    #[inline(always)]
    fn gradients<E: Vector, const FUSED: bool>(
        [beta, _]: &[Lanes<E>; 2],
        norm: E,
        [e, _]: &[Lanes<E>; 2],
        [de, sum]: &[Lanes<E>; 2],
        by_norm: &mut Lanes<E>,
    ) -> [Lanes<E>; 2] {
        let (mut by_beta, mut by_x) = (*de, *sum);
        for l in 0..LANES {
            let open = E::of(1.0) / fused::<E, FUSED>(beta[l], norm, E::of(1.0));
            by_beta[l] = de[l] * open * open;
            by_x[l] = e[l] * sum[l];
            by_norm[l] = fused::<E, FUSED>(-(e[l] * e[l]), de[l], by_norm[l]);
        }
        [by_beta, by_x]
    }
}

/// `h ← a h + x k`, given `log a` and `x`; lanes are `a` and `x`, sums `da` and `g·k`.
pub(super) struct Fading;

impl Rule for Fading {
    const NORMED: bool = false;

    #[inline(always)]
    fn lanes<E: Vector, const FUSED: bool>([log, x]: &[Lanes<E>; 2], _norm: E) -> [Lanes<E>; 2] {
        let mut a = *log;
        for a in &mut a {
            *a = a.exponential::<FUSED>();
        }
        [a, *x]
    }

    #[inline(always)]
    fn step<E: Vector, const FUSED: bool>(h: &mut Lanes<E>, k: E, [a, x]: &[Lanes<E>; 2]) {
        for l in 0..LANES {
            h[l] = fused::<E, FUSED>(a[l], h[l], k * x[l]);
        }
    }

    #[inline(always)]
    fn step_back<E: Vector, const FUSED: bool>(
        h: &Lanes<E>,
        g: &mut Lanes<E>,
        k: E,
        [a, x]: &[Lanes<E>; 2],
        [da, sum]: &mut [Lanes<E>; 2],
        dk: &mut Lanes<E>,
    ) -> Lanes<E> {
        let mut after = *h;
        for l in 0..LANES {
            after[l] = fused::<E, FUSED>(a[l], h[l], k * x[l]);
            dk[l] = fused::<E, FUSED>(g[l], x[l], dk[l]);
            da[l] = fused::<E, FUSED>(g[l], h[l], da[l]);
            sum[l] = fused::<E, FUSED>(g[l], k, sum[l]);
            g[l] *= a[l];
        }
        after
    }

    #[inline(always)]
    fn gradients<E: Vector, const FUSED: bool>(
        _given: &[Lanes<E>; 2],
        _norm: E,
        [a, _]: &[Lanes<E>; 2],
        [da, sum]: &[Lanes<E>; 2],
        _by_norm: &mut Lanes<E>,
    ) -> [Lanes<E>; 2] {
        let mut by_log = *da;
        for l in 0..LANES {
            by_log[l] *= a[l];
        }
        [by_log, *sum]
    }
}
