//! Running logarithms of sums on the CPU, `z_t = log(e^{z_0} + Σ_{s ≤ t} e^{x_s})`, in one pass over the tokens and one back:
//!
//! ```text
//! z_t = max(z_{t-1}, x_t) + log(1 + e^{-|z_{t-1} - x_t|})
//! D ← D + Dz_t,   Dx_t = e^{x_t - z_t} D,   D ← e^{z_{t-1} - z_t} D
//! ```
//!
//! Floor: 8 bytes per number in `f32` forward, 16 back. Tensor operations would double the reach of every entry
//! `log₂ T` times.

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::{DType, Tensor};

use super::gradient::{self, track};
use super::lanes::{part, put_part};
use super::room::Room;
use super::shares::{CHANNELS, Share, Target, for_all};
use super::vector::{LANES, Vector, block_by_block, log_1p, vectors};
use super::view::{Double, Number, Primitive, View, fits, view};

/// `z_0` and all after it: `[b, h, t + 1, m]`, from `x: [b, h, t, m]` and `start: [b, h, 1, m]`; `None` where no kernel runs
/// these.
pub(crate) fn run(x: &Tensor<4>, start: &Tensor<4>) -> Option<Tensor<4>> {
    let [b, h, t, m] = x.dims();
    let fit = fits(x)
        && [b, h, t, m].iter().all(|&size| size > 0)
        && start.dims() == [b, h, 1, m]
        && start.dtype() == x.dtype();
    if !fit {
        return None;
    }
    let [x, start] = [x, start].map(|x| x.clone().into_dispatch());
    Some(Tensor::from_dispatch(<Dispatch as LogSum>::log_sum(x, start)))
}

/// The operation as backends see it.
#[backend_extension(Flex: cfg(feature = "flex"), Autodiff)]
pub(crate) trait LogSum: Backend {
    /// See [`run`].
    fn log_sum(x: FloatTensor<Self>, start: FloatTensor<Self>) -> FloatTensor<Self>;
}

/// A backend's way back.
trait Passes: LogSum {
    /// Gradients of `x` and of the start, from `x`, the output and its gradient.
    fn backward(given: [&FloatTensor<Self>; 3]) -> [FloatTensor<Self>; 2];
}

impl LogSum for Flex {
    fn log_sum(x: Primitive, start: Primitive) -> Primitive {
        match x.dtype() {
            DType::F64 => forward_in::<Double>(&x, &start),
            _ => forward_in::<f32>(&x, &start),
        }
    }
}

impl Passes for Flex {
    fn backward(given: [&Primitive; 3]) -> [Primitive; 2] {
        match given[0].dtype() {
            DType::F64 => backward_in::<Double>(given),
            _ => backward_in::<f32>(given),
        }
    }
}

/// What the backward pass starts from.
#[derive(Clone, Debug)]
struct Saved<B: Backend> {
    x: FloatTensor<B>,
    z: FloatTensor<B>,
}

impl<B: Passes> gradient::Saved<B, 2> for Saved<B> {
    fn gradients(self, dz: FloatTensor<B>, _wanted: [bool; 2]) -> [Option<FloatTensor<B>>; 2] {
        B::backward([&self.x, &self.z, &dz]).map(Some)
    }
}

impl<B: Passes, C: CheckpointStrategy> LogSum for Autodiff<B, C> {
    fn log_sum(x: FloatTensor<Self>, start: FloatTensor<Self>) -> FloatTensor<Self> {
        let nodes = [x.node(), start.node()];
        let [x, start] = [x, start].map(|x| x.into_primitive());
        track::<B, C, _, 2>(nodes, |_| {
            let z = B::log_sum(x.clone(), start);
            (z.clone(), Saved { x, z })
        })
    }
}

#[allow(unsafe_code, reason = "see there")]
fn forward_in<E: Number + Vector>(x: &Primitive, start: &Primitive) -> Primitive {
    let (x, start) = (view::<E>(x), view::<E>(start));
    let dims @ [b, h, t, m] = x.dims;
    let mut z = Room::new(b * h * (t + 1) * m);
    let to = Target::new(&mut z, m);
    for_all(dims, 8, |_, share| sum(x, start, to, share));
    // SAFETY: every number has been written.
    E::tensor(unsafe { z.written() }, &[b, h, t + 1, m])
}

