//! HGRN2 (Qin et al., arXiv 2404.07904): a gated linear RNN whose state is expanded to a matrix. The key is what the
//! forget gate leaves: nothing is written where nothing is forgotten.
//!
//! ```text
//! q = silu(W_q x),   v = W_i x,   f = l + (1 - l) sigmoid(W_f x)
//! H_t = diag(f_t) H_{t-1} + (1 - f_t) v_tᵀ,     y_t = H_tᵀ q_t / √n              (Eq. 8)
//! out = W_o rmsnorm(concat_heads y)
//! ```
//!
//! The lower bound `l` grows with depth, so that higher layers remember longer. The paper learns it together for all
//! layers, starting at `layer / layers`; here it stays there.
//!
//! | symbol | shape |
//! | --- | --- |
//! | q, f | `[b, h, t, n]` (`n` = `key_dim`) |
//! | v, y | `[b, h, t, p]` (`p` = `value_dim`) |
//! | H | `[b, h, n, p]` |

use burn::module::Module;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::parts::{Sizes, bounded_forget, channels, check_bound, convolution, with_tails};
use crate::error::require;
use crate::nn::{
    Activation, CausalConv, Ended, Ending, Linear, RmsNorm, project_with, short_conv, split_heads,
};
use crate::system::{Cost, Form, LinearMixer, Run, State, System, Transition};
use crate::{Init, Result};

const NAME: &str = "hgrn2";

/// Sizes and switches of [`Hgrn2`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Hgrn2Config {
    /// Heads.
    pub heads: usize,
    /// Key channels `n` of a head, by which the state is expanded; `None` for `d_model / heads`.
    pub key_dim: Option<usize>,
    /// Value channels `p` of a head; `None` for `d_model / heads`.
    pub value_dim: Option<usize>,
    /// `l`: smallest forget gate; `None` lets the model say (0 for a layer on its own).
    pub lower_bound: Option<f64>,
    /// Applied to `q`.
    pub query_activation: Activation,
    /// Applied to `v`.
    pub value_activation: Activation,
    /// Kernel width of the short convolutions; 0 for none.
    pub conv_kernel: usize,
    /// Whether they have biases.
    pub conv_bias: bool,
    /// Added to the mean square in the output norm.
    pub norm_eps: f64,
}

impl Default for Hgrn2Config {
    fn default() -> Self {
        Self {
            heads: 4,
            key_dim: None,
            value_dim: None,
            lower_bound: None,
            query_activation: Activation::Silu,
            value_activation: Activation::Identity,
            conv_kernel: 0,
            conv_bias: false,
            norm_eps: 1e-5,
        }
    }
}

impl Hgrn2Config {
    /// Checks the values and draws the parameters for width `d_model`.
    ///
    /// # Errors
    /// For zero sizes, heads that do not divide the width, or a lower bound outside `[0, 1)`.
    pub fn init(&self, d_model: usize, init: &mut Init) -> Result<Hgrn2> {
        let sizes = Sizes {
            heads: self.heads,
            kv_heads: self.heads,
            n: channels(self.key_dim, d_model, 1.0, self.heads, NAME, "key_dim")?,
            p: channels(self.value_dim, d_model, 1.0, self.heads, NAME, "value_dim")?,
            conv_kernel: self.conv_kernel,
            conv_bias: self.conv_bias,
        };
        let sizes = sizes.check(NAME, d_model)?;
        let lower_bound = check_bound(self.lower_bound.unwrap_or(0.0), NAME)?;
        require(self.norm_eps > 0.0, NAME, "norm_eps", self.norm_eps, "must be positive")?;
        let (keys, values) = (sizes.heads * sizes.n, sizes.heads * sizes.p);
        let mut conv =
            |channels| convolution(self.conv_kernel, self.conv_bias, Activation::Identity, channels, init);
        let (conv_q, conv_f, conv_i) = (conv(keys), conv(keys), conv(values));
        Ok(Hgrn2 {
            q_proj: init.linear(d_model, keys),
            f_proj: init.linear(d_model, keys),
            i_proj: init.linear(d_model, values),
            out_proj: init.linear(values, d_model),
            conv_q,
            conv_f,
            conv_i,
            norm: RmsNorm::new(values, self.norm_eps, init),
            config: self.clone(),
            lower_bound,
            sizes,
            d_model,
        })
    }
}

