//! What surrounds the memory in every layer of the family.
//!
//! ```text
//! q, k = l2norm(rope(silu(conv(W x)))),   v = silu(conv(W_v x))
//! gate = σ(W_up (W_down x) + b)                       one low-rank map per gate, w numbers per head
//! out  = W_o (rmsnorm(M(q)) ∘ silu(W_g x))            rmsnorm per head, with a gain per head and channel
//! ```

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use crate::error::require;
#[cfg(feature = "cube")]
use crate::kernels::{self, GateOf, Opening, rotary::Turn};
use crate::nn::{
    Activation, CausalConv, CausalConvConfig, Gated, Linear, Normalize, Rope, RopeConfig, Scaling,
    l2_normalize, project_with, put_tail, short_convs, split_heads,
};
use crate::system::{Run, State};
use crate::{Init, Result};

/// Added to the squares of queries and keys.
const ADDRESS_EPS: f64 = 1e-6;

/// Sizes of a [`MirasLayer`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    /// Named in errors.
    pub(crate) mixer: &'static str,
    pub(crate) d_model: usize,
    pub(crate) heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) conv_kernel: usize,
    pub(crate) rope: Option<RopeConfig>,
    pub(crate) norm_eps: f64,
}

impl Sizes {
    /// Checks the sizes and draws the parameters.
    pub(crate) fn init(self, init: &mut Init) -> Result<MirasLayer> {
        let Self { mixer, d_model: d, heads: h, head_dim: n, .. } = self;
        require(d > 0, mixer, "d_model", d, "must be positive")?;
        require(h > 0, mixer, "heads", h, "must be positive")?;
        require(n > 0, mixer, "head_dim", n, "must be positive")?;
        require(self.norm_eps > 0.0, mixer, "norm_eps", self.norm_eps, "must be positive")?;
        let rope = self.rope.map(|rope| rope.init(n)).transpose()?;
        let mut conv = || {
            (self.conv_kernel > 0).then(|| {
                CausalConvConfig { kernel: self.conv_kernel, ..Default::default() }.init(h * n, init)
            })
        };
        let (conv_q, conv_k, conv_v) = (conv(), conv(), conv());
        Ok(MirasLayer {
            q_proj: init.linear(d, h * n),
            k_proj: init.linear(d, h * n),
            v_proj: init.linear(d, h * n),
            gate_proj: init.linear(d, h * n),
            out_proj: init.linear(h * n, d),
            conv_q,
            conv_k,
            conv_v,
            norm_weight: init.constant([h, n], 1.0),
            rope,
            heads: h,
            norm_eps: self.norm_eps,
        })
    }

    /// Root mean square of `v`'s entries before training, for an input of unit variance.
    pub(crate) fn typical_value(&self) -> f64 {
        // silu of a normal variable of variance 1, or 1/3 after a convolution with weights in ±1/√K
        if self.conv_kernel == 0 { 0.596 } else { 0.316 }
    }
}

/// Projections, short convolutions, rotary positions, output norm and output gate.
#[derive(Module, Debug)]
pub struct MirasLayer {
    /// `W_q: [d, h n]`
    pub q_proj: Linear,
    /// `W_k: [d, h n]`
    pub k_proj: Linear,
    /// `W_v: [d, h n]`
    pub v_proj: Linear,
    /// `W_g: [d, h n]`
    pub gate_proj: Linear,
    /// `W_o: [h n, d]`
    pub out_proj: Linear,
    /// Short convolution on `q`
    pub conv_q: Option<CausalConv>,
    /// Short convolution on `k`
    pub conv_k: Option<CausalConv>,
    /// Short convolution on `v`
    pub conv_v: Option<CausalConv>,
    /// Gain of the output norm, `[h, n]`
    pub norm_weight: Param<Tensor<2>>,
    #[module(skip)]
    rope: Option<Rope>,
    #[module(skip)]
    heads: usize,
    #[module(skip)]
    norm_eps: f64,
}

impl MirasLayer {
    /// Adds the convolutions' tails to a fresh state.
    pub(crate) fn initial_state(&self, state: &mut State) {
        let convolutions = [("conv_q", &self.conv_q), ("conv_k", &self.conv_k), ("conv_v", &self.conv_v)];
        for (name, conv) in convolutions {
            put_tail(state, name, conv);
        }
    }

