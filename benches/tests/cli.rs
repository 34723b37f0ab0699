//! The program as a user meets it: results that survive a kill, outcomes instead of crashes, exit codes, and what it
//! does with bad input. Beside the binary because only there Cargo promises that it is freshly built.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use seqzoo_bench::record::Outcome;
use seqzoo_bench::store::Results;

const PROGRAM: &str = env!("CARGO_BIN_EXE_seqzoo-bench");

fn bench(args: &[&str]) -> Output {
    Command::new(PROGRAM).args(args).output().expect("the program starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs, expects an exit code and every one of `words` in the message, without a panic.
#[track_caller]
fn fails(args: &[&str], code: i32, words: &[&str]) {
    let output = bench(args);
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{message}");
    assert!(message.starts_with("error: "), "{message}");
    assert!(!message.contains("panicked"), "{message}");
    for word in words {
        assert!(message.contains(word), "`{word}` is not in: {message}");
    }
}

#[track_caller]
fn succeeds(args: &[&str]) -> String {
    let output = bench(args);
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

fn path(dir: &Path, name: &str) -> String {
    dir.join(name).display().to_string()
}

/// The flags of a sweep of seconds.
fn tiny(out: &str) -> Vec<&str> {
    vec!["run", "--preset", "tiny", "--arch", "attention,linear_attention", "--threads", "1", "--out", out]
}

/// Points and rounds, in the order of the file.
fn keys(file: &str) -> Vec<(String, usize)> {
    let results = Results::load(Path::new(file)).unwrap();
    results.records.iter().map(|r| (r.point.to_string(), r.round)).collect()
}

#[test]
fn a_killed_sweep_loses_at_most_the_running_point_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, killed) = (path(dir.path(), "whole.jsonl"), path(dir.path(), "killed.jsonl"));
    succeeds(&tiny(&whole));
    let mut resume = tiny(&killed);
    resume.push("--resume");
    // Killed three times, each time a little later, with a line half written the last time.
    for lines in [3, 6, 9] {
        let mut child =
            Command::new(PROGRAM).args(&resume).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let started = Instant::now();
        let count = || fs::read(&killed).map_or(0, |text| text.iter().filter(|&&b| b == b'\n').count());
        while count() < lines {
            assert!(started.elapsed() < Duration::from_secs(60), "no progress");
            std::thread::sleep(Duration::from_millis(2));
        }
        let before = count();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(count() >= before, "a finished line was lost");
    }
    let kept = keys(&killed);
    let half = r#"{"line":"record","point":{"subj"#;
    fs::write(&killed, [fs::read(&killed).unwrap().as_slice(), half.as_bytes()].concat()).unwrap();
    assert_eq!(keys(&killed), kept, "a half-written line is left out");
    succeeds(&resume);
    assert_eq!(keys(&killed), keys(&whole));
    // Nothing is left to do, and nothing is measured again.
    let bytes = fs::read(&killed).unwrap();
    succeeds(&resume);
    assert_eq!(fs::read(&killed).unwrap(), bytes);
    // Without `--resume` an existing file is not touched.
    fails(&tiny(&killed), 1, &["--resume", "--out"]);
    assert_eq!(fs::read(&killed).unwrap(), bytes);
}

/// Interrupts a sweep as soon as its file has three lines.
#[cfg(unix)]
fn interrupt(args: &[&str], out: &str) {
    let mut child =
        Command::new(PROGRAM).args(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let started = Instant::now();
    while fs::read(out).map_or(0, |text| text.iter().filter(|&&b| b == b'\n').count()) < 3 {
        assert!(started.elapsed() < Duration::from_secs(60), "no progress");
        std::thread::sleep(Duration::from_millis(2));
    }
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let results = Results::load(Path::new(out)).unwrap();
    assert!(results.records.iter().all(|r| r.outcome.done().is_some()), "a stopped child is no outcome");
}

#[cfg(unix)]
#[test]
fn ctrl_c_keeps_what_is_finished() {
    let dir = tempfile::tempdir().unwrap();
    let out = path(dir.path(), "a.jsonl");
    interrupt(&tiny(&out), &out);
}

#[cfg(unix)]
#[test]
fn a_stopped_baseline_is_measured_when_the_sweep_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let (out, baseline) = (path(dir.path(), "a.jsonl"), path(dir.path(), "b.jsonl"));
    let mut args = tiny(&out);
    args.extend(["--baseline", PROGRAM, "--baseline-out", &baseline]);
    interrupt(&args, &out);
    args.push("--resume");
    succeeds(&args);
    assert_eq!(keys(&out), keys(&baseline));
}

/// The outcomes of one architecture under limits.
fn limited(dir: &Path, name: &str, arch: &str, limits: &[&str]) -> Vec<Outcome> {
    let out = path(dir, name);
    let mut args = vec!["run", "--preset", "tiny", "--lengths", "1024", "--threads", "1", "--out", &out];
    args.extend(["--arch", arch]);
    args.extend(limits);
    succeeds(&args);
    Results::load(Path::new(&out)).unwrap().records.into_iter().map(|r| r.outcome).collect()
}

#[test]
fn too_much_memory_and_too_much_time_are_results() {
    let dir = tempfile::tempdir().unwrap();
    let outcomes = limited(dir.path(), "memory.jsonl", "attention", &["--memory-limit", "8"]);
    let no_memory = Outcome::OutOfMemory { limit: 8 << 20 };
    assert!(outcomes.contains(&no_memory), "{outcomes:?}");
    // The smaller points fit.
    assert!(outcomes.iter().any(|o| o.done().is_some()), "{outcomes:?}");
    let outcomes = limited(dir.path(), "time.jsonl", "lstm", &["--time-limit", "0.001"]);
    assert!(outcomes.contains(&Outcome::TimedOut { limit: 0.001 }), "{outcomes:?}");
    assert!(outcomes.iter().any(|o| matches!(o, Outcome::Skipped { .. })), "not tried again: {outcomes:?}");
}

#[test]
fn a_report_is_drawn_and_counted_quantities_are_compared() {
    let dir = tempfile::tempdir().unwrap();
    let (out, page) = (path(dir.path(), "a.jsonl"), path(dir.path(), "a.html"));
    succeeds(&tiny(&out));
    succeeds(&["report", &out, "--out", &page]);
    assert!(fs::read_to_string(&page).unwrap().ends_with("</html>\n"));
    let markdown = succeeds(&["report", &out, "--markdown"]);
    assert!(markdown.contains("## How time grows with length"), "{markdown}");

    assert!(succeeds(&["compare", &out, &out]).contains("no regression"));
    // One thread asks the allocator for the same bytes every time.
    let again = path(dir.path(), "again.jsonl");
    succeeds(&tiny(&again));
    assert!(succeeds(&["compare", "--counted", &out, &again]).contains("no regression"));
    // A planted regression of a counted quantity, and one of time.
    let planted = |name: &str, change: &dyn Fn(&mut seqzoo_bench::record::Measurement)| {
        let mut results = Results::load(Path::new(&again)).unwrap();
        let file = dir.path().join(name);
        let mut store = seqzoo_bench::store::Store::create(&file, &results.header).unwrap();
        for record in &mut results.records {
            if let Outcome::Done(m) = &mut record.outcome {
                change(m);
            }
            store.append(record).unwrap();
        }
        file.display().to_string()
    };
    let more = planted("more.jsonl", &|m| m.counted.state_bytes += 4);
    let output = bench(&["compare", "--counted", &out, &more]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains("state bytes"), "{}", text(&output.stdout));
    let slower = planted("slower.jsonl", &|m| m.seconds.iter_mut().for_each(|s| *s *= 40.0));
    assert_eq!(bench(&["compare", &again, &slower]).status.code(), Some(1));
    assert_eq!(bench(&["compare", "--counted", &again, &slower]).status.code(), Some(0));
}

#[test]
fn a_baseline_is_measured_in_turns() {
    let dir = tempfile::tempdir().unwrap();
    let (out, baseline) = (path(dir.path(), "a.jsonl"), path(dir.path(), "b.jsonl"));
    let with = |program: &str, baseline: &str, more: &[&str]| {
        let own: Vec<String> = tiny(&out).into_iter().map(String::from).collect();
        let flags = ["--baseline", program, "--baseline-out", baseline];
        own.into_iter().chain(flags.iter().chain(more).map(ToString::to_string)).collect::<Vec<_>>()
    };
    let strs = |all: &[String]| -> Output { bench(&all.iter().map(String::as_str).collect::<Vec<_>>()) };
    // Neither another program nor the file of the other results is taken, and nothing is begun.
    let other = strs(&with("true", &baseline, &[]));
    assert!(text(&other.stderr).contains("no build of seqzoo-bench"), "{}", text(&other.stderr));
    let same = strs(&with(PROGRAM, &out, &[]));
    assert!(text(&same.stderr).contains("--baseline-out"), "{}", text(&same.stderr));
    assert!(!Path::new(&out).exists() && !Path::new(&baseline).exists());

    let slow = &["--rounds", "3", "--plant", "attention=9"];
    assert!(strs(&with(PROGRAM, &baseline, slow)).status.success());
    assert_eq!(keys(&out), keys(&baseline));
    assert_eq!(keys(&out).iter().map(|key| key.1).max(), Some(2));
    let [ours, theirs] = [&out, &baseline].map(|file| Results::load(Path::new(file)).unwrap().header);
    assert!(ours.turns.is_some() && ours == theirs, "{ours:?}, {theirs:?}");
    // Only this build was slowed.
    let output = bench(&["compare", &baseline, &out, "--tolerance", "1"]);
    assert!(output.status.code() == Some(1) && text(&output.stdout).contains("attention"), "{output:?}");
    assert!(bench(&["compare", &out, &baseline, "--tolerance", "1"]).status.success());
    // What the baseline has already is not measured again.
    fs::remove_file(&out).unwrap();
    assert!(strs(&with(PROGRAM, &baseline, &["--rounds", "3", "--resume"])).status.success());
    assert_eq!(keys(&out), keys(&baseline));
}

#[test]
fn a_budget_ends_a_sweep_and_a_dry_run_measures_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let out = path(dir.path(), "a.jsonl");
    let mut dry = tiny(&out);
    dry.push("--dry-run");
    let plan = succeeds(&dry);
    assert!(
        plan.contains("in 2 rounds") && plan.contains("decode: 2 points of 2 subjects, 8 to 8 tokens"),
        "{plan}"
    );
    let full = succeeds(&["run", "--preset", "full", "--dry-run"]);
    assert!(full.contains("ends after 25") && full.contains("prefill: "), "{full}");
    assert!(!Path::new(&out).exists());
    let mut short = tiny(&out);
    short.extend(["--budget", "1e-9"]);
    let output = bench(&short);
    assert!(output.status.success() && text(&output.stderr).contains("--resume"), "{}", text(&output.stderr));
    assert!(keys(&out).is_empty());
    let mut rest = tiny(&out);
    rest.extend(["--resume", "--budget", "1e300"]);
    succeeds(&rest);
    assert!(!keys(&out).is_empty());
}

