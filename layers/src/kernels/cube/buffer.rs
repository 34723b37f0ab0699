//! Tensors on a graphics device, as kernels take and make them.

use burn::backend::DispatchDevice;
use burn::tensor::{DType, Tensor};
use burn_cubecl::tensor::CubeTensor;

/// Most cubes along an axis of a launch.
pub(super) const MOST_CUBES: usize = 65_535;

/// Elements that a kernel may count to.
const ELEMENTS: usize = 1 << 31;

/// Whether `x` lies on a graphics device and kernels can read it: `f32`, few enough elements, and `outer`, which becomes
/// an axis of a launch, within the limits.
pub(crate) fn fits<const D: usize>(x: &Tensor<D>, outer: usize) -> bool {
    x.dtype() == DType::F32
        && outer <= MOST_CUBES
        && x.dims().iter().product::<usize>() < ELEMENTS
        && matches!(x.device().inner().as_dispatch(), DispatchDevice::Cube(_))
}

/// A contiguous tensor for a kernel to fill, beside `like`. Tests find it full of what is not a number.
pub(super) fn empty(like: &CubeTensor, dims: &[usize]) -> CubeTensor {
    let (client, device) = (like.client.clone(), like.device.clone());
    let tensor = burn_cubecl::ops::numeric::empty_device_contiguous_dtype(
        client,
        device,
        dims.to_vec().into(),
        like.dtype,
    );
    #[cfg(test)]
    poison::fill(&tensor);
    tensor
}

/// Sizes of a tensor of rank 4.
pub(super) fn dims(tensor: &CubeTensor) -> [usize; 4] {
    std::array::from_fn(|axis| tensor.meta.shape()[axis])
}

#[cfg(test)]
mod tests {
    use burn::tensor::Tensor;
    use burn_cubecl::CubeBackend;

    use super::*;
    use crate::testing::{graphics, numbers};

    /// What a kernel does not write shows in its tests.
    #[test]
    fn what_is_not_written_is_not_a_number() {
        for device in graphics() {
            let like = Tensor::<2>::zeros([3, 5], &device);
            let fresh = empty(&like.clone().try_into_primitive::<CubeBackend>().unwrap(), &[7, 130]);
            let fresh = Tensor::<2>::from_primitive::<CubeBackend>(fresh);
            assert!(numbers(fresh).iter().all(|x| x.is_nan()));
            assert!(fits(&like, 1) && !fits(&like, MOST_CUBES + 1));
        }
    }
}

#[cfg(test)]
mod poison {
    use burn_cubecl::tensor::CubeTensor;
    use cubecl::prelude::*;

    #[cube(launch)]
    fn fill_kernel(out: &mut Tensor<f32>, value: f32) {
        if ABSOLUTE_POS < out.len() {
            out[ABSOLUTE_POS] = value;
        }
    }

    pub(super) fn fill(tensor: &CubeTensor) {
        let count = (tensor.meta.num_elements() as u32).div_ceil(64);
        let cubes = CubeCount::Static(count.min(1 << 15), count.div_ceil(1 << 15), 1);
        let out = tensor.clone().into_tensor_arg();
        fill_kernel::launch(&tensor.client, cubes, CubeDim::new_1d(64), out, f32::NAN);
    }
}
