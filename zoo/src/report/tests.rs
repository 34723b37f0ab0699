use super::*;
use crate::compare::{
    CurvePoint, Entry, LayerMap, MapKind, Model, ModelSizes, PairAccuracy, RecallRun, RecallTask, SCHEMA,
    Speed, Status, TextRun, TextTask, Training,
};

/// Numbers of the right shape: the first of `n` architectures has a cache, the others decay ever faster.
fn synthetic(n: usize) -> Results {
    let lengths = vec![128, 256, 512, 1024, 2048, 4096, 8192];
    let pairs = vec![4, 8, 16];
    let entry = |i: usize| {
        let f = i as f64;
        let mut registered = crate::registry::architectures();
        let (name, title) = match registered.nth(i) {
            Some(a) => (a.name.to_string(), a.title.to_string()),
            None => (format!("made_up_{i}"), format!("Made-up net {i} (test)")),
        };
        let curve = |value: &dyn Fn(f64) -> f64| {
            (1..=100).map(|s| CurvePoint { step: s * 4, value: value(f64::from(s as u32) / 100.0) }).collect()
        };
        let size = 24;
        let map = |layer| LayerMap {
            layer,
            head: i.is_multiple_of(2).then_some(2),
            kind: if i % 4 == 3 { MapKind::Influence } else { MapKind::Attention },
            size,
            weights: (0..size * size)
                .map(|e| (e / size, e % size))
                .map(
                    |(r, c)| {
                        if c > r { 0.0 } else { (((r * 7 + c * (3 + i)) % 11) as f32 / 5.0 - 1.0).powi(3) }
                    },
                )
                .collect(),
            targets: vec![[12, 1], [16, 5], [20, 3]],
            on_target: 0.9 / (1.0 + f),
        };
        let state = 16_384 + 700 * i;
        Entry {
            name,
            title,
            state: "matrix per head, [b, h, n, p]".into(),
            text_model: Some(Model {
                params: 400_000 + i,
                mlp_hidden: 300,
                state_bytes: state,
                ..Model::default()
            }),
            recall_model: Some(Model {
                params: 100_000,
                mlp_hidden: 128,
                state_bytes: state,
                ..Model::default()
            }),
            text: Some(TextRun {
                curve: curve(&|s| 2.1 + 0.03 * f + 3.5 * (-6.0 * s).exp()),
                bits_per_byte: Some(2.2 + 0.03 * f),
                seconds: 20.0,
            }),
            recall: Some(RecallRun {
                curve: curve(&|s| (0.99 - 0.05 * f) / (1.0 + (-20.0 * (s - 0.4 - 0.03 * f)).exp())),
                by_pairs: pairs
                    .iter()
                    .map(|&p| PairAccuracy { pairs: p, accuracy: 1.0 / (1.0 + 0.02 * f * p as f64 / 4.0) })
                    .collect(),
                seconds: 30.0,
            }),
            speed: lengths
                .iter()
                .map(|&l| Speed {
                    length: l,
                    prefill: 9_000.0 / (1.0 + f) / if i == 0 { 1.0 + l as f64 / 2_000.0 } else { 1.0 },
                    decode_ms: 0.3 + 0.05 * f + if i == 0 { l as f64 / 4_000.0 } else { 0.0 },
                    state_bytes: if i == 0 { 1024 * l } else { state },
                })
                .collect(),
            maps: vec![map(1), map(2)],
            failures: vec![],
        }
    };
    let model = ModelSizes { d_model: 64, depth: 2, conv: 0, params: 100_000, state: 1024 };
    let training = Training { steps: 400, batch: 32, length: 64, learning_rate: 3e-3 };
    Results {
        schema: SCHEMA,
        version: "0.0.0".into(),
        command: "seqzoo compare --text '<b>.txt'".into(),
        seed: 7,
        started: "2026-01-31 12:00 UTC".into(),
        seconds: 600.0,
        status: Status::Finished,
        text: TextTask {
            source: "a test".into(),
            bytes: 1 << 20,
            held_out: 1 << 16,
            model: model.clone(),
            training: training.clone(),
        },
        recall: RecallTask {
            vocab: 128,
            pairs: pairs.clone(),
            chance: 1.0 / 64.0,
            samples: 256,
            model,
            training,
        },
        lengths: lengths.clone(),
        entries: (0..n).map(entry).collect(),
        ..Results::default()
    }
}

