use burn::tensor::{DType, Device};

use super::*;
use crate::testing::{Draw, error, gap, numbers};

fn inputs(t: usize, n: usize, steps: usize, lambda: f64) -> MesaInputs {
    let mut draw = Draw::new(t as u64);
    let mut of = |last: usize| draw.tensor::<4>([2, 2, t, last], -1.0, 1.0);
    let (q, k, v) = (of(n), of(n), of(n));
    MesaInputs {
        q,
        k: l2_normalize(k, 1e-6),
        v,
        log_a: draw.tensor([2, 2, t], -0.3, 0.0),
        beta: draw.tensor([2, 2, t], 0.1, 1.0),
        lambda: draw.tensor([2, n], lambda, 2.0 * lambda),
        lambda_min: lambda,
        steps,
        any_gram: false,
    }
}

fn nothing(n: usize) -> Tensor<4> {
    Tensor::zeros([2, 2, n, 2 * n], &Device::flex())
}

/// The fit by an LU decomposition in double precision.
fn exact(inputs: &MesaInputs) -> Vec<f64> {
    let [b, h, t, n] = inputs.k.dims();
    let [q, k, v] = [&inputs.q, &inputs.k, &inputs.v].map(|x| numbers(x.clone()));
    let [log_a, beta] = [&inputs.log_a, &inputs.beta].map(|x| numbers(x.clone()));
    let lambda = numbers(inputs.lambda.clone());
    let mut y = Vec::new();
    for row in 0..b * h {
        let ridge = nalgebra::DVector::from_row_slice(&lambda[row % h * n..][..n]);
        let mut gram = nalgebra::DMatrix::<f64>::zeros(n, n);
        let mut memory = gram.clone();
        for i in row * t..(row + 1) * t {
            let vector = |x: &[f64]| nalgebra::DVector::from_row_slice(&x[i * n..][..n]);
            let (q, k, v) = (vector(&q), vector(&k), vector(&v));
            gram = gram * log_a[i].exp() + &k * k.transpose() * beta[i];
            memory = memory * log_a[i].exp() + &k * v.transpose() * beta[i];
            let system = &gram + nalgebra::DMatrix::from_diagonal(&ridge);
            let x = system.lu().solve(&q).expect("a positive matrix");
            y.extend((memory.transpose() * x).iter());
        }
    }
    y
}

#[test]
fn it_is_the_regularised_least_squares_fit() {
    for (n, steps) in [(1, 30), (3, 30), (8, 30), (8, 9)] {
        let inputs = inputs(21, n, steps, 0.25);
        for form in [Form::Recurrent, Form::Parallel, Form::Chunked { size: 8 }] {
            let (y, _) = mesa(&inputs, nothing(n), form).unwrap();
            assert!(error(&numbers(y), &exact(&inputs)) < 1e-5, "n = {n}, {steps} steps, {form}");
        }
    }
}

/// A large λ outweighs the keys: what is left is linear attention divided by λ.
#[test]
fn a_large_ridge_makes_it_linear_attention() {
    let inputs = inputs(12, 4, 30, 1e6);
    let (y, memory) = mesa(&inputs, nothing(4), Form::Parallel).unwrap();
    let q = inputs.q.clone() / inputs.lambda.clone().reshape([1, 2, 1, 4]);
    let linear = inputs.values(q);
    let zero = Tensor::zeros([2, 2, 4, 4], &Device::flex());
    let (expected, last) = engine::run(linear, zero, Form::Recurrent).unwrap();
    assert!(gap(y.mul_scalar(1e6), expected.mul_scalar(1e6)) < 1e-5);
    assert!(gap(memory.narrow(3, 4, 4), last) < 1e-6);
}

