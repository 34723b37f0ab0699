//! Memories: functions `M(x; W)` whose weights `W` are the state, with their inner gradients in closed form.
//!
//! ```text
//! vector:  M(x) = x ∘ w                        ∇w = u ∘ k
//! linear:  M(x) = W x                          ∇W = u kᵀ
//! mlp:     M(x) = x + LN(W1 gelu(W2 … gelu(W_L x)))
//!          a_i = W_i s_{i+1},  s_i = gelu(a_i),  s_{L+1} = k,  z = a_1         ∇W_i = d_i s_{i+1}ᵀ
//!          ẑ = (z - mean z) ρ,  ρ = 1/sqrt(var z + ε),  w = u ∘ g
//!          d_1 = ρ (w - mean(w) - ẑ mean(w ∘ ẑ)),   d_{i+1} = (W_iᵀ d_i) ∘ gelu'(a_{i+1})
//! ```
//!
//! `u = ∂ℓ/∂M(k)` comes from the bias. Every gradient is of rank one per token (the vector is a matrix with one
//! column, written against 1), so that a chunk of tokens is kept as its factors and never as matrices; written
//! with ordinary operations, so that training through the inner steps needs no second derivative. LN's gain
//! `g` and bias are slow parameters, one pair per head. With `bias`, every layer of the MLP sees a 1 beside its input,
//! and its matrix has a last column for it.
//!
//! | symbol | shape |
//! | --- | --- |
//! | k, v, u, z, d_1 | `[b, h, t, n]` |
//! | a_i, s_i, d_i (i > 1) | `[b, h, t, m]`, `m = expansion · n` |
//! | w; W | `[b, h, n, 1]`; `[b, h, n, n]` |
//! | W1, W_i, W_L | `[b, h, n, m]`, `[b, h, m, m]`, `[b, h, m, n]`; a single layer is `[b, h, n, n]` |

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::layer_norm::Standardized;
use crate::error::require;
use crate::nn::Activation;
use crate::{Init, Result};

/// ε of the memory's layer norm.
pub(super) const NORM_EPS: f64 = 1e-6;

/// The memory's architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum MemoryConfig {
    /// One number per head and channel.
    Vector,
    /// One matrix per head.
    Linear,
    /// `depth` matrices per head, with a residual connection and a layer norm.
    Mlp {
        /// Hidden width over head width.
        #[serde(default = "four")]
        expansion: usize,
        /// Matrices `L`.
        #[serde(default = "two")]
        depth: usize,
        /// Whether each layer learns an offset too, as in TTT.
        #[serde(default, skip_serializing_if = "is_off")]
        bias: bool,
        /// The non-linearity between layers.
        #[serde(default, skip_serializing_if = "Gelu::is_exact")]
        gelu: Gelu,
    },
}

/// Which of its two definitions `gelu` is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gelu {
    /// `x Φ(x)`.
    #[default]
    Exact,
    /// `x (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2`, as in TTT.
    Tanh,
}

impl Gelu {
    fn is_exact(&self) -> bool {
        *self == Self::Exact
    }

    fn apply(self, x: Tensor<4>) -> Tensor<4> {
        match self {
            Self::Exact => gelu(x),
            Self::Tanh => Activation::GeluTanh.apply(x),
        }
    }

    fn slope(self, x: Tensor<4>) -> Tensor<4> {
        match self {
            Self::Exact => gelu_slope(x),
            Self::Tanh => gelu_tanh_slope(x),
        }
    }
}

fn is_off(switch: &bool) -> bool {
    !switch
}

fn four() -> usize {
    4
}

fn two() -> usize {
    2
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self::mlp(four(), two())
    }
}

impl MemoryConfig {
    /// An MLP of `depth` layers without offsets.
    pub const fn mlp(expansion: usize, depth: usize) -> Self {
        Self::Mlp { expansion, depth, bias: false, gelu: Gelu::Exact }
    }

    /// Checks the sizes.
    pub(crate) fn validate(self, mixer: &'static str) -> Result<()> {
        let Self::Mlp { expansion, depth, .. } = self else { return Ok(()) };
        require(expansion > 0, mixer, "memory.expansion", expansion, "must be positive")?;
        let expected = "must be 1 to 8 (0 would be no memory: use `linear` or `vector` for less than an MLP)";
        require((1..=8).contains(&depth), mixer, "memory.depth", depth, expected)
    }

    /// Rows and columns of every matrix, the last layer's first.
    pub(crate) fn sizes(self, n: usize) -> Vec<[usize; 2]> {
        match self {
            Self::Vector => vec![[n, 1]],
            Self::Linear => vec![[n, n]],
            Self::Mlp { expansion, depth, bias, .. } => {
                let width = |layer: usize| if layer == 0 || layer == depth { n } else { expansion * n };
                (0..depth).map(|layer| [width(layer), width(layer + 1) + usize::from(bias)]).collect()
            }
        }
    }

