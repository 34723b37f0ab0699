//! A chart as a card of the page: title, sentence, drawing and the numbers behind it; and the usual axes.

use std::fmt::Write;

use super::svg::{Axis, LineChart, Scale, Series, escape};
use super::words::{bytes, length};

/// An axis with ticks at round numbers, written by `show`.
pub fn axis(label: &str, scale: Scale, show: impl Fn(f64) -> String) -> Axis {
    let ticks = scale.ticks().into_iter().map(|v| (v, show(v))).collect();
    Axis { label: label.into(), scale, ticks }
}

/// A logarithmic axis with a tick at each of `marks`.
pub fn lengths_axis(label: &str, marks: &[usize]) -> Axis {
    let scale = Scale::log_tight(marks.iter().map(|&m| m as f64));
    Axis { label: label.into(), scale, ticks: marks.iter().map(|&m| (m as f64, length(m as f64))).collect() }
}

/// Ticks at every fourth or sixteenth power of two inside the scale.
pub fn powers_of_two(scale: Scale) -> Vec<(f64, String)> {
    let all: Vec<f64> =
        (0..50).map(|p| f64::powi(2.0, p)).filter(|&v| (0.0..=1.0).contains(&scale.place(v))).collect();
    let every = all.len().div_ceil(6).max(1);
    let aligned = |v: f64| (v.log2().round() as usize).is_multiple_of(every);
    all.into_iter().filter(|&v| aligned(v)).map(|v| (v, bytes(v))).collect()
}

fn xs(series: &[Series]) -> impl Iterator<Item = f64> {
    series.iter().flat_map(|s| s.points.iter().map(|p| p.0))
}

/// All values of the vertical axis.
pub fn ys(series: &[Series]) -> impl Iterator<Item = f64> {
    series.iter().flat_map(|s| s.points.iter().map(|p| p.1))
}

/// A chart with its sentence and its table.
pub fn figure(chart: LineChart) -> String {
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
