//! Both passes on graphics devices.

use burn::backend::tensor::FloatTensor;
use burn::tensor::Tensor;
use burn_cubecl::CubeBackend as Cube;

use super::Passes;
use crate::kernels::cube::tiled;
pub(super) use crate::kernels::cube::tiled::fits;

type Primitive = FloatTensor<Cube>;

/// The outputs and the last memory of inputs that lie on a graphics device without gradients; what a kernel reads beside
/// each other may lie there `packed` already. The outputs are `gain`
/// times what queries find, and `d v` more, `d: [1, h, 1, p]`.
pub(super) fn untracked(
    inputs: &[Tensor<4>],
    packed: Option<&Tensor<4>>,
    block: Option<usize>,
    gain: f64,
    d: Option<Tensor<4>>,
) -> Option<(Tensor<4>, Tensor<4>)> {
    let plain = |x: Tensor<4>| x.try_into_primitive::<Cube>().ok();
    let inputs: Vec<Primitive> = inputs.iter().cloned().map(plain).collect::<Option<_>>()?;
    let d = match d {
        Some(d) => Some(plain(d)?),
        None => None,
    };
    let packed = packed.cloned().and_then(plain);
    let inputs = tiled::Inputs::given(&inputs, packed);
    let tiled::Outcome { y, memory, .. } = inputs.forward(block, false, gain as f32, d.as_ref());
    Some((Tensor::from_primitive::<Cube>(y), Tensor::from_primitive::<Cube>(memory)))
}

impl Passes for Cube {
    fn forward(
        inputs: &[Primitive],
        block: Option<usize>,
        keep: bool,
    ) -> ([Primitive; 2], Option<Primitive>) {
        let tiled::Outcome { y, memory, kept } = tiled::Inputs::new(inputs).forward(block, keep, 1.0, None);
        ([y, memory], kept)
    }

    fn backward(
        inputs: &[Primitive],
        block: Option<usize>,
        dy: Primitive,
        last: Option<Primitive>,
        kept: &Primitive,
        decay: bool,
    ) -> Vec<Option<Primitive>> {
        tiled::Inputs::new(inputs).backward(&dy, last, kept, block, decay)
    }
}