    /// Draws the weights a memory starts from, with entries of standard deviation `std`.
    pub(crate) fn init(self, heads: usize, n: usize, std: f64, init: &mut Init) -> Memory {
        let draw = |[rows, cols]: [usize; 2]| init.normal([heads, rows, cols], std);
        let mut weights: Vec<_> = self.sizes(n).into_iter().map(draw).collect();
        match self {
            Self::Mlp { bias, gelu, .. } => Memory::Mlp(MlpMemory {
                weights,
                bias,
                gelu,
                norm_weight: init.constant([heads, n], 1.0),
                norm_bias: init.constant([heads, n], 0.0),
            }),
            Self::Vector => Memory::Vector(FlatMemory { w: weights.remove(0) }),
            Self::Linear => Memory::Linear(FlatMemory { w: weights.remove(0) }),
        }
    }
}

/// `W` of [`MemoryConfig::Linear`] or `w` of [`MemoryConfig::Vector`] before any token.
#[derive(Module, Debug)]
pub struct FlatMemory {
    /// `[h, n, n]`, output by input; `[h, n, 1]`
    pub w: Param<Tensor<3>>,
}

/// Weights of [`MemoryConfig::Mlp`] before any token, and its layer norm.
#[derive(Module, Debug)]
pub struct MlpMemory {
    /// `W1 … W_L`, the last layer's first, `[h, output, input]` each, with a last column for an offset
    pub weights: Vec<Param<Tensor<3>>>,
    /// Whether there is that column
    #[module(skip)]
    pub bias: bool,
    /// Between layers
    #[module(skip)]
    pub gelu: Gelu,
    /// `g: [h, n]`
    pub norm_weight: Param<Tensor<2>>,
    /// `[h, n]`
    pub norm_bias: Param<Tensor<2>>,
}

impl MlpMemory {
    /// What a layer's matrix multiplies: its input, and 1 beside it where it has an offset.
    fn seen(&self, x: Tensor<4>) -> Tensor<4> {
        if self.bias { with_one(x) } else { x }
    }

    /// `Wᵀ d` without the entry of the 1.
    fn behind(&self, d: Tensor<4>, w: &Tensor<4>) -> Tensor<4> {
        let inputs = w.dims()[3] - usize::from(self.bias);
        times(d, w.clone().narrow(3, 0, inputs))
    }
}

/// A memory: its slow parameters, among them the weights it starts from.
#[derive(Module, Debug)]
pub enum Memory {
    /// `M(x) = x ∘ w`
    Vector(FlatMemory),
    /// `M(x) = W x`
    Linear(FlatMemory),
    /// `M(x) = x + LN(W1 gelu(W2 …))`
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

/// `(residual, v, what the bias needs) -> u`
pub(crate) type OutputGradient<'a> = &'a dyn Fn(Tensor<4>, Tensor<4>, Tensor<4>) -> Tensor<4>;

impl Memory {
    /// Names of the matrices, in the order used everywhere.
    pub(crate) fn names(&self) -> Vec<String> {
        match self {
            Memory::Vector(_) | Memory::Linear(_) => vec!["w".into()],
            Memory::Mlp(memory) => (1..=memory.weights.len()).map(|i| format!("w{i}")).collect(),
        }
    }

