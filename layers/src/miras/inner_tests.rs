use super::*;
use crate::delta::delta_system;
use crate::miras::{Bias, GateAxis, MemoryConfig, Retention};
use crate::system::{Form, engine};
use crate::{Init, Value, params};
use burn::tensor::{DType, Device};

const MLP: MemoryConfig = MemoryConfig::mlp(2, 2);

fn numbers(x: &Tensor<4>) -> Vec<f64> {
    Value::from(x.clone()).to_f64().unwrap()
}

/// Relative L2 distance.
fn gap(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied()).max(1e-30)
}

/// A memory with random weights, and tokens that make the Huber threshold bite on some of them.
fn case(config: MemoryConfig, t: usize, seed: u64) -> (Memory, Tokens, Fast) {
    let (b, h, n) = (2, 2, 4);
    let mut init = Init::new(seed, &Device::flex());
    let mut memory = config.init(h, n, 0.02, &mut init);
    if let Memory::Mlp(mlp) = &mut memory {
        mlp.norm_weight = init.normal([h, n], 1.0);
        mlp.norm_bias = init.normal([h, n], 0.3);
    }
    let memory = params::cast(memory, DType::F64);
    let mut random = |dims: [usize; 4]| init.normal(dims, 1.0).val().detach().cast(DType::F64);
    let unit = |x: Tensor<4>| crate::nn::l2_normalize(x, 1e-6);
    let tokens = Tokens {
        q: unit(random([b, h, t, n])),
        k: unit(random([b, h, t, n])),
        v: random([b, h, t, n]),
        gates: vec![Step {
            log_alpha: random([b, h, t, 1]).abs().mul_scalar(-0.2),
            eta: random([b, h, t, 1]).abs().mul_scalar(0.3),
            log_mu: None,
        }],
        delta: random([b, h, t, 1]).abs().add_scalar(0.5),
        valid: None,
    };
    let mut weights =
        || -> Vec<_> { memory.initial(b).iter().map(|w| random(w.dims()).mul_scalar(0.4)).collect() };
    let fast = Fast { running: weights(), anchor: weights(), momentum: Vec::new() };
    (memory, tokens, fast)
}

/// Plain decayed descent with one gate per head.
fn plain<'a>(memory: &'a Memory, gradient: OutputGradient<'a>) -> Rule<'a> {
    let axes = vec![Axis::All; memory.names().len()];
    Rule {
        memory,
        gradient,
        bias: None,
        map: Map::new(Retention::L2, &[], Vec::new()),
        axes,
        steps: 1,
        read: ReadAt::Token,
    }
}

