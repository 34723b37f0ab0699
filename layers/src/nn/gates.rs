//! Functions of single numbers: activations, gates, steps and decays, each in one kernel where there is one.

use burn::tensor::{Tensor, activation};

use super::formula::{Formula, Function};
use super::{Activation, repeat_heads, split_heads};
#[cfg(feature = "cube")]
use crate::kernels;

/// Numbers below which tensor operations are chosen. With 128 they took less time than making a kernel ready; where that ends
/// was not looked for.
const FEW: usize = 2048;

/// `x sigmoid(x)`
pub fn silu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    Formula::new(Function::Silu).run([x], [], |[x], []| activation::silu(x))
}

/// `scale / (1 + e^{-x})`
pub fn scaled_sigmoid<const D: usize>(x: Tensor<D>, scale: f64) -> Tensor<D> {
    Formula { scale, ..Formula::new(Function::Sigmoid) }.run([x], [], |[x], []| {
        let open = activation::sigmoid(x);
        if scale == 1.0 { open } else { open.mul_scalar(scale) }
    })
}

/// `scale / (1 + e^x)`: what [`scaled_sigmoid`] leaves of `scale`
pub(crate) fn scaled_closed<const D: usize>(x: Tensor<D>, scale: f64) -> Tensor<D> {
    Formula { scale, ..Formula::new(Function::Closed) }
        .run([x], [], |[x], []| activation::sigmoid(x.neg()).mul_scalar(scale))
}

/// `x Φ(x)`, by the tanh approximation
pub(super) fn gelu_tanh<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    Formula::new(Function::GeluTanh).run([x], [], |[x], []| {
        let inner = (x.clone() + x.clone().powi_scalar(3).mul_scalar(0.044715))
            .mul_scalar((2.0 / std::f64::consts::PI).sqrt());
        x * (inner.tanh().add_scalar(1.0)).mul_scalar(0.5)
    })
}

/// `scale (elu(x) + 1)`: `x + 1` above 0, `e^x` below, times `scale`
pub(crate) fn elu_plus_one<const D: usize>(x: Tensor<D>, scale: f64) -> Tensor<D> {
    Formula { scale, ..Formula::new(Function::EluPlusOne) }.run([x], [], |[x], []| {
        let y = activation::relu(x.clone()) + x.clamp_max(0.0).exp();
        if scale == 1.0 { y } else { y.mul_scalar(scale) }
    })
}

/// `x / (sum + eps)`, with a sum for each row: `[…, t, n]` and `[…, t, 1]`.
pub(crate) fn share<const D: usize>(x: Tensor<D>, sum: Tensor<D>, eps: f64) -> Tensor<D> {
    if x.dims()[D - 2] == 1 {
        // For one token the two operations take less time than making a kernel ready.
        return x / sum.add_scalar(eps);
    }
    let sum = sum.expand(x.dims());
    Formula { scale: eps, ..Formula::new(Function::Share) }
        .run([x, sum], [], |[x, sum], []| x / sum.add_scalar(eps))
}

/// `log(1 + e^x)`, exact for large `|x|`.
pub fn softplus<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    scaled_log_sigmoid(x.neg(), -1.0)
}

/// `log sigmoid(x) = -softplus(-x)`
pub fn log_sigmoid<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    scaled_log_sigmoid(x, 1.0)
}

/// `scale log sigmoid(x)`
pub fn scaled_log_sigmoid<const D: usize>(x: Tensor<D>, scale: f64) -> Tensor<D> {
    Formula { scale, ..Formula::new(Function::LogSigmoid) }
        .run([x], [], |[x], []| plain_softplus(x.neg()).mul_scalar(-scale))
}

fn plain_softplus<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    x.clone().clamp_min(0.0) + (x.abs().neg().exp()).log1p()
}

/// `tanh x`
pub(crate) fn tanh<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    run_many(Formula::new(Function::Tanh), [x], [], |[x], []| x.tanh())
}

/// `max(x, 0)²`
pub(crate) fn squared_relu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    run_many(Formula::new(Function::SquaredRelu), [x], [], |[x], []| activation::relu(x).square())
}

