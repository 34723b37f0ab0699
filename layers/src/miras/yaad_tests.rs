use super::*;
use crate::miras::inner::{Clock, Fast, Rule, Tokens, recurrent};
use crate::miras::memory::OutputGradient;
use crate::miras::{Learner, Memory, MemoryConfig, Miras, MlpMemory};
use crate::params::{self, Named};
use crate::system::{Form, Mask, Mixer, Run, State};
use crate::{Error, Init, Value};
use burn::tensor::{DType, Device, Tensor};

fn small(memory: MemoryConfig, chunk: usize) -> MirasConfig {
    MirasConfig {
        heads: 2,
        head_dim: 4,
        memory,
        chunk,
        gate_rank: 3,
        // Large steps and a threshold in the middle of the residuals, so that everything matters.
        // (The deep memory amplifies rounding when its steps are too large to learn anything.)
        eta_base: Some(if memory == MemoryConfig::Linear { 0.5 } else { 0.1 }),
        delta_start: Some(1.0),
        ..YaadConfig::default().0
    }
}

const MLP: MemoryConfig = MemoryConfig::mlp(2, 2);

fn layer(config: &MirasConfig, device: &Device) -> Miras {
    let mut init = Init::new(4, device);
    let mut layer = YaadConfig(config.clone()).init(6, &mut init).unwrap();
    // Weights of a size at which the memory is far from linear.
    match &mut layer.memory {
        Learner::Descent(Memory::Linear(memory)) => memory.w = init.normal([2, 4, 4], 0.4),
        Learner::Descent(Memory::Mlp(MlpMemory { weights, .. })) => {
            *weights = vec![init.normal([2, 4, 8], 0.4), init.normal([2, 8, 4], 0.6)];
        }
        other => panic!("{other:?}"),
    }
    layer
}

/// The memory of a layer that learns by descent, and its rule.
fn rule<'a>(layer: &'a Miras, gradient: OutputGradient<'a>) -> (&'a Memory, Rule<'a>) {
    let Learner::Descent(memory) = &layer.memory else { panic!("no descent") };
    (memory, layer.rule(memory, gradient))
}

fn input(b: usize, t: usize, device: &Device) -> Tensor<3> {
    Init::new(9, device).normal([b, t, 6], 1.0).val().detach()
}

fn gap(a: impl Into<Value>, b: impl Into<Value>) -> f64 {
    let (a, b) = (a.into().to_f64().unwrap(), b.into().to_f64().unwrap());
    assert_eq!(a.len(), b.len());
    let norm = |x: Vec<f64>| x.iter().map(|x| x * x).sum::<f64>().sqrt();
    norm(a.iter().zip(&b).map(|(a, b)| a - b).collect()) / norm(b).max(1e-30)
}

fn state_gap(a: &State, b: &State) -> f64 {
    assert_eq!(a.positions(), b.positions());
    let pairs = a.slots().zip(b.slots());
    pairs.map(|((_, a, _), (_, b, _))| gap(a.clone(), b.clone())).fold(0.0, f64::max)
}

