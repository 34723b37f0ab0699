//! The figures of the report: which numbers go on which axes.

use super::figure::{axis, figure, lengths_axis, powers_of_two, ys};
use super::legend::slug;
use super::svg::{Axis, LineChart, Scale, Series};
use super::words::{bytes, count, digits, length, milliseconds, percent};
use super::{findings, style_of};
use crate::compare::{CurvePoint, Entry, Results, Speed};

/// Points drawn per curve at most.
const CURVE_POINTS: usize = 120;

fn whole(value: f64) -> String {
    format!("{value:.0}")
}

fn bits(value: f64) -> String {
    format!("{value:.3} bits/byte")
}

fn steps(value: f64) -> String {
    format!("step {value:.0}")
}

fn pairs(value: f64) -> String {
    format!("{value:.0} pairs")
}

fn tokens(value: f64) -> String {
    format!("{} tokens", length(value))
}

fn rate(value: f64) -> String {
    format!("{} tokens/s", count(value))
}

/// One series per architecture that has points.
fn series(results: &Results, points: impl Fn(&Entry) -> Vec<(f64, f64)>) -> Vec<Series> {
    (results.entries.iter())
        .map(|e| Series {
            style: style_of(results, &e.name),
            class: format!("a-{}", slug(&e.name)),
            name: findings::short(e),
            points: points(e).into_iter().filter(|(x, y)| x.is_finite() && y.is_finite()).collect(),
            ..Series::default()
        })
        .filter(|s| !s.points.is_empty())
        .collect()
}

/// At most [`CURVE_POINTS`] of a curve, always with its last.
fn thin(curve: &[CurvePoint]) -> Vec<(f64, f64)> {
    let every = curve.len().div_ceil(CURVE_POINTS).max(1);
    let last = curve.len().saturating_sub(1);
    (curve.iter().enumerate())
        .filter(|(i, _)| (last - i).is_multiple_of(every))
        .map(|(_, p)| (p.step as f64, p.value))
        .collect()
}

/// Recall against the number of pairs.
pub(super) fn recall(results: &Results) -> String {
    let series = series(results, |e| {
        let run = e.recall.as_ref().map(|r| r.by_pairs.as_slice()).unwrap_or_default();
        run.iter().map(|p| (p.pairs as f64, p.accuracy)).collect()
    });
    let chance = results.recall.chance;
    figure(LineChart {
        id: "recall",
        title: "Recall against the number of pairs".into(),
        description: findings::recall(results),
        x: lengths_axis("key-value pairs to remember", &results.recall.pairs),
        y: axis("queries answered right", Scale::Linear { low: 0.0, high: 1.0 }, percent0),
        series,
        references: vec![(chance, format!("guessing: {}", percent(chance)))],
        show_x: pairs,
        show_y: percent,
    })
}

fn percent0(share: f64) -> String {
    format!("{:.0} %", 100.0 * share)
}

/// Mean accuracy over all numbers of pairs against training steps.
pub(super) fn recall_curves(results: &Results) -> String {
    let series = series(results, |e| e.recall.as_ref().map(|r| thin(&r.curve)).unwrap_or_default());
    let x = Scale::Linear { low: 0.0, high: results.recall.training.steps.max(1) as f64 };
    figure(LineChart {
        id: "recall-curves",
        title: "Learning to recall".into(),
        description: findings::recall_curves(results),
        x: axis("training steps", x, whole),
        y: axis("right, mean over all numbers of pairs", Scale::Linear { low: 0.0, high: 1.0 }, |v| {
            percent0(v)
        }),
        series,
        references: vec![],
        show_x: steps,
        show_y: percent,
    })
}

/// Text loss against steps.
pub(super) fn text(results: &Results) -> String {
    let mut series = series(results, |e| e.text.as_ref().map(|r| thin(&r.curve)).unwrap_or_default());
    // The first steps, from eight bits down, would flatten everything after them.
    let early = 0.08 * results.text.training.steps as f64;
    let top = (series.iter().flat_map(|s| &s.points))
        .filter(|p| p.0 >= early)
        .map(|p| p.1)
        .fold(f64::NAN, f64::max);
    for line in &mut series {
        line.points.retain(|p| top.is_nan() || p.1 <= top);
    }
    let x = Scale::Linear { low: 0.0, high: results.text.training.steps.max(1) as f64 };
    let y = Scale::linear(ys(&series));
    figure(LineChart {
        id: "text",
        title: "Learning to predict text".into(),
        description: findings::text(results),
        x: axis("training steps", x, whole),
        y: axis("training loss, bits per byte", y, digits),
        series,
        references: vec![],
        show_x: steps,
        show_y: bits,
    })
}

fn by_length(results: &Results, value: impl Fn(&Speed) -> f64) -> Vec<Series> {
    series(results, |e| e.speed.iter().map(|s| (s.length as f64, value(s))).collect())
}

/// Time per written token against length.
pub(super) fn decode(results: &Results) -> String {
    let series = by_length(results, |s| s.decode_ms);
    figure(LineChart {
        id: "decode",
        title: "Time per written token".into(),
        description: findings::decode(results),
        x: lengths_axis("tokens read before", &results.lengths),
        y: axis("milliseconds per token", Scale::log(ys(&series)), digits),
        series,
        references: vec![],
        show_x: tokens,
        show_y: milliseconds,
    })
}

/// Reading speed against length.
pub(super) fn prefill(results: &Results) -> String {
    let series = by_length(results, |s| s.prefill);
    figure(LineChart {
        id: "prefill",
        title: "Reading speed".into(),
        description: findings::prefill(results),
        x: lengths_axis("tokens read", &results.lengths),
        y: axis("tokens per second", Scale::log(ys(&series)), count),
        series,
        references: vec![],
        show_x: tokens,
        show_y: rate,
    })
}

/// Bytes of state against length.
pub(super) fn memory(results: &Results) -> String {
    let series = by_length(results, |s| s.state_bytes as f64);
    let values: Vec<f64> = ys(&series).collect();
    let scale = Scale::log(values.iter().copied());
    figure(LineChart {
        id: "memory",
        title: "Memory carried from token to token".into(),
        description: findings::memory(results),
        x: lengths_axis("tokens read", &results.lengths),
        y: Axis { label: "bytes of state".into(), scale, ticks: powers_of_two(scale) },
        series,
        references: vec![],
        show_x: tokens,
        show_y: bytes,
    })
}
