//! Cosine attention over the cells of a grid (TransNeXt, arXiv 2311.17132): the head mixer that MoH's vision
//! models route (arXiv 2410.11842).
//!
//! ```text
//! q, k, v = W_q x, W_k x, W_v x
//! q' = (q/‖q‖ + e) softplus(τ) ln N,   k' = k/‖k‖              (e, τ learned per head; N = cells of the grid)
//! s_ij = q'_i · k'_j + r(coords_ij),   y_i = Σ_j softmax_j(s_i) v_j     (every cell sees every cell)
//! r = W_2 relu(W_1 c + b_1) + b_2                              (one bias per head, from relative coordinates)
//! ```
//!
//! | symbol | shape |
//! | --- | --- |
//! | q, k, v, y | `[b, h, N, n]` |
//! | c | `[m, 2]`, the `m` distinct relative coordinates |
//! | r | `[h, N, N]` |
//!
//! Not causal: it reads a whole grid in one call and keeps no state.

use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor, TensorData, activation};
use serde::{Deserialize, Serialize};

use crate::error::require;
use crate::nn::{Linear, l2_normalize, softplus, split_heads};
use crate::system::scan::NEGATIVE;
use crate::system::{Cost, Form, HeadMixer, Mixer, Run, State, Views};
use crate::{Error, Init, Result};

const NAME: &str = "cosine_attention";

/// Sizes and switches of [`CosineAttention`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CosineAttentionConfig {
    /// Heads, a divisor of the width.
    pub heads: usize,
    /// Height and width of the grid; a sequence has one token per cell, row by row.
    pub grid: [usize; 2],
    /// Bias of the query, key and value maps.
    pub qkv_bias: bool,
    /// Bias of the output map.
    pub out_bias: bool,
    /// Hidden units of the map from relative coordinates to biases.
    pub position_hidden: usize,
}

impl Default for CosineAttentionConfig {
    fn default() -> Self {
        Self { heads: 4, grid: [4, 4], qkv_bias: true, out_bias: true, position_hidden: 512 }
    }
}

impl CosineAttentionConfig {
    /// Checks the values and draws the parameters for width `d_model`.
    ///
    /// # Errors
    /// For heads that do not divide the width or zero sizes.
    pub fn init(&self, d_model: usize, init: &mut Init) -> Result<CosineAttention> {
        let (h, [height, width]) = (self.heads, self.grid);
        require(d_model > 0, NAME, "d_model", d_model, "must be positive")?;
        let heads_fit = h > 0 && d_model.is_multiple_of(h);
        require(heads_fit, NAME, "heads", h, &format!("must divide d_model = {d_model}"))?;
        let grid_ok = height > 0 && width > 0;
        require(grid_ok, NAME, "grid", format!("{height} x {width}"), "must have cells")?;
        let hidden = self.position_hidden;
        require(hidden > 0, NAME, "position_hidden", hidden, "must be positive")?;
        let std = (1.0 / d_model as f64).sqrt();
        let mut qkv = || init.linear_std(d_model, d_model, std, self.qkv_bias);
        let (q_proj, k_proj, v_proj) = (qkv(), qkv(), qkv());
        let (coordinates, index) = relative_coordinates(height, width);
        Ok(CosineAttention {
            q_proj,
            k_proj,
            v_proj,
            out_proj: init.linear_std(d_model, d_model, std, self.out_bias),
            query_embedding: init.normal([h, d_model / h], 0.02),
            // softplus(τ) = 1 / 0.24
            temperature: init.constant([h], ((1.0f64 / 0.24).exp() - 1.0).ln() as f32),
            position_in: init.linear_std(2, hidden, 0.5f64.sqrt(), true),
            position_out: init.linear_std(hidden, h, (1.0 / hidden as f64).sqrt(), true),
            coordinates: init.param([coordinates.len() / 2, 2], coordinates).set_require_grad(false),
            index,
            d_model,
        })
    }
}

