//! Peak memory of a decayed linear recurrence against the length: what the allocator has handed out at most, beyond
//! the inputs. Prints bytes per token, and as multiples of one `[tokens, heads · head_dim]` tensor; writes JSON to the
//! file that `SEQZOO_BENCH_JSON` names. Exact, so one run is enough.

#![allow(unsafe_code, reason = "an allocator that counts, and forgets the peak between measurements")]

// Not through the library, whose own allocator would be in the way.
#[allow(unreachable_pub, reason = "public in the library")]
#[path = "src/core.rs"]
mod core;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use burn::tensor::{Device, Tensor};
use seqzoo::compare::{Machine, now};
use seqzoo_layers::lightning::LightningConfig;
use seqzoo_layers::system::{Form, Mixer};
use seqzoo_layers::{Init, Result, kernels};
use serde_json::json;

use crate::core::{HEAD_DIM, HEADS, Sequence, Way};

struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn grow(bytes: usize) {
    let now = NOW.fetch_add(bytes, Ordering::Relaxed) + bytes;
    PEAK.fetch_max(now, Ordering::Relaxed);
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        grow(size);
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes at most while `work` runs, beyond those before it.
fn peak<T>(work: impl FnOnce() -> Result<T>) -> Result<usize> {
    let before = NOW.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    work()?;
    Ok(PEAK.load(Ordering::Relaxed) - before)
}

/// A whole layer as it trains: gradients of all parameters.
fn layer(time: usize, way: Way, device: &Device) -> Result<usize> {
    let (device, width) = (device.clone().autodiff(), HEADS * HEAD_DIM);
    let layer = LightningConfig::tnl(HEADS).init(width, &mut Init::new(0, &device))?;
    let x = Tensor::<3>::ones([1, time, width], &device);
    kernels::enable(way.kernels);
    peak(|| {
        let (y, _) = layer.forward(x, layer.initial_state(1), way.form)?;
        Ok(y.sum().backward())
    })
}

fn main() -> Result<()> {
    // `cargo test` runs benchmarks for a moment, with this argument.
    if std::env::args().any(|argument| argument == "--test") {
        return Ok(());
    }
    let device = Device::flex();
    let ways = [
        (Way { form: Form::Auto, kernels: true }, 1 << 16),
        (Way { form: Form::Auto, kernels: false }, 1 << 16),
        (Way { form: Form::Parallel, kernels: false }, 1 << 12),
    ];
    let mut rows = Vec::new();
    println!(
        "{:<18} {:<16} {:>7}  {:>14}  {:>10}  {:>8}",
        "what", "form", "tokens", "peak bytes", "per token", "tensors"
    );
    for what in ["forward", "forward+backward", "layer"] {
        for (way, longest) in ways {
            let mut last = None;
            for time in (10..=16).map(|power| 1 << power).filter(|&time| time <= longest) {
                let sequence = Sequence::new(time, &device)?;
                // The first call starts threads and tables.
                for _ in 0..2 {
                    let bytes = match what {
                        "forward" => peak(|| sequence.forward(way))?,
                        "forward+backward" => peak(|| sequence.forward_backward(way))?,
                        _ => layer(time, way, &device)?,
                    };
                    last = Some(bytes);
                }
                let bytes = last.unwrap_or_default();
                let per_token = bytes as f64 / time as f64;
                let tensors = per_token / (4 * HEADS * HEAD_DIM) as f64;
                println!("{what:<18} {way:<16} {time:>7}  {bytes:>14}  {per_token:>10.0}  {tensors:>8.2}");
                rows.push(
                    json!({"what": what, "form": way.to_string(), "tokens": time, "peak_bytes": bytes}),
                );
            }
        }
    }
    let Ok(path) = std::env::var("SEQZOO_BENCH_JSON") else { return Ok(()) };
    let all = json!({
        "bench": "lightning_memory",
        "when": now(),
        "machine": Machine::here("flex"),
        "sizes": {"batch": 1, "heads": HEADS, "head_dim": HEAD_DIM},
        "rows": rows,
    });
    std::fs::write(path, format!("{all:#}\n")).expect("SEQZOO_BENCH_JSON names a file that can be written");
    Ok(())
}