/// The layer; see the module's equations. Built by [`Hgrn2Config::init`].
#[derive(Module, Debug)]
pub struct Hgrn2 {
    /// `W_q: [d, h n]`
    pub q_proj: Linear,
    /// `W_f: [d, h n]`
    pub f_proj: Linear,
    /// `W_i: [d, h p]`
    pub i_proj: Linear,
    /// `W_o: [h p, d]`
    pub out_proj: Linear,
    /// Short convolution on `W_q x`
    pub conv_q: Option<CausalConv>,
    /// Short convolution on `W_f x`
    pub conv_f: Option<CausalConv>,
    /// Short convolution on `W_i x`
    pub conv_i: Option<CausalConv>,
    /// Over all `h p` channels
    pub norm: RmsNorm,
    #[module(skip)]
    config: Hgrn2Config,
    #[module(skip)]
    lower_bound: f64,
    #[module(skip)]
    sizes: Sizes,
    #[module(skip)]
    d_model: usize,
}

impl LinearMixer for Hgrn2 {
    type Aux = ();

    fn d_model(&self) -> usize {
        self.d_model
    }

    fn initial_state(&self, batch: usize) -> State {
        let tails = [("conv_q", &self.conv_q), ("conv_f", &self.conv_f), ("conv_i", &self.conv_i)];
        with_tails(self.sizes.memory(batch, 0, &self.q_proj), tails)
    }

    fn system(&self, x: Tensor<3>, state: &mut State, run: Run<'_>) -> Result<(System, ())> {
        let Sizes { heads, n, conv_kernel, .. } = self.sizes;
        // Activations end the maps, or the convolutions where there are some.
        let ending = |activation| if conv_kernel == 0 { activation } else { Activation::Identity };
        let of_q = self.q_proj.then(Ending::Activation(ending(self.config.query_activation)));
        let of_v = self.i_proj.then(Ending::Activation(ending(self.config.value_activation)));
        let ([q, z, v], _) = project_with(x, [of_q, Ended::from(&self.f_proj), of_v], &[]);
        let [q, z, v] = if conv_kernel == 0 {
            [q, z, v]
        } else {
            let q = short_conv("conv_q", &self.conv_q, q, state, run)?;
            let z = short_conv("conv_f", &self.conv_f, z, state, run)?;
            let v = short_conv("conv_i", &self.conv_i, v, state, run)?;
            [self.config.query_activation.apply(q), z, self.config.value_activation.apply(v)]
        };
        let [q, z, v] = [q, z, v].map(|x| split_heads(x, heads));
        let (log_a, k) = bounded_forget(z, self.lower_bound);
        let system = System::outer(Transition::Diagonal { log_a }, q, k, v);
        Ok((system.with_gain((n as f64).powf(-0.5)), ()))
    }

    fn readout(&self, y: Tensor<4>, _: ()) -> Tensor<3> {
        self.norm.parts().merged_through(y, None, &self.out_proj)
    }

