//! Products of the matrices `H_t = I - β_t w_t w_tᵀ` that lie between keys and queries, block by block.

use std::cell::OnceCell;

use burn::tensor::Tensor;

use crate::nn::repeat_heads;
use crate::system::inverse::unit_lower_inverse;
use crate::system::scan::{pad, unbind};

/// A block of tokens, `[b, h, size, ·]`. With `S = (I + tril₋₁(β W Wᵀ))⁻¹` (UT transform), what each `w` reads is
/// `X = S β tril₋₁(W Kᵀ)` of each earlier key of the block and `Y = S β W` of what enters it.
struct Block {
    k: Tensor<4>,
    /// `Wᵀ`
    across: Tensor<4>,
    /// `[b, h, size, size]`
    x: Tensor<4>,
    y: Tensor<4>,
    /// The keys at the block's end, `K - Xᵀ W`.
    k_end: Tensor<4>,
}

/// What each token does to the keys before it.
pub(super) struct Between {
    /// `[b, h_kv, T, n]`
    pub(super) w: Tensor<4>,
    /// `[b, h_kv, T, 1]`
    pub(super) beta: Tensor<4>,
    /// Tokens to a block
    size: usize,
    made: OnceCell<Reflections>,
}

impl Between {
    pub(super) fn new(w: Tensor<4>, beta: Tensor<4>, size: usize) -> Self {
        Self { w, beta, size, made: OnceCell::new() }
    }

    /// Made once for all queries of a call, of `k: [b, h_kv, T, n]` for `h` heads.
    pub(super) fn reflections(&self, k: &Tensor<4>, heads: usize) -> &Reflections {
        self.made.get_or_init(|| {
            let [k, w, beta] = [k, &self.w, &self.beta].map(|x| repeat_heads(x.clone(), heads / k.dims()[1]));
            Reflections::new(k, w, beta, self.size)
        })
    }
}

/// Keys, and what each token does to the keys before it.
pub(super) struct Reflections {
    size: usize,
    blocks: Vec<Block>,
}

impl Reflections {
    /// From `k`, `w: [b, h, T, n]` and `beta: [b, h, T, 1]`, in blocks of `size` tokens.
    pub(super) fn new(k: Tensor<4>, w: Tensor<4>, beta: Tensor<4>, size: usize) -> Self {
        let [b, h, total, _] = k.dims();
        let count = total.div_ceil(size);
        let blocks = |x: Tensor<4>| {
            let width = x.dims()[3];
            pad(x, 2, count * size).reshape([b, h, count, size, width])
        };
        let (k, w, beta) = (blocks(k), blocks(w), blocks(beta));
        let (written, across) = (w.clone() * beta, w.clone().swap_dims(3, 4));
        let solve = unit_lower_inverse(written.clone().matmul(across.clone()).tril(-1));
        let x = solve.clone().matmul(written.clone().matmul(k.clone().swap_dims(3, 4)).tril(-1));
        let y = solve.matmul(written);
        let k_end = k.clone() - x.clone().swap_dims(3, 4).matmul(w);
        let each = |x: Tensor<5>| unbind(x, 2).into_iter().map(|x| x.squeeze_dim::<4>(2));
        let blocks = each(k).zip(each(across)).zip(each(x)).zip(each(y)).zip(each(k_end));
        let blocks = blocks.map(|((((k, across), x), y), k_end)| Block { k, across, x, y, k_end });
        Self { size, blocks: blocks.collect() }
    }

    /// `q_iᵀ H_i ⋯ H_{j+1} k_j` of queries `q: [b, h, len, n]`, the tokens from `first` on, and all keys up to the
    /// last of them: `[b, h, len, first + len]`. What is not causal is left as it falls.
    ///
    /// A query starts at its own token, goes to the start of its block by `q - tril(q Wᵀ) Y`, and past each earlier
    /// block by `q - (q Wᵀ) Y`.
    pub(super) fn products(&self, q: Tensor<4>, first: usize) -> Tensor<4> {
        let ([b, h, len, _], size) = (q.dims(), self.size);
        let total = first + len;
        let mut columns = Vec::new();
        // Queries of later blocks, at this one's end.
        let mut moving: Option<Tensor<4>> = None;
        for (index, block) in self.blocks.iter().enumerate().take(total.div_ceil(size)).rev() {
            let (start, end) = (first.max(index * size), total.min((index + 1) * size));
            let mut rows = Vec::new();
            let mut at_start = Vec::new();
            if start < end {
                if start > first {
                    // Earlier queries do not see this block.
                    let unseen = [b, h, start - first, size];
                    rows.push(Tensor::zeros(unseen, (&q.device(), q.dtype())));
                }
                let own = q.clone().narrow(2, start - first, end - start);
                let reads = times(own.clone(), block.across.clone()).tril((start - index * size) as i64);
                let inside = times(own.clone(), block.k.clone().swap_dims(2, 3));
                rows.push(inside - times(reads.clone(), block.x.clone()));
                at_start.push(own - times(reads, block.y.clone()));
            }
            if let Some(q) = moving {
                rows.push(times(q.clone(), block.k_end.clone().swap_dims(2, 3)));
                let reads = times(q.clone(), block.across.clone());
                at_start.push(q - times(reads, block.y.clone()));
            }
            columns.push(joined(rows));
            moving = Some(joined(at_start));
        }
        columns.reverse();
        Tensor::cat(columns, 3).narrow(3, 0, total)
    }
}

