//! Both passes on graphics devices.

use burn::backend::tensor::FloatTensor;
use burn::tensor::Tensor;
use burn_cubecl::CubeBackend as Cube;

use super::Passes;
use crate::kernels::cube::tiled;
pub(super) use crate::kernels::cube::tiled::fits;

type Primitive = FloatTensor<Cube>;

/// The outputs and the last memory of inputs that lie on a graphics device without gradients.
pub(super) fn untracked(inputs: &[Tensor<4>], block: Option<usize>) -> Option<(Tensor<4>, Tensor<4>)> {
    let plain = |x: &Tensor<4>| x.clone().try_into_primitive::<Cube>().ok();
    let inputs: Vec<Primitive> = inputs.iter().map(plain).collect::<Option<_>>()?;
    let (y, memory) = tiled::Inputs::new(&inputs).forward_apart(block);
    Some((Tensor::from_primitive::<Cube>(y), Tensor::from_primitive::<Cube>(memory)))
}

impl Passes for Cube {
    fn forward(inputs: &[Primitive], block: Option<usize>, keep: bool) -> (Primitive, Option<Primitive>) {
        let (out, kept) = tiled::Inputs::new(inputs).forward(block, keep);
        (out, keep.then_some(kept))
    }

    fn backward(
        inputs: &[Primitive],
        block: Option<usize>,
        out: Primitive,
        kept: &Primitive,
        decay: bool,
    ) -> Vec<Option<Primitive>> {
        tiled::Inputs::new(inputs).backward(&out, kept, block, decay)
    }
}
