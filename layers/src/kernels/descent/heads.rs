//! Heads side by side in threads, the chunks of each one after another.

use std::ops::Range;

use rayon::prelude::*;

use crate::kernels::dense::Matrix;
use crate::kernels::vector::Vector;
use crate::kernels::view::{Head, View, read, write};

use super::back::Back;
use super::network::Network;
use super::{Map, Options};

/// What both passes read.
#[derive(Debug)]
pub(super) struct Inputs<'a, E> {
    pub(super) options: &'a Options,
    /// `q`, `k` and `v`: `[b, h, t, n]`
    pub(super) tokens: [View<'a, E>; 3],
    /// `[b, h, t, 1]`
    pub(super) threshold: View<'a, E>,
    /// `[b, h, t / c, (c + s)²]`
    pub(super) plan: View<'a, E>,
    /// `[b, h, 2, n]`, if there is a layer norm
    pub(super) norm: View<'a, E>,
    /// `[b, h, 1, depth]`, if the map asks for them
    pub(super) sizes: View<'a, E>,
    /// `A`, `W` and `S`, if any: `[b, h, 1, numbers]`
    pub(super) weights: [View<'a, E>; 3],
}

/// One chunk of one head.
struct Chunk<E> {
    queries: Matrix<E>,
    keys: Matrix<E>,
    values: Matrix<E>,
    thresholds: Vec<f64>,
    plan: Matrix<E>,
}

impl<E: Vector> Chunk<E> {
    fn new(options: &Options) -> Self {
        let (c, n, [rows, columns]) = (options.chunk, options.width, options.plan());
        let tokens = || Matrix::new(c, n);
        Self {
            queries: tokens(),
            keys: tokens(),
            values: tokens(),
            thresholds: vec![0.0; c],
            plan: Matrix::new(rows, columns),
        }
    }

    /// Becomes a run of `head`.
    fn read(&mut self, inputs: &Inputs<'_, E>, head: usize, run: &Run, space: &mut [E]) {
        let Options { chunk: c, width: n, map, .. } = *inputs.options;
        let (first, count) = (run.first(c), run.tokens.len());
        let all = [&mut self.queries, &mut self.keys, &mut self.values];
        for (to, from) in all.into_iter().zip(&inputs.tokens) {
            read(to, from.head(head), (first, count), n);
        }
        let thresholds = inputs.threshold.head(head);
        self.thresholds.clear();
        self.thresholds.extend(thresholds.column(first, count));
        let plan = inputs.plan.head(head);
        if map == Map::Softmax {
            self.plan.resize(2, count);
            for (i, row) in self.plan.rows_mut().enumerate() {
                plan.copy(run.chunk, i * c + run.tokens.start, row);
            }
        } else {
            self.plan.set_rows(plan.some(run.chunk, 0, space.len(), space));
        }
    }
}

/// Tokens with one `W`.
struct Run {
    chunk: usize,
    /// Of that chunk
    tokens: Range<usize>,
}

impl Run {
    /// The first token, with chunks of `size` tokens.
    fn first(&self, size: usize) -> usize {
        self.chunk * size + self.tokens.start
    }
}

impl<E: Vector> Inputs<'_, E> {
    /// `[b h, t]`
    pub(super) fn extent(&self) -> [usize; 2] {
        let [b, h, t, _] = self.tokens[0].dims;
        [b * h, t]
    }

    fn chunks(&self) -> usize {
        self.tokens[0].dims[2] / self.options.chunk
    }

    /// Numbers of a head's output.
    pub(super) fn outputs(&self) -> usize {
        self.extent()[1] * self.options.width + (1 + self.options.slots()) * self.options.numbers()
    }

    /// All runs.
    fn runs(&self) -> Vec<Run> {
        let chunks = 0..self.chunks();
        chunks.flat_map(|chunk| self.options.runs().map(move |tokens| Run { chunk, tokens })).collect()
    }

    /// Numbers that are kept of a head: states before every run.
    fn kept_states(&self) -> usize {
        self.chunks() * self.options.runs().count() * self.options.slots() * self.options.numbers()
    }

    /// Numbers that are kept of a token where it has weights of its own.
    fn kept_answers(&self) -> usize {
        let outputs = || self.options.sizes().iter().map(|[_, outputs]| outputs).sum::<usize>();
        if self.options.map == Map::Softmax { 2 * outputs() } else { 0 }
    }

    /// All numbers that are kept of a head.
    pub(super) fn kept(&self) -> usize {
        self.kept_states() + self.extent()[1] * self.kept_answers()
    }

    /// Numbers of a chunk's plan.
    fn planned(&self) -> usize {
        self.options.plan().iter().product()
    }

    fn renewed(&self, head: usize, index: usize) -> bool {
        let [_, h, ..] = self.tokens[0].dims;
        self.options.renewed[head / h * self.chunks() * self.options.runs().count() + index]
    }

    /// Gives `network` the layer norm and the sizes of a head.
    fn set_shared(&self, network: &mut Network<E>, head: usize) {
        if self.options.norm {
            let norm = self.norm.head(head);
            norm.copy(0, 0, &mut network.gain);
            norm.copy(1, 0, &mut network.bias);
        }
        if self.options.map != Map::Same {
            self.sizes.head(head).copy(0, 0, &mut network.sizes);
        }
    }

    /// Numbers of slot `slot` of a head at the start.
    fn start(&self, slot: usize, head: usize, space: &mut [E]) {
        self.weights[slot].head(head).copy(0, 0, space);
    }
}

