//! The inverse of a unit lower-triangular matrix, which solves for the reads of a chunk.

use burn::tensor::{Int, Tensor, TensorData};

use super::scan::pad;

/// `(I + L)^{-1}` for strictly lower-triangular `L: [.., q, q]`.
///
/// The inverse `X₀` is computed without a graph. Its derivative is `-X₀ dL X₀`, which is what one Newton step
/// `X₀ - X₀ ((I + L) X₀ - I)` from the constant `X₀` has, at the cost of two products.
pub(crate) fn unit_lower_inverse(l: Tensor<5>) -> Tensor<5> {
    let [b, h, c, size, _] = l.dims();
    let l = l.reshape([b * h * c, size, size]);
    let exact = by_blocks(l.clone().inner());
    let inverse = if l.is_autodiff() {
        let eye = Tensor::<2>::eye(size, &exact.device()).cast(exact.dtype()).unsqueeze::<3>();
        let residual = l.matmul(exact.clone()) + exact.clone() - eye;
        exact.clone() - exact.matmul(residual)
    } else {
        exact
    };
    inverse.reshape([b, h, c, size, size])
}

/// The same for `[r, q, q]`, by merging diagonal blocks of doubling size:
/// `[[A, 0], [B, C]]^{-1} = [[A^{-1}, 0], [-C^{-1} B A^{-1}, C^{-1}]]`. As stable as forward substitution, unlike
/// the product `(I - L)(I + L²)…`, whose powers can grow before they vanish.
fn by_blocks(l: Tensor<3>) -> Tensor<3> {
    let [rows, given, _] = l.dims();
    let size = given.next_power_of_two();
    let l = pad(pad(l, 1, size), 2, size).reshape([rows, size * size]);
    // Blocks of one are 1.
    let mut inverse = Tensor::<3>::ones([rows * size, 1, 1], (&l.device(), l.dtype()));
    let mut block = 1;
    while block < size {
        let pairs = size / (2 * block);
        let halves = inverse.reshape([rows * pairs, 2, block, block]);
        let half = |i| halves.clone().narrow(1, i, 1).squeeze_dim::<3>(1);
        let (a, c) = (half(0), half(1));
        let below =
            l.clone().select(1, below_diagonal(size, block, &l)).reshape([rows * pairs, block, block]);
        let corner = match block {
            1 => below.neg(),
            _ => c.clone().matmul(below).matmul(a.clone()).neg(),
        };
        let top = Tensor::cat(vec![a.clone(), a.zeros_like()], 2);
        inverse = Tensor::cat(vec![top, Tensor::cat(vec![corner, c], 2)], 1);
        block *= 2;
    }
    inverse.narrow(1, 0, given).narrow(2, 0, given)
}

/// Places in a flat `[size, size]` matrix of the block below each pair of diagonal blocks.
fn below_diagonal(size: usize, block: usize, like: &Tensor<2>) -> Tensor<1, Int> {
    let starts = (0..size).step_by(2 * block);
    let places = starts.flat_map(|start| {
        (0..block).flat_map(move |i| (0..block).map(move |j| ((start + block + i) * size + start + j) as i64))
    });
    let places: Vec<i64> = places.collect();
    let count = places.len();
    Tensor::from_data(TensorData::new(places, [count]), &like.device())
}

#[cfg(test)]
mod tests {
    use burn::tensor::{DType, Device};

    use super::*;
    use crate::testing::{Draw, gap, numbers};

    fn strictly_lower(size: usize, scale: f64) -> Tensor<5> {
        Draw::new(size as u64).tensor::<5>([2, 1, 3, size, size], -scale, scale).tril(-1).cast(DType::F64)
    }

    #[test]
    fn it_solves_for_every_size() {
        for size in [1, 2, 3, 5, 8, 16, 31, 64] {
            let l = strictly_lower(size, 0.5);
            let eye = Tensor::<2>::eye(size, &Device::flex()).cast(DType::F64).reshape([1, 1, 1, size, size]);
            let product = (l.clone() + eye.clone()).matmul(unit_lower_inverse(l.clone()));
            assert!(gap(product, eye.expand(l.dims())) < 1e-12, "size {size}");
        }
    }

    /// `dX = -X dL X`, so the gradient of `Σ C ∘ X` is `-Xᵀ C Xᵀ`.
    #[test]
    fn its_gradient_is_that_of_the_inverse() {
        for size in [1, 5, 16] {
            let l = strictly_lower(size, 0.7).autodiff().require_grad();
            let cotangent = Draw::new(9).tensor::<5>(l.dims(), -1.0, 1.0).cast(DType::F64);
            let inverse = unit_lower_inverse(l.clone());
            let grads = (inverse.clone() * cotangent.clone()).sum().backward();
            let turned = inverse.inner().swap_dims(3, 4);
            let expected = turned.clone().matmul(cotangent).matmul(turned).neg();
            let found = l.grad(&grads).unwrap();
            assert!(numbers(expected.clone()).iter().any(|x| *x != 0.0) || size == 1);
            assert!(gap(found, expected) < 1e-12, "size {size}");
        }
    }
}
