//! The arithmetic of the kernel on slices. Sums are in double precision. What is done number by number is done for some
//! rows at once: loops over few numbers hardly use vectors.

use rayon::prelude::*;

use super::{Gating, Opening, Shape};
use crate::kernels::lanes::{add, add_products, multiply_by as times};
use crate::kernels::vector::{Vector, dot, fused, sigmoid, sum, vectors};
use crate::kernels::view::View;
use crate::nn::Scaling;

/// Numbers of a job: below, no thread is worth waking.
const JOB: usize = 1 << 13;

/// Numbers of the rows of a block, which are treated together.
const BLOCK: usize = 256;

/// What both passes read.
#[derive(Debug)]
pub(super) struct Rows<'a, E> {
    x: View<'a, E>,
    /// With the offset, or the gain instead
    weight: Option<Vec<E>>,
    bias: Option<Vec<E>>,
    gate: Option<(View<'a, E>, Gating)>,
    scaling: Scaling,
    shape: Shape,
    weight_dims: [usize; 4],
    /// Rows of a block: several only where all have the same weight, which is repeated for each
    block: usize,
}

impl<'a, E: Vector> Rows<'a, E> {
    pub(super) fn new(
        x: View<'a, E>,
        weight: Option<View<'_, E>>,
        bias: Option<View<'_, E>>,
        gate: Option<(View<'a, E>, Gating)>,
        scaling: Scaling,
    ) -> Self {
        let dims = weight.map(|weight| weight.dims);
        let shape = Shape::new(x.dims, dims, scaling.joint);
        let block = if shape.groups == 1 { (BLOCK / shape.width).max(1) } else { 1 };
        let offset = E::of(scaling.offset);
        let gain = || (scaling.gain != 1.0).then(|| vec![E::of(scaling.gain); shape.width]);
        let weight = weight.map_or_else(gain, |weight| {
            let mut weight = collect(weight);
            weight.iter_mut().for_each(|w| *w += offset);
            Some(weight)
        });
        let [weight, bias] = [weight, bias.map(collect)].map(|x| x.map(|x| x.repeat(block)));
        let weight_dims = dims.unwrap_or([1; 4]);
        Self { x, weight, bias, gate, scaling, shape, weight_dims, block }
    }

    pub(super) fn dims(&self) -> [usize; 4] {
        self.x.dims
    }

    pub(super) fn weight_dims(&self) -> [usize; 4] {
        self.weight_dims
    }

    pub(super) fn count(&self) -> usize {
        self.x.dims.iter().product()
    }

    /// Rows of a job.
    fn job(&self) -> usize {
        JOB.div_ceil(self.shape.width)
    }

    /// Numbers of all rows of the weight.
    fn weights(&self) -> usize {
        self.shape.groups * self.shape.width
    }

    /// Numbers of a block.
    fn size(&self) -> usize {
        self.block * self.shape.width
    }

    /// What the block from row `row` on is multiplied by and what is added to it.
    fn scale(&self, row: usize) -> [Option<&[E]>; 2] {
        let start = self.shape.group(row) * self.shape.width;
        [&self.weight, &self.bias].map(|x| x.as_ref().map(|x| &x[start..][..self.size()]))
    }
}

/// All numbers of a view in order.
fn collect<E: Vector>(from: View<'_, E>) -> Vec<E> {
    let [a, b, m, n] = from.dims;
    let mut all = vec![E::default(); a * b * m * n];
    for (row, to) in all.chunks_exact_mut(n).enumerate() {
        from.head(row / m).copy(row % m, 0, to);
    }
    all
}

/// Rows of `from` from `row` on, as many as fit; each is the last two axes where rows are `joint`.
#[inline(always)]
fn load<E: Vector>(from: &View<'_, E>, row: usize, joint: bool, to: &mut [E]) {
    let [.., m, n] = from.dims;
    let first = if joint { row * m } else { row };
    for (i, to) in to.chunks_exact_mut(n).enumerate() {
        let row = first + i;
        from.head(row / m).copy(row % m, 0, to);
    }
}

/// Fills `y`, contiguous.
pub(super) fn forward<E: Vector>(rows: &Rows<'_, E>, y: &mut [E]) {
    let job = rows.job();
    if rows.shape.rows <= job {
        return normalise(rows, 0, y);
    }
    let jobs = y.par_chunks_mut(job * rows.shape.width).enumerate();
    jobs.for_each(|(i, y)| normalise(rows, i * job, y));
}

vectors! {
    fn normalise = normalise_rows(rows: &Rows<'_, E>, first: usize, y: &mut [E])
}

#[inline(always)]
fn normalise_rows<E: Vector, const FUSED: bool>(rows: &Rows<'_, E>, first: usize, y: &mut [E]) {
    let (scaling, width) = (rows.scaling, rows.shape.width);
    let mut gate = vec![E::default(); if rows.gate.is_some() { rows.size() } else { 0 }];
    let mut space = vec![0.0; width];
    for (i, y) in y.chunks_mut(rows.size()).enumerate() {
        let row = first + i * rows.block;
        load(&rows.x, row, scaling.joint, y);
        if let Some((values, gating)) = &rows.gate {
            load(values, row, scaling.joint, &mut gate[..y.len()]);
            if gating.before {
                multiply::<E, FUSED>(y, &gate, gating.opening);
            }
        }
        for y in y.chunks_exact_mut(width) {
            whiten::<E, FUSED>(y, scaling, &mut space);
        }
        scale(y, rows.scale(row));
        if let Some((_, gating)) = &rows.gate
            && !gating.before
        {
            multiply::<E, FUSED>(y, &gate, gating.opening);
        }
    }
}

/// `c / sqrt(k Σ c² + eps)` in place; returns the factor.
#[inline(always)]
fn whiten<E: Vector, const FUSED: bool>(u: &mut [E], scaling: Scaling, space: &mut [f64]) -> E {
    let share = 1.0 / u.len() as f64;
    if scaling.centred {
        widen(u, space);
        let mean = E::of(sum(space) * share);
        for u in &mut *u {
            *u += -mean;
        }
    }
    widen(u, space);
    let squares = dot::<f64, FUSED>(space, space) * if scaling.mean { share } else { 1.0 };
    let factor = E::of(1.0 / (squares + scaling.eps).sqrt());
    for u in u {
        *u *= factor;
    }
    factor
}

/// In double precision.
#[inline(always)]
fn widen<E: Vector>(from: &[E], to: &mut [f64]) {
    let from = &from[..to.len()];
    for (i, to) in to.iter_mut().enumerate() {
        *to = from[i].to_f64();
    }
}

/// `u ∘ weight + bias` in place
#[inline(always)]
fn scale<E: Vector>(u: &mut [E], [weight, bias]: [Option<&[E]>; 2]) {
    if let Some(weight) = weight {
        times(u, weight);
    }
    if let Some(bias) = bias {
        add(u, bias);
    }
}

/// `x ← x ∘ act(g)`
#[inline(always)]
fn multiply<E: Vector, const FUSED: bool>(x: &mut [E], gate: &[E], opening: Opening) {
    match opening {
        Opening::Linear => times(x, gate),
        Opening::Silu => multiply_by::<E, FUSED, SILU>(x, gate),
        Opening::Sigmoid => multiply_by::<E, FUSED, SIGMOID>(x, gate),
    }
}

#[inline(always)]
fn multiply_by<E: Vector, const FUSED: bool, const OPENING: u8>(x: &mut [E], gate: &[E]) {
    let gate = &gate[..x.len()];
    for (i, x) in x.iter_mut().enumerate() {
        *x *= slope::<E, FUSED, OPENING>(gate[i])[0];
    }
}

/// Of `x ∘ act(g)` for `dy`: `dg`, and `dy` becomes the gradient of `x`.
#[inline(always)]
fn multiply_back<E: Vector, const FUSED: bool>(
    [x, gate]: [&[E]; 2],
    opening: Opening,
    dy: &mut [E],
    dg: &mut [E],
) {
    match opening {
        Opening::Linear => multiply_back_by::<E, FUSED, LINEAR>(x, gate, dy, dg),
        Opening::Silu => multiply_back_by::<E, FUSED, SILU>(x, gate, dy, dg),
        Opening::Sigmoid => multiply_back_by::<E, FUSED, SIGMOID>(x, gate, dy, dg),
    }
}

#[inline(always)]
fn multiply_back_by<E: Vector, const FUSED: bool, const OPENING: u8>(
    x: &[E],
    gate: &[E],
    dy: &mut [E],
    dg: &mut [E],
) {
    let width = dg.len();
    let (x, gate, dy) = (&x[..width], &gate[..width], &mut dy[..width]);
    for (i, dg) in dg.iter_mut().enumerate() {
        let [open, slope] = slope::<E, FUSED, OPENING>(gate[i]);
        *dg = dy[i] * x[i] * slope;
        dy[i] *= open;
    }
}

const LINEAR: u8 = Opening::Linear as u8;
const SILU: u8 = Opening::Silu as u8;
const SIGMOID: u8 = Opening::Sigmoid as u8;

/// `act(g)` and its derivative.
#[inline(always)]
fn slope<E: Vector, const FUSED: bool, const OPENING: u8>(g: E) -> [E; 2] {
    let one = E::of(1.0);
    if OPENING == LINEAR {
        return [g, one];
    }
    let open = sigmoid::<E, FUSED>(g);
    match OPENING {
        SILU => [g * open, open * fused::<E, FUSED>(g, one - open, one)],
        _ => [open, open * (one - open)],
    }
}

/// Gradients, contiguous; those of what there is not are empty.
#[derive(Debug)]
pub(super) struct Gradients<E> {
    pub(super) x: Vec<E>,
    pub(super) gate: Vec<E>,
    pub(super) weight: Vec<E>,
    pub(super) bias: Vec<E>,
}

impl<E: Vector> Gradients<E> {
    pub(super) fn filled(rows: &Rows<'_, E>, with: E) -> Self {
        let of = |there: bool, count: usize| vec![with; if there { count } else { 0 }];
        Self {
            x: of(true, rows.count()),
            gate: of(rows.gate.is_some(), rows.count()),
            weight: of(rows.weight.is_some(), rows.weights()),
            bias: of(rows.bias.is_some(), rows.weights()),
        }
    }
}

/// Fills `to` with the gradients for `dy`.
pub(super) fn backward<E: Vector>(rows: &Rows<'_, E>, dy: View<'_, E>, to: &mut Gradients<E>) {
    let numbers = rows.job() * rows.shape.width;
    let mut gates = to.gate.chunks_mut(numbers);
    let jobs: Vec<_> = to.x.chunks_mut(numbers).map(|dx| (dx, gates.next().unwrap_or_default())).collect();
    // Of every job, the sums for weight and bias.
    let shares: Vec<Vec<f64>> = jobs
        .into_par_iter()
        .enumerate()
        .map(|(i, (dx, dg))| {
            let mut sums = vec![0.0; if rows.weight.is_some() { 2 * rows.block * rows.weights() } else { 0 }];
            normalise_back(rows, dy, i * rows.job(), dx, dg, &mut sums);
            sums
        })
        .collect();
    let block = |share: &Vec<f64>, place: usize| -> f64 {
        (0..rows.block).map(|row| share[place + row * rows.shape.width]).sum()
    };
    let all = |place: usize| E::of(shares.iter().map(|share| block(share, place)).sum());
    to.weight.iter_mut().enumerate().for_each(|(i, w)| *w = all(i));
    to.bias.iter_mut().enumerate().for_each(|(i, b)| *b = all(rows.block * rows.weights() + i));
}

vectors! {
    fn normalise_back = normalise_rows_back(
        rows: &Rows<'_, E>,
        dy: View<'_, E>,
        first: usize,
        dx: &mut [E],
        dg: &mut [E],
        sums: &mut [f64],
    )
}

#[inline(always)]
fn normalise_rows_back<E: Vector, const FUSED: bool>(
    rows: &Rows<'_, E>,
    dy: View<'_, E>,
    first: usize,
    dx: &mut [E],
    dg: &mut [E],
    sums: &mut [f64],
) {
    let (scaling, width, size) = (rows.scaling, rows.shape.width, rows.size());
    let [mut x, mut h, mut gate, mut dz, mut z] = [(); 5].map(|()| vec![E::default(); size]);
    let [mut wide, mut other] = [(); 2].map(|()| vec![0.0; size]);
    let mut factors = vec![E::default(); rows.block];
    let (d_weight, d_bias) = sums.split_at_mut(sums.len() / 2);
    let share = 1.0 / width as f64;
    for (i, dx) in dx.chunks_mut(size).enumerate() {
        let (row, count) = (first + i * rows.block, dx.len());
        let (x, h, gate) = (&mut x[..count], &mut h[..count], &mut gate[..count]);
        let (dz, wide, other) = (&mut dz[..count], &mut wide[..count], &mut other[..count]);
        load(&dy, row, scaling.joint, dz);
        load(&rows.x, row, scaling.joint, x);
        h.copy_from_slice(x);
        if let Some((values, gating)) = &rows.gate {
            load(values, row, scaling.joint, gate);
            if gating.before {
                multiply::<E, FUSED>(h, gate, gating.opening);
            }
        }
        for (i, h) in h.chunks_exact_mut(width).enumerate() {
            factors[i] = whiten::<E, FUSED>(h, scaling, &mut wide[..width]);
        }
        let [weight, bias] = rows.scale(row);
        if let Some((_, gating)) = &rows.gate
            && !gating.before
        {
            let z = &mut z[..count];
            z.copy_from_slice(h);
            scale(z, [weight, bias]);
            let dg = &mut dg[i * size..][..count];
            multiply_back::<E, FUSED>([z, gate], gating.opening, dz, dg);
        }
        widen(h, wide);
        if let Some(weight) = weight {
            let start = rows.shape.group(row) * width;
            widen(dz, other);
            add(&mut d_bias[start..][..count], other);
            add_products::<f64, FUSED>(&mut d_weight[start..][..count], other, wide);
            times(dz, weight);
        }
        widen(dz, other);
        for (i, dx) in dx.chunks_exact_mut(width).enumerate() {
            let (from, to) = (i * width, (i + 1) * width);
            let (dz, h, wide, other) = (&dz[from..to], &h[from..to], &wide[from..to], &other[from..to]);
            let along = dot::<f64, FUSED>(other, wide) * if scaling.mean { share } else { 1.0 };
            let mean = if scaling.centred { sum(other) * share } else { 0.0 };
            project(dx, dz, h, [E::of(along), E::of(mean), factors[i]]);
        }
        if let Some((_, gating)) = &rows.gate
            && gating.before
        {
            let dg = &mut dg[i * size..][..count];
            multiply_back::<E, FUSED>([x, gate], gating.opening, dx, dg);
        }
    }
}

/// `dx = factor (dz - along h - mean)`
#[inline(always)]
fn project<E: Vector>(dx: &mut [E], dz: &[E], h: &[E], [along, mean, factor]: [E; 3]) {
    let (dz, h) = (&dz[..dx.len()], &h[..dx.len()]);
    for (i, dx) in dx.iter_mut().enumerate() {
        *dx = (dz[i] - along * h[i] - mean) * factor;
    }
}
