//! The registry: every architecture by name, as a configuration and as a layer.

mod info;

use burn::module::Module;
use burn::tensor::Tensor;
use seqzoo_layers::linear::{Hgrn2Config, HgrnConfig};
use seqzoo_layers::system::{Cost, Form, Mixer, Run, State, Terms, Views};
use seqzoo_layers::{Init, Result, attention, delta, lightning, linear, miras, moh, rnn, rwkv, ssm};
use serde::{Deserialize, Serialize};

pub use info::{Architecture, Family, architecture, architectures, families, nearest};

/// Declares the configuration enum, the layer enum and the dispatch between them, one line per
/// architecture: variant, name in files and on the command line, configuration type, layer type.
macro_rules! registry {
    ($($variant:ident $name:literal $config:ty => $layer:ty;)*) => {
        /// Configuration of any mixer; `arch` names it in JSON and TOML.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "arch")]
        pub enum MixerConfig {
            $(
                #[doc = concat!("`", $name, "`")]
                #[serde(rename = $name)]
                $variant($config),
            )*
        }

        impl MixerConfig {
            /// All names, in the order of the registry.
            pub const NAMES: &'static [&'static str] = &[$($name),*];

            /// The default configuration of an architecture.
            pub fn named(name: &str) -> Option<Self> {
                match name {
                    $($name => Some(Self::$variant(Default::default())),)*
                    _ => None,
                }
            }

            /// The architecture's name.
            pub fn name(&self) -> &'static str {
                match self {
                    $(Self::$variant(_) => $name,)*
                }
            }

            /// Checks the values and draws the parameters for width `d_model`.
            pub fn init(&self, d_model: usize, init: &mut Init) -> Result<AnyMixer> {
                Ok(match self {
                    $(Self::$variant(config) => AnyMixer::$variant(config.init(d_model, init)?),)*
                })
            }
        }

        /// Any mixer.
        #[derive(Module, Debug)]
        pub enum AnyMixer {
            $(
                #[doc = concat!("`", $name, "`")]
                $variant($layer),
            )*
        }

        impl AnyMixer {
            /// The layer behind its interface.
            pub fn as_mixer(&self) -> &dyn Mixer {
                match self {
                    $(Self::$variant(layer) => layer,)*
                }
            }
        }
    };
}