fn joined(mut rows: Vec<Tensor<4>>) -> Tensor<4> {
    if rows.len() == 1 { rows.remove(0) } else { Tensor::cat(rows, 2) }
}

/// `a b`; with one row by multiplying and summing, as products with one row go wrong on WebGPU.
fn times(a: Tensor<4>, b: Tensor<4>) -> Tensor<4> {
    if a.dims()[2] == 1 { (a.swap_dims(2, 3) * b).sum_dim(2) } else { a.matmul(b) }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{DType, Device};

    use super::*;
    use crate::nn::l2_normalize;
    use crate::testing::{Draw, error, numbers};

    /// The products against a loop that applies one matrix at a time.
    #[test]
    fn products_are_those_of_one_matrix_after_another() {
        const N: usize = 4;
        for (total, t) in [(1, 1), (7, 7), (7, 1), (13, 5), (16, 8), (9, 6)] {
            let mut draw = Draw::new(total as u64);
            let mut tensor = |rows, width| draw.tensor::<4>([1, 1, rows, width], -1.0, 1.0).cast(DType::F64);
            let (q, k, w) = (tensor(t, N), tensor(total, N), l2_normalize(tensor(total, N), 1e-6));
            let beta = tensor(total, 1).add_scalar(1.0);
            let [qs, ks, ws, betas] = [&q, &k, &w, &beta].map(|x| numbers(x.clone()));
            let row = |x: &[f64], i: usize| x[i * N..(i + 1) * N].to_vec();
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            let mut expected = Vec::new();
            for i in 0..t {
                let at = total - t + i;
                for j in 0..=at {
                    let mut key = row(&ks, j);
                    for (s, beta) in betas.iter().enumerate().take(at + 1).skip(j + 1) {
                        let w = row(&ws, s);
                        let read = beta * dot(&w, &key);
                        key.iter_mut().zip(&w).for_each(|(k, w)| *k -= read * w);
                    }
                    expected.push(dot(&row(&qs, i), &key));
                }
            }
            for size in [1, 3, 4, 5, 64] {
                let all = Reflections::new(k.clone(), w.clone(), beta.clone(), size.min(total));
                let found = all.products(q.clone(), total - t);
                assert_eq!(found.dims(), [1, 1, t, total]);
                let found = numbers(found);
                let causal = |i: usize| found[i * total..][..=total - t + i].to_vec();
                let found: Vec<f64> = (0..t).flat_map(causal).collect();
                assert!(error(&found, &expected) < 1e-12, "{t} of {total} tokens, blocks of {size}");
            }
        }
    }

    /// A token with `β = 1` and `w` along a key takes that key out of sight of all later queries.
    #[test]
    fn a_projection_erases_a_key() {
        let mut draw = Draw::new(2);
        let [q, k, w] = [0, 1, 2].map(|_| draw.tensor::<4>([1, 1, 5, 4], -1.0, 1.0));
        let key = l2_normalize(k.clone().narrow(2, 1, 1), 0.0);
        let w = Tensor::cat(vec![w.clone().narrow(2, 0, 2), key, w.narrow(2, 3, 2)], 2);
        let beta = Tensor::<4>::zeros([1, 1, 5, 1], &Device::flex()).slice_fill([0..1, 0..1, 2..3], 1.0);
        let found = Reflections::new(k, w, beta, 2).products(q, 0);
        let later = numbers(found.clone().narrow(2, 2, 3).narrow(3, 1, 1));
        assert!(later.iter().all(|x| x.abs() < 1e-6), "{later:?}");
        assert!(numbers(found.narrow(2, 1, 1).narrow(3, 1, 1))[0].abs() > 1e-3);
    }
}
