//! Convolutions of several sequences in one launch, without gradients: two of many tokens, three of few whose inputs are
//! parts of one buffer. Devices promise eight buffers, and every convolution takes some of its own.

use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::forward::{convolve, keep};
use super::{TOKENS, WIDTH};
use crate::kernels::conv::Read;
use crate::kernels::cube::buffer::{ALIGNED, dims, empty, offset_from, part_of};

/// Tokens up to which outputs share a buffer with the last inputs, which a state keeps.
const FEW: usize = TOKENS;

/// The outputs of every convolution, and its last inputs; `None` where they are not for one launch.
pub(in crate::kernels) fn convolve_several(reads: &[Read<CubeBackend>]) -> Option<Vec<[CubeTensor; 2]>> {
    let first = reads.first()?;
    let ([b, _, t, _], [.., taps]) = (dims(&first.x), dims(&first.weight));
    let alike = |read: &Read<CubeBackend>| {
        let ([rows, _, tokens, _], [.., wide]) = (dims(&read.x), dims(&read.weight));
        let options = read.options;
        [rows, tokens, wide] == [b, t, taps] && !options.bias && options.silu == first.options.silu
    };
    match reads {
        _ if taps < 2 || !reads.iter().all(alike) => None,
        [one, two] => Some(convolve_two([one, two])),
        [one, two, three] if t <= FEW => convolve_three([one, two, three]),
        _ => None,
    }
}

/// Where parts of a buffer begin that have so many numbers each, and where the last one ends.
fn places<const N: usize>(counts: [usize; N]) -> ([usize; N], usize) {
    let mut end = 0usize;
    let starts = counts.map(|count| {
        let start = end.next_multiple_of(ALIGNED);
        end = start + count;
        start
    });
    (starts, end)
}

fn cubes(channels: usize, t: usize, b: usize) -> CubeCount {
    CubeCount::Static((channels as u32).div_ceil(WIDTH), t.div_ceil(TOKENS) as u32, b as u32)
}

fn convolve_two([one, two]: [&Read<CubeBackend>; 2]) -> Vec<[CubeTensor; 2]> {
    let ([b, _, t, c], [.., d, taps]) = (dims(&one.x), dims(&two.weight));
    let (y_at, y_end) = places([b * t * c, b * t * d]);
    let (last_at, last_end) = places([b * (taps - 1) * c, b * (taps - 1) * d]);
    let (y, last) = (empty(&one.x, &[y_end]), empty(&one.x, &[last_end]));
    two_kernel::launch(
        &y.client,
        cubes(c + d, t, b),
        CubeDim::new_1d(WIDTH),
        one.x.clone().into_tensor_arg(),
        two.x.clone().into_tensor_arg(),
        one.tail.clone().into_tensor_arg(),
        two.tail.clone().into_tensor_arg(),
        one.weight.clone().into_tensor_arg(),
        two.weight.clone().into_tensor_arg(),
        y.clone().into_tensor_arg(),
        last.clone().into_tensor_arg(),
        y_at[1],
        last_at[1],
        taps,
        one.options.silu,
    );
    let part = |i: usize, c: usize| {
        [part_of(&y, y_at[i], [b, 1, t, c]), part_of(&last, last_at[i], [b, 1, taps - 1, c])]
    };
    vec![part(0, c), part(1, d)]
}

fn convolve_three(reads: [&Read<CubeBackend>; 3]) -> Option<Vec<[CubeTensor; 2]>> {
    let ([b, _, t, _], [.., taps]) = (dims(&reads[0].x), dims(&reads[0].weight));
    let channels = reads.map(|read| dims(&read.x)[3]);
    let side_by_side = |read: &&Read<CubeBackend>| {
        let (strides, c) = (read.x.meta.strides(), dims(&read.x)[3]);
        (c == 1 || strides[3] == 1) && (t == 1 || strides[2] == c) && (b == 1 || strides[0] == t * c)
    };
    if !reads.iter().all(side_by_side) {
        return None;
    }
    let first = &reads[0].x;
    let [second, third] = [1, 2].map(|i| offset_from(first, &reads[i].x));
    let (second, third) = (second?, third?);
    let end = [0, second, third].iter().zip(channels).map(|(at, c)| at + b * t * c).max()?;
    let [[p, p_last], [q, q_last], [r, r_last]] =
        [0, 1, 2].map(|i| [t, taps - 1].map(|rows| b * rows * channels[i]));
    let (at, size) = places([p, p_last, q, q_last, r, r_last]);
    let out = empty(first, &[size]);
    three_kernel::launch(
        &out.client,
        cubes(channels.iter().sum(), t, b),
        CubeDim::new_1d(WIDTH),
        part_of(first, 0, [end]).into_tensor_arg(),
        reads[0].tail.clone().into_tensor_arg(),
        reads[1].tail.clone().into_tensor_arg(),
        reads[2].tail.clone().into_tensor_arg(),
        reads[0].weight.clone().into_tensor_arg(),
        reads[1].weight.clone().into_tensor_arg(),
        reads[2].weight.clone().into_tensor_arg(),
        out.clone().into_tensor_arg(),
        t,
        second,
        third,
        at[1],
        at[2],
        at[3],
        at[4],
        at[5],
        taps,
        reads[0].options.silu,
    );
    let part = |i: usize| {
        let c = channels[i];
        [part_of(&out, at[2 * i], [b, 1, t, c]), part_of(&out, at[2 * i + 1], [b, 1, taps - 1, c])]
    };
    Some(vec![part(0), part(1), part(2)])
}

