//! The way back through one chunk; see the module's equations.

use crate::kernels::dense::{Matrix, Part};
use crate::kernels::lanes::dot;
use crate::kernels::vector::Vector;

use super::network::{Layer, Network, add_scaled, scale_tokens, times_slope};
use super::norm::{mean_product, project};
use super::softmax::{self, Space};
use super::{Map, Options, distribution, loss};

/// Gradients of what one layer holds.
struct LayerBack<E> {
    /// Of `A` and `S`: after the chunk, then before it
    states: Vec<Matrix<E>>,
    /// Of `A` where `W_c` was set
    anchor: Matrix<E>,
    /// Of `W_c` in the chunk, if it is not the same, and of `ν`
    weights: Option<Matrix<E>>,
    factor: f64,
    /// Of `d` and of `x`
    error: Matrix<E>,
    input: Matrix<E>,
    /// Transposes: of a state or its gradient, and of `d`
    turned: Matrix<E>,
    error_turned: Matrix<E>,
}

impl<E> LayerBack<E> {
    /// What comes to `W_c`.
    fn weights(&mut self) -> &mut Matrix<E> {
        self.weights.as_mut().unwrap_or(&mut self.anchor)
    }
}

/// Gradients of what the chunks of a head share, and room for those of one chunk.
pub(super) struct Back<E> {
    layers: Vec<LayerBack<E>>,
    pub(super) gain: Vec<f64>,
    pub(super) bias: Vec<f64>,
    /// Of what the map asks for
    pub(super) sizes: Vec<f64>,
    /// Of the chunk's queries, keys, values and thresholds, and of its plan
    pub(super) queries: Matrix<E>,
    pub(super) keys: Matrix<E>,
    pub(super) values: Matrix<E>,
    pub(super) thresholds: Vec<f64>,
    pub(super) plan: Matrix<E>,
    /// Of what a layer makes of queries or keys
    made: Matrix<E>,
    /// Of what it sees of queries
    query: Matrix<E>,
    /// Of its scores
    scores: Matrix<E>,
    /// `-G` times the scores
    weighted: Matrix<E>,
    product: Matrix<E>,
    scaled: Matrix<E>,
    /// Of `ẑ`, `u` and `r` of a token
    rows: [Vec<E>; 3],
    space: Space<E>,
}

impl<E: Vector> Back<E> {
    pub(super) fn new(options: &Options) -> Self {
        let (c, n, slots, [plan_rows, plan_columns]) =
            (options.chunk, options.width, options.slots(), options.plan());
        let widest = options.sizes().iter().flatten().copied().max().unwrap_or(0);
        let layer = |&[inputs, outputs]: &[usize; 2]| LayerBack {
            states: (0..slots).map(|_| Matrix::new(inputs, outputs)).collect(),
            anchor: Matrix::new(inputs, outputs),
            weights: (options.map != Map::Same).then(|| Matrix::new(inputs, outputs)),
            factor: 0.0,
            error: Matrix::new(c, outputs),
            input: Matrix::new(c, inputs),
            turned: Matrix::new(outputs, inputs),
            error_turned: Matrix::new(outputs, c),
        };
        let normed = if options.norm { n } else { 0 };
        let rows = |columns| Matrix::new(c, columns);
        Self {
            layers: options.sizes().iter().map(layer).collect(),
            gain: vec![0.0; normed],
            bias: vec![0.0; normed],
            sizes: vec![0.0; options.depth],
            queries: rows(n),
            keys: rows(n),
            values: rows(n),
            thresholds: vec![0.0; c],
            plan: Matrix::new(plan_rows, plan_columns),
            made: rows(widest),
            query: rows(widest),
            scores: rows(c),
            weighted: rows(c),
            product: rows(widest),
            scaled: rows(widest),
            rows: std::array::from_fn(|_| vec![E::default(); n]),
            space: Space::new(),
        }
    }

    /// The gradients of a layer's `A` and `S`, and of `W_c`.
    pub(super) fn carried(&mut self) -> impl Iterator<Item = (&mut [Matrix<E>], &mut Matrix<E>)> {
        self.layers.iter_mut().map(|layer| (&mut layer.states[..], &mut layer.anchor))
    }

