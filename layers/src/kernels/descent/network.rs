//! The memory of one head, the tokens of one chunk, and what happens to them in order: inner gradients, reads, writes.

use crate::kernels::dense::{Matrix, Part};
use crate::kernels::vector::Vector;

use super::activation::activate;
use super::map::Factor;
use super::norm::{project, standardize};
use super::softmax::{Answers, Run, Space};
use super::{Map, Options, distribution, loss, softmax};

/// One layer's matrices, `[inputs, outputs]`, and what goes through them.
pub(super) struct Layer<E> {
    /// `A`, and `S` if there is one
    pub(super) states: Vec<Matrix<E>>,
    /// `A` where `W_c` was set
    pub(super) anchor: Matrix<E>,
    /// `W_c`, if it is not the same, and `ν` if it is a multiple
    weights: Option<Matrix<E>>,
    pub(super) factor: Option<Factor>,
    /// The transpose of `W_c`
    pub(super) anchor_turned: Matrix<E>,
    /// `x`: what the layer sees of the keys
    pub(super) input: Matrix<E>,
    pub(super) input_turned: Matrix<E>,
    /// `gelu'` and `gelu''` of what it makes of them, where another layer follows
    pub(super) slope: Matrix<E>,
    pub(super) curve: Matrix<E>,
    /// `d`
    pub(super) error: Matrix<E>,
    /// `d Wᵀ`
    pub(super) behind: Matrix<E>,
    /// What the layer sees of the queries
    pub(super) query: Matrix<E>,
    /// `gelu'` of what it makes of them, where another layer follows
    pub(super) query_slope: Matrix<E>,
    /// Products of what it sees of queries and keys
    pub(super) scores: Matrix<E>,
    /// Products of what it sees of the queries with `A` and `S`
    pub(super) parts: Vec<Matrix<E>>,
    /// What it makes of them: without `ν`, if there is one, or by weights of every token
    pub(super) answers: Answers<E>,
}

impl<E> Layer<E> {
    /// `W_c`
    pub(super) fn weights(&self) -> &Matrix<E> {
        self.weights.as_ref().unwrap_or(&self.anchor)
    }

    /// What it does to a run's tokens, one after the other.
    pub(super) fn run<'a>(&'a self, size: E, steps: &'a Matrix<E>) -> Run<'a, E>
    where
        E: Copy,
    {
        Run { steps, input: &self.input, error: &self.error, query: &self.query, size }
    }
}

/// The memory of one head at work on a chunk.
pub(super) struct Network<E> {
    pub(super) layers: Vec<Layer<E>>,
    /// The layer norm's gain and bias; empty without one
    pub(super) gain: Vec<E>,
    pub(super) bias: Vec<E>,
    /// What the map asks for, of every layer
    pub(super) sizes: Vec<E>,
    /// `ẑ`, `r` and `u` of the keys, and `ρ` of each
    pub(super) normal: Matrix<E>,
    pub(super) residual: Matrix<E>,
    pub(super) outer: Matrix<E>,
    pub(super) rates: Vec<f64>,
    /// `ẑ` of the queries, and `ρ` of each
    pub(super) query_normal: Matrix<E>,
    pub(super) query_rates: Vec<f64>,
    /// What a layer makes of its input
    pub(super) made: Matrix<E>,
    /// `-G` times the scores
    pub(super) weighted: Matrix<E>,
    /// A number of every token times its row of errors or inputs
    pub(super) scaled: Matrix<E>,
    /// `gelu''` that is not needed
    unused: Matrix<E>,
    space: Space<E>,
}