    /// The learned starting weights, `[h, rows, cols]` each.
    fn weights(&self) -> &[Param<Tensor<3>>] {
        match self {
            Memory::Vector(memory) | Memory::Linear(memory) => std::slice::from_ref(&memory.w),
            Memory::Mlp(memory) => &memory.weights,
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
        self.weights().iter().map(expand).collect()
    }

    /// `M(x)`, where `product(i, x)` multiplies `x` by the `i`-th matrix: so one forward serves materialised
    /// weights and weights that exist only as a start and a chunk of factors.
    pub(crate) fn read(&self, x: Tensor<4>, product: &dyn Fn(usize, Tensor<4>) -> Tensor<4>) -> Tensor<4> {
        match self {
            Memory::Vector(_) => {
                let w = product(0, one(&x));
                x * w
            }
            Memory::Linear(_) => product(0, x),
            Memory::Mlp(memory) => {
                let last = memory.weights.len() - 1;
                let layer = |s, i| memory.gelu.apply(product(i, memory.seen(s)));
                let s = (1..=last).rev().fold(x.clone(), layer);
                let normal = Standardized::of(product(0, memory.seen(s)), NORM_EPS).normal;
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
            Memory::Vector(_) => {
                let r = self.read_at(weights, k.clone()) - v.clone();
                let right = one(&k);
                (vec![Factor { left: gradient(r.clone(), v, aux) * k, right }], r)
            }
            Memory::Linear(_) => {
                let r = self.read_at(weights, k.clone()) - v.clone();
                (vec![Factor { left: gradient(r.clone(), v, aux), right: k }], r)
            }
            Memory::Mlp(memory) => {
                let gain = per_head(&memory.norm_weight);
                // Layer by layer from the input: what each matrix sees, and what it makes of it.
                let (mut seen, mut made, mut s) = (Vec::new(), Vec::new(), k.clone());
                for w in weights.iter().rev() {
                    let input = memory.seen(s);
                    let a = times_transposed(input.clone(), w.clone());
                    seen.push(input);
                    s = if made.len() + 1 < weights.len() { memory.gelu.apply(a.clone()) } else { a.clone() };
                    made.push(a);
                }
                let z = Standardized::of(s, NORM_EPS);
                let bias = per_head(&memory.norm_bias);
                let r = k + z.normal.clone() * gain.clone() + bias - v.clone();
                let mut d = z.gradient(gradient(r.clone(), v, aux) * gain);
                let mut factors = Vec::with_capacity(weights.len());
                made.pop();
                for (w, right) in weights.iter().zip(seen.into_iter().rev()) {
                    let below = made.pop().map(|a| memory.behind(d.clone(), w) * memory.gelu.slope(a));
                    factors.push(Factor { left: d.clone(), right });
                    d = below.unwrap_or(d);
                }
                (factors, r)
            }
        }
    }

    /// Operations per head and token: one inner gradient, one decayed write, one read; in chunks of `chunk`
    /// tokens, or token by token.
    pub(crate) fn flops(&self, chunk: Option<usize>) -> usize {
        let deep = matches!(self, Memory::Mlp(_));
        let per_matrix = |w: &Param<Tensor<3>>| {
            let [_, rows, cols] = w.dims();
            match chunk {
                None => (if deep { 8 } else { 7 }) * rows * cols,
                Some(c) => (if deep { 7 } else { 6 }) * rows * cols + 2 * c * (rows + cols),
            }
        };
        self.weights().iter().map(per_matrix).sum()
    }
}

/// Ones `[b, h, t, 1]`: what a vector's gradients are written against.
fn one(x: &Tensor<4>) -> Tensor<4> {
    let [b, h, t, _] = x.dims();
    Tensor::ones([b, h, t, 1], (&x.device().inner(), x.dtype()))
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

/// `∂ gelu_tanh(x) / ∂x`
pub(super) fn gelu_tanh_slope(x: Tensor<4>) -> Tensor<4> {
    let c = (2.0 / std::f64::consts::PI).sqrt();
    let square = x.clone().square();
    let tanh = (x.clone() * square.clone().mul_scalar(0.044715).add_scalar(1.0)).mul_scalar(c).tanh();
    let sech = tanh.clone().square().neg().add_scalar(1.0);
    let inner = square.mul_scalar(3.0 * 0.044715).add_scalar(1.0).mul_scalar(c);
    (x * sech * inner + tanh.add_scalar(1.0)).mul_scalar(0.5)
}

/// `(x, 1)`: the last entry is what an offset multiplies.
pub(super) fn with_one(x: Tensor<4>) -> Tensor<4> {
    let one = one(&x);
    Tensor::cat(vec![x, one], 3)
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
        let deep = |depth| MemoryConfig::mlp(3, depth);
        let ttt = |depth| MemoryConfig::Mlp { expansion: 3, depth, bias: true, gelu: Gelu::Tanh };
        let [vector, linear] = [MemoryConfig::Vector, MemoryConfig::Linear];
        let memories = [vector, linear, deep(1), deep(2), deep(3), deep(4), ttt(1), ttt(2), ttt(3)];
        let biases = [
            Bias::L2,
            Bias::DotProduct,
            Bias::Lp { p: 3.0, nu: None, clip: 10.0 },
            Bias::Lp { p: 1.5, nu: None, clip: 10.0 },
            Bias::ValueShift,
            Bias::ValueLess { nu: 3.0 },
            Bias::HuberNorm,
            Bias::HuberCoordinate,
            Bias::HuberMixture { nu: 3.0 },
        ];
        for config in memories {
            for bias in biases {
                let mut init = Init::new(7, &device);
                let mut memory = config.init(2, 5, 0.02, &mut init);
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

                let gradient = |r, v, delta| bias.gradient(r, v, delta);
                let (factors, _) = memory.gradients(&weights, k.clone(), v.clone(), delta.clone(), &gradient);
                let loss = bias.loss(memory.read_at(&weights, k) - v.clone(), v, delta).sum();
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
