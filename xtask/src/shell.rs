//! Running other programs.

use std::env;
use std::io::{BufRead, BufReader};
use std::ops::Add;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Numbers of a `cargo test` run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
}

impl Add for Counts {
    type Output = Counts;

    fn add(self, other: Counts) -> Counts {
        Counts { passed: self.passed + other.passed, failed: self.failed + other.failed }
    }
}

impl Counts {
    /// From one line of output, `test result: ok. 12 passed; 0 failed; …`; `None` for any other line.
    fn of_line(line: &str) -> Option<Self> {
        let (_, numbers) = line.trim().strip_prefix("test result:")?.split_once(". ")?;
        let number = |what: &str| {
            numbers.split("; ").find_map(|part| part.strip_suffix(what)?.trim().parse::<usize>().ok())
        };
        Some(Counts { passed: number(" passed")?, failed: number(" failed")? })
    }
}

/// The repository root.
pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// `cargo` in the repository root.
pub(crate) fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args).current_dir(root());
    command
}

/// Runs it to its end; an error when it cannot start or does not exit with 0.
pub(crate) fn run(command: &mut Command) -> Result<(), String> {
    let name = display(command);
    println!("$ {name}");
    let status = command.status().map_err(|e| format!("could not start `{name}`: {e}"))?;
    if status.success() { Ok(()) } else { Err(format!("`{name}` ended with {status}")) }
}

/// Runs a test command, passing its output on, and adds its result lines up.
pub(crate) fn run_tests(command: &mut Command) -> Result<Counts, String> {
    let name = display(command);
    println!("$ {name}");
    let mut child =
        command.stdout(Stdio::piped()).spawn().map_err(|e| format!("could not start `{name}`: {e}"))?;
    let mut counts = Counts::default();
    if let Some(stdout) = child.stdout.take() {
        let mut lines = BufReader::new(stdout);
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line).map_err(|e| format!("reading `{name}`: {e}"))? > 0 {
            let text = String::from_utf8_lossy(&line);
            print!("{text}");
            counts = Counts::of_line(&text).map_or(counts, |more| counts + more);
            line.clear();
        }
    }
    let status = child.wait().map_err(|e| format!("waiting for `{name}`: {e}"))?;
    match (status.success(), counts) {
        (true, Counts { passed: 0, failed: 0 }) => Err(format!("`{name}` ran no test at all")),
        (true, counts) => Ok(counts),
        // A test binary that crashed reports no number: it counts as one failure.
        (false, counts) => Ok(Counts { failed: counts.failed.max(1), ..counts }),
    }
}

/// What a program prints, trimmed; `None` when it is missing or fails.
pub(crate) fn output(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_string())
}

/// Where cargo puts what it builds.
pub(crate) fn target_dir() -> Result<PathBuf, String> {
    let mut command = cargo(&["metadata", "--no-deps", "--format-version", "1", "--offline"]);
    let output = command.output().map_err(|e| format!("could not start cargo: {e}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let rest = text.split_once("\"target_directory\":\"").map(|(_, rest)| rest);
    let dir = rest.and_then(|rest| rest.split_once('"')).map(|(dir, _)| dir.replace("\\\\", "\\"));
    dir.map(PathBuf::from).ok_or_else(|| "`cargo metadata` names no target directory".into())
}

fn display(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let program = program.file_name().unwrap_or(program.as_os_str());
    let words = std::iter::once(program).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_result_lines_and_nothing_else() {
        let line =
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.1s\n";
        assert_eq!(Counts::of_line(line), Some(Counts { passed: 12, failed: 0 }));
        let line = "test result: FAILED. 2 passed; 7 failed; 0 ignored; 0 measured; 0 filtered out";
        assert_eq!(Counts::of_line(line), Some(Counts { passed: 2, failed: 7 }));
        assert_eq!(Counts::of_line("test a_test ... ok"), None);
        assert_eq!(Counts::of_line("12 passed; 0 failed"), None);
    }

    #[test]
    #[cfg(unix)]
    fn a_crash_counts_as_a_failure_and_silence_is_an_error() {
        let sh = |script: &str| run_tests(Command::new("sh").args(["-c", script]));
        let good = "echo 'test result: ok. 2 passed; 0 failed; 0 ignored'";
        assert_eq!(sh(good), Ok(Counts { passed: 2, failed: 0 }));
        assert_eq!(sh(&format!("{good}; exit 101")), Ok(Counts { passed: 2, failed: 1 }));
        assert!(sh("true").is_err());
    }

    #[test]
    fn finds_the_workspace() {
        assert!(root().join("Cargo.lock").is_file());
    }
}
