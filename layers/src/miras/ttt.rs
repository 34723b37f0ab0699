//! TTT-Linear and TTT-MLP (Sun et al., arXiv 2407.04620): the state is a model that is trained on the sequence.
//!
//! ```text
//! q, k, v = W x                    rotary positions of q and k start again in every mini-batch
//! η_t = base sigmoid(w·x_t + b) / n            c_i = max(0, 1/i + learned_i)       i: place in the mini-batch
//! G_t = G_{t-1} + η_t ∇ ½|f(k_t; W) - v_t|²,   W_t = W - c_i G_t,   y_t = f(q_t; W_t)
//! f(x) = x + LN(x W1 + b1),   or   x + LN(gelu(x W1 + b1) W2 + b2)
//! out = W_o (LN(y) ∘ gelu(W_g x))              without the gate in the transformer backbone
//! ```
//!
//! `W` are the weights at the start of the mini-batch of `mini_batch` tokens, `G` the gradients since; at its end
//! `W` becomes `W_t`. The mini-batch is part of the model: it changes the function. There is no retention.
//! [`TttMemory`] has the equations of both forms; the layer follows the authors' PyTorch release.
//!
//! | symbol | shape |
//! | --- | --- |
//! | q, k, v, y | `[b, h, t, n]` (`n` = `head_dim`) |
//! | η; c | `[b, h, t, 1]`; `[mini_batch]` |
//! | W, G | `[b, h, n+1, n]`, or `[b, h, n+1, m]` and `[b, h, m+1, n]`; the last row is the bias |

use std::fmt::Debug;

use burn::module::{Module, Param};
use burn::tensor::{Tensor, TensorData, activation};
use serde::{Deserialize, Serialize};

use super::inner::Clock;
use super::memory::times_transposed;
use super::ttt_memory::{TttFast, TttMemory, TttTokens, halves, neighbours, sum_slot};
use crate::error::require;
#[cfg(feature = "cube")]
use crate::kernels::{self, rotary::Turn};
use crate::nn::{
    Activation, CausalConv, CausalConvConfig, Ended, Gated, LayerNorm, Linear, Rope, RopeConfig,
    project_with, put_tail, short_conv, split_heads,
};
use crate::system::{Cost, Form, Gate, Mixer, Run, Spectrum, SpectrumKind, State, Views, fresh};
use crate::{Error, Init, Result};

/// Which memory a TTT layer trains: [`OneMap`] or [`HiddenLayer`].
pub trait TttKind: Clone + Debug + Default + PartialEq {
    /// The layer's name.
    const NAME: &'static str;
    /// Learning rate before the gate and the division by `n`.
    const BASE_LR: f64;

    /// Channels of the hidden layer of a memory of `n` channels.
    fn hidden(&self, n: usize) -> Option<usize>;
}

/// TTT-Linear: `x W1 + b1`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OneMap {}

impl TttKind for OneMap {
    const NAME: &'static str = "ttt_linear";
    const BASE_LR: f64 = 1.0;

    fn hidden(&self, _: usize) -> Option<usize> {
        None
    }
}

/// TTT-MLP: `gelu(x W1 + b1) W2 + b2`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HiddenLayer {
    /// Hidden width over head width.
    pub expansion: usize,
}

impl Default for HiddenLayer {
    fn default() -> Self {
        Self { expansion: 4 }
    }
}

impl TttKind for HiddenLayer {
    const NAME: &'static str = "ttt_mlp";
    const BASE_LR: f64 = 0.1;

    fn hidden(&self, n: usize) -> Option<usize> {
        Some(self.expansion * n)
    }
}

/// Sizes and switches of TTT-Linear.
pub type TttLinearConfig = TttConfig<OneMap>;
/// Sizes and switches of TTT-MLP.
pub type TttMlpConfig = TttConfig<HiddenLayer>;