/// Matrices one after another out of `numbers`.
fn unpack<'m, E: Vector>(matrices: impl Iterator<Item = &'m mut Matrix<E>>, mut numbers: &[E]) {
    for matrix in matrices {
        let size = matrix.rows().map(<[E]>::len).sum();
        let (first, rest) = numbers.split_at(size);
        matrix.set_rows(first);
        numbers = rest;
    }
}

/// Matrices one after another into `numbers`.
fn pack<'m, E: Vector>(matrices: impl Iterator<Item = &'m Matrix<E>>, mut numbers: &mut [E]) {
    for matrix in matrices {
        let size = matrix.rows().map(<[E]>::len).sum();
        let (first, rest) = numbers.split_at_mut(size);
        write(matrix, first);
        numbers = rest;
    }
}

/// Fills `out`, and `kept` if there is room.
pub(super) fn forward<E: Vector>(inputs: &Inputs<'_, E>, out: &mut [E], kept: Option<&mut [E]>) {
    let mut kept = kept.map(|kept| kept.chunks_exact_mut(inputs.kept()));
    let heads = out.chunks_exact_mut(inputs.outputs()).enumerate();
    let jobs: Vec<_> = heads.map(|(head, out)| (head, out, kept.as_mut().and_then(Iterator::next))).collect();
    jobs.into_par_iter().for_each(|(head, out, kept)| forward_head(inputs, head, out, kept));
}

