//! The tensor operations that layers are made of give on every device what they give on Flex. Where one
//! does not, a broken mixer on that device is not the mixer's fault. Graphics devices run when
//! `SEQZOO_VULKAN=1` says that a driver is there (`cargo xtask test` installs one in software).

use std::panic::catch_unwind;

use burn::tensor::{Device, IndexingUpdateOp, Int, Tensor, TensorData, activation};
use seqzoo_layers::{Value, device};

/// An operation by name: what it computes on a device.
type Case = (&'static str, fn(&Device) -> Vec<f64>);

/// Smooth numbers of both signs without ties, the same on every device.
fn numbers<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    let length: usize = shape.iter().product();
    let values: Vec<f32> = (0..length).map(|i| (i as f32 * 0.7391 + 0.3).sin() * 1.5).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

fn indices<const D: usize>(values: &[i64], shape: [usize; D], device: &Device) -> Tensor<D, Int> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), device)
}

fn read(values: impl Into<Value>) -> Vec<f64> {
    values.into().to_f64().expect("float tensors can be read")
}

/// Value of `f`'s sum of squares and its gradient, on an autodiff device.
fn gradient<const D: usize>(
    shape: [usize; D],
    device: &Device,
    f: impl Fn(Tensor<D>) -> Tensor<D>,
) -> Vec<f64> {
    let x = numbers(shape, &device.clone().autodiff()).require_grad();
    let grads = f(x.clone()).square().sum().backward();
    read(Value::of(x.grad(&grads).expect("the input took part")))
}

