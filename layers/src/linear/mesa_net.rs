//! MesaNet (von Oswald et al., arXiv 2506.05233): at every token the memory is the least-squares fit to all keys
//! and values seen, not only a sum of them; the fit is solved for by conjugate gradients.
//!
//! ```text
//! q, k = l2norm(silu(conv(W x))),   v = W_v x
//! β = sigmoid(W_b x + b_b),   log γ = logsigmoid(W_a x + b_a),   λ = softplus(Λ) + λ_min > 0
//! G_t = γ_t G_{t-1} + β_t k_t k_tᵀ,     H_t = γ_t H_{t-1} + β_t k_t v_tᵀ
//! y_t = H_tᵀ (G_t + diag λ)^{-1} q_t
//! out = W_o (rmsnorm(y) ∘ silu(W_g x))                                 (the gate is optional)
//! ```
//!
//! `y = Wᵀ q` with the `W` that minimises `Σ_s γ_t…γ_{s+1} β_s |Wᵀ k_s - v_s|² + tr Wᵀ diag(λ) W`. Conjugate
//! gradients start from 0 and take `steps` steps, in every form the same; `steps` is part of the model where it
//! is smaller than the head. The references add 10⁻⁵ to both denominators, which ends the descent at residuals of
//! a few thousandths; here the vectors are scaled to length 1 at every step, so that none vanishes.
//!
//! | symbol | shape |
//! | --- | --- |
//! | q, k, v, y | `[b, h, t, n]` (`n` = `head_dim`) |
//! | β, γ | `[b, h, t]` |
//! | λ | `[h, n]` |
//! | G beside H | `[b, h, n, 2n]` |

use burn::module::{Module, Param};
use burn::tensor::{Tensor, activation};
use serde::{Deserialize, Serialize};

use crate::error::require;
#[cfg(feature = "flex")]
use crate::kernels;
use crate::nn::{
    Activation, CausalConv, CausalConvConfig, Gated, Linear, RmsNorm, l2_normalize, log_sigmoid, put_tail,
    short_conv, softplus, split_heads,
};
use crate::system::engine::{self, Decayed};
use crate::system::scan::unbind;
use crate::system::{Cost, Form, Gate, MEMORY, Mixer, Run, State, System, Transition, Views};
use crate::{Error, Init, Result};

const NAME: &str = "mesa_net";

/// Sizes and switches of [`MesaNet`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MesaNetConfig {
    /// Heads, each with a memory of its own.
    pub heads: usize,
    /// Size `n` of a head.
    pub head_dim: usize,
    /// Steps of the solver per token; from `head_dim` on the solution is exact but for rounding.
    pub steps: usize,
    /// Smallest regularisation λ, below 1, where training starts.
    pub lambda_min: f64,
    /// Kernel width of the short convolution on queries and keys; 0 for none.
    pub conv_kernel: usize,
    /// Multiplies the output by an activated linear map of the input.
    pub output_gate: bool,
    /// Added to the mean square in the output norm.
    pub norm_eps: f64,
}

impl Default for MesaNetConfig {
    fn default() -> Self {
        Self {
            heads: 4,
            head_dim: 32,
            steps: 30,
            lambda_min: 0.25,
            conv_kernel: 4,
            output_gate: false,
            norm_eps: 1e-5,
        }
    }
}

