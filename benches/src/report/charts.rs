//! The figures of the report: which numbers go on which axes.

use seqzoo::report::figure::{axis, figure, lengths_axis, powers_of_two, ys};
use seqzoo::report::svg::{Axis, LineChart, STYLES, Scale, Series};
use seqzoo::report::words::{bytes, count, digits, duration, length, milliseconds, percent};

use super::{Data, Line, tables};
use crate::fit::Fit;
use crate::point::Task;
use crate::summary::Summary;

fn tokens(value: f64) -> String {
    format!("{} tokens", length(value))
}

fn rate(value: f64) -> String {
    format!("{} tokens/s", count(value))
}

fn times(value: f64) -> String {
    format!("× {}", digits(value))
}

fn intensity(value: f64) -> String {
    format!("{} operations per byte", digits(value))
}

fn gflops(value: f64) -> String {
    format!("{} GFLOP/s", digits(value))
}

fn bits(value: f64) -> String {
    format!("{value:.3} bits/byte")
}

fn sequences(value: f64) -> String {
    format!("{value:.0} sequences")
}

/// One series per line that has points.
fn series(data: &Data, points: impl Fn(&Line) -> Vec<(f64, f64)>) -> Vec<Series> {
    (data.lines.iter())
        .map(|line| Series {
            style: line.key.style,
            class: line.key.class(),
            name: line.key.label.clone(),
            points: points(line).into_iter().filter(|(x, y)| x.is_finite() && *y > 0.0).collect(),
            hidden: line.key.hidden,
            ..Series::default()
        })
        .filter(|s| !s.points.is_empty())
        .collect()
}

/// The values of the horizontal axis, each once.
fn marks(series: &[Series]) -> Vec<usize> {
    let mut marks: Vec<usize> = series.iter().flat_map(|s| s.points.iter().map(|p| p.0 as usize)).collect();
    marks.sort_unstable();
    marks.dedup();
    marks
}

/// A chart over lengths, both axes logarithmic.
struct OverLength {
    id: &'static str,
    title: &'static str,
    description: String,
    x: &'static str,
    y: &'static str,
    show_tick: fn(f64) -> String,
    show_y: fn(f64) -> String,
}

impl OverLength {
    fn draw(self, series: Vec<Series>) -> String {
        figure(LineChart {
            id: self.id,
            title: self.title.into(),
            description: self.description,
            x: lengths_axis(self.x, &marks(&series)),
            y: axis(self.y, Scale::log(ys(&series)), self.show_tick),
            series,
            references: vec![],
            show_x: tokens,
            show_y: self.show_y,
        })
    }
}

fn of(points: Vec<&Summary>, value: impl Fn(&Summary) -> f64) -> Vec<(f64, f64)> {
    points.into_iter().map(|s| (s.point.time as f64, value(s))).collect()
}

/// The range of exponents of growing and of fixed states at a task, in words.
fn exponents(data: &Data, task: Task) -> String {
    let range = |grown: bool| {
        let all: Vec<f64> = (data.lines.iter())
            .filter(|line| data.grows(line) == Some(grown))
            .filter_map(|line| data.law(line, task).filter(Fit::certain).map(|fit| fit.c))
            .collect();
        let (low, high) =
            (all.iter().copied().fold(f64::NAN, f64::min), all.iter().copied().fold(f64::NAN, f64::max));
        let (low, high) = (format!("{low:.2}"), format!("{high:.2}"));
        (!all.is_empty()).then(|| if low == high { low } else { format!("{low} – {high}") })
    };
    match (range(true), range(false)) {
        (Some(grown), Some(fixed)) => {
            format!("Fitted exponents: {grown} where the state is a cache, {fixed} where it is fixed.")
        }
        (Some(range), None) | (None, Some(range)) => format!("Fitted exponents: {range}."),
        (None, None) => "No exponent can be told from these lengths.".into(),
    }
}

/// Time to read one sequence.
pub(super) fn prefill(data: &Data) -> String {
    OverLength {
        id: "prefill",
        title: "Reading one sequence",
        description: exponents(data, Task::Prefill),
        x: "tokens",
        y: "milliseconds",
        show_tick: digits,
        show_y: milliseconds,
    }
    .draw(series(data, |line| of(data.single(line, Task::Prefill), |s| 1e3 * s.seconds())))
}

/// Reading at a constant number of tokens.
pub(super) fn prefill_constant(data: &Data) -> String {
    OverLength {
        id: "prefill-constant",
        title: "Reading, the same number of tokens in all",
        description:
            "Fewer and longer sequences to the right: a flat line costs the same per token at every length."
                .into(),
        x: "tokens of a sequence",
        y: "tokens per second",
        show_tick: count,
        show_y: rate,
    }
    .draw(series(data, |line| of(data.constant_tokens(line, Task::Prefill), Summary::tokens_per_second)))
}

