//! The parity matrix on every device of the build. Software Vulkan runs when `SEQZOO_VULKAN=1` says that
//! a driver is there; `cargo xtask test` sets it. It goes through WGSL shaders (`wgpu`): SwiftShader does not
//! support what Burn's SPIR-V matrix products need and returns wrong numbers for them.

use seqzoo::verify::{Options, Report, subjects, verify};
use seqzoo_layers::device;

fn matrix(device: &str, options: Options) {
    if !device::available().contains(&device) {
        eprintln!("skipped: `{device}` is not compiled in; `cargo xtask test` compiles every backend");
        return;
    }
    let device = device::open(device).expect("the device is compiled in");
    let reports: Vec<Report> =
        subjects(None).iter().map(|subject| verify(subject, &device, options)).collect();
    let broken: Vec<_> = (reports.iter())
        .flat_map(|report| report.checks.iter().map(move |check| (&report.subject, check)))
        .filter(|(_, check)| !check.passed())
        .map(|(subject, check)| format!("{subject}: {}: {:?}", check.promise, check.outcome))
        .collect();
    assert!(broken.is_empty(), "{} broken promises:\n{}", broken.len(), broken.join("\n"));
}

#[test]
fn every_promise_holds_on_flex() {
    matrix("flex", Options::default());
}

#[test]
fn every_promise_holds_on_ndarray() {
    matrix("ndarray", Options { seed: 1, ..Options::default() });
}

#[test]
fn every_promise_holds_on_software_vulkan() {
    if std::env::var_os("SEQZOO_VULKAN").is_none() {
        eprintln!("skipped: set SEQZOO_VULKAN=1 where a Vulkan driver is installed");
        return;
    }
    matrix("wgpu", Options { time: 19, ..Options::default() });
}