const CASES: &[Case] = &[
    ("exp", |d| read(numbers([3, 5], d).exp())),
    ("log1p of exp", |d| read(numbers([3, 5], d).exp().log1p())),
    ("powi", |d| read(numbers([3, 5], d).powi_scalar(3))),
    ("sqrt of square", |d| read(numbers([3, 5], d).square().add_scalar(1e-6).sqrt())),
    ("sigmoid of large numbers", |d| read(activation::sigmoid(numbers([3, 5], d).mul_scalar(60.0)))),
    ("exp of hugely negative", |d| read((numbers([3, 5], d).abs().neg() * 1e30).exp())),
    ("silu, gelu, tanh", |d| {
        let x = numbers([3, 5], d);
        read(activation::silu(x.clone()) + activation::gelu(x.clone()) + x.tanh())
    }),
    ("softmax with masked scores", |d| {
        let mask = indices(&[0, 0, 1, 1, 1], [1, 5], d).float() * -1e30;
        read(activation::softmax(numbers([3, 5], d) + mask, 1))
    }),
    ("sum, mean and max along an axis", |d| {
        let x = numbers([4, 6, 5], d);
        read(x.clone().sum_dim(1) + x.clone().mean_dim(1) + x.max_dim(1))
    }),
    ("sum over the first axis of a turned tensor, rank 3", |d| {
        read(numbers([2, 4, 3], d).swap_dims(1, 2).sum_dim(0))
    }),
    ("sum over the second axis of a turned tensor", |d| {
        read(numbers([2, 2, 4, 3], d).swap_dims(2, 3).sum_dim(1))
    }),
    ("sum over the last axis of a turned tensor", |d| {
        read(numbers([2, 2, 4, 3], d).swap_dims(2, 3).sum_dim(3))
    }),
    ("sum over an inner axis of a turned tensor", |d| {
        read(numbers([2, 2, 4, 3], d).swap_dims(1, 2).sum_dim(2))
    }),
    ("sum over the first axis of heads beside time", |d| {
        read(numbers([2, 5, 4, 3], d).swap_dims(1, 2).sum_dim(0))
    }),
    ("sum of 10,000", |d| read(numbers([10_000], d).sum())),
    ("matmul", |d| read(numbers([2, 3, 33, 17], d).matmul(numbers([2, 3, 17, 40], d)))),
    ("matmul of one row", |d| read(numbers([2, 1, 48], d).matmul(numbers([2, 48, 20], d)))),
    ("matmul of one column", |d| read(numbers([2, 20, 48], d).matmul(numbers([2, 48, 1], d)))),
    ("matmul of a transpose", |d| {
        read(numbers([2, 3, 9, 8], d).swap_dims(2, 3).matmul(numbers([2, 3, 9, 8], d)))
    }),
    ("matmul broadcast over the batch", |d| read(numbers([4, 3, 9, 8], d).matmul(numbers([1, 1, 8, 8], d)))),
    ("matmul of rank 5", |d| read(numbers([2, 2, 3, 16, 8], d).matmul(numbers([2, 2, 3, 8, 16], d)))),
    ("cumsum", |d| read(numbers([2, 70, 3], d).cumsum(1))),
    ("cat", |d| read(Tensor::cat(vec![numbers([2, 3, 4], d), numbers([2, 5, 4], d)], 1))),
    ("cat with nothing", |d| read(Tensor::cat(vec![numbers([2, 0, 4], d), numbers([2, 5, 4], d)], 1))),
    ("stack", |d| read(Tensor::stack::<3>(vec![numbers([2, 3], d), numbers([2, 3], d)], 1))),
    ("tensor without elements", |d| read(numbers([2, 0, 4], d))),
    ("slice of nothing", |d| read(numbers([2, 5, 4], d).slice([0..2, 5..5, 0..4]))),
    ("zeros without elements, added", |d| read(Tensor::<3>::zeros([2, 0, 4], d) + numbers([2, 0, 4], d))),
    ("sum over no elements", |d| read(numbers([2, 0, 4], d).sum_dim(1))),
    ("select", |d| read(numbers([4, 3, 2], d).select(1, indices(&[2, 0, 2], [3], d)))),
    ("select nothing", |d| read(numbers([4, 3, 2], d).select(1, indices(&[], [0], d)))),
    ("select_assign, adding twice", |d| {
        let update = numbers([4, 3], d);
        let at = indices(&[2, 0, 2], [3], d);
        read(numbers([4, 5], d).select_assign(1, at, update, IndexingUpdateOp::Add))
    }),
    ("gather", |d| read(numbers([2, 4], d).gather(1, indices(&[3, 0, 1, 1, 2, 0], [2, 3], d)))),
    ("scatter", |d| {
        let at = indices(&[3, 0, 1, 1, 2, 0], [2, 3], d);
        read(numbers([2, 4], d).scatter(1, at, numbers([2, 3], d), IndexingUpdateOp::Add))
    }),
    ("one-hot", |d| read(indices(&[1, 0, 3], [3], d).one_hot::<2>(4).float())),
    ("sort", |d| read(numbers([3, 9], d).sort(1))),
    ("argsort", |d| read(numbers([3, 9], d).argsort(1).float())),
    ("topk", |d| read(numbers([3, 9], d).topk(4, 1))),
    ("topk with indices", |d| {
        let (values, at) = numbers([3, 9], d).topk_with_indices(4, 1);
        read(values + at.float())
    }),
    ("argmax", |d| read(numbers([3, 9], d).argmax(1).float())),
    ("flip", |d| read(numbers([3, 4, 5], d).flip([1]))),
    ("tril", |d| read(numbers([2, 6, 6], d).tril(0))),
    ("triu", |d| read(numbers([2, 6, 6], d).triu(1))),
    ("eye", |d| read(Tensor::<2>::eye(7, d))),
    ("mask_fill", |d| {
        let x = numbers([3, 5], d);
        read(x.clone().mask_fill(x.lower_elem(0.0), -2.5))
    }),
    ("mask_where", |d| {
        let x = numbers([3, 5], d);
        read(x.clone().mask_where(x.clone().greater_elem(0.5), x.neg()))
    }),
    ("slice_assign", |d| read(numbers([3, 5], d).slice_assign([1..3, 2..4], numbers([2, 2], d)))),
    ("repeat and expand", |d| {
        read(numbers([2, 1, 4], d).expand([2, 3, 4]) + numbers([2, 1, 4], d).repeat_dim(1, 3))
    }),
    ("permute and reshape", |d| read(numbers([2, 3, 4, 5], d).permute([0, 2, 1, 3]).reshape([8, 15]))),
    ("broadcast of rank 5", |d| read(numbers([2, 1, 3, 1, 4], d) * numbers([2, 2, 1, 5, 1], d))),
    ("gradient of a gated matmul", |d| {
        let w = numbers([5, 5], d);
        gradient([3, 5], d, |x| activation::silu(x.clone().matmul(w.clone())) * x.exp())
    }),
    ("gradient of softmax", |d| gradient([3, 7], d, |x| activation::softmax(x, 1))),
    ("gradient of cumsum", |d| gradient([3, 7], d, |x| x.cumsum(1))),
    ("gradient of cat and narrow", |d| {
        gradient([3, 7], d, |x| Tensor::cat(vec![x.clone().narrow(1, 2, 5), x.narrow(1, 0, 2)], 1))
    }),
    ("gradient of select", |d| {
        gradient([3, 7], d, |x| {
            let at = indices(&[2, 0, 2], [3], &x.device().inner());
            x.select(1, at)
        })
    }),
    ("gradient of gather", |d| {
        gradient([2, 4], d, |x| {
            let at = indices(&[3, 0, 1, 1, 2, 0], [2, 3], &x.device().inner());
            x.gather(1, at)
        })
    }),
    ("gradient of topk", |d| gradient([3, 7], d, |x| x.topk_with_indices(3, 1).0)),
    ("gradient of max", |d| gradient([3, 7], d, |x| x.max_dim(1))),
    ("gradient of flip and tril", |d| gradient([6, 6], d, |x| x.flip([1]).tril(0))),
    ("gradient through expand", |d| gradient([3, 1], d, |x| x.expand([3, 4]))),
    ("gradient of an expanded left side of a matmul", |d| {
        let x = numbers([2, 2, 4, 5], d);
        gradient([1, 2, 3, 4], d, |w| w.expand([2, 2, 3, 4]).matmul(x.clone()))
    }),
    ("gradient of an expanded right side of a matmul", |d| {
        let x = numbers([2, 2, 5, 4], d);
        gradient([1, 2, 4, 3], d, |w| x.clone().matmul(w.expand([2, 2, 4, 3])))
    }),
    ("gradient through expand of rank 4", |d| {
        let x = numbers([2, 2, 3, 4], d);
        gradient([1, 2, 3, 4], d, |w| w.expand([2, 2, 3, 4]) * x.clone())
    }),
    // Summing a turned tensor of rank 4 over its first axis is wrong there, so a parameter is given to the rows
    // of a batch while it is flat.
    ("gradient of a parameter expanded while flat, turned", |d| {
        let x = numbers([2, 2, 4, 3], d);
        gradient([2, 3, 4], d, |w| {
            let rows = w.reshape([1, 24]).expand([2, 24]).reshape([2, 2, 3, 4]);
            (rows.swap_dims(2, 3) * x.clone()).reshape([4, 4, 3])
        })
    }),
];

