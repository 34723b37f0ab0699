//! Tests of whole runs: learning, stopping, resuming, failing.

use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::path::Path;

use burn::module::Module;
use burn::tensor::Device;
use seqzoo_layers::attention::AttentionConfig;
use seqzoo_layers::delta::GatedDeltaNetConfig;
use seqzoo_layers::{Value, params};

use super::checkpoint::WriteFile;
use super::*;
use crate::Error;
use crate::data::{Mqar, Source, Tokenizer};
use crate::model::LanguageModelConfig;
use crate::registry::MixerConfig;

fn delta() -> LanguageModelConfig {
    let mixer = GatedDeltaNetConfig { heads: 2, ..Default::default() };
    LanguageModelConfig::small(MixerConfig::GatedDeltaNet(mixer), 256, 16, 1)
}

fn attention() -> LanguageModelConfig {
    let mixer = AttentionConfig { heads: 2, ..Default::default() };
    LanguageModelConfig::small(MixerConfig::Attention(mixer), 256, 16, 1)
}

fn settings(steps: usize) -> TrainConfig {
    TrainConfig {
        steps,
        batch: 2,
        time: 16,
        lr: 1e-2,
        warmup: 2,
        eval_every: 0,
        eval_batches: 2,
        save_every: 0,
        seed: 3,
        ..Default::default()
    }
}

fn create(dir: &Path, config: &LanguageModelConfig, settings: TrainConfig) -> Result<Run> {
    let source = Source::Text { path: None };
    Run::create(dir, config, settings, source, Tokenizer::Bytes, &Device::flex())
}

/// Runs until the end or step `stop`, collecting losses as bits.
fn go(run: &mut Run, stop: usize) -> Result<Vec<(usize, u64)>> {
    let mut losses = Vec::new();
    run.run(&mut |event| match event {
        Event::Step(m) => {
            losses.push((m.step, m.loss.to_bits()));
            if m.step == stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        }
        _ => ControlFlow::Continue(()),
    })?;
    Ok(losses)
}

fn weights_of(run: &Run) -> Vec<Vec<f64>> {
    params::parameters(run.trainer().model()).values().map(|v| v.to_f64().unwrap()).collect()
}

#[test]
fn a_resumed_run_repeats_the_uninterrupted_one_bit_for_bit() {
    for config in [delta(), attention()] {
        let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut straight = create(whole.path(), &config, settings(8)).unwrap();
        let expected = go(&mut straight, 99).unwrap();
        assert_eq!(expected.len(), 8);

        let mut first = create(parts.path(), &config, settings(8)).unwrap();
        let mut losses = go(&mut first, 3).unwrap();
        drop(first);
        let mut second = Run::resume(parts.path(), None, &Device::flex()).unwrap();
        assert_eq!(second.trainer().steps_done(), 3);
        losses.extend(go(&mut second, 99).unwrap());
        assert_eq!(losses, expected);
        assert_eq!(weights_of(&second), weights_of(&straight));

        let rows = |dir: &Path| fs::read_to_string(dir.join("metrics.csv")).unwrap().lines().count();
        assert_eq!((rows(whole.path()), rows(parts.path())), (9, 9));
    }
}

#[test]
fn training_lowers_the_loss_on_text_and_on_recall() {
    let dir = tempfile::tempdir().unwrap();
    let mut run = create(dir.path(), &delta(), settings(60)).unwrap();
    let before = run.evaluate().unwrap();
    assert!((before.loss - 256f64.ln()).abs() < 1.0, "an untrained model guesses: {before:?}");
    go(&mut run, 99).unwrap();
    let after = run.evaluate().unwrap();
    assert!(after.loss < before.loss - 1.0 && after.accuracy > before.accuracy, "{before:?} {after:?}");

    let task = Mqar { vocab: 64, length: 16, pairs: 2, ..Default::default() };
    let model = LanguageModelConfig { vocab: 64, ..attention() }.init(0, &Device::flex().autodiff()).unwrap();
    let before = evaluate(&model, &mut task.batches(1, 8).unwrap(), 4).unwrap();
    let mut steps = 0;
    let mut count = |_: &StepMetrics| {
        steps += 1;
        ControlFlow::Continue(())
    };
    let model = fit(model, &mut task.batches(0, 8).unwrap(), &settings(60), &mut count).unwrap();
    let after = evaluate(&model, &mut task.batches(1, 8).unwrap(), 4).unwrap();
    assert!(steps == 60 && after.loss < before.loss - 0.3, "{before:?} {after:?}");
}

