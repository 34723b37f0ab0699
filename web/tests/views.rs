//! What a page shows of every architecture, and that each explanation adds up to the number it explains.

use seqzoo::registry::MixerConfig;
use seqzoo_web::{Grid, Kind, LayerTrace, MAX_TOKENS, Model};

/// The relative rounding of single precision, through the longest product of a short text.
const TOLERANCE: f64 = 1e-4;

fn model(config: &str) -> Model {
    Model::preset(config, 3).unwrap()
}

#[test]
fn every_architecture_shows_itself() {
    let text = "abcabc";
    for arch in MixerConfig::NAMES {
        let mut model = model(arch);
        let info = model.info().unwrap();
        assert_eq!((info.arch, info.layers, info.d_model, info.trained), (*arch, 1, 32, false));
        let trace = model.read(text).unwrap();
        assert_eq!(trace.tokens, ["a", "b", "c", "a", "b", "c"]);
        assert_eq!(trace.predictions.len(), 6);
        let layer = &trace.layers[0];
        for grid in &layer.attention {
            assert_eq!([grid.rows, grid.columns, grid.values.0.len()], [6, 6, 36], "{arch}");
            let above = (0..6).flat_map(|i| (i + 1..6).map(move |j| grid.at(i, j)));
            assert!(above.into_iter().all(|v| v == Some(0.0)), "{arch} reads the future");
        }
        for gate in &layer.gates {
            assert_eq!(gate.grid.rows, 6, "{arch}: {}", gate.name);
        }
        assert_eq!(layer.state_bytes.0.len(), 6);
        let states = model.states(0).unwrap();
        for (slots, bytes) in states.iter().zip(&layer.state_bytes.0) {
            let held: usize = slots.iter().map(|slot| 4 * slot.values.0.len()).sum();
            assert_eq!(held as f64, *bytes, "{arch}");
            assert!(slots.iter().all(|slot| slot.shape.iter().product::<usize>() == slot.values.0.len()));
        }
        let json = serde_json::to_string(&trace).unwrap();
        assert!(!json.contains("null"), "{arch}: a number is not finite: {json}");
    }
}

/// Entries to ask about: some early, some late, some on the diagonal.
fn places(grid: &Grid) -> Vec<[usize; 2]> {
    let (rows, columns) = (grid.rows, grid.columns);
    [[0, 0], [rows - 1, 0], [rows - 1, columns - 1], [rows / 2, (columns / 3).min(rows / 2)]].to_vec()
}

fn scale(grid: &Grid) -> f64 {
    grid.values.0.iter().map(|v| f64::from(v.abs())).fold(1e-3, f64::max)
}

/// Asks for numbers of one kind, compares each with its terms, and counts those with a closed form.
fn ask(model: &Model, arch: &str, layer: &LayerTrace, kind: Kind) -> [usize; 2] {
    let grids: Vec<&Grid> = match kind {
        Kind::Attention => layer.attention.iter().collect(),
        Kind::Spectrum => layer.spectrum.iter().map(|s| &s.re).collect(),
        Kind::Decay => layer.gates.iter().take(1).map(|gate| &gate.grid).collect(),
        Kind::State => Vec::new(),
    };
    let (mut closed, mut all) = (0, 0);
    for (head, grid) in grids.iter().enumerate() {
        for [row, column] in places(grid) {
            let found = model.explain(0, kind, [head, row, column], None).unwrap();
            let shown = f64::from(grid.at(row, column).unwrap());
            assert_eq!(found.value, shown, "{arch} {kind:?}");
            assert!(found.recomputed.is_some() || found.note.is_some(), "{arch} {kind:?}");
            all += 1;
            if let (Some(again), None) = (found.recomputed, &found.note) {
                let gap = (again - shown).abs() / scale(grid);
                assert!(gap < TOLERANCE, "{arch} {kind:?} [{head}, {row}, {column}]: {again} for {shown}");
                closed += 1;
            }
        }
    }
    if kind == Kind::State {
        let states = model.states(0).unwrap();
        for token in [0, states.len() - 1] {
            let memory = states[token].iter().find(|slot| slot.name == "memory").unwrap();
            let [h, n, p] = memory.shape[..] else { panic!("{arch}: {:?}", memory.shape) };
            for [head, row, column] in [[0, 0, 0], [h - 1, n - 1, p - 1], [0, n / 2, p / 3]] {
                let found = model.explain(0, kind, [head, row, column], Some(token)).unwrap();
                let shown = f64::from(memory.values.0[(head * n + row) * p + column]);
                assert!((found.value - shown).abs() < 1e-6, "{arch} {kind:?}");
                all += 1;
                if let Some(again) = found.recomputed {
                    let largest = memory.values.0.iter().map(|v| f64::from(v.abs())).fold(1e-3, f64::max);
                    assert!(
                        (again - shown).abs() / largest < TOLERANCE,
                        "{arch} {kind:?}: {again} for {shown}"
                    );
                    closed += 1;
                }
            }
        }
    }
    [closed, all]
}

