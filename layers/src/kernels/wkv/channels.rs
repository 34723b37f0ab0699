//! The arithmetic of the kernel on slices: some channels of one sequence at a time, in blocks of lanes, from the first
//! token to the last.

use crate::kernels::lanes::{part, put_part};
use crate::kernels::room::Room;
use crate::kernels::shares::{CHANNELS, Share, Target, for_all};
use crate::kernels::vector::{LANES, Vector, block_by_block, fused, vectors};
use crate::kernels::view::View;

/// Tokens from one state that the way back starts again from to the next.
const TILE: usize = 32;

/// Blocks of a job.
const BLOCKS: usize = CHANNELS / LANES;

/// A number of every channel of a block.
type Lanes<E> = [E; LANES];

/// What both passes read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inputs<'a, E> {
    /// `w: [1, 1, 1, n]`
    pub(super) fade: View<'a, E>,
    /// `u: [1, 1, 1, n]`
    pub(super) bonus: View<'a, E>,
    /// `[b, 1, t, n]`
    pub(super) k: View<'a, E>,
    /// `[b, 1, t, n]`
    pub(super) v: View<'a, E>,
    /// `s: [b, 1, 1, n]`
    pub(super) log: View<'a, E>,
    /// `m: [b, 1, 1, n]`
    pub(super) mean: View<'a, E>,
}

/// Of the channels of a block: `Σ weights values` and `Σ weights`, both times `e^{-top}`.
#[derive(Clone, Copy)]
struct State<E> {
    above: Lanes<E>,
    below: Lanes<E>,
    top: Lanes<E>,
}

impl<E: Vector> State<E> {
    #[inline(always)]
    fn new(log: Lanes<E>, mean: Lanes<E>) -> Self {
        Self { above: mean, below: [E::of(1.0); LANES], top: log }
    }

    /// With a token of weight `e^log` and `value`, after all weights have been multiplied by `e^fade`.
    #[inline(always)]
    fn join<const FUSED: bool>(&self, fade: &Lanes<E>, log: &Lanes<E>, value: &Lanes<E>) -> Self {
        let mut found = *self;
        for l in 0..LANES {
            let faded = self.top[l] + fade[l];
            let [old, new, top] = powers::<E, FUSED>(faded, log[l]);
            found.above[l] = fused::<E, FUSED>(old, self.above[l], new * value[l]);
            found.below[l] = fused::<E, FUSED>(old, self.below[l], new);
            found.top[l] = top;
        }
        found
    }

    /// The share of what is there beside a token, as [`Self::join`] would have it.
    #[inline(always)]
    fn share<const FUSED: bool>(&self, fade: &Lanes<E>, log: &Lanes<E>) -> Lanes<E> {
        let mut found = self.below;
        for (l, found) in found.iter_mut().enumerate() {
            let [old, new, _] = powers::<E, FUSED>(self.top[l] + fade[l], log[l]);
            let old = old * self.below[l];
            *found = old / (old + new);
        }
        found
    }

    #[inline(always)]
    fn mean(&self) -> Lanes<E> {
        let mut found = self.above;
        for (found, below) in found.iter_mut().zip(self.below) {
            *found = *found / below;
        }
        found
    }
}

/// `e^{x - top}` and `e^{y - top}`, and `top`, the larger of `x` and `y`: one of the powers is 1.
#[inline(always)]
fn powers<E: Vector, const FUSED: bool>(x: E, y: E) -> [E; 3] {
    let one = E::of(1.0);
    let first = x > y;
    let small = (if first { y - x } else { x - y }).exponential::<FUSED>();
    [if first { one } else { small }, if first { small } else { one }, if first { x } else { y }]
}

/// What channels of a job have for all tokens.
struct Constants<E> {
    fade: [E; CHANNELS],
    bonus: [E; CHANNELS],
    log: [E; CHANNELS],
    mean: [E; CHANNELS],
}

