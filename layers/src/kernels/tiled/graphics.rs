//! Both passes on graphics devices.

use burn::backend::tensor::FloatTensor;
use burn_cubecl::CubeBackend as Cube;

use super::Passes;
use crate::kernels::cube::tiled;
pub(super) use crate::kernels::cube::tiled::fits;

type Primitive = FloatTensor<Cube>;

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
