//! The program as a user meets it: what it prints, its exit codes, and what it does with bad input.
//!
//! These tests live beside the binary because only there Cargo promises that it is freshly built.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn seqzoo(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_seqzoo")).args(args).output().expect("the program starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs, expects an exit code and every one of `words` in the message, without a panic.
#[track_caller]
fn fails(args: &[&str], code: i32, words: &[&str]) -> String {
    let output = seqzoo(args);
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{message}");
    assert!(message.starts_with("error: "), "{message}");
    assert!(!message.contains("panicked") && !message.contains("internal error"), "{message}");
    for word in words {
        assert!(message.contains(word), "`{word}` is not in: {message}");
    }
    message
}

#[track_caller]
fn succeeds(args: &[&str]) -> String {
    let output = seqzoo(args);
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

fn path(dir: &Path, name: &str) -> String {
    dir.join(name).display().to_string()
}

/// A run of a few steps of a tiny model in `dir`.
fn tiny<'a>(arch: &'a str, out: &'a str, corpus: &'a str) -> Vec<&'a str> {
    let sizes = ["--width", "16", "--depth", "1", "--batch", "2", "--time", "16", "--steps", "4"];
    let mut args = vec!["train", "--arch", arch, "--text", corpus, "--out", out];
    args.extend(sizes);
    args
}

fn corpus(dir: &Path) -> String {
    let corpus = path(dir, "corpus.txt");
    fs::write(&corpus, "what was read flows into the state; ".repeat(60)).unwrap();
    corpus
}

#[test]
fn list_and_describe_tell_about_every_architecture() {
    let list = succeeds(&["list"]);
    for a in seqzoo::registry::architectures() {
        assert!(list.contains(a.name) && list.contains(a.paper), "{}", a.name);
        let about = succeeds(&["describe", a.name, "--width", "64"]);
        for word in [a.title, "parameters: ", "FLOPs/token", "\"arch\""] {
            assert!(about.contains(word), "{word}: {about}");
        }
    }
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/architectures.md");
    let page = fs::read_to_string(page).expect("the page is part of the repository");
    let hint = "run `cargo run --release -- list --markdown > docs/architectures.md`";
    assert_eq!(succeeds(&["list", "--markdown"]), page, "{hint}");
    fails(&["describe", "gated_deltanett"], 2, &["did you mean `gated_deltanet`?"]);
    fails(&["describe", "zzz"], 2, &["seqzoo list"]);
    fails(&["describe", "attention", "--width", "30"], 1, &["30"]);
}

#[test]
fn the_miras_table_holds_on_this_machine() {
    let table = succeeds(&["miras-table"]);
    for row in ["| deltanet | linear | l2 | none | gd | 1 |", "| l2 | kl | gd | 16 |"] {
        assert!(table.contains(row), "{row}: {table}");
    }
    let json: serde_json::Value = serde_json::from_str(&succeeds(&["miras-table", "--json"])).unwrap();
    let measured = json.as_array().unwrap().iter().filter(|row| row["error"].is_number());
    assert_eq!(measured.count(), 11);
}

/// The parity matrix of `tests/` runs with kernels on.
#[test]
fn every_promise_holds_without_kernels() {
    let table = succeeds(&["verify", "--kernels", "off", "--time", "19", "--no-differences"]);
    assert!(table.contains("kernels off"), "{table}");
    assert!(table.lines().last().is_some_and(|last| last.ends_with(", 0 failed")), "{table}");
}

#[test]
fn wrong_usage_exits_with_two() {
    assert_eq!(seqzoo(&["--no-such-flag"]).status.code(), Some(2));
    assert_eq!(seqzoo(&["train", "--steps", "many"]).status.code(), Some(2));
    fails(&["train", "--resume", "--lr", "1"], 2, &["--resume", "--lr"]);
    fails(&["generate", "--checkpoint", "x"], 2, &["--prompt"]);
    fails(&["train", "--arch", "gated_deltanett"], 2, &["did you mean `gated_deltanet`?"]);
    fails(&["train", "--device", "abacus"], 1, &["abacus", "flex"]);
    fails(&["train", "--arch", "transnormer"], 2, &["--preset transnormer"]);
    fails(&["train", "--preset", "transformer"], 2, &["transnormer"]);
    fails(&["train", "--preset", "transnormer", "--arch", "lightning"], 2, &["--preset", "--arch"]);
}