    /// Where `W_c` was renewed: what came to it comes to `A`.
    pub(super) fn renew(&mut self) {
        for layer in &mut self.layers {
            layer.states[0].add(&layer.anchor);
            layer.anchor.scale(E::default());
        }
    }

    /// Through a chunk that `network` has just read but not written, from `dy: [c, n]` and what is carried.
    pub(super) fn chunk(
        &mut self,
        options: &Options,
        network: &Network<E>,
        plan: &Matrix<E>,
        dy: &Matrix<E>,
        thresholds: &[f64],
    ) {
        self.plan.rows_mut().for_each(|row| row.fill(E::default()));
        for LayerBack { error, input, .. } in &mut self.layers {
            for matrix in [error, input] {
                matrix.resize(thresholds.len(), matrix.columns());
                matrix.rows_mut().for_each(|row| row.fill(E::default()));
            }
        }
        // Where tokens have weights of their own, reads and writes are one.
        if options.map != Map::Softmax {
            self.write(options, network, plan);
        }
        self.read(options, network, plan, dy);
        self.gradients(options, network, thresholds);
        self.map(options, network);
    }

    /// From `W_c` to what was accumulated where it was set.
    fn map(&mut self, options: &Options, network: &Network<E>) {
        for (l, (back, layer)) in self.layers.iter_mut().zip(&network.layers).enumerate() {
            let LayerBack { anchor, weights: Some(weights), factor: d_factor, .. } = back else { continue };
            if options.map == Map::Softmax {
                let (used, size) = (layer.weights(), network.sizes[l]);
                self.sizes[l] += distribution::weights_back(used, size, weights, anchor);
            }
            let (Map::Normed { q, .. }, Some(factor)) = (options.map, layer.factor) else { continue };
            let d_factor = std::mem::take(d_factor) + weights.dot(&layer.anchor);
            self.sizes[l] += factor.back(q, &layer.anchor, network.sizes[l].to_f64(), d_factor, anchor);
            weights.scale(E::of(factor.value));
            anchor.add(weights);
            weights.scale(E::default());
        }
    }

    /// Through the writes: begins with the gradients of `d` and `x`, and moves those of `A` and `S` before the chunk.
    fn write(&mut self, options: &Options, network: &Network<E>, plan: &Matrix<E>) {
        let c = options.chunk;
        for (back, layer) in self.layers.iter_mut().zip(&network.layers) {
            for (s, state) in back.states.iter().enumerate() {
                let row = plan.row(c + s);
                self.product.set_product(&layer.input, state, Part::Whole);
                for (t, &factor) in row[..c].iter().enumerate() {
                    let product = self.product.row(t);
                    add_scaled(back.error.row_mut(t), product, -factor);
                    self.plan.row_mut(c + s)[t] += E::of(-dot(layer.error.row(t), product));
                }
                back.turned.set_transpose(state);
                scale_tokens(&layer.error, row, &mut self.scaled);
                back.input.add_product(&self.scaled, &back.turned, Part::Whole);
                for (from, layer) in layer.states.iter().enumerate().skip(s) {
                    self.plan.row_mut(c + s)[c + from] += E::of(state.dot(layer));
                }
            }
            let (a, s) = back.states.split_at_mut(1);
            if let Some(s) = s.first_mut() {
                s.scale(plan.row(c + 1)[c + 1]);
                for (to, from) in s.rows_mut().zip(a[0].rows()) {
                    add_scaled(to, from, plan.row(c)[c + 1]);
                }
            }
            a[0].scale(plan.row(c)[c]);
        }
    }

