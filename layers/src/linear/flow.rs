//! Flow-Attention (Flowformer, Wu et al., arXiv 2202.06258): linear attention as a flow network. Keys compete for
//! what the queries take in, and queries are allotted what the keys give out, so that neither can grow without the
//! other shrinking.
//!
//! ```text
//! q, k = sigmoid(W_q x), sigmoid(W_k x),   v = W_v x,   n_t = t (counted from 1), sums over s ≤ t
//! I_t = n_t / ((q_t + ε)·(Σ k_s + ε)),   O_t = n_t / ((k_t + ε)·(Σ q_s + ε))        incoming, outgoing flow
//! Î_t = (q_t + ε)·(Σ O_s k_s + ε) / n_t                                             conserved
//! Ô_t = clamp((k_t + ε)·(Σ I_s q_s + ε) / n_t, ±c)
//! c_t = n_t e^{Ô_t} / Σ e^{Ô_s}                              competition of sources, fixed once written
//! H_t = H_{t-1} + k_t (c_t v_t)ᵀ,   y_t = sigmoid(Î_t) (I_t / n_t) H_tᵀ q_t          allocation to sinks
//! ```
//!
//! This causal form is a definition of its own, as in the authors' code; on a prefix it differs from
//! [`flow_attention`], which sees all tokens at once.
//!
//! | symbol | shape |
//! | --- | --- |
//! | q, k, v, y | `[b, h, t, n]` |
//! | I, O, c | `[b, h, t, 1]` |
//! | H | `[b, h, n, n]` |
//! | Σ k, Σ q (`flows`); Σ O k, Σ I q (`conserved`) | `[b, h, 2n, 1]` each |
//! | Σ e^Ô (`competition`) | `[b, h, 1, 1]` |

use burn::module::Module;
use burn::tensor::{Tensor, TensorData, activation};
use serde::{Deserialize, Serialize};

use crate::error::{head_dim, require};
#[cfg(feature = "flex")]
use crate::kernels;
use crate::nn::{Linear, merge_heads, scaled_sigmoid, split_heads};
use crate::system::{Cost, Form, Gate, LinearMixer, MEMORY, Run, State, System, Transition, Views, engine};
use crate::{Error, Init, Result};

const NAME: &str = "flow";

/// Slots of the running sums.
const FLOWS: &str = "flows";
const CONSERVED: &str = "conserved";
const COMPETITION: &str = "competition";

/// Sizes and switches of [`Flow`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FlowConfig {
    /// Heads.
    pub heads: usize,
    /// Channels `n` of a head; `None` for `d_model / heads`.
    pub head_dim: Option<usize>,
    /// Bound `c` on what competes. About half of all sources sit at the default, the core code's; the authors
    /// take 5 for language.
    pub clamp: f64,
    /// ε, added to both factors of every flow.
    pub eps: f64,
    /// Bias of all four maps.
    pub bias: bool,
}

impl Default for FlowConfig {
    fn default() -> Self {
        Self { heads: 4, head_dim: None, clamp: 1.0, eps: 1e-6, bias: true }
    }
}

impl FlowConfig {
    /// Checks the values and draws the parameters for width `d_model`.
    ///
    /// # Errors
    /// For zero sizes, heads that do not divide the width, or bounds that are not positive.
    pub fn init(&self, d_model: usize, init: &mut Init) -> Result<Flow> {
        let h = self.heads;
        let n = head_dim(self.head_dim, d_model, h, NAME)?;
        // e^Ô is summed over all tokens
        let clamp = self.clamp;
        require(clamp > 0.0 && clamp <= 50.0, NAME, "clamp", clamp, "must be in (0, 50]")?;
        require(self.eps > 0.0, NAME, "eps", self.eps, "must be positive")?;
        let mut map = |from: usize, to| init.linear_std(from, to, (1.0 / from as f64).sqrt(), self.bias);
        Ok(Flow {
            q_proj: map(d_model, h * n),
            k_proj: map(d_model, h * n),
            v_proj: map(d_model, h * n),
            out_proj: map(h * n, d_model),
            config: self.clone(),
            head_dim: n,
            d_model,
        })
    }
}

/// The layer; see the module's equations. Built by [`FlowConfig::init`].
#[derive(Module, Debug)]
pub struct Flow {
    /// `W_q: [d, h n]`
    pub q_proj: Linear,
    /// `W_k: [d, h n]`
    pub k_proj: Linear,
    /// `W_v: [d, h n]`
    pub v_proj: Linear,
    /// `W_o: [h n, d]`
    pub out_proj: Linear,
    #[module(skip)]
    config: FlowConfig,
    #[module(skip)]
    head_dim: usize,
    #[module(skip)]
    d_model: usize,
}

