use super::*;
use crate::miras::{
    Divergence, GateAxis, LqMap, MemoraConfig, MemoryConfig, MonetaConfig, ReadAt, Retention, TitansConfig,
    YaadConfig,
};
use crate::params::{self, Named};
use crate::testing::{error, gap, numbers};
use crate::{Init, Value};
use burn::tensor::{DType, Device, TensorData};
use std::collections::BTreeMap;

fn input(b: usize, t: usize, seed: u64, device: &Device) -> Tensor<3> {
    Init::new(seed, device).normal([b, t, 8], 1.0).val().detach()
}

fn small() -> MirasConfig {
    MirasConfig { heads: 2, head_dim: 4, chunk: 3, gate_rank: 3, ..MirasConfig::default() }
}

fn combinations() -> Vec<MirasConfig> {
    let mlp = |depth| MemoryConfig::mlp(2, depth);
    let lp = Bias::Lp { p: 3.0, nu: Some(10.0), clip: 10.0 };
    let memories = [MemoryConfig::Vector, MemoryConfig::Linear, mlp(1), mlp(2), mlp(3)];
    let biases = [
        Bias::DotProduct,
        Bias::L2,
        lp,
        Bias::ValueShift,
        Bias::ValueLess { nu: 10.0 },
        Bias::HuberNorm,
        Bias::HuberCoordinate,
        Bias::HuberMixture { nu: 10.0 },
    ];
    let lq = |map| Retention::Lq { q: 4.0, map };
    let retentions = [
        Retention::None,
        Retention::L2,
        lq(LqMap::Rescaled { clamp: 4.0 }),
        lq(LqMap::Literal { floor: 1e-3 }),
        lq(LqMap::ExactLink { scale: 1.0 }),
        Retention::Kl,
        Retention::FDivergence { divergence: Divergence::ChiSquare },
        Retention::FDivergence { divergence: Divergence::ReverseKl },
        Retention::ElasticNet { threshold: 1e-3, dual: false },
        Retention::ElasticNet { threshold: 1e-3, dual: true },
        Retention::Bregman,
    ];
    let algorithms = [
        Algorithm::Gd,
        Algorithm::Momentum { start: 0.5 },
        Algorithm::MultiStep { steps: 2 },
        Algorithm::Implicit,
        Algorithm::ConjugateGradient { iterations: 6, eps: 1e-5 },
    ];
    let mut all = Vec::new();
    for memory in memories {
        for bias in biases {
            for retention in retentions {
                for algorithm in algorithms {
                    for gates in [GateAxis::Head, GateAxis::AllD, GateAxis::Row] {
                        let own = matches!(algorithm, Algorithm::Gd | Algorithm::Momentum { .. });
                        let chunk = if own { 3 } else { 1 };
                        // Every other one has a lag token.
                        let lag_token = all.len() % 2 == 0;
                        let read = if all.len() / 3 % 3 == 0 { ReadAt::Boundary } else { ReadAt::Token };
                        all.push(MirasConfig {
                            memory,
                            bias,
                            retention,
                            algorithm,
                            gates,
                            chunk,
                            lag_token,
                            read,
                            ..small()
                        });
                    }
                }
            }
        }
    }
    all
}

#[test]
fn every_combination_runs_alike_in_all_forms_or_is_refused_with_a_way_out() {
    let device = Device::flex();
    let (mut valid, mut refused) = (0, 0);
    for config in combinations() {
        let layer = match config.init(8, &mut Init::new(valid as u64, &device)) {
            Ok(layer) => layer,
            Err(error) => {
                let text = error.to_string();
                assert!(matches!(error, Error::Config { mixer: "miras", .. }), "{text}");
                assert!(text.contains("use ") || text.contains("set "), "no way out: {text}");
                refused += 1;
                continue;
            }
        };
        valid += 1;
        // All are built; a prime step through them visits every choice with many others.
        if valid % 13 != 0 {
            continue;
        }
        let place = format!("{config:?}");
        let layer = params::cast(layer, DType::F64);
        let x = input(2, 8, valid as u64, &device).cast(DType::F64);
        let run = |form, x: Tensor<3>, state| layer.forward(x, state, form).unwrap();
        let (y, end) = run(Form::Recurrent, x.clone(), layer.initial_state(2));
        let (other, other_end) = run(Form::Auto, x.clone(), layer.initial_state(2));
        assert!(gap(other, y.clone()) < 1e-8, "{place}");
        for ((name, a, _), (_, b, _)) in other_end.slots().zip(end.slots()) {
            assert!(error(&a.to_f64().unwrap(), &b.to_f64().unwrap()) < 1e-8, "{name} of {place}");
        }
        let (head, state) = run(Form::Auto, x.clone().narrow(1, 0, 4), layer.initial_state(2));
        let (tail, _) = run(Form::Parallel, x.clone().narrow(1, 4, 4), state);
        assert!(gap(Tensor::cat(vec![head, tail], 1), y) < 1e-8, "{place}");
        let views = layer.views(x, layer.initial_state(2)).unwrap();
        for view in [views.memory_loss.unwrap(), views.memory_norm.unwrap()] {
            assert!(numbers(view).iter().all(|x| x.is_finite()), "{place}");
        }
    }
    assert!(valid > 1000 && refused > 500, "{valid} {refused}");
}