#[allow(unsafe_code, reason = "see there")]
fn backward_in<E: Number + Vector>([x, z, dz]: [&Primitive; 3]) -> [Primitive; 2] {
    let all = [x, z, dz].map(view::<E>);
    let dims @ [b, h, t, m] = all[0].dims;
    let (mut dx, mut dstart) = (Room::new(b * h * t * m), Room::new(b * h * m));
    let to = [Target::new(&mut dx, m), Target::new(&mut dstart, m)];
    for_all(dims, 8, |_, share| sum_back(all, to, share));
    // SAFETY: every number has been written.
    let [dx, dstart] = [dx, dstart].map(|room| unsafe { room.written() });
    [E::tensor(dx, &dims), E::tensor(dstart, &[b, h, 1, m])]
}

vectors! {
    fn sum = sum_channels(x: View<'_, E>, start: View<'_, E>, to: Target<E>, share: Share)
}

#[inline(always)]
#[allow(unsafe_code, reason = "jobs write different channels of the same rows")]
fn sum_channels<E: Vector, const FUSED: bool>(
    x: View<'_, E>,
    start: View<'_, E>,
    to: Target<E>,
    Share { head, first, count }: Share,
) {
    let (time, x) = (x.dims[2], x.head(head));
    let (mut row, mut space) = ([E::default(); CHANNELS], [E::default(); CHANNELS]);
    start.head(head).copy(0, first, &mut row[..count]);
    // Sums of many small numbers.
    let mut z = row.map(|z| z.to_f64());
    for i in 0..=time {
        // SAFETY: what `to` points to is borrowed by the pass, and this job's channels are its own.
        unsafe { to.row(head * (time + 1) + i, first, count) }.write_copy_of_slice(&row[..count]);
        if i == time {
            break;
        }
        let x = x.some(i, first, count, &mut space);
        for at in (0..count).step_by(LANES) {
            block_by_block();
            let (x, mut now): ([E; LANES], [f64; LANES]) = (part(x, at), part(&z, at));
            let mut rounded = x;
            for l in 0..LANES {
                let x = x[l].to_f64();
                let (above, below) = if x > now[l] { (x, now[l]) } else { (now[l], x) };
                let power = E::of(below - above).exponential::<FUSED>();
                now[l] = above + log_1p::<E, FUSED>(power).to_f64();
                rounded[l] = E::of(now[l]);
            }
            put_part(&now, &mut z, at);
            put_part(&rounded, &mut row, at);
        }
    }
}