#[test]
fn a_sequence_may_be_cut_anywhere() {
    let device = Device::flex();
    for (memory, chunk) in [(MLP, 4), (MLP, 1), (MemoryConfig::Linear, 4), (MemoryConfig::Linear, 3)] {
        let layer = layer(&small(memory, chunk), &device);
        let x = input(2, 11, &device);
        let (whole, end) = layer.forward(x.clone(), layer.initial_state(2), Form::Recurrent).unwrap();
        for form in [Form::Auto, Form::Parallel, Form::Chunked { size: 3 }] {
            let (y, state) = layer.forward(x.clone(), layer.initial_state(2), form).unwrap();
            assert!(gap(y, whole.clone()) < 1e-5, "{memory:?} {chunk} {form}");
            assert!(state_gap(&state, &end) < 1e-5, "{memory:?} {chunk} {form}");
        }
        for cut in 1..11 {
            for (first, second) in [(Form::Auto, Form::Auto), (Form::Recurrent, Form::Auto)] {
                let (head, tail) = (x.clone().narrow(1, 0, cut), x.clone().narrow(1, cut, 11 - cut));
                let (a, state) = layer.forward(head, layer.initial_state(2), first).unwrap();
                let (b, state) = layer.forward(tail, state, second).unwrap();
                assert!(gap(Tensor::cat(vec![a, b], 1), whole.clone()) < 1e-5, "{chunk} at {cut}");
                assert!(state_gap(&state, &end) < 1e-5);
            }
        }
        let mut state = layer.initial_state(2);
        for t in 0..11 {
            let (y, next) = layer.step(x.clone().narrow(1, t, 1).squeeze_dim(1), state).unwrap();
            state = next;
            assert!(gap(y, whole.clone().narrow(1, t, 1)) < 1e-5);
        }
        assert!(state_gap(&state, &end) < 1e-5);
    }
}

#[test]
fn padding_is_as_good_as_absent_and_rows_may_then_differ_in_phase() {
    let device = Device::flex();
    for memory in [MLP, MemoryConfig::Linear] {
        let layer = layer(&small(memory, 4), &device);
        let x = input(3, 9, &device);
        let lengths = [9, 6, 0];
        let mask = Mask::from_lengths(&lengths, 9);
        for form in [Form::Auto, Form::Recurrent] {
            let start = layer.initial_state(3);
            let (y, state) = layer.forward_masked(x.clone(), start, form, &mask).unwrap();
            // Rows stand at 9, 6 and 0: the next call continues three different phases.
            let (next, last) = layer.forward(x.clone(), state, form).unwrap();
            for (row, &n) in lengths.iter().enumerate() {
                let alone = x.clone().narrow(0, row, 1);
                let mut parts = vec![alone.clone()];
                if n > 0 {
                    parts.insert(0, alone.narrow(1, 0, n));
                }
                let both = Tensor::cat(parts, 1);
                let (whole, end) = layer.forward(both, layer.initial_state(1), Form::Auto).unwrap();
                if n > 0 {
                    let got = y.clone().narrow(0, row, 1).narrow(1, 0, n);
                    assert!(gap(got, whole.clone().narrow(1, 0, n)) < 1e-5);
                }
                assert!(gap(next.clone().narrow(0, row, 1), whole.narrow(1, n, 9)) < 1e-5);
                assert!(state_gap(&last.select(&[row]).unwrap(), &end) < 1e-5);
            }
        }
    }
}

/// A number that depends on outputs and final state, with its inputs as named tensors.
fn objective(layer: &Miras, values: &Named, form: Form) -> Tensor<1> {
    let pick = |prefix: &str| -> Named {
        let own = values.iter().filter_map(|(k, v)| Some((k.strip_prefix(prefix)?.into(), v.clone())));
        own.collect()
    };
    let layer = params::assign(layer.clone(), pick("param.")).unwrap();
    let mut state = layer.initial_state(2);
    for (name, value) in pick("state.") {
        state.put(&name, value);
    }
    let x: Tensor<3> = values["x"].tensor("x").unwrap();
    let (y, state) = layer.forward(x, state, form).unwrap();
    let mut total = y.clone().sin().sum() + y.square().sum();
    for (_, value, _) in state.slots() {
        total = total + value.clone().dot(value.clone(), "slot").unwrap();
    }
    total
}

