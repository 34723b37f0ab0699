//! The kernel on Flex: one matrix at a time.

use burn::backend::{DispatchDevice, Flex};
use burn::tensor::{DType, Tensor};
use rayon::prelude::*;

use super::FEW;
use crate::kernels::lanes::add;
use crate::kernels::rows::{PANEL, Panels, TALL, add_product, add_row};
use crate::kernels::vector::{Vector, dots, vectors};
use crate::kernels::view::{Double, Head, Number, View, computes, view};

/// Numbers of a matrix from which on several threads are worth waking.
const LARGE: usize = 1 << 18;

/// `x W + b` of `x: [rows, n]`, `weight: [n, m]` and `bias: [m]`; `None` where it is not for this kernel: many rows,
/// gradients, another device or element type, shapes that do not fit.
pub(crate) fn run(x: &Tensor<2>, weight: &Tensor<2>, bias: Option<&Tensor<1>>) -> Option<Tensor<2>> {
    let ([rows, n], [depth, m]) = (x.dims(), weight.dims());
    let here = |device: burn::tensor::Device| matches!(device.as_dispatch(), DispatchDevice::Flex(_));
    let fits = computes(x.dtype())
        && FEW.contains(&rows)
        && n == depth
        && n * m > 0
        && bias.is_none_or(|bias| bias.dims() == [m] && bias.dtype() == x.dtype())
        && weight.dtype() == x.dtype()
        && here(x.device())
        && here(weight.device());
    match x.dtype() {
        DType::F32 if fits => run_in::<f32>(x, weight, bias),
        DType::F64 if fits => run_in::<Double>(x, weight, bias),
        _ => None,
    }
}

fn run_in<E: Number + Vector>(
    x: &Tensor<2>,
    weight: &Tensor<2>,
    bias: Option<&Tensor<1>>,
) -> Option<Tensor<2>> {
    let primitive = |x: Tensor<4>| x.try_into_primitive::<Flex>().ok();
    let (x, weight) = (primitive(x.clone().unsqueeze())?, primitive(weight.clone().unsqueeze())?);
    let bias = match bias {
        Some(bias) => Some(primitive(bias.clone().unsqueeze())?),
        None => None,
    };
    let (x, weight) = (view::<E>(&x), view::<E>(&weight));
    let ([.., rows, n], [.., m]) = (x.dims, weight.dims);
    let mut left = vec![E::default(); rows * n];
    left.chunks_exact_mut(n).enumerate().for_each(|(i, row)| x.head(0).copy(i, 0, row));
    let mut y = vec![E::default(); rows * m];
    if let Some(bias) = &bias {
        y.chunks_exact_mut(m).for_each(|row| view::<E>(bias).head(0).copy(0, 0, row));
    }
    multiply(&left, weight, &mut y);
    Some(Tensor::from_primitive::<Flex>(E::tensor(y, &[rows, m])))
}

/// `y += left weight`
fn multiply<E: Vector>(left: &[E], weight: View<'_, E>, y: &mut [E]) {
    let [.., n, m] = weight.dims;
    let one = left.len() == n && n * m >= LARGE;
    if weight.strides[2] == 1 && weight.strides[3] != 1 {
        // The transpose of a matrix that lies row by row: its columns are contiguous.
        let columns = weight.head(0).turned();
        match one {
            true => y.par_chunks_mut(PANEL).enumerate().for_each(|(index, y)| {
                all_dots(left, columns, index * PANEL, y.len(), y);
            }),
            false => all_dots(left, columns, 0, m, y),
        }
        return;
    }
    let matrix = Panels::new(weight, 1);
    if one {
        let panels = y.par_chunks_mut(PANEL).enumerate();
        panels.for_each(|(index, y)| one_panel(left, &matrix, index, y));
    } else {
        all_panels(left, &matrix, y, &mut Vec::new());
    }
}

vectors! {
    fn all_panels =
        add_product(left: &[E], matrix: &Panels<'_, E>, y: &mut [E], space: &mut Vec<[E; TALL]>)
}

vectors! {
    fn one_panel = add_row(left: &[E], matrix: &Panels<'_, E>, index: usize, y: &mut [E])
}

vectors! {
    fn all_dots = add_dots(left: &[E], columns: Head<'_, E>, first: usize, count: usize, y: &mut [E])
}

/// Columns whose products are made together, so that their sums do not wait for one another.
const BLOCK: usize = 4;

/// `y += left columns` for `count` columns from `first` on, of which `y` has as many in each row.
#[inline(always)]
fn add_dots<E: Vector, const FUSED: bool>(
    left: &[E],
    columns: Head<'_, E>,
    first: usize,
    count: usize,
    y: &mut [E],
) {
    let depth = left.len() / (y.len() / count);
    for from in (0..count).step_by(BLOCK) {
        let mut block: [&[E]; BLOCK] = [&[]; BLOCK];
        for (i, column) in block.iter_mut().enumerate() {
            // The last column stands for those after it.
            let index = first + (from + i).min(count - 1);
            *column = columns.slice(index, 0, depth).expect("columns are contiguous");
        }
        for (left, y) in left.chunks_exact(depth).zip(y.chunks_exact_mut(count)) {
            add(&mut y[from..(from + BLOCK).min(count)], &dots::<E, FUSED, BLOCK>(left, block));
        }
    }
}
