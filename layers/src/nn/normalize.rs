//! What all normalisations are made of: rows divided by a norm, and what stands around that, in one kernel where there
//! is one.

use burn::tensor::Tensor;

use super::{Activation, Linear, gated, merge_heads};
use crate::kernels;

/// How rows are normalised.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Scaling {
    /// Added to the mean or the sum of squares.
    pub(crate) eps: f64,
    /// By the root of the mean square, not of the sum.
    pub(crate) mean: bool,
    /// Without their mean.
    pub(crate) centred: bool,
    /// Added to the weight.
    pub(crate) offset: f64,
    /// Multiplies where there is no weight.
    pub(crate) gain: f64,
    /// A row is the last two axes together.
    pub(crate) joint: bool,
}

impl Scaling {
    /// `x / sqrt(mean(x²) + eps)`
    pub(crate) fn rms(eps: f64) -> Self {
        Self { eps, mean: true, centred: false, offset: 0.0, gain: 1.0, joint: false }
    }

    /// `x / sqrt(Σx² + eps)`
    pub(crate) fn l2(eps: f64) -> Self {
        Self { mean: false, ..Self::rms(eps) }
    }

    /// `(x - mean(x)) / sqrt(var(x) + eps)`
    pub(crate) fn layer(eps: f64) -> Self {
        Self { centred: true, ..Self::rms(eps) }
    }
}

/// What multiplies a normalised tensor of the same shape: `activation(values)`.
#[derive(Clone, Debug)]
pub struct Gated<const D: usize> {
    /// Before the activation.
    pub values: Tensor<D>,
    /// Of every number.
    pub activation: Activation,
    /// Multiplies what comes in, not what goes out.
    pub before: bool,
}

impl<const D: usize> Gated<D> {
    /// Of what goes out.
    pub fn new(values: Tensor<D>, activation: Activation) -> Self {
        Self { values, activation, before: false }
    }

    /// The gate itself.
    pub fn open(self) -> Tensor<D> {
        self.activation.apply(self.values)
    }
}

/// A normalisation with its weight and bias.
#[derive(Clone, Debug)]
pub(crate) struct Normalize {
    pub(crate) scaling: Scaling,
    /// `[1, b or 1, m or 1, n]`, with one of the two
    pub(crate) weight: Option<Tensor<4>>,
    /// As the weight
    pub(crate) bias: Option<Tensor<4>>,
}

impl Normalize {
    /// Without a weight.
    pub(crate) fn plain(scaling: Scaling) -> Self {
        Self { scaling, weight: None, bias: None }
    }

    /// With a weight and perhaps a bias for every number of a row, `[n]`.
    pub(crate) fn weighted(scaling: Scaling, weight: Tensor<1>, bias: Option<Tensor<1>>) -> Self {
        let whole = |x: Tensor<1>| x.unsqueeze::<4>();
        Self { scaling, weight: Some(whole(weight)), bias: bias.map(whole) }
    }

    /// Over the last axis.
    pub(crate) fn run<const D: usize>(self, x: Tensor<D>, gate: Option<Gated<D>>) -> Tensor<D> {
        let dims = x.dims();
        let gate = gate.map(|Gated { values, activation, before }| {
            let values = four(values);
            Gated { values, activation, before }
        });
        back(self.run_four(four(x), gate, kernels::enabled()), dims)
    }

    /// Over every head of `y: [b, h, t, p]`, whose channels are merged afterwards: `[b, t, h p]`, as the gate has them.
    pub(crate) fn heads(self, y: Tensor<4>, gate: Option<Gated<3>>) -> Tensor<3> {
        let [b, h, t, p] = y.dims();
        let gate = gate.map(|gate| split(gate, h));
        self.run_four(y.swap_dims(1, 2), gate, kernels::enabled()).reshape([b, t, h * p])
    }

    /// Over all heads of a token of `y: [b, h, t, p]` together: `[b, t, h p]`, as the gate has them.
    pub(crate) fn merged(self, y: Tensor<4>, gate: Option<Gated<3>>) -> Tensor<3> {
        self.joint(&y).heads(y, gate)
    }

    /// [`Self::heads`] through a map: in one kernel for few tokens on a graphics device.
    pub(crate) fn heads_through(self, y: Tensor<4>, gate: Option<Gated<3>>, map: &Linear) -> Tensor<3> {
        #[cfg(feature = "cube")]
        if let Some(z) = through(&y, Some(&self), gate.as_ref(), map) {
            return z;
        }
        map.forward(self.heads(y, gate))
    }

    /// [`Self::merged`] through a map: in one kernel for few tokens on a graphics device.
    pub(crate) fn merged_through(self, y: Tensor<4>, gate: Option<Gated<3>>, map: &Linear) -> Tensor<3> {
        self.joint(&y).heads_through(y, gate, map)
    }

    /// Of all heads of a token of `y: [b, h, t, p]` together.
    fn joint(mut self, y: &Tensor<4>) -> Self {
        let [_, h, _, p] = y.dims();
        self.scaling.joint = true;
        let of_heads = |x: Option<Tensor<4>>| x.map(|x| x.reshape([1, 1, h, p]));
        (self.weight, self.bias) = (of_heads(self.weight), of_heads(self.bias));
        self
    }

