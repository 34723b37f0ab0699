//! Room for results of kernels on Flex, which are written once.

use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::slice;

use super::dense::{Matrix, Real};
use super::view::{Number, Primitive};

/// Copies a matrix to the front of a [`Room`] or a part of one; past the caches if all that is `streamed` there would
/// not stay in them anyway, which saves reading what is overwritten.
pub(super) fn put<E: Real>(from: &Matrix<E>, out: &mut [MaybeUninit<E>], streamed: bool) {
    let columns = from.row(0).len();
    for (out, row) in out.chunks_exact_mut(columns).zip(from.rows()) {
        copy(row, out, streamed);
    }
}

#[inline]
fn copy<E: Real>(from: &[E], to: &mut [MaybeUninit<E>], streamed: bool) {
    if !(streamed && stream(from, to)) {
        to.write_copy_of_slice(from);
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

    /// Every head's rows of a result `[b, h, t, n]`.
    #[allow(unsafe_code, reason = "where tokens lie outside, rows of heads alternate")]
    pub(super) fn heads(&mut self, [b, h, t, n]: [usize; 4], order: Order) -> Vec<HeadRoom<'_, E>> {
        assert_eq!(self.0.len(), b * h * t * n, "room for something else");
        let start = self.0.as_mut_ptr();
        let head = |index: usize| {
            let (first, stride) = match order {
                Order::Heads => (index * t * n, n),
                Order::Tokens => (((index / h) * t * h + index % h) * n, h * n),
            };
            // SAFETY: a head's first row, which begins inside or, where there is none, at the end.
            let start = unsafe { start.add(first) };
            HeadRoom { start, stride, rows: t, width: n, room: PhantomData }
        };
        (0..b * h).map(head).collect()
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

/// In which order heads and tokens of a tensor `[b, h, t, n]` lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// `[b, h, t, n]`
    Heads,
    /// `[b, t, h, n]`, as projections make it
    Tokens,
}

impl Order {
    /// Numbers that lie in this order.
    pub(super) fn tensor<E: Number>(self, numbers: Vec<E>, [b, h, t, n]: [usize; 4]) -> Primitive {
        match self {
            Self::Heads => E::tensor(numbers, &[b, h, t, n]),
            Self::Tokens => E::tensor(numbers, &[b, t, h, n]).transpose(1, 2),
        }
    }
}

/// The rows of one head in a [`Room`], `[t, n]`.
#[derive(Debug)]
pub(super) struct HeadRoom<'a, E> {
    start: *mut MaybeUninit<E>,
    stride: usize,
    rows: usize,
    width: usize,
    room: PhantomData<&'a mut [MaybeUninit<E>]>,
}

// SAFETY: heads have no row in common.
#[allow(unsafe_code, reason = "see there")]
unsafe impl<E: Send> Send for HeadRoom<'_, E> {}

impl<E: Real> HeadRoom<'_, E> {
    #[allow(unsafe_code, reason = "rows of other heads may lie between")]
    fn row(&mut self, i: usize) -> &mut [MaybeUninit<E>] {
        assert!(i < self.rows, "there are fewer rows");
        // SAFETY: the row is inside the room, and nobody else has it.
        unsafe { slice::from_raw_parts_mut(self.start.add(i * self.stride), self.width) }
    }

    /// `count` rows at a time.
    pub(super) fn tiles(self, count: usize) -> impl Iterator<Item = Self> {
        let Self { start, stride, rows, width, room } = self;
        (0..rows).step_by(count).map(move |first| {
            // SAFETY: there is such a row.
            #[allow(unsafe_code, reason = "see there")]
            let start = unsafe { start.add(first * stride) };
            Self { start, stride, rows: count.min(rows - first), width, room }
        })
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Writes rows from `first` on. What is `streamed` goes past the caches, if it lies as that needs and row after row.
    pub(super) fn put<'r>(&mut self, first: usize, rows: impl Iterator<Item = &'r [E]>, streamed: bool) {
        let streamed = streamed && self.stride == self.width;
        for (i, row) in rows.enumerate() {
            copy(row, self.row(first + i), streamed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::view::view;

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

    /// In both orders every head's rows are where a view finds them, and all of them are there.
    #[test]
    fn heads_are_where_views_find_them() {
        let dims @ [b, h, t, n] = [2, 3, 5, 4];
        for (order, streamed) in [Order::Heads, Order::Tokens].into_iter().zip([true, false]) {
            let mut room = Room::<f32>::new(b * h * t * n);
            for (index, head) in room.heads(dims, order).into_iter().enumerate() {
                let numbers: Vec<_> = (0..t * n).map(|i| (index * 100 + i) as f32).collect();
                for (i, mut tile) in head.tiles(2).enumerate() {
                    let numbers = &numbers[2 * i * n..][..tile.rows() * n];
                    tile.put(1, numbers[n..].chunks(n), streamed);
                    tile.put(0, numbers[..n].chunks(n), streamed);
                }
            }
            // SAFETY: rooms are full of NaN in tests.
            #[allow(unsafe_code, reason = "see there")]
            let tensor = order.tensor(unsafe { room.written() }, dims);
            let found = view::<f32>(&tensor);
            assert_eq!((found.dims, found.order()), (dims, order));
            for index in 0..b * h {
                for i in 0..t {
                    let mut row = [0.0; 4];
                    found.head(index).copy(i, 0, &mut row);
                    let expected: [f32; 4] = std::array::from_fn(|j| (index * 100 + i * n + j) as f32);
                    assert_eq!(row, expected, "{order:?}");
                }
            }
        }
    }
}
