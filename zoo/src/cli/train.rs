//! `seqzoo train`

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::ValueEnum;
use seqzoo::data::{Data, Mqar, Source, Tokenizer};
use seqzoo::model::{LanguageModelConfig, Preset};
use seqzoo::registry::MixerConfig;
use seqzoo::train::{Checkpoint, Event, Outcome, Run, TrainConfig};
use seqzoo::{Error, Result};

use super::progress::Progress;
use super::thousands;

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Task {
    /// Predict the next token of a text.
    Text,
    /// Multi-query associative recall.
    Mqar,
}

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Architecture of every layer (see `seqzoo list`).
    #[arg(long, value_parser = super::parse_arch, conflicts_with = "config")]
    arch: Option<MixerConfig>,
    /// A whole model as its paper has it instead (see `seqzoo list`).
    #[arg(long, value_name = "NAME", value_parser = super::parse_preset, conflicts_with_all = ["arch", "config"])]
    preset: Option<&'static Preset>,
    /// Configuration of the whole model instead, JSON or TOML.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// What to learn.
    #[arg(long, value_enum, default_value = "text")]
    task: Task,
    /// UTF-8 file or folder to learn from [default: the sources of seqzoo].
    #[arg(long, value_name = "PATH")]
    text: Option<PathBuf>,
    /// Hugging Face `tokenizer.json` [default: bytes].
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// Tokens of the recall task.
    #[arg(long, default_value_t = 256)]
    vocab: usize,
    /// Pairs to recall.
    #[arg(long, default_value_t = 4)]
    pairs: usize,
    /// Updates in all; may be raised when resuming [default: 500].
    #[arg(long)]
    steps: Option<usize>,
    /// Rows per batch.
    #[arg(long, default_value_t = TrainConfig::default().batch)]
    batch: usize,
    /// Tokens per row.
    #[arg(long, default_value_t = TrainConfig::default().time)]
    time: usize,
    /// Highest learning rate.
    #[arg(long, default_value_t = TrainConfig::default().lr)]
    lr: f64,
    /// Steps until the highest learning rate [default: a tenth of the steps, at most 100].
    #[arg(long)]
    warmup: Option<usize>,
    /// Width of the model.
    #[arg(long, default_value_t = 128)]
    width: usize,
    /// Number of blocks.
    #[arg(long, default_value_t = 2)]
    depth: usize,
    /// Same seed, same numbers.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Steps between evaluations; 0 for the end only.
    #[arg(long, default_value_t = TrainConfig::default().eval_every)]
    eval_every: usize,
    /// Steps between checkpoints; 0 for the end only.
    #[arg(long, default_value_t = TrainConfig::default().save_every)]
    save_every: usize,
    /// Folder for checkpoints and metrics.
    #[arg(long, value_name = "DIR", default_value = "runs/train")]
    out: PathBuf,
    /// Continue the run in the folder, exactly where it stopped.
    #[arg(long, conflicts_with_all = [
        "preset", "task", "text", "tokenizer", "vocab", "pairs", "batch", "time", "lr", "warmup", "width", "depth", "seed",
        "eval_every", "save_every",
    ])]
    resume: bool,
    /// Where to compute.
    #[arg(long, default_value = "flex")]
    device: String,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let device = seqzoo_layers::device::open(&args.device)?;
    let mut run = match args.resume {
        true => resume(args, &device)?,
        false => create(args, &device)?,
    };
    let (done, config) = (run.trainer().steps_done(), run.trainer().config().clone());
    let data = match run.data() {
        Data::Text(text) => format!("{} tokens of text", thousands(text.train.len())),
        Data::Mqar(task) => format!("recall of {} pairs in {} tokens", task.pairs, task.length),
    };
    let params = thousands(run.trainer().model().num_params());
    super::catch_ctrl_c();
    let progress = Progress::new(done, config.steps);
    let start = if done > 0 { format!(" from step {done}") } else { String::new() };
    progress.note(&format!("{params} parameters, {data}, {} steps{start} on {}", config.steps, args.device));
    let outcome = run.run(&mut |event| {
        match event {
            Event::Step(metrics) => progress.step(metrics),
            Event::Evaluated(step, judged) => progress.note(&format!(
                "step {step}: validation loss {:.4}, accuracy {:.1} %",
                judged.loss,
                100.0 * judged.accuracy
            )),
            Event::Saved(step) => tracing::info!("step {step}: checkpoint saved"),
        }
        if super::interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    drop(progress);
    super::emit(&format!("{}\n", args.out.display()))?;
    Ok(match outcome {
        Outcome::Finished => ExitCode::SUCCESS,
        Outcome::Stopped => {
            let out = args.out.display();
            eprintln!("stopped at step {}; continue with --resume --out {out}", run.trainer().steps_done());
            ExitCode::from(130)
        }
    })
}

fn create(args: &Args, device: &burn::tensor::Device) -> Result<Run> {
    let steps = args.steps.unwrap_or(TrainConfig::default().steps);
    let train = TrainConfig {
        steps,
        batch: args.batch,
        time: args.time,
        lr: args.lr,
        warmup: args.warmup.unwrap_or((steps / 10).min(100)),
        seed: args.seed,
        eval_every: args.eval_every,
        save_every: args.save_every,
        ..Default::default()
    };
    let (source, tokenizer) = match args.task {
        Task::Text => {
            let tokenizer = args.tokenizer.as_deref().map(Tokenizer::load).transpose()?;
            // Absolute, so that the run can be resumed from another folder.
            let path = args.text.as_deref().map(absolute).transpose()?;
            (Source::Text { path }, tokenizer.unwrap_or_default())
        }
        Task::Mqar => {
            let task = Mqar { vocab: args.vocab, length: args.time, pairs: args.pairs, ..Default::default() };
            (Source::Mqar(task), Tokenizer::Ids { vocab: args.vocab })
        }
    };
    let config = match (&args.config, args.preset) {
        (Some(path), _) => LanguageModelConfig::load(path)?,
        (None, Some(preset)) => preset.config(tokenizer.vocab(), args.width, args.depth),
        (None, None) => {
            let mixer = args.arch.clone().or_else(|| MixerConfig::named("gated_deltanet"));
            let mixer = mixer.ok_or_else(|| Error::Data("name an architecture with --arch".into()))?;
            LanguageModelConfig::small(mixer, tokenizer.vocab(), args.width, args.depth)
        }
    };
    Run::create(&args.out, &config, train, source, tokenizer, device)
}

fn resume(args: &Args, device: &burn::tensor::Device) -> Result<Run> {
    let checkpoint = Checkpoint::load(&args.out, &device.clone().autodiff())?;
    if let Some(path) = &args.config {
        checkpoint.expect(&LanguageModelConfig::load(path)?)?;
    }
    if let Some(arch) = &args.arch {
        checkpoint.expect_arch(arch.name())?;
    }
    Run::resume_from(&args.out, checkpoint, args.steps)
}

fn absolute(path: &Path) -> Result<PathBuf> {
    path.canonicalize().map_err(|e| Error::io(path, e))
}
