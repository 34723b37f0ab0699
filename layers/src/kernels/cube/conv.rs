//! [`conv`](crate::kernels::conv): a unit takes a channel and some tokens in a row, and keeps the last inputs at hand.
//!
//! Floor: memory, 8 bytes per token and channel forward, 12 backward, as on the CPU. Units of one cube take channels
//! side by side, so whole rows are read; what a unit reads twice, the `K - 1` rows before its own, is `(K - 1) / TOKENS`
//! of the input forward and `2 (K - 1) / rows` backward. Sums over tokens are made in two launches: of each unit's rows
//! in registers, and of those sums, which are fewer by the number of rows.

#![allow(clippy::collapsible_if, reason = "the outer one is decided when a kernel is compiled")]

mod several;

use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::buffer::{ALIGNED, dims, empty, part_of};
use super::functions::sigmoid;
use crate::kernels::conv::{Options, Passes, Read};

pub(in crate::kernels) use several::convolve_several;

/// Widest convolution: a unit keeps as many inputs at hand.
const TAPS: usize = 16;

/// Tokens of a unit, forward.
const TOKENS: usize = 16;

/// Units that keep a device busy.
const BUSY: usize = 1 << 16;

/// Channels of a cube.
const WIDTH: u32 = 64;

/// Units of a cube that add up a column.
const STRIPES: u32 = 16;

/// Columns of a cube that adds up.
const COLUMNS: u32 = 16;

/// Whether the kernel can run these: `x: [b, t, c]` and a convolution of width `taps`.
pub(in crate::kernels) fn convolves(x: &burn::tensor::Tensor<3>, taps: usize) -> bool {
    let [b, rows, c] = x.dims();
    let sums = (taps + 1).saturating_mul(c).div_ceil(COLUMNS as usize);
    taps <= TAPS && super::fits(x, b.max(rows.div_ceil(TOKENS)).max(sums))
}

/// Most tensors that share the channels of a launch's outputs.
const PARTS: usize = 3;

/// The outputs, in tensors of so many channels each, and the last inputs if they are to be `kept`; `None` for more
/// tensors than a launch has.
pub(in crate::kernels) fn convolve_parts(
    read: &Read<CubeBackend>,
    kept: bool,
    widths: &[usize],
) -> Option<(Vec<CubeTensor>, Option<CubeTensor>)> {
    let Read { x, tail, weight, bias, options } = read;
    let Options { bias: biased, silu } = *options;
    let ([b, _, t, c], [.., taps]) = (dims(x), dims(weight));
    if widths.len() > PARTS || widths.iter().sum::<usize>() != c || widths.contains(&0) {
        return None;
    }
    // Where each begins: its first channel, and the place of its first number.
    let (mut channel, mut place) = (0, 0);
    let mut begins = [[c, 0]; PARTS];
    for (begin, width) in begins.iter_mut().zip(widths) {
        *begin = [channel, place];
        channel += width;
        place = (place + b * t * width).next_multiple_of(ALIGNED);
    }
    let y = empty(x, &[place]);
    // A binding has to be there even where nothing is kept.
    let last = empty(x, &if kept { [b, 1, taps - 1, c] } else { [1; 4] });
    forward::forward_kernel::launch(
        &x.client,
        CubeCount::Static((c as u32).div_ceil(WIDTH), t.div_ceil(TOKENS) as u32, b as u32),
        CubeDim::new_1d(WIDTH),
        x.clone().into_tensor_arg(),
        tail.clone().into_tensor_arg(),
        weight.clone().into_tensor_arg(),
        bias.clone().into_tensor_arg(),
        y.clone().into_tensor_arg(),
        last.clone().into_tensor_arg(),
        begins[1][0],
        begins[1][1],
        begins[2][0],
        begins[2][1],
        taps,
        TOKENS,
        biased,
        silu,
        kept,
    );
    let parts = widths.iter().zip(begins).map(|(&width, [_, place])| part_of(&y, place, [b, 1, t, width]));
    Some((parts.collect(), kept.then_some(last)))
}

