//! `seqzoo describe ARCH`

use std::fmt::Write;
use std::process::ExitCode;

use burn::module::Module;
use seqzoo::registry::{MixerConfig, architecture};
use seqzoo::{Error, Result};
use seqzoo_layers::system::{Form, Growth, Mixer};
use seqzoo_layers::{Init, device};

use super::{si, thousands};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Name of the architecture (see `seqzoo list`).
    #[arg(value_parser = super::parse_arch)]
    arch: MixerConfig,
    /// Width of the layer.
    #[arg(long, default_value_t = 256)]
    width: usize,
    /// Rows of a batch, for the cost.
    #[arg(long, default_value_t = 1)]
    batch: usize,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    super::emit(&text(args)?)?;
    Ok(ExitCode::SUCCESS)
}

fn text(args: &Args) -> Result<String> {
    let layer = args.arch.init(args.width, &mut Init::new(0, &device::open(device::default_name())?))?;
    let mut out = String::new();
    // Writing to a string cannot fail.
    if let Some(a) = architecture(args.arch.name()) {
        let _ = writeln!(out, "{}: {} (arXiv {})\n", a.name, a.title, a.paper);
        for line in a.equations.lines() {
            let _ = writeln!(out, "  {}", line.trim());
        }
        let _ = writeln!(out, "\nstate: {}", a.state);
    }
    let state = layer.initial_state(args.batch);
    for (name, value, growth) in state.slots() {
        let growth = match growth {
            Growth::Fixed => "fixed",
            Growth::PerToken { .. } => "grows with every token",
            Growth::PerDoubling { .. } => "grows with every doubling of the tokens",
        };
        let _ = writeln!(out, "  {name:<12} {:?}  {growth}", value.dims());
    }
    let (params, width) = (thousands(layer.num_params()), args.width);
    let _ = writeln!(out, "\nparameters: {params} at width {width}");
    for (name, value) in seqzoo_layers::params::parameters(&layer) {
        let _ = writeln!(out, "  {name:<24} {:?}", value.dims());
    }
    let _ = writeln!(out, "\ncost of one layer, batch {} (form auto; one step is tokens = 1)", args.batch);
    let _ = writeln!(
        out,
        "  {:>8}  {:>14}  {:>12}  {:>12}",
        "tokens", "FLOPs/token", "bytes moved", "state bytes"
    );
    for tokens in [1, 128, 1024, 8192] {
        let cost = layer.cost(args.batch, tokens, Form::Auto);
        let per_token = si(cost.flops / (tokens * args.batch.max(1)) as f64);
        let (bytes, state) = (si(cost.bytes), si(cost.state_bytes as f64));
        let _ = writeln!(out, "  {:>8}  {per_token:>14}  {bytes:>12}  {state:>12}", thousands(tokens));
    }
    let json = serde_json::to_string_pretty(&args.arch).map_err(|e| Error::Data(e.to_string()))?;
    let _ = writeln!(out, "\nconfiguration:\n{json}");
    Ok(out)
}