impl<E: Vector> Constants<E> {
    #[inline(always)]
    fn new(inputs: &Inputs<'_, E>, Share { head, first, count }: Share) -> Self {
        let row = |view: &View<'_, E>, head: usize| {
            let mut row = [E::default(); CHANNELS];
            view.head(head).copy(0, first, &mut row[..count]);
            row
        };
        let (fade, bonus) = (row(&inputs.fade, 0), row(&inputs.bonus, 0));
        Self { fade, bonus, log: row(&inputs.log, head), mean: row(&inputs.mean, head) }
    }

    #[inline(always)]
    fn start(&self) -> [State<E>; BLOCKS] {
        let mut all = [State::new([E::default(); LANES], [E::default(); LANES]); BLOCKS];
        for (b, state) in all.iter_mut().enumerate() {
            *state = State::new(part(&self.log, b * LANES), part(&self.mean, b * LANES));
        }
        all
    }
}

/// Outputs, contiguous.
#[derive(Debug)]
pub(super) struct Outputs<E> {
    /// `[b, 1, t, n]`
    pub(super) y: Room<E>,
    /// `s` and then `m`, `[b, 1, 2, n]`
    pub(super) last: Room<E>,
}

impl<E: Vector> Outputs<E> {
    pub(super) fn new(inputs: &Inputs<'_, E>) -> Self {
        let dims @ [b, .., n] = inputs.k.dims;
        Self { y: Room::new(dims.iter().product()), last: Room::new(2 * b * n) }
    }
}

/// Fills the outputs.
pub(super) fn forward<E: Vector>(inputs: &Inputs<'_, E>, to: &mut Outputs<E>) {
    let [.., n] = inputs.k.dims;
    let targets = [Target::new(&mut to.y, n), Target::new(&mut to.last, n)];
    for_all(inputs.k.dims, 8, |_, share| average(inputs, targets, share));
}

