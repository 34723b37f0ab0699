//! The tables of the report.

use seqzoo::report::words::{bytes, count, digits, length, milliseconds};
use seqzoo_layers::system::Form;

use super::table::Table;
use super::{Data, Line, predictions};
use crate::fit::{Fit, crossover};
use crate::point::{MACHINE, Point, Task};
use crate::summary::Summary;
use crate::{ratios, stats};

/// Every table, in the order of the page.
pub(super) fn all(data: &Data) -> Vec<Table> {
    let mut tables = vec![
        scaling(data),
        crossovers(data),
        throughput(data, Task::Prefill, "Reading speed"),
        throughput(data, Task::Train, "Training speed"),
        latency(data),
        memory(data),
        forms(data),
    ];
    tables.extend(peers(data));
    tables.extend(predictions::tables(data));
    tables.push(outcomes(data));
    tables
}

fn ms(seconds: f64) -> String {
    milliseconds(1e3 * seconds)
}

/// Two decimals, and no minus before zeros.
fn hundredths(value: f64) -> String {
    format!("{:.2}", (100.0 * value).round() / 100.0 + 0.0)
}

/// Exponents with their intervals.
pub(super) fn scaling(data: &Data) -> Table {
    let note = "Seconds = a + b T^c for one sequence, fitted by relative error; the interval is the middle 95 % over \
                resamples, and where it is wider than 1 nothing is known (–). The slope is that between the last two lengths.";
    let head = ["architecture", "task", "c", "interval", "slope", "a", "lengths"];
    let mut table = Table::new("How time grows with length", note, &head);
    for task in [Task::Prefill, Task::Train, Task::Decode] {
        for line in &data.lines {
            let Some(fit) = data.law(line, task) else { continue };
            let points = data.single(line, task);
            let ends = |i: usize| length(points[i].point.time as f64);
            table.rows.push(vec![
                line.key.label.clone(),
                task.to_string(),
                if fit.certain() { format!("{:.2}", fit.c) } else { "–".into() },
                format!("{:.2} – {:.2}", fit.interval.0, fit.interval.1),
                hundredths(fit.slope),
                ms(fit.a),
                format!("{} – {}", ends(0), ends(points.len() - 1)),
            ]);
        }
    }
    table
}

/// Lengths from which a growing state costs more than a fixed one.
pub(super) fn crossovers(data: &Data) -> Table {
    let note = "The length from which the first costs more than the second, between measured lengths; where the measured \
                lengths end before, by the fitted laws (marked ~).";
    let mut table = Table::new("Where curves cross", note, &["costs more", "than", "reading", "decoding"]);
    let of = |grown: bool| data.lines.iter().filter(move |line| data.grows(line) == Some(grown));
    for rising in of(true) {
        for other in of(false).filter(|other| other.device == rising.device) {
            let at = |task| crossing(data, rising, other, task);
            let (reading, decoding) = (at(Task::Prefill), at(Task::Decode));
            if reading.is_some() || decoding.is_some() {
                let cell = |text: Option<String>| text.unwrap_or_else(|| "–".into());
                let names = [rising, other].map(|line| line.key.label.clone());
                let [a, b] = names;
                table.rows.push(vec![a, b, cell(reading), cell(decoding)]);
            }
        }
    }
    table
}

/// Tokens beyond which no law is trusted.
const FURTHEST: f64 = (1u64 << 22) as f64;

/// Where `rising` becomes slower than `other`, in words.
pub(super) fn crossing(data: &Data, rising: &Line, other: &Line, task: Task) -> Option<String> {
    let (a, b) = (data.curve(rising, task), data.curve(other, task));
    if let Some(at) = crossover(&a, &b) {
        return Some(count(at));
    }
    let (first, last) = (a.first()?, a.last()?);
    let at = |curve: &[(f64, f64)], x: f64| curve.iter().find(|p| p.0 == x).map(|p| p.1);
    if first.1 > at(&b, first.0)? && last.1 > at(&b, last.0)? {
        return Some(format!("below {}", length(first.0)));
    }
    let certain = |line| data.law(line, task).filter(Fit::certain);
    let (rising, other) = (certain(rising)?, certain(other)?);
    let mut x = last.0;
    while x <= FURTHEST {
        if rising.at(x) > other.at(x) {
            return Some(format!("~ {}", count(x)));
        }
        x *= 1.05;
    }
    None
}

