//! `seqzoo-bench peers`

use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use seqzoo::registry::MixerConfig;
use seqzoo_bench::kernels::KERNEL;
use seqzoo_bench::models::MODEL;
use seqzoo_bench::peers::{PEERS, available, library};
use seqzoo_bench::report::{self, Data};
use seqzoo_bench::store::Results;
use seqzoo_bench::{Error, Result};
use seqzoo_layers::system::Form;

use super::baseline::BaselineArgs;
use super::run::{SweepArgs, code, without_folder};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    sweep: SweepArgs,
    /// Peers or libraries, such as `torch` or `burn/lstm`; `kernel` for all beside kernels without a layer around them
    /// [default: all others that are here].
    #[arg(long, value_name = "A,B", value_delimiter = ',', value_parser = known_peer)]
    peer: Vec<String>,
    /// The Python that has torch.
    #[arg(long, value_name = "PROGRAM", default_value = "python3")]
    python: String,
    /// Print all peers and whether they are here; measure nothing.
    #[arg(long)]
    list: bool,
    /// The results, a line of JSON each; tables (`.md`) and a page (`.html`) go beside it.
    #[arg(long, value_name = "FILE", default_value = "peers.jsonl")]
    out: PathBuf,
}

fn known_peer(name: &str) -> Result<String, String> {
    let list = [name.to_string()];
    if PEERS.iter().any(|p| p.named(&list)) {
        return Ok(name.into());
    }
    let names: Vec<&str> = PEERS.iter().map(|p| p.name).collect();
    Err(format!("known are {}", names.join(", ")))
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let mut answers: Vec<(&str, Result<String, String>)> = Vec::new();
    let (mut subjects, mut notes, mut listing) = (Vec::new(), Vec::new(), String::new());
    for peer in PEERS {
        let library = library(peer.name).unwrap_or_default();
        if !peer.named(&args.peer) {
            continue;
        }
        if !answers.iter().any(|(known, _)| *known == library) {
            answers.push((library, available(library, &args.python)));
        }
        let answer = answers.iter().find(|(known, _)| *known == library).map(|(_, answer)| answer);
        let beside_layer = [MODEL, KERNEL].iter().all(|group| !peer.counterpart.starts_with(group));
        let ours = !beside_layer || MixerConfig::named(peer.counterpart).is_some();
        let skipped = match answer {
            Some(Ok(_)) if ours => None,
            Some(Err(reason)) => Some(reason.clone()),
            _ => Some(format!("`{}` is not in this registry", peer.counterpart)),
        };
        let state = skipped.clone().map_or_else(|| "here".into(), |reason| format!("skipped: {reason}"));
        let _ = writeln!(listing, "{:<28} beside {:<21} {}; {state}", peer.name, peer.counterpart, peer.what);
        match skipped {
            Some(reason) => {
                eprintln!("{} skipped: {reason}", peer.name);
                let reason = reason.replace(&args.python, &without_folder(&args.python));
                notes.push(format!("{} skipped: {reason}", peer.name));
            }
            None => {
                if !subjects.iter().any(|s| s == peer.counterpart) {
                    subjects.push(peer.counterpart.to_string());
                }
                subjects.push(peer.name.to_string());
            }
        }
    }
    if args.list {
        super::emit(&listing)?;
        return Ok(ExitCode::SUCCESS);
    }
    if subjects.is_empty() {
        super::emit("no peer is here: nothing to measure\n")?;
        return Ok(ExitCode::SUCCESS);
    }
    // Peers have one form only.
    let plan = args.sweep.plan(subjects, Some(vec![Form::Auto]))?.paired();
    if args.sweep.dry_run {
        super::emit(&plan.describe(args.sweep.budget()))?;
        return Ok(ExitCode::SUCCESS);
    }
    let here = answers.iter().filter_map(|(library, answer)| Some((*library, answer.as_ref().ok()?)));
    notes.extend(here.map(|(library, version)| format!("{library}: {version}")));
    let (tables, page) = (args.out.with_extension("md"), args.out.with_extension("html"));
    if tables == args.out || page == args.out {
        return Err(Error::file(
            &args.out,
            "is where the tables or the page go: name another file, as in `peers.jsonl`",
        ));
    }
    let (ended, _) = args.sweep.sweep(&plan, &args.out, &args.python, notes, &BaselineArgs::default())?;
    let data = Data::new(&[Results::load(&args.out)?], None, Vec::new())?;
    let text = data.peers();
    seqzoo::files::replace(&tables, text.as_bytes())?;
    report::write(&data, &page)?;
    let [out, tables, page] = [&args.out, &tables, &page].map(|path| path.display());
    super::emit(&format!("{text}results: {out}\ntables: {tables}\npage: {page}\n"))?;
    Ok(code(ended))
}
