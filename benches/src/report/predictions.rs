//! Other hardware, on paper: see [`crate::hardware`].

use seqzoo::report::figure::{axis, figure, lengths_axis, ys};
use seqzoo::report::svg::{LineChart, Scale, Series};
use seqzoo::report::words::{bytes, digits};

use super::table::Table;
use super::{Data, Line};
use crate::hardware::{DEPTH, Hardware, SIZES, Sketch, data_parallel, sequence_parallel};
use crate::point::Task;

/// Lengths that are predicted: 1k, 32k, 1M.
const LENGTHS: [usize; 3] = [1 << 10, 1 << 15, 1 << 20];
/// Devices side by side.
const DEVICES: [usize; 6] = [1, 4, 16, 64, 256, 1024];
/// Tokens of a sequence in parts.
const LONG: usize = 1 << 20;
/// Tokens of a training sequence.
const TRAINED: usize = 4096;

/// The architectures of the report, each once, where they can be built at the imagined sizes.
fn sketches(data: &Data) -> Vec<(&Line, Sketch)> {
    let mut out: Vec<(&Line, Sketch)> = Vec::new();
    for line in &data.lines {
        if !out.iter().any(|(known, _)| known.subject == line.subject) {
            out.extend(Sketch::new(&line.subject).map(|sketch| (line, sketch)));
        }
    }
    out
}

fn seconds(value: f64) -> String {
    if value >= 1.0 { format!("{} s", digits(value)) } else { format!("{} ms", digits(1e3 * value)) }
}

/// One table per hardware, and one for many devices.
pub(super) fn tables(data: &Data) -> Vec<Table> {
    let sketches = sketches(data);
    let mut out: Vec<Table> = data.hardware.iter().map(|h| alone(h, &sketches)).collect();
    out.extend(data.hardware.iter().find_map(|h| many(h, &sketches)));
    out
}

fn alone(hardware: &Hardware, sketches: &[(&Line, Sketch)]) -> Table {
    let sources: Vec<String> = hardware.sources.iter().map(|s| format!("{}: {}", s.what, s.origin)).collect();
    let note = format!(
        "At best, not measured: {DEPTH} mixers of width {}, {} numbers of memory each where the size is free, no MLP; \
         operations over {} TFLOP/s plus bytes over {} GB/s, {} bytes per number. Sources: {}.",
        SIZES.d_model,
        SIZES.state,
        digits(hardware.flops / 1e12),
        digits(hardware.bandwidth / 1e9),
        hardware.bytes_per_number,
        sources.join("; ")
    );
    let title = format!("Predicted: {}", hardware.name);
    let head = [
        "architecture",
        "read 32k",
        "read 1M",
        "a token after 1k",
        "after 32k",
        "after 1M",
        "state at 1M",
        "sequences of 32k in memory",
    ];
    let mut table = Table::new(&title, note, &head);
    let [short, middle, long] = LENGTHS;
    for (line, sketch) in sketches {
        let of = |task, time| {
            let cost = sketch.cost(task, time);
            if hardware.holds(cost) { seconds(hardware.seconds(cost)) } else { "no room".into() }
        };
        let at = sketch.cost(Task::Prefill, middle);
        let free = hardware.memory - at.params as f64 * hardware.bytes_per_number;
        let rows = (free / hardware.bytes(at.state_bytes.max(1))).max(0.0).floor();
        table.rows.push(vec![
            line.key.label.clone(),
            of(Task::Prefill, middle),
            of(Task::Prefill, long),
            of(Task::Decode, short),
            of(Task::Decode, middle),
            of(Task::Decode, long),
            bytes(hardware.bytes(sketch.cost(Task::Prefill, long).state_bytes)),
            if rows >= 1.0 { seqzoo::report::words::count(rows) } else { "none".into() },
        ]);
    }
    table
}

fn many(hardware: &Hardware, sketches: &[(&Line, Sketch)]) -> Option<Table> {
    let link = hardware.link?;
    let note = format!(
        "{} with links of {} GB/s and {} µs, on paper. A sequence of 1M tokens in parts: a cache goes round the ring \
         (arXiv 2310.01889), a state in which the recurrence is linear is handed on in ⌈log₂ N⌉ rounds, any other in turns. \
         The last column: a training step of {TRAINED} tokens per device with gradients summed over 64.",
        hardware.name,
        digits(link.bandwidth / 1e9),
        digits(1e6 * link.latency)
    );
    let mut table = Table::new("Predicted: many devices", note, &["architecture"]);
    table.head.extend(DEVICES.iter().map(|n| format!("N = {n}")));
    table.head.push("data parallel".into());
    for (line, sketch) in sketches {
        let mut row = vec![line.key.label.clone()];
        row.extend(DEVICES.iter().map(|&n| seconds(sequence_parallel(hardware, link, sketch, LONG, n))));
        row.push(seconds(data_parallel(hardware, link, sketch, TRAINED, 64)));
        table.rows.push(row);
    }
    Some(table)
}

/// Time of a long sequence against devices.
pub(super) fn chart(data: &Data) -> String {
    let Some((hardware, link)) = data.hardware.iter().find_map(|h| Some((h, h.link?))) else {
        return String::new();
    };
    let series: Vec<Series> = (sketches(data).iter())
        .map(|(line, sketch)| Series {
            style: line.key.style,
            class: line.key.class(),
            name: line.key.label.clone(),
            points: DEVICES
                .iter()
                .map(|&n| (n as f64, sequence_parallel(hardware, link, sketch, LONG, n)))
                .collect(),
            hidden: line.key.hidden,
            ..Series::default()
        })
        .collect();
    figure(LineChart {
        id: "devices",
        title: format!("1M tokens on many {}", hardware.name),
        description:
            "On paper: a ring stops gaining once its messages take longer than its shrinking share of work; \
                      a state that is handed on costs a few messages whatever the length, and nothing is gained where each part \
                      has to wait for the state before it."
                .into(),
        x: lengths_axis("devices", &DEVICES),
        y: axis("seconds", Scale::log(ys(&series)), digits),
        series,
        references: vec![],
        show_x: |v| format!("{v:.0} devices"),
        show_y: seconds,
    })
}