/// Training one sequence.
pub(super) fn train(data: &Data) -> String {
    OverLength {
        id: "train",
        title: "Training on one sequence",
        description: exponents(data, Task::Train),
        x: "tokens",
        y: "milliseconds",
        show_tick: digits,
        show_y: milliseconds,
    }
    .draw(series(data, |line| {
        let points = of(data.single(line, Task::Train), |s| 1e3 * s.seconds());
        if points.len() > 1 { points } else { Vec::new() }
    }))
}

/// Training at a constant number of tokens.
pub(super) fn train_constant(data: &Data) -> String {
    OverLength {
        id: "train-constant",
        title: "Training, the same number of tokens in all",
        description: "Forward and backward. Fewer and longer sequences to the right.".into(),
        x: "tokens of a sequence",
        y: "tokens per second",
        show_tick: count,
        show_y: rate,
    }
    .draw(series(data, |line| of(data.constant_tokens(line, Task::Train), Summary::tokens_per_second)))
}

/// A quantile of the time of one more token.
pub(super) fn decode(data: &Data, q: f64) -> String {
    let (id, title) = if q < 0.9 {
        ("decode", "One more token: the median")
    } else {
        ("decode-late", "One more token: the slowest in a hundred")
    };
    OverLength {
        id,
        title,
        description: if q < 0.9 {
            exponents(data, Task::Decode)
        } else {
            "What a user waits for now and then: the 99th percentile.".into()
        },
        x: "tokens read before",
        y: "milliseconds per token",
        show_tick: digits,
        show_y: milliseconds,
    }
    .draw(series(data, |line| of(data.single(line, Task::Decode), |s| 1e3 * s.quantile(q))))
}

/// Time to the first token.
pub(super) fn first_token(data: &Data) -> String {
    OverLength {
        id: "first-token",
        title: "Time to the first token",
        description: "Prompt and first token in a fresh process, nothing warmed up.".into(),
        x: "tokens of the prompt",
        y: "milliseconds",
        show_tick: digits,
        show_y: milliseconds,
    }
    .draw(series(data, |line| of(data.single(line, Task::Decode), |s| 1e3 * s.first_seconds())))
}

/// Speed against the batch, at the length that has the most batches.
pub(super) fn batches(data: &Data) -> String {
    let all = |line: &Line| data.points(line, Task::Prefill, |_| true);
    let mut counts: std::collections::BTreeMap<usize, usize> = Default::default();
    for s in data.lines.iter().flat_map(all) {
        *counts.entry(s.point.time).or_default() += 1;
    }
    let time = counts.into_iter().max_by_key(|&(_, n)| n).map_or(0, |(time, _)| time);
    let series = series(data, |line| {
        let points = all(line).into_iter().filter(|s| s.point.time == time);
        let points: Vec<_> = points.map(|s| (s.point.batch as f64, s.tokens_per_second())).collect();
        if points.len() > 1 { points } else { Vec::new() }
    });
    figure(LineChart {
        id: "batches",
        title: format!("Reading many sequences of {} tokens", length(time as f64)),
        description: "What a batch gains: more work per weight read and per operation started.".into(),
        x: lengths_axis("sequences at once", &marks(&series)),
        y: axis("tokens per second", Scale::log(ys(&series)), count),
        series,
        references: vec![],
        show_x: sequences,
        show_y: rate,
    })
}

fn over_bytes(id: &'static str, title: &str, description: &str, y: &str, series: Vec<Series>) -> String {
    let scale = Scale::log(ys(&series));
    figure(LineChart {
        id,
        title: title.into(),
        description: description.into(),
        x: lengths_axis("tokens", &marks(&series)),
        y: Axis { label: y.into(), scale, ticks: powers_of_two(scale) },
        series,
        references: vec![],
        show_x: tokens,
        show_y: bytes,
    })
}

/// Largest heap while reading.
pub(super) fn peak(data: &Data) -> String {
    let series = series(data, |line| of(data.single(line, Task::Prefill), |s| s.peak_bytes as f64));
    let text =
        "Weights, input and everything in between, on the host; what a device keeps to itself is not seen.";
    over_bytes("peak", "Memory needed to read", text, "bytes at once", series)
}

/// State after reading.
pub(super) fn state(data: &Data) -> String {
    let series = series(data, |line| of(data.single(line, Task::Prefill), |s| s.counted.state_bytes as f64));
    over_bytes(
        "state",
        "Memory carried on",
        "The state after reading one sequence.",
        "bytes of state",
        series,
    )
}