#[test]
fn a_whole_model_is_trained_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let (corpus, out) = (corpus(dir.path()), path(dir.path(), "run"));
    let mut args = tiny("", &out, &corpus);
    args.splice(1..3, ["--preset", "transnormer"]);
    succeeds(&args);
    let config = fs::read_to_string(dir.path().join("run/checkpoint/config.json")).unwrap();
    assert!(config.contains("srms") && config.contains("lightning"), "{config}");
    assert!(succeeds(&["list"]).contains("transnormer"));
}

#[test]
fn a_model_is_trained_resumed_and_generates() {
    let dir = tempfile::tempdir().unwrap();
    let (corpus, whole, parts) = (corpus(dir.path()), path(dir.path(), "whole"), path(dir.path(), "parts"));
    succeeds(&tiny("gated_deltanet", &whole, &corpus));
    let mut two = tiny("gated_deltanet", &parts, &corpus);
    two.pop();
    two.extend(["2", "--warmup", "0"]);
    succeeds(&two);
    assert_eq!(succeeds(&["train", "--resume", "--out", &parts, "--steps", "4"]).trim(), parts);
    for name in ["config.json", "model.safetensors", "optimizer.safetensors", "train.json"] {
        assert!(dir.path().join("parts/checkpoint").join(name).is_file(), "{name}");
    }
    let csv = fs::read_to_string(dir.path().join("parts/metrics.csv")).unwrap();
    assert!(csv.starts_with("step,loss,lr,grad_norm,tokens_per_second,elapsed,validation_loss"), "{csv}");
    assert_eq!(csv.lines().count(), 5);
    // Nothing is trained over.
    fails(&tiny("gated_deltanet", &whole, &corpus), 1, &["already holds a checkpoint"]);

    let generate = |more: &[&str]| {
        let mut args = vec!["generate", "--checkpoint", &whole];
        args.extend(more);
        succeeds(&args)
    };
    let all = generate(&["--prompt", "what", "--tokens", "12", "--temperature", "0"]);
    assert!(all.starts_with("what") && all.len() > 8, "{all}");
    let seeded = ["--prompt", "what", "--tokens", "12", "--seed", "4", "--temperature", "2"];
    assert_eq!(generate(&seeded), generate(&seeded));

    let state = path(dir.path(), "state");
    let first = ["--prompt", "what", "--tokens", "5", "--temperature", "0", "--save-state", &state];
    let first = generate(&first);
    let second = generate(&["--load-state", &state, "--tokens", "7", "--temperature", "0"]);
    assert_eq!(format!("{}{second}", first.trim_end_matches('\n')), all);
    let at = ["generate", "--checkpoint", &whole];
    fails(&[&at[..], &["--prompt", ""]].concat(), 1, &["the prompt is empty"]);
    fails(&[&at[..], &["--prompt", "a", "--top-p", "3"]].concat(), 1, &["top_p"]);
}

#[test]
fn recall_is_trained_and_answers_in_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let out = path(dir.path(), "run");
    let mut args = vec!["train", "--task", "mqar", "--out", &out, "--width", "16", "--depth", "1"];
    args.extend(["--steps", "2", "--time", "16", "--pairs", "2", "--vocab", "32", "--batch", "2"]);
    succeeds(&args);
    let answer = succeeds(&["generate", "--checkpoint", &out, "--prompt", "3 20 5 21 3", "--tokens", "1"]);
    assert!(answer.split_whitespace().all(|word| word.parse::<usize>().is_ok_and(|id| id < 32)), "{answer}");
    fails(&["generate", "--checkpoint", &out, "--prompt", "99"], 1, &["`99`", "0 to 31"]);
    args[4] = "unused";
    args.extend(["--pairs", "9"]);
    assert_eq!(seqzoo(&args).status.code(), Some(2), "a flag twice is wrong usage");
}