/// erf by its Taylor series, good to 1e-13 for |x| < 4.
fn erf(x: f64) -> f64 {
    let (mut term, mut sum) = (x, x);
    for i in 1..120 {
        term *= -x * x / f64::from(i);
        sum += term / f64::from(2 * i + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

/// Spec in plain loops: norm-wise Huber, one row and head at a time, numbers in row-major order.
struct Literal {
    n: usize,
    m: usize,
    /// LN's gain and bias; empty for the linear memory.
    gain: Vec<f64>,
    bias: Vec<f64>,
}

type Matrix = Vec<Vec<f64>>;

fn product(w: &Matrix, x: &[f64]) -> Vec<f64> {
    w.iter().map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum()).collect()
}

impl Literal {
    fn cdf(a: f64) -> f64 {
        0.5 * (1.0 + erf(a / 2f64.sqrt()))
    }

    /// `M(x)` and `(s, a, ẑ, ρ)`.
    fn read(&self, w: &[Matrix], x: &[f64]) -> (Vec<f64>, [Vec<f64>; 3], f64) {
        if self.gain.is_empty() {
            return (product(&w[0], x), [vec![], vec![], vec![]], 0.0);
        }
        let a = product(&w[1], x);
        let s: Vec<f64> = a.iter().map(|a| a * Self::cdf(*a)).collect();
        let z = product(&w[0], &s);
        let mean = z.iter().sum::<f64>() / self.n as f64;
        let var = z.iter().map(|z| (z - mean).powi(2)).sum::<f64>() / self.n as f64;
        let rho = 1.0 / (var + 1e-6).sqrt();
        let hat: Vec<f64> = z.iter().map(|z| (z - mean) * rho).collect();
        let y = (0..self.n).map(|c| x[c] + self.gain[c] * hat[c] + self.bias[c]).collect();
        (y, [s, a, hat], rho)
    }

    /// `∇ℓ` per matrix.
    fn gradient(&self, w: &[Matrix], k: &[f64], v: &[f64], delta: f64) -> Vec<Matrix> {
        let (y, [s, a, hat], rho) = self.read(w, k);
        let r: Vec<f64> = y.iter().zip(v).map(|(y, v)| y - v).collect();
        let length = r.iter().map(|r| r * r).sum::<f64>().sqrt();
        let u: Vec<f64> = r.iter().map(|r| if length <= delta { *r } else { r * delta / length }).collect();
        let outer = |x: &[f64], y: &[f64]| -> Matrix {
            x.iter().map(|x| y.iter().map(|y| x * y).collect()).collect()
        };
        if self.gain.is_empty() {
            return vec![outer(&u, k)];
        }
        let g: Vec<f64> = u.iter().zip(&self.gain).map(|(u, g)| u * g).collect();
        let mean = g.iter().sum::<f64>() / self.n as f64;
        let along = g.iter().zip(&hat).map(|(g, z)| g * z).sum::<f64>() / self.n as f64;
        let dz: Vec<f64> = g.iter().zip(&hat).map(|(g, z)| rho * (g - mean - z * along)).collect();
        let da: Vec<f64> = (0..self.m)
            .map(|j| {
                let back: f64 = (0..self.n).map(|i| w[0][i][j] * dz[i]).sum();
                let density = (-0.5 * a[j] * a[j]).exp() / (2.0 * std::f64::consts::PI).sqrt();
                back * (Self::cdf(a[j]) + a[j] * density)
            })
            .collect();
        vec![outer(&dz, &s), outer(&da, k)]
    }
}

/// Outputs and final running weights of the literal recurrence, in the tensors' order.
fn literal(
    memory: &Memory,
    tokens: &Tokens,
    fast: &Fast,
    chunk: usize,
    phase: usize,
) -> (Vec<f64>, Vec<Vec<f64>>) {
    let [b, h, t, n] = tokens.k.dims();
    let (q, k, v) = (numbers(&tokens.q), numbers(&tokens.k), numbers(&tokens.v));
    let step = tokens.step(0);
    let gate = [&step.log_alpha, &step.eta, &tokens.delta].map(numbers);
    let (gain, bias) = match memory {
        Memory::Linear(_) | Memory::Vector(_) => (vec![], vec![]),
        Memory::Mlp(mlp) => {
            let flat = |p: &burn::module::Param<Tensor<2>>| Value::from(p.val()).to_f64().unwrap();
            (flat(&mlp.norm_weight), flat(&mlp.norm_bias))
        }
    };
    let mut out = Vec::new();
    let mut last = vec![Vec::new(); fast.running.len()];
    for cell in 0..b * h {
        let head = cell % h;
        let part = |x: &[f64]| if x.is_empty() { vec![] } else { x[head * n..][..n].to_vec() };
        let hidden = if let Memory::Mlp(mlp) = memory { mlp.weights[0].dims()[2] } else { 0 };
        let net = Literal { n, m: hidden, gain: part(&gain), bias: part(&bias) };
        let matrix = |w: &Tensor<4>| -> Matrix {
            let [_, _, rows, cols] = w.dims();
            let flat = numbers(w);
            flat[cell * rows * cols..][..rows * cols].chunks(cols).map(<[f64]>::to_vec).collect()
        };
        let mut w: Vec<Matrix> = fast.running.iter().map(matrix).collect();
        let mut start: Vec<Matrix> = fast.anchor.iter().map(matrix).collect();
        for i in 0..t {
            let token = cell * t + i;
            let at = |x: &[f64]| x[token * n..][..n].to_vec();
            let grads = net.gradient(&start, &at(&k), &at(&v), gate[2][token]);
            for (w, g) in w.iter_mut().flatten().zip(grads.iter().flatten()) {
                for (w, g) in w.iter_mut().zip(g) {
                    *w = gate[0][token].exp() * *w - gate[1][token] * g;
                }
            }
            out.extend(net.read(&w, &at(&q)).0);
            if (phase + i + 1).is_multiple_of(chunk) {
                start = w.clone();
            }
        }
        for (last, w) in last.iter_mut().zip(w) {
            last.extend(w.into_iter().flatten());
        }
    }
    (out, last)
}

#[test]
fn both_forms_compute_the_literal_recurrence() {
    let gradient = |r, v, delta| Bias::HuberNorm.gradient(r, v, delta);
    for config in [MemoryConfig::Linear, MLP] {
        for (t, chunk, phase) in [(11, 4, 0), (11, 4, 3), (7, 1, 0), (1, 4, 2), (3, 16, 5), (16, 4, 2)] {
            let (memory, tokens, mut fast) = case(config, t, 11);
            if phase == 0 {
                fast.anchor = fast.running.clone();
            }
            let (y, last) = literal(&memory, &tokens, &fast, chunk, phase);
            let clock = Clock::new(&[phase, phase + chunk], chunk, None);
            let steps = recurrent(&plain(&memory, &gradient), tokens.clone(), fast.clone(), &clock, |_| {});
            let dual = chunk_wise(&plain(&memory, &gradient), tokens, fast, &clock, phase);
            for (name, (got, end)) in [("recurrent", steps), ("chunk-wise", dual)] {
                let worst = gap(&numbers(&got), &y);
                assert!(worst < 1e-12, "{name} {config:?} t={t} C={chunk}+{phase}: {worst}");
                for (got, last) in end.running.iter().zip(&last) {
                    let worst = gap(&numbers(got), last);
                    assert!(worst < 1e-12, "{name} {config:?} memory: {worst}");
                }
            }
        }
    }
}

#[test]
fn single_precision_is_kept_under_strong_decay() {
    for bias in [Bias::L2, Bias::HuberNorm, Bias::HuberCoordinate] {
        for config in [MemoryConfig::Linear, MLP] {
            let (memory, mut tokens, mut fast) = case(config, 37, 5);
            // A deep memory of which next to nothing is left, or that takes huge steps, amplifies rounding.
            let (decay, step) = if config == MLP { (2.0, 0.2) } else { (100.0, 1.0) };
            let gates = &mut tokens.gates[0];
            gates.log_alpha = gates.log_alpha.clone().mul_scalar(decay);
            gates.eta = gates.eta.clone().mul_scalar(step);
            fast.anchor = fast.running.clone();
            let clock = Clock::new(&[0, 0], 16, None);
            let gradient = |r, v, delta| bias.gradient(r, v, delta);
            let (exact, _) =
                recurrent(&plain(&memory, &gradient), tokens.clone(), fast.clone(), &clock, |_| {});
            let single = |x: Tensor<4>| x.cast(DType::F32);
            let (memory, tokens) = (params::cast(memory, DType::F32), tokens.map(single));
            let start: Vec<_> = fast.running.into_iter().map(single).collect();
            let fast = Fast { running: start.clone(), anchor: start, momentum: Vec::new() };
            let (a, _) = recurrent(&plain(&memory, &gradient), tokens.clone(), fast.clone(), &clock, |_| {});
            let (b, _) = chunk_wise(&plain(&memory, &gradient), tokens, fast, &clock, 0);
            let [one, dual] = [a, b].map(|y| gap(&numbers(&y), &numbers(&exact)));
            assert!(one < 1e-5 && dual < 1e-5, "{bias:?} {config:?}: {one} one by one, {dual} in chunks");
        }
    }
}

#[test]
fn squared_error_without_decay_and_chunks_is_deltanet() {
    let (memory, mut tokens, fast) = case(MemoryConfig::Linear, 21, 2);
    tokens.gates[0].log_alpha = tokens.gates[0].log_alpha.zeros_like();
    let Tokens { q, k, v, .. } = tokens.clone();
    let Step { log_alpha, eta, .. } = tokens.step(0).clone();
    let system = delta_system(log_alpha.squeeze_dim(3), eta.squeeze_dim(3), q, k, v);
    let start = fast.running.clone();
    let (y, h) = engine::run(system, start[0].clone().swap_dims(2, 3), Form::Recurrent).unwrap();
    let clock = Clock::new(&[0, 0], 1, None);
    let fast = Fast { running: start.clone(), anchor: start, momentum: Vec::new() };
    let gradient = |r, v, delta| Bias::L2.gradient(r, v, delta);
    let (got, end) = chunk_wise(&plain(&memory, &gradient), tokens, fast, &clock, 0);
    assert!(gap(&numbers(&got), &numbers(&y)) < 1e-12);
    assert!(gap(&numbers(&end.running[0]), &numbers(&h.swap_dims(2, 3))) < 1e-12);
}

#[test]
fn a_huber_memory_stays_bounded_whatever_the_values() {
    let gradient = |r, v, delta| Bias::HuberNorm.gradient(r, v, delta);
    for seed in 0..20 {
        for chunk in [1, 4, 16] {
            let (memory, mut tokens, _) = case(MemoryConfig::Linear, 64, seed);
            tokens.v = tokens.v.mul_scalar(10f64.powi(seed as i32 % 7));
            // Every token writes in the same direction as hard as it may.
            tokens.k = tokens.k.clone().narrow(2, 0, 1).expand(tokens.k.dims());
            let (alpha, eta, delta) = (0.9, 0.5, 1.5);
            let gates = &mut tokens.gates[0];
            gates.log_alpha = gates.log_alpha.zeros_like().add_scalar(f64::ln(alpha));
            gates.eta = gates.eta.zeros_like().add_scalar(eta);
            tokens.delta = tokens.delta.zeros_like().add_scalar(delta);
            let empty = vec![Tensor::zeros([2, 2, 4, 4], (&Device::flex(), DType::F64))];
            let fast = Fast { running: empty.clone(), anchor: empty, momentum: Vec::new() };
            let (_, end) =
                chunk_wise(&plain(&memory, &gradient), tokens, fast, &Clock::new(&[0, 0], chunk, None), 0);
            let norm = end.running[0].clone().square().sum_dim(3).sum_dim(2).max().sqrt();
            let norm = Value::from(norm).to_f64().unwrap()[0];
            assert!(norm <= eta * delta / (1.0 - alpha) * (1.0 + 1e-9), "{norm}");
        }
    }
}

#[test]
fn calls_are_cut_at_chunk_boundaries() {
    assert_eq!(pieces(0, 4, 10), [(0, 4, 2), (8, 2, 1)]);
    assert_eq!(pieces(3, 4, 10), [(0, 1, 1), (1, 4, 2), (9, 1, 1)]);
    assert_eq!(pieces(2, 16, 5), [(0, 5, 1)]);
    assert_eq!(pieces(1, 4, 3), [(0, 3, 1)]);
    assert_eq!(pieces(0, 1, 3), [(0, 1, 3)]);
}

/// Gates of every axis, with momentum or without, for a memory.
fn gated(
    config: MemoryConfig,
    axis: GateAxis,
    t: usize,
    momentum: bool,
) -> (Memory, Tokens, Fast, Vec<Axis>) {
    let (memory, mut tokens, mut fast) = case(config, t, 31);
    let mut init = Init::new(41, &Device::flex());
    let mut random = |width| init.normal([2, 2, t, width], 1.0).val().detach().cast(DType::F64).abs();
    let mut gates = |width| Step {
        log_alpha: random(width).mul_scalar(-0.2),
        eta: random(width).mul_scalar(0.3),
        log_mu: momentum.then(|| random(width).mul_scalar(-0.7)),
    };
    tokens.gates = match axis {
        GateAxis::Head => vec![gates(1)],
        GateAxis::AllD => vec![gates(4)],
        GateAxis::Row => config.sizes(4).into_iter().map(|[rows, _]| gates(rows)).collect(),
    };
    if momentum {
        fast.momentum = fast.running.iter().map(|w| w.clone().mul_scalar(0.3).flip([2])).collect();
    }
    (memory, tokens, fast, axis.axes(config))
}

#[test]
fn gates_of_every_axis_momentum_and_lag_agree_in_both_forms() {
    let deep = MemoryConfig::mlp(2, 3);
    let gradient = |r, v, delta| Bias::HuberNorm.gradient(r, v, delta);
    for config in [MemoryConfig::Vector, MemoryConfig::Linear, MLP, deep] {
        for axis in [GateAxis::Head, GateAxis::AllD, GateAxis::Row] {
            if config == deep && axis == GateAxis::AllD {
                continue;
            }
            for (momentum, lag, phase) in
                [(false, false, 0), (true, false, 3), (true, true, 0), (false, true, 1)]
            {
                let (memory, tokens, mut fast, axes) = gated(config, axis, 13, momentum);
                if phase == 0 {
                    fast.anchor = fast.running.clone();
                }
                let rule = Rule { axes, ..plain(&memory, &gradient) };
                let clock = Clock::new(&[phase, phase], 5, None).with_lag(lag);
                let (a, one) = recurrent(&rule, tokens.clone(), fast.clone(), &clock, |_| {});
                let (b, dual) = chunk_wise(&rule, tokens, fast, &clock, phase);
                let place = format!("{config:?} {axis:?} {momentum} {lag} {phase}");
                assert!(gap(&numbers(&b), &numbers(&a)) < 1e-12, "{place}");
                let all = |fast: Fast| [fast.running, fast.anchor, fast.momentum].concat();
                for (one, dual) in all(one).iter().zip(&all(dual)) {
                    assert!(gap(&numbers(dual), &numbers(one)) < 1e-12, "{place}: memory");
                }
            }
        }
    }
}

#[test]
fn a_gate_acts_on_its_own_row_or_column() {
    // One token from nothing: what is written is η ∘ (v kᵀ), with η by row or by column.
    let gradient = |r, v, delta| Bias::DotProduct.gradient(r, v, delta);
    for (axis, by_row) in [(GateAxis::Row, true), (GateAxis::AllD, false)] {
        let (memory, tokens, mut fast, axes) = gated(MemoryConfig::Linear, axis, 1, false);
        fast.running = fast.running.iter().map(Tensor::zeros_like).collect();
        let rule = Rule { axes, ..plain(&memory, &gradient) };
        let clock = Clock::new(&[0, 0], 4, None);
        let (_, end) = chunk_wise(&rule, tokens.clone(), fast, &clock, 0);
        let eta = tokens.step(0).eta.clone();
        let (v, k) = (tokens.v.swap_dims(2, 3), tokens.k);
        let expected = if by_row { v * eta.swap_dims(2, 3) * k } else { v * k * eta };
        assert!(gap(&numbers(&end.running[0]), &numbers(&expected)) < 1e-12, "{axis:?}");
    }
}

#[test]
fn steps_on_one_token_add_up_to_a_larger_one() {
    // n steps of size η on |W k - v|²/2 with |k| = 1 are one of size 1 - (1 - η)ⁿ.
    let (memory, mut tokens, mut fast) = case(MemoryConfig::Linear, 9, 3);
    fast.anchor = fast.running.clone();
    tokens.k = crate::nn::l2_normalize(tokens.k, 0.0);
    let gradient = |r, v, delta| Bias::L2.gradient(r, v, delta);
    // Without decay, whose place among the steps matters.
    tokens.gates[0].log_alpha = tokens.gates[0].log_alpha.zeros_like();
    let clock = Clock::new(&[0, 0], 1, None);
    let several = Rule { steps: 3, ..plain(&memory, &gradient) };
    let (a, _) = recurrent(&several, tokens.clone(), fast.clone(), &clock, |_| {});
    let rest = tokens.gates[0].eta.clone().neg().add_scalar(1.0);
    tokens.gates[0].eta = (rest.clone() * rest.clone() * rest).neg().add_scalar(1.0);
    let (b, _) = recurrent(&plain(&memory, &gradient), tokens, fast, &clock, |_| {});
    assert!(gap(&numbers(&a), &numbers(&b)) < 1e-12);
}