/// `-e^{min(x, most)}`
pub(crate) fn minus_rate<const D: usize>(x: Tensor<D>, most: f64) -> Tensor<D> {
    let formula = Formula { scale: most, ..Formula::new(Function::Rate) };
    run_many(formula, [x], [], |[x], []| x.clamp_max(most).exp().neg())
}

/// `x + weight (y - x)`, with a weight per channel, `[n]`.
pub(crate) fn lerp<const D: usize>(x: Tensor<D>, y: Tensor<D>, weight: Tensor<1>) -> Tensor<D> {
    let formula = Formula::new(Function::Lerp);
    run_many(formula, [x, y], [weight.unsqueeze()], |[x, y], [weight]| x.clone() + weight * (y - x))
}

/// `x + (own + weight) (y - x)`, with a weight per channel, `[n]`, and one of each number's own.
pub(crate) fn lerp_by<const D: usize>(
    x: Tensor<D>,
    y: Tensor<D>,
    own: Tensor<D>,
    weight: Tensor<1>,
) -> Tensor<D> {
    run_many(Formula::new(Function::Mix), [x, y, own], [weight.unsqueeze()], |[x, y, own], [weight]| {
        x.clone() + (own + weight) * (y - x)
    })
}

/// `x (1 + weight (y - 1))`, with a weight per channel, `[n]`.
pub(crate) fn rescale<const D: usize>(x: Tensor<D>, y: Tensor<D>, weight: Tensor<1>) -> Tensor<D> {
    run_many(Formula::new(Function::Rescale), [x, y], [weight.unsqueeze()], |[x, y], [weight]| {
        x * (weight * y.sub_scalar(1.0)).add_scalar(1.0)
    })
}

/// `Σ x y weight` over channels: `x`, `y`: `[b, h, t, n]`, `weight: [h, n]`, `[b, h, t, 1]`.
pub(crate) fn weighted_dot(x: Tensor<4>, y: Tensor<4>, weight: Tensor<2>) -> Tensor<4> {
    let [x, y] = [x, y].map(|x| x.swap_dims(1, 2));
    let product = Formula::new(Function::Product);
    let all = run_many(product, [x, y], [weight.unsqueeze()], |[x, y], [weight]| x * y * weight);
    all.sum_dim(3).swap_dims(1, 2)
}

/// As [`Formula::run`], but in tensor operations where a few of them take less time than making a kernel ready: of few
/// numbers, which are not on a graphics device.
fn run_many<const D: usize, const N: usize, const M: usize>(
    formula: Formula,
    tensors: [Tensor<D>; N],
    parameters: [Tensor<D>; M],
    plain: impl FnOnce([Tensor<D>; N], [Tensor<D>; M]) -> Tensor<D>,
) -> Tensor<D> {
    if tensors[0].dims().iter().product::<usize>() < FEW && !on_graphics(&tensors[0]) {
        return plain(tensors, parameters);
    }
    formula.run(tensors, parameters, plain)
}

/// Whether `x` is on a graphics device, without gradients.
#[allow(unused_variables, reason = "it is used where there is such a backend")]
pub(crate) fn on_graphics<const D: usize>(x: &Tensor<D>) -> bool {
    #[cfg(feature = "cube")]
    if kernels::linear::on_graphics(x) {
        return true;
    }
    false
}

/// `x activation(gate)`
pub fn gated<const D: usize>(x: Tensor<D>, gate: Tensor<D>, activation: Activation) -> Tensor<D> {
    let function = match activation {
        Activation::Silu => Function::SiluGate,
        Activation::Sigmoid => Function::SigmoidGate,
        Activation::GeluTanh => Function::GeluGate,
        other => return x * other.apply(gate),
    };
    Formula::new(function).run([x, gate], [], |[x, gate], []| x * activation.apply(gate))
}

/// `-x e^log`
pub(crate) fn erase(x: Tensor<4>, log: Tensor<4>) -> Tensor<4> {
    let log = log.expand(x.dims());
    Formula::new(Function::Erase).run([x, log], [], |[x, log], []| x * log.exp().neg())
}