impl<E: Vector> Network<E> {
    pub(super) fn new(options: &Options) -> Self {
        let (c, slots) = (options.chunk, options.slots());
        let widest = options.sizes().iter().flatten().copied().max().unwrap_or(0);
        let layer = |&[inputs, outputs]: &[usize; 2]| Layer {
            states: (0..slots).map(|_| Matrix::new(inputs, outputs)).collect(),
            anchor: Matrix::new(inputs, outputs),
            weights: (options.map != Map::Same).then(|| Matrix::new(inputs, outputs)),
            factor: None,
            anchor_turned: Matrix::new(outputs, inputs),
            input: Matrix::new(c, inputs),
            input_turned: Matrix::new(inputs, c),
            slope: Matrix::new(c, outputs),
            curve: Matrix::new(c, outputs),
            error: Matrix::new(c, outputs),
            behind: Matrix::new(c, inputs),
            query: Matrix::new(c, inputs),
            query_slope: Matrix::new(c, outputs),
            scores: Matrix::new(c, c),
            parts: (0..slots).map(|_| Matrix::new(c, outputs)).collect(),
            answers: Answers::new(c, outputs),
        };
        let (n, normed) = (options.width, if options.norm { options.width } else { 0 });
        let rows = |columns| Matrix::new(c, columns);
        Self {
            layers: options.sizes().iter().map(layer).collect(),
            gain: vec![E::default(); normed],
            bias: vec![E::default(); normed],
            sizes: vec![E::default(); if options.map == Map::Same { 0 } else { options.depth }],
            normal: rows(n),
            residual: rows(n),
            outer: rows(n),
            rates: vec![0.0; c],
            query_normal: rows(n),
            query_rates: vec![0.0; c],
            made: rows(widest),
            weighted: rows(c),
            scaled: rows(widest),
            unused: rows(widest),
            space: Space::new(),
        }
    }

    /// Makes `W_c` of what was accumulated where it is set.
    pub(super) fn set_weights(&mut self, options: &Options) {
        for (layer, &size) in self.layers.iter_mut().zip(&self.sizes) {
            let Layer { anchor, weights: Some(weights), factor, .. } = layer else { continue };
            match options.map {
                Map::Same => {}
                Map::Normed { q, least, most } => {
                    let new = Factor::new([q, least, most], anchor, size.to_f64());
                    weights.copy_from(anchor);
                    weights.scale(E::of(new.value));
                    *factor = Some(new);
                }
                Map::Softmax => distribution::set_weights(anchor, size, weights),
            }
        }
    }

    /// Makes room for a run of so many tokens.
    pub(super) fn set_run(&mut self, tokens: usize) {
        for layer in &mut self.layers {
            let Layer { input, query, slope, curve, error, query_slope, .. } = layer;
            for matrix in [input, query, slope, curve, error, query_slope] {
                matrix.resize(tokens, matrix.columns());
            }
        }
    }

    /// Inner gradients on `keys` and `values: [c, n]` at `W_c`, which with `back` is turned for the way back too.
    pub(super) fn gradients(
        &mut self,
        options: &Options,
        [keys, values]: [&Matrix<E>; 2],
        thresholds: &[f64],
        back: bool,
    ) {
        let last = self.layers.len() - 1;
        see(keys, options, &mut self.layers[0].input);
        for l in 0..=last {
            let (layer, next) = pair(&mut self.layers, l);
            self.made.set_product(&layer.input, layer.weights(), Part::Whole);
            layer.input_turned.set_transpose(&layer.input);
            if back || l > 0 {
                layer.anchor_turned.set_transpose(layer.weights.as_ref().unwrap_or(&layer.anchor));
            }
            if let Some(next) = next {
                activate(options.gelu, &self.made, &mut next.input, &mut layer.slope, &mut layer.curve);
                add_one(options, &mut next.input);
            }
        }
        let (gain, bias) = (&self.gain, &self.bias);
        let layer = &mut self.layers[last];
        for (t, &threshold) in thresholds.iter().enumerate() {
            let (z, value, error) = (self.made.row(t), values.row(t), layer.error.row_mut(t));
            let (r, u) = (self.residual.row_mut(t), self.outer.row_mut(t));
            if options.norm {
                let (normal, key) = (self.normal.row_mut(t), keys.row(t));
                self.rates[t] = standardize(z, options.eps, normal);
                for i in 0..r.len() {
                    r[i] = key[i] + normal[i] * gain[i] + bias[i] - value[i];
                }
                loss::gradient(options.bias, r, value, threshold, u);
                for i in 0..error.len() {
                    error[i] = u[i] * gain[i];
                }
                project(error, normal, self.rates[t]);
            } else {
                for i in 0..r.len() {
                    r[i] = z[i] - value[i];
                }
                loss::gradient(options.bias, r, value, threshold, u);
                error.copy_from_slice(u);
            }
        }
        for l in (1..=last).rev() {
            let [before, layer] = self.layers.get_disjoint_mut([l - 1, l]).expect("two layers");
            layer.behind.set_product(&layer.error, &layer.anchor_turned, Part::Whole);
            times_slope(&layer.behind, &before.slope, &mut before.error);
        }
    }

