//! AdamW (arXiv 1711.05101) over named parameters.
//!
//! ```text
//! m ← β₁ m + (1-β₁) g      v ← β₂ v + (1-β₂) g²
//! θ ← θ (1 - lr·λ) - lr · (m/(1-β₁ᵗ)) / (√(v/(1-β₂ᵗ)) + ε)
//! ```
//!
//! Written here because an exact resume needs the moments by name, and because weight decay depends on the
//! parameter: matrices decay, vectors and what sets a time scale do not.

use std::collections::BTreeMap;

use burn::module::Module;
use burn::tensor::{Gradients, Tensor};
use seqzoo_layers::params::{self, Named};
use seqzoo_layers::{Error as LayerError, Value};

use super::TrainConfig;
use crate::Result;

/// Moments of every parameter that ever had a gradient.
#[derive(Clone, Debug, Default)]
pub struct AdamW {
    updates: usize,
    moments: BTreeMap<String, (Value, Value)>,
}

/// Gradients of one step with their common length.
#[derive(Debug)]
pub(crate) struct Grads {
    by_name: Named,
}

impl Grads {
    pub(crate) fn of<M: Module>(model: &M, grads: &Gradients) -> Self {
        Self { by_name: params::gradients(model, grads) }
    }

    /// Square of the length of all gradients together, `[1]`; `None` if there are none.
    pub(crate) fn square_norm(&self) -> Result<Option<Tensor<1>>> {
        let squares = self.by_name.values().map(|g| g.clone().dot(g.clone(), "gradient"));
        let squares = squares.collect::<Result<Vec<_>, _>>()?;
        Ok((!squares.is_empty()).then(|| Tensor::cat(squares, 0).sum()))
    }

    pub(crate) fn by_name(&self) -> &Named {
        &self.by_name
    }
}

/// Whether weight decay applies: to matrices, except those that set a decay or a step size.
fn decays(name: &str, rank: usize) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    rank >= 2 && !["a_log", "dt_bias", "bias", "gamma"].contains(&last)
}

impl AdamW {
    /// Number of updates made.
    pub fn updates(&self) -> usize {
        self.updates
    }

    /// One update with gradients multiplied by `scale`. Parameters without gradient stay as they are.
    pub(crate) fn update<M: Module>(
        &mut self,
        model: M,
        grads: &Grads,
        scale: f64,
        lr: f64,
        config: &TrainConfig,
    ) -> Result<M> {
        self.updates += 1;
        let mut values = params::parameters(&model);
        for (name, grad) in &grads.by_name {
            let Some(value) = values.get_mut(name) else { continue };
            let old = self.moments.remove(name);
            let rank = grad.dims().len();
            let step = Step {
                scale,
                lr,
                decay: if decays(name, rank) { lr * config.weight_decay } else { 0.0 },
                betas: config.betas,
                eps: config.eps,
                updates: self.updates as i32,
            };
            let (new, first, second) = match rank {
                1 => step.apply::<1>(name, value, grad, old)?,
                2 => step.apply::<2>(name, value, grad, old)?,
                3 => step.apply::<3>(name, value, grad, old)?,
                4 => step.apply::<4>(name, value, grad, old)?,
                _ => step.apply::<5>(name, value, grad, old)?,
            };
            *value = new;
            self.moments.insert(name.clone(), (first, second));
        }
        Ok(params::assign(model, values)?)
    }

    /// The moments as tensors, for a checkpoint: `first.NAME` and `second.NAME`.
    pub(crate) fn to_named(&self) -> Named {
        self.moments
            .iter()
            .flat_map(|(name, (first, second))| {
                [(format!("first.{name}"), first.clone()), (format!("second.{name}"), second.clone())]
            })
            .collect()
    }

    /// Restores what [`AdamW::to_named`] gave for a model of these parameters.
    pub(crate) fn from_named(mut named: Named, updates: usize, parameters: &Named) -> Result<Self> {
        let mut moments = BTreeMap::new();
        let weights = |message: String| LayerError::Weights(message);
        for (name, value) in parameters {
            let first = named.remove(&format!("first.{name}"));
            let second = named.remove(&format!("second.{name}"));
            match (first, second) {
                (Some(first), Some(second)) => {
                    for moment in [&first, &second] {
                        if moment.dims() != value.dims() {
                            let (given, expected) = (moment.dims(), value.dims());
                            let message = format!("moment of `{name}` has shape {given:?}, not {expected:?}");
                            return Err(weights(message).into());
                        }
                    }
                    moments.insert(name.clone(), (first, second));
                }
                (None, None) => {}
                _ => return Err(weights(format!("`{name}` has only one of its two moments")).into()),
            }
        }
        if let Some(name) = named.keys().next() {
            return Err(weights(format!("`{name}` belongs to no parameter of this model")).into());
        }
        Ok(Self { updates, moments })
    }
}

/// Numbers of one update.
struct Step {
    scale: f64,
    lr: f64,
    decay: f64,
    betas: [f64; 2],
    eps: f64,
    updates: i32,
}

