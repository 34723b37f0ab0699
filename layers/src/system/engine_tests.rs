//! The engine against a plain loop over numbers: every transition, form, length and decay.

use burn::tensor::{DType, Device, Tensor, TensorData};

use super::{Form, Io, Lengths, Spectrum, System, Transition, Views, engine};
use crate::testing::{Draw, error, gap, numbers};

const B: usize = 2;
const H: usize = 2;
const N: usize = 5;
const P: usize = 3;
const LENGTHS: [usize; 6] = [1, 2, 7, 16, 33, 70];
const SIZES: [usize; 8] = [1, 2, 3, 5, 8, 16, 17, 64];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Identity,
    Scalar,
    Diagonal,
    /// Gated delta rule
    RankOneScalar,
    /// Kimi delta attention
    RankOneChannel,
    Direct,
}

const KINDS: [Kind; 6] =
    [Kind::Identity, Kind::Scalar, Kind::Diagonal, Kind::RankOneScalar, Kind::RankOneChannel, Kind::Direct];

#[derive(Clone, Copy, Debug)]
enum Decay {
    /// `log Λ` in (-1, 0)
    Mild,
    /// in (-50, 0)
    Strong,
    /// 0 or -30
    Mixed,
    /// exactly 0
    Zero,
}

const DECAYS: [Decay; 4] = [Decay::Mild, Decay::Strong, Decay::Mixed, Decay::Zero];

/// One input of a system, rounded to `f32`.
#[derive(Clone, Debug)]
struct Input {
    name: &'static str,
    shape: [usize; 4],
    values: Vec<f64>,
}

/// The inputs of one random system: memory, skip, then what its kind needs.
#[derive(Clone, Debug)]
struct Case {
    kind: Kind,
    t: usize,
    inputs: Vec<Input>,
}

impl Case {
    fn new(kind: Kind, t: usize, decay: Decay) -> Self {
        let mut draw = Draw::new(1000 * t as u64 + kind as u64);
        let width = if kind == Kind::Direct { N } else { P };
        let mut inputs = Vec::new();
        let mut add = |name, shape: [usize; 4], values: Vec<f64>| {
            let values = values.into_iter().map(|x| f64::from(x as f32)).collect();
            inputs.push(Input { name, shape, values });
        };
        let mut uniform = |shape: [usize; 4]| draw.numbers(shape.iter().product(), -1.0, 1.0);
        let memory = [B, H, N, if kind == Kind::Direct { 1 } else { P }];
        add("memory", memory, uniform(memory));
        add("skip", [1, H, 1, width], uniform([1, H, 1, width]));
        let (wide, narrow) = ([B, H, t, N], [B, H, t, P]);
        if kind == Kind::Direct {
            add("u", wide, uniform(wide));
            add("c", wide, uniform(wide));
        } else {
            add("q", wide, uniform(wide));
            add("k", wide, uniform(wide));
            add("v", narrow, uniform(narrow));
        }
        let channels = match kind {
            Kind::Identity => return Self { kind, t, inputs },
            Kind::Scalar | Kind::RankOneScalar => 1,
            Kind::Diagonal | Kind::RankOneChannel | Kind::Direct => N,
        };
        let shape = [B, H, t, channels];
        let log: Vec<f64> = uniform(shape)
            .into_iter()
            .map(|x| match decay {
                Decay::Mild => (x - 1.0) / 2.0,
                Decay::Strong => 25.0 * (x - 1.0),
                Decay::Mixed if x < 0.0 => -30.0,
                Decay::Mixed | Decay::Zero => 0.0,
            })
            .collect();
        add("log", shape, log.clone());
        if matches!(kind, Kind::RankOneScalar | Kind::RankOneChannel) {
            // (I - β k kᵀ) diag(d) with unit keys and β in (0, 2): eigenvalues stay in [-1, 1]
            let (mut a, mut b) = (uniform(wide), Vec::new());
            for (row, key) in a.chunks_mut(N).enumerate() {
                let norm = key.iter().map(|x| x * x).sum::<f64>().sqrt();
                let beta = 1.0 + uniform([1; 4])[0];
                b.extend(key.iter().map(|x| -beta * x / norm));
                for (i, x) in key.iter_mut().enumerate() {
                    *x *= log[row * channels + i % channels].exp() / norm;
                }
            }
            add("a", wide, a);
            add("b", wide, b);
        }
        Self { kind, t, inputs }
    }