/// Relative L2 distance; infinite when lengths differ or anything is not a number.
fn distance(found: &[f64], expected: &[f64]) -> f64 {
    if found.len() != expected.len() {
        return f64::INFINITY;
    }
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let gap = norm(&mut found.iter().zip(expected).map(|(f, e)| f - e));
    let gap = gap / norm(&mut expected.iter().copied()).max(1e-12);
    if expected.is_empty() { 0.0 } else { if gap.is_nan() { f64::INFINITY } else { gap } }
}

fn same_as_flex(name: &str) {
    let (flex, other) = (device::open("flex").unwrap(), device::open(name).unwrap());
    let mut broken = Vec::new();
    for (case, run) in CASES {
        let expected = run(&flex);
        let verdict = match catch_unwind(|| run(&other)) {
            Err(_) => Some("it panics".to_string()),
            Ok(found) => {
                let error = distance(&found, &expected);
                (error > 1e-5).then(|| format!("relative error {error:.1e}: {found:?}, not {expected:?}"))
            }
        };
        broken.extend(verdict.map(|why| format!("{case}: {why}")));
    }
    assert!(broken.is_empty(), "{} of {} differ:\n{}", broken.len(), CASES.len(), broken.join("\n"));
}

#[test]
fn every_operation_on_ndarray() {
    if device::available().contains(&"ndarray") {
        same_as_flex("ndarray");
    }
}

#[test]
fn every_operation_on_graphics_devices() {
    if std::env::var_os("SEQZOO_VULKAN").is_some() {
        let graphics = device::available().into_iter().filter(|name| ["vulkan", "wgpu"].contains(name));
        graphics.for_each(same_as_flex);
    }
}

#[test]
fn the_distance_sees_what_it_should() {
    assert!(distance(&[1.0, 2.0], &[1.0, 2.0]) < 1e-12);
    assert!(distance(&[1.0, f64::NAN], &[1.0, 2.0]).is_infinite());
    assert!(distance(&[1.0], &[1.0, 2.0]).is_infinite());
    assert!(distance(&[1.1, 2.0], &[1.0, 2.0]) > 1e-2);
}