impl MesaNetConfig {
    /// Checks the values and draws the parameters for width `d_model`.
    ///
    /// # Errors
    /// For zero sizes or steps, and a smallest λ outside (0, 1).
    pub fn init(&self, d_model: usize, init: &mut Init) -> Result<MesaNet> {
        let (h, n) = (self.heads, self.head_dim);
        require(d_model > 0, NAME, "d_model", d_model, "must be positive")?;
        require(h > 0, NAME, "heads", h, "must be positive")?;
        require(n > 0, NAME, "head_dim", n, "must be positive")?;
        require(self.steps > 0, NAME, "steps", self.steps, "must be positive")?;
        let range = self.lambda_min > 0.0 && self.lambda_min < 1.0;
        require(range, NAME, "lambda_min", self.lambda_min, "must be above 0 and below 1")?;
        require(self.norm_eps > 0.0, NAME, "norm_eps", self.norm_eps, "must be positive")?;
        let conv = CausalConvConfig { kernel: self.conv_kernel, ..Default::default() };
        let mut conv = || conv.init_unless_empty(h * n, init);
        let (conv_q, conv_k) = (conv(), conv());
        let std = (1.0 / d_model as f64).sqrt();
        Ok(MesaNet {
            q_proj: init.linear(d_model, h * n),
            k_proj: init.linear(d_model, h * n),
            v_proj: init.linear(d_model, h * n),
            a_proj: init.linear_std(d_model, h, std, true),
            b_proj: init.linear_std(d_model, h, std, true),
            gate_proj: self.output_gate.then(|| init.linear(d_model, h * n)),
            out_proj: init.linear(h * n, d_model),
            conv_q,
            conv_k,
            // λ = 1
            lambda: init.constant([h, n], (1.0 - self.lambda_min).exp_m1().ln() as f32),
            norm: RmsNorm::new(n, self.norm_eps, init),
            config: self.clone(),
            d_model,
        })
    }
}

/// The layer; see the module's equations. Built by [`MesaNetConfig::init`].
#[derive(Module, Debug)]
pub struct MesaNet {
    /// `W_q: [d, h n]`
    pub q_proj: Linear,
    /// `W_k: [d, h n]`
    pub k_proj: Linear,
    /// `W_v: [d, h n]`
    pub v_proj: Linear,
    /// `W_a: [d, h]`, `b_a: [h]`
    pub a_proj: Linear,
    /// `W_b: [d, h]`, `b_b: [h]`
    pub b_proj: Linear,
    /// `W_g: [d, h n]`
    pub gate_proj: Option<Linear>,
    /// `W_o: [h n, d]`
    pub out_proj: Linear,
    /// Short convolution on `q`
    pub conv_q: Option<CausalConv>,
    /// Short convolution on `k`
    pub conv_k: Option<CausalConv>,
    /// `Λ: [h, n]`
    pub lambda: Param<Tensor<2>>,
    /// Per head, over `n`
    pub norm: RmsNorm,
    #[module(skip)]
    config: MesaNetConfig,
    #[module(skip)]
    d_model: usize,
}

/// A product with a matrix per token: `[b, h, t, n] -> [b, h, t, n]`.
type Product<'a> = &'a dyn Fn(Tensor<4>) -> Tensor<4>;

