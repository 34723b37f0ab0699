//! [`softmax`](crate::kernels::softmax): a unit takes a query, or backward also a key, and keeps its numbers in
//! registers; the units of a cube share tiles of what passes by, in shared memory, four numbers to a vector. Every
//! vector that is read there serves four multiplications of each unit, and is the same for all units of a cube.
//!
//! Floor for `t` causal queries of `h` heads of `n` channels: `2 t² h n` floating-point operations forward in one launch;
//! backward `4 t² h n`, as scores are made again by each of three launches (those of `dq`, `dk` and `dv`: more than 8
//! buffers cannot be bound), after a small one for what queries have in common, and one each for sinks and gates where there
//! are any. Bytes: `(2 n + 2 p) t h` numbers, and keys and values again for each [`ROWS`] queries, from the cache of the
//! device (a few queries: [`few`]). Memory is linear in `t`. Cubes: `h t / ROWS` per batch row. Those with the most keys start first.
//!
//! Gates need `Σ_{j < s ≤ i} log f_s`. Differences of sums over the whole sequence lose it, so it is the sum of two
//! parts that begin at a cube's first query, of which one grows along with the tiles.

#![allow(clippy::collapsible_if, reason = "the outer one is decided when a kernel is compiled")]

mod backward;
mod few;
mod forward;
mod tile;

use burn::backend::ops::FloatTensorOps;
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::buffer::{dims, empty};
use crate::kernels::softmax::{Passes, Read, Saved};

/// Units of a cube, each with a query or key.
const ROWS: usize = 64;

/// Bytes of shared memory.
const SHARED: usize = 16_384;

/// Largest head, of which a unit keeps up to three rows.
const CHANNELS: usize = 128;

/// Queries per head from which on there are enough units without sharing keys.
const MANY: usize = 256;

/// Whether the kernel can run these, as [`run`](crate::kernels::softmax::run) has them, and is the faster way as far as
/// that can be told without a measurement: some queries of a long cache are too few units, but too many for each to
/// read the cache.
pub(in crate::kernels) fn attends(q: &burn::tensor::Tensor<4>, v: &burn::tensor::Tensor<4>) -> bool {
    let ([b, h, t, n], [_, _, total, p]) = (q.dims(), v.dims());
    // Outputs and gradients are as many numbers as there are queries, or keys, of either size.
    let limits = (b * h).max(total.div_ceil(ROWS));
    let pays = t <= FEW || t >= MANY || total <= 4 * t;
    pays && n.max(p) <= CHANNELS && super::fits(q, limits) && super::fits(v, limits)
}

/// What kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Form {
    /// Channels of keys
    n: usize,
    /// Channels of values
    p: usize,
    rows: usize,
    /// Keys, or queries, of a tile
    tile: usize,
    causal: bool,
    windowed: bool,
    capped: bool,
    sunk: bool,
    forgets: bool,
    shifted: bool,
}

impl Form {
    fn new(read: &Read<CubeBackend>) -> Self {
        let ([.., n], [.., p]) = (dims(&read.q), dims(&read.v));
        let options = read.options;
        // Three more numbers to each row of a tile.
        let bytes = |tile: &usize| tile * (16 * (n.div_ceil(4) + p.div_ceil(4)) + 12);
        let tile = [32, 16].into_iter().find(|tile| bytes(tile) <= SHARED).unwrap_or(8);
        Self {
            n,
            p,
            rows: ROWS,
            tile,
            causal: options.weighing.causal,
            windowed: options.weighing.window.is_some(),
            capped: options.weighing.softcap.is_some(),
            sunk: options.sink,
            forgets: options.forget,
            shifted: options.offsets,
        }
    }
}

/// `scale`, `cap`, `cached`, `window`.
fn scalars(read: &Read<CubeBackend>) -> (f32, f32, usize, usize) {
    let weighing = read.options.weighing;
    // A window longer than all there is hides nothing.
    let window = weighing.window.unwrap_or(0).min(1 << 30);
    (weighing.scale as f32, weighing.softcap.unwrap_or(1.0) as f32, weighing.cached, window)
}

