//! The short causal convolution with SiLU, 512 channels, width 4, batch 1: the kernel against the tensor form, forward
//! and with gradients.
//!
//! Floor: memory. 8 bytes per token and channel forward, 20 with gradients: 34 MB and 84 MB at 8,192 tokens.

use std::hint::black_box;
use std::time::Duration;

use burn::tensor::{Tensor, TensorData};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use seqzoo_bench::{finish, open_device};
use seqzoo_layers::nn::CausalConvConfig;
use seqzoo_layers::{Init, kernels};

const CHANNELS: usize = 512;
const TIMES: [usize; 4] = [1, 512, 2048, 8192];

fn conv(criterion: &mut Criterion) {
    let device = open_device().expect("SEQZOO_BENCH_DEVICE names a device of this build");
    for backward in [false, true] {
        let pass = if backward { "forward+backward" } else { "forward" };
        let mut group = criterion.benchmark_group(format!("conv/{pass}"));
        group.sample_size(10).measurement_time(Duration::from_secs(1));
        group.warm_up_time(Duration::from_millis(300));
        let device = if backward { device.clone().autodiff() } else { device.clone() };
        let layer = CausalConvConfig::default().init(CHANNELS, &mut Init::new(0, &device));
        for time in TIMES {
            let numbers: Vec<f32> = (0..time * CHANNELS).map(|i| (i as f32 * 0.7391).sin()).collect();
            let x = Tensor::<3>::from_data(TensorData::new(numbers, [1, time, CHANNELS]), &device);
            group.throughput(Throughput::Elements(time as u64));
            for (name, on) in [("kernel", true), ("tensors", false)] {
                kernels::enable(on);
                group.bench_function(BenchmarkId::new(name, time), |bencher| {
                    bencher.iter(|| {
                        let x = if backward { x.clone().require_grad() } else { x.clone() };
                        let (y, _) = layer.forward(x.clone(), layer.initial_state(1), None);
                        if backward {
                            let grads = y.sum().backward();
                            black_box((x.grad(&grads), layer.weight.val().grad(&grads)));
                        } else {
                            black_box(y);
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

criterion_group!(benches, conv);
criterion_main!(benches);