/// Fewer steps are a coarser fit, the same in every form, with finite derivatives also where the query is 0.
#[test]
fn few_steps_and_empty_queries_are_well_behaved() {
    let full = inputs(10, 8, 30, 0.25);
    let truth = exact(&full);
    let mut last = f64::INFINITY;
    for steps in [1, 2, 4, 8] {
        let inputs = MesaInputs { steps, ..full.clone() };
        let (y, _) = mesa(&inputs, nothing(8), Form::Parallel).unwrap();
        let (same, _) = mesa(&inputs, nothing(8), Form::Recurrent).unwrap();
        assert!(gap(y.clone(), same) < 1e-5);
        let off = error(&numbers(y), &truth);
        assert!(off < last, "{steps} steps: {off} after {last}");
        last = off;
    }
    let q = Tensor::<4>::zeros([2, 2, 10, 8], &Device::flex()).autodiff().require_grad();
    let inputs = MesaInputs { q: q.clone(), ..full };
    let (y, _) = mesa(&inputs, nothing(8), Form::Parallel).unwrap();
    assert!(numbers(y.clone()).iter().all(|y| *y == 0.0));
    let grad = q.grad(&y.sum().backward()).unwrap();
    assert!(numbers(grad).iter().all(|g| *g == 0.0));
}

/// Where the first step already ends at the solution, the other ones leave it there.
#[test]
fn a_solution_found_at_once_is_kept() {
    let inputs = MesaInputs { lambda: Tensor::<2>::ones([2, 1], &Device::flex()), ..inputs(6, 1, 30, 0.25) };
    let k = inputs.k.clone().zeros_like();
    let q = inputs.q.clone().autodiff().require_grad();
    let system = MesaInputs { k, q: q.clone(), ..inputs };
    let memory = Tensor::<4>::ones([2, 2, 1, 2], &Device::flex());
    let (y, _) = mesa(&system, memory, Form::Parallel).unwrap();
    let fade = system.log_a.clone().cumsum(2).exp().unsqueeze_dim::<4>(3);
    let slope = fade.clone() / fade.add_scalar(1.0);
    assert!(gap(y.clone().inner(), slope.clone() * system.q.clone().inner()) < 1e-5);
    assert!(gap(q.grad(&y.sum().backward()).unwrap(), slope) < 1e-5);
}

/// The gradient of the solution is the solution's for the gradient: `dL/dq = (G + λ)^{-1} H dL/dy`.
#[test]
fn the_gradient_of_a_converged_solve_is_exact() {
    let plain = inputs(9, 6, 30, 0.25);
    let cotangent = Draw::new(8).tensor::<4>([2, 2, 9, 6], -1.0, 1.0);
    let q = plain.q.clone().autodiff().require_grad();
    let (y, _) = mesa(&MesaInputs { q: q.clone(), ..plain.clone() }, nothing(6), Form::Parallel).unwrap();
    let found = q.grad(&(y * cotangent.clone()).sum().backward()).unwrap();
    // The same fit in double precision, asked with the last token's cotangent.
    let double = |x: Tensor<4>| x.cast(DType::F64);
    let inputs = MesaInputs {
        q: double(plain.q.clone()),
        k: double(plain.k.clone()),
        v: double(plain.v.clone()),
        log_a: plain.log_a.clone().cast(DType::F64),
        beta: plain.beta.clone().cast(DType::F64),
        lambda: plain.lambda.clone().cast(DType::F64),
        ..plain
    };
    let (_, memory) = mesa(&inputs, nothing(6).cast(DType::F64), Form::Recurrent).unwrap();
    let (g, h) = (memory.clone().narrow(3, 0, 6), memory.narrow(3, 6, 6));
    let asked = cotangent.narrow(2, 8, 1).cast(DType::F64).matmul(h.swap_dims(2, 3));
    let product = |p: Tensor<4>| p.matmul(g.clone());
    let expected = inputs.solve(asked, &product, &product);
    assert!(gap(found.narrow(2, 8, 1), expected.cast(DType::F32)) < 1e-5);
}