#[test]
fn explanations_add_up_to_what_is_shown() {
    let mut without = Vec::new();
    for arch in MixerConfig::NAMES {
        let mut model = model(arch);
        let trace = model.read("the cat sat on the mat").unwrap();
        let layer = &trace.layers[0];
        for &kind in &layer.explains {
            let [closed, all] = ask(&model, arch, layer, kind);
            assert!(all > 0);
            if closed == 0 {
                without.push((*arch, kind));
            } else if kind == Kind::Attention {
                assert_eq!(closed, all, "{arch}: some entries add up, others do not");
            }
        }
    }
    // Every architecture that is linear in its state, and softmax, is explained by its terms.
    let open = |kind: Kind| -> Vec<&str> {
        without.iter().filter(|(_, k)| *k == kind).map(|(arch, _)| *arch).collect()
    };
    for arch in [
        "attention",
        "moh",
        "linear_attention",
        "retnet",
        "gla",
        "mamba2",
        "gated_deltanet",
        "rglru",
        "deltaproduct",
        "rwkv6",
        "rwkv7",
        "hgrn2",
        "lightning",
        "kda",
    ] {
        assert!(!open(Kind::Attention).contains(&arch), "{arch}: {without:?}");
    }
    for arch in ["gated_deltanet", "mamba2", "gla", "rglru"] {
        assert!(!open(Kind::State).contains(&arch) && !open(Kind::Decay).contains(&arch), "{without:?}");
    }
}

#[test]
fn softmax_rows_sum_to_one_and_the_seed_decides() {
    let trace = model("attention").read("hello").unwrap();
    for row in trace.layers[0].attention.iter().flat_map(|grid| grid.values.0.chunks(5)) {
        assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-5);
    }
    assert_eq!(model("attention").read("hello").unwrap(), trace);
    assert_ne!(Model::preset("attention", 4).unwrap().read("hello").unwrap(), trace);
}

#[test]
fn what_cannot_be_read_or_found_is_answered() {
    let mut model = model("mamba2");
    assert!(model.state(0, 0).unwrap_err().to_string().contains("read"));
    assert!(model.read("").is_err());
    assert!(model.read(&"a".repeat(MAX_TOKENS + 1)).unwrap_err().to_string().contains("512"));
    model.read("abc").unwrap();
    assert!(model.state(0, 3).is_err() && model.state(1, 0).is_err());
    for at in [[9, 0, 0], [0, 3, 0], [0, 0, 3]] {
        assert!(model.explain(0, Kind::Attention, at, None).is_err(), "{at:?}");
    }
    assert!(model.explain(0, Kind::State, [0, 999, 0], None).is_err());
    assert!(model.recall(&[], "a").unwrap_err().to_string().contains("recall"));
    assert!(Model::from_weights(b"nonsense").is_err());
    assert!(model.generate("", 3, 0, 1.0).is_err());
    assert_eq!(model.generate("abc", 5, 1, 0.8).unwrap(), model.generate("abc", 5, 1, 0.8).unwrap());
}
