//! Linear recurrences without the layers around them, 8 heads of 64, batch 1: the kernels, the tensor form and one token
//! at a time, forward and with gradients.
//!
//! | group | who | floor: forward | with gradients |
//! | --- | --- | --- | --- |
//! | `diagonal` | GLA, RWKV-6, HGRN2 | 0.16 MFLOP | 0.66 MFLOP |
//! | `delta` | DeltaNet, gated DeltaNet | 0.39 MFLOP | 1.6 MFLOP |
//! | `delta-diagonal` | KDA, RWKV-7 | 0.39 MFLOP | 1.6 MFLOP |
//!
//! The floor is the products per token in blocks of 32 tokens, of all heads: with `n` channels and `c` tokens per block
//! `2 n (2 n + c)` per head for `diagonal` forward and `2 n (4 n + 4 c)` for the others, `2 n (6 n + 2.5 c)` and
//! `2 n (13 n + 12 c)` more for the gradients, which recompute the memory. At the 193 GFLOP/s that a large product
//! reaches on two cores of an Intel Xeon with AVX-512, 8,192 tokens of `delta` take 17 and 70 ms.

use std::hint::black_box;
use std::time::Duration;

use burn::tensor::{Device, Tensor, TensorData};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use seqzoo_bench::{finish, open_device};
use seqzoo_layers::kernels;
use seqzoo_layers::system::{Form, System, Transition, engine};

const HEADS: usize = 8;
const HEAD_DIM: usize = 64;
const TIMES: [usize; 5] = [512, 2048, 8192, 32_768, 65_536];

/// How it is run, and the longest sequence that it is tried on: forward, with gradients.
const WAYS: [(&str, Form, bool, [usize; 2]); 3] = [
    ("kernel", Form::Auto, true, [65_536, 65_536]),
    ("tensors", Form::Auto, false, [65_536, 8192]),
    ("recurrent", Form::Recurrent, false, [2048, 512]),
];

/// What a recurrence reads.
#[derive(Clone)]
struct Inputs {
    diagonal: bool,
    /// `q`, `k`, `v`, the logarithms of the decays and, with rank one, `a` and `b`
    tensors: Vec<Tensor<4>>,
}

impl Inputs {
    fn new(time: usize, diagonal: bool, rank_one: bool, device: &Device) -> Self {
        let tensor = |width: usize, shift: f32, scale: f32| {
            let count = HEADS * time * width;
            let values = (0..count).map(|i| (i as f32 * 0.7391 + shift).sin() * scale).collect::<Vec<f32>>();
            Tensor::<4>::from_data(TensorData::new(values, [1, HEADS, time, width]), device)
        };
        let key = |shift, scale| tensor(HEAD_DIM, shift, scale);
        let log = tensor(if diagonal { HEAD_DIM } else { 1 }, 3.0, 0.1).abs().neg();
        let mut tensors = vec![key(0.0, 0.2), key(1.0, 0.1), key(2.0, 0.2), log];
        if rank_one {
            tensors.extend([key(4.0, 0.1), key(5.0, 0.1)]);
        }
        Self { diagonal, tensors }
    }

    fn run(&self, form: Form, memory: &Tensor<4>) -> Tensor<4> {
        let [q, k, v, log, rank_one @ ..] = &*self.tensors else { unreachable!("made with four or more") };
        let log = log.clone();
        let transition = match rank_one {
            [a, b] => Transition::Householder { log_d: log, a: a.clone(), b: b.clone() },
            _ if self.diagonal => Transition::Diagonal { log_a: log },
            _ => Transition::Scalar { log_a: log.squeeze_dim(3) },
        };
        let system = System::outer(transition, q.clone(), k.clone(), v.clone());
        engine::run(system, memory.clone(), form).expect("it runs").0
    }
}

fn recurrences(criterion: &mut Criterion) {
    let device = open_device().expect("SEQZOO_BENCH_DEVICE names a device of this build");
    let memory = Tensor::zeros([1, HEADS, HEAD_DIM, HEAD_DIM], &device);
    for (name, diagonal, rank_one) in
        [("diagonal", true, false), ("delta", false, true), ("delta-diagonal", true, true)]
    {
        for backward in [false, true] {
            let pass = if backward { "forward+backward" } else { "forward" };
            let mut group = criterion.benchmark_group(format!("{name}/{pass}"));
            group.sample_size(10).measurement_time(Duration::from_secs(1));
            group.warm_up_time(Duration::from_millis(300));
            for time in TIMES {
                let inputs = Inputs::new(time, diagonal, rank_one, &device);
                group.throughput(Throughput::Elements(time as u64));
                for (way, form, on, longest) in WAYS {
                    if time > longest[usize::from(backward)] {
                        continue;
                    }
                    kernels::enable(on);
                    group.bench_function(BenchmarkId::new(way, time), |bencher| {
                        bencher.iter(|| {
                            if backward {
                                let mut leaves = inputs.clone();
                                leaves.tensors =
                                    leaves.tensors.into_iter().map(|x| x.autodiff().require_grad()).collect();
                                let grads = leaves.run(form, &memory).sum().backward();
                                black_box(leaves.tensors.iter().map(|x| x.grad(&grads)).collect::<Vec<_>>());
                            } else {
                                black_box(inputs.run(form, &memory));
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

criterion_group!(benches, recurrences);
criterion_main!(benches);
