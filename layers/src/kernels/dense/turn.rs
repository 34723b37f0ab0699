//! Transposing in registers of 512 bits, sixteen by sixteen numbers at a time.

use std::arch::x86_64::{
    __m512, _mm512_castpd_ps, _mm512_castps_pd, _mm512_loadu_ps, _mm512_setzero_ps, _mm512_shuffle_f32x4,
    _mm512_storeu_ps, _mm512_unpackhi_pd, _mm512_unpackhi_ps, _mm512_unpacklo_pd, _mm512_unpacklo_ps,
};

use super::{Rows, WIDEST};

/// Numbers of a register, and rows and columns of a tile.
const SIDE: usize = 16;

const _: () = assert!(WIDEST == SIDE, "matrices have whole tiles");

/// See [`Matrix::set_transpose`](super::Matrix::set_transpose). Writes whole tiles, so beyond the rows and columns of `to`.
#[target_feature(enable = "avx512f")]
#[allow(unsafe_code, reason = "tiles are addressed without checks; their corners are checked before")]
pub(super) fn turn(to: Rows<&mut [f32]>, from: Rows<&[f32]>) {
    let [rows, columns] = [from.rows, from.columns].map(|count| count.next_multiple_of(SIDE));
    assert!(columns <= from.stride && rows * from.stride <= from.numbers.len(), "no room");
    assert!(rows <= to.stride && columns * to.stride <= to.numbers.len(), "no room");
    for row in (0..rows).step_by(SIDE) {
        for column in (0..columns).step_by(SIDE) {
            // SAFETY: both tiles lie within what was asserted above.
            unsafe {
                let out = to.numbers.as_mut_ptr().add(column * to.stride + row);
                tile(out, to.stride, from.numbers.as_ptr().add(row * from.stride + column), from.stride);
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
#[allow(unsafe_code, reason = "addresses are the caller's business")]
#[allow(clippy::needless_range_loop, reason = "fixed bounds, so that the tile stays in registers")]
unsafe fn tile(to: *mut f32, to_stride: usize, from: *const f32, from_stride: usize) {
    let mut rows: [__m512; SIDE] = [_mm512_setzero_ps(); SIDE];
    for i in 0..SIDE {
        // SAFETY: the caller's.
        rows[i] = unsafe { _mm512_loadu_ps(from.add(i * from_stride)) };
    }
    // Within each quarter of a register, two rows and then four beside each other.
    let mut pairs = rows;
    for i in 0..SIDE / 2 {
        pairs[2 * i] = _mm512_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
        pairs[2 * i + 1] = _mm512_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
    }
    let low = |x, y| _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(x), _mm512_castps_pd(y)));
    let high = |x, y| _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(x), _mm512_castps_pd(y)));
    // Column `j` of four rows in the first quarter, `4 + j` in the second, and so on.
    let mut fours = pairs;
    for i in 0..SIDE / 4 {
        fours[4 * i] = low(pairs[4 * i], pairs[4 * i + 2]);
        fours[4 * i + 1] = high(pairs[4 * i], pairs[4 * i + 2]);
        fours[4 * i + 2] = low(pairs[4 * i + 1], pairs[4 * i + 3]);
        fours[4 * i + 3] = high(pairs[4 * i + 1], pairs[4 * i + 3]);
    }
    // Even quarters of two registers, or odd ones.
    let even = |x, y| _mm512_shuffle_f32x4::<0x88>(x, y);
    let odd = |x, y| _mm512_shuffle_f32x4::<0xdd>(x, y);
    for j in 0..4 {
        let (first, second) = ([fours[j], fours[4 + j]], [fours[8 + j], fours[12 + j]]);
        let (evens, more_evens) = (even(first[0], first[1]), even(second[0], second[1]));
        let (odds, more_odds) = (odd(first[0], first[1]), odd(second[0], second[1]));
        let columns =
            [even(evens, more_evens), even(odds, more_odds), odd(evens, more_evens), odd(odds, more_odds)];
        for quarter in 0..4 {
            // SAFETY: the caller's.
            unsafe { _mm512_storeu_ps(to.add((4 * quarter + j) * to_stride), columns[quarter]) };
        }
    }
}
