//! The arithmetic of the kernel on slices, row by row. Sums are in double precision.

use rayon::prelude::*;

use super::{Gating, Opening, Shape};
use crate::kernels::vector::{Vector, fused, sigmoid, vectors};
use crate::kernels::view::View;
use crate::nn::Scaling;

/// Numbers of a job: below, no thread is worth waking.
const JOB: usize = 1 << 13;

/// Lanes of sums.
const LANES: usize = 16;

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
        let offset = E::of(scaling.offset);
        let gain = || (scaling.gain != 1.0).then(|| vec![E::of(scaling.gain); shape.width]);
        let weight = weight.map_or_else(gain, |weight| {
            let mut weight = collect(weight);
            weight.iter_mut().for_each(|w| *w += offset);
            Some(weight)
        });
        let weight_dims = dims.unwrap_or([1; 4]);
        Self { x, weight, bias: bias.map(collect), gate, scaling, shape, weight_dims }
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

    /// What row `row` is multiplied by and what is added to it.
    fn scale(&self, row: usize) -> [Option<&[E]>; 2] {
        let (width, group) = (self.shape.width, self.shape.group(row));
        [&self.weight, &self.bias].map(|x| x.as_ref().map(|x| &x[group * width..][..width]))
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

/// Row `row` of `from`, which is the last two axes where rows are `joint`.
#[inline(always)]
fn load<E: Vector>(from: &View<'_, E>, row: usize, joint: bool, to: &mut [E]) {
    let [.., m, n] = from.dims;
    if joint {
        let head = from.head(row);
        for (i, to) in to.chunks_exact_mut(n).enumerate() {
            head.copy(i, 0, to);
        }
    } else {
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
    let mut gate = vec![E::default(); if rows.gate.is_some() { width } else { 0 }];
    for (i, y) in y.chunks_exact_mut(width).enumerate() {
        let row = first + i;
        load(&rows.x, row, scaling.joint, y);
        if let Some((values, gating)) = &rows.gate {
            load(values, row, scaling.joint, &mut gate);
            if gating.before {
                multiply::<E, FUSED>(y, &gate, gating.opening);
            }
        }
        whiten::<E, FUSED>(y, scaling);
        let [weight, bias] = rows.scale(row);
        if let Some(weight) = weight {
            for (y, &w) in y.iter_mut().zip(weight) {
                *y *= w;
            }
        }
        if let Some(bias) = bias {
            for (y, &b) in y.iter_mut().zip(bias) {
                *y += b;
            }
        }
        if let Some((_, gating)) = &rows.gate
            && !gating.before
        {
            multiply::<E, FUSED>(y, &gate, gating.opening);
        }
    }
}

/// `c / sqrt(k Σ c² + eps)` in place; returns the factor.
#[inline(always)]
fn whiten<E: Vector, const FUSED: bool>(u: &mut [E], scaling: Scaling) -> E {
    let share = 1.0 / u.len() as f64;
    if scaling.centred {
        let mean = E::of(sum(u) * share);
        for u in &mut *u {
            *u += -mean;
        }
    }
    let squares = dot::<E, FUSED>(u, u) * if scaling.mean { share } else { 1.0 };
    let factor = E::of(1.0 / (squares + scaling.eps).sqrt());
    for u in u {
        *u *= factor;
    }
    factor
}

/// `x ← x ∘ act(g)`
#[inline(always)]
fn multiply<E: Vector, const FUSED: bool>(x: &mut [E], gate: &[E], opening: Opening) {
    let gate = &gate[..x.len()];
    match opening {
        Opening::Linear => x.iter_mut().zip(gate).for_each(|(x, &g)| *x *= g),
        Opening::Silu => x.iter_mut().zip(gate).for_each(|(x, &g)| *x *= g * sigmoid::<E, FUSED>(g)),
        Opening::Sigmoid => x.iter_mut().zip(gate).for_each(|(x, &g)| *x *= sigmoid::<E, FUSED>(g)),
    }
}

/// `act(g)` and its derivative.
#[inline(always)]
fn slope<E: Vector, const FUSED: bool>(g: E, opening: Opening) -> [E; 2] {
    let one = E::of(1.0);
    match opening {
        Opening::Linear => [g, one],
        Opening::Silu => {
            let open = sigmoid::<E, FUSED>(g);
            [g * open, open * fused::<E, FUSED>(g, one - open, one)]
        }
        Opening::Sigmoid => {
            let open = sigmoid::<E, FUSED>(g);
            [open, open * (one - open)]
        }
    }
}

/// `Σ x`
#[inline(always)]
fn sum<E: Vector>(x: &[E]) -> f64 {
    let mut sums = [0.0; LANES];
    let (blocks, rest) = x.as_chunks::<LANES>();
    for block in blocks {
        for i in 0..LANES {
            sums[i] += block[i].to_f64();
        }
    }
    sums.iter().sum::<f64>() + rest.iter().map(|x| x.to_f64()).sum::<f64>()
}

/// `Σ x ∘ y`
#[inline(always)]
fn dot<E: Vector, const FUSED: bool>(x: &[E], y: &[E]) -> f64 {
    let mut sums = [0.0; LANES];
    let (blocks, rest) = x.as_chunks::<LANES>();
    let (others, others_rest) = y.as_chunks::<LANES>();
    for (x, y) in blocks.iter().zip(others) {
        for i in 0..LANES {
            sums[i] = fused::<f64, FUSED>(x[i].to_f64(), y[i].to_f64(), sums[i]);
        }
    }
    let rest = rest.iter().zip(others_rest).map(|(x, y)| x.to_f64() * y.to_f64());
    sums.iter().sum::<f64>() + rest.sum::<f64>()
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
            let mut sums = vec![0.0; if rows.weight.is_some() { 2 * rows.weights() } else { 0 }];
            normalise_back(rows, dy, i * rows.job(), dx, dg, &mut sums);
            sums
        })
        .collect();
    let all = |place: usize| E::of(shares.iter().map(|share| share[place]).sum());
    to.weight.iter_mut().enumerate().for_each(|(i, w)| *w = all(i));
    to.bias.iter_mut().enumerate().for_each(|(i, b)| *b = all(rows.weights() + i));
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
    let (scaling, width) = (rows.scaling, rows.shape.width);
    let [mut x, mut h, mut gate, mut dz] = [(); 4].map(|()| vec![E::default(); width]);
    let share = 1.0 / width as f64;
    for (i, dx) in dx.chunks_exact_mut(width).enumerate() {
        let row = first + i;
        load(&dy, row, scaling.joint, &mut dz);
        load(&rows.x, row, scaling.joint, &mut x);
        h.copy_from_slice(&x);
        if let Some((values, gating)) = &rows.gate {
            load(values, row, scaling.joint, &mut gate);
            if gating.before {
                multiply::<E, FUSED>(&mut h, &gate, gating.opening);
            }
        }
        let factor = whiten::<E, FUSED>(&mut h, scaling);
        let [weight, bias] = rows.scale(row);
        if let Some((_, gating)) = &rows.gate
            && !gating.before
        {
            let dg = &mut dg[i * width..][..width];
            for c in 0..width {
                let mut z = h[c];
                if let Some(weight) = weight {
                    z *= weight[c];
                }
                if let Some(bias) = bias {
                    z += bias[c];
                }
                let [open, slope] = slope::<E, FUSED>(gate[c], gating.opening);
                dg[c] = dz[c] * z * slope;
                dz[c] *= open;
            }
        }
        if let Some(weight) = weight {
            let (d_weight, d_bias) = sums.split_at_mut(rows.weights());
            let start = rows.shape.group(row) * width;
            let (d_weight, d_bias) = (&mut d_weight[start..][..width], &mut d_bias[start..][..width]);
            for c in 0..width {
                d_weight[c] = fused::<f64, FUSED>(dz[c].to_f64(), h[c].to_f64(), d_weight[c]);
                d_bias[c] += dz[c].to_f64();
                dz[c] *= weight[c];
            }
        }
        let along = dot::<E, FUSED>(&dz, &h) * if scaling.mean { share } else { 1.0 };
        let (along, mean) = (E::of(along), E::of(if scaling.centred { sum(&dz) * share } else { 0.0 }));
        for c in 0..width {
            dx[c] = (fused::<E, FUSED>(-h[c], along, dz[c]) - mean) * factor;
        }
        if let Some((_, gating)) = &rows.gate
            && gating.before
        {
            let dg = &mut dg[i * width..][..width];
            for c in 0..width {
                let [open, slope] = slope::<E, FUSED>(gate[c], gating.opening);
                dg[c] = dx[c] * x[c] * slope;
                dx[c] *= open;
            }
        }
    }
}
