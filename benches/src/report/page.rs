//! The page around figures and tables.

use std::fmt::Write;

use seqzoo::report::document;
use seqzoo::report::legend::{Key, legend, rules};
use seqzoo::report::svg::escape;
use seqzoo::report::words::{count, digits, length, percent};

use super::{Data, Line, charts, predictions, tables};
use crate::fit::Fit;
use crate::peers::library;
use crate::point::Task;
use crate::ratios;

const TITLE: &str = "How sequence models scale on this machine";

/// A number worth a large font, and the sentence that explains it.
type Finding = (String, String);

/// The page.
pub fn render(data: &Data) -> String {
    let keys: Vec<Key> = data.lines.iter().map(|line| line.key.clone()).collect();
    let mut out = format!(
        "<header><p class=\"eyebrow\">seqzoo-bench</p><h1>{TITLE}</h1><p class=\"lead\">{}</p></header>",
        escape(&lead(data))
    );
    let findings = findings(data);
    if !findings.is_empty() {
        out.push_str("<ul class=\"findings\">");
        for (number, sentence) in findings {
            let _ = write!(
                out,
                "<li><strong>{}</strong><span>{}</span></li>",
                escape(&number),
                escape(&sentence)
            );
        }
        out.push_str("</ul>");
    }
    out.push_str(&legend(&keys));
    let [peers, _] = tables::peers(data);
    out.push_str(&peers.html());
    let intro =
        "One layer of each architecture, all of the same width and, where the size is free, the same memory.";
    section(
        &mut out,
        "Reading",
        intro,
        &[charts::prefill(data), charts::prefill_constant(data), charts::batches(data), charts::model(data)],
    );
    out.push_str(&tables::scaling(data).html());
    out.push_str(&tables::crossovers(data).html());
    section(
        &mut out,
        "Decoding",
        "One token after another, from a state that has read a prompt.",
        &[charts::decode(data, 0.5), charts::decode(data, 0.99), charts::first_token(data)],
    );
    section(
        &mut out,
        "Training",
        "All gradients of one layer.",
        &[charts::train_constant(data), charts::train(data)],
    );
    section(
        &mut out,
        "Memory and ceilings",
        "",
        &[charts::state(data), charts::peak(data), charts::roofline(data)],
    );
    section(&mut out, "Quality", "", &[charts::quality_by_state(data), charts::quality_by_time(data)]);
    let rest = tables::all(data);
    // Scaling and crossovers stand beside their charts, peers at the top.
    for table in rest.iter().skip(2).filter(|table| table.title != peers.title) {
        out.push_str(&table.html());
    }
    section(&mut out, "Many devices", "", &[predictions::chart(data)]);
    how(&mut out, data);
    let _ = write!(
        out,
        "<footer>Written by seqzoo-bench {}. Timings vary from run to run and machine to machine.</footer>",
        env!("CARGO_PKG_VERSION")
    );
    document(TITLE, &rules(&keys), &out)
}

fn lead(data: &Data) -> String {
    let Some(header) = data.headers.first() else { return String::new() };
    let machine = &header.machine;
    format!(
        "{} lines at width {}, measured on {} ({} threads, {}): each point in a process of its own, in turns, over \
         several rounds.",
        data.lines.len(),
        header.sizes.d_model,
        machine.cpu,
        header.threads.unwrap_or(machine.threads),
        machine.system
    )
}

/// A section of the figures that have something to show.
fn section(out: &mut String, title: &str, intro: &str, figures: &[String]) {
    let drawn: String = figures.iter().filter(|f| f.contains("<svg")).map(String::as_str).collect();
    if drawn.is_empty() {
        return;
    }
    let _ = write!(
        out,
        "<section><h2>{}</h2><p class=\"intro\">{}</p><div class=\"charts\">{drawn}</div></section>",
        escape(title),
        escape(intro)
    );
}