#[cube(launch)]
#[allow(clippy::too_many_arguments, reason = "a kernel's bindings")]
fn two_kernel(
    x: &Tensor<f32>,
    z: &Tensor<f32>,
    x_tail: &Tensor<f32>,
    z_tail: &Tensor<f32>,
    x_weight: &Tensor<f32>,
    z_weight: &Tensor<f32>,
    y: &mut Tensor<f32>,
    last: &mut Tensor<f32>,
    y_at: usize,
    last_at: usize,
    #[comptime] taps: usize,
    #[comptime] silu: bool,
) {
    let at = ABSOLUTE_POS_X as usize;
    let row = CUBE_POS_Z as usize;
    let time = x.shape(2);
    let (channels, others) = (x.shape(3), z.shape(3));
    let early = row * comptime!(taps - 1);
    let none = f32::new(0.0);
    if at < channels {
        let (start, step) = (row * x.stride(0) + at * x.stride(3), x.stride(2));
        let to = row * time * channels + at;
        convolve(x, start, step, x_tail, x_weight, none, y, to, channels, time, row, at, taps, TOKENS, silu);
        keep(x, start, step, x_tail, last, early * channels + at, channels, time, row, at, taps);
    }
    if at >= channels && at < channels + others {
        let c = at - channels;
        let (start, step) = (row * z.stride(0) + c * z.stride(3), z.stride(2));
        let to = y_at + row * time * others + c;
        convolve(z, start, step, z_tail, z_weight, none, y, to, others, time, row, c, taps, TOKENS, silu);
        keep(z, start, step, z_tail, last, last_at + early * others + c, others, time, row, c, taps);
    }
}

/// `x` holds the inputs of all, the later ones from `second` and `third` on; `out` the outputs and the last inputs of each.
#[cube(launch)]
#[allow(clippy::too_many_arguments, reason = "a kernel's bindings")]
fn three_kernel(
    x: &Tensor<f32>,
    tail: &Tensor<f32>,
    second_tail: &Tensor<f32>,
    third_tail: &Tensor<f32>,
    weight: &Tensor<f32>,
    second_weight: &Tensor<f32>,
    third_weight: &Tensor<f32>,
    out: &mut Tensor<f32>,
    time: usize,
    second: usize,
    third: usize,
    last: usize,
    second_y: usize,
    second_last: usize,
    third_y: usize,
    third_last: usize,
    #[comptime] taps: usize,
    #[comptime] silu: bool,
) {
    let at = ABSOLUTE_POS_X as usize;
    let from_second = weight.shape(2);
    let from_third = from_second + second_weight.shape(2);
    if at < from_second {
        one_of(x, 0usize, tail, weight, out, 0usize, last, time, at, taps, silu);
    }
    if at >= from_second && at < from_third {
        let c = at - from_second;
        one_of(x, second, second_tail, second_weight, out, second_y, second_last, time, c, taps, silu);
    }
    if at >= from_third && at < from_third + third_weight.shape(2) {
        let c = at - from_third;
        one_of(x, third, third_tail, third_weight, out, third_y, third_last, time, c, taps, silu);
    }
}

/// Channel `c` of a sequence whose rows lie side by side.
#[cube]
#[allow(clippy::too_many_arguments, reason = "where a sequence lies")]
fn one_of(
    x: &Tensor<f32>,
    x_at: usize,
    tail: &Tensor<f32>,
    weight: &Tensor<f32>,
    out: &mut Tensor<f32>,
    y_at: usize,
    last_at: usize,
    time: usize,
    c: usize,
    #[comptime] taps: usize,
    #[comptime] silu: bool,
) {
    let row = CUBE_POS_Z as usize;
    let channels = weight.shape(2);
    let from = row * time * channels + c;
    let start = x_at + from;
    let to = last_at + row * comptime!(taps - 1) * channels + c;
    let none = f32::new(0.0);
    convolve(
        x,
        start,
        channels,
        tail,
        weight,
        none,
        out,
        y_at + from,
        channels,
        time,
        row,
        c,
        taps,
        TOKENS,
        silu,
    );
    keep(x, start, channels, tail, out, to, channels, time, row, c, taps);
}