/// The layer; see the module's equations. Built by [`CosineAttentionConfig::init`].
#[derive(Module, Debug)]
pub struct CosineAttention {
    /// `W_q: [d, d]`
    pub q_proj: Linear,
    /// `W_k: [d, d]`
    pub k_proj: Linear,
    /// `W_v: [d, d]`
    pub v_proj: Linear,
    /// `W_o: [d, d]`
    pub out_proj: Linear,
    /// `e: [h, n]`
    pub query_embedding: Param<Tensor<2>>,
    /// `τ: [h]`
    pub temperature: Param<Tensor<1>>,
    /// `W_1: [2, hidden]`
    pub position_in: Linear,
    /// `W_2: [hidden, h]`
    pub position_out: Linear,
    /// `c: [m, 2]`, not trained
    pub coordinates: Param<Tensor<2>>,
    /// For each pair of cells, its row of `c`.
    #[module(skip)]
    index: Vec<usize>,
    #[module(skip)]
    d_model: usize,
}

impl CosineAttention {
    /// Replaces the table of relative coordinates: `coordinates: [m, 2]`, and for each pair of cells `(i, j)`,
    /// row-major, the row of the table that describes it.
    ///
    /// # Errors
    /// When the pairs are not a square number or name rows that the table does not have.
    pub fn with_coordinates(mut self, coordinates: Tensor<2>, index: Vec<usize>) -> Result<Self> {
        let [rows, columns] = coordinates.dims();
        let cells = index.len().isqrt();
        if columns != 2 || cells == 0 || cells * cells != index.len() || index.iter().any(|&r| r >= rows) {
            let expected =
                format!("[m, 2] with a row below m for each of n² pairs of cells ({} given)", index.len());
            return Err(Error::shape("relative coordinates", expected, &[rows, columns]));
        }
        self.coordinates = Param::initialized(self.coordinates.id, coordinates);
        self.index = index;
        Ok(self)
    }

    fn cells(&self) -> usize {
        self.index.len().isqrt()
    }

    /// `r: [1, h, N, N]`
    fn position_bias(&self) -> Tensor<4> {
        let table = activation::relu(self.position_in.forward(self.coordinates.val()));
        let table = self.position_out.forward(table); // [m, h]
        let (cells, heads) = (self.cells(), table.dims()[1]);
        let index: Vec<i64> = self.index.iter().map(|&row| row as i64).collect();
        let index = TensorData::new(index, [cells * cells]);
        let index = Tensor::<1, Int>::from_data(index, &table.device().inner());
        table.select(0, index).transpose().reshape([1, heads, cells, cells])
    }

    /// Weights `[b, h, N, N]` of the cells `x: [b, N, d]` on each other.
    fn weights(&self, x: Tensor<3>, state: &State, run: Run<'_>) -> Result<Tensor<4>> {
        let [b, t, _] = x.dims();
        if t != self.cells() || state.positions().iter().any(|&seen| seen > 0) {
            return Err(Error::State(format!(
                "cosine attention reads its whole grid of {} cells in one call from `initial_state`, not {t} tokens \
                 at positions {:?}",
                self.cells(),
                state.positions()
            )));
        }
        let h = self.heads();
        let n = self.d_model / h;
        // An epsilon only where a norm would be 0.
        let unit = |x| l2_normalize(split_heads(x, h), 1e-24);
        let scale = softplus(self.temperature.val()).mul_scalar((t as f64).ln()).reshape([1, h, 1, 1]);
        let q = unit(self.q_proj.forward(x.clone())) + self.query_embedding.val().reshape([1, h, 1, n]);
        let k = unit(self.k_proj.forward(x));
        let mut scores = (q * scale).matmul(k.swap_dims(2, 3)) + self.position_bias();
        if let Some(lengths) = run.lengths {
            let valid = lengths.valid(t, &scores.device(), scores.dtype());
            scores = scores + valid.sub_scalar(1.0).mul_scalar(-NEGATIVE).reshape([b, 1, 1, t]);
        }
        Ok(activation::softmax(scores, 3))
    }
}