/// What stands at the top: only what the numbers say.
fn findings(data: &Data) -> Vec<Finding> {
    let grown = |wanted| data.lines.iter().filter(move |line| data.grows(line) == Some(wanted));
    let law = |line: &Line| data.law(line, Task::Prefill).filter(Fit::certain);
    let mut out = Vec::new();
    let exponent = grown(true).find_map(|line| law(line).map(|fit| (line, fit)));
    if let Some((line, fit)) = exponent {
        let slope = format!("{:.2} between the last two lengths", fit.slope);
        out.push((
            format!("T^{:.2}", fit.c),
            format!("is how the time of {} grows while reading ({slope}).", line.key.label),
        ));
    }
    let fixed: Vec<f64> = grown(false).filter_map(|line| law(line).map(|fit| fit.c)).collect();
    if !fixed.is_empty() {
        let (low, high) =
            (fixed.iter().copied().fold(f64::NAN, f64::min), fixed.iter().copied().fold(f64::NAN, f64::max));
        let (low, high) = (format!("T^{low:.2}"), format!("T^{high:.2}"));
        let (range, lines) = match fixed.len() {
            1 => (low, "is how the one line with a state of fixed size grows.".into()),
            n if low == high => (low, format!("is how the {n} lines with a state of fixed size grow.")),
            n => (
                format!("{low} – {high}"),
                format!(
                    "is the range over the {n} lines with a state of fixed size whose exponent is known."
                ),
            ),
        };
        out.push((range, lines));
    }
    out.extend(against(data));
    out.extend(fastest(data));
    out.extend(slowed(data));
    out
}

/// How often ours is faster than another library's.
fn against(data: &Data) -> Option<Finding> {
    let rows = ratios::ratios(&data.summaries);
    let [wins, evens, losses] = ratios::counts(rows.iter());
    let libraries: std::collections::BTreeSet<&str> =
        rows.iter().filter_map(|row| library(&row.point.subject)).collect();
    let names: Vec<&str> = libraries.into_iter().collect();
    (!rows.is_empty()).then(|| {
        let sentence = format!(
            "times ours is faster than {}; {evens} times even, {losses} times slower.",
            names.join(", ")
        );
        (format!("{wins} of {}", rows.len()), sentence)
    })
}

fn fastest(data: &Data) -> Option<Finding> {
    let longest =
        data.lines.iter().flat_map(|l| data.single(l, Task::Prefill)).map(|s| s.point.time).max()?;
    let at = |line: &Line| {
        data.single(line, Task::Prefill)
            .into_iter()
            .find(|s| s.point.time == longest)
            .map(|s| s.tokens_per_second())
    };
    let (line, speed) = (data.lines.iter())
        .filter_map(|line| at(line).map(|speed| (line, speed)))
        .max_by(|a, b| a.1.total_cmp(&b.1))?;
    Some((
        format!("{}/s", count(speed)),
        format!("tokens is the fastest reading at {} tokens, by {}.", length(longest as f64), line.key.label),
    ))
}

fn slowed(data: &Data) -> Option<Finding> {
    let growth = |line: &Line| {
        let points = data.single(line, Task::Decode);
        let (first, last) = (*points.first()?, *points.last()?);
        (first.point.time < last.point.time).then(|| (last.seconds() / first.seconds(), first, last))
    };
    let (line, (ratio, first, last)) = (data.lines.iter())
        .filter_map(|line| growth(line).map(|growth| (line, growth)))
        .max_by(|a, b| a.1.0.total_cmp(&b.1.0))?;
    Some((
        format!("× {}", digits((10.0 * ratio).round() / 10.0)),
        format!(
            "is how much slower {} writes a token after {} tokens than after {}.",
            line.key.label,
            length(last.point.time as f64),
            length(first.point.time as f64)
        ),
    ))
}

fn how(out: &mut String, data: &Data) {
    let _ = write!(
        out,
        "<section><h2>How it was run</h2><div class=\"card\"><dl><dt>Ceilings</dt><dd>{}</dd><dt>Spread</dt><dd>half of \
         the repetitions of a point lie within {} of its median, in the middle over all points</dd>",
        escape(&tables::ceilings_words(data)),
        percent(tables::spread(data))
    );
    for header in &data.headers {
        let machine = &header.machine;
        let threads = header.threads.map_or("as many threads as it likes".into(), |n| format!("{n} threads"));
        let _ = write!(
            out,
            "<dt>Command</dt><dd><code>{}</code></dd><dt>Started</dt><dd>{}, seqzoo-bench {}</dd><dt>Machine</dt><dd>{}, \
             {} threads, {}; each measurement with {threads}, none pinned</dd>",
            escape(&header.command),
            escape(&header.started),
            escape(&header.version),
            escape(&machine.cpu),
            machine.threads,
            escape(&machine.system)
        );
        for note in &header.notes {
            let _ = write!(out, "<dt>Note</dt><dd>{}</dd>", escape(note));
        }
    }
    out.push_str("</dl></div></section>");
}
