//! RWKV layers of references that are not in transformers.

use burn::tensor::Tensor;
use seqzoo_layers::params::{self, Named};
use seqzoo_layers::rwkv::{Rwkv6Config, Rwkv7, Rwkv7Config};
use seqzoo_layers::system::{Form, MEMORY, Mixer};
use seqzoo_layers::{Init, Value};

use super::Outputs;
use crate::golden::{Case, Error, Result};

/// The layer of flash-linear-attention.
pub(super) fn rwkv6(case: &Case, form: Form) -> Result<Outputs> {
    let x = case.get::<3>("in.x")?;
    let (d, heads) = (x.dims()[2], case.size("num_heads")?);
    let [_, n] = case.get::<2>("w.bonus")?.dims();
    let [_, values] = case.get::<2>("w.v_proj.linear.weight")?.transpose().dims();
    let rank = case.size("proj_low_rank_dim")?;
    let config = Rwkv6Config {
        heads,
        head_dim: n,
        expand_v: (values / heads) as f64 / n as f64,
        mix_rank: rank,
        decay_rank: case.size("gate_low_rank_dim")?,
        norm_eps: case.number("norm_eps").unwrap_or(1e-5),
        ..Default::default()
    };
    let mut named = Named::new();
    for (ours, theirs) in [
        ("r_proj", "r_proj.linear"),
        ("k_proj", "k_proj.linear"),
        ("v_proj", "v_proj.linear"),
        ("gate_proj", "g_proj.linear"),
        ("out_proj", "o_proj"),
        ("mix_down", "x_proj.0.linear"),
        ("decay.down", "w_proj.linear.lora.0"),
        ("decay.up", "w_proj.linear.lora.2"),
    ] {
        named.insert(format!("{ours}.weight"), case.linear(&format!("w.{theirs}.weight"))?);
    }
    for (ours, theirs) in [
        ("decay.up.bias", "w_proj.linear.lora.2.bias"),
        ("mix_x", "x_proj.0.mu"),
        ("norm.weight", "g_norm.weight"),
        ("norm.bias", "g_norm.bias"),
        ("mix", "x_bias"),
        ("bonus", "bonus"),
    ] {
        named.insert(ours.into(), case.value(&format!("w.{theirs}"))?.clone());
    }
    // One map to all five mixes, [d, 5 rank].
    let up = case.get::<2>("w.x_proj.2.weight")?.reshape([d, 5, rank]).permute([1, 2, 0]);
    named.insert("mix_up".into(), up.into());
    let layer = params::assign(config.init(d, &mut Init::new(0, case.device()))?, named)?;
    let state = Mixer::initial_state(&layer, x.dims()[0]);
    Ok(vec![("y", layer.forward(x, state, form)?.0.into())])
}

/// The authors' two layers: the first hands its value to the second, and both read the same input.
pub(super) fn rwkv7(case: &Case, form: Form) -> Result<Outputs> {
    let x = case.get::<2>("in.x")?.unsqueeze::<3>();
    let (first, later) = (rwkv7_layer(case, 0)?, rwkv7_layer(case, 1)?);
    let start = |layer: &Rwkv7| Mixer::initial_state(layer, 1);
    let (y0, state0, value) = first.forward_after(x.clone(), start(&first), form, None)?;
    let (y1, state1, _) = later.forward_after(x, start(&later), form, Some(value))?;
    // Their state has a row per value channel.
    let memory = |state: seqzoo_layers::system::State| -> Result<Tensor<3>> {
        Ok(state.get::<4>(MEMORY)?.squeeze_dim::<3>(0).swap_dims(1, 2))
    };
    let flat = |y: Tensor<3>| y.squeeze_dim::<2>(0);
    Ok(vec![
        ("y0", flat(y0).into()),
        ("y1", flat(y1).into()),
        ("state0", memory(state0)?.into()),
        ("state1", memory(state1)?.into()),
    ])
}

fn rwkv7_layer(case: &Case, index: usize) -> Result<Rwkv7> {
    let (d, n, rank) = (case.size("n_embd")?, case.size("head_size")?, case.size("lora")?);
    if n == 0 {
        return Err(Error::Case("`head_size` is 0".into()));
    }
    let config = Rwkv7Config {
        heads: d / n,
        head_dim: n,
        decay_rank: Some(rank),
        value_rank: Some(rank),
        gate_rank: Some(rank),
        ..Default::default()
    };
    let name = |theirs: &str| format!("w.layer{index}.{theirs}");
    let later = case.has(&name("Wv1"));
    let mut named = Named::new();
    for (ours, theirs) in [("r_proj", "Wr"), ("k_proj", "Wk"), ("v_proj", "Wv"), ("out_proj", "Wo")] {
        named.insert(format!("{ours}.weight"), case.linear(&name(theirs))?);
    }
    let mut copy = |ours: &str, theirs: &str| -> Result<()> {
        let value: Value = case.value(&name(theirs))?.clone();
        named.insert(ours.into(), value);
        Ok(())
    };
    for (ours, theirs) in [("decay", "w"), ("rate", "a"), ("gate", "g"), ("first", "v")] {
        if ours == "first" && !later {
            continue;
        }
        copy(&format!("{ours}.down.weight"), &format!("W{theirs}1"))?;
        copy(&format!("{ours}.up.weight"), &format!("W{theirs}2"))?;
        if ours != "gate" {
            copy(&format!("{ours}.up.bias"), &format!("{theirs}_bias"))?;
        }
    }
    for letter in ["r", "w", "k", "v", "a", "g"] {
        copy(&format!("mix_{letter}"), &format!("m{letter}"))?;
    }
    for (ours, theirs) in
        [("k_k", "k_k"), ("k_a", "k_a"), ("r_k", "r_k"), ("norm.weight", "ln_w"), ("norm.bias", "ln_b")]
    {
        copy(ours, theirs)?;
    }
    let init = &mut Init::new(0, case.device());
    let layer = if later { config.init_later(d, init)? } else { config.init(d, init)? };
    Ok(params::assign(layer, named)?)
}