/// Cubes for `count` rows of each of `heads`.
fn grid(count: usize, heads: usize) -> (CubeCount, CubeDim) {
    (CubeCount::Static(count.div_ceil(ROWS) as u32, heads as u32, 1), CubeDim::new_1d(ROWS as u32))
}

impl Passes for CubeBackend {
    fn forward(read: Read<Self>) -> Saved<Self> {
        let ([b, h, t, _], [.., p]) = (dims(&read.q), dims(&read.v));
        if t <= FEW {
            return answer(read);
        }
        let (y, log_sum) = (empty(&read.q, &[b, h, t, p]), empty(&read.q, &[b, h, t]));
        let (scale, cap, cached, window) = scalars(&read);
        let (cubes, units) = grid(t, b * h);
        forward::forward_kernel::launch(
            &y.client,
            cubes,
            units,
            read.q.clone().into_tensor_arg(),
            read.k.clone().into_tensor_arg(),
            read.v.clone().into_tensor_arg(),
            read.sink.clone().into_tensor_arg(),
            read.forget.clone().into_tensor_arg(),
            read.offsets.clone().into_tensor_arg(),
            y.clone().into_tensor_arg(),
            log_sum.clone().into_tensor_arg(),
            scale,
            cap,
            cached,
            window,
            Form::new(&read),
        );
        Saved { read, y, log_sum }
    }

    fn backward(saved: Saved<Self>, dy: CubeTensor) -> [CubeTensor; 5] {
        let Saved { read, y, log_sum } = saved;
        let ([b, h, t, n], [_, kv, total, p]) = (dims(&read.q), dims(&read.v));
        let (form, (scale, cap, cached, window)) = (Form::new(&read), scalars(&read));
        let client = y.client.clone();
        let (cubes, units) = grid(t, b * h);

        let stats = empty(&y, &[b, h, t, 2]);
        let sinks = empty(&y, &if form.sunk { [b, h, t, 1] } else { [1; 4] });
        backward::stats::stats_kernel::launch(
            &client,
            cubes.clone(),
            units,
            y.clone().into_tensor_arg(),
            dy.clone().into_tensor_arg(),
            log_sum.into_tensor_arg(),
            read.sink.clone().into_tensor_arg(),
            stats.clone().into_tensor_arg(),
            sinks.clone().into_tensor_arg(),
            form,
        );

        let dq = empty(&y, &[b, h, t, n]);
        backward::queries::queries_kernel::launch(
            &client,
            cubes,
            units,
            read.q.clone().into_tensor_arg(),
            read.k.clone().into_tensor_arg(),
            read.v.clone().into_tensor_arg(),
            read.forget.clone().into_tensor_arg(),
            read.offsets.clone().into_tensor_arg(),
            dy.clone().into_tensor_arg(),
            stats.clone().into_tensor_arg(),
            dq.clone().into_tensor_arg(),
            scale,
            cap,
            cached,
            window,
            form,
        );

        // Behind each key's gradient, those of the sums of gates of all heads that share it.
        let group = h / kv;
        let width = if form.forgets { n + group } else { n };
        let mut dk = empty(&y, &[b, kv, total, width]);
        let dv = empty(&y, &[b, kv, total, p]);
        let (cubes, units) = grid(total, b * kv);
        backward::keys::keys_kernel::launch(
            &client,
            cubes.clone(),
            units,
            read.q.clone().into_tensor_arg(),
            read.k.clone().into_tensor_arg(),
            read.v.clone().into_tensor_arg(),
            read.forget.clone().into_tensor_arg(),
            read.offsets.clone().into_tensor_arg(),
            dy.clone().into_tensor_arg(),
            stats.clone().into_tensor_arg(),
            dk.clone().into_tensor_arg(),
            scale,
            cap,
            cached,
            window,
            form,
            true,
        );
        backward::keys::keys_kernel::launch(
            &client,
            cubes,
            units,
            read.q.clone().into_tensor_arg(),
            read.k.clone().into_tensor_arg(),
            read.v.clone().into_tensor_arg(),
            read.forget.clone().into_tensor_arg(),
            read.offsets.clone().into_tensor_arg(),
            dy.into_tensor_arg(),
            stats.into_tensor_arg(),
            dv.clone().into_tensor_arg(),
            scale,
            cap,
            cached,
            window,
            form,
            false,
        );

        let forget = if form.forgets {
            let out = empty(&y, &dims(&read.forget));
            backward::gates::gates_kernel::launch(
                &client,
                CubeCount::Static((b * h) as u32, 1, 1),
                CubeDim::new_1d(GATES as u32),
                dk.clone().into_tensor_arg(),
                sinks.clone().into_tensor_arg(),
                out.clone().into_tensor_arg(),
                cached,
                n,
                group,
                GATES,
                form.sunk,
            );
            dk.meta.shape_mut()[3] = n;
            out
        } else {
            zero(&y, &[1, 1, 1, 1])
        };
        let sink = if form.sunk {
            let sums = Self::float_sum_dim(Self::float_sum_dim(sinks, 2), 0);
            Self::float_reshape(sums, vec![h].into())
        } else {
            zero(&y, &[1])
        };
        [dq, dk, dv, sink, forget]
    }
}

