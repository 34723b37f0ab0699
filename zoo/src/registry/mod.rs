//! The registry: every architecture by name, as a configuration and as a layer.

mod info;

use burn::module::Module;
use burn::tensor::Tensor;
use seqzoo_layers::system::{Cost, Form, Mixer, Run, State, Views};
use seqzoo_layers::{Init, Result};
use serde::{Deserialize, Serialize};

pub use info::{Architecture, architecture, architectures, nearest};

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
    GatedDeltaNet "gated_deltanet" seqzoo_layers::delta::GatedDeltaNetConfig => seqzoo_layers::delta::GatedDeltaNet;
    Mamba2 "mamba2" seqzoo_layers::ssm::Mamba2Config => seqzoo_layers::ssm::Mamba2;
    RgLru "rglru" seqzoo_layers::rnn::RgLruConfig => seqzoo_layers::rnn::RgLru;
    Lstm "lstm" seqzoo_layers::rnn::LstmConfig => seqzoo_layers::rnn::Lstm;
    Moh "moh" seqzoo_layers::moh::MohConfig => seqzoo_layers::moh::Moh<seqzoo_layers::attention::Attention>;
    Yaad "yaad" seqzoo_layers::miras::YaadConfig => seqzoo_layers::miras::Yaad;
    TttLinear "ttt_linear" seqzoo_layers::miras::TttLinearConfig => seqzoo_layers::miras::Ttt;
    TttMlp "ttt_mlp" seqzoo_layers::miras::TttMlpConfig => seqzoo_layers::miras::Ttt;
    NeuralMemory "titans_neural_memory" seqzoo_layers::miras::NeuralMemoryConfig => seqzoo_layers::miras::NeuralMemory;
}

impl MixerConfig {
    /// Fills in settings that depend on the layer's place in the stack, where the user left them out.
    pub fn at_layer(mut self, layer: usize, layers: usize) -> Self {
        if let Self::Lightning(config) = &mut self {
            config.layer = config.layer.or(Some(layer));
            config.layers = config.layers.or(Some(layers));
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