/// Sizes and switches of [`Ttt`]. The default is the paper's transformer backbone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TttConfig<K: TttKind> {
    /// Heads, each with a memory of its own.
    pub heads: usize,
    /// Size `n` of queries, keys and values of a head.
    pub head_dim: usize,
    /// The memory's sizes.
    pub memory: K,
    /// Tokens whose inner gradients are taken at the same weights. Part of the model, unlike the size in
    /// [`Form::Chunked`].
    pub mini_batch: usize,
    /// Learning rate before the gate and the division by `n`.
    pub base_lr: f64,
    /// Whether `f(x) = x + LN(z(x))`; `false` for the bare `f(x) = z(x)` of the paper's theorems.
    pub memory_norm: bool,
    /// One projection for queries and keys, told apart by their convolutions (the Mamba backbone).
    pub share_qk: bool,
    /// Kernel width of the convolutions on queries and keys, which have a bias and no activation; 0 for none.
    pub conv_kernel: usize,
    /// Rotary positions within a mini-batch; `None` for none.
    pub rope: Option<RopeConfig>,
    /// Rotate neighbouring channels together (as the release does by permuting them), not the two halves.
    pub rope_interleaved: bool,
    /// Multiplies the output by `gelu(W_g x)` (the Mamba backbone).
    pub gate: bool,
    /// Added to the variance in the output norm.
    pub norm_eps: f64,
}

impl<K: TttKind> Default for TttConfig<K> {
    fn default() -> Self {
        Self {
            heads: 4,
            head_dim: 32,
            memory: K::default(),
            mini_batch: 16,
            base_lr: K::BASE_LR,
            memory_norm: true,
            share_qk: false,
            conv_kernel: 0,
            rope: Some(RopeConfig::default()),
            rope_interleaved: true,
            gate: false,
            norm_eps: 1e-6,
        }
    }
}

impl<K: TttKind> TttConfig<K> {
    /// The mixer of the paper's Mamba backbone.
    pub fn mamba() -> Self {
        Self { share_qk: true, conv_kernel: 4, gate: true, ..Self::default() }
    }

    /// Checks the values and draws the parameters for width `d_model`.
    ///
    /// # Errors
    /// For zero sizes, a learning rate that is negative, or an impossible rotary share.
    pub fn init(&self, d_model: usize, init: &mut Init) -> Result<Ttt> {
        let (d, h, n, mixer) = (d_model, self.heads, self.head_dim, K::NAME);
        require(d > 0, mixer, "d_model", d, "must be positive")?;
        require(h > 0, mixer, "heads", h, "must be positive")?;
        require(n > 0, mixer, "head_dim", n, "must be positive")?;
        require(self.mini_batch > 0, mixer, "mini_batch", self.mini_batch, "must be at least 1")?;
        let lr_ok = self.base_lr >= 0.0 && self.base_lr.is_finite();
        require(lr_ok, mixer, "base_lr", self.base_lr, "must be finite and not negative")?;
        require(self.norm_eps > 0.0, mixer, "norm_eps", self.norm_eps, "must be positive")?;
        let hidden = self.memory.hidden(n);
        require(hidden != Some(0), mixer, "expansion", 0, "must be positive")?;
        let partly = self.rope.is_some_and(|rope| rope.fraction < 1.0);
        if partly && self.rope_interleaved {
            let expected = "`rope_interleaved` rotates all channels: set `fraction` to 1 or turn it off";
            return Err(Error::config(mixer, "rope", "fraction below 1", expected));
        }
        let rope = self.rope.map(|rope| rope.init(n)).transpose()?;
        let conv =
            CausalConvConfig { kernel: self.conv_kernel, bias: true, activation: Activation::Identity };
        let mut conv = || conv.init_unless_empty(h * n, init);
        let (conv_q, conv_k) = (conv(), conv());
        Ok(Ttt {
            q_proj: init.linear(d, h * n),
            k_proj: (!self.share_qk).then(|| init.linear(d, h * n)),
            v_proj: init.linear(d, h * n),
            gate_proj: self.gate.then(|| init.linear(d, h * n)),
            out_proj: init.linear(h * n, d),
            conv_q,
            conv_k,
            lr_proj: init.linear_std(d, h, 0.02, true),
            token_scale: init.constant([self.mini_batch], 0.0),
            memory: TttMemory::new(h, n, hidden, self.memory_norm, init),
            out_norm: LayerNorm::new(h * n, self.norm_eps, true, init),
            rope,
            rope_interleaved: self.rope_interleaved,
            base_lr: self.base_lr / n as f64,
            heads: h,
            mini_batch: self.mini_batch,
            d_model,
        })
    }
}

