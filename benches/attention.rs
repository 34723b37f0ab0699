//! Causal softmax attention without the layer around it, 8 heads of 64, batch 1: the kernel against the tensor form,
//! forward and with gradients.
//!
//! Floor: `2 t² h n` floating-point operations forward and 3.5 times that with gradients, of which a product of two
//! large matrices does 193 billion a second on 2 cores of an Intel Xeon in PyTorch. At 8,192 tokens that is 0.36 s and
//! 1.25 s; PyTorch's `scaled_dot_product_attention` takes 0.45 s forward.

use std::hint::black_box;
use std::time::Duration;

use burn::tensor::{Device, Tensor, TensorData};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use seqzoo_bench::{finish, open_device};
use seqzoo_layers::attention::attend;
use seqzoo_layers::kernels;
use seqzoo_layers::system::Form;

const HEADS: usize = 8;
const HEAD_DIM: usize = 64;

/// Lengths, and the longest one that the tensor form is tried on.
const TIMES: [usize; 5] = [512, 1024, 2048, 4096, 8192];
const LONGEST_TENSORS: usize = 4096;

fn heads(time: usize, shift: usize, device: &Device) -> Tensor<4> {
    let count = HEADS * time * HEAD_DIM;
    let numbers: Vec<f32> = (0..count).map(|i| ((i + shift) as f32 * 0.7391).sin()).collect();
    Tensor::from_data(TensorData::new(numbers, [1, HEADS, time, HEAD_DIM]), device)
}

fn attention(criterion: &mut Criterion) {
    let device = open_device().expect("SEQZOO_BENCH_DEVICE names a device of this build");
    for backward in [false, true] {
        let pass = if backward { "forward+backward" } else { "forward" };
        let mut group = criterion.benchmark_group(format!("attention/{pass}"));
        group.sample_size(10).measurement_time(Duration::from_secs(2));
        group.warm_up_time(Duration::from_millis(500));
        for time in TIMES {
            let inputs = [0, 1, 2].map(|shift| heads(time, shift, &device));
            let operations = 2 * time * time * HEADS * HEAD_DIM;
            let operations = if backward { operations * 7 / 2 } else { operations };
            group.throughput(Throughput::Elements(operations as u64));
            for (name, on) in [("kernel", true), ("tensors", false)] {
                if !on && time > LONGEST_TENSORS {
                    continue;
                }
                kernels::enable(on);
                group.bench_function(BenchmarkId::new(name, time), |bencher| {
                    bencher.iter(|| {
                        if backward {
                            let leaves = inputs.clone().map(|x| x.autodiff().require_grad());
                            let y = attend(leaves.clone(), None, Form::Auto).expect("it runs");
                            let grads = y.sum().backward();
                            black_box(leaves.map(|leaf| leaf.grad(&grads)));
                        } else {
                            black_box(attend(inputs.clone(), None, Form::Auto).expect("it runs"));
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

criterion_group!(benches, attention);
criterion_main!(benches);