    fn get(&self, name: &str) -> &[f64] {
        &self.inputs.iter().find(|input| input.name == name).expect("an input").values
    }

    /// What the engine must give, by four loops: outputs `[b, h, t, p]` and memory.
    fn plain(&self) -> (Vec<f64>, Vec<f64>) {
        let direct = self.kind == Kind::Direct;
        let p = if direct { 1 } else { P };
        let width = if direct { N } else { P };
        let (mut memory, skip) = (self.get("memory").to_vec(), self.get("skip"));
        let mut out = Vec::new();
        for row in 0..B * H {
            let m = &mut memory[row * N * p..][..N * p];
            for t in row * self.t..(row + 1) * self.t {
                let decay = |i: usize| match self.kind {
                    Kind::Identity => 1.0,
                    Kind::Scalar | Kind::RankOneScalar => self.get("log")[t].exp(),
                    _ => self.get("log")[t * N + i].exp(),
                };
                let at = |name: &str, i: usize| self.get(name)[t * N + i];
                if direct {
                    for i in 0..N {
                        m[i] = decay(i) * m[i] + at("u", i);
                        out.push(at("c", i) * m[i] + skip[row % H * N + i] * at("u", i));
                    }
                    continue;
                }
                for j in 0..P {
                    let v = self.get("v")[t * P + j];
                    let rank_one = matches!(self.kind, Kind::RankOneScalar | Kind::RankOneChannel);
                    let read: f64 =
                        if rank_one { (0..N).map(|i| at("a", i) * m[i * P + j]).sum() } else { 0.0 };
                    let mut y = skip[row % H * width + j] * v;
                    for i in 0..N {
                        let back = if rank_one { at("b", i) * read } else { 0.0 };
                        m[i * P + j] = decay(i) * m[i * P + j] + back + at("k", i) * v;
                        y += at("q", i) * m[i * P + j];
                    }
                    out.push(y);
                }
            }
        }
        (out, memory)
    }

    fn tensors(&self, device: &Device, dtype: DType) -> Vec<Tensor<4>> {
        let tensor = |input: &Input| {
            let data = TensorData::new(input.values.clone(), input.shape);
            Tensor::from_data(data, (device, dtype))
        };
        self.inputs.iter().map(tensor).collect()
    }

    /// The system and its memory from tensors in the order of the inputs.
    fn system(&self, tensors: &[Tensor<4>]) -> (System, Tensor<4>) {
        let get = |name: &str| {
            let index = self.inputs.iter().position(|input| input.name == name).expect("an input");
            tensors[index].clone()
        };
        let system = match self.kind {
            Kind::Direct => {
                let mut system = System::direct(get("log"), get("u"));
                system.io = Io::Direct { u: get("u"), c: Some(get("c")) };
                system
            }
            kind => {
                let transition = match kind {
                    Kind::Identity | Kind::Direct => Transition::Identity,
                    Kind::Scalar => Transition::Scalar { log_a: get("log").squeeze_dim(3) },
                    Kind::Diagonal => Transition::Diagonal { log_a: get("log") },
                    Kind::RankOneScalar | Kind::RankOneChannel => {
                        Transition::Householder { log_d: get("log"), a: get("a"), b: get("b") }
                    }
                };
                System::outer(transition, get("q"), get("k"), get("v"))
            }
        };
        (system.with_skip(get("skip")), get("memory"))
    }

    /// Outputs and memory of the engine.
    fn run(&self, how: How, dtype: DType) -> (Vec<f64>, Vec<f64>) {
        let (system, memory) = self.system(&self.tensors(&Device::flex(), dtype));
        let (y, memory) = how.run(system, memory);
        (numbers(y), numbers(memory))
    }

    /// Fixed cotangents of outputs and memory.
    fn cotangents(&self) -> (Vec<f64>, Vec<f64>) {
        let (y, memory) = self.plain();
        let mut draw = Draw::new(9);
        (draw.numbers(y.len(), -1.0, 1.0), draw.numbers(memory.len(), -1.0, 1.0))
    }

