//! Tensors on Flex where they lie, for kernels that work on slices.

use std::mem::MaybeUninit;

use burn::backend::tensor::FloatTensor;
use burn::backend::{DispatchDevice, Flex};
use burn::tensor::{DType, Tensor, TensorData};

use super::dense::{Matrix, Real};

/// A tensor on Flex.
pub(super) type Primitive = FloatTensor<Flex>;

/// Whether `x` lies on Flex and is of numbers that kernels compute with.
pub(super) fn fits<const D: usize>(x: &Tensor<D>) -> bool {
    matches!(x.dtype(), DType::F32 | DType::F64)
        && matches!(x.device().inner().as_dispatch(), DispatchDevice::Flex(_))
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

/// Copies a matrix to the front of a [`Room`] or a part of one; past the caches if all that is `streamed` there would
/// not stay in them anyway, which saves reading what is overwritten.
pub(super) fn put<E: Real>(from: &Matrix<E>, out: &mut [MaybeUninit<E>], streamed: bool) {
    let columns = from.row(0).len();
    for (out, row) in out.chunks_exact_mut(columns).zip(from.rows()) {
        if !(streamed && stream(row, out)) {
            out.write_copy_of_slice(row);
        }
    }
}

/// Copies numbers past the caches, if they lie as that needs.
#[cfg(target_arch = "x86_64")]
#[inline]
#[allow(unsafe_code, reason = "stores past the caches exist as instructions only")]
fn stream<E: Real>(from: &[E], to: &mut [MaybeUninit<E>]) -> bool {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_stream_si128};
    const BYTES: usize = size_of::<__m128i>();
    let bytes = size_of_val(from);
    let (from, to_start) = (from.as_ptr().cast::<__m128i>(), to.as_mut_ptr().cast::<__m128i>());
    if bytes != size_of_val(to) || !bytes.is_multiple_of(BYTES) || !to_start.is_aligned() {
        return false;
    }
    for i in 0..bytes / BYTES {
        // SAFETY: both are inside slices of this many bytes, and the address stored to is aligned.
        unsafe { _mm_stream_si128(to_start.add(i), _mm_loadu_si128(from.add(i))) };
    }
    true
}

#[cfg(not(target_arch = "x86_64"))]
fn stream<E: Real>(_from: &[E], _to: &mut [MaybeUninit<E>]) -> bool {
    false
}

/// Has other threads see what this one streamed, before they learn that it is done.
#[inline]
#[allow(unsafe_code, reason = "a fence exists as an instruction only")]
pub(super) fn streamed_all() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 has it.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}

/// Room for results that are written once, number by number: zeros before them would cost as many bytes again.
#[derive(Debug)]
pub(super) struct Room<E>(Box<[MaybeUninit<E>]>);

impl<E: Real> Room<E> {
    pub(super) fn new(count: usize) -> Self {
        let mut numbers = Box::new_uninit_slice(count);
        if cfg!(test) {
            numbers.fill(MaybeUninit::new(E::of(f64::NAN)));
        }
        Self(numbers)
    }

    pub(super) fn numbers(&mut self) -> &mut [MaybeUninit<E>] {
        &mut self.0
    }

    /// The numbers.
    ///
    /// # Safety
    ///
    /// Every one of them has been written.
    #[allow(unsafe_code, reason = "see there")]
    pub(super) unsafe fn written(self) -> Vec<E> {
        // SAFETY: as the caller says.
        unsafe { self.0.assume_init() }.into_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Streamed or not, aligned or not, whole vectors or not: what is read is what was put.
    #[test]
    fn what_is_put_is_there() {
        for (columns, start) in [(8, 0), (8, 1), (8, 4), (7, 0), (3, 2)] {
            let mut from = Matrix::<f32>::new(5, columns);
            from.rows_mut().flatten().enumerate().for_each(|(i, x)| *x = i as f32);
            for streamed in [false, true] {
                let mut room = Room::new(5 * columns + start);
                room.numbers()[..start].fill(MaybeUninit::new(-1.0));
                put(&from, &mut room.numbers()[start..], streamed);
                streamed_all();
                // SAFETY: rooms are full of NaN in tests.
                #[allow(unsafe_code, reason = "see there")]
                let found = unsafe { room.written() };
                let expected = (0..5 * columns).map(|i| i as f32);
                assert!(found.into_iter().skip(start).eq(expected), "{columns} columns from {start}");
            }
        }
    }
}