#[test]
fn refusals_name_the_field_and_what_to_use() {
    let init = |json: &str| {
        let config: MirasConfig = serde_json::from_str(json).unwrap();
        config.init(16, &mut Init::new(0, &Device::flex())).unwrap_err().to_string()
    };
    for (json, field, hint) in [
        (r#"{"algorithm": "implicit"}"#, "`chunk`", "set `chunk` to 1"),
        (r#"{"algorithm": "implicit", "chunk": 1}"#, "`memory`", "`linear`"),
        (
            r#"{"algorithm": "implicit", "chunk": 1, "memory": "linear", "bias": "huber_norm"}"#,
            "`bias`",
            "`l2`",
        ),
        (
            r#"{"algorithm": {"conjugate_gradient": {}}, "chunk": 1, "memory": "linear", "retention": "kl"}"#,
            "`retention`",
            "`none` and `l2`",
        ),
        (
            r#"{"algorithm": {"conjugate_gradient": {}}, "chunk": 1, "memory": "linear", "gates": "row"}"#,
            "`gates`",
            "`head`",
        ),
        (r#"{"algorithm": {"multi_step": {"steps": 2}}}"#, "`chunk`", "set `chunk` to 1"),
        (r#"{"algorithm": {"momentum": {"start": 1.0}}}"#, "`algorithm.start`", "between 0 and 1"),
        (r#"{"retention": "kl", "memory": "vector"}"#, "`memory`", "use `linear` or `mlp`"),
        (r#"{"retention": "kl", "gates": "all_d"}"#, "`gates`", "use `head` or `row`"),
        (r#"{"retention": "none", "decay": true}"#, "`decay`", "`l2`"),
        (r#"{"retention": {"lq": {"q": 1.5}}}"#, "`retention.q`", "q/(q-1)"),
        (r#"{"memory": {"mlp": {"depth": 3}}, "gates": "all_d"}"#, "`gates`", "use `head` or `row`"),
        (r#"{"memory": {"mlp": {"bias": true}}, "gates": "all_d"}"#, "`gates`", "leave `bias` out"),
        (r#"{"memory": {"mlp": {"depth": 0}}}"#, "`memory.depth`", "use `linear`"),
        (r#"{"bias": {"lp": {"p": 0.5}}}"#, "`bias.p`", "1 to 8"),
    ] {
        let text = init(json);
        assert!(text.contains(field) && text.contains(hint), "{json}: {text}");
    }
}

#[test]
fn least_squares_is_the_ridge_solution_and_its_attention_is_seen() {
    let algorithm = Algorithm::ConjugateGradient { iterations: 8, eps: 1e-14 };
    let config = MirasConfig { memory: MemoryConfig::Linear, chunk: 1, algorithm, ..small() };
    let device = Device::flex();
    let layer = params::cast(config.init(8, &mut Init::new(0, &device)).unwrap(), DType::F64);
    let x = input(1, 9, 4, &device).cast(DType::F64);
    let views = layer.views(x.clone(), layer.initial_state(1)).unwrap();
    let mut state = layer.initial_state(1);
    let tokens = layer.tokens(&x, &mut state, Run::default()).unwrap();
    let y = layer.learn(tokens.clone(), &mut state, Run::default()).unwrap();
    assert!(gap(views.attention.unwrap().matmul(tokens.v), y) < 1e-9);
}

#[test]
fn reads_at_boundaries_see_whole_chunks_only() {
    let device = Device::flex();
    let build = |read, chunk| {
        let config =
            MirasConfig { read, chunk, memory: MemoryConfig::Linear, eta_base: Some(0.5), ..small() };
        config.init(8, &mut Init::new(0, &device)).unwrap()
    };
    let x = input(2, 9, 3, &device);
    let run = |layer: &Miras, x: Tensor<3>, form| layer.forward(x, layer.initial_state(2), form).unwrap().0;
    // Chunks of one token end with it.
    let (token, boundary) = (build(ReadAt::Token, 1), build(ReadAt::Boundary, 1));
    assert!(gap(run(&token, x.clone(), Form::Auto), run(&boundary, x.clone(), Form::Auto)) < 1e-6);
    // In chunks of three, only tokens 2, 5 and 8 see what they wrote.
    let (token, boundary) = (build(ReadAt::Token, 3), build(ReadAt::Boundary, 3));
    for form in [Form::Recurrent, Form::Auto] {
        let (a, b) = (run(&token, x.clone(), form), run(&boundary, x.clone(), form));
        for t in 0..9 {
            let at = |y: &Tensor<3>| y.clone().narrow(1, t, 1);
            let same = gap(at(&a), at(&b)) < 1e-5;
            assert_eq!(same, t % 3 == 2, "{form} {t}");
        }
    }
    let (a, b) = (run(&boundary, x.clone(), Form::Recurrent), run(&boundary, x, Form::Auto));
    assert!(gap(a, b) < 1e-5);
}

#[test]
fn implicit_steps_by_row_are_implicit_steps() {
    // With the same rate in every row, a gate per row changes nothing.
    let config = |gates| MirasConfig {
        memory: MemoryConfig::Linear,
        chunk: 1,
        algorithm: Algorithm::Implicit,
        gates,
        ..small()
    };
    let device = Device::flex();
    let row = config(GateAxis::Row).init(8, &mut Init::new(0, &device)).unwrap();
    let head = config(GateAxis::Head).init(8, &mut Init::new(0, &device)).unwrap();
    // Gates that do not look at the token: rows and heads then start alike.
    let blind = |layer: Miras| {
        let named = params::parameters(&layer).into_iter().map(|(name, value)| {
            let zero = name.starts_with("gates.") && name.ends_with("weight");
            let zeros = || TensorData::new(vec![0f32; value.numel()], value.dims());
            let value = if zero { Value::from_data(zeros(), &device).unwrap() } else { value };
            (name, value)
        });
        let named: Named = named.collect();
        params::assign(layer, named).unwrap()
    };
    let (row, head) = (blind(row), blind(head));
    let shared: Named =
        params::parameters(&row).into_iter().filter(|(name, _)| !name.starts_with("gates.")).collect();
    let mut all = params::parameters(&head);
    all.extend(shared);
    let head = params::assign(head, all).unwrap();
    let x = input(2, 7, 3, &device);
    for form in [Form::Recurrent, Form::Auto] {
        let (a, a_end) = row.forward(x.clone(), row.initial_state(2), form).unwrap();
        let (b, b_end) = head.forward(x.clone(), head.initial_state(2), form).unwrap();
        assert!(gap(a, b) < 1e-5);
        assert!(gap(a_end.get::<4>("w").unwrap(), b_end.get::<4>("w").unwrap()) < 1e-5);
    }
}

/// Trains a layer to repeat the token before, by Adam; the mean loss of the first and the last ten steps.
fn train(init: impl FnOnce(&mut Init) -> Miras) -> (f64, f64) {
    let device = Device::flex().autodiff();
    let mut layer = init(&mut Init::new(0, &device));
    let mut moments: BTreeMap<String, (Vec<f64>, Vec<f64>)> = BTreeMap::new();
    let mut losses = Vec::new();
    for step in 1..=300 {
        let x = input(2, 24, step, &Device::flex());
        let target = Tensor::cat(vec![x.clone().narrow(1, 0, 1).zeros_like(), x.clone().narrow(1, 0, 23)], 1);
        let x = Tensor::from_inner(x);
        let (y, _) = layer.forward(x, layer.initial_state(2), Form::Auto).unwrap();
        let loss = (y - Tensor::from_inner(target)).square().mean();
        losses.push(numbers(loss.clone())[0]);
        let grads = params::gradients(&layer, &loss.backward());
        let mut next = Named::new();
        for (name, value) in params::parameters(&layer) {
            let grad = grads[&name].to_f64().unwrap();
            assert!(grad.iter().all(|g| g.is_finite()), "step {step}: {name}");
            let zeros = || (vec![0.0; grad.len()], vec![0.0; grad.len()]);
            let (m, v) = moments.entry(name.clone()).or_insert_with(zeros);
            let mut numbers = value.to_f64().unwrap();
            for (i, g) in grad.iter().enumerate() {
                m[i] = 0.9 * m[i] + 0.1 * g;
                v[i] = 0.99 * v[i] + 0.01 * g * g;
                let (m, v) =
                    (m[i] / (1.0 - 0.9f64.powi(step as i32)), v[i] / (1.0 - 0.99f64.powi(step as i32)));
                numbers[i] -= 0.01 * m / (v.sqrt() + 1e-8);
            }
            let data = TensorData::new(numbers, value.dims()).convert_dtype(DType::F32);
            next.insert(name, Value::from_data(data, &device).unwrap().require_grad());
        }
        layer = params::assign(layer, next).unwrap();
    }
    let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len() as f64;
    (mean(&losses[..10]), mean(&losses[290..]))
}

/// Choices at their defaults, sizes small.
fn trains(build: impl Fn(MirasConfig, &mut Init) -> Miras, defaults: MirasConfig) {
    let config = MirasConfig { heads: 2, head_dim: 8, ..defaults };
    let (first, last) = train(|init| build(config, init));
    assert!(last < 0.7 * first, "from {first} to {last}");
}

#[test]
fn the_default_trains() {
    trains(|config, init| config.init(8, init).unwrap(), MirasConfig::default());
}

#[test]
fn moneta_trains() {
    trains(|config, init| MonetaConfig(config).init(8, init).unwrap(), MonetaConfig::default().0);
}

#[test]
fn yaad_trains() {
    trains(|config, init| YaadConfig(config).init(8, init).unwrap(), YaadConfig::default().0);
}

#[test]
fn memora_trains() {
    trains(|config, init| MemoraConfig(config).init(8, init).unwrap(), MemoraConfig::default().0);
}

#[test]
fn titans_trains() {
    trains(|config, init| TitansConfig(config).init(8, init).unwrap(), TitansConfig::default().0);
}
