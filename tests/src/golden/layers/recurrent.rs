//! Recurrences over vectors.

use burn::tensor::{Tensor, TensorData};
use seqzoo_layers::params::{self, Named};
use seqzoo_layers::rnn::{LstmStackConfig, RgLruConfig, RgLruCore};
use seqzoo_layers::system::{Form, System, engine};
use seqzoo_layers::{Init, Value};

use super::Outputs;
use crate::golden::{Case, Result};

/// The RG-LRU of a reference that calls `Λ`, the gates' weights and their biases by these names.
fn core(case: &Case, heads: usize, c: f64, names: [&str; 5]) -> Result<RgLruCore> {
    let [a_param, a_weight, a_bias, input_weight, input_bias] = names;
    let a_param = case.get::<1>(a_param)?;
    let config = RgLruConfig { heads, c, ..Default::default() };
    let core = config.init_core(a_param.dims()[0], &mut Init::new(0, case.device()))?;
    let values: [(&str, Value); 5] = [
        ("a_param", a_param.into()),
        ("a_gate.weight", case.get::<3>(a_weight)?.into()),
        ("a_gate.bias", case.get::<2>(a_bias)?.into()),
        ("input_gate.weight", case.get::<3>(input_weight)?.into()),
        ("input_gate.bias", case.get::<2>(input_bias)?.into()),
    ];
    Ok(params::assign(core, values.map(|(name, value)| (name.to_string(), value)).into())?)
}

/// 1 where a position is 0, a document's first; positions are `[b, t]`, or `[1, t]` for all rows.
fn resets(case: &Case, positions: &str, batch: usize, time: usize) -> Result<Tensor<2>> {
    let positions = case.indices(positions)?;
    let flags: Vec<f32> =
        positions.iter().cycle().take(batch * time).map(|&position| f32::from(position == 0)).collect();
    Ok(Tensor::from_data(TensorData::new(flags, [batch, time]), &case.device().clone().inner()))
}

/// The recurrence of transformers.
pub(super) fn rglru(case: &Case, form: Form) -> Result<Outputs> {
    let names = [
        "w.recurrent_param",
        "w.recurrent_gate_weight",
        "w.recurrent_gate_bias",
        "w.input_gate_weight",
        "w.input_gate_bias",
    ];
    let core = core(case, case.size("num_attention_heads")?, 8.0, names)?;
    let x = case.get::<3>("in.activations")?;
    let [b, t, n] = x.dims();
    let h0 = Tensor::zeros([b, n], &case.device().clone().inner());
    let (y, last) = core.forward(x, Some(resets(case, "aux.arg1", b, t)?), h0, form)?;
    Ok(vec![("y", y.into()), ("recurrent_state", last.into())])
}

/// The recurrence of the authors, with resets inside or a state before.
pub(super) fn griffin(case: &Case, form: Form) -> Result<Outputs> {
    let names = ["w.a_param", "w.a_gate.w", "w.a_gate.b", "w.input_gate.w", "w.input_gate.b"];
    let core = core(case, case.size("num_heads")?, case.number("c").unwrap_or(8.0), names)?;
    let x = case.get::<3>("in.x")?;
    let [b, t, n] = x.dims();
    // What a document leaves behind must not reach the next: where a reset comes first, any state will do.
    let h0 = match case.has("in.h0") {
        true => case.get("in.h0")?,
        false => Tensor::ones([b, n], &case.device().clone().inner()),
    };
    let (y, last) = core.forward(x, Some(resets(case, "in.segment_pos", b, t)?), h0, form)?;
    Ok(vec![("y", y.into()), ("final_state", last.into())])
}

/// HGRN's `h_t = exp(g_t) ∘ h_{t-1} + x_t`.
pub(super) fn hgrn(case: &Case, form: Form) -> Result<Outputs> {
    let (g, x) = (case.get::<3>("in.g")?, case.get::<3>("in.x")?);
    let [b, t, n] = x.dims();
    let h0 = case.get::<2>("in.initial_state")?.reshape([b, 1, n, 1]);
    let system = System::direct(g.unsqueeze_dim(1), x.unsqueeze_dim(1));
    let (y, last) = engine::run(system, h0, form)?;
    Ok(vec![("y", y.reshape([b, t, n]).into()), ("final_state", last.reshape([b, n]).into())])
}

/// `torch.nn.LSTM`, any number of layers and directions.
pub(super) fn lstm(case: &Case, _form: Form) -> Result<Outputs> {
    let bidirectional = case.flag("bidirectional");
    let config = LstmStackConfig {
        input: case.size("input_size")?,
        hidden: case.size("hidden_size")?,
        layers: case.size("num_layers")?,
        bias: case.has("w.bias_ih_l0"),
        forget_bias: None,
        bidirectional,
    };
    let directions = if bidirectional { &["", "_reverse"][..] } else { &[""] };
    let mut named = Named::new();
    for layer in 0..config.layers {
        for (direction, suffix) in directions.iter().enumerate() {
            let cell = layer * directions.len() + direction;
            for (ours, theirs) in [("input", "ih"), ("recurrent", "hh")] {
                let weight = case.linear(&format!("w.weight_{theirs}_l{layer}{suffix}"))?;
                named.insert(format!("cells.{cell}.{ours}.weight"), weight);
                if config.bias {
                    let bias = case.get::<1>(&format!("w.bias_{theirs}_l{layer}{suffix}"))?;
                    named.insert(format!("cells.{cell}.{ours}.bias"), bias.into());
                }
            }
        }
    }
    let stack = params::assign(config.init(&mut Init::new(0, case.device()))?, named)?;
    // torch keeps states as [layers, b, n].
    let state = |name: &str| -> Result<Tensor<3>> { Ok(case.get::<3>(name)?.swap_dims(0, 1)) };
    let (y, h, c) = stack.forward(case.get("in.x")?, state("in.h0")?, state("in.c0")?, None)?;
    Ok(vec![("y", y.into()), ("h", h.swap_dims(0, 1).into()), ("c", c.swap_dims(0, 1).into())])
}
