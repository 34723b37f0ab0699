//! What ran, how long it took, and whether it passed.

use std::time::{Duration, Instant};

use crate::shell::Counts;

/// How a step ended.
pub(crate) enum Outcome {
    Passed,
    Skipped(String),
    Failed(String),
}

/// What a step returns: test counts where it ran tests.
pub(crate) type Step = Result<Option<Counts>, String>;

struct Row {
    name: String,
    outcome: Outcome,
    time: Duration,
}

/// All steps so far.
#[derive(Default)]
pub(crate) struct Report {
    rows: Vec<Row>,
    counts: Counts,
}

impl Report {
    /// Runs a step under a headline and remembers how it went; `true` when it passed.
    pub(crate) fn step(&mut self, name: &str, run: impl FnOnce() -> Step) -> bool {
        println!("\n=== {name}");
        let passed = self.quiet_step(name, run);
        if let Some(Row { outcome: Outcome::Failed(why), .. }) = self.rows.last() {
            println!("=== {name} FAILED: {why}");
        }
        passed
    }

    /// Runs the one step of a command: no headline, no table.
    pub(crate) fn quiet(&mut self, name: &str, run: impl FnOnce() -> Step) {
        self.quiet_step(name, run);
        if let Some(Row { outcome: Outcome::Failed(why), .. }) = self.rows.last() {
            eprintln!("{name}: {why}");
        }
    }

    fn quiet_step(&mut self, name: &str, run: impl FnOnce() -> Step) -> bool {
        let start = Instant::now();
        let result = run();
        let time = start.elapsed();
        let (counts, outcome) = match result {
            Ok(None) => (Counts::default(), Outcome::Passed),
            Ok(Some(counts)) if counts.failed == 0 => (counts, Outcome::Passed),
            Ok(Some(counts)) => (counts, Outcome::Failed(format!("{} tests failed", counts.failed))),
            // A step that is no test still counts, so that `0 failed` always means success.
            Err(why) => (Counts { passed: 0, failed: 1 }, Outcome::Failed(why)),
        };
        self.counts = self.counts + counts;
        let passed = matches!(outcome, Outcome::Passed);
        self.rows.push(Row { name: name.into(), outcome, time });
        passed
    }

    /// Notes a step that did not run, and why.
    pub(crate) fn skip(&mut self, name: &str, why: &str) {
        println!("\n=== {name}: skipped, {why}");
        let outcome = Outcome::Skipped(why.into());
        self.rows.push(Row { name: name.into(), outcome, time: Duration::ZERO });
    }

    pub(crate) fn all_passed(&self) -> bool {
        !self.rows.iter().any(|row| matches!(row.outcome, Outcome::Failed(_)))
    }

    /// The table of steps.
    pub(crate) fn print(&self) {
        println!("\n{:<28} {:>7}  outcome", "step", "min:s");
        for Row { name, outcome, time } in &self.rows {
            let outcome = match outcome {
                Outcome::Passed => "ok".into(),
                Outcome::Skipped(why) => format!("skipped: {why}"),
                Outcome::Failed(why) => format!("FAILED: {why}"),
            };
            println!("{name:<28} {:>7}  {outcome}", clock(*time));
        }
        println!("{:<28} {:>7}", "total", clock(self.rows.iter().map(|row| row.time).sum()));
    }

    /// The table of steps, then the line that CI reads.
    pub(crate) fn print_with_counts(&self) {
        self.print();
        println!("{} passed, {} failed", self.counts.passed, self.counts.failed);
    }
}

fn clock(time: Duration) -> String {
    format!("{}:{:02}", time.as_secs() / 60, time.as_secs() % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_add_up_and_a_failed_step_is_a_failure() {
        let mut report = Report::default();
        assert!(report.step("tests", || Ok(Some(Counts { passed: 3, failed: 0 }))));
        report.skip("deny", "not installed");
        assert!(report.all_passed());
        assert!(!report.step("format", || Err("main.rs differs".into())));
        assert!(!report.step("more tests", || Ok(Some(Counts { passed: 1, failed: 2 }))));
        assert!(!report.all_passed());
        assert_eq!(report.counts, Counts { passed: 4, failed: 3 });
    }

    #[test]
    fn minutes_and_seconds() {
        assert_eq!(clock(Duration::from_secs(61)), "1:01");
        assert_eq!(clock(Duration::from_secs(3_600)), "60:00");
    }
}
