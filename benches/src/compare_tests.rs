use rand::{RngExt, SeedableRng};
use rand_distr::{Distribution, LogNormal};
use seqzoo_layers::system::Form;

use super::*;
use crate::record::{Counted, Measurement, Outcome, Record};
use crate::summary::summarise;

/// A sweep on a noisy machine: every round has its own speed, every repetition its own noise, and one in
/// twelve is interrupted by something else for up to three times as long.
fn sweep(seed: u64, slow: impl Fn(&str) -> f64) -> Vec<Summary> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let speeds: Vec<f64> = (0..3).map(|_| LogNormal::new(0.0, 0.02).unwrap().sample(&mut rng)).collect();
    sweep_at(seed, 3, |round, _| speeds[round], slow)
}

/// The same at the given speed of each round and repetition.
fn sweep_at(
    seed: u64,
    rounds: usize,
    speed: impl Fn(usize, usize) -> f64,
    slow: impl Fn(&str) -> f64,
) -> Vec<Summary> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let (round_noise, noise) = (LogNormal::new(0.0, 0.02).unwrap(), LogNormal::new(0.0, 0.04).unwrap());
    let mut records = Vec::new();
    for round in 0..rounds {
        for (i, subject) in ["attention", "gated_deltanet", "lstm", "mamba2"].into_iter().enumerate() {
            for (task, time) in
                [(Task::Prefill, 128), (Task::Prefill, 1024), (Task::Train, 512), (Task::Decode, 64)]
            {
                let process = round_noise.sample(&mut rng);
                let base = 1e-3 * (i + 1) as f64 * (time as f64 / 128.0) * slow(subject) * process;
                let seconds = (0..12)
                    .map(|repetition| {
                        let hit = rng.random_range(0..12) == 0;
                        let hit = if hit { rng.random_range(1.2..3.0) } else { 1.0 };
                        base * speed(round, repetition) * noise.sample(&mut rng) * hit
                    })
                    .collect();
                let point = Point {
                    subject: subject.into(),
                    task,
                    form: Form::Auto,
                    device: "flex".into(),
                    batch: 1,
                    time,
                };
                let outcome =
                    Outcome::Done(Measurement { seconds, first_seconds: base, ..Default::default() });
                records.push(Record { point, round, outcome });
            }
        }
    }
    summarise(&records)
}

fn strictness() -> Strictness {
    Strictness { resamples: 1000, ..Strictness::default() }
}

#[test]
fn a_slow_down_of_a_fifth_is_found_and_noise_is_not() {
    let (mut found, mut false_alarms, mut innocent) = (0, 0, 0);
    for trial in 0..20 {
        let base = sweep(2 * trial, |_| 1.0);
        let again = sweep(2 * trial + 1, |_| 1.0);
        let planted = sweep(2 * trial + 1, |subject| if subject == "lstm" { 1.2 } else { 1.0 });
        false_alarms += usize::from(compare(&base, &again, strictness()).regressed());
        let comparison = compare(&base, &planted, strictness());
        let slower = |r: &&Ratio| r.verdict == Verdict::Slower;
        let all = || comparison.points.iter().chain(&comparison.groups);
        found += usize::from(all().filter(slower).any(|r| r.what.starts_with("lstm")));
        innocent += all().filter(slower).filter(|r| !r.what.starts_with("lstm")).count();
    }
    assert_eq!((found, false_alarms, innocent), (20, 0, 0));
}

/// Planted slow-downs of a fifth that are found and equal pairs that are called slower, of twenty each.
fn detected(speed: impl Fn(usize, usize) -> f64 + Copy, turns: Turns) -> (usize, usize) {
    let strictness = Strictness { turns, ..strictness() };
    let (mut found, mut false_alarms) = (0, 0);
    for trial in 0..20 {
        let base = sweep_at(2 * trial, 3, speed, |_| 1.0);
        let again = sweep_at(2 * trial + 1, 3, speed, |_| 1.0);
        let planted = sweep_at(2 * trial + 1, 3, speed, |subject| if subject == "lstm" { 1.2 } else { 1.0 });
        found += usize::from(compare(&base, &planted, strictness).regressed());
        false_alarms += usize::from(compare(&base, &again, strictness).regressed());
    }
    (found, false_alarms)
}

