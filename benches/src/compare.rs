//! Whether one set of results is slower than another, and whether that is more than noise.
//!
//! Points are compared one by one and, with more certainty, by subject and task: the geometric mean of the ratios
//! of a group. Intervals are bootstrapped over rounds (see [`crate::stats`]) and widened for the number of
//! comparisons, so that many points do not make a false alarm. Where two builds took turns, a ratio is the median over
//! pairs of repetitions, one of each, next to each other in time: what slows the machine for a while slows both. Else a time is
//! the first decile of its repetitions: whatever else the machine does makes them longer, never shorter. Counted
//! quantities need no statistics: more is more.

use std::fmt::Write;

use rand_chacha::ChaCha8Rng;

use crate::point::{MACHINE, Point, Task};
use crate::stats::{draw, interval, median, resampled};
use crate::summary::Summary;

/// Chance of any false alarm among the comparisons of a kind.
const FALSE_ALARM: f64 = 0.02;
/// Share by which bytes asked of the allocator may differ: threads allocate as they come.
const ALLOCATED_TOLERANCE: f64 = 0.01;
/// Share by which launches of training may grow: Burn chooses its products by time, and some are two launches.
const LAUNCHES_TOLERANCE: f64 = 0.05;

/// What is compared, how strictly.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Strictness {
    /// Share by which the time may differ.
    pub tolerance: f64,
    /// Which of the repetitions is the time, where they are not compared in pairs.
    pub quantile: f64,
    /// Resamples of each interval.
    pub resamples: usize,
    /// Leave the clock out.
    pub counted_only: bool,
    /// What of both was measured next to each other.
    pub turns: Turns,
}

/// What of two sets of results was measured next to each other, so that what slows it in one slows it in the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turns {
    /// Nothing.
    Apart,
    /// Each round.
    Rounds,
    /// Each repetition of a round.
    Repetitions,
}

impl Default for Strictness {
    fn default() -> Self {
        Self { tolerance: 0.05, quantile: 0.1, resamples: 2000, counted_only: false, turns: Turns::Apart }
    }
}

/// What a comparison says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Below the tolerance with certainty.
    Faster,
    /// Neither.
    Same,
    /// Above the tolerance with certainty.
    Slower,
}

/// A ratio of times, new to old.
#[derive(Clone, Debug, PartialEq)]
pub struct Ratio {
    /// The point, or the subject and task of a group.
    pub what: String,
    /// The middle.
    pub ratio: f64,
    /// Where it lies.
    pub interval: (f64, f64),
    /// What that means.
    pub verdict: Verdict,
}

/// A difference that no noise explains.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// The point.
    pub point: Point,
    /// The quantity, or the outcome.
    pub what: String,
    /// Whether it got worse.
    pub worse: bool,
}

/// The whole comparison.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Comparison {
    /// Every point that both sets measured.
    pub points: Vec<Ratio>,
    /// Every subject and task.
    pub groups: Vec<Ratio>,
    /// Counted quantities and outcomes that differ.
    pub changes: Vec<Change>,
    /// Points of one set only.
    pub unmatched: usize,
    /// Points of both sets.
    pub matched: usize,
}

impl Comparison {
    /// Whether anything got worse.
    pub fn regressed(&self) -> bool {
        self.points.iter().chain(&self.groups).any(|r| r.verdict == Verdict::Slower)
            || self.changes.iter().any(|c| c.worse)
    }
}

/// A point before and after.
type Pair<'a> = (&'a Summary, &'a Summary);