/// `A^{-1} q` by conjugate gradients from 0, where `product` gives `A p` for a symmetric `A` whose eigenvalues are
/// at least `least > 0`. `q: [b, h, t, n]`, one system per token.
///
/// Residuals and directions are kept at length 1 with their size beside them: where the solution is reached, what
/// follows is rounding of no weight, in the values as in their derivatives. A query that is 0 gets no derivative.
///
/// With `transposed`, `Aᵀ p`, the steps are those of the two-sided (bi-conjugate) iteration: the same numbers, as
/// `A = Aᵀ`, but the derivative is also right for changes of `A` that are not symmetric.
fn solve(
    product: Product<'_>,
    transposed: Option<Product<'_>>,
    q: Tensor<4>,
    steps: usize,
    least: f64,
) -> Tensor<4> {
    let length = |r: &Tensor<4>| r.clone().square().sum_dim(3).add_scalar(1e-30).sqrt();
    // The numbers of the first, the derivative of the second.
    let dressed =
        |value: &Tensor<4>, graph: Tensor<4>| value.clone().detach() + graph.clone() - graph.detach();
    // 1, or 0 where nothing is left to solve.
    let across = |r: &Tensor<4>, shadow: &Tensor<4>| (r.clone() * shadow.clone()).sum_dim(3);
    let mut size = length(&q);
    let mut r = q / size.clone();
    let mut p = r.clone();
    let mut shadow = transposed.map(|product| (product, r.clone(), p.clone()));
    let mut x = p.zeros_like();
    for step in 1..=steps {
        let ap = product(p.clone());
        let left = shadow.as_ref().map_or(&p, |(.., p)| p);
        // Directions are no shorter than residuals, so less than `least` is a residual of 0: stay there.
        let curvature = (left.clone() * ap.clone()).sum_dim(3).clamp_min(0.5 * least);
        let rest = match &shadow {
            Some((_, shadow, _)) => across(&r, shadow),
            None => across(&r, &r).detach(),
        };
        let alpha = rest.clone() * curvature.recip();
        x = x + p.clone() * (alpha.clone() * size.clone());
        if step == steps {
            break;
        }
        let next = r.clone() - ap * alpha.clone();
        let ratio = length(&next);
        let next = next / ratio.clone();
        let mut beta = ratio.clone();
        shadow = shadow.map(|(product, shadow, left)| {
            let moved = (shadow.clone() - product(left.clone()) * alpha) / ratio.clone();
            let moved = dressed(&next, moved);
            beta = beta.clone() * across(&next, &moved) / rest.clone().clamp_min(0.5);
            (product, moved.clone(), moved + left * beta.clone())
        });
        p = next.clone() + p * beta;
        shadow = shadow.map(|(product, r, left)| (product, r, dressed(&p, left)));
        r = next;
        size = size * ratio;
    }
    x
}

/// What the fit is made from, and the queries.
#[derive(Clone)]
pub struct MesaInputs {
    /// `[b, h, t, n]`
    pub q: Tensor<4>,
    /// `[b, h, t, n]`
    pub k: Tensor<4>,
    /// `[b, h, t, n]`
    pub v: Tensor<4>,
    /// `log γ ≤ 0`: `[b, h, t]`
    pub log_a: Tensor<3>,
    /// `β`: `[b, h, t]`
    pub beta: Tensor<3>,
    /// `λ > 0`: `[h, n]`
    pub lambda: Tensor<2>,
    /// Not above any λ.
    pub lambda_min: f64,
    /// Steps of the solver.
    pub steps: usize,
    /// Whether derivatives by the first `G` are those of any matrix, at twice the cost, and not those of a
    /// symmetric one.
    pub any_gram: bool,
}

impl MesaInputs {
    fn write(&self) -> Tensor<4> {
        self.k.clone() * self.beta.clone().unsqueeze_dim(3)
    }

    /// `(G + diag λ)^{-1} q` from the products with `G` and `Gᵀ`.
    fn solve(&self, q: Tensor<4>, gram: Product<'_>, transposed: Product<'_>) -> Tensor<4> {
        let [h, n] = self.lambda.dims();
        let ridge = self.lambda.clone().reshape([1, h, 1, n]);
        let product = |p: Tensor<4>| gram(p.clone()) + p * ridge.clone();
        let turned = |p: Tensor<4>| transposed(p.clone()) + p * ridge.clone();
        let turned: Product<'_> = &turned;
        solve(&product, self.any_gram.then_some(turned), q, self.steps, self.lambda_min)
    }

    /// `x_t = (G_t + diag λ)^{-1} q_t` and the final `G`, with chunks of `size` tokens: `G_t p` is a read of a
    /// decayed memory, so no `G_t` is formed.
    fn solve_in_chunks(&self, g: Tensor<4>, size: usize) -> (Tensor<4>, Tensor<4>) {
        let from = |g| Decayed::scalar(self.log_a.clone(), self.write(), self.k.clone(), g, size);
        let (transposed, last) = from(g.clone());
        // A read gives Gᵀ p.
        let x = if self.any_gram {
            let (gram, _) = from(g.swap_dims(2, 3));
            self.solve(self.q.clone(), &|p| gram.read(p), &|p| transposed.read(p))
        } else {
            self.solve(self.q.clone(), &|p| transposed.read(p), &|p| transposed.read(p))
        };
        (x, last)
    }

