//! `seqzoo generate`

use std::io::Read;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use burn::tensor::Device;
use seqzoo::data::Tokenizer;
use seqzoo::generate::{Generator, Sampling};
use seqzoo::model::LanguageModel;
use seqzoo::train::Checkpoint;
use seqzoo::{Error, Result, hf};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder of a training run, or of a Hugging Face model (config.json, model.safetensors, tokenizer.json;
    /// without a tokenizer, prompt and answer are numbers).
    #[arg(long, value_name = "DIR")]
    checkpoint: PathBuf,
    /// Text to continue; `-` reads it from stdin. May be left out with --load-state.
    #[arg(long, required_unless_present = "load_state")]
    prompt: Option<String>,
    /// Tokens to generate.
    #[arg(long, default_value_t = 200)]
    tokens: usize,
    /// 0 always takes the most likely token.
    #[arg(long, default_value_t = Sampling::default().temperature)]
    temperature: f64,
    /// Choose among this many most likely tokens.
    #[arg(long)]
    top_k: Option<usize>,
    /// Choose among the most likely tokens that together have this probability.
    #[arg(long)]
    top_p: Option<f64>,
    /// Same seed, same text. A loaded state continues its own random numbers unless this is given.
    #[arg(long)]
    seed: Option<u64>,
    /// Where to compute.
    #[arg(long, default_value = "flex")]
    device: String,
    /// Write the state after the last token, to continue later.
    #[arg(long, value_name = "FILE")]
    save_state: Option<PathBuf>,
    /// Continue from a saved state.
    #[arg(long, value_name = "FILE")]
    load_state: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let sampling = Sampling { temperature: args.temperature, top_k: args.top_k, top_p: args.top_p };
    sampling.validate()?;
    let device = seqzoo_layers::device::open(&args.device)?;
    let (model, tokenizer) = load(&args.checkpoint, &device)?;
    let mut generator = match &args.load_state {
        None => Generator::new(&model, args.seed.unwrap_or(0)),
        Some(path) => {
            let mut generator = Generator::load(path, &model)?;
            args.seed.into_iter().for_each(|seed| generator.reseed(seed));
            generator
        }
    };
    let prompt = prompt(args)?;
    let prompt_ids = tokenizer.encode(&prompt)?;
    generator.feed(&prompt_ids)?;
    super::emit(&prompt)?;
    // Ids are separated by spaces; a continuation must not run into the last one.
    if matches!(tokenizer, Tokenizer::Ids { .. }) && !prompt.ends_with(char::is_whitespace) {
        super::emit(" ")?;
    }

    super::catch_ctrl_c();
    let started = Instant::now();
    let mut first = None;
    let mut stream = tokenizer.stream();
    let mut failed = None;
    let tokens = generator.generate(args.tokens, &sampling, &mut |id| {
        first.get_or_insert_with(|| started.elapsed());
        // A model may have more ids than its tokenizer; such a token has no text.
        let written = stream.push(id).and_then(|text| super::emit(&text));
        match written {
            Ok(()) if super::interrupted() => ControlFlow::Break(()),
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failed = Some(error);
                ControlFlow::Break(())
            }
        }
    })?;
    if let Some(error) = failed {
        return Err(error);
    }
    super::emit(&format!("{}\n", stream.finish()?))?;
    if let Some(path) = &args.save_state {
        generator.save(path)?;
    }
    if let Some(first) = first {
        let rest = (started.elapsed() - first).as_secs_f64() / tokens.len().saturating_sub(1).max(1) as f64;
        tracing::info!(
            "{} prompt tokens to the first new one in {:.1} ms, then {:.2} ms per token",
            prompt_ids.len(),
            first.as_secs_f64() * 1e3,
            rest * 1e3
        );
    }
    Ok(if super::interrupted() { ExitCode::from(130) } else { ExitCode::SUCCESS })
}

/// The model and tokenizer of a training run, or of a folder that transformers wrote.
fn load(dir: &Path, device: &Device) -> Result<(LanguageModel, Tokenizer)> {
    if !Checkpoint::exists(dir) && hf::Checkpoint::exists(dir) {
        let checkpoint = hf::Checkpoint::open(dir)?;
        return Ok((checkpoint.load(device)?, checkpoint.tokenizer()?));
    }
    let Checkpoint { model, progress, .. } = Checkpoint::load(dir, device)?;
    Ok((model, progress.tokenizer))
}

fn prompt(args: &Args) -> Result<String> {
    match args.prompt.as_deref() {
        None => Ok(String::new()),
        Some("-") => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).map_err(|e| Error::io("stdin", e))?;
            Ok(text)
        }
        Some(text) => Ok(text.to_string()),
    }
}
