use burn::tensor::{Device, Int, Tensor};
use seqzoo_layers::attention::AttentionConfig;
use seqzoo_layers::delta::GatedDeltaNetConfig;
use seqzoo_layers::nn::{Activation, CausalConvConfig, NormConfig};
use seqzoo_layers::params;
use seqzoo_layers::system::{Form, Mask};

use super::{LanguageModel, LanguageModelConfig, LayerConfig, MlpConfig, ModelState, Residual, SharedExpert};
use crate::Error;
use crate::registry::MixerConfig;

fn hybrid() -> LanguageModelConfig {
    let delta = GatedDeltaNetConfig { heads: 2, head_dim: 4, ..Default::default() };
    let attention = AttentionConfig { heads: 2, kv_heads: Some(1), ..Default::default() };
    let moe = MlpConfig::Moe {
        experts: 3,
        top_k: 2,
        hidden: 8,
        activation: Activation::Silu,
        norm_topk: true,
        shared: Some(SharedExpert { hidden: 8, gated: true }),
    };
    let gelu = MlpConfig::Dense { hidden: 8, activation: Activation::GeluTanh, gated: false, bias: true };
    LanguageModelConfig {
        vocab: 11,
        d_model: 8,
        embed_scale: Some(2.0),
        learned_positions: Some(16),
        pattern: vec![
            LayerConfig {
                mixer: MixerConfig::GatedDeltaNet(delta),
                conv: None,
                mlp: Some(moe),
                residual: Residual::Normalized {
                    mixer_alpha: 1.5,
                    mixer_beta: 1.0,
                    mlp_alpha: 0.5,
                    mlp_beta: 2.0,
                },
            },
            LayerConfig {
                mixer: MixerConfig::Attention(attention),
                conv: Some(CausalConvConfig { kernel: 3, bias: true, activation: Activation::Identity }),
                mlp: Some(gelu),
                residual: Residual::PreNorm,
            },
        ],
        depth: None,
        norm: NormConfig::Layer { eps: 1e-5 },
        tied: false,
        head_bias: true,
        logit_softcap: Some(3.0),
    }
}

fn model(config: &LanguageModelConfig) -> LanguageModel {
    config.init(3, &Device::flex()).unwrap()
}

fn rows() -> [Vec<u32>; 2] {
    [vec![1, 5, 3, 10, 0, 2, 2, 7, 4], vec![9, 8, 7, 6, 5, 4, 3, 2, 1]]
}

#[track_caller]
fn assert_close<const D: usize>(a: Tensor<D>, b: Tensor<D>) {
    let gap = (a.clone() - b.clone()).square().sum().sqrt().into_scalar::<f32>();
    let size = b.square().sum().sqrt().into_scalar::<f32>();
    assert!(gap <= 1e-5 * size && size > 0.0, "{gap} of {size}");
}

#[test]
fn splits_steps_and_saved_states_continue_a_hybrid() {
    let model = model(&hybrid());
    let tokens = model.tokens(&rows()).unwrap();
    let whole = model.forward(tokens.clone(), model.initial_state(2), Form::Auto).unwrap();
    for form in [Form::Recurrent, Form::Chunked { size: 4 }, Form::Parallel] {
        let again = model.forward(tokens.clone(), model.initial_state(2), form).unwrap();
        assert_close(again.logits, whole.logits.clone());
    }
    for split in 0..9 {
        let head = model.tokens(&rows().map(|row| row[..split].to_vec())).unwrap();
        let first = model.forward(head, model.initial_state(2), Form::Auto).unwrap();
        let bytes = first.state.to_bytes().unwrap();
        let state = ModelState::from_bytes(&bytes, &Device::flex()).unwrap();
        assert_eq!(state.position(), Some(split));
        assert_eq!(state.bytes(), first.state.bytes());
        let tail = tokens.clone().narrow(1, split, 9 - split);
        let last = model.forward(tail, state, Form::Auto).unwrap();
        let both = Tensor::cat(vec![first.logits, last.logits], 1);
        assert_close(both, whole.logits.clone());
    }
    let mut state = model.initial_state(2);
    for t in 0..9 {
        let token: Tensor<1, Int> = tokens.clone().narrow(1, t, 1).squeeze_dim(1);
        let (logits, next) = model.step(token, state).unwrap();
        state = next;
        assert_close(logits, whole.logits.clone().narrow(1, t, 1).squeeze_dim(1));
    }
    assert_eq!(state.position(), Some(9));
}

