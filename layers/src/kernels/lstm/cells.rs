//! The arithmetic of the kernel on slices: some rows of the batch at a time, token after token.

use rayon::prelude::*;

use super::together::{self, members};
use crate::kernels::lanes::add;
use crate::kernels::rows::{Panels, TALL, add_product};
use crate::kernels::vector::{Vector, fused, sigmoid, vectors};
use crate::kernels::view::View;

/// Units that are computed together.
const LANES: usize = 16;

/// What both passes read.
#[derive(Debug)]
pub(super) struct Inputs<'a, E> {
    /// `[1, 1, n, 4 n]`
    pub(super) weight: View<'a, E>,
    /// `h` and `c`: `[b, 1, 1, n]`
    start: [View<'a, E>; 2],
    /// `[4 n]`
    pub(super) bias: Option<Vec<E>>,
    /// Tokens of each row, if not all
    lengths: Option<Vec<usize>>,
    reversed: bool,
    pub(super) time: usize,
}

impl<'a, E: Vector> Inputs<'a, E> {
    pub(super) fn new(
        weight: View<'a, E>,
        start: [View<'a, E>; 2],
        bias: Option<View<'_, E>>,
        lengths: Option<View<'_, E>>,
        reversed: bool,
        time: usize,
    ) -> Self {
        let lengths = lengths.map(|lengths| {
            let length = |row| {
                let mut length = [E::default()];
                lengths.head(row).copy(0, 0, &mut length);
                length[0].to_f64() as usize
            };
            (0..lengths.dims[0]).map(length).collect()
        });
        let bias = bias.map(|bias| {
            let mut numbers = vec![E::default(); bias.dims[3]];
            bias.head(0).copy(0, 0, &mut numbers);
            numbers
        });
        Self { weight, start, bias, lengths, reversed, time }
    }

    /// `[b, n]`
    pub(super) fn sizes(&self) -> [usize; 2] {
        let [b, .., n] = self.start[0].dims;
        [b, n]
    }

    /// The token read at `step`.
    pub(super) fn token(&self, step: usize) -> usize {
        if self.reversed { self.time - 1 - step } else { step }
    }

    /// Whether row `row` has token `t`.
    pub(super) fn has(&self, row: usize, t: usize) -> bool {
        self.lengths.as_ref().is_none_or(|lengths| t < lengths[row])
    }

    /// `h` or `c` of some rows at the start, contiguous.
    pub(super) fn starts(&self, part: usize, first: usize, count: usize) -> Vec<E> {
        let [_, n] = self.sizes();
        let mut rows = vec![E::default(); count * n];
        for (i, row) in rows.chunks_exact_mut(n).enumerate() {
            self.start[part].head(first + i).copy(0, 0, row);
        }
        rows
    }

    /// Rows of a job: a share for every thread, in whole register tiles where there are enough.
    fn share(&self) -> usize {
        let [b, _] = self.sizes();
        let share = b.div_ceil(rayon::current_num_threads());
        if share > TALL { share.next_multiple_of(TALL) } else { share }
    }
}

/// Some rows of the batch: where a job writes its results.
struct Rows<'a, E> {
    first: usize,
    h: Vec<&'a mut [E]>,
    c: Vec<&'a mut [E]>,
    gates: Vec<&'a mut [E]>,
}