/// `scale log sigmoid(x + bias)`, `x: […, n]`, `bias: [n]`
pub(super) fn log_gate<const D: usize>(x: Tensor<D>, bias: Option<Tensor<1>>, scale: f64) -> Tensor<D> {
    let Some(bias) = bias else { return scaled_log_sigmoid(x, scale) };
    Formula { scale, ..Formula::new(Function::LogGate) }
        .run([x], [bias.unsqueeze()], |[x], [bias]| plain_softplus((x + bias).neg()).mul_scalar(-scale))
}

/// `y + d x`, `y`, `x`: `[b, h, t, p]`, `d: [1, h, 1, p]`, where heads and channels may share one number.
pub(crate) fn add_skip(y: Tensor<4>, x: Tensor<4>, d: Tensor<4>) -> Tensor<4> {
    let ([_, h, _, p], [rows, _, tokens, _]) = (y.dims(), d.dims());
    if rows * tokens != 1 {
        return y + d * x;
    }
    // A number per head and channel stands in the last two axes.
    let d = d.swap_dims(1, 2).expand([1, 1, h, p]);
    let [y, x] = [y, x].map(|x| x.swap_dims(1, 2));
    Formula::new(Function::Skip).run([y, x], [d], |[y, x], [d]| y + d * x).swap_dims(1, 2)
}

/// Steps and the decays made of them, of `x` and a bias per number of its last axis.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Steps {
    /// Least step
    pub(crate) low: f64,
    /// Largest step, if there is a limit
    pub(crate) high: Option<f64>,
}

impl Steps {
    /// All positive numbers.
    pub(crate) const ALL: Self = Self { low: 0.0, high: None };

    fn formula(self, function: Function) -> Formula {
        let free = Formula::new(function);
        Formula { low: self.low, high: self.high.unwrap_or(free.high), ..free }
    }

    /// `clamp(softplus(x + bias))`, `x: [b, t, h]`, `bias: [h]`
    pub(crate) fn steps(self, x: Tensor<3>, bias: Tensor<1>) -> Tensor<3> {
        let formula = self.formula(Function::Step);
        formula.run([x], [bias.unsqueeze()], |[x], [bias]| self.clamp(plain_softplus(x + bias)))
    }

    /// `-exp(log_rate) clamp(softplus(x + bias))`, `x: [b, t, h]`, `log_rate` and `bias`: `[h]`
    pub(crate) fn decays(self, x: Tensor<3>, bias: Tensor<1>, log_rate: Tensor<1>) -> Tensor<3> {
        let parameters = [bias.unsqueeze(), log_rate.unsqueeze()];
        self.formula(Function::StepDecay).run([x], parameters, |[x], [bias, log_rate]| {
            self.clamp(plain_softplus(x + bias)) * log_rate.exp().neg()
        })
    }

    /// Decays, `[b, h, t]`, as [`Self::decays`] gives them, and keys times steps, `[b, h, t, n]`, of `key: [b, t, groups n]`
    /// that some heads in a row share: in one kernel on a graphics device without gradients.
    pub(crate) fn decays_and_keys(
        self,
        x: Tensor<3>,
        bias: Tensor<1>,
        log_rate: Tensor<1>,
        key: Tensor<3>,
        groups: usize,
    ) -> (Tensor<3>, Tensor<4>) {
        #[cfg(feature = "cube")]
        if kernels::enabled() && kernels::linear::on_graphics(&x) {
            let Formula { low, high, .. } = self.formula(Function::Step);
            let both = kernels::decays_and_keys(&key, groups, &x, [&bias, &log_rate], [low, high]);
            if let Some([log, keys]) = both {
                return (log.squeeze_dim(3), keys);
            }
        }
        let shared = x.dims()[2] / groups;
        let log = self.decays(x.clone(), bias.clone(), log_rate).swap_dims(1, 2);
        let steps = self.steps(x, bias).swap_dims(1, 2).unsqueeze_dim::<4>(3);
        (log, repeat_heads(split_heads(key, groups), shared) * steps)
    }

    fn clamp(self, steps: Tensor<3>) -> Tensor<3> {
        let steps = if self.low > 0.0 { steps.clamp_min(self.low) } else { steps };
        match self.high {
            Some(high) => steps.clamp_max(high),
            None => steps,
        }
    }
}
