//! One state per channel (RG-LRU, HGRN) without the layer around it, 512 channels in 1 or 8 heads, batch 1: the kernel
//! against the tensor form, forward and with gradients.
//!
//! Floor: memory. 12 bytes per token and channel forward, 32 with gradients: 50 MB and 134 MB at 8,192 tokens.

use std::hint::black_box;
use std::time::Duration;

use burn::tensor::{Device, Tensor, TensorData};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use seqzoo_bench::{finish, open_device};
use seqzoo_layers::kernels;
use seqzoo_layers::system::{Form, System, engine};

const CHANNELS: usize = 512;
const TIMES: [usize; 5] = [512, 2048, 8192, 32_768, 65_536];

/// The longest sequence that the tensor form is tried on with gradients.
const LONGEST_TENSORS: usize = 8192;

fn numbers(time: usize, heads: usize, shift: f32, device: &Device) -> Tensor<4> {
    let values = (0..time * CHANNELS).map(|i| (i as f32 * 0.7391).sin() * 0.1 + shift).collect::<Vec<f32>>();
    Tensor::from_data(TensorData::new(values, [1, heads, time, CHANNELS / heads]), device)
}

fn scan(criterion: &mut Criterion) {
    let device = open_device().expect("SEQZOO_BENCH_DEVICE names a device of this build");
    for backward in [false, true] {
        let pass = if backward { "forward+backward" } else { "forward" };
        let mut group = criterion.benchmark_group(format!("scan/{pass}"));
        group.sample_size(10).measurement_time(Duration::from_secs(1));
        group.warm_up_time(Duration::from_millis(300));
        for (heads, time) in [1, 8].into_iter().flat_map(|heads| TIMES.map(|time| (heads, time))) {
            let inputs = [numbers(time, heads, -0.1, &device), numbers(time, heads, 0.0, &device)];
            let memory = Tensor::zeros([1, heads, CHANNELS / heads, 1], &device);
            group.throughput(Throughput::Elements(time as u64));
            for (name, on) in [("kernel", true), ("tensors", false)] {
                if !on && backward && time > LONGEST_TENSORS {
                    continue;
                }
                kernels::enable(on);
                let run = |[log_a, u]: [Tensor<4>; 2]| {
                    engine::run(System::direct(log_a, u), memory.clone(), Form::Auto).expect("it runs")
                };
                group.bench_function(BenchmarkId::new(format!("{name}-{heads}-heads"), time), |bencher| {
                    bencher.iter(|| {
                        if backward {
                            let leaves = inputs.clone().map(|x| x.autodiff().require_grad());
                            let grads = run(leaves.clone()).0.sum().backward();
                            black_box(leaves.map(|leaf| leaf.grad(&grads)));
                        } else {
                            black_box(run(inputs.clone()));
                        }
                        finish(&device);
                    });
                });
            }
        }
        group.finish();
    }
    kernels::enable(true);
}

criterion_group!(benches, scan);
criterion_main!(benches);
