//! The arithmetic of the kernel on slices: some channels of one head at a time, from the first token to the last.

use crate::kernels::lanes::{add, multiply, multiply_by};
use crate::kernels::room::Room;
use crate::kernels::shares::{CHANNELS, Share, Target, for_all};
use crate::kernels::vector::{Vector, fused, vectors};
use crate::kernels::view::View;

/// What both passes read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inputs<'a, E> {
    /// `[b, h, t, n]`
    pub(super) log_a: View<'a, E>,
    /// `[b, h, n, 1]`
    pub(super) memory: View<'a, E>,
}

/// Gradients, contiguous.
#[derive(Debug)]
pub(super) struct Gradients<E> {
    pub(super) log_a: Room<E>,
    pub(super) u: Room<E>,
    pub(super) memory: Room<E>,
}

impl<E: Vector> Gradients<E> {
    pub(super) fn new(inputs: &Inputs<'_, E>) -> Self {
        let room = |dims: [usize; 4]| Room::new(dims.iter().product());
        let dims = inputs.log_a.dims;
        Self { log_a: room(dims), u: room(dims), memory: room(inputs.memory.dims) }
    }
}

/// Fills `y: [b, h, t, n]` with the states.
pub(super) fn forward<E: Vector>(inputs: &Inputs<'_, E>, u: View<'_, E>, y: &mut Room<E>) {
    let dims @ [.., n] = u.dims;
    let y = Target::new(y, n);
    for_all(dims, 4, |_, share| scan(*inputs, u, y, share));
}

vectors! {
    fn scan = scan_channels(inputs: Inputs<'_, E>, u: View<'_, E>, y: Target<E>, share: Share)
}

#[inline(always)]
#[allow(unsafe_code, reason = "jobs write different channels of the same rows")]
fn scan_channels<E: Vector, const FUSED: bool>(
    inputs: Inputs<'_, E>,
    u: View<'_, E>,
    y: Target<E>,
    share: Share,
) {
    let Share { head, first, count } = share;
    let [_, _, t, _] = u.dims;
    let (log_a, u) = (inputs.log_a.head(head), u.head(head));
    let mut spaces = [[E::default(); CHANNELS]; 2];
    let [log_space, u_space] = &mut spaces;
    let mut h = [E::default(); CHANNELS];
    inputs.memory.head(head).turned().copy(0, first, &mut h[..count]);
    let h = &mut h[..count];
    for i in 0..t {
        let (log_a, u) = (log_a.some(i, first, count, log_space), u.some(i, first, count, u_space));
        // SAFETY: `y` is borrowed by `forward`, and this job's channels are its own.
        let y = unsafe { y.row(head * t + i, first, count) };
        let (log_a, u) = (&log_a[..count], &u[..count]);
        for c in 0..count {
            h[c] = fused::<E, FUSED>(log_a[c].exponential::<FUSED>(), h[c], u[c]);
        }
        y.write_copy_of_slice(h);
    }
}

/// Fills `to` with the gradients for `dy`, that of the states `y`.
pub(super) fn backward<E: Vector>(
    inputs: &Inputs<'_, E>,
    y: View<'_, E>,
    dy: View<'_, E>,
    to: &mut Gradients<E>,
) {
    let dims @ [.., n] = y.dims;
    let (log_a, u) = (Target::new(&mut to.log_a, n), Target::new(&mut to.u, n));
    let memory = Target::new(&mut to.memory, n);
    for_all(dims, 8, |_, share| scan_back(*inputs, y, dy, [log_a, u, memory], share));
}

vectors! {
    fn scan_back = scan_channels_back(
        inputs: Inputs<'_, E>,
        y: View<'_, E>,
        dy: View<'_, E>,
        to: [Target<E>; 3],
        share: Share,
    )
}

#[inline(always)]
#[allow(unsafe_code, reason = "jobs write different channels of the same rows")]
fn scan_channels_back<E: Vector, const FUSED: bool>(
    inputs: Inputs<'_, E>,
    y: View<'_, E>,
    dy: View<'_, E>,
    [log_out, u_out, memory_out]: [Target<E>; 3],
    share: Share,
) {
    let Share { head, first, count } = share;
    let [_, _, t, _] = y.dims;
    let (log_a, y, dy) = (inputs.log_a.head(head), y.head(head), dy.head(head));
    let mut spaces = [[E::default(); CHANNELS]; 3];
    let [log_space, y_space, dy_space] = &mut spaces;
    let (mut start, mut dh) = ([E::default(); CHANNELS], [E::default(); CHANNELS]);
    let (mut decay, mut d_log) = ([E::default(); CHANNELS], [E::default(); CHANNELS]);
    inputs.memory.head(head).turned().copy(0, first, &mut start[..count]);
    let (dh, decay, d_log) = (&mut dh[..count], &mut decay[..count], &mut d_log[..count]);
    for i in (0..t).rev() {
        let log_a = &log_a.some(i, first, count, log_space)[..count];
        for c in 0..count {
            decay[c] = log_a[c].exponential::<FUSED>();
        }
        let before = if i > 0 { y.some(i - 1, first, count, y_space) } else { &start[..] };
        add(dh, dy.some(i, first, count, dy_space));
        // SAFETY: what they point to is borrowed by `backward`, and this job's channels are its own.
        let (log_out, u_out) =
            unsafe { (log_out.row(head * t + i, first, count), u_out.row(head * t + i, first, count)) };
        u_out.write_copy_of_slice(dh);
        multiply_by(dh, decay);
        multiply(d_log, dh, before);
        log_out.write_copy_of_slice(d_log);
    }
    // SAFETY: as above.
    unsafe { memory_out.row(head, first, count) }.write_copy_of_slice(dh);
}