impl Passes for CubeBackend {
    fn forward(read: &Read<Self>, kept: bool) -> (CubeTensor, Option<CubeTensor>) {
        let whole = convolve_parts(read, kept, &[dims(&read.x)[3]]);
        let (mut y, last) = whole.expect("it is one tensor of all channels");
        (y.remove(0), last)
    }

    fn backward(read: Read<Self>, dy: CubeTensor) -> [Option<CubeTensor>; 4] {
        let Read { x, tail, weight, bias, options } = read;
        let Options { bias: biased, silu } = options;
        let ([b, _, t, c], [.., taps]) = (dims(&x), dims(&weight));
        let rows = taps - 1 + t;
        // As few sums as leave enough units.
        let enough = |&size: &usize| b * c * rows.div_ceil(size) >= BUSY;
        let size = [256, 128, 64].into_iter().find(enough).unwrap_or(32);
        let parts = rows.div_ceil(size);
        let dx = empty(&x, &[b, 1, t, c]);
        let d_tail = empty(&x, &if taps > 1 { [b, 1, taps - 1, c] } else { [1; 4] });
        let sums = empty(&x, &[b * parts, taps + 1, c]);
        let client = x.client.clone();
        let [d_weight, d_bias] =
            [empty(&x, &[1, 1, c, taps]), empty(&x, &[1, 1, 1, if biased { c } else { 1 }])];
        backward::backward_kernel::launch(
            &client,
            CubeCount::Static((c as u32).div_ceil(WIDTH), parts as u32, b as u32),
            CubeDim::new_1d(WIDTH),
            x.into_tensor_arg(),
            tail.into_tensor_arg(),
            weight.into_tensor_arg(),
            bias.into_tensor_arg(),
            dy.into_tensor_arg(),
            dx.clone().into_tensor_arg(),
            d_tail.clone().into_tensor_arg(),
            sums.clone().into_tensor_arg(),
            size,
            taps,
            biased,
            silu,
        );
        sum::sum_kernel::launch(
            &client,
            CubeCount::Static(((taps + 1) as u32 * c as u32).div_ceil(COLUMNS), 1, 1),
            CubeDim::new_2d(COLUMNS, STRIPES),
            sums.into_tensor_arg(),
            d_weight.clone().into_tensor_arg(),
            d_bias.clone().into_tensor_arg(),
            taps,
            biased,
            COLUMNS as usize,
            STRIPES as usize,
        );
        [Some(dx), (taps > 1).then_some(d_tail), Some(d_weight), Some(d_bias)]
    }
}

/// Number `s` of channel `c` of a row, counted from the first of the `taps - 1` inputs before the call; the row's own begin
/// at number `start` of `x`, `step` apart.
#[cube]
#[allow(clippy::too_many_arguments, reason = "where a channel lies")]
fn before(
    x: &Tensor<f32>,
    start: usize,
    step: usize,
    tail: &Tensor<f32>,
    row: usize,
    s: usize,
    c: usize,
    #[comptime] taps: usize,
) -> f32 {
    let early = comptime!(taps - 1);
    let mut found = f32::new(0.0);
    if s < early {
        found = tail[row * tail.stride(0) + s * tail.stride(2) + c * tail.stride(3)];
    }
    if s >= early {
        found = x[start + (s - early) * step];
    }
    found
}

mod forward {
    use super::*;

    #[cube(launch)]
    pub(super) fn forward_kernel(
        x: &Tensor<f32>,
        tail: &Tensor<f32>,
        weight: &Tensor<f32>,
        bias: &Tensor<f32>,
        y: &mut Tensor<f32>,
        last: &mut Tensor<f32>,
        second: usize,
        second_at: usize,
        third: usize,
        third_at: usize,
        #[comptime] taps: usize,
        #[comptime] tokens: usize,
        #[comptime] biased: bool,
        #[comptime] silu: bool,
        #[comptime] kept: bool,
    ) {
        let c = ABSOLUTE_POS_X as usize;
        let time = x.shape(2);
        let channels = x.shape(3);
        if c < channels {
            let row = CUBE_POS_Z as usize;
            let step = x.stride(2);
            // The channel's tensor: its first channel, how many it has, and where it lies.
            let mut own = 0usize;
            let mut width = second;
            let mut part = 0usize;
            if c >= second {
                own = second;
                width = third - second;
                part = second_at;
            }
            if c >= third {
                own = third;
                width = channels - third;
                part = third_at;
            }
            let start = row * x.stride(0) + c * x.stride(3);
            let mut shift = f32::new(0.0);
            if biased {
                shift = bias[c * bias.stride(3)];
            }
            let to = part + row * time * width + (c - own);
            convolve(x, start, step, tail, weight, shift, y, to, width, time, row, c, taps, tokens, silu);
            if comptime!(kept) {
                let to = row * comptime!(taps - 1) * channels + c;
                keep(x, start, step, tail, last, to, channels, time, row, c, taps);
            }
        }
    }