    /// Gradients of `Σ y·cot + Σ memory·cot` for all inputs, in their order.
    fn gradients(&self, how: How, dtype: DType) -> Vec<Vec<f64>> {
        let leaves = self.tensors(&Device::flex().autodiff(), dtype);
        let leaves: Vec<_> = leaves.into_iter().map(Tensor::require_grad).collect();
        let (system, memory) = self.system(&leaves);
        let (y, memory) = how.run(system, memory);
        let (cot_y, cot_memory) = self.cotangents();
        let dot = |x: Tensor<4>, cot: Vec<f64>| {
            let cot = TensorData::new(cot, x.dims());
            (x.clone() * Tensor::from_data(cot, (&Device::flex(), dtype))).sum()
        };
        let grads = (dot(y, cot_y) + dot(memory, cot_memory)).backward();
        let grad = |(leaf, input): (Tensor<4>, &Input)| {
            let grad = leaf.grad(&grads);
            numbers(grad.unwrap_or_else(|| panic!("{:?}: no gradient for {}", self.kind, input.name)))
        };
        leaves.into_iter().zip(&self.inputs).map(grad).collect()
    }
}

/// A form of execution, with or without kernels.
#[derive(Clone, Copy, Debug)]
struct How(Form, bool);

impl How {
    fn run(self, system: System, memory: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
        engine::run_with(system, memory, self.0, self.1).unwrap()
    }
}

impl std::fmt::Display for How {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}", self.0, if self.1 { " by kernel" } else { "" })
    }
}

fn forms(sizes: &[usize]) -> Vec<How> {
    let chunked = sizes.iter().map(|&size| Form::Chunked { size });
    let kernels = [Form::Auto].into_iter().chain(chunked);
    let tensors = [Form::Recurrent, Form::Parallel].into_iter().chain(kernels.clone());
    tensors.map(|form| How(form, false)).chain(kernels.map(|form| How(form, true))).collect()
}

fn every_form(decay: Decay) {
    for kind in KINDS {
        for t in LENGTHS {
            let case = Case::new(kind, t, decay);
            let (y, memory) = case.plain();
            for form in forms(&SIZES) {
                let (y_form, memory_form) = case.run(form, DType::F32);
                let worst = error(&y_form, &y).max(error(&memory_form, &memory));
                assert!(worst <= 1e-5, "{kind:?} {decay:?} t={t} {form}: off by {worst:e}");
            }
        }
    }
}

#[test]
fn every_form_is_the_plain_loop_under_mild_decay() {
    every_form(Decay::Mild);
}

#[test]
fn every_form_is_the_plain_loop_under_strong_decay() {
    every_form(Decay::Strong);
}

#[test]
fn every_form_is_the_plain_loop_under_mixed_decay() {
    every_form(Decay::Mixed);
}

#[test]
fn every_form_is_the_plain_loop_without_decay() {
    every_form(Decay::Zero);
}

/// In `f64` all forms agree to rounding: what differs in `f32` is rounding too, not method.
#[test]
fn forms_differ_by_rounding_only() {
    for kind in KINDS {
        for decay in DECAYS {
            let case = Case::new(kind, 33, decay);
            let (y, memory) = case.plain();
            for form in forms(&[1, 4, 16, 17]) {
                let (y_form, memory_form) = case.run(form, DType::F64);
                let worst = error(&y_form, &y).max(error(&memory_form, &memory));
                assert!(worst <= 1e-12, "{kind:?} {decay:?} {form}: off by {worst:e}");
            }
        }
    }
}

#[test]
fn gradients_are_central_differences_of_the_plain_loop() {
    let step = 1e-5;
    for kind in KINDS {
        let case = Case::new(kind, 7, Decay::Mild);
        let (cot_y, cot_memory) = case.cotangents();
        let loss = |case: &Case| {
            let (y, memory) = case.plain();
            let dot = |x: &[f64], c: &[f64]| x.iter().zip(c).map(|(x, c)| x * c).sum::<f64>();
            dot(&y, &cot_y) + dot(&memory, &cot_memory)
        };
        let differences: Vec<Vec<f64>> = (0..case.inputs.len())
            .map(|i| {
                let entry = |j| {
                    let moved = |by: f64| {
                        let mut case = case.clone();
                        case.inputs[i].values[j] += by;
                        loss(&case)
                    };
                    (moved(step) - moved(-step)) / (2.0 * step)
                };
                (0..case.inputs[i].values.len()).map(entry).collect()
            })
            .collect();
        for form in forms(&[1, 3, 4]) {
            for ((grad, expected), input) in
                case.gradients(form, DType::F64).iter().zip(&differences).zip(&case.inputs)
            {
                let off = error(grad, expected);
                assert!(off <= 1e-8, "{kind:?} {form}: d {} is off by {off:e}", input.name);
            }
        }
    }
}

