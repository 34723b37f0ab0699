//! The browser demo: WebAssembly, its JavaScript, the site around both, and their tests.
//!
//! Everything that is built or fetched stays below the target directory, but for `web/pkg` (the npm package) and
//! the site's own `node_modules` and `dist`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::ValueEnum;

use crate::apt;
use crate::report::Step;
use crate::shell::{self, cargo, output, root, run};

const TARGET: &str = "wasm32-unknown-unknown";
const LOCK: &str = include_str!("../../Cargo.lock");

/// What Debian's own Rust for the web consists of, for machines where rustup has no wasm target.
const DEBIAN: [&str; 4] = ["rustc-web", "cargo-web", "rust-web-src", "lld-22"];

/// Builds the module and the site into `web/site/dist`, a folder for any static host.
pub(crate) fn build() -> Step {
    let module = module()?;
    bind(&module)?;
    package()?;
    site()?;
    run(Command::new("node").arg("budget.mjs").current_dir(web()))?;
    println!("the site: {}", web().join("site/dist").display());
    Ok(None)
}

/// Builds, then serves the site and prints its address until it is interrupted.
pub(crate) fn serve() -> Step {
    build()?;
    run(npm(&["run", "preview", "--", "--host", "127.0.0.1"]).current_dir(web().join("site")))?;
    Ok(None)
}

/// Builds, checks the sizes, and runs the site's unit and browser tests.
pub(crate) fn test() -> Step {
    chromium()?;
    build()?;
    let site = web().join("site");
    run(npm(&["test"]).current_dir(&site))?;
    run(npm(&["run", "package"]).current_dir(&site))?;
    run(npm(&["run", "e2e", "--", "--no-screenshots", "--short-gpu"]).current_dir(&site))?;
    Ok(None)
}

/// Where the page is measured.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Only {
    /// Without WebGPU.
    Cpu,
    /// On WebGPU.
    Gpu,
}

/// Builds, and measures what the page Speed shows as lines of the scaling suite.
pub(crate) fn bench(out: &Path, only: Option<Only>, more: &[String]) -> Step {
    let out = std::path::absolute(out).map_err(|e| format!("{}: {e}", out.display()))?;
    if out.exists() {
        return Err(format!("{} is there already: name another file with `--out`", out.display()));
    }
    chromium()?;
    build()?;
    let mut command = npm(&["run", "bench", "--", "--out"]);
    command.arg(&out);
    if let Some(only) = only {
        command.args(["--only", if matches!(only, Only::Cpu) { "cpu" } else { "gpu" }]);
    }
    run(command.args(more).current_dir(web().join("site")))?;
    println!("results: {}; `seqzoo-bench report` draws them", out.display());
    Ok(None)
}

/// Makes sure that there is a Chromium.
fn chromium() -> Result<(), String> {
    if !Path::new("/usr/bin/chromium").is_file() && std::env::var_os("CHROMIUM").is_none() {
        apt::install(&["chromium"], "or name a Chromium in the variable CHROMIUM")?;
    }
    Ok(())
}

fn web() -> PathBuf {
    root().join("web")
}

fn npm(args: &[&str]) -> Command {
    let mut command = Command::new(if cfg!(windows) { "npm.cmd" } else { "npm" });
    command.args(args);
    command
}

/// Compiles the crate `web`; where rustup cannot add the target, with Debian's toolchain.
fn module() -> Result<PathBuf, String> {
    let dir = shell::target_dir()?.join("wasm");
    let args = [
        ["rustc", "--locked", "--package", "seqzoo-web", "--lib", "--crate-type", "cdylib"].as_slice(),
        &["--no-default-features", "--features", "flex,webgpu", "--profile", "web", "--target", TARGET],
        // Gradients of long recurrences go deep.
        &["--", "-C", "link-arg=-zstack-size=8388608"],
    ]
    .concat();
    let mut command = if rustup_has_target() {
        cargo(&args)
    } else {
        let linker = debian()?;
        let mut command = Command::new("/usr/bin/cargo");
        command
            .args(["-Z", "build-std=std,panic_abort"])
            .args(args)
            .current_dir(root())
            .env_remove("RUSTUP_TOOLCHAIN")
            .env_remove("CARGO")
            .env("RUSTC", "/usr/bin/rustc")
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", linker);
        command
    };
    // Incremental code is never optimized as a whole, which is what makes the module small.
    run(command.env("CARGO_TARGET_DIR", &dir).env("CARGO_INCREMENTAL", "0"))?;
    Ok(dir.join(TARGET).join("web/seqzoo_web.wasm"))
}

fn rustup_has_target() -> bool {
    let has = || output("rustup", &["target", "list", "--installed"]).is_some_and(|all| all.contains(TARGET));
    has() || (run(Command::new("rustup").args(["target", "add", TARGET])).is_ok() && has())
}

