//! Peers against the architectures they stand beside, at equal points of one run.

use crate::compare::{Ratio, Strictness, Turns, Verdict, ratio};
use crate::peers::peer;
use crate::point::{Point, Task};
use crate::record::Counted;
use crate::summary::Summary;

/// One row: a peer at one point.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The peer's point.
    pub point: Point,
    /// The architecture beside it.
    pub ours: String,
    /// Seconds of both, ours first.
    pub seconds: (f64, f64),
    /// Our time over the peer's: below 1 ours is faster.
    pub ratio: Ratio,
    /// What ours costs on paper.
    pub counted: Counted,
}

/// Every matched pair.
pub fn ratios(summaries: &[Summary]) -> Vec<Row> {
    let mut pairs: Vec<(&Summary, &Summary)> = Vec::new();
    for theirs in summaries.iter().filter(|s| s.measured()) {
        let Some(peer) = peer(&theirs.point.subject) else { continue };
        let ours = summaries
            .iter()
            .find(|s| s.point.subject == peer.counterpart && s.measured() && s.point.matches(&theirs.point));
        pairs.extend(ours.map(|ours| (theirs, ours)));
    }
    let strictness =
        Strictness { tolerance: 0.0, quantile: 0.5, turns: Turns::Rounds, ..Strictness::default() };
    (pairs.iter())
        .map(|pair| Row {
            point: pair.0.point.clone(),
            ours: pair.1.point.subject.clone(),
            seconds: (pair.1.seconds(), pair.0.seconds()),
            ratio: ratio(pair.0.point.to_string(), &[*pair], pairs.len(), strictness),
            counted: pair.1.counted,
        })
        .collect()
}

/// Rows of one peer and task put together.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// The peer.
    pub peer: String,
    /// The architecture beside it.
    pub ours: String,
    /// What both do.
    pub task: Task,
    /// Device of both.
    pub device: String,
    /// Geometric mean of our time over the peer's.
    pub mean: f64,
    /// Smallest and largest ratio over the sizes.
    pub range: (f64, f64),
    /// Sizes at which ours is faster, neither, slower.
    pub counts: [usize; 3],
    /// Sequences at once, each once, in order.
    pub batches: Vec<usize>,
    /// Tokens of a sequence, each once, in order.
    pub lengths: Vec<usize>,
}

/// The rows by peer and task, in their order.
pub fn groups(rows: &[Row]) -> Vec<Group> {
    let mut keys: Vec<(&str, Task, &str)> = Vec::new();
    for row in rows {
        let key = (row.point.subject.as_str(), row.point.task, row.point.device.as_str());
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    let group = |(peer, task, device): (&str, Task, &str)| {
        let wanted =
            |row: &&Row| row.point.subject == peer && row.point.task == task && row.point.device == device;
        let rows: Vec<&Row> = rows.iter().filter(wanted).collect();
        let all = || rows.iter().map(|row| row.ratio.ratio);
        let sorted = |of: fn(&Point) -> usize| {
            let all: std::collections::BTreeSet<usize> = rows.iter().map(|row| of(&row.point)).collect();
            all.into_iter().collect()
        };
        Group {
            peer: peer.into(),
            ours: rows.first().map_or(String::new(), |row| row.ours.clone()),
            task,
            device: device.into(),
            mean: (all().map(f64::ln).sum::<f64>() / rows.len() as f64).exp(),
            range: (all().fold(f64::INFINITY, f64::min), all().fold(0.0, f64::max)),
            counts: counts(rows.iter().copied()),
            batches: sorted(|point| point.batch),
            lengths: sorted(|point| point.time),
        }
    };
    keys.into_iter().map(group).collect()
}

/// Wins, evens, losses.
pub fn counts<'a>(rows: impl Iterator<Item = &'a Row>) -> [usize; 3] {
    let mut counts = [0; 3];
    for row in rows {
        counts[match row.ratio.verdict {
            Verdict::Faster => 0,
            Verdict::Same => 1,
            Verdict::Slower => 2,
        }] += 1;
    }
    counts
}