impl Step {
    fn apply<const D: usize>(
        &self,
        name: &str,
        value: &Value,
        grad: &Value,
        moments: Option<(Value, Value)>,
    ) -> Result<(Value, Value, Value)> {
        let [b1, b2] = self.betas;
        let theta = value.tensor::<D>(name)?.inner();
        let grad = grad.tensor::<D>(name)?.mul_scalar(self.scale);
        let (first, second) = match moments {
            Some((first, second)) => (first.tensor::<D>(name)?, second.tensor::<D>(name)?),
            None => (grad.zeros_like(), grad.zeros_like()),
        };
        let first = first.mul_scalar(b1) + grad.clone().mul_scalar(1.0 - b1);
        let second = second.mul_scalar(b2) + grad.square().mul_scalar(1.0 - b2);
        // Bias corrections are folded into the scalars: lr/(1-β₁ᵗ) and √(1-β₂ᵗ).
        let (c1, c2) = (1.0 - b1.powi(self.updates), (1.0 - b2.powi(self.updates)).sqrt());
        let root = second.clone().sqrt().div_scalar(c2).add_scalar(self.eps);
        let theta = theta.mul_scalar(1.0 - self.decay) - (first.clone() / root).mul_scalar(self.lr / c1);
        let theta = Tensor::from_inner(theta).require_grad();
        Ok((Value::of(theta), Value::of(first), Value::of(second)))
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{DType, Device};
    use seqzoo_layers::Init;

    use super::*;

    fn linear() -> seqzoo_layers::nn::Linear {
        let layer = Init::new(4, &Device::flex().autodiff()).linear_std(3, 2, 0.5, true);
        params::cast(layer, DType::F64)
    }

    fn numbers(model: &seqzoo_layers::nn::Linear, name: &str) -> Vec<f64> {
        params::parameters(model)[name].to_f64().unwrap()
    }

    fn gradients(model: &seqzoo_layers::nn::Linear) -> Grads {
        let x = Tensor::<2>::from_data([[0.5, -1.0, 2.0]], (&model.weight.device(), DType::F64));
        Grads::of(model, &model.forward(x).square().sum().backward())
    }

    /// The textbook formula, one number at a time.
    fn textbook(x: &mut [f64], g: &[f64], m: &mut [f64], v: &mut [f64], t: i32, c: &TrainConfig, decay: f64) {
        for i in 0..x.len() {
            m[i] = c.betas[0] * m[i] + (1.0 - c.betas[0]) * g[i];
            v[i] = c.betas[1] * v[i] + (1.0 - c.betas[1]) * g[i] * g[i];
            let (mh, vh) = (m[i] / (1.0 - c.betas[0].powi(t)), v[i] / (1.0 - c.betas[1].powi(t)));
            x[i] -= c.lr * (mh / (vh.sqrt() + c.eps) + decay * x[i]);
        }
    }

    #[test]
    fn updates_follow_the_textbook_and_biases_do_not_decay() {
        let config = TrainConfig { lr: 0.1, weight_decay: 0.3, eps: 1e-3, ..Default::default() };
        let (mut model, mut adam) = (linear(), AdamW::default());
        let mut expected: BTreeMap<&str, Vec<Vec<f64>>> = ["weight", "bias"]
            .map(|name| {
                let x = numbers(&model, name);
                (name, vec![x.clone(), vec![0.0; x.len()], vec![0.0; x.len()]])
            })
            .into();
        for t in 1..=5 {
            let grads = gradients(&model);
            for (name, parts) in &mut expected {
                let g: Vec<f64> = grads.by_name()[*name].to_f64().unwrap().iter().map(|g| 0.5 * g).collect();
                let decay = if *name == "weight" { 0.3 } else { 0.0 };
                let [x, m, v] = parts.as_mut_slice() else { unreachable!() };
                textbook(x, &g, m, v, t, &config, decay);
            }
            model = adam.update(model, &grads, 0.5, config.lr, &config).unwrap();
        }
        for (name, parts) in &expected {
            for (got, want) in numbers(&model, name).iter().zip(&parts[0]) {
                assert!((got - want).abs() < 1e-12, "{name}: {got} {want}");
            }
        }
        assert_eq!(adam.updates(), 5);
    }

    #[test]
    fn the_norm_is_over_all_parameters() {
        let grads = gradients(&linear());
        let all = grads.by_name().values().flat_map(|g| g.to_f64().unwrap());
        let expected: f64 = all.map(|g| g * g).sum();
        let got = grads.square_norm().unwrap().unwrap().into_scalar::<f64>();
        assert!((got - expected).abs() < 1e-9 * expected);
    }

    #[test]
    fn restored_moments_continue_exactly_and_strange_ones_are_refused() {
        let config = TrainConfig::default();
        let mut adam = AdamW::default();
        let model = linear();
        let model = adam.update(model.clone(), &gradients(&model), 1.0, 0.1, &config).unwrap();
        let parameters = params::parameters(&model);
        let mut again = AdamW::from_named(adam.to_named(), 1, &parameters).unwrap();
        let a = adam.update(model.clone(), &gradients(&model), 1.0, 0.1, &config).unwrap();
        let b = again.update(model.clone(), &gradients(&model), 1.0, 0.1, &config).unwrap();
        assert_eq!(numbers(&a, "weight"), numbers(&b, "weight"));

        let mut named = adam.to_named();
        named.remove("second.bias");
        assert!(AdamW::from_named(named, 1, &parameters).unwrap_err().to_string().contains("`bias`"));
        let mut named = adam.to_named();
        let swapped = named["first.bias"].clone();
        named.insert("first.weight".into(), swapped);
        assert!(AdamW::from_named(named, 1, &parameters).unwrap_err().to_string().contains("shape"));
        let mut named = adam.to_named();
        named.insert("first.other".into(), adam.to_named()["first.bias"].clone());
        assert!(AdamW::from_named(named, 1, &parameters).unwrap_err().to_string().contains("first.other"));
    }

    #[test]
    fn decay_spares_vectors_and_time_scales() {
        assert!(decays("blocks.0.mixer.q_proj.weight", 2) && decays("embedding", 2));
        assert!(!decays("norm.gamma", 1) && !decays("blocks.0.mixer.a_log", 2));
    }
}
