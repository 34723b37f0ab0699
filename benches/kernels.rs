//! The kernels without the layers around them, batch 1, against their tensor forms and their recurrences, forward and with
//! gradients; see `seqzoo_bench::kernels`. `seqzoo-bench peers --peer kernel` measures the same beside PyTorch.

use std::cell::LazyCell;
use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use seqzoo_bench::kernels::{Kernel, WAYS};
use seqzoo_bench::{finish, open_device};

const TIMES: [usize; 5] = [512, 2048, 8192, 32_768, 65_536];

/// The longest sequence that a kernel, its tensor form and its recurrence are tried on: forward, with gradients.
const LONGEST: [[usize; 2]; 3] = [[65_536, 65_536], [32_768, 8192], [2048, 512]];
/// The same for what takes a time quadratic in the length.
const LONGEST_ATTENTION: [[usize; 2]; 3] = [[8192, 8192], [4096, 4096], [2048, 512]];

fn kernels(criterion: &mut Criterion) {
    let device = open_device().expect("SEQZOO_BENCH_DEVICE names a device of this build");
    for kernel in Kernel::ALL {
        let longest = if kernel == Kernel::Attention { LONGEST_ATTENTION } else { LONGEST };
        for backward in [false, true] {
            let pass = if backward { "forward+backward" } else { "forward" };
            let mut group = criterion.benchmark_group(format!("{}/{pass}", kernel.name()));
            group.sample_size(10).measurement_time(Duration::from_secs(1));
            group.warm_up_time(Duration::from_millis(300));
            for time in TIMES {
                let inputs = LazyCell::new(|| kernel.inputs(1, time, &device));
                group.throughput(Throughput::Elements(time as u64));
                for ((before, way), longest) in WAYS.into_iter().zip(longest) {
                    if time > longest[usize::from(backward)] {
                        continue;
                    }
                    let name = if before.is_empty() { "kernel" } else { before.trim_end_matches('/') };
                    group.bench_function(BenchmarkId::new(name, time), |bencher| {
                        bencher.iter(|| {
                            if backward {
                                black_box(kernel.gradients(&inputs, way).expect("it runs"));
                            } else {
                                black_box(kernel.run(&inputs, way).expect("it runs"));
                            }
                            finish(&device);
                        });
                    });
                }
            }
            group.finish();
        }
    }
}

criterion_group!(benches, kernels);
criterion_main!(benches);
