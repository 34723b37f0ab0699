//! Whole models as their papers have them, by name.

use seqzoo_layers::lightning::{LightningConfig, LrpeLayers};
use seqzoo_layers::nn::NormConfig;

use super::{LanguageModelConfig, LayerConfig, MlpConfig, Residual};
use crate::registry::MixerConfig;

/// A whole model by name: what is around the mixers is not what
/// [`LanguageModelConfig::small`] puts there.
#[derive(Clone, Copy, Debug)]
pub struct Preset {
    /// Name on the command line.
    pub name: &'static str,
    /// Full name.
    pub title: &'static str,
    /// arXiv id of the paper.
    pub paper: &'static str,
    build: fn(usize, usize, usize) -> LanguageModelConfig,
}

impl Preset {
    /// The model for a vocabulary, a width and a number of blocks.
    pub fn config(&self, vocab: usize, d_model: usize, depth: usize) -> LanguageModelConfig {
        (self.build)(vocab, d_model, depth)
    }

    /// The preset of that name.
    pub fn named(name: &str) -> Option<&'static Self> {
        PRESETS.iter().find(|preset| preset.name == name)
    }
}

/// All presets.
pub const PRESETS: &[Preset] = &[Preset {
    name: "transnormer",
    title: "TransNormerLLM: lightning attention, SGLU, norms without weights, positions in the first layer",
    paper: "2307.14995",
    build: LanguageModelConfig::transnormer,
}];

/// Channels of a head in all released TransNormerLLMs.
const HEAD_DIM: usize = 128;

impl LanguageModelConfig {
    /// TransNormerLLM as released: embedding times `√d`, lightning attention whose decay fades from layer to layer,
    /// LRPE in the first layer only, SGLU of 8/3 the width, SRMSNorm, and a head of its own.
    ///
    /// Heads have 128 channels; below four of those, there are four narrower ones.
    ///
    /// ```
    /// use seqzoo::model::LanguageModelConfig;
    ///
    /// let model = LanguageModelConfig::transnormer(256, 64, 3).init(0, &burn::tensor::Device::flex())?;
    /// assert_eq!(model.blocks.len(), 3);
    /// # Ok::<(), seqzoo::Error>(())
    /// ```
    pub fn transnormer(vocab: usize, d_model: usize, depth: usize) -> Self {
        let heads = (d_model / HEAD_DIM).max(4);
        let mixer = LightningConfig { lrpe: LrpeLayers::First, ..LightningConfig::tnl(heads) };
        // 2816, 5632, 6912, 11008 and 13824 for the released 1024, 2048, 2560, 4096 and 5120.
        let hidden = (8 * d_model).div_ceil(3).next_multiple_of((d_model / 4).clamp(1, 256));
        Self {
            vocab,
            d_model,
            embed_scale: Some((d_model as f64).sqrt()),
            learned_positions: None,
            pattern: vec![LayerConfig {
                mixer: MixerConfig::Lightning(mixer),
                conv: None,
                mlp: Some(MlpConfig::sglu(hidden)),
                residual: Residual::PreNorm,
            }],
            depth: Some(depth),
            norm: NormConfig::Srms { eps: 1e-6 },
            tied: false,
            head_bias: false,
            logit_softcap: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use seqzoo_layers::params;
    use seqzoo_layers::system::Form;

    use super::*;

    #[test]
    fn sizes_are_those_released() {
        for (d_model, heads, hidden) in
            [(1024, 8, 2816), (2048, 16, 5632), (2560, 20, 6912), (4096, 32, 11008), (5120, 40, 13824)]
        {
            let config = LanguageModelConfig::transnormer(64_000, d_model, 2);
            let layer = &config.pattern[0];
            assert_eq!(layer.mlp, Some(MlpConfig::sglu(hidden)));
            let MixerConfig::Lightning(mixer) = &layer.mixer else { panic!("no lightning attention") };
            assert_eq!(mixer.heads, heads);
        }
    }

    #[test]
    fn every_preset_reads_and_learns_and_survives_json() {
        for preset in PRESETS {
            let config = preset.config(19, 16, 3);
            assert_eq!(LanguageModelConfig::from_json(&config.to_json().unwrap()).unwrap(), config);
            assert_eq!(Preset::named(preset.name).unwrap().title, preset.title);
            let model = config.init(0, &Device::flex().autodiff()).unwrap();
            let tokens = model.tokens(&[vec![1, 18, 7, 7, 0]]).unwrap();
            let output = model.forward(tokens, model.initial_state(1), Form::Auto).unwrap();
            let grads = params::gradients(&model, &output.logits.square().sum().backward());
            let names: Vec<_> = params::parameters(&model).into_keys().collect();
            assert_eq!(grads.into_keys().collect::<Vec<_>>(), names, "{}", preset.name);
        }
        assert!(Preset::named("transformer").is_none());
    }

    /// Nothing but maps, the embedding, the head and one layer's frequencies is learned.
    #[test]
    fn transnormer_has_positions_in_the_first_layer_and_no_norm_weights() {
        let model = LanguageModelConfig::transnormer(19, 16, 3).init(0, &Device::flex()).unwrap();
        let names: Vec<_> = params::parameters(&model).into_keys().collect();
        let with = |part: &str| names.iter().filter(|name| name.contains(part)).collect::<Vec<_>>();
        assert_eq!(with("theta"), ["blocks.0.mixer.lrpe.theta"]);
        assert!(with("norm").is_empty(), "{names:?}");
        assert_eq!(with("head").len(), 1);
    }
}
