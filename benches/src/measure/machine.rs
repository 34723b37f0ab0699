//! The machine's ceilings, through the same device as everything else.

use std::hint::black_box;

use burn::tensor::{Tensor, TensorData};
use seqzoo_layers::system::Cost;

use super::{Work, open, sync};
use crate::point::{Point, Task};
use crate::{Error, Result};

pub(super) fn work(point: &Point) -> Result<Work> {
    let (n, device) = (point.time, open(point)?);
    let numbers = |count: usize| (0..count).map(|i| (i % 97) as f32 * 0.01).collect::<Vec<f32>>();
    match point.task {
        Task::Matmul => {
            let matrix = || Tensor::<2>::from_data(TensorData::new(numbers(n * n), [n, n]), &device);
            let (a, b) = (matrix(), matrix());
            let cost =
                Cost { flops: 2.0 * (n * n * n) as f64, bytes: 12.0 * (n * n) as f64, ..Cost::default() };
            Ok(Work::new(cost, move || {
                black_box(a.clone().matmul(b.clone()));
                sync(&device)?;
                Ok(0)
            }))
        }
        Task::Copy => {
            let x = Tensor::<1>::from_data(TensorData::new(numbers(n), [n]), &device);
            let cost = Cost { flops: n as f64, bytes: 8.0 * n as f64, ..Cost::default() };
            Ok(Work::new(cost, move || {
                black_box(x.clone() + 1.0);
                sync(&device)?;
                Ok(0)
            }))
        }
        task => Err(Error::Measure(format!("{task} is measured on an architecture, not on the machine"))),
    }
}
