//! Both passes over the blocks, one thread per head.

use rayon::prelude::*;

use super::block::{Backward, Block, places};
use super::buckets::Buckets;
use super::flex::Views;
use crate::kernels::room::{HeadRoom, Room};
use crate::kernels::vector::Vector;
use crate::kernels::view::View;

/// Tokens of all heads together from which on several threads are worth waking.
const LARGE: usize = 64;

/// Blocks whose buckets are kept on the way back, which makes those before them again.
const SEGMENT: usize = 16;

/// Fills `y: [b, h, t, p]`, which lies as `v` does, with the outputs, 0 for padding, and `last: [b, h, buckets, n, p]`.
pub(super) fn forward<E: Vector>(views: &Views<'_, E>, y: &mut Room<E>, last: &mut [E]) {
    let (dims @ [b, h, t, _], [n, p]) = (views.v.dims, views.widths());
    let heads = y.heads(dims, views.v.order()).into_iter().zip(last.chunks_exact_mut(last.len() / (b * h)));
    for_all(heads.collect(), b * h * t, |head, (mut y, last)| {
        let (mut block, mut buckets) = (Block::new(views), views.buckets(head).without_empty());
        for place in places(head, views.start(head), views.real(head)) {
            block.forward(views, place, &mut buckets);
            y.put(place.token, block.y.rows(), false);
        }
        pad(&mut y, views.real(head)..t, p);
        buckets.write(last, [n, p]);
    });
}

/// Does all heads' jobs, of so many tokens together.
fn for_all<T: Send>(jobs: Vec<T>, tokens: usize, job: impl Fn(usize, T) + Send + Sync) {
    let jobs_of = |(head, work): (usize, T)| job(head, work);
    if tokens < LARGE {
        jobs.into_iter().enumerate().for_each(jobs_of);
    } else {
        jobs.into_par_iter().enumerate().for_each(jobs_of);
    }
}

/// Writes zeros for padding.
fn pad<E: Vector>(to: &mut HeadRoom<'_, E>, rows: std::ops::Range<usize>, width: usize) {
    let zeros = vec![E::default(); width];
    to.put(rows.start, rows.map(|_| &zeros[..]), false);
}

/// Gradients of what [`Views`] has.
#[derive(Debug)]
pub(super) struct Gradients<E> {
    /// Of `q`, `k`, `v`, `log a` and weights; each lies as its input does
    pub(super) rows: [Room<E>; 5],
    /// `[b, h, buckets n, p]`
    pub(super) buckets: Vec<E>,
}

impl<E: Vector> Gradients<E> {
    pub(super) fn new(views: &Views<'_, E>) -> Self {
        let room = |view: View<'_, E>| Room::new(view.dims.iter().product());
        let rows = [views.q, views.k, views.v, views.log_a, views.scales].map(room);
        let buckets = views.buckets.map_or(0, |view| view.dims.iter().product());
        Self { rows, buckets: vec![E::default(); buckets] }
    }
}

/// Fills `to` with the gradients for `dy`, and `last: [b, h, buckets n, p]` of the last buckets where there is one.
pub(super) fn backward<E: Vector>(
    views: &Views<'_, E>,
    dy: View<'_, E>,
    last: Option<View<'_, E>>,
    to: &mut Gradients<E>,
) {
    let ([b, h, t, _], widths @ [n, _]) = (views.v.dims, views.widths());
    let inputs = [views.q, views.k, views.v, views.log_a, views.scales];
    let mut rooms = to.rows.each_mut().into_iter().zip(inputs);
    let mut heads = || {
        let (room, view) = rooms.next().expect("five of them");
        room.heads(view.dims, view.order()).into_iter()
    };
    let (q, k, v, log_a, scales) = (heads(), heads(), heads(), heads(), heads());
    let size = to.buckets.len() / (b * h);
    let mut buckets = to.buckets.chunks_exact_mut(size.max(1));
    let rooms = q.zip(k).zip(v).zip(log_a).zip(scales);
    let jobs = rooms.map(|((((q, k), v), log_a), scales)| ([q, k, v, log_a, scales], buckets.next()));
    for_all(jobs.collect(), b * h * t, |head, (mut rows, buckets)| {
        let (start, real) = (views.start(head), views.real(head));
        let all = places(head, start, real);
        let mut block = Backward::new(views);
        let mut now = views.buckets(head);
        let mut starts = Vec::new();
        for (index, &place) in all.iter().enumerate() {
            if index % SEGMENT == 0 {
                starts.push(now.clone());
            }
            block.advance(views, place, &mut now);
        }
        let mut gradient = match last {
            Some(last) => Buckets::read(Some(last), head, n),
            None => Buckets::none(0),
        };
        for (segment, mut now) in all.chunks(SEGMENT).zip(starts).rev() {
            let mut before = Vec::with_capacity(segment.len());
            for &place in segment {
                before.push(now.clone());
                block.advance(views, place, &mut now);
            }
            for (&place, before) in segment.iter().zip(&before).rev() {
                block.run(views, place, dy, before, &mut gradient);
                let Backward { q, k, v, scales, log_a, .. } = &block;
                let [to_q, to_k, to_v, to_log_a, to_scales] = &mut rows;
                for (to, from) in [(to_q, q), (to_k, k), (to_v, v), (to_scales, scales)] {
                    to.put(place.token, from.rows(), false);
                }
                let log_a = log_a[..place.rows()].iter().map(|&x| [E::of(x)]).collect::<Vec<_>>();
                to_log_a.put(place.token, log_a.iter().map(|x| &x[..]), false);
            }
        }
        for (to, view) in rows.iter_mut().zip(inputs) {
            pad(to, real..t, view.dims[3]);
        }
        if let Some(to) = buckets {
            gradient.write(to, widths);
        }
    });
}
