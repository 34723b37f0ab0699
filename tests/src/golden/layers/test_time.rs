//! Memories that are trained while they read: TTT and Titans.

use burn::tensor::Tensor;
use seqzoo_layers::Init;
use seqzoo_layers::miras::{
    HiddenLayer, NeuralMemoryConfig, OneMap, TttConfig, TttFast, TttKind, TttMemory, TttTokens,
};
use seqzoo_layers::nn::{RopeConfig, rms_normalize};
use seqzoo_layers::params::{self, Named};
use seqzoo_layers::system::{Form, Mixer, System, Transition, engine};

use super::Outputs;
use crate::golden::{Case, Result};

/// The layers of the authors' release.
pub(super) fn ttt_linear(case: &Case, form: Form) -> Result<Outputs> {
    ttt::<OneMap>(case, form)
}

pub(super) fn ttt_mlp(case: &Case, form: Form) -> Result<Outputs> {
    ttt::<HiddenLayer>(case, form)
}

fn ttt<K: TttKind>(case: &Case, form: Form) -> Result<Outputs> {
    let (width, heads) = (case.size("hidden_size")?, case.size("num_attention_heads")?);
    let share_qk = case.flag("share_qk");
    let config = TttConfig::<K> {
        heads,
        head_dim: width / heads,
        mini_batch: case.size("mini_batch_size")?,
        base_lr: case.number("ttt_base_lr").unwrap_or(K::BASE_LR),
        share_qk,
        // The release convolves only what it shares.
        conv_kernel: if share_qk { case.size("conv_kernel")? } else { 0 },
        rope: Some(RopeConfig { base: case.number("rope_theta").unwrap_or(1e4), ..Default::default() }),
        gate: case.flag("use_gate"),
        ..Default::default()
    };
    let mut named = Named::new();
    for (ours, theirs) in [("q", "q"), ("k", "k"), ("v", "v"), ("gate", "g"), ("out", "o")] {
        let theirs = format!("w.{theirs}_proj.weight");
        if case.has(&theirs) {
            named.insert(format!("{ours}_proj.weight"), case.linear(&theirs)?);
        }
    }
    for conv in ["conv_q", "conv_k"].into_iter().filter(|_| share_qk) {
        let weight = case.get::<3>(&format!("w.{conv}.weight"))?.squeeze_dim::<2>(1);
        named.insert(format!("{conv}.weight"), weight.into());
        named.insert(format!("{conv}.bias"), case.get::<1>(&format!("w.{conv}.bias"))?.into());
    }
    for layer in (1..=2).filter(|layer| case.has(&format!("w.W{layer}"))) {
        named.insert(format!("memory.w{layer}"), case.get::<3>(&format!("w.W{layer}"))?.into());
        let bias = case.get::<3>(&format!("w.b{layer}"))?.squeeze_dim::<2>(1);
        named.insert(format!("memory.b{layer}"), bias.into());
    }
    for field in ["weight", "bias"] {
        let norm = case.get::<2>(&format!("w.ttt_norm_{field}"))?;
        named.insert(format!("memory.norm_{field}"), norm.into());
        let norm = case.get::<1>(&format!("w.post_norm.{field}"))?;
        named.insert(format!("out_norm.{field}"), norm.into());
    }
    let rate = case.get::<3>("w.learnable_ttt_lr_weight")?.squeeze_dim::<2>(1).transpose();
    named.insert("lr_proj.weight".into(), rate.into());
    named.insert("lr_proj.bias".into(), case.get::<2>("w.learnable_ttt_lr_bias")?.squeeze_dim::<1>(1).into());
    named.insert("token_scale".into(), case.get::<1>("w.learnable_token_idx")?.into());
    let layer = params::assign(config.init(width, &mut Init::new(0, case.device()))?, named)?;
    let x = case.get::<3>("in.x")?;
    let state = layer.initial_state(x.dims()[0]);
    Ok(vec![("y", layer.forward(x, state, form)?.0.into())])
}

/// fla's operator: one rate per query, which is what the sum of gradients counts when it reads, and an output of
/// `z + LN(z)` where the layer has `q + LN(z)`. `[b, t, h, n]`.
pub(super) fn fla_ttt_linear(case: &Case, form: Form) -> Result<Outputs> {
    let [q, k, v, scale] = case.inputs(["q", "k", "v", "eta"])?.map(|x| x.swap_dims(1, 2));
    let [_, heads, _, n] = k.dims();
    let memory = TttMemory::new(heads, n, None, true, &mut Init::new(0, case.device()));
    let mut named = params::parameters(&memory);
    named.insert("norm_weight".into(), case.get::<2>("in.w")?.into());
    named.insert("norm_bias".into(), case.get::<2>("in.b")?.into());
    let memory = params::assign(memory, named)?;
    let start = [case.get::<4>("in.initial_state")?, case.get("in.initial_state_bias")?];
    let fast = TttFast { start: vec![Tensor::cat(start.into(), 2)], sum: None };
    let q = q.mul_scalar((n as f64).powf(-0.5));
    let tokens = TttTokens { q, k, v, eta: scale.clone().detach().ones_like(), scale };
    let (z, fast) = memory.learn(tokens, fast, case.size("mb")?, form);
    let y = memory.output(z.clone(), z).swap_dims(1, 2);
    let last = fast.start[0].clone();
    let (state, bias) = (last.clone().narrow(2, 0, n), last.narrow(2, n, 1));
    Ok(vec![("y", y.into()), ("final_state", state.into()), ("final_state_bias", bias.into())])
}