    /// Answers to `queries: [c, n]`, from the weights that `plan` makes of the chunk's gradients and what there was.
    pub(super) fn read(
        &mut self,
        options: &Options,
        plan: &Matrix<E>,
        queries: &Matrix<E>,
        answer: impl FnMut(usize, &[E]),
    ) {
        let (last, c) = (self.layers.len() - 1, options.chunk);
        if options.map == Map::Softmax {
            return self.read_by_token(options, plan, queries, answer);
        }
        see(queries, options, &mut self.layers[0].query);
        for l in 0..=last {
            let (layer, next) = pair(&mut self.layers, l);
            layer.scores.set_product(&layer.query, &layer.input_turned, Part::Whole);
            weigh(plan, &layer.scores, &mut self.weighted);
            self.made.set_product(&self.weighted, &layer.error, Part::Whole);
            for (s, (state, part)) in layer.states.iter().zip(&mut layer.parts).enumerate() {
                part.set_product(&layer.query, state, Part::Whole);
                for t in 0..c {
                    add_scaled(self.made.row_mut(t), part.row(t), plan.row(t)[c + s]);
                }
            }
            if let Some(factor) = layer.factor {
                layer.answers.made.copy_from(&self.made);
                self.made.scale(E::of(factor.value));
            }
            see_next(options, &self.made, &mut layer.query_slope, next, &mut self.unused);
        }
        self.answer(options, queries, answer);
    }

    /// The same where every token has weights of its own, formed one after the other: `A` moves on with them.
    fn read_by_token(
        &mut self,
        options: &Options,
        steps: &Matrix<E>,
        queries: &Matrix<E>,
        answer: impl FnMut(usize, &[E]),
    ) {
        see(queries, options, &mut self.layers[0].query);
        for l in 0..self.layers.len() {
            let size = self.sizes[l];
            let (layer, next) = pair(&mut self.layers, l);
            let Layer { states, answers, input, error, query, query_slope, .. } = layer;
            let run = Run { steps, input, error, query, size };
            softmax::read(run, &mut states[0], answers, &mut self.space);
            see_next(options, &answers.made, query_slope, next, &mut self.unused);
        }
        self.recall(options, queries, answer);
    }

    /// What layers see of the queries, from the answers that were kept.
    pub(super) fn see_again(&mut self, options: &Options, queries: &Matrix<E>) {
        see(queries, options, &mut self.layers[0].query);
        for l in 0..self.layers.len() {
            let (layer, next) = pair(&mut self.layers, l);
            see_next(options, &layer.answers.made, &mut layer.query_slope, next, &mut self.unused);
        }
        self.recall(options, queries, |_, _| {});
    }

    fn recall(&mut self, options: &Options, queries: &Matrix<E>, answer: impl FnMut(usize, &[E])) {
        if let Some(last) = self.layers.last() {
            self.made.copy_from(&last.answers.made);
        }
        self.answer(options, queries, answer);
    }

    /// Answers, from what the last layer makes.
    fn answer(&mut self, options: &Options, queries: &Matrix<E>, mut answer: impl FnMut(usize, &[E])) {
        for t in 0..queries.rows().count() {
            if !options.norm || options.raw {
                answer(t, self.made.row(t));
                continue;
            }
            let normal = self.query_normal.row_mut(t);
            self.query_rates[t] = standardize(self.made.row(t), options.eps, normal);
            let (y, query) = (self.made.row_mut(t), queries.row(t));
            for i in 0..y.len() {
                y[i] = query[i] + normal[i] * self.gain[i] + self.bias[i];
            }
            answer(t, y);
        }
    }

