use super::*;

/// Records what it is told and stops on request.
#[derive(Default)]
struct Probe {
    kept: Vec<Results>,
    steps: usize,
    stop_after: Option<usize>,
}

impl Observer for Probe {
    fn begin(&mut self, _: &Entry, _: &'static str, _: usize) {}

    fn advance(&mut self, _: usize, _: &str) -> ControlFlow<()> {
        self.steps += 1;
        if self.stop_after.is_some_and(|n| self.steps >= n) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }

    fn keep(&mut self, results: &Results, _: &str) -> Result<()> {
        self.kept.push(results.clone());
        Ok(())
    }
}

/// Everything the full plan has, in seconds.
fn tiny() -> Plan {
    let mut plan = Plan::quick();
    plan.recall.training.steps = 4;
    plan.recall.training.batch = 4;
    plan.recall.samples = 2;
    plan.recall.model.d_model = 32;
    plan.recall.model.state = 256;
    plan.text.training = Training { steps: 4, batch: 2, length: 16, learning_rate: 3e-3 };
    plan.text.model.d_model = 32;
    plan.text.model.state = 256;
    plan.text_batches = 1;
    plan.lengths = vec![16, 32];
    plan.decode_steps = 2;
    plan
}

fn options(architectures: &[&str]) -> Options {
    Options {
        quick: true,
        text: None,
        architectures: architectures.iter().map(ToString::to_string).collect(),
        seed: 3,
        device: "flex".into(),
        command: "test".into(),
    }
}

/// The results without what depends on the clock or the machine.
fn timeless(results: &Results) -> Results {
    let mut results = results.clone();
    results.seconds = 0.0;
    results.started = String::new();
    for entry in &mut results.entries {
        entry.recall.iter_mut().for_each(|r| r.seconds = 0.0);
        entry.text.iter_mut().for_each(|r| r.seconds = 0.0);
        entry.speed.iter_mut().for_each(|s| (s.prefill, s.decode_ms) = (0.0, 0.0));
    }
    results
}

#[test]
fn every_architecture_gets_every_measurement_and_the_seed_decides_the_numbers() {
    let names = crate::registry::MixerConfig::NAMES;
    let mut probe = Probe::default();
    let results = run(&options(names), &tiny(), &mut probe).unwrap();
    assert_eq!(results.status, Status::Finished);
    assert_eq!(probe.kept.len(), 2 * names.len() + 1);
    for entry in &results.entries {
        assert!(entry.failures.is_empty(), "{}: {:?}", entry.name, entry.failures);
        let (recall, text) = (entry.recall.as_ref().unwrap(), entry.text.as_ref().unwrap());
        assert_eq!(recall.by_pairs.len(), results.recall.pairs.len());
        assert!(recall.by_pairs.iter().all(|p| (0.0..=1.0).contains(&p.accuracy)));
        assert!(text.bits_per_byte.unwrap() < 20.0 && text.curve.len() == 4);
        assert_eq!(entry.speed.iter().map(|s| s.length).collect::<Vec<_>>(), [16, 32]);
        assert!(entry.speed.iter().all(|s| s.prefill > 0.0 && s.decode_ms > 0.0 && s.state_bytes > 0));
        assert_eq!(entry.maps.len(), 1, "{}", entry.name);
        for map in &entry.maps {
            assert!(map.weights.iter().all(|w| w.abs() <= 1.0));
            let future = (0..map.size * map.size).filter(|e| e % map.size > e / map.size);
            assert!(future.into_iter().all(|e| map.weights[e] == 0.0), "{} sees the future", entry.name);
        }
        let page = crate::report::render(&results);
        assert!(page.ends_with("</html>\n"));
    }
    let again = run(&options(&names[..1]), &tiny(), &mut Probe::default()).unwrap();
    assert_eq!(timeless(&again).entries[0], timeless(&results).entries[0]);
}

#[test]
fn stopping_keeps_what_was_measured() {
    let mut probe = Probe { stop_after: Some(6), ..Probe::default() };
    let results = run(&options(&["attention", "gated_deltanet"]), &tiny(), &mut probe).unwrap();
    assert_eq!(results.status, Status::Interrupted);
    assert_eq!(probe.kept.last(), Some(&results));
    assert_eq!(results.entries[0].recall.as_ref().unwrap().by_pairs.len(), 3);
    let partial = results.entries[1].recall.as_ref().unwrap();
    assert!(partial.by_pairs.is_empty() && partial.curve.len() < 4);
    assert!(crate::report::render(&results).contains("stopped early"));
}

#[test]
fn impossible_requests_are_refused_before_any_work() {
    let mut probe = Probe::default();
    let mut refused = |options: Options| run(&options, &tiny(), &mut probe).unwrap_err().to_string();
    assert!(refused(options(&["gated_deltnet"])).contains("gated_deltanet"));
    assert!(refused(options(&["attention", "attention"])).contains("twice"));
    assert!(refused(options(&[])).contains("at least one"));
    assert!(refused(Options { device: "abacus".into(), ..options(&["attention"]) }).contains("abacus"));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("short.txt");
    let with_text = || Options { text: Some(path.clone()), ..options(&["attention"]) };
    assert!(refused(with_text()).contains("short.txt"));
    std::fs::write(&path, "too short").unwrap();
    assert!(refused(with_text()).contains("at least"));
    std::fs::write(&path, b"\xff\xfe").unwrap();
    assert!(refused(with_text()).contains("UTF-8"));
    assert!(probe.kept.is_empty() && probe.steps == 0);
}
