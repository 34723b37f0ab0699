//! [`descent`](crate::kernels::descent) without gradients: a cube takes a head through all chunks of a call.
//!
//! Weights lie in the buffer of the result, where they are learned in place, and what a chunk makes of its tokens behind
//! them: neither fits the shared memory that every device has. A chunk's plan is made here, a unit for a column, so that
//! gates come as they are:
//!
//! ```text
//! decayed    n ← μ_t n, or η_t in column t;   g ← α_t g + n      rows: g of every token and of the last one, n of the last one
//! batched    n ← n + η_t in column t;         g = c_t n          the same where the batch ends; before it A stays, S takes -n
//! ```
//!
//! Floor: latency, of `1 + 5 depth` barriers for each chunk. In exchange a call is one launch, or two where the weights
//! before it do not lie as this kernel leaves them, in place of some hundred per chunk.

mod chunk;
mod forward;
mod place;
mod rule;

use burn::tensor::Tensor as Burn;
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use self::rule::{Rule, UNITS, loss_of};
use super::buffer::{ALIGNED, empty, offset_from, part_of, plain};
use crate::kernels::descent::{Learned, Options};
use crate::miras::Gelu;

/// Tokens up to which answers share a buffer with what a state keeps.
const FEW: usize = 4;

/// What becomes of a chunk's gradients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plans {
    /// They decay: gates are `η` and `log α`, and `log μ` if there is an `S`
    Decayed,
    /// `S` sums them until the mini-batch ends, and `W` is `A`: gates are `η` and `c`
    Batched,
}

/// The tensors of a call.
#[derive(Debug)]
pub(crate) struct Call {
    /// `q`, `k` and `v`: `[b, h, t, n]`
    pub(crate) tokens: [Burn<4>; 3],
    /// `[b, h, t, 1]` each: those of [`Plans`], 1 for real tokens where some are padding, and the loss's threshold if it
    /// has one
    pub(crate) gates: Vec<Burn<4>>,
    pub(crate) plans: Plans,
    /// Whether some tokens are padding
    pub(crate) ragged: bool,
    /// Gain and bias of the layer norm, `[h, n]`
    pub(crate) norm: Option<[Burn<2>; 2]>,
    /// `A`, `W` unless it is `A`, and `S` unless it is 0: the first layer's first, `[b, h, inputs, outputs]`
    pub(crate) weights: Vec<Burn<4>>,
    /// Tokens since the start of the first one's chunk
    pub(crate) phase: usize,
}

/// Whether there is a kernel where `k` lies.
pub(crate) fn descends(k: &Burn<4>) -> bool {
    let [b, h, ..] = k.dims();
    super::linear::on_graphics(k) && super::fits(k, b * h)
}

/// Whether numbers lie in the order of their axes.
fn in_order(x: &CubeTensor) -> bool {
    let mut next = 1;
    (0..4).rev().all(|axis| {
        let (size, stride) = (x.meta.shape()[axis], x.meta.strides()[axis]);
        let fits = size == 1 || stride == next;
        next *= size;
        fits
    })
}

/// The buffer of `weights` if they lie as this kernel leaves them.
fn carried(rule: &Rule, heads: usize, weights: &[CubeTensor]) -> Option<CubeTensor> {
    let first = weights.first()?;
    let mut at = 0;
    for (i, x) in weights.iter().enumerate() {
        if !in_order(x) || offset_from(first, x) != Some(at) {
            return None;
        }
        at += rule.part(i % rule.depth, heads);
    }
    Some(part_of(first, 0, [at]))
}

