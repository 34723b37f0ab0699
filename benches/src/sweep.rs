//! The sweep: every point, round after round, each outcome kept at once.

use std::collections::HashMap;

use crate::Result;
use crate::plan::Plan;
use crate::point::Point;
use crate::record::{Outcome, Record};

/// Measures points, keeps records, and may stop.
pub trait Driver {
    /// Measures a point; `None` to stop the sweep, with nothing to keep.
    ///
    /// # Errors
    /// When nothing can be measured at all.
    fn measure(&mut self, point: &Point, round: usize) -> Result<Option<Outcome>>;

    /// Keeps a record.
    ///
    /// # Errors
    /// When it cannot be kept: ends the sweep.
    fn keep(&mut self, record: Record) -> Result<()>;
}

/// How a sweep ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Everything has an outcome.
    Finished,
    /// The driver stopped it.
    Stopped,
}

/// Measures what `known` does not hold yet. Rounds are outermost and subjects take turns at each size, so that a
/// slow moment of the machine meets all of them.
///
/// # Errors
/// When the driver cannot measure or keep.
pub fn run(plan: &Plan, known: &[Record], driver: &mut dyn Driver) -> Result<Ended> {
    let mut outcomes: HashMap<(String, usize), Outcome> =
        known.iter().map(|r| ((r.point.to_string(), r.round), r.outcome.clone())).collect();
    let mut hopeless: Vec<(Point, String)> = known.iter().filter_map(verdict).collect();
    for round in 0..plan.rounds {
        for point in &plan.points {
            if outcomes.contains_key(&(point.to_string(), round)) {
                continue;
            }
            let outcome = match hopeless.iter().find(|(earlier, _)| includes(earlier, point)) {
                Some((_, reason)) => Outcome::Skipped { reason: reason.clone() },
                None => match driver.measure(point, round)? {
                    Some(outcome) => outcome,
                    None => return Ok(Ended::Stopped),
                },
            };
            let record = Record { point: point.clone(), round, outcome: outcome.clone() };
            hopeless.extend(verdict(&record));
            outcomes.insert((point.to_string(), round), outcome);
            driver.keep(record)?;
        }
    }
    Ok(Ended::Finished)
}

/// Records that a sweep still owes.
pub fn owed(plan: &Plan, known: &[Record]) -> usize {
    let known: std::collections::HashSet<(String, usize)> =
        known.iter().map(|r| (r.point.to_string(), r.round)).collect();
    let key = |point: &Point, round| known.contains(&(point.to_string(), round));
    (0..plan.rounds).map(|round| plan.points.iter().filter(|p| !key(p, round)).count()).sum()
}

/// The point of an outcome that makes larger ones pointless, and why.
fn verdict(record: &Record) -> Option<(Point, String)> {
    match &record.outcome {
        Outcome::Done(_) | Outcome::Skipped { .. } => None,
        outcome => Some((record.point.clone(), format!("{}: {}", record.point, outcome.words()))),
    }
}

/// Whether a point asks at least as much as an earlier one of the same subject, task, form and device.
fn includes(earlier: &Point, point: &Point) -> bool {
    let same = Point { batch: point.batch, time: point.time, ..earlier.clone() } == *point;
    same && point.batch >= earlier.batch && point.time >= earlier.time
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Choice, Preset};
    use crate::record::Measurement;

    /// Answers with `outcome` and remembers what it was asked.
    struct Script<F> {
        outcome: F,
        asked: Vec<(String, usize, usize)>,
        kept: Vec<Record>,
        stop_after: usize,
    }

    impl<F: Fn(&Point) -> Outcome> Driver for Script<F> {
        fn measure(&mut self, point: &Point, round: usize) -> Result<Option<Outcome>> {
            if self.asked.len() == self.stop_after {
                return Ok(None);
            }
            self.asked.push((point.subject.clone(), point.time, round));
            Ok(Some((self.outcome)(point)))
        }

        fn keep(&mut self, record: Record) -> Result<()> {
            self.kept.push(record);
            Ok(())
        }
    }

    fn plan() -> Plan {
        Plan::new(&Choice {
            preset: Preset::Tiny,
            subjects: vec!["attention".into(), "lstm".into()],
            lengths: None,
            forms: None,
            tasks: None,
            batches: None,
            devices: vec!["flex".into()],
        })
    }

    fn script<F: Fn(&Point) -> Outcome>(outcome: F) -> Script<F> {
        Script { outcome, asked: Vec::new(), kept: Vec::new(), stop_after: usize::MAX }
    }

    fn done(_: &Point) -> Outcome {
        Outcome::Done(Measurement::default())
    }

    #[test]
    fn a_stopped_sweep_goes_on_where_it_was() {
        let plan = plan();
        let mut whole = script(done);
        assert_eq!(run(&plan, &[], &mut whole).unwrap(), Ended::Finished);
        assert_eq!(whole.kept.len(), plan.rounds * plan.points.len());
        assert_eq!(owed(&plan, &whole.kept), 0);
        let mut first = script(done);
        first.stop_after = 5;
        assert_eq!(run(&plan, &[], &mut first).unwrap(), Ended::Stopped);
        assert_eq!(owed(&plan, &first.kept), whole.kept.len() - 5);
        let mut second = script(done);
        run(&plan, &first.kept, &mut second).unwrap();
        assert_eq!([first.kept, second.kept].concat(), whole.kept);
    }

    #[test]
    fn larger_points_are_not_tried_after_a_time_out_and_others_are() {
        let plan = plan();
        let slow = |p: &Point| {
            if p.subject == "lstm" && p.task == crate::point::Task::Prefill && p.time >= 16 {
                Outcome::TimedOut { limit: 1.0 }
            } else {
                done(p)
            }
        };
        let mut script = script(slow);
        run(&plan, &[], &mut script).unwrap();
        let outcome = |time, round| {
            let of = |r: &&Record| {
                let p = &r.point;
                p.subject == "lstm" && p.task == crate::point::Task::Prefill && p.batch == 1 && p.time == time
            };
            script.kept.iter().filter(of).find(|r| r.round == round).map(|r| r.outcome.clone()).unwrap()
        };
        assert!(outcome(8, 1).done().is_some());
        assert_eq!(outcome(16, 0), Outcome::TimedOut { limit: 1.0 });
        for (time, round) in [(32, 0), (16, 1), (32, 1)] {
            assert!(matches!(outcome(time, round), Outcome::Skipped { reason } if reason.contains("16")));
        }
    }
}
