//! Rotation of pairs of channels by angles that a table gives, in one pass, whose way back is the rotation by the
//! opposite angles:
//!
//! ```text
//! y_i = x_i cos_i - x_{i+r} sin_i,   y_{i+r} = x_{i+r} cos_i + x_i sin_i       i < r
//! ```
//!
//! Floor: memory, 8 bytes per number in `f32` either way.

#[cfg(feature = "flex")]
mod flex;
#[cfg(all(test, feature = "flex"))]
mod tests;

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, backend_extension};
use burn::tensor::Tensor;
#[cfg(feature = "cube")]
use burn_cubecl::CubeBackend as Cube;

#[cfg(feature = "cube")]
pub(crate) use super::cube::Turn;
use super::gradient::{self, track};

/// Whether a kernel can run these: see [`run`].
pub(crate) fn applies(x: &Tensor<4>, table: &Tensor<4>) -> bool {
    let ([b, _, t, n], [rows, one, time, columns]) = (x.dims(), table.dims());
    (rows == 1 || rows == b)
        && one == 1
        && time == t
        && columns.is_multiple_of(2)
        && columns <= n
        && x.dims().iter().all(|&size| size > 0)
        && x.dtype() == table.dtype()
        && device_applies(x)
}

/// Whether there is a kernel where `x` lies.
#[allow(unused_variables, reason = "it is used where there is a backend")]
fn device_applies(x: &Tensor<4>) -> bool {
    #[cfg(feature = "flex")]
    if super::view::fits(x) {
        return true;
    }
    #[cfg(feature = "cube")]
    if super::cube::fits(x, 1) {
        return true;
    }
    false
}

/// `x: [b, h, t, n]` with its first channels rotated by `table: [1 or b, 1, t, 2 r]`: cosines, then sines, of `r` angles.
pub(crate) fn run(x: Tensor<4>, table: Tensor<4>) -> Tensor<4> {
    Tensor::from_dispatch(<Dispatch as Rotary>::rotary(x.into_dispatch(), table.into_dispatch()))
}

/// The same for two tensors in one launch, if there is a table, and what else becomes of rows; `None` where they do not lie on a graphics device without gradients.
#[cfg(feature = "cube")]
pub(crate) fn run_two(
    x: &Tensor<4>,
    z: &Tensor<4>,
    table: Option<&Tensor<4>>,
    turn: Turn,
) -> Option<[Tensor<4>; 2]> {
    let fits = |x: &Tensor<4>| match table {
        Some(table) => applies(x, table),
        None => super::cube::fits(x, 1) && x.dims().iter().all(|&size| size > 0),
    };
    if !super::linear::on_graphics(x) || ![x, z].into_iter().all(fits) {
        return None;
    }
    let plain = |x: &Tensor<4>| x.clone().try_into_primitive::<Cube>().ok();
    let table = match table {
        Some(table) => Some(plain(table)?),
        None => None,
    };
    let both = super::cube::rotate_two(&plain(x)?, &plain(z)?, table.as_ref(), turn);
    Some(both.map(Tensor::from_primitive::<Cube>))
}

/// The operation as backends see it; see [`run`].
#[backend_extension(Flex: cfg(feature = "flex"), Cube: cfg(feature = "cube"), Autodiff)]
pub(crate) trait Rotary: Backend {
    /// See [`run`].
    fn rotary(x: FloatTensor<Self>, table: FloatTensor<Self>) -> FloatTensor<Self>;
}

/// A backend's kernel.
pub(crate) trait Passes: Backend {
    /// See [`run`]; `back` by the opposite angles.
    fn rotate(x: &FloatTensor<Self>, table: &FloatTensor<Self>, back: bool) -> FloatTensor<Self>;
}

macro_rules! rotary_of {
    ($($backend:ty, $feature:literal;)*) => {$(
        #[cfg(feature = $feature)]
        impl Rotary for $backend {
            fn rotary(x: FloatTensor<Self>, table: FloatTensor<Self>) -> FloatTensor<Self> {
                Self::rotate(&x, &table, false)
            }
        }
    )*};
}

rotary_of!(burn::backend::Flex, "flex"; Cube, "cube";);

/// What the way back needs.
#[derive(Clone, Debug)]
struct Angles<B: Backend>(FloatTensor<B>);

impl<B: Passes> gradient::Saved<B, 1> for Angles<B> {
    fn gradients(self, dy: FloatTensor<B>, _wanted: [bool; 1]) -> [Option<FloatTensor<B>>; 1] {
        [Some(B::rotate(&dy, &self.0, true))]
    }
}

impl<B: Rotary + Passes, C: CheckpointStrategy> Rotary for Autodiff<B, C> {
    fn rotary(x: FloatTensor<Self>, table: FloatTensor<Self>) -> FloatTensor<Self> {
        let nodes = [x.node()];
        let (x, table) = (x.into_primitive(), table.into_primitive());
        track::<B, C, _, 1>(nodes, |_| (B::rotate(&x, &table, false), Angles(table)))
    }
}
