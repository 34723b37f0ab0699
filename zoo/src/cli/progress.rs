//! Progress on stderr: a bar in a terminal, plain lines elsewhere.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use seqzoo::train::StepMetrics;

use super::si;

/// Progress of a number of training steps.
pub(crate) struct Progress(ProgressBar);

impl Progress {
    pub(crate) fn new(done: usize, steps: usize) -> Self {
        let bar = ProgressBar::with_draw_target(Some(steps as u64), ProgressDrawTarget::stderr());
        let template = "{bar:30} {pos}/{len}  {msg}  {elapsed_precise}, {eta} left";
        // The template is a constant; a broken one would only cost its looks.
        bar.set_style(
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
        // Steps of an earlier run must not count for the speed.
        bar.set_position(done as u64);
        bar.reset_eta();
        Self(bar)
    }

    pub(crate) fn step(&self, m: &StepMetrics) {
        self.0.set_message(format!("loss {:.4}  {} tokens/s", m.loss, si(m.tokens_per_second)));
        self.0.set_position(m.step as u64);
    }

    /// A line that stays.
    pub(crate) fn note(&self, line: &str) {
        if self.0.is_hidden() { eprintln!("{line}") } else { self.0.println(line) }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.abandon();
    }
}
