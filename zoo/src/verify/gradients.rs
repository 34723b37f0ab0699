//! The promises about gradients: of parameters, input and initial state.

use burn::tensor::{DType, Device, Tensor};
use seqzoo_layers::params::{self, Named};
use seqzoo_layers::system::{Form, Mixer, State};
use seqzoo_layers::{Result, Value};

use super::probe::{BATCH, Probe, Worst, relative_error};
use super::{DIFFERENCE_TOLERANCE, GRADIENT_TOLERANCE, Options, Outcome, Subject};
use crate::registry::AnyMixer;

/// `Σ y·c + Σ state·c'`, with fixed random cotangents `c`.
struct Loss {
    outputs: Value,
    slots: Vec<Value>,
}

impl Loss {
    fn new(probe: &mut Probe, y: &Tensor<3>, end: &State, dtype: DType) -> Result<Self> {
        let outputs = probe.value(y.dims().to_vec(), dtype)?;
        let slots = end.slots().map(|(_, v, _)| v.dims()).collect::<Vec<_>>();
        let slots = slots.into_iter().map(|dims| probe.value(dims, dtype)).collect::<Result<_>>()?;
        Ok(Self { outputs, slots })
    }

    fn of(&self, y: Tensor<3>, end: &State) -> Result<Tensor<1>> {
        let mut loss = Value::from(y).dot(self.outputs.clone(), "output")?;
        for ((name, value, _), cotangent) in end.slots().zip(&self.slots) {
            if value.numel() > 0 {
                loss = loss + value.clone().dot(cotangent.clone(), name)?;
            }
        }
        Ok(loss)
    }
}

/// Leaves of one differentiation: input and initial state.
struct Leaves {
    x: Tensor<3>,
    start: State,
}

impl Leaves {
    fn new(x: &Tensor<3>, start: &State) -> Self {
        let leaf = |value: Value| value.detach().require_grad();
        Self { x: x.clone().detach().require_grad(), start: start.replace(|_, value| leaf(value)) }
    }
}

/// All gradients of the loss, by name.
fn gradients(layer: &AnyMixer, leaves: &Leaves, loss: &Loss, form: Form) -> Result<Named> {
    let (y, end) = layer.forward(leaves.x.clone(), leaves.start.clone(), form)?;
    let grads = loss.of(y, &end)?.backward();
    let mut named = params::gradients(layer, &grads);
    if let Some(grad) = leaves.x.grad(&grads) {
        named.insert("input".into(), grad.into());
    }
    for (name, value, _) in leaves.start.slots() {
        if let Some(grad) = value.grad(&grads) {
            named.insert(format!("state {name}"), grad);
        }
    }
    Ok(named)
}

/// Every form has the reference's gradients; a learned start gets one too.
pub(super) async fn forms(subject: &Subject, device: &Device, options: Options) -> Result<Outcome> {
    let device = device.clone().autodiff();
    let mut probe = Probe::new(subject, &device, options)?;
    let x = probe.input(BATCH, options.time)?;
    let warm = probe.warm_state(BATCH)?;
    let cold = probe.layer.initial_state(BATCH);
    let mut worst = Worst::new(GRADIENT_TOLERANCE);
    for (start, learned) in [(warm, false), (cold, true)] {
        let (y, end) = probe.run(&x, &start, Form::Auto)?;
        let loss = Loss::new(&mut probe, &y.detach(), &end.detach(), DType::F32)?;
        let run = |form| {
            let mut leaves = Leaves::new(&x, &start);
            if learned {
                leaves.start = probe.layer.initial_state(BATCH);
            }
            gradients(&probe.layer, &leaves, &loss, form)
        };
        let reference = run(Form::Recurrent)?;
        // From a detached start, the parameters of a learned start are rightly left out.
        for name in params::parameters(&probe.layer).keys().filter(|_| learned) {
            let missing = !reference.contains_key(name);
            worst.record(&format!("{name} gets a gradient"), if missing { f64::INFINITY } else { 0.0 });
        }
        for form in [Form::Parallel, Form::Chunked { size: 8 }, Form::Chunked { size: 16 }] {
            let other = run(form)?;
            for (name, grad) in &reference {
                match other.get(name) {
                    Some(ours) => worst.compare(&format!("{form}: {name}"), ours, grad).await?,
                    None => worst.record(&format!("{form}: {name} has no gradient"), f64::INFINITY),
                }
            }
        }
    }
    Ok(worst.outcome())
}