/// Compares all points of `old` that `new` has too.
pub fn compare(old: &[Summary], new: &[Summary], strictness: Strictness) -> Comparison {
    let mut pairs: Vec<Pair<'_>> = Vec::new();
    let mut out = Comparison::default();
    for before in old.iter().filter(|s| s.point.subject != MACHINE) {
        match new.iter().find(|s| s.point == before.point) {
            Some(after) => pairs.push((before, after)),
            None => out.unmatched += 1,
        }
    }
    let others = new.iter().filter(|s| s.point.subject != MACHINE);
    out.unmatched += others.filter(|s| !old.iter().any(|o| o.point == s.point)).count();
    out.matched = pairs.len();
    for (before, after) in &pairs {
        out.changes.extend(changes(before, after));
    }
    if strictness.counted_only {
        return out;
    }
    pairs.retain(|(before, after)| before.measured() && after.measured());
    out.points = (pairs.iter())
        .map(|pair| ratio(pair.0.point.to_string(), &[*pair], pairs.len(), strictness))
        .collect();
    let mut groups: Vec<((String, Task), Vec<Pair<'_>>)> = Vec::new();
    for pair in pairs {
        let key = (pair.0.point.subject.clone(), pair.0.point.task);
        match groups.iter_mut().find(|(known, _)| *known == key) {
            Some((_, members)) => members.push(pair),
            None => groups.push((key, vec![pair])),
        }
    }
    out.groups = (groups.iter())
        .map(|((subject, task), members)| {
            ratio(format!("{subject} {task}, all sizes"), members, groups.len(), strictness)
        })
        .collect();
    out
}

/// The geometric mean of new over old, and its interval among `comparisons` of the kind.
pub fn ratio(
    what: String,
    pairs: &[(&Summary, &Summary)],
    comparisons: usize,
    strictness: Strictness,
) -> Ratio {
    let mean = |logs: Vec<f64>| (logs.iter().sum::<f64>() / logs.len() as f64).exp();
    let level = 1.0 - 2.0 * FALSE_ALARM / comparisons.max(1) as f64;
    let interval = |statistic: &mut dyn FnMut(&mut ChaCha8Rng) -> Vec<f64>| {
        interval(level.max(0.5), strictness.resamples, |rng| {
            mean(statistic(rng).into_iter().filter(|log| log.is_finite()).collect())
        })
    };
    // One drawing of rounds for the whole group: a slow moment slows all of it.
    let most = |side: fn(&Pair<'_>) -> usize| pairs.iter().map(side).max().unwrap_or(0);
    let (old_rounds, new_rounds) = (most(|p| p.0.rounds.len()), most(|p| p.1.rounds.len()));
    let (middle, interval) = if strictness.turns == Turns::Repetitions {
        let ratios: Vec<Vec<Vec<f64>>> = pairs.iter().map(paired).collect();
        let interval = interval(&mut |rng| {
            let draw = draw(old_rounds.min(new_rounds), rng);
            ratios.iter().map(|rounds| resampled(0.5, rounds, &draw, rng).ln()).collect()
        });
        (mean(ratios.iter().map(|rounds| median(&rounds.concat()).ln()).collect()), interval)
    } else {
        let q = strictness.quantile;
        let interval = interval(&mut |rng| {
            let olds = draw(old_rounds, rng);
            let apart = strictness.turns == Turns::Apart;
            let news = if apart { draw(new_rounds, rng) } else { olds.clone() };
            let log = |(old, new): &Pair<'_>| {
                (resampled(q, &new.rounds, &news, rng) / resampled(q, &old.rounds, &olds, rng)).ln()
            };
            pairs.iter().map(log).collect()
        });
        (mean(pairs.iter().map(|(old, new)| (new.quantile(q) / old.quantile(q)).ln()).collect()), interval)
    };
    let verdict = if interval.0 > 1.0 + strictness.tolerance {
        Verdict::Slower
    } else if interval.1 < 1.0 / (1.0 + strictness.tolerance) {
        Verdict::Faster
    } else {
        Verdict::Same
    };
    Ratio { what, ratio: middle, interval, verdict }
}

/// New over old of every pair of repetitions, by round.
fn paired((old, new): &Pair<'_>) -> Vec<Vec<f64>> {
    let ratios =
        |(old, new): (&Vec<f64>, &Vec<f64>)| old.iter().zip(new).map(|(old, new)| new / old).collect();
    old.rounds.iter().zip(&new.rounds).map(ratios).collect()
}

/// Counted quantities and outcomes that differ.
fn changes(old: &Summary, new: &Summary) -> Vec<Change> {
    let change = |what: String, worse| Change { point: old.point.clone(), what, worse };
    match (old.measured(), new.measured()) {
        (true, true) => {}
        (false, false) => return Vec::new(),
        (was, _) => {
            let trouble = if was { &new.trouble } else { &old.trouble };
            let words = trouble.as_ref().map_or("no numbers".into(), |outcome| outcome.words());
            let what = if was { format!("now {words}") } else { format!("no longer {words}") };
            return vec![change(what, was)];
        }
    }
    let (a, b) = (&old.counted, &new.counted);
    let exact = [
        ("operations", a.flops, b.flops),
        ("bytes moved", a.bytes, b.bytes),
        ("parameters", a.params as f64, b.params as f64),
        ("state bytes", a.state_bytes as f64, b.state_bytes as f64),
    ];
    let mut out: Vec<Change> = (exact.into_iter())
        .filter(|(_, a, b)| a != b)
        .map(|(name, a, b)| change(format!("{name}: {a} → {b}"), b > a))
        .collect();
    let (few, many) = (a.launches as f64, b.launches as f64);
    if few != many {
        let most = few * if old.point.task == Task::Train { 1.0 + LAUNCHES_TOLERANCE } else { 1.0 };
        out.push(change(format!("kernel launches: {few} → {many}"), many > most));
    }
    // Where kernels are started the host's memory holds what the driver asks for, which differs between machines.
    let on_host = a.launches == 0 && b.launches == 0;
    let (a, b) = (a.allocated_bytes as f64, b.allocated_bytes as f64);
    if on_host && (b / a - 1.0).abs() > ALLOCATED_TOLERANCE {
        out.push(change(format!("bytes allocated: {a} → {b}"), b > a));
    }
    out
}

/// The comparison as Markdown: groups, then whatever differs.
pub fn markdown(comparison: &Comparison) -> String {
    let mut out = String::new();
    let table = |out: &mut String, title: &str, ratios: &[&Ratio]| {
        if ratios.is_empty() {
            return;
        }
        let _ = write!(out, "| {title} | new / old | interval | |\n| --- | ---: | --- | --- |\n");
        for r in ratios {
            let (low, high) = r.interval;
            let word = match r.verdict {
                Verdict::Faster => "faster",
                Verdict::Same => "",
                Verdict::Slower => "**slower**",
            };
            let _ = writeln!(out, "| {} | {:.3} | {low:.3} – {high:.3} | {word} |", r.what, r.ratio);
        }
        out.push('\n');
    };
    table(&mut out, "by subject and task", &comparison.groups.iter().collect::<Vec<_>>());
    let differing: Vec<&Ratio> = comparison.points.iter().filter(|r| r.verdict != Verdict::Same).collect();
    table(&mut out, "points that differ", &differing);
    if !comparison.changes.is_empty() {
        out.push_str("| point | counted or outcome | |\n| --- | --- | --- |\n");
        for c in &comparison.changes {
            let word = if c.worse { "**worse**" } else { "better" };
            let _ = writeln!(out, "| {} | {} | {word} |", c.point, c.what);
        }
        out.push('\n');
    }
    let verdict = if comparison.regressed() { "regression" } else { "no regression" };
    let _ = writeln!(
        out,
        "{} points compared, {} in one file only: {verdict}.",
        comparison.matched, comparison.unmatched
    );
    out
}

#[cfg(test)]
#[path = "compare_tests.rs"]
mod tests;
