//! What the layers of the family share: the sizes of their heads, queries, keys and values behind short
//! convolutions, the decay of a head, and the normalised and gated output.

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use crate::error::require;
#[cfg(feature = "cube")]
use crate::kernels;
use crate::nn::{
    Activation, CausalConv, CausalConvConfig, Ended, Gated, Linear, RmsNorm, Steps, project_with, put_tail,
    short_convs, silu,
};
use crate::system::{MEMORY, Run, State, fresh};
use crate::{Init, Result};

/// Sizes of the heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HeadSizes {
    /// Query and key heads `h`.
    pub(super) heads: usize,
    /// Value heads, a multiple of `heads`.
    pub(super) value_heads: usize,
    /// Key size `n`.
    pub(super) n: usize,
    /// Value size `p`.
    pub(super) p: usize,
}

impl HeadSizes {
    /// From the fields of a configuration.
    pub(super) fn new(heads: usize, value_heads: Option<usize>, head_dim: usize, expand_v: f64) -> Self {
        let p = (head_dim as f64 * expand_v).round() as usize;
        Self { heads, value_heads: value_heads.unwrap_or(heads), n: head_dim, p }
    }

    /// Refuses sizes of 0 and value heads that do not divide over the query heads.
    pub(super) fn check(&self, name: &'static str, d_model: usize, expand_v: f64) -> Result<()> {
        let Self { heads: h, value_heads: hv, n, p } = *self;
        require(d_model > 0, name, "d_model", d_model, "must be positive")?;
        require(h > 0, name, "heads", h, "must be positive")?;
        require(n > 0, name, "head_dim", n, "must be positive")?;
        let values = p > 0 && expand_v.is_finite();
        require(values, name, "expand_v", expand_v, "must leave a positive value size")?;
        require(hv > 0 && hv % h == 0, name, "value_heads", hv, "must be a multiple of `heads`")
    }

    /// Value heads that share a query head.
    pub(super) fn group(&self) -> usize {
        self.value_heads / self.heads
    }
}

/// `conv(W x)` for queries, keys and values, each with its activation.
#[derive(Module, Debug)]
pub struct Qkv {
    /// `W_q: [d, h n]`
    pub q_proj: Linear,
    /// `W_k: [d, m h n]`, for `m` keys per token
    pub k_proj: Linear,
    /// `W_v: [d, m h p]`, for `m` values per token
    pub v_proj: Linear,
    /// Short convolution on `q`
    pub conv_q: Option<CausalConv>,
    /// Short convolution on `k`
    pub conv_k: Option<CausalConv>,
    /// Short convolution on `v`
    pub conv_v: Option<CausalConv>,
    /// Of `q` and `k`; values pass through SiLU.
    #[module(skip)]
    activation: Activation,
}

impl Qkv {
    /// With `steps` keys and values per token, and convolutions of width `kernel` unless it is 0.
    pub(super) fn init(
        sizes: HeadSizes,
        steps: usize,
        kernel: usize,
        activation: Activation,
        d_model: usize,
        init: &mut Init,
    ) -> Self {
        let HeadSizes { heads: h, value_heads: hv, n, p } = sizes;
        let (keys, values) = (steps * h * n, steps * hv * p);
        Self {
            conv_q: short_convolution(kernel, activation, h * n, init),
            conv_k: short_convolution(kernel, activation, keys, init),
            conv_v: short_convolution(kernel, Activation::Silu, values, init),
            q_proj: init.linear(d_model, h * n),
            k_proj: init.linear(d_model, keys),
            v_proj: init.linear(d_model, values),
            activation,
        }
    }

    /// Queries, keys and values of `x`, `[b, t, channels]` each. Moves the convolutions' tails on.
    ///
    /// # Errors
    /// When the state lacks a tail.
    pub fn forward(&self, x: Tensor<3>, state: &mut State, run: Run<'_>) -> Result<[Tensor<3>; 3]> {
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
    ) -> Result<([Tensor<3>; 3], Vec<Tensor<3>>)> {
        let ([q, k, v], rest) = project_with(x, [&self.q_proj, &self.k_proj, &self.v_proj], others);
        let qkv = if self.conv_q.is_some() {
            let [of_q, of_k, of_v] = [&self.conv_q, &self.conv_k, &self.conv_v];
            short_convs([("conv_q", of_q, q), ("conv_k", of_k, k), ("conv_v", of_v, v)], state, run)?
        } else {
            [self.activation.apply(q), self.activation.apply(k), silu(v)]
        };
        Ok((qkv, rest))
    }

    /// A memory of zeros, `[batch, heads, n, p]`, and tails of zeros.
    pub(super) fn initial_state(&self, memory: [usize; 4]) -> State {
        let like = self.q_proj.weight.val();
        let mut state = State::new(memory[0]).with(MEMORY, fresh(memory, &like));
        for (name, conv) in [("conv_q", &self.conv_q), ("conv_k", &self.conv_k), ("conv_v", &self.conv_v)] {
            put_tail(&mut state, name, conv);
        }
        state
    }
}

/// A convolution of width `kernel` with its activation, none if the width is 0.
pub(super) fn short_convolution(
    kernel: usize,
    activation: Activation,
    channels: usize,
    init: &mut Init,
) -> Option<CausalConv> {
    CausalConvConfig { kernel, bias: false, activation }.init_unless_empty(channels, init)
}

