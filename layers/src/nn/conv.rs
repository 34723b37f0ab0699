//! Causal depthwise convolution with a state.

use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use super::{Activation, columns_of, silu};
use crate::system::{Lengths, Run, State, fresh};
use crate::{Init, Result, kernels};

/// A causal depthwise convolution, `y_t[c] = bias[c] + Σ_j w[c, j] x_{t-(K-1)+j}[c]`, and what follows it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CausalConvConfig {
    /// Width `K` of the kernel, at least 1.
    pub kernel: usize,
    /// Whether a bias is added.
    pub bias: bool,
    /// Applied to the result.
    pub activation: Activation,
}

impl Default for CausalConvConfig {
    fn default() -> Self {
        Self { kernel: 4, bias: false, activation: Activation::Silu }
    }
}

/// See [`CausalConvConfig`]. Its state is the last `K - 1` inputs, `[b, K-1, channels]`.
#[derive(Module, Debug)]
pub struct CausalConv {
    /// `[channels, K]`, the last column acts on the current token
    pub weight: Param<Tensor<2>>,
    /// `[channels]`
    pub bias: Option<Param<Tensor<1>>>,
    #[module(skip)]
    activation: Activation,
}

impl CausalConvConfig {
    /// [`CausalConvConfig::init`], or none for a kernel of width 0.
    pub(crate) fn init_unless_empty(self, channels: usize, init: &mut Init) -> Option<CausalConv> {
        (self.kernel > 0).then(|| self.init(channels, init))
    }

    /// Weights uniform in `±1/√K`, bias 0.
    pub fn init(self, channels: usize, init: &mut Init) -> CausalConv {
        let bound = 1.0 / (self.kernel as f64).sqrt();
        CausalConv {
            weight: init.uniform([channels, self.kernel], -bound, bound),
            bias: self.bias.then(|| init.constant([channels], 0.0)),
            activation: self.activation,
        }
    }
}

impl CausalConv {
    /// Zeros: nothing has been seen.
    pub fn initial_state(&self, batch: usize) -> Tensor<3> {
        let weight = self.weight.val();
        let [channels, kernel] = weight.dims();
        fresh([batch, kernel - 1, channels], &weight)
    }

    /// Number of channels.
    pub fn channels(&self) -> usize {
        self.weight.dims()[0]
    }

    /// `x: [b, t, channels]`, `tail: [b, K-1, channels]` -> the convolved sequence and the new tail. With
    /// `lengths`, the tail is taken before the padding.
    pub fn forward(
        &self,
        x: Tensor<3>,
        tail: Tensor<3>,
        lengths: Option<&Lengths>,
    ) -> (Tensor<3>, Tensor<3>) {
        let (y, last) = self.convolve(&x, &tail, lengths.is_none(), kernels::enabled());
        (y, self.next_tail(x, tail, last, lengths))
    }

    /// The same, with the sequence in parts of `widths` channels, which add up to all: in tensors of their own on a
    /// graphics device without gradients.
    pub(crate) fn forward_parts<const N: usize>(
        &self,
        x: Tensor<3>,
        tail: Tensor<3>,
        lengths: Option<&Lengths>,
        widths: [usize; N],
    ) -> ([Tensor<3>; N], Tensor<3>) {
        #[cfg(feature = "cube")]
        if kernels::enabled()
            && kernels::linear::on_graphics(&x)
            && let silu = self.activation == Activation::Silu
            && (silu || self.activation == Activation::Identity)
            && let weight = self.weight.val()
            && kernels::conv::applies(&x, &tail, &weight)
            && let bias = self.bias.as_ref().map(|bias| bias.val())
            && let options = (silu, lengths.is_none())
            && let Some((parts, last)) =
                kernels::conv::run_parts(x.clone(), tail.clone(), weight, bias, options, widths)
        {
            return (parts, self.next_tail(x, tail, last, lengths));
        }
        let (y, tail) = self.forward(x, tail, lengths);
        (columns_of(&y, widths), tail)
    }

    /// The last inputs: those that a kernel has written, or what is cut out here.
    fn next_tail(
        &self,
        x: Tensor<3>,
        tail: Tensor<3>,
        last: Option<Tensor<3>>,
        lengths: Option<&Lengths>,
    ) -> Tensor<3> {
        match last {
            _ if self.weight.dims()[1] == 1 => self.initial_state(x.dims()[0]),
            Some(last) => last,
            None => last_of(tail, x, lengths),
        }
    }

    /// `x: [b, t, channels]` after `tail: [b, K - 1, channels]`, convolved and activated; and the last `K - 1` inputs,
    /// if they are `wanted` and a kernel has written them too.
    #[cfg_attr(
        not(any(feature = "flex", feature = "cube")),
        allow(unused_variables, reason = "there are no kernels without a backend")
    )]
    fn convolve(
        &self,
        x: &Tensor<3>,
        tail: &Tensor<3>,
        wanted: bool,
        kernels: bool,
    ) -> (Tensor<3>, Option<Tensor<3>>) {
        let weight = self.weight.val();
        let ([channels, kernel], t) = (weight.dims(), x.dims()[1]);
        #[cfg(any(feature = "flex", feature = "cube"))]
        if kernels && kernels::conv::applies(x, tail, &weight) {
            let silu = self.activation == Activation::Silu;
            let bias = self.bias.as_ref().map(|bias| bias.val());
            let (y, last) = kernels::conv::run(x.clone(), tail.clone(), weight, bias, silu, wanted);
            return (if silu { y } else { self.activation.apply(y) }, last);
        }
        let padded = Tensor::cat(vec![tail.clone(), x.clone()], 1);
        let mut y: Option<Tensor<3>> = None;
        for j in 0..kernel {
            let tap = weight.clone().narrow(1, j, 1).reshape([1, 1, channels]);
            let term = padded.clone().narrow(1, j, t) * tap;
            y = Some(match y {
                Some(sum) => sum + term,
                None => term,
            });
        }
        let mut y = y.unwrap_or_else(|| x.zeros_like());
        if let Some(bias) = &self.bias {
            y = y + bias.val().reshape([1, 1, channels]);
        }
        (self.activation.apply(y), None)
    }
}