#[test]
fn gradients_match_central_differences() {
    let device = Device::flex().autodiff();
    let linear = MemoryConfig::Linear;
    let cases = [
        (MLP, Bias::HuberNorm, Form::Auto),
        (MLP, Bias::HuberNorm, Form::Recurrent),
        (MLP, Bias::HuberCoordinate, Form::Auto),
        (linear, Bias::HuberNorm, Form::Auto),
        (linear, Bias::HuberMixture { nu: 2.0 }, Form::Recurrent),
        (linear, Bias::L2, Form::Auto),
    ];
    for (memory, bias, form) in cases {
        let config = MirasConfig { bias, ..small(memory, 3) };
        let layer = params::cast(layer(&config, &device), DType::F64);
        let leaf = |v: Value| v.detach().cast(DType::F64).detach().require_grad();
        let mut values = Named::new();
        for (name, value) in params::parameters(&layer) {
            values.insert(format!("param.{name}"), leaf(value));
        }
        values.insert("x".into(), leaf(input(2, 7, &device).into()));
        let mut init = Init::new(21, &device);
        for (name, value, _) in layer.initial_state(2).slots() {
            // Away from the learned start, and W_c different from A, to test the state alone.
            let dims = value.dims();
            let noise: Tensor<1> = init.normal([value.numel()], 0.3).val();
            let noise = match dims.len() {
                3 => Value::from(noise.reshape([dims[0], dims[1], dims[2]])),
                _ => Value::from(noise.reshape([dims[0], dims[1], dims[2], dims[3]])),
            };
            values.insert(format!("state.{name}"), leaf(noise));
        }
        let grads = objective(&layer, &values, form).backward();
        for (name, value) in &values {
            // The learned start takes no part: the state is given.
            let Some(grad) = value.grad(&grads) else {
                assert!(name.starts_with("param.memory.w"), "no gradient for {name}");
                continue;
            };
            let direction: Tensor<1> =
                init.normal([value.numel()], 1.0).val().detach().inner().cast(DType::F64);
            let h = 1e-6;
            let moved = |sign: f64| {
                let mut values = values.clone();
                let flat = value.to_f64().unwrap();
                let step = Value::from(direction.clone()).to_f64().unwrap();
                let new: Vec<f64> = flat.iter().zip(step).map(|(a, d)| a + sign * h * d).collect();
                let data = burn::tensor::TensorData::new(new, value.dims());
                values.insert(name.clone(), Value::from_data(data, &device.clone().inner()).unwrap());
                Value::from(objective(&layer, &values, form)).to_f64().unwrap()[0]
            };
            let numeric = (moved(1.0) - moved(-1.0)) / (2.0 * h);
            let slope = Value::from(direction.clone()).to_f64().unwrap();
            let automatic: f64 = grad.to_f64().unwrap().iter().zip(slope).map(|(g, d)| g * d).sum();
            let scale = grad.to_f64().unwrap().iter().map(|g| g * g).sum::<f64>().sqrt();
            assert!(
                (numeric - automatic).abs() < 1e-6 * (1.0 + scale),
                "{memory:?} {bias:?} {form} {name}: {numeric} is not {automatic}"
            );
        }
    }
}

#[test]
fn the_learned_start_is_trained() {
    let device = Device::flex().autodiff();
    let layer = layer(&small(MLP, 4), &device);
    let (y, _) = layer.forward(input(2, 6, &device), layer.initial_state(2), Form::Auto).unwrap();
    let grads = y.square().sum().backward();
    let found = params::gradients(&layer, &grads);
    for name in params::parameters(&layer).keys() {
        let grad = found.get(name).unwrap_or_else(|| panic!("no gradient for {name}"));
        assert!(grad.to_f64().unwrap().iter().any(|g| *g != 0.0), "{name}");
    }
}