/// The layer; see the module's equations. Built by [`TttConfig::init`].
#[derive(Module, Debug)]
pub struct Ttt {
    /// `W_q: [d, h n]`
    pub q_proj: Linear,
    /// `W_k: [d, h n]`, unless queries and keys share theirs
    pub k_proj: Option<Linear>,
    /// `W_v: [d, h n]`
    pub v_proj: Linear,
    /// `W_g: [d, h n]`
    pub gate_proj: Option<Linear>,
    /// `W_o: [h n, d]`
    pub out_proj: Linear,
    /// Short convolution on `q`
    pub conv_q: Option<CausalConv>,
    /// Short convolution on `k`
    pub conv_k: Option<CausalConv>,
    /// `w`, `b` of the learning rate: `[d, h]`, `[h]`
    pub lr_proj: Linear,
    /// `learned_i`: `[mini_batch]`
    pub token_scale: Param<Tensor<1>>,
    /// What is trained while reading
    pub memory: TttMemory,
    /// The output's LN over all heads
    pub out_norm: LayerNorm,
    #[module(skip)]
    rope: Option<Rope>,
    #[module(skip)]
    rope_interleaved: bool,
    #[module(skip)]
    base_lr: f64,
    #[module(skip)]
    heads: usize,
    #[module(skip)]
    mini_batch: usize,
    #[module(skip)]
    d_model: usize,
}

impl Ttt {
    /// What the memory is given, with padding switched off; moves the convolutions' tails on.
    fn tokens(&self, x: &Tensor<3>, state: &mut State, run: Run<'_>) -> Result<TttTokens> {
        Ok(self.tokens_and_gate(x, state, run)?.0)
    }

    /// The same, and the output's gate before its activation, if there is one.
    fn tokens_and_gate(
        &self,
        x: &Tensor<3>,
        state: &mut State,
        run: Run<'_>,
    ) -> Result<(TttTokens, Option<Tensor<3>>)> {
        // A kernel adds the bias to the rates of many tokens.
        #[cfg(feature = "cube")]
        let apart = kernels::enabled() && kernels::linear::on_graphics(x) && !kernels::linear::are_few(x);
        #[cfg(not(feature = "cube"))]
        let apart = false;
        let now = [self.k_proj.as_ref(), self.gate_proj.as_ref(), (!apart).then_some(&self.lr_proj)];
        let others: Vec<Ended<'_>> = now.into_iter().flatten().map(Ended::from).collect();
        let ([q, v], rest) = project_with(x.clone(), [&self.q_proj, &self.v_proj], &others);
        let mut rest = rest.into_iter();
        let k = self.k_proj.as_ref().and_then(|_| rest.next()).unwrap_or_else(|| q.clone());
        let gate = self.gate_proj.as_ref().and_then(|_| rest.next());
        let (rate, bias) = match rest.next() {
            Some(rate) => (rate, None),
            None => self.lr_proj.forward_apart(x.clone(), None),
        };
        let mut convolve = |name: &str, conv: &Option<CausalConv>, z: Tensor<3>| -> Result<Tensor<4>> {
            let z = if conv.is_some() { short_conv(name, conv, z, state, run)? } else { z };
            Ok(split_heads(z, self.heads))
        };
        let (q, k) = (convolve("conv_q", &self.conv_q, q)?, convolve("conv_k", &self.conv_k, k)?);
        let [q, k] = self.rotate([q, k], state.positions());
        let v = split_heads(v, self.heads);
        let [eta, scale] = self.rates(rate, bias, state.positions(), run, x);
        Ok((TttTokens { q, k, v, eta, scale }, gate))
    }