/// Makes sure that Debian's Rust for the web is there, and names its linker.
fn debian() -> Result<String, String> {
    let there = || {
        let sources = Path::new("/usr/lib/rustlib/src/rust/library").is_dir();
        let compiler = Path::new("/usr/bin/rustc").is_file() && Path::new("/usr/bin/cargo").is_file();
        (sources && compiler).then(linker).flatten()
    };
    if let Some(linker) = there() {
        return Ok(linker);
    }
    apt::install(&DEBIAN, "or add the target with `rustup target add wasm32-unknown-unknown`")?;
    there().ok_or_else(|| format!("the Debian packages {} brought no linker `wasm-ld`", DEBIAN.join(" ")))
}

/// `wasm-ld`, or the newest that has a version in its name.
fn linker() -> Option<String> {
    let names = fs::read_dir("/usr/bin").ok()?.filter_map(|e| e.ok()?.file_name().into_string().ok());
    let version = |name: &str| match name.strip_prefix("wasm-ld") {
        Some("") => Some(u32::MAX),
        Some(rest) => rest.strip_prefix('-')?.parse().ok(),
        None => None,
    };
    names.filter_map(|name| Some((version(&name)?, name))).max().map(|(_, name)| name)
}

/// Writes the module's JavaScript and types into `web/pkg`.
fn bind(module: &Path) -> Result<(), String> {
    let tool = wasm_bindgen()?;
    let out = web().join("pkg");
    let mut command = Command::new(tool);
    command.args(["--target", "web", "--remove-name-section", "--remove-producers-section", "--out-dir"]);
    run(command.arg(&out).arg(module))
}

/// `wasm-bindgen` at the version of the library, from the path, or installed below the target directory.
fn wasm_bindgen() -> Result<PathBuf, String> {
    let version = locked("wasm-bindgen").ok_or("Cargo.lock names no `wasm-bindgen`")?;
    let fits = |program: &Path| {
        let says = output(&program.display().to_string(), &["--version"]);
        says.is_some_and(|says| says.split_whitespace().nth(1) == Some(version))
    };
    let tools = shell::target_dir()?.join("tools");
    let installed = tools.join("bin").join(format!("wasm-bindgen{}", std::env::consts::EXE_SUFFIX));
    let known = [PathBuf::from("wasm-bindgen"), installed.clone()];
    if let Some(program) = known.into_iter().find(|program| fits(program)) {
        return Ok(program);
    }
    let install = |locked: &[&str]| {
        let mut command = cargo(&["install", "wasm-bindgen-cli", "--version", version, "--root"]);
        command.arg(&tools).args(locked).env("CARGO_TARGET_DIR", tools.join("build"));
        run(&mut command)
    };
    // Its own lock file may name a dependency that a mirror does not have.
    install(&["--locked"]).or_else(|_| install(&[]))?;
    if fits(&installed) { Ok(installed) } else { Err(format!("wasm-bindgen {version} did not install")) }
}

/// The version of a package in Cargo.lock.
fn locked(package: &str) -> Option<&'static str> {
    let rest = LOCK.split_once(&format!("name = \"{package}\"\nversion = \""))?.1;
    rest.split_once('"').map(|(version, _)| version)
}

/// Completes `web/pkg` to the npm package `seqzoo`.
fn package() -> Result<(), String> {
    let (from, to) = (web().join("npm"), web().join("pkg"));
    let version = env!("CARGO_PKG_VERSION");
    for name in ["package.json", "README.md", "index.js", "index.d.ts"] {
        let text = fs::read_to_string(from.join(name)).map_err(|e| format!("web/npm/{name}: {e}"))?;
        write(&to.join(name), text.replace("0.0.0-version", version).as_bytes())?;
    }
    copy(&web().join("site/src/engine/types.ts"), &to.join("types.d.ts"))
}

/// Builds the site around the module.
fn site() -> Result<(), String> {
    let node =
        output("node", &["--version"]).ok_or("Node.js 20.19 or newer is needed: https://nodejs.org")?;
    println!("Node.js {node}");
    let (site, pkg) = (web().join("site"), web().join("pkg"));
    let public = site.join("public/pkg");
    fs::create_dir_all(&public).map_err(|e| format!("{}: {e}", public.display()))?;
    for name in ["seqzoo_web.js", "seqzoo_web_bg.wasm"] {
        copy(&pkg.join(name), &public.join(name))?;
    }
    run(npm(&["ci", "--no-audit", "--no-fund"]).current_dir(&site))?;
    run(npm(&["run", "build"]).current_dir(&site))
}

fn copy(from: &Path, to: &Path) -> Result<(), String> {
    let bytes = fs::read(from).map_err(|e| format!("{}: {e}", from.display()))?;
    write(to, &bytes)
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), String> {
    fs::write(path, bytes).map_err(|e| format!("{}: {e}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_file_names_the_bindings_version() {
        let version = locked("wasm-bindgen").unwrap_or_default();
        assert!(version.starts_with("0.2."), "{version}");
        assert_eq!(locked("no-such-package"), None);
    }
}