#[test]
fn views_describe_the_memory() {
    let device = Device::flex();
    for (bias, chunk) in [(Bias::HuberNorm, 4), (Bias::HuberNorm, 1), (Bias::L2, 4)] {
        let layer = layer(&MirasConfig { bias, ..small(MemoryConfig::Linear, chunk) }, &device);
        let x = input(1, 10, &device);
        let (_, mut state) = layer.forward(x.clone(), layer.initial_state(1), Form::Auto).unwrap();
        // From an empty memory, in the middle of a chunk, the outputs are the implied attention times v.
        for name in ["w", "w_chunk_start"] {
            if let Some(w) = state.find::<4>(name).unwrap() {
                state.put(name, w.zeros_like());
            }
        }
        let views = layer.views(x.clone(), state.clone()).unwrap();
        let clock = Clock::new(state.positions(), chunk, None);
        let gradient = |r, v, delta| bias.gradient(r, v, delta);
        let (memory, rule) = rule(&layer, &gradient);
        let fast: Fast = layer.fast(memory, &state).unwrap();
        let tokens: Tokens = layer.tokens(&x, &mut state, Run::default()).unwrap();
        let (y, end) = recurrent(&rule, tokens.clone(), fast, &clock, |_| {});
        assert!(gap(views.attention.clone().unwrap().matmul(tokens.v.clone()), y) < 1e-5);

        let norms = views.memory_norm.unwrap();
        assert_eq!(norms.dims(), [1, 2, 10]);
        let last = end.running[0].clone().square().sum_dim(3).sum_dim(2).sqrt();
        assert!(gap(norms.narrow(2, 9, 1), last) < 1e-5);
        // The first loss is that of an empty memory.
        let first = |x: Tensor<4>| x.narrow(2, 0, 1);
        let v = first(tokens.v);
        let loss = bias.loss(v.clone().neg(), v, first(tokens.delta));
        assert!(gap(views.memory_loss.unwrap().narrow(2, 0, 1), loss) < 1e-5);
        assert_eq!(views.gates.len(), if bias == Bias::L2 { 3 } else { 4 });
        assert_eq!(views.spectrum.unwrap().re.dims(), [1, 2, 10, 1]);
    }
    let deep = layer(&small(MLP, 4), &device);
    let views = deep.views(input(1, 5, &device), deep.initial_state(1)).unwrap();
    assert!(views.attention.is_none());
    assert_eq!(views.memory_loss.unwrap().dims(), [1, 2, 5]);
}

#[test]
fn presets_start_at_their_gates_and_round_trip() {
    let device = Device::flex();
    for config in [YaadConfig::stable(), YaadConfig::paper()] {
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<YaadConfig>(&text).unwrap(), config);
        let layer = config.clone().init(24, &mut Init::new(0, &device)).unwrap();
        let zeros = Tensor::<3>::zeros([1, 1, 24], &device);
        let tokens = layer.tokens(&zeros, &mut layer.initial_state(1), Run::default()).unwrap();
        let mean = |x: Tensor<4>| Value::from(x.mean()).to_f64().unwrap()[0];
        assert!((mean(tokens.step(0).log_alpha.clone().exp()) - 0.99).abs() < 1e-5);
        assert!((mean(tokens.step(0).eta.clone()) - 0.05 / 32.0).abs() < 1e-7);
        assert!((mean(tokens.delta) - 6.02).abs() < 0.01);
    }
}

#[test]
fn impossible_configurations_are_refused() {
    let device = Device::flex();
    let base = || YaadConfig::default().0;
    let bad = [
        MirasConfig { heads: 0, ..base() },
        MirasConfig { head_dim: 0, ..base() },
        MirasConfig { head_dim: 3, ..base() },
        MirasConfig { chunk: 0, ..base() },
        MirasConfig { gate_rank: 0, ..base() },
        MirasConfig { memory: MemoryConfig::mlp(0, 2), ..base() },
        MirasConfig { bias: Bias::HuberMixture { nu: 0.0 }, ..base() },
        MirasConfig { eta_base: Some(f64::NAN), ..base() },
        MirasConfig { delta_start: Some(0.0), ..base() },
        MirasConfig { norm_eps: 0.0, ..base() },
    ];
    for config in bad {
        let error = YaadConfig(config).init(8, &mut Init::new(0, &device)).unwrap_err();
        assert!(matches!(error, Error::Config { .. }), "{error}");
    }
    let error = serde_json::from_str::<YaadConfig>(r#"{"gate_axis": "row"}"#).unwrap_err();
    assert!(error.to_string().contains("unknown field `gate_axis`"), "{error}");
}
