//! Peers against the architectures they stand beside, at equal points of one run.

use std::fmt::Write;

use seqzoo::report::words::digits;

use crate::compare::{Ratio, Strictness, Verdict, ratio};
use crate::peers::peer;
use crate::point::{Point, Task};
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
    let strictness = Strictness { tolerance: 0.0, ..Strictness::default() };
    (pairs.iter())
        .map(|pair| Row {
            point: pair.0.point.clone(),
            ours: pair.1.point.subject.clone(),
            seconds: (pair.1.seconds(), pair.0.seconds()),
            ratio: ratio(pair.0.point.to_string(), &[*pair], pairs.len(), strictness),
        })
        .collect()
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

/// The rows as a Markdown table.
pub fn markdown(rows: &[Row]) -> String {
    let mut out = String::from(
        "| peer | ours | what (batch × tokens) | ours, ms | peer, ms | ours / peer | interval | |\n\
         | --- | --- | --- | ---: | ---: | ---: | --- | --- |\n",
    );
    for row in rows {
        let (ours, theirs) = row.seconds;
        let (low, high) = row.ratio.interval;
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} | {} | {:.2} | {low:.2} – {high:.2} | {} |",
            row.point.subject,
            row.ours,
            size(&row.point),
            digits(1e3 * ours),
            digits(1e3 * theirs),
            row.ratio.ratio,
            word(row)
        );
    }
    let count = |w: &str| rows.iter().filter(|row| word(row) == w).count();
    let _ = writeln!(out, "\n{} wins, {} even, {} losses", count("win"), count("even"), count("loss"));
    out
}