#[test]
fn damaged_results_name_the_line() {
    let dir = tempfile::tempdir().unwrap();
    let out = path(dir.path(), "a.jsonl");
    succeeds(&[
        "run",
        "--preset",
        "tiny",
        "--arch",
        "attention",
        "--lengths",
        "8",
        "--threads",
        "1",
        "--out",
        &out,
    ]);
    let good = fs::read_to_string(&out).unwrap();
    let lines: Vec<&str> = good.lines().collect();
    let bad = |name: &str, lines: &[&str], words: &[&str]| {
        let file = path(dir.path(), name);
        fs::write(&file, lines.join("\n") + "\n").unwrap();
        fails(&["report", &file, "--markdown"], 1, &[&[name][..], words].concat());
    };
    bad("cut.jsonl", &[lines[0], lines[1], &lines[2][..30]], &["line 3"]);
    bad("type.jsonl", &[lines[0], &lines[1].replace("\"round\":0", "\"round\":-1")], &["line 2", "-1"]);
    bad("field.jsonl", &[lines[0], &lines[1].replace("\"round\"", "\"rounds\"")], &["line 2", "rounds"]);
    bad("headless.jsonl", &lines[1..], &["line 1", "schema"]);
    bad("twice.jsonl", &[lines[0], lines[0]], &["line 2", "second header"]);
    let newer = lines[0].replace("\"schema\":1", "\"schema\":99");
    bad("newer.jsonl", &[&newer, lines[1]], &["version 99", "reads 1"]);
    bad("words.jsonl", &["what was read flows into the state"], &["line 1", "not JSON"]);
    fails(&["report", &path(dir.path(), "none.jsonl")], 1, &["none.jsonl"]);
    fs::write(path(dir.path(), "empty.jsonl"), "").unwrap();
    fails(&["report", &path(dir.path(), "empty.jsonl")], 1, &["no results"]);
    // A damaged file is not resumed either, and stays as it is.
    let cut = path(dir.path(), "cut.jsonl");
    let before = fs::read(&cut).unwrap();
    fails(&["run", "--preset", "tiny", "--resume", "--out", &cut, "--threads", "1"], 1, &["line 3"]);
    assert_eq!(fs::read(&cut).unwrap(), before);
    // Nor is one of another number of threads.
    fails(&["run", "--preset", "tiny", "--resume", "--out", &out, "--threads", "2"], 1, &["thread count"]);
}

