//! Bare recurrences, run by the engine: `q`, `k`, `v` and decays are given, no projections.

use burn::tensor::{Tensor, TensorData, activation};
use seqzoo_layers::delta::{Feedback, comba_system, delta_product_system, delta_system, kda_system};
use seqzoo_layers::lightning::lightning_system;
use seqzoo_layers::linear::{normalize, with_normalizer};
use seqzoo_layers::nn::{repeat_heads, softplus};
use seqzoo_layers::system::{Form, System, Transition, engine};

use super::Outputs;
use crate::golden::{Case, Result};

/// Axes of the case's tensors.
#[derive(Clone, Copy, PartialEq)]
enum Layout {
    /// `[b, t, h, n]`
    TimeFirst,
    /// `[b, h, t, n]`
    HeadFirst,
}

use Layout::{HeadFirst, TimeFirst};

/// `[b, t, h, n]` and `[b, h, t, n]` into each other, where the case has time first.
fn turn(x: Tensor<4>, layout: Layout) -> Tensor<4> {
    if layout == TimeFirst { x.swap_dims(1, 2) } else { x }
}

/// A tensor with a number per token and head, as `[b, h, t]`.
fn per_head(case: &Case, name: &str, layout: Layout) -> Result<Tensor<3>> {
    let x = case.get::<3>(name)?;
    Ok(if layout == TimeFirst { x.swap_dims(1, 2) } else { x })
}

/// `q`, `k`, `v` as `[b, h, t, n]`, `q` scaled by `1/√n`.
fn scaled(case: &Case, layout: Layout) -> Result<[Tensor<4>; 3]> {
    let [q, k, v] = case.inputs(["q", "k", "v"])?.map(|x| turn(x, layout));
    let n = k.dims()[3] as f64;
    Ok([q.mul_scalar(n.powf(-0.5)), k, v])
}

/// Runs the system from the case's state, or from zero.
fn run(case: &Case, system: System, sizes: [usize; 4], layout: Layout, form: Form) -> Result<Outputs> {
    let memory = if case.has("in.initial_state") {
        case.get("in.initial_state")?
    } else {
        Tensor::zeros(sizes, &case.device().clone().inner())
    };
    let (y, last) = engine::run(system, memory, form)?;
    Ok(vec![("y", turn(y, layout).into()), ("final_state", last.into())])
}

/// `[b, h, n, p]` of keys and values.
fn memory_size(k: &Tensor<4>, v: &Tensor<4>) -> [usize; 4] {
    let [b, h, _, n] = k.dims();
    [b, h, n, v.dims()[3]]
}

/// A constant decay per head, `[b, h, t]`.
fn constant(log: Vec<f64>, k: &Tensor<4>) -> Tensor<3> {
    let [b, h, t, _] = k.dims();
    let data = TensorData::new(log, [1, h, 1]);
    Tensor::<3>::from_data(data, (&k.device().inner(), k.dtype())).expand([b, h, t])
}

pub(super) fn lightning(case: &Case, form: Form) -> Result<Outputs> {
    let [q, k, v] = case.inputs(["q", "k", "v"])?;
    let slopes = seqzoo_layers::Value::of(case.get::<3>("aux.slopes")?).to_f64()?;
    let size = memory_size(&k, &v);
    run(case, lightning_system(&slopes, q, k, v)?, size, HeadFirst, form)
}

pub(super) fn linear_attention(case: &Case, form: Form) -> Result<Outputs> {
    let [q, k, v] = scaled(case, TimeFirst)?;
    let size = memory_size(&k, &v);
    if !case.flag("norm") {
        return run(case, System::outer(Transition::Identity, q, k, v), size, TimeFirst, form);
    }
    let [b, h, n, p] = size;
    let system = System::outer(Transition::Identity, q, k, with_normalizer(v));
    let zero = Tensor::zeros([b, h, n, p + 1], &case.device().clone().inner());
    let (y, last) = engine::run(system, zero, form)?;
    let y = normalize(y, 1e-10).swap_dims(1, 2);
    let (state, z) = (last.clone().narrow(3, 0, p), last.narrow(3, p, 1).permute([0, 3, 1, 2]));
    Ok(vec![("y", y.into()), ("final_state", state.into()), ("final_z", z.into())])
}

