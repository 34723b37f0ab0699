use std::path::PathBuf;

use seqzoo::compare::Machine;

use super::*;
use crate::point::{Point, Sizes};
use crate::record::{Counted, Measurement, Outcome, Record, SCHEMA};

fn header() -> Header {
    Header {
        schema: SCHEMA,
        version: "0".into(),
        command: "seqzoo-bench run --arch '<b>'".into(),
        started: "2026-01-31 12:00 UTC".into(),
        machine: Machine { cpu: "abacus".into(), threads: 2, ..Machine::default() },
        threads: None,
        sizes: Sizes::default(),
        notes: vec!["torch skipped: `python3` cannot import torch".into()],
        turns: None,
    }
}

/// A sweep of known laws: attention squares, linear attention does not, the peer is twice as slow as ours.
fn results() -> Results {
    let mut records = Vec::new();
    let mut add = |subject: &str, task, batch: usize, time: usize, seconds: f64, state: u64| {
        for round in 0..2 {
            let point =
                Point { subject: subject.into(), task, form: Form::Auto, device: "flex".into(), batch, time };
            let counted = Counted {
                flops: 1e6 * (batch * time) as f64,
                bytes: 1e4 * (batch * time) as f64,
                state_bytes: state,
                ..Counted::default()
            };
            let m = Measurement {
                first_seconds: 2.0 * seconds,
                seconds: vec![seconds; 3],
                peak_bytes: 1 << 20,
                counted,
            };
            records.push(Record { point, round, outcome: Outcome::Done(m) });
        }
    };
    add(MACHINE, Task::Matmul, 1, 1024, 1e-2, 0);
    add(MACHINE, Task::Copy, 1, 1024, 1e-2, 0);
    for time in [128usize, 256, 512, 1024] {
        let t = time as f64;
        add("attention", Task::Prefill, 1, time, 1e-8 * t * t, 8 * time as u64);
        add("linear_attention", Task::Prefill, 1, time, 4e-6 * t, 64);
        add("burn/attention", Task::Prefill, 1, time, 2e-8 * t * t, 0);
        add("attention", Task::Decode, 1, time, 1e-6 * t, 8 * time as u64);
        add("linear_attention", Task::Decode, 1, time, 2e-4, 64);
        add("attention", Task::Train, 1024 / time, time, 1e-5 * t, 8 * time as u64);
    }
    add("attention", Task::Prefill, 4, 128, 1e-3, 64);
    let late = Point { time: 2048, ..records[records.len() - 1].point.clone() };
    records.push(Record { point: late, round: 0, outcome: Outcome::TimedOut { limit: 9.0 } });
    Results { path: PathBuf::from("bench.jsonl"), header: header(), records }
}

fn data() -> Data {
    Data::new(&[results()], None, Hardware::examples().unwrap()).unwrap()
}

#[test]
fn exponents_crossovers_and_ratios_are_those_of_the_laws() {
    let data = data();
    let line = |name: &str| data.lines.iter().find(|l| l.subject == name).unwrap();
    let (square, linear) = (line("attention"), line("linear_attention"));
    assert!((data.law(square, Task::Prefill).unwrap().c - 2.0).abs() < 0.02);
    assert!((data.law(linear, Task::Prefill).unwrap().c - 1.0).abs() < 0.02);
    assert_eq!((data.grows(square), data.grows(linear)), (Some(true), Some(false)));
    assert_eq!(tables::crossing(&data, square, linear, Task::Prefill).unwrap(), "400");
    assert_eq!(tables::crossing(&data, square, linear, Task::Decode).unwrap(), "200");
    assert_eq!(data.constant_tokens(square, Task::Train).len(), 4);
    let text = data.markdown();
    assert!(text.contains("| burn/attention | attention | prefill 1 × 128 |"), "{text}");
    assert!(text.contains("4 wins, 0 even, 0 losses"), "{text}");
    let peers = data.peers();
    assert!(
        peers.contains(
            "| burn/attention | attention | prefill | 0.50 | 0.50 – 0.50 | 4 | 0 | 0 | `seqzoo-bench"
        ),
        "{peers}"
    );
    assert!(peers.contains("abacus, 2 threads") && peers.contains("- torch skipped"), "{peers}");
    assert!(!peers.contains("How time grows"), "{peers}");
    assert!(text.contains("not done after 9 s"), "{text}");
    for hardware in ["NVIDIA H100 SXM", "Apple M4", "Phone"] {
        assert!(text.contains(hardware), "{hardware}");
    }
}

