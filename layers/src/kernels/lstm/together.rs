//! The passes for one row by several threads: each has the columns of the weights that are its units'.

use std::ops::Range;

use rayon::prelude::*;

use super::cells::{Gradients, Inputs, update, update_back};
use super::team::{self, Recurrence};
use crate::kernels::lanes::add;
use crate::kernels::rows::{PANEL, Panels, add_one};
use crate::kernels::vector::Vector;
use crate::kernels::view::{Head, View};

/// Tokens from which on threads read a row together.
const LONG: usize = 32;

/// Threads at most: each more waits for one more at every token.
const MOST: usize = 8;

/// The units of each thread, whole panels, where several share each of `rows` of `n` units and `time` tokens.
#[inline]
pub(super) fn members(rows: usize, n: usize, time: usize) -> Option<Vec<Range<usize>>> {
    // Known where this is compiled, so that nothing of it is in what a browser loads.
    if cfg!(target_family = "wasm") {
        return None;
    }
    let panels = n.div_ceil(PANEL);
    let count = (rayon::current_num_threads() / rows.max(1)).min(panels).min(MOST);
    let end = |member: usize| n.min(panels * member / count * PANEL);
    (count > 1 && time >= LONG).then(|| (0..count).map(|member| end(member)..end(member + 1)).collect())
}

/// [`cells::forward`](super::cells::forward) for fewer rows than threads.
pub(super) fn forward<E: Vector>(
    inputs: &Inputs<'_, E>,
    p: View<'_, E>,
    members: Vec<Range<usize>>,
    [h, c]: [&mut [E]; 2],
    gates: Option<&mut [E]>,
) {
    let ([b, n], kept) = (inputs.sizes(), gates.is_some());
    let size = inputs.time * n;
    let weight = Columns::new(members, inputs.weight);
    let mut gates = gates.map(|gates| gates.chunks_exact_mut(4 * size));
    let rows = h.chunks_exact_mut(size).zip(c.chunks_exact_mut(size)).enumerate();
    let jobs: Vec<_> =
        rows.map(|(row, states)| (row, states, gates.as_mut().and_then(Iterator::next))).collect();
    debug_assert_eq!(jobs.len(), b);
    jobs.into_par_iter().for_each(|(row, (h, c), mut gates)| {
        let pass = Forward { inputs, row, p: p.head(row), weight: &weight, kept };
        let mut all = [inputs.starts(0, row, 1), inputs.starts(1, row, 1)].concat();
        all.resize(if kept { 6 * n } else { 2 * n }, E::default());
        team::run(&pass, &mut all, |step, all| {
            let t = inputs.token(step);
            h[t * n..][..n].copy_from_slice(&all[..n]);
            c[t * n..][..n].copy_from_slice(&all[n..2 * n]);
            if let Some(gates) = &mut gates {
                gates[t * 4 * n..][..4 * n].copy_from_slice(&all[2 * n..]);
            }
        });
    });
}

/// [`cells::backward`](super::cells::backward) for fewer rows than threads.
pub(super) fn backward<E: Vector>(
    inputs: &Inputs<'_, E>,
    gates: View<'_, E>,
    [states, dy]: [View<'_, E>; 2],
    members: Vec<Range<usize>>,
    to: &mut Gradients<E>,
) {
    let [b, n] = inputs.sizes();
    let weight = Columns::turned(members, inputs.weight);
    let rows = to.p.chunks_exact_mut(inputs.time * 4 * n).zip(to.h.chunks_exact_mut(n));
    let jobs: Vec<_> = rows.zip(to.c.chunks_exact_mut(n)).enumerate().collect();
    jobs.into_par_iter().for_each(|(row, ((p, dh), dc))| {
        let pass = Backward {
            inputs,
            row,
            gates: gates.head(row),
            cells: states.head(b + row),
            outside: [dy.head(row), dy.head(b + row)],
            start: &inputs.starts(1, row, 1),
            weight: &weight,
        };
        let mut all = vec![E::default(); 6 * n];
        team::run(&pass, &mut all, |step, all| {
            let t = inputs.token(inputs.time - 1 - step);
            p[t * 4 * n..][..4 * n].copy_from_slice(&all[..4 * n]);
        });
        pass.first(&all, dh);
        dc.copy_from_slice(&all[5 * n..]);
    });
}

/// A row's pass over the tokens. Blocks: `h`, `c` and the four gates.
struct Forward<'a, 'b, E: Clone> {
    inputs: &'b Inputs<'a, E>,
    row: usize,
    p: Head<'a, E>,
    weight: &'b Columns<'b, E>,
    /// Somebody wants to know the gates
    kept: bool,
}

/// What a thread multiplies with, for each of its parts.
#[derive(Debug)]
struct Columns<'a, E: Clone> {
    members: Vec<Range<usize>>,
    /// Of each member, for the gates one after the other
    panels: Vec<Vec<Panels<'a, E>>>,
}

