//! One state per channel, `h_t = e^{log a_t} ∘ h_{t-1} + u_t`, in one pass over the tokens, and one pass back:
//!
//! ```text
//! dh_t = dy_t + a_{t+1} dh_{t+1},   du_t = dh_t,   d(log a_t) = dh_t a_t h_{t-1}
//! ```
//!
//! Floor: memory. 12 bytes per token and channel in `f32` forward (two numbers read, one written), 20 backward; decays
//! are made again from their logarithms.

#[cfg(feature = "flex")]
mod channels;
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

use super::gradient::{self, track};

/// Whether a kernel can run these: `u: [b, h, t, n]`, `log_a` that expands to it, and the memory `[b, h, n, 1]`.
pub(crate) fn applies(log_a: &Tensor<4>, u: &Tensor<4>, memory: &Tensor<4>) -> bool {
    let [b, h, t, n] = u.dims();
    let expands = log_a.dims().iter().zip([b, h, t, n]).all(|(&given, size)| given == size || given == 1);
    expands
        && memory.dims() == [b, h, n, 1]
        && [b, h, t, n].iter().all(|&size| size > 0)
        && [log_a, memory].iter().all(|x| x.dtype() == u.dtype())
        && device_applies(u)
}

/// Whether there is a kernel where `u` lies.
#[allow(unused_variables, reason = "which are used depends on the features")]
fn device_applies(u: &Tensor<4>) -> bool {
    #[cfg(feature = "flex")]
    if super::view::fits(u) {
        return true;
    }
    #[cfg(feature = "cube")]
    if super::cube::fits(u, u.dims()[0] * u.dims()[1]) {
        return true;
    }
    false
}

/// Whether one token, too, is for the kernel: on graphics devices, where each operation would be told to start.
#[allow(unused_variables, reason = "it is used where there is such a backend")]
pub(crate) fn takes_one_token(u: &Tensor<4>) -> bool {
    #[cfg(feature = "cube")]
    if super::cube::fits(u, 1) {
        return true;
    }
    false
}

/// The states after every token, `[b, h, t, n]`, and the last memory, `[b, h, n, 1]`.
pub(crate) fn run(log_a: Tensor<4>, u: Tensor<4>, memory: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
    let t = u.dims()[2];
    let log_a = log_a.expand(u.dims());
    let [log_a, u, memory] = [log_a, u, memory].map(Tensor::into_dispatch);
    let y = Tensor::<4>::from_dispatch(<Dispatch as Scan>::scan(log_a, u, memory));
    let last = y.clone().narrow(2, t - 1, 1).swap_dims(2, 3);
    (y, last)
}

/// The operation as backends see it.
#[backend_extension(Flex: cfg(feature = "flex"), Cube: cfg(feature = "cube"), Autodiff)]
pub(crate) trait Scan: Backend {
    /// See [`run`].
    fn scan(log_a: FloatTensor<Self>, u: FloatTensor<Self>, memory: FloatTensor<Self>) -> FloatTensor<Self>;
}

/// A backend's kernels.
pub(crate) trait Passes: Backend {
    /// The states.
    fn forward(
        log_a: &FloatTensor<Self>,
        u: &FloatTensor<Self>,
        memory: &FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// Gradients of `log_a`, `u` and the memory, in this order, from the states and their gradient.
    fn backward(
        log_a: &FloatTensor<Self>,
        memory: &FloatTensor<Self>,
        y: &FloatTensor<Self>,
        dy: &FloatTensor<Self>,
    ) -> [FloatTensor<Self>; 3];
}

/// What the backward pass starts from.
#[derive(Clone, Debug)]
struct Saved<B: Backend> {
    log_a: FloatTensor<B>,
    memory: FloatTensor<B>,
    /// The states, which are the outputs
    y: FloatTensor<B>,
}

macro_rules! scan_of {
    ($($backend:ty, $feature:literal;)*) => {$(
        #[cfg(feature = $feature)]
        impl Scan for $backend {
            fn scan(
                log_a: FloatTensor<Self>,
                u: FloatTensor<Self>,
                memory: FloatTensor<Self>,
            ) -> FloatTensor<Self> {
                Self::forward(&log_a, &u, &memory)
            }
        }
    )*};
}

scan_of!(burn::backend::Flex, "flex"; Cube, "cube";);

impl<B: Passes> gradient::Saved<B, 3> for Saved<B> {
    fn gradients(self, dy: FloatTensor<B>, _wanted: [bool; 3]) -> [Option<FloatTensor<B>>; 3] {
        B::backward(&self.log_a, &self.memory, &self.y, &dy).map(Some)
    }
}

impl<B: Scan + Passes, C: CheckpointStrategy> Scan for Autodiff<B, C> {
    fn scan(log_a: FloatTensor<Self>, u: FloatTensor<Self>, memory: FloatTensor<Self>) -> FloatTensor<Self> {
        let nodes = [&log_a, &u, &memory].map(|x| x.node());
        let [log_a, u, memory] = [log_a, u, memory].map(|x| x.into_primitive());
        track::<B, C, _, 3>(nodes, |_| {
            let y = B::forward(&log_a, &u, &memory);
            (y.clone(), Saved::<B> { log_a, memory, y })
        })
    }
}