#[test]
fn the_page_has_every_figure_and_needs_nothing_from_outside() {
    let page = render(&data());
    for id in [
        "prefill",
        "batches",
        "model",
        "decode",
        "decode-late",
        "first-token",
        "train-constant",
        "state",
        "peak",
        "roofline",
        "devices",
    ] {
        assert!(page.contains(&format!("id=\"{id}\"")), "{id}");
    }
    for outside in ["http://", "src=", "<link", "@import", "url("] {
        assert!(!page.contains(outside), "{outside}");
    }
    assert!(page.contains("&lt;b&gt;") && !page.contains("'<b>'"));
    assert!(page.contains("cannot import torch"));
    assert_eq!(page.matches("<h2>Against other libraries</h2>").count(), 1);
    assert_eq!(page.matches("<h2>Against other libraries, at every size</h2>").count(), 1);
    assert!(!page.contains("NaN"));
}

#[test]
fn of_very_many_lines_the_nine_are_shown_at_first() {
    let mut many = results();
    let point = many.records[4].point.clone();
    let outcome = many.records[4].outcome.clone();
    for name in seqzoo::registry::MixerConfig::NAMES {
        let point = Point { subject: (*name).into(), ..point.clone() };
        many.records.push(Record { point, round: 0, outcome: outcome.clone() });
    }
    let data = Data::new(&[many], None, vec![]).unwrap();
    let hidden = |name: &str| data.lines.iter().find(|l| l.subject == name).unwrap().key.hidden;
    assert!(!hidden("attention") && !hidden("burn/attention") && hidden("mesa_net"));
    let shown: Vec<&Line> = data.lines.iter().filter(|line| !line.key.hidden).collect();
    let styles: BTreeSet<usize> = shown.iter().map(|line| line.key.style).collect();
    assert_eq!(styles.len(), shown.len().min(STYLES), "two shown lines share a colour");
    let page = render(&data);
    assert!(page.contains("<input type=\"checkbox\" id=\"show-mesa_net-flex\">"));
    assert!(page.contains("<input type=\"checkbox\" checked id=\"show-attention-flex\">"));
    assert!(page.contains("more, in all tables"));
    assert!(page.contains(&format!("4 of {}", 4)) && page.contains("faster than burn"));
}

#[test]
fn quality_makes_a_front() {
    use seqzoo::compare::{Entry, Model, TextRun};
    let entry = |name: &str, state_bytes, bits, seconds| Entry {
        name: name.into(),
        text_model: Some(Model { state_bytes, ..Model::default() }),
        text: Some(TextRun { bits_per_byte: Some(bits), seconds, ..TextRun::default() }),
        ..Entry::default()
    };
    let entries = vec![entry("attention", 4096, 2.0, 9.0), entry("linear_attention", 64, 2.2, 4.0)];
    let quality = Quality { entries, ..Quality::default() };
    let page = render(&Data::new(&[results()], Some(quality), vec![]).unwrap());
    assert!(page.contains("id=\"quality-state\"") && page.contains("data-name=\"front\""));
}

#[test]
fn a_beginning_is_a_page_too_and_other_machines_are_refused() {
    let mut early = results();
    early.records.truncate(3);
    let page = render(&Data::new(&[early], None, vec![]).unwrap());
    assert!(page.ends_with("</html>\n"));
    let mut other = results();
    other.header.machine.cpu = "slide rule".into();
    let refused = Data::new(&[results(), other], None, vec![]).err().unwrap().to_string();
    assert!(refused.contains("another machine"), "{refused}");
    assert!(Data::new(&[], None, vec![]).is_err());
}

#[test]
fn what_costs_an_unknown_amount_is_not_put_over_the_cost_model() {
    let mut results = results();
    for record in results.records.iter_mut().filter(|record| record.point.subject == "burn/attention") {
        if let Outcome::Done(m) = &mut record.outcome {
            m.counted = Counted::default();
        }
    }
    let data = Data::new(&[results], None, Vec::new()).unwrap();
    let chart = charts::model(&data);
    assert!(chart.contains("Softmax attention") && !chart.contains("burn/attention"), "{chart}");
    assert!(charts::roofline(&data).contains("Softmax attention"));
}