/// Sizes that any line was measured at, and each line's value there.
fn by_size(
    data: &Data,
    table: &mut Table,
    task: Task,
    keep: impl Fn(&Summary) -> bool + Copy,
    name: impl Fn(&Point) -> String,
    value: impl Fn(&Summary) -> String,
) {
    let mut sizes: Vec<(usize, usize)> = (data.lines.iter())
        .flat_map(|line| data.points(line, task, keep))
        .map(|s| (s.point.time, s.point.batch))
        .collect();
    sizes.sort_unstable();
    sizes.dedup();
    for &(time, batch) in &sizes {
        let named = data
            .summaries
            .iter()
            .find(|s| s.point.time == time && s.point.batch == batch && s.point.task == task);
        table.head.push(named.map_or(String::new(), |s| name(&s.point)));
    }
    for line in &data.lines {
        let points = data.points(line, task, keep);
        if points.is_empty() {
            continue;
        }
        let mut row = vec![line.key.label.clone()];
        row.extend(sizes.iter().map(|&(time, batch)| {
            let point = points.iter().find(|s| s.point.time == time && s.point.batch == batch);
            point.map_or("–".into(), |s| value(s))
        }));
        table.rows.push(row);
    }
}

fn throughput(data: &Data, task: Task, title: &str) -> Table {
    let note = "Thousand tokens per second, by batch × length.";
    let mut table = Table::new(title, note, &["architecture"]);
    let name = |point: &Point| format!("{} × {}", point.batch, length(point.time as f64));
    by_size(data, &mut table, task, |_| true, name, |s| digits(s.tokens_per_second() / 1e3));
    table
}

/// Percentiles of a decoded token.
pub(super) fn latency(data: &Data) -> Table {
    let note = "Milliseconds for one more token: median / 95th / 99th percentile, by tokens read before; and the time \
                to the first token in a fresh process, its prompt included.";
    let mut table = Table::new("Latency", note, &["architecture"]);
    let name = |point: &Point| format!("after {}", length(point.time as f64));
    by_size(
        data,
        &mut table,
        Task::Decode,
        |s| s.point.batch == 1,
        name,
        |s| {
            let quantile = |q| digits(1e3 * s.quantile(q));
            format!(
                "{} / {} / {} (first: {})",
                quantile(0.5),
                quantile(0.95),
                quantile(0.99),
                digits(1e3 * s.first_seconds())
            )
        },
    );
    table
}

fn memory(data: &Data) -> Table {
    let note =
        "Largest heap while reading one sequence, weights and input included / state after it, by length.";
    let mut table = Table::new("Memory", note, &["architecture"]);
    let name = |point: &Point| length(point.time as f64);
    by_size(
        data,
        &mut table,
        Task::Prefill,
        |s| s.point.batch == 1,
        name,
        |s| {
            let peak = if s.peak_bytes > 0 { bytes(s.peak_bytes as f64) } else { "–".into() };
            format!("{peak} / {}", bytes(s.counted.state_bytes as f64))
        },
    );
    table
}

/// Forms of one computation beside each other.
fn forms(data: &Data) -> Table {
    let note = "Milliseconds to read one sequence in each form; all compute the same.";
    let mut table = Table::new("Forms", note, &["architecture", "tokens"]);
    let single = |s: &&Summary| s.point.task == Task::Prefill && s.point.batch == 1 && s.measured();
    let mut forms: Vec<Form> = Vec::new();
    for s in data.summaries.iter().filter(single) {
        if !forms.contains(&s.point.form) {
            forms.push(s.point.form);
        }
    }
    if forms.len() < 2 {
        return table;
    }
    table.head.extend(forms.iter().map(Form::to_string));
    for line in &data.lines {
        let of = |s: &&Summary| s.point.subject == line.subject && s.point.device == line.device;
        let all: Vec<&Summary> = data.summaries.iter().filter(single).filter(of).collect();
        let mut times: Vec<usize> =
            all.iter().filter(|s| s.point.form != Form::Auto).map(|s| s.point.time).collect();
        times.sort_unstable();
        times.dedup();
        for time in times {
            let mut row = vec![line.key.label.clone(), length(time as f64)];
            row.extend(forms.iter().map(|form| {
                let found = all.iter().find(|s| s.point.time == time && s.point.form == *form);
                found.map_or("–".into(), |s| digits(1e3 * s.seconds()))
            }));
            table.rows.push(row);
        }
    }
    table
}