/// Fills `states: [2, b, t, n]`, and `gates: [b, t, 4 n]` with what the gates came to, where they are to be kept.
pub(super) fn forward<E: Vector>(
    inputs: &Inputs<'_, E>,
    p: View<'_, E>,
    states: &mut [E],
    gates: Option<&mut [E]>,
) {
    let [b, n] = inputs.sizes();
    let size = inputs.time * n;
    let (h, c) = states.split_at_mut(b * size);
    if let Some(members) = members(b, n, inputs.time) {
        return together::forward(inputs, p, members, [h, c], gates);
    }
    let (mut h, mut c) = (h.chunks_exact_mut(size), c.chunks_exact_mut(size));
    let mut gates = gates.map(|gates| gates.chunks_exact_mut(4 * size));
    let share = inputs.share();
    let jobs: Vec<_> = (0..b)
        .step_by(share)
        .map(|first| Rows {
            first,
            h: h.by_ref().take(share).collect(),
            c: c.by_ref().take(share).collect(),
            gates: gates.as_mut().map_or_else(Vec::new, |gates| gates.take(share).collect()),
        })
        .collect();
    let weight = Panels::new(inputs.weight, inputs.time);
    jobs.into_par_iter().for_each(|rows| read(inputs, p, &weight, rows));
}

vectors! {
    fn read = read_tokens(inputs: &Inputs<'_, E>, p: View<'_, E>, weight: &Panels<'_, E>, rows: Rows<'_, E>)
}

#[inline(always)]
fn read_tokens<E: Vector, const FUSED: bool>(
    inputs: &Inputs<'_, E>,
    p: View<'_, E>,
    weight: &Panels<'_, E>,
    mut rows: Rows<'_, E>,
) {
    let ([_, n], count) = (inputs.sizes(), rows.h.len());
    let [mut h, mut c] = [0, 1].map(|part| inputs.starts(part, rows.first, count));
    let (mut gates, mut space) = (vec![E::default(); count * 4 * n], vec![E::default(); 4 * n]);
    let mut side_by_side = Vec::new();
    for step in 0..inputs.time {
        let t = inputs.token(step);
        for (i, gates) in gates.chunks_exact_mut(4 * n).enumerate() {
            gates.copy_from_slice(p.head(rows.first + i).some(t, 0, 4 * n, &mut space));
            if let Some(bias) = &inputs.bias {
                add(gates, bias);
            }
        }
        add_product::<E, FUSED>(&h, weight, &mut gates, &mut side_by_side);
        let cells = h.chunks_exact_mut(n).zip(c.chunks_exact_mut(n)).zip(gates.chunks_exact_mut(4 * n));
        for (i, ((h, c), gates)) in cells.enumerate() {
            if inputs.has(rows.first + i, t) {
                update::<E, FUSED>(gates, h, c);
            }
            rows.h[i][t * n..][..n].copy_from_slice(h);
            rows.c[i][t * n..][..n].copy_from_slice(c);
            if let Some(kept) = rows.gates.get_mut(i) {
                kept[t * 4 * n..][..4 * n].copy_from_slice(gates);
            }
        }
    }
}

/// One token of one row; the gates become what their functions make of them.
#[inline(always)]
pub(super) fn update<E: Vector, const FUSED: bool>(gates: &mut [E], h: &mut [E], c: &mut [E]) {
    let (n, mut at) = (h.len(), 0);
    while at + LANES <= n {
        update_units::<E, FUSED, LANES>(gates, h, c, at);
        at += LANES;
    }
    while at < n {
        update_units::<E, FUSED, 1>(gates, h, c, at);
        at += 1;
    }
}

/// `W` units from unit `at` on, read before any is written: where slices might overlap, the compiler would run them unit
/// by unit.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "fixed bounds, so that each block is a register")]
fn update_units<E: Vector, const FUSED: bool, const W: usize>(
    gates: &mut [E],
    h: &mut [E],
    c: &mut [E],
    at: usize,
) {
    let n = h.len();
    let [mut i, mut f, mut g, mut o] = blocks::<E, W>(gates, n, at);
    let (mut out, mut cell) = ([E::default(); W], *part::<E, W>(c, at));
    for j in 0..W {
        i[j] = sigmoid::<E, FUSED>(i[j]);
        f[j] = sigmoid::<E, FUSED>(f[j]);
        g[j] = g[j].bounded::<FUSED>();
        o[j] = sigmoid::<E, FUSED>(o[j]);
        cell[j] = fused::<E, FUSED>(f[j], cell[j], i[j] * g[j]);
        out[j] = o[j] * cell[j].bounded::<FUSED>();
    }
    put_blocks(gates, n, at, [i, f, g, o]);
    h[at..at + W].copy_from_slice(&out);
    c[at..at + W].copy_from_slice(&cell);
}

