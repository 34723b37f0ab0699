//! Parts that checkpoints share.

use burn::tensor::Tensor;
use seqzoo_layers::params::Named;

use super::weights::Weights;
use crate::Result;

/// A linear map stored `[out, in]`, with its bias if it has one.
pub(super) fn linear(to: &mut Named, ours: &str, from: &Weights<'_>, theirs: &str) -> Result<()> {
    let weight = from.get::<2>(&format!("{theirs}.weight"))?;
    to.insert(format!("{ours}.weight"), weight.transpose().into());
    bias(to, ours, from, theirs)
}

/// A linear map stored `[in, out]`, as GPT-2 does.
pub(super) fn conv1d(to: &mut Named, ours: &str, from: &Weights<'_>, theirs: &str) -> Result<()> {
    copy::<2>(to, &format!("{ours}.weight"), from, &format!("{theirs}.weight"))?;
    bias(to, ours, from, theirs)
}

/// A normalisation: weight, and bias if it has one.
pub(super) fn norm(to: &mut Named, ours: &str, from: &Weights<'_>, theirs: &str) -> Result<()> {
    copy::<1>(to, &format!("{ours}.weight"), from, &format!("{theirs}.weight"))?;
    bias(to, ours, from, theirs)
}

/// A causal convolution stored `[channels, 1, kernel]`, with its bias if it has one.
pub(super) fn convolution(to: &mut Named, ours: &str, from: &Weights<'_>, theirs: &str) -> Result<()> {
    let kernel: Tensor<2> = from.get::<3>(&format!("{theirs}.weight"))?.squeeze_dim(1);
    to.insert(format!("{ours}.weight"), kernel.into());
    bias(to, ours, from, theirs)
}

/// A tensor as it is.
pub(super) fn copy<const D: usize>(
    to: &mut Named,
    ours: &str,
    from: &Weights<'_>,
    theirs: &str,
) -> Result<()> {
    to.insert(ours.into(), seqzoo_layers::Value::of(from.get::<D>(theirs)?));
    Ok(())
}

fn bias(to: &mut Named, ours: &str, from: &Weights<'_>, theirs: &str) -> Result<()> {
    let theirs = format!("{theirs}.bias");
    if from.has(&theirs) { copy::<1>(to, &format!("{ours}.bias"), from, &theirs) } else { Ok(()) }
}

/// Softmax attention with four projections, and norms of the heads if it has them.
pub(super) fn attention(from: &Weights<'_>) -> Result<Named> {
    let mut to = Named::new();
    for (ours, theirs) in
        [("q_proj", "q_proj"), ("k_proj", "k_proj"), ("v_proj", "v_proj"), ("out_proj", "o_proj")]
    {
        linear(&mut to, ours, from, theirs)?;
    }
    head_norms(&mut to, from)?;
    Ok(to)
}

/// The norms of query and key heads, if there are any.
pub(super) fn head_norms(to: &mut Named, from: &Weights<'_>) -> Result<()> {
    for name in ["q_norm", "k_norm"] {
        if from.has_module(name) {
            norm(to, name, from, name)?;
        }
    }
    Ok(())
}

/// A dense gated MLP or a mixture of experts.
pub(super) fn mlp(from: &Weights<'_>) -> Result<Named> {
    if from.has_module("experts") { experts(from) } else { gated(from) }
}

fn gated(from: &Weights<'_>) -> Result<Named> {
    let mut to = Named::new();
    for name in ["gate", "up", "down"] {
        linear(&mut to, name, from, &format!("{name}_proj"))?;
    }
    Ok(to)
}

/// Experts fused as transformers has them in memory: `gate_up_proj: [experts, 2 hidden, d]` and
/// `down_proj: [experts, d, hidden]`, with a router and perhaps a shared expert.
fn experts(from: &Weights<'_>) -> Result<Named> {
    let mut to = Named::new();
    linear(&mut to, "router", from, "gate")?;
    let both = from.get::<3>("experts.gate_up_proj")?.swap_dims(1, 2);
    let hidden = both.dims()[2] / 2;
    to.insert("gate".into(), both.clone().narrow(2, 0, hidden).into());
    to.insert("up".into(), both.narrow(2, hidden, hidden).into());
    to.insert("down".into(), from.get::<3>("experts.down_proj")?.swap_dims(1, 2).into());
    if from.has_module("shared_expert") {
        for (name, value) in gated(&from.at("shared_expert"))? {
            to.insert(format!("shared.{name}"), value);
        }
        linear(&mut to, "shared_gate", from, "shared_expert_gate")?;
    }
    Ok(to)
}