    /// `x: [a, b, m, n]`, with or without kernels.
    #[cfg_attr(
        not(any(feature = "flex", feature = "cube")),
        allow(unused_variables, reason = "there are no kernels without a backend")
    )]
    pub(crate) fn run_four(self, x: Tensor<4>, gate: Option<Gated<4>>, kernels: bool) -> Tensor<4> {
        #[cfg(any(feature = "flex", feature = "cube"))]
        if kernels {
            use crate::kernels::norm::{Gating, Inputs, Opening};
            let gate = gate.clone().map(|Gated { values, activation, before }| {
                let (values, opening) = match activation {
                    Activation::Identity => (values, Opening::Linear),
                    Activation::Silu => (values, Opening::Silu),
                    Activation::Sigmoid => (values, Opening::Sigmoid),
                    other => (other.apply(values), Opening::Linear),
                };
                (values, Gating { opening, before })
            });
            let Self { scaling, weight, bias } = self.clone();
            let inputs = Inputs { x: x.clone(), weight, bias, gate };
            if inputs.applies(scaling.joint) {
                return inputs.run(scaling);
            }
        }
        self.plainly(x, gate)
    }

    /// In tensor operations.
    fn plainly(self, x: Tensor<4>, gate: Option<Gated<4>>) -> Tensor<4> {
        let Self { scaling: Scaling { eps, mean, centred, offset, gain, joint }, weight, bias } = self;
        let dims @ [a, b, m, n] = x.dims();
        let (before, after) = match gate {
            Some(gate) if gate.before => (Some(gate), None),
            gate => (None, gate),
        };
        let x = if let Some(gate) = before { x * gate.open() } else { x };
        let x = if joint { x.reshape([a, b, 1, m * n]) } else { x };
        let x = if centred { x.clone() - x.mean_dim(3) } else { x };
        let squares = x.clone().square();
        let squares = if mean { squares.mean_dim(3) } else { squares.sum_dim(3) };
        let mut y = (x * squares.add_scalar(eps).sqrt().recip()).reshape(dims);
        if let Some(weight) = weight {
            y = y * if offset == 0.0 { weight } else { weight.add_scalar(offset) };
        } else if gain != 1.0 {
            y = y.mul_scalar(gain);
        }
        if let Some(bias) = bias {
            y = y + bias;
        }
        if let Some(gate) = after { y * gate.open() } else { y }
    }
}

/// All heads of a token of `y: [b, h, t, p]`, times a gate, through a map: in one kernel for few tokens on a graphics
/// device.
pub(crate) fn gated_through(y: Tensor<4>, gate: Gated<3>, map: &Linear) -> Tensor<3> {
    #[cfg(feature = "cube")]
    if let Some(z) = through(&y, None, Some(&gate), map) {
        return z;
    }
    map.forward(gated(merge_heads(y), gate.values, gate.activation))
}

/// Heads normalised and gated where there are such, and mapped, in one kernel.
#[cfg(feature = "cube")]
fn through(
    y: &Tensor<4>,
    norm: Option<&Normalize>,
    gate: Option<&Gated<3>>,
    map: &Linear,
) -> Option<Tensor<3>> {
    let [b, h, t, _] = y.dims();
    if !kernels::enabled() || !kernels::linear::on_graphics(y) || !kernels::linear::FEW.contains(&(b * t)) {
        return None;
    }
    let (x, norm, gate) =
        (y.clone().swap_dims(1, 2), norm.cloned(), gate.cloned().map(|gate| split(gate, h)));
    let (weight, bias) = (map.weight.val(), map.bias.as_ref().map(|bias| bias.val()));
    kernels::Output { x, norm, gate, weight, bias }.project()
}

/// `[b, t, h p] -> [b, t, h, p]`
fn split(gate: Gated<3>, heads: usize) -> Gated<4> {
    let Gated { values, activation, before } = gate;
    let [b, t, width] = values.dims();
    Gated { values: values.reshape([b, t, heads, width / heads]), activation, before }
}

/// With ones before the axes, or the first ones in one, where there are more. Up to four lie where they lay.
pub(super) fn four<const D: usize>(x: Tensor<D>) -> Tensor<4> {
    let dims = x.dims();
    if D == 4 {
        return same(x);
    }
    let last = |axis: usize| (D + axis).checked_sub(4).map_or(1, |axis| dims[axis]);
    if D < 4 {
        return x.expand([last(0), last(1), last(2), last(3)]);
    }
    let rest = last(1) * last(2) * last(3);
    x.reshape([dims.iter().product::<usize>().checked_div(rest).unwrap_or(0), last(1), last(2), last(3)])
}

/// What [`four`] made of sizes `dims`, as it was.
pub(super) fn back<const D: usize>(y: Tensor<4>, dims: [usize; D]) -> Tensor<D> {
    if D == 4 { same(y) } else { y.reshape(dims) }
}

/// A tensor of rank 4 as one of rank 4: to shape it as it is would copy it where its numbers lie in another order.
fn same<const D: usize, const E: usize>(x: Tensor<D>) -> Tensor<E> {
    Tensor::from_dispatch(x.into_dispatch())
}