#[test]
fn rounds_that_were_measured_in_turns_may_differ_much() {
    // Between its first and its third round the machine becomes half as fast.
    let speed = |round: usize, _| 1.0 + 0.5 * round as f64;
    assert_eq!(detected(speed, Turns::Rounds), (20, 0));
    assert_eq!(detected(speed, Turns::Repetitions), (20, 0));
    let (found, _) = detected(speed, Turns::Apart);
    assert!(found < 5, "found {found} without");
}

#[test]
fn repetitions_that_were_measured_in_turns_may_differ_much() {
    // In the middle of each round the machine becomes half as fast, in every round a little later.
    let speed = |round, repetition| if repetition < 4 + 2 * round { 1.0 } else { 2.0 };
    assert_eq!(detected(speed, Turns::Repetitions), (20, 0));
}

#[test]
fn a_speed_up_is_told_and_is_no_regression() {
    let base = sweep(1, |_| 1.0);
    let comparison = compare(&base, &sweep(2, |_| 0.7), strictness());
    assert!(!comparison.regressed());
    assert!(comparison.groups.iter().all(|r| r.verdict == Verdict::Faster), "{:?}", comparison.groups);
    let text = markdown(&comparison);
    assert!(text.contains("faster") && text.contains("no regression"), "{text}");
}

fn one(counted: Counted, outcome: Option<Outcome>) -> Vec<Summary> {
    of_task(Task::Prefill, counted, outcome)
}

fn of_task(task: Task, counted: Counted, outcome: Option<Outcome>) -> Vec<Summary> {
    let point =
        Point { subject: "lstm".into(), task, form: Form::Auto, device: "flex".into(), batch: 1, time: 8 };
    let done = Outcome::Done(Measurement { seconds: vec![1.0], counted, ..Default::default() });
    summarise(&[Record { point, round: 0, outcome: outcome.unwrap_or(done) }])
}

#[test]
fn counted_quantities_are_compared_exactly() {
    let counted = Counted {
        flops: 1e6,
        bytes: 4e5,
        params: 10,
        state_bytes: 64,
        allocated_bytes: 1_000_000,
        launches: 0,
    };
    let base = one(counted, None);
    let only = Strictness { counted_only: true, ..strictness() };
    let against = |counted| compare(&base, &one(counted, None), only);
    assert_eq!(against(counted).changes, []);
    assert!(!against(Counted { allocated_bytes: 1_005_000, ..counted }).regressed());
    for worse in [
        Counted { flops: 1e6 + 1.0, ..counted },
        Counted { state_bytes: 65, ..counted },
        Counted { launches: 1, ..counted },
        Counted { allocated_bytes: 1_100_000, ..counted },
    ] {
        assert!(against(worse).regressed(), "{worse:?}");
    }
    let better = against(Counted { bytes: 3e5, ..counted });
    assert!(!better.regressed() && better.changes.len() == 1 && better.points.is_empty());
}

/// What the host allocates beside kernels is the driver's, and how many launches Burn's products are is chosen by time:
/// neither is the same on the next machine.
#[test]
fn launches_are_compared_without_what_the_machine_decides() {
    let counted = Counted { launches: 66, allocated_bytes: 1_000_000, ..Default::default() };
    let only = Strictness { counted_only: true, ..strictness() };
    let regressed =
        |task, new| compare(&of_task(task, counted, None), &of_task(task, new, None), only).regressed();
    for task in [Task::Prefill, Task::Train] {
        assert!(!regressed(task, Counted { allocated_bytes: 1_200_000, ..counted }));
        assert!(!regressed(task, Counted { launches: 64, ..counted }));
        assert!(regressed(task, Counted { launches: 70, ..counted }));
    }
    assert!(regressed(Task::Prefill, Counted { launches: 67, ..counted }));
    assert!(!regressed(Task::Train, Counted { launches: 68, ..counted }));
}

#[test]
fn an_outcome_that_got_worse_is_a_regression() {
    let good = one(Counted::default(), None);
    let bad = one(Counted::default(), Some(Outcome::TimedOut { limit: 2.0 }));
    let comparison = compare(&good, &bad, strictness());
    assert!(comparison.regressed());
    assert!(markdown(&comparison).contains("not done after 2 s"));
    assert!(!compare(&bad, &good, strictness()).regressed());
    assert!(!compare(&bad, &bad, strictness()).regressed());
    let missing = compare(&good, &[], strictness());
    assert_eq!((missing.matched, missing.unmatched, missing.regressed()), (0, 1, false));
}
