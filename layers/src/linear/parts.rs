//! What the decayed linear attentions share around their recurrence.

use burn::module::Module;
use burn::tensor::Tensor;

use crate::error::require;
use crate::nn::{
    Activation, CausalConv, CausalConvConfig, Ended, Gated, Linear, Normalize, RmsNorm, Scaling, log_sigmoid,
    project_with, put_tail, repeat_heads, scaled_closed, scaled_sigmoid, short_conv, short_convs,
    split_heads,
};
use crate::system::{MEMORY, Run, State, fresh};
use crate::{Error, Init, Result};

/// Sizes of the maps to queries, keys and values.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    /// Heads `h`
    pub(super) heads: usize,
    /// Heads of keys, values and decays; each serves a group of queries
    pub(super) kv_heads: usize,
    /// Key channels `n` of a head
    pub(super) n: usize,
    /// Value channels `p` of a head
    pub(super) p: usize,
    /// Width of the short convolutions, 0 for none
    pub(super) conv_kernel: usize,
    /// Whether they have biases
    pub(super) conv_bias: bool,
}

impl Sizes {
    /// Refuses sizes that are zero or do not divide each other.
    pub(super) fn check(self, mixer: &'static str, d_model: usize) -> Result<Self> {
        require(d_model > 0, mixer, "d_model", d_model, "must be positive")?;
        require(self.heads > 0, mixer, "heads", self.heads, "must be positive")?;
        let divides = self.kv_heads > 0 && self.heads.is_multiple_of(self.kv_heads);
        require(divides, mixer, "kv_heads", self.kv_heads, "must divide `heads`")?;
        require(self.n > 0, mixer, "key_dim", self.n, "must be positive")?;
        require(self.p > 0, mixer, "value_dim", self.p, "must be positive")?;
        Ok(self)
    }

    /// How many query heads share a key.
    pub(super) fn group(self) -> usize {
        self.heads / self.kv_heads
    }

    /// A memory of zeros, `[b, h, n, p + extra]`, like the parameters of `map`.
    pub(super) fn memory(self, batch: usize, extra: usize, map: &Linear) -> State {
        let like = map.weight.val();
        let shape = [batch, self.heads, self.n, self.p + extra];
        State::new(batch).with(MEMORY, fresh(shape, &like))
    }
}

/// A head's channels: as given, or `share` of `d_model` divided over the heads.
pub(super) fn channels(
    given: Option<usize>,
    d_model: usize,
    share: f64,
    heads: usize,
    mixer: &'static str,
    field: &'static str,
) -> Result<usize> {
    if let Some(given) = given {
        return Ok(given);
    }
    let width = (d_model as f64 * share).round() as usize;
    if heads == 0 || !width.is_multiple_of(heads) {
        let expected = format!("must divide {width}, {share} of d_model = {d_model}, or set `{field}`");
        return Err(Error::config(mixer, "heads", heads, expected));
    }
    Ok(width / heads)
}

/// A short convolution of `kernel` tokens, or none for 0.
pub(super) fn convolution(
    kernel: usize,
    bias: bool,
    activation: Activation,
    channels: usize,
    init: &mut Init,
) -> Option<CausalConv> {
    CausalConvConfig { kernel, bias, activation }.init_unless_empty(channels, init)
}

/// The convolution with its tail in the slot `name` of the state, or `x` itself where there is none.
pub(super) fn convolve(
    name: &str,
    conv: &Option<CausalConv>,
    x: Tensor<3>,
    state: &mut State,
    run: Run<'_>,
) -> Result<Tensor<3>> {
    if conv.is_some() { short_conv(name, conv, x, state, run) } else { Ok(x) }
}

/// Adds the tails of the convolutions to a state.
pub(super) fn with_tails<const N: usize>(mut state: State, convs: [(&str, &Option<CausalConv>); N]) -> State {
    for (name, conv) in convs {
        put_tail(&mut state, name, conv);
    }
    state
}

/// Queries, keys and values, each through a short convolution if there is one.
#[derive(Module, Debug)]
pub struct Qkv {
    /// `W_q: [d, h n]`
    pub q_proj: Linear,
    /// `W_k: [d, kv_heads n]`
    pub k_proj: Linear,
    /// `W_v: [d, kv_heads p]`
    pub v_proj: Linear,
    /// Short convolution on `q`, with silu
    pub conv_q: Option<CausalConv>,
    /// Short convolution on `k`, with silu
    pub conv_k: Option<CausalConv>,
    /// Short convolution on `v`, with silu
    pub conv_v: Option<CausalConv>,
    #[module(skip)]
    sizes: Sizes,
}

impl Qkv {
    pub(super) fn new(d_model: usize, sizes: Sizes, init: &mut Init) -> Self {
        let Sizes { heads, kv_heads, n, p, conv_kernel, conv_bias } = sizes;
        let mut conv = |channels| convolution(conv_kernel, conv_bias, Activation::Silu, channels, init);
        let (conv_q, conv_k, conv_v) = (conv(heads * n), conv(kv_heads * n), conv(kv_heads * p));
        Self {
            q_proj: init.linear(d_model, heads * n),
            k_proj: init.linear(d_model, kv_heads * n),
            v_proj: init.linear(d_model, kv_heads * p),
            conv_q,
            conv_k,
            conv_v,
            sizes,
        }
    }

