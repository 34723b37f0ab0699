//! Both passes on graphics devices.

use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::FloatTensor;
use burn::tensor::Tensor;
use burn_cubecl::CubeBackend as Cube;

use super::{Options, Passes};
use crate::kernels::cube::tiled;
pub(super) use crate::kernels::cube::tiled::fits;

type Primitive = FloatTensor<Cube>;

/// The outputs and the last memory of inputs that lie on a graphics device without gradients; what a kernel reads beside
/// each other may lie there `packed` already. The outputs are `gain`
/// times what queries find, and `d v` more, `d: [1, h, 1, p]`.
pub(super) fn untracked(
    inputs: &[Tensor<4>],
    packed: Option<&Tensor<4>>,
    Options { block, gain }: Options,
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
    fn forward(inputs: &[Primitive], options: Options, keep: bool) -> ([Primitive; 2], Option<Primitive>) {
        let tiled::Outcome { y, memory, kept } =
            tiled::Inputs::new(inputs).forward(options.block, keep, options.gain as f32, None);
        ([y, memory], kept)
    }

    fn backward(
        inputs: &[Primitive],
        options: Options,
        dy: Primitive,
        last: Option<Primitive>,
        kept: &Primitive,
        decay: bool,
    ) -> Vec<Option<Primitive>> {
        let Options { block, gain } = options;
        let dy = if gain == 1.0 { dy } else { Self::float_mul_scalar(dy, gain.into()) };
        tiled::Inputs::new(inputs).backward(&dy, last, kept, block, decay)
    }
}