    /// Moves `A` and `S` to the chunk's end, and `W_c` with `A` if it is `renewed`.
    pub(super) fn write(&mut self, options: &Options, plan: &Matrix<E>, renewed: bool) {
        let c = options.chunk;
        for layer in &mut self.layers {
            // A first: it is made of what S was. Where tokens have weights of their own, it has moved on with them.
            let by_plan = if options.map == Map::Softmax { 0 } else { layer.states.len() };
            for s in 0..by_plan {
                let row = plan.row(c + s);
                let (done, rest) = layer.states.split_at_mut(s + 1);
                let state = &mut done[s];
                if row[c + s] != E::of(1.0) {
                    state.scale(row[c + s]);
                }
                if let Some(momentum) = rest.first() {
                    for (to, from) in state.rows_mut().zip(momentum.rows()) {
                        add_scaled(to, from, row[c + 1]);
                    }
                }
                scale_tokens(&layer.error, row, &mut self.scaled);
                state.add_turned_product(&layer.input, &self.scaled, Part::Whole);
            }
            if renewed {
                layer.anchor.copy_from(&layer.states[0]);
            }
        }
        if renewed {
            self.set_weights(options);
        }
    }
}

/// A layer and the one after it.
fn pair<E>(layers: &mut [Layer<E>], l: usize) -> (&mut Layer<E>, Option<&mut Layer<E>>) {
    let (before, after) = layers.split_at_mut(l + 1);
    (&mut before[l], after.first_mut())
}

/// What the first layer sees of `x`.
fn see<E: Vector>(x: &Matrix<E>, options: &Options, to: &mut Matrix<E>) {
    for (row, x) in to.rows_mut().zip(x.rows()) {
        row[..x.len()].copy_from_slice(x);
    }
    add_one(options, to);
}

/// What the layer after one sees of the queries, if there is one.
fn see_next<E: Vector>(
    options: &Options,
    made: &Matrix<E>,
    slope: &mut Matrix<E>,
    next: Option<&mut Layer<E>>,
    unused: &mut Matrix<E>,
) {
    if let Some(next) = next {
        activate(options.gelu, made, &mut next.query, slope, unused);
        add_one(options, &mut next.query);
    }
}

/// What an offset multiplies.
fn add_one<E: Vector>(options: &Options, to: &mut Matrix<E>) {
    if options.offset {
        for row in to.rows_mut() {
            if let Some(one) = row.last_mut() {
                *one = E::of(1.0);
            }
        }
    }
}

/// `to = x ∘ slope`, without the entry of the 1 that `x` may have.
pub(super) fn times_slope<E: Vector>(x: &Matrix<E>, slope: &Matrix<E>, to: &mut Matrix<E>) {
    for ((to, x), slope) in to.rows_mut().zip(x.rows()).zip(slope.rows()) {
        for i in 0..to.len() {
            to[i] = x[i] * slope[i];
        }
    }
}

/// `to += x factor`
pub(super) fn add_scaled<E: Vector>(to: &mut [E], x: &[E], factor: E) {
    for (to, &x) in to.iter_mut().zip(x) {
        *to += x * factor;
    }
}

/// `-G ∘ scores` up to each token, and 0 after it.
fn weigh<E: Vector>(plan: &Matrix<E>, scores: &Matrix<E>, to: &mut Matrix<E>) {
    for (t, to) in to.rows_mut().enumerate() {
        let (plan, scores) = (plan.row(t), scores.row(t));
        for i in 0..to.len() {
            to[i] = if i <= t { -(plan[i] * scores[i]) } else { E::default() };
        }
    }
}

/// `to = -x_t factor_t`
pub(super) fn scale_tokens<E: Vector>(x: &Matrix<E>, factors: &[E], to: &mut Matrix<E>) {
    to.resize(x.rows().count(), x.row(0).len());
    for ((to, x), &factor) in to.rows_mut().zip(x.rows()).zip(factors) {
        for i in 0..to.len() {
            to[i] = -(x[i] * factor);
        }
    }
}