#[test]
fn bad_texts_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let out = path(dir.path(), "run");
    let given = |name: &str, bytes: &[u8]| {
        fs::write(dir.path().join(name), bytes).unwrap();
        path(dir.path(), name)
    };
    let (empty, latin) = (given("empty.txt", b""), given("latin1.txt", b"caf\xE9"));
    fails(&tiny("attention", &out, &path(dir.path(), "none.txt")), 1, &["none.txt", "No such file"]);
    fails(&tiny("attention", &out, &empty), 1, &["empty.txt", "empty"]);
    fails(&tiny("attention", &out, &latin), 1, &["latin1.txt", "UTF-8", "offset 3"]);
    fails(&tiny("attention", &out, &given("short.txt", b"abc")), 1, &["at least 17"]);
    assert!(!dir.path().join("run").exists(), "nothing is left behind");
}

#[test]
fn bad_configurations_name_the_field() {
    let dir = tempfile::tempdir().unwrap();
    let (corpus, good, out) = (corpus(dir.path()), path(dir.path(), "good"), path(dir.path(), "run"));
    succeeds(&tiny("attention", &good, &corpus));
    // A valid file to start from: the one the program wrote itself.
    let config = fs::read_to_string(dir.path().join("good/checkpoint/config.json")).unwrap();
    let broken = |name: &str, from: &str, to: &str| {
        assert!(config.contains(from), "`{from}` is not in {config}");
        let file = path(dir.path(), name);
        fs::write(&file, config.replace(from, to)).unwrap();
        file
    };
    let train = |file: &str, words: &[&str]| {
        fails(&["train", "--config", file, "--text", &corpus, "--out", &out, "--steps", "1"], 1, words);
    };
    let misspelt = broken("misspelt.json", "\"attention\"", "\"atention\"");
    train(&misspelt, &["atention", "did you mean `attention`?"]);
    let field = broken("field.json", "\"heads\"", "\"haeds\"");
    train(&field, &["haeds"]);
    let cut = path(dir.path(), "cut.json");
    fs::write(&cut, &config[..config.len() / 2]).unwrap();
    train(&cut, &["cut.json"]);
    train(&path(dir.path(), "none.json"), &["none.json"]);
    assert!(!dir.path().join("run").exists());
}

#[test]
fn checkpoints_that_do_not_fit_are_refused_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (corpus, out) = (corpus(dir.path()), path(dir.path(), "run"));
    succeeds(&tiny("gated_deltanet", &out, &corpus));
    fails(&["train", "--resume", "--out", &out, "--arch", "attention"], 1, &["another architecture"]);
    fails(&["train", "--resume", "--out", &path(dir.path(), "none")], 1, &["no checkpoint here"]);

    let model = dir.path().join("run/checkpoint/model.safetensors");
    let bytes = fs::read(&model).unwrap();
    fs::write(&model, &bytes[..bytes.len() / 2]).unwrap();
    fails(&["generate", "--checkpoint", &out, "--prompt", "a"], 1, &["model.safetensors", "truncated"]);
    fails(&["train", "--resume", "--out", &out, "--steps", "9"], 1, &["truncated"]);
    assert_eq!(fs::read(&model).unwrap().len(), bytes.len() / 2, "not touched");
}

#[test]
fn a_folder_that_cannot_be_written_is_reported_before_training() {
    let dir = tempfile::tempdir().unwrap();
    let corpus = corpus(dir.path());
    // Below a file there can be no folder, whoever asks.
    let out = format!("{corpus}/run");
    fails(&tiny("attention", &out, &corpus), 1, &["corpus.txt/run"]);
}