vectors! {
    fn average = average_channels(inputs: &Inputs<'_, E>, to: [Target<E>; 2], share: Share)
}

#[inline(always)]
#[allow(unsafe_code, reason = "jobs write different channels of the same rows")]
fn average_channels<E: Vector, const FUSED: bool>(
    inputs: &Inputs<'_, E>,
    [y_out, last_out]: [Target<E>; 2],
    share: Share,
) {
    let Share { head, first, count } = share;
    let (time, blocks) = (inputs.k.dims[2], count.div_ceil(LANES));
    let (k, v) = (inputs.k.head(head), inputs.v.head(head));
    let constants = Constants::new(inputs, share);
    let mut states = constants.start();
    let [mut k_space, mut v_space, mut y] = [[E::default(); CHANNELS]; 3];
    for i in 0..time {
        let (k, v) = (k.some(i, first, count, &mut k_space), v.some(i, first, count, &mut v_space));
        for (b, state) in states[..blocks].iter_mut().enumerate() {
            block_by_block();
            let at = b * LANES;
            let (k, v): (Lanes<E>, Lanes<E>) = (part(k, at), part(v, at));
            let own = sum(&k, &part(&constants.bonus, at));
            put_part(&state.join::<FUSED>(&[E::default(); LANES], &own, &v).mean(), &mut y, at);
            *state = state.join::<FUSED>(&part(&constants.fade, at), &k, &v);
        }
        // SAFETY: `y` is borrowed by `forward`, and this job's channels are its own.
        unsafe { y_out.row(head * time + i, first, count) }.write_copy_of_slice(&y[..count]);
    }
    let (log, mean) = (&mut k_space, &mut v_space);
    for (b, state) in states[..blocks].iter().enumerate() {
        put_part(&state.mean(), mean, b * LANES);
        let mut logs = state.top;
        for (log, below) in logs.iter_mut().zip(state.below) {
            *log += E::of(below.to_f64().ln());
        }
        put_part(&logs, log, b * LANES);
    }
    for (i, row) in [log, mean].into_iter().enumerate() {
        // SAFETY: as above.
        unsafe { last_out.row(2 * head + i, first, count) }.write_copy_of_slice(&row[..count]);
    }
}

#[inline(always)]
fn sum<E: Vector>(x: &Lanes<E>, y: &Lanes<E>) -> Lanes<E> {
    let mut sum = *x;
    for l in 0..LANES {
        sum[l] += y[l];
    }
    sum
}

/// Gradients, contiguous; those of `fade` and `bonus` of every sequence, `[b, n]`.
#[derive(Debug)]
pub(super) struct Gradients<E> {
    pub(super) fade: Room<E>,
    pub(super) bonus: Room<E>,
    pub(super) k: Room<E>,
    pub(super) v: Room<E>,
    pub(super) log: Room<E>,
    pub(super) mean: Room<E>,
}

impl<E: Vector> Gradients<E> {
    pub(super) fn new(inputs: &Inputs<'_, E>) -> Self {
        let dims @ [b, .., n] = inputs.k.dims;
        let (tokens, row) = (|| Room::new(dims.iter().product()), || Room::new(b * n));
        Self { fade: row(), bonus: row(), k: tokens(), v: tokens(), log: row(), mean: row() }
    }
}

/// Fills `to` with the gradients for `dy`, and `last` of the state where there is one.
pub(super) fn backward<E: Vector>(
    inputs: &Inputs<'_, E>,
    dy: View<'_, E>,
    last: Option<View<'_, E>>,
    to: &mut Gradients<E>,
) {
    let [.., n] = inputs.k.dims;
    let tokens = [&mut to.k, &mut to.v].map(|room| Target::new(room, n));
    let rows = [&mut to.log, &mut to.mean, &mut to.fade, &mut to.bonus].map(|room| Target::new(room, n));
    for_all(inputs.k.dims, 16, |_, share| average_back(inputs, dy, last.as_ref(), tokens, rows, share));
}

vectors! {
    fn average_back = average_channels_back(
        inputs: &Inputs<'_, E>,
        dy: View<'_, E>,
        last: Option<&View<'_, E>>,
        tokens: [Target<E>; 2],
        rows: [Target<E>; 4],
        share: Share,
    )
}

#[inline(always)]
#[allow(unsafe_code, reason = "jobs write different channels of the same rows")]
fn average_channels_back<E: Vector, const FUSED: bool>(
    inputs: &Inputs<'_, E>,
    dy: View<'_, E>,
    last: Option<&View<'_, E>>,
    [k_out, v_out]: [Target<E>; 2],
    rows: [Target<E>; 4],
    share: Share,
) {
    let Share { head, first, count } = share;
    let (time, blocks) = (inputs.k.dims[2], count.div_ceil(LANES));
    let (k, v, dy) = (inputs.k.head(head), inputs.v.head(head), dy.head(head));
    let constants = Constants::new(inputs, share);
    let [mut k_space, mut v_space, mut dy_space, mut dk, mut dv] = [[E::default(); CHANNELS]; 5];
    let mut states = constants.start();
    // The states before every tile, and those before every token of one.
    let tiles = time.div_ceil(TILE);
    let mut starts = Vec::with_capacity(tiles * blocks);
    for i in 0..(tiles - 1) * TILE {
        if i % TILE == 0 {
            starts.extend_from_slice(&states[..blocks]);
        }
        let token = [k.some(i, first, count, &mut k_space), v.some(i, first, count, &mut v_space)];
        advance::<E, FUSED>(&mut states[..blocks], &constants, token);
    }
    starts.extend_from_slice(&states[..blocks]);
    let mut before = Vec::with_capacity(TILE * blocks);
    // Of `s`, `m`, `w`, `u`.
    let mut sums = [[E::default(); CHANNELS]; 4];
    if let Some(last) = last {
        for (i, sum) in sums[..2].iter_mut().enumerate() {
            last.head(head).copy(i, first, &mut sum[..count]);
        }
    }
    for tile in (0..tiles).rev() {
        let tokens = tile * TILE..time.min((tile + 1) * TILE);
        states[..blocks].copy_from_slice(&starts[tile * blocks..][..blocks]);
        before.clear();
        for i in tokens.clone() {
            before.extend_from_slice(&states[..blocks]);
            if i + 1 < tokens.end {
                let token = [k.some(i, first, count, &mut k_space), v.some(i, first, count, &mut v_space)];
                advance::<E, FUSED>(&mut states[..blocks], &constants, token);
            }
        }
        for i in tokens.clone().rev() {
            let (k, v) = (k.some(i, first, count, &mut k_space), v.some(i, first, count, &mut v_space));
            let dy = dy.some(i, first, count, &mut dy_space);
            let before = &before[(i - tokens.start) * blocks..][..blocks];
            for (b, state) in before.iter().enumerate() {
                block_by_block();
                let at = b * LANES;
                let token = [part(k, at), part(v, at), part(dy, at)];
                let fixed = [part(&constants.fade, at), part(&constants.bonus, at)];
                let mut four = [[E::default(); LANES]; 4];
                for (part_of, sum) in four.iter_mut().zip(&sums) {
                    *part_of = part(sum, at);
                }
                let [by_k, by_v] = step_back::<E, FUSED>(state, token, fixed, &mut four);
                for (part_of, sum) in four.iter().zip(&mut sums) {
                    put_part(part_of, sum, at);
                }
                put_part(&by_k, &mut dk, at);
                put_part(&by_v, &mut dv, at);
            }
            // SAFETY: what they point to is borrowed by `backward`, and this job's channels are its own.
            unsafe {
                k_out.row(head * time + i, first, count).write_copy_of_slice(&dk[..count]);
                v_out.row(head * time + i, first, count).write_copy_of_slice(&dv[..count]);
            }
        }
    }
    for (row, sum) in rows.into_iter().zip(&sums) {
        // SAFETY: as above.
        unsafe { row.row(head, first, count) }.write_copy_of_slice(&sum[..count]);
    }
}

/// One token of all blocks, which nobody asks.
#[inline(always)]
fn advance<E: Vector, const FUSED: bool>(
    states: &mut [State<E>],
    constants: &Constants<E>,
    [k, v]: [&[E]; 2],
) {
    for (b, state) in states.iter_mut().enumerate() {
        block_by_block();
        let at = b * LANES;
        *state = state.join::<FUSED>(&part(&constants.fade, at), &part(k, at), &part(v, at));
    }
}

/// One token of a block back, from the state before it: gradients of `k` and `v`. Those of `s` and `m` become those before
/// it, and those of `w` and `u` are added to.
#[inline(always)]
fn step_back<E: Vector, const FUSED: bool>(
    state: &State<E>,
    [k, v, dy]: [Lanes<E>; 3],
    [fade, bonus]: [Lanes<E>; 2],
    [ds, dm, dw, du]: &mut [Lanes<E>; 4],
) -> [Lanes<E>; 2] {
    let one = E::of(1.0);
    let mean = state.mean();
    let asked = state.share::<FUSED>(&[E::default(); LANES], &sum(&k, &bonus));
    let kept = state.share::<FUSED>(&fade, &k);
    let (mut dk, mut dv) = (k, v);
    for l in 0..LANES {
        let apart = mean[l] - v[l];
        let (pi, rho) = (asked[l], kept[l]);
        let by_asking = pi * (one - pi) * apart * dy[l];
        let by_keeping = fused::<E, FUSED>(rho * (one - rho) * apart, dm[l], rho * ds[l]);
        dk[l] = ds[l] - by_keeping - by_asking;
        dv[l] = fused::<E, FUSED>(one - pi, dy[l], (one - rho) * dm[l]);
        du[l] += -by_asking;
        dw[l] += by_keeping;
        ds[l] = by_keeping + by_asking;
        dm[l] = fused::<E, FUSED>(pi, dy[l], rho * dm[l]);
    }
    [dk, dv]
}
