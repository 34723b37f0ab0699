//! Memories: functions `M(x; W)` whose weights `W` are the state, with their inner gradients in closed form.
//!
//! ```text
//! linear:  M(x) = W x                          ∇W = u kᵀ
//! mlp:     M(x) = x + LN(W1 gelu(W2 x))        ∇W1 = dz sᵀ,  ∇W2 = da kᵀ
//!          a = W2 k,  s = gelu(a),  z = W1 s,  ẑ = (z - mean z) ρ,  ρ = 1/sqrt(var z + ε),  w = u ∘ g
//!          dz = ρ (w - mean(w) - ẑ mean(w ∘ ẑ)),   da = (W1ᵀ dz) ∘ gelu'(a)
//! ```
//!
//! `u = ∂ℓ/∂M(k)` comes from the bias. Every gradient is of rank one per token, so that a chunk of tokens is
//! kept as its factors and never as matrices; written with ordinary operations, so that training through the
//! inner steps needs no second derivative. LN's gain `g` and bias are slow parameters, one pair per head.
//!
//! | symbol | shape |
//! | --- | --- |
//! | k, v, u, z, dz | `[b, h, t, n]` |
//! | a, s, da | `[b, h, t, m]`, `m = expansion · n` |
//! | W; W1, W2 | `[b, h, n, n]`; `[b, h, n, m]`, `[b, h, m, n]` |

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::error::require;
use crate::nn::rms_normalize;
use crate::{Init, Result};

/// Standard deviation of the initial weights (TTT, arXiv 2407.04620).
const INIT_STD: f64 = 0.02;
/// ε of the memory's layer norm.
const NORM_EPS: f64 = 1e-6;

/// The memory's architecture.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum MemoryConfig {
    /// One matrix per head.
    Linear,
    /// Two matrices per head, with a residual connection and a layer norm.
    Mlp {
        /// Hidden width over head width.
        #[serde(default = "four")]
        expansion: usize,
    },
}

fn four() -> usize {
    4
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self::Mlp { expansion: 4 }
    }
}

impl MemoryConfig {
    /// Draws the initial weights.
    pub(crate) fn init(self, mixer: &'static str, heads: usize, n: usize, init: &mut Init) -> Result<Memory> {
        Ok(match self {
            Self::Linear => Memory::Linear(LinearMemory { w: init.normal([heads, n, n], INIT_STD) }),
            Self::Mlp { expansion } => {
                require(expansion > 0, mixer, "expansion", expansion, "must be positive")?;
                let m = expansion * n;
                Memory::Mlp(MlpMemory {
                    w1: init.normal([heads, n, m], INIT_STD),
                    w2: init.normal([heads, m, n], INIT_STD),
                    norm_weight: init.constant([heads, n], 1.0),
                    norm_bias: init.constant([heads, n], 0.0),
                })
            }
        })
    }
}

/// `W` of [`MemoryConfig::Linear`] before any token.
#[derive(Module, Debug)]
pub struct LinearMemory {
    /// `[h, n, n]`, output by input
    pub w: Param<Tensor<3>>,
}

/// Weights of [`MemoryConfig::Mlp`] before any token, and its layer norm.
#[derive(Module, Debug)]
pub struct MlpMemory {
    /// `[h, n, m]`, output by hidden
    pub w1: Param<Tensor<3>>,
    /// `[h, m, n]`, hidden by input
    pub w2: Param<Tensor<3>>,
    /// `g: [h, n]`
    pub norm_weight: Param<Tensor<2>>,
    /// `[h, n]`
    pub norm_bias: Param<Tensor<2>>,
}

/// A memory: its slow parameters, among them the weights it starts from.
#[derive(Module, Debug)]
pub enum Memory {
    /// `M(x) = W x`
    Linear(LinearMemory),
    /// `M(x) = x + LN(W1 gelu(W2 x))`
    Mlp(MlpMemory),
}

/// The rank-one gradients `left_t right_tᵀ` of one matrix on a run of tokens.
#[derive(Clone, Debug)]
pub(crate) struct Factor {
    /// `[b, h, t, rows]`
    pub(crate) left: Tensor<4>,
    /// `[b, h, t, cols]`
    pub(crate) right: Tensor<4>,
}

/// `(residual, what the bias needs) -> u`
pub(crate) type OutputGradient<'a> = &'a dyn Fn(Tensor<4>, Tensor<4>) -> Tensor<4>;