    /// Queries and keys at their places in mini-batches.
    fn rotate(&self, both: [Tensor<4>; 2], positions: &[usize]) -> [Tensor<4>; 2] {
        #[cfg(feature = "cube")]
        if self.rope.is_some() {
            let turn = Turn { pairs: self.rope_interleaved, ..Turn::default() };
            let period = Some(self.mini_batch);
            if let Some(both) =
                Rope::two_on_graphics(self.rope.as_ref(), both.each_ref(), positions, period, turn)
            {
                return both;
            }
        }
        both.map(|z| {
            let Some(rope) = &self.rope else { return z };
            let turn = |z| rope.apply_periodic(z, positions, self.mini_batch);
            if self.rope_interleaved { neighbours(turn(halves(z))) } else { turn(z) }
        })
    }

    /// `η` from the map's `rate: [b, t, h]` and what is still to be added, and `c`.
    fn rates(
        &self,
        rate: Tensor<3>,
        bias: Option<Tensor<1>>,
        positions: &[usize],
        run: Run<'_>,
        x: &Tensor<3>,
    ) -> [Tensor<4>; 2] {
        #[cfg(feature = "cube")]
        if run.lengths.is_none()
            && kernels::enabled()
            && let Some(phase) = Clock::new(positions, self.mini_batch, None).phase()
            && let learned = self.token_scale.val()
            && let Some(both) = kernels::rates_and_steps(&rate, bias.as_ref(), &learned, self.base_lr, phase)
        {
            return both;
        }
        let rate = match bias {
            Some(bias) => rate + bias.unsqueeze(),
            None => rate,
        };
        let eta = activation::sigmoid(rate).mul_scalar(self.base_lr);
        let mut eta = eta.swap_dims(1, 2).unsqueeze_dim::<4>(3);
        if let Some(lengths) = run.lengths {
            let valid = lengths.valid(x.dims()[1], &x.device(), x.dtype());
            eta = eta * valid.unsqueeze_dim::<3>(1).unsqueeze_dim(3);
        }
        [eta, self.scale(positions, x)]
    }

    /// `c` at the place of every token of `x`, whose rows stand at `positions`: `[b, 1, t, 1]`, one row where all
    /// agree.
    fn scale(&self, positions: &[usize], x: &Tensor<3>) -> Tensor<4> {
        let (size, t, options) = (self.mini_batch, x.dims()[1], (&x.device().inner(), x.dtype()));
        let place = |row: usize, t: usize| (positions[row] + t) % size;
        let uniform = (1..positions.len()).all(|row| place(row, 0) == place(0, 0));
        let rows = if uniform { 1 } else { positions.len() };
        let mut chosen = vec![0.0f32; rows * t * size];
        for (token, flags) in chosen.chunks_mut(size).enumerate() {
            flags[place(token / t, token % t)] = 1.0;
        }
        let chosen = Tensor::<3>::from_data(TensorData::new(chosen, [rows, t, size]), options);
        let means: Vec<f64> = (1..=size).map(|i| 1.0 / i as f64).collect();
        let means = Tensor::<1>::from_data(TensorData::new(means, [size]), options);
        let scale = activation::relu(self.token_scale.val() + means);
        (chosen * scale.reshape([1, 1, size])).sum_dim(2).unsqueeze_dim(1)
    }