impl<E: Vector> Columns<'_, E> {
    /// Of `weight: [1, 1, n, 4 n]`.
    fn new(members: Vec<Range<usize>>, weight: View<'_, E>) -> Self {
        let [.., n, _] = weight.dims;
        let gate = |units: &Range<usize>, k: usize| {
            Panels::laid_out(weight.head(0), n, k * n + units.start..k * n + units.end)
        };
        let panels = members.iter().map(|units| (0..4).map(|k| gate(units, k)).collect()).collect();
        Self { members, panels }
    }

    /// Of its transpose.
    fn turned(members: Vec<Range<usize>>, weight: View<'_, E>) -> Self {
        let [.., n, _] = weight.dims;
        let of = |units: &Range<usize>| vec![Panels::laid_out(weight.head(0).turned(), 4 * n, units.clone())];
        let panels = members.iter().map(of).collect();
        Self { members, panels }
    }
}

impl<E: Vector> Recurrence<E> for Forward<'_, '_, E> {
    const READ: usize = 1;
    const BLOCKS: usize = 6;

    fn told(&self) -> usize {
        if self.kept { 6 } else { 2 }
    }

    fn steps(&self) -> usize {
        self.inputs.time
    }

    fn units(&self) -> usize {
        self.inputs.sizes()[1]
    }

    fn members(&self) -> &[Range<usize>] {
        &self.weight.members
    }

    #[inline(always)]
    fn advance<const FUSED: bool>(&self, step: usize, member: usize, all: &[E], new: &mut [E]) {
        let (n, Range { start, end }) = (self.units(), self.weight.members[member].clone());
        let (t, count) = (self.inputs.token(step), end - start);
        let (h, rest) = new.split_at_mut(count);
        let (c, gates) = rest.split_at_mut(count);
        h.copy_from_slice(&all[start..end]);
        c.copy_from_slice(&all[n + start..n + end]);
        for (k, panels) in self.weight.panels[member].iter().enumerate() {
            let gate = &mut gates[k * count..][..count];
            self.p.copy(t, k * n + start, gate);
            if let Some(bias) = &self.inputs.bias {
                add(gate, &bias[k * n + start..]);
            }
            add_one::<E, FUSED>(&all[..n], panels, gate);
        }
        if self.inputs.has(self.row, t) {
            update::<E, FUSED>(gates, h, c);
        }
    }
}

/// A row's pass back. Blocks: the gates' gradients, those of `h` that did not go through them and those of `c`; then the
/// gates, the cells, those before and what comes from outside, for a thread's own use.
struct Backward<'a, 'b, E: Clone> {
    inputs: &'b Inputs<'a, E>,
    row: usize,
    gates: Head<'a, E>,
    cells: Head<'a, E>,
    /// Of `h` and `c`
    outside: [Head<'a, E>; 2],
    /// `c` before the first token
    start: &'b [E],
    weight: &'b Columns<'b, E>,
}

impl<E: Vector> Backward<'_, '_, E> {
    /// The gradient of `h` before the first token, from all that is known at the end.
    fn first(&self, all: &[E], dh: &mut [E]) {
        let n = self.units();
        dh.copy_from_slice(&all[4 * n..5 * n]);
        for (units, panels) in self.weight.members.iter().zip(&self.weight.panels) {
            add_one::<E, false>(&all[..4 * n], &panels[0], &mut dh[units.clone()]);
        }
    }
}

impl<E: Vector> Recurrence<E> for Backward<'_, '_, E> {
    const READ: usize = 4;
    const BLOCKS: usize = 13;

    fn told(&self) -> usize {
        6
    }

    fn steps(&self) -> usize {
        self.inputs.time
    }

    fn units(&self) -> usize {
        self.inputs.sizes()[1]
    }

    fn members(&self) -> &[Range<usize>] {
        &self.weight.members
    }

    #[inline(always)]
    fn advance<const FUSED: bool>(&self, step: usize, member: usize, all: &[E], new: &mut [E]) {
        let (n, Range { start, end }) = (self.units(), self.weight.members[member].clone());
        let (step, count) = (self.inputs.time - 1 - step, end - start);
        let t = self.inputs.token(step);
        let (d_gates, rest) = new.split_at_mut(4 * count);
        let (dh, rest) = rest.split_at_mut(count);
        let (dc, rest) = rest.split_at_mut(count);
        let (gates, rest) = rest.split_at_mut(4 * count);
        let (cells, rest) = rest.split_at_mut(count);
        let (before, outside) = rest.split_at_mut(count);
        dh.copy_from_slice(&all[4 * n + start..4 * n + end]);
        add_one::<E, FUSED>(&all[..4 * n], &self.weight.panels[member][0], dh);
        self.outside[0].copy(t, start, outside);
        add(dh, outside);
        dc.copy_from_slice(&all[5 * n + start..5 * n + end]);
        self.outside[1].copy(t, start, outside);
        add(dc, outside);
        if !self.inputs.has(self.row, t) {
            return d_gates.fill(E::default());
        }
        for k in 0..4 {
            self.gates.copy(t, k * n + start, &mut gates[k * count..][..count]);
        }
        self.cells.copy(t, start, cells);
        match step.checked_sub(1) {
            Some(earlier) => self.cells.copy(self.inputs.token(earlier), start, before),
            None => before.copy_from_slice(&self.start[start..end]),
        }
        update_back::<E, FUSED>(gates, [cells, before], dh, dc, d_gates);
        dh.fill(E::default());
    }
}
