//! What all kernels' backward passes have in common: an operation of `N` inputs keeps something, and later turns the
//! gradient of its output into those of its inputs.

use std::fmt::Debug;
use std::marker::PhantomData;

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, NodeGuard, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend};

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
