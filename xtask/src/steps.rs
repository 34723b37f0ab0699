//! The steps of each command.

use std::path::Path;
use std::process::Command;
use std::{env, thread};

use crate::report::{Report, Step};
use crate::shell::{self, cargo, output};
use crate::vulkan;

/// The alias `cargo all` names the one profile and feature set in which everything is built, so that
/// nothing compiles twice.
const CARGO_CONFIG: &str = include_str!("../../.cargo/config.toml");

/// The counted run that later ones are compared with.
const COUNTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../benches/results/counted.jsonl");

/// The same of launches on a graphics device, and the architectures counted there: one of each kind of kernel, for a
/// device in software is slow.
const LAUNCHED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../benches/results/launched.jsonl");
const LAUNCHING: &str = "attention,linear_attention,lightning,retnet,gla,hgrn2,simple_gla,deltanet,gated_deltanet,kda,longhorn,rwkv4,mamba2,rglru,lstm";

/// The flags of `cargo all`, behind `test`.
fn build_flags() -> Vec<&'static str> {
    let alias = CARGO_CONFIG.lines().find_map(|line| line.strip_prefix("all = \"test "));
    alias.and_then(|flags| flags.split_once('"')).map_or(Vec::new(), |(flags, _)| flags.split(' ').collect())
}

/// Whether to run the slower lints.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lints {
    Run,
    Skip,
}

/// Everything CI runs.
pub(crate) fn test(report: &mut Report, vulkan: bool, lints: Lints) {
    report.step("toolchain", toolchain);
    report.step("rustfmt", || format(false));
    let mut driver = None;
    if vulkan {
        report.step("software Vulkan", || {
            let manifest = vulkan::ensure()?;
            println!("Vulkan driver: {manifest}");
            driver = Some(manifest);
            Ok(None)
        });
    } else {
        report.skip("software Vulkan", "left out by --no-vulkan");
    }
    let build = || done(shell::run(&mut with_flags("build", &["--all-targets"])));
    if report.step("build", build) {
        // The library, binary and integration tests, then the doctests, which need no second build.
        let tests = |kind: &[&str]| {
            let mut command = with_flags("test", &["--no-fail-fast"]);
            command.args(kind);
            if let Some(driver) = &driver {
                command.env(vulkan::VARIABLE, driver).env("SEQZOO_VULKAN", "1");
            }
            shell::run_tests(&mut command).map(Some)
        };
        report.step("tests", || tests(&["--lib", "--bins", "--tests"]));
        report.step("doctests", || tests(&["--doc"]));
        report.step("compare, two architectures", smoke);
        report.step("counted quantities", counted);
        match &driver {
            Some(driver) => drop(report.step("counted launches", || launched(driver))),
            None => report.skip("counted launches", "needs software Vulkan"),
        }
    }
    match lints {
        Lints::Run => slow_lints(report),
        Lints::Skip => report.skip("clippy and cargo-deny", "left out by --no-lint"),
    }
}

/// rustfmt, clippy, cargo-deny.
pub(crate) fn lint(report: &mut Report, fix: bool) {
    report.step("rustfmt", || format(fix));
    slow_lints(report);
}

fn slow_lints(report: &mut Report) {
    report.step("clippy", || {
        component("clippy", "clippy")?;
        done(shell::run(with_flags("clippy", &["--all-targets"]).args(["--", "-D", "warnings"])))
    });
    if output("cargo-deny", &["--version"]).is_some() {
        // Advisories need the network and change by the day, so they are no part of a repeatable run.
        report.step("cargo-deny", || {
            done(shell::run(&mut cargo(&["deny", "--workspace", "check", "bans", "licenses", "sources"])))
        });
    } else {
        report.skip("cargo-deny", "not installed; `cargo install cargo-deny` to have it");
    }
}

/// Runs every golden case in `dir`.
pub(crate) fn golden(dir: &Path) -> Step {
    if !dir.is_dir() {
        return Err(format!("{} is no folder", dir.display()));
    }
    build_binaries()?;
    built("golden", &[&dir.display().to_string()])
}

/// Runs `seqzoo verify`.
pub(crate) fn parity(device: Option<&str>, arch: Option<&str>) -> Step {
    build_binaries()?;
    let mut args = vec!["verify"];
    args.extend(arch);
    if let Some(device) = device {
        args.extend(["--device", device]);
    }
    built("seqzoo", &args)
}

/// Prints what is there and what is missing.
pub(crate) fn doctor() {
    let version = |program: &str, args: &[&str]| output(program, args).unwrap_or_else(|| "missing".into());
    let row = |name: &str, value: String| println!("{name:<16} {value}");
    let needed = env!("CARGO_PKG_RUST_VERSION");
    row("rustc", format!("{} (at least {needed} needed)", version("rustc", &["--version"])));
    row("rustfmt", version("rustfmt", &["--version"]));
    row("clippy", version("cargo-clippy", &["--version"]));
    row("cargo-deny", version("cargo-deny", &["--version"]));
    row("cores", thread::available_parallelism().map_or("unknown".into(), |n| n.to_string()));
    row("build folder", shell::target_dir().map_or_else(|e| e, |dir| dir.display().to_string()));
    row("Vulkan driver", vulkan::driver().unwrap_or_else(|| "none".into()));
    match vulkan::missing().as_slice() {
        [] => row("software Vulkan", "ready".into()),
        packages => row("software Vulkan", format!("needs the Debian packages {}", packages.join(" "))),
    }
}