    /// The outputs of a channel for the tokens of a unit; that of the row's first token is number `to` of `y`, the others
    /// are `width` apart.
    #[cube]
    #[allow(clippy::too_many_arguments, reason = "where a channel lies")]
    pub(super) fn convolve(
        x: &Tensor<f32>,
        start: usize,
        step: usize,
        tail: &Tensor<f32>,
        weight: &Tensor<f32>,
        shift: f32,
        y: &mut Tensor<f32>,
        to: usize,
        width: usize,
        time: usize,
        row: usize,
        c: usize,
        #[comptime] taps: usize,
        #[comptime] tokens: usize,
        #[comptime] silu: bool,
    ) {
        let first = CUBE_POS_Y as usize * tokens;
        let mut from = start + first * step;
        let mut to = to + first * width;
        let mut filter = Array::<f32>::new(taps);
        let mut window = Array::<f32>::new(taps);
        #[unroll]
        for j in 0..taps {
            filter[j] = weight[c * weight.stride(2) + j * weight.stride(3)];
            if comptime!(j + 1 < taps) {
                window[j] = before(x, start, step, tail, row, first + j, c, taps);
            }
        }
        let count = min(tokens, time - first);
        for _ in 0..count {
            window[comptime!(taps - 1)] = x[from];
            from += step;
            let mut z = shift;
            #[unroll]
            for j in 0..taps {
                z += filter[j] * window[j];
            }
            if silu {
                z *= sigmoid(z);
            }
            y[to] = z;
            to += width;
            #[unroll]
            for j in 1..taps {
                let next = window[j];
                window[comptime!(j - 1)] = next;
            }
        }
    }

    /// The last inputs of a channel, if the unit has the first tokens: from number `to` of `last` on, `width` apart.
    #[cube]
    #[allow(clippy::too_many_arguments, reason = "where a channel lies")]
    pub(super) fn keep(
        x: &Tensor<f32>,
        start: usize,
        step: usize,
        tail: &Tensor<f32>,
        last: &mut Tensor<f32>,
        to: usize,
        width: usize,
        time: usize,
        row: usize,
        c: usize,
        #[comptime] taps: usize,
    ) {
        if CUBE_POS_Y == 0 {
            #[unroll]
            for j in 0..comptime!(taps - 1) {
                last[to + j * width] = before(x, start, step, tail, row, time + j, c, taps);
            }
        }
    }
}

mod backward {
    use super::*;