/// A limit on file sizes stands for a full disk: a write fails half way.
#[cfg(target_os = "linux")]
#[test]
fn a_disk_that_fills_up_while_saving_keeps_the_previous_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let (corpus, out) = (corpus(dir.path()), path(dir.path(), "run"));
    succeeds(&tiny("gated_deltanet", &out, &corpus));
    let files = || {
        let folder = dir.path().join("run/checkpoint");
        let names = ["config.json", "model.safetensors", "optimizer.safetensors", "train.json"];
        names.map(|name| fs::read(folder.join(name)).unwrap())
    };
    let before = files();
    let script = r#"trap '' XFSZ; ulimit -f 16; exec "$0" train --resume --out "$1" --steps 6"#;
    let shell = Command::new("sh").args(["-c", script, env!("CARGO_BIN_EXE_seqzoo"), &out]).output().unwrap();
    let message = text(&shell.stderr);
    assert_eq!(shell.status.code(), Some(1), "{message}");
    assert!(message.contains("could not save the checkpoint"), "{message}");
    assert!(message.contains("model.safetensors") && message.contains("unchanged"), "{message}");
    assert_eq!(files(), before);
    assert!(!dir.path().join("run/checkpoint.new").exists());
    succeeds(&["train", "--resume", "--out", &out, "--steps", "6"]);
    assert_ne!(files(), before);
}

/// Ctrl-C saves and says so by its exit code.
#[cfg(target_os = "linux")]
#[test]
fn an_interrupted_run_saves_and_can_be_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let (corpus, out) = (corpus(dir.path()), path(dir.path(), "run"));
    let mut args = tiny("gated_deltanet", &out, &corpus);
    args.pop();
    args.extend(["1000000", "--save-every", "0", "--eval-every", "0"]);
    let mut child =
        Command::new(env!("CARGO_BIN_EXE_seqzoo")).args(&args).stderr(std::process::Stdio::piped()).spawn();
    let child = child.as_mut().unwrap();
    // The first line on stderr says that training starts, with Ctrl-C already caught.
    let mut line = [0u8; 1];
    std::io::Read::read_exact(child.stderr.as_mut().unwrap(), &mut line).unwrap();
    let kill = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let json = fs::read_to_string(dir.path().join("run/checkpoint/train.json")).unwrap();
    let step = serde_json::from_str::<serde_json::Value>(&json).unwrap()["step"].as_u64().unwrap();
    assert!(step >= 1);
    succeeds(&["train", "--resume", "--out", &out, "--steps", &(step + 1).to_string()]);
}

#[test]
fn a_hugging_face_folder_generates_and_a_damaged_one_is_told() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/models");
    fn generate(dir: &str) -> [&str; 9] {
        ["generate", "--checkpoint", dir, "--prompt", "1 2 3", "--tokens", "5", "--temperature", "0"]
    }
    for model in ["llama", "qwen3_next"] {
        let output = succeeds(&generate(&path(&golden, model)));
        let ids: Vec<u32> = output.split_whitespace().map(|id| id.parse().unwrap()).collect();
        assert_eq!((ids.len(), &ids[..3]), (8, &[1, 2, 3][..]));
    }
    // Weights cut short, and weights of another model.
    let dir = tempfile::tempdir().unwrap();
    fs::copy(golden.join("llama/config.json"), dir.path().join("config.json")).unwrap();
    let weights = fs::read(golden.join("llama/model.safetensors")).unwrap();
    let others = fs::read(golden.join("gpt2/model.safetensors")).unwrap();
    for (bytes, words) in
        [(&weights[..weights.len() / 2], "truncated"), (&others[..], "model.embed_tokens.weight")]
    {
        fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
        fails(&generate(&path(dir.path(), "")), 1, &[words]);
    }
    fs::write(dir.path().join("config.json"), r#"{"model_type": "bert"}"#).unwrap();
    fails(&generate(&path(dir.path(), "")), 1, &["`bert`", "llama"]);
}