/// Up to how many queries per head cubes share keys.
const FEW: usize = 16;

/// Cubes that keep a device busy.
const BUSY: usize = 512;

/// Keys that are worth a cube.
const PART: usize = 256;

/// The forward pass of a few queries.
fn answer(read: Read<CubeBackend>) -> Saved<CubeBackend> {
    let ([b, h, t, _], [_, _, total, p]) = (dims(&read.q), dims(&read.v));
    let (y, log_sum) = (empty(&read.q, &[b, h, t, p]), empty(&read.q, &[b, h, t]));
    let (scale, cap, cached, window) = scalars(&read);
    let span = read.options.weighing.window.map_or(total, |window| window.min(total));
    let parts = (BUSY / (b * h * t)).clamp(1, span.div_ceil(PART));
    let size = span.div_ceil(parts).next_multiple_of(ROWS);
    let parts = span.div_ceil(size);
    let (sums, stats) = if parts == 1 {
        (y.clone(), log_sum.clone())
    } else {
        (empty(&y, &[b * h, t, parts, p]), empty(&y, &[b * h, t, parts, 2]))
    };
    few::part::part_kernel::launch(
        &y.client,
        CubeCount::Static(parts as u32, t as u32, (b * h) as u32),
        CubeDim::new_1d(ROWS as u32),
        read.q.clone().into_tensor_arg(),
        read.k.clone().into_tensor_arg(),
        read.v.clone().into_tensor_arg(),
        read.sink.clone().into_tensor_arg(),
        read.forget.clone().into_tensor_arg(),
        read.offsets.clone().into_tensor_arg(),
        sums.clone().into_tensor_arg(),
        stats.clone().into_tensor_arg(),
        scale,
        cap,
        cached,
        window,
        size,
        Form::new(&read),
        parts == 1,
    );
    if parts > 1 {
        few::join::join_kernel::launch(
            &y.client,
            CubeCount::Static(p.div_ceil(ROWS) as u32, t as u32, (b * h) as u32),
            CubeDim::new_1d(ROWS as u32),
            sums.into_tensor_arg(),
            stats.into_tensor_arg(),
            y.clone().into_tensor_arg(),
            log_sum.clone().into_tensor_arg(),
            parts,
        );
    }
    Saved { read, y, log_sum }
}

/// Units that add up the gates of a head.
const GATES: usize = 256;

/// Stands for the gradient of what is not there.
fn zero(like: &CubeTensor, dims: &[usize]) -> CubeTensor {
    CubeBackend::float_zeros(dims.to_vec().into(), &like.device, burn::backend::FloatDType::F32)
}