    /// The fast weights in a state.
    fn fast(&self, state: &State) -> Result<TttFast> {
        let get = |name: &str, dims: &[usize; 4]| {
            let tensor = state.get::<4>(name)?;
            if tensor.dims() == *dims {
                return Ok(tensor);
            }
            Err(Error::shape(format!("state slot `{name}`"), format!("{dims:?}"), &tensor.dims()))
        };
        let expected = self.memory.sizes(state.batch());
        let names = self.memory.names().iter().zip(&expected);
        let start = names.clone().map(|(name, dims)| get(name, dims)).collect::<Result<_>>()?;
        let begins = state.positions().iter().all(|position| position.is_multiple_of(self.mini_batch));
        let sum = (!begins).then(|| names.map(|(name, dims)| get(&sum_slot(name), dims)).collect());
        Ok(TttFast { start, sum: sum.transpose()? })
    }

    fn put(&self, state: &mut State, fast: TttFast) {
        // Mini-batches of one token never hold a gradient back.
        if self.mini_batch > 1 {
            let sum = fast.sum.unwrap_or_else(|| fast.start.iter().map(|w| fresh(w.dims(), w)).collect());
            for (name, sum) in self.memory.names().iter().zip(sum) {
                state.put(&sum_slot(name), sum);
            }
        }
        for (name, start) in self.memory.names().iter().zip(fast.start) {
            state.put(name, start);
        }
    }

    /// The layer's output from the memory's, `y: [b, h, t, n]`, and its gate before the activation.
    fn readout(&self, y: Tensor<4>, gate: Option<Tensor<3>>) -> Tensor<3> {
        let gate = gate.map(|gate| Gated::new(gate, Activation::GeluTanh));
        self.out_norm.merged_through(y, gate, &self.out_proj)
    }

    /// How much of token `j`'s write `-dZ_j` the answer to token `i` holds, of a memory of one affine map:
    /// `M_ij = c_i η_j (q_i·k_j + 1)` inside a mini-batch, with the last token's `c` for earlier ones.
    fn attention(&self, tokens: &TttTokens, positions: &[usize], x: &Tensor<3>) -> Tensor<4> {
        let TttTokens { q, k, eta, scale, .. } = tokens;
        let ([b, _, t, _], size) = (q.dims(), self.mini_batch);
        let last = self.scale(&[size - 1], &x.clone().narrow(0, 0, 1).narrow(1, 0, 1));
        let flags = |chosen: &dyn Fn(usize, usize, usize) -> bool| {
            let (chosen, tokens) = (&chosen, 0..t);
            let row = move |row: usize| {
                let tokens = tokens.clone();
                tokens.clone().flat_map(move |i| {
                    tokens.clone().map(move |j| f32::from(j <= i && chosen(positions[row], i, j)))
                })
            };
            let values: Vec<f32> = (0..b).flat_map(row).collect();
            Tensor::<4>::from_data(TensorData::new(values, [b, 1, t, t]), (&x.device().inner(), x.dtype()))
        };
        let same = flags(&|start, i, j| (start + i) / size == (start + j) / size);
        let earlier = flags(&|start, i, j| (start + i) / size != (start + j) / size);
        let weights = same * scale.clone() + earlier * last;
        let scores = times_transposed(q.clone(), k.clone()).add_scalar(1.0);
        scores * eta.clone().swap_dims(2, 3) * weights
    }
}

impl Mixer for Ttt {
    fn d_model(&self) -> usize {
        self.d_model
    }

    /// The memory starts from its learned weights.
    fn initial_state(&self, batch: usize) -> State {
        let mut state = State::new(batch);
        self.put(&mut state, self.memory.initial(batch));
        for (name, conv) in [("conv_q", &self.conv_q), ("conv_k", &self.conv_k)] {
            put_tail(&mut state, name, conv);
        }
        state
    }

