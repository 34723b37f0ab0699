//! The arithmetic of the kernel on slices: some tokens of one batch row at a time, all channels of a token together.

use std::mem::MaybeUninit;

use rayon::prelude::*;

use crate::kernels::lanes::{add, add_products};
use crate::kernels::room::Room;
use crate::kernels::vector::{Vector, fused, sigmoid, vectors};
use crate::kernels::view::View;

/// Tokens of a job.
const ROWS: usize = 64;

/// What both passes read.
#[derive(Debug)]
pub(super) struct Inputs<'a, E> {
    /// `[b, 1, t, c]`
    x: View<'a, E>,
    /// `[b, 1, K - 1, c]`, what came before `x`
    tail: View<'a, E>,
    /// `[K, c]`
    weight: Vec<E>,
    /// `[c]`
    bias: Option<Vec<E>>,
    silu: bool,
}

impl<'a, E: Vector> Inputs<'a, E> {
    /// From `weight: [1, 1, c, K]` and `bias: [1, 1, 1, c]`.
    pub(super) fn new(
        [x, tail]: [View<'a, E>; 2],
        weight: View<'_, E>,
        bias: Option<View<'_, E>>,
        silu: bool,
    ) -> Self {
        let [.., c, kernel] = weight.dims;
        let mut turned = vec![E::default(); kernel * c];
        for (j, tap) in turned.chunks_exact_mut(c).enumerate() {
            weight.head(0).turned().copy(j, 0, tap);
        }
        let bias = bias.map(|bias| {
            let mut row = vec![E::default(); c];
            bias.head(0).copy(0, 0, &mut row);
            row
        });
        Self { x, tail, weight: turned, bias, silu }
    }

    fn channels(&self) -> usize {
        self.x.dims[3]
    }

    /// Width of the convolution.
    fn kernel(&self) -> usize {
        self.weight.len() / self.channels()
    }

    /// Tokens that come out.
    fn time(&self) -> usize {
        self.x.dims[2]
    }

    /// Inputs with those before the call.
    fn rows(&self) -> usize {
        self.kernel() - 1 + self.time()
    }

    /// Of a row of the batch, input `s` of [`Self::rows`].
    #[inline(always)]
    fn input<'b>(&self, row: usize, s: usize, space: &'b mut [E]) -> &'b [E]
    where
        'a: 'b,
    {
        let (channels, early) = (self.channels(), self.kernel() - 1);
        match s.checked_sub(early) {
            Some(t) => self.x.head(row).some(t, 0, channels, space),
            None => self.tail.head(row).some(s, 0, channels, space),
        }
    }

    /// `[b, 1, t, c]`
    pub(super) fn out_dims(&self) -> [usize; 4] {
        let [b, ..] = self.x.dims;
        [b, 1, self.time(), self.channels()]
    }
}

/// Fills `y: [b, t, c]`.
pub(super) fn forward<E: Vector>(inputs: &Inputs<'_, E>, y: &mut Room<E>) {
    let (time, channels) = (inputs.time(), inputs.channels());
    let batch = y.numbers().par_chunks_mut(time * channels).enumerate();
    batch.for_each(|(row, y)| {
        if time <= ROWS {
            // One token, mostly: no thread is worth waking.
            return convolve(inputs, row, 0, y);
        }
        let jobs = y.par_chunks_mut(ROWS * channels).enumerate();
        jobs.for_each(|(job, y)| convolve(inputs, row, job * ROWS, y));
    });
}

/// The last inputs, `[b, 1, K - 1, c]`: a copy, so that what is kept does not hold the whole sequence.
pub(super) fn last<E: Vector>(inputs: &Inputs<'_, E>) -> (Vec<E>, [usize; 4]) {
    let ([b, _, time, channels], keep) = (inputs.out_dims(), inputs.kernel() - 1);
    let mut numbers = Vec::with_capacity(b * keep * channels);
    let mut space = vec![E::default(); channels];
    for row in 0..b {
        for s in time..time + keep {
            numbers.extend_from_slice(inputs.input(row, s, &mut space));
        }
    }
    (numbers, [b, 1, keep, channels])
}