#[test]
fn gradients_of_every_form_are_those_of_the_recurrence() {
    for kind in KINDS {
        for decay in DECAYS {
            for t in [1, 2, 33, 70] {
                let case = Case::new(kind, t, decay);
                let expected = case.gradients(How(Form::Recurrent, false), DType::F64);
                for form in forms(&[3, 16, 17]) {
                    for ((grad, expected), input) in
                        case.gradients(form, DType::F32).iter().zip(&expected).zip(&case.inputs)
                    {
                        let (off, name) = (error(grad, expected), input.name);
                        assert!(off <= 1e-4, "{kind:?} {decay:?} t={t} {form}: d {name} off by {off:e}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_sequence_can_be_split_anywhere() {
    for kind in KINDS {
        let case = Case::new(kind, 16, Decay::Mild);
        let (y, memory) = case.plain();
        let tensors = case.tensors(&Device::flex(), DType::F32);
        let part = |start: usize, length: usize| -> Vec<Tensor<4>> {
            let cut = |(tensor, input): (&Tensor<4>, &Input)| match input.name {
                "memory" | "skip" => tensor.clone(),
                _ => tensor.clone().narrow(2, start, length),
            };
            tensors.iter().zip(&case.inputs).map(cut).collect()
        };
        for split in [1, 7, 15] {
            let (system, start) = case.system(&part(0, split));
            let (first, middle) = engine::run(system, start, Form::Chunked { size: 4 }).unwrap();
            let (system, _) = case.system(&part(split, 16 - split));
            let (second, last) = engine::run(system, middle, Form::Parallel).unwrap();
            assert!(error(&numbers(Tensor::cat(vec![first, second], 2)), &y) <= 1e-5);
            assert!(error(&numbers(last), &memory) <= 1e-5);
        }
    }
}

#[test]
fn padding_leaves_the_memory_untouched() {
    for kind in KINDS {
        let case = Case::new(kind, 9, Decay::Mild);
        let tensors = case.tensors(&Device::flex(), DType::F32);
        for form in forms(&[2, 4]) {
            let (system, memory) = case.system(&tensors);
            let gated = system.gate_padding(&Lengths(vec![9, 4]));
            let (y, padded) = form.run(gated, memory);
            let short: Vec<_> = tensors
                .iter()
                .map(|x| if x.dims()[2] == 9 { x.clone().narrow(2, 0, 4) } else { x.clone() })
                .collect();
            let (system, memory) = case.system(&short);
            let (y_short, expected) = engine::run(system, memory, Form::Recurrent).unwrap();
            let row = |x: Tensor<4>| x.narrow(0, 1, 1);
            assert!(gap(row(padded), row(expected)) <= 1e-6, "{kind:?} {form}: memory");
            assert!(gap(row(y.narrow(2, 0, 4)), row(y_short)) <= 1e-6, "{kind:?} {form}: outputs");
        }
    }
}

/// `Y = M V` where nothing was seen before; for one state per channel, `M` is the mean over channels.
#[test]
fn the_implied_attention_is_what_the_system_does() {
    for kind in KINDS {
        for decay in [Decay::Mild, Decay::Strong] {
            let case = Case::new(kind, 33, decay);
            let tensors = case.tensors(&Device::flex(), DType::F32);
            let (mut system, memory) = case.system(&tensors);
            // one skip per head, so that one matrix serves all value channels
            system.skip = system.skip.map(|skip| skip.narrow(3, 0, 1));
            let zero = memory.zeros_like();
            let attention = Views::of_system(system.clone()).unwrap().attention.unwrap();
            let (applied, expected) = match &system.io {
                Io::Outer { v, .. } => {
                    let y = attention.matmul(v.clone());
                    (y, engine::run(system, zero, Form::Recurrent).unwrap().0)
                }
                Io::Direct { c, .. } => {
                    // the same input on every channel: the mean output is M times it
                    let u = Draw::new(5).tensor([B, H, 33, 1], -1.0, 1.0);
                    let y = attention.matmul(u.clone());
                    system.io = Io::Direct { u: u.expand([B, H, 33, N]), c: c.clone() };
                    (y, engine::run(system, zero, Form::Recurrent).unwrap().0.mean_dim(3))
                }
            };
            let off = gap(applied, expected);
            assert!(off <= 1e-5, "{kind:?} {decay:?}: off by {off:e}");
        }
    }
}

/// The closed form of the scalar case and the eigenvalues computed on the host are the same numbers.
#[test]
fn spectra_of_rank_one_transitions_agree() {
    let case = Case::new(Kind::RankOneScalar, 4, Decay::Mild);
    let (mut system, _) = case.system(&case.tensors(&Device::flex(), DType::F32));
    let sorted = |spectrum: Spectrum, take: usize| -> Vec<Vec<f64>> {
        let m = spectrum.re.dims()[3];
        assert!(spectrum.im.is_none_or(|im| numbers(im).iter().all(|x| x.abs() < 1e-3)));
        let rows = numbers(spectrum.re);
        let row = |row: &[f64]| {
            let mut row = row.to_vec();
            row.sort_by(f64::total_cmp);
            row[..take].to_vec()
        };
        rows.chunks(m).map(row).collect()
    };
    let closed = sorted(Views::of_system(system.clone()).unwrap().spectrum.unwrap(), 2);
    if let Transition::Householder { log_d, .. } = &mut system.transition {
        *log_d = log_d.clone().expand([B, H, 4, N]);
    }
    let dense = sorted(Views::of_system(system).unwrap().spectrum.unwrap(), 2);
    for (a, b) in closed.iter().flatten().zip(dense.iter().flatten()) {
        assert!((a - b).abs() < 1e-3, "{closed:?} {dense:?}");
    }
}

#[test]
fn a_dense_transition_can_be_any_of_the_others() {
    let case = Case::new(Kind::RankOneChannel, 9, Decay::Mild);
    let (mut system, memory) = case.system(&case.tensors(&Device::flex(), DType::F32));
    let Transition::Householder { log_d, a, b } = system.transition.clone() else {
        panic!("a rank-one case");
    };
    let eye = Tensor::<2>::eye(N, &Device::flex()).reshape([1, 1, 1, N, N]);
    let lambda = log_d.exp().unsqueeze_dim::<5>(4) * eye + b.unsqueeze_dim::<5>(4) * a.unsqueeze_dim::<5>(3);
    system.transition = Transition::Dense { lambda };
    let (y, last) = case.plain();
    for form in [Form::Recurrent, Form::Auto] {
        let (y_dense, dense) = engine::run(system.clone(), memory.clone(), form).unwrap();
        assert!(error(&numbers(y_dense), &y) <= 1e-5);
        assert!(error(&numbers(dense), &last) <= 1e-5);
    }
    let attention = Views::of_system(system.clone()).unwrap().attention.unwrap();
    assert_eq!(attention.dims(), [B, H, 9, 9]);
}

#[test]
fn degenerate_calls_do_not_panic() {
    let case = Case::new(Kind::Scalar, 2, Decay::Mild);
    let tensors = case.tensors(&Device::flex(), DType::F32);
    let (system, memory) = case.system(&tensors);
    let wrong = memory.clone().narrow(3, 0, 1);
    let message = engine::run(system.clone(), wrong, Form::Auto).expect_err("a wrong memory").to_string();
    assert!(message.contains("[2, 2, 5, 3]"), "{message}");
    let (y, _) = engine::run(system.clone(), memory.clone(), Form::Chunked { size: 0 }).unwrap();
    assert!(error(&numbers(y), &case.plain().0) <= 1e-5);
    let mut direct = system;
    direct.io = Io::Direct { u: memory.clone(), c: None };
    direct.skip = None;
    assert!(engine::run(direct, memory.clone().narrow(3, 0, 1), Form::Auto).is_err());
    // no tokens: nothing happens
    for kind in KINDS {
        let case = Case::new(kind, 1, Decay::Mild);
        let empty = |x: Tensor<4>| match x.dims() {
            [B, H, 1, n] => Tensor::zeros([B, H, 0, n], &Device::flex()),
            _ => x,
        };
        let tensors: Vec<_> = case.tensors(&Device::flex(), DType::F32).into_iter().map(empty).collect();
        for form in forms(&[4]) {
            let (system, memory) = case.system(&tensors);
            let (y, last) = form.run(system, memory.clone());
            assert_eq!(y.dims()[2], 0);
            assert_eq!(numbers(last), numbers(memory));
        }
    }
}