    /// Through the answers.
    fn read(&mut self, options: &Options, network: &Network<E>, plan: &Matrix<E>, dy: &Matrix<E>) {
        let (c, last) = (dy.rows().count(), network.layers.len() - 1);
        self.made.resize(c, options.width);
        for t in 0..c {
            let (dz, dy) = (self.made.row_mut(t), dy.row(t));
            self.queries.row_mut(t).fill(E::default());
            if !options.norm || options.raw {
                dz.copy_from_slice(dy);
                continue;
            }
            let normal = network.query_normal.row(t);
            self.queries.row_mut(t).copy_from_slice(dy);
            for i in 0..dy.len() {
                self.gain[i] += dy[i].to_f64() * normal[i].to_f64();
                self.bias[i] += dy[i].to_f64();
                dz[i] = dy[i] * network.gain[i];
            }
            project(dz, normal, network.query_rates[t]);
        }
        for l in (0..=last).rev() {
            let (back, layer) = (&mut self.layers[l], &network.layers[l]);
            self.query.resize(c, layer.query.row(0).len());
            self.query.rows_mut().for_each(|row| row.fill(E::default()));
            if options.map == Map::Softmax {
                let LayerBack { states, error, input, .. } = back;
                let (query, steps) = (&mut self.query, &mut self.plan);
                let (made, state) = (&self.made, &layer.states[0]);
                let d_state = &mut states[0];
                let to = softmax::Back { made, state, d_state, query, input, error, steps };
                self.sizes[l] +=
                    softmax::back(layer.run(network.sizes[l], plan), &layer.answers, to, &mut self.space);
            } else {
                self.read_layer(l, layer, plan);
            }
            if l > 0 {
                let slope = &network.layers[l - 1].query_slope;
                self.made.resize(c, slope.row(0).len());
                times_slope(&self.query, slope, &mut self.made);
            } else {
                add_front(&self.query, &mut self.queries);
            }
        }
    }

    /// Through what one layer makes of queries.
    fn read_layer(&mut self, l: usize, layer: &Layer<E>, plan: &Matrix<E>) {
        let (back, c) = (&mut self.layers[l], self.made.rows().count());
        if let Some(factor) = layer.factor {
            back.factor += self.made.dot(&layer.answers.made);
            self.made.scale(E::of(factor.value));
        }
        // Through what there was before the chunk.
        for (s, (state, part)) in layer.states.iter().zip(&layer.parts).enumerate() {
            self.scaled.resize(c, self.made.row(0).len());
            for t in 0..c {
                let (dz, factor) = (self.made.row(t), plan.row(t)[c + s]);
                self.plan.row_mut(t)[c + s] += E::of(dot(dz, part.row(t)));
                let scaled = self.scaled.row_mut(t);
                for i in 0..dz.len() {
                    scaled[i] = dz[i] * factor;
                }
            }
            back.turned.set_transpose(state);
            self.query.add_product(&self.scaled, &back.turned, Part::Whole);
            back.states[s].add_turned_product(&layer.query, &self.scaled, Part::Whole);
        }
        // Through the chunk's gradients.
        back.error_turned.set_transpose(&layer.error);
        self.scores.set_product(&self.made, &back.error_turned, Part::Whole);
        for t in 0..c {
            let (scores, plan) = (layer.scores.row(t), plan.row(t));
            let (d_scores, d_plan) = (self.scores.row_mut(t), self.plan.row_mut(t));
            let weighted = self.weighted.row_mut(t);
            for i in 0..c {
                if i > t {
                    (d_scores[i], weighted[i]) = (E::default(), E::default());
                    continue;
                }
                d_plan[i] += -(d_scores[i] * scores[i]);
                d_scores[i] = -(d_scores[i] * plan[i]);
                weighted[i] = -(plan[i] * scores[i]);
            }
        }
        back.error.add_turned_product(&self.weighted, &self.made, Part::Whole);
        back.input.add_turned_product(&self.scores, &layer.query, Part::Whole);
        self.query.add_product(&self.scores, &layer.input, Part::Whole);
    }

