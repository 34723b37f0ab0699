//! Prefill: every form of every architecture on the same tokens. One group per architecture and length,
//! so that criterion prints the forms of one computation side by side.

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use seqzoo_bench::{finish, layers, open_device, tokens};
use seqzoo_layers::system::{Form, Mixer};

const FORMS: [Form; 4] = [Form::Recurrent, Form::Chunked { size: 64 }, Form::Parallel, Form::Auto];

fn forms(criterion: &mut Criterion) {
    let device = open_device().expect("SEQZOO_BENCH_DEVICE names a device of this build");
    for (name, layer) in layers(&device).expect("default configurations are valid") {
        for time in [256, 1024] {
            let mut group = criterion.benchmark_group(format!("forms/{name}/{time}"));
            group.throughput(Throughput::Elements(time as u64));
            group.sample_size(10).measurement_time(Duration::from_secs(2));
            group.warm_up_time(Duration::from_millis(500));
            let x = tokens(time, &device);
            for form in FORMS {
                group.bench_function(form.to_string(), |bencher| {
                    bencher.iter(|| {
                        let out = layer.forward(x.clone(), layer.initial_state(1), form);
                        black_box(out.expect("every form runs"));
                        finish(&device);
                    });
                });
            }
            group.finish();
        }
    }
}

criterion_group!(benches, forms);
criterion_main!(benches);