vectors! {
    fn sum_back = sum_channels_back(all: [View<'_, E>; 3], to: [Target<E>; 2], share: Share)
}

#[inline(always)]
#[allow(unsafe_code, reason = "jobs write different channels of the same rows")]
#[allow(clippy::needless_range_loop, reason = "fixed bounds, so that each block is in registers")]
fn sum_channels_back<E: Vector, const FUSED: bool>(
    all: [View<'_, E>; 3],
    [to_x, to_start]: [Target<E>; 2],
    Share { head, first, count }: Share,
) {
    let time = all[0].dims[2];
    let [x, z, dz] = all.map(|view| view.head(head));
    let [mut sum, mut dx, mut space, mut before_space, mut after_space, mut dz_space] =
        [[E::default(); CHANNELS]; 6];
    for i in (0..time).rev() {
        let x = x.some(i, first, count, &mut space);
        let before = z.some(i, first, count, &mut before_space);
        let (after, dz) =
            (z.some(i + 1, first, count, &mut after_space), dz.some(i + 1, first, count, &mut dz_space));
        for at in (0..count).step_by(LANES) {
            block_by_block();
            let (x, before): ([E; LANES], [E; LANES]) = (part(x, at), part(before, at));
            let (after, dz): ([E; LANES], [E; LANES]) = (part(after, at), part(dz, at));
            let (mut sums, mut by_x): ([E; LANES], [E; LANES]) = (part(&sum, at), x);
            for l in 0..LANES {
                let all = sums[l] + dz[l];
                by_x[l] = (x[l] - after[l]).exponential::<FUSED>() * all;
                sums[l] = (before[l] - after[l]).exponential::<FUSED>() * all;
            }
            put_part(&sums, &mut sum, at);
            put_part(&by_x, &mut dx, at);
        }
        // SAFETY: as in `sum_channels`.
        unsafe { to_x.row(head * time + i, first, count) }.write_copy_of_slice(&dx[..count]);
    }
    let dz = dz.some(0, first, count, &mut dz_space);
    for (sum, &dz) in sum.iter_mut().zip(dz) {
        *sum += dz;
    }
    // SAFETY: as in `sum_channels`.
    unsafe { to_start.row(head, first, count) }.write_copy_of_slice(&sum[..count]);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::system::scan::NEGATIVE;
    use crate::testing::{Draw, error, numbers, properties};

    /// Token by token.
    fn plain(x: &Tensor<4>, start: &Tensor<4>) -> Tensor<4> {
        let mut all = vec![start.clone()];
        for i in 0..x.dims()[2] {
            let (z, x) = (all[i].clone(), x.clone().narrow(2, i, 1));
            let apart = (z.clone() - x.clone()).abs();
            all.push(z.max_pair(x) + apart.neg().exp().log1p());
        }
        Tensor::cat(all, 2)
    }

    /// Values, and gradients of `x` and the start, weighed differently everywhere.
    fn everything(
        x: &Tensor<4>,
        start: &Tensor<4>,
        run: impl FnOnce(&Tensor<4>, &Tensor<4>) -> Tensor<4>,
    ) -> Vec<Vec<f64>> {
        let [x, start] = [x, start].map(|x| x.clone().autodiff().require_grad());
        let z = run(&x, &start);
        let cotangent = Draw::new(91).tensor::<4>(z.dims(), -1.0, 1.0).cast(z.dtype());
        let grads = (z.clone() * cotangent).sum().backward();
        // An empty memory's logarithm would be the largest of all.
        let [_, _, t, _] = x.dims();
        let mut all = vec![numbers(z.narrow(2, 1, t))];
        all.extend([x, start].map(|x| numbers(x.grad(&grads).expect("a gradient"))));
        all
    }

    fn check(x: &Tensor<4>, start: &Tensor<4>, case: &str) {
        let [x, start] = [x, start].map(|x| x.clone().cast(DType::F64));
        let expected = everything(&x, &start, plain);
        for (dtype, limits) in [(DType::F64, [1e-11; 2]), (DType::F32, [1e-5, 1e-4])] {
            let found = everything(&x.clone().cast(dtype), &start.clone().cast(dtype), |x, start| {
                run(x, start).expect("they are for the kernel")
            });
            for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let off = error(found, expected);
                assert!(off <= limits[i.min(1)], "{} of {case}: off by {off:e}", ["z", "dx", "dstart"][i]);
            }
        }
    }

    #[test]
    fn empty_memories_and_tokens_of_no_weight_are_nothing() {
        let x = Draw::new(3).tensor::<4>([2, 3, 40, 20], -8.0, 8.0);
        let nothing = Tensor::full([2, 3, 1, 20], NEGATIVE, &x.device());
        check(&x, &nothing, "an empty memory");
        let padded = Tensor::cat(vec![x.clone(), nothing.clone(), x], 2);
        check(&padded, &nothing, "padding");
    }

    proptest! {
        #![proptest_config(properties(24))]

        #[test]
        fn it_is_the_sum_of_every_prefix(
            dims in [1usize..3, 1usize..3, 1usize..70, 1usize..40],
            (scale, start) in (0.1f64..30.0, -40.0f64..40.0),
            seed in any::<u64>(),
        ) {
            let mut draw = Draw::new(seed);
            let [b, h, t, m] = dims;
            // Channels behind tokens, too.
            let x = draw.tensor::<4>([b, h, m, t], -scale, scale).swap_dims(2, 3);
            let start = draw.tensor::<4>([b, h, 1, m], start, start + 1.0);
            check(&x, &start, &format!("{dims:?}"));
        }
    }

    /// More channels than a job has.
    #[test]
    fn wide_rows_are_several_jobs() {
        let mut draw = Draw::new(4);
        check(&draw.tensor([1, 1, 9, 530], -3.0, 3.0), &draw.tensor([1, 1, 1, 530], -3.0, 3.0), "wide rows");
    }

    #[test]
    fn it_declines_what_it_cannot_do() {
        let x = |dims| Tensor::<4>::zeros(dims, &burn::tensor::Device::flex());
        assert!(run(&x([1, 2, 3, 4]), &x([1, 2, 1, 4])).is_some());
        assert!(run(&x([1, 2, 3, 4]), &x([1, 2, 1, 3])).is_none());
        assert!(run(&x([1, 2, 0, 4]), &x([1, 2, 1, 4])).is_none());
        assert!(run(&x([1, 2, 3, 4]), &x([1, 2, 1, 4]).cast(DType::F64)).is_none());
    }
}