    fn cost(&self, batch: usize, time: usize, form: Form) -> Cost {
        let (Sizes { heads, n, p, conv_kernel, .. }, d) = (self.sizes, self.d_model);
        let maps = 2 * heads * ((d + conv_kernel) * (2 * n + p) + d * p);
        let core = heads * Cost::decayed_core(n, p, time, form);
        Cost::of(self, (maps + core) as f64, batch, time)
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::linear::GlaConfig;
    use crate::system::{MEMORY, Mixer};
    use crate::testing::{Draw, gap, numbers};
    use crate::{Value, params};

    fn layer(config: &Hgrn2Config) -> Hgrn2 {
        config.init(8, &mut Init::new(1, &Device::flex())).unwrap()
    }

    /// With the key tied to the gate, every row of the memory is a mean of the values seen: no entry leaves
    /// their range, however long the sequence.
    #[test]
    fn the_memory_is_a_running_mean_of_the_values() {
        let layer = layer(&Hgrn2Config { heads: 2, ..Default::default() });
        let x = Draw::new(2).tensor::<3>([1, 200, 8], -2.0, 2.0);
        let values = numbers(layer.i_proj.forward(x.clone()).abs().max());
        let start = Mixer::initial_state(&layer, 1);
        let (_, end) = layer.forward(x.clone(), start, Form::Auto).unwrap();
        let memory = numbers(end.get::<4>(MEMORY).unwrap());
        assert!(memory.iter().all(|h| h.abs() <= values[0] + 1e-5));
        assert!(memory.iter().any(|h| h.abs() > 0.05));
        // 1 - f is the key
        let (system, ()) = layer.system(x, &mut Mixer::initial_state(&layer, 1), Run::default()).unwrap();
        let Transition::Diagonal { log_a } = system.transition else { panic!("a decay per channel") };
        let crate::system::Io::Outer { k, .. } = system.io else { panic!("a matrix memory") };
        let sum = numbers(log_a.exp() + k);
        assert!(sum.iter().all(|sum| (sum - 1.0).abs() < 1e-6));
    }

    /// GLA whose key is tied to its gate: `k = sigmoid(-z)` where `α = sigmoid(z)`. Of one head, since HGRN2
    /// normalises all heads together.
    #[test]
    fn it_is_gla_with_the_key_tied_to_the_gate() {
        let device = Device::flex();
        let config = Hgrn2Config { heads: 1, query_activation: Activation::Sigmoid, ..Default::default() };
        let hgrn2 = layer(&config);
        let config = GlaConfig {
            heads: 1,
            key_dim: Some(8),
            feature_map: Activation::Sigmoid,
            gate_rank: 8,
            gate_temperature: 1.0,
            output_gate: None,
            ..Default::default()
        };
        let gla = config.init(8, &mut Init::new(2, &device)).unwrap();
        let forget = hgrn2.f_proj.weight.val();
        let named: [(&str, Value); 8] = [
            ("qkv.q_proj.weight", hgrn2.q_proj.weight.val().into()),
            ("qkv.k_proj.weight", forget.clone().neg().into()),
            ("qkv.v_proj.weight", hgrn2.i_proj.weight.val().into()),
            ("decay_down.weight", Tensor::<2>::eye(8, &device).into()),
            ("decay_up.weight", forget.into()),
            ("decay_up.bias", Tensor::<1>::zeros([8], &device).into()),
            ("readout.norm.weight", hgrn2.norm.weight.val().into()),
            ("readout.out_proj.weight", hgrn2.out_proj.weight.val().into()),
        ];
        let named = named.map(|(name, value)| (name.to_string(), value)).into();
        let gla = params::assign(gla, named).unwrap();
        let x = Draw::new(5).tensor::<3>([2, 13, 8], -2.0, 2.0);
        let (a, a_end) = hgrn2.forward(x.clone(), Mixer::initial_state(&hgrn2, 2), Form::Auto).unwrap();
        let (b, b_end) = gla.forward(x, Mixer::initial_state(&gla, 2), Form::Recurrent).unwrap();
        assert!(gap(a, b) < 1e-5);
        assert!(gap::<4>(a_end.get(MEMORY).unwrap(), b_end.get(MEMORY).unwrap()) < 1e-5);
    }

    #[test]
    fn the_lower_bound_holds() {
        let layer = layer(&Hgrn2Config { heads: 2, lower_bound: Some(0.75), ..Default::default() });
        let x = Draw::new(3).tensor::<3>([1, 30, 8], -30.0, 30.0);
        let views = layer.views(x, Mixer::initial_state(&layer, 1)).unwrap();
        let decays = numbers(views.spectrum.unwrap().re);
        assert!(decays.iter().all(|f| (0.75 - 1e-6..=1.0).contains(f)));
        assert!(decays.iter().any(|f| *f < 0.76) && decays.iter().any(|f| *f > 0.99));
    }

    #[test]
    fn impossible_values_are_refused() {
        let refused = |config: Hgrn2Config, field: &str| {
            let error = config.init(8, &mut Init::new(0, &Device::flex())).unwrap_err().to_string();
            assert!(error.contains(&format!("`{field}`")), "{error}");
        };
        refused(Hgrn2Config { heads: 0, ..Default::default() }, "heads");
        refused(Hgrn2Config { heads: 3, ..Default::default() }, "heads");
        refused(Hgrn2Config { key_dim: Some(0), ..Default::default() }, "key_dim");
        refused(Hgrn2Config { lower_bound: Some(1.0), ..Default::default() }, "lower_bound");
        refused(Hgrn2Config { lower_bound: Some(-0.1), ..Default::default() }, "lower_bound");
        refused(Hgrn2Config { norm_eps: 0.0, ..Default::default() }, "norm_eps");
    }
}
