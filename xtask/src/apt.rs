//! Debian packages, where there is an apt-get and the right to use it.

use std::process::Command;

use crate::shell::{self, output};

/// Installs packages; `otherwise` completes the advice where that cannot be done.
pub(crate) fn install(packages: &[&str], otherwise: &str) -> Result<(), String> {
    let names = packages.join(" ");
    let by_hand = format!("install the Debian packages `{names}`, {otherwise}");
    if output("apt-get", &["--version"]).is_none() {
        return Err(format!("there is no apt-get here: {by_hand}"));
    }
    if output("id", &["-u"]).as_deref() != Some("0") {
        return Err(format!("installing needs root: {by_hand}"));
    }
    println!("installing the Debian packages `{names}`");
    let apt = |args: &[&str]| {
        shell::run(Command::new("apt-get").args(args).env("DEBIAN_FRONTEND", "noninteractive"))
    };
    apt(&["update", "-qq"]).map_err(|e| format!("{e}; {by_hand}"))?;
    let mut install = vec!["install", "-y", "-qq", "--no-install-recommends"];
    install.extend(packages);
    apt(&install).map_err(|e| format!("{e}; {by_hand}"))
}
