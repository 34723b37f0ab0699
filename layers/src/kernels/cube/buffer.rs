//! Tensors on a graphics device, as kernels take and make them.

use burn::backend::DispatchDevice;
use burn::backend::ops::FloatTensorOps;
use burn::tensor::{DType, Shape, Tensor, TensorData};
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;

/// Most cubes along an axis of a launch.
pub(super) const MOST_CUBES: usize = 65_535;

/// Numbers at multiples of which a part of a buffer may begin on every device, 256 bytes.
pub(super) const ALIGNED: usize = 64;

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

/// What a kernel without gradients reads: a tensor that [`fits`] and is not differentiated.
pub(super) fn plain<const D: usize>(x: &Tensor<D>) -> Option<CubeTensor> {
    let here = x.dtype() == DType::F32 && matches!(x.device().as_dispatch(), DispatchDevice::Cube(_));
    if here && fits(x, 1) { x.clone().try_into_primitive::<CubeBackend>().ok() } else { None }
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

/// Zeros, which lie beside `like`: one number that is sent, for no kernel to be started.
pub(super) fn zeros(like: &CubeTensor, dims: [usize; 4]) -> CubeTensor {
    let zero = TensorData::new(vec![0.0f32], [1; 4]);
    CubeBackend::float_expand(CubeBackend::float_from_data(zero, &like.device), dims.to_vec().into())
}

/// A contiguous part of a buffer from number `start` on, a multiple of [`ALIGNED`].
pub(super) fn part_of(buffer: &CubeTensor, start: usize, dims: impl Into<Shape>) -> CubeTensor {
    let handle = buffer.handle.clone().offset_start((start * size_of::<f32>()) as u64);
    CubeTensor::new_contiguous(
        buffer.client.clone(),
        buffer.device.clone(),
        dims.into(),
        handle,
        buffer.dtype,
    )
}

/// How many numbers after `first` the other tensor begins, if both are parts of one buffer in this order.
pub(super) fn offset_from(first: &CubeTensor, other: &CubeTensor) -> Option<usize> {
    let start = |x: &CubeTensor| x.handle.offset_start.unwrap_or(0) as usize;
    let one = first.handle.memory.descriptor() == other.handle.memory.descriptor();
    let between = start(other).checked_sub(start(first))?;
    one.then_some(between / size_of::<f32>())
}

/// `width` numbers of the last axis from `first` on, where they lie: of a tensor on a graphics device without gradients,
/// if a part of its buffer may begin there.
pub(crate) fn columns<const D: usize>(x: &Tensor<D>, first: usize, width: usize) -> Option<Tensor<D>> {
    if x.dtype() != DType::F32 || !matches!(x.device().as_dispatch(), DispatchDevice::Cube(_)) {
        return None;
    }
    let x = x.clone().try_into_primitive::<CubeBackend>().ok()?;
    let start = first * x.meta.strides()[D - 1];
    if !start.is_multiple_of(ALIGNED) {
        return None;
    }
    let mut meta = x.meta.clone();
    meta.shape[D - 1] = width;
    let handle = x.handle.clone().offset_start((start * size_of::<f32>()) as u64);
    let part = CubeTensor::new(x.client.clone(), handle, *meta, x.device.clone(), x.dtype);
    Some(Tensor::from_primitive::<CubeBackend>(part))
}

/// Sizes of a tensor of rank 4.
pub(super) fn dims(tensor: &CubeTensor) -> [usize; 4] {
    std::array::from_fn(|axis| tensor.meta.shape()[axis])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Draw, graphics, numbers};

    /// Parts are read where they lie, by kernels and by whoever copies them.
    #[test]
    fn columns_are_a_part() {
        for device in graphics() {
            let whole = Draw::new(1).tensor::<3>([2, 3, 200], -1.0, 1.0);
            let there = whole.clone().to_device(&device);
            for (first, width) in [(0, 200), (0, 7), (64, 1), (128, 50), (192, 8)] {
                let found = columns(&there, first, width).expect("it begins where a part may");
                let expected = whole.clone().narrow(2, first, width);
                assert_eq!(numbers(found.clone()), numbers(expected.clone()), "{first} {width}");
                let heads =
                    |x: Tensor<3>| numbers(x.reshape([2, 3, 1, width]).swap_dims(1, 2).mul_scalar(2.0));
                assert_eq!(heads(found), heads(expected), "{first} {width}");
            }
            assert!(columns(&there, 63, 1).is_none() && columns(&whole, 64, 1).is_none());
        }
    }

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