/// As many inputs as `tail` has, the last of those and `x`; with `lengths`, those before the padding.
fn last_of(tail: Tensor<3>, x: Tensor<3>, lengths: Option<&Lengths>) -> Tensor<3> {
    let (keep, t) = (tail.dims()[1], x.dims()[1]);
    if lengths.is_some() {
        return last_inputs(Tensor::cat(vec![tail, x], 1), keep, lengths);
    }
    match keep.checked_sub(t) {
        Some(old) if old > 0 => Tensor::cat(vec![tail.narrow(1, t, old), x], 1),
        _ => x.narrow(1, t - keep, keep),
    }
}

/// The last `keep` inputs of `padded: [b, keep + t, channels]`, which starts with those before the call; with
/// `lengths`, those before the padding.
pub(crate) fn last_inputs(padded: Tensor<3>, keep: usize, lengths: Option<&Lengths>) -> Tensor<3> {
    let [b, rows, channels] = padded.dims();
    let Some(lengths) = lengths else { return padded.narrow(1, rows - keep, keep) };
    let index: Vec<i64> = (lengths.0.iter().enumerate())
        .flat_map(|(row, &n)| (0..keep).map(move |j| (row * rows + n + j) as i64))
        .collect();
    let index = TensorData::new(index, [b * keep]);
    let index = Tensor::<1, Int>::from_data(index, &padded.device().inner());
    padded.reshape([b * rows, channels]).select(0, index).reshape([b, keep, channels])
}

/// The tail of a convolution that has seen nothing, in the slot `name` of the state; nothing without one.
pub(crate) fn put_tail(state: &mut State, name: &str, conv: &Option<CausalConv>) {
    if let Some(conv) = conv {
        state.put(name, conv.initial_state(state.batch()));
    }
}

/// `silu(conv(x))` with the convolution's tail in the slot `name` of the state, moved on; `silu(x)` without a
/// convolution. `x: [b, t, channels]`.
///
/// # Errors
/// When the state has no such slot.
pub fn short_conv(
    name: &str,
    conv: &Option<CausalConv>,
    x: Tensor<3>,
    state: &mut State,
    run: Run<'_>,
) -> Result<Tensor<3>> {
    let Some(conv) = conv else { return Ok(silu(x)) };
    let (y, tail) = conv.forward(x, state.get(name)?, run.lengths);
    state.put(name, tail);
    Ok(y)
}

/// [`short_conv`] of three sequences with convolutions, each with its slot: in fewer kernels on a graphics device without
/// gradients.
///
/// # Errors
/// When the state lacks a slot.
pub(crate) fn short_convs(
    all: [(&str, &Option<CausalConv>, Tensor<3>); 3],
    state: &mut State,
    run: Run<'_>,
) -> Result<[Tensor<3>; 3]> {
    #[cfg(feature = "cube")]
    if kernels::enabled() && run.lengths.is_none() && kernels::linear::on_graphics(&all[0].2) {
        if let Some(found) = several(&all, state)? {
            return Ok(std::array::from_fn(|i| found[i].clone()));
        }
        let [first, second, (name, conv, x)] = all.clone();
        if let Some(two) = several(&[first, second], state)? {
            let third = short_conv(name, conv, x, state, run)?;
            return Ok([two[0].clone(), two[1].clone(), third]);
        }
    }
    let [first, second, third] = all.map(|(name, conv, x)| short_conv(name, conv, x, state, run));
    Ok([first?, second?, third?])
}

/// All of them in one kernel; `None` where there is none for them.
#[cfg(feature = "cube")]
fn several(
    all: &[(&str, &Option<CausalConv>, Tensor<3>)],
    state: &mut State,
) -> Result<Option<Vec<Tensor<3>>>> {
    let mut inputs = Vec::new();
    let mut activations = Vec::new();
    for (name, conv, x) in all {
        let Some(conv) = conv else { return Ok(None) };
        if conv.bias.is_some() {
            return Ok(None);
        }
        inputs.push((x.clone(), state.get(name)?, conv.weight.val()));
        activations.push(conv.activation);
    }
    let first = activations[0];
    let known = matches!(first, Activation::Silu | Activation::Identity);
    if !known || activations.iter().any(|&other| other != first) {
        return Ok(None);
    }
    let Some(found) = kernels::conv::run_several(inputs, first == Activation::Silu) else { return Ok(None) };
    let moved = all.iter().zip(found).map(|((name, ..), [y, last])| {
        state.put(name, last);
        y
    });
    Ok(Some(moved.collect()))
}
