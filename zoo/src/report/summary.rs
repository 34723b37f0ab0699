//! The summary, one row per architecture: the same columns in the page and in the terminal.

use std::fmt::Write;

use super::findings;
use super::words::{bytes, count, digits, length, percent};
use crate::compare::{Entry, Results};

/// A column of the summary: its cells, and which values are best.
pub(super) struct Column {
    pub(super) head: String,
    pub(super) cells: Vec<Option<(f64, String)>>,
    /// Whether more is better; `None` where there is no better.
    more: Option<bool>,
}

impl Column {
    /// The best value, where there is one.
    pub(super) fn best(&self) -> Option<f64> {
        let more = self.more?;
        let values = self.cells.iter().flatten().map(|cell| cell.0);
        if more { values.max_by(f64::total_cmp) } else { values.min_by(f64::total_cmp) }
    }
}

fn column(
    results: &Results,
    head: impl Into<String>,
    more: Option<bool>,
    value: impl Fn(&Entry) -> Option<f64>,
    show: impl Fn(f64) -> String,
) -> Column {
    let cells = results.entries.iter().map(|e| value(e).map(|v| (v, show(v)))).collect();
    Column { head: head.into(), cells, more }
}

/// All columns.
pub(super) fn columns(results: &Results) -> Vec<Column> {
    let at = |e: &Entry, length: usize| e.speed.iter().find(|s| s.length == length).copied();
    let longest = results.lengths.iter().copied().max().unwrap_or(0);
    let middle = results.lengths.iter().copied().filter(|&l| l <= 1024).max().unwrap_or(longest);
    let state = |at_length: usize| {
        column(
            results,
            format!("state at {} tokens", length(at_length as f64)),
            None,
            move |e| at(e, at_length).map(|s| s.state_bytes as f64),
            bytes,
        )
    };
    let pairs = results.recall.pairs.iter().copied().max().unwrap_or(0);
    let mut columns = vec![
        column(results, "parameters", None, |e| e.text_model.as_ref().map(|m| m.params as f64), count),
        state(middle),
    ];
    if longest != middle {
        columns.push(state(longest));
    }
    columns.extend([
        column(
            results,
            "text, bits per byte",
            Some(false),
            |e| e.text.as_ref()?.bits_per_byte,
            |v| format!("{v:.3}"),
        ),
        column(
            results,
            format!("recall of {pairs} pairs"),
            Some(true),
            |e| e.recall.as_ref()?.hardest().map(|p| p.accuracy),
            percent,
        ),
        column(
            results,
            format!("reading {} tokens, tokens/s", length(longest as f64)),
            Some(true),
            |e| at(e, longest).map(|s| s.prefill),
            count,
        ),
        column(
            results,
            format!("writing after {}, ms/token", length(longest as f64)),
            Some(false),
            |e| at(e, longest).map(|s| s.decode_ms),
            digits,
        ),
    ]);
    columns
}

/// The summary as plain text; `*` marks the best of a column.
pub fn table(results: &Results) -> String {
    let columns = columns(results);
    let mut rows = vec![vec!["architecture".to_string()]];
    rows[0].extend(columns.iter().map(|column| column.head.clone()));
    for (i, entry) in results.entries.iter().enumerate() {
        let mut row = vec![findings::short(entry)];
        row.extend(columns.iter().map(|column| match &column.cells[i] {
            Some((value, text)) if Some(*value) == column.best() => format!("*{text}"),
            Some((_, text)) => text.clone(),
            None => "–".into(),
        }));
        rows.push(row);
    }
    // Long headings go on two lines, broken at the blank nearest to their middle.
    let (upper, lower): (Vec<_>, Vec<_>) = rows[0].iter().map(|head| halves(head)).unzip();
    rows[0] = lower;
    rows.insert(0, upper);
    let width = |c: usize| rows.iter().map(|row| row[c].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..=columns.len()).map(width).collect();
    let mut out = String::new();
    for row in &rows {
        let _ = write!(out, "{:<1$}", row[0], widths[0]);
        for (cell, width) in row.iter().zip(&widths).skip(1) {
            let _ = write!(out, "  {cell:>width$}");
        }
        out.truncate(out.trim_end().len());
        out.push('\n');
    }
    out
}

/// A heading as two lines; the first is empty where one is enough.
fn halves(head: &str) -> (String, String) {
    let middle = head.len() / 2;
    let cut = head.match_indices(' ').map(|(at, _)| at).min_by_key(|at| at.abs_diff(middle));
    match cut {
        Some(at) if head.len() > 12 => (head[..at].into(), head[at + 1..].into()),
        _ => (String::new(), head.into()),
    }
}