fn forward_head<E: Vector>(inputs: &Inputs<'_, E>, head: usize, out: &mut [E], mut kept: Option<&mut [E]>) {
    let options = inputs.options;
    let (numbers, slots, c, n) = (options.numbers(), options.slots(), options.chunk, options.width);
    let (y, weights) = out.split_at_mut(inputs.extent()[1] * n);
    let (mut network, mut chunk) = (Network::new(options), Chunk::new(options));
    let mut space = vec![E::default(); inputs.planned().max(numbers)];
    inputs.set_shared(&mut network, head);
    for (slot, from) in [0, 2].into_iter().enumerate().take(slots) {
        inputs.start(from, head, &mut space[..numbers]);
        unpack(network.layers.iter_mut().map(|layer| &mut layer.states[slot]), &space);
    }
    inputs.start(1, head, &mut space[..numbers]);
    unpack(network.layers.iter_mut().map(|layer| &mut layer.anchor), &space);
    network.set_weights(options);
    for (index, run) in inputs.runs().iter().enumerate() {
        let first = run.first(c);
        if let Some(kept) = &mut kept {
            let kept = &mut kept[index * slots * numbers..][..slots * numbers];
            for (slot, kept) in kept.chunks_exact_mut(numbers).enumerate() {
                pack(network.layers.iter().map(|layer| &layer.states[slot]), kept);
            }
        }
        chunk.read(inputs, head, run, &mut space[..inputs.planned()]);
        network.set_run(run.tokens.len());
        network.gradients(options, [&chunk.keys, &chunk.values], &chunk.thresholds, false);
        let answer = |t: usize, row: &[E]| y[(first + t) * n..][..n].copy_from_slice(row);
        network.read(options, &chunk.plan, &chunk.queries, answer);
        if let Some(kept) = kept.as_mut().filter(|_| options.map == Map::Softmax) {
            let kept = &mut kept[inputs.kept_states() + first * inputs.kept_answers()..];
            pack(network.layers.iter().flat_map(|layer| layer.answers.all()), kept);
        }
        network.write(options, &chunk.plan, inputs.renewed(head, index));
    }
    let mut weights = weights.chunks_exact_mut(numbers);
    let mut next = || weights.next().expect("room for every slot");
    pack(network.layers.iter().map(|layer| &layer.states[0]), next());
    pack(network.layers.iter().map(|layer| &layer.anchor), next());
    if slots > 1 {
        pack(network.layers.iter().map(|layer| &layer.states[1]), next());
    }
}

/// Gradients of the inputs, contiguous.
#[derive(Debug)]
pub(super) struct Gradients<E> {
    /// Of `q`, `k` and `v`
    pub(super) tokens: [Vec<E>; 3],
    pub(super) threshold: Vec<E>,
    pub(super) plan: Vec<E>,
    /// Empty without a layer norm
    pub(super) norm: Vec<E>,
    /// Empty if the map asks for none
    pub(super) sizes: Vec<E>,
    /// Of `A`, `W` and `S`; the last is empty without one
    pub(super) weights: [Vec<E>; 3],
}

impl<E: Vector> Gradients<E> {
    pub(super) fn filled(inputs: &Inputs<'_, E>, with: E) -> Self {
        let ([heads, t], options) = (inputs.extent(), inputs.options);
        let filled = |count: usize| vec![with; heads * count];
        let numbers = options.numbers();
        Self {
            tokens: std::array::from_fn(|_| filled(t * options.width)),
            threshold: filled(t),
            plan: filled(inputs.chunks() * inputs.planned()),
            norm: filled(if options.norm { 2 * options.width } else { 0 }),
            sizes: filled(if options.map == Map::Same { 0 } else { options.depth }),
            weights: [numbers, numbers, if options.momentum { numbers } else { 0 }].map(filled),
        }
    }

    /// One for every head.
    fn heads(&mut self, count: usize) -> Vec<[&mut [E]; 10]> {
        let Self { tokens: [q, k, v], threshold, plan, norm, sizes, weights: [a, w, s] } = self;
        let mut all = [q, k, v, threshold, plan, norm, sizes, a, w, s].map(Vec::as_mut_slice);
        let mut one = |left: usize| {
            all.each_mut().map(|all| {
                let size = all.len() / left;
                all.split_off_mut(..size).expect("as many numbers as heads")
            })
        };
        (0..count).map(|head| one(count - head)).collect()
    }
}

/// Fills `to` with the gradients for `d_out`, that of what [`forward`] fills: `[b, h, 1, …]`.
pub(super) fn backward<E: Vector>(
    inputs: &Inputs<'_, E>,
    kept: &[E],
    d_out: View<'_, E>,
    to: &mut Gradients<E>,
) {
    let [heads, _] = inputs.extent();
    let jobs: Vec<_> = to.heads(heads).into_iter().zip(kept.chunks_exact(inputs.kept())).collect();
    jobs.into_par_iter().enumerate().for_each(|(head, (to, kept))| {
        backward_head(inputs, head, kept, d_out.head(head), to);
    });
}

