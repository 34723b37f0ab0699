//! Time per token of a decayed linear recurrence against the length, forward and with gradients: the tiled kernel,
//! the tensor form, the whole sequence at once, and one token at a time. Prints each time per token as a ratio to
//! that at 1024 tokens, and writes all as JSON to the file that `SEQZOO_BENCH_JSON` names.
//!
//! One core: `RAYON_NUM_THREADS=1 taskset -c 0 cargo bench --bench lightning`. On a machine that others use too, set
//! `SEQZOO_BENCH_CPU=1`: then the time that this program's threads ran is counted (Linux), not the time that passed.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use seqzoo::compare::{Machine, now};
use seqzoo_bench::core::{HEAD_DIM, HEADS, Sequence, Way};
use seqzoo_bench::{finish, open_device};
use seqzoo_layers::system::Form;
use serde_json::json;

const TIMES: [usize; 7] = [1 << 10, 1 << 11, 1 << 12, 1 << 13, 1 << 14, 1 << 15, 1 << 16];

/// Ways, and the longest sequence each is tried on: forward, with gradients.
const WAYS: [(Way, usize, usize); 5] = [
    (Way { form: Form::Auto, kernels: true }, 1 << 16, 1 << 16),
    (Way { form: Form::Chunked { size: 128 }, kernels: true }, 1 << 16, 1 << 16),
    (Way { form: Form::Auto, kernels: false }, 1 << 16, 1 << 16),
    (Way { form: Form::Parallel, kernels: false }, 1 << 12, 1 << 12),
    (Way { form: Form::Recurrent, kernels: false }, 1 << 12, 1 << 11),
];

/// Seconds per call of every sample, by pass, way and length.
type Samples = BTreeMap<(&'static str, String, usize), Vec<f64>>;

/// The time that passed, or that this program's threads ran, if that was asked for.
fn clock() -> Duration {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    static CPU: LazyLock<bool> =
        LazyLock::new(|| std::env::var("SEQZOO_BENCH_CPU").is_ok_and(|value| value == "1"));
    let passed = START.elapsed();
    if !*CPU {
        return passed;
    }
    let tasks = std::fs::read_dir("/proc/self/task").expect("SEQZOO_BENCH_CPU=1 needs Linux");
    let ran = tasks.filter_map(|task| {
        let stat = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        stat.split_whitespace().next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(ran.sum())
}

fn lightning(criterion: &mut Criterion) {
    let device = open_device().expect("SEQZOO_BENCH_DEVICE names a device of this build");
    let mut samples = Samples::new();
    for pass in ["forward", "forward+backward"] {
        let mut group = criterion.benchmark_group(format!("lightning/{pass}"));
        group.sample_size(10).measurement_time(Duration::from_secs(2));
        group.warm_up_time(Duration::from_millis(500));
        // Short ones too, to see from where on which is faster.
        for time in [64, 128, 256, 512].into_iter().chain(TIMES) {
            let sequence = Sequence::new(time, &device).expect("sizes that fit");
            group.throughput(Throughput::Elements(time as u64));
            for (way, forward, backward) in WAYS {
                if time > if pass == "forward" { forward } else { backward } {
                    continue;
                }
                let seconds = samples.entry((pass, way.to_string(), time)).or_default();
                group.bench_function(BenchmarkId::new(way.to_string(), time), |bencher| {
                    bencher.iter_custom(|count| {
                        let start = clock();
                        for _ in 0..count {
                            match pass {
                                "forward" => drop(black_box(sequence.forward(way).expect("it runs"))),
                                _ => drop(black_box(sequence.forward_backward(way).expect("it runs"))),
                            }
                            finish(&device);
                        }
                        let elapsed = clock() - start;
                        seconds.push(elapsed.as_secs_f64() / count as f64);
                        elapsed
                    });
                });
            }
        }
        group.finish();
    }
    report(&samples);
}

fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// Prints and writes what was measured; nothing where criterion was asked to measure nothing.
fn report(samples: &Samples) {
    let measured = samples.iter().filter(|(_, samples)| !samples.is_empty());
    let rows: Vec<_> = measured.map(|(key, samples)| (key, median(samples), samples)).collect();
    println!("\n{:<18} {:<22} {:>7}  {:>12}  {:>8}", "pass", "form", "tokens", "ns per token", "to 1024");
    for ((pass, way, time), seconds, _) in &rows {
        let per_token = |seconds: &f64, time: usize| 1e9 * seconds / time as f64;
        let first = rows.iter().find(|((p, w, t), ..)| p == pass && w == way && *t == 1 << 10);
        let ratio = first.map(|(_, first, _)| per_token(seconds, *time) / per_token(first, 1 << 10));
        let ratio = ratio.map_or_else(|| "-".into(), |ratio| format!("{ratio:.3}"));
        println!("{pass:<18} {way:<22} {time:>7}  {:>12.0}  {ratio:>8}", per_token(seconds, *time));
    }
    let Ok(path) = std::env::var("SEQZOO_BENCH_JSON") else { return };
    let rows = rows.iter().map(|((pass, form, tokens), seconds, samples)| {
        json!({"pass": pass, "form": form, "tokens": tokens, "median_seconds": seconds, "samples": samples})
    });
    let device = std::env::var("SEQZOO_BENCH_DEVICE").unwrap_or_else(|_| "flex".into());
    let all = json!({
        "bench": "lightning",
        "when": now(),
        "machine": Machine::here(&device),
        "cpu_time": std::env::var("SEQZOO_BENCH_CPU").is_ok_and(|value| value == "1"),
        "rayon_threads": std::env::var("RAYON_NUM_THREADS").ok(),
        "sizes": {"batch": 1, "heads": HEADS, "head_dim": HEAD_DIM},
        "rows": rows.collect::<Vec<_>>(),
    });
    std::fs::write(path, format!("{all:#}\n")).expect("SEQZOO_BENCH_JSON names a file that can be written");
}

criterion_group!(benches, lightning);
criterion_main!(benches);