/// fla's linear Titans as its authors wrote it: `M_t = (1 - α_t) M_{t-1} + S_t`, `S_t = η_t S_{t-1} - 2 θ_t k_t u_t`.
///
/// Between two chunk boundaries `u` is fixed by the memory at the first, so that `[M; S]` is a linear system with
/// `2n` states. Its `u` is meant to be the gradient of `½|LN(k M) - (v - k)|²`, but one division is missing.
pub(super) fn fla_titans_linear(case: &Case, form: Form) -> Result<Outputs> {
    let [q, k, v] = case.inputs(["q", "k", "v"])?;
    let [theta, alpha, eta] = case.inputs(["theta", "alpha", "eta"])?;
    let ([_, h, t, n], chunk) = (k.dims(), case.size("chunk")?);
    let per_head = |name: &str| -> Result<Tensor<4>> { Ok(case.get::<2>(name)?.reshape([1, h, 1, n])) };
    let (gain, bias) = (per_head("in.w")?, per_head("in.b")?);
    let memory: Tensor<4> = case.get("in.initial_state")?;
    let mut both = Tensor::cat(vec![memory.clone(), memory.detach().zeros_like()], 2);
    let eye = Tensor::<2>::eye(n, &case.device().clone().inner()).reshape([1, 1, 1, n, n]);
    let mut out = Vec::new();
    for start in (0..t).step_by(chunk) {
        let size = chunk.min(t - start);
        let part = |x: &Tensor<4>| x.clone().narrow(2, start, size);
        let (k, keep, eta) = (part(&k), part(&alpha).neg().add_scalar(1.0), part(&eta));
        // As printed: n u is not divided by the deviation and by n, as the sums are.
        let (normal, deviation) = standardize(k.clone().matmul(both.clone().narrow(2, 0, n)));
        let g = (normal.clone() * gain.clone() + bias.clone() - part(&v) + k.clone()) * gain.clone();
        let along = normal.clone() * (g.clone() * normal).mean_dim(3);
        let u = g.clone().mul_scalar(n as f64) - (g.mean_dim(3) + along) / deviation;
        let write = u * part(&theta).mul_scalar(-2.0);
        let block = |x: Tensor<4>| x.unsqueeze_dim::<5>(4) * eye.clone();
        let upper = Tensor::cat(vec![block(keep), block(eta.clone())], 4);
        let lower = Tensor::cat(vec![block(eta.clone()).detach().zeros_like(), block(eta)], 4);
        let lambda = Tensor::cat(vec![upper, lower], 3);
        let query = Tensor::cat(vec![part(&q), part(&q).detach().zeros_like()], 3);
        let system =
            System::outer(Transition::Dense { lambda }, query, Tensor::cat(vec![k.clone(), k], 3), write);
        let (y, last) = engine::run(system, both, form)?;
        both = last;
        out.push(y);
    }
    let y = Tensor::cat(out, 2);
    let y = y.clone() + standardize(y).0 * gain + bias;
    Ok(vec![("y", y.into()), ("final_state", both.narrow(2, 0, n).into())])
}

/// titans-pytorch's layer. `w.memory_model.*` is the memory before it was copied to every head.
pub(super) fn neural_memory(case: &Case, form: Form) -> Result<Outputs> {
    let (n, factor) = (case.size("dim_head")?, case.number("expansion_factor").unwrap_or(4.0));
    let config = NeuralMemoryConfig {
        heads: case.size("heads")?,
        head_dim: n,
        expansion: factor as usize,
        chunk: case.size("chunk_size")?,
        max_lr: 1.0,
        // torch's: the smallest number that changes 1
        norm_eps: f64::from(f32::EPSILON),
        ..Default::default()
    };
    let mut named = Named::new();
    for norm in ["store_norm.weight", "retrieve_norm.weight"] {
        named.insert(norm.into(), case.get::<1>(&format!("w.{norm}"))?.into());
    }
    for (ours, theirs) in [
        ("q_proj", "to_queries"),
        ("k_proj", "to_keys"),
        ("v_proj", "to_values"),
        ("step_proj", "to_adaptive_step.0"),
        ("forget_proj", "to_decay_factor.0"),
        ("momentum_proj", "to_momentum.0"),
        ("gate_proj", "retrieve_gate.0"),
        ("out_proj", "combine_heads"),
    ] {
        let [weight, bias] = ["weight", "bias"].map(|field| format!("w.{theirs}.{field}"));
        if case.has(&weight) {
            named.insert(format!("{ours}.weight"), case.linear(&weight)?);
        }
        if case.has(&bias) {
            named.insert(format!("{ours}.bias"), case.get::<1>(&bias)?.into());
        }
    }
    named.insert("memory.gain".into(), case.get::<2>("w.memory_model_parameters.0")?.into());
    named.insert("memory.w1".into(), case.get::<3>("w.memory_model_parameters.1")?.into());
    named.insert("memory.w2".into(), case.get::<3>("w.memory_model_parameters.2")?.into());
    let layer = config.init(case.size("dim")?, &mut Init::new(0, case.device()))?;
    let layer = params::assign(layer, named)?;
    let x = case.get::<3>("in.x")?;
    let state = layer.initial_state(x.dims()[0]);
    Ok(vec![("y", layer.forward(x, state, form)?.0.into())])
}

/// `(z - mean) / deviation` and the deviation, over the last axis.
fn standardize(z: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
    const EPS: f64 = 1e-6;
    let centred = z.clone() - z.mean_dim(3);
    let deviation = centred.clone().square().mean_dim(3).add_scalar(EPS).sqrt();
    (rms_normalize(centred, EPS), deviation)
}
