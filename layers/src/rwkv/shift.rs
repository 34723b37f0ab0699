//! Token shift: what each token sees of the one before it.

use burn::module::Param;
use burn::tensor::Tensor;

use crate::nn::last_inputs;
use crate::system::{Lengths, Run, State};
use crate::{Error, Init, Result};

/// Slot of the last token, `[b, 1, d]`.
pub(super) const SHIFT: &str = "shift";

/// `x'_t = x_{t-1}`, with `last: [b, 1, d]` before the first token. Gives `x'` and the new last token; with
/// `lengths`, the one before the padding.
///
/// # Errors
/// When `last` has another shape.
pub(super) fn token_shift(
    x: Tensor<3>,
    last: Tensor<3>,
    lengths: Option<&Lengths>,
) -> Result<(Tensor<3>, Tensor<3>)> {
    let [b, t, d] = x.dims();
    if last.dims() != [b, 1, d] {
        return Err(Error::shape("last token", format!("[{b}, 1, {d}]"), &last.dims()));
    }
    let all = Tensor::cat(vec![last, x], 1);
    Ok((all.clone().narrow(1, 0, t), last_inputs(all, 1, lengths)))
}

/// [`token_shift`] with the last token in the slot [`SHIFT`], moved on.
pub(super) fn shifted(x: Tensor<3>, state: &mut State, run: Run<'_>) -> Result<Tensor<3>> {
    let (before, last) = token_shift(x, state.get(SHIFT)?, run.lengths)?;
    state.put(SHIFT, last);
    Ok(before)
}

/// Nothing before the first token: zeros like a parameter's numbers, `[b, 1, d]`.
pub(super) fn no_token(batch: usize, d_model: usize, like: &Tensor<1>) -> Tensor<3> {
    Tensor::zeros([batch, 1, d_model], (&like.device(), like.dtype()))
}

/// Where a layer stands in its stack, for values at the start of training that depend on it.
#[derive(Clone, Copy)]
pub(super) struct Depth {
    /// `layer / (layers - 1)`: 0 for the first layer, 1 for the last.
    pub(super) rho: f64,
    /// `1 - layer / layers`: 1 for the first layer.
    pub(super) tau: f64,
}

impl Depth {
    pub(super) fn new(layer: Option<usize>, layers: Option<usize>) -> Self {
        let (layer, layers) = (layer.unwrap_or(0) as f64, layers.unwrap_or(1).max(1) as f64);
        let layer = layer.min(layers - 1.0);
        Self { rho: layer / (layers - 1.0).max(1.0), tau: 1.0 - layer / layers }
    }
}

/// A parameter from a formula over its channels.
pub(super) fn by_channel(size: usize, init: &Init, f: impl Fn(usize) -> f64) -> Param<Tensor<1>> {
    init.param([size], (0..size).map(|c| f(c) as f32).collect())
}

/// A channel's place from 0 for the first to 1 for the last.
pub(super) fn place(c: usize, size: usize) -> f64 {
    c as f64 / (size as f64 - 1.0).max(1.0)
}

/// `-1, 0, 1, -1, 0, 1, …`: what the authors add to neighbouring channels so that they differ.
pub(super) fn zigzag(c: usize) -> f64 {
    ((c + 1) % 3) as f64 - 1.0
}