vectors! {
    fn convolve = convolve_rows(inputs: &Inputs<'_, E>, row: usize, first: usize, y: &mut [MaybeUninit<E>])
}

#[inline(always)]
fn convolve_rows<E: Vector, const FUSED: bool>(
    inputs: &Inputs<'_, E>,
    row: usize,
    first: usize,
    y: &mut [MaybeUninit<E>],
) {
    let (mut space, mut sums) = (vec![E::default(); inputs.channels()], vec![0.0; inputs.channels()]);
    for (i, y) in y.chunks_exact_mut(inputs.channels()).enumerate() {
        before_silu::<E, FUSED>(inputs, row, first + i, &mut sums, &mut space);
        let sums = &sums[..y.len()];
        if inputs.silu {
            for (i, y) in y.iter_mut().enumerate() {
                let z = E::of(sums[i]);
                y.write(z * sigmoid::<E, FUSED>(z));
            }
        } else {
            for (i, y) in y.iter_mut().enumerate() {
                y.write(E::of(sums[i]));
            }
        }
    }
}

/// `z` of token `t`, added up in double precision: what follows a convolution is often divided by its length, which turns
/// roundings of a small sum of large numbers into large errors.
#[inline(always)]
fn before_silu<E: Vector, const FUSED: bool>(
    inputs: &Inputs<'_, E>,
    row: usize,
    t: usize,
    z: &mut [f64],
    space: &mut [E],
) {
    let channels = z.len();
    match &inputs.bias {
        Some(bias) => {
            let bias = &bias[..channels];
            for (i, z) in z.iter_mut().enumerate() {
                *z = bias[i].to_f64();
            }
        }
        None => z.fill(0.0),
    }
    for (j, tap) in inputs.weight.chunks_exact(channels).enumerate() {
        let (tap, x) = (&tap[..channels], &inputs.input(row, t + j, space)[..channels]);
        for (i, z) in z.iter_mut().enumerate() {
            *z = fused::<f64, FUSED>(tap[i].to_f64(), x[i].to_f64(), *z);
        }
    }
}

/// Gradients, contiguous.
#[derive(Debug)]
pub(super) struct Gradients<E> {
    /// `[b, K - 1 + t, c]`, the tail's before the others
    pub(super) x: Room<E>,
    /// `[c, K]`
    pub(super) weight: Vec<E>,
    pub(super) bias: Vec<E>,
}

impl<E: Vector> Gradients<E> {
    pub(super) fn new(inputs: &Inputs<'_, E>) -> Self {
        let channels = inputs.channels();
        let x = Room::new(inputs.x.dims[0] * inputs.rows() * channels);
        let zeros = |count: usize| vec![E::default(); count];
        Self { x, weight: zeros(inputs.weight.len()), bias: zeros(channels) }
    }
}

/// Fills `to` with the gradients for `dy: [b, 1, t, c]`.
pub(super) fn backward<E: Vector>(inputs: &Inputs<'_, E>, dy: View<'_, E>, to: &mut Gradients<E>) {
    let (rows, channels) = (inputs.rows(), inputs.channels());
    let kernel = inputs.kernel();
    let mut jobs = Vec::new();
    for (row, dx) in to.x.numbers().chunks_mut(rows * channels).enumerate() {
        for (job, dx) in dx.chunks_mut(ROWS * channels).enumerate() {
            jobs.push((row, job * ROWS, dx));
        }
    }
    // Of every job, `[K + 1, c]`: the taps and the bias.
    let shares: Vec<Vec<E>> = jobs
        .into_par_iter()
        .map(|(row, first, dx)| {
            let mut sums = vec![E::default(); (kernel + 1) * channels];
            convolve_back(inputs, dy, row, first, dx, &mut sums);
            sums
        })
        .collect();
    for c in 0..channels {
        let sum = |j: usize| E::of(shares.iter().map(|share| share[j * channels + c].to_f64()).sum());
        for j in 0..kernel {
            to.weight[c * kernel + j] = sum(j);
        }
        to.bias[c] = sum(kernel);
    }
}

vectors! {
    fn convolve_back = convolve_rows_back(
        inputs: &Inputs<'_, E>,
        dy: View<'_, E>,
        row: usize,
        first: usize,
        dx: &mut [MaybeUninit<E>],
        sums: &mut [E],
    )
}

/// `dx` of the inputs from `first` on, and the share of the outputs of the same numbers in the sums.
#[inline(always)]
fn convolve_rows_back<E: Vector, const FUSED: bool>(
    inputs: &Inputs<'_, E>,
    dy: View<'_, E>,
    row: usize,
    first: usize,
    dx: &mut [MaybeUninit<E>],
    sums: &mut [E],
) {
    let (kernel, time, channels) = (inputs.kernel(), inputs.time(), inputs.channels());
    let rows = dx.len() / channels;
    // These inputs reached the outputs from `kernel - 1` before them on.
    let from = first.saturating_sub(kernel - 1).min(time);
    let to = (first + rows).min(time);
    let dy = dy.head(row);
    let mut space = vec![E::default(); channels];
    let mut z = vec![0.0; channels];
    let mut dz = vec![E::default(); (to - from) * channels];
    for (i, dz) in dz.chunks_exact_mut(channels).enumerate() {
        let t = from + i;
        dy.copy(t, 0, dz);
        if inputs.silu {
            before_silu::<E, FUSED>(inputs, row, t, &mut z, &mut space);
            differentiate::<E, FUSED>(dz, &z);
        }
        if t >= first {
            let (taps, bias) = sums.split_at_mut(kernel * channels);
            for (j, sum) in taps.chunks_exact_mut(channels).enumerate() {
                add_products::<E, FUSED>(sum, dz, inputs.input(row, t + j, &mut space));
            }
            add(bias, dz);
        }
    }
    for (i, dx) in dx.chunks_exact_mut(channels).enumerate() {
        space.fill(E::default());
        for (j, tap) in inputs.weight.chunks_exact(channels).enumerate() {
            let Some(t) = (first + i).checked_sub(j).filter(|&t| t < time) else { continue };
            add_products::<E, FUSED>(&mut space, tap, &dz[(t - from) * channels..][..channels]);
        }
        dx.write_copy_of_slice(&space);
    }
}

/// `dz ← dz ∘ silu'(z)`
#[inline(always)]
fn differentiate<E: Vector, const FUSED: bool>(dz: &mut [E], z: &[f64]) {
    let z = &z[..dz.len()];
    for (i, dz) in dz.iter_mut().enumerate() {
        let (z, one) = (E::of(z[i]), E::of(1.0));
        let open = sigmoid::<E, FUSED>(z);
        *dz *= open * fused::<E, FUSED>(z, one - open, one);
    }
}