    /// `H_t = γ_t H_{t-1} + β_t k_t v_tᵀ`, read at `x`.
    fn values(&self, x: Tensor<4>) -> System {
        let transition = Transition::Scalar { log_a: self.log_a.clone() };
        System::outer(transition, x, self.write(), self.v.clone())
    }

    /// One token at a time; `memory` is `G` beside `H`.
    fn run_recurrent(&self, mut memory: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
        let n = self.k.dims()[3];
        let column = |x: Tensor<4>| x.swap_dims(2, 3); // [b, h, 1, n] -> [b, h, n, 1]
        let read = |m: &Tensor<4>, x: Tensor<4>| (column(x) * m.clone()).sum_dim(2);
        let both = Tensor::cat(vec![self.k.clone(), self.v.clone()], 3);
        let decay = unbind(self.log_a.clone().exp().unsqueeze_dim::<4>(3), 2);
        let written = unbind(self.write(), 2).into_iter().zip(unbind(both, 2));
        let mut out = Vec::with_capacity(decay.len());
        for ((decay, q), (write, both)) in decay.into_iter().zip(unbind(self.q.clone(), 2)).zip(written) {
            memory = memory * decay + column(write) * both;
            let (g, h) = (memory.clone().narrow(3, 0, n), memory.clone().narrow(3, n, n));
            let x = self.solve(q, &|p| column((p * g.clone()).sum_dim(3)), &|p| read(&g, p));
            out.push(read(&h, x));
        }
        (Tensor::cat(out, 2), memory)
    }
}

/// `y_t = H_tᵀ (G_t + diag λ)^{-1} q_t`, `[b, h, t, n]`, and the final memory; `memory: [b, h, n, 2n]` is a
/// symmetric `G` beside `H`.
///
/// # Errors
/// When the memory does not fit.
pub fn mesa(inputs: &MesaInputs, memory: Tensor<4>, form: Form) -> Result<(Tensor<4>, Tensor<4>)> {
    let [b, h, t, n] = inputs.k.dims();
    if memory.dims() != [b, h, n, 2 * n] {
        return Err(Error::shape("memory", format!("[{b}, {h}, {n}, {}]", 2 * n), &memory.dims()));
    }
    let (g, values) = (memory.clone().narrow(3, 0, n), memory.narrow(3, n, n));
    let g = if inputs.any_gram { g } else { (g.clone() + g.swap_dims(2, 3)).mul_scalar(0.5) };
    #[cfg(feature = "flex")]
    if kernels::enabled()
        && matches!(form, Form::Auto | Form::Chunked { .. })
        && let Some((x, g)) = kernels::mesa::solve(inputs, &g)
    {
        let (y, values) = engine::run(inputs.values(x), values, form)?;
        return Ok((y, Tensor::cat(vec![g, values], 3)));
    }
    let Some(size) = engine::chunk_size(form, t) else {
        return Ok(inputs.run_recurrent(Tensor::cat(vec![g, values], 3)));
    };
    let (x, g) = inputs.solve_in_chunks(g, size);
    let (y, values) = engine::run(inputs.values(x), values, form)?;
    Ok((y, Tensor::cat(vec![g, values], 3)))
}