/// `W` numbers from `at` on.
#[inline(always)]
fn part<E, const W: usize>(x: &[E], at: usize) -> &[E; W] {
    x[at..].first_chunk().expect("as many as there are units")
}

/// Units `at..at + W` of the four gates of `n` units.
#[inline(always)]
fn blocks<E: Vector, const W: usize>(gates: &[E], n: usize, at: usize) -> [[E; W]; 4] {
    [*part(gates, at), *part(gates, n + at), *part(gates, 2 * n + at), *part(gates, 3 * n + at)]
}

/// Writes units `at..at + W` of the four gates of `n` units.
#[inline(always)]
fn put_blocks<E: Vector, const W: usize>(gates: &mut [E], n: usize, at: usize, found: [[E; W]; 4]) {
    for (k, found) in found.iter().enumerate() {
        gates[k * n + at..][..W].copy_from_slice(found);
    }
}

/// Gradients, contiguous.
#[derive(Debug)]
pub(super) struct Gradients<E> {
    /// `[b, t, 4 n]`
    pub(super) p: Vec<E>,
    /// `[b, n]`
    pub(super) h: Vec<E>,
    /// `[b, n]`
    pub(super) c: Vec<E>,
}

impl<E: Vector> Gradients<E> {
    pub(super) fn filled(inputs: &Inputs<'_, E>, with: E) -> Self {
        let [b, n] = inputs.sizes();
        Self { p: vec![with; b * inputs.time * 4 * n], h: vec![with; b * n], c: vec![with; b * n] }
    }
}

/// Where a job writes the gradients of its rows.
struct RowsBack<'a, E> {
    first: usize,
    p: &'a mut [E],
    h: &'a mut [E],
    c: &'a mut [E],
}

/// Fills `to` with the gradients for `dy`, that of `states: [2, b, t, n]`; `gates: [b, 1, t, 4 n]` are those kept.
pub(super) fn backward<E: Vector>(
    inputs: &Inputs<'_, E>,
    gates: View<'_, E>,
    states: View<'_, E>,
    dy: View<'_, E>,
    to: &mut Gradients<E>,
) {
    let [b, n] = inputs.sizes();
    if let Some(members) = members(b, n, inputs.time) {
        return together::backward(inputs, gates, [states, dy], members, to);
    }
    let share = inputs.share();
    let (h, c) = (to.h.chunks_mut(share * n), to.c.chunks_mut(share * n));
    let jobs: Vec<_> = to.p.chunks_mut(share * inputs.time * 4 * n).zip(h.zip(c)).enumerate().collect();
    let weight = Panels::turned(inputs.weight);
    jobs.into_par_iter().for_each(|(job, (p, (h, c)))| {
        let rows = RowsBack { first: job * share, p, h, c };
        read_back(inputs, gates, [states, dy], &weight, rows);
    });
}