/// Gates as one tensor: where they lie, if they are parts of one buffer, or copied beside each other.
fn beside(gates: &[Burn<4>]) -> Option<CubeTensor> {
    let all: Vec<CubeTensor> = gates.iter().map(plain).collect::<Option<_>>()?;
    let first = all.first()?;
    let apart = all.get(1).and_then(|second| offset_from(first, second)).unwrap_or(0);
    let alike = |(i, x): (usize, &CubeTensor)| {
        x.meta.strides()[..3] == first.meta.strides()[..3] && offset_from(first, x) == Some(i * apart)
    };
    if apart == 0 || !all.iter().enumerate().all(alike) {
        return plain(&Burn::cat(gates.to_vec(), 3));
    }
    let mut meta = first.meta.clone();
    (meta.shape[3], meta.strides[3]) = (all.len(), apart);
    Some(CubeTensor::new(
        first.client.clone(),
        first.handle.clone(),
        *meta,
        first.device.clone(),
        first.dtype,
    ))
}

impl Call {
    /// Answers, and what is learned; `None` where these are not for the kernel: gradients, another device or element
    /// type.
    pub(crate) fn run(self, options: &Options) -> Option<Learned> {
        let Self { tokens, gates, plans, ragged, norm, weights, phase } = self;
        let [b, h, t, n] = tokens[0].dims();
        let heads = b * h;
        let [q, k, v] = tokens.each_ref().map(plain);
        let (q, k, v, gates) = (q?, k?, v?, beside(&gates)?);
        let weights: Vec<CubeTensor> = weights.iter().map(plain).collect::<Option<_>>()?;
        // In place of what there is not: it is not read.
        let [gain, bias] = match &norm {
            Some(parts) => parts.each_ref().map(plain),
            None => [(); 2].map(|()| Some(q.clone())),
        };
        let (loss, numbers) = loss_of(options.bias);
        let rule = Rule {
            width: n,
            hidden: options.hidden,
            depth: options.depth,
            offset: options.offset,
            tanh: options.gelu == Gelu::Tanh,
            norm: options.norm,
            raw: options.raw,
            loss,
            momentum: options.momentum,
            ragged,
            batched: plans == Plans::Batched,
            tokens: if t == 1 { 1 } else { options.chunk },
            apart: t > FEW,
            carried: false,
            filled: weights.len() / options.depth,
        };
        let (answers, scratch) = (heads * t * n, heads * rule.scratch());
        let weights_at = if rule.apart { 0 } else { answers.next_multiple_of(ALIGNED) };
        let scratch_at = weights_at + rule.weights(heads);
        let out = empty(&q, &[scratch_at + scratch]);
        let before = if rule.apart { None } else { carried(&rule, heads, &weights) };
        if before.is_none() {
            place::place_all(&weights, &out, weights_at);
        }
        let rule = Rule { carried: before.is_some(), ..rule };
        let y = if rule.apart { empty(&q, &[b, h, t, n]) } else { part_of(&out, 0, [b, h, t, n]) };
        let beside = match before {
            Some(before) => before,
            None if rule.apart => y.clone(),
            None => empty(&q, &[1]),
        };
        forward::descend_kernel::launch(
            &out.client,
            CubeCount::Static(heads as u32, 1, 1),
            CubeDim::new_1d(UNITS as u32),
            q.into_tensor_arg(),
            k.into_tensor_arg(),
            v.into_tensor_arg(),
            gates.into_tensor_arg(),
            gain?.into_tensor_arg(),
            bias?.into_tensor_arg(),
            beside.into_tensor_arg(),
            out.clone().into_tensor_arg(),
            phase,
            options.chunk,
            weights_at,
            scratch_at,
            options.eps as f32,
            numbers.nu as f32,
            numbers.exponent as f32,
            numbers.clip as f32,
            rule,
        );
        let slot = |slot: usize| -> Vec<Burn<4>> {
            let mut at = weights_at + slot * rule.weights(heads) / rule.slots();
            let matrix = |l: usize| {
                let matrix = part_of(&out, at, [b, h, rule.inputs(l), rule.outputs(l)]);
                at += rule.part(l, heads);
                Burn::from_primitive::<CubeBackend>(matrix)
            };
            (0..rule.depth).map(matrix).collect()
        };
        Some(Learned {
            running: slot(0),
            anchor: slot(rule.anchor()),
            momentum: if rule.momentum { slot(rule.last()) } else { Vec::new() },
            y: Burn::from_primitive::<CubeBackend>(y),
        })
    }
}
