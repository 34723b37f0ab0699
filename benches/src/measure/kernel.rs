//! A kernel without a layer around it, its tensor form, or its reference.

use std::hint::black_box;

use super::{Work, open, sync};
use crate::kernels::Kernel;
use crate::point::{Point, Task};
use crate::{Error, Result};

pub(super) fn work(point: &Point) -> Result<Work> {
    let unknown = || Error::Measure(format!("{} is unknown; `peers --list` prints all", point.subject));
    let (kernel, way) = Kernel::of(&point.subject).ok_or_else(unknown)?;
    let device = open(point)?;
    let inputs = kernel.inputs(point.batch, point.time, &device);
    let cost = kernel.cost(point.batch, point.time, point.task == Task::Train);
    match point.task {
        Task::Prefill => Ok(Work::new(cost, move || {
            black_box(kernel.run(&inputs, way)?);
            sync(&device)?;
            Ok(0)
        })),
        Task::Train => Ok(Work::new(cost, move || {
            black_box(kernel.gradients(&inputs, way)?);
            sync(&device)?;
            Ok(0)
        })),
        task => Err(Error::Measure(format!("{} does no {task}", point.subject))),
    }
}