#[test]
fn wrong_usage_is_told() {
    fails(&["run", "--arch", "gated_deltnet"], 2, &["did you mean `gated_deltanet`?"]);
    fails(&["run", "--lengths", "0"], 2, &["--lengths", "above 0"]);
    fails(&["run", "--forms", "sideways"], 2, &["recurrent"]);
    fails(&["run", "--preset", "endless"], 2, &["quick", "full"]);
    fails(&["run", "--time-limit", "0"], 2, &["--time-limit"]);
    fails(&["run", "--budget", "0"], 2, &["--budget"]);
    fails(&["run", "--rounds", "0"], 2, &["--rounds"]);
    fails(&["run", "--baseline-out", "a.jsonl"], 2, &["--baseline"]);
    fails(&["run", "--tasks", "copy"], 2, &["prefill, train, decode"]);
    fails(
        &["peers", "--peer", "burn/attention", "--tasks", "decode", "--out", "never.jsonl"],
        1,
        &["nothing to measure"],
    );
    fails(&["compare", "a.jsonl"], 2, &["NEW"]);
    fails(&["compare", "a.jsonl", "b.jsonl", "--tolerance", "x"], 2, &["--tolerance"]);
    fails(&["report", "--markdown", "--out", "x.html"], 2, &["--markdown", "--out"]);
    fails(&["peers", "--peer", "abacus"], 2, &["torch/lstm"]);
    fails(&["run", "--device", "abacus", "--out", "never.jsonl"], 1, &["abacus", "flex"]);
    fails(&["run", "--out", "/no/such/folder/a.jsonl"], 1, &["/no/such/folder"]);
    fails(&["point", "{"], 1, &["job"]);
    assert!(!Path::new("never.jsonl").exists());
}