#[test]
fn rows_of_a_state_are_selected_repeated_and_saved() {
    let model = model(&hybrid());
    let read =
        |rows: &[Vec<u32>], state| model.forward(model.tokens(rows).unwrap(), state, Form::Auto).unwrap();
    let both = read(&rows(), model.initial_state(2)).state;
    let second = read(&rows()[1..], model.initial_state(1)).state;
    let next = vec![vec![3u32]];
    let expected = read(&next, second).logits;
    assert_close(read(&next, both.select(&[1]).unwrap()).logits, expected.clone());
    let twice = both.select(&[1]).unwrap().repeat(2).unwrap();
    let out = read(&[next[0].clone(), next[0].clone()], twice).logits;
    assert_close(out.narrow(0, 1, 1), expected.clone());

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.safetensors");
    both.save(&path).unwrap();
    let loaded = ModelState::load(&path, &Device::flex()).unwrap();
    assert_close(read(&next, loaded.select(&[1]).unwrap()).logits, expected);
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    assert!(ModelState::load(&path, &Device::flex()).unwrap_err().to_string().contains("truncated"));
}

#[test]
fn padding_changes_nothing_for_real_tokens() {
    let model = model(&hybrid());
    let mut padded = rows();
    padded[0][6..].fill(0);
    let mask = Mask::from_lengths(&[6, 9], 9);
    let tokens = model.tokens(&padded).unwrap();
    let out = model.forward_masked(tokens, model.initial_state(2), Form::Auto, &mask).unwrap();
    assert_eq!(out.state.positions(), [6, 9]);
    let short = model.tokens(&[rows()[0][..6].to_vec()]).unwrap();
    let short = model.forward(short, model.initial_state(1), Form::Auto).unwrap();
    assert_close(out.logits.narrow(0, 0, 1).narrow(1, 0, 6), short.logits);
}

/// RWKV's MLP looks back one token too: its last token is part of the block's state.
#[test]
fn a_channel_mix_is_cut_padded_and_saved_like_a_mixer() {
    let block = |mixer: &str, receptance| LayerConfig {
        mixer: MixerConfig::named(mixer).unwrap(),
        conv: None,
        mlp: Some(MlpConfig::ChannelMix { hidden: 12, receptance }),
        residual: Residual::PreNorm,
    };
    let pattern = vec![block("rwkv4", true), block("rwkv7", false)];
    let config = LanguageModelConfig { pattern, learned_positions: None, ..hybrid() };
    assert_eq!(LanguageModelConfig::from_json(&config.to_json().unwrap()).unwrap(), config);
    let model = model(&config);
    let tokens = model.tokens(&rows()).unwrap();
    let whole = model.forward(tokens.clone(), model.initial_state(2), Form::Auto).unwrap();
    let head = model.forward(tokens.clone().narrow(1, 0, 4), model.initial_state(2), Form::Parallel).unwrap();
    let state = ModelState::from_bytes(&head.state.to_bytes().unwrap(), &Device::flex()).unwrap();
    let tail = model.forward(tokens.narrow(1, 4, 5), state, Form::Recurrent).unwrap();
    assert_close(Tensor::cat(vec![head.logits, tail.logits], 1), whole.logits);

    // The first row's padding comes first: as if it were not there, also for what follows.
    let mut padded = rows();
    padded[0][..3].fill(0);
    let mask = Mask::new((0..2).map(|row| (0..9).map(|t| row == 1 || t >= 3).collect()).collect()).unwrap();
    let tokens = model.tokens(&padded).unwrap();
    let out = model.forward_masked(tokens, model.initial_state(2), Form::Auto, &mask).unwrap();
    let short = model.tokens(&[rows()[0][3..].to_vec()]).unwrap();
    let alone = model.forward(short, model.initial_state(1), Form::Auto).unwrap();
    assert_close(out.logits.narrow(0, 0, 1).narrow(1, 3, 6), alone.logits);
    let next = model.tokens(&[vec![5, 6]]).unwrap();
    let row = out.state.select(&[0]).unwrap();
    let continued = model.forward(next.clone(), row, Form::Auto).unwrap();
    assert_close(continued.logits, model.forward(next, alone.state, Form::Auto).unwrap().logits);
    let foreign = self::model(&hybrid());
    assert!(foreign.blocks[0].initial_state(1).find::<3>("mlp_shift").unwrap().is_none());
    let nothing = LayerConfig {
        mlp: Some(MlpConfig::ChannelMix { hidden: 0, receptance: true }),
        ..config.pattern[0].clone()
    };
    assert!(LanguageModelConfig { pattern: vec![nothing], ..config }.validate().is_err());
}