vectors! {
    fn read_back = read_tokens_back(
        inputs: &Inputs<'_, E>,
        gates: View<'_, E>,
        states: [View<'_, E>; 2],
        weight: &Panels<'_, E>,
        rows: RowsBack<'_, E>,
    )
}

#[inline(always)]
fn read_tokens_back<E: Vector, const FUSED: bool>(
    inputs: &Inputs<'_, E>,
    gates: View<'_, E>,
    [states, dy]: [View<'_, E>; 2],
    weight: &Panels<'_, E>,
    rows: RowsBack<'_, E>,
) {
    let [b, n] = inputs.sizes();
    let RowsBack { first, p, h: dh, c: dc } = rows;
    let (count, time) = (dh.len() / n, inputs.time);
    let start = inputs.starts(1, first, count);
    dh.fill(E::default());
    dc.fill(E::default());
    let mut d_gates = vec![E::default(); count * 4 * n];
    let mut side_by_side = Vec::new();
    let mut spaces = vec![E::default(); 5 * 4 * n];
    let mut spaces = spaces.chunks_exact_mut(4 * n);
    let mut space = || spaces.next().expect("one for each row that is read");
    let [gates_space, c_space, before_space, dh_space, dc_space] =
        [space(), space(), space(), space(), space()];
    for step in (0..time).rev() {
        let t = inputs.token(step);
        for i in 0..count {
            let row = first + i;
            let (dh, dc) = (&mut dh[i * n..][..n], &mut dc[i * n..][..n]);
            add(dh, dy.head(row).some(t, 0, n, dh_space));
            add(dc, dy.head(b + row).some(t, 0, n, dc_space));
            let d_gates = &mut d_gates[i * 4 * n..][..4 * n];
            if !inputs.has(row, t) {
                d_gates.fill(E::default());
            } else {
                let cells = states.head(b + row);
                let before = match step.checked_sub(1) {
                    Some(before) => cells.some(inputs.token(before), 0, n, before_space),
                    None => &start[i * n..][..n],
                };
                let gates = gates.head(row).some(t, 0, 4 * n, gates_space);
                update_back::<E, FUSED>(gates, [cells.some(t, 0, n, c_space), before], dh, dc, d_gates);
                // The product below adds to it what came through the gates.
                dh.fill(E::default());
            }
            p[(i * time + t) * 4 * n..][..4 * n].copy_from_slice(d_gates);
        }
        add_product::<E, FUSED>(&d_gates, weight, dh, &mut side_by_side);
    }
}

/// One token of one row back: fills `d_gates`, and makes `dc` that of the cells before.
#[inline(always)]
pub(super) fn update_back<E: Vector, const FUSED: bool>(
    gates: &[E],
    cells: [&[E]; 2],
    dh: &[E],
    dc: &mut [E],
    d_gates: &mut [E],
) {
    let (n, mut at) = (dc.len(), 0);
    while at + LANES <= n {
        update_units_back::<E, FUSED, LANES>(gates, cells, dh, dc, d_gates, at);
        at += LANES;
    }
    while at < n {
        update_units_back::<E, FUSED, 1>(gates, cells, dh, dc, d_gates, at);
        at += 1;
    }
}

/// The same for `W` units from unit `at` on, as [`update_units`].
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "fixed bounds, so that each block is a register")]
fn update_units_back<E: Vector, const FUSED: bool, const W: usize>(
    gates: &[E],
    [c, before]: [&[E]; 2],
    dh: &[E],
    dc: &mut [E],
    d_gates: &mut [E],
    at: usize,
) {
    let (n, one) = (dc.len(), E::of(1.0));
    let [i, f, g, o] = blocks::<E, W>(gates, n, at);
    let (c, before) = (*part::<E, W>(c, at), *part::<E, W>(before, at));
    let (dh, mut d_cell) = (*part::<E, W>(dh, at), *part::<E, W>(dc, at));
    let [mut di, mut df, mut dg, mut d_o] = [[E::default(); W]; 4];
    for j in 0..W {
        let bounded = c[j].bounded::<FUSED>();
        let through = fused::<E, FUSED>(dh[j] * o[j], one - bounded * bounded, d_cell[j]);
        di[j] = through * g[j] * i[j] * (one - i[j]);
        df[j] = through * before[j] * f[j] * (one - f[j]);
        dg[j] = through * i[j] * (one - g[j] * g[j]);
        d_o[j] = dh[j] * bounded * o[j] * (one - o[j]);
        d_cell[j] = through * f[j];
    }
    put_blocks(d_gates, n, at, [di, df, dg, d_o]);
    dc[at..at + W].copy_from_slice(&d_cell);
}