#[test]
fn peers_are_listed_and_missing_ones_skipped_with_a_reason() {
    let list = succeeds(&["peers", "--list", "--python", "no-such-python"]);
    assert!(list.contains("burn/lstm") && list.contains("skipped: `no-such-python`"), "{list}");
    let dir = tempfile::tempdir().unwrap();
    let out = path(dir.path(), "peers.jsonl");
    let table = succeeds(&[
        "peers",
        "--peer",
        "burn/lstm,torch",
        "--python",
        "no-such-python",
        "--preset",
        "tiny",
        "--threads",
        "1",
        "--out",
        &out,
    ]);
    assert!(table.contains("| burn/lstm | lstm | prefill 1 × 8 |"), "{table}");
    assert!(
        table.contains("`seqzoo-bench peers --peer burn/lstm --tasks prefill --batches 1 --lengths 8`"),
        "{table}"
    );
    let results = Results::load(Path::new(&out)).unwrap();
    assert!(results.header.notes.iter().any(|note| note.contains("torch/lstm skipped")));
    // What was printed lies beside the results, and results do not say where.
    let tables = fs::read_to_string(path(dir.path(), "peers.md")).unwrap();
    assert!(table.starts_with(&tables) && tables.contains("## Against other libraries"), "{tables}");
    assert!(fs::read_to_string(path(dir.path(), "peers.html")).unwrap().contains("Against other libraries"));
    let folder = dir.path().display().to_string();
    assert!(!tables.contains(&folder) && !fs::read_to_string(&out).unwrap().contains(&folder));
    // The command of a row measures that row.
    let row = path(dir.path(), "row.jsonl");
    let line = tables.lines().find(|line| line.starts_with("| burn/lstm | lstm | decode after 8 |")).unwrap();
    let command = line.rsplit('`').nth(1).unwrap();
    let mut args: Vec<&str> = command.split(' ').skip(1).collect();
    args.extend(["--preset", "tiny", "--threads", "1", "--out", &row]);
    let again = succeeds(&args);
    assert!(again.contains("| burn/lstm | lstm | decode after 8 |"), "{again}");
    let points = Results::load(Path::new(&row)).unwrap().records;
    assert!(points.iter().all(|r| r.point.subject == "machine" || (r.point.time, r.point.batch) == (8, 1)));
    fails(&["peers", "--peer", "burn", "--out", &path(dir.path(), "x.md")], 1, &["x.md", "peers.jsonl"]);
}

