//! The parity matrix: what every mixer promises, checked on the user's own device.
//!
//! One table ([`subjects`]) of architectures and one list of promises; a subject is green when all forms,
//! splits and gradients agree within the tolerances of this module.

mod checks;
mod gradients;
mod probe;
mod subjects;

use burn::tensor::Device;
use futures_lite::future::block_on;
use seqzoo_layers::Result;
use serde::Serialize;
use web_time::Instant;

pub use subjects::{Subject, subjects};

/// Largest relative error of values and states in single precision.
pub const VALUE_TOLERANCE: f64 = 1e-5;
/// Largest relative error of gradients in single precision.
pub const GRADIENT_TOLERANCE: f64 = 1e-4;
/// Largest relative error of gradients against central differences in double precision.
pub const DIFFERENCE_TOLERANCE: f64 = 1e-6;

/// One promise kept or broken.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// Which promise.
    pub promise: &'static str,
    /// How it went.
    pub outcome: Outcome,
}

/// How a check went.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Measured; passes when `error ≤ tolerance`.
    Measured {
        /// Largest relative error found.
        error: f64,
        /// The limit.
        tolerance: f64,
        /// Where the largest error was.
        worst: String,
    },
    /// Not run, with the reason.
    Skipped(String),
    /// Could not run.
    Failed(String),
}

impl Check {
    /// Whether the promise is kept (or was not checked).
    pub fn passed(&self) -> bool {
        match &self.outcome {
            Outcome::Measured { error, tolerance, .. } => error <= tolerance,
            Outcome::Skipped(_) => true,
            Outcome::Failed(_) => false,
        }
    }
}

/// All checks of one subject on one device.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The subject's name.
    pub subject: String,
    /// One entry per promise.
    pub checks: Vec<Check>,
    /// Time taken.
    pub seconds: f64,
}

impl Report {
    /// Whether every promise is kept.
    pub fn passed(&self) -> bool {
        self.checks.iter().all(Check::passed)
    }
}

/// How much to check.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Tokens of the test sequences.
    pub time: usize,
    /// Also compare gradients with central differences in double precision (CPU devices).
    pub double: bool,
    /// Seed of parameters and inputs.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { time: 37, double: true, seed: 0 }
    }
}

/// The promises, in the order in which they are checked.
pub const PROMISES: &[&str] = &[
    "forms",
    "lengths",
    "step",
    "split",
    "resume",
    "causality",
    "batch",
    "padding",
    "rewind",
    "gradients",
    "differences",
];

/// Checks every promise of one subject on `device` (without autodiff; it is added where needed).
pub fn verify(subject: &Subject, device: &Device, options: Options) -> Report {
    let start = Instant::now();
    let check = |promise| block_on(check(promise, subject, device, options));
    let checks = PROMISES.iter().map(|promise| check(promise)).collect();
    Report { subject: subject.name.clone(), checks, seconds: start.elapsed().as_secs_f64() }
}

/// Checks one of [`PROMISES`]; waits for the device only where a browser allows it.
pub async fn check(promise: &'static str, subject: &Subject, device: &Device, options: Options) -> Check {
    let outcome = run(promise, subject, device, options).await;
    Check { promise, outcome: outcome.unwrap_or_else(|e| Outcome::Failed(e.to_string())) }
}

async fn run(promise: &str, subject: &Subject, device: &Device, options: Options) -> Result<Outcome> {
    match promise {
        "forms" => checks::forms(subject, device, options).await,
        "lengths" => checks::lengths(subject, device, options).await,
        "step" => checks::step(subject, device, options).await,
        "split" => checks::split(subject, device, options).await,
        "resume" => checks::resume(subject, device, options).await,
        "causality" => checks::causality(subject, device, options).await,
        "batch" => checks::batch(subject, device, options).await,
        "padding" => checks::padding(subject, device, options).await,
        "rewind" => checks::rewind(subject, device, options).await,
        "gradients" => gradients::forms(subject, device, options).await,
        _ if !options.double => Ok(Outcome::Skipped("double precision was not asked for".into())),
        _ => gradients::differences(subject, device, options).await,
    }
}