    #[cube(launch)]
    pub(super) fn backward_kernel(
        x: &Tensor<f32>,
        tail: &Tensor<f32>,
        weight: &Tensor<f32>,
        bias: &Tensor<f32>,
        dy: &Tensor<f32>,
        dx: &mut Tensor<f32>,
        d_tail: &mut Tensor<f32>,
        sums: &mut Tensor<f32>,
        size: usize,
        #[comptime] taps: usize,
        #[comptime] biased: bool,
        #[comptime] silu: bool,
    ) {
        let c = ABSOLUTE_POS_X as usize;
        let row = CUBE_POS_Z as usize;
        let part = CUBE_POS_Y as usize;
        let first = part * size;
        let time = dx.shape(2);
        let channels = dx.shape(3);
        let early = comptime!(taps - 1);
        let rows = time + early;
        if c < channels {
            let mut filter = Array::<f32>::new(taps);
            let mut window = Array::<f32>::new(taps);
            // The last gradients of `z`, and those of the filter.
            let mut late = Array::<f32>::new(taps);
            let mut d_filter = Array::<f32>::new(taps);
            // Gradients of `z` of the tokens before reach these rows.
            let start = first - min(first, taps - 1);
            let x_start = row * x.stride(0) + c * x.stride(3);
            let mut from = x_start + start * x.stride(2);
            #[unroll]
            for j in 0..taps {
                filter[j] = weight[c * weight.stride(2) + j * weight.stride(3)];
                late[j] = f32::new(0.0);
                d_filter[j] = f32::new(0.0);
                window[j] = f32::new(0.0);
                if comptime!(j + 1 < taps) && start + j < rows {
                    window[j] = before(x, x_start, x.stride(2), tail, row, start + j, c, taps);
                }
            }
            let mut shift = f32::new(0.0);
            if biased {
                shift = bias[c * bias.stride(3)];
            }
            let mut d_shift = f32::new(0.0);
            let end = min(first + size, rows);
            for s in start..end {
                let mut dz = f32::new(0.0);
                if s < time {
                    window[comptime!(taps - 1)] = x[from];
                    from += x.stride(2);
                    dz = dy[row * dy.stride(0) + s * dy.stride(2) + c * dy.stride(3)];
                    if silu {
                        let mut z = shift;
                        #[unroll]
                        for j in 0..taps {
                            z += filter[j] * window[j];
                        }
                        let open = sigmoid(z);
                        dz *= open * (z * (f32::new(1.0) - open) + f32::new(1.0));
                    }
                }
                late[0] = dz;
                if s >= first {
                    let mut sum = f32::new(0.0);
                    #[unroll]
                    for j in 0..taps {
                        sum += filter[j] * late[j];
                        d_filter[j] += dz * window[j];
                    }
                    d_shift += dz;
                    if s >= early {
                        dx[(row * time + s - early) * channels + c] = sum;
                    } else {
                        d_tail[(row * early + s) * channels + c] = sum;
                    }
                }
                #[unroll]
                for j in 1..taps {
                    let next = window[j];
                    window[comptime!(j - 1)] = next;
                    let before = late[comptime!(taps - 1 - j)];
                    late[comptime!(taps - j)] = before;
                }
            }
            let to = (row * (CUBE_COUNT_Y as usize) + part) * (taps + 1) * channels + c;
            #[unroll]
            for j in 0..taps {
                sums[to + j * channels] = d_filter[j];
            }
            sums[to + taps * channels] = d_shift;
        }
    }
}

mod sum {
    use super::*;

    /// Adds up `sums: [parts, taps + 1, c]` over its first axis.
    #[cube(launch)]
    pub(super) fn sum_kernel(
        sums: &Tensor<f32>,
        d_weight: &mut Tensor<f32>,
        d_bias: &mut Tensor<f32>,
        #[comptime] taps: usize,
        #[comptime] biased: bool,
        #[comptime] columns: usize,
        #[comptime] stripes: usize,
    ) {
        let mut shared = Shared::<[f32]>::new_slice(columns * stripes);
        let parts = sums.shape(0);
        let channels = sums.shape(2);
        let width = channels * (taps + 1);
        let column = ABSOLUTE_POS_X as usize;
        let stripe = UNIT_POS_Y as usize;
        let mut sum = f32::new(0.0);
        if column < width {
            for part in range_stepped(stripe, parts, stripes) {
                sum += sums[part * width + column];
            }
        }
        shared[stripe * columns + UNIT_POS_X as usize] = sum;
        sync_cube();
        if stripe == 0 && column < width {
            let mut all = f32::new(0.0);
            for i in 0..stripes {
                all += shared[i * columns + UNIT_POS_X as usize];
            }
            let tap = column / channels;
            let c = column % channels;
            if tap < taps {
                d_weight[c * taps + tap] = all;
            } else if biased {
                d_bias[c] = all;
            } else if c == 0 {
                d_bias[0] = f32::new(0.0);
            }
        }
    }
}