#[test]
fn fit_stops_when_told_to_and_its_model_can_be_trained_again() {
    let task = Mqar { vocab: 64, length: 16, pairs: 2, ..Default::default() };
    let model = LanguageModelConfig { vocab: 64, ..delta() }.init(0, &Device::flex()).unwrap();
    let mut last = 0;
    let mut stop = |m: &StepMetrics| {
        last = m.step;
        if m.step == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let model = fit(model, &mut task.batches(0, 2).unwrap(), &settings(60), &mut stop).unwrap();
    assert!(model.devices().iter().all(|device| !device.is_autodiff()));
    fit(model, &mut task.batches(0, 2).unwrap(), &settings(60), &mut stop).unwrap();
    assert_eq!(last, 2);
}

#[test]
fn a_disk_that_fills_up_leaves_the_previous_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let mut run = create(dir.path(), &delta(), settings(4)).unwrap();
    go(&mut run, 2).unwrap();
    go(&mut run, 3).unwrap();
    for failing in 0..4 {
        let mut written = 0;
        let full: &mut WriteFile<'_> = &mut |path: &Path, bytes: &[u8]| {
            if written == failing {
                fs::write(path, &bytes[..bytes.len() / 2])?;
                return Err(io::Error::from(io::ErrorKind::StorageFull));
            }
            written += 1;
            fs::write(path, bytes)
        };
        let error = run.trainer.save_with(dir.path(), &run.about, full).unwrap_err();
        assert!(matches!(error, Error::Save { kept: Some(_), .. }), "{error}");
        let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names.len(), 3, "checkpoint, metrics.csv, metrics.jsonl: {names:?}");
        assert_eq!(Run::resume(dir.path(), None, &Device::flex()).unwrap().trainer().steps_done(), 3);
    }
}

#[test]
fn a_save_cut_short_between_its_renames_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut run = create(dir.path(), &delta(), settings(4)).unwrap();
    go(&mut run, 2).unwrap();
    fs::rename(dir.path().join("checkpoint"), dir.path().join("checkpoint.old")).unwrap();
    fs::create_dir(dir.path().join("checkpoint.new")).unwrap();
    let mut run = Run::resume(dir.path(), None, &Device::flex()).unwrap();
    assert_eq!(run.trainer().steps_done(), 2);
    go(&mut run, 99).unwrap();
    assert!(!dir.path().join("checkpoint.old").exists() && !dir.path().join("checkpoint.new").exists());
    assert_eq!(Checkpoint::load(dir.path(), &Device::flex()).unwrap().progress.step, 4);
    assert!(Checkpoint::load(&dir.path().join("checkpoint"), &Device::flex()).is_ok());
}