/// Achieved speed under the machine's ceilings.
pub(super) fn roofline(data: &Data) -> String {
    let device = data.lines.first().map_or("", |line| line.device.as_str());
    let Some(c) = data.ceilings(device) else { return String::new() };
    let place = |s: &Summary| (s.counted.flops / s.counted.bytes, s.flops_per_second() / 1e9);
    let mut all = series(data, |line| {
        if line.device != device {
            return Vec::new();
        }
        let mut points: Vec<&Summary> = data.single(line, Task::Decode);
        points.extend(data.points(line, Task::Prefill, |_| true));
        let mut places: Vec<(f64, f64)> =
            points.into_iter().filter(|s| s.counted.bytes > 0.0).map(place).collect();
        places.sort_by(|a, b| a.0.total_cmp(&b.0));
        places
    });
    all.iter_mut().for_each(|series| series.loose = true);
    let knee = c.flops / c.bandwidth;
    let xs: Vec<f64> = all.iter().flat_map(|s| s.points.iter().map(|p| p.0)).collect();
    let low = xs.iter().copied().fold(knee, f64::min) / 1.5;
    let high = xs.iter().copied().fold(knee, f64::max) * 1.5;
    let roof = |x: f64| (x * c.bandwidth).min(c.flops) / 1e9;
    let best = all.iter().flat_map(|s| s.points.iter().map(|&(x, y)| y / roof(x))).fold(0.0, f64::max);
    all.push(Series {
        style: data.lines.len() % STYLES,
        class: "roof".into(),
        name: "ceiling".into(),
        points: [low, knee, high].map(|x| (x, roof(x))).to_vec(),
        ..Series::default()
    });
    let x = Scale::log_tight(all.iter().flat_map(|s| s.points.iter().map(|p| p.0)));
    figure(LineChart {
        id: "roofline",
        title: "How near to the machine's ceiling".into(),
        description: format!(
            "Decoding and reading, all sizes: operations counted on paper, time measured. Ceilings measured with a large \
             product of matrices and a large sum ({}). The nearest point reaches {}; more than 100 % is possible, as the \
             product is Burn's own and paper counts causal scores whole, of which a kernel needs half.",
            tables::ceilings_words(data),
            percent(best)
        ),
        x: axis("operations per byte", x, digits),
        y: axis("GFLOP/s", Scale::log(ys(&all)), digits),
        series: all,
        references: vec![],
        show_x: intensity,
        show_y: gflops,
    })
}

/// Measured time over the cost model's.
pub(super) fn model(data: &Data) -> String {
    let series = series(data, |line| {
        let Some(c) = data.ceilings(&line.device) else { return Vec::new() };
        // What a layer of another library costs may be unknown.
        let known = data.single(line, Task::Prefill).into_iter().filter(|s| s.counted.flops > 0.0);
        of(known.collect(), |s| s.seconds() / (s.counted.flops / c.flops + s.counted.bytes / c.bandwidth))
    });
    OverLength {
        id: "model",
        title: "Measured over the cost model",
        description: "Reading time over operations / matmul ceiling + bytes / copy ceiling (Kinetics, arXiv 2506.05333): \
                      1 would be a perfect implementation on this machine."
            .into(),
        x: "tokens",
        y: "times the model's",
        show_tick: times,
        show_y: times,
    }
    .draw(series)
}

/// Quality by a comparison's results, against a cost of each architecture: one point each, and the front of those that
/// no other beats in both.
fn front(
    data: &Data,
    id: &'static str,
    title: &str,
    (x_label, x_show): (&str, fn(f64) -> String),
    cost: impl Fn(&seqzoo::compare::Entry) -> Option<f64>,
) -> String {
    let Some(quality) = &data.quality else { return String::new() };
    let place = |line: &Line| {
        let entry = quality.entries.iter().find(|e| e.name == line.subject)?;
        Some((cost(entry)?, entry.text.as_ref()?.bits_per_byte?))
    };
    let mut all = series(data, |line| place(line).into_iter().collect());
    let mut places: Vec<(f64, f64)> = all.iter().flat_map(|s| s.points.clone()).collect();
    if places.is_empty() {
        return String::new();
    }
    places.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
    let mut best = f64::INFINITY;
    places.retain(|p| {
        let better = p.1 < best;
        best = best.min(p.1);
        better
    });
    let scale = Scale::linear(ys(&all));
    let x = Scale::log(all.iter().flat_map(|s| s.points.iter().map(|p| p.0)));
    let (style, class, name) = (data.lines.len() % STYLES, "front".into(), "front".into());
    all.iter_mut().for_each(|series| series.loose = true);
    all.push(Series { style, class, name, points: places, ..Series::default() });
    figure(LineChart {
        id,
        title: title.into(),
        description: "Bits per byte of held-out text after equal training, by `seqzoo compare`: lower is better. On the \
                      front none is both better and cheaper."
            .into(),
        x: axis(x_label, x, x_show),
        y: axis("bits per byte", scale, digits),
        series: all,
        references: vec![],
        show_x: x_show,
        show_y: bits,
    })
}

/// Quality against state.
pub(super) fn quality_by_state(data: &Data) -> String {
    let state = |e: &seqzoo::compare::Entry| e.text_model.as_ref().map(|m| m.state_bytes as f64);
    front(data, "quality-state", "Quality against state", ("bytes of state", bytes), state)
}

/// Quality against the time it took.
pub(super) fn quality_by_time(data: &Data) -> String {
    let time = |e: &seqzoo::compare::Entry| e.text.as_ref().map(|run| run.seconds);
    front(data, "quality-time", "Quality against training time", ("seconds of training", duration), time)
}