    /// `state` with the tails of the convolutions.
    pub(super) fn with_tails(&self, state: State) -> State {
        with_tails(state, [("conv_q", &self.conv_q), ("conv_k", &self.conv_k), ("conv_v", &self.conv_v)])
    }

    /// `q`, `k`: `[b, h, t, n]` and `v`: `[b, h, t, p]`.
    pub(super) fn forward(&self, x: Tensor<3>, state: &mut State, run: Run<'_>) -> Result<[Tensor<4>; 3]> {
        let ([q, k, v], _) = self.forward_with(x, &[], state, run)?;
        Ok([q, k, v])
    }

    /// The same, and what other maps make of `x`.
    pub(super) fn forward_with(
        &self,
        x: Tensor<3>,
        others: &[Ended<'_>],
        state: &mut State,
        run: Run<'_>,
    ) -> Result<([Tensor<4>; 3], Vec<Tensor<3>>)> {
        let Sizes { heads, kv_heads, .. } = self.sizes;
        let ([q, k, v], rest) = project_with(x, [&self.q_proj, &self.k_proj, &self.v_proj], others);
        let [q, k, v] = if self.conv_q.is_some() {
            let [of_q, of_k, of_v] = [&self.conv_q, &self.conv_k, &self.conv_v];
            short_convs([("conv_q", of_q, q), ("conv_k", of_k, k), ("conv_v", of_v, v)], state, run)?
        } else {
            [q, k, v]
        };
        let shared = |x| repeat_heads(split_heads(x, kv_heads), self.sizes.group());
        Ok(([split_heads(q, heads), shared(k), shared(v)], rest))
    }

    /// Operations per token.
    pub(super) fn flops(&self, d_model: usize) -> usize {
        let Sizes { heads, kv_heads, n, p, conv_kernel, .. } = self.sizes;
        2 * (d_model + conv_kernel) * (heads * n + kv_heads * (n + p))
    }
}

/// `W_o (rmsnorm(y) ∘ act(W_g x))`, with the norm over each head.
#[derive(Module, Debug)]
pub struct GatedReadout {
    /// Over `p`; without a weight where there is none
    pub norm: Option<RmsNorm>,
    /// `W_g: [d, h p]`
    pub gate_proj: Option<Linear>,
    /// `W_o: [h p, d]`
    pub out_proj: Linear,
    #[module(skip)]
    activation: Activation,
    #[module(skip)]
    eps: f64,
}

impl GatedReadout {
    /// For heads of `p` channels, with a gate if it has an activation.
    pub(super) fn new(
        d_model: usize,
        sizes: Sizes,
        gate: Option<Activation>,
        norm: (bool, f64),
        init: &mut Init,
    ) -> Self {
        let (width, (weight, eps)) = (sizes.heads * sizes.p, norm);
        Self {
            norm: weight.then(|| RmsNorm::new(sizes.p, eps, init)),
            gate_proj: gate.map(|_| init.linear(d_model, width)),
            out_proj: init.linear(width, d_model),
            activation: gate.unwrap_or(Activation::Identity),
            eps,
        }
    }

    /// The output gate, `[b, t, h p]`, from what `W_g` made of the input.
    pub(super) fn gate_of(&self, values: Option<Tensor<3>>) -> Option<Gated<3>> {
        values.map(|values| Gated::new(values, self.activation))
    }

    /// `[b, h, t, p] -> [b, t, d_model]`
    pub(super) fn forward(&self, y: Tensor<4>, gate: Option<Gated<3>>) -> Tensor<3> {
        let norm = match &self.norm {
            Some(norm) => norm.parts(),
            None => Normalize::plain(Scaling::rms(self.eps)),
        };
        norm.heads_through(y, gate, &self.out_proj)
    }

    /// Operations per token.
    pub(super) fn flops(&self, d_model: usize) -> usize {
        let width = self.out_proj.weight.dims()[0];
        2 * d_model * width * (1 + usize::from(self.gate_proj.is_some()))
    }
}

/// `log f` and `1 - f` of a forget gate with a lower bound, `f = l + (1 - l) sigmoid(z)`.
pub(super) fn bounded_forget<const D: usize>(z: Tensor<D>, bound: f64) -> (Tensor<D>, Tensor<D>) {
    let write = scaled_closed(z.clone(), 1.0 - bound);
    let log =
        if bound == 0.0 { log_sigmoid(z) } else { scaled_sigmoid(z, 1.0 - bound).add_scalar(bound).log() };
    (log, write)
}

/// Refuses a lower bound of a forget gate outside `[0, 1)`.
pub(super) fn check_bound(bound: f64, mixer: &'static str) -> Result<f64> {
    require((0.0..1.0).contains(&bound), mixer, "lower_bound", bound, "must be from 0 to below 1")?;
    Ok(bound)
}
