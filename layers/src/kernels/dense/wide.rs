//! Products in registers of 512 bits, by hand: the compiler spills or shuffles tiles this large.
//!
//! A tile is 8 rows by two registers; 16 sums are enough to hide the latency of a fused product on two ports, and ten
//! loads for 16 products keep them fed from the nearest cache.

use std::arch::x86_64::{
    __m512, __m512d, _mm512_add_pd, _mm512_add_ps, _mm512_fmadd_pd, _mm512_fmadd_ps, _mm512_loadu_pd,
    _mm512_loadu_ps, _mm512_set1_pd, _mm512_set1_ps, _mm512_setzero_pd, _mm512_setzero_ps, _mm512_storeu_pd,
    _mm512_storeu_ps,
};

use super::{ALIGNED, Job, Part, WIDEST};

/// Rows of a register tile; rows of matrices are padded to a multiple of it.
const TALL: usize = ALIGNED;

const _: () = assert!(WIDEST.is_multiple_of(TALL) && TALL.is_multiple_of(super::TALL));

macro_rules! wide {
    ($name:ident, $tile:ident, $real:ty, $register:ty, $lanes:literal, $zero:ident, $load:ident, $store:ident, $spread:ident, $fused:ident, $add:ident) => {
        /// See [`Matrix::set_product`](super::Matrix::set_product).
        #[target_feature(enable = "avx512f")]
        #[allow(unsafe_code, reason = "tiles are addressed without checks; their corners are checked before")]
        pub(super) fn $name(job: Job<'_, $real>) {
            let Job { c, a, turned, b, part, add } = job;
            let depth = if turned { a.rows } else { a.columns };
            assert!(depth == b.rows && c.columns == b.columns, "sizes do not match");
            let columns = c.columns.next_multiple_of($lanes);
            let rows = c.rows.next_multiple_of(TALL);
            // What the tiles reach, whole ones.
            let (a_rows, a_columns) = if turned { (depth, rows) } else { (rows, depth) };
            assert!(columns <= c.stride && rows * c.stride <= c.numbers.len(), "no room");
            assert!(columns <= b.stride && depth * b.stride <= b.numbers.len(), "no room");
            assert!(a_columns <= a.stride && a_rows * a.stride <= a.numbers.len(), "no room");
            let mut column = 0;
            while column < columns {
                let width = (columns - column).min(2 * $lanes);
                for row in (0..rows).step_by(TALL) {
                    if part == Part::Lower && column >= row + TALL {
                        continue;
                    }
                    let (from, to) = match part {
                        Part::Whole | Part::Lower => (0, depth),
                        Part::LeftLower if turned => (row.min(depth), depth),
                        Part::LeftLower => (0, (row + TALL).min(depth)),
                    };
                    let count = to - from;
                    // SAFETY: the tile, `count` rows of `b` and as many rows or columns of `a` lie within what
                    // was asserted above.
                    unsafe {
                        let out = c.numbers.as_mut_ptr().add(row * c.stride + column);
                        let right = b.numbers.as_ptr().wrapping_add(from * b.stride + column);
                        if turned {
                            let left = a.numbers.as_ptr().wrapping_add(from * a.stride + row);
                            if width > $lanes {
                                $tile::<2>(out, c.stride, left, 1, a.stride, right, b.stride, count, add);
                            } else {
                                $tile::<1>(out, c.stride, left, 1, a.stride, right, b.stride, count, add);
                            }
                        } else {
                            let left = a.numbers.as_ptr().wrapping_add(row * a.stride + from);
                            if width > $lanes {
                                $tile::<2>(out, c.stride, left, a.stride, 1, right, b.stride, count, add);
                            } else {
                                $tile::<1>(out, c.stride, left, a.stride, 1, right, b.stride, count, add);
                            }
                        }
                    }
                }
                column += width;
            }
        }

        /// `out = Σ left right`, or added to it. `left` steps by `down` from row to row and by `on` along the sum.
        #[inline]
        #[target_feature(enable = "avx512f")]
        #[allow(unsafe_code, reason = "addresses are the caller's business")]
        #[allow(clippy::too_many_arguments, reason = "three matrices with their strides")]
        #[allow(clippy::needless_range_loop, reason = "fixed bounds, so that the tile stays in registers")]
        unsafe fn $tile<const N: usize>(
            out: *mut $real,
            out_stride: usize,
            left: *const $real,
            down: usize,
            on: usize,
            right: *const $real,
            right_stride: usize,
            count: usize,
            add: bool,
        ) {
            // SAFETY: the caller's.
            unsafe {
                let mut sums: [[$register; N]; TALL] = [[$zero(); N]; TALL];
                // Two pointers and four offsets, all of which fit an address.
                let (mut left, mut right) = (left, right);
                let mut low = left.wrapping_add(4 * down);
                let offsets = [0, down, 2 * down, 3 * down];
                for _ in 0..count {
                    let mut columns = [$zero(); N];
                    for n in 0..N {
                        columns[n] = $load(right.add(n * $lanes));
                    }
                    for i in 0..TALL {
                        let x = $spread(*if i < 4 { left } else { low }.add(offsets[i % 4]));
                        for n in 0..N {
                            sums[i][n] = $fused(x, columns[n], sums[i][n]);
                        }
                    }
                    left = left.wrapping_add(on);
                    low = low.wrapping_add(on);
                    right = right.wrapping_add(right_stride);
                }
                for i in 0..TALL {
                    for n in 0..N {
                        let to = out.add(i * out_stride + n * $lanes);
                        let sum = if add { $add($load(to), sums[i][n]) } else { sums[i][n] };
                        $store(to, sum);
                    }
                }
            }
        }
    };
}

wide!(
    product_f32,
    tile_f32,
    f32,
    __m512,
    16,
    _mm512_setzero_ps,
    _mm512_loadu_ps,
    _mm512_storeu_ps,
    _mm512_set1_ps,
    _mm512_fmadd_ps,
    _mm512_add_ps
);
wide!(
    product_f64,
    tile_f64,
    f64,
    __m512d,
    8,
    _mm512_setzero_pd,
    _mm512_loadu_pd,
    _mm512_storeu_pd,
    _mm512_set1_pd,
    _mm512_fmadd_pd,
    _mm512_add_pd
);
