//! Jobs for kernels that walk over time channel by channel: some channels of one head each, and where they write.

use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::dense::Real;
use super::room::Room;
use super::vector::Vector;

/// Most channels of a job.
pub(super) const CHANNELS: usize = 256;

/// Channels of a whole cache line.
const LINE: usize = 16;

/// Steps of all jobs together from which on several threads are worth waking.
const LARGE: usize = 1 << 15;

/// `[t, n]` where it lies, one head of a tensor `[b, h, t, n]` that jobs write their channels of.
pub(super) struct Target<E> {
    start: *mut MaybeUninit<E>,
    length: usize,
    stride: usize,
}

impl<E> Clone for Target<E> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<E> Copy for Target<E> {}

#[allow(unsafe_code, reason = "jobs write different channels of the same rows")]
// SAFETY: it is an address; who writes what is the business of `row`.
unsafe impl<E: Send> Send for Target<E> {}
#[allow(unsafe_code, reason = "jobs write different channels of the same rows")]
// SAFETY: as above.
unsafe impl<E: Send> Sync for Target<E> {}

impl<E> Target<E> {
    pub(super) fn new(room: &mut Room<E>, stride: usize) -> Self
    where
        E: Vector,
    {
        let numbers = room.numbers();
        Self { start: numbers.as_mut_ptr(), length: numbers.len(), stride }
    }

    /// `count` channels from `first` on of row `index`, of all heads' rows.
    ///
    /// # Safety
    /// The numbers that it was made of must still be borrowed, and no other job may hold these channels.
    #[inline(always)]
    #[allow(unsafe_code, reason = "jobs write different channels of the same rows")]
    pub(super) unsafe fn row<'a>(self, index: usize, first: usize, count: usize) -> &'a mut [MaybeUninit<E>] {
        let start = index * self.stride + first;
        assert!(first + count <= self.stride && start + count <= self.length, "no such row");
        // SAFETY: within the numbers; the caller's for the rest.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), count) }
    }
}

/// One job: `count` channels from `first` on of head `head`.
#[derive(Clone, Copy)]
pub(super) struct Share {
    pub(super) head: usize,
    pub(super) first: usize,
    pub(super) count: usize,
}

/// All jobs: as many channels as leave some for every thread, because whole rows are read fastest.
pub(super) fn shares([b, h, _, n]: [usize; 4]) -> Vec<Share> {
    let parts = rayon::current_num_threads().div_ceil(b * h);
    let width = n.div_ceil(parts).next_multiple_of(LINE).min(CHANNELS);
    let channels =
        |head| (0..n).step_by(width).map(move |first| Share { head, first, count: width.min(n - first) });
    (0..b * h).flat_map(channels).collect()
}

/// Does all jobs of a tensor `[b, h, t, n]`, which take so many `steps` for every number, and tells each its place.
pub(super) fn for_all(dims: [usize; 4], steps: usize, job: impl Fn(usize, Share) + Send + Sync) {
    let all = shares(dims);
    if dims.iter().product::<usize>() * steps < LARGE {
        return all.into_iter().enumerate().for_each(|(index, share)| job(index, share));
    }
    all.into_par_iter().enumerate().for_each(|(index, share)| job(index, share));
}

/// What the jobs of each head made, added up: `[a, parts, size] -> [a, size]`.
pub(super) fn added<E: Real>(numbers: Vec<E>, parts: usize, size: usize) -> Vec<E> {
    if parts == 1 {
        return numbers;
    }
    let add = |all: &[E]| {
        let (first, others) = all.split_at(size);
        let mut sum = first.to_vec();
        for other in others.chunks_exact(size) {
            sum.iter_mut().zip(other).for_each(|(sum, &x)| *sum += x);
        }
        sum
    };
    numbers.chunks_exact(parts * size).flat_map(add).collect()
}