/// Peers by task, then at every size.
pub(super) fn peers(data: &Data) -> [Table; 2] {
    let rows = ratios::ratios(&data.summaries);
    let note = format!(
        "Our time over the peer's, measured in turns in one run: below 1 ours is faster. The mean over the sizes is \
         geometric; a win or a loss is a size whose whole interval lies on one side of 1. {}. Each command measures its \
         row again; --python names the Python that has torch.",
        ratios::score(ratios::counts(rows.iter()))
    );
    let head = ["peer", "ours", "task", "mean", "range", "wins", "even", "losses", "command"];
    let mut all = Table::new("Against other libraries", note, &head);
    for group in ratios::groups(&rows) {
        let [wins, evens, losses] = group.counts.map(|count| count.to_string());
        let range = format!("{} – {}", ratio(group.range.0), ratio(group.range.1));
        let (command, mean) = (group.command(), ratio(group.mean));
        all.rows.push(vec![
            group.peer,
            group.ours,
            group.task.to_string(),
            mean,
            range,
            wins,
            evens,
            losses,
            command,
        ]);
    }
    let note = "The same at every size, with the interval of each ratio, widened for their number. The floor is what the \
                machine's measured ceilings leave for the operations and bytes of ours.";
    let head = [
        "peer",
        "ours",
        "what, batch × tokens",
        "floor",
        "ours",
        "peer",
        "ours / peer",
        "interval",
        "",
        "command",
    ];
    let mut each = Table::new("Against other libraries, at every size", note, &head);
    each.rows = (rows.iter())
        .map(|row| {
            vec![
                row.point.subject.clone(),
                row.ours.clone(),
                ratios::size(&row.point),
                data.ceilings(&row.point.device).map_or("–".into(), |c| ms(c.floor(&row.counted))),
                ms(row.seconds.0),
                ms(row.seconds.1),
                ratio(row.ratio.ratio),
                format!("{} – {}", ratio(row.ratio.interval.0), ratio(row.ratio.interval.1)),
                ratios::word(row).into(),
                row.command(),
            ]
        })
        .collect();
    [all, each]
}

/// A ratio with three significant digits where it is small.
fn ratio(value: f64) -> String {
    if value < 0.1 { format!("{value:.3}") } else { format!("{value:.2}") }
}

/// The machine's ceilings in words.
pub(super) fn ceilings_words(data: &Data) -> String {
    let mut devices: Vec<&str> = data.lines.iter().map(|l| l.device.as_str()).collect();
    devices.dedup();
    let words = devices.iter().filter_map(|device| {
        let c = data.ceilings(device)?;
        Some(format!("{device}: {} GFLOP/s, {} GB/s", digits(c.flops / 1e9), digits(c.bandwidth / 1e9)))
    });
    let words: Vec<String> = words.collect();
    if words.is_empty() { "not measured".into() } else { words.join("; ") }
}

/// What ended without numbers.
fn outcomes(data: &Data) -> Table {
    let note = "Points that ran out of memory or time, or failed: results like the others.";
    let mut table = Table::new("What did not end with a number", note, &["point", "outcome"]);
    table.rows = (data.summaries.iter())
        .filter(|s| s.point.subject != MACHINE)
        .filter_map(|s| s.trouble.as_ref().map(|t| vec![s.point.to_string(), t.words()]))
        .collect();
    table
}

/// The spread of repetitions, as a share of their median, over all points.
pub(super) fn spread(data: &Data) -> f64 {
    let spreads: Vec<f64> = (data.summaries.iter())
        .filter(|s| s.measured())
        .map(|s| (s.quantile(0.75) - s.quantile(0.25)) / s.seconds())
        .collect();
    stats::median(&spreads)
}