/// Flow-Attention that is not causal, between any sinks `q: [b, h, L, n]` and sources `k: [b, h, S, n]`,
/// `v: [b, h, S, p]`, before the sigmoid: `[b, h, L, p]`. Competition is a softmax over the sources, bounded by
/// `±clamp`.
///
/// ```text
/// I_i = 1 / ((q_i + ε)·(Σ_j k_j + ε)),   O_j = 1 / ((k_j + ε)·(Σ_i q_i + ε))
/// y_i = sigmoid(Î_i L/S) I_i q_i · Σ_j k_j (S softmax_j(Ô) v_j)ᵀ
/// ```
///
/// # Errors
/// When the tensors do not belong together, or there are no sinks or no sources.
pub fn flow_attention(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, clamp: f64, eps: f64) -> Result<Tensor<4>> {
    let ([b, h, sinks, n], [.., sources, p]) = (q.dims(), v.dims());
    let fits = k.dims() == [b, h, sources, n] && v.dims() == [b, h, sources, p];
    if !fits || sinks == 0 || sources == 0 {
        let expected = format!("[{b}, {h}, sources, {n}] for {sinks} > 0 sinks, as many as values");
        return Err(Error::shape("flow attention's keys", expected, &k.dims()));
    }
    let (q, k) = (activation::sigmoid(q), activation::sigmoid(k));
    let (incoming, [conserved_in, conserved_out]) = conserved(&q, &k, eps);
    let allocation = activation::sigmoid(conserved_in.mul_scalar(sinks as f64 / sources as f64));
    let competition = activation::softmax(conserved_out.clamp(-clamp, clamp), 2).mul_scalar(sources as f64);
    let memory = k.swap_dims(2, 3).matmul(v * competition);
    Ok((q * incoming).matmul(memory) * allocation)
}

/// `(x + ε)·(Σ y + ε)` from `x: [b, h, t, n]` and `Σ y`: `[b, h, t, 1]`.
fn flow(x: &Tensor<4>, sum: Tensor<4>, eps: f64) -> Tensor<4> {
    (x.clone().add_scalar(eps) * sum.add_scalar(eps)).sum_dim(3)
}

/// `I`, and the flows `Î` and `Ô` that stay when every source gives, and every sink takes, 1 in all.
fn conserved(q: &Tensor<4>, k: &Tensor<4>, eps: f64) -> (Tensor<4>, [Tensor<4>; 2]) {
    let incoming = flow(q, k.clone().sum_dim(2), eps).recip();
    let outgoing = flow(k, q.clone().sum_dim(2), eps).recip();
    let taken = flow(q, (k.clone() * outgoing).sum_dim(2), eps);
    let given = flow(k, (q.clone() * incoming.clone()).sum_dim(2), eps);
    (incoming, [taken, given])
}

/// What a token sees of the network's balance, `[b, h, t, 1]` each.
struct Balance {
    competition: Tensor<4>,
    allocation: Tensor<4>,
    /// `I_t / n_t`, without the count
    incoming: Tensor<4>,
}

impl Flow {
    /// `n_t` of each row, `[rows, 1, t, 1]`.
    fn counts(&self, state: &State, like: &Tensor<4>) -> Tensor<4> {
        let t = like.dims()[2];
        let starts = state.positions();
        let rows = if state.position().is_some() { 1 } else { starts.len() };
        let counts = starts[..rows].iter().flat_map(|&start| (1..=t).map(move |i| (start + i) as f32));
        let data = TensorData::new(counts.collect(), [rows, 1, t, 1]);
        Tensor::from_data(data, (&like.device().inner(), like.dtype()))
    }

    /// Balances sinks `q` against sources `k`, with the running sums in `state` moved on.
    fn balance(&self, q: &Tensor<4>, k: &Tensor<4>, state: &mut State, run: Run<'_>) -> Result<Balance> {
        let ([.., t, n], eps, clamp) = (q.dims(), self.config.eps, self.config.clamp);
        #[cfg(feature = "flex")]
        if kernels::enabled()
            && matches!(run.form, Form::Auto | Form::Chunked { .. })
            && kernels::flow::runs_on(q)
            && let Some(found) = self.kernel(q, k, state, run)?
        {
            return Ok(found);
        }
        let counts = self.counts(state, q);
        let valid = run.lengths.map(|lengths| {
            let valid = lengths.valid(t, &q.device(), q.dtype());
            valid.unsqueeze_dim::<3>(1).unsqueeze_dim::<4>(3)
        });
        let mut sums = |slot: &str, x: Tensor<4>| -> Result<Tensor<4>> {
            let x = if let Some(valid) = &valid { x * valid.clone() } else { x };
            let keep = Tensor::zeros(x.dims(), (&x.device().inner(), x.dtype()));
            let (sums, last) = engine::run(System::direct(keep, x), state.get(slot)?, run.form)?;
            state.put(slot, last);
            Ok(sums)
        };
        let halves = |x: Tensor<4>| (x.clone().narrow(3, 0, n), x.narrow(3, n, n));

        let (keys, queries) = halves(sums(FLOWS, Tensor::cat(vec![k.clone(), q.clone()], 3))?);
        let (incoming, outgoing) = (flow(q, keys, eps).recip(), flow(k, queries, eps).recip());
        let given = k.clone() * (outgoing * counts.clone());
        let taken = q.clone() * (incoming.clone() * counts.clone());
        let (given, taken) = halves(sums(CONSERVED, Tensor::cat(vec![given, taken], 3))?);
        let sources = (flow(k, taken, eps) / counts.clone()).clamp(-clamp, clamp).exp();
        let all = sums(COMPETITION, sources.clone())?;
        // Padding before any token competes with nothing.
        let all = if let Some(valid) = &valid { all + valid.clone().neg().add_scalar(1.0) } else { all };
        Ok(Balance {
            allocation: activation::sigmoid(flow(q, given, eps) / counts.clone()),
            competition: sources * counts / all,
            incoming,
        })
    }
}