registry! {
    Attention "attention" attention::AttentionConfig => attention::Attention;
    ForgettingAttention "forgetting_attention" attention::ForgettingAttentionConfig => attention::ForgettingAttention;
    PathAttention "path_attention" attention::PathAttentionConfig => attention::PathAttention;
    Mla "mla" attention::MlaConfig => attention::Mla;
    Moh "moh" moh::MohConfig => moh::Moh<attention::Attention>;

    LinearAttention "linear_attention" linear::LinearAttentionConfig => linear::LinearAttention;
    NormalizedAttention "normalized_attention" linear::NormalizedAttentionConfig => linear::NormalizedAttention;
    Flow "flow" linear::FlowConfig => linear::Flow;
    Lightning "lightning" lightning::LightningConfig => lightning::Lightning;
    RetNet "retnet" linear::RetNetConfig => linear::RetNet;
    SimpleGla "simple_gla" linear::SimpleGlaConfig => linear::SimpleGla;
    Gla "gla" linear::GlaConfig => linear::Gla;
    Hgrn2 "hgrn2" linear::Hgrn2Config => linear::Hgrn2;
    Hgrn "hgrn" linear::HgrnConfig => linear::Hgrn;
    Gsa "gsa" linear::GsaConfig => linear::Gsa;
    Abc "abc" linear::AbcConfig => linear::Abc;
    MesaNet "mesa_net" linear::MesaNetConfig => linear::MesaNet;
    LogLinearAttention "log_linear_attention" linear::LogLinearAttentionConfig => linear::LogLinearAttention;

    DeltaNet "deltanet" delta::DeltaNetConfig => delta::DeltaNet;
    GatedDeltaNet "gated_deltanet" delta::GatedDeltaNetConfig => delta::GatedDeltaNet;
    DeltaProduct "deltaproduct" delta::DeltaProductConfig => delta::DeltaProduct;
    Kda "kda" delta::KdaConfig => delta::Kda;
    Comba "comba" delta::CombaConfig => delta::Comba;
    Dplr "dplr" delta::DplrConfig => delta::Dplr;
    Longhorn "longhorn" delta::LonghornConfig => delta::Longhorn;
    MomentumDeltaNet "momentum_deltanet" delta::MomentumDeltaNetConfig => delta::MomentumDeltaNet;

    Rwkv4 "rwkv4" rwkv::Rwkv4Config => rwkv::Rwkv4;
    Rwkv6 "rwkv6" rwkv::Rwkv6Config => rwkv::Rwkv6;
    Rwkv7 "rwkv7" rwkv::Rwkv7Config => rwkv::Rwkv7;

    Mamba2 "mamba2" ssm::Mamba2Config => ssm::Mamba2;
    RgLru "rglru" rnn::RgLruConfig => rnn::RgLru;
    Lstm "lstm" rnn::LstmConfig => rnn::Lstm;

    Miras "miras" miras::MirasConfig => miras::Miras;
    Moneta "moneta" miras::MonetaConfig => miras::Miras;
    Yaad "yaad" miras::YaadConfig => miras::Miras;
    Memora "memora" miras::MemoraConfig => miras::Miras;
    Titans "titans" miras::TitansConfig => miras::Miras;
    TttLinear "ttt_linear" miras::TttLinearConfig => miras::Ttt;
    TttMlp "ttt_mlp" miras::TttMlpConfig => miras::Ttt;
    NeuralMemory "titans_neural_memory" miras::NeuralMemoryConfig => miras::NeuralMemory;
}

impl MixerConfig {
    /// Fills in settings that depend on the layer's place in the stack, where the user left them out.
    pub fn at_layer(mut self, layer: usize, layers: usize) -> Self {
        let place = match &mut self {
            Self::Lightning(config) => Some((&mut config.layer, &mut config.layers)),
            Self::Rwkv4(config) => Some((&mut config.layer, &mut config.layers)),
            Self::Rwkv6(config) => Some((&mut config.layer, &mut config.layers)),
            Self::Rwkv7(config) => Some((&mut config.layer, &mut config.layers)),
            _ => None,
        };
        if let Some((at, of)) = place {
            *at = at.or(Some(layer));
            *of = of.or(Some(layers));
        }
        if let Self::Hgrn2(Hgrn2Config { lower_bound, .. }) | Self::Hgrn(HgrnConfig { lower_bound, .. }) =
            &mut self
        {
            *lower_bound = lower_bound.or(Some(layer as f64 / layers.max(1) as f64));
        }
        self
    }
}

impl Mixer for AnyMixer {
    fn d_model(&self) -> usize {
        self.as_mixer().d_model()
    }

    fn initial_state(&self, batch: usize) -> State {
        self.as_mixer().initial_state(batch)
    }

    fn run(&self, x: Tensor<3>, state: State, run: Run<'_>) -> Result<(Tensor<3>, State)> {
        self.as_mixer().run(x, state, run)
    }

    fn views(&self, x: Tensor<3>, state: State) -> Result<Views> {
        self.as_mixer().views(x, state)
    }

    fn terms(&self, x: Tensor<3>, state: State) -> Result<Option<Terms>> {
        self.as_mixer().terms(x, state)
    }

    fn cost(&self, batch: usize, time: usize, form: Form) -> Cost {
        self.as_mixer().cost(batch, time, form)
    }

    fn auxiliary_loss(&self, x: Tensor<3>) -> Result<Option<Tensor<1>>> {
        self.as_mixer().auxiliary_loss(x)
    }
}