    /// `Recurrent` forms the memory after every token; every other form takes whole mini-batches, except where
    /// rows stand at different places of theirs (after ragged padding).
    fn run(&self, x: Tensor<3>, mut state: State, run: Run<'_>) -> Result<(Tensor<3>, State)> {
        #[cfg_attr(not(all(feature = "flex", feature = "cube")), allow(unused_mut, reason = "see below"))]
        let mut fast = self.fast(&state)?;
        let lengths = run.lengths.map(|lengths| lengths.0.as_slice());
        let clock = Clock::new(state.positions(), self.mini_batch, lengths);
        let (tokens, gate) = self.tokens_and_gate(&x, &mut state, run)?;
        #[cfg(all(feature = "flex", feature = "cube"))]
        if run.form != Form::Recurrent
            && let Some(y) = self.memory.on_graphics(&tokens, &mut fast, &clock)
        {
            self.put(&mut state, fast);
            return Ok((self.readout(y, gate), state));
        }
        let q = tokens.q.clone();
        let one_by_one = run.form == Form::Recurrent || x.dims()[1] == 1;
        let (z, fast) = match clock.phase() {
            Some(phase) if !one_by_one => self.memory.dual(tokens, fast, &clock, self.mini_batch, phase),
            _ => self.memory.recurrent(tokens, fast, &clock, |_, _| {}),
        };
        self.put(&mut state, fast);
        Ok((self.readout(self.memory.output(q, z), gate), state))
    }

    /// The spectrum is that of the weights inside a mini-batch, where the gradients do not depend on them: all 1.
    fn views(&self, x: Tensor<3>, mut state: State) -> Result<Views> {
        if !self.check(&x, &state)? {
            return Ok(Views::default());
        }
        let fast = self.fast(&state)?;
        let positions = state.positions().to_vec();
        let clock = Clock::new(&positions, self.mini_batch, None);
        let tokens = self.tokens(&x, &mut state, Run::default())?;
        // Where no token of a mini-batch has been read there is no gradient to scale.
        let previous: Vec<usize> = positions.iter().map(|position| position.saturating_sub(1)).collect();
        let mut before = fast.now(&self.scale(&previous, &x.clone().narrow(1, 0, 1)));
        let (mut losses, mut norms) = (Vec::new(), Vec::new());
        self.memory.recurrent(tokens.clone(), fast, &clock, |TttTokens { k, v, .. }, now| {
            let residual = self.memory.read_at(&before, k) - v;
            losses.push(residual.square().sum_dim(3).mul_scalar(0.5));
            let squares = now.iter().map(|w| w.clone().square().sum_dim(3).sum_dim(2));
            norms.extend(squares.reduce(|a, b| a + b).map(Tensor::sqrt));
            before = now.to_vec();
        });
        let per_token = |list: Vec<Tensor<4>>| Tensor::cat(list, 2).squeeze_dim::<3>(3);
        let gate = |name: &str, values: &Tensor<4>| Gate {
            name: name.into(),
            values: values.clone().squeeze_dim::<3>(3).swap_dims(1, 2),
        };
        let [b, _, t, _] = tokens.eta.dims();
        let gates = vec![
            gate("η (learning rate)", &tokens.eta),
            gate("c (step of the mini-batch)", &tokens.scale.clone().expand([b, 1, t, 1])),
        ];
        let linear = self.memory.w2.is_none();
        Ok(Views {
            attention: linear.then(|| self.attention(&tokens, &positions, &x)),
            spectrum: Some(Spectrum { re: tokens.eta.ones_like(), im: None, kind: SpectrumKind::Frozen }),
            gates,
            router: None,
            memory_loss: Some(per_token(losses)),
            memory_norm: Some(per_token(norms)),
        })
    }

    fn cost(&self, batch: usize, time: usize, form: Form) -> Cost {
        let run = (form != Form::Recurrent && time > 1).then_some(self.mini_batch.min(time));
        let [d, width] = self.q_proj.weight.dims();
        let maps = 3 + usize::from(self.k_proj.is_some()) + usize::from(self.gate_proj.is_some());
        let kernel = self.conv_q.as_ref().map_or(0, |conv| conv.weight.dims()[1]);
        let outer = 2 * maps * d * width + 4 * kernel * width + 2 * d * self.heads;
        let core = self.heads * self.memory.flops(run);
        Cost::of(self, (outer + core) as f64, batch, time)
    }
}

#[cfg(test)]
#[path = "ttt_tests.rs"]
mod tests;