/// The two-sided iteration has the same numbers, and the derivative by every entry of the first `G`.
#[test]
fn the_derivative_by_an_asymmetric_change_is_that_of_the_solution() {
    let mut inputs = inputs(5, 4, 30, 0.3);
    inputs.any_gram = true;
    let memory = Draw::new(3).tensor::<4>([2, 2, 4, 8], -0.2, 0.2);
    let g = memory.clone().narrow(3, 0, 4);
    let g = g.clone().matmul(g.swap_dims(2, 3));
    let memory = Tensor::cat(vec![g, memory.narrow(3, 4, 4)], 3);
    let (plain, _) =
        mesa(&MesaInputs { any_gram: false, ..inputs.clone() }, memory.clone(), Form::Auto).unwrap();
    for form in [Form::Recurrent, Form::Parallel, Form::Chunked { size: 3 }] {
        let leaf = memory.clone().autodiff().require_grad();
        let (y, _) = mesa(&inputs, leaf.clone(), form).unwrap();
        assert!(gap(y.clone().inner(), plain.clone()) < 1e-5, "{form}");
        let cotangent = Draw::new(9).tensor::<4>([2, 2, 5, 4], -1.0, 1.0);
        let grad = numbers(leaf.grad(&(y * cotangent.clone()).sum().backward()).unwrap());
        // dx = -A^{-1} dG x, so dL/dG = -Σ_t γ_t…γ_1 (A_t^{-T} H_t dL/dy_t) x_tᵀ; here for the first head.
        let number = |x: &Tensor<4>| numbers(x.clone().narrow(0, 0, 1).narrow(1, 0, 1));
        let [q, k, v, cotangent] = [&inputs.q, &inputs.k, &inputs.v, &cotangent].map(number);
        let (log_a, beta) = (numbers(inputs.log_a.clone()), numbers(inputs.beta.clone()));
        let ridge = nalgebra::DVector::from_column_slice(&numbers(inputs.lambda.clone())[..4]);
        let start = nalgebra::DMatrix::from_row_slice(4, 8, &number(&memory));
        let (mut gram, mut values) = (start.columns(0, 4).into_owned(), start.columns(4, 4).into_owned());
        let (mut expected, mut fade) = (nalgebra::DMatrix::<f64>::zeros(4, 4), 1.0);
        for t in 0..5 {
            let vector = |x: &[f64]| nalgebra::DVector::from_column_slice(&x[4 * t..][..4]);
            let (q, k, v, c) = (vector(&q), vector(&k), vector(&v), vector(&cotangent));
            fade *= log_a[t].exp();
            gram = gram * log_a[t].exp() + &k * k.transpose() * beta[t];
            values = values * log_a[t].exp() + &k * v.transpose() * beta[t];
            let inverse = (&gram + nalgebra::DMatrix::from_diagonal(&ridge)).try_inverse().expect("positive");
            expected -= inverse.transpose() * &values * c * (&inverse * q).transpose() * fade;
        }
        let ours: Vec<f64> = (0..4).flat_map(|i| grad[8 * i..][..4].to_vec()).collect();
        let expected: Vec<f64> = expected.transpose().iter().copied().collect();
        assert!(error(&ours, &expected) < 1e-4, "{form}: {ours:?} {expected:?}");
    }
}

#[test]
fn impossible_settings_are_refused() {
    let init = |config: MesaNetConfig| config.init(8, &mut Init::new(0, &Device::flex()));
    let good = MesaNetConfig { heads: 2, head_dim: 4, ..Default::default() };
    assert!(init(good.clone()).is_ok());
    assert!(init(MesaNetConfig { steps: 0, ..good.clone() }).is_err());
    for lambda_min in [0.0, -1.0, 1.0, f64::NAN] {
        assert!(init(MesaNetConfig { lambda_min, ..good.clone() }).is_err());
    }
    assert!(init(MesaNetConfig { head_dim: 0, ..good }).is_err());
    assert!(mesa(&inputs(3, 4, 5, 0.5), nothing(3), Form::Auto).is_err());
}
