//! Whole models: logits, loss, gradients and greedy continuation.

use std::path::Path;

use burn::tensor::{Device, Int, Tensor, TensorData, activation};
use seqzoo::hf::Checkpoint;
use seqzoo::model::LanguageModel;
use seqzoo_layers::params::Named;
use seqzoo_layers::system::Form;

use super::{Case, Error, Findings, Judged, Result};
use crate::error;

/// Loads the model of a folder and compares it with what is expected of it.
pub(super) fn judge(dir: &Path, device: &Device, wanted: &dyn Fn(&str) -> bool) -> Judged {
    let expected = dir.join("expected.safetensors");
    let architecture = match Case::architecture(&expected) {
        Ok(architecture) => architecture,
        Err(error) => return ("?".into(), Some(Err(error))),
    };
    if !wanted(&architecture) {
        return (architecture, None);
    }
    let judged = match Checkpoint::open(dir) {
        Err(seqzoo::Error::ModelType { .. }) => Ok(None),
        Err(error) => Err(error.into()),
        Ok(checkpoint) => compare(&checkpoint, &expected, device).map(Some),
    };
    (architecture, Some(judged))
}

fn compare(checkpoint: &Checkpoint, expected: &Path, device: &Device) -> Result<Findings> {
    let expected = Expected::open(expected, device)?;
    let mut findings = Findings::default();
    let device = expected.case.device().clone();
    let mut model = None;
    for form in [Form::Recurrent, Form::Chunked { size: 7 }, Form::Parallel, Form::Auto] {
        // Parameters are expressions of the checkpoint's tensors, which can be differentiated once.
        let leaves = checkpoint.tensors(&device)?;
        let leaves: Named = leaves.into_iter().map(|(name, value)| (name, value.require_grad())).collect();
        let loaded = checkpoint.architecture().model(&leaves, &device)?;
        expected.forward(&loaded, &leaves, form, &mut findings)?;
        model = Some(loaded);
    }
    if let Some(model) = model {
        expected.generate(&model, &mut findings)?;
    }
    Ok(findings)
}

struct Expected {
    case: Case,
    rows: usize,
    logits: f64,
    grads: f64,
}

impl Expected {
    fn open(path: &Path, device: &Device) -> Result<Self> {
        let case = Case::open(path, device)?;
        let tolerance: serde_json::Value =
            serde_json::from_str(case.metadata("tolerance").unwrap_or_default()).unwrap_or_default();
        let rows = case.get::<3>("logits")?.dims()[0];
        let limit = |name: &str, otherwise| tolerance[name].as_f64().unwrap_or(otherwise);
        Ok(Self { rows, logits: limit("logits", 1e-5), grads: limit("grads", 1e-4), case })
    }

    fn tokens(&self, name: &str) -> Result<Tensor<2, Int>> {
        let ids = self.case.indices(name)?;
        let data = TensorData::new(ids.to_vec(), [self.rows, ids.len() / self.rows]);
        Ok(Tensor::from_data(data, &self.case.device().clone().inner()))
    }

    fn close<const D: usize>(
        &self,
        name: &str,
        ours: Tensor<D>,
        limit: f64,
        how: &str,
        findings: &mut Findings,
    ) -> Result<()> {
        let expected = self.case.get::<D>(name)?;
        if ours.dims() != expected.dims() {
            let (ours, expected) = (ours.dims(), expected.dims());
            return Err(Error::Case(format!("`{name}` has shape {ours:?} here, {expected:?} in the case")));
        }
        let numbers = |x: Tensor<D>| seqzoo_layers::Value::of(x).to_f64();
        findings.add(format!("{name} ({how})"), error(&numbers(ours)?, &numbers(expected)?), limit);
        Ok(())
    }

    /// Logits, mean cross entropy of the next token, and the gradients the file has.
    fn forward(
        &self,
        model: &LanguageModel,
        leaves: &Named,
        form: Form,
        findings: &mut Findings,
    ) -> Result<()> {
        let tokens = self.tokens("input_ids")?;
        let [b, t] = tokens.dims();
        let how = form.to_string();
        let logits = model.forward(tokens.clone(), model.initial_state(b), form)?.logits;
        self.close("logits", logits.clone(), self.logits, &how, findings)?;
        let log_p = activation::log_softmax(logits.narrow(1, 0, t - 1), 2);
        let next = tokens.narrow(1, 1, t - 1).unsqueeze_dim::<3>(2);
        let loss = log_p.gather(2, next).mean().neg();
        self.close("loss", loss.clone(), self.logits, &how, findings)?;
        let grads = loss.backward();
        for (name, leaf) in leaves {
            let name = format!("grad.{name}");
            if !self.case.has(&name) {
                continue;
            }
            let grad = leaf.grad(&grads).ok_or_else(|| Error::Case(format!("`{name}` got no gradient")))?;
            let expected = self.case.value(&name)?;
            if grad.dims() != expected.dims() {
                return Err(Error::Case(format!("`{name}` has another shape, {:?}", grad.dims())));
            }
            findings.add(format!("{name} ({how})"), error(&grad.to_f64()?, &expected.to_f64()?), self.grads);
        }
        let missing = self.case.gradients().find(|name| !leaves.contains_key(*name));
        match missing {
            Some(name) => Err(Error::Case(format!("the checkpoint has no parameter `{name}`"))),
            None => Ok(()),
        }
    }

    /// The prompt at once and then one token at a time, each the likeliest.
    fn generate(&self, model: &LanguageModel, findings: &mut Findings) -> Result<()> {
        let expected = self.case.indices("generated_ids")?;
        let steps = expected.len() / self.rows;
        let prompt = self.tokens("prompt_ids")?;
        let time = prompt.dims()[1];
        let output = model.forward(prompt, model.initial_state(self.rows), Form::Auto)?;
        let mut logits = output.logits.narrow(1, time - 1, 1).squeeze_dim::<2>(1);
        let mut state = output.state;
        let (mut all, mut chosen) = (Vec::new(), Vec::new());
        for step in 0..steps {
            all.push(logits.clone());
            let token = logits.argmax(1).squeeze_dim::<1>(1);
            chosen.push(token.clone());
            if step + 1 < steps {
                (logits, state) = model.step(token, state)?;
            } else {
                break;
            }
        }
        let ids = Tensor::stack::<2>(chosen, 1).into_data().convert::<i64>();
        let same = ids.as_slice::<i64>().is_ok_and(|ids| ids == expected);
        findings.add("generated_ids (cached)".into(), if same { 0.0 } else { f64::INFINITY }, 0.0);
        self.close("generation_logits", Tensor::stack::<3>(all, 1), self.logits, "cached", findings)
    }
}