/// The distinct differences between cells, on a logarithmic scale where 8 cells are 1, and the row of each pair.
fn relative_coordinates(height: usize, width: usize) -> (Vec<f32>, Vec<usize>) {
    let scaled = |d: i64, size: usize| {
        let cells = 8.0 * d as f64 / (size.max(2) - 1) as f64;
        (cells.signum() * (cells.abs() + 1.0).log2() / 8.0f64.log2()) as f32
    };
    let (h, w) = (height as i64, width as i64);
    let table = (1 - h..h).flat_map(|dy| (1 - w..w).map(move |dx| (dy, dx)));
    let table = table.flat_map(|(dy, dx)| [scaled(dy, height), scaled(dx, width)]).collect();
    let cells = || (0..h).flat_map(|y| (0..w).map(move |x| (y, x)));
    let row =
        |(y, x): (i64, i64), (v, u): (i64, i64)| ((y - v + h - 1) * (2 * w - 1) + x - u + w - 1) as usize;
    (table, cells().flat_map(|a| cells().map(move |b| row(a, b))).collect())
}

impl HeadMixer for CosineAttention {
    fn heads(&self) -> usize {
        self.temperature.dims()[0]
    }

    fn run_heads(&self, x: Tensor<3>, state: State, run: Run<'_>) -> Result<(Tensor<4>, State)> {
        let v = split_heads(self.v_proj.forward(x.clone()), self.heads());
        Ok((self.weights(x, &state, run)?.matmul(v).swap_dims(1, 2), state))
    }

    fn merge_heads(&self, y: Tensor<4>) -> Tensor<3> {
        let [b, t, h, n] = y.dims();
        self.out_proj.forward(y.reshape([b, t, h * n]))
    }

    fn query_norms(&self, x: Tensor<3>) -> Tensor<3> {
        let squares = split_heads(self.q_proj.forward(x), self.heads()).square().sum_dim(3);
        squares.squeeze_dim::<3>(3).clamp_min(1e-30).sqrt().swap_dims(1, 2)
    }
}

impl Mixer for CosineAttention {
    fn d_model(&self) -> usize {
        self.d_model
    }

    fn initial_state(&self, batch: usize) -> State {
        State::new(batch)
    }

    fn run(&self, x: Tensor<3>, state: State, run: Run<'_>) -> Result<(Tensor<3>, State)> {
        let (y, state) = self.run_heads(x, state, run)?;
        Ok((self.merge_heads(y), state))
    }

    fn views(&self, x: Tensor<3>, state: State) -> Result<Views> {
        self.check(&x, &state)?;
        Ok(Views { attention: Some(self.weights(x, &state, Run::default())?), ..Views::default() })
    }

    fn cost(&self, batch: usize, time: usize, _form: Form) -> Cost {
        Cost::of(self, (8 * self.d_model * self.d_model + 4 * self.d_model * time) as f64, batch, time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_pair_of_cells_points_at_its_own_difference() {
        let (table, index) = relative_coordinates(2, 3);
        assert_eq!((table.len() / 2, index.len()), (3 * 5, 36));
        let pair = |i: usize, j: usize| &table[2 * index[i * 6 + j]..][..2];
        assert_eq!(pair(4, 4), [0.0, 0.0]);
        // From cell (0, 0) to cell (1, 2): one row and two columns, the whole grid in both directions.
        let far = 9.0f32.log2() / 3.0;
        assert_eq!((pair(5, 0), pair(0, 5)), (&[far, far][..], &[-far, -far][..]));
        assert_eq!(pair(1, 0)[1], 5.0f32.log2() / 3.0);
    }

    #[test]
    fn a_grid_is_read_whole_or_not_at_all() {
        let device = burn::tensor::Device::flex();
        let layer = CosineAttentionConfig::default().init(8, &mut Init::new(0, &device)).unwrap();
        let x = Tensor::<3>::ones([1, 16, 8], &device);
        let (y, state) = layer.forward(x.clone(), layer.initial_state(1), Form::Auto).unwrap();
        assert_eq!(y.dims(), [1, 16, 8]);
        assert!(layer.forward(x.clone(), state, Form::Auto).is_err());
        assert!(layer.forward(x.narrow(1, 0, 15), layer.initial_state(1), Form::Auto).is_err());
    }
}
