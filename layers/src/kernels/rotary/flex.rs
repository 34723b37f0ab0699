//! The kernel on Flex.

use burn::backend::Flex;
use burn::tensor::DType;
use rayon::prelude::*;

use super::Passes;
use crate::kernels::vector::{Vector, fused, vectors};
use crate::kernels::view::{Double, Number, Primitive, View, view};

/// Rows of a job.
const ROWS: usize = 256;

impl Passes for Flex {
    fn rotate(x: &Primitive, table: &Primitive, back: bool) -> Primitive {
        match x.dtype() {
            DType::F64 => rotate_in::<Double>(x, table, back),
            _ => rotate_in::<f32>(x, table, back),
        }
    }
}

fn rotate_in<E: Number + Vector>(x: &Primitive, table: &Primitive, back: bool) -> Primitive {
    let (x, table) = (view::<E>(x), view::<E>(table));
    let width = x.dims[3];
    let mut y = vec![E::default(); x.dims.iter().product()];
    if y.len() <= ROWS * width {
        // One token, mostly: no thread is worth waking.
        turn(x, table, back, 0, &mut y);
    } else {
        let jobs = y.par_chunks_mut(ROWS * width).enumerate();
        jobs.for_each(|(i, y)| turn(x, table, back, i * ROWS, y));
    }
    E::tensor(y, &x.dims)
}

vectors! {
    /// Fills rows of `y: [b h t, n]` from `first` on.
    fn turn = turn_rows(x: View<'_, E>, table: View<'_, E>, back: bool, first: usize, y: &mut [E])
}

#[inline(always)]
fn turn_rows<E: Vector, const FUSED: bool>(
    x: View<'_, E>,
    table: View<'_, E>,
    back: bool,
    first: usize,
    y: &mut [E],
) {
    let ([_, h, t, n], [rows, .., columns]) = (x.dims, table.dims);
    let half = columns / 2;
    let sign = E::of(if back { -1.0 } else { 1.0 });
    let (mut from, mut angles) = (vec![E::default(); n], vec![E::default(); columns]);
    for (i, y) in y.chunks_exact_mut(n).enumerate() {
        let (head, token) = ((first + i) / t, (first + i) % t);
        let x = x.head(head).some(token, 0, n, &mut from);
        let table = table.head(if rows == 1 { 0 } else { head / h });
        let (cos, sin) = table.some(token, 0, columns, &mut angles).split_at(half);
        let (early, x) = x.split_at(half);
        let (late, rest) = x.split_at(half);
        let (y_early, y) = y.split_at_mut(half);
        let (y_late, y) = y.split_at_mut(half);
        for i in 0..half {
            let sin = sin[i] * sign;
            y_early[i] = fused::<E, FUSED>(early[i], cos[i], -(late[i] * sin));
            y_late[i] = fused::<E, FUSED>(late[i], cos[i], early[i] * sin);
        }
        y.copy_from_slice(rest);
    }
}