#[test]
fn kernels_are_measured_beside_their_tensor_forms_and_recurrences() {
    let dir = tempfile::tempdir().unwrap();
    let out = path(dir.path(), "kernels.jsonl");
    let mut args = vec!["peers", "--peer", "kernel", "--python", "no-such-python", "--preset", "tiny"];
    args.extend(["--lengths", "40", "--batches", "1", "--threads", "1", "--out", &out]);
    let table = succeeds(&args);
    for row in [
        "| tensors/kernel/conv | kernel/conv | prefill 1 × 40 |",
        "| steps/kernel/delta | kernel/delta | train 1 × 40 |",
    ] {
        assert!(table.contains(row), "no {row} in {table}");
    }
    let results = Results::load(Path::new(&out)).unwrap();
    assert!(results.records.iter().all(|r| r.outcome.done().is_some()), "{table}");
    assert!(results.header.notes.iter().any(|note| note.contains("torch/kernel/scan skipped")));
}

/// `web/site/test/records.test.ts` writes the same file, line by line.
#[test]
fn what_a_browser_measured_is_reported_beside_native_results() {
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/browser.jsonl");
    let browser = Results::load(&kept).unwrap();
    let done = browser.records.iter().filter_map(|record| record.outcome.done());
    assert!(done.clone().all(|m| m.seconds.len() == 3 && m.counted.flops > 0.0));
    assert_eq!((done.count(), browser.records.len()), (18, 19));
    assert_eq!(browser.header.sizes, seqzoo_bench::point::Sizes::default());

    let dir = tempfile::tempdir().unwrap();
    let (native, page) = (path(dir.path(), "native.jsonl"), path(dir.path(), "bench.html"));
    let text = fs::read_to_string(&kept).unwrap();
    fs::write(&native, text.replace("browser-cpu", "flex")).unwrap();
    let files = [kept.to_str().unwrap(), native.as_str()];
    let table = succeeds(&[&["report", "--markdown"], files.as_slice()].concat());
    for device in ["browser-cpu", "browser-webgpu", "flex"] {
        assert!(table.contains(&format!("({device})")), "no {device} in {table}");
    }
    succeeds(&[&["report", "--out", &page], files.as_slice()].concat());
    assert!(fs::read_to_string(&page).unwrap().contains("(browser-webgpu)"));
}
