//! The parity matrix on every device of the build. Software Vulkan runs when `SEQZOO_VULKAN=1` says that
//! a driver is there; `cargo xtask test` sets it. It goes through WGSL shaders (`wgpu`): SwiftShader does not
//! support what Burn's SPIR-V matrix products need and returns wrong numbers for them.

use std::sync::atomic::{AtomicUsize, Ordering};

use seqzoo::verify::{Options, Report, subjects, verify};
use seqzoo_layers::device;

fn matrix(device: &str, options: Options) {
    if !device::available().contains(&device) {
        eprintln!("skipped: `{device}` is not compiled in; `cargo xtask test` compiles every backend");
        return;
    }
    let device = device::open(device).expect("the device is compiled in");
    // Rows take turns on all cores: a device in software is slow.
    let rows = subjects(None);
    let next = AtomicUsize::new(0);
    let worker = || {
        let take = || rows.get(next.fetch_add(1, Ordering::Relaxed));
        std::iter::from_fn(take).map(|subject| verify(subject, &device, options)).collect::<Vec<_>>()
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let reports: Vec<Report> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("no row panics")).collect()
    });
    assert_eq!(reports.len(), rows.len());
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