/// The toolchain must be at least the workspace's `rust-version`.
fn toolchain() -> Step {
    let needed = env!("CARGO_PKG_RUST_VERSION");
    let rustc = env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    let text = output(&rustc, &["--version"]).ok_or("rustc does not run")?;
    println!("{text}; rust-version = {needed}");
    let found = text.split_whitespace().nth(1).unwrap_or_default();
    if version(found) >= version(needed) {
        Ok(None)
    } else {
        Err(format!("rustc {needed} or newer is needed, this is {found}: `rustup update stable`"))
    }
}

/// `1.95.0-nightly` -> `[1, 95, 0]`
fn version(text: &str) -> Vec<u32> {
    let number = text.split('-').next().unwrap_or_default();
    let mut parts: Vec<u32> = number.split('.').map_while(|part| part.parse().ok()).collect();
    parts.resize(3, 0);
    parts
}

fn format(fix: bool) -> Step {
    component("fmt", "rustfmt")?;
    let args: &[&str] = if fix { &["fmt", "--all"] } else { &["fmt", "--all", "--check"] };
    done(shell::run(&mut cargo(args)))
        .map_err(|why| if fix { why } else { format!("{why}; `cargo xtask lint --fix` formats") })
}

/// Makes sure that `cargo NAME` exists, by adding the toolchain's component where rustup can.
fn component(name: &str, component: &str) -> Result<(), String> {
    if cargo(&[name, "--version"]).output().is_ok_and(|output| output.status.success()) {
        return Ok(());
    }
    println!("adding the toolchain component `{component}`");
    shell::run(Command::new("rustup").args(["component", "add", component]))
}

/// A short real run of the main job.
fn smoke() -> Step {
    let dir = env::temp_dir().join(format!("seqzoo-smoke-{}", std::process::id()));
    std::fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let report = dir.join("report.html");
    let path = report.display().to_string();
    let ran = built("seqzoo", &["compare", "--quick", "--arch", "attention,gated_deltanet", "--out", &path]);
    let size = std::fs::metadata(&report).map_or(0, |file| file.len());
    let _ = std::fs::remove_dir_all(&dir);
    ran?;
    if size > 10_000 { Ok(None) } else { Err(format!("the report has only {size} bytes")) }
}

/// What every architecture costs in counted quantities must be what the kept run says, or less.
fn counted() -> Step {
    against(COUNTED, &["--arch", "all"], None)
}

/// So must what some of them start on a graphics device.
fn launched(driver: &str) -> Step {
    let few = ["--device", "wgpu", "--lengths", "128", "--forms", "auto", "--arch", LAUNCHING];
    against(LAUNCHED, &few, Some(driver))
}

/// Counts with these arguments and compares with what is `kept`.
fn against(kept: &str, args: &[&str], driver: Option<&str>) -> Step {
    let new = env::temp_dir().join(format!("seqzoo-counted-{}.jsonl", std::process::id()));
    let path = new.display().to_string();
    let count = [&["run", "--preset", "counted"], args].concat();
    let environment: Vec<_> = driver.map(|driver| (vulkan::VARIABLE, driver)).into_iter().collect();
    let ran = built_under("seqzoo-bench", &[&count[..], &["--out", &path]].concat(), &environment)
        .and_then(|_| built("seqzoo-bench", &["compare", "--counted", kept, &path]));
    let _ = std::fs::remove_file(&new);
    let again = count.join(" ");
    ran.map_err(|why| format!("{why}; if the change is meant, `seqzoo-bench {again} --out {kept}` keeps it"))
}

fn with_flags(subcommand: &str, more: &[&str]) -> Command {
    let mut command = cargo(&[subcommand]);
    command.arg("--locked").args(build_flags()).args(more);
    command
}

/// `--examples` makes cargo resolve the features of development dependencies too, as
/// the tests do; without it some dependencies would be compiled again.
fn build_binaries() -> Result<(), String> {
    shell::run(&mut with_flags("build", &["--quiet", "--bins", "--examples"]))
}

/// Runs a binary of the workspace that has been built. `cargo run -p` would unify other features and
/// compile the dependencies again.
fn built(name: &str, args: &[&str]) -> Step {
    built_under(name, args, &[])
}

/// The same with variables of the environment.
fn built_under(name: &str, args: &[&str], environment: &[(&str, &str)]) -> Step {
    let path = shell::target_dir()?.join("release").join(format!("{name}{}", env::consts::EXE_SUFFIX));
    if !path.is_file() {
        return Err(format!("{} was not built: does the workspace have this binary?", path.display()));
    }
    done(shell::run(Command::new(path).args(args).envs(environment.iter().copied())))
}

fn done(result: Result<(), String>) -> Step {
    result.map(|()| None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_as_numbers() {
        assert!(version("1.100.0") > version("1.95"));
        assert!(version("1.95.0-nightly") >= version("1.95"));
        assert!(version("1.94.9") < version("1.95"));
        assert!(version("nonsense") < version("1.0"));
    }

    #[test]
    fn the_build_flags_are_those_of_the_alias() {
        let flags = build_flags();
        assert!(flags.starts_with(&["--release", "--workspace", "--features"]), "{flags:?}");
        assert!(flags[3].contains("seqzoo-layers/ndarray"), "{flags:?}");
    }

    #[test]
    fn a_missing_golden_folder_is_an_error_before_any_build() {
        assert!(golden(Path::new("no such folder")).is_err_and(|e| e.contains("no such folder")));
    }
}
