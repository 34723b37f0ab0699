//! One weight of softmax attention.

use burn::tensor::Tensor;
use seqzoo::Result;
use seqzoo_layers::Value;

use super::{Explanation, Term, dot, list, number};

/// `exp(s q_i·k_j) / Σ_{l ≤ i} exp(s q_i·k_l)` at `[head, i, j]`.
pub(super) fn weight(
    q: &Tensor<4>,
    k: &Tensor<4>,
    scale: f64,
    value: f64,
    [head, i, j]: [usize; 3],
) -> Result<Explanation> {
    let [_, heads, t, n] = q.dims();
    let group = heads / k.dims()[1].max(1);
    let (q, k) = (Value::from(q.clone()).to_f64()?, Value::from(k.clone()).to_f64()?);
    let row = |all: &[f64], head: usize, token: usize| {
        let start = (head * t + token) * n;
        all[start..start + n].to_vec()
    };
    let (query, key) = (row(&q, head, i), row(&k, head / group, j));
    let scores: Vec<f64> = (0..=i).map(|l| scale * dot(&query, &row(&k, head / group, l))).collect();
    let highest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = scores.iter().map(|score| (score - highest).exp()).sum();
    let recomputed = (scores[j] - highest).exp() / total;
    let normaliser = highest + total.ln();
    let terms = vec![
        Term::vector("q_i", "query of the reading token", &query),
        Term::vector("k_j", "key of the token that is read", &key),
        Term::number("s", "scale, 1/√n", scale),
        Term::number("s q_i·k_j", "score of this pair", scores[j]),
        Term::vector("s q_i·k_l", "scores of all tokens up to i", &scores),
        Term::number("log Z_i", "log of the sum of all exponentials", normaliser),
    ];
    let right = format!(
        "exp({} {}·{}) / exp({}) = exp({} - {})",
        number(scale),
        list(&query),
        list(&key),
        number(normaliser),
        number(scores[j]),
        number(normaliser)
    );
    let equation = "M_ij = exp(s q_i·k_j) / Z_i,  Z_i = Σ_{l ≤ i} exp(s q_i·k_l)";
    Ok(Explanation::closed(value, recomputed, equation, &right, terms))
}