/// `log α = -exp(A_log) softplus(a + dt_bias)`: one decay per head from a step, as in Mamba-2.
#[derive(Module, Debug)]
pub struct HeadDecay {
    /// `[h]`
    pub a_log: Param<Tensor<1>>,
    /// `[h]`
    pub dt_bias: Param<Tensor<1>>,
}

impl HeadDecay {
    /// `A ~ U(0, 16)`, away from 0 where its logarithm is undefined, and steps between `dt_min` and `dt_max`.
    pub(super) fn init(heads: usize, dt_min: f64, dt_max: f64, init: &mut Init) -> Self {
        Self {
            a_log: init.log_of_uniform([heads], 1e-3, 16.0),
            dt_bias: init.inverse_softplus_dt(heads, dt_min, dt_max, 1e-4),
        }
    }

    /// `a: [b, t, h] -> log α: [b, h, t]`
    pub fn forward(&self, a: Tensor<3>) -> Tensor<3> {
        Steps::ALL.decays(a, self.dt_bias.val(), self.a_log.val()).swap_dims(1, 2)
    }
}

/// Added to the squares of queries and keys.
pub(super) const UNIT_EPS: f64 = 1e-6;

/// Whether the kernel that makes the rule also makes the few numbers of every token that decays and steps are made of.
#[cfg_attr(not(feature = "cube"), allow(unused_variables, reason = "there is no such kernel"))]
pub(super) fn made_by_the_rule(x: &Tensor<3>) -> bool {
    #[cfg(feature = "cube")]
    return kernels::enabled() && kernels::linear::on_graphics(x) && !kernels::linear::are_few(x);
    #[cfg(not(feature = "cube"))]
    return false;
}

/// What it makes them of.
#[cfg(feature = "cube")]
pub(super) fn of_heads(x: &Tensor<3>, map: &Linear) -> kernels::HeadInputs {
    kernels::HeadInputs::Of(x.clone(), map.weight.val())
}

/// Refuses a range of steps that is empty or reaches 0.
pub(super) fn check_steps(name: &'static str, dt_min: f64, dt_max: f64) -> Result<()> {
    let positive = dt_min > 0.0 && dt_min.is_finite();
    require(positive, name, "dt_min", dt_min, "must be positive")?;
    let range = dt_max >= dt_min && dt_max.is_finite();
    require(range, name, "dt_max", dt_max, "must be a number not below `dt_min`")
}

/// How the input becomes the output's gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OutputGate {
    /// Not at all.
    None,
    /// `W_g x`
    Full,
    /// `W_g (W_d x)`, perhaps with a bias.
    LowRank {
        /// Width between the two maps.
        rank: usize,
        /// Whether the second has a bias.
        bias: bool,
    },
}

/// `W_o (rmsnorm(y) ∘ act(gate))`, with the norm over each head.
#[derive(Module, Debug)]
pub struct HeadOutput {
    /// `W_d: [d, rank]`
    pub gate_down: Option<Linear>,
    /// `W_g: [d, h p]`, or `[rank, h p]` after `W_d`
    pub gate_proj: Option<Linear>,
    /// `W_o: [h p, d]`
    pub out_proj: Linear,
    /// Per head, over `p`
    pub norm: RmsNorm,
    #[module(skip)]
    activation: Activation,
}

impl HeadOutput {
    /// For `heads` heads of `p` channels.
    pub(super) fn init(
        [heads, p]: [usize; 2],
        gate: OutputGate,
        activation: Activation,
        eps: f64,
        d_model: usize,
        init: &mut Init,
    ) -> Self {
        let (gate_down, gate_proj) = match gate {
            OutputGate::None => (None, None),
            OutputGate::Full => (None, Some(init.linear(d_model, heads * p))),
            OutputGate::LowRank { rank, bias } => {
                let down = init.linear(d_model, rank);
                (Some(down), Some(init.linear_std(rank, heads * p, (1.0 / rank as f64).sqrt(), bias)))
            }
        };
        Self {
            gate_down,
            gate_proj,
            out_proj: init.linear(heads * p, d_model),
            norm: RmsNorm::new(p, eps, init),
            activation,
        }
    }

    /// The output gate, `[b, t, h p]`, if there is one.
    pub fn gate(&self, x: Tensor<3>) -> Option<Gated<3>> {
        let first = self.first_gate_map()?.forward(x);
        self.gate_of(Some(first))
    }

    /// What maps the input on its way to the gate: `W_d`, or `W_g` where there is none.
    pub(super) fn first_gate_map(&self) -> Option<&Linear> {
        self.gate_down.as_ref().or(self.gate_proj.as_ref())
    }

    /// The gate from what [`Self::first_gate_map`] made of the input.
    pub(super) fn gate_of(&self, first: Option<Tensor<3>>) -> Option<Gated<3>> {
        let (first, last) = (first?, self.gate_proj.as_ref()?);
        let values = if self.gate_down.is_some() { last.forward(first) } else { first };
        Some(Gated::new(values, self.activation))
    }

    /// `y: [b, h, t, p] -> [b, t, d]`
    pub fn forward(&self, y: Tensor<4>, gate: Option<Gated<3>>) -> Tensor<3> {
        self.norm.parts().heads_through(y, gate, &self.out_proj)
    }

    /// Operations of its maps per token.
    pub(super) fn flops(&self) -> usize {
        2 * (self.num_params() - self.norm.num_params())
    }
}
