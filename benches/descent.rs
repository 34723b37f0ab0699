//! Memories that learn by gradient descent, without the layers around them: TTT's, 4 heads of 64, mini-batches of 16,
//! batch 1: the kernel, the dual form in tensor operations and the recurrence, forward and with gradients.
//!
//! | group | weights of a head | floor: forward | with gradients |
//! | --- | --- | --- | --- |
//! | `linear` | 65 × 64 | 0.12 MFLOP | 0.4 MFLOP |
//! | `mlp` | 65 × 256 and 257 × 64 | 1.0 MFLOP | 3.8 MFLOP |
//!
//! The floor is the products per token with all heads: per weight 2 operations for each of three (the first layer) or four
//! products forward (what it makes of keys and of queries, the write, and the error behind all layers but the first), and for
//! 8 or 11 more with gradients, which compute the chunk once more; what is quadratic in a mini-batch is a tenth of it.

use std::cell::LazyCell;
use std::hint::black_box;
use std::time::Duration;

use burn::tensor::{Device, Tensor, TensorData};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use seqzoo_bench::{finish, open_device};
use seqzoo_layers::miras::{TttFast, TttMemory, TttTokens};
use seqzoo_layers::system::Form;
use seqzoo_layers::{Init, kernels};

const HEADS: usize = 4;
const HEAD_DIM: usize = 64;
const MINI_BATCH: usize = 16;
const TIMES: [usize; 2] = [512, 2048];

/// How it is run, and the longest sequence that it is tried on.
const WAYS: [(&str, Form, bool, usize); 3] = [
    ("kernel", Form::Auto, true, 2048),
    ("tensors", Form::Auto, false, 2048),
    ("recurrent", Form::Recurrent, false, 512),
];

/// `q`, `k`, `v` and the learning rates.
fn inputs(time: usize, device: &Device) -> [Tensor<4>; 4] {
    let tensor = |width: usize, shift: f32, scale: f32| {
        let count = HEADS * time * width;
        let values = (0..count).map(|i| (i as f32 * 0.7391 + shift).sin() * scale).collect::<Vec<f32>>();
        Tensor::<4>::from_data(TensorData::new(values, [1, HEADS, time, width]), device)
    };
    let key = |shift| tensor(HEAD_DIM, shift, 0.5);
    [key(0.0), key(1.0), key(2.0), tensor(1, 3.0, 0.001).abs()]
}

fn run(memory: &TttMemory, [q, k, v, eta]: [Tensor<4>; 4], start: &TttFast, form: Form) -> Tensor<4> {
    let scale = eta.ones_like().detach();
    memory.learn(TttTokens { q, k, v, eta, scale }, start.clone(), MINI_BATCH, form).0
}

fn descent(criterion: &mut Criterion) {
    let device = open_device().expect("SEQZOO_BENCH_DEVICE names a device of this build");
    for (name, hidden) in [("linear", None), ("mlp", Some(4 * HEAD_DIM))] {
        let memory = TttMemory::new(HEADS, HEAD_DIM, hidden, true, &mut Init::new(1, &device));
        for backward in [false, true] {
            let pass = if backward { "forward+backward" } else { "forward" };
            let mut group = criterion.benchmark_group(format!("{name}/{pass}"));
            group.sample_size(10).measurement_time(Duration::from_secs(1));
            group.warm_up_time(Duration::from_millis(300));
            for time in TIMES {
                let inputs = LazyCell::new(|| inputs(time, &device));
                let start = memory.initial(1);
                let start =
                    TttFast { start: start.start.into_iter().map(Tensor::detach).collect(), sum: None };
                group.throughput(Throughput::Elements(time as u64));
                for (way, form, on, longest) in WAYS {
                    if time > longest {
                        continue;
                    }
                    kernels::enable(on);
                    group.bench_function(BenchmarkId::new(way, time), |bencher| {
                        bencher.iter(|| {
                            if backward {
                                let leaves = inputs.clone().map(|x| x.autodiff().require_grad());
                                let grads = run(&memory, leaves.clone(), &start, form).sum().backward();
                                black_box(leaves.map(|x| x.grad(&grads)));
                            } else {
                                black_box(run(&memory, inputs.clone(), &start, form));
                            }
                            finish(&device);
                        });
                    });
                }
            }
            group.finish();
        }
    }
    kernels::enable(true);
}

criterion_group!(benches, descent);
criterion_main!(benches);