#[test]
fn numbers_that_stop_being_finite_stop_the_run_and_are_named() {
    // A parameter that is no number.
    let model = delta().init(0, &Device::flex().autodiff()).unwrap();
    let mut named = params::parameters(&model);
    let (name, value) = named.iter().next().map(|(k, v)| (k.clone(), v.clone())).unwrap();
    let nan = Value::from_data(
        burn::tensor::TensorData::new(vec![f32::NAN; value.numel()], value.dims()),
        &Device::flex().autodiff(),
    );
    named.insert(name.clone(), nan.unwrap().require_grad());
    let model = params::assign(model, named).unwrap();
    let mut batches = Mqar { vocab: 200, ..Default::default() }.batches(0, 2).unwrap();
    let error = fit(model, &mut batches, &settings(5), &mut |_| ControlFlow::Continue(())).unwrap_err();
    let Error::NotFinite { step: 1, tensor, checkpoint: None } = error else { panic!("{error}") };
    assert_eq!(tensor, name);

    // A rate so high that the numbers explode after a good checkpoint.
    let dir = tempfile::tempdir().unwrap();
    let mut run =
        create(dir.path(), &delta(), TrainConfig { save_every: 1, warmup: 0, ..settings(50) }).unwrap();
    go(&mut run, 1).unwrap();
    run.trainer.config.lr = 1e38;
    run.trainer.config.grad_clip = 1e38;
    let error = go(&mut run, 99).unwrap_err();
    let Error::NotFinite { step, checkpoint: Some(_), .. } = &error else { panic!("{error}") };
    let kept = Checkpoint::load(dir.path(), &Device::flex()).unwrap();
    assert!(kept.progress.step <= *step);
    let kept = params::parameters(&kept.model);
    assert!(kept.values().all(|v| v.to_f64().unwrap().iter().all(|x| x.is_finite())));
}

#[test]
fn checkpoints_of_other_models_and_damaged_ones_are_refused() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    go(&mut create(one.path(), &delta(), settings(1)).unwrap(), 9).unwrap();
    go(&mut create(two.path(), &attention(), settings(1)).unwrap(), 9).unwrap();
    let load = |dir: &Path| Checkpoint::load(dir, &Device::flex());
    let words = |result: Result<Checkpoint>| result.unwrap_err().to_string();

    let checkpoint = load(one.path()).unwrap();
    assert!(checkpoint.expect(&delta()).is_ok() && checkpoint.expect_arch("gated_deltanet").is_ok());
    let error = checkpoint.expect_arch("attention").unwrap_err().to_string();
    assert!(error.contains("gated_deltanet, not attention"), "{error}");
    assert!(checkpoint.expect(&attention()).unwrap_err().to_string().contains("another architecture"));

    let model = one.path().join("checkpoint/model.safetensors");
    fs::copy(two.path().join("checkpoint/model.safetensors"), &model).unwrap();
    let error = words(load(one.path()));
    assert!(error.contains("do not fit") && error.contains("is missing"), "{error}");

    let bytes = fs::read(&model).unwrap();
    fs::write(&model, &bytes[..bytes.len() - 3]).unwrap();
    assert!(words(load(one.path())).contains("truncated"));
    fs::write(one.path().join("checkpoint/train.json"), "{\"format\"").unwrap();
    assert!(words(load(one.path())).contains("damaged"));
    assert!(words(load(&two.path().join("nowhere"))).contains("no checkpoint here"));

    let moments = two.path().join("checkpoint/optimizer.safetensors");
    fs::write(&moments, &fs::read(&moments).unwrap()[..40]).unwrap();
    assert!(load(two.path()).is_ok(), "generation does not need the optimizer");
    let error = load(two.path()).unwrap().resume().unwrap_err().to_string();
    assert!(error.contains("optimizer.safetensors"), "{error}");
}

#[test]
fn a_folder_with_a_run_and_a_folder_that_cannot_be_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    go(&mut create(dir.path(), &delta(), settings(1)).unwrap(), 9).unwrap();
    let before = fs::read(dir.path().join("checkpoint/train.json")).unwrap();
    let error = create(dir.path(), &delta(), settings(1)).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("already holds a checkpoint"), "{error}");
    assert_eq!(fs::read(dir.path().join("checkpoint/train.json")).unwrap(), before);

    let file = dir.path().join("metrics.csv");
    let error = create(&file.join("run"), &delta(), settings(1)).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("metrics.csv"), "{error}");
    let error = Run::resume(&dir.path().join("none"), None, &Device::flex()).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("no checkpoint here"), "{error}");
}

#[test]
fn a_vocabulary_too_small_for_the_tokenizer_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let config = LanguageModelConfig { vocab: 100, ..delta() };
    let error = create(dir.path(), &config, settings(1)).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("100") && error.contains("256"), "{error}");
}
