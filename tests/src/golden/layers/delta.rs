//! Layers of the delta family.

use burn::tensor::Tensor;
use seqzoo_layers::Init;
use seqzoo_layers::delta::{DeltaNetConfig, GatedDeltaNetConfig, KdaConfig, MomentumRule};
use seqzoo_layers::params::{self, Named};
use seqzoo_layers::system::{Form, Mixer};

use super::Outputs;
use crate::golden::{Case, Error, Result};

/// Maps by our names and the reference's.
fn maps(case: &Case, names: &[(&str, &str)]) -> Result<Named> {
    let map = |(ours, theirs): &(&str, &str)| {
        Ok((format!("{ours}.weight"), case.linear(&format!("w.{theirs}.weight"))?))
    };
    names.iter().map(map).collect()
}

/// What all layers here share: projections, output norm, and the convolutions, fused or not.
fn shared(case: &Case) -> Result<Named> {
    let names = [
        ("qkv.q_proj", "q_proj"),
        ("qkv.k_proj", "k_proj"),
        ("qkv.v_proj", "v_proj"),
        ("b_proj", "b_proj"),
        ("output.out_proj", "o_proj"),
    ];
    let mut named = maps(case, &names)?;
    let mut start = 0;
    for name in ["q", "k", "v"] {
        let channels = named[&format!("qkv.{name}_proj.weight")].dims()[1];
        let kernel = if case.has("w.conv1d.weight") {
            case.get::<3>("w.conv1d.weight")?.narrow(0, start, channels)
        } else {
            case.get::<3>(&format!("w.{name}_conv1d.weight"))?
        };
        start += channels;
        named.insert(format!("qkv.conv_{name}.weight"), kernel.squeeze_dim::<2>(1).into());
    }
    named.insert("output.norm.weight".into(), case.get::<1>("w.o_norm.weight")?.into());
    Ok(named)
}

fn outputs(layer: &impl Mixer, case: &Case, input: &str, form: Form) -> Result<Outputs> {
    let x = case.get::<3>(input)?;
    let state = layer.initial_state(x.dims()[0]);
    Ok(vec![("y", layer.forward(x, state, form)?.0.into())])
}

/// The layer of flash-linear-attention.
pub(super) fn deltanet(case: &Case, form: Form) -> Result<Outputs> {
    let (d_model, heads) = (case.size("hidden_size")?, case.size("num_heads")?);
    let named = shared(case)?;
    let config = DeltaNetConfig {
        heads,
        head_dim: named["qkv.k_proj.weight"].dims()[1] / heads,
        expand_v: named["qkv.v_proj.weight"].dims()[1] as f64 / named["qkv.k_proj.weight"].dims()[1] as f64,
        ..Default::default()
    };
    let layer = config.init(d_model, &mut Init::new(0, case.device()))?;
    outputs(&params::assign(layer, named)?, case, "in.x", form)
}

/// OLMo hybrid: separate maps, write strengths up to 2.
pub(super) fn olmo_hybrid(case: &Case, form: Form) -> Result<Outputs> {
    let (n, p) = (case.size("linear_key_head_dim")?, case.size("linear_value_head_dim")?);
    let config = GatedDeltaNetConfig {
        heads: case.size("linear_num_key_heads")?,
        value_heads: Some(case.size("linear_num_value_heads")?),
        head_dim: n,
        expand_v: p as f64 / n as f64,
        conv_kernel: case.size("linear_conv_kernel_dim")?,
        negative_eigenvalues: case.config()["linear_allow_neg_eigval"].as_bool().unwrap_or(true),
        // The reference's own constant, whatever `rms_norm_eps` says.
        norm_eps: 1e-5,
        ..Default::default()
    };
    let mut named = shared(case)?;
    named.extend(maps(case, &[("a_proj", "a_proj"), ("output.gate_proj", "g_proj")])?);
    for (ours, theirs) in [("decay.a_log", "w.A_log"), ("decay.dt_bias", "w.dt_bias")] {
        named.insert(ours.into(), case.get::<1>(theirs)?.into());
    }
    let layer = config.init(case.size("hidden_size")?, &mut Init::new(0, case.device()))?;
    outputs(&params::assign(layer, named)?, case, "in.hidden_states", form)
}

/// The linear layers of Kimi Linear.
pub(super) fn kimi(case: &Case, form: Form) -> Result<Outputs> {
    if !case.config()["forget_gate_lower_bound"].is_null() {
        return Err(Error::Case("a bounded decay has no case to check its sign against".into()));
    }
    let heads = case.size("linear_num_heads")?;
    let config = KdaConfig {
        heads,
        head_dim: case.size("linear_head_dim")?,
        conv_kernel: case.size("linear_conv_kernel_dim")?,
        norm_eps: case.number("rms_norm_eps").unwrap_or(1e-5),
        ..Default::default()
    };
    let mut named = shared(case)?;
    let names = [
        ("decay_down", "forget_gate.f_a_proj"),
        ("decay_proj", "forget_gate.f_b_proj"),
        ("output.gate_down", "g_a_proj"),
        ("output.gate_proj", "g_b_proj"),
    ];
    named.extend(maps(case, &names)?);
    named.insert("a_log".into(), case.get::<4>("w.forget_gate.A_log")?.reshape([heads]).into());
    named.insert("dt_bias".into(), case.get::<1>("w.forget_gate.dt_bias")?.into());
    let layer = config.init(case.size("hidden_size")?, &mut Init::new(0, case.device()))?;
    outputs(&params::assign(layer, named)?, case, "in.hidden_states", form)
}

/// The bare recurrence of momentum DeltaNet; its state is memory and momentum, `[2, b, h, n, p]`.
pub(super) fn momentum(case: &Case, form: Form) -> Result<Outputs> {
    let [q, k, v, p] = case.inputs(["q", "k", "v", "p"])?.map(|x| x.swap_dims(1, 2));
    let [log_alpha, log_mu, beta, eta] = ["log_alpha", "log_mu", "beta", "eta"]
        .map(|name| Ok::<_, Error>(case.get::<3>(&format!("in.{name}"))?.swap_dims(1, 2)));
    let n = k.dims()[3];
    let rule = MomentumRule {
        q: q.mul_scalar((n as f64).powf(-0.5)),
        k: k * eta?.unsqueeze_dim(3),
        v,
        p,
        log_alpha: log_alpha?,
        log_mu: log_mu?,
        beta: beta?,
    };
    let [memory, momentum] = case.inputs(["initial_S", "initial_M"])?;
    let (y, last) = rule.run(Tensor::cat(vec![memory, momentum], 2), form);
    let part = |start| last.clone().narrow(2, start, n).unsqueeze_dim::<5>(0);
    let last = Tensor::cat(vec![part(0), part(n)], 0);
    Ok(vec![("y", y.swap_dims(1, 2).into()), ("final_state", last.into())])
}