#[cfg(test)]
mod tests {
    use burn::tensor::Tensor as Burn;

    use crate::kernels::conv::{run, run_several};
    use crate::kernels::linear::{Map, project};
    use crate::testing::{Draw, error, graphics, numbers};

    /// Sequence, tail and weight of one convolution.
    type Inputs = (Burn<3>, Burn<3>, Burn<2>);

    /// Whether all were one launch, of which each must be what it is alone.
    fn is_each_alone(all: &[Inputs], silu: bool) -> bool {
        let Some(found) = run_several(all.to_vec(), silu) else { return false };
        assert_eq!(found.len(), all.len());
        for ((x, tail, weight), found) in all.iter().zip(found) {
            let (y, last) = run(x.clone(), tail.clone(), weight.clone(), None, silu, true);
            for (found, expected) in found.into_iter().zip([y, last.expect("it was wanted")]) {
                assert_eq!(found.dims(), expected.dims());
                assert!(error(&numbers(found), &numbers(expected)) <= 1e-6, "{:?} {silu}", x.dims());
            }
        }
        true
    }

    #[test]
    fn two_are_each_alone() {
        for device in graphics() {
            for (b, t, widths, taps) in
                [(1, 1, [1, 1], 2), (2, 3, [70, 33], 4), (1, 40, [64, 200], 3), (3, 17, [5, 64], 9)]
            {
                let mut draw = Draw::new(t as u64);
                let all = widths.map(|c| {
                    // Rows that do not lie side by side.
                    let x = draw.tensor::<3>([t, b, c], -1.0, 1.0).to_device(&device).swap_dims(0, 1);
                    let tail = draw.tensor::<3>([b, taps - 1, c], -1.0, 1.0).to_device(&device);
                    (x, tail, draw.tensor::<2>([c, taps], -1.0, 1.0).to_device(&device))
                });
                assert!(is_each_alone(&all, true) && is_each_alone(&all, false));
                let mut other = all.clone();
                other[1].2 = draw.tensor::<2>([widths[1], taps + 1], -1.0, 1.0).to_device(&device);
                assert!(!is_each_alone(&other, true));
                other[1] = all[1].clone();
                other[1].0 = all[1].0.clone().autodiff().require_grad();
                assert!(!is_each_alone(&other, true));
            }
        }
    }

    #[test]
    fn three_parts_of_a_buffer_are_each_alone() {
        for device in graphics() {
            for (b, t, widths, taps) in
                [(1, 1, [1, 1, 1], 2), (1, 1, [128, 64, 33], 4), (2, 2, [9, 70, 128], 3)]
            {
                let mut draw = Draw::new(taps as u64);
                let n = 12;
                let x = draw.tensor::<2>([b * t, n], -1.0, 1.0).to_device(&device);
                let maps = widths.map(|width| Map {
                    weight: draw.tensor([n, width], -1.0, 1.0).to_device(&device),
                    biases: Vec::new(),
                    first: 0,
                    width,
                    then: None,
                });
                let projected = project(&x, &maps).expect("it is for the kernel");
                let with = |x: Burn<2>| {
                    let c = x.dims()[1];
                    let tail =
                        Draw::new(c as u64).tensor::<3>([b, taps - 1, c], -1.0, 1.0).to_device(&device);
                    let weight = Draw::new(c as u64 + 1).tensor::<2>([c, taps], -1.0, 1.0).to_device(&device);
                    (x.reshape([b, t, c]), tail, weight)
                };
                let all: Vec<Inputs> = projected.into_iter().map(with).collect();
                assert!(is_each_alone(&all, true) && is_each_alone(&all, false));
                // Tails as the kernel makes them are parts of a buffer themselves.
                let moved = run_several(all.clone(), true).expect("it is for the kernel");
                let next: Vec<Inputs> = (all.iter().zip(moved))
                    .map(|((x, _, weight), [_, last])| (x.clone(), last, weight.clone()))
                    .collect();
                assert!(is_each_alone(&next, true));
                let mut apart = all.clone();
                apart[2].0 = apart[2].0.clone() * 2.0;
                assert!(!is_each_alone(&apart, true));
            }
        }
    }
}