fn backward_head<E: Vector>(
    inputs: &Inputs<'_, E>,
    head: usize,
    kept: &[E],
    d_out: Head<'_, E>,
    [dq, dk, dv, d_threshold, d_plan, d_norm, d_sizes, d_running, d_anchor, d_momentum]: [&mut [E]; 10],
) {
    let (options, [_, t]) = (inputs.options, inputs.extent());
    let (numbers, slots, c, n) = (options.numbers(), options.slots(), options.chunk, options.width);
    let (mut network, mut chunk, mut back) = (Network::new(options), Chunk::new(options), Back::new(options));
    let mut space = vec![E::default(); inputs.planned().max(numbers).max(c * n)];
    let mut dy = Matrix::new(c, n);
    inputs.set_shared(&mut network, head);
    for (slot, from) in [0, 2].into_iter().enumerate().take(slots) {
        d_out.copy(0, t * n + from * numbers, &mut space[..numbers]);
        unpack(back.carried().map(|(states, _)| &mut states[slot]), &space);
    }
    d_out.copy(0, t * n + numbers, &mut space[..numbers]);
    unpack(back.carried().map(|(_, anchor)| anchor), &space);
    // Which chunk's A the gradients of the loaded W are taken at.
    let mut loaded = None;
    for (index, run) in inputs.runs().iter().enumerate().rev() {
        let (first, count) = (run.first(c), run.tokens.len());
        if inputs.renewed(head, index) {
            back.renew();
        }
        let kept_of = |index: usize, slot: usize| &kept[(index * slots + slot) * numbers..][..numbers];
        for slot in 0..slots {
            unpack(network.layers.iter_mut().map(|layer| &mut layer.states[slot]), kept_of(index, slot));
        }
        let source = (0..index).rev().find(|&before| inputs.renewed(head, before)).map(|before| before + 1);
        if loaded != Some(source) {
            match source {
                Some(source) => space[..numbers].copy_from_slice(kept_of(source, 0)),
                None => inputs.start(1, head, &mut space[..numbers]),
            }
            unpack(network.layers.iter_mut().map(|layer| &mut layer.anchor), &space);
            network.set_weights(options);
            loaded = Some(source);
        }
        chunk.read(inputs, head, run, &mut space[..inputs.planned()]);
        d_out.copy(0, first * n, &mut space[..count * n]);
        dy.resize(count, n);
        dy.set_rows(&space);
        network.set_run(count);
        network.gradients(options, [&chunk.keys, &chunk.values], &chunk.thresholds, true);
        if options.map == Map::Softmax {
            let kept = &kept[inputs.kept_states() + first * inputs.kept_answers()..];
            unpack(network.layers.iter_mut().flat_map(|layer| layer.answers.all_mut(count)), kept);
            network.see_again(options, &chunk.queries);
        } else {
            network.read(options, &chunk.plan, &chunk.queries, |_, _| {});
        }
        back.chunk(options, &network, &chunk.plan, &dy, &chunk.thresholds);
        for (to, from) in [(&mut *dq, &back.queries), (&mut *dk, &back.keys), (&mut *dv, &back.values)] {
            write(from, &mut to[first * n..][..count * n]);
        }
        for (to, &from) in d_threshold[first..][..count].iter_mut().zip(&back.thresholds) {
            *to = E::of(from);
        }
        let d_plan = &mut d_plan[run.chunk * inputs.planned()..][..inputs.planned()];
        if options.map == Map::Softmax {
            for (to, from) in d_plan.chunks_exact_mut(c).zip(back.plan.rows()) {
                to[run.tokens.clone()].copy_from_slice(&from[..count]);
            }
        } else {
            write(&back.plan, d_plan);
        }
    }
    let shared = d_norm.iter_mut().chain(d_sizes);
    for (to, &from) in shared.zip(back.gain.iter().chain(&back.bias).chain(&back.sizes)) {
        *to = E::of(from);
    }
    pack(back.carried().map(|(states, _)| &states[0]), d_running);
    pack(back.carried().map(|(_, anchor)| &*anchor), d_anchor);
    if slots > 1 {
        pack(back.carried().map(|(states, _)| &states[1]), d_momentum);
    }
}