    /// Through the inner gradients: second derivatives.
    fn gradients(&mut self, options: &Options, network: &Network<E>, thresholds: &[f64]) {
        let (c, last) = (thresholds.len(), network.layers.len() - 1);
        // Up: d_l = (d_{l+1} W_{l+1}ᵀ) ∘ gelu'(a_l). What comes to a_l by gelu' replaces what came to d_l.
        for l in 0..last {
            let [back, next] = self.layers.get_disjoint_mut([l, l + 1]).expect("two layers");
            let (layer, after) = (&network.layers[l], &network.layers[l + 1]);
            let behind = &mut self.query;
            behind.resize(c, after.behind.row(0).len());
            for t in 0..c {
                let (error, to) = (back.error.row_mut(t), behind.row_mut(t));
                let (slope, curve, row) = (layer.slope.row(t), layer.curve.row(t), after.behind.row(t));
                to.fill(E::default());
                for i in 0..error.len() {
                    to[i] = error[i] * slope[i];
                    error[i] = error[i] * row[i] * curve[i];
                }
            }
            next.error.add_product(behind, after.weights(), Part::Whole);
            next.weights().add_turned_product(behind, &after.error, Part::Whole);
        }
        self.outcome(options, network, thresholds);
        // Down: a_l = x_l W_l.
        for l in (0..=last).rev() {
            let layer = &network.layers[l];
            let (before, from) = self.layers.split_at_mut(l);
            let back = &mut from[0];
            let to = back.weights.as_mut().unwrap_or(&mut back.anchor);
            to.add_turned_product(&layer.input, &back.error, Part::Whole);
            back.input.add_product(&back.error, &layer.anchor_turned, Part::Whole);
            match before.last_mut() {
                Some(before) => {
                    let slope = &network.layers[l - 1].slope;
                    for t in 0..c {
                        let (to, input, slope) = (before.error.row_mut(t), back.input.row(t), slope.row(t));
                        for i in 0..to.len() {
                            to[i] += input[i] * slope[i];
                        }
                    }
                }
                None => add_front(&back.input, &mut self.keys),
            }
        }
    }

    /// Through `d_L`, the loss and the layer norm: the gradient of `d_L` becomes that of what the last layer makes.
    fn outcome(&mut self, options: &Options, network: &Network<E>, thresholds: &[f64]) {
        let last = network.layers.len() - 1;
        let (layer, back) = (&network.layers[last], &mut self.layers[last]);
        let [d_normal, du, dr] = &mut self.rows;
        for (t, &threshold) in thresholds.iter().enumerate() {
            let (dd, dv, dk) = (back.error.row_mut(t), self.values.row_mut(t), self.keys.row_mut(t));
            let (r, u) = (network.residual.row(t), network.outer.row(t));
            dv.fill(E::default());
            dk.fill(E::default());
            if !options.norm {
                self.thresholds[t] = loss::back(options.bias, r, threshold, dd, dr, dv);
                for i in 0..dr.len() {
                    (dd[i], dv[i]) = (dr[i], dv[i] - dr[i]);
                }
                continue;
            }
            let (normal, rate, gain) = (network.normal.row(t), network.rates[t], &network.gain);
            for i in 0..du.len() {
                d_normal[i] = u[i] * gain[i];
            }
            let (along, d_along) = (mean_product(d_normal, normal), mean_product(dd, normal));
            let d_rate = dot(dd, layer.error.row(t)) / rate;
            for i in 0..du.len() {
                let sum = dd[i].to_f64() * along + d_normal[i].to_f64() * d_along;
                d_normal[i] = E::of(-rate * sum);
            }
            project(dd, normal, rate);
            for i in 0..du.len() {
                self.gain[i] += dd[i].to_f64() * u[i].to_f64();
                du[i] = dd[i] * gain[i];
            }
            self.thresholds[t] = loss::back(options.bias, r, threshold, du, dr, dv);
            for i in 0..dr.len() {
                dk[i] = dr[i];
                dv[i] = dv[i] - dr[i];
                self.gain[i] += dr[i].to_f64() * normal[i].to_f64();
                self.bias[i] += dr[i].to_f64();
                d_normal[i] += dr[i] * gain[i];
            }
            project(d_normal, normal, rate);
            let shrink = E::of(-rate * rate * d_rate / dr.len() as f64);
            dd.copy_from_slice(d_normal);
            add_scaled(dd, normal, shrink);
        }
    }
}

/// `to += x`, without the entry of the 1 that `x` may have.
fn add_front<E: Vector>(x: &Matrix<E>, to: &mut Matrix<E>) {
    for (to, x) in to.rows_mut().zip(x.rows()) {
        for i in 0..to.len() {
            to[i] += x[i];
        }
    }
}
