//! The registry: every architecture by name, as a configuration and as a layer.

mod info;

use burn::module::Module;
use burn::tensor::Tensor;
use seqzoo_layers::linear::{Hgrn2Config, HgrnConfig};
use seqzoo_layers::system::{Cost, Form, Mixer, Run, State, Views};
use seqzoo_layers::{Init, Result};
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
    Attention "attention" seqzoo_layers::attention::AttentionConfig => seqzoo_layers::attention::Attention;
    LinearAttention "linear_attention" seqzoo_layers::linear::LinearAttentionConfig => seqzoo_layers::linear::LinearAttention;
    Lightning "lightning" seqzoo_layers::lightning::LightningConfig => seqzoo_layers::lightning::Lightning;
    DeltaNet "deltanet" seqzoo_layers::delta::DeltaNetConfig => seqzoo_layers::delta::DeltaNet;
    GatedDeltaNet "gated_deltanet" seqzoo_layers::delta::GatedDeltaNetConfig => seqzoo_layers::delta::GatedDeltaNet;
    DeltaProduct "deltaproduct" seqzoo_layers::delta::DeltaProductConfig => seqzoo_layers::delta::DeltaProduct;
    Kda "kda" seqzoo_layers::delta::KdaConfig => seqzoo_layers::delta::Kda;
    Comba "comba" seqzoo_layers::delta::CombaConfig => seqzoo_layers::delta::Comba;
    Dplr "dplr" seqzoo_layers::delta::DplrConfig => seqzoo_layers::delta::Dplr;
    Longhorn "longhorn" seqzoo_layers::delta::LonghornConfig => seqzoo_layers::delta::Longhorn;
    MomentumDeltaNet "momentum_deltanet" seqzoo_layers::delta::MomentumDeltaNetConfig => seqzoo_layers::delta::MomentumDeltaNet;
    Mamba2 "mamba2" seqzoo_layers::ssm::Mamba2Config => seqzoo_layers::ssm::Mamba2;
    RgLru "rglru" seqzoo_layers::rnn::RgLruConfig => seqzoo_layers::rnn::RgLru;
    Lstm "lstm" seqzoo_layers::rnn::LstmConfig => seqzoo_layers::rnn::Lstm;
    Moh "moh" seqzoo_layers::moh::MohConfig => seqzoo_layers::moh::Moh<seqzoo_layers::attention::Attention>;
    Yaad "yaad" seqzoo_layers::miras::YaadConfig => seqzoo_layers::miras::Yaad;
    NormalizedAttention "normalized_attention" seqzoo_layers::linear::NormalizedAttentionConfig => seqzoo_layers::linear::NormalizedAttention;
    RetNet "retnet" seqzoo_layers::linear::RetNetConfig => seqzoo_layers::linear::RetNet;
    Gla "gla" seqzoo_layers::linear::GlaConfig => seqzoo_layers::linear::Gla;
    SimpleGla "simple_gla" seqzoo_layers::linear::SimpleGlaConfig => seqzoo_layers::linear::SimpleGla;
    Hgrn2 "hgrn2" seqzoo_layers::linear::Hgrn2Config => seqzoo_layers::linear::Hgrn2;
    Hgrn "hgrn" seqzoo_layers::linear::HgrnConfig => seqzoo_layers::linear::Hgrn;
    ForgettingAttention "forgetting_attention" seqzoo_layers::attention::ForgettingAttentionConfig => seqzoo_layers::attention::ForgettingAttention;
    PathAttention "path_attention" seqzoo_layers::attention::PathAttentionConfig => seqzoo_layers::attention::PathAttention;
    Mla "mla" seqzoo_layers::attention::MlaConfig => seqzoo_layers::attention::Mla;
    Flow "flow" seqzoo_layers::linear::FlowConfig => seqzoo_layers::linear::Flow;
    Gsa "gsa" seqzoo_layers::linear::GsaConfig => seqzoo_layers::linear::Gsa;
    Abc "abc" seqzoo_layers::linear::AbcConfig => seqzoo_layers::linear::Abc;
    TttLinear "ttt_linear" seqzoo_layers::miras::TttLinearConfig => seqzoo_layers::miras::Ttt;
    TttMlp "ttt_mlp" seqzoo_layers::miras::TttMlpConfig => seqzoo_layers::miras::Ttt;
    Rwkv4 "rwkv4" seqzoo_layers::rwkv::Rwkv4Config => seqzoo_layers::rwkv::Rwkv4;
    Rwkv6 "rwkv6" seqzoo_layers::rwkv::Rwkv6Config => seqzoo_layers::rwkv::Rwkv6;
    Rwkv7 "rwkv7" seqzoo_layers::rwkv::Rwkv7Config => seqzoo_layers::rwkv::Rwkv7;
    MesaNet "mesa_net" seqzoo_layers::linear::MesaNetConfig => seqzoo_layers::linear::MesaNet;
    LogLinearAttention "log_linear_attention" seqzoo_layers::linear::LogLinearAttentionConfig => seqzoo_layers::linear::LogLinearAttention;
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

    fn cost(&self, batch: usize, time: usize, form: Form) -> Cost {
        self.as_mixer().cost(batch, time, form)
    }

    fn auxiliary_loss(&self, x: Tensor<3>) -> Result<Option<Tensor<1>>> {
        self.as_mixer().auxiliary_loss(x)
    }
}