/// RetNet's decays, `γ_h = 1 - 2^{-5-h}`.
pub(super) fn retention(case: &Case, form: Form) -> Result<Outputs> {
    let [q, k, v] = scaled(case, HeadFirst)?;
    let log = (0..k.dims()[1]).map(|h| (-(-5.0 - h as f64).exp2()).ln_1p()).collect();
    let (size, log_a) = (memory_size(&k, &v), constant(log, &k));
    run(case, System::outer(Transition::Scalar { log_a }, q, k, v), size, HeadFirst, form)
}

pub(super) fn simple_gla(case: &Case, form: Form) -> Result<Outputs> {
    let [q, k, v] = scaled(case, TimeFirst)?;
    let (size, log_a) = (memory_size(&k, &v), per_head(case, "in.g", TimeFirst)?);
    run(case, System::outer(Transition::Scalar { log_a }, q, k, v), size, TimeFirst, form)
}

pub(super) fn gla(case: &Case, form: Form) -> Result<Outputs> {
    let [q, k, v] = scaled(case, TimeFirst)?;
    let (size, log_a) = (memory_size(&k, &v), turn(case.get("in.g")?, TimeFirst));
    run(case, System::outer(Transition::Diagonal { log_a }, q, k, v), size, TimeFirst, form)
}

pub(super) fn delta_rule(case: &Case, form: Form) -> Result<Outputs> {
    let [q, k, v] = scaled(case, HeadFirst)?;
    let (size, beta) = (memory_size(&k, &v), per_head(case, "in.beta", HeadFirst)?);
    let system = delta_system(beta.clone().detach().zeros_like(), beta, q, k, v);
    run(case, system, size, HeadFirst, form)
}

pub(super) fn gated_delta_rule(case: &Case, form: Form) -> Result<Outputs> {
    let [q, k, v] = scaled(case, TimeFirst)?;
    let size = memory_size(&k, &v);
    let (log_a, beta) = (per_head(case, "in.g", TimeFirst)?, per_head(case, "in.beta", TimeFirst)?);
    run(case, delta_system(log_a, beta, q, k, v), size, TimeFirst, form)
}

/// Kimi delta attention: a decay per key channel; value heads may share queries and keys.
pub(super) fn kimi_delta(case: &Case, form: Form) -> Result<Outputs> {
    let [q, k, v] = scaled(case, TimeFirst)?;
    let group = v.dims()[1] / k.dims()[1];
    let (q, k) = (repeat_heads(q, group), repeat_heads(k, group));
    let size = memory_size(&k, &v);
    let log_d = turn(case.get("in.g")?, TimeFirst);
    let beta = per_head(case, "in.beta", TimeFirst)?;
    run(case, kda_system(log_d, beta, q, k, v), size, TimeFirst, form)
}

pub(super) fn rwkv7(case: &Case, form: Form) -> Result<Outputs> {
    let [q, k, v] = scaled(case, HeadFirst)?;
    let [log_d, a, b] = case.inputs(["gk", "alpha", "beta"])?;
    let size = memory_size(&k, &v);
    let system = System::outer(Transition::Householder { log_d, a, b }, q, k, v);
    run(case, system, size, HeadFirst, form)
}

/// `H_t = H_{t-1} + β_t α_tᵀ H_{t-1} + k_t v_tᵀ`
pub(super) fn identity_plus_low_rank(case: &Case, form: Form) -> Result<Outputs> {
    let [q, k, v] = scaled(case, HeadFirst)?;
    let [a, b] = case.inputs(["alpha", "beta"])?;
    let size = memory_size(&k, &v);
    let transition = Transition::Householder { log_d: a.clone().detach().zeros_like(), a, b };
    run(case, System::outer(transition, q, k, v), size, HeadFirst, form)
}

/// Gated DeltaProduct: every token is `nh` delta steps; the first decays, the last is read.
pub(super) fn delta_product(case: &Case, form: Form) -> Result<Outputs> {
    let [q, k, v] = scaled(case, TimeFirst)?;
    let (steps, size) = (case.size("nh")?, memory_size(&k, &v));
    let (log_a, beta) = (per_head(case, "in.g", TimeFirst)?, per_head(case, "in.beta", TimeFirst)?);
    let system = delta_product_system(log_a, beta, q, k, v, steps);
    run(case, system, size, TimeFirst, form)
}

