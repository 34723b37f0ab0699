//! Linear memories that are read in other ways than by one product: bare operators.

use burn::tensor::Tensor;
use seqzoo_layers::linear::{self, LogLinearInputs, MesaInputs};
use seqzoo_layers::system::Form;

use super::Outputs;
use crate::golden::{Case, Result};

/// `[b, t, h, n] -> [b, h, t, n]`
fn head_first(case: &Case, name: &str) -> Result<Tensor<4>> {
    Ok(case.get::<4>(name)?.swap_dims(1, 2))
}

/// The reference solves exactly; here conjugate gradients run well beyond the size of the heads.
pub(super) fn mesa_net(case: &Case, form: Form) -> Result<Outputs> {
    let k = head_first(case, "in.k")?;
    let [b, h, _, n] = k.dims();
    let lambda = case.get::<2>("in.lamb")?;
    let least = lambda.clone().min().into_scalar::<f32>();
    let inputs = MesaInputs {
        q: head_first(case, "in.q")?,
        k,
        v: head_first(case, "in.v")?,
        log_a: case.get::<3>("in.g")?.swap_dims(1, 2),
        beta: case.get::<3>("in.beta")?.swap_dims(1, 2),
        lambda,
        lambda_min: f64::from(least),
        steps: 30,
        any_gram: true,
    };
    let start = |name: &str| match case.has(name) {
        true => case.get::<4>(name),
        false => Ok(Tensor::zeros([b, h, n, n], &case.device().clone().inner())),
    };
    let memory = Tensor::cat(vec![start("in.h_kk_init")?, start("in.h_kv_init")?], 3);
    let (y, last) = linear::mesa(&inputs, memory, form)?;
    Ok(vec![
        ("y", y.swap_dims(1, 2).into()),
        ("final_h_kk", last.clone().narrow(3, 0, n).into()),
        ("final_h_kv", last.narrow(3, n, n).into()),
    ])
}

pub(super) fn log_linear(case: &Case, form: Form) -> Result<Outputs> {
    let inputs = LogLinearInputs {
        q: head_first(case, "in.q")?,
        k: head_first(case, "in.k")?,
        v: head_first(case, "in.v")?,
        log_a: case.get::<3>("in.g")?.swap_dims(1, 2),
        scales: head_first(case, "in.level_scales")?,
    };
    let starts = vec![0; inputs.k.dims()[0]];
    let (y, _) = linear::log_linear(inputs, None, &starts, None, form)?;
    Ok(vec![("y", y.swap_dims(1, 2).into())])
}