impl Memory {
    /// Names of the matrices, in the order used everywhere.
    pub(crate) fn names(&self) -> &'static [&'static str] {
        match self {
            Memory::Linear(_) => &["w"],
            Memory::Mlp(_) => &["w1", "w2"],
        }
    }

    /// The learned starting weights for a batch, `[b, h, rows, cols]` each.
    pub(crate) fn initial(&self, batch: usize) -> Vec<Tensor<4>> {
        let expand = |w: &Param<Tensor<3>>| {
            // Flat, because graphics devices sum a turned gradient of rank 4 over its first axis wrongly.
            let [h, rows, cols] = w.dims();
            let flat = w.val().reshape([1, h * rows * cols]).expand([batch, h * rows * cols]);
            flat.reshape([batch, h, rows, cols])
        };
        match self {
            Memory::Linear(memory) => vec![expand(&memory.w)],
            Memory::Mlp(memory) => vec![expand(&memory.w1), expand(&memory.w2)],
        }
    }

    /// `M(x)`, where `product(i, x)` multiplies `x` by the `i`-th matrix: so one forward serves materialised
    /// weights and weights that exist only as a start and a chunk of factors.
    pub(crate) fn read(&self, x: Tensor<4>, product: &dyn Fn(usize, Tensor<4>) -> Tensor<4>) -> Tensor<4> {
        match self {
            Memory::Linear(_) => product(0, x),
            Memory::Mlp(memory) => {
                let s = gelu(product(1, x.clone()));
                let (normal, _) = standardize(product(0, s));
                x + normal * per_head(&memory.norm_weight) + per_head(&memory.norm_bias)
            }
        }
    }

    /// `M(x)` with materialised weights.
    pub(crate) fn read_at(&self, weights: &[Tensor<4>], x: Tensor<4>) -> Tensor<4> {
        self.read(x, &|i, x| times_transposed(x, weights[i].clone()))
    }

    /// Inner gradients on the pairs `(k, v)` at `weights`, and the residuals `M(k) - v`. `aux` goes to
    /// `gradient` along with them.
    pub(crate) fn gradients(
        &self,
        weights: &[Tensor<4>],
        k: Tensor<4>,
        v: Tensor<4>,
        aux: Tensor<4>,
        gradient: OutputGradient<'_>,
    ) -> (Vec<Factor>, Tensor<4>) {
        match self {
            Memory::Linear(_) => {
                let r = self.read_at(weights, k.clone()) - v;
                (vec![Factor { left: gradient(r.clone(), aux), right: k }], r)
            }
            Memory::Mlp(memory) => {
                let (w1, w2) = (weights[0].clone(), weights[1].clone());
                let gain = per_head(&memory.norm_weight);
                let a = times_transposed(k.clone(), w2);
                let s = gelu(a.clone());
                let (normal, rate) = standardize(times_transposed(s.clone(), w1.clone()));
                let r = k.clone() + normal.clone() * gain.clone() + per_head(&memory.norm_bias) - v;
                let w = gradient(r.clone(), aux) * gain;
                let along = (w.clone() * normal.clone()).mean_dim(3);
                let dz = (w.clone() - w.mean_dim(3) - normal * along) * rate;
                let da = times(dz.clone(), w1) * gelu_slope(a);
                (vec![Factor { left: dz, right: s }, Factor { left: da, right: k }], r)
            }
        }
    }

    /// Operations per head and token: one inner gradient, one decayed write, one read; in chunks of `chunk`
    /// tokens, or token by token.
    pub(crate) fn flops(&self, n: usize, chunk: Option<usize>) -> usize {
        match (self, chunk) {
            (Memory::Linear(_), None) => 7 * n * n,
            (Memory::Linear(_), Some(c)) => 6 * n * n + 4 * c * n,
            (Memory::Mlp(memory), None) => 16 * n * memory.w1.dims()[2],
            (Memory::Mlp(memory), Some(c)) => {
                let m = memory.w1.dims()[2];
                14 * n * m + 4 * c * (n + m)
            }
        }
    }
}

/// `(z - mean) ρ` and `ρ = 1/sqrt(var + ε)` over the last axis.
fn standardize(z: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
    let centred = z.clone() - z.mean_dim(3);
    let rate = centred.clone().square().mean_dim(3).add_scalar(NORM_EPS).sqrt().recip();
    (rms_normalize(centred, NORM_EPS), rate)
}

/// `[h, n] -> [1, h, 1, n]`
pub(super) fn per_head(weight: &Param<Tensor<2>>) -> Tensor<4> {
    let [h, n] = weight.dims();
    weight.val().reshape([1, h, 1, n])
}

/// `Φ(x)`, the normal distribution function.
fn normal_cdf(x: Tensor<4>) -> Tensor<4> {
    x.mul_scalar(std::f64::consts::FRAC_1_SQRT_2).erf().add_scalar(1.0).mul_scalar(0.5)
}

/// `x Φ(x)`. Not Burn's own: its derivative is the tanh approximation's on some backends.
pub(super) fn gelu(x: Tensor<4>) -> Tensor<4> {
    x.clone() * normal_cdf(x)
}