impl MesaNet {
    /// What the fit is given, with padding switched off; moves the convolutions' tails on.
    fn inputs(&self, x: &Tensor<3>, state: &mut State, run: Run<'_>) -> Result<MesaInputs> {
        let h = self.config.heads;
        let q = short_conv("conv_q", &self.conv_q, self.q_proj.forward(x.clone()), state, run)?;
        let k = short_conv("conv_k", &self.conv_k, self.k_proj.forward(x.clone()), state, run)?;
        let [q, k] = [q, k].map(|x| l2_normalize(split_heads(x, h), 1e-6));
        let v = split_heads(self.v_proj.forward(x.clone()), h);
        let mut log_a = log_sigmoid(self.a_proj.forward(x.clone())).swap_dims(1, 2);
        let mut beta = activation::sigmoid(self.b_proj.forward(x.clone())).swap_dims(1, 2);
        if let Some(lengths) = run.lengths {
            let valid = lengths.valid(x.dims()[1], &x.device(), x.dtype()).unsqueeze_dim::<3>(1);
            (log_a, beta) = (log_a * valid.clone(), beta * valid);
        }
        let lambda = softplus(self.lambda.val()).add_scalar(self.config.lambda_min);
        let (lambda_min, steps) = (self.config.lambda_min, self.config.steps);
        Ok(MesaInputs { q, k, v, log_a, beta, lambda, lambda_min, steps, any_gram: false })
    }
}

impl Mixer for MesaNet {
    fn d_model(&self) -> usize {
        self.d_model
    }

    fn initial_state(&self, batch: usize) -> State {
        let (h, n, like) = (self.config.heads, self.config.head_dim, self.lambda.val());
        let zeros = Tensor::<4>::zeros([batch, h, n, 2 * n], (&like.device(), like.dtype()));
        let mut state = State::new(batch).with(MEMORY, zeros);
        for (name, conv) in [("conv_q", &self.conv_q), ("conv_k", &self.conv_k)] {
            put_tail(&mut state, name, conv);
        }
        state
    }

    fn run(&self, x: Tensor<3>, mut state: State, run: Run<'_>) -> Result<(Tensor<3>, State)> {
        let inputs = self.inputs(&x, &mut state, run)?;
        let (y, memory) = mesa(&inputs, state.get(MEMORY)?, run.form)?;
        state.put(MEMORY, memory);
        let gate = self.gate_proj.as_ref().map(|map| Gated::new(map.forward(x), Activation::Silu));
        Ok((self.norm.parts().heads_through(y, gate, &self.out_proj), state))
    }

    /// With the solutions `x_t` frozen, the output is linear in the values: those of a decayed memory read at
    /// `x_t` instead of `q_t`.
    fn views(&self, x: Tensor<3>, mut state: State) -> Result<Views> {
        if !self.check(&x, &state)? {
            return Ok(Views::default());
        }
        let inputs = self.inputs(&x, &mut state, Run::default())?;
        let (t, n) = (x.dims()[1], self.config.head_dim);
        let g = state.get::<4>(MEMORY)?.narrow(3, 0, n);
        let (solved, _) = inputs.solve_in_chunks(g, engine::AUTO_CHUNK.min(t));
        let mut views = Views::of_system(inputs.values(solved))?;
        views.gates.push(Gate { name: "β (write strength)".into(), values: inputs.beta.swap_dims(1, 2) });
        let gate = self.gate_proj.as_ref().map(|gate| activation::silu(gate.forward(x)));
        views.gates.extend(gate.map(|values| Gate { name: "g (output gate)".into(), values }));
        Ok(views)
    }

    fn cost(&self, batch: usize, time: usize, form: Form) -> Cost {
        let (h, n, d) = (self.config.heads, self.config.head_dim, self.d_model);
        let maps = 4 + usize::from(self.config.output_gate);
        let projections = 2 * d * (maps * h * n + 2 * h);
        let conv = 4 * self.config.conv_kernel * h * n;
        // Per step a read of the keys' memory, and about ten operations per channel.
        let read = match engine::chunk_size(form, time) {
            None => 2 * n * n,
            Some(size) => 4 * size * n + 2 * n * n,
        };
        let core = h * (self.config.steps * (read + 10 * n) + Cost::decayed_core(n, 2 * n, time, form));
        Cost::of(self, (projections + conv + core) as f64, batch, time)
    }
}

#[cfg(test)]
#[path = "mesa_net_tests.rs"]
mod tests;