#[cfg(feature = "flex")]
impl Flow {
    /// [`Self::balance`] from a kernel that keeps all sums together, where there is one.
    fn kernel(
        &self,
        q: &Tensor<4>,
        k: &Tensor<4>,
        state: &mut State,
        run: Run<'_>,
    ) -> Result<Option<Balance>> {
        let [b, h, t, n] = q.dims();
        let sizes = [(FLOWS, 2 * n), (CONSERVED, 2 * n), (COMPETITION, 1)];
        let sums = sizes.iter().map(|(slot, _)| state.get(slot)).collect::<Result<Vec<Tensor<4>>>>()?;
        if sums.iter().zip(sizes).any(|(sum, (_, rows))| sum.dims() != [b, h, rows, 1]) {
            return Ok(None); // the engine says what is wrong
        }
        let real = match run.lengths {
            Some(lengths) => lengths.0.iter().map(|&length| length.min(t)).collect(),
            None => vec![t; b],
        };
        let FlowConfig { eps, clamp, .. } = self.config;
        let options = kernels::flow::Options { starts: state.positions().to_vec(), real, eps, clamp };
        let Some((found, last)) = kernels::flow::run(q, k, &Tensor::cat(sums, 2), options) else {
            return Ok(None);
        };
        let mut first = 0;
        for (slot, rows) in sizes {
            state.put(slot, last.clone().narrow(2, first, rows));
            first += rows;
        }
        let [allocation, competition, incoming] = [0, 1, 2].map(|i| found.clone().narrow(3, i, 1));
        Ok(Some(Balance { competition, allocation, incoming }))
    }
}

impl LinearMixer for Flow {
    /// Competition and allocation, `[b, t, h]` each.
    type Aux = [Tensor<3>; 2];

    fn d_model(&self) -> usize {
        self.d_model
    }

    fn initial_state(&self, batch: usize) -> State {
        let (h, n, like) = (self.config.heads, self.head_dim, self.q_proj.weight.val());
        let zeros =
            |rows, columns| Tensor::<4>::zeros([batch, h, rows, columns], (&like.device(), like.dtype()));
        State::new(batch)
            .with(MEMORY, zeros(n, n))
            .with(FLOWS, zeros(2 * n, 1))
            .with(CONSERVED, zeros(2 * n, 1))
            .with(COMPETITION, zeros(1, 1))
    }

    fn system(&self, x: Tensor<3>, state: &mut State, run: Run<'_>) -> Result<(System, Self::Aux)> {
        let h = self.config.heads;
        let q = split_heads(scaled_sigmoid(self.q_proj.forward(x.clone()), 1.0), h);
        let k = split_heads(scaled_sigmoid(self.k_proj.forward(x.clone()), 1.0), h);
        let v = split_heads(self.v_proj.forward(x), h);
        let Balance { competition, allocation, incoming } = self.balance(&q, &k, state, run)?;
        let aux = [&competition, &allocation].map(|x| x.clone().squeeze_dim::<3>(3).swap_dims(1, 2));
        Ok((System::outer(Transition::Identity, q * (allocation * incoming), k * competition, v), aux))
    }

    fn readout(&self, y: Tensor<4>, _aux: Self::Aux) -> Tensor<3> {
        self.out_proj.forward(merge_heads(y))
    }

    fn system_views(&self, system: System, aux: Self::Aux, _state: &State) -> Result<Views> {
        let names = ["c (competition)", "sigmoid(Î) (allocation)"];
        let gates = names.into_iter().zip(aux).map(|(name, values)| Gate { name: name.into(), values });
        Ok(Views { gates: gates.collect(), ..Views::of_system(system)? })
    }

    fn cost(&self, batch: usize, time: usize, form: Form) -> Cost {
        let (h, n, d) = (self.config.heads, self.head_dim, self.d_model);
        // Running sums of 4n + 1 numbers, and four products with them.
        let core = h * (Cost::decayed_core(n, n, time, form) + 2 * (4 * n + 1) + 16 * n);
        Cost::of(self, (8 * d * h * n + core) as f64, batch, time)
    }
}

#[cfg(test)]
#[path = "flow_tests.rs"]
mod tests;