/// Whether a number was written that is none.
fn has_broken_number(page: &str) -> bool {
    page.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| word == "NaN" || word == "inf")
}

#[test]
fn a_full_page_has_every_part_and_needs_nothing_from_outside() {
    let page = render(&synthetic(9));
    if let Some(p) = std::env::var_os("SAMPLE") {
        std::fs::write(p, &page).unwrap();
    }
    for id in ["recall", "recall-curves", "text", "decode", "prefill", "memory"] {
        assert_eq!(page.matches(&format!("<svg class=\"chart\" id=\"{id}\"")).count(), 1, "{id}");
    }
    assert_eq!(page.matches("class=\"map\"").count(), 18);
    assert_eq!(page.matches("<figcaption>").count(), 6);
    for outside in ["http:", "https:", "@import", "url(", "src=\"", "<link"] {
        assert!(!page.contains(outside), "{outside}");
    }
    assert!(page.contains("&lt;b&gt;.txt") && !page.contains("<b>.txt"));
    assert!(!has_broken_number(&page));
    assert!(page.contains("state at 1k tokens") && page.contains("state at 8k tokens"));
    for tag in ["svg", "g", "table", "tr", "figure", "div", "section", "details", "label", "text", "title"] {
        let opened = page.matches(&format!("<{tag} ")).count() + page.matches(&format!("<{tag}>")).count();
        assert_eq!(opened, page.matches(&format!("</{tag}>")).count(), "{tag}");
    }
}

#[test]
fn a_page_is_valid_after_every_measurement() {
    let full = synthetic(3);
    let mut partial = Results { entries: vec![], status: Status::Running, ..full.clone() };
    let mut pages = vec![render(&partial)];
    for entry in full.entries {
        let steps = [
            Entry { name: entry.name.clone(), title: entry.title.clone(), ..Entry::default() },
            Entry { recall: None, speed: vec![], maps: vec![], ..entry.clone() },
            Entry { speed: entry.speed[..1].to_vec(), maps: vec![], ..entry.clone() },
            entry,
        ];
        partial.entries.push(Entry::default());
        for step in steps {
            *partial.entries.last_mut().unwrap() = step;
            pages.push(render(&partial));
        }
    }
    for page in pages {
        assert!(page.starts_with("<!doctype html>") && page.trim_end().ends_with("</html>"));
        assert!(page.contains("still running"));
        assert!(!has_broken_number(&page), "{page}");
    }
}

#[test]
fn findings_follow_the_numbers() {
    let mut results = synthetic(3);
    let sentence = findings::recall(&results);
    assert!(sentence.contains("at least 95 % of the queries"), "{sentence}");
    for entry in &mut results.entries {
        entry.recall.as_mut().unwrap().by_pairs.last_mut().unwrap().accuracy = 0.5;
    }
    assert!(findings::recall(&results).starts_with("No architecture reached 95 % at 16 pairs"));
    assert!(findings::decode(&results).contains("grow") || findings::decode(&results).contains("rises"));
    results.entries.remove(0);
    assert!(
        findings::memory(&results).contains("same size at every length")
            || findings::memory(&results).contains("fixed")
    );
}

#[test]
fn results_survive_the_file_and_other_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("results.json");
    let results = synthetic(2);
    results.save(&path).unwrap();
    assert_eq!(Results::load(&path).unwrap(), results);
    for (content, reason) in [("{", "EOF"), ("[]", "schema"), ("{\"schema\": 999}", "version 999")] {
        std::fs::write(&path, content).unwrap();
        let error = Results::load(&path).unwrap_err().to_string();
        assert!(error.contains(reason) && error.contains("results.json"), "{error}");
    }
    assert!(Results::load(&folder.path().join("none.json")).is_err());
}

#[test]
fn the_table_in_the_terminal_is_aligned_and_marks_the_best() {
    let text = table(&synthetic(3));
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2 + 3);
    assert!(lines[2].contains("*100 %") && lines[2].contains("*2.200"), "{text}");
    let widths: Vec<usize> = lines[1..].iter().map(|line| line.chars().count()).collect();
    assert!(widths.windows(2).all(|w| w[0] == w[1]), "{text}");
}