#[test]
fn every_parameter_of_a_hybrid_gets_a_gradient() {
    let device = Device::flex().autodiff();
    let model = hybrid().init(1, &device).unwrap();
    let tokens = model.tokens(&rows()).unwrap();
    let out = model.forward_with_auxiliary(tokens, model.initial_state(2), Form::Auto).unwrap();
    assert!(out.auxiliary.is_none());
    let grads = params::gradients(&model, &out.logits.square().sum().backward());
    let names: Vec<_> = params::parameters(&model).into_keys().collect();
    assert_eq!(grads.keys().collect::<Vec<_>>(), names.iter().collect::<Vec<_>>());
    assert!(names.contains(&"blocks.0.mlp.shared_gate.weight".into()), "{names:?}");
    let numbers: usize = grads.values().map(|g| g.numel()).sum();
    assert_eq!(numbers, model.num_params());
}

#[test]
fn a_config_survives_json_and_toml() {
    let small = LanguageModelConfig::small(MixerConfig::named("gated_deltanet").unwrap(), 256, 32, 3);
    for config in [hybrid(), small] {
        assert_eq!(LanguageModelConfig::from_json(&config.to_json().unwrap()).unwrap(), config);
        let text = toml::to_string(&config).unwrap();
        assert_eq!(LanguageModelConfig::from_toml(&text).unwrap(), config);
    }
}

#[test]
fn the_pattern_is_repeated_to_the_depth() {
    let config = LanguageModelConfig { depth: Some(5), ..hybrid() };
    let names: Vec<_> = config.mixers().map(MixerConfig::name).collect();
    assert_eq!(names, ["gated_deltanet", "attention", "gated_deltanet", "attention", "gated_deltanet"]);
    assert_eq!(model(&config).blocks.len(), 5);
}

#[test]
fn bad_files_are_refused_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let good = hybrid().to_json().unwrap();
    let load = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        LanguageModelConfig::load(&path).map_err(|e| e.to_string())
    };
    assert_eq!(load("good.json", &good).unwrap(), hybrid());
    let typo = load("typo.json", &good.replace("gated_deltanet", "gated_deltnet")).unwrap_err();
    assert!(typo.contains("gated_deltnet") && typo.contains("did you mean `gated_deltanet`"), "{typo}");
    assert!(load("field.json", &good.replace("\"vocab\"", "\"vocabulary\"")).unwrap_err().contains("vocab"));
    assert!(load("cut.json", &good[..good.len() / 2]).unwrap_err().contains("cut.json"));
    assert!(load("config.yaml", &good).unwrap_err().contains(".toml"));
    assert!(load("zero.json", &good.replace("\"vocab\": 11", "\"vocab\": 0")).unwrap_err().contains("vocab"));
    let error = LanguageModelConfig::load(dir.path().join("none.json")).unwrap_err();
    assert!(matches!(error, Error::Io { .. }));
}

#[test]
fn impossible_models_and_calls_are_refused() {
    let mut heads = hybrid();
    heads.pattern[1].mixer = MixerConfig::Attention(AttentionConfig { heads: 3, ..Default::default() });
    let error = heads.init(0, &Device::flex()).unwrap_err().to_string();
    assert!(error.contains("heads") && error.contains('3'), "{error}");
    let mut experts = hybrid();
    experts.pattern[0].mlp = Some(MlpConfig::Moe {
        experts: 2,
        top_k: 3,
        hidden: 4,
        activation: Activation::Silu,
        norm_topk: false,
        shared: None,
    });
    assert!(experts.validate().unwrap_err().to_string().contains("top_k"));
    assert!(LanguageModelConfig { pattern: vec![], ..hybrid() }.validate().is_err());

    let model = model(&hybrid());
    assert!(model.tokens(&[vec![11]]).unwrap_err().to_string().contains("11"));
    assert!(model.tokens(&[vec![1], vec![1, 2]]).is_err());
    let long = model.tokens(&[vec![1; 17]]).unwrap();
    let error = model.forward(long, model.initial_state(1), Form::Auto).unwrap_err().to_string();
    assert!(error.contains("learned_positions"), "{error}");
    let tokens = model.tokens(&rows()).unwrap();
    assert!(model.forward(tokens.clone(), model.initial_state(1), Form::Auto).is_err());
    assert!(model.forward(tokens, ModelState { layers: vec![] }, Form::Auto).is_err());
    let none = model.forward(model.tokens(&[vec![]]).unwrap(), model.initial_state(1), Form::Auto);
    assert_eq!(none.unwrap().logits.dims(), [1, 0, 11]);
}

#[test]
fn cost_counts_every_parameter_and_grows_with_time() {
    let model = model(&hybrid());
    let (short, long) = (model.cost(1, 8, Form::Auto), model.cost(1, 16, Form::Auto));
    assert_eq!(short.params, model.num_params());
    assert!(long.flops > 1.9 * short.flops && long.bytes > short.bytes);
}
