//! Tensors on Flex where they lie, for kernels that work on slices.

use burn::backend::tensor::FloatTensor;
use burn::backend::{DispatchDevice, Flex};
use burn::tensor::{DType, Tensor, TensorData};

use super::dense::{Matrix, Real};
use super::room::Order;

/// A tensor on Flex.
pub(super) type Primitive = FloatTensor<Flex>;

/// What kernels in double precision compute with. In a browser there are none: pages would load them for nobody.
#[cfg(not(target_family = "wasm"))]
pub(super) type Double = f64;
#[cfg(target_family = "wasm")]
pub(super) type Double = f32;

/// Whether kernels compute with such numbers.
pub(super) fn computes(dtype: DType) -> bool {
    dtype == DType::F32 || dtype == DType::F64 && cfg!(not(target_family = "wasm"))
}

/// Whether `x` lies on Flex and is of numbers that kernels compute with.
pub(super) fn fits<const D: usize>(x: &Tensor<D>) -> bool {
    computes(x.dtype()) && matches!(x.device().inner().as_dispatch(), DispatchDevice::Flex(_))
}

/// As [`fits`], for kernels that a page would load for few readers: there they are left out.
pub(super) fn fits_outside_pages<const D: usize>(x: &Tensor<D>) -> bool {
    cfg!(not(target_family = "wasm")) && fits(x)
}

/// Numbers that tensors on Flex hold.
pub(super) trait Number: Real {
    fn numbers(tensor: &Primitive) -> &[Self];
    /// To change; `None` while something else holds them.
    fn numbers_mut(tensor: &mut Primitive) -> Option<&mut [Self]>;
    fn tensor(numbers: Vec<Self>, shape: &[usize]) -> Primitive;
}

macro_rules! number {
    ($($number:ty)*) => {$(
        impl Number for $number {
            fn numbers(tensor: &Primitive) -> &[Self] {
                tensor.storage()
            }

            fn numbers_mut(tensor: &mut Primitive) -> Option<&mut [Self]> {
                tensor.try_storage_mut()
            }

            fn tensor(numbers: Vec<Self>, shape: &[usize]) -> Primitive {
                Primitive::from_data(TensorData::new(numbers, shape.to_vec()))
            }
        }
    )*};
}

number!(f32 f64);

/// `tensor: [b, h, ..]` as a view of rank 4.
pub(super) fn view<E: Number>(tensor: &Primitive) -> View<'_, E> {
    let layout = tensor.layout();
    let (mut dims, mut strides) = ([1; 4], [1; 4]);
    for (i, (dim, stride)) in layout.shape().iter().zip(layout.strides()).enumerate() {
        (dims[i], strides[i]) = (*dim, *stride);
    }
    View { numbers: E::numbers(tensor), start: layout.start_offset(), dims, strides }
}

/// A tensor `[b, h, t, n]` where it lies, in any order of its axes.
#[derive(Clone, Copy, Debug)]
pub(super) struct View<'a, E> {
    pub(super) numbers: &'a [E],
    pub(super) start: usize,
    pub(super) dims: [usize; 4],
    pub(super) strides: [isize; 4],
}

/// One head of a [`View`]: `[t, n]`.
#[derive(Clone, Copy)]
pub(super) struct Head<'a, E> {
    numbers: &'a [E],
    start: isize,
    strides: [isize; 2],
}

impl<'a, E: Real> View<'a, E> {
    /// Which of heads and tokens lie outside.
    pub(super) fn order(&self) -> Order {
        let ([_, heads, tokens, _], [_, head, token, _]) = (self.dims, self.strides);
        if heads > 1 && tokens > 1 && token > head { Order::Tokens } else { Order::Heads }
    }

    /// Head `index` of all `b h`.
    #[inline]
    pub(super) fn head(&self, index: usize) -> Head<'a, E> {
        let [_, heads, ..] = self.dims;
        let [b, h, t, n] = self.strides;
        let start = self.start as isize + (index / heads) as isize * b + (index % heads) as isize * h;
        Head { numbers: self.numbers, start, strides: [t, n] }
    }
}

impl<'a, E: Real> Head<'a, E> {
    /// Its transpose.
    pub(super) fn turned(self) -> Self {
        Self { strides: [self.strides[1], self.strides[0]], ..self }
    }

    /// Its columns from `first` on.
    pub(super) fn columns_from(self, first: usize) -> Self {
        Self { start: self.start + first as isize * self.strides[1], ..self }
    }

    /// Where row `i` starts.
    #[inline(always)]
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

    /// Has `count` rows of `width` numbers from row `first` on brought near, where they lie side by side.
    #[inline]
    #[allow(unsafe_code, reason = "a hint: it reads nothing that the program could see")]
    #[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables, reason = "there is no hint to give"))]
    pub(super) fn prefetch(&self, first: usize, count: usize, width: usize) {
        #[cfg(target_arch = "x86_64")]
        if self.strides[1] == 1 {
            use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
            for i in first..first + count {
                let row = &self.numbers[self.row(i) as usize..][..width];
                for line in row.chunks(64 / size_of::<E>()) {
                    // SAFETY: the address is inside a slice, and a hint may be given for any.
                    unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) };
                }
            }
        }
    }

    /// `count` numbers of row `i` from column `first` on, if they lie side by side.
    #[inline(always)]
    pub(super) fn slice(&self, i: usize, first: usize, count: usize) -> Option<&'a [E]> {
        let start = self.row(i) as usize + first;
        (self.strides[1] == 1).then(|| &self.numbers[start..][..count])
    }

    /// `count` numbers of row `i` from column `first` on: where they lie, or copied to `space` where they do not lie
    /// side by side.
    #[inline(always)]
    pub(super) fn some<'b>(&self, i: usize, first: usize, count: usize, space: &'b mut [E]) -> &'b [E]
    where
        'a: 'b,
    {
        if let Some(row) = self.slice(i, first, count) {
            return row;
        }
        self.copy(i, first, &mut space[..count]);
        &space[..count]
    }

    /// Copies numbers of row `i` from column `first` on, as many as fit.
    #[inline]
    pub(super) fn copy(&self, i: usize, first: usize, to: &mut [E]) {
        if let Some(row) = self.slice(i, first, to.len()) {
            return to.copy_from_slice(row);
        }
        let place = |j: usize| (self.row(i) + (first + j) as isize * self.strides[1]) as usize;
        to.iter_mut().enumerate().for_each(|(j, x)| *x = self.numbers[place(j)]);
    }

    /// The first number of `count` rows from `first` on.
    pub(super) fn column(&self, first: usize, count: usize) -> impl Iterator<Item = f64> {
        (first..first + count).map(|i| self.numbers[self.row(i) as usize].to_f64())
    }
}

/// A matrix for rows `first..first + rows`, read from `head`.
pub(super) fn read<E: Real>(
    to: &mut Matrix<E>,
    head: Head<'_, E>,
    (first, rows): (usize, usize),
    columns: usize,
) {
    to.resize(rows, columns);
    head.read(first, to);
}

/// Copies a matrix to the front of `out`.
pub(super) fn write<E: Real>(from: &Matrix<E>, out: &mut [E]) {
    let columns = from.row(0).len();
    out.chunks_exact_mut(columns).zip(from.rows()).for_each(|(out, row)| out.copy_from_slice(row));
}