/// Wins, evens and losses in words.
pub fn score([wins, evens, losses]: [usize; 3]) -> String {
    format!("{wins} wins, {evens} even, {losses} losses")
}

impl Row {
    /// Measures this row again.
    pub fn command(&self) -> String {
        let Point { subject, task, device, batch, time, .. } = &self.point;
        command(subject, *task, device, &[*batch], &[*time])
    }
}

impl Group {
    /// Measures the sizes of this group again.
    pub fn command(&self) -> String {
        command(&self.peer, self.task, &self.device, &self.batches, &self.lengths)
    }
}

fn command(peer: &str, task: Task, device: &str, batches: &[usize], lengths: &[usize]) -> String {
    let list = |all: &[usize]| all.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let device = if device == "flex" { String::new() } else { format!(" --device {device}") };
    let (batches, lengths) = (list(batches), list(lengths));
    format!("seqzoo-bench peers --peer {peer} --tasks {task} --batches {batches} --lengths {lengths}{device}")
}

/// How a point is named in a row: the task and its size.
pub fn size(point: &Point) -> String {
    match point.task {
        Task::Decode => format!("decode after {}", point.time),
        task => format!("{task} {} × {}", point.batch, point.time),
    }
}

/// Whether ours won, in a word.
pub fn word(row: &Row) -> &'static str {
    match row.ratio.verdict {
        Verdict::Faster => "win",
        Verdict::Same => "even",
        Verdict::Slower => "loss",
    }
}

#[cfg(test)]
mod tests {
    use seqzoo_layers::system::Form;

    use super::*;
    use crate::record::{Measurement, Outcome, Record};
    use crate::summary::summarise;

    fn records(subject: &str, task: Task, time: usize, seconds: f64) -> Vec<Record> {
        let (device, form) = ("flex".into(), Form::Auto);
        let point = Point { subject: subject.into(), task, form, device, batch: 1, time };
        let m = Measurement { seconds: vec![seconds; 3], ..Measurement::default() };
        (0..2)
            .map(|round| Record { point: point.clone(), round, outcome: Outcome::Done(m.clone()) })
            .collect()
    }

    #[test]
    fn wins_and_losses_are_counted_by_peer_and_task() {
        let mut all = Vec::new();
        for (time, ours, theirs) in [(64, 1.0, 4.0), (128, 2.0, 2.0), (256, 4.0, 1.0)] {
            all.extend(records("lstm", Task::Decode, time, ours));
            all.extend(records("burn/lstm", Task::Decode, time, theirs));
            all.extend(records("candle/lstm", Task::Decode, time, 2.0 * ours));
        }
        all.extend(records("model/llama", Task::Decode, 64, 1.0));
        all.extend(records("transformers/llama", Task::Decode, 64, 5.0));
        // Without a counterpart there is nothing to compare with.
        all.extend(records("torch/gla", Task::Decode, 64, 1.0));
        let rows = ratios(&summarise(&all));
        let groups = groups(&rows);
        let names: Vec<_> = groups.iter().map(|g| (g.peer.as_str(), g.ours.as_str(), g.counts)).collect();
        let expected = [
            ("burn/lstm", "lstm", [1, 1, 1]),
            ("candle/lstm", "lstm", [3, 0, 0]),
            ("transformers/llama", "model/llama", [1, 0, 0]),
        ];
        assert_eq!(names, expected);
        assert!((groups[0].mean - 1.0).abs() < 1e-9 && groups[0].range == (0.25, 4.0), "{groups:?}");
        assert!((groups[1].mean - 0.5).abs() < 1e-9 && (groups[2].mean - 0.2).abs() < 1e-9, "{groups:?}");
        assert_eq!(
            groups[0].command(),
            "seqzoo-bench peers --peer burn/lstm --tasks decode --batches 1 --lengths 64,128,256"
        );
        assert!(rows[0].command().ends_with("--peer burn/lstm --tasks decode --batches 1 --lengths 64"));
        assert_eq!(score(counts(rows.iter())), "5 wins, 1 even, 1 losses");
    }
}