/// Comba as its recurrent reference has it: what is at `p` is read after the decay.
pub(super) fn comba_after_decay(case: &Case, form: Form) -> Result<Outputs> {
    comba(case, form, Feedback::AfterDecay)
}

/// Comba as its chunk reference has it: read before the decay.
pub(super) fn comba_before_decay(case: &Case, form: Form) -> Result<Outputs> {
    comba(case, form, Feedback::BeforeDecay)
}

fn comba(case: &Case, form: Form, feedback: Feedback) -> Result<Outputs> {
    let [q, k, v] = scaled(case, TimeFirst)?;
    let size = memory_size(&k, &v);
    let (log_a, beta) = (per_head(case, "in.g", TimeFirst)?, per_head(case, "in.beta", TimeFirst)?);
    let p = turn(case.get("in.p")?, TimeFirst);
    run(case, comba_system(log_a, beta, q, [k, p], v, feedback), size, TimeFirst, form)
}

/// RWKV-6 reads before it writes, and its own token through the bonus `u`:
/// `y_t = q_tᵀ (H_{t-1} + (u ∘ k_t) v_tᵀ)`.
pub(super) fn rwkv6(case: &Case, form: Form) -> Result<Outputs> {
    let [q, k, v] = case.inputs(["q", "k", "v"])?;
    let ([_, h, _, n], size) = (q.dims(), memory_size(&k, &v));
    let u = case.get::<2>("in.u")?.reshape([1, h, 1, n]);
    let bonus = (q.clone() * u * k.clone()).sum_dim(3);
    let transition = Transition::Diagonal { log_a: case.get("in.w")? };
    let system = System::outer(transition, q, k, v).read_before().with_skip(bonus);
    run(case, system, size, HeadFirst, form)
}

/// The authors' minimal Mamba-2; its state is `[b, h, p, n]`.
pub(super) fn ssd(case: &Case, form: Form) -> Result<Outputs> {
    let [c, b, x] = case.inputs(["C", "B", "X"])?.map(|x| turn(x, TimeFirst));
    let log_a = per_head(case, "in.A", TimeFirst)?;
    let h0 = case.get::<5>("in.initial_states")?.squeeze_dim::<4>(1).swap_dims(2, 3);
    let system = System::outer(Transition::Scalar { log_a }, c, b, x);
    let (y, last) = engine::run(system, h0, form)?;
    Ok(vec![("y", turn(y, TimeFirst).into()), ("final_state", last.swap_dims(2, 3).into())])
}

/// The authors' decode step in full generality: a decay per channel and state, so each of the `h p` channels
/// is a head of its own.
pub(super) fn selective_state_update(case: &Case, form: Form) -> Result<Outputs> {
    let x = case.get::<3>("in.x")?;
    let [b, h, p] = x.dims();
    let [_, groups, n] = case.get::<3>("in.B")?.dims();
    let channels = |x: Tensor<3>| x.reshape([b, h * p, 1, 1]);
    let dt = case.get::<3>("in.dt")? + case.get::<2>("in.dt_bias")?.unsqueeze();
    let dt = channels(if case.flag("dt_softplus") { softplus(dt) } else { dt });
    let log_a = dt.clone() * case.get::<3>("in.A")?.reshape([1, h * p, 1, n]);
    let shared = |name: &str| -> Result<Tensor<4>> {
        Ok(repeat_heads(case.get::<3>(name)?.reshape([b, groups, 1, n]), h * p / groups))
    };
    let d = case.get::<2>("in.D")?.reshape([1, h * p, 1, 1]);
    let (q, k, v) = (shared("in.C")?, shared("in.B")? * dt, channels(x));
    let system = System::outer(Transition::Diagonal { log_a }, q, k, v).with_skip(d);
    let state = case.get::<4>("in.state")?.reshape([b, h * p, n, 1]);
    let (y, last) = engine::run(system, state, form)?;
    let y = y.reshape([b, h, p]) * activation::silu(case.get::<3>("in.z")?);
    Ok(vec![("y", y.into()), ("new_state", last.reshape([b, h, p, n]).into())])
}
