//! The kernel on Flex.

use burn::backend::Flex;
use burn::tensor::DType;
use rayon::prelude::*;

use super::formulas::{Numbers, constant, slopes, value};
use super::{Passes, Read};
use crate::kernels::vector::{Vector, vectors};
use crate::kernels::view::{Double, Number, Primitive, View, view};
use crate::nn::{Formula, Function};

/// Numbers of a job: below, no thread is worth waking.
const JOB: usize = 1 << 12;

impl Passes for Flex {
    fn forward(read: &Read<Self>) -> Primitive {
        match read.all[0].dtype() {
            DType::F64 => read.forward_in::<Double>(),
            _ => read.forward_in::<f32>(),
        }
    }

    fn backward(read: Read<Self>, dy: Primitive) -> [Option<Primitive>; 5] {
        match read.all[0].dtype() {
            DType::F64 => read.backward_in::<Double>(&dy),
            _ => read.backward_in::<f32>(&dy),
        }
    }
}

/// What both passes read.
pub(super) struct Given<'a, E> {
    tensors: [View<'a, E>; 3],
    /// `[1, n]` or `[m, n]`, empty where there is none
    parameters: [Vec<E>; 2],
    parameter_dims: [usize; 4],
    formula: Formula,
}

impl<E: Vector> Given<'_, E> {
    fn dims(&self) -> [usize; 4] {
        self.tensors[0].dims
    }

    fn count(&self) -> usize {
        self.dims().iter().product()
    }

    /// Rows of `n` numbers of a job.
    fn job(&self) -> usize {
        JOB.div_ceil(self.dims()[3])
    }

    /// Where the parameters of row `row` start.
    fn start(&self, row: usize) -> usize {
        let [.., m, n] = self.parameter_dims;
        row % m * n
    }

    /// Row `row` of tensor `which`: where it lies, or copied to `space`, as which it is returned where there is no such
    /// tensor.
    #[inline(always)]
    fn tensor<'a>(&'a self, which: usize, there: bool, row: usize, space: &'a mut [E]) -> &'a [E] {
        let [.., m, n] = self.dims();
        if there { self.tensors[which].head(row / m).some(row % m, 0, n, space) } else { space }
    }

    /// The same of parameter `which`.
    #[inline(always)]
    fn parameter<'a>(&'a self, which: usize, there: bool, row: usize, space: &'a [E]) -> &'a [E] {
        if there { &self.parameters[which][self.start(row)..][..self.dims()[3]] } else { space }
    }
}

/// Tensors and parameters that function `F` takes.
const fn arity<const F: u8>() -> (usize, usize) {
    Function::ALL[F as usize].arity()
}

impl Read<Flex> {
    pub(super) fn given<E: Number + Vector>(&self) -> Given<'_, E> {
        let [x, y, z, p, q] = &self.all;
        let (_, parameters) = self.formula.function.arity();
        let collect = |p: &Primitive, there: bool| {
            let from = view::<E>(p);
            let [.., m, n] = from.dims;
            let mut all = vec![E::default(); if there { m * n } else { 0 }];
            all.chunks_exact_mut(n).enumerate().for_each(|(i, to)| from.head(0).copy(i, 0, to));
            all
        };
        let dims = if parameters > 0 { view::<E>(p).dims } else { [1, 1, 1, view::<E>(x).dims[3]] };
        Given {
            tensors: [view(x), view(y), view(z)],
            parameters: [collect(p, parameters > 0), collect(q, parameters > 1)],
            parameter_dims: dims,
            formula: self.formula,
        }
    }

    fn forward_in<E: Number + Vector>(&self) -> Primitive {
        let given = self.given::<E>();
        let mut out = vec![E::default(); given.count()];
        forward(&given, &mut out);
        E::tensor(out, &given.dims())
    }

    fn backward_in<E: Number + Vector>(&self, dy: &Primitive) -> [Option<Primitive>; 5] {
        let given = self.given::<E>();
        let (tensors, parameters) = self.formula.function.arity();
        let mut grads = Gradients::filled(&given, E::default());
        backward(&given, view(dy), &mut grads);
        let Gradients { tensors: [x, y, z], parameters: [p, q] } = grads;
        let tensor = |numbers: Vec<E>, there: bool| there.then(|| E::tensor(numbers, &given.dims()));
        let parameter = |numbers, there: bool| there.then(|| E::tensor(numbers, &given.parameter_dims));
        [
            tensor(x, true),
            tensor(y, tensors > 1 && self.formula.function != Function::GateDecay),
            tensor(z, tensors > 2),
            parameter(p, parameters > 0),
            parameter(q, parameters > 1),
        ]
    }
}