/// `Φ(x) + x φ(x)`
pub(super) fn gelu_slope(x: Tensor<4>) -> Tensor<4> {
    let density = x.clone().square().mul_scalar(-0.5).exp();
    let density = density.mul_scalar(1.0 / (2.0 * std::f64::consts::PI).sqrt());
    normal_cdf(x.clone()) + x * density
}

/// `x Wᵀ`: `[b, h, t, cols], [b, h, rows, cols] -> [b, h, t, rows]`. One token multiplies and sums, because
/// WebGPU's matrix product with a single row is broken.
pub(crate) fn times_transposed(x: Tensor<4>, w: Tensor<4>) -> Tensor<4> {
    match x.dims()[2] {
        1 => (x * w).sum_dim(3).swap_dims(2, 3),
        _ => x.matmul(w.swap_dims(2, 3)),
    }
}

/// `x W`: `[b, h, t, rows], [b, h, rows, cols] -> [b, h, t, cols]`.
pub(crate) fn times(x: Tensor<4>, w: Tensor<4>) -> Tensor<4> {
    match x.dims()[2] {
        1 => (x.swap_dims(2, 3) * w).sum_dim(2),
        _ => x.matmul(w),
    }
}

/// `Σ_t left_t right_tᵀ`: `[b, h, rows, cols]`.
pub(crate) fn outer_sum(left: Tensor<4>, right: Tensor<4>) -> Tensor<4> {
    match left.dims()[2] {
        1 => left.swap_dims(2, 3) * right,
        _ => left.swap_dims(2, 3).matmul(right),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::miras::Bias;
    use crate::{Value, params};
    use burn::tensor::{DType, Device};

    #[test]
    fn inner_gradients_are_the_autodiff_gradients_of_the_inner_loss() {
        let device = Device::flex();
        for config in [MemoryConfig::Linear, MemoryConfig::Mlp { expansion: 4 }] {
            for bias in [Bias::L2, Bias::HuberNorm, Bias::HuberCoordinate, Bias::HuberMixture { nu: 3.0 }] {
                let mut init = Init::new(7, &device);
                let mut memory = config.init("memory", 2, 5, &mut init).unwrap();
                if let Memory::Mlp(mlp) = &mut memory {
                    mlp.norm_weight = init.normal([2, 5], 1.0);
                    mlp.norm_bias = init.normal([2, 5], 1.0);
                }
                let memory = params::cast(memory, DType::F64);
                let mut random =
                    |dims: [usize; 4], std| init.normal(dims, std).val().detach().cast(DType::F64);
                let (k, v) = (random([1, 2, 6, 5], 0.5), random([1, 2, 6, 5], 1.0));
                // Residuals lie on both sides of the threshold.
                let delta = random([1, 2, 6, 1], 1.0).abs().mul_scalar(2.0).add_scalar(0.5);
                let sizes: Vec<_> = memory.initial(1).iter().map(Tensor::dims).collect();
                let weights: Vec<_> =
                    sizes.into_iter().map(|dims| random(dims, 0.5).autodiff().require_grad()).collect();

                let gradient = |r, delta| bias.gradient(r, delta);
                let (factors, _) = memory.gradients(&weights, k.clone(), v.clone(), delta.clone(), &gradient);
                let loss = bias.loss(memory.read_at(&weights, k) - v, delta).sum();
                let grads = loss.backward();
                for (weight, factor) in weights.iter().zip(factors) {
                    let closed = outer_sum(factor.left, factor.right).inner();
                    let automatic = weight.grad(&grads).unwrap();
                    let scale = automatic.clone().square().sum().sqrt();
                    let gap = (closed - automatic).square().sum().sqrt() / scale;
                    let gap = Value::from(gap).to_f64().unwrap()[0];
                    assert!(gap < 1e-10, "{config:?} {bias:?}: {gap}");
                }
            }
        }
    }

    #[test]
    fn products_of_one_token_equal_those_of_many() {
        let mut init = Init::new(3, &Device::flex());
        let mut random = |dims| init.normal(dims, 1.0).val();
        let (x, w, y): (Tensor<4>, Tensor<4>, Tensor<4>) =
            (random([1, 2, 3, 4]), random([1, 2, 5, 4]), random([1, 2, 3, 5]));
        let worst = |a: Tensor<4>| Value::from((a).abs().max()).to_f64().unwrap()[0];
        let one = |z: &Tensor<4>| z.clone().narrow(2, 1, 1);
        let gap = one(&times_transposed(x.clone(), w.clone())) - times_transposed(one(&x), w.clone());
        assert!(worst(gap) < 1e-6);
        assert!(worst(one(&times(y.clone(), w.clone())) - times(one(&y), w)) < 1e-6);
        let twice = Tensor::cat(vec![one(&x), one(&x)], 2);
        let once = outer_sum(one(&y), one(&x)).mul_scalar(2.0);
        assert!(worst(outer_sum(Tensor::cat(vec![one(&y), one(&y)], 2), twice) - once) < 1e-6);
    }
}
