//! What all kernels' backward passes have in common: an operation of `N` inputs keeps something, and later turns the
//! gradient of its output into those of its inputs.

use std::fmt::Debug;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, NodeGuard, Ops, OpsKind};
use burn::backend::tensor::{Device, FloatTensor};
use burn::backend::{Autodiff, Backend, TensorMetadata};
use burn::tensor::{DType, Shape};

/// What an operation keeps for its backward pass.
pub(super) trait Saved<B: Backend, const N: usize>: Clone + Debug + Send + 'static {
    /// Gradients of the inputs from that of the output; those of inputs that are not `wanted` may be missing.
    fn gradients(self, dy: FloatTensor<B>, wanted: [bool; N]) -> [Option<FloatTensor<B>>; N];
}

/// The output of an operation on tensors that `nodes` are of, from `forward`, which is told whether what it saves is
/// needed: it will be differentiated by that.
pub(super) fn track<B: Backend, C: CheckpointStrategy, S: Saved<B, N>, const N: usize>(
    nodes: [NodeGuard; N],
    forward: impl FnOnce(bool) -> (FloatTensor<B>, S),
) -> FloatTensor<Autodiff<B, C>> {
    match Step::<S>(PhantomData).prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(prep) => {
            let (y, saved) = forward(true);
            prep.finish(saved, y)
        }
        OpsKind::UnTracked(prep) => prep.finish(forward(false).0),
    }
}

/// What an operation with two outputs keeps for its backward pass.
pub(super) trait SavedForTwo<B: Backend, const N: usize>: Clone + Debug + Send + 'static {
    /// Gradients of the inputs from those of the outputs; there is none of the second where nothing came of it.
    fn gradients(
        self,
        dy: FloatTensor<B>,
        dz: Option<FloatTensor<B>>,
        wanted: [bool; N],
    ) -> [Option<FloatTensor<B>>; N];
}

/// Two outputs.
pub(super) type Two<B> = (FloatTensor<B>, FloatTensor<B>);

/// As [`track`], for an operation with two outputs.
///
/// A step of the graph has one output. So the second is one of a step of its own behind the first's, which leaves its
/// gradient where the first's step, which comes after it on the way back, finds it.
pub(super) fn track_two<B: Backend, C: CheckpointStrategy, S: SavedForTwo<B, N>, const N: usize>(
    nodes: [NodeGuard; N],
    forward: impl FnOnce(bool) -> ([FloatTensor<B>; 2], S),
) -> Two<Autodiff<B, C>> {
    let dz = Left::<B>::default();
    let mut second = None;
    let y = track::<B, C, _, N>(nodes, |keep| {
        let ([y, z], saved) = forward(keep);
        second = Some((z, Behind { first: (y.shape(), y.device(), y.dtype()), dz: dz.clone() }));
        (y, Both { saved, dz })
    });
    let second = second.unwrap_or_else(|| unreachable!("forward has run"));
    let z = track::<B, C, _, 1>([y.node()], |_| second);
    (y, z)
}

/// A gradient that one step leaves for another.
type Left<B> = Arc<Mutex<Option<FloatTensor<B>>>>;

/// What is saved for the first output's step.
#[derive(Clone, Debug)]
struct Both<B: Backend, S> {
    saved: S,
    dz: Left<B>,
}

impl<B: Backend, S: SavedForTwo<B, N>, const N: usize> Saved<B, N> for Both<B, S> {
    fn gradients(self, dy: FloatTensor<B>, wanted: [bool; N]) -> [Option<FloatTensor<B>>; N] {
        let dz = self.dz.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.saved.gradients(dy, dz, wanted)
    }
}

/// What is saved for the second output's step.
#[derive(Clone, Debug)]
struct Behind<B: Backend> {
    /// The first output's shape and where it lies
    first: (Shape, Device<B>, DType),
    dz: Left<B>,
}

impl<B: Backend> Saved<B, 1> for Behind<B> {
    fn gradients(self, dz: FloatTensor<B>, _wanted: [bool; 1]) -> [Option<FloatTensor<B>>; 1] {
        let Self { first: (shape, device, dtype), dz: left } = self;
        *left.lock().unwrap_or_else(PoisonError::into_inner) = Some(dz);
        // The step before this one runs if its output has a gradient, whatever it is.
        let zero = B::float_zeros(vec![1; shape.rank()].into(), &device, dtype.into());
        [Some(B::float_expand(zero, shape))]
    }
}

struct Step<S>(PhantomData<S>);

impl<S> Debug for Step<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Step")
    }
}

impl<B: Backend, S: Saved<B, N>, const N: usize> Backward<B, N> for Step<S> {
    type State = S;

    fn backward(self, ops: Ops<S, N>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let dy = grads.consume::<B>(&ops.node);
        let found = ops.state.gradients(dy, ops.parents.each_ref().map(Option::is_some));
        for (parent, grad) in ops.parents.into_iter().zip(found) {
            if let (Some(parent), Some(grad)) = (parent, grad) {
                grads.register::<B>(parent.id, grad);
            }
        }
    }
}