/// Gradients equal central differences in double precision, on a few entries of every tensor.
pub(super) async fn differences(subject: &Subject, device: &Device, options: Options) -> Result<Outcome> {
    let device = device.clone().autodiff();
    let probe = Probe::new(subject, &device, options)?;
    if supports_double(&device) {
        return differences_in_double(subject, probe, options);
    }
    Ok(Outcome::Skipped("only flex computes everything in double precision".into()))
}

/// Graphics adapters mostly have no f64, and ndarray computes its sigmoid in single precision.
fn supports_double(device: &Device) -> bool {
    format!("{device:?}").to_lowercase().contains("flex")
}

fn differences_in_double(subject: &Subject, mut probe: Probe, options: Options) -> Result<Outcome> {
    const STEP: f64 = 1e-5;
    const ENTRIES: usize = 3;
    let time = options.time.min(9);
    let mut layer = params::cast(probe.layer.clone(), DType::F64);
    let x = probe.value(vec![BATCH, time, subject.d_model], DType::F64)?.tensor::<3>("input")?;
    let prefix = probe.value(vec![BATCH, 4, subject.d_model], DType::F64)?.tensor::<3>("input")?;
    let start = layer.forward(prefix, layer.initial_state(BATCH), Form::Auto)?.1.detach();
    let (y, end) = layer.forward(x.clone(), start.clone(), Form::Auto)?;
    let loss = Loss::new(&mut probe, &y.detach(), &end.detach(), DType::F64)?;
    let form = Form::Chunked { size: 4 };
    let exact = gradients(&layer, &Leaves::new(&x, &start), &loss, form)?;

    let parameters = params::parameters(&layer);
    let evaluate = |layer: &AnyMixer, x: &Tensor<3>, start: &State| -> Result<f64> {
        let (y, end) = layer.forward(x.clone(), start.clone(), form)?;
        Ok(Value::from(loss.of(y, &end)?).to_f64()?[0])
    };
    let mut worst = Worst::new(DIFFERENCE_TOLERANCE);
    for (name, grad) in &exact {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        let grad = grad.to_f64()?;
        for entry in 0..ENTRIES.min(grad.len()) {
            let index = (entry * 7919 + 13) % grad.len();
            let mut side = |sign: f64| -> Result<f64> {
                if name == "input" {
                    let moved = nudge(&x.clone().into(), index, sign * STEP)?;
                    return evaluate(&layer, &moved.tensor("input")?, &start);
                }
                if let Some(slot) = name.strip_prefix("state ") {
                    let mut failed = None;
                    let moved = start.replace(|n, v| {
                        if n != slot {
                            return v;
                        }
                        nudge(&v, index, sign * STEP).unwrap_or_else(|e| {
                            failed = Some(e);
                            v
                        })
                    });
                    return match failed {
                        Some(error) => Err(error),
                        None => evaluate(&layer, &x, &moved),
                    };
                }
                let mut named = parameters.clone();
                let moved = nudge(&parameters[name], index, sign * STEP)?;
                named.insert(name.clone(), moved);
                layer = params::assign(layer.clone(), named)?;
                let value = evaluate(&layer, &x, &start)?;
                layer = params::assign(layer.clone(), parameters.clone())?;
                Ok(value)
            };
            theirs.push((side(1.0)? - side(-1.0)?) / (2.0 * STEP));
            ours.push(grad[index]);
        }
        worst.record(name, relative_error(&ours, &theirs));
    }
    Ok(worst.outcome())
}

/// The tensor with one entry moved.
fn nudge(value: &Value, index: usize, by: f64) -> Result<Value> {
    let mut numbers = value.to_f64()?;
    numbers[index] += by;
    let data = burn::tensor::TensorData::new(numbers, value.dims()).convert_dtype(value.dtype());
    Value::from_data(data, &value.device())
}