/// Fills `out`, contiguous.
pub(super) fn forward<E: Vector>(given: &Given<'_, E>, out: &mut [E]) {
    let width = given.dims()[3];
    if out.len() <= JOB {
        return map(given, 0, out);
    }
    let jobs = out.par_chunks_mut(given.job() * width).enumerate();
    jobs.for_each(|(i, out)| map(given, i * given.job(), out));
}

vectors! {
    fn map = map_rows(given: &Given<'_, E>, first: usize, out: &mut [E])
}

#[inline(always)]
fn map_rows<E: Vector, const FUSED: bool>(given: &Given<'_, E>, first: usize, out: &mut [E]) {
    constant!(
        given.formula.function,
        Silu Sigmoid Closed GeluTanh LogSigmoid EluPlusOne LogGate SiluGate SigmoidGate GeluGate Step StepDecay GateDecay Erase
            Share Skip GateInput Tanh SquaredRelu Rate Lerp Mix Rescale Product,
        |F| map_by::<E, FUSED, F>(given, first, out)
    );
}

#[inline(always)]
fn map_by<E: Vector, const FUSED: bool, const F: u8>(given: &Given<'_, E>, first: usize, out: &mut [E]) {
    let width = given.dims()[3];
    let numbers = Numbers::new(given.formula);
    let (tensors, parameters) = const { arity::<F>() };
    let [mut x, mut y, mut z, none] = [(); 4].map(|()| vec![E::default(); width]);
    for (i, out) in out.chunks_exact_mut(width).enumerate() {
        let row = first + i;
        let x = &given.tensor(0, true, row, &mut x)[..width];
        let y = &given.tensor(1, tensors > 1, row, &mut y)[..width];
        let z = &given.tensor(2, tensors > 2, row, &mut z)[..width];
        let p = &given.parameter(0, parameters > 0, row, &none)[..width];
        let q = &given.parameter(1, parameters > 1, row, &none)[..width];
        for c in 0..width {
            out[c] = value::<E, FUSED, F>([x[c], y[c], z[c], p[c], q[c]], numbers);
        }
    }
}

/// Gradients, contiguous; those of what there is not are empty.
pub(super) struct Gradients<E> {
    pub(super) tensors: [Vec<E>; 3],
    pub(super) parameters: [Vec<E>; 2],
}

impl<E: Vector> Gradients<E> {
    pub(super) fn filled(given: &Given<'_, E>, with: E) -> Self {
        let (tensors, _) = given.formula.function.arity();
        Self {
            tensors: std::array::from_fn(|i| vec![with; if i < tensors { given.count() } else { 0 }]),
            parameters: given.parameters.each_ref().map(|p| vec![with; p.len()]),
        }
    }
}

/// Fills `to` with the gradients for `dy`.
pub(super) fn backward<E: Vector>(given: &Given<'_, E>, dy: View<'_, E>, to: &mut Gradients<E>) {
    let numbers = given.job() * given.dims()[3];
    let [x, y, z] = &mut to.tensors;
    let (mut y, mut z) = (y.chunks_mut(numbers), z.chunks_mut(numbers));
    let jobs: Vec<_> = x
        .chunks_mut(numbers)
        .map(|x| [x, y.next().unwrap_or_default(), z.next().unwrap_or_default()])
        .collect();
    let columns = to.parameters[0].len();
    // Of every job, the sums of the gradients of both parameters.
    let shares: Vec<Vec<f64>> = jobs
        .into_par_iter()
        .enumerate()
        .map(|(i, mut grads)| {
            let mut sums = vec![0.0; 2 * columns];
            map_back(given, dy, i * given.job(), &mut grads, &mut sums);
            sums
        })
        .collect();
    for (i, to) in to.parameters.iter_mut().enumerate() {
        for (c, to) in to.iter_mut().enumerate() {
            *to = E::of(shares.iter().map(|share| share[i * columns + c]).sum());
        }
    }
}

vectors! {
    fn map_back = map_rows_back(
        given: &Given<'_, E>,
        dy: View<'_, E>,
        first: usize,
        to: &mut [&mut [E]; 3],
        sums: &mut [f64],
    )
}

#[inline(always)]
fn map_rows_back<E: Vector, const FUSED: bool>(
    given: &Given<'_, E>,
    dy: View<'_, E>,
    first: usize,
    to: &mut [&mut [E]; 3],
    sums: &mut [f64],
) {
    constant!(
        given.formula.function,
        Silu Sigmoid Closed GeluTanh LogSigmoid EluPlusOne LogGate SiluGate SigmoidGate GeluGate Step StepDecay GateDecay Erase
            Share Skip GateInput Tanh SquaredRelu Rate Lerp Mix Rescale Product,
        |F| map_back_by::<E, FUSED, F>(given, dy, first, to, sums)
    );
}

#[inline(always)]
fn map_back_by<E: Vector, const FUSED: bool, const F: u8>(
    given: &Given<'_, E>,
    dy: View<'_, E>,
    first: usize,
    to: &mut [&mut [E]; 3],
    sums: &mut [f64],
) {
    let [.., m, width] = given.dims();
    let numbers = Numbers::new(given.formula);
    let (tensors, parameters) = const { arity::<F>() };
    let [mut x, mut y, mut z, mut space, none] = [(); 5].map(|()| vec![E::default(); width]);
    // What there is no gradient for is written here.
    let [mut d_y, mut d_z] = [(); 2].map(|()| vec![E::default(); width]);
    let (mut d_p, mut d_q) = (vec![0.0; width], vec![0.0; width]);
    let (sums_p, sums_q) = sums.split_at_mut(sums.len() / 2);
    let [to_x, to_y, to_z] = to;
    for (i, d_x) in to_x.chunks_exact_mut(width).enumerate() {
        let row = first + i;
        let x = &given.tensor(0, true, row, &mut x)[..width];
        let y = &given.tensor(1, tensors > 1, row, &mut y)[..width];
        let z = &given.tensor(2, tensors > 2, row, &mut z)[..width];
        let p = &given.parameter(0, parameters > 0, row, &none)[..width];
        let q = &given.parameter(1, parameters > 1, row, &none)[..width];
        let dy = &dy.head(row / m).some(row % m, 0, width, &mut space)[..width];
        let d_y = if tensors > 1 { &mut to_y[i * width..][..width] } else { &mut d_y[..width] };
        let d_z = if tensors > 2 { &mut to_z[i * width..][..width] } else { &mut d_z[..width] };
        let at = given.start(row);
        let d_p = if parameters > 0 { &mut sums_p[at..][..width] } else { &mut d_p[..width] };
        let d_q = if parameters > 1 { &mut sums_q[at..][..width] } else { &mut d_q[..width] };
        for c in 0..width {
            let [by_x, by_y, by_z, by_p, by_q] =
                slopes::<E, FUSED, F>([x[c], y[c], z[c], p[c], q[c]], numbers);
            d_x[c] = dy[c] * by_x;
            if tensors > 1 {
                d_y[c] = dy[c] * by_y;
            }
            if tensors > 2 {
                d_z[c] = dy[c] * by_z;
            }
            if parameters > 0 {
                d_p[c] += (dy[c] * by_p).to_f64();
            }
            if parameters > 1 {
                d_q[c] += (dy[c] * by_q).to_f64();
            }
        }
    }
}