    /// `q, k, v`: `[b, h, t, n]` each, and the output's gate, `[b, t, h n]`; moves the convolutions' tails on.
    pub(crate) fn qkv(
        &self,
        x: &Tensor<3>,
        state: &mut State,
        run: Run<'_>,
    ) -> Result<([Tensor<4>; 3], Tensor<3>)> {
        let maps = [&self.q_proj, &self.k_proj, &self.v_proj, &self.gate_proj];
        let ([q, k, v, gate], _) = project_with(x.clone(), maps, &[]);
        let [of_q, of_k, of_v] = [&self.conv_q, &self.conv_k, &self.conv_v];
        let [q, k, v] =
            short_convs([("conv_q", of_q, q), ("conv_k", of_k, k), ("conv_v", of_v, v)], state, run)?;
        let v = split_heads(v, self.heads);
        #[cfg(feature = "cube")]
        {
            let both = [&q, &k].map(|z| split_heads(z.clone(), self.heads));
            let turn = Turn { unit: Some(ADDRESS_EPS), ..Turn::default() };
            let starts = state.positions();
            if let Some([q, k]) =
                Rope::two_on_graphics(self.rope.as_ref(), both.each_ref(), starts, None, turn)
            {
                return Ok(([q, k, v], gate));
            }
        }
        let address = |z: Tensor<3>| {
            let z = split_heads(z, self.heads);
            let z = match &self.rope {
                Some(rope) => rope.apply(z, state.positions()),
                None => z,
            };
            l2_normalize(z, ADDRESS_EPS)
        };
        Ok(([address(q), address(k), v], gate))
    }

    /// The layer's output from the memory's, `y: [b, h, t, n]`, and its gate.
    pub(crate) fn readout(&self, y: Tensor<4>, gate: Tensor<3>) -> Tensor<3> {
        let [h, n] = self.norm_weight.dims();
        let gain = self.norm_weight.val().reshape([1, 1, h, n]);
        let norm = Normalize { weight: Some(gain), ..Normalize::plain(Scaling::rms(self.norm_eps)) };
        let gate = Gated::new(gate, Activation::Silu);
        norm.heads_through(y, Some(gate), &self.out_proj)
    }

    /// Operations per token of all that is not the memory or its gates.
    pub(crate) fn flops(&self) -> usize {
        let [d, width] = self.q_proj.weight.dims();
        let kernel = self.conv_q.as_ref().map_or(0, |conv| conv.weight.dims()[1]);
        10 * d * width + 6 * kernel * width
    }
}

/// A gate before its activation: `W_up (W_down x) + b`, `w` numbers per head.
#[derive(Module, Debug)]
pub struct GateMap {
    /// `W_down: [d, rank]`
    pub down: Linear,
    /// `W_up: [rank, h w]`, `b: [h w]`
    pub up: Linear,
    #[module(skip)]
    heads: usize,
}

impl GateMap {
    /// A gate that starts close to `activation(bias)`.
    pub(crate) fn new(
        d_model: usize,
        rank: usize,
        heads: usize,
        width: usize,
        bias: f64,
        init: &mut Init,
    ) -> Self {
        Self {
            down: init.linear(d_model, rank),
            up: Linear {
                weight: init.normal([rank, heads * width], 0.02 / (rank as f64).sqrt()),
                bias: Some(init.constant([heads * width], bias as f32)),
            },
            heads,
        }
    }

    /// `[b, t, d] -> [b, h, t, w]`
    pub(crate) fn forward(&self, x: &Tensor<3>) -> Tensor<4> {
        split_heads(self.up.forward(self.down.forward(x.clone())), self.heads)
    }

    /// The gate for the kernel that opens one of every head.
    #[cfg(feature = "cube")]
    pub(crate) fn of_heads(&self, opening: Opening) -> Option<GateOf> {
        let (down, up) = (self.down.weight.val(), self.up.weight.val());
        let bias = self.up.bias.as_ref().map(|bias| bias.val())?;
        let fits = up.dims()[1] == self.heads && self.down.bias.is_none() && kernels::enabled();
        fits.then_some(GateOf { down, up, bias, opening })
    }

    /// Operations per token.
    pub(crate) fn flops(&self) -> usize {
        let ([d, rank], [_, outputs]) = (self.down.weight.dims(), self.up.weight.dims());
        2 * rank * (d + outputs)
    }
}
