//! The figures of the report: which numbers go on which axes.

use std::fmt::Write;

use super::page::slug;
use super::svg::{Axis, LineChart, Scale, Series, escape};
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

fn axis(label: &str, scale: Scale, show: impl Fn(f64) -> String) -> Axis {
    let ticks = scale.ticks().into_iter().map(|v| (v, show(v))).collect();
    Axis { label: label.into(), scale, ticks }
}

fn log2_axis(label: &str, marks: &[usize]) -> Axis {
    let scale = Scale::log_tight(marks.iter().map(|&m| m as f64));
    Axis { label: label.into(), scale, ticks: marks.iter().map(|&m| (m as f64, length(m as f64))).collect() }
}

fn xs(series: &[Series]) -> impl Iterator<Item = f64> {
    series.iter().flat_map(|s| s.points.iter().map(|p| p.0))
}

fn ys(series: &[Series]) -> impl Iterator<Item = f64> {
    series.iter().flat_map(|s| s.points.iter().map(|p| p.1))
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
        x: log2_axis("key-value pairs to remember", &results.recall.pairs),
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
        x: log2_axis("tokens read before", &results.lengths),
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
        x: log2_axis("tokens read", &results.lengths),
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
        x: log2_axis("tokens read", &results.lengths),
        y: Axis { label: "bytes of state".into(), scale, ticks: powers_of_two(scale) },
        series,
        references: vec![],
        show_x: tokens,
        show_y: bytes,
    })
}

/// Ticks at every fourth or sixteenth power of two inside the scale.
fn powers_of_two(scale: Scale) -> Vec<(f64, String)> {
    let all: Vec<f64> =
        (0..50).map(|p| f64::powi(2.0, p)).filter(|&v| (0.0..=1.0).contains(&scale.place(v))).collect();
    let every = all.len().div_ceil(6).max(1);
    let aligned = |v: f64| (v.log2().round() as usize).is_multiple_of(every);
    all.into_iter().filter(|&v| aligned(v)).map(|v| (v, bytes(v))).collect()
}

/// A chart with its sentence and its table.
fn figure(chart: LineChart) -> String {
    if chart.series.is_empty() {
        return format!(
            "<figure class=\"card\"><h3>{}</h3><p class=\"empty\">Not measured yet.</p></figure>",
            escape(&chart.title)
        );
    }
    format!(
        "<figure class=\"card\"><h3>{}</h3><figcaption>{}</figcaption>{}{}</figure>",
        escape(&chart.title),
        escape(&chart.description),
        chart.svg(),
        table(&chart)
    )
}

/// The chart's numbers: architectures down, at most eight values of the horizontal axis across.
fn table(chart: &LineChart) -> String {
    let mut columns: Vec<f64> = xs(&chart.series).collect();
    columns.sort_by(f64::total_cmp);
    columns.dedup();
    let every = columns.len().div_ceil(8).max(1);
    let last = columns.len().saturating_sub(1);
    let columns: Vec<f64> = columns
        .iter()
        .enumerate()
        .filter(|(i, _)| (last - i).is_multiple_of(every))
        .map(|(_, &x)| x)
        .collect();
    let mut out = format!(
        "<details><summary>Numbers</summary><div class=\"scroll\" tabindex=\"0\"><table><caption>{}</caption><thead><tr><th \
         scope=\"col\">architecture</th>",
        escape(&chart.y.label)
    );
    for x in &columns {
        let _ = write!(out, "<th scope=\"col\">{}</th>", escape(&(chart.show_x)(*x)));
    }
    out.push_str("</tr></thead><tbody>");
    for series in &chart.series {
        let _ = write!(out, "<tr><th scope=\"row\">{}</th>", escape(&series.name));
        for x in &columns {
            let value = series.points.iter().find(|p| p.0 == *x).map(|p| (chart.show_y)(p.1));
            let _ = write!(out, "<td>{}</td>", escape(value.as_deref().unwrap_or("–")));
        }
        out.push_str("</tr>");
    }
    out.push_str("</tbody></table></div></details>");
    out
}
