//! Decoding: the time of one more token after a prefix. Flat for a state of fixed size, rising for a cache.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use seqzoo_bench::{finish, layers, open_device, tokens};
use seqzoo_layers::system::{Form, Mixer};

fn decode(criterion: &mut Criterion) {
    let device = open_device().expect("SEQZOO_BENCH_DEVICE names a device of this build");
    for (name, layer) in layers(&device).expect("default configurations are valid") {
        let mut group = criterion.benchmark_group(format!("decode/{name}"));
        group.sample_size(20).measurement_time(Duration::from_secs(1));
        group.warm_up_time(Duration::from_millis(300));
        for prefix in [16, 256, 1024] {
            let x = tokens(prefix, &device);
            let token = x.clone().narrow(1, 0, 1).squeeze_dim::<2>(1);
            let read = layer.forward(x, layer.initial_state(1), Form::Auto);
            let (_, state) = read.expect("a prefix can be read");
            group.bench_function(BenchmarkId::new("step", prefix), |bencher| {
                bencher.iter(|| {
                    black_box(layer.step(token.clone(), state.clone()).expect("a token can be read"));
                    finish(&device);
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, decode);
criterion_main!(benches);
